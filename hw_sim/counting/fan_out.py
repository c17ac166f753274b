"""Count exactly how many outputs one event at each input position reaches.

Along one axis, an event at position i meets kernel tap j at the output (i + p - d*j) / s, where that
is a whole number and the output exists:
    n(i) = #{j in 0..k-1 : s divides (i + p - d*j), 0 <= (i + p - d*j) / s < outputs}.
A convolution's fan-out is n_y * n_x * C_out / g. Taps into the zero padding do not exist.

Pools before and behind a synapse are folded into it: pools, kernel taps and pools compose to a list
of (input, output) pairs, each with the taps that join them. A pair is one synapse of the folded
network however many taps it has, so pools that overlap count distinct pairs.

Walks over every tap in plain Python certify these maps (tests/hw_sim/counting/test_fanout.py,
test_count_oracle.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from typing import Any

import numpy as np

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.network import Conv, Dense, Layer


@dataclass(frozen=True)
class AxisWindow:
    """A kernel or pool along one axis.

    Output o takes input o * stride + j * dilation - padding through tap j.

    Args:
        inputs, outputs, kernel: sizes along this axis, at least 1.
        stride, dilation: at least 1.
        padding: zeros before the first input, at least 0; those behind the last input follow from
            `outputs`.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def input_taps(self) -> Mask:
        """Return (inputs, kernel): whether tap j joins input i to an output that exists."""
        offsets = self.padding - self.dilation * np.arange(self.kernel)
        start = np.arange(self.inputs)[:, None] + offsets
        # Between the outputs of a stride there is nothing, as there is beyond the first and the
        # last.
        on_stride = start % self.stride == 0
        exists = (start >= 0) & (start // self.stride < self.outputs)
        return on_stride & exists

    def output_taps(self) -> Mask:
        """Return (outputs, kernel): whether tap j of output o falls on an input that exists."""
        return self._sources(range(self.kernel))[1]

    def matrix(self, taps: Sequence[int]) -> Any:
        """Return the sparse (inputs, outputs) matrix of these taps, of 0 and 1."""
        from scipy import sparse  # placing cores on a chip needs no matrix, and it loads slowly

        source, exists = self._sources(taps)
        # Two taps never join the same pair, so no entry is met twice.
        target = np.nonzero(exists)[0]
        pairs = (source[exists], target)
        ones = np.ones(len(target), dtype=np.int64)
        return sparse.csr_matrix((ones, pairs), shape=(self.inputs, self.outputs))

    def joined(self) -> Any:
        """Return the matrix of all taps."""
        return self.matrix(range(self.kernel))

    def _sources(self, taps: Sequence[int]) -> tuple[Int64, Mask]:
        """Return the input positions that outputs read through taps, and whether they exist."""
        offsets = self.dilation * np.asarray(taps) - self.padding
        starts = self.stride * np.arange(self.outputs)
        source = starts[:, None] + offsets
        return source, (source >= 0) & (source < self.inputs)

    def footprint(self, outputs: set[int]) -> set[int]:
        """Return the input positions that these outputs read when nothing ends at a border."""
        offsets = range(0, self.kernel * self.dilation, self.dilation)
        starts = [output * self.stride for output in outputs]
        return {start + offset for start in starts for offset in offsets}


@dataclass(frozen=True, eq=False)
class Axis:
    """Connections along one axis, pools folded in.

    Args:
        counts: (inputs, patterns) outputs that an input reaches with each pattern of taps.
        patterns: (patterns, kernel) how often each tap of the synapse is in the pattern.
        joined: sparse (inputs, outputs), not 0 where input and output are connected.
        footprint: number of inputs that an output reads where no border cuts it off.
    """

    counts: Int64
    patterns: Int64
    joined: Any
    footprint: int


def compose_axis(
    synapse: AxisWindow,
    before: Sequence[AxisWindow] = (),
    behind: Sequence[AxisWindow] = (),
) -> Axis:
    """Compose a synapse with pools before and behind it along one axis; sizes must chain."""
    if not before and not behind:
        # Every pair has one tap, so the table of pairs times taps, which long kernels would fill,
        # is not needed.
        counts = synapse.input_taps().astype(np.int64)
        patterns = np.eye(synapse.kernel, dtype=np.int64)
        joined = synapse.joined().astype(np.float32)
        return Axis(counts, patterns, joined, synapse.kernel)

    from scipy import sparse

    def chained(pools: Sequence[AxisWindow], size: int) -> Any:
        identity = sparse.identity(size, dtype=np.int64, format="csr")
        return reduce(lambda matrix, pool: matrix @ pool.joined(), pools, identity)

    inputs = before[0].inputs if before else synapse.inputs
    first = chained(before, inputs)
    last = chained(behind, synapse.outputs)
    taps = range(synapse.kernel)
    per_tap = [first @ synapse.matrix([tap]) @ last for tap in taps]
    joined = sum(per_tap)
    # No entry is negative, so a pair that some tap joins cannot cancel to 0.
    source, target = joined.nonzero()
    taps_of_pair = np.stack(
        [matrix.toarray()[source, target] for matrix in per_tap],
        axis=1,
    )
    patterns, pattern = np.unique(taps_of_pair, axis=0, return_inverse=True)
    counts = np.zeros((inputs, len(patterns)), dtype=np.int64)
    # numpy versions differ in the shape of the inverse, and += would count a repeated index once.
    np.add.at(counts, (source, pattern.reshape(-1)), 1)
    footprint = {0}
    for window in (*reversed(behind), synapse, *reversed(before)):
        footprint = window.footprint(footprint)
    connected = (joined > 0).astype(np.float32)
    return Axis(counts, patterns, connected, len(footprint))


def targets_per_tap(present: Mask, groups: int) -> Int64:
    """Count the output channels behind each tap of each input channel.

    Args:
        present: (C_out, C_in / groups, *kernel) which weights count, any number of kernel axes.
        groups: channel groups; divides C_out.

    Returns:
        (C_in, *kernel): C_out / groups where every weight counts, fewer elsewhere.
    """
    outputs, inputs, *kernel = present.shape
    by_group = present.reshape(groups, outputs // groups, inputs, *kernel)
    targets = by_group.sum(axis=1, dtype=np.int64)
    return targets.reshape(groups * inputs, *kernel)


@dataclass(frozen=True, eq=False)
class FanOut:
    """Every synapse that an event of an input can take.

    Args:
        weight: (C_out, C_in / groups, *kernel), numbers of any type; a dense layer has no kernel
            axes.
        axes: one per kernel axis.
        groups: channel groups.
        no_autapses: the synapses are those of a layer with itself, and no neuron has one to itself.
        present: shaped as `weight`: which of the stored weights are these synapses; None: all.
        windows: one per kernel axis, needed with `present` of a convolution.
    """

    weight: Array
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    no_autapses: bool = False
    present: Mask | None = None
    windows: tuple[AxisWindow, ...] = ()

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the outputs, (C_out, *sizes)."""
        sizes = [axis.joined.shape[1] for axis in self.axes]
        return (len(self.weight), *sizes)

    @cached_property
    def stored(self) -> Int64:
        """(C_in, *sizes) outputs that one event at this input reaches through stored weights."""
        present = np.ones_like(self.weight) if self.present is None else self.present
        fan_out = self._spread(present.astype(np.int64))
        return fan_out - 1 if self.no_autapses else fan_out

    @cached_property
    def nonzero(self) -> Int64:
        """`stored` without weights that are 0 or, of pairs with several taps, sum to 0."""
        # Autapses that are left out are 0 anyway.
        return self._spread(self.weight if self.present is None else self.weight * self.present)

    def _spread(self, weight: Array) -> Int64:
        for axis in self.axes:
            # Each turn sums one kernel axis away and puts its patterns last.
            weight = np.tensordot(weight, axis.patterns, axes=(2, 1))
        fan_out = targets_per_tap(weight != 0, self.groups)
        for axis in self.axes:
            fan_out = np.tensordot(fan_out, axis.counts, axes=(1, 1))
        return fan_out

    @cached_property
    def dense_valid(self) -> int:
        """Operations of one step in which every input has an event."""
        return int(self.stored.sum())

    @property
    def kernel_words(self) -> int:
        """Output channels times taps: the words that address targets."""
        taps = prod(axis.footprint for axis in self.axes)
        return len(self.weight) * taps

    @property
    def weight_words(self) -> int:
        """Stored weights of the folded synapse."""
        return self.kernel_words * self.weight.shape[1]

    @property
    def dense_padded(self) -> int:
        """`dense_valid` as dense hardware walks it, taps beyond the borders too."""
        if self.present is not None:
            return prod(self.outputs[1:]) * int(self.present.sum())
        return prod(self.outputs[1:]) * self.weight_words

    def touched(self, active: Mask) -> Mask:
        """Find the outputs that some event reaches.

        Args:
            active: (frames, C_in * sizes), where there are events.

        Returns:
            (frames, C_out * sizes).
        """
        if self.no_autapses:
            # An output is reached if a neuron other than itself is active.
            return np.asarray(active.sum(axis=1, keepdims=True) > active)
        if self.present is not None and self.windows:
            return self._touched_by_taps(active)
        if self.present is not None:
            # numpy multiplies matrices of booleans without a library, and many times as slowly.
            joined = self.present.T.astype(np.float32)
            return active.astype(np.float32) @ joined > 0
        sizes = [axis.joined.shape[0] for axis in self.axes]
        by_group = (len(active), self.groups, -1, *sizes)
        bits = active.view(np.uint8).reshape(by_group)
        # Several times as fast as any().
        found = np.bitwise_or.reduce(bits, axis=2).view(np.bool_)
        for axis in self.axes:
            # The first spatial axis goes; what it becomes is put last.
            moved = np.moveaxis(found, 2, -1)
            *others, size = moved.shape
            rows = moved.reshape(-1, size).astype(np.float32)
            # A sparse matrix must stand on the left.
            reached = (axis.joined.T @ rows.T).T > 0
            found = np.asarray(reached).reshape(*others, -1)
        # A group's output channels are reached alike.
        groups = found.reshape(len(active), self.groups, 1, -1)
        channels = len(self.weight) // self.groups
        shape = (len(active), self.groups, channels, groups.shape[-1])
        return np.broadcast_to(groups, shape).reshape(len(active), -1)

    def _touched_by_taps(self, active: Mask) -> Mask:
        """Find the outputs that some event reaches where taps differ in the channels they join."""
        assert self.present is not None
        outputs, inputs, *kernel = self.present.shape
        sizes = [window.inputs for window in self.windows]
        frames = len(active)
        channels = active.reshape(frames, self.groups, inputs, *sizes)
        found = np.zeros((frames, *self.outputs), dtype=np.bool_)
        joining = self.present.reshape(self.groups, outputs // self.groups, inputs, -1)
        for number, tap in enumerate(np.ndindex(*kernel)):
            joined = joining[..., number]
            if not joined.any():
                continue
            # (groups, out, in) on (frames, groups, in, pixels)
            events = channels.reshape(frames, self.groups, inputs, -1).astype(np.float32)
            reached = (joined.astype(np.float32) @ events > 0).reshape(frames, outputs, *sizes)
            for axis, (window, at) in enumerate(zip(self.windows, tap, strict=True)):
                source, exists = window._sources([at])
                places = np.where(exists[:, 0], source[:, 0], 0)
                reached = np.take(reached, places, axis=2 + axis)
                gaps = exists[:, 0].reshape(-1, *[1] * (len(sizes) - axis - 1))
                reached = reached & gaps
            found |= reached
        return found.reshape(frames, -1)


def layer_fan_outs(layer: Layer, synapses: Mask | None = None) -> dict[int, FanOut]:
    """Return the synapses from a chip layer's input, by the steps after which they act.

    Args:
        layer: the layer.
        synapses: which of its stored weights are synapses, see `synapse_mask`; None: all.
    """
    weight = layer.weight_int
    if isinstance(layer, Dense) and layer.delay_int is not None:
        delays = np.unique(layer.delay_int).tolist()
        every = np.True_ if synapses is None else synapses
        parts = {delay: every & (layer.delay_int == delay) for delay in delays}
        # A delay of gaps alone is none.
        found = {delay: part for delay, part in parts.items() if part.any()} or parts
        return {delay: FanOut(weight, present=part) for delay, part in found.items()}
    if not isinstance(layer, Conv):
        return {0: FanOut(weight, present=synapses)}
    shapes = layer.input_shape[1:], layer.output_shape[1:], weight.shape[2:]
    geometry = zip(*shapes, layer.stride, layer.padding, layer.dilation, strict=True)
    windows = tuple(AxisWindow(*sizes) for sizes in geometry)
    axes = tuple(compose_axis(window) for window in windows)
    return {0: FanOut(weight, axes, layer.groups, present=synapses, windows=windows)}


def own_fan_out(weight: Array) -> FanOut:
    """Return a layer's synapses with itself, without autapses where all of them are 0.

    The weight is (neurons, neurons).

    Norse's recurrent cells keep such a diagonal of zeros and never use it.
    """
    return FanOut(weight, no_autapses=not np.diagonal(weight).any())
