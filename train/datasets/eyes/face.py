"""A parametric eye with its brow.

One person's anatomy and a course of muscle actions go in, pixels come out.

Lengths are in half image widths: x runs from -1 (nose side) to 1 (temple), y from -1 (brow) to 1
(cheek). All images are reflectances in [0, 1], before any light falls on them; light, camera and
events are those of `generate`. People differ in their anatomy and in the style of their
expressions, takes of one person in timing, pose, gaze and blinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from knarr.train.datasets.arrays import AnyArray, Float32, Rng
from knarr.train.datasets.generated import numbers_by_name

# Texels of the skin texture, which spans [-2, 2) so that moving skin never runs out of it.
TEXTURE_SIDE = 512
FRAME_S = 0.033  # SEE's accumulation window
LABELS = ("angry", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


@dataclass(frozen=True)
class Face:
    """Anatomy at rest of one person. Lengths in half image widths, reflectances in [0, 1]."""

    eye_x: float
    eye_y: float
    eye_half_width: float
    tilt: float  # outer corner below the inner one
    open_up: float  # upper lid above the line of the corners
    open_low: float  # lower lid below it
    brow_x: float
    brow_y: float
    brow_half_width: float
    brow_arch: float
    brow_slope: float  # outer end below the inner one
    brow_thickness: float
    brow_darkness: float
    skin: float
    iris: float
    iris_radius: float
    pupil_radius: float
    crease: float  # lid crease above the upper lid
    bag: float  # depth of the furrow below the lower lid
    lash: float  # length of the upper lashes
    texture: Float32  # (TEXTURE_SIDE, TEXTURE_SIDE), mean 0


@dataclass(frozen=True)
class EyeMotion:
    """Muscle actions over time, each of shape (n,).

    Zero is rest; lengths in half image widths, up positive.
    """

    brow_in: Float32  # inner brow raised
    brow_out: Float32  # outer brow raised
    squeeze: Float32  # brow drawn to the nose
    lid_up: Float32  # upper lid raised
    lid_low: Float32  # lower lid pushed up
    cheek: Float32  # cheek raised
    wrinkle: Float32  # nose wrinkled
    pupil: Float32  # pupil radius added
    gaze_x: Float32  # to the temple
    gaze_y: Float32  # down positive, as in the image
    blink: Float32  # 0 open .. 1 shut
    head_x: Float32
    head_y: Float32  # down positive


# The actions that an emotion moves, and the full displacement of each; at 48 pixels 0.1 is 2.4
# pixels.
REACH = numbers_by_name("""
    brow_in   0.20
    brow_out  0.19
    squeeze   0.13
    lid_up    0.13
    lid_low   0.11
    cheek     0.13
    wrinkle   0.12
    pupil     0.06
    gaze_y    0.18
""")

# The overlaps are meant: fear and surprise share brow and lid, anger and disgust share the lowered
# brow, happiness and disgust the pushed lower lid, sadness and fear the inner brow.
EXPRESSIONS = numbers_by_name("""
    angry      -1.0   -0.6   0.8    0.15   0.55  0.0   0.1  -0.2   0.0   0.18  0.45  0.8
    disgust    -0.55  -0.3   0.45  -0.35   0.75  0.35  1.0  -0.1   0.1   0.26  0.35  0.6
    fear        0.9    0.2   0.8    0.85   0.25  0.0   0.0   1.0   0.0   0.3   0.6   0.9
    happiness   0.0    0.1   0.0   -0.4    0.9   1.0   0.1   0.0   0.0   0.28  0.5   0.8
    neutral     0.0    0.0   0.0    0.0    0.0   0.0   0.0   0.0   0.0   0.3   0.4   0.5
    sadness     0.7   -0.2   0.25  -0.7    0.05  0.0   0.0   0.0   0.9   0.42  0.6   0.9
    surprise    0.85   1.0   0.0    0.95  -0.1   0.0   0.0   0.2  -0.1   0.1   0.2   0.35
""")
"""Each emotion: how far each action of REACH goes (signed share of its reach), and when.

The last three numbers are the mean seconds from rest to full expression, the mean seconds that it
stays before it eases, and the share of it that is left after easing.
"""

# Mean, standard deviation, and the least and the greatest value of each length; each takes the next
# random number, so the order of the lines decides who is drawn.
_LIDS_AND_BROW = numbers_by_name("""
    eye_x            0.04  0.03   -0.04   0.12
    eye_y            0.26  0.03    0.18   0.34
    eye_half_width   0.64  0.04    0.54   0.74
    tilt            -0.01  0.04   -0.1    0.08
    open_up          0.25  0.045   0.15   0.36
    open_low         0.15  0.03    0.08   0.22
    brow_x           0.02  0.04   -0.08   0.12
    brow_y          -0.36  0.07   -0.52  -0.2
    brow_half_width  0.76  0.06    0.6    0.9
    brow_arch        0.1   0.04    0.0    0.2
    brow_slope       0.0   0.05   -0.12   0.12
    brow_thickness   0.08  0.02    0.045  0.13
    brow_darkness    0.65  0.15    0.3    0.92
""")
_EYEBALL_AND_SKIN = numbers_by_name("""
    iris_radius      0.235  0.015  0.2    0.27
    pupil_radius     0.09   0.018  0.055  0.125
    crease           0.1    0.03   0.05   0.17
    bag              0.15   0.08   0.0    0.35
    lash             0.09   0.03   0.03   0.16
""")


@dataclass(frozen=True)
class Style:
    """One person's way to express: gain per emotion and action, and a personal speed.

    Attributes:
        gain: float32 of shape (len(LABELS), len(REACH)).
        pace: Factor on every duration.
    """

    gain: Float32
    pace: float


def draw_face(rng: Rng) -> Face:
    """Draw one person's anatomy.

    Args:
        rng: Source of randomness; the same state gives the same face.

    Returns:
        A face whose resting brow height and lid aperture vary as much as the emotions displace
        them.
    """

    def draw(table: Mapping[str, Sequence[float]]) -> dict[str, float]:
        drawn = {}
        for name, (mean, std, low, high) in table.items():
            drawn[name] = float(np.clip(rng.normal(mean, std), low, high))
        return drawn

    # Here too the order decides who is drawn.
    skin = float(np.exp(rng.uniform(np.log(0.28), np.log(0.7))))
    lids_and_brow = draw(_LIDS_AND_BROW)
    iris = float(rng.uniform(0.06, 0.34))
    eyeball_and_skin = draw(_EYEBALL_AND_SKIN)
    texture = _draw_texture(rng)
    return Face(**lids_and_brow, **eyeball_and_skin, skin=skin, iris=iris, texture=texture)


def _draw_texture(rng: Rng) -> Float32:
    """Draw pores over blotches: smooth noise at three scales, standard deviation about 0.07."""
    texture = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for cells, std in ((24, 0.03), (64, 0.04), (128, 0.05)):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32) * std
        where = np.arange(TEXTURE_SIDE, dtype=np.float32) * (cells / TEXTURE_SIDE)
        first = where.astype(np.int64)
        # Behind the last cell comes the first again, so that the texture has no edge.
        second, part = (first + 1) % cells, where - first
        rows = coarse[first] + (coarse[second] - coarse[first]) * part[:, None]
        texture += rows[:, first] + (rows[:, second] - rows[:, first]) * part[None, :]
    return np.clip(texture, -0.25, 0.25, out=texture)


def draw_style(rng: Rng) -> Style:
    """Draw one person's style of expressing: some barely move, some leave an action out."""
    strength = rng.uniform(0.75, 1.2)
    gain = strength * np.exp(rng.normal(0.0, 0.25, (len(LABELS), len(REACH))))
    gain[rng.random(gain.shape) < 0.06] = 0.0
    return Style(gain.astype(np.float32), float(np.exp(rng.normal(0.0, 0.2))))


# --- motion


def draw_motion(rng: Rng, style: Style, label: str, frames: int, rate: int) -> EyeMotion:
    """Draw one take of an emotion in this person's style.

    Drift, saccades, blinks and pose are added to the emotion's actions.

    Args:
        rng: Source of randomness; the same state gives the same take.
        style: The person's style.
        label: One of LABELS.
        frames: Length in frames of FRAME_S.
        rate: Instants per frame.

    Returns:
        Actions at ``frames * rate + 1`` instants: the state before the first frame, then each
        sub-frame's.
    """
    *shares, rise_s, hold_s, ease = EXPRESSIONS[label]
    t = (np.arange(frames * rate + 1) / rate).astype(np.float32)  # in frames
    scale = style.pace * float(np.exp(rng.normal(0.0, 0.2))) / FRAME_S
    onset = rng.uniform(0.08, 0.3) * frames
    gains = style.gain[LABELS.index(label)] * rng.uniform(0.7, 1.15)
    held = (rise_s + hold_s) * scale
    actions: dict[str, AnyArray] = {}
    for (name, (reach,)), share, gain in zip(REACH.items(), shares, gains, strict=True):
        start = onset + rng.normal(0.0, 0.6)  # muscles do not start together
        risen = _smooth((t - start) / (rise_s * scale))
        eased = _smooth((t - start - held) / (0.25 * scale))
        course = risen * (1.0 - (1.0 - ease) * eased)
        # The resting pose of the take and its drift are as large as what the emotion does to one
        # frame.
        pose = rng.normal(0.0, 0.2) + 0.09 * _wander(rng, t, frames)
        if name in ("squeeze", "cheek", "wrinkle"):  # muscles that only pull one way
            pose = np.clip(pose, 0.0, None)
        action = reach * (share * gain * course + pose)
        actions[name] = action.astype(np.float32)
    actions["gaze_x"] = 0.12 * rng.normal() + _saccades(rng, t, frames)
    actions["gaze_y"] += 0.5 * _saccades(rng, t, frames)
    actions["blink"] = _blinks(rng, t, frames, 1.2 if label == "neutral" else 0.5)
    actions["head_x"] = rng.normal(0.0, 0.02) + 0.02 * _wander(rng, t, frames)
    actions["head_y"] = rng.normal(0.0, 0.03) + 0.02 * _wander(rng, t, frames)
    return EyeMotion(**{name: action.astype(np.float32) for name, action in actions.items()})


def _smooth(u: AnyArray) -> AnyArray:
    """Return a smooth step from 0 at u <= 0 to 1 at u >= 1."""
    v = np.clip(u, 0.0, 1.0)
    return np.asarray(v * v * (3.0 - 2.0 * v))


def _wander(rng: Rng, t: Float32, frames: int) -> Float32:
    """Draw a slow drift of deviation about 1: two sines of random period and phase."""
    drift = np.zeros_like(t)
    for _ in range(2):
        period = rng.uniform(0.5, 2.0) * max(frames, 12)
        turns = t / period + rng.random()
        drift += np.sin(2.0 * np.pi * turns).astype(np.float32)
    return drift


def _saccades(rng: Rng, t: Float32, frames: int) -> Float32:
    """Draw jumps of the gaze, about one a second, each done in about a frame."""
    gaze = np.zeros_like(t)
    for _ in range(rng.poisson(frames * FRAME_S)):
        jump = rng.normal(0.0, 0.1)
        gaze += jump * _smooth((t - rng.uniform(0.0, frames)) / 1.2)
    return gaze


def _blinks(rng: Rng, t: Float32, frames: int, per_s: float) -> Float32:
    """Draw blinks at a mean rate: shut in about 80 ms, open in about 150 ms; some stop half way."""
    blink = np.zeros_like(t)
    for _ in range(rng.poisson(frames * FRAME_S * per_s)):
        start = rng.uniform(-2.0, frames)
        shut, opened = rng.uniform(2.0, 3.0), rng.uniform(3.5, 6.0)
        course = _smooth((t - start) / shut) - _smooth((t - start - shut - 0.5) / opened)
        blink = np.maximum(blink, rng.uniform(0.8, 1.0) * course)
    return blink.astype(np.float32)


# --- drawing


def render(face: Face, motion: EyeMotion, size: int) -> Float32:
    """Draw a face at every instant of a motion.

    Args:
        face: The anatomy.
        motion: Muscle actions, each of shape (n,).
        size: Height and width in pixels, at least 8.

    Returns:
        Reflectances in [0, 1], float32 of shape (n, size, size).
    """
    pixel = 2.0 / size
    grid = (np.arange(size, dtype=np.float32) + 0.5) * pixel - 1.0
    # (n, 1, 1) per action, (n, 1, size) for what depends on x only, (n, size, 1) for y only: most
    # of a face is separable, and only a few operations below touch every pixel of every instant.
    m = EyeMotion(**{f.name: getattr(motion, f.name)[:, None, None] for f in fields(motion)})
    x = grid[None, None, :] - m.head_x
    y = grid[None, :, None] - m.head_y

    across = (x - face.eye_x) / face.eye_half_width  # -1 inner corner .. 1 outer corner
    bulge = np.clip(1.0 - across * across, 0.0, None) ** 0.8
    middle = face.eye_y + face.tilt * across
    low = (face.open_low - m.lid_low) * (1.0 - 0.3 * m.blink)
    # A blink takes the upper lid down to the lower one, which hardly moves.
    up = (face.open_up + m.lid_up) * (1.0 - m.blink) - m.blink * low
    upper = middle - np.maximum(up, -low) * bulge
    lower = middle + low * bulge

    along = (x - face.brow_x + m.squeeze) / face.brow_half_width  # -1 inner end .. 1 outer end
    arch = 1.0 - along * along
    inner = np.clip(0.5 - 0.6 * along, 0.0, 1.0)
    lift = inner * m.brow_in + (1.0 - inner) * m.brow_out
    brow = face.brow_y - face.brow_arch * arch + face.brow_slope * along - lift

    image = _skin(face, m, x, y, lift)
    lids = _Lids(x, y, upper, lower, bulge, across, pixel)
    image *= 1.0 - _furrows(face, m, lids)
    # Eyeball and lashes touch only the rows between the highest and the lowest lid: half of the
    # work.
    highest = float(np.min(upper + m.head_y)) - face.lash - 2.0 * pixel
    lowest = float(np.max(lower + m.head_y)) + face.lash + 2.0 * pixel
    first, last = (int(np.clip((edge + 1.0) / pixel, 0, size)) for edge in (highest, lowest))
    rows = slice(first, last + 1)
    part, between = image[:, rows], lids._replace(y=y[:, rows])
    ball, opening = _eyeball(face, m, between)
    part += (ball - part) * opening
    part *= 1.0 - _lashes(face, m, between)

    thickness = face.brow_thickness * np.sqrt(np.clip(arch, 0.0, 1.0)) * (1.0 - 0.35 * along)
    slant, height = 24.0 * along - 14.0 * brow, 14.0 * y
    hair = 0.9 + 0.1 * (np.sin(slant) * np.cos(height) + np.cos(slant) * np.sin(height))
    cover = _inside(thickness - np.abs(y - brow), 1.5 * pixel) * (face.brow_darkness * hair)
    image *= 1.0 - cover
    return np.clip(image, 0.0, 1.0, out=image)


class _Lids(NamedTuple):
    """Place of the lids: pixel coordinates, edges, and the course from corner to corner.

    Attributes:
        x, y: (n, 1, size) and (n, size, 1) coordinates of the pixels on the moving head.
        upper, lower: (n, 1, size) y of the lids' edges.
        bulge: (n, 1, size) share of the opening, 1 in the middle of the eye, 0 at and outside the
            corners.
        across: (n, 1, size) from -1 at the inner corner to 1 at the outer one.
        pixel: side of a pixel.
    """

    x: AnyArray
    y: AnyArray
    upper: AnyArray
    lower: AnyArray
    bulge: AnyArray
    across: AnyArray
    pixel: float


def _inside(distance: AnyArray, width: float) -> AnyArray:
    """Return a pixel's coverage by a region whose edge is `distance` away, positive inside.

    The edge is blurred over `width`.
    """
    return np.clip(distance * (1.0 / width) + 0.5, 0.0, 1.0)


def _bump(position: Float32, centre: float, width: float) -> Float32:
    """Return a bell of height 1."""
    return np.exp(-(((position - centre) / width) ** 2))


def _skin(face: Face, m: EyeMotion, x: AnyArray, y: AnyArray, lift: AnyArray) -> Float32:
    """Return textured skin that the brow and the cheek pull along, darker in the socket."""
    moved = y + lift * _bump(y, face.brow_y, 0.4) + m.cheek * _bump(y, 0.8, 0.3)
    texels = TEXTURE_SIDE / 4.0
    row = ((moved + 2.0) * texels).astype(np.int32).clip(0, TEXTURE_SIDE - 1)
    column = ((x + 2.0) * texels).astype(np.int32).clip(0, TEXTURE_SIDE - 1)
    # One flat index is much faster than a pair of them.
    image: Float32 = face.texture.ravel()[row * TEXTURE_SIDE + column]
    nose = face.eye_x - face.eye_half_width
    socket = 0.22 * _bump(x, nose, 0.35) * _bump(y, face.eye_y - 0.25, 0.25)
    image += 1.0
    image *= face.skin * (1.0 - socket)
    return image


def _furrows(face: Face, m: EyeMotion, lids: _Lids) -> AnyArray:
    """Return how much furrows darken the skin.

    They are the lid crease, the furrow under the eye, and the wrinkles that muscles throw.
    """
    x, y, upper, lower, bulge, across, _ = lids
    crease = upper - (face.crease - 0.6 * m.lid_up) * np.clip(bulge + 0.2, 0.0, 1.0)
    line = np.clip(1.0 - np.abs(y - crease) / 0.05, 0.0, None)
    depth = line * (0.3 * np.clip(bulge * 2.0, 0.0, 1.0))
    under = lower + 0.13 - 0.5 * m.cheek
    bag = (face.bag + 2.2 * m.cheek) * _bump(across, 0.0, 0.8)
    depth += np.clip(1.0 - np.abs(y - under) / 0.06, 0.0, None) * bag
    nose = face.eye_x - face.eye_half_width
    # Strength, where (x, y), over which radius, with which slope and how many waves.
    for strength, at_x, at_y, radius, slope, waves in (
        (5.0 * m.wrinkle, nose - 0.12, face.eye_y - 0.12, 0.22, 0.5, 24.0),
        (2.5 * m.squeeze, nose - 0.05, face.brow_y + 0.05, 0.2, 5.0, 6.0),
        (3.0 * m.cheek, -nose + 0.1, face.eye_y + 0.06, 0.2, -0.4, 26.0),
    ):
        # sin(a + b) is written out so that the sines stay one-dimensional.
        a, b = waves * y, waves * slope * x
        pattern = np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b)
        place = _bump(x, at_x, radius) * (_bump(y, at_y, radius) * strength)
        depth += np.clip(pattern, 0.0, None) * place
    return np.clip(depth, 0.0, 0.8)


def _eyeball(face: Face, m: EyeMotion, lids: _Lids) -> tuple[AnyArray, AnyArray]:
    """Return white, iris, pupil and glint, and how far the lids leave each pixel of them open."""
    x, y, upper, lower, bulge, _, pixel = lids
    opening = _inside(y - upper, pixel) * _inside(lower - y, pixel) * (bulge > 0.0)
    ball = 0.66 - 0.25 * np.clip(1.0 - (y - upper) / 0.14, 0.0, 1.0)  # the upper lid's shadow
    dx, dy = x - (face.eye_x + m.gaze_x), y - (face.eye_y - 0.04 + m.gaze_y)
    radius = np.sqrt(dx * dx + dy * dy)
    shade = face.iris * (1.15 - 0.6 * (radius / face.iris_radius) ** 2)  # dark ring at the rim
    ball += (np.clip(shade, 0.02, 1.0) - ball) * _inside(face.iris_radius - radius, pixel)
    ball += (0.02 - ball) * _inside(face.pupil_radius + m.pupil - radius, pixel)
    # The glint is a lamp's: it follows the gaze only in part.
    glint_x = x - (face.eye_x + 0.6 * m.gaze_x - 0.08)
    glint_y = y - (face.eye_y - 0.12 + 0.6 * m.gaze_y)
    glint = np.sqrt(glint_x * glint_x + glint_y * glint_y)
    ball += (0.95 - ball) * _inside(0.045 - glint, pixel)
    return ball, opening


def _lashes(face: Face, m: EyeMotion, lids: _Lids) -> AnyArray:
    """Return how much the rim of the upper lid and the hairs on it darken.

    The hairs hang down when the lid is shut.
    """
    _, y, upper, _, bulge, across, pixel = lids
    rim = np.clip(4.0 * bulge, 0.0, 1.0)
    swing = 1.0 - 2.0 * m.blink
    # Seen end on, hairs are short but not gone.
    reach = face.lash * np.where(np.abs(swing) < 0.2, 0.2, swing)
    along = (upper - y) / reach
    comb = 0.5 + 0.5 * np.sin(30.0 * across + 4.0 * across * across)
    hairs = np.clip(1.0 - along, 0.0, 1.0) * (along > 0.0) * (0.55 * comb * rim)
    line = _inside(0.03 - np.abs(y - upper), pixel) * (0.8 * rim)
    return np.maximum(hairs, line)
