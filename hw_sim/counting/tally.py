"""Add up what a layer did, in exact integers per layer, per time step and per sample.

An event's class is that of its frame, the whole layer input at one (sample, time step), in the unit
that the network declares for that input. With unit a, a frame of values in {0, a} is binary, each
event an addition (ACC): a is known before any input is, so it is part of the weights. A frame in
{-a, 0, a} is signed, additions too. Any other frame is graded, and every non-zero element is a
multiply-accumulate (MAC). Neurons send spikes of 1, a graph takes its inputs in units of 1, and a
chip network in `InputCoding.units` (255 for frames of 0..1 that are sent as 8 bits).

A frame that happens to hold one magnitude has no unit of its own, for the next frame may hold
another. Classes are never taken per batch, layer or run, so counts do not depend on batch size or
sample order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import SupportsInt

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import (
    LayerCounts,
    LayerSizes,
    LedgerRow,
    OperationCounts,
    Spread,
)
from knarr.hw_sim.counting.fan_out import FanOut
from knarr.hw_sim.errors import CountError

Int8 = npt.NDArray[np.int8]

SAMPLE_BLOCK_BYTES = 128 * 2**20
"""Size of what is recorded at one time; larger batches are cut into blocks of samples."""
CACHED_VALUES = 2**16
"""Values of frames that are looked at together, while they and what is made of them stay in the cache."""
CLASSES = ("binary", "signed", "graded", "silent")
"""Names of the frame classes; a class number is an index into them."""
BINARY, SIGNED, GRADED, SILENT = range(4)
UNPAID = -1
"""Class of a frame that is never delivered."""


def _class_and_sums(
    rows: Array,
    stored: Int64,
    nonzero: Int64,
    layer: str,
    unit: int = 1,
) -> tuple[Int8, Int64]:
    """Return each frame's class, and its sums of `stored`, `nonzero` and 1, (frames, 3).

    Args:
        rows: (frames, features), boolean, integer or float.
        stored, nonzero: summed over the events, as many as there are features, none negative.
        layer: name, for messages.
        unit: magnitude of a spike, at least 1.

    Raises:
        CountError: a dtype that is no number, or NaN or infinity.
    """
    if rows.dtype.kind not in "biuf":
        raise CountError(
            f"layer '{layer}': events of dtype {rows.dtype} are no numbers; pass integers"
        )
    if rows.dtype == np.bool_:
        rows = rows.view(np.uint8)  # which compare without becoming other numbers
    amounts = np.stack([stored.reshape(-1), nonzero.reshape(-1), np.ones(rows.shape[1])], axis=1)
    # No sum of some of them passes the sum of all, up to which these floats hold every integer.
    exact = np.float32 if amounts.sum(axis=0).max(initial=0) < 2**24 else np.float64
    amounts = amounts.astype(exact)
    table = np.empty((len(rows), 3), dtype=np.int64)
    frame_class = np.empty(len(rows), dtype=np.int8)
    for block in blocks(len(rows), rows.shape[1], CACHED_VALUES):
        part = rows[block]
        events = part != 0
        table[block] = events.astype(exact) @ amounts
        silent = table[block, 2] == 0
        # Most blocks hold spikes alone, and need no look at every frame.
        if np.array_equal(part == unit, events):
            frame_class[block] = np.where(silent, SILENT, BINARY)
            continue
        least, most = part.min(axis=1), part.max(axis=1)
        # NaN is the least and the most of whatever it lies among.
        if not (np.isfinite(least) & np.isfinite(most)).all():
            raise CountError(
                f"layer '{layer}': NaN or infinity is neither an event nor silence; find where it comes from"
            )
        ternary = ((part == unit) | (part == -unit) | ~events).all(axis=1)
        kinds = [silent, ternary & (least >= 0), ternary]
        frame_class[block] = np.select(kinds, [SILENT, BINARY, SIGNED], GRADED)
    return frame_class, table


@dataclass
class LayerTally:
    """One layer's counts so far.

    Args:
        name: of the layer, for messages.
        columns: field of `LayerCounts` -> total over all samples.
        frames: frame class -> frames that were delivered.
        later_macs: whether a graded frame arrived in another step than the first.
        per_step: synaptic operations in each time step, all samples together.
        per_sample: one array per batch, (samples,), of synaptic operations.
    """

    name: str
    columns: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    later_macs: bool = False
    per_step: list[int] = field(default_factory=list)
    per_sample: list[Int64] = field(default_factory=list)

    def begin(self, samples: int) -> None:
        """Start a batch of so many samples."""
        self.per_sample.append(np.zeros(samples, dtype=np.int64))

    def add(self, column: str, amount: SupportsInt) -> None:
        """Add so many operations other than synaptic ones."""
        self.columns[column] += int(amount)

    def deliver(
        self,
        fan_out: FanOut,
        frames: Array,
        alive: Mask,
        step: int,
        *,
        unit: int = 1,
        own_spikes: bool = False,
        repeated: bool = False,
    ) -> None:
        """Count frames that arrive at synapses.

        Args:
            fan_out: the synapses.
            frames: (samples of the batch, steps, features).
            alive: (samples, steps) whether the frame is ever delivered; the others are not paid.
            step: time step of the first frame.
            unit: magnitude of a spike in these frames, at least 1.
            own_spikes: the frames are the layer's own spikes, which come back to it.
            repeated: the same events are delivered to other synapses of this layer too, and are
                counted there.

        Raises:
            CountError: NaN, infinity, or no numbers.
        """
        samples, steps = alive.shape
        rows = frames.reshape(samples * steps, -1)
        frame_class, table = _class_and_sums(rows, fan_out.stored, fan_out.nonzero, self.name, unit)
        frame_class[~alive.reshape(-1)] = UNPAID
        table[frame_class == UNPAID] = 0
        stored, nonzero, events = table.T
        graded = frame_class == GRADED
        self.add("acc", stored[~graded].sum())
        self.add("mac", stored[graded].sum())
        self.add("acc_nonzero", nonzero[~graded].sum())
        self.add("mac_nonzero", nonzero[graded].sum())
        self.add("signed", stored[frame_class == SIGNED].sum())
        if not repeated:
            self.add("events", events.sum())
            self.add("graded", events[graded].sum())
        first_later = 1 if step == 0 else 0
        later = graded.reshape(samples, steps)[:, first_later:]
        self.later_macs |= bool(later.any())
        if own_spikes:
            neurons = fan_out.outputs[0]
            self.add("recurrent_all_pairs", events.sum() * neurons)
            self.add("recurrent_no_autapse", events.sum() * (neurons - 1))
        elif not repeated:
            self._note_classes(frame_class)
        operations = stored.reshape(samples, steps)
        # Steps arrive in any number of calls, the same step more than once where several synapses
        # hear it.
        self.per_step.extend([0] * (step + steps - len(self.per_step)))
        amounts = operations.sum(axis=0).tolist()
        for at, amount in enumerate(amounts, start=step):
            self.per_step[at] += amount
        self.per_sample[-1] += operations.sum(axis=1)

    def take(
        self,
        stored: Int64,
        nonzero: int,
        events: int,
        heard: Int64 | None = None,
    ) -> None:
        """Take over what was counted while spikes arrived.

        Args:
            stored: (samples, steps) synaptic operations.
            nonzero: those of weights that are not 0, in all.
            events: events that were delivered.
            heard: (frames,) events of every frame that is paid, for the ledger; None of a layer's
                own spikes.
        """
        self.add("acc", stored.sum())
        self.add("acc_nonzero", nonzero)
        self.add("events", events)
        if heard is not None:
            self._note_classes(np.where(heard > 0, BINARY, SILENT).astype(np.int8))
        self.per_step.extend([0] * (stored.shape[1] - len(self.per_step)))
        for at, amount in enumerate(stored.sum(axis=0).tolist()):
            self.per_step[at] += amount
        self.per_sample[-1] += stored.sum(axis=1)

    def meet(self, left: Array, right: Array, pairs: Int64) -> None:
        """Count a product of two activations of one sample.

        It is an addition for each pair where one of the two frames holds spikes alone: the other
        value is added or taken away as it is.

        Args:
            left, right: (frames, features), or one frame that meets all of the other side.
            pairs: (frames,) pairs that meet and are both not 0.

        Raises:
            CountError: as `deliver`.
        """
        classes = []
        for rows in (left, right):
            ones = np.ones(rows.shape[1], dtype=np.int64)
            frame_class, table = _class_and_sums(rows, ones, ones, self.name)
            self.add("events", table[:, 2].sum())
            self.add("graded", table[frame_class == GRADED, 2].sum())
            self._note_classes(frame_class)
            classes.append(frame_class)
        graded = (classes[0] == GRADED) & (classes[1] == GRADED)
        signed = ((classes[0] == SIGNED) | (classes[1] == SIGNED)) & ~graded
        for suffix in ("", "_nonzero"):
            self.add(f"acc{suffix}", pairs[~graded].sum())
            self.add(f"mac{suffix}", pairs[graded].sum())
        self.add("signed", pairs[signed].sum())
        self.per_sample[-1] += pairs.sum()

    def note_classes(self, frames: Array, alive: Mask, unit: int = 1) -> None:
        """Note the classes of frames (samples, steps, features) delivered as `repeated` ones."""
        rows = frames.reshape(alive.size, -1)[alive.reshape(-1)]
        nothing = np.zeros(rows.shape[1], dtype=np.int64)
        self._note_classes(_class_and_sums(rows, nothing, nothing, self.name, unit)[0])

    def _note_classes(self, frame_class: Int8) -> None:
        for number, name in enumerate(CLASSES):
            self.frames[name] += int(np.count_nonzero(frame_class == number))

    def dense(self, fan_out: FanOut, frames: int) -> None:
        """Add the operations of so many frames in which every input had an event."""
        self.add("dense_valid", frames * fan_out.dense_valid)
        self.add("dense_padded", frames * fan_out.dense_padded)

    @property
    def note(self) -> str:
        """One line for the ledger that says what kinds of frames arrived."""
        return (
            f"{sum(self.frames.values())} frames: {self.frames['binary']} binary, {self.frames['signed']} signed "
            f"(counted as ACC), {self.frames['graded']} graded (MAC), {self.frames['silent']} silent"
        )


def blocks(
    length: int,
    bytes_each: int,
    most_bytes: int,
) -> Iterator[slice]:
    """Cut so many items into slices that stay below a size, of one item at least."""
    size = max(1, most_bytes // max(1, bytes_each))
    for first in range(0, length, size):
        yield slice(first, first + size)


def _spread(per_sample: list[Int64]) -> Spread:
    """Return the nearest ranks of the operations per sample."""
    ordered = np.sort(np.concatenate(per_sample)).tolist()

    def rank(percent: int) -> int:
        # The nearest rank is rounded up, and counted from 1.
        place = -(-len(ordered) * percent // 100)
        return int(ordered[max(0, place - 1)])

    return Spread(ordered[0], rank(50), rank(95), ordered[-1])


class Tallies(dict[str, LayerTally]):
    """Tallies of all layers, by name, which see the same batches.

    Args:
        names: of the layers, input to output.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__((name, LayerTally(name)) for name in names)
        self.samples = self.steps = 0

    def begin(self, lengths: Int64) -> None:
        """Start a batch of samples of so many steps each."""
        self.samples += len(lengths)
        self.steps += int(lengths.sum())
        for tally in self.values():
            tally.begin(len(lengths))

    def counts(
        self,
        ledger: list[LedgerRow],
        sizes: dict[str, LayerSizes],
        pooling: str,
    ) -> OperationCounts:
        """Return the counts of an inference.

        Args:
            ledger: one row for everything the model holds.
            sizes: layer -> its words, for layers that are counted.
            pooling: "folded" or "float".

        Raises:
            CountError: there was no sample.
        """
        if not self.samples:
            raise CountError("inputs: no sample; give at least one")
        mean = Fraction(self.steps, self.samples)
        tallies = {name: self[name] for name in sizes}
        batches = zip(*(tally.per_sample for tally in tallies.values()), strict=True)
        whole = [np.sum(layers, axis=0) for layers in batches]
        layers, per_step, spread = {}, {}, {}
        for name, tally in tallies.items():
            layers[name] = LayerCounts.mean(tally.columns, self.samples)
            per_step[name] = tuple(Fraction(amount, self.samples) for amount in tally.per_step)
            spread[name] = _spread(tally.per_sample)
        return OperationCounts(
            layers=layers,
            ledger=tuple(ledger),
            samples=self.samples,
            timesteps=int(mean) if mean.denominator == 1 else mean,
            kind="snn",
            sizes=sizes,
            pooling="float" if pooling == "float" else "folded",
            per_step=per_step,
            later_macs=any(tally.later_macs for tally in tallies.values()),
            spread=spread,
            total_spread=_spread(whole) if whole else None,
        )
