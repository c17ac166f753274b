"""Segments of CMU-MOSI as events in memory, and as a torch data set.

The grey frames behind segments of CMU-MOSI, for networks that take pictures instead of events.

The complete set is 2.4 GB of them at 128 pixels, so they stay in the cache and are read when they are asked for; without a cache they
stay in memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch.utils.data import Dataset

from knarr.train.datasets.cache import Progress, cache_key, cached, parallel
from knarr.train.datasets.events.camera import density, resize_grey
from knarr.train.datasets.events.video import GreyVideo
from knarr.train.datasets.files import sha256_of
from knarr.train.datasets.mosi.labels import Key
from knarr.train.errors import DataError

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
        return torch.from_numpy(self.clips.frames(np.array([index]))[0]), int(
            self.clips.labels[index]
        )


VERSION: Final = 1  # of `grey_frames`
_Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GreyFrames:
    """Grey frames of segments.

    Args:
        sources: of the segments.
        size, frames: of what is given, as of the events beside it.
        kept: (frames, size, size) of each segment, or the key of its cache file.
        cache: folder of the files; None where nothing is a key.
    """

    sources: tuple[Source, ...]
    size: int
    frames: int
    kept: tuple[_Frames | str, ...]
    cache: Path | None

    def of(self, indices: npt.NDArray[np.int64]) -> _Frames:
        """(B, frames, size, size) luma; behind the end of a segment its last frame stays, as no event says otherwise.

        Raises:
            DataError: a file that is no longer in the cache, and no longer decodes.
        """
        return np.stack([self._one(int(index)) for index in indices])

    def _one(self, index: int) -> _Frames:
        kept = self.kept[index]
        if not isinstance(kept, str):
            return kept
        assert self.cache is not None  # or there were no key
        make = partial(grey_frames, self.sources[index], self.size, self.frames)
        return cached(self.cache, kept, lambda: {"grey": make()})["grey"].astype(
            np.uint8, copy=False
        )


def read_grey(
    sources: Sequence[Source],
    *,
    size: int,
    frames: int,
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> GreyFrames:
    """Decode every segment once.

    Args:
        sources: of segments that were read before, so that their files lie inside the data set.
        size, frames: as of the events.
        cache, workers, progress: as of `read_mosi`.

    Raises:
        DataError: a video that does not decode.
    """
    make = partial(_keep, size=size, frames=frames, cache=cache)
    kept = parallel(sources, make, workers=workers, progress=progress)
    return GreyFrames(tuple(sources), size, frames, tuple(kept), cache)


def grey_frames(source: Source, size: int, frames: int) -> _Frames:
    """(frames, size, size) luma of one segment, its last frame repeated where it is shorter.

    Raises:
        DataError: as `GreyVideo`.
    """
    path, span_s = source
    start_s, end_s = span_s or (0.0, None)
    with GreyVideo(path) as video, contextlib.closing(video.frames(start_s, end_s)) as decoded:
        found = np.stack([resize_grey(frame, size) for frame in islice(decoded, frames)])
    return np.pad(found, ((0, frames - len(found)), (0, 0), (0, 0)), mode="edge")


def _keep(source: Source, *, size: int, frames: int, cache: Path | None) -> _Frames | str:
    if cache is None:
        return grey_frames(source, size, frames)
    path, span_s = source
    state = path.stat()
    settings = {
        "size": size,
        "frames": frames,
        "span_s": span_s,
        "decoder": f"av {av.__version__}, pillow {PIL.__version__}",
    }
    digest = _sha256_once(path, state.st_size, state.st_mtime_ns)
    key = cache_key("mosi_grey", VERSION, {path.name: digest}, settings)
    cached(cache, key, lambda: {"grey": grey_frames(source, size, frames)})
    return key


@once
def _sha256_once(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file that many segments are cut from; its size and time tell when it is another."""
    return sha256_of(path)
