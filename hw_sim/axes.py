"""Pools, a synapse and pools behind it along one axis: which input meets which output, through which taps of the synapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy import sparse

from knarr.hw_sim.fanout import Int64


@dataclass(frozen=True)
class Window:
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
        return {at * self.stride + tap * self.dilation for at in outputs for tap in range(self.kernel)}


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


def axis(synapse: Window, before: Sequence[Window] = (), behind: Sequence[Window] = ()) -> Axis:
    """Compose pools before, a synapse and pools behind it along one axis; sizes must chain."""
    if not before and not behind:
        return _plain(synapse)

    def pooled(windows: Sequence[Window], size: int) -> Any:
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


def _plain(synapse: Window) -> Axis:
    """Without pools every pair has one tap: no table of pairs times taps, which long kernels would fill."""
    taps = synapse.taps()
    counts = np.stack([np.asarray(tap.sum(axis=1)).reshape(-1) for tap in taps], axis=1)
    joined = sum(taps[1:], start=taps[0]).astype(np.float32)
    return Axis(counts.astype(np.int64), np.eye(synapse.kernel, dtype=np.int64), joined, synapse.kernel)
