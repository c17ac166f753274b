"""The grey frames behind segments of CMU-MOSI, for networks that take pictures instead of events.

The complete set is 2.4 GB of them at 128 pixels, so they stay in the cache and are read when they are asked for; without a cache they
stay in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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

from knarr.train.datasets.cache import Progress, cache_key, cached, parallel
from knarr.train.datasets.dvs import resize_grey
from knarr.train.datasets.files import sha256_of
from knarr.train.datasets.mosi_clips import Source
from knarr.train.datasets.video import GreyVideo

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
        return cached(self.cache, kept, lambda: {"grey": make()})["grey"].astype(np.uint8, copy=False)


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
