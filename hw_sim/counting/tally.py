"""Sums over spikes in one pass over their bytes: what makes counting cheap beside a fast simulator.

Adding up what a layer did, block by block of frames: exact integers per layer, per time step and per sample.

Class of an event: that of its frame, the whole layer input at one (sample, time step). All values in {0, 1}: binary,
an addition (ACC). All in {-1, 0, 1}: ternary, an addition too. Anything else: graded, every non-zero element is a
multiply-accumulate (MAC). Never per batch, layer or run, so counts do not depend on batch size or sample order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerCounts, Spread
from knarr.hw_sim.counting.fan_out import FanOut, Int64
from knarr.hw_sim.engines.numba_cuba import compiled
from knarr.hw_sim.errors import CountError

AT_ONCE = 8192
"""Elements whose partial sums stay in 32 bits: 8192 times a fan-out below 2**18."""


@compiled
def add_up(rows: Any, stored: Any, nonzero: Any, table: Any) -> None:
    """table[r] = sums of stored, nonzero and 1 over the spikes of row r.

    Args:
        rows: (frames, features) uint8 of 0 and 1, in one piece.
        stored, nonzero: (features,) int32 below `MAX_FANOUT`.
        table: (frames, 3) int64, written.
    """
    frames, features = rows.shape
    for r in range(frames):
        a, b, n = np.int64(0), np.int64(0), np.int64(0)
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            x, f, g = rows[r, start:stop], stored[start:stop], nonzero[start:stop]
            some, others, many = np.int32(0), np.int32(0), np.int32(0)
            for i in range(stop - start):
                spike = np.int32(x[i])
                some += spike * f[i]
                others += spike * g[i]
                many += spike
            a, b, n = a + some, b + others, n + many
        table[r, 0], table[r, 1], table[r, 2] = a, b, n


@compiled
def sort_and_add(rows: Any, stored: Any, nonzero: Any, table: Any, sort: Any) -> None:
    """`add_up` over what is not 0, and the class of each frame: 0 binary, 1 signed, 2 graded, 3 silent, 4 no number.

    Args:
        rows: (frames, features) float32 or float64, in one piece.
        stored, nonzero, table: as for `add_up`.
        sort: (frames,) int8, written.
    """
    frames, features = rows.shape
    for r in range(frames):
        a, b, n = np.int64(0), np.int64(0), np.int64(0)
        ones, minus, finite = np.int64(0), np.int64(0), True
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            x, f, g = rows[r, start:stop], stored[start:stop], nonzero[start:stop]
            some, others, many = np.int32(0), np.int32(0), np.int32(0)
            up, down, odd = np.int32(0), np.int32(0), np.int32(0)
            for i in range(stop - start):
                event = np.int32(x[i] != 0)
                some += event * f[i]
                others += event * g[i]
                many += event
                up += np.int32(x[i] == 1)
                down += np.int32(x[i] == -1)
                odd += np.int32(not abs(x[i]) < np.inf)
            a, b, n = a + some, b + others, n + many
            ones, minus, finite = ones + up, minus + down, finite and odd == 0
        table[r, 0], table[r, 1], table[r, 2] = a, b, n
        sort[r] = 3 if n == 0 else 0 if ones == n else 1 if ones + minus == n else 2
        if not finite:
            sort[r] = 4


def sums(
    rows: npt.NDArray[np.uint8], stored: npt.NDArray[np.int32], nonzero: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """(frames, 3) of `add_up`."""
    table = np.empty((len(rows), 3), dtype=np.int64)
    add_up(np.ascontiguousarray(rows), stored, nonzero, table)
    return table


def sorted_sums(
    rows: npt.NDArray[np.floating[Any]],
    stored: npt.NDArray[np.int32],
    nonzero: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """(frames,) classes and (frames, 3) sums of `sort_and_add`."""
    table, sort = np.empty((len(rows), 3), dtype=np.int64), np.empty(len(rows), dtype=np.int8)
    sort_and_add(np.ascontiguousarray(rows), stored, nonzero, table, sort)
    return sort, table


BLOCK_BYTES = 32 * 2**20
"""Of frames as floats at one time: bounds memory, whatever the batch."""
CLASSES = ("binary", "signed", "graded", "silent")


@dataclass
class LayerTally:
    """One layer's counts so far; columns are the fields of `LayerCounts`."""

    name: str
    columns: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    later_macs: bool = False
    per_step: list[int] = field(default_factory=list)
    per_sample: list[Int64] = field(default_factory=list)

    def begin(self, samples: int) -> None:
        """A batch of so many samples starts."""
        self.per_sample.append(np.zeros(samples, dtype=np.int64))

    def add(self, column: str, amount: int) -> None:
        """So much of something else than synaptic events."""
        self.columns[column] += int(amount)

    def deliver(
        self,
        reach: FanOut,
        frames: npt.NDArray[np.generic],
        alive: npt.NDArray[np.bool_],
        step: int,
        *,
        returning: bool = False,
        again: bool = False,
    ) -> None:
        """Frames arrive at synapses.

        Args:
            reach: of these synapses.
            frames: (samples of the batch, steps, features).
            alive: (samples, steps) whether the frame is ever delivered; the others are not paid.
            step: time step of the first frame.
            returning: they are the layer's own spikes.
            again: the same events were delivered to other synapses of this layer; they are counted once.

        Raises:
            CountError: NaN, infinity, or no numbers.
        """
        samples, steps = alive.shape
        rows = frames.reshape(samples * steps, -1)
        table = np.zeros((samples * steps, 3), dtype=np.int64)
        sort = np.zeros(samples * steps, dtype=np.int8)
        size = max(1, BLOCK_BYTES // (8 * rows.shape[1]))
        for first in range(0, len(rows), size):
            block = slice(first, first + size)
            sort[block], table[block] = _sums(rows[block], reach, self.name)
        sort[~alive.reshape(-1)] = -1
        operations = np.where(sort >= 0, table[:, 0], 0).reshape(samples, steps)
        for column, amount in (("", table[:, 0]), ("_nonzero", table[:, 1])):
            self.columns["acc" + column] += int(amount[(sort == 0) | (sort == 1)].sum())
            self.columns["mac" + column] += int(amount[sort == 2].sum())
        self.columns["signed"] += int(table[sort == 1, 0].sum())
        events = int(table[sort >= 0, 2].sum())
        if not again:
            self.columns["events"] += events
            self.columns["graded"] += int(table[sort == 2, 2].sum())
        later = (sort == 2).reshape(samples, steps)[:, 1 if step == 0 else 0 :]
        self.later_macs = self.later_macs or bool(later.any())
        if returning:
            neurons = reach.outputs[0]
            self.columns["recurrent_all_pairs"] += events * neurons
            self.columns["recurrent_no_autapse"] += events * (neurons - 1)
        elif not again:
            self._note(sort)
        self.per_step.extend([0] * (step + steps - len(self.per_step)))
        for at, amount in enumerate(operations.sum(axis=0).tolist(), start=step):
            self.per_step[at] += amount
        self.per_sample[-1] += operations.sum(axis=1)

    def sort(self, frames: npt.NDArray[np.generic], alive: npt.NDArray[np.bool_]) -> None:
        """Note the classes of frames (samples, steps, features) that were delivered `again` and again."""
        found, _ = sort_frames(frames.reshape(alive.size, -1)[alive.reshape(-1)], self.name)
        self._note(found)

    def _note(self, sort: npt.NDArray[np.int8]) -> None:
        """Classes of frames that were delivered; -1 of those that were not."""
        many = np.bincount(sort + 1, minlength=len(CLASSES) + 1)[1:].tolist()
        self.frames.update(dict(zip(CLASSES, many, strict=True)))

    def dense(self, reach: FanOut, frames: int) -> None:
        """So many frames could have been delivered."""
        self.add("dense_valid", frames * reach.dense_valid)
        self.add("dense_padded", frames * reach.dense_padded)

    @property
    def note(self) -> str:
        """One line for the ledger: what kinds of frames arrived."""
        return (
            f"{sum(self.frames.values())} frames: {self.frames['binary']} binary, {self.frames['signed']} signed "
            f"(counted as ACC), {self.frames['graded']} graded (MAC), {self.frames['silent']} silent"
        )

    def counts(self, samples: int) -> LayerCounts:
        """Means over the samples."""
        names = LayerCounts.__dataclass_fields__
        return LayerCounts(**{name: Fraction(self.columns[name], samples) for name in names})

    def steps(self, samples: int) -> tuple[Fraction, ...]:
        """Synaptic events in each step, means over the samples."""
        return tuple(Fraction(amount, samples) for amount in self.per_step)


def spread(per_sample: list[Int64]) -> Spread:
    """Of operations per sample, nearest ranks."""
    ordered = np.sort(np.concatenate(per_sample))

    def rank(share: Fraction) -> int:
        return int(ordered[max(0, -(-len(ordered) * share.numerator // share.denominator) - 1)])

    return Spread(int(ordered[0]), rank(Fraction(1, 2)), rank(Fraction(95, 100)), int(ordered[-1]))


def _sums(
    rows: npt.NDArray[np.generic], reach: FanOut, layer: str
) -> tuple[npt.NDArray[np.int8], Int64]:
    """Class of each frame, and sums of fan-out, of fan-out through weights that are not 0, and of 1 over its events."""
    if rows.dtype in (np.uint8, np.bool_) and reach.small is not None:
        spikes: npt.NDArray[np.uint8] = rows.view(np.uint8)
        if spikes.max(initial=0) <= 1:  # by far the most common
            table = sums(spikes, *reach.small)
            return np.where(table[:, 2] > 0, 0, 3).astype(np.int8), table
    if rows.dtype in (np.float32, np.float64) and reach.small is not None:
        floats: npt.NDArray[Any] = rows
        sort, table = sorted_sums(floats, *reach.small)
        if sort.max(initial=0) <= 3:
            return sort, table
    sort, active = sort_frames(rows, layer)
    # Integers in floats that hold the sum of any frame exactly.
    return sort, (active.astype(reach.matrix.dtype) @ reach.matrix).astype(np.int64)


def sort_frames(
    rows: npt.NDArray[np.generic], layer: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """Class of each frame (index into `CLASSES`), and which elements are events.

    Args:
        rows: (frames, features), boolean, integer or float.
        layer: name, for messages.

    Raises:
        CountError: a dtype that is no number, or NaN or infinity.
    """
    if rows.dtype.kind not in "biuf":
        raise CountError(
            f"layer '{layer}': events of dtype {rows.dtype} are no numbers; pass integers"
        )
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise CountError(
            f"layer '{layer}': NaN or infinity is neither an event nor silence; find where it comes from"
        )
    active = rows != 0
    unit = active & (rows == 1)
    binary = (active == unit).all(axis=1)
    ternary = (active == (unit | (rows == -1))).all(axis=1)
    sort = np.select([~active.any(axis=1), binary, ternary], [3, 0, 1], default=2)
    return sort.astype(np.int8), active
