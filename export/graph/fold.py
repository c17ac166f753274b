"""Fold pooling, scales and groups into plain synapses: what a chip, or a count of accumulates, can take as it is.

    pool, then conv      K[a*d*s_p + b] += g * W[a],  stride s*s_p,  padding p*s_p + p_p      (s_p, p_p: of the pool)
    conv, then pool      K[b*s + a*d]   += g * W[a],  stride s*s_p,  padding p
    pool, then linear    the column of a cell goes to every pixel of the cell's window
    scale                goes into the rows of the synapse before it or the columns of the synapse after it
    g = 1 / window for the average, 1 for the sum

Batch-norm never reaches a graph: `to_nir` folds it into the synapse before it (`norse/rewrite.py`).
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
POOLS = (nir.AvgPool2d, nir.SumPool2d)
CONVS = (nir.Conv1d, nir.Conv2d)
SYNAPSES = (nir.Linear, nir.Affine, *CONVS)


@dataclass(frozen=True)
class FoldDifference:
    """The difference between a folded graph and the one it came from, on given inputs.

    Args:
        decisions: neuron decisions that were compared.
        spikes: spikes that occurred; more than 0, since equal silence proves nothing.
        differing_float64, differing_float32: decisions that differ in that arithmetic.
        v_difference_float32: largest difference of a voltage, volts.
    """

    decisions: int
    spikes: int
    differing_float64: int
    differing_float32: int
    v_difference_float32: float


def fold(graph: nir.NIRGraph, *, keep_groups: bool = False) -> nir.NIRGraph:
    """Return the same network without pooling, Scale, groups and nested graphs.

    What is left are plain synapses, neurons and Flatten.

    Args:
        graph: any graph that `step_nir` runs.
        keep_groups: leave the groups of a convolution as they are, where no scale before it makes them dense, and
            restore those that were written as zeros (`convolutions.py`).

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
    work.infer_shapes()
    # Scales go first: a scale between a pool and a synapse would keep the two apart.
    for name in work.order:
        if isinstance(work.nodes[name], nir.Scale):
            work.fold_scale(name)
    # From the output backwards, so that each of two pools in a row finds a synapse behind it.
    for name in reversed(work.order):
        if isinstance(work.nodes.get(name), POOLS):
            work.fold_pool(name)
    for name, node in work.nodes.items():
        if not isinstance(node, CONVS):
            continue
        if int(node.groups) > 1 and not keep_groups:
            work.done.append(f"{node.groups} groups of '{name}' as one dense kernel")
            work.nodes[name] = dense_groups(node)
        else:
            work.nodes[name] = numeric_padding(node)
    # The certificate is of the voltages of the graph before, which folding moves by roundings.
    dropped = ("certificate", "knarr_filled")
    metadata = {key: value for key, value in graph.metadata.items() if key not in dropped}
    metadata |= {"folded": "\n".join(work.done), "folded_from": graph_hash(graph)}
    folded = complete(nir.NIRGraph(work.nodes, work.edges, metadata=metadata, type_check=False), [])
    if _paths(nodes, edges) != _paths(folded.nodes, folded.edges):
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
    v_difference = 0.0
    for dtype in ("float64", "float32"):  # float32 last: its traces give the voltages
        before = step_nir(graph, inputs, dt_s, dtype=dtype)
        after = step_nir(folded, inputs, dt_s, dtype=dtype)
        pairs = [(before.spikes[name], after.spikes[name]) for name in before.spikes]
        differing[dtype] = sum(int((one != other).sum()) for one, other in pairs)
        moved = [float(np.abs(v - after.v[name]).max(initial=0)) for name, v in before.v.items()]
        v_difference = max(moved, default=0.0)
    spikes = sum(int(z.sum()) for z in before.spikes.values())
    if not spikes:
        raise ExportError(
            "fold: the graph never fired on the given inputs, so equality proves nothing; give others"
        )
    decisions = sum(z.size for z in before.spikes.values())
    return FoldDifference(
        decisions, spikes, differing["float64"], differing["float32"], v_difference
    )


def scale_currents(graph: nir.NIRGraph, dt_s: float) -> nir.NIRGraph:
    """Return a copy whose CubaLIF nodes have r = tau_mem/dt, so that v = (1 - a) v + I, as most readers of NIR expect.

    Multiplying r, v_threshold, v_reset and v_leak by one number changes no spike. `to_nir` writes r = 1, where voltages
    are those of Norse bit for bit; snnTorch, SpikingJelly and the published script to Lava want this form
    (docs/roundtrips.md). LIF and LI stay as they are, since Norse's own reader takes their r for 1.

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


def _paths(nodes: dict[str, Any], edges: list[Edge]) -> set[tuple[str, str, int]]:
    """Find every path between neurons or ends through synapses alone.

    Returns:
        (from, to, time steps that it waits); folding must not change this set.
    """
    order = topology(nodes, edges)
    after: dict[str, list[tuple[str, int]]] = {name: [] for name in nodes}
    for name in nodes:
        for source in order.sources[name]:
            after[source].append((name, 0))
        for source in order.looping[name]:  # an edge that closes a loop waits one step
            after[source].append((name, 1))
    stops = (*NEURONS, nir.Delay, nir.Threshold)
    starts = [name for name in nodes if name == order.input or isinstance(nodes[name], stops)]
    found: set[tuple[str, str, int]] = set()
    for start in starts:
        todo = [(start, 0)]
        met: set[tuple[str, int]] = set()
        while todo:
            here, steps = todo.pop()
            for name, waiting in after[here]:
                reached = (name, steps + waiting)
                if isinstance(nodes[name], stops) or name == order.output:
                    found.add((start, *reached))
                elif reached not in met:
                    met.add(reached)
                    todo.append(reached)
    return found


class _Fold:
    """A graph while it is folded: its nodes and edges change, and `done` tells what was folded where."""

    def __init__(self, nodes: dict[str, Any], edges: list[Edge]) -> None:
        self.nodes, self.edges = nodes, edges
        self.done: list[str] = []
        self.entering: dict[str, Shape] = {}
        self.order: tuple[str, ...] = ()
        self.looping: dict[str, tuple[str, ...]] = {}

    def infer_shapes(self) -> None:
        """Infer the shapes once, before anything is folded; a fold leaves the shapes of the other nodes."""
        order = topology(self.nodes, self.edges)
        self.entering, self.leaving = infer(self.nodes, order)
        self.order, self.looping = order.order, order.looping

    def sources(self, name: str) -> list[str]:
        """List the nodes that feed this one."""
        return [source for source, target in self.edges if target == name]

    def targets(self, name: str) -> list[str]:
        """List the nodes that this one feeds."""
        return [target for source, target in self.edges if source == name]

    def bridge_inner_ends(self) -> None:
        """Remove the Input and Output of nested graphs, which only pass on what they get."""
        for name, node in list(self.nodes.items()):
            if "." in name and isinstance(node, (nir.Input, nir.Output)):
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
        """Multiply a Scale into the synapse before it, or into every synapse after it.

        Raises:
            ExportError: neither side can take it in.
        """
        scale = np.asarray(self.nodes[name].scale, dtype=np.float64)
        before = self.sources(name)
        synapse = self.nodes[before[0]] if len(before) == 1 else None
        # The synapse before must feed nothing else, which would be scaled as well.
        if isinstance(synapse, SYNAPSES) and self.targets(before[0]) == [name]:
            rows = _per_channel(scale, synapse, self.leaving[before[0]])
            if rows is not None:
                self.nodes[before[0]] = _scale_rows(synapse, rows)
                self._finish(name, f"scale '{name}' into '{before[0]}'")
                return
        after = self.targets(name)
        scaled = {}
        for target in after:
            synapse = self.nodes[target]
            # The synapse after must receive nothing else, which would be scaled as well.
            if not isinstance(synapse, SYNAPSES) or self.sources(target) != [name]:
                break
            columns = _per_channel(scale, synapse, self.leaving[name])
            if columns is None:
                break
            scaled[target] = _scale_columns(synapse, columns)
        if not after or len(scaled) < len(after):
            raise ExportError(
                f"node '{name}': no synapse directly before or after can take in this scale of {scale.shape}; "
                "multiply it into the weights"
            )
        self.nodes |= scaled
        self._finish(name, f"scale '{name}' into {after}")

    def fold_pool(self, name: str) -> None:
        """Fold a pool into the synapses behind it, else into the convolution before it, else write it as a convolution.

        Raises:
            ExportError: a synapse behind it has other inputs or sees a partial flatten of it.
        """
        pool, shape = self.nodes[name], self.entering[name]
        before = self.sources(name)
        # What comes round a loop waits at this pool; handed on to several nodes it would wait at some of them alone.
        several = bool(self.looping[name]) and len(self.targets(name)) > 1
        if not several:
            for target in self.targets(name):
                self._fold_pool_forward(name, target, before)
        remaining = self.targets(name)
        first = self.nodes[before[0]]
        if not remaining:
            self.edges = [edge for edge in self.edges if name not in edge]
            del self.nodes[name]
        elif (
            not self.looping[name]
            and len(before) == 1
            and isinstance(first, nir.Conv2d)
            and self.targets(before[0]) == [name]
        ):
            self.nodes[before[0]] = conv_then_pool(before[0], first, pool, name)
            self._finish(name, f"pooling '{name}' into '{before[0]}'")
        elif not several and any(
            isinstance(self.nodes[target], (*SYNAPSES, nir.Flatten)) for target in remaining
        ):
            raise ExportError(
                f"node '{name}': pooling that feeds {remaining} together with other inputs or behind a partial flatten "
                "cannot be folded; give the synapse behind it no other input"
            )
        else:
            # Only neurons are behind it, which take the sums of a convolution as well.
            self.nodes[name] = conv_of_pool(pool, shape)
            self.done.append(f"pooling '{name}' as a convolution of its own")

    def _fold_pool_forward(self, name: str, target: str, before: list[str]) -> None:
        """Fold a pool into the synapse at `target`, or behind the Flatten at `target`, where one can take it in."""
        pool, shape = self.nodes[name], self.entering[name]
        flatten = None
        synapse = target
        if isinstance(self.nodes[target], nir.Flatten):
            flatten = self.nodes[target]
            whole = int(flatten.start_dim) == 0 and int(flatten.end_dim) in (-1, 2)
            behind = self.targets(target)
            # Pixels keep their order only where all of (C, H, W) is flattened, for one synapse and from this pool alone.
            if not whole or len(behind) != 1 or self.sources(target) != [name]:
                return
            synapse = behind[0]
        if self.sources(synapse) != [name if flatten is None else target]:
            return
        node = self.nodes[synapse]
        if flatten is None and isinstance(node, nir.Conv2d):
            self.nodes[synapse] = pool_then_conv(synapse, pool, shape, node, name)
        elif flatten is not None and isinstance(node, (nir.Linear, nir.Affine)):
            self.nodes[synapse] = pool_then_linear(pool, shape, node)
            larger = copy.copy(flatten)
            larger.input_type = {"input": np.array(shape)}
            self.nodes[target] = larger
        else:
            return
        self.edges.remove((name, target))
        self.edges += [(source, target) for source in before]
        self.done.append(f"pooling '{name}' into '{synapse}'")

    def _finish(self, name: str, line: str) -> None:
        self.remove(name)
        self.done.append(line)


def _per_channel(scale: Float64, synapse: Any, shape: Shape) -> Float64 | None:
    """Return one factor per feature of a Linear, per channel of a Conv; None where a Conv cannot hold the scale."""
    whole = np.broadcast_to(scale.reshape(-1)[0] if scale.size == 1 else scale, shape)
    if not isinstance(synapse, CONVS):
        return np.array(whole)
    # The taps of a kernel are shared by all pixels, so a channel can have one factor alone.
    flat = whole.reshape(shape[0], -1)
    return np.array(flat[:, 0]) if (flat == flat[:, :1]).all() else None


def _scale_rows(synapse: Any, factors: Float64) -> Any:
    """Scale what a synapse gives: its rows and its bias."""
    scaled = copy.copy(synapse)
    weight = np.asarray(synapse.weight, dtype=np.float64)
    scaled.weight = weight * factors.reshape(-1, *(1,) * (weight.ndim - 1))
    if hasattr(synapse, "bias"):
        scaled.bias = np.asarray(synapse.bias, dtype=np.float64) * factors
    return scaled


def _scale_columns(synapse: Any, factors: Float64) -> Any:
    """Scale what a synapse takes: its columns."""
    # A grouped kernel has the columns of one group alone, and the groups would need factors of their own.
    scaled = dense_groups(synapse) if isinstance(synapse, CONVS) else copy.copy(synapse)
    weight = np.asarray(scaled.weight, dtype=np.float64)
    scaled.weight = weight * factors.reshape(1, -1, *(1,) * (weight.ndim - 2))
    return scaled


def numeric_padding(node: Any) -> Any:
    """Return a convolution whose padding is numbers.

    Raises:
        ExportError: 'same' of an even kernel, which pads one side more than the other.
    """
    if not isinstance(node.padding, str):
        return node
    plain = copy.copy(node)
    kernel = np.asarray(node.weight).shape[2:]
    axes = len(kernel)
    padding: Sides | None = (0,) * axes
    if node.padding == "same":
        padding = same_padding(ints(node.dilation, axes), kernel)
    if padding is None:
        raise ExportError(
            "Conv: padding 'same' of an even kernel differs on both sides; use an odd kernel"
        )
    plain.padding = padding[0] if axes == 1 else np.array(padding)
    return plain


def dense_groups(node: Any) -> Any:
    """Return a convolution with one dense kernel and padding as numbers."""
    plain = copy.copy(numeric_padding(node))
    weight = torch.as_tensor(np.asarray(node.weight, dtype=np.float64))
    plain.weight = dense_kernel(weight, int(node.groups)).numpy()
    plain.groups = 1
    return plain


def _gain(pool: Any) -> float:
    high, wide = ints(pool.kernel_size)
    return 1.0 / (high * wide) if isinstance(pool, nir.AvgPool2d) else 1.0


def _geometry(pool: Any) -> tuple[Sides, Sides, Sides]:
    """Size, stride and padding of a pool, (rows, columns) each."""
    return ints(pool.kernel_size), ints(pool.stride), ints(pool.padding)


def pool_then_conv(
    name: str, pool: Any, shape: tuple[int, ...], conv: nir.Conv2d, pool_name: str
) -> nir.Conv2d:
    """Return conv(pool(x)) as one convolution of x, shape (C, H, W).

    Raises:
        ExportError: the convolution's padding would meet pixels that the pool left out or covers twice.
    """
    conv = numeric_padding(conv)
    size, step, pad = _geometry(pool)
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    for axis in (0, 1):
        extent = shape[1 + axis] + 2 * pad[axis]
        cells = (extent - size[axis]) // step[axis] + 1
        # Padding of p cells becomes p * step pixels of zeros: right only where cells tile the image without rest.
        left_over = extent > cells * step[axis]
        if padding[axis] and (size[axis] > step[axis] or left_over or pad[axis]):
            raise ExportError(
                f"node '{pool_name}': pool {size} with stride {step} on {shape[1:]} does not fold into the padded convolution "
                f"'{name}': its zeros would meet pixels; choose sizes that the pool divides"
            )
    weight = np.asarray(conv.weight, dtype=np.float64)
    sides = [(weight.shape[2 + i] - 1) * dilation[i] * step[i] + size[i] for i in (0, 1)]
    kernel = np.zeros((*weight.shape[:2], *sides))
    for a, b in np.ndindex(*weight.shape[2:]):
        top, left = a * dilation[0] * step[0], b * dilation[1] * step[1]
        window = kernel[:, :, top : top + size[0], left : left + size[1]]
        window += _gain(pool) * weight[:, :, a, b, None, None]  # windows of a pool may overlap
    folded_stride = tuple(stride[i] * step[i] for i in (0, 1))
    folded_padding = tuple(padding[i] * step[i] + pad[i] for i in (0, 1))
    return _conv(kernel, conv.bias, folded_stride, folded_padding, int(conv.groups))


def conv_then_pool(name: str, conv: nir.Conv2d, pool: Any, pool_name: str) -> nir.Conv2d:
    """Return pool(conv(x)) as one convolution of x.

    Raises:
        ExportError: a padded pool, whose zeros are not the convolution's.
    """
    conv = numeric_padding(conv)
    size, step, pad = _geometry(pool)
    if any(pad):
        raise ExportError(
            f"node '{pool_name}': a padded pool after '{name}' is no convolution, since its zeros lack the bias; remove the padding"
        )
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    weight = np.asarray(conv.weight, dtype=np.float64)
    # What one kernel spans with its dilation, and what all kernels of a window span together.
    spans = [(weight.shape[2 + i] - 1) * dilation[i] + 1 for i in (0, 1)]
    kernel = np.zeros((*weight.shape[:2], *((size[i] - 1) * stride[i] + spans[i] for i in (0, 1))))
    for y, x in np.ndindex(*size):
        top, left = y * stride[0], x * stride[1]
        rows = slice(top, top + spans[0], dilation[0])
        columns = slice(left, left + spans[1], dilation[1])
        kernel[:, :, rows, columns] += _gain(pool) * weight
    # A sum of a window adds the bias once per cell, an average once.
    bias = np.asarray(conv.bias, dtype=np.float64) * (_gain(pool) * size[0] * size[1])
    folded_stride = tuple(stride[i] * step[i] for i in (0, 1))
    return _conv(kernel, bias, folded_stride, padding, int(conv.groups))


def conv_of_pool(pool: Any, shape: tuple[int, ...]) -> nir.Conv2d:
    """Return a pool as a convolution: every channel sees itself through a window of ones."""
    size, stride, padding = _geometry(pool)
    channels = shape[0]
    kernel = np.zeros((channels, channels, *size))
    kernel[np.arange(channels), np.arange(channels)] = _gain(pool)
    return _conv(kernel, np.zeros(channels), stride, padding)


def pool_then_linear(
    pool: Any, shape: tuple[int, ...], linear: nir.Linear | nir.Affine
) -> nir.Linear | nir.Affine:
    """Return linear(flatten(pool(x))) as linear'(flatten(x)): a cell's column goes to every pixel of its window."""
    size, step, pad = _geometry(pool)
    channels, height, width = shape
    cells = [(shape[1 + i] + 2 * pad[i] - size[i]) // step[i] + 1 for i in (0, 1)]
    weight = np.asarray(linear.weight, dtype=np.float64)
    rows = len(weight)
    columns = torch.as_tensor(weight.reshape(rows, channels, *cells))
    window = torch.full((channels, 1, *size), _gain(pool), dtype=torch.float64)
    # A transposed convolution is the adjoint of pooling: it hands the weight of a cell to the pixels below it.
    spread = F.conv_transpose2d(columns, window, None, step, (0, 0), (0, 0), channels)
    # Pixels that no window reaches keep weight 0; those of the padding are cut away.
    pixels = torch.zeros(
        rows, channels, height + 2 * pad[0], width + 2 * pad[1], dtype=torch.float64
    )
    pixels[:, :, : spread.shape[2], : spread.shape[3]] = spread
    inner = pixels[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width]
    flat = inner.reshape(rows, -1).numpy().copy()
    if isinstance(linear, nir.Affine):
        return nir.Affine(flat, np.array(linear.bias))
    return nir.Linear(flat)


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
