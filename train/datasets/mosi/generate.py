"""Generate talking heads in the layout of CMU-MOSI, to try everything without the real set.

A dataset is an mp4 file per segment and a label file.

A video is one speaker. Every segment talks, nods, blinks and flickers; a positive one lifts the
corners of the mouth and the brows, a negative one lowers them as far, so that classes differ in
where and in which direction something moves, not in how much does.

Lengths are in half image widths: x runs from -1 to 1, y from -1 (top) to 1. All greys are
reflectances 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from knarr.train.datasets.arrays import AnyArray, Rng, UInt8
from knarr.train.datasets.generated import check_range, check_seed, new_folder, numbers_by_name
from knarr.train.datasets.mosi.labels import FILES, MODES

NOISE = 0.006  # standard deviation of a pixel's grey
FPS = 30
CODEC = "mpeg4"  # in every build of FFmpeg
QUALITY = 2  # the quantiser of the codec, 1 (finest) .. 31
SHARES = (52 / 93, 10 / 93)  # of the videos that train and validate, as in the standard folds
SCORES = (0.6, 1.2, 1.8, 2.4, 3.0)

# What keeps the streams of random numbers of one seed apart.
_FOLDS, _SPEAKER, _SEGMENT = range(3)
_HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"


@dataclass(frozen=True)
class Speaker:
    """Looks and manner of one person."""

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


# Least and greatest value of each; each takes the next random number, so the order of the lines
# decides who is drawn.
_SPEAKER_RANGES = numbers_by_name("""
    skin               0.45   0.8
    ink                0.15   0.55
    wall               0.1    0.9
    half_width         0.58   0.7
    half_height        0.76   0.9
    eye_y             -0.22  -0.12
    brow_y            -0.52  -0.42
    mouth_y            0.36   0.46
    mouth_half_width   0.28   0.38
    mouth_curve       -0.06   0.06
    brow_slope        -0.15   0.15
    strength           0.8    1.2
    liveliness         0.6    1.2
""")


@dataclass(frozen=True)
class FaceMotion:
    """Movements over time, each (frames,); 0 is rest, up is positive."""

    corners: AnyArray
    brows: AnyArray
    jaw: AnyArray  # opening of the mouth
    lids: AnyArray  # 0 open .. 1 shut
    head_x: AnyArray
    head_y: AnyArray
    light: AnyArray  # gain of the whole picture


def draw_speaker(rng: Rng) -> Speaker:
    """Draw one person; at rest people differ about as much as an expression changes them."""
    drawn = {name: float(rng.uniform(low, high)) for name, (low, high) in _SPEAKER_RANGES.items()}
    # Ink is drawn as a share of the skin, than which it is always darker.
    drawn["ink"] *= drawn["skin"]
    return Speaker(**drawn)


def draw_motion(rng: Rng, speaker: Speaker, score: float, frames: int) -> FaceMotion:
    """Draw what a face does in a segment of this score.

    Args:
        rng: source of randomness.
        speaker: whose face.
        score: sentiment, -3..3; its sign is the direction of what is expressed, its size a part of
            how strongly.
        frames: how many.
    """
    t = np.arange(frames) / max(1, frames - 1)
    begins, lasts = rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.45)
    course = np.clip((t - begins) / lasts, 0, 1)
    course = course * course * (3 - 2 * course)  # a smooth step
    shown = course * np.sign(score) * speaker.strength
    strength = 0.7 + 0.1 * abs(score)

    def waves(size: float, slowest: float, fastest: float) -> AnyArray:
        """A wobble about 0 that starts anywhere."""
        turns = rng.uniform(slowest, fastest, 2)
        phases = rng.uniform(0, 2 * np.pi, 2)
        wobble = np.sin(2 * np.pi * turns * t[:, None] + phases).mean(axis=1)
        return np.asarray(size * speaker.liveliness * wobble)

    # Half of the blinks lie outside the segment: not everybody blinks in it.
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


def film(speaker: Speaker, motion: FaceMotion, size: int, rng: Rng) -> UInt8:
    """Render (frames, size, size) luma of a motion, with a camera's noise."""
    pixel = 2 / size
    grid = (np.arange(size) + 0.5) * pixel - 1
    x = grid[None, None, :] - motion.head_x[:, None, None]
    y = grid[None, :, None] - motion.head_y[:, None, None]
    moving = (motion.corners, motion.brows, motion.jaw, motion.lids)
    corners, brows, jaw, lids = (part[:, None, None] for part in moving)

    def paint(under: AnyArray, grey: AnyArray | float, inside: AnyArray) -> AnyArray:
        """Cover what lies inside an edge with grey.

        `inside` is the distance from the edge, which is a pixel and a half wide.
        """
        share = np.clip(inside / (1.5 * pixel) + 0.5, 0, 1)
        return under * (1 - share) + grey * share

    side = np.abs(x)  # faces are mirrored
    radius = np.sqrt((x / speaker.half_width) ** 2 + (y / speaker.half_height) ** 2)
    # From the back to the front: each part is painted over the last.
    wall = speaker.wall * (1 + 0.1 * grid[None, :, None])
    picture = np.broadcast_to(wall, (len(lids), size, size))
    skin = speaker.skin * (1.08 - 0.18 * radius)
    picture = paint(picture, skin, (1 - radius) * speaker.half_width)

    slope = speaker.brow_slope + 0.5 * brows
    brow = speaker.brow_y - brows + slope * (side - 0.28)
    reach = 0.17 - np.abs(side - 0.28)
    picture = paint(picture, speaker.ink, np.minimum(0.045 - np.abs(y - brow), reach))

    opening = 0.075 * (1 - 0.9 * lids)
    eye = 1 - np.sqrt(((side - 0.28) / 0.13) ** 2 + ((y - speaker.eye_y) / opening) ** 2)
    picture = paint(picture, 0.6 * speaker.ink, eye * opening)

    along = side / speaker.mouth_half_width
    bow = speaker.mouth_y - (speaker.mouth_curve + corners) * (along**2 - 0.4)
    half = 0.03 + 0.5 * jaw * np.clip(1 - along**2, 0, 1)
    lips = half + 0.025 - np.abs(y - bow - 0.3 * jaw)
    lips = np.minimum(lips, speaker.mouth_half_width - side)
    picture = paint(picture, 1.3 * speaker.ink, lips)
    picture = paint(picture, 0.5 * speaker.ink, np.minimum(lips - 0.045, half))

    picture = picture * motion.light[:, None, None]
    picture = picture + NOISE * rng.standard_normal(picture.shape)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


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

    The folder appears complete or not at all: everything is written beside it and renamed at the
    end. What a killed run left there is removed first. One process at a time may write a given
    root.

    Args:
        root: folder to create; it must not exist. Missing parents are created.
        videos: speakers, 3 to 9999. Each is in one fold, in about the shares of the standard ones.
        clips_per_video: segments of each, 2 to 9999; half of them are positive, or one more.
        frames: frames of a segment, 2 to 9999, at 30 a second.
        size: height and width of the pictures in pixels, even, 16 to 512.
        seed: not negative. The same seed and settings give the same bytes (with the same libraries
            and processor).
        shuffle_labels: deal each video's labels out at random: a twin in which there is nothing to
            be learned.
        progress: called with (segments done, in all).

    Raises:
        ValueError: an argument is out of its range.
        DataError: `root` exists.
    """
    check_range("videos", videos, 3, 9999)
    check_range("clips_per_video", clips_per_video, 2, 9999)
    check_range("frames", frames, 2, 9999)
    check_range("size", size, 16, 512)
    if size % 2:
        raise ValueError(f"size: {size} is odd; the codec needs an even one")
    check_seed(seed)
    with new_folder(root) as folder:
        segments = folder / "Video" / "Segmented"
        segments.mkdir(parents=True)
        lines = [_HEADER]
        for video, fold in enumerate(folds_of(videos, seed)):
            name = f"generated-{video:04d}"
            rng = np.random.default_rng([seed, _SPEAKER, video])
            speaker = draw_speaker(rng)
            signs = rng.permutation([1 if k % 2 else -1 for k in range(clips_per_video)])
            scores = signs * rng.choice(SCORES, clips_per_video)
            labels = rng.permutation(scores) if shuffle_labels else scores
            for k, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
                # A stream of its own: more segments or videos leave the others as they are.
                stream = np.random.default_rng([seed, _SEGMENT, video, k])
                motion = draw_motion(stream, speaker, score, frames)
                pictures = film(speaker, motion, size, stream)
                write_video(segments / f"{name}_{k + 1}.mp4", pictures)
                annotation = "Positive" if label > 0 else "Negative"
                lines.append(f"{name},{k + 1},,{label:g},,,,{annotation},{fold}\n")
                if progress is not None:
                    progress(video * clips_per_video + k + 1, videos * clips_per_video)
        (folder / FILES["mmsa"]).write_text("".join(lines), encoding="utf-8")


def folds_of(videos: int, seed: int) -> list[str]:
    """Draw the fold of each video; every fold has one at least."""
    train, valid = (max(1, round(share * videos)) for share in SHARES)
    train = min(train, videos - valid - 1)
    names = np.repeat(MODES, (train, valid, videos - train - valid))
    order = np.random.default_rng([seed, _FOLDS]).permutation(videos)
    return [str(name) for name in names[order]]


def write_video(path: Path, frames: UInt8) -> None:
    """Write an mp4 file of (frames, height, width) luma."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1  # bytes must not depend on how many processors there are
        codec.qmin = codec.qmax = QUALITY
        codec.time_base = Fraction(1, FPS)
        height, width = frames.shape[1:]
        for number, luma in enumerate(frames):
            # Below the luma lie the two planes of colour, a quarter of its size each; 128 is none.
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = np.rint(16 + luma * (219 / 255))  # video's range of luma
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
