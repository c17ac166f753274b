"""Draw Ex-Sy windows, the frames of a clip that a network sees.

These are positions only, the same for events and frames, teacher and student.

A window has x frames, and between two of them y are skipped. From a segment of n frames it is drawn
in three steps, as in SEEN's paper and code (Zhang et al. 2023, arXiv 2310.04043):

1. y >= 1 only: keep every (y + 1)-th frame from offset o, o ~ U{0 .. 4}, whatever y is. L frames
are left (y = 0: n).
2. begin ~ U{0 .. max(0, L - x - 1)}, and x frames from there. The last start that would fit, L - x,
is never drawn: so it is
   in their code, and so it stays.
3. Where L < x, what is left is repeated from its start until there are x.

Training and test draw alike. A test set is seen 20 times, with fresh draws each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knarr.train.datasets.arrays import Int64

FRAMES_PER_S = 30
LAST_OFFSET = 4  # inclusive, for every y >= 1
WINDOWS = 20
"""Number of times that the published evaluation sees the test set."""


@dataclass(frozen=True)
class Sampling:
    """E<frames>-S<skipped>.

    Args:
        frames: x, how many frames a window has, at least 1.
        skipped: y, how many lie between two neighbours, at least 0.

    Raises:
        ValueError: a number below that.
    """

    frames: int
    skipped: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.skipped < 0:
            raise ValueError(f"sampling: {self}, needs 1 frame or more and 0 skipped or more")

    def __str__(self) -> str:
        return f"E{self.frames}-S{self.skipped}"

    @property
    def least_frames(self) -> int:
        """Length of the shortest segment of which every offset leaves a frame: 5 or 1."""
        return LAST_OFFSET + 1 if self.skipped else 1


def sampling(name: str) -> Sampling:
    """Read a sampling's name: `E4-S3` is Sampling(4, 3).

    Raises:
        ValueError: not such a name.
    """
    match = re.fullmatch(r"E([0-9]{1,4})-S([0-9]{1,4})", name)
    if match is None:
        raise ValueError(
            f"sampling: {name!r} is no name like 'E4-S3'; write frames and skipped frames so"
        )
    return Sampling(int(match[1]), int(match[2]))


def remaining(length: int, how: Sampling, offset: int) -> Int64:
    """Do step 1: return the positions o, o + y + 1, o + 2 (y + 1), ... below `length`.

    Args:
        length: n, frames of the segment, at least `how.least_frames`.
        how: the sampling.
        offset: o, 0 .. 4; 0 where none is skipped.

    Raises:
        ValueError: a length or an offset out of range. The published code would draw offsets that
            leave nothing of a segment of fewer than 5 frames, and fail on some draws; here it fails
            on all.
    """
    if length < how.least_frames:
        raise ValueError(
            f"segment: {length} frames < {how.least_frames}, of which {how} can leave none; take longer clips"
        )
    # Offsets go to 4 even where fewer frames are skipped, so windows of E4-S1 may begin behind a
    # whole stride.
    last = LAST_OFFSET if how.skipped else 0
    if not 0 <= offset <= last:
        raise ValueError(f"offset: {offset} outside 0 .. {last} of {how}; draw it from there")
    return np.arange(offset, length, how.skipped + 1, dtype=np.int64)


def starts(left: int, how: Sampling) -> range:
    """Do step 2: return the starts that can be drawn among L frames, 0 .. max(0, L - x - 1)."""
    return range(max(1, left - how.frames))


def window(length: int, how: Sampling, offset: int, begin: int) -> Int64:
    """Return the positions (x,) in the segment of the window with this offset and start.

    They rise, but where the window is repeated.

    Args:
        length: n, frames of the segment.
        how: the sampling.
        offset: offset o of step 1.
        begin: start of step 2, counted in the frames that step 1 keeps.

    Raises:
        ValueError: any of them out of range.
    """
    kept = remaining(length, how, offset)
    allowed = starts(len(kept), how)
    if begin not in allowed:
        raise ValueError(f"begin: {begin} outside 0 .. {allowed[-1]}, {how} of {len(kept)} frames")
    # np.resize repeats what there is from its start, which is step 3.
    return np.resize(kept[begin : begin + how.frames], how.frames)


def draw_window(length: int, how: Sampling, rng: np.random.Generator) -> Int64:
    """Draw the positions (x,) of one window.

    The offset is drawn first, where frames are skipped, then the start.

    Raises:
        ValueError: the segment is shorter than `how.least_frames`.
    """
    offset = int(rng.integers(LAST_OFFSET, endpoint=True)) if how.skipped else 0
    allowed = starts(len(remaining(length, how, offset)), how)
    return window(length, how, offset, int(rng.choice(allowed)))


def evaluation_windows(
    lengths: Sequence[int] | Int64, how: Sampling, *, windows: int = WINDOWS, seed: int = 0
) -> Int64:
    """Draw (windows, N, x) positions: window k of every clip is what pass k over the test set sees.

    A clip's windows depend on the seed and its place in the test set alone: not on the other clips,
    and the first ones not on how many are drawn.

    Args:
        lengths: (N,) frames of each segment.
        how: the sampling.
        windows: number for each clip, at least 1; the published evaluation has 20.
        seed: seed of the draws, at least 0.

    Raises:
        ValueError: no clip, no window, or a segment that is too short; names the clip.
    """
    if windows < 1 or len(lengths) == 0:
        raise ValueError(
            f"windows: {windows} of each of {len(lengths)} clips; draw one of one clip at least"
        )
    drawn = np.empty((windows, len(lengths), how.frames), np.int64)
    for clip, length in enumerate(lengths):
        # A generator for each clip keeps its windows as they are when other clips come or go.
        rng = np.random.default_rng([seed, clip])
        try:
            for number in range(windows):
                drawn[number, clip] = draw_window(int(length), how, rng)
        except ValueError as error:
            raise ValueError(f"clip {clip}: {error}") from None
    return drawn
