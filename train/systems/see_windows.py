"""Windows of SEE sequences as clips: one draw for events and frames, teacher and student."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from knarr.train.clips import Batch, Indices
from knarr.train.datasets.see.sequences import Images, SeeSequences
from knarr.train.datasets.see.windows import Sampling, draw_window, evaluation_windows
from knarr.train.systems.mskd_recipe import TEACHER_CHANNELS, Normalise

GREY_BITS = 8
"""Of the images. A pixel k goes to the student as k / 255 (of fewer bits, its upper ones), not less a mean: convolutions pad with
zeros, before and after an offset not the same, so a mean could not be moved from the input into the first layer's bias; batch-norms can
be folded and do its work."""


@dataclass(frozen=True, eq=False)
class SeeWindows:
    """Some sequences, each seen through one window; a fresh one is drawn where an `rng` is given.

    Args:
        sequences: all that were read.
        own: (N,) those of this split.
        sampling: how windows are cut.
        fixed: (N, x) the window of each clip where none is drawn.
        channels: of the student's images, all of them the same grey.
        bits: of the student's pixels, at most `GREY_BITS`.
        normalise: of the teacher's images.
        shift_px: how far drawn clips are moved at most.
    """

    sequences: SeeSequences
    own: Indices
    sampling: Sampling
    fixed: Indices
    channels: int
    bits: int
    normalise: Normalise
    shift_px: int = 0

    @property
    def labels(self) -> Indices:
        return self.sequences.labels[self.own]

    @property
    def lengths(self) -> Indices:
        """(N,) images of each sequence."""
        return self.sequences.lengths[self.own]

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) of the sequences."""
        return tuple(self.sequences.names[n] for n in self.own)

    @property
    def subjects(self) -> tuple[str, ...]:
        """(N,) whose each is."""
        return tuple(self.sequences.subjects[n] for n in self.own)

    @property
    def lights(self) -> tuple[str, ...]:
        """(N,) lighting of each."""
        return tuple(self.sequences.lights[n] for n in self.own)

    @property
    def units(self) -> int:
        """Of the chip per unit of the student's input."""
        return (1 << self.bits) - 1

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        windows = self.fixed[indices] if rng is None else self._drawn(indices, rng)
        rows = self.sequences.rows(self.own[indices], windows)
        events, frames = self.sequences.events[rows], self.sequences.frames[rows]
        if rng is not None and self.shift_px:
            events, frames = shifted(self.shift_px, events, frames, rng)
        how = self.normalise
        return Batch(
            torch.from_numpy(self._integers(frames).astype(np.float32) / np.float32(self.units)),
            (
                _normalised(events, how.event_mean, how.event_std),
                _normalised(frames, how.frame_mean, how.frame_std),
            ),
            torch.from_numpy(self.labels[indices]),
        )

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        rows = self.sequences.rows(self.own[indices], self.fixed[indices])
        return np.ascontiguousarray(self._integers(self.sequences.frames[rows]))

    def passes(self, windows: int, seed: int) -> list[SeeWindows]:
        """The same clips through several windows each, the first time through those they have."""
        drawn = evaluation_windows(self.lengths, self.sampling, windows=windows, seed=seed)
        return [self, *(replace(self, fixed=of_pass) for of_pass in drawn[1:])]

    def _drawn(self, indices: Indices, rng: np.random.Generator) -> Indices:
        lengths = self.lengths[indices].tolist()
        return np.stack([draw_window(length, self.sampling, rng) for length in lengths])

    def _integers(self, frames: Images) -> Images:
        """(B, x, H, W) -> (B, x, channels, H, W), what the student's chip is given."""
        shape = (*frames.shape[:2], self.channels, *frames.shape[2:])
        return np.broadcast_to((frames >> (GREY_BITS - self.bits))[:, :, None], shape)


def _normalised(images: Images, mean: float, std: float) -> torch.Tensor:
    """(B, x, H, W) -> (B, x, 3, H, W) float32."""
    grey = (images.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(grey)[:, :, None].expand(-1, -1, TEACHER_CHANNELS, -1, -1)


def shifted(
    margin: int, events: Images, frames: Images, rng: np.random.Generator
) -> tuple[Images, Images]:
    """Each clip (x, H, W) moved by up to `margin` pixels both ways, events and frames alike; edges are repeated."""
    height, width = frames.shape[-2:]
    around = (*[(0, 0)] * 2, (margin, margin), (margin, margin))
    wide = [np.pad(images, around, mode="edge") for images in (events, frames)]
    moved = np.empty_like(events), np.empty_like(frames)
    for clip, (y, x) in enumerate(rng.integers(0, 2 * margin, (len(events), 2), endpoint=True)):
        for source, target in zip(wide, moved, strict=True):
            target[clip] = source[clip, :, y : y + height, x : x + width]
    return moved
