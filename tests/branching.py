"""Draw graphs with branches, skips, sums, max pools and parameters of each neuron, all on the chip's grid.

Weights are k/4 and thresholds k/8; neurons integrate, or forget a half or three quarters of v at a step, which within 6 steps
loses no bit of a voltage of 24 bits. So the chip has to fire just where the graph does.
"""

from __future__ import annotations

from math import prod
from random import Random
from typing import Any

import nir
import numpy as np
from graphs import DT_S

TIMESTEPS = 6
FEATURES = {
    "branch", "concatenation", "sum of spikes", "skip over 2", "skip over 3", "max pool", "pool",
    "decay of each neuron", "threshold of each neuron",
}  # fmt: skip
"""Everything that `Branching.features` names."""
Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]


class Branching:
    """A graph that grows node by node.

    Args:
        random: draws everything, so that hypothesis can make a failure small.
        graded: the input is more than spikes, and the first layer alone hears it.
    """

    def __init__(self, random: Random, graded: bool = False) -> None:
        self.random, self.graded = random, graded
        # Values come from a seed: hypothesis makes structures small, and would run out of choices on weights.
        self.values = np.random.default_rng(random.randrange(2**16))
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.spiking: dict[str, Shape] = {}
        self.seen: set[str] = set()
        image = random.random() < 0.75
        self.input_shape: Shape = (
            (random.choice([1, 2]), random.randint(5, 9), random.randint(5, 9)) if image else (random.randint(4, 9),)
        )  # fmt: skip
        self.nodes["input"] = nir.Input({"input": np.array(self.input_shape)})
        self.spiking["input"] = self.input_shape
        if graded:
            (self._conv if image else self._dense)()
            del self.spiking["input"]
        for _ in range(random.randint(2, 5)):
            self._grow()
        self._finish()

    def graph(self) -> nir.NIRGraph:
        return nir.NIRGraph(self.nodes, self.edges, type_check=False)

    def features(self) -> set[str]:
        """Name what the graph has, found in its nodes and edges and not in what was meant to be drawn."""
        neurons = (nir.IF, nir.LIF, nir.I)
        cells = {name for name, node in self.nodes.items() if isinstance(node, neurons)}
        synapses = {n for n, node in self.nodes.items() if isinstance(node, (nir.Conv2d, nir.Linear, nir.Affine))}  # fmt: skip
        depth = {"input": 0}
        heard: list[tuple[str, str]] = []
        found: set[str] = set()
        for name in self.nodes:  # every node is drawn behind its sources
            if name not in cells:
                continue
            own = self._behind(name, synapses)
            found |= {"concatenation"} if len(own) > 1 else set()
            sources: set[str] = set()
            for synapse in own:
                spiking = self._behind(synapse, {*cells, "input"})
                found |= {"sum of spikes"} if len(spiking) > 1 else set()
                sources |= spiking
            depth[name] = 1 + max(depth[source] for source in sources)
            heard += [(source, name) for source in sources]
        for source, name in heard:
            over = depth[name] - depth[source] - 1
            found |= {f"skip over {over}"} if over in (2, 3) else set()
        if len({source for source, _ in heard}) < len(heard):
            found.add("branch")
        for name in cells:
            node = self.nodes[name]
            own_decays = isinstance(node, nir.LIF) and len(np.unique(node.tau)) > 1
            found |= {"decay of each neuron"} if own_decays else set()
            own_thresholds = not isinstance(node, nir.I) and len(np.unique(node.v_threshold)) > 1
            found |= {"threshold of each neuron"} if own_thresholds else set()
            found |= {"max pool"} if name.startswith("m") else set()
        pools = (nir.SumPool2d, nir.AvgPool2d)
        found |= {"pool"} if any(isinstance(node, pools) for node in self.nodes.values()) else set()
        return found

    def _behind(self, name: str, wanted: set[str]) -> set[str]:
        """Find the nearest of the wanted nodes on every way that leads to a node."""
        found = set()
        for source in (source for source, target in self.edges if target == name):
            found |= {source} if source in wanted else self._behind(source, wanted)
        return found

    # --- pieces

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.nodes)}"

    def _put(self, kind: str, node: Any, *sources: str) -> str:
        name = self._name(kind)
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def _values(self, shape: Shape, *options: float) -> Array:
        """One value for all neurons, or one for each."""
        if self.random.random() < 0.6:
            return np.full(shape, self.random.choice(options))
        return self.values.choice(options, shape)

    def _weight(self, *shape: int) -> Array:
        weight = self.values.integers(-3, 4, shape)
        weight.flat[0] = 3  # a layer of zeros is refused
        # On an image of one pixel the middle of a kernel is all that meets an input.
        weight[(0, 0, *(side // 2 for side in shape[2:]))[: len(shape)]] = 3
        return weight / 4

    def _neuron(self, shape: Shape, *sources: str) -> str:
        threshold = self._values(shape, 0.5, 0.75, 1.0, 1.5, 0.625)
        zero = np.zeros(shape)
        kind = self.random.choice(["if", "if", "lif", "own"])
        if kind == "if":
            node: Any = nir.IF(r=np.full(shape, 1 / DT_S), v_threshold=threshold, v_reset=zero)
        else:
            tau = self._values(shape, 2.0, 4 / 3) if kind == "own" else np.full(shape, 2.0)
            # r = tau/dt: the whole input reaches v.
            node = nir.LIF(tau=tau * DT_S, r=tau, v_leak=zero, v_threshold=threshold, v_reset=zero)
        name = self._put("n", node, *sources)
        self.spiking[name] = shape
        return name

    def _images(self) -> dict[str, Shape]:
        return {name: shape for name, shape in self.spiking.items() if len(shape) == 3}

    def _grow(self) -> None:
        images = self._images()
        kinds = ["dense"] * (1 if images else 3) + (
            ["conv"] * 4 + ["max", "joined", "added", "skipped"]
            if images
            else ["joined", "skipped"]
        )
        getattr(self, f"_{self.random.choice(kinds)}")()

    def _pick(self, among: dict[str, Shape]) -> tuple[str, Shape]:
        # The newest most often, so that networks get deep.
        names = list(among)
        name = names[-1] if self.random.random() < 0.6 else self.random.choice(names)
        self.seen.add(name)
        return name, among[name]

    def _linear(self, name: str, shape: Shape, outputs: int) -> str:
        source = name
        if len(shape) > 1:
            source = self._put("f", nir.Flatten({"input": np.array(shape)}, 0, -1), name)
        weight = self._weight(outputs, prod(shape))
        if self.random.random() < 0.3:
            return self._put("a", nir.Affine(weight, self._weight(outputs)), source)
        return self._put("w", nir.Linear(weight), source)

    def _dense(self) -> None:
        name, shape = self._pick(self.spiking)
        outputs = self.random.randint(3, 6)
        self._neuron((outputs,), self._linear(name, shape, outputs))

    def _pool(self, name: str, shape: Shape) -> tuple[str, Shape]:
        size = self.random.choice([2, 2, 3])
        stride = self.random.choice([size, size, 2])
        if min(shape[1:]) < size + 1:
            return name, shape
        kind = (
            self.random.choice([nir.SumPool2d, nir.SumPool2d, nir.AvgPool2d])
            if size == 2
            else nir.SumPool2d
        )
        node = kind(np.array([size] * 2), np.array([stride] * 2), np.array([0, 0]))
        sides = [(n - size) // stride + 1 for n in shape[1:]]
        return self._put("p", node, name), (shape[0], *sides)

    def _convolved(
        self, name: str, shape: Shape, outputs: int, stride: int | None = None
    ) -> tuple[str, Shape]:
        if self.random.random() < 0.4:
            name, shape = self._pool(name, shape)
        kernel = self.random.choice([k for k in (1, 2, 3) if k <= min(shape[1:])])
        step = stride or self.random.choice([1, 1, 2])
        same = step == 1 and self.random.random() < 0.3
        padding: Any = "same" if same else np.array([self.random.randint(0, kernel // 2)] * 2)
        bias = self._weight(outputs) if self.random.random() < 0.4 else np.zeros(outputs)
        node = nir.Conv2d(
            None, self._weight(outputs, shape[0], kernel, kernel), step, padding, 1, 1, bias
        )
        around = [kernel - 1] * 2 if same else 2 * padding
        sides = [(n + p - kernel) // step + 1 for n, p in zip(shape[1:], around, strict=True)]
        name, shape = self._put("c", node, name), (outputs, *(int(n) for n in sides))
        if self.random.random() < 0.2:
            name, shape = self._pool(name, shape)
        if self.random.random() < 0.2:
            scale = self.values.choice([0.5, 1.0, 2.0], outputs)
            name = self._put(
                "s", nir.Scale(np.broadcast_to(scale[:, None, None], shape).copy()), name
            )
        return name, shape

    def _conv(self) -> None:
        self._conv_of(*self._pick(self._images()))

    def _conv_of(self, name: str, shape: Shape) -> None:
        self._neuron(*reversed(self._convolved(name, shape, self.random.randint(1, 3))))  # type: ignore[arg-type]

    def _max(self) -> None:
        """A max pool of spikes: a convolution of ones by channels, and neurons that fire on any input."""
        name, shape = self._pick(self._images())
        channels = shape[0]
        if (name == "input" and self.graded) or min(shape[1:]) < 2:
            return self._conv_of(name, shape)
        node = nir.Conv2d(None, np.ones((channels, 1, 2, 2)), 2, 0, 1, channels, np.zeros(channels))
        out = (channels, shape[1] // 2, shape[2] // 2)
        half, zero = np.full(out, 0.5), np.zeros(out)
        fires = nir.LIF(
            tau=np.full(out, DT_S), r=np.ones(out), v_leak=zero, v_threshold=half, v_reset=zero
        )
        pooled = self._put("m", fires, self._put("c", node, name))
        self.spiking[pooled] = out
        return None

    def _joined(self) -> None:
        """Neurons that hear several sources, each through a synapse of its own: what a concatenation is."""
        several = [self._pick(self.spiking) for _ in range(self.random.choice([2, 2, 3]))]
        several = list(dict(several).items())
        outputs = self.random.randint(2, 4)
        if all(len(shape) == 3 for _, shape in several):
            ends = [self._convolved(name, shape, outputs) for name, shape in several]
            if len({shape for _, shape in ends}) == 1:
                self._neuron(ends[0][1], *(name for name, _ in ends))
                return
            # Their sizes differ: each gets neurons, which a dense layer hears later.
            for end, shape in ends:
                self._neuron(shape, end)
            return
        self._neuron((outputs,), *(self._linear(name, shape, outputs) for name, shape in several))

    def _added(self) -> None:
        """Spikes of sources of one shape, added before a synapse: they count 2 where both fire."""
        name, shape = self._pick(self._images())
        others = [n for n, s in self._images().items() if s == shape and n != name]
        if not others:
            outputs = self.random.randint(1, 2)
            weight = self._weight(shape[0], shape[0], 3, 3)
            end = self._put(
                "c", nir.Conv2d(None, weight, 1, np.array([1, 1]), 1, 1, np.zeros(shape[0])), name
            )
            other = self._neuron(shape, end)
        else:
            outputs, other = self.random.randint(1, 3), self.random.choice(others)
        self.seen |= {name, other}
        weight = self._weight(outputs, shape[0], 3, 3)
        end = self._put(
            "c", nir.Conv2d(None, weight, 1, np.array([1, 1]), 1, 1, np.zeros(outputs)), name, other
        )
        self._neuron((outputs, *shape[1:]), end)

    def _skipped(self) -> None:
        """Neurons that hear a source and, two or three layers behind it, what became of it."""
        name, shape = self._pick(self.spiking)
        first, first_shape = name, shape
        for _ in range(self.random.choice([2, 3])):
            if len(shape) == 3:
                end, shape = self._convolved(name, shape, self.random.randint(1, 2))
            else:
                end, shape = self._linear(name, shape, 4), (4,)
            name = self._neuron(shape, end)
        self.seen.add(name)
        outputs = self.random.randint(2, 4)
        ends = [self._linear(first, first_shape, outputs), self._linear(name, shape, outputs)]
        self._neuron((outputs,), *ends)

    def _finish(self) -> None:
        """End with a layer that hears everything that nobody hears yet."""
        open_ends = [name for name in self.spiking if name not in self.seen] or [
            list(self.spiking)[-1]
        ]
        if self.graded:
            open_ends = [name for name in open_ends if name != "input"] or [list(self.spiking)[-1]]
        outputs = self.random.randint(2, 4)
        ends = [self._linear(name, self.spiking[name], outputs) for name in open_ends]
        if self.random.random() < 0.3:
            last = self._put("n", nir.I(np.full(outputs, 1 / DT_S)), *ends)
        else:
            last = self._neuron((outputs,), *ends)
        self.nodes["output"] = nir.Output({"output": np.array([outputs])})
        self.edges.append((last, "output"))


SENT = ("spikes", "payloads", "signed spikes", "signed payloads", "spikes")
"""What a network is fed; the first layer alone hears what is more than spikes."""


def bits_of(sent: str) -> int:
    return 2 if "payloads" in sent else 1


def events(branching: Branching, seed: int, sent: str = "spikes") -> Array:
    """Inputs that drive it, of a kind of SENT."""
    rng = np.random.default_rng(seed)
    shape = (2, TIMESTEPS, *branching.input_shape)
    active = rng.random(shape) < 0.45
    payloads = active * rng.integers(1, 2 ** bits_of(sent), shape)
    return payloads * rng.choice([-1, 1, 1], shape) if "signed" in sent else payloads
