"""Faces that talk, smile and frown: one speaker's looks and a course of movements in, grey pictures out.

Lengths are in half image widths: x runs from -1 to 1, y from -1 (top) to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NOISE: Final = 0.006  # standard deviation of a pixel's grey, 0..1
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Speaker:
    """What is one person's own. Lengths in half image widths, reflectances 0..1."""

    skin: float
    ink: float  # of brows, eyes and lips
    wall: float
    half_width: float
    half_height: float
    eye_y: float
    brow_y: float
    mouth_y: float
    mouth_half_width: float
    mouth_curve: float  # corners above the middle, at rest
    brow_slope: float  # outer ends below the inner ones, at rest
    strength: float  # of what is expressed
    liveliness: float  # of everything that expresses nothing


@dataclass(frozen=True)
class Motion:
    """What moves over time, each (frames,); 0 is rest, up is positive."""

    corners: Array
    brows: Array
    jaw: Array  # opening of the mouth
    lids: Array  # 0 open .. 1 shut
    head_x: Array
    head_y: Array
    light: Array  # gain of the whole picture


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """One person; at rest people differ about as much as an expression changes them."""
    skin = float(rng.uniform(0.45, 0.8))
    return Speaker(
        skin=skin,
        ink=float(rng.uniform(0.15, 0.55)) * skin,
        wall=float(rng.uniform(0.1, 0.9)),
        half_width=float(rng.uniform(0.58, 0.7)),
        half_height=float(rng.uniform(0.76, 0.9)),
        eye_y=float(rng.uniform(-0.22, -0.12)),
        brow_y=float(rng.uniform(-0.52, -0.42)),
        mouth_y=float(rng.uniform(0.36, 0.46)),
        mouth_half_width=float(rng.uniform(0.28, 0.38)),
        mouth_curve=float(rng.uniform(-0.06, 0.06)),
        brow_slope=float(rng.uniform(-0.15, 0.15)),
        strength=float(rng.uniform(0.8, 1.2)),
        liveliness=float(rng.uniform(0.6, 1.2)),
    )


def draw_motion(rng: np.random.Generator, speaker: Speaker, score: float, frames: int) -> Motion:
    """What a face does in a segment of this score.

    Args:
        rng: source of randomness.
        speaker: whose face.
        score: sentiment, -3..3; its sign is the direction of what is expressed, its size a part of how strongly.
        frames: how many.
    """
    t = np.arange(frames) / max(1, frames - 1)
    begins, lasts = rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.45)
    shown = np.clip((t - begins) / lasts, 0, 1)
    shown = shown * shown * (3 - 2 * shown) * np.sign(score) * speaker.strength
    strength = 0.7 + 0.1 * abs(score)
    lively = speaker.liveliness

    def waves(size: float, slowest: float, fastest: float) -> Array:
        """A wobble about 0 that starts anywhere."""
        turns, phases = rng.uniform(slowest, fastest, 2), rng.uniform(0, 2 * np.pi, 2)
        found: Array = size * lively * np.sin(2 * np.pi * turns * t[:, None] + phases).mean(axis=1)
        return found

    blink = np.exp(-(((t - rng.uniform(-0.3, 1.3)) / 0.06) ** 2))
    return Motion(
        corners=0.1 * strength * shown + waves(0.04, 0.5, 3),
        brows=0.06 * strength * shown * rng.uniform(0, 1) + waves(0.04, 0.3, 2),
        jaw=np.abs(waves(0.16, 1, 4)),
        lids=np.clip(blink, 0, 1),
        head_x=waves(0.05, 0.2, 1),
        head_y=waves(0.06, 0.2, 1.5),
        light=1 + waves(0.03, 0.2, 3),
    )


def film(speaker: Speaker, motion: Motion, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(frames, size, size) luma of a motion, with a camera's noise."""
    pixel = 2 / size
    grid = (np.arange(size) + 0.5) * pixel - 1
    x = grid[None, None, :] - motion.head_x[:, None, None]
    y = grid[None, :, None] - motion.head_y[:, None, None]
    corners, brows, jaw, lids = (
        part[:, None, None] for part in (motion.corners, motion.brows, motion.jaw, motion.lids)
    )

    def cover(inside: Array) -> Array:
        """Of a pixel by what lies `inside` its edge, a length."""
        found: Array = np.clip(inside / (1.5 * pixel) + 0.5, 0, 1)
        return found

    def paint(under: Array, grey: Array | float, inside: Array) -> Array:
        share = cover(inside)
        return under * (1 - share) + grey * share

    side = np.abs(x)  # faces are mirrored
    radius = np.sqrt((x / speaker.half_width) ** 2 + (y / speaker.half_height) ** 2)
    picture = np.broadcast_to(speaker.wall * (1 + 0.1 * grid[None, :, None]), (len(lids), size, size))
    picture = paint(picture, speaker.skin * (1.08 - 0.18 * radius), (1 - radius) * speaker.half_width)
    brow = speaker.brow_y - brows + (speaker.brow_slope + 0.5 * brows) * (side - 0.28)
    reach = 0.17 - np.abs(side - 0.28)
    picture = paint(picture, speaker.ink, np.minimum(0.045 - np.abs(y - brow), reach))
    opening = 0.075 * (1 - 0.9 * lids)
    eye = 1 - np.sqrt(((side - 0.28) / 0.13) ** 2 + ((y - speaker.eye_y) / opening) ** 2)
    picture = paint(picture, 0.6 * speaker.ink, eye * opening)
    along = side / speaker.mouth_half_width
    bow = speaker.mouth_y - (speaker.mouth_curve + corners) * (along**2 - 0.4)
    half = 0.03 + 0.5 * jaw * np.clip(1 - along**2, 0, 1)
    lips = np.minimum(half + 0.025 - np.abs(y - bow - 0.3 * jaw), speaker.mouth_half_width - side)
    picture = paint(picture, 1.3 * speaker.ink, lips)
    picture = paint(picture, 0.5 * speaker.ink, np.minimum(lips - 0.045, half))
    picture = picture * motion.light[:, None, None]
    picture = picture + NOISE * rng.standard_normal(picture.shape)
    found: npt.NDArray[np.uint8] = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return found
