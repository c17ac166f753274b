"""Generate single-eye emotion data in the SEE layout.

People, takes and lights are drawn, filmed by an event camera and written as JPEG files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from knarr.train.datasets.arrays import Float32, Rng, UInt8
from knarr.train.datasets.eyes.face import LABELS, draw_face, draw_motion, draw_style, render
from knarr.train.datasets.generated import check_range, check_seed, new_folder
from knarr.train.datasets.see.tree import LIGHTS

DEGREES = ("undergraduate", "Master", "Doctor")
RATE = 4  # sub-frames per frame, at which the event camera samples
QUALITY = 95  # of the JPEGs: every event survives the thresholds of `see.sequences`

THRESHOLD = 0.22  # log-intensity step of one event, of the order of a DAVIS346's
MISMATCH = 0.12  # relative standard deviation of the threshold over pixels
NOISE_PER_FRAME = 0.002  # background events per pixel and frame in normal light
DARK = 0.02  # intensity below which the logarithm flattens, as photoreceptors do

# How bright each light is, from the least to the most of normal light; HDR's is that beyond the
# shadow.
BRIGHTNESS = {
    "normal": (0.8, 1.2),
    "Overexposed": (1.6, 2.1),
    "Low": (0.15, 0.25),
    "HDR": (1.4, 2.0),
}

# What keeps the streams of random numbers of one seed apart.
_SPLIT, _PERSON, _TAKE = range(3)


def generate(
    root: Path,
    *,
    subjects: int = 40,
    takes_per_emotion: int = 2,
    test_fraction: float = 0.25,
    frames: int = 24,
    size: int = 48,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of procedural eyes in the SEE layout.

    The folder appears complete or not at all: everything is written beside it and renamed at the
    end. What a killed run left there is removed first. One process at a time may write a given
    root.

    Args:
        root: Folder to create; it must not exist. Missing parents are created.
        subjects: People, 2 to 999. Each is in the training or in the test subset, never in both.
        takes_per_emotion: Sequences per person and emotion, 1 to 999.
        test_fraction: Share of the people in the test subset, in (0, 1); at least one person is on
            either side.
        frames: Frames of 33 ms per sequence, at least 1.
        size: Height and width of the images in pixels, 8 to 512.
        seed: Not negative. The same seed and settings give the same bytes (with the same libraries
            and processor); more people or takes leave the images of the others as they are.
        progress: Called as ``progress(done, total)`` after every sequence.

    Raises:
        ValueError: An argument is out of its range.
        DataError: `root` exists.
    """
    check_range("subjects", subjects, 2, 999)
    check_range("takes_per_emotion", takes_per_emotion, 1, 999)
    check_range("frames", frames, 1, 99_999)
    check_range("size", size, 8, 512)
    check_seed(seed)
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(
            f"test_fraction: {test_fraction} outside (0, 1); some people must be on either side"
        )
    n_test = min(max(round(subjects * test_fraction), 1), subjects - 1)
    order = np.random.default_rng([seed, _SPLIT]).permutation(subjects)
    testing = set(order[:n_test].tolist())
    total = subjects * len(LABELS) * takes_per_emotion
    database: dict[str, dict[str, object]] = {}
    with new_folder(root) as folder:
        for person in range(subjects):
            rng = np.random.default_rng([seed, _PERSON, person])
            face, style = draw_face(rng), draw_style(rng)
            sex = ("man", "woman")[int(rng.integers(2))]
            degree = DEGREES[int(rng.integers(len(DEGREES)))]
            age = int(rng.integers(19, 60))
            # Lights are dealt to a round of takes like cards, so that no emotion is known by its
            # light.
            deal = np.arange(len(LABELS)) + rng.integers(len(LIGHTS))
            lights = [rng.permutation(deal + take) for take in range(takes_per_emotion)]
            for kind, label in enumerate(LABELS):
                for take in range(takes_per_emotion):
                    number = len(database) + 1
                    light = LIGHTS[lights[take][kind] % len(LIGHTS)]
                    name = f"{number}_{person + 1:03d}_{sex}_{age}_{degree}_{light}_{label}_{frames}_take{take:03d}"
                    # A stream of its own: more people or takes leave this one as it is.
                    stream = np.random.default_rng([seed, _TAKE, person, kind, take])
                    motion = draw_motion(stream, style, label, frames, RATE)
                    intensity = render(face, motion, size) * illuminate(stream, light, size)
                    events = sense(intensity, stream, light=light)
                    # Mid-grey where nothing happened; index -1 is the last entry: OFF.
                    grey = np.array([127, 255, 0], np.uint8)[events]
                    _write_images(folder / "event" / label / name, grey)
                    _write_images(folder / "frame" / label / name, expose(intensity, stream))
                    database[name] = {
                        "subset": "testing" if person in testing else "training",
                        "annotations": {"label": label, "segment": [0, frames]},
                    }
                    if progress is not None:
                        progress(number, total)
        index = json.dumps({"labels": list(LABELS), "database": database}, indent=1)
        (folder / "emotion.json").write_text(index + "\n", encoding="utf-8")


def illuminate(rng: Rng, light: str, size: int) -> Float32:
    """Draw the light on the scene.

    Returns:
        Gain per pixel, float32 of shape (1, size, size); 1 is normal light.
    """
    grid = (np.arange(size, dtype=np.float32) + 0.5) * 2.0 / size - 1.0
    angle = rng.uniform(0.0, 2.0 * np.pi)
    ramp = np.float32(np.cos(angle)) * grid[None, :] + np.float32(np.sin(angle)) * grid[:, None]
    field = np.exp(rng.uniform(0.05, 0.3) * ramp)
    low, high = BRIGHTNESS[light]
    if light == "HDR":  # a hard shadow across the face
        away = ramp - rng.uniform(-0.4, 0.4)
        edge = 1.0 / (1.0 + np.exp(-away / 0.12))
        field *= 0.3 + rng.uniform(low, high) * edge
    else:
        field *= rng.uniform(low, high)
    return field[None].astype(np.float32)


def sense(intensity: Float32, rng: Rng, *, light: str) -> npt.NDArray[np.int8]:
    """Turn intensity into events the way a dynamic vision sensor does.

    A pixel remembers the logarithm of the intensity at its last event and fires ON (OFF) when the
    present one is a threshold above (below) it; the memory moves by whole thresholds.

    Args:
        intensity: Linear light of shape (1 + frames * RATE, H, W), not negative; 1 is a white page
            in normal light.
        rng: Source of threshold mismatch and background events.
        light: One of LIGHTS; little light means noise.

    Returns:
        The last event of each pixel and frame, int8 of shape (frames, H, W): 1 ON, -1 OFF, 0 none.
    """
    level = np.log(intensity + DARK)
    n, height, width = level.shape
    gain = THRESHOLD * (1.0 + MISMATCH * rng.standard_normal((2, height, width), dtype=np.float32))
    # A pixel far out in the noise would otherwise fire at every change, or at none.
    on, off = np.clip(gain, 0.4 * THRESHOLD, None)
    start = rng.random((height, width), dtype=np.float32) - 0.5
    memory = level[0] + THRESHOLD * start
    last = np.zeros(((n - 1) // RATE, height, width), np.int8)
    for k in range(1, n):
        change = level[k] - memory
        # Truncation toward zero is what makes "a whole threshold" of either sign.
        up = np.trunc(np.maximum(change, 0.0) / on)
        down = np.trunc(np.maximum(-change, 0.0) / off)
        memory += up * on - down * off
        frame = last[(k - 1) // RATE]
        frame[up > 0] = 1
        frame[down > 0] = -1
    rate = NOISE_PER_FRAME * (5.0 if light == "Low" else 1.0)
    noise = rng.random(last.shape, dtype=np.float32)
    # One draw for both: the lowest numbers are ON, the highest OFF.
    last[noise < 0.5 * rate] = 1
    last[noise > 1.0 - 0.5 * rate] = -1
    return last


def expose(intensity: Float32, rng: Rng) -> UInt8:
    """Take the grey images of an ordinary camera.

    It has motion blur, shot and read noise, gamma and clipping.

    Args:
        intensity: As for `sense`.
        rng: Source of noise.

    Returns:
        uint8 of shape (frames, H, W).
    """
    # The state before the first frame is the event camera's alone.
    blurred = intensity[1:].reshape(-1, RATE, *intensity.shape[1:]).mean(axis=1)
    noise = rng.standard_normal(blurred.shape, dtype=np.float32)
    exposed = blurred + noise * np.sqrt(0.00012 + 0.0006 * blurred)
    return np.rint(255.0 * np.clip(exposed, 0.0, 1.0) ** 0.6).astype(np.uint8)


def _write_images(folder: Path, images: UInt8) -> None:
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k:05d}.jpg", "JPEG", quality=QUALITY)
