"""Linear paths: what lies between two neurons as one convolution where one is exact, else as a matrix.

A path leads from a source that holds a state (the input, a neuron, a Threshold) to the next one, through synapses,
pools, scales, Flatten and Delay. A neuron hears the sum of all its paths.

    second(first(x)):  K[a*s_1 + b] += W_2[a] * W_1[b],  stride s_1*s_2,  zeros before it p_2*s_1 + p_1

One convolution is exact just where `second` meets nothing of its padding that `first`, continued beyond its own edge,
would find in the image: cells that `first` never gave are 0 to `second`. `then` looks at every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.grad import conv2d_input

from knarr.export.errors import ExportError
from knarr.export.graph.parameters import float64, ints
from knarr.export.graph.shapes import Shape, spread
from knarr.export.graph.step_synapses import add_up, synapse_step
from knarr.export.graph.topology import CONVS, LINEARS, NEURONS, POOLS, Topology

Float64 = npt.NDArray[np.float64]
Pair = tuple[int, int]
STOPS = (*NEURONS, nir.Threshold, nir.Input)
"""Nodes at which a path begins."""
MAX_PATHS = 10_000
MAX_MATRIX = 2**26
"""Entries of a matrix, half a gigabyte in float64."""


def as_image(shape: Shape) -> Shape:
    """Return a shape with signals (channels, length) as images one pixel high."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


@dataclass(frozen=True, eq=False)
class Convolution:
    """z[o] = sum over taps a of weight[a] * x[o * stride - before + a * dilation], 0 beyond the image.

    Args:
        weight: (out, in / groups, rows, columns).
        stride, dilation: (height, width).
        before: (height, width) pixels of zeros before the image; less than 0 leaves pixels out.
        entering, leaving: (C, H, W) of both images. `leaving` also says how far the zeros behind the image reach.
        groups: channel groups.
    """

    weight: Float64
    stride: Pair
    before: Pair
    entering: Shape
    leaving: Shape
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """Tell whether every channel goes into itself alone."""
        return self.weight.shape[1] == 1 and self.groups == len(self.weight)

    def plain(self) -> Convolution:
        """Return the same with dilation 1: zeros stand between the taps."""
        if self.dilation == (1, 1):
            return self
        high, wide = (
            d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)
        )
        weight = np.zeros((*self.weight.shape[:2], high, wide))
        weight[:, :, :: self.dilation[0], :: self.dilation[1]] = self.weight
        return replace(self, weight=weight, dilation=(1, 1))

    def dense(self) -> Convolution:
        """Return the same in one group."""
        if self.groups == 1:
            return self
        outputs, inputs, *kernel = self.weight.shape
        rows, weight = outputs // self.groups, np.zeros((outputs, inputs * self.groups, *kernel))
        for group in range(self.groups):
            own = slice(group * rows, (group + 1) * rows)
            weight[own, group * inputs : (group + 1) * inputs] = self.weight[own]
        return replace(self, weight=weight, groups=1)

    def symmetric(self) -> tuple[Convolution, Pair]:
        """Return the same with as many zeros behind the image as before it, and that padding.

        Zeros in the kernel make up for what the two sides differ by.
        """
        if all(self._fits(axis) for axis in (0, 1)):
            return self, self.before
        made = self.plain()
        around, padding = [], []
        for axis in (0, 1):
            front, back = made._missing(axis)
            around.append((front, back))
            padding.append(made.before[axis] + front)
        weight = np.pad(made.weight, ((0, 0), (0, 0), *around))
        before = (padding[0], padding[1])
        return replace(made, weight=weight, before=before), before

    def _span(self, axis: int) -> int:
        return self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1

    def _fits(self, axis: int) -> bool:
        """Tell whether the kernel, padded alike on both sides, has as many places as `leaving` says."""
        room = self.entering[1 + axis] + 2 * self.before[axis] - self._span(axis)
        return (
            self.before[axis] >= 0
            and room >= 0
            and room // self.stride[axis] + 1 == self.leaving[1 + axis]
        )

    def _missing(self, axis: int) -> Pair:
        """Return how many rows of zeros to put before the kernel and behind it."""
        size, stride = self.leaving[1 + axis], self.stride[axis]
        front, back = max(0, -self.before[axis]), 0
        # Each row before the kernel adds one to the padding at both ends, and one to the kernel.
        room = self.entering[1 + axis] + 2 * self.before[axis] - self._span(axis) + front
        front += max(0, (size - 1) * stride - room)
        room += max(0, (size - 1) * stride - room)
        back += max(0, room - (size * stride - 1))
        return front, back

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of (B, C, H, W)."""
        made, padding = self.symmetric()
        weight = torch.as_tensor(made.weight).to(x.dtype)
        return torch.nn.functional.conv2d(
            x, weight, None, made.stride, padding, made.dilation, made.groups
        )

    def adjoint(self, rows: Float64) -> Float64:
        """Return rows @ this, of (rows, *leaving), as (rows, *entering)."""
        made, padding = self.symmetric()
        found = conv2d_input(  # type: ignore[no-untyped-call]
            (len(rows), *self.entering), torch.as_tensor(made.weight), torch.as_tensor(rows),
            made.stride, padding, made.dilation, made.groups,
        )  # fmt: skip
        return np.asarray(found.numpy())


def identity(shape: Shape) -> Convolution:
    """Return the convolution that hands an image (C, H, W) on."""
    return Convolution(np.ones((shape[0], 1, 1, 1)), (1, 1), (0, 0), shape, shape, groups=shape[0])


def as_convolution(node: Any, entering: Shape, leaving: Shape) -> Convolution | None:
    """Return a linear node as a convolution of images, None where it is none."""
    if len(entering) not in (2, 3) or len(leaving) != len(entering):
        return None
    axes, into, out = len(entering) - 1, as_image(entering), as_image(leaving)
    if isinstance(node, nir.Scale):
        scale = spread(float64(node.scale), entering).reshape(entering[0], -1)
        # The taps of a kernel are shared by all pixels.
        if (scale != scale[:, :1]).any():
            return None
        return replace(identity(into), weight=scale[:, :1, None, None])
    if isinstance(node, nir.Flatten):
        return None
    if not isinstance(node, (*CONVS, *POOLS)):
        return None
    if isinstance(node, POOLS):
        window = ints(node.kernel_size)
        gain = 1.0 / prod(window) if isinstance(node, nir.AvgPool2d) else 1.0
        weight, groups = np.full((into[0], 1, *window), gain), into[0]
        dilation: Any = (1, 1)
    else:
        weight, groups = float64(node.weight), int(node.groups)
        dilation = (1, *ints(node.dilation, axes))[-2:]
        if axes == 1:
            weight = weight[:, :, None, :]
    before = _zeros_before(node, weight, dilation, axes)
    stride: Any = (1, *ints(node.stride, axes))[-2:]
    return Convolution(weight, stride, before, into, out, dilation, groups)


def _zeros_before(node: Any, weight: Float64, dilation: Pair, axes: int) -> Pair:
    padding = node.padding
    if isinstance(padding, str):
        # torch puts the odd zero of 'same' behind the image.
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        zeros = [t // 2 for t in total] if padding == "same" else [0, 0]
        return (0 if axes == 1 else zeros[0], zeros[1])
    found = (0, *ints(padding, axes))[-2:]
    return found[0], found[1]


def then(first: Convolution, second: Convolution) -> Convolution | None:
    """Return second(first(x)) as one convolution of x; None where no convolution is exact."""
    first, second = first.plain(), second.plain()
    if not all(_meets_zeros_alone(first, second, axis) for axis in (0, 1)):
        return None
    groups = 1
    if second.depthwise:
        groups, mixed = first.groups, first.weight
        taps = second.weight[:, 0]
    elif first.depthwise:
        groups, mixed = second.groups, first.weight[:, 0]
        taps = second.weight
    else:
        mixed, taps = first.dense().weight, second.dense().weight
    step = first.stride
    high, wide = (
        (second.weight.shape[2 + axis] - 1) * step[axis] + first.weight.shape[2 + axis]
        for axis in (0, 1)
    )
    outputs = len(second.weight)
    inputs = first.entering[0] // groups
    kernel = np.zeros((outputs, inputs, high, wide))
    for row, column in np.ndindex(*second.weight.shape[2:]):
        rows = slice(row * step[0], row * step[0] + first.weight.shape[2])
        columns = slice(column * step[1], column * step[1] + first.weight.shape[3])
        # Windows may overlap: then several taps meet at one place and add up, always in this order, which fixes rounding.
        if second.depthwise:
            kernel[:, :, rows, columns] += taps[:, row, column, None, None, None] * mixed
        elif first.depthwise:
            # Channel i of a group of outputs is the group's own i-th channel.
            of = np.arange(outputs) // (outputs // groups)
            own = mixed.reshape(groups, inputs, *mixed.shape[1:])[of]
            kernel[:, :, rows, columns] += taps[:, :, row, column, None, None] * own
        else:
            kernel[:, :, rows, columns] += np.einsum(
                "om,mikl->oikl", taps[:, :, row, column], mixed
            )
    before = tuple(p * s + q for p, s, q in zip(second.before, step, first.before, strict=True))
    stride = (step[0] * second.stride[0], step[1] * second.stride[1])
    return Convolution(
        kernel, stride, (before[0], before[1]), first.entering, second.leaving, groups=groups
    )


def _meets_zeros_alone(first: Convolution, second: Convolution, axis: int) -> bool:
    """Tell whether `first` finds nothing in its image for those cells beyond its edge that `second` looks at."""
    near, far = (np.flatnonzero(each.weight.any(axis=(0, 1, 3 - axis))) for each in (first, second))
    places = np.arange(second.leaving[1 + axis])[:, None] * second.stride[axis]
    cells = np.unique(places - second.before[axis] + far)
    beyond = cells[(cells < 0) | (cells >= first.leaving[1 + axis])]
    pixels = beyond[:, None] * first.stride[axis] - first.before[axis] + near
    return not ((pixels >= 0) & (pixels < first.entering[1 + axis])).any()


def plus(one: Convolution, other: Convolution) -> Convolution | None:
    """Return one(x) + other(x) as one convolution; None where their strides differ."""
    if one.stride != other.stride or one.leaving != other.leaving:
        return None
    one, other = one.plain().dense(), other.plain().dense()
    before = tuple(max(p, q) for p, q in zip(one.before, other.before, strict=True))
    behind = [
        max(each.weight.shape[2 + axis] - each.before[axis] for each in (one, other))
        for axis in (0, 1)
    ]
    kernel = np.zeros((*one.weight.shape[:2], before[0] + behind[0], before[1] + behind[1]))
    for each in (one, other):
        top, left = (before[axis] - each.before[axis] for axis in (0, 1))
        high, wide = each.weight.shape[2:]
        kernel[:, :, top : top + high, left : left + wide] += each.weight
    return replace(one, weight=kernel, before=(before[0], before[1]))


# --- paths


@dataclass(frozen=True)
class SourcePath:
    """A way from a source to a node.

    Args:
        source: name of the input, a neuron or a Threshold.
        passed: nodes on the way, in their order, both ends left out.
        lag: steps that it waits on edges that close loops.
    """

    source: str
    passed: tuple[str, ...]
    lag: int = 0


class LinearPaths:
    """The paths of a graph.

    Args:
        nodes: flat nodes.
        order: their topology.
        entering, leaving: shapes, as `infer` gives them.
    """

    def __init__(
        self,
        nodes: dict[str, Any],
        order: Topology,
        entering: dict[str, Shape],
        leaving: dict[str, Shape],
    ) -> None:
        self.nodes, self.order = nodes, order
        self.entering, self.leaving = entering, leaving
        self._offsets: dict[str, Float64] = {}

    def into(self, target: str) -> list[SourcePath]:
        """List the paths that end at a node, in the order of the edges.

        Raises:
            ExportError: more than can be told apart, or a loop of delays without a neuron.
        """
        found: list[SourcePath] = []
        waiting: list[tuple[str, tuple[str, ...], int]] = [(target, (), 0)]
        while waiting:
            here, passed, lag = waiting.pop()
            edges = [(source, 0) for source in self.order.sources[here]]
            edges += [(source, 1) for source in self.order.looping[here]]
            for source, steps in reversed(edges):
                if isinstance(self.nodes[source], STOPS):
                    found.append(SourcePath(source, passed, lag + steps))
                elif source in passed:
                    raise ExportError(
                        f"node '{source}': lies on a loop without a neuron, whose sum never ends; put a neuron into it"
                    )
                else:
                    waiting.append((source, (source, *passed), lag + steps))
            if len(found) + len(waiting) > MAX_PATHS:
                raise ExportError(
                    f"node '{target}': more than {MAX_PATHS:,} paths lead to it; put neurons between them"
                )
        return found

    def links(self, path: SourcePath) -> list[Convolution | None]:
        """Return the nodes of a path as convolutions, None for those that are none."""
        return [
            as_convolution(self.nodes[name], self.entering[name], self.leaving[name])
            for name in path.passed
        ]

    def matrix(self, path: SourcePath, passed: tuple[str, ...] | None = None) -> Float64:
        """Return a path, or a part of what it passes, as a matrix (features out, features in), delays left out.

        Raises:
            ExportError: it has more than `MAX_MATRIX` entries.
        """
        names = path.passed if passed is None else passed
        names = tuple(name for name in names if not isinstance(self.nodes[name], nir.Delay))
        if not names:
            size = prod(self.leaving[path.source])
            self._bound(path.source, size, size)
            return np.eye(size)
        last = self.nodes[names[-1]]
        outputs = prod(self.leaving[names[-1]])
        for name in names:
            self._bound(name, outputs, prod(self.entering[name]))
        # From the end backwards, each node as its adjoint: rows of few outputs stay few.
        if isinstance(last, LINEARS):
            rows, names = float64(last.weight), names[:-1]
        else:
            rows = np.eye(outputs)
        for name in reversed(names):
            node, shape = self.nodes[name], self.entering[name]
            link = as_convolution(node, shape, self.leaving[name])
            if isinstance(node, LINEARS):
                rows = rows @ float64(node.weight)
            elif isinstance(node, nir.Scale):
                rows = rows * spread(float64(node.scale), shape).reshape(-1)
            elif link is not None:
                rows = link.adjoint(rows.reshape(len(rows), *link.leaving))
            rows = rows.reshape(len(rows), -1)
        return np.ascontiguousarray(rows)

    @staticmethod
    def _bound(name: str, outputs: int, inputs: int) -> None:
        if outputs * inputs > MAX_MATRIX:
            raise ExportError(
                f"node '{name}': as one matrix it has {outputs * inputs:,} weights, at most {MAX_MATRIX:,}; use fewer "
                "features, or sizes that its pooling divides"
            )

    def offset(self, name: str) -> Float64:
        """Return what reaches a node when every source is silent: the biases on its paths.

        Raises:
            ExportError: a bias passes a Delay, before which it is 0.
        """
        sources = (*self.order.sources[name], *self.order.looping[name])
        parts = [torch.as_tensor(self._given(source))[None] for source in sources]
        return np.asarray(add_up(parts)[0].numpy())

    def _given(self, name: str) -> Float64:
        """Return what a node gives when every source is silent."""
        node = self.nodes[name]
        if isinstance(node, STOPS):
            return np.zeros(self.leaving[name])
        if name in self._offsets:
            return self._offsets[name]
        self._offsets[name] = np.zeros(self.leaving[name])  # what comes round a loop of delays
        arriving = self.offset(name)
        if isinstance(node, nir.Delay):
            if arriving.any():
                raise ExportError(
                    f"node '{name}': delays a bias, which starts with the first step elsewhere; put the delay before the "
                    "synapse that has it"
                )
            given = arriving
        else:
            apply = synapse_step(name, node, torch.float64)
            given = np.asarray(apply(torch.as_tensor(arriving)[None])[0].numpy())
        self._offsets[name] = given
        return given
