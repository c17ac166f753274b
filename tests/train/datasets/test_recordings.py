"""Recordings of event cameras, read from bytes written here; damaged ones are refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from event_files import (
    EVENTS,
    EVT2,
    EVT3,
    HEIGHT,
    WIDTH,
    Events,
    aedat4,
    dat,
    draw,
    es,
    evt2,
    evt3,
)

from knarr.train.datasets.events.recordings import RecordingReader, kind_of_recording
from knarr.train.errors import DataError

for package in ("aedat", "faery"):
    pytest.importorskip(package, reason=f"{package} is not installed; pip install 'knarr[events]'")

CLOCK_US = 1_700_000_000_000_000
"""A camera's clock that counts from 1970, as AEDAT4 has it."""
WRITERS: dict[str, tuple[str, Callable[[Events], bytes], int]] = {
    "evt2": ("raw", evt2, 5_000_000),
    "evt3": ("raw", evt3, 0),
    "dat": ("dat", dat, 3_000_000_000),
    "es": ("es", es, 0),
    "aedat4": ("aedat4", lambda events: aedat4([events[:200], events[200:]]), CLOCK_US),
    "aedat4 lz4": ("aedat4", lambda events: aedat4([events], compression="lz4"), CLOCK_US),
    "aedat4 zstd": ("aedat4", lambda events: aedat4([events], compression="zstd"), CLOCK_US),
}


SHARED = RecordingReader()
"""One for all tests: its process takes half a second to start."""


@pytest.fixture(scope="module", autouse=True)
def _end_of_shared() -> Iterator[None]:
    with SHARED:
        yield


def read(path: Path, reader: RecordingReader = SHARED) -> Events:
    stream = reader.open(path)
    assert (stream.width, stream.height) == (WIDTH, HEIGHT)
    return np.concatenate(list(stream.chunks))


def refused(path: Path, data: bytes, *words: str, reader: RecordingReader = SHARED) -> None:
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(path, reader)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_events_that_were_written(name: str, tmp_path: Path) -> None:
    kind, write, first_us = WRITERS[name]
    events = draw(1, first_us=first_us, last_us=first_us + 300_000)
    if name == "evt3":
        # Its vectors hold the events of a row in order of columns, each once.
        events = np.unique(events[["t", "y", "p", "x"]])[["t", "x", "y", "p"]].astype(EVENTS)
    path = tmp_path / "recording.mp4"  # a name says nothing
    path.write_bytes(write(events))
    assert kind_of_recording(path) == kind
    got = read(path)
    for field in "txyp":
        np.testing.assert_array_equal(got[field], events[field], err_msg=field)
    assert len({*got["p"].tolist()}) == 2


def test_words_by_hand(tmp_path: Path) -> None:
    # EVT 3: high 1, low 5, row 3, then a vector from column 24 with bits 0, 2 and 11, falling.
    words = [0x8001, 0x6005, 0x0003, 0x3018, 0x4805]
    (tmp_path / "a").write_bytes(EVT3 + np.array(words, "<u2").tobytes())
    got = read(tmp_path / "a")
    assert got.tolist() == [(4101, 24, 3, 0), (4101, 26, 3, 0), (4101, 35, 3, 0)]
    # Event Stream: 127 us pass, then 3 us; rising, column 2, the row above the lowest.
    data = b"Event Stream\x02\x00\x00\x01" + struct.pack("<HH", WIDTH, HEIGHT)
    (tmp_path / "b").write_bytes(data + b"\xff\x07\x02\x00\x01\x00")
    assert read(tmp_path / "b").tolist() == [(130, 2, HEIGHT - 2, 1)]


def test_clocks_that_run_over_go_on(tmp_path: Path) -> None:
    events = draw(2)
    over = (1 << 24) - 100_000
    events["t"] += over
    unique = np.unique(events[["t", "y", "p", "x"]])[["t", "x", "y", "p"]].astype(EVENTS)
    (tmp_path / "a").write_bytes(evt3(unique))
    np.testing.assert_array_equal(read(tmp_path / "a")["t"], unique["t"])
    events["t"] += (1 << 32) - (1 << 24)
    (tmp_path / "b").write_bytes(dat(events))
    np.testing.assert_array_equal(read(tmp_path / "b")["t"], events["t"])


def test_events_before_the_first_time_are_counted_not_kept(tmp_path: Path) -> None:
    events = draw(3)
    body = evt2(events, b"")
    first = struct.pack("<I", 1 << 28 | 5 << 11 | 6)
    for name, header, data in (
        ("a", EVT2, first * 3 + body),
        ("b", EVT3, np.array([0x0003, 0x2804], "<u2").tobytes() + evt3(events[:1], b"")),
    ):
        (tmp_path / name).write_bytes(header + data)
        stream = SHARED.open(tmp_path / name)
        got = np.concatenate(list(stream.chunks))
        assert stream.untimed == {"a": 3, "b": 1}[name]
        assert len(got) == {"a": len(events), "b": 1}[name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_was_cut_is_refused(name: str, tmp_path: Path) -> None:
    data = WRITERS[name][1](draw(4))
    whole = tmp_path / "whole"
    whole.write_bytes(data)
    assert len(read(whole))
    for missing in (1, 3):
        refused(tmp_path / "cut", data[:-missing], "truncated recording", "copy it again")


def test_only_header_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "a", EVT2, "truncated recording")
    refused(tmp_path / "b", es(draw(0)[:0]), "no events")
    refused(tmp_path / "c", aedat4([]), "no events")
    refused(tmp_path / "d", dat(draw(0)[:0]), "truncated recording")


def test_time_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    events = draw(5)
    events["t"][300:310] = 20_000
    for write in (evt2, dat, lambda e: aedat4([e]), lambda e: aedat4([e], compression="zstd")):
        refused(tmp_path / "a", write(events), "time runs backwards", "record event 300")
    words = np.array([0x8009, 0x6000, 0, 0x2001, 0x8002, 0x6000, 0x2001], "<u2")
    refused(tmp_path / "b", EVT3 + words.tobytes(), "time runs backwards", "8192 us after 36864 us")


def test_an_event_off_the_sensor_is_refused(tmp_path: Path) -> None:
    events = draw(6)
    events["x"][7] = WIDTH
    for write in (evt2, dat, es, lambda e: aedat4([e])):
        refused(tmp_path / "a", write(events), "off the sensor")
    # A vector that reaches over the edge: faery alone would leave the event out.
    words = np.array([0x8000, 0x6000, 0, 0x3000 | WIDTH - 2, 0x4007], "<u2")
    refused(tmp_path / "b", EVT3 + words.tobytes(), "off the sensor", "1 of 3 events")


def test_a_size_that_the_header_lacks_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    events = draw(7)
    data = evt2(events, b"% evt 2.0\n% system_ID 21\n")
    refused(path, data, "sensor: its header does not say", "--sensor")
    with RecordingReader((WIDTH, HEIGHT)) as reader:
        np.testing.assert_array_equal(read(path, reader)["x"], events["x"])
    with RecordingReader((99, 9)) as reader:
        refused(path, evt2(events), "sensor: 40x30 by its header", reader=reader)


def test_several_cameras_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "stereo.aedat4"
    left, right = draw(8), draw(9)
    data = aedat4([left, right], streams=("EVTS", "EVTS"))
    refused(path, data, "several cameras: streams 0, 1", "--stream")
    with RecordingReader(stream=1) as reader:
        np.testing.assert_array_equal(read(path, reader)["x"], right["x"])
    with RecordingReader(stream=7) as reader:
        refused(path, data, "stream: 7 is none of events", reader=reader)
    refused(path, aedat4([left], streams=("IMUS",)), "no events: it holds other streams")


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    events = draw(0)
    refused(tmp_path / "a", b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "AEDAT 3.1, not 4.0")
    refused(tmp_path / "b", evt2(events, b"% evt 2.1\n"), "EVT 2.1", "metavision_file_to_dat")
    refused(tmp_path / "c", evt2(events, b"% date 2020\n"), "names neither")
    refused(tmp_path / "d", es(events, kind=2), "ATIS")
    refused(tmp_path / "e", b"no recording", "no recording of an event camera")


def test_a_header_that_ends_its_decoder_is_an_error_and_the_next_file_is_read(
    tmp_path: Path,
) -> None:
    good = tmp_path / "good"
    good.write_bytes(aedat4([draw(1)]))
    damaged = bytearray(good.read_bytes())
    # The length of the text, which the decoder believes.
    at = damaged.index(b"<dv") - 4
    damaged[at : at + 4] = struct.pack("<I", 1 << 30)
    (tmp_path / "bad").write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(DataError, match="damaged recording"):
            SHARED.open(tmp_path / "bad")
        assert len(read(good)) == 500


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (14, 0xFFFFFFFF, "a header of 4294967295 bytes"),
        (18, 0xFFFFFFFF, "its header leads to byte"),
        (18, 0x00000040, "damaged recording"),
        (18 + 28, 1 << 20, "its table is said to be at byte"),
    ],
)
def test_absurd_headers(at: int, value: int, words: str, tmp_path: Path) -> None:
    data = bytearray(aedat4([draw(1)], table=0))
    data[at : at + 4] = struct.pack("<I", value)
    refused(tmp_path / "a", bytes(data), words)


def test_a_reader_that_stops_midway_reads_the_next_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(aedat4([draw(1), draw(1, first_us=200_000, last_us=300_000)]))
    (tmp_path / "b").write_bytes(dat(draw(2)))
    begun = SHARED.open(tmp_path / "a")
    assert len(next(begun.chunks)) == 500
    got = read(tmp_path / "b")
    np.testing.assert_array_equal(got["x"], draw(2)["x"])
