"""Segments of CMU-MOSI in memory, as events and as the grey frames that these come from.

The grey frames of the complete set are 2.4 GB at 128 pixels, so they stay in the cache and are read
when they are asked for; without a cache they stay in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL

from knarr.train.datasets.arrays import Float64, Int64, UInt8
from knarr.train.datasets.cache import Progress, cache_key, cached, parallel
from knarr.train.datasets.events.camera import resize_grey
from knarr.train.datasets.events.video import GreyVideo
from knarr.train.datasets.files import count_kinds, sha256_of
from knarr.train.datasets.mosi.labels import Key
from knarr.train.errors import DataError

CLASS_NAMES = ("negative", "positive")
VERSION = 1
"""Version of `grey_frames`: raise it whenever it computes something else."""
Source = tuple[Path, tuple[float, float] | None]
"""A video file, and start and end in seconds of a segment in it; None for all of it.
"""


@dataclass(frozen=True, eq=False)
class MosiClips:
    """Segments as events, sorted by video and number.

    Attributes:
        first: (N, H, W) uint8 first frames, luma; (N, 0, 0) in the pure-spike variant.
        packed: (N, T - 1, 2, H, ceil(W / 8)) uint8: eight pixels of a row to a byte; ON and OFF as
            in `camera.Events`.
        width: W, pixels.
        shown: (N,) event steps before the padding.
        fps: (N,) frames a second.
        labels: (N,) classes: 0 negative, 1 positive.
        scores: (N,) -3 .. 3.
        keys: the segments' names.
        folds: fold of each, one of `MODES`; no video is in two.
        left_out: what is wrong with each segment that is not here; empty unless read with
            ``on_bad="skip"``.
        zeros_dropped: segments without sentiment that ``zeros="drop"`` left out.
        sources: where each segment was read, for other views of it.
    """

    first: UInt8
    packed: UInt8
    width: int
    shown: Int64
    fps: Float64
    labels: Int64
    scores: Float64
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
        return count_kinds(self.left_out)

    @property
    def videos(self) -> npt.NDArray[np.str_]:
        """(N,) video of each segment: one person, so the group that no split may divide."""
        return np.array([key.video for key in self.keys])

    def fold(self, name: str) -> Int64:
        """Return the indices of the segments of a fold."""
        return np.flatnonzero(np.array(self.folds) == name)

    def spikes(self, indices: Int64) -> UInt8:
        """Return the events (B, T - 1, 2, H, W), 0 or 1, without the grey first step."""
        return np.unpackbits(self.packed[indices], axis=-1, count=self.width)


@dataclass(frozen=True, eq=False)
class GreyFrames:
    """Grey frames of segments.

    Args:
        parts: gives the frames (frames, size, size) of each segment when it is called.
    """

    parts: tuple[Callable[[], UInt8], ...]

    def luma(self, indices: Int64) -> UInt8:
        """Return luma (B, frames, size, size).

        Behind the end of a segment its last frame stays, as no event says otherwise.

        Raises:
            DataError: a file that is no longer in the cache, and no longer decodes.
        """
        return np.stack([self.parts[index]() for index in indices])


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
        sources: segments that were read before, so that their files lie inside the data set.
        size, frames: as of the events.
        cache, workers, progress: as of `read_mosi`.

    Raises:
        DataError: a video that does not decode.
    """
    make = partial(_grey_part, size=size, frames=frames, cache=cache)
    return GreyFrames(tuple(parallel(sources, make, workers=workers, progress=progress)))


def grey_frames(source: Source, size: int, frames: int) -> UInt8:
    """Decode (frames, size, size) luma of one segment, its last frame repeated where it is shorter.

    Raises:
        DataError: as `GreyVideo`.
    """
    path, span_s = source
    start_s, end_s = span_s or (0.0, None)
    with GreyVideo(path) as video, contextlib.closing(video.frames(start_s, end_s)) as decoded:
        found = np.stack([resize_grey(frame, size) for frame in islice(decoded, frames)])
    return np.pad(found, ((0, frames - len(found)), (0, 0), (0, 0)), mode="edge")


def source_key(
    dataset: str, version: int, name: str, source: Source, settings: Mapping[str, object]
) -> str:
    """Return the cache's key of what is decoded from a segment.

    Args:
        dataset, version: as of `cache_key`.
        name: what the key calls the video file.
        source: the segment.
        settings: what the result depends on beside the file, the span and the decoder.
    """
    path, span_s = source
    state = path.stat()
    digest = _sha256_once(path, state.st_size, state.st_mtime_ns)
    # Other versions of the libraries may round a pixel otherwise.
    decoder = f"av {av.__version__}, pillow {PIL.__version__}"
    return cache_key(
        dataset, version, {name: digest}, {**settings, "span_s": span_s, "decoder": decoder}
    )


def _grey_part(
    source: Source, *, size: int, frames: int, cache: Path | None
) -> Callable[[], UInt8]:
    """Decode a segment, and return what gives its frames: from memory, or from their cache file."""
    if cache is None:
        return partial(np.asarray, grey_frames(source, size, frames))
    settings = {"size": size, "frames": frames}
    key = source_key("mosi_grey", VERSION, source[0].name, source, settings)
    part = partial(_cached_grey, cache, key, source, size, frames)
    part()
    return part


def _cached_grey(cache: Path, key: str, source: Source, size: int, frames: int) -> UInt8:
    return cached(cache, key, lambda: {"grey": grey_frames(source, size, frames)})["grey"]


@once
def _sha256_once(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file that many segments are cut from; its size and time tell when it is another."""
    return sha256_of(path)
