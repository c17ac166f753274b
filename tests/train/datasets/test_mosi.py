"""CMU-MOSI: the label layouts agree, the cut is by time, and every bad segment is refused, or logged and counted."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import numpy.typing as npt
import pytest

from knarr.train.datasets.events.camera import Dvs, density
from knarr.train.datasets.events.video import events_of_video
from knarr.train.datasets.mosi import read as mosi
from knarr.train.datasets.mosi.clips import MosiClips
from knarr.train.datasets.mosi.labels import (
    STANDARD_FOLDS,
    Key,
    Segment,
    find_labels,
    read_segments,
)
from knarr.train.datasets.mosi.read import check, read_mosi
from knarr.train.datasets.splits import assert_apart
from knarr.train.errors import DataError

FPS, CLIP = 10, 12
VIDEOS = {"2iD-tVS8NPw": "train", "_dI--eQ6qVU": "valid", "c7UH_rxdZv4": "test", "_a-b_C": "test"}
FOLDS = VIDEOS
SCORES = (-2.4, 1.6, 0.0, 3.0, -3.0)
CAMERA = Dvs(size=16, frames=12)


def film(score: float, seed: int) -> npt.NDArray[np.uint8]:
    """A second and a bit of a disc that grows brighter, for a positive score, or darker."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(90, 110, (CLIP, 24, 32)).astype(np.uint8)
    for t in range(CLIP):
        shown[t, 6:18, 10:22] = 128 + (10 * t if score >= 0 else -10 * t)
    return shown


def write(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """Lossless: a frame decodes to the same pixels in whichever file it lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=FPS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "gray"
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, luma in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(luma, format="gray")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows() -> list[tuple[float, float, str, int, float]]:
    """start_s, end_s, video, k, score of every segment; spans lie between frames."""
    length = CLIP / FPS
    return [
        (
            round(i * length - 0.05 * (i > 0), 2),
            round((i + 1) * length - 0.05, 2),
            video,
            i + 1,
            score,
        )
        for video in VIDEOS
        for i, score in enumerate(SCORES)
    ]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of five segments, in every layout, under names that none of the readers looks at."""
    root = tmp_path_factory.mktemp("mosi") / "all"
    root.mkdir()
    films = {(video, k): film(score, seed) for seed, (_, _, video, k, score) in enumerate(rows())}
    for (video, k), frames in films.items():
        write(root / "segmented" / f"{video}_{k}.mp4", frames)
        (root / "mmsa" / video).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "segmented" / f"{video}_{k}.mp4", root / "mmsa" / video / f"{k}.mp4")
    for video in VIDEOS:
        write(
            root / "full" / f"{video}.mp4", np.concatenate([films[video, k] for k in range(1, 6)])
        )
    lines = [f"{start},{end},{video},{k},{score}" for start, end, video, k, score in rows()]
    (root / "csv").write_bytes(("\n".join(lines) + "\n").encode())
    head = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\r\n"
    body = [f'{v},{k},"well, yes",{s},,,,Positive,{VIDEOS[v]}\r\n' for _, _, v, k, s in rows()]
    (root / "mmsa.csv").write_bytes((head + "".join(body)).encode())
    with h5py.File(root / "csd", "w") as file:
        file.create_group("Opinion Segment Labels/metadata")
        for video in VIDEOS:
            mine = [row for row in rows() if row[2] == video]
            place = f"Opinion Segment Labels/data/{video}"
            file[f"{place}/features"] = np.array([[row[4]] for row in mine], np.float32)
            file[f"{place}/intervals"] = np.array([row[:2] for row in mine])
    return root


def build(pristine: Path, root: Path, labels: str = "csv", videos: str = "segmented") -> Path:
    """A dataset of one label layout and one of videos."""
    places = {"segmented": "Video/Segmented", "full": "Video/Full", "mmsa": "Raw"}
    files = {
        "csv": ("csv", "OpinionLevelSentiment.csv"),
        "csd": ("csd", "CMU_MOSI_Opinion_Labels.csd"),
        "mmsa": ("mmsa.csv", "label.csv"),
    }
    root.mkdir()
    shutil.copytree(pristine / videos, root / places[videos])
    shutil.copy(pristine / files[labels][0], root / files[labels][1])
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """CSV labels and segmented videos, to break."""
    return build(pristine, tmp_path / "mosi")


def read(root: Path, **change: Any) -> MosiClips:
    return read_mosi(root, **{"camera": CAMERA, "folds": FOLDS, **change})


@pytest.mark.parametrize(
    ("labels", "videos"), [("csv", "full"), ("csd", "full"), ("csd", "segmented"), ("mmsa", "mmsa")]
)
def test_every_layout_gives_the_same_clips(
    pristine: Path, tmp_path: Path, labels: str, videos: str
) -> None:
    one = read(build(pristine, tmp_path / "one"))
    other = read(build(pristine, tmp_path / "other", labels, videos))
    assert one.keys == other.keys == tuple(sorted(one.keys))
    assert one.folds == other.folds
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
    every = np.arange(len(one))
    np.testing.assert_array_equal(one.first, other.first)
    np.testing.assert_array_equal(one.spikes(every), other.spikes(every))
    assert one.spikes(every).shape == (16, 11, 2, 16, 16)
    assert 0 < density(one.spikes(every)) < 0.5


def test_labels_classes_and_folds(root: Path) -> None:
    clips = read(root)
    assert clips.zeros_dropped == 4
    assert clips.skipped == {}
    wanted = {Key(video, k): score for _, _, video, k, score in rows() if score != 0}
    assert dict(zip(clips.keys, clips.scores, strict=True)) == wanted
    np.testing.assert_array_equal(clips.labels, clips.scores > 0)
    assert [clips.videos[i] for i in clips.fold("valid")] == ["_dI--eQ6qVU"] * 4
    assert len(clips.fold("test")) == 8
    assert_apart(clips.videos, *(clips.fold(name) for name in ("train", "valid", "test")))
    kept = read(root, zeros="positive")
    assert (len(kept), kept.zeros_dropped) == (20, 0)
    np.testing.assert_array_equal(kept.labels, kept.scores >= 0)
    assert clips.fps == pytest.approx(10)


def test_the_standard_folds_are_of_52_10_and_31_videos() -> None:
    assert [list(STANDARD_FOLDS.values()).count(name) for name in ("train", "valid", "test")] == [
        52,
        10,
        31,
    ]


def test_the_pure_spike_variant(root: Path) -> None:
    clips = read(root)
    pure = read(root, camera=Dvs(size=16, frames=12, grey_first=False))
    every = np.arange(len(clips))
    np.testing.assert_array_equal(pure.spikes(every), clips.spikes(every))
    assert pure.first.size == 0


def test_short_clips_are_padded_or_bad(root: Path) -> None:
    padded = read(root, camera=Dvs(size=16, frames=20))
    assert padded.shown.tolist() == [11] * 16
    assert not padded.spikes(np.arange(16))[:, 11:].any()
    assert density(padded.spikes(np.arange(16))[:, :11]) == density(
        read(root).spikes(np.arange(16))
    )
    with pytest.raises(DataError, match="record 2iD-tVS8NPw_1: short clip: 12 of 20 frames"):
        read(root, camera=Dvs(size=16, frames=20, drop_short=True))


def test_the_classes_are_learnable_and_shuffled_ones_are_not(root: Path) -> None:
    clips = read(root)
    spikes = clips.spikes(np.arange(len(clips))).mean(axis=(1, 3, 4))
    train, test = clips.fold("train"), clips.fold("test")

    def guess(labels: npt.NDArray[np.int64]) -> float:
        means = np.stack([spikes[train][labels[train] == c].mean(axis=0) for c in (0, 1)])
        distance = np.linalg.norm(spikes[test][:, None] - means, axis=2)
        return float((distance.argmin(axis=1) == labels[test]).mean())

    assert guess(clips.labels) == 1.0
    rng = np.random.default_rng(0)
    signs = [rng.permuted(clips.labels.reshape(4, 4), axis=1).reshape(-1) for _ in range(60)]
    assert 0.35 < np.mean([guess(labels) for labels in signs]) < 0.65


def segments(root: Path) -> tuple[Segment, ...]:
    layout, path = find_labels(root)
    good, bad = read_segments(root, path, layout)
    assert not bad
    return good


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(root: Path) -> None:
    plain = segments(root)
    path = root / "OpinionLevelSentiment.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert segments(root) == plain
    assert len(plain) == 20


def test_folds_by_the_label_file(pristine: Path, tmp_path: Path) -> None:
    root = build(pristine, tmp_path / "mosi", "mmsa", "mmsa")
    assert read(root, folds="mode").folds == read(root).folds
    path = root / "label.csv"
    text = path.read_text()
    path.write_text(text.replace(",Positive,valid", ",Positive,train", 1))
    with pytest.raises(DataError, match="record _dI--eQ6qVU: shared video: in train, valid"):
        read(root, folds="mode")


def label_line(number: int, text: str | None) -> Callable[[Path], None]:
    """Replace a row of the CSV; `{f[i]}` are its fields, None takes it out."""

    def apply(root: Path) -> None:
        path = root / "OpinionLevelSentiment.csv"
        lines = path.read_text().splitlines()
        new = [] if text is None else text.format(f=lines[number].split(",")).split("|")
        lines[number : number + 1] = new
        path.write_text("\n".join(lines) + "\n")

    return apply


def clip(root: Path) -> Path:
    return root / "Video" / "Segmented" / "_a-b_C_1.mp4"


def cut(root: Path) -> None:
    clip(root).write_bytes(clip(root).read_bytes()[:-200])


def link_out(root: Path) -> None:
    clip(root).rename(root.parent / "elsewhere.mp4")
    clip(root).symlink_to(root.parent / "elsewhere.mp4")


def stranger(root: Path) -> None:
    label_line(15, "{f[0]},{f[1]},nobody,{f[3]},{f[4]}")(root)


ROW = "{f[0]},{f[1]},{f[2]},{f[3]},{f[4]}"
BAD: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "video missing": (lambda root: clip(root).unlink(), "record _a-b_C_1: missing file", 1),
    "video empty": (lambda root: clip(root).write_bytes(b""), "record _a-b_C_1: empty file", 1),
    "no video": (
        lambda root: clip(root).write_text("none\n" * 99),
        "record _a-b_C_1: undecodable video",
        1,
    ),
    "video truncated": (cut, "record _a-b_C_1: truncated video", 1),
    "video outside": (link_out, "record _a-b_C_1: outside root", 1),
    "score 3.5": (
        label_line(15, "{f[0]},{f[1]},{f[2]},{f[3]},3.5"),
        "record _a-b_C_1: score out of range: 3.5",
        1,
    ),
    "score NaN": (
        label_line(15, "{f[0]},{f[1]},{f[2]},{f[3]},nan"),
        "record _a-b_C_1: score out of range: nan",
        1,
    ),
    "score no number": (
        label_line(15, "{f[0]},{f[1]},{f[2]},{f[3]},good"),
        "record _a-b_C_1: malformed number",
        1,
    ),
    "time no number": (
        label_line(15, "x,{f[1]},{f[2]},{f[3]},{f[4]}"),
        "record _a-b_C_1: malformed number",
        1,
    ),
    "time NaN": (
        label_line(15, "nan,{f[1]},{f[2]},{f[3]},{f[4]}"),
        "record _a-b_C_1: malformed times",
        1,
    ),
    "end first": (
        label_line(15, "{f[1]},{f[0]},{f[2]},{f[3]},{f[4]}"),
        "record _a-b_C_1: malformed times",
        1,
    ),
    "k = 0": (
        label_line(15, "{f[0]},{f[1]},{f[2]},0,{f[4]}"),
        "record line 16: segment number: '0'",
        1,
    ),
    "k = 1.0": (
        label_line(15, "{f[0]},{f[1]},{f[2]},1.0,{f[4]}"),
        "record line 16: segment number: '1.0'",
        1,
    ),
    "named twice": (label_line(15, f"{ROW}|{ROW}"), "record _a-b_C_1: duplicate id: 2 records", 2),
    "named twice, scored twice": (
        label_line(15, f"{ROW}|{{f[0]}},{{f[1]}},{{f[2]}},{{f[3]}},1"),
        "record _a-b_C_1: duplicate id: 2 records",
        2,
    ),
    "segment without a file": (
        label_line(15, f"{ROW}|6,7,_a-b_C,9,1"),
        "record _a-b_C_9: missing file",
        1,
    ),
    "id leads out": (
        label_line(15, "{f[0]},{f[1]},../x,{f[3]},{f[4]}"),
        "record line 16: malformed id",
        1,
    ),
    "line cut": (
        label_line(15, "{f[0]},{f[1]},{f[2]}"),
        "record line 16: malformed record: 3 fields",
        1,
    ),
    "in no fold": (stranger, "record nobody_1: no fold", 1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_segment_is_refused_or_logged_and_counted(
    name: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, message, count = BAD[name]
    damage(root)
    with pytest.raises(DataError, match=message):
        read(root)
    with (
        caplog.at_level(logging.WARNING),
        pytest.warns(UserWarning, match=rf"skipped {count} bad segments: "),
    ):
        clips = read(root, on_bad="skip")
    assert Key("_a-b_C", 1) not in clips.keys or "_9" in message
    assert len(clips) == (16 if "_9" in message else 15)
    assert clips.skipped.total() == count  # type: ignore[attr-defined]
    assert sum(str(error) in caplog.messages for error in clips.left_out) == count
    report = check(root, folds=FOLDS)
    assert len(report.skipped) == count
    assert report.samples == len(clips) + clips.zeros_dropped
    assert not report.complete


def csd_cut(root: Path) -> None:
    path = root / "CMU_MOSI_Opinion_Labels.csd"
    path.write_bytes(path.read_bytes()[:-500])


def csd_edit(edit: Callable[[h5py.Group], None]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with h5py.File(root / "CMU_MOSI_Opinion_Labels.csd", "r+") as file:
            edit(file["Opinion Segment Labels/data/_a-b_C"])

    return apply


def replace(name: str, values: npt.NDArray[Any]) -> Callable[[h5py.Group], None]:
    def apply(group: h5py.Group) -> None:
        del group[name]
        group[name] = values

    return apply


CSD: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (csd_cut, "malformed csd: not HDF5"),
    "fewer scores": (
        csd_edit(replace("features", np.zeros((4, 1)))),
        "record _a-b_C: malformed video",
    ),
    "flat scores": (csd_edit(replace("features", np.zeros(5))), "record _a-b_C: malformed video"),
    "text": (
        csd_edit(replace("features", np.full((5, 1), b"x"))),
        "record _a-b_C: malformed video",
    ),
    "no times": (csd_edit(lambda group: group.pop("intervals")), "record _a-b_C: malformed video"),
    "NaN": (
        csd_edit(replace("features", np.full((5, 1), np.nan))),
        "record _a-b_C_1: score out of range: nan",
    ),
    "times reversed": (
        csd_edit(replace("intervals", np.tile([2.0, 1.0], (5, 1)))),
        "record _a-b_C_1: malformed times",
    ),
}


@pytest.mark.parametrize("name", CSD)
def test_a_bad_csd_is_refused(name: str, pristine: Path, tmp_path: Path) -> None:
    root = build(pristine, tmp_path / "mosi", "csd")
    damage, message = CSD[name]
    damage(root)
    with pytest.raises(DataError, match=message):
        read(root)


def test_a_video_that_ends_before_its_segment_is_bad(pristine: Path, tmp_path: Path) -> None:
    root = build(pristine, tmp_path / "mosi", "csv", "full")
    label_line(4, "{f[0]},9.5,{f[2]},{f[3]},{f[4]}")(root)
    with pytest.raises(
        DataError, match=r"record 2iD-tVS8NPw_5: short video: its last frame is at 5\.900 s"
    ):
        read(root, camera=Dvs(size=16, frames=90))
    label_line(4, "8.0,9.5,{f[2]},{f[3]},{f[4]}")(root)
    with pytest.raises(DataError, match="record 2iD-tVS8NPw_5: no frames"):
        read(root)


def test_a_wrong_rate_is_refused(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"record 2iD-tVS8NPw_1: wrong rate: 10\.000 frames/s, expected 30"
    ):
        read(root, fps=30)
    assert len(read(root, fps=10)) == 16


WHOLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no root": (shutil.rmtree, "missing root"),
    "no labels": (
        lambda root: (root / "OpinionLevelSentiment.csv").unlink(),
        "missing labels: none of Opinion",
    ),
    "two label files": (lambda root: (root / "label.csv").write_text("x"), "several label files"),
    "no videos": (lambda root: shutil.rmtree(root / "Video"), "missing videos"),
    "empty labels": (
        lambda root: (root / "OpinionLevelSentiment.csv").write_text(""),
        "empty file",
    ),
    "blank labels": (
        lambda root: (root / "OpinionLevelSentiment.csv").write_text("\n\n"),
        "no records",
    ),
    "UTF-16": (
        lambda root: (root / "OpinionLevelSentiment.csv").write_text("1,2,a,1,1\n", "utf-16"),
        "not UTF-8",
    ),
    "open quote": (
        lambda root: (root / "OpinionLevelSentiment.csv").write_text('1,2,"a,1,1\n'),
        "malformed CSV",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_set_that_is_bad_as_a_whole_is_always_refused(name: str, root: Path) -> None:
    damage, message = WHOLE[name]
    damage(root)
    for attempt in (lambda: read(root, on_bad="skip"), lambda: check(root, folds=FOLDS)):
        with pytest.raises(DataError, match=message):
            attempt()


def test_whole_videos_cannot_be_cut_without_times(pristine: Path, tmp_path: Path) -> None:
    root = build(pristine, tmp_path / "mosi", "mmsa", "full")
    with pytest.raises(DataError, match="no times: mmsa labels have none"):
        read(root)
    (root / "label.csv").write_text("video_id,clip_id,label\nx,1,1\n")
    with pytest.raises(DataError, match="malformed header: no one column mode"):
        read(root)


def test_no_segment_left_is_an_error(root: Path) -> None:
    shutil.rmtree(root / "Video" / "Segmented")
    (root / "Video" / "Segmented").mkdir()
    with (
        pytest.warns(UserWarning, match="missing file 16"),
        pytest.raises(DataError, match="no segments"),
    ):
        read(root, on_bad="skip")


def test_events_are_cached_by_content_and_settings(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    made = []

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        made.append(path.name)
        return events_of_video(path, *args, **kwargs)

    monkeypatch.setattr(mosi, "events_of_video", counted)
    first = read(root, cache=cache)
    assert len(made) == 16
    again = read(root, cache=cache)
    assert len(made) == 16
    np.testing.assert_array_equal(first.packed, again.packed)
    np.testing.assert_array_equal(first.first, again.first)
    np.testing.assert_array_equal(first.fps, again.fps)
    read(root, cache=cache, camera=Dvs(0.2, size=16, frames=12))
    assert len(made) == 32
    write(clip(root), film(3.0, 99))
    changed = read(root, cache=cache)
    assert made[32:] == ["_a-b_C_1.mp4"]
    assert (changed.packed != first.packed).any(axis=(1, 2, 3, 4)).tolist().count(True) == 1


def test_the_work_can_go_to_other_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `parallel` sends and gets back survives the way; starting processes is its own test's."""
    clip(root).unlink()
    with pytest.warns(UserWarning, match="missing file 1"):
        here = read(root, on_bad="skip")

    def there(items: list[Any], make: Callable[[Any], Any], **options: Any) -> list[Any]:
        assert options["workers"] == 2
        make, items = pickle.loads(pickle.dumps((make, items)))
        return [pickle.loads(pickle.dumps(make(item))) for item in items]

    monkeypatch.setattr(mosi, "parallel", there)
    with pytest.warns(UserWarning, match="missing file 1"):
        sent = read(root, on_bad="skip", workers=2)
    np.testing.assert_array_equal(here.packed, sent.packed)
    assert list(map(str, here.left_out)) == list(map(str, sent.left_out))


def test_progress_is_told(root: Path) -> None:
    told: list[tuple[int, int]] = []
    read(root, progress=lambda done, of: told.append((done, of)))
    assert told == [(n, 16) for n in range(1, 17)]


def test_check_says_what_is_there(root: Path) -> None:
    report = check(root, folds=FOLDS)
    assert (report.name, report.samples, report.subjects) == ("mosi", 20, 4)
    assert report.splits == {"train": 5, "valid": 5, "test": 10}
    assert report.missing == ("2179 of 2199 segments are not in the label file",)
    json.dumps(report.to_json(), allow_nan=False)


def test_arguments_out_of_range_are_refused(root: Path) -> None:
    for change in (
        {"on_bad": "ignore"},
        {"zeros": "negative"},
        {"camera": Dvs(size=None)},
        {"camera": Dvs(frames=None)},
        {"folds": "random"},
        {"folds": {"a": "dev"}},
    ):
        with pytest.raises(ValueError, match=r"on_bad, zeros|camera|folds"):
            read(root, **change)
