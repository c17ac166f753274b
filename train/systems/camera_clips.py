"""Segments of video as a simulated event camera's frames for the voters, and as channels for the ANN.

The student sees a grey frame on both channels and then events: 8-bit integers, a grey level k and 255 for an event, of 255 units, so
that an event is 1 in floating point. Pure spikes leave the grey frame out and are one bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from knarr.train.clips import Batch, Indices
from knarr.train.datasets.mosi_clips import MosiClips
from knarr.train.datasets.mosi_grey import GreyFrames

GREY_LEVELS: Final = 255


@dataclass(frozen=True, eq=False)
class CameraClips:
    """Some segments, kept packed and unpacked batch by batch.

    Args:
        clips: all segments, with their first frames.
        chosen: those of this split.
        pure_spike: leave the first frames out.
        grey: frames for the ANN; None gives it the first frame and differences of events.
    """

    clips: MosiClips
    chosen: Indices
    pure_spike: bool
    grey: GreyFrames | None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.clips.labels[self.chosen]

    @property
    def videos(self) -> npt.NDArray[np.str_]:
        """(N,) of each segment: one speaker."""
        return self.clips.videos[self.chosen]

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        """Nothing is augmented, as in the paper as far as it says."""
        inputs = self.chip_inputs(indices).astype(np.float32)
        if not self.pure_spike:
            inputs /= np.float32(GREY_LEVELS)
        return Batch(
            torch.from_numpy(inputs),
            (torch.from_numpy(self._channels(indices)),),
            torch.from_numpy(self.labels[indices]),
        )

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        own = self.chosen[indices]
        spikes = self.clips.spikes(own)
        if self.pure_spike:
            return spikes
        first = np.repeat(self.clips.first[own, None, None], 2, axis=2)
        return np.concatenate([first, spikes * np.uint8(GREY_LEVELS)], axis=1)

    def _channels(self, indices: Indices) -> npt.NDArray[np.float32]:
        """(B, frames, H, W) of the ANN: grey 0..1, or that and then -1, 0 or 1."""
        own = self.chosen[indices]
        if self.grey is not None:
            return self.grey.of(own).astype(np.float32) / np.float32(GREY_LEVELS)
        first = self.clips.first[own].astype(np.float32) / np.float32(GREY_LEVELS)
        spikes = self.clips.spikes(own).astype(np.float32)
        return np.concatenate([first[:, None], spikes[:, :, 0] - spikes[:, :, 1]], axis=1)
