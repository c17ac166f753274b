"""A parametric eye with its brow: one person's anatomy and a course of muscle actions in, pixels out.

Lengths are in half image widths: x runs from -1 (nose side) to 1 (temple), y from -1 (brow) to 1 (cheek). All
images are reflectances in [0, 1], before any light falls on them; light, camera and events live in `eyes`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TEXTURE_SIDE = (
    512  # texels of the skin texture, which spans [-2, 2) so that moving skin never runs out of it
)


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
    texture: Array  # (TEXTURE_SIDE, TEXTURE_SIDE), mean 0


@dataclass(frozen=True)
class EyeMotion:
    """Muscle actions over time, each of shape (n,). Zero is rest; lengths in half image widths, up positive."""

    brow_in: Array  # inner brow raised
    brow_out: Array  # outer brow raised
    squeeze: Array  # brow drawn to the nose
    lid_up: Array  # upper lid raised
    lid_low: Array  # lower lid pushed up
    cheek: Array  # cheek raised
    wrinkle: Array  # nose wrinkled
    pupil: Array  # pupil radius added
    gaze_x: Array  # to the temple
    gaze_y: Array  # down positive, as in the image
    blink: Array  # 0 open .. 1 shut
    head_x: Array
    head_y: Array  # down positive


def draw_face(rng: np.random.Generator) -> Face:
    """Draw one person's anatomy.

    Args:
        rng: Source of randomness; the same state gives the same face.

    Returns:
        A face whose resting brow height and lid aperture vary as much as the emotions displace them.
    """

    def normal(mean: float, std: float, low: float, high: float) -> float:
        return float(np.clip(rng.normal(mean, std), low, high))

    skin = float(np.exp(rng.uniform(np.log(0.28), np.log(0.7))))
    return Face(
        eye_x=normal(0.04, 0.03, -0.04, 0.12),
        eye_y=normal(0.26, 0.03, 0.18, 0.34),
        eye_half_width=normal(0.64, 0.04, 0.54, 0.74),
        tilt=normal(-0.01, 0.04, -0.1, 0.08),
        open_up=normal(0.25, 0.045, 0.15, 0.36),
        open_low=normal(0.15, 0.03, 0.08, 0.22),
        brow_x=normal(0.02, 0.04, -0.08, 0.12),
        brow_y=normal(-0.36, 0.07, -0.52, -0.2),
        brow_half_width=normal(0.76, 0.06, 0.6, 0.9),
        brow_arch=normal(0.1, 0.04, 0.0, 0.2),
        brow_slope=normal(0.0, 0.05, -0.12, 0.12),
        brow_thickness=normal(0.08, 0.02, 0.045, 0.13),
        brow_darkness=normal(0.65, 0.15, 0.3, 0.92),
        skin=skin,
        iris=float(rng.uniform(0.06, 0.34)),
        iris_radius=normal(0.235, 0.015, 0.2, 0.27),
        pupil_radius=normal(0.09, 0.018, 0.055, 0.125),
        crease=normal(0.1, 0.03, 0.05, 0.17),
        bag=normal(0.15, 0.08, 0.0, 0.35),
        lash=normal(0.09, 0.03, 0.03, 0.16),
        texture=_draw_texture(rng),
    )


def render(face: Face, motion: EyeMotion, size: int) -> Array:
    """Draw a face at every instant of a motion.

    Args:
        face: The anatomy.
        motion: Muscle actions, each of shape (n,).
        size: Height and width in pixels, at least 8.

    Returns:
        Reflectances in [0, 1], float32 of shape (n, size, size).
    """
    pixel = 2.0 / size
    grid = ((np.arange(size, dtype=np.float32) + 0.5) * pixel - 1.0).astype(np.float32)
    # (n, 1, 1) per action, (n, 1, size) for what depends on x only, (n, size, 1) for y only: most of a face is
    # separable, and only a few operations below touch every pixel of every instant.
    m = {f.name: getattr(motion, f.name)[:, None, None] for f in fields(EyeMotion)}
    x = grid[None, None, :] - m["head_x"]
    y = grid[None, :, None] - m["head_y"]

    across = (x - face.eye_x) / face.eye_half_width  # -1 inner corner .. 1 outer corner
    bulge = np.clip(1.0 - across * across, 0.0, None) ** 0.8
    middle = face.eye_y + face.tilt * across
    low = (face.open_low - m["lid_low"]) * (1.0 - 0.3 * m["blink"])
    up = (face.open_up + m["lid_up"]) * (1.0 - m["blink"]) - m["blink"] * low
    upper = middle - np.maximum(up, -low) * bulge
    lower = middle + low * bulge

    along = (x - face.brow_x + m["squeeze"]) / face.brow_half_width  # -1 inner end .. 1 outer end
    inner = np.clip(0.5 - 0.6 * along, 0.0, 1.0)
    lift = inner * m["brow_in"] + (1.0 - inner) * m["brow_out"]
    brow = face.brow_y - face.brow_arch * (1.0 - along * along) + face.brow_slope * along - lift

    image = _skin(face, m, x, y, lift)
    _furrows(image, face, m, x, y, upper, lower, bulge, across)
    # Eyeball and lashes touch only the rows between the highest and the lowest lid: half of the work.
    highest = float(np.min(upper + m["head_y"])) - face.lash - 2.0 * pixel
    lowest = float(np.max(lower + m["head_y"])) + face.lash + 2.0 * pixel
    first, last = (int(np.clip((edge + 1.0) / pixel, 0, size)) for edge in (highest, lowest))
    rows = slice(first, last + 1)
    _eyeball(image[:, rows], face, m, x, y[:, rows], upper, lower, bulge, pixel)
    _lashes(image[:, rows], face, m, x, y[:, rows], upper, bulge, across, pixel)
    thickness = (
        face.brow_thickness * np.sqrt(np.clip(1.0 - along * along, 0.0, 1.0)) * (1.0 - 0.35 * along)
    )
    slant, height = 24.0 * along - 14.0 * brow, 14.0 * y
    hair = 0.9 + 0.1 * (np.sin(slant) * np.cos(height) + np.cos(slant) * np.sin(height))
    cover = _inside(thickness - np.abs(y - brow), 1.5 * pixel) * (face.brow_darkness * hair)
    image *= 1.0 - cover
    return np.clip(image, 0.0, 1.0, out=image)


def _inside(distance: NDArray[Any], width: float) -> Array:
    """Coverage of a pixel by a region whose edge is `distance` away (positive inside), blurred over `width`."""
    result: Array = np.clip(distance * np.float32(1.0 / width) + np.float32(0.5), 0.0, 1.0).astype(
        np.float32, copy=False
    )
    return result


def _bump(position: NDArray[Any], centre: float, width: float) -> Array:
    """Bell of height 1."""
    result: Array = np.exp(-(((position - centre) / width) ** 2)).astype(np.float32, copy=False)
    return result


def _skin(face: Face, m: dict[str, Array], x: Array, y: Array, lift: Array) -> Array:
    """Textured skin that the brow and the cheek pull along, darker in the socket."""
    moved = y + lift * _bump(y, face.brow_y, 0.4) + m["cheek"] * _bump(y, 0.8, 0.3)
    texels = TEXTURE_SIDE / 4.0
    row = ((moved + 2.0) * np.float32(texels)).astype(np.int32)
    column = ((x + 2.0) * np.float32(texels)).astype(np.int32)
    np.clip(row, 0, TEXTURE_SIDE - 1, out=row)
    image: Array = face.texture.ravel()[row * TEXTURE_SIDE + np.clip(column, 0, TEXTURE_SIDE - 1)]
    socket = (
        0.22 * _bump(x, face.eye_x - face.eye_half_width, 0.35) * _bump(y, face.eye_y - 0.25, 0.25)
    )
    image += 1.0
    image *= np.float32(face.skin) * (1.0 - socket)
    return image


def _furrows(
    image: Array,
    face: Face,
    m: dict[str, Array],
    x: Array,
    y: Array,
    upper: Array,
    lower: Array,
    bulge: Array,
    across: Array,
) -> None:
    """Darken the lid crease, the furrow under the eye, and the wrinkles that muscles throw."""
    crease = upper - (face.crease - 0.6 * m["lid_up"]) * np.clip(bulge + 0.2, 0.0, 1.0)
    depth = np.clip(1.0 - np.abs(y - crease) / 0.05, 0.0, None) * (
        0.3 * np.clip(bulge * 2.0, 0.0, 1.0)
    )
    under = lower + 0.13 - 0.5 * m["cheek"]
    bag = (face.bag + 2.2 * m["cheek"]) * _bump(across, 0.0, 0.8)
    depth += np.clip(1.0 - np.abs(y - under) / 0.06, 0.0, None) * bag

    def wrinkles(
        strength: Array, at: tuple[float, float], spread: float, slope: float, waves: float
    ) -> Array:
        # sin(a + b) is written out so that the sines stay one-dimensional.
        a, b = waves * y, waves * slope * x
        pattern = np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b)
        place = _bump(x, at[0], spread) * (_bump(y, at[1], spread) * strength)
        result: Array = np.clip(pattern, 0.0, None) * place
        return result

    nose = face.eye_x - face.eye_half_width
    depth += wrinkles(5.0 * m["wrinkle"], (nose - 0.12, face.eye_y - 0.12), 0.22, 0.5, 24.0)
    depth += wrinkles(2.5 * m["squeeze"], (nose - 0.05, face.brow_y + 0.05), 0.2, 5.0, 6.0)
    depth += wrinkles(3.0 * m["cheek"], (-nose + 0.1, face.eye_y + 0.06), 0.2, -0.4, 26.0)
    image *= 1.0 - np.clip(depth, 0.0, 0.8)


def _eyeball(
    image: Array,
    face: Face,
    m: dict[str, Array],
    x: Array,
    y: Array,
    upper: Array,
    lower: Array,
    bulge: Array,
    pixel: float,
) -> None:
    """Draw white, iris, pupil and glint where the lids leave them open."""
    opening = _inside(y - upper, pixel) * _inside(lower - y, pixel) * (bulge > 0.0)
    ball = 0.66 - 0.25 * np.clip(1.0 - (y - upper) / 0.14, 0.0, 1.0)  # the upper lid's shadow
    dx, dy = x - (face.eye_x + m["gaze_x"]), y - (face.eye_y - 0.04 + m["gaze_y"])
    radius = np.sqrt(dx * dx + dy * dy)
    shade = face.iris * (1.15 - 0.6 * (radius / face.iris_radius) ** 2)  # dark ring at the rim
    ball += (np.clip(shade, 0.02, 1.0) - ball) * _inside(face.iris_radius - radius, pixel)
    ball += (0.02 - ball) * _inside(face.pupil_radius + m["pupil"] - radius, pixel)
    gx, gy = (
        x - (face.eye_x + 0.6 * m["gaze_x"] - 0.08),
        y - (face.eye_y - 0.12 + 0.6 * m["gaze_y"]),
    )
    ball += (0.95 - ball) * _inside(0.045 - np.sqrt(gx * gx + gy * gy), pixel)
    ball -= image
    ball *= opening
    image += ball


def _lashes(
    image: Array,
    face: Face,
    m: dict[str, Array],
    x: Array,
    y: Array,
    upper: Array,
    bulge: Array,
    across: Array,
    pixel: float,
) -> None:
    """Darken the rim of the upper lid and the hairs on it; they hang down when the lid is shut."""
    rim = np.clip(4.0 * bulge, 0.0, 1.0)
    swing = 1.0 - 2.0 * m["blink"]
    reach = face.lash * np.where(
        np.abs(swing) < 0.2, 0.2, swing
    )  # seen end on, hairs are short but not gone
    along = (upper - y) / reach
    comb = 0.5 + 0.5 * np.sin(30.0 * across + 4.0 * across * across)
    hairs = np.clip(1.0 - along, 0.0, 1.0) * (along > 0.0) * (0.55 * comb * rim)
    line = _inside(0.03 - np.abs(y - upper), pixel) * (0.8 * rim)
    image *= 1.0 - np.maximum(hairs, line)


def _draw_texture(rng: np.random.Generator) -> Array:
    """Pores over blotches: smooth noise at three scales, standard deviation about 0.07."""
    texture = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for cells, std in ((24, 0.03), (64, 0.04), (128, 0.05)):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32) * np.float32(std)
        where = np.arange(TEXTURE_SIDE, dtype=np.float32) * np.float32(cells / TEXTURE_SIDE)
        first = where.astype(np.int64)
        second, part = (first + 1) % cells, where - first
        rows = coarse[first] + (coarse[second] - coarse[first]) * part[:, None]
        texture += rows[:, first] + (rows[:, second] - rows[:, first]) * part[None, :]
    return np.clip(texture, -0.25, 0.25, out=texture)
