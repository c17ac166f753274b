"""N-MNIST reader and event binning: literal bytes, what tonic 1.7.0 read of them, every bad file refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from knarr.train import DataError
from knarr.train.datasets.events.nmnist import (
    EventRecordings,
    Jitter,
    bin_counts,
    check,
    read_bs2,
    read_labels,
    read_nmnist,
)

FIRST_EVENT = bytes([0x12, 0x10, 0x80, 0x03, 0x7D])  # DATA.md: x 18, y 16, p 1, t 893


def encode(x: int, y: int, p: int, t: int) -> bytes:
    return bytes([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255])


def test_documented_bytes(tmp_path: Path) -> None:
    path = tmp_path / "1.bs2"
    path.write_bytes(FIRST_EVENT + encode(33, 0, 0, 2**23 - 1))
    events = read_bs2(path)
    assert [tuple(int(event[field]) for field in "xypt") for event in events] == [
        (18, 16, 1, 893),
        (33, 0, 0, 2**23 - 1),
    ]


def test_random_bytes_are_read_as_tonic_reads_them(tmp_path: Path) -> None:
    """The values are those of tonic.io.read_mnist_file; all bits of the time and both polarities occur."""
    path = tmp_path / "1.bs2"
    path.write_bytes(
        bytes.fromhex(
            "000482c98c101f9f468318122559d60410c1713f14025e23d11412dedbf00405f2a9ab1b0dfafe75"
        )
    )
    assert [tuple(int(event[field]) for field in "xypt") for event in read_bs2(path)] == [
        (0, 4, 1, 182668),
        (16, 31, 1, 2049667),
        (24, 18, 0, 2447830),
        (4, 16, 1, 4288831),
        (20, 2, 0, 6169553),
        (20, 18, 1, 6216688),
        (4, 5, 1, 7514539),
        (27, 13, 1, 8060533),
    ]


def test_all_real_recordings_are_read_as_tonic_reads_them(nmnist_root: Path) -> None:
    """The hash is that of the arrays of tonic.io.read_mnist_file, files in the order of their names as text."""
    digest = hashlib.sha256()
    for path in sorted(nmnist_root.glob("*.bs2")):
        digest.update(read_bs2(path).tobytes())
    assert digest.hexdigest() == "56ef56dfb6bfcc6e17a9c1d50b47f21e3ba0659639754773569b150905a5bc7a"


def test_an_overflow_of_the_clock_moves_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "1.bin"
    path.write_bytes(encode(1, 2, 0, 8000) + encode(0, 240, 0, 0) + encode(3, 4, 1, 5))
    assert [int(t) for t in read_bs2(path)["t"]] == [8000, 8192 + 5]


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    for split, digit, number in (
        ("Train", 5, "00001"),
        ("Train", 0, "00002"),
        ("Test", 9, "00001"),
    ):
        folder = tmp_path / split / str(digit)
        folder.mkdir(parents=True)
        (folder / f"{number}.bin").write_bytes(FIRST_EVENT)
    train, test = read_nmnist(tmp_path, "train"), read_nmnist(tmp_path, "test")
    assert (train.names, train.labels.tolist()) == (("0/00002", "5/00001"), [0, 5])
    assert (test.names, test.labels.tolist()) == (("9/00001",), [9])
    assert check(tmp_path).splits == {"train": 2, "test": 1}
    (tmp_path / "Train" / "notes").mkdir()
    with pytest.raises(DataError, match="is no folder of a digit"):
        read_nmnist(tmp_path, "train")
    with pytest.raises(DataError, match=r"unpack Train.zip and Test.zip"):
        read_nmnist(tmp_path / "Test", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (FIRST_EVENT + b"\0\0", "has 7 bytes, not a multiple of 5: it is truncated"),
        (encode(34, 0, 0, 1), "record event 0: x, y = 34, 0 lie off the 34x34 sensor"),
        (FIRST_EVENT + encode(0, 241, 0, 900), "record event 1: x, y = 0, 241"),
        (encode(0, 240, 0, 900), "holds no event"),
        (encode(1, 1, 0, 50) + encode(1, 1, 0, 49), "record event 1: time runs backwards"),
    ],
)
def test_bad_recordings_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "7.bs2"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_bs2(path)
    assert "7.bs2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "train1K.txt").write_bytes(b"#sample #class\r\n1\t5\r\n")
    with pytest.raises(DataError, match=r"1\.bs2: recording is missing"):
        read_nmnist(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no sample"),
        ("1 5 6\n", "line 1: '1 5 6' is not"),
        ("../1\t5\n", "line 1"),
        ("1\t10\n", "line 1: class 10, allowed 0..9"),
        ("1\t5\n1\t5\n", "line 2: sample 1 is named twice"),
    ],
)
def test_bad_label_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train1K.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_labels_accept_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "test100.txt"
    path.write_bytes("\ufeff#sample #class\r\n60001\t7\r\n".encode())
    assert read_labels(path) == {"60001": 7}


def test_real_splits(nmnist_root: Path) -> None:
    test, train = read_nmnist(nmnist_root, "test"), read_nmnist(nmnist_root, "train")
    assert np.bincount(test.labels).tolist() == [
        8,
        14,
        8,
        11,
        14,
        7,
        10,
        15,
        2,
        11,
    ]  # DATA.md section 7
    assert len(train) == 1000
    assert not set(train.names) & set(test.names)
    lengths = np.diff(np.concatenate([train.offsets, test.offsets[1:] + train.offsets[-1]]))
    assert (lengths.min(), lengths.max()) == (1069, 7152)


def test_binning_equals_a_walk_over_the_events(nmnist_root: Path) -> None:
    recordings = read_nmnist(nmnist_root, "test")
    counts = bin_counts(recordings, np.array([3, 0]), 12, 17_000)
    for row, index in enumerate((3, 0)):
        expected = np.zeros(counts.shape[1:], dtype=np.int64)
        left_out = 0
        for x, y, t, p in read_bs2(nmnist_root / f"{recordings.names[index]}.bs2").tolist():
            if t < 12 * 17_000:
                expected[t // 17_000, p, y, x] += 1
            else:
                left_out += 1
        assert expected.sum() > 500
        assert left_out > 0
        assert np.array_equal(counts[row], expected)


def one_event(x: int, y: int) -> EventRecordings:
    u8 = np.uint8
    return EventRecordings(
        np.array([x], u8), np.array([y], u8), np.array([1], u8), np.array([5], np.int32),
        np.array([0, 1]), np.array([0]), ("a",), 34, 34,
    )  # fmt: skip


def test_jitter_moves_within_its_bounds_and_loses_what_leaves() -> None:
    jitter = Jitter(shift_px=2)
    places = {
        tuple(
            int(i)
            for i in np.argwhere(
                bin_counts(one_event(10, 20), np.array([0]), 1, 10, jitter=jitter, rng=rng)
            )[0][3:]
        )
        for rng in map(np.random.default_rng, range(200))
    }
    assert {y for y, _ in places} == {18, 19, 20, 21, 22}
    assert {x for _, x in places} == {8, 9, 10, 11, 12}
    lost = [
        bin_counts(
            one_event(0, 0), np.array([0]), 1, 10, jitter=jitter, rng=np.random.default_rng(seed)
        ).sum()
        for seed in range(50)
    ]
    assert set(lost) == {0, 1}


def test_quarter_turn_is_exact() -> None:
    class Ninety(np.random.Generator):
        def uniform(self, low: float, high: float, size: object = None) -> np.ndarray:
            return np.full(size, high)

    turned = bin_counts(
        one_event(33, 0),
        np.array([0]),
        1,
        10,
        jitter=Jitter(rotation_deg=90),
        rng=Ninety(np.random.PCG64(0)),
    )
    assert np.argwhere(turned).tolist() == [
        [0, 0, 1, 33, 33]
    ]  # right-top goes to right-bottom: x' = -dy, y' = dx
