"""Faces that talk, smile and frown: one speaker's looks and a course of movements in, grey pictures out.

Lengths are in half image widths: x runs from -1 to 1, y from -1 (top) to 1.

Generated talking heads in the layout of CMU-MOSI: mp4 files per segment and a label file, to try everything without the real set.

A video is one speaker. Every segment talks, nods, blinks and flickers; a positive one lifts the corners of the mouth and the brows, a
negative one lowers them as far, so that classes differ in where and in which direction something moves, not in how much does.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

from knarr.train.datasets.mosi.labels import FILES, MODES
from knarr.train.errors import DataError

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
class FaceMotion:
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


def draw_motion(
    rng: np.random.Generator, speaker: Speaker, score: float, frames: int
) -> FaceMotion:
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
    return FaceMotion(
        corners=0.1 * strength * shown + waves(0.04, 0.5, 3),
        brows=0.06 * strength * shown * rng.uniform(0, 1) + waves(0.04, 0.3, 2),
        jaw=np.abs(waves(0.16, 1, 4)),
        lids=np.clip(blink, 0, 1),
        head_x=waves(0.05, 0.2, 1),
        head_y=waves(0.06, 0.2, 1.5),
        light=1 + waves(0.03, 0.2, 3),
    )


def film(
    speaker: Speaker, motion: FaceMotion, size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
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
    picture = np.broadcast_to(
        speaker.wall * (1 + 0.1 * grid[None, :, None]), (len(lids), size, size)
    )
    picture = paint(
        picture, speaker.skin * (1.08 - 0.18 * radius), (1 - radius) * speaker.half_width
    )
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


FPS: Final = 30
CODEC: Final = "mpeg4"  # in every build of FFmpeg
QUALITY: Final = 2  # the quantiser of the codec, 1 (finest) .. 31
SHARES: Final = (
    52 / 93,
    10 / 93,
)  # of the videos that train and validate, as in the standard folds
SCORES: Final = (0.6, 1.2, 1.8, 2.4, 3.0)

# What keeps the streams of random numbers of one seed apart.
_FOLDS, _SPEAKER, _SEGMENT = range(3)
_HEADER: Final = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"


def generate_clips(
    root: Path,
    *,
    videos: int = 60,
    clips_per_video: int = 12,
    frames: int = 20,
    size: int = 80,
    seed: int = 0,
    shuffle_labels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the videos and their label file (``label.csv``, with a fold for each video).

    The folder appears complete or not at all: everything is written beside it and renamed at the end. What a killed
    run left there is removed first. One process at a time may write a given root.

    Args:
        root: folder to create; it must not exist. Missing parents are created.
        videos: speakers, 3 to 9999. Each is in one fold, in about the shares of the standard ones.
        clips_per_video: segments of each, 2 to 9999; half of them are positive, or one more.
        frames: of a segment, 2 to 9999, at 30 a second.
        size: height and width of the pictures in pixels, even, 16 to 512.
        seed: not negative. The same seed and settings give the same bytes (with the same libraries and processor).
        shuffle_labels: deal each video's labels out at random: a twin in which there is nothing to be learned.
        progress: called with (segments done, in all).

    Raises:
        ValueError: an argument is out of its range.
        DataError: `root` exists.
    """
    for name, value, low, high in (
        ("videos", videos, 3, 9999),
        ("clips_per_video", clips_per_video, 2, 9999),
        ("frames", frames, 2, 9999),
        ("size", size, 16, 512),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} outside {low} .. {high}; choose a value inside")
    if size % 2:
        raise ValueError(f"size: {size} is odd; the codec needs an even one")
    if seed < 0:
        raise ValueError(f"seed: {seed} < 0; use a number that is not negative")
    if os.path.lexists(root):
        raise DataError(root, "exists: will not overwrite it; remove it or name a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}.partial-"
    for leftover in root.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        whole = partial / root.name
        (whole / "Video" / "Segmented").mkdir(parents=True)
        _write_all(whole, videos, clips_per_video, frames, size, seed, shuffle_labels, progress)
        whole.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def folds_of(videos: int, seed: int) -> list[str]:
    """Fold of each video; every fold has one at least."""
    train, valid = (max(1, round(share * videos)) for share in SHARES)
    train = min(train, videos - valid - 1)
    names = [MODES[0]] * train + [MODES[1]] * valid + [MODES[2]] * (videos - train - valid)
    order = np.random.default_rng([seed, _FOLDS]).permutation(videos)
    return [names[at] for at in order]


def write_video(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """An mp4 file of (frames, height, width) luma."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = (
            1  # bytes must not depend on how many processors there are
        )
        stream.codec_context.qmin = stream.codec_context.qmax = QUALITY
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, luma in enumerate(frames):
            planes = np.full((luma.shape[0] * 3 // 2, luma.shape[1]), 128, np.uint8)
            planes[: len(luma)] = np.rint(
                16 + luma * (219 / 255)
            )  # video's range; the rest is colour
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_all(
    root: Path,
    videos: int,
    clips: int,
    frames: int,
    size: int,
    seed: int,
    shuffle_labels: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    lines = [_HEADER]
    for video, fold in enumerate(folds_of(videos, seed)):
        rng = np.random.default_rng([seed, _SPEAKER, video])
        speaker = draw_speaker(rng)
        signs = rng.permutation([1 if k % 2 else -1 for k in range(clips)])
        scores = signs * rng.choice(SCORES, clips)
        told = rng.permutation(scores) if shuffle_labels else scores
        for k in range(clips):
            stream = np.random.default_rng([seed, _SEGMENT, video, k])
            motion = draw_motion(stream, speaker, float(scores[k]), frames)
            name = f"generated-{video:04d}"
            write_video(
                root / "Video" / "Segmented" / f"{name}_{k + 1}.mp4",
                film(speaker, motion, size, stream),
            )
            said = "Positive" if told[k] > 0 else "Negative"
            lines.append(f"{name},{k + 1},,{told[k]:g},,,,{said},{fold}\n")
            if progress is not None:
                progress(video * clips + k + 1, videos * clips)
    (root / FILES["mmsa"]).write_text("".join(lines), encoding="utf-8")
