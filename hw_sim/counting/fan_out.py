"""How many outputs one event at each input position really reaches.

Per axis, an event at position i meets kernel tap j at the output (i + p - d*j) / s, where that is a whole number and
the output exists: n(i) = #{j in 0..k-1 : s divides (i + p - d*j), 0 <= (i + p - d*j) / s < outputs}. A convolution's
fan-out is n_y * n_x * C_out / g. Taps into the zero padding do not exist. A brute-force tap walk certifies these maps
(tests/hw_sim/counting/test_fanout.py).

Pools, a synapse and pools behind it along one axis: which input meets which output, through which taps of the synapse.

Where an event of a layer's input arrives: exact fan-out through pools, a synapse and pools behind it, folded into one.

Along one axis, pools before, kernel taps and pools behind compose to a list of (input, output) pairs, each with the taps
that join them. A pair is one synapse of the folded network however many taps it has, so pools that overlap count distinct
pairs. Without pools every pair has one tap and the map is that of `knarr.hw_sim.fanout`. A walk over every pair in plain
Python certifies these maps (tests/hw_sim/counting/test_count_oracle.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from knarr.hw_sim.network import Conv, Dense, Layer, Recurrent

MAX_FANOUT = 2**18

Int64 = npt.NDArray[np.int64]


def axis_taps(
    inputs: int, outputs: int, kernel: int, *, stride: int, padding: int, dilation: int
) -> npt.NDArray[np.bool_]:
    """Which kernel taps of one axis join which inputs to an output that exists.

    Args:
        inputs, outputs, kernel: sizes along this axis, at least 1.
        stride, dilation: at least 1.
        padding: zeros before the first input, at least 0; what lies behind the last input follows from `outputs`.

    Returns:
        (inputs, kernel): whether tap j of the kernel has an output for input i.
    """
    position = np.arange(inputs)[:, None] + padding - dilation * np.arange(kernel)[None, :]
    return np.asarray((position % stride == 0) & (position >= 0) & (position // stride < outputs))


def kernel_targets(weight: npt.NDArray[np.generic], groups: int, *, nz: bool = False) -> Int64:
    """Output channels behind each tap of each input channel.

    Args:
        weight: (C_out, C_in / groups, *kernel), any number of kernel axes.
        groups: channel groups; divides C_out.
        nz: leave out stored weights that are 0.

    Returns:
        (C_in, *kernel): C_out / groups everywhere, fewer where `nz` finds zeros.
    """
    present = weight != 0 if nz else np.ones(weight.shape, dtype=np.bool_)
    by_group = present.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.asarray(
        by_group.sum(axis=1, dtype=np.int64).reshape(groups * weight.shape[1], *weight.shape[2:])
    )


def kernel_fanout(
    weight: npt.NDArray[np.generic],
    input_size: Sequence[int],
    output_size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    nz: bool = False,
) -> Int64:
    """Fan-out map of a convolution over any number of axes.

    Args:
        weight: (C_out, C_in / groups, *kernel).
        input_size, output_size: spatial sizes, without channels.
        stride, padding, dilation: per axis; padding is what stands before the first input.
        groups: channel groups.
        nz: leave out stored weights that are 0.

    Returns:
        (C_in, *input_size) int64: outputs that one event at this input reaches.
    """
    reach = kernel_targets(weight, groups, nz=nz)
    for axis, kernel in enumerate(weight.shape[2:]):
        taps = axis_taps(
            input_size[axis],
            output_size[axis],
            kernel,
            stride=stride[axis],
            padding=padding[axis],
            dilation=dilation[axis],
        )
        # Each turn sums one kernel axis away and puts the input axis it stands for last.
        reach = np.tensordot(reach, taps.astype(np.int64), axes=(1, 1))
    return reach


@dataclass(frozen=True)
class AxisWindow:
    """A kernel or pool along one axis: output o takes input o * stride + j * dilation - padding through tap j."""

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def taps(self) -> list[Any]:
        """One sparse (inputs, outputs) matrix of 0 and 1 per tap."""
        outputs = np.arange(self.outputs)
        found = []
        for tap in range(self.kernel):
            inputs = outputs * self.stride + tap * self.dilation - self.padding
            real = (inputs >= 0) & (inputs < self.inputs)
            ones = np.ones(int(real.sum()), dtype=np.int64)
            shape = (self.inputs, self.outputs)
            found.append(sparse.csr_matrix((ones, (inputs[real], outputs[real])), shape=shape))
        return found

    def footprint(self, outputs: set[int]) -> set[int]:
        """Input positions of output positions when nothing ends at a border."""
        return {
            at * self.stride + tap * self.dilation for at in outputs for tap in range(self.kernel)
        }


@dataclass(frozen=True, eq=False)
class Axis:
    """Pairs of one axis.

    Args:
        counts: (inputs, patterns) outputs that an input reaches with each pattern of taps.
        patterns: (patterns, kernel) how often each tap of the synapse is in it.
        joined: sparse (inputs, outputs), not 0 where there is a pair.
        footprint: inputs of an output that no border cuts off.
    """

    counts: Int64
    patterns: Int64
    joined: Any
    footprint: int


def axis(
    synapse: AxisWindow, before: Sequence[AxisWindow] = (), behind: Sequence[AxisWindow] = ()
) -> Axis:
    """Compose pools before, a synapse and pools behind it along one axis; sizes must chain."""
    if not before and not behind:
        return _plain(synapse)

    def pooled(windows: Sequence[AxisWindow], size: int) -> Any:
        start = sparse.identity(size, dtype=np.int64, format="csr")
        return reduce(lambda matrix, window: matrix @ sum(window.taps()), windows, start)

    first = pooled(before, before[0].inputs if before else synapse.inputs)
    last = pooled(behind, synapse.outputs)
    per_tap = [(first @ tap @ last).tocoo() for tap in synapse.taps()]
    inputs, outputs = first.shape[0], last.shape[1]
    keys = np.concatenate([tap.row.astype(np.int64) * outputs + tap.col for tap in per_tap])
    which = np.concatenate([np.full(tap.nnz, at) for at, tap in enumerate(per_tap)])
    pairs, place = np.unique(keys, return_inverse=True)
    taps = np.zeros((len(pairs), synapse.kernel), dtype=np.int64)
    taps[place, which] = np.concatenate([tap.data for tap in per_tap])
    patterns, kind = np.unique(taps, axis=0, return_inverse=True)
    counts = np.zeros((inputs, len(patterns)), dtype=np.int64)
    np.add.at(counts, (pairs // outputs, kind.reshape(-1)), 1)
    ones = np.ones(len(pairs), dtype=np.float32)
    joined = sparse.csr_matrix((ones, (pairs // outputs, pairs % outputs)), shape=(inputs, outputs))
    footprint: set[int] = {0}
    for window in (*reversed(behind), synapse, *reversed(before)):
        footprint = window.footprint(footprint)
    return Axis(counts, patterns, joined, len(footprint))


def _plain(synapse: AxisWindow) -> Axis:
    """Without pools every pair has one tap: no table of pairs times taps, which long kernels would fill."""
    taps = synapse.taps()
    counts = np.stack([np.asarray(tap.sum(axis=1)).reshape(-1) for tap in taps], axis=1)
    joined = sum(taps[1:], start=taps[0]).astype(np.float32)
    return Axis(
        counts.astype(np.int64), np.eye(synapse.kernel, dtype=np.int64), joined, synapse.kernel
    )


EXACT_FLOAT32 = 2**24
"""Every integer up to here is a float32, and so is every partial sum of a frame whose sum stays below."""


@dataclass(frozen=True, eq=False)
class FanOut:
    """Every synapse that an event of an input can take.

    Args:
        weight: (C_out, C_in / groups, *kernel), numbers of any type; a dense layer has no kernel axes.
        axes: one per kernel axis.
        groups: channel groups.
        loop: what comes back are a layer's own spikes, to neurons other than the one that sent it.
        present: (C_out, C_in) of a dense layer: which synapses these are, of those that are stored; None: all.
    """

    weight: npt.NDArray[Any]
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    loop: bool = False
    present: npt.NDArray[np.bool_] | None = None

    @property
    def inputs(self) -> int:
        """Input elements."""
        return int(self.stored.size)

    @property
    def outputs(self) -> tuple[int, ...]:
        """(C_out, *sizes) that it reaches."""
        return (self.weight.shape[0], *(one.joined.shape[1] for one in self.axes))

    @cached_property
    def stored(self) -> Int64:
        """(C_in, *sizes) outputs that one event at this input reaches through stored weights."""
        return self._fanout(nz=False)

    @cached_property
    def nonzero(self) -> Int64:
        """The same without weights that are 0; of pairs with several taps, without sums that are 0."""
        return self._fanout(nz=True)

    def _fanout(self, *, nz: bool) -> Int64:
        if self.present is not None:
            here = self.present & (self.weight != 0) if nz else self.present
            return np.asarray(here.sum(axis=0, dtype=np.int64))
        weight = self.weight
        for one in self.axes:  # each turn sums one kernel axis away and puts its patterns last
            weight = np.tensordot(weight, one.patterns, axes=(2, 1))
        reach = kernel_targets(weight, self.groups, nz=nz)
        for one in self.axes:
            reach = np.tensordot(reach, one.counts, axes=(1, 1))
        if self.loop and not nz:
            reach = reach - 1
        return reach

    @cached_property
    def matrix(self) -> npt.NDArray[np.floating[Any]]:
        """(inputs, 3): `stored`, `nonzero` and 1, in floats that hold the sum of any frame exactly."""
        stack = np.stack(
            [self.stored.reshape(-1), self.nonzero.reshape(-1), np.ones(self.inputs)], axis=1
        )
        return stack.astype(np.float32 if self.dense_valid <= EXACT_FLOAT32 else np.float64)

    @cached_property
    def small(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """`stored` and `nonzero` as `tally_kernel` takes them; None where a fan-out is too large for it."""
        if self.stored.max(initial=0) >= MAX_FANOUT:
            return None
        return self.stored.reshape(-1).astype(np.int32), self.nonzero.reshape(-1).astype(np.int32)

    @cached_property
    def dense_valid(self) -> int:
        """Operations of one step in which every input has an event."""
        return int(self.stored.sum())

    @property
    def kernel_words(self) -> int:
        """Output channels times taps: what addresses targets."""
        return int(self.weight.shape[0]) * prod(one.footprint for one in self.axes)

    @property
    def weight_words(self) -> int:
        """Stored weights of the folded synapse."""
        return self.kernel_words * int(self.weight.shape[1])

    @property
    def dense_padded(self) -> int:
        """The same as dense hardware walks it, beyond borders too."""
        if self.present is not None:
            return int(self.present.sum())
        return prod(self.outputs) * self.weight.shape[1] * prod(one.footprint for one in self.axes)

    def touched(self, active: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(frames, C_in * sizes) -> (frames, C_out * sizes): outputs that some event reaches."""
        if self.loop:  # a neuron's own spike does not reach it
            return np.asarray(active.sum(axis=1, keepdims=True) > active)
        if self.present is not None:
            return np.asarray(active.astype(np.float32) @ self.present.T.astype(np.float32) > 0)
        groups = self._touched_groups(active)
        share = self.weight.shape[0] // self.groups
        return np.repeat(groups, share, axis=1).reshape(len(active), -1)

    def touched_count(self, active: npt.NDArray[np.bool_]) -> Int64:
        """(frames,) how many outputs `touched` finds, without making them."""
        if self.loop or self.present is not None:
            return np.asarray(self.touched(active).sum(axis=1, dtype=np.int64))
        share = self.weight.shape[0] // self.groups
        return np.asarray(self._touched_groups(active).sum(axis=(1, 2), dtype=np.int64) * share)

    def _touched_groups(self, active: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(frames, groups, positions): stored synapses of a group join all of its channels."""
        sizes = [one.joined.shape[0] for one in self.axes]
        bytes_ = active.view(np.uint8).reshape(len(active), self.groups, -1, *sizes)
        found = np.bitwise_or.reduce(bytes_, axis=2).view(
            np.bool_
        )  # several times as fast as any()
        if not self.axes:
            return found[:, :, None]
        for one in self.axes:  # the first spatial axis goes, what it becomes is put last
            moved = np.moveaxis(found, 2, -1)
            flat = moved.reshape(-1, moved.shape[-1]).astype(np.float32)
            found = np.asarray((one.joined.T @ flat.T).T > 0).reshape(*moved.shape[:-1], -1)
        return found.reshape(len(active), self.groups, -1)


def layer_reach(layer: Layer) -> FanOut:
    """Of what arrives at a chip layer, its own spikes left out."""
    if not isinstance(layer, Conv):
        return FanOut(layer.weight_int)
    sizes = zip(
        layer.input_shape[1:], layer.output_shape[1:], layer.weight_int.shape[2:], strict=True
    )
    axes = tuple(
        axis(AxisWindow(*size, layer.stride[at], layer.padding[at], layer.dilation[at]))
        for at, size in enumerate(sizes)
    )
    return FanOut(layer.weight_int, axes, layer.groups)


def delayed_reach(layer: Dense) -> dict[int, FanOut]:
    """Steps -> the synapses of a dense layer that act so many steps later; without delays all at once."""
    if layer.delay_int is None:
        return {0: FanOut(layer.weight_int)}
    steps = np.unique(layer.delay_int).tolist()
    return {ago: FanOut(layer.weight_int, present=layer.delay_int == ago) for ago in steps}


def loop_reach(layer: Recurrent) -> FanOut:
    """Of a layer's own spikes; without autapses where all of them are 0, as Norse has it."""
    return returning(layer.recurrent_int)


def returning(weight: npt.NDArray[Any]) -> FanOut:
    """(neurons, neurons) synapses of a layer with itself."""
    return FanOut(weight, loop=not np.diagonal(weight).any())
