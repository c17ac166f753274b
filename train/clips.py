"""Give training the batches of a recipe's data: what student and teacher see, and labels.

`Clips` is what every dataset is made into; here are those of event recordings and of eyes.
`FirstSteps` cuts any clips short, since fewer steps cost less on the chip. `Epoch` batches them;
`split_validation` parts them by group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from knarr.train.datasets.arrays import AnyArray, Float32, Int64, Rng, UInt8
from knarr.train.datasets.events.nmnist import EventRecordings, Jitter, bin_counts
from knarr.train.settings import Recipe, SettingsError

Indices = Int64
EVALUATION_BATCH = 50
"""Clips that are evaluated at once."""


class Batch(NamedTuple):
    """One batch, a tuple so that Lightning can move it to a device.

    Args:
        inputs: (B, T, *features) float32, what the student sees: whole numbers of the chip's input
            over its units.
        teacher_inputs: what the teacher sees, float32, batch first.
        labels: (B,) int64 classes, or (B, k) float32 targets.
    """

    inputs: Tensor
    teacher_inputs: tuple[Tensor, ...]
    labels: Tensor

    @classmethod
    def from_arrays(cls, inputs: Float32, *teacher_inputs: Float32, labels: AnyArray) -> Batch:
        """Make a batch of numpy arrays, whose memory it shares."""
        shown = map(torch.from_numpy, teacher_inputs)
        return cls(torch.from_numpy(inputs), tuple(shown), torch.from_numpy(labels))


class Clips(Protocol):
    """A split of a data set."""

    @property
    def labels(self) -> AnyArray:
        """(N,) int64 class of each clip, or (N, k) float32 targets."""
        ...

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the clips `indices`, augmented when `rng` is given."""
        ...

    def chip_inputs(self, indices: Indices) -> AnyArray:
        """Return the student's inputs (B, T, *features) as integers for the chip, not augmented."""
        ...


@dataclass(frozen=True, eq=False)
class EventClips:
    """Event recordings.

    The student sees binary time bins, the teacher log counts in a few coarse bins.
    """

    recordings: EventRecordings
    timesteps: int
    bin_us: int
    teacher_bins: int
    jitter: Jitter

    @property
    def labels(self) -> Indices:
        """(N,) int64 class of each recording."""
        return self.recordings.labels

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the recordings `indices`, moved at random when `rng` is given."""
        jitter = None if rng is None else self.jitter
        counts = bin_counts(
            self.recordings, indices, self.timesteps, self.bin_us, jitter=jitter, rng=rng
        )
        teacher = _log_counts(counts, self.teacher_bins)
        inputs = (counts > 0).astype(np.float32)
        return Batch.from_arrays(inputs, teacher, labels=self.labels[indices])

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return the binary time bins (B, T, 2, height, width)."""
        counts = bin_counts(self.recordings, indices, self.timesteps, self.bin_us)
        return (counts > 0).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class EyeClips:
    """Eye clips: the student sees event frames, the teacher grey frames and event counts.

    The teacher has few of both: the counts are those of the time around each grey frame.

    Args:
        frames, events: (N, T, H, W) and (N, T, 2, H, W), as of `SeeSequences.stacked`.
        labels: (N,) int64 class of each clip.
        teacher_bins: Grey frames, and bins of events, that the teacher sees.
        shift_px: Largest distance by which drawn clips are moved.
    """

    frames: UInt8
    events: UInt8
    labels: Indices
    teacher_bins: int
    shift_px: int

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the clips `indices`, shifted at random when `rng` is given."""
        events, frames = self.events[indices], self.frames[indices]
        if rng is not None and self.shift_px:
            # No events come in from outside.
            events, frames = shifted(self.shift_px, events, frames, rng, event_edge="constant")
        steps = frames.shape[1]
        # The teacher's instants lie in the middle of its bins, where the counts of a bin are
        # centred too.
        instants = (np.arange(self.teacher_bins) * steps + steps // 2) // self.teacher_bins
        grey = frames[:, instants].astype(np.float32) / 255 - 0.5
        teacher = np.concatenate([grey, _log_counts(events, self.teacher_bins)], axis=1)
        inputs = events.astype(np.float32)
        return Batch.from_arrays(inputs, teacher, labels=self.labels[indices])

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return the event frames (B, T, 2, H, W)."""
        return self.events[indices]


def shifted(
    margin: int,
    events: UInt8,
    frames: UInt8,
    rng: Rng,
    *,
    event_edge: Literal["edge", "constant"] = "edge",
) -> tuple[UInt8, UInt8]:
    """Return each clip moved by up to `margin` pixels both ways, events and frames alike.

    Args:
        margin: Largest distance in pixels.
        events: (B, T, ..., H, W) images of events.
        frames: (B, T, H, W) grey images, whose edges are repeated.
        rng: Generator of the distances.
        event_edge: Whether events repeat their "edge" too, or a "constant" 0 comes in.
    """
    height, width = frames.shape[-2:]
    # Corners of the window in the padded images: `margin` is where it stood.
    corners = rng.integers(0, 2 * margin, (len(events), 2), endpoint=True)

    def moved(images: UInt8, mode: Literal["edge", "constant"]) -> UInt8:
        around = [(0, 0)] * (images.ndim - 2) + [(margin, margin)] * 2
        clips = zip(np.pad(images, around, mode=mode), corners, strict=True)
        return np.stack([clip[..., y : y + height, x : x + width] for clip, (y, x) in clips])

    return moved(events, event_edge), moved(frames, "edge")


def _log_counts(counts: npt.NDArray[np.integer[Any]], bins: int) -> Float32:
    """Return log(1 + events) in consecutive groups of time steps, (B, bins * 2, H, W)."""
    groups = [part.sum(axis=1) for part in np.array_split(counts, bins, axis=1)]
    return np.log1p(np.concatenate(groups, axis=1)).astype(np.float32)


class Epoch(Dataset[Batch]):
    """The batches of one epoch.

    What they hold depends on seed and epoch alone, so a resumed run repeats them.

    Args:
        clips: the split that is batched.
        indices: (N,) clips of it to use.
        batch_size: clips of a batch; the last one may have fewer.
        seed: seed of the run.
        epoch: number of the epoch, which shuffles and augments; None does neither.
    """

    def __init__(
        self, clips: Clips, indices: Indices, batch_size: int, *, seed: int, epoch: int | None
    ) -> None:
        self.clips, self.batch_size, self.seed, self.epoch = clips, batch_size, seed, epoch
        self.indices = indices
        if epoch is not None:
            self.indices = np.random.default_rng([seed, epoch]).permutation(indices)

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self):
            raise IndexError(number)  # ends a plain for loop
        first = number * self.batch_size
        rng = None
        if self.epoch is not None:
            # A generator for each batch: workers may make them in any order.
            rng = np.random.default_rng([self.seed, self.epoch, number])
        return self.clips.batch(self.indices[first : first + self.batch_size], rng)


def evaluation_batches(clips: Clips, chosen: Indices | None = None) -> Iterator[Batch]:
    """Return batches of the clips in their order, all or the chosen ones, not augmented."""
    indices = np.arange(len(clips.labels)) if chosen is None else chosen
    # Without an epoch nothing is shuffled or augmented, so the seed has no effect.
    epoch = Epoch(clips, indices, EVALUATION_BATCH, seed=0, epoch=None)
    return (epoch[number] for number in range(len(epoch)))


def split_validation(
    groups: npt.NDArray[np.generic],
    fraction: float,
    seed: int,
    *,
    setting: str = "data.validation_fraction",
) -> tuple[Indices, Indices]:
    """Split clips into (training, validation) without dividing a group.

    Args:
        groups: (N,) group of each clip: a subject, or the clip itself where clips are independent.
        fraction: share of the groups that go to validation, 0 < fraction < 1.
        seed: seed of the draw.
        setting: the recipe's name of the fraction, for the error.

    Raises:
        SettingsError: no group is left to train on.
    """
    names = np.unique(groups)
    count = max(1, round(fraction * len(names)))
    if count >= len(names):
        raise SettingsError(
            f"{setting}: {fraction:g} of {len(names)} groups is all of them and leaves none to train on; "
            f"{'take less' if len(names) > 1 else 'give two groups at least, or none'}"
        )
    drawn = np.random.default_rng(seed).permutation(names)[:count]
    held_out = np.isin(groups, drawn)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


@dataclass(frozen=True, eq=False)
class FirstSteps:
    """The first `timesteps` of every clip of a split; the teacher is shown all of it."""

    clips: Clips
    timesteps: int

    @property
    def labels(self) -> AnyArray:
        """(N,) int64 class of each clip, or (N, k) float32 targets."""
        return self.clips.labels

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the clips `indices`, the student's inputs cut short."""
        batch = self.clips.batch(indices, rng)
        return batch._replace(inputs=batch.inputs[:, : self.timesteps])

    def chip_inputs(self, indices: Indices) -> AnyArray:
        """Return the first steps (B, timesteps, *features)."""
        return self.clips.chip_inputs(indices)[:, : self.timesteps]


def truncate_timesteps(recipe: Recipe, clips: Clips) -> Clips:
    """Return a split as the chip runs it: all of its steps, or the first that the recipe asks for.

    Raises:
        SettingsError: `chip.timesteps` that the clips do not have.
    """
    steps = None if recipe.chip is None else recipe.chip.timesteps
    if steps is None:
        return clips
    found = clips.chip_inputs(np.arange(1)).shape[1]
    if steps > found:
        raise SettingsError(
            f"chip.timesteps: {steps}, clips have {found}; take at most so many, or leave it out"
        )
    return FirstSteps(clips, steps)
