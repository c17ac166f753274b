"""Generated talking heads in the layout of CMU-MOSI: mp4 files per segment and a label file, to try everything without the real set.

A video is one speaker. Every segment talks, nods, blinks and flickers; a positive one lifts the corners of the mouth and the brows, a
negative one lowers them as far, so that classes differ in where and in which direction something moves, not in how much does.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from knarr.train.data_error import DataError
from knarr.train.datasets.mosi_faces import draw_motion, draw_speaker, film
from knarr.train.datasets.mosi_labels import FILES, MODES

FPS: Final = 30
CODEC: Final = "mpeg4"  # in every build of FFmpeg
QUALITY: Final = 2  # the quantiser of the codec, 1 (finest) .. 31
SHARES: Final = (52 / 93, 10 / 93)  # of the videos that train and validate, as in the standard folds
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
        stream.codec_context.thread_count = 1  # bytes must not depend on how many processors there are
        stream.codec_context.qmin = stream.codec_context.qmax = QUALITY
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, luma in enumerate(frames):
            planes = np.full((luma.shape[0] * 3 // 2, luma.shape[1]), 128, np.uint8)
            planes[: len(luma)] = np.rint(16 + luma * (219 / 255))  # video's range; the rest is colour
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
                root / "Video" / "Segmented" / f"{name}_{k + 1}.mp4", film(speaker, motion, size, stream)
            )
            said = "Positive" if told[k] > 0 else "Negative"
            lines.append(f"{name},{k + 1},,{told[k]:g},,,,{said},{fold}\n")
            if progress is not None:
                progress(video * clips + k + 1, videos * clips)
    (root / FILES["mmsa"]).write_text("".join(lines), encoding="utf-8")
