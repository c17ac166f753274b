"""Event-camera recordings, and what a network is fed from them: binary time bins or count frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class EventRecordings:
    """Recordings of events laid end to end.

    Args:
        x, y: (events,) pixel column and row, 0..width-1 and 0..height-1.
        p: (events,) polarity, 0 or 1.
        t_us: (events,) microseconds since the recording began, rising within a recording.
        offsets: (recordings + 1,) where each recording begins and ends.
        labels: (recordings,) class.
        names: one per recording.
        height, width: of the sensor.
    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.uint8]
    p: npt.NDArray[np.uint8]
    t_us: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Jitter:
    """Random affine motion of a recording's pixels: the augmentation for small event sets.

    Args:
        rotation_deg: largest rotation either way, degrees.
        scale: largest relative change of size.
        shift_px: largest shift along each axis, pixels.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    shift_px: float = 0.0


def bin_counts(
    recordings: EventRecordings,
    indices: npt.NDArray[np.int64],
    timesteps: int,
    bin_us: int,
    *,
    jitter: Jitter | None = None,
    rng: np.random.Generator | None = None,
) -> npt.NDArray[np.int32]:
    """Count events per time bin, polarity and pixel.

    Args:
        recordings: where from.
        indices: (B,) which recordings.
        timesteps: number of bins, T; events after the last bin are left out.
        bin_us: length of a bin, microseconds.
        jitter: random motion of each recording, None for none; needs `rng`. Events moved off the sensor are lost.
        rng: source of the motion.

    Returns:
        (B, T, 2, height, width) counts.
    """
    lengths = recordings.offsets[indices + 1] - recordings.offsets[indices]
    owner = np.repeat(np.arange(len(indices)), lengths)
    # One flat index list over all chosen recordings: start of each, plus the position within it.
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    events = np.repeat(recordings.offsets[indices], lengths) + position
    x, y = recordings.x[events].astype(np.int64), recordings.y[events].astype(np.int64)
    if jitter is not None:
        if rng is None:
            raise ValueError("jitter: needs a random generator; pass rng")
        x, y = _move(x, y, owner, len(indices), recordings, jitter, rng)
    step = recordings.t_us[events] // bin_us
    keep = (step < timesteps) & (x >= 0) & (x < recordings.width) & (y >= 0) & (y < recordings.height)
    shape = (len(indices), timesteps, 2, recordings.height, recordings.width)
    flat = np.ravel_multi_index(tuple(a[keep] for a in (owner, step, recordings.p[events], y, x)), shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.int32)


def _move(
    x: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    count: int,
    recordings: EventRecordings,
    jitter: Jitter,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    angle = np.deg2rad(rng.uniform(-jitter.rotation_deg, jitter.rotation_deg, count))
    size = 1 + rng.uniform(-jitter.scale, jitter.scale, count)
    shift_x, shift_y = rng.uniform(-jitter.shift_px, jitter.shift_px, (2, count))
    cosine, sine = (size * np.cos(angle))[owner], (size * np.sin(angle))[owner]
    centre_x, centre_y = (recordings.width - 1) / 2, (recordings.height - 1) / 2
    dx, dy = x - centre_x, y - centre_y
    moved_x = cosine * dx - sine * dy + centre_x + shift_x[owner]
    moved_y = sine * dx + cosine * dy + centre_y + shift_y[owner]
    return np.rint(moved_x).astype(np.int64), np.rint(moved_y).astype(np.int64)
