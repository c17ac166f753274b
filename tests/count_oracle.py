"""Random spiking networks, and their operations by a plain walk over events, windows and taps: no convolution, no matrix.

A network is a list of `Layer`: where its events come from, pools on the way, one synapse, a pool behind it, neurons, and
perhaps synapses of the neurons with themselves. `graph_of` writes it as a NIR graph; `walk` counts it from the spikes of
every neuron.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
from graphs import conv2d, cuba, integrate, li, lif

Array = npt.NDArray[Any]
Position = tuple[int, ...]
Map = dict[Position, float]
"""Position -> weight of one event there."""


@dataclass
class Pool:
    name: str
    average: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def out(self, shape: Position) -> Position:
        sides = zip(shape[1:], self.kernel, self.stride, self.padding, strict=True)
        return (shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sides))

    def windows(self, at: Position, shape: Position) -> list[Position]:
        """Every output whose window holds this input, by trying all of them."""
        found = []
        for y, x in product(*map(range, self.out(shape)[1:])):
            for a, b in product(*map(range, self.kernel)):
                here = (
                    y * self.stride[0] + a - self.padding[0],
                    x * self.stride[1] + b - self.padding[1],
                )
                if here == at[1:]:
                    found.append((at[0], y, x))
        return found

    def apply(self, frame: Array) -> Array:
        out = np.zeros(self.out(frame.shape))
        for at in product(*map(range, frame.shape)):
            for target in self.windows(at, frame.shape):
                out[target] += frame[at] / (prod(self.kernel) if self.average else 1)
        return out

    def node(self) -> Any:
        kind = nir.AvgPool2d if self.average else nir.SumPool2d
        return kind(np.array(self.kernel), np.array(self.stride), np.array(self.padding))


@dataclass
class Layer:
    name: str
    sources: list[str]
    shape: Position
    weight: Array
    neuron: str
    pools: list[Pool] = field(default_factory=list)
    behind: list[Pool] = field(default_factory=list)
    scale: float = 1.0
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: Array | None = None
    loop: Array | None = None

    @property
    def conv(self) -> bool:
        return self.weight.ndim == 4

    @property
    def heard(self) -> Position:
        """Shape at the synapse."""
        shape = self.shape
        for pool in self.pools:
            shape = pool.out(shape)
        return shape

    @property
    def synapse_out(self) -> Position:
        if not self.conv:
            return (len(self.weight),)
        sides = zip(
            self.heard[1:],
            self.weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        return (
            len(self.weight),
            *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides),
        )

    @property
    def out(self) -> Position:
        shape = self.synapse_out
        for pool in self.behind:
            shape = pool.out(shape)
        return shape

    def taps(self, at: Position) -> Map:
        """Outputs of the synapse alone that one event at its input reaches, by trying all of them."""
        if not self.conv:
            flat = int(np.ravel_multi_index(at, self.heard))
            return {(o,): float(self.weight[o, flat]) for o in range(len(self.weight))}
        found: Map = {}
        outputs, in_group, height, width = self.weight.shape
        for o, y, x in product(*map(range, self.synapse_out)):
            if o // (outputs // self.groups) != at[0] // in_group:
                continue
            for a, b in product(range(height), range(width)):
                row = y * self.stride[0] + a * self.dilation[0] - self.padding[0]
                column = x * self.stride[1] + b * self.dilation[1] - self.padding[1]
                if (row, column) == at[1:]:
                    found[o, y, x] = float(self.weight[o, at[0] % in_group, a, b])
        return found

    def targets(self, at: Position, *, folded: bool) -> Map:
        """Neurons that one event reaches; folded: from before the pools to behind them, each target once."""
        if not folded:
            return self.taps(at)
        spread: Map = {at: 1.0}
        shape = self.shape
        for pool in self.pools:
            after: Counter[Position] = Counter()
            for here, much in spread.items():
                for target in pool.windows(here, shape):
                    after[target] += much  # type: ignore[assignment]
            spread, shape = dict(after), pool.out(shape)
        ends: Counter[Position] = Counter()
        for here, much in spread.items():
            for target, weight in self.taps(here).items():
                ends[target] += much * weight  # type: ignore[assignment]
        found, shape = dict(ends), self.synapse_out
        for pool in self.behind:
            behind: Counter[Position] = Counter()
            for here, much in found.items():
                for target in pool.windows(here, shape):
                    behind[target] += much  # type: ignore[assignment]
            found, shape = dict(behind), pool.out(shape)
        return found


def random_network(rng: np.random.Generator) -> list[Layer]:
    """Two to four layers, small enough to walk."""
    shape: Position = (int(rng.integers(1, 4)), int(rng.integers(2, 7)), int(rng.integers(2, 7)))
    layers: list[Layer] = []
    source, before = "input", None
    for at in range(int(rng.integers(2, 5))):
        name, neuron = f"w{at}", f"n{at}"
        sources = [source, before] if before is not None and rng.random() < 0.7 else [source]
        same = (
            rng.random() < 0.3
        )  # keeps its shape, so that the next layer can hear what it heard too
        pools = (
            _pools(rng, f"p{at}", shape)
            if len(shape) == 3 and not same and rng.random() < 0.6
            else []
        )
        heard = Layer(name, [], shape, np.zeros((1, 1)), neuron, pools).heard
        if same:
            weight = _pruned(rng, heard[0], heard[0], *([3, 3] if len(heard) == 3 else []))
            layer = Layer(name, sources, shape, weight, neuron, padding=(1, 1))
        elif len(heard) == 3 and rng.random() < 0.65:
            layer = _conv(rng, Layer(name, sources, shape, np.zeros((1, 1)), neuron, pools), heard)
        else:
            weight = _pruned(rng, int(rng.integers(2, 6)), prod(heard))
            layer = Layer(name, sources, shape, weight, neuron, pools)
        if len(layer.out) == 1 and rng.random() < 0.5:
            neurons = layer.out[0]
            layer.loop = _pruned(rng, neurons, neurons)
            if rng.random() < 0.5:
                np.fill_diagonal(layer.loop, 0)
        layer.scale = float(rng.choice([1.0, 1.0, 0.5, 2.0]))
        layer.bias = rng.integers(1, 3, len(layer.weight)) / 4.0 if rng.random() < 0.3 else None
        layers.append(layer)
        before = source if layer.out == shape else None
        source, shape = neuron, layer.out
    return layers


def _pruned(rng: np.random.Generator, *shape: int) -> Array:
    """Whole weights, many of them 0, so that sums of several taps may cancel exactly."""
    return rng.integers(-2, 4, shape).astype(np.float64)


def _pools(rng: np.random.Generator, name: str, shape: Position) -> list[Pool]:
    found: list[Pool] = []
    for at in range(int(rng.integers(1, 3))):
        average = bool(rng.random() < 0.5)
        sizes = [1, 2] if average else [1, 2, 3]  # means of powers of two are exact in float32
        kernel = (int(rng.choice(sizes)), int(rng.choice(sizes)))
        padding = (0, 0) if average else (int(rng.integers(0, 2)), int(rng.integers(0, 2)))
        pool = Pool(
            f"{name}_{at}",
            average,
            kernel,
            (int(rng.integers(1, 4)), int(rng.integers(1, 4))),
            padding,
        )
        # torch has no pool whose padding is more than half of its window
        if min(pool.out(shape)[1:]) >= 1 and all(
            2 * p <= k for p, k in zip(padding, kernel, strict=True)
        ):
            found.append(pool)
            shape = pool.out(shape)
    return found


def _conv(rng: np.random.Generator, layer: Layer, heard: Position) -> Layer:
    while True:
        layer.groups = int(rng.choice([g for g in range(1, 4) if heard[0] % g == 0]))
        kernel = rng.integers(1, 4, 2).tolist()
        layer.weight = _pruned(
            rng, layer.groups * int(rng.integers(1, 3)), heard[0] // layer.groups, *kernel
        )
        layer.stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        layer.padding = (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
        layer.dilation = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        if min(layer.synapse_out[1:]) >= 1:
            break
    if rng.random() < 0.25:
        layer.behind = _pools(rng, f"{layer.name}_behind", layer.synapse_out)[:1]
    return layer


def graph_of(layers: list[Layer], rng: np.random.Generator) -> nir.NIRGraph:
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(layers[0].shape)})}
    edges: list[tuple[str, str]] = []
    for at, layer in enumerate(layers):
        chain: list[tuple[str, Any]] = [(pool.name, pool.node()) for pool in layer.pools]
        if layer.scale != 1:
            chain.append((f"{layer.name}_scale", nir.Scale(np.full(layer.heard, layer.scale))))
        if not layer.conv and len(layer.heard) > 1:
            chain.append(
                (f"{layer.name}_flat", nir.Flatten({"input": np.array(layer.heard)}, 0, -1))
            )
        bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        geometry = {
            "stride": np.array(layer.stride),
            "padding": np.array(layer.padding),
            "dilation": np.array(layer.dilation),
        }
        chain.append(
            (
                layer.name,
                conv2d(layer.weight, groups=layer.groups, bias=bias, **geometry)
                if layer.conv
                else nir.Affine(layer.weight, bias),
            )
        )
        chain += [(pool.name, pool.node()) for pool in layer.behind]
        last = at == len(layers) - 1
        kinds = [lif, integrate, cuba, *([li] if last and layer.loop is None else [])]
        chain.append((layer.neuron, kinds[int(rng.integers(len(kinds)))](layer.out)))
        nodes |= dict(chain)
        names = [name for name, _ in chain]
        edges += [(source, names[0]) for source in layer.sources]
        edges += list(pairwise(names))
        if layer.loop is not None:
            nodes[f"{layer.name}_loop"] = nir.Linear(layer.loop)
            edges += [(layer.neuron, f"{layer.name}_loop"), (f"{layer.name}_loop", layer.neuron)]
    nodes["output"] = nir.Output({"output": np.array(layers[-1].out)})
    edges.append((layers[-1].neuron, "output"))
    return nir.NIRGraph(nodes, edges, type_check=False)


def kind_of(frame: Array) -> str:
    values = set(np.unique(frame).tolist())
    return "acc" if values <= {0, 1} else "signed" if values <= {-1, 0, 1} else "mac"


def walk(
    layers: list[Layer], values: dict[str, Array], *, folded: bool, spiking: set[str]
) -> dict[str, Counter[str]]:
    """Totals over all samples: layer or pool -> column -> number.

    Args:
        layers: the network.
        values: event source -> (samples, timesteps, *features) it gave.
        folded: policy.
        spiking: neurons with a threshold.
    """
    found: dict[str, Counter[str]] = {}
    samples, steps = values["input"].shape[:2]
    for layer in layers:
        row = found.setdefault(layer.name, Counter())
        cache: dict[Position, Map] = {}

        def reached(at: Position, layer: Layer = layer, cache: dict[Position, Map] = cache) -> Map:
            if at not in cache:
                cache[at] = layer.targets(at, folded=folded)
            return cache[at]

        dense = sum(
            len(reached(at)) for at in product(*map(range, layer.shape if folded else layer.heard))
        )
        own = values[layer.neuron]
        neurons = prod(layer.out)
        for b, t in product(range(samples), range(steps)):
            parts = [
                values[source][b, t].reshape(layer.shape).astype(np.float64)
                for source in layer.sources
            ]
            frames = parts
            if not folded:
                frames = [_through(layer, parts, found)]
            touched: set[Position] = set()
            currents = np.zeros(layer.synapse_out)
            if layer.bias is not None:
                currents += layer.bias.reshape(-1, *(1 for _ in layer.synapse_out[1:]))
            for frame in frames:
                kind = kind_of(frame)
                for event in np.argwhere(frame):
                    targets = reached(tuple(event.tolist()))
                    row["events"] += 1
                    row["graded"] += kind == "mac"
                    row["acc" if kind != "mac" else "mac"] += len(targets)
                    row["signed"] += len(targets) if kind == "signed" else 0
                    nonzero = sum(weight != 0 for weight in targets.values())
                    row[("acc" if kind != "mac" else "mac") + "_nonzero"] += nonzero
                    if not folded:
                        for target, weight in targets.items():
                            currents[target] += weight * frame[tuple(event)]
                        for pool in layer.behind:
                            targets = {
                                t: 0.0
                                for at in targets
                                for t in pool.windows(at, layer.synapse_out)
                            }
                    touched |= set(targets)
            for pool in layer.behind if not folded else []:
                adds = sum(
                    len(pool.windows(tuple(at.tolist()), currents.shape))
                    for at in np.argwhere(currents)
                )
                found.setdefault(pool.name, Counter())["pool_adds"] += adds
                currents = pool.apply(currents)
            row["dense_valid"] += len(frames) * dense
            if layer.loop is not None:
                autapses = bool(np.diagonal(layer.loop).any())
                row["dense_valid"] += neurons * (neurons - (not autapses))
                for event in np.argwhere(own[b, t]) if t < steps - 1 else []:
                    row["events"] += 1
                    row["acc"] += neurons - (not autapses)
                    row["acc_nonzero"] += int((layer.loop[:, event[0]] != 0).sum())
                    row["recurrent_all_pairs"] += neurons
                    row["recurrent_no_autapse"] += neurons - 1
                for event in np.argwhere(own[b, t - 1]) if t else []:
                    touched |= {(n,) for n in range(neurons) if autapses or n != event[0]}
            row["neuron_updates"] += neurons
            if layer.bias is not None:
                row["bias_adds"] += (
                    neurons if folded or not layer.behind else prod(layer.synapse_out)
                )
            row["touched_updates"] += neurons if layer.bias is not None else len(touched)
            row["spikes"] += int((own[b, t] != 0).sum()) if layer.neuron in spiking else 0
    return found


def _through(layer: Layer, parts: list[Array], found: dict[str, Counter[str]]) -> Array:
    """The sum of all sources behind the pools and the scale, and what that costs on the way."""
    extra = sum(
        max(0, sum(int(part[at] != 0) for part in parts) - 1) for at in np.ndindex(parts[0].shape)
    )
    frame = np.asarray(sum(parts))
    first = layer.pools[0].name if layer.pools else layer.name
    if not layer.pools and layer.scale != 1:
        first = f"{layer.name}_scale"
    elif not layer.pools and not layer.conv and len(layer.heard) > 1:
        first = f"{layer.name}_flat"
    if len(parts) > 1:
        found.setdefault(first, Counter())["merge_adds"] += extra
    for pool in layer.pools:
        row = found.setdefault(pool.name, Counter())
        row["pool_adds"] += sum(
            len(pool.windows(tuple(at.tolist()), frame.shape)) for at in np.argwhere(frame)
        )
        frame = pool.apply(frame)
    if layer.scale != 1:
        found.setdefault(f"{layer.name}_scale", Counter())["elementwise"] += int((frame != 0).sum())
        frame = frame * layer.scale
    return frame
