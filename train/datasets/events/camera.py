"""Simulate the event camera of Spiking Emotions on grey frames (CEUR-WS 3331, paper 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

from knarr.train.datasets.arrays import AnyArray, Bools, Float32, UInt8
from knarr.train.errors import DataError

PUBLISHED_DENSITY = 0.1079
"""Share of event elements that the paper reports for its data; compare `Events.density`."""


@dataclass(frozen=True)
class Dvs:
    """Settings of the simulated camera.

    The defaults are the published ones, but for `resize`, which is not known.

    Args:
        sensitivity: an event is a change of grey strictly larger than this; grey in [0, 1], the
            value in [0, 1). One level of an 8-bit pixel is 1/255, so at the published 0.001 every
            change is an event.
        size: height and width of the result in pixels; None keeps those of the frames.
        frames: how many frames are looked at, T; None for all of them.
        resize: "before_diff" resizes the grey frames. "after_diff" takes events from the frames as
            they are; a pixel of the result then has an event where any pixel it covers has one.
        grey_first: the first step shows the first frame on both channels. Without it (the
            pure-spike variant) there are T - 1 steps, of events only.
        drop_short: refuse a clip of fewer than `frames` frames; otherwise empty event steps are
            appended.

    Raises:
        ValueError: a value is out of its range.
    """

    sensitivity: float = 0.001
    size: int | None = 128
    frames: int | None = 68
    resize: Literal["before_diff", "after_diff"] = "before_diff"
    grey_first: bool = True
    drop_short: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.sensitivity < 1:
            raise ValueError(
                f"sensitivity: {self.sensitivity} outside [0, 1); give a share of the grey range"
            )
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: {self.size} < 1 pixel; give a side in pixels")
        if self.frames is not None and self.frames < 2:
            raise ValueError(f"frames: {self.frames} < 2; an event is a difference of two frames")
        if self.resize not in ("before_diff", "after_diff"):
            raise ValueError(
                f"resize: {self.resize!r} is neither 'before_diff' nor 'after_diff'; name one"
            )


@dataclass(frozen=True, eq=False)
class Events:
    """Output of the camera.

    Attributes:
        first: (H, W) uint8 luma of the first frame; None in the pure-spike variant.
        spikes: (T - 1, 2, H, W) uint8, 0 or 1: channel 0 brighter (ON), channel 1 darker (OFF).
        shown: event steps that stem from frames; those after are padding.
        fps: frames a second, measured from the time stamps; None where the frames came without.
    """

    first: UInt8 | None
    spikes: UInt8
    shown: int
    fps: float | None = None

    @property
    def frames(self) -> Float32:
        """(T, 2, H, W), or (T - 1, 2, H, W) in the pure-spike variant: what the network is fed."""
        steps = self.spikes.astype(np.float32)
        if self.first is None:
            return steps
        grey = self.first.astype(np.float32) / np.float32(255)
        return np.concatenate([np.stack([grey, grey])[None], steps])

    @property
    def density(self) -> float:
        """Share of elements of the event steps that are events, padding left out."""
        return density(self.spikes[: self.shown])


def simulate(frames: Iterable[AnyArray], camera: Dvs, *, source: str = "frames") -> Events:
    """Turn grey frames into polarity events, holding two frames at a time.

        x[0] = (g[0], g[0]);  x[t] = (g[t] - g[t-1] > sensitivity, g[t] - g[t-1] < -sensitivity)

    Args:
        frames: T arrays (H, W), or one of (T, H, W): uint8 luma, g = luma / 255, compared exactly.
        camera: settings.
        source: what errors call the frames, such as a file name.

    Raises:
        ValueError: a frame is not uint8, or not (H, W).
        DataError: no frames; too few, with ``drop_short``; sizes differ.
    """
    first: UInt8 | None = None
    before = np.empty((0, 0), np.uint8)
    steps: list[Bools] = []
    levels = threshold_levels(camera.sensitivity)
    # Not one frame more is pulled than is looked at, for a video would decode it.
    for number, frame in enumerate(islice(frames, camera.frames), start=1):
        if frame.ndim != 2 or frame.size == 0:
            raise ValueError(
                f"{source}: frame of shape {frame.shape}, not (H, W); give one grey channel"
            )
        if frame.dtype != np.uint8:
            raise ValueError(f"{source}: frames of {frame.dtype}; give uint8 luma")
        grey = frame
        if camera.resize == "before_diff" and camera.size is not None:
            grey = resize_grey(frame, camera.size)
        if first is None:
            first = grey if camera.size is None else resize_grey(grey, camera.size)
            frame_shape = frame.shape
        elif frame.shape != frame_shape:
            raise DataError(
                source,
                f"changing size: {frame.shape} after {frame_shape}; cut the video where it changes",
                f"frame {number}",
            )
        else:
            # In 16 bits, for the difference of two 8-bit levels has a sign.
            change = grey.astype(np.int16) - before
            events = np.stack([change >= levels, change <= -levels])
            steps.append(shrink_any(events, first.shape))
        before = grey
    if first is None:
        raise DataError(source, "no frames: not one; check the video and the times")
    shown = len(steps)
    wanted = shown if camera.frames is None else camera.frames - 1
    if shown < wanted and camera.drop_short:
        raise DataError(
            source,
            f"short clip: {shown + 1} of {camera.frames} frames; pad it (drop_short=False) or ask for fewer",
        )
    spikes = np.zeros((wanted, 2, *first.shape), np.uint8)
    if steps:
        spikes[:shown] = steps
    return Events(first if camera.grey_first else None, spikes, shown)


def threshold_levels(sensitivity: float) -> int:
    """Return the smallest difference of 8-bit levels that is an event.

    It is the first k of 1 .. 255 with k / 255 > sensitivity.
    """
    return next(level for level in range(1, 256) if level / 255 > sensitivity)


def resize_grey(frame: UInt8, size: int) -> UInt8:
    """Resize luma (H, W) to (size, size) by antialiased linear interpolation.

    The aspect ratio is given up; levels are rounded to whole ones, so that what follows is exact.
    """
    if frame.shape == (size, size):
        return frame
    image = Image.fromarray(frame)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def shrink_any(events: Bools, shape: tuple[int, ...]) -> Bools:
    """Resize (C, H, W) to (C, *shape).

    A pixel is set where any that it covers, in part or whole, is set.
    """
    for axis, size in enumerate(shape, start=1):
        length = events.shape[axis]
        if length == size:
            continue
        parts = []
        for i in range(size):
            # Pixel i covers [i, i + 1) * length / size; in whole numbers, so that no edge is
            # rounded away.
            first, last = i * length // size, -((i + 1) * length // -size)
            parts.append(np.take(events, range(first, last), axis).any(axis))
        events = np.stack(parts, axis)
    return events


def density(spikes: UInt8) -> float:
    """Return the share of elements that are events, 0 .. 1; 0 where there is no element."""
    return np.count_nonzero(spikes) / spikes.size if spikes.size else 0.0
