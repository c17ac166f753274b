"""The SEE reader: what it reads exactly, and every malformed dataset it refuses by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from knarr.train.datasets.eyes.generate import QUALITY, generate
from knarr.train.datasets.see import tree as see
from knarr.train.datasets.see.sequences import SeeSequences, assert_disjoint, read_sequences
from knarr.train.errors import DataError

LABELS = ("angry", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 emotions x 2 people (one per subset), 3 images of 16 x 16 pixels each."""
    root = tmp_path_factory.mktemp("see") / "see"
    generate(root, subjects=2, takes_per_emotion=1, test_fraction=0.5, frames=3, size=16, seed=1)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(pristine, tmp_path / "see")
    return tmp_path / "see"


def read(root: Path, **change: Any) -> SeeSequences:
    """Sequences with their images stacked, a clip each."""
    options = {"subset": "training", "size": 16, "timesteps": 3, **change}
    found = read_sequences(root, **options)
    frames, events = found.stacked()
    return replace(found, frames=frames, events=events)


def load_index(root: Path) -> Any:
    return json.loads((root / "emotion.json").read_text())


def save_index(root: Path, index: Any) -> None:
    (root / "emotion.json").write_text(json.dumps(index))


def first(root: Path, subset: str = "training") -> str:
    """The angry sequence of a subset: the one the cases below break."""
    database: dict[str, Any] = load_index(root)["database"]
    return next(
        n
        for n, r in database.items()
        if r["subset"] == subset and r["annotations"]["label"] == "angry"
    )


def picture(root: Path, folder: str = "event", k: int = 1) -> Path:
    return root / folder / "angry" / first(root) / f"{k:05d}.jpg"


def edit(**change: Any) -> Callable[[Path], None]:
    """Change fields of the first record: `subset`, or what is in its annotations."""

    def apply(root: Path) -> None:
        index = load_index(root)
        record = index["database"][first(root)]
        for key, value in change.items():
            (record if key in ("subset", "annotations") else record["annotations"])[key] = value
        save_index(root, index)

    return apply


def put(image: Image.Image, k: int = 1, **options: Any) -> Callable[[Path], None]:
    return lambda root: image.save(picture(root, "frame", k), "JPEG", **options)


def cut(share: float) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = picture(root)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return apply


def move(root: Path) -> None:
    for folder in ("event", "frame"):
        (root / folder / "angry" / first(root)).rename(root / folder / "fear" / first(root))


def rename(root: Path) -> None:
    index, name = load_index(root), first(root)
    new = name.replace("_angry_", "_angry_very_")
    index["database"][new] = index["database"].pop(name)
    for folder in ("event", "frame"):
        (root / folder / "angry" / name).rename(root / folder / "angry" / new)
    save_index(root, index)


def forget(root: Path) -> None:
    index = load_index(root)
    del index["database"][first(root)]
    save_index(root, index)


def both_labels(root: Path) -> None:
    shutil.copytree(root / "event" / "angry" / first(root), root / "event" / "fear" / first(root))


def link_out(root: Path) -> None:
    path = picture(root)
    path.rename(root.parent / "elsewhere.jpg")
    path.symlink_to(root.parent / "elsewhere.jpg")


def link_sequence_out(root: Path) -> None:
    path = root / "frame" / "angry" / first(root)
    path.rename(root.parent / "elsewhere")
    path.symlink_to(root.parent / "elsewhere")


GREY = Image.new("L", (16, 16), 127)
BAD_RECORDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "event image missing": (
        lambda root: picture(root, "event").unlink(),
        r"missing image: .*\[0, 3\)",
    ),
    "frame image missing": (
        lambda root: picture(root, "frame").unlink(),
        r"missing image: .*\[0, 3\)",
    ),
    "last image missing": (
        lambda root: picture(root, "frame", 2).unlink(),
        r"00002.jpg: .* missing image",
    ),
    "segment beyond images": (edit(segment=[0, 4]), r"00003.jpg: .* missing image: .*\[0, 4\)"),
    "end 0": (edit(segment=[0, 0]), r"empty segment: \[0, 0\) holds no image"),
    "segment reversed": (edit(segment=[3, 1]), "empty segment"),
    "segment before 0": (edit(segment=[-1, 3]), "empty segment"),
    "segment too short": (edit(segment=[1, 3]), r"short segment: \[1, 3\) holds 2 < 3"),
    "segment of floats": (edit(segment=[0.0, 3.0]), "malformed segment: .* is not"),
    "segment of booleans": (edit(segment=[False, True]), "malformed segment"),
    "segment of three": (edit(segment=[0, 3, 3]), "malformed segment"),
    "segment absent": (edit(segment=None), "malformed segment: None"),
    "annotations absent": (edit(annotations=None), "malformed record: no object 'annotations'"),
    "label against name": (edit(label="fear"), "label clash: labelled 'fear' but named 'angry'"),
    "label against folder": (move, "label clash: labelled 'angry' but lies in fear"),
    "in two folders": (both_labels, "label clash: labelled 'angry' but lies in angry, fear"),
    "unknown label": (edit(label="joy"), "unknown label: 'joy' is none of angry"),
    "unknown subset": (
        edit(subset="validation"),
        "unknown subset: 'validation' is none of training, testing",
    ),
    "ten fields": (rename, "malformed name: not the nine fields"),
    "not in the index": (forget, "not in the index: .* add one or remove"),
    "sequence missing": (
        lambda root: shutil.rmtree(root / "frame" / "angry" / first(root)),
        "frame: record .* missing sequence: no folder of that name",
    ),
    "truncated late": (cut(0.9), "truncated image: no JPEG from start to end"),
    "truncated early": (cut(0.5), "truncated image"),
    "empty file": (cut(0.0), "empty file: 0 bytes"),
    "file too large": (
        lambda root: os.truncate(picture(root), (8 << 20) + 1),
        "file too large: 8388609 > 8388608",
    ),
    "not a JPEG": (lambda root: GREY.save(picture(root), "PNG"), "truncated image: no JPEG"),
    "markers only": (
        lambda root: _write(picture(root), b"\xff\xd8\xff\xd9"),
        "truncated image: cannot decode",
    ),
    "not square": (put(Image.new("L", (16, 15))), "not square: 16 x 15"),
    "too many pixels": (put(Image.new("L", (2049, 2049))), "image too large: 2049 > 2048"),
    "four channels": (put(Image.new("CMYK", (16, 16))), "wrong channels: mode CMYK"),
    "size changes": (put(Image.new("L", (12, 12))), "changing size: 12 pixels after 16"),
    "image links out": (link_out, "outside root: leads to"),
    "sequence links out": (link_sequence_out, "outside root: leads to"),
}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_record_is_refused_by_name_and_skipped_when_asked(root: Path, case: str) -> None:
    name = first(root)
    spoil, reason = BAD_RECORDS[case]
    spoil(root)
    with pytest.raises(DataError, match=reason) as caught:
        read(root)
    message = str(caught.value)
    assert "\n" not in message
    assert "_angry_" in message
    assert caught.value.file in message
    with pytest.warns(UserWarning, match=f"skipped 1 bad records: {caught.value.kind} 1"):
        clips = read(root, on_bad="skip")
    assert clips.skipped == {caught.value.kind: 1}
    assert len(clips.labels) == 6
    assert name not in clips.names


def test_skipped_records_are_counted_by_reason(root: Path) -> None:
    index = load_index(root)
    mine = [name for name, record in index["database"].items() if record["subset"] == "training"]
    for name in mine[:2]:
        index["database"][name]["annotations"]["segment"] = [0, 0]
    index["database"][mine[2]]["annotations"]["label"] = "joy"
    save_index(root, index)
    with pytest.warns(UserWarning, match="skipped 3 bad records: empty segment 2, unknown label 1"):
        clips = read(root, on_bad="skip")
    assert clips.skipped == {"empty segment": 2, "unknown label": 1}
    assert len(clips.names) == 4
    with (
        pytest.warns(UserWarning, match="short segment 4"),
        pytest.raises(DataError, match="no records: none of subset 'training' can be used"),
    ):
        read(root, on_bad="skip", timesteps=4)


def test_a_bad_record_of_the_other_subset_does_not_matter(root: Path) -> None:
    picture(root).unlink()
    assert len(read(root, subset="testing").labels) == 7


def change_index(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        index = load_index(root)
        change(index)
        save_index(root, index)

    return apply


def repeat_record(root: Path) -> None:
    path = root / "emotion.json"
    text = path.read_text()
    record = f'"{first(root)}": {{}}, '
    path.write_text(text.replace('"database": {', '"database": {' + record))


def link_folder_out(root: Path) -> None:
    (root / "frame").rename(root.parent / "elsewhere")
    (root / "frame").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (shutil.rmtree, "missing root: no such folder"),
        (lambda root: (root / "emotion.json").unlink(), "missing index: no such file"),
        (lambda root: (root / "emotion.json").write_text(""), "empty file"),
        (lambda root: os.truncate(root / "emotion.json", (64 << 20) + 1), "file too large"),
        (lambda root: os.truncate(root / "emotion.json", 200), "malformed index: not UTF-8 JSON"),
        (
            lambda root: (root / "emotion.json").write_bytes(b'{"a": "\xff"}'),
            "malformed index: not UTF-8",
        ),
        (
            lambda root: (root / "emotion.json").write_text("[" * 100_000),
            "malformed index: not UTF-8 JSON",
        ),
        (
            lambda root: (root / "emotion.json").write_text('{"a": NaN}'),
            "malformed index: number NaN",
        ),
        (
            lambda root: (root / "emotion.json").write_text("[]"),
            "malformed index: no list 'labels'",
        ),
        (change_index(lambda index: index.pop("labels")), "malformed index: no list 'labels'"),
        (
            change_index(lambda index: index.pop("database")),
            "malformed index: .* object 'database'",
        ),
        (change_index(lambda index: index["labels"].append(7)), "labels .* are not words"),
        (change_index(lambda index: index["labels"].append("../x")), "labels .* are not words"),
        (change_index(lambda index: index["labels"].append("ANGRY")), "duplicate label"),
        (repeat_record, "record .*_angry_.*: duplicate id"),
        (lambda root: shutil.rmtree(root / "frame"), "frame: missing folder"),
        (
            lambda root: (root / "event" / "joy").mkdir(),
            "joy: unknown label: folder is none of angry",
        ),
        (
            lambda root: (root / "event" / "ANGRY").mkdir(),
            "angry: duplicate folder: as well as 'ANGRY'",
        ),
        (link_folder_out, "frame: outside root: leads to"),
    ],
)
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_broken_dataset_is_always_refused(
    root: Path, spoil: Callable[[Path], None], match: str, on_bad: str
) -> None:
    spoil(root)
    with pytest.raises(DataError, match=match):
        read(root, on_bad=on_bad)


def test_names_may_not_lead_out_of_the_root(root: Path) -> None:
    shutil.copy(root / "emotion.json", root.parent / "emotion.json")
    with pytest.raises(DataError, match="outside root"):
        read(root, index="../emotion.json")
    with pytest.raises(DataError, match="outside root"):
        read(root, event_dir="../see2")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"subset": "validation"}, "subset: 'validation' is neither"),
        ({"on_bad": "ignore"}, "on_bad: 'ignore' is neither"),
        ({"size": 0}, "size: 0 outside 1 .. 2048"),
        ({"timesteps": 0}, "timesteps: 0 < 1"),
    ],
)
def test_arguments_out_of_range_are_refused(
    pristine: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        read(pristine, **change)


def test_clips_hold_what_the_files_hold(pristine: Path) -> None:
    clips = read(pristine)
    assert clips.frames.shape == (7, 3, 16, 16)
    assert clips.frames.dtype == np.uint8
    assert clips.events.shape == (7, 3, 2, 16, 16)
    assert clips.events.dtype == np.uint8
    assert clips.labels.shape == (7,)
    assert clips.labels.dtype == np.int64
    assert clips.label_names == LABELS
    assert list(clips.names) == sorted(clips.names)
    assert clips.skipped == {}
    for k, name in enumerate(clips.names):
        fields = name.split("_")
        assert clips.label_names[clips.labels[k]] == fields[6]
        assert (clips.subjects[k], clips.lights[k]) == (fields[1], fields[5])
        for t in range(3):
            place = Path(fields[6]) / name / f"{t:05d}.jpg"
            frame = np.asarray(Image.open(pristine / "frame" / place))
            event = np.asarray(Image.open(pristine / "event" / place)).astype(int)
            assert np.array_equal(clips.frames[k, t], frame)
            assert np.array_equal(clips.events[k, t, 0] == 1, event - 127 >= 64)
            assert np.array_equal(clips.events[k, t, 1] == 1, event - 127 <= -64)
    assert clips.events.any(axis=(0, 1, 3, 4)).all()
    assert clips.frames.std() > 10
    assert not set(clips.names) & set(read(pristine, subset="testing").names)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.6])
def test_events_survive_the_jpeg(root: Path, density: float) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1, 0, 1], size=(3, 16, 16), p=[density / 2, 1 - density, density / 2])
    for t in range(3):
        image = Image.fromarray(np.array([127, 255, 0], np.uint8)[drawn[t]])
        image.save(picture(root, "event", t), "JPEG", quality=QUALITY)
    clips = read(root)
    k = clips.names.index(first(root))
    assert np.array_equal(clips.events[k, :, 0], drawn == 1)
    assert np.array_equal(clips.events[k, :, 1], drawn == -1)


@pytest.mark.parametrize(
    ("grey", "on", "off"), [(190, 0, 0), (191, 1, 0), (64, 0, 0), (63, 0, 1), (127, 0, 0)]
)
def test_thresholds_of_events(root: Path, grey: int, on: int, off: int) -> None:
    path = picture(root, "event", 0)
    Image.new("L", (16, 16), grey).save(path, "JPEG", quality=100)
    assert np.unique(np.asarray(Image.open(path))).tolist() == [grey]
    clips = read(root)
    events = clips.events[clips.names.index(first(root)), 0]
    assert (events[0] == on).all()
    assert (events[1] == off).all()


def test_resizing_keeps_every_event_and_averages_frames(root: Path) -> None:
    event = np.full((16, 16), 127, np.uint8)
    event[5, 9], event[15, 0] = 255, 0
    Image.fromarray(event).save(picture(root, "event", 0), "JPEG", quality=100)
    Image.new("L", (16, 16), 77).save(picture(root, "frame", 0), "JPEG", quality=100)
    k = read(root).names.index(first(root))
    for size, on, off in ((4, (1, 2), (3, 0)), (8, (2, 4), (7, 0)), (5, (1, 2), (4, 0))):
        clips = read(root, size=size)
        assert clips.events.shape == (7, 3, 2, size, size)
        assert clips.events[k, 0, 0, on[0], on[1]] == 1
        assert clips.events[k, 0, 1, off[0], off[1]] == 1
        assert (clips.frames[k, 0] == 77).all()
        if 16 % size == 0:
            assert clips.events[k, 0].sum(axis=(1, 2)).tolist() == [1, 1]
    larger = read(root, size=32).events[k, 0]
    assert larger.sum(axis=(1, 2)).tolist() == [4, 4]
    assert larger[0, 10:12, 18:20].all()


def test_reads_the_first_steps_of_the_segment(root: Path) -> None:
    whole = read(root)
    edit(segment=[1, 3])(root)
    part = read(root, timesteps=2)
    k = whole.names.index(first(root))
    assert not np.array_equal(whole.frames[k, 0], whole.frames[k, 1])
    assert np.array_equal(part.frames[k], whole.frames[k, 1:3])
    assert np.array_equal(part.events[k], whole.events[k, 1:3])
    others = [n for n in range(7) if n != k]
    assert np.array_equal(part.frames[others], whole.frames[others, :2])


def test_class_numbers_follow_the_index(root: Path) -> None:
    change_index(lambda index: index["labels"].reverse())(root)
    clips = read(root)
    assert clips.label_names == LABELS[::-1]
    assert [clips.label_names[k] for k in clips.labels] == [
        name.split("_")[6] for name in clips.names
    ]
    assert np.array_equal(clips.labels, 6 - read_labels(root))


def read_labels(root: Path) -> NDArray[Any]:
    change_index(lambda index: index["labels"].reverse())(root)
    return read(root).labels


def test_spellings_of_older_releases_are_accepted(root: Path) -> None:
    expected = read(root)
    text = (root / "emotion.json").read_text().replace("\n", "\r\n")
    (root / "emotion_new_adjust2.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (root / "emotion.json").unlink()
    (root / "event").rename(root / "event_30")
    (root / "event_30" / "neutral").rename(root / "event_30" / "neutraL")
    (root / "event_30" / "readme.txt").write_text("files beside the folders are none of ours")
    clips = read(root, event_dir="event_30", index="emotion_new_adjust2.json")
    assert clips.names == expected.names
    assert np.array_equal(clips.labels, expected.labels)
    assert np.array_equal(clips.events, expected.events)


def test_colour_images_are_turned_grey(root: Path) -> None:
    put(Image.new("RGB", (16, 16), (90, 90, 90)), quality=100)(root)
    clips = read(root)
    assert (clips.frames[clips.names.index(first(root)), 1] == 90).all()


def test_links_that_stay_inside_are_followed(root: Path) -> None:
    expected = read(root)
    path = picture(root)
    path.rename(root / "kept.jpg")
    path.symlink_to(root / "kept.jpg")
    assert np.array_equal(read(root).events, expected.events)


def test_truncated_image_is_refused_even_if_pillow_is_told_to_accept_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(read(root).labels) == 7
    cut(0.8)(root)
    with pytest.raises(DataError, match="truncated image"):
        read(root)


def test_decompression_bomb_is_refused_without_a_warning(root: Path) -> None:
    """A small file that claims 65,000 x 65,000 pixels, and one in the range where Pillow only warns."""
    for side in (65_000, 10_000):
        data = bytearray(picture(root, "frame", 0).read_bytes())
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = side.to_bytes(2, "big") * 2
        picture(root, "frame", 1).write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"cannot decode it .*decompression bomb"):
            read(root)


def test_a_person_in_both_splits_is_refused(pristine: Path) -> None:
    train, test = read(pristine), read(pristine, subset="testing")
    assert set(train.subjects) != set(test.subjects)
    assert_disjoint(train, test)
    mixed = replace(test, subjects=(train.subjects[0], *test.subjects[1:]))
    with pytest.raises(
        DataError, match=f"shared subjects: {train.subjects[0]} in both splits, none allowed"
    ):
        assert_disjoint(train, mixed)


def test_error_names_file_record_and_reason_on_one_line_and_can_be_pickled() -> None:
    error = DataError(Path("a/b.jpg"), "empty file:\n0 bytes;  restore it", "seq")
    assert str(error) == "a/b.jpg: record seq: empty file: 0 bytes; restore it"
    assert (error.file, error.record, error.kind) == ("a/b.jpg", "seq", "empty file")
    assert str(DataError("a", "x: y")) == "a: x: y"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kind) == (str(error), error.kind)


def test_limits_are_what_the_cases_above_assume() -> None:
    assert (see.MAX_JPEG_BYTES, see.MAX_JSON_BYTES, see.MAX_SIDE) == (8 << 20, 64 << 20, 2048)
