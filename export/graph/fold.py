"""Kernels of pooling and synapse in one; `fold.py` has the formulas.

Pooling, scales and groups as plain synapses: what a chip, or a count of accumulates, can take as it is.

    pool, then conv      K[a*d*s_p + b] += g * W[a],  stride s*s_p,  padding p*s_p + p_p      (s_p, p_p: of the pool)
    conv, then pool      K[b*s + a*d]   += g * W[a],  stride s*s_p,  padding p
    pool, then linear    columns of a cell go to every pixel of its window
    scale                into the rows before it or the columns after it
    g = 1 / window for the average, 1 for the sum

Batch-norm never reaches a graph: `to_nir` folds it into the synapse before it (`rewrite.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from knarr.export.arguments import as_dt
from knarr.export.errors import ExportError
from knarr.export.graph.complete import complete
from knarr.export.graph.convolutions import dense_kernel, restore_groups, same_padding
from knarr.export.graph.shapes import Shape, infer
from knarr.export.graph.step import step_nir
from knarr.export.graph.step_synapses import ints
from knarr.export.graph.topology import NEURONS, Edge, graph_hash, inline, topology

Float64 = npt.NDArray[np.float64]
Sides = tuple[int, ...]


def _gain(pool: Any) -> float:
    high, wide = ints(pool.kernel_size)
    return 1.0 / (high * wide) if isinstance(pool, nir.AvgPool2d) else 1.0


def numbers(node: Any) -> Any:
    """A convolution with padding as numbers.

    Raises:
        ExportError: 'same' of an even kernel, which pads one side more than the other.
    """
    if not isinstance(node.padding, str):
        return node
    plain = copy.copy(node)
    kernel = np.asarray(node.weight).shape[2:]
    axes = len(kernel)
    same = (
        (0,) * axes if node.padding == "valid" else same_padding(ints(node.dilation, axes), kernel)
    )
    if same is None:
        raise ExportError(
            "Conv: padding 'same' of an even kernel differs on both sides; use an odd kernel"
        )
    plain.padding = same[0] if axes == 1 else np.array(same)
    return plain


def dense_groups(node: Any) -> Any:
    """A convolution with one dense kernel and padding as numbers."""
    plain = copy.copy(numbers(node))
    weight = torch.as_tensor(np.asarray(node.weight, dtype=np.float64))
    plain.weight = dense_kernel(weight, int(node.groups)).numpy()
    plain.groups = 1
    return plain


def pool_then_conv(
    name: str, pool: Any, shape: tuple[int, ...], conv: nir.Conv2d, pool_name: str
) -> nir.Conv2d:
    """conv(pool(x)) as one convolution of x, shape (C, H, W).

    Raises:
        ExportError: the convolution's padding would meet pixels that the pool left out or covers twice.
    """
    conv = numbers(conv)
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    for axis in (0, 1):
        cells = (shape[1 + axis] + 2 * pad[axis] - size[axis]) // step[axis] + 1
        seen = shape[1 + axis] + 2 * pad[axis] > cells * step[axis]
        if padding[axis] and (size[axis] > step[axis] or seen or pad[axis]):
            raise ExportError(
                f"node '{pool_name}': pool {size} with stride {step} on {shape[1:]} does not fold into the padded convolution "
                f"'{name}': its zeros would meet pixels; choose sizes that the pool divides"
            )
    weight = np.asarray(conv.weight, dtype=np.float64)
    sides = [(weight.shape[2 + i] - 1) * dilation[i] * step[i] + size[i] for i in (0, 1)]
    kernel = np.zeros((*weight.shape[:2], *sides))
    for a in range(weight.shape[2]):
        for b in range(weight.shape[3]):
            top, left = a * dilation[0] * step[0], b * dilation[1] * step[1]
            kernel[:, :, top : top + size[0], left : left + size[1]] += (
                _gain(pool) * weight[:, :, a, b, None, None]
            )
    folded_padding = tuple(padding[i] * step[i] + pad[i] for i in (0, 1))
    return _conv(
        kernel,
        conv.bias,
        tuple(stride[i] * step[i] for i in (0, 1)),
        folded_padding,
        int(conv.groups),
    )


def conv_then_pool(name: str, conv: nir.Conv2d, pool: Any, pool_name: str) -> nir.Conv2d:
    """pool(conv(x)) as one convolution of x.

    Raises:
        ExportError: a padded pool, whose zeros are not the convolution's.
    """
    conv = numbers(conv)
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    if any(pad):
        raise ExportError(
            f"node '{pool_name}': a padded pool after '{name}' is no convolution, since its zeros lack the bias; remove the padding"
        )
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    weight = np.asarray(conv.weight, dtype=np.float64)
    sides = [
        (size[i] - 1) * stride[i] + (weight.shape[2 + i] - 1) * dilation[i] + 1 for i in (0, 1)
    ]
    kernel = np.zeros((*weight.shape[:2], *sides))
    for y in range(size[0]):
        for x in range(size[1]):
            rows = slice(
                y * stride[0], y * stride[0] + (weight.shape[2] - 1) * dilation[0] + 1, dilation[0]
            )
            columns = slice(
                x * stride[1], x * stride[1] + (weight.shape[3] - 1) * dilation[1] + 1, dilation[1]
            )
            kernel[:, :, rows, columns] += _gain(pool) * weight
    bias = np.asarray(conv.bias, dtype=np.float64) * (_gain(pool) * size[0] * size[1])
    return _conv(
        kernel, bias, tuple(stride[i] * step[i] for i in (0, 1)), padding, int(conv.groups)
    )


def conv_of_pool(pool: Any, shape: tuple[int, ...]) -> nir.Conv2d:
    """A pool alone: every channel sees itself through a window of ones."""
    kernel = np.zeros((shape[0], shape[0], *ints(pool.kernel_size)))
    kernel[np.arange(shape[0]), np.arange(shape[0])] = _gain(pool)
    return _conv(kernel, np.zeros(shape[0]), ints(pool.stride), ints(pool.padding))


def pool_then_linear(
    pool: Any, shape: tuple[int, ...], linear: nir.Linear | nir.Affine
) -> nir.Linear | nir.Affine:
    """linear(flatten(pool(x))) as linear'(flatten(x)): a cell's column goes to every pixel of its window."""
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    cells = [(shape[1 + i] + 2 * pad[i] - size[i]) // step[i] + 1 for i in (0, 1)]
    weight = np.asarray(linear.weight, dtype=np.float64)
    columns = torch.as_tensor(weight.reshape(len(weight), shape[0], *cells))
    window = torch.full((shape[0], 1, *size), _gain(pool), dtype=torch.float64)
    spread = F.conv_transpose2d(columns, window, None, step, (0, 0), (0, 0), shape[0])
    pixels = torch.zeros(
        len(weight), shape[0], shape[1] + 2 * pad[0], shape[2] + 2 * pad[1], dtype=torch.float64
    )
    pixels[:, :, : spread.shape[2], : spread.shape[3]] = spread
    inner = pixels[:, :, pad[0] : pad[0] + shape[1], pad[1] : pad[1] + shape[2]]
    flat = inner.reshape(len(weight), -1).numpy().copy()
    return (
        nir.Affine(flat, np.array(linear.bias))
        if isinstance(linear, nir.Affine)
        else nir.Linear(flat)
    )


def _conv(kernel: Float64, bias: Any, stride: Sides, padding: Sides, groups: int = 1) -> nir.Conv2d:
    return nir.Conv2d(
        input_shape=None,
        weight=kernel,
        stride=np.array(stride),
        padding=np.array(padding),
        dilation=np.array([1, 1]),
        groups=groups,
        bias=np.array(bias, dtype=np.float64),
    )


POOLS = (nir.AvgPool2d, nir.SumPool2d)
CONVS = (nir.Conv1d, nir.Conv2d)
SYNAPSES = (nir.Linear, nir.Affine, *CONVS)


@dataclass(frozen=True)
class FoldDifference:
    """How far a folded graph is from the one it came from, on given inputs.

    Args:
        decisions: neuron decisions compared.
        spikes: that occurred; more than 0, since equal silence proves nothing.
        differing_float64, differing_float32: decisions that differ in that arithmetic.
        v_difference_float32: largest difference of a voltage, volts.
    """

    decisions: int
    spikes: int
    differing_float64: int
    differing_float32: int
    v_difference_float32: float


def fold(graph: nir.NIRGraph, *, keep_groups: bool = False) -> nir.NIRGraph:
    """The same network of plain synapses, neurons and Flatten: no pooling, no Scale, no groups, no nested graphs.

    Args:
        graph: any graph that `step_nir` runs.
        keep_groups: leave groups of a convolution as they are, where no scale before it makes them dense, and find those that
            were written as zeros (`convolutions.py`).

    Returns:
        A new graph, spike-exact in float64 (`fold_difference` measures it); it carries no certificate, and
        `metadata["folded"]` names what was folded where.

    Raises:
        ExportError: pooling or a scale that no single synapse beside it can take in; names it and the cure.
    """
    nodes, edges = inline(graph)
    work = _Fold({name: copy.copy(node) for name, node in nodes.items()}, list(edges))
    if keep_groups:
        work.nodes = {name: restore_groups(node) for name, node in work.nodes.items()}
    work.bridge_inner_ends()
    work.shapes()
    for name in [n for n in work.order if isinstance(work.nodes[n], nir.Scale)]:
        work.fold_scale(name)
    for name in reversed([n for n in work.order if isinstance(work.nodes.get(n), POOLS)]):
        work.fold_pool(name)
    for name, node in work.nodes.items():
        if isinstance(node, CONVS) and int(node.groups) > 1 and not keep_groups:
            work.done.append(f"{node.groups} groups of '{name}' as one dense kernel")
            work.nodes[name] = dense_groups(node)
        elif isinstance(node, CONVS):
            work.nodes[name] = numbers(node)
    metadata = {
        key: value
        for key, value in graph.metadata.items()
        if key not in ("certificate", "knarr_filled")
    }
    metadata |= {"folded": "\n".join(work.done), "folded_from": graph_hash(graph)}
    folded = complete(nir.NIRGraph(work.nodes, work.edges, metadata=metadata, type_check=False), [])
    if _waits(nodes, edges) != _waits(folded.nodes, folded.edges):
        raise ExportError(
            "graph: folding would move the step that a loop waits; put the pooling or scale outside the loop, or a Delay into it"
        )
    return folded


def fold_difference(graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float) -> FoldDifference:
    """Fold a graph and compare it with the original, spike for spike, in both arithmetics.

    Args:
        graph: any graph that `step_nir` runs.
        inputs: (samples, timesteps, *features) that make it fire.
        dt_s: time step, seconds.

    Raises:
        ExportError: it cannot be folded, or never fires on these inputs.
    """
    folded = fold(graph)
    differing = {}
    moved = 0.0
    for dtype in ("float64", "float32"):
        before, after = (step_nir(g, inputs, dt_s, dtype=dtype) for g in (graph, folded))
        differing[dtype] = sum(
            int((before.spikes[n] != after.spikes[n]).sum()) for n in before.spikes
        )
        moved = max(
            (float(np.abs(before.v[n] - after.v[n]).max(initial=0)) for n in before.v), default=0.0
        )
    spikes = sum(int(z.sum()) for z in before.spikes.values())
    if not spikes:
        raise ExportError(
            "fold: the graph never fired on the given inputs, so equality proves nothing; give others"
        )
    decisions = sum(z.size for z in before.spikes.values())
    return FoldDifference(decisions, spikes, differing["float64"], differing["float32"], moved)


def _waits(nodes: dict[str, Any], edges: list[Edge]) -> set[tuple[str, str, int]]:
    """(neuron or end, neuron or end, steps): every way between them through synapses alone, and how often it waits."""
    order = topology(nodes, edges)
    after: dict[str, list[tuple[str, int]]] = {name: [] for name in nodes}
    for name in nodes:
        for waiting, sources in ((0, order.sources[name]), (1, order.looping[name])):
            for source in sources:
                after[source].append((name, waiting))
    stops = (*NEURONS, nir.Delay, nir.Threshold)
    found: set[tuple[str, str, int]] = set()
    for start in (
        name for name, node in nodes.items() if name == order.input or isinstance(node, stops)
    ):
        todo, met = [(start, 0)], set()
        while todo:
            here, steps = todo.pop()
            for name, waiting in after[here]:
                if isinstance(nodes[name], stops) or name == order.output:
                    found.add((start, name, steps + waiting))
                elif (name, steps + waiting) not in met:
                    met.add((name, steps + waiting))
                    todo.append((name, steps + waiting))
    return found


class _Fold:
    def __init__(self, nodes: dict[str, Any], edges: list[Edge]) -> None:
        self.nodes, self.edges = nodes, edges
        self.done: list[str] = []
        self.entering: dict[str, Shape] = {}
        self.order: tuple[str, ...] = ()
        self.looping: dict[str, tuple[str, ...]] = {}

    def shapes(self) -> None:
        order = topology(self.nodes, self.edges)
        self.entering, self.leaving = infer(self.nodes, order)
        self.order, self.looping = order.order, order.looping

    def sources(self, name: str) -> list[str]:
        return [s for s, t in self.edges if t == name]

    def targets(self, name: str) -> list[str]:
        return [t for s, t in self.edges if s == name]

    def bridge_inner_ends(self) -> None:
        for name in [
            n
            for n, node in self.nodes.items()
            if "." in n and isinstance(node, (nir.Input, nir.Output))
        ]:
            self.remove(name)

    def remove(self, name: str) -> None:
        """Take a node out and let its sources feed its targets."""
        bridges = [(s, t) for s in self.sources(name) for t in self.targets(name)]
        kept = [edge for edge in self.edges if name not in edge]
        for edge in bridges:
            if edge in kept:
                raise ExportError(
                    f"node '{name}': without it {edge[0]} -> {edge[1]} would stand twice, which NIR cannot hold; merge them first"
                )
        self.edges = kept + bridges
        del self.nodes[name]

    def fold_scale(self, name: str) -> None:
        scale = np.asarray(self.nodes[name].scale, dtype=np.float64)
        before = self.sources(name)
        synapse = self.nodes[before[0]] if len(before) == 1 else None
        if isinstance(synapse, SYNAPSES) and self.targets(before[0]) == [name]:
            rows = _per_channel(scale, synapse, self.leaving[before[0]])
            if rows is not None:
                self.nodes[before[0]] = _scaled(synapse, rows, out=True)
                self._done(name, f"scale '{name}' into '{before[0]}'")
                return
        after = self.targets(name)
        columns = {t: _per_channel(scale, self.nodes[t], self.leaving[name]) for t in after}
        if not after or any(
            not isinstance(self.nodes[t], SYNAPSES)
            or self.sources(t) != [name]
            or columns[t] is None
            for t in after
        ):
            raise ExportError(
                f"node '{name}': no synapse directly before or after can take in this scale of {scale.shape}; "
                "multiply it into the weights"
            )
        for target in after:
            self.nodes[target] = _scaled(self.nodes[target], columns[target], out=False)
        self._done(name, f"scale '{name}' into {after}")

    def fold_pool(self, name: str) -> None:
        pool, shape = self.nodes[name], self.entering[name]
        before = self.sources(name)
        # What comes round a loop waits at this pool; handed on to several nodes it would wait at some of them alone.
        several = bool(self.looping[name]) and len(self.targets(name)) > 1
        for target in [] if several else list(self.targets(name)):
            synapse, path = self._synapse_behind(target)
            if synapse is None or self.sources(synapse) != [path[-2] if len(path) > 1 else name]:
                continue
            node = self.nodes[synapse]
            if isinstance(node, nir.Conv2d) and len(path) == 1:
                folded = pool_then_conv(synapse, pool, shape, node, name)
            elif isinstance(node, (nir.Linear, nir.Affine)) and len(path) == 2:
                folded = pool_then_linear(pool, shape, node)
            else:
                continue
            if len(path) == 2:
                if self.sources(path[0]) != [name] or self.targets(path[0]) != [synapse]:
                    continue
                flatten = copy.copy(self.nodes[path[0]])
                flatten.input_type = {"input": np.array(shape)}
                self.nodes[path[0]] = flatten
            self.nodes[synapse] = folded
            self.edges.remove((name, target))
            self.edges += [(source, target) for source in before]
            self.done.append(f"pooling '{name}' into '{synapse}'")
        if not self.targets(name):
            self.edges = [edge for edge in self.edges if name not in edge]
            del self.nodes[name]
        elif (
            not self.looping[name]
            and len(before) == 1
            and isinstance(self.nodes[before[0]], nir.Conv2d)
            and self.targets(before[0]) == [name]
        ):
            self.nodes[before[0]] = conv_then_pool(before[0], self.nodes[before[0]], pool, name)
            self._done(name, f"pooling '{name}' into '{before[0]}'")
        elif not several and any(
            isinstance(self.nodes[t], (*SYNAPSES, nir.Flatten)) for t in self.targets(name)
        ):
            raise ExportError(
                f"node '{name}': pooling that feeds {self.targets(name)} together with other inputs or behind a partial flatten "
                "cannot be folded; give the synapse behind it no other input"
            )
        else:
            self.nodes[name] = conv_of_pool(pool, shape)
            self.done.append(f"pooling '{name}' as a convolution of its own")

    def _synapse_behind(self, name: str) -> tuple[str | None, list[str]]:
        path = [name]
        node = self.nodes[name]
        if isinstance(node, nir.Flatten) and len(self.targets(name)) == 1:
            whole = int(node.start_dim) == 0 and int(node.end_dim) in (-1, 2)
            path += self.targets(name)
            return (
                path[-1] if whole and isinstance(self.nodes[path[-1]], SYNAPSES) else None
            ), path
        return (name if isinstance(node, SYNAPSES) else None), path

    def _done(self, name: str, line: str) -> None:
        self.remove(name)
        self.done.append(line)


def _per_channel(
    scale: npt.NDArray[np.float64], synapse: Any, shape: Shape
) -> npt.NDArray[np.float64] | None:
    """One factor per feature of a Linear, per channel of a Conv; None where a Conv cannot hold the scale."""
    whole = np.broadcast_to(scale.reshape(-1)[0] if scale.size == 1 else scale, shape)
    if not isinstance(synapse, CONVS):
        return np.array(whole)
    flat = whole.reshape(shape[0], -1)
    return np.array(flat[:, 0]) if (flat == flat[:, :1]).all() else None


def _scaled(synapse: Any, factors: npt.NDArray[np.float64] | None, *, out: bool) -> Any:
    assert factors is not None  # the caller asked _per_channel
    if isinstance(synapse, CONVS) and not out:
        synapse = dense_groups(synapse)
    scaled = copy.copy(synapse)
    weight = np.asarray(synapse.weight, dtype=np.float64)
    ones = (1,) * (weight.ndim - 2)
    scaled.weight = weight * (
        factors.reshape(-1, 1, *ones) if out else factors.reshape(1, -1, *ones)
    )
    if out and hasattr(synapse, "bias"):
        scaled.bias = np.asarray(synapse.bias, dtype=np.float64) * factors
    return scaled


def scale_currents(graph: nir.NIRGraph, dt_s: float) -> nir.NIRGraph:
    """A copy whose CubaLIF nodes have r = tau_mem/dt and thresholds to match; spikes are the same, voltages scaled.

    Args:
        graph: as `to_nir` gives it.
        dt_s: time step, seconds.

    Returns:
        A graph without certificate (its voltages are not the module's); `metadata["scaled_from"]` is the original's hash.

    Raises:
        ExportError: dt is not above 0, or an r is 0.
    """
    dt_s = as_dt(dt_s)
    scaled = copy.deepcopy(graph)
    for name, node in inline(scaled)[0].items():
        if not isinstance(node, nir.CubaLIF):
            continue
        r = np.asarray(node.r, dtype=np.float64)
        if (r <= 0).any():
            raise ExportError(
                f"node '{name}': r is not above 0, and no factor turns a threshold round; rewrite its weights"
            )
        factor = np.asarray(node.tau_mem, dtype=np.float64) / dt_s / r
        for field in ("r", "v_threshold", "v_reset", "v_leak"):
            setattr(node, field, np.asarray(getattr(node, field), dtype=np.float64) * factor)
    scaled.metadata = {key: value for key, value in graph.metadata.items() if key != "certificate"}
    scaled.metadata["scaled_from"] = graph_hash(graph)
    return scaled
