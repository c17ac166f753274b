"""Recordings as arrays: every event is in the file or counted, folders are classes, nothing is held whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from event_files import EVENTS, Events, draw, nmnist
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.train import Binning, convert_recordings, kind_of_recording
from knarr.train.datasets.events import convert
from knarr.train.datasets.events.convert import Losses, slabs_of
from knarr.train.datasets.events.recordings import EventStream
from knarr.train.errors import DataError

SIDE = 34


def small(seed: int, count: int = 300, last_us: int = 50_000) -> Events:
    events = draw(seed, count, last_us)
    events["x"] %= SIDE
    events["y"] %= SIDE
    return events


def slow(events: Events, steps: Binning, total: int) -> tuple[np.ndarray[Any, Any], Losses]:
    """The same, one event after the other."""
    left, top, width, height = steps.crop or (0, 0, SIDE, SIDE)
    rows, columns = height // steps.pool, width // steps.pool
    made = np.zeros((total, steps.channels, rows, columns), int)
    losses = Losses(events=len(events))
    for t, x, y, p in events.tolist():
        row, column = (y - top) // steps.pool, (x - left) // steps.pool
        step = (t - int(events["t"][0])) // steps.dt_us
        if not (0 <= row < rows and 0 <= column < columns):
            losses.outside += 1
        elif step >= total:
            losses.late += 1
        elif made[step, p % steps.channels, row, column] == (255 if steps.counts else 1):
            losses.merged += 1
        else:
            made[step, p % steps.channels, row, column] += 1
    return made, losses


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    dt_us=st.sampled_from([1, 700, 9_000, 60_000]),
    total=st.integers(1, 80),
    crop=st.sampled_from([None, (0, 0, 34, 34), (3, 5, 20, 11), (33, 33, 1, 1)]),
    pool=st.sampled_from([1, 2, 5]),
    channels=st.sampled_from([1, 2]),
    counts=st.booleans(),
    pieces=st.integers(1, 7),
    slab_bytes=st.sampled_from([1, 5_000, 1 << 26]),
)
def test_every_event_is_there_or_counted(
    seed: int,
    dt_us: int,
    total: int,
    crop: tuple[int, int, int, int] | None,
    pool: int,
    channels: Literal[1, 2],
    counts: bool,
    pieces: int,
    slab_bytes: int,
) -> None:
    steps = Binning(
        dt_us=dt_us,
        crop=crop,
        pool=1 if crop == (33, 33, 1, 1) else pool,
        channels=channels,
        counts=counts,
    )
    # All on few pixels, so that more than 255 fall on one.
    events = small(seed, 700)
    events["x"][100:], events["y"][100:] = 33, 33
    stream = EventStream(Path("a"), "dat", SIDE, SIDE, 0, iter(np.array_split(events, pieces)))
    found = Losses()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "SLAB_BYTES", slab_bytes)
        slabs = list(slabs_of(stream, steps, int(events["t"][0]), total, found))
    made = np.concatenate(slabs)
    expected, losses = slow(events, steps, total)
    np.testing.assert_array_equal(made, expected)
    assert found == losses
    assert losses.events == made.sum() + losses.outside + losses.late + losses.merged
    assert slab_bytes > 1 or all(len(slab) == 1 for slab in slabs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """N-MNIST's official layout: a folder for each digit, and files of 5 bytes an event."""
    for label, name, last_us in (
        ("0", "00002", 40_000),
        ("2", "00004", 20_000),
        ("10", "00001", 9_500),
    ):
        (tmp_path / "Train" / label).mkdir(parents=True)
        events = small(int(name), last_us=last_us)
        (tmp_path / "Train" / label / f"{name}.bin").write_bytes(nmnist(events))
    return tmp_path / "Train"


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_a_folder_for_each_class(folder: Path, tmp_path: Path) -> None:
    made = convert_recordings(folder, tmp_path / "o.npz", Binning())
    assert (made.shape, made.classes, made.formats) == (
        (3, 40, 2, 34, 34),
        ("0", "2", "10"),
        {"nmnist": 3},
    )
    found = arrays(tmp_path / "o.npz")
    assert found["labels"].tolist() == [0, 2, 10]
    assert found["names"].tolist() == ["0/00002.bin", "2/00004.bin", "10/00001.bin"]
    assert sorted(found) == ["inputs", "labels", "names"]
    assert found["inputs"].dtype == np.uint8
    # N-MNIST's times count from the beginning of the recording, so step 0 begins at 0.
    events = small(4, last_us=20_000)
    expected = np.zeros((40, 2, 34, 34), np.uint8)
    expected[events["t"] // 1000, events["p"], events["y"], events["x"]] = 1
    np.testing.assert_array_equal(found["inputs"][1], expected)
    assert (made.losses.padded, made.losses.steps_padded, made.losses.cut) == (2, 20 + 30, 0)
    assert made.losses.events == 900 == found["inputs"].sum() + made.losses.merged
    # What it prints can be read as JSON, and says the same.
    assert json.loads(json.dumps(made.to_json()))["steps_padded"] == 50


def test_cut_and_padded_steps_are_counted(folder: Path, tmp_path: Path) -> None:
    made = convert_recordings(folder, tmp_path / "o.npz", Binning(timesteps=15))
    losses = made.losses
    assert (losses.cut, losses.steps_cut, losses.padded, losses.steps_padded) == (2, 25 + 5, 1, 5)
    found = arrays(tmp_path / "o.npz")["inputs"]
    assert found.shape == (3, 15, 2, 34, 34)
    assert losses.late > 0
    assert losses.events == found.sum() + losses.late + losses.merged
    assert [line for line in losses.sentences() if "30 steps were cut off" in line]


def test_windows_hold_all_and_stay_together(folder: Path, tmp_path: Path) -> None:
    whole = convert_recordings(folder, tmp_path / "whole.npz", Binning())
    made = convert_recordings(folder, tmp_path / "o.npz", Binning(timesteps=15, windows=True))
    found, one = arrays(tmp_path / "o.npz"), arrays(tmp_path / "whole.npz")
    assert found["names"].tolist()[:4] == [
        "0/00002.bin#0",
        "0/00002.bin#1",
        "0/00002.bin#2",
        "2/00004.bin#0",
    ]
    assert found["labels"].tolist() == [0, 0, 0, 2, 2, 10]
    assert found["groups"].tolist()[2:4] == ["0/00002.bin", "2/00004.bin"]
    assert made.groups == 3
    np.testing.assert_array_equal(found["inputs"][:3].reshape(45, 2, 34, 34)[:40], one["inputs"][0])
    assert found["inputs"].sum() == one["inputs"].sum()
    assert (made.losses.late, whole.losses.late, made.losses.steps_padded) == (0, 0, 5 + 10 + 5)


def test_people_are_read_from_names(tmp_path: Path) -> None:
    for label in ("wave", "clap"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for name in ("user01_led", "user02_lamp"):
            (tmp_path / "d" / label / f"{name}.bin").write_bytes(nmnist(small(1)))
    made = convert_recordings(tmp_path / "d", tmp_path / "o.npz", Binning(), people=r"user(\d+)")
    found = arrays(tmp_path / "o.npz")
    assert found["labels"].tolist() == ["clap", "clap", "wave", "wave"]
    assert found["groups"].tolist() == ["01", "02", "01", "02"]
    assert made.groups == 2
    with pytest.raises(DataError, match="is not found in its name"):
        convert_recordings(tmp_path / "d", tmp_path / "o.npz", Binning(), people=r"subject(\d)")
    for bad in ("user", "user(", "(u)(s)"):
        with pytest.raises(ValueError, match="people"):
            convert_recordings(tmp_path / "d", tmp_path / "o.npz", Binning(), people=bad)


def test_damaged_recordings_are_refused_or_left_out_by_name(folder: Path, tmp_path: Path) -> None:
    bad = folder / "2" / "bad.bin"
    bad.write_bytes(nmnist(small(1))[:-1])
    with pytest.raises(DataError, match=r"bad\.bin.*truncated"):
        convert_recordings(folder, tmp_path / "o.npz", Binning())
    assert not (tmp_path / "o.npz").exists()
    (folder / "2" / "video.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    made = convert_recordings(folder, tmp_path / "o.npz", Binning(), skip_damaged=True)
    assert (made.recordings, len(made.skipped)) == (3, 2)
    assert "bad.bin" in made.skipped[0]
    assert "no recording of an event camera" in made.skipped[1]
    for path in folder.rglob("0*.bin"):
        path.unlink()
    (folder / "0" / "a.bin").write_bytes(b"none")
    (folder / "10" / "a.bin").write_bytes(b"none")
    with pytest.raises(DataError, match="not one of 4 files can be read"):
        convert_recordings(folder, tmp_path / "o.npz", Binning(), skip_damaged=True)


def test_folders_that_are_none_of_classes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.npz"
    with pytest.raises(DataError, match=r"folders in folders: Train holds 0; .*Train"):
        convert_recordings(tmp_path, out, Binning())
    (folder / "README").write_text("about")
    with pytest.raises(DataError, match="files beside classes: README"):
        convert_recordings(folder, out, Binning())
    (folder / "README").unlink()
    (folder / ".DS_Store").write_text("hidden files are none")
    (folder / "3").mkdir()
    with pytest.raises(DataError, match="empty class"):
        convert_recordings(folder, out, Binning())
    with pytest.raises(DataError, match="missing recording"):
        convert_recordings(tmp_path / "no", out, Binning())
    with pytest.raises(DataError, match="empty folder"):
        convert_recordings(folder / "3", out, Binning())
    assert convert_recordings(folder / "2", out, Binning()).classes == ()
    assert sorted(arrays(out)) == ["inputs", "names"]


def test_labels_of_two_folders_stay_apart(tmp_path: Path) -> None:
    for label in ("1", "01"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "a.bin").write_bytes(nmnist(small(1)))
    convert_recordings(tmp_path / "d", tmp_path / "o.npz", Binning())
    assert sorted(arrays(tmp_path / "o.npz")["labels"].tolist()) == ["01", "1"]


def test_sizes_and_room(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.npz"
    with pytest.raises(DataError, match=r"crop: columns 1 \.\. 34"):
        convert_recordings(folder, out, Binning(crop=(1, 0, 34, 34)))
    with pytest.raises(DataError, match="pool: squares of 35"):
        convert_recordings(folder, out, Binning(pool=35))
    with pytest.raises(DataError, match=r"array too large: 3 x 10000000 .* is 69360000000 bytes"):
        convert_recordings(folder, out, Binning(timesteps=10_000_000))
    assert not out.exists()
    made = convert_recordings(folder, out, Binning(pool=3, crop=(0, 4, 34, 30)))
    assert made.shape[3:] == (10, 11)
    assert made.losses.outside > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dt_us": 0}, "dt_us"),
        ({"timesteps": 0}, "timesteps"),
        ({"pool": 0}, "pool"),
        ({"channels": 3}, "channels"),
        ({"windows": True}, "timesteps"),
        ({"crop": (0, 0, 0, 5)}, "crop"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Binning(**wrong)


def test_the_same_recordings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        convert_recordings(folder, tmp_path / name, Binning(timesteps=20))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_no_magic_but_events_of_the_sensor(tmp_path: Path) -> None:
    path = tmp_path / "recording.avi"
    for data, kind in (
        (nmnist(small(1)), "nmnist"),
        (bytes([3, 4, 0x80, 0, 9]), "nmnist"),
        (bytes([34, 4, 0x80, 0, 9]), None),
        (nmnist(small(1)[::-1]), None),
        (b"RIFF\x24\0\0\0AVI ", None),
        (b"\x1aE\xdf\xa3" + bytes(40), None),
        (b"", None),
    ):
        path.write_bytes(data)
        assert kind_of_recording(path) == kind
    assert EVENTS.itemsize == 13
