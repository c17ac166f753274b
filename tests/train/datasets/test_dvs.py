"""The simulated event camera against a plain double loop, and video files: what is read, and every damage refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knarr.train.datasets.events.camera import (
    Dvs,
    density,
    resize_grey,
    shrink_any,
    simulate,
    threshold_levels,
)
from knarr.train.datasets.events.video import GreyVideo, events_of_video
from knarr.train.errors import DataError

Frames = npt.NDArray[np.uint8]
RAW = Dvs(size=None, frames=None)


def loop(frames: npt.NDArray[np.generic], sensitivity: float) -> npt.NDArray[np.float32]:
    """The definition, pixel by pixel: luma / 255."""
    scale = 255
    steps, height, width = frames.shape
    shown = np.zeros((steps, 2, height, width), np.float32)
    for t in range(steps):
        for y in range(height):
            for x in range(width):
                now = frames[t, y, x].item()
                if t == 0:
                    shown[t, :, y, x] = np.float32(now) / np.float32(scale)
                    continue
                change = (now - frames[t - 1, y, x].item()) / scale
                shown[t, 0, y, x] = change > sensitivity
                shown[t, 1, y, x] = change < -sensitivity
    return shown


def moving(count: int = 12, height: int = 24, width: int = 32, seed: int = 0) -> Frames:
    """A textured block that moves, in noise."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(100, 104, (count, height, width)).astype(np.uint8)
    block = rng.integers(0, 256, (6, 6))
    for t in range(count):
        frames[t, 4:10, t % 20 : t % 20 + 6] = block
    return frames


def write(
    path: Path,
    frames: Frames,
    codec: str = "ffv1",
    fps: int = 25,
    times: list[int] | None = None,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A video file; ffv1 keeps grey exactly. `times` are in frames."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = {"ffv1": "gray", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 5
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, fps)
        for number, luma in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(luma, format="gray")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@given(
    hnp.arrays(np.uint8, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 25, 26, 51, 127, 254, 255])),
    st.sampled_from([0.0, 0.001, 1 / 255, 25 / 255, 26 / 255, 0.1, 0.5, 254 / 255]),
)
@settings(max_examples=60, deadline=None)
def test_whole_levels_are_compared_exactly(frames: Frames, sensitivity: float) -> None:
    shown = simulate(frames, Dvs(sensitivity, size=None, frames=None))
    assert shown.frames.dtype == np.float32
    np.testing.assert_array_equal(shown.frames, loop(frames, sensitivity))


@pytest.mark.parametrize(
    ("sensitivity", "levels"),
    [(0.0, 1), (0.001, 1), (1 / 255, 2), (0.1, 26), (51 / 255, 52), (0.999, 255)],
)
def test_an_event_needs_strictly_more_than_the_sensitivity(sensitivity: float, levels: int) -> None:
    assert threshold_levels(sensitivity) == levels
    pair = np.array([[[0, levels - 1]], [[levels, 0]]], np.uint8)
    spikes = simulate(pair, Dvs(sensitivity, size=None, frames=None)).spikes
    assert spikes[0, :, 0, 0].tolist() == [1, 0]
    assert spikes[0, :, 0, 1].tolist() == [0, 0]


def test_a_larger_sensitivity_is_sparser() -> None:
    densities = [
        simulate(moving(), Dvs(s, size=None, frames=None)).density for s in (0.001, 0.02, 0.3)
    ]
    assert 0.5 > densities[0] > densities[1] > densities[2] > 0


def test_the_pure_spike_variant_is_the_same_without_the_grey_step() -> None:
    whole = simulate(moving(), Dvs(size=16, frames=12))
    pure = simulate(moving(), Dvs(size=16, frames=12, grey_first=False))
    assert whole.frames.shape == (12, 2, 16, 16)
    assert pure.frames.shape == (11, 2, 16, 16)
    np.testing.assert_array_equal(pure.frames, whole.frames[1:])
    assert pure.density == whole.density == np.count_nonzero(pure.frames) / pure.frames.size > 0


def test_resizing_before_the_difference_averages_and_after_it_keeps_every_event() -> None:
    frames = np.zeros((2, 4, 4), np.uint8)
    frames[1, 0, 0], frames[1, 0, 1] = 200, 0
    frames[0, 3, 2], frames[0, 3, 3], frames[1, 2, 2] = 9, 9, 9
    after = simulate(frames, Dvs(size=2, frames=None, resize="after_diff"))
    assert after.spikes[0].tolist() == [
        [[1, 0], [0, 1]],
        [[0, 0], [0, 1]],
    ]  # ON and OFF in one pixel
    before = simulate(frames, Dvs(size=2, frames=None))
    small = np.stack([resize_grey(frame, 2) for frame in frames])
    np.testing.assert_array_equal(before.frames, loop(small, 0.001))
    assert not (before.spikes[0, 0] & before.spikes[0, 1]).any()
    assert (before.spikes != after.spikes).any()


@pytest.mark.parametrize("shape", [(3, 2), (4, 7), (1, 1), (9, 12), (6, 7)])
def test_shrinking_events_sets_a_pixel_where_any_it_covers_is_set(shape: tuple[int, int]) -> None:
    events = np.random.default_rng(3).random((2, 6, 7)) < 0.15
    expected = np.zeros((2, *shape), bool)
    for c, y, x in np.argwhere(events):
        for i in range(shape[0]):
            for j in range(shape[1]):
                tall = Fraction(i * 6, shape[0]) < y + 1 and Fraction((i + 1) * 6, shape[0]) > y
                wide = Fraction(j * 7, shape[1]) < x + 1 and Fraction((j + 1) * 7, shape[1]) > x
                expected[c, i, j] |= tall and wide
    np.testing.assert_array_equal(shrink_any(events, shape), expected)


def test_a_short_clip_is_padded_with_empty_steps_or_refused() -> None:
    frames = moving(5)
    padded = simulate(frames, Dvs(size=None, frames=8))
    np.testing.assert_array_equal(padded.frames[:5], loop(frames, 0.001))
    assert not padded.frames[5:].any()
    assert (len(padded.frames), padded.shown) == (8, 4)
    assert padded.density == density(padded.spikes[:4])  # not diluted by the padding
    with pytest.raises(DataError, match=r"clip 7: short clip: 5 of 8 frames"):
        simulate(frames, Dvs(size=None, frames=8, drop_short=True), source="clip 7")
    assert simulate(frames, Dvs(size=None, frames=5, drop_short=True)).shown == 4


def test_one_frame_has_no_events() -> None:
    shown = simulate(moving(1), RAW)
    assert shown.frames.shape == (1, 2, 24, 32)
    assert shown.density == 0.0


def test_no_frame_more_than_needed_is_pulled() -> None:
    pulled = []

    def film() -> Iterator[Frames]:
        for number, frame in enumerate(moving(12)):
            pulled.append(number)
            yield frame

    simulate(film(), Dvs(size=8, frames=4))
    assert pulled == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"sensitivity": -0.1}, "sensitivity: -0.1 outside"),
        ({"sensitivity": float("nan")}, "sensitivity: nan outside"),
        ({"sensitivity": 1.0}, "sensitivity: 1.0 outside"),
        ({"size": 0}, "size: 0 < 1"),
        ({"frames": 1}, "frames: 1 < 2"),
        ({"resize": "during"}, "resize: 'during' is neither"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dvs(**settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([], DataError, "no frames"),
        (
            [np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)],
            DataError,
            r"changing size: \(2, 3\) after \(2, 2\)",
        ),
        ([np.zeros((2, 2, 3))], ValueError, r"shape \(2, 2, 3\), not \(H, W\)"),
        ([np.zeros((2, 2), np.int32)], ValueError, "frames of int32"),
        ([np.zeros((2, 2), np.uint8), np.zeros((2, 2))], ValueError, "frames of float64"),
    ],
)
def test_unusable_frames_are_refused(
    frames: list[npt.NDArray[np.generic]], error: type[Exception], message: str
) -> None:
    for size in (None, 2):
        with pytest.raises(error, match=message):
            simulate(frames, Dvs(size=size, frames=None))


# --- video files


def test_a_video_gives_its_frames_times_and_rate_exactly(tmp_path: Path) -> None:
    frames = moving()
    path = write(tmp_path / "a.mkv", frames)
    with GreyVideo(path) as video:
        assert (video.width, video.height) == (32, 24)
        np.testing.assert_array_equal(np.stack(list(video.frames())), frames)
        # some containers keep whole milliseconds
        assert video.times_s == pytest.approx([number / 25 for number in range(12)], abs=1e-3)
        assert video.fps == pytest.approx(25)
    shown = events_of_video(path, Dvs(size=None, frames=10), fps=25)
    np.testing.assert_array_equal(shown.frames, loop(frames[:10], 0.001))
    # a rate from timestamps of whole milliseconds, over ten frames
    assert shown.fps == pytest.approx(25, rel=0.01)
    for resize in ("before_diff", "after_diff"):
        camera = Dvs(size=16, frames=12, resize=resize)
        np.testing.assert_array_equal(
            events_of_video(path, camera).frames, simulate(frames, camera).frames
        )


@pytest.mark.parametrize(
    ("codec", "suffix"), [("mpeg4", "mp4"), ("mjpeg", "avi"), ("mpeg4", "mkv")]
)
@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [(0.28, 0.6, (7, 15)), (0.0, 0.2, (0, 5)), (0.39, 0.41, (10, 11))],
)
def test_a_span_is_cut_by_time(
    tmp_path: Path, codec: str, suffix: str, start_s: float, end_s: float, expected: tuple[int, int]
) -> None:
    path = write(tmp_path / f"a.{suffix}", moving(20), codec)
    with GreyVideo(path) as video:
        whole = list(video.frames())
    with GreyVideo(path) as video:
        part = list(video.frames(start_s, end_s))
        np.testing.assert_array_equal(part, whole[slice(*expected)])
        # the same seconds, divided in floats another way
        assert video.times_s == pytest.approx([number / 25 for number in range(*expected)])


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mpeg4", "mp4"), ("mpeg4", "ts"), ("mpeg2video", "mkv"), ("mpeg1video", "mpg")],
)
def test_a_span_far_into_a_video_is_the_one_that_decoding_all_gives(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    """With frames stored out of order, groups that lean on the one before, and containers without an index."""
    path = write(tmp_path / f"a.{suffix}", moving(120), codec, b_frames=2)
    with GreyVideo(path) as video:
        whole = list(video.frames())
    assert len(whole) == 120
    for first in (51, 55, 62, 73, 98, 113):
        with GreyVideo(path) as video:
            part = list(video.frames((first - 0.5) / 25, (first + 6.5) / 25))
            np.testing.assert_array_equal(part, whole[first : first + 7])


def test_a_rate_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(), "mpeg4", fps=30)
    with pytest.raises(DataError, match=r"a.mp4: wrong rate: 30.000 frames/s, expected 25"):
        events_of_video(path, RAW, fps=25)
    assert events_of_video(path, RAW, fps=29.97).fps == pytest.approx(30)


def test_a_rate_that_the_frames_do_not_keep_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steady = write(tmp_path / "steady.mkv", moving(30))
    slow = write(tmp_path / "slow.mkv", moving(30), times=[2 * n for n in range(30)])
    gap = write(tmp_path / "gap.mkv", moving(30), times=[*range(15), *range(20, 35)])
    with caplog.at_level(logging.WARNING):
        assert events_of_video(steady, RAW).fps == pytest.approx(25)
        assert not caplog.messages
        assert events_of_video(slow, RAW).fps == pytest.approx(12.5)
        with GreyVideo(slow) as video:
            states_wrong = video.stated_fps != pytest.approx(12.5)
        assert len(caplog.messages) == states_wrong
        caplog.clear()
        events_of_video(gap, RAW)
    assert any(
        "gap.mkv: its header states 25.0 frames/s, its frames keep 21.3" in line
        for line in caplog.messages
    )
    assert any("uneven frames: steps of 0.0400 .. 0.2400 s" in line for line in caplog.messages)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def zeros_inside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    half = start + int.from_bytes(data[start - 4 : start], "big") // 2
    data[half : half + 200] = bytes(200)
    path.write_bytes(data)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "missing video: no such file"),
    "empty": (lambda path: path.write_bytes(b""), "file size: 0 bytes"),
    "text": (lambda path: path.write_text("no video at all\n" * 50), "undecodable video"),
    "playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n"),
        "undecodable video",
    ),
    "list of files": (
        lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
        "undecodable video",
    ),
    "sound only": (sound_only, "no video: the file has no video stream"),
    "zeros inside": (zeros_inside, r"record after frame [0-9]+: undecodable video"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_video_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(20), "mpeg4")
    write(tmp_path / "other.mp4", moving(20), "mpeg4")
    damage, message = DAMAGED[name]
    damage(path)
    with pytest.raises(DataError, match=rf"a.mp4: .*{message}"):
        events_of_video(path, RAW)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("mpeg4", "mp4", {}),
        ("mpeg4", "mp4", {"movflags": "faststart"}),
        ("mjpeg", "avi", {}),
        ("ffv1", "mkv", {}),
        ("mpeg4", "mov", {}),
    ],
)
def test_a_truncated_video_is_refused_wherever_it_ends(
    codec: str, suffix: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / f"a.{suffix}", moving(20), codec, options=options)
    whole = path.read_bytes()
    assert events_of_video(path, Dvs(size=None, frames=2)).shown == 1
    for share in (0.02, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        # Two frames are asked for, and would be there in most: the damage lies behind them.
        with pytest.raises(DataError, match=r"truncated video|undecodable video"):
            events_of_video(path, Dvs(size=None, frames=2))


def test_a_span_outside_the_video_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(20), "mpeg4")
    with pytest.raises(DataError, match=r"no frames: not one from 3\.0 s to 4\.0 s"):
        events_of_video(path, RAW, start_s=3.0, end_s=4.0)
    with pytest.raises(
        DataError, match=r"short video: its last frame is at 0.760 s, before 1.500 s"
    ):
        events_of_video(path, RAW, start_s=0.2, end_s=1.5)
    assert events_of_video(path, RAW, start_s=0.2, end_s=1.0).shown == 14
    with pytest.raises(ValueError, match=r"\[1.0, 1.0\) s is no span"):
        events_of_video(path, RAW, start_s=1.0, end_s=1.0)
