"""Segments of CMU-MOSI as events in memory, and as a torch data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from knarr.train.data_error import DataError
from knarr.train.datasets.dvs import density
from knarr.train.datasets.mosi_labels import Key

CLASS_NAMES: Final = ("negative", "positive")
Source = tuple[Path, tuple[float, float] | None]
"""A video file, and start and end of a segment in it, seconds; None where the segment is the whole file."""


@dataclass(frozen=True, eq=False)
class MosiClips:
    """Segments as events, sorted by video and number.

    Attributes:
        first: (N, H, W) uint8 first frames, luma; (N, 0, 0) in the pure-spike variant.
        packed: (N, T - 1, 2, H, ceil(W / 8)) uint8: eight pixels of a row to a byte; ON and OFF as in `dvs.Events`.
        width: W, pixels.
        shown: (N,) event steps before the padding.
        fps: (N,) frames a second.
        labels: (N,) classes: 0 negative, 1 positive.
        scores: (N,) -3 .. 3.
        keys: the segments' names.
        folds: fold of each, one of `MODES`; no video is in two.
        left_out: what is wrong with each segment that is not here; empty unless read with ``on_bad="skip"``.
        zeros_dropped: segments without sentiment that ``zeros="drop"`` left out.
        sources: where each segment was read, for other views of it.
    """

    first: npt.NDArray[np.uint8]
    packed: npt.NDArray[np.uint8]
    width: int
    shown: npt.NDArray[np.int64]
    fps: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    keys: tuple[Key, ...]
    folds: tuple[str, ...]
    left_out: tuple[DataError, ...]
    zeros_dropped: int
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of segments left out, by reason."""
        return Counter(error.kind for error in self.left_out)

    @property
    def videos(self) -> npt.NDArray[np.str_]:
        """(N,) video of each segment: one person, so the group that no split may divide."""
        return np.array([key.video for key in self.keys])

    def fold(self, name: str) -> npt.NDArray[np.int64]:
        """Indices of the segments of a fold."""
        return np.flatnonzero(np.array(self.folds) == name)

    def spikes(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """(B, T - 1, 2, H, W), 0 or 1: the events without the grey first step."""
        return np.unpackbits(self.packed[indices], axis=-1, count=self.width)

    def frames(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, T, 2, H, W): what the network is fed; the first step is grey, unless in the pure-spike variant."""
        spikes = self.spikes(indices).astype(np.float32)
        if self.first.size == 0:
            return spikes
        grey = self.first[indices].astype(np.float32) / np.float32(255)
        return np.concatenate([np.stack([grey, grey], axis=1)[:, None], spikes], axis=1)

    @property
    def density(self) -> float:
        """Share of event elements that are events, over all segments, padding left out; published: 10.79 %."""
        events = steps = 0.0
        for index, shown in enumerate(self.shown.tolist()):
            events += shown * density(self.spikes(np.array([index]))[0, :shown])
            steps += shown
        return events / steps if steps else 0.0


class MosiDataset(Dataset[tuple[torch.Tensor, int]]):
    """Some of the clips, one at a time: ((T, 2, H, W) float32, class)."""

    def __init__(self, clips: MosiClips, indices: npt.NDArray[np.int64]) -> None:
        self.clips = clips
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        index = int(self.indices[item])
        return torch.from_numpy(self.clips.frames(np.array([index]))[0]), int(self.clips.labels[index])
