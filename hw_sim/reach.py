"""Where an event of a layer's input arrives: exact fan-out through pools, a synapse and pools behind it, folded into one.

Along one axis, pools before, kernel taps and pools behind compose to a list of (input, output) pairs, each with the taps
that join them. A pair is one synapse of the folded network however many taps it has, so pools that overlap count distinct
pairs. Without pools every pair has one tap and the map is that of `knarr.hw_sim.fanout`. A walk over every pair in plain
Python certifies these maps (tests/test_count_oracle.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.axes import Axis, Window, axis
from knarr.hw_sim.fanout import Int64, kernel_targets
from knarr.hw_sim.layers import Conv, Dense, Layer, Recurrent
from knarr.hw_sim.tally_kernel import MAX_FANOUT

EXACT_FLOAT32 = 2**24
"""Every integer up to here is a float32, and so is every partial sum of a frame whose sum stays below."""


@dataclass(frozen=True, eq=False)
class Reach:
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
        stack = np.stack([self.stored.reshape(-1), self.nonzero.reshape(-1), np.ones(self.inputs)], axis=1)
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
        found = np.bitwise_or.reduce(bytes_, axis=2).view(np.bool_)  # several times as fast as any()
        if not self.axes:
            return found[:, :, None]
        for one in self.axes:  # the first spatial axis goes, what it becomes is put last
            moved = np.moveaxis(found, 2, -1)
            flat = moved.reshape(-1, moved.shape[-1]).astype(np.float32)
            found = np.asarray((one.joined.T @ flat.T).T > 0).reshape(*moved.shape[:-1], -1)
        return found.reshape(len(active), self.groups, -1)


def layer_reach(layer: Layer) -> Reach:
    """Of what arrives at a chip layer, its own spikes left out."""
    if not isinstance(layer, Conv):
        return Reach(layer.weight_int)
    sizes = zip(layer.input_shape[1:], layer.output_shape[1:], layer.weight_int.shape[2:], strict=True)
    axes = tuple(
        axis(Window(*size, layer.stride[at], layer.padding[at], layer.dilation[at]))
        for at, size in enumerate(sizes)
    )
    return Reach(layer.weight_int, axes, layer.groups)


def delayed_reach(layer: Dense) -> dict[int, Reach]:
    """Steps -> the synapses of a dense layer that act so many steps later; without delays all at once."""
    if layer.delay_int is None:
        return {0: Reach(layer.weight_int)}
    steps = np.unique(layer.delay_int).tolist()
    return {ago: Reach(layer.weight_int, present=layer.delay_int == ago) for ago in steps}


def loop_reach(layer: Recurrent) -> Reach:
    """Of a layer's own spikes; without autapses where all of them are 0, as Norse has it."""
    return returning(layer.recurrent_int)


def returning(weight: npt.NDArray[Any]) -> Reach:
    """(neurons, neurons) synapses of a layer with itself."""
    return Reach(weight, loop=not np.diagonal(weight).any())
