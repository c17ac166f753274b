"""`knarr data`: what folders hold, events of a video, and of recordings told by their content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from event_files import HEIGHT, WIDTH, aedat4, draw
from test_cli import Result, knarr, one_line  # noqa: F401  (knarr is a fixture)

from knarr.train.datasets.check import CHECKS

Knarr = Callable[..., Result]


def nmnist(root: Path) -> None:
    """Three recordings to train on, one to test on, as the published format has them."""
    root.mkdir()
    for name in ("1", "2", "3", "4"):
        (root / f"{name}.bs2").write_bytes(bytes([3, 4, 0x80, 0, 9] * 5))
    (root / "train1K.txt").write_text("#sample\tclass\n1\t0\n2\t1\n3\t2\n")
    (root / "test100.txt").write_text("4\t9\n")


def test_a_whole_folder(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    nmnist(tmp_path / "n")
    result = knarr("data", "check", "nmnist", "n", "--json")
    facts = json.loads(result.stdout)
    assert (result.returncode, facts["splits"], facts["complete"]) == (
        0,
        {"train": 3, "test": 1},
        True,
    )
    assert "train" in knarr("data", "check", "nmnist", "n").stdout


def test_what_is_left_out_is_named_and_counted(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    nmnist(tmp_path / "n")
    (tmp_path / "n" / "2.bs2").write_bytes(bytes(7))
    result = knarr("data", "check", "nmnist", "n", "--json")
    facts = json.loads(result.stdout)
    assert (result.returncode, facts["samples"], facts["complete"]) == (1, 3, False)
    assert len(facts["skipped"]) == 1
    assert "2.bs2" in facts["skipped"][0]
    assert "left out: 1" in knarr("data", "check", "nmnist", "n").stdout


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_every_dataset_refuses_an_empty_folder(knarr: Knarr, tmp_path: Path, name: str) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    result = knarr("data", "check", name, "empty")
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    one_line(knarr("data", "check", name, "not-there"), 2, "not-there")


def test_an_unknown_dataset(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    one_line(
        knarr("data", "check", "imagenet", "."), 2, "'imagenet' is not known", "stress_predict"
    )


def test_events_of_a_video(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "gray"
        for at in range(6):
            grey = np.zeros((32, 32), dtype=np.uint8)
            grey[:, 4 * at : 4 * at + 8] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")))
        container.mux(stream.encode())
    result = knarr("data", "events", "v.mkv", "--size", "32", "--frames", "6", "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["shape"] == [6, 2, 32, 32]
    with np.load(tmp_path / "events.npz") as made:
        frames, density = made["frames"], float(made["density"])
    # A bar of 8 columns moves by 4: 4 columns brighten and 4 darken in each of 5 steps.
    assert frames[1:, 0].sum() == frames[1:, 1].sum() == 5 * 4 * 32
    # a quotient of floats
    assert density == pytest.approx(2 * 4 * 32 / (2 * 32 * 32))
    one_line(knarr("data", "events", "missing.mp4"), 2, "missing.mp4")
    one_line(knarr("data", "events", "v.mkv", "--out", "v.mkv"), 2, "is read as")
    one_line(
        knarr("data", "events", "v.mkv", "--dt", "0.01"), 2, "--dt: does not go with v.mkv: a video"
    )


def test_events_of_a_folder(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    for label in ("3", "7"):
        (tmp_path / "Test" / label).mkdir(parents=True)
        (tmp_path / "Test" / label / "1.bin").write_bytes(
            bytes([3, 4, 0x80, 0, 9, 33, 0, 0, 40, 0])
        )
    how = ("--dt", "0.005", "--steps", "4", "--crop", "2,0,32,34", "--pool", "2")
    result = knarr("data", "events", "Test", "--out", "t.npz", *how, "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["shape"], facts["classes"]) == ([2, 4, 2, 17, 16], ["3", "7"])
    assert (facts["events"], facts["steps_padded"], facts["outside"]) == (4, 2, 0)
    with np.load(tmp_path / "t.npz") as made:
        inputs, labels = made["inputs"], made["labels"]
    assert labels.tolist() == [3, 7]
    assert np.argwhere(inputs[0]).tolist() == [[0, 1, 2, 0], [2, 0, 0, 15]]
    printed = knarr("data", "events", "Test", "--out", "t.npz", "--steps", "6").stdout
    assert "2 recordings are longer; 10 steps were cut off" in printed
    assert "2 of 4 events come after the last step" in printed


def test_options_of_recordings_are_checked_before_work(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "r.bin").write_bytes(bytes([3, 4, 0x80, 0, 9] * 5))
    for options, words in (
        (("--frames", "3"), "--frames: does not go with r.bin: a recording"),
        (("--stream", "1"), "--stream: does not go with r.bin: a recording (nmnist)"),
        (("--sensor", "34x34"), "--sensor: does not go with r.bin: a recording (nmnist)"),
        (("--windows",), "give --steps"),
        (("--dt", "0.0000015"), "no whole number of microseconds"),
        (("--crop", "1,2,3"), "write 4 whole numbers, such as 0,0,128,128"),
        (("--out", "no/such/o.npz"), "is a folder, or lies in none"),
        (("--out", "r.bin"), "is read as"),
        (("--people", "user"), "has 0 groups, needs one"),
    ):
        one_line(knarr("data", "events", "r.bin", *options), 2, words)


def test_a_file_that_is_neither_recording_nor_video(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "empty.bin").touch()
    (tmp_path / "junk.raw").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "text.txt").write_text("hello\n" * 30)
    for name, option in (
        ("empty.bin", "--dt"),
        ("junk.raw", "--size"),
        ("junk.raw", "--sensor"),
        ("text.txt", "--dt"),
    ):
        result = knarr("data", "events", name, option, "1")
        said = result.stderr.strip().splitlines()[-1]
        one_line(result, 2, f"{name}: no recording", "and no video")
        assert ("it is empty" in said) == (name == "empty.bin")
        assert option not in said
    one_line(knarr("data", "events", "no.mp4", "--size", "8"), 2, "no.mp4: no such file or folder")
    # What is left of a video is one, and is refused as such.
    (tmp_path / "cut.avi").write_bytes(b"RIFF\xff\xff\0\0AVI LIST" + bytes(50))
    one_line(knarr("data", "events", "cut.avi"), 2, "cut.avi", "truncated video")


def test_a_sensor_is_given_as_width_and_height(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "r.raw").write_bytes(b"% evt 2.0\n" + bytes(8))
    one_line(knarr("data", "events", "r.raw", "--sensor", "big"), 2, "such as 640x480")


def test_what_was_left_out_ends_with_1(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.bin").write_bytes(bytes([3, 4, 0x80, 0, 9] * 5))
    (tmp_path / "d" / "b.bin").write_bytes(bytes([3, 4, 0x80, 0, 9] * 5)[:-1])
    one_line(knarr("data", "events", "d"), 2, "b.bin", "truncated")
    result = knarr("data", "events", "d", "--skip-damaged")
    assert result.returncode == 1
    assert "b.bin" in result.stdout


def test_events_of_a_camera_of_a_maker(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("aedat", reason="aedat is not installed; pip install 'knarr[events]'")
    (tmp_path / "r").write_bytes(aedat4([draw(1)]))
    result = knarr("data", "events", "r", "--dt", "0.01", "--channels", "1", "--counts", "--json")
    facts = json.loads(result.stdout)
    assert (facts["shape"][2:], facts["formats"]) == ([1, HEIGHT, WIDTH], {"aedat4": 1})
    with np.load(tmp_path / "events.npz") as made:
        assert made["inputs"].sum() == facts["events"] == 500
