"""Tell recordings of event cameras by their content, and read them whole or not at all.

    AEDAT4    iniVation      https://docs.inivation.com, read by the package aedat
    EVT 2, 3  Prophesee      https://docs.prophesee.ai, read by the package faery
    DAT       Prophesee      the same
    ES        Event Stream   https://github.com/neuromorphicsystems/event_stream, the same
    N-MNIST   .bin and .bs2  `nmnist`, which needs neither

Both packages set times that run backwards to the time before, leave out what lies off the sensor, or
end where a file was cut, each in some format. So the bytes are looked at first (`check_bytes`), and
a process of its own decodes, for a damaged file may end it (`decode`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from knarr.extras import MissingExtraError, cure
from knarr.train.datasets.events.decode import END, EVENTS, EVENTS_TAG, FAULT, HEADER
from knarr.train.datasets.events.nmnist import EVENT_BYTES, SENSOR, read_bs2
from knarr.train.errors import DataError

Kind = Literal["aedat4", "raw", "dat", "es", "nmnist"]
EventArray: TypeAlias = npt.NDArray[np.void]
PACKAGES: Final = {"aedat4": "aedat", "raw": "faery", "dat": "faery", "es": "faery"}
"""Kind -> package that decodes it."""
AEDAT4, AEDAT, ES = b"#!AER-DAT4.0\r\n", b"#!AER-DAT", b"Event Stream"
MAX_HEADER_BYTES: Final = 1 << 16
LOOKED_AT_EVENTS: Final = 200
"""Events of a headerless file that must be such as N-MNIST has them."""
BLOCK_BYTES: Final = 1 << 24
"""Bytes looked at at a time, a multiple of every size of a word."""
EVT2_HIGH, EVT3_HIGH = 8, 8
EVT3_ADDRESS, EVT3_VECTOR12, EVT3_VECTOR8 = 2, 4, 5
EVT3_JITTER: Final = 2
"""Steps of 4,096 us by which cameras repeat an older high word; faery leaves such a word out."""
EVT3_LAP: Final = 1 << 12
ES_HEADER_BYTES, ES_EVENT_BYTES, ES_OVERFLOW_US, ES_RESET = 20, 5, 127, 0xFE
SET_BITS: Final = np.array([number.bit_count() for number in range(1 << 12)], np.uint8)
"""Set bits of each 12-bit vector of events."""


@dataclass(frozen=True, eq=False)
class EventStream:
    """An open recording.

    Args:
        path: The file.
        kind: Its format.
        width, height: Pixels of the sensor.
        untimed: Events before its first time, which are left out.
        chunks: Its events in order, arrays of `EVENTS`: microseconds that never fall, columns and
            rows from the top left corner, polarity 0 or 1. It can be read once.
    """

    path: Path
    kind: Kind
    width: int
    height: int
    untimed: int
    chunks: Iterator[EventArray]

    @property
    def starts_at_zero(self) -> bool:
        """True where times count from the beginning of the recording, not from that of a clock."""
        return self.kind == "nmnist"


def kind_of_recording(path: Path) -> Kind | None:
    """Return the format of a recording; None for a file that is none, such as a video.

    Raises:
        DataError: A recording in a format that is not read.
    """
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    if head.startswith(AEDAT4):
        return "aedat4"
    if head.startswith(AEDAT):
        found = re.match(rb"[\d.]+", head[len(AEDAT) :])
        version = found[0].decode() if found else "of an unknown version"
        raise DataError(
            path,
            f"format: AEDAT {version}, not 4.0; convert it to .aedat4 with DV, which opens both",
        )
    if head.startswith(ES):
        return "es"
    if head.startswith(b"% "):
        return _kind_of_prophesee(path, head)
    return "nmnist" if _looks_like_nmnist(head, path.stat().st_size) else None


def _kind_of_prophesee(path: Path, head: bytes) -> Kind:
    """Tell the streams of events from decoded events by the words of their text headers."""
    words = {
        line.split()[1].lower()
        for line in head.split(b"\n")
        if len(line.split()) > 1 and line[:1] == b"%"
    }
    if words & {b"evt", b"format"}:
        return "raw"
    if words & {b"version", b"data"}:
        return "dat"
    raise DataError(
        path,
        "format: a header of Prophesee that names neither 'evt' or 'format' (.raw) nor 'Version' (.dat); "
        "write the file again with Metavision",
    )


def _looks_like_nmnist(head: bytes, size: int) -> bool:
    """Say whether the first events lie on N-MNIST's sensor, in order of time: it has no header."""
    count = min(len(head) // EVENT_BYTES, LOOKED_AT_EVENTS)
    raw = np.frombuffer(head, np.uint8, count * EVENT_BYTES).reshape(-1, EVENT_BYTES)
    high, middle, low = raw[:, 2:].astype(np.int32).T
    times = (high & 127) << 16 | middle << 8 | low
    # A row of 240 is none of the sensor, but the mark of a clock that ran over.
    inside = (raw[:, 0] < SENSOR) & ((raw[:, 1] < SENSOR) | (raw[:, 1] == 240))
    return size > 0 and count > 0 and bool(inside.all() and (np.diff(times) >= 0).all())


class RecordingReader(contextlib.AbstractContextManager["RecordingReader"]):
    """Opens recordings one after the other; use as a context manager.

    Args:
        sensor: (width, height) in pixels of recordings whose header does not say; None for none.
        stream: Number of the camera in a file that holds several; None where it holds one.

    One process decodes all of them. It is started at the first file that needs it.
    """

    def __init__(self, sensor: tuple[int, int] | None = None, stream: int | None = None) -> None:
        self.sensor, self.stream = sensor, stream
        self._process: subprocess.Popen[bytes] | None = None
        self._answering = False

    def __exit__(self, *_: object) -> None:
        self._stop(self._process)

    def open(self, path: Path) -> EventStream:
        """Open a recording.

        Its events are checked while they are read, so errors come from `chunks` too.

        Raises:
            DataError: No recording, a truncated or damaged one, one whose sensor is not known, or
                one of several cameras.
            MissingExtraError: The package that decodes it is not installed.
        """
        kind = kind_of_recording(path)
        if kind is None:
            raise DataError(
                path,
                "format: no recording of an event camera; give .aedat4, .raw, .dat, .es or N-MNIST's files",
            )
        if kind == "nmnist":
            return EventStream(path, kind, SENSOR, SENSOR, 0, iter([_nmnist_events(path)]))
        # Before the process that imports it, whose errors are of files.
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise MissingExtraError(cure(PACKAGES[kind]), name=PACKAGES[kind])
        found = check_bytes(path, kind)
        answers = self._ask(path, kind)
        head = json.loads(next(answers)[1])
        width, height = self._size(path, head["width"], head["height"])
        chunks = (np.frombuffer(data, EVENTS) for tag, data in answers if tag == EVENTS_TAG)
        checked = check_events(path, chunks, width, height, found)
        return EventStream(path, kind, width, height, found.untimed, checked)

    def _size(self, path: Path, width: int, height: int) -> tuple[int, int]:
        stated = (width, height) if width and height else None
        if stated is None and self.sensor is None:
            raise DataError(
                path,
                "sensor: its header does not say how large it is; give --sensor, such as 640x480",
            )
        if None not in (stated, self.sensor) and stated != self.sensor:
            raise DataError(
                path,
                f"sensor: {width}x{height} by its header, {'x'.join(map(str, self.sensor or ()))} by --sensor; "
                "leave --sensor out",
            )
        return stated or self.sensor or (0, 0)

    def _ask(self, path: Path, kind: Kind) -> Generator[tuple[bytes, bytes], None, None]:
        """Yield what the decoding process answers about a file: its head, then its events."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        job = {
            "path": str(path.resolve()),
            "kind": kind,
            "sensor": self.sensor,
            "stream": self.stream,
        }
        self._answering = True
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            while True:
                tag, data = _answer(process.stdout)
                if tag in (END, FAULT):
                    self._answering = False
                if tag == FAULT:
                    raise DataError(path, data.decode("utf-8", "replace"))
                if tag == END:
                    return
                yield tag, data
        except (EOFError, BrokenPipeError):
            ended = _how_it_ended(process)
            self._stop(process)
            raise DataError(path, f"damaged recording: {ended}; copy it again") from None

    def _started(self) -> subprocess.Popen[bytes]:
        # What is left of a file that nobody read on would be taken for the next one's.
        if self._answering:
            self._stop(self._process)
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "knarr.train.datasets.events.decode"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Rust prints a backtrace for each damaged file; what it means is in the error raised.
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            process.communicate()
        self._process, self._answering = None, False


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its decoder ended with {reason}, as it does at a header or a packet that cannot be"


def _answer(file: IO[bytes]) -> tuple[bytes, bytes]:
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise EOFError
    tag, length = HEADER.unpack(head)
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return tag, data


def _nmnist_events(path: Path) -> EventArray:
    read = read_bs2(path)
    events = np.empty(len(read), EVENTS)
    for name in EVENTS.names or ():
        events[name] = read[name]
    return events


@dataclass(frozen=True)
class Expected:
    """The events to come, as the bytes of a file tell them.

    Args:
        events: How many there are; None where only decoding tells.
        untimed: How many of them come before the first time, as where a recorder was started while
            the camera ran.
        es_bytes: Bytes of all events of an Event Stream; None for other formats.
    """

    events: int | None = None
    untimed: int = 0
    es_bytes: int | None = None


def check_bytes(path: Path, kind: str) -> Expected:
    """Refuse a file that was cut or whose clock runs backwards.

    Raises:
        DataError: It names the file and what is wrong.
    """
    size = path.stat().st_size
    if kind == "aedat4":
        _check_packets(path, size)
    elif kind == "dat":
        return _check_dat(path, size, _header_bytes(path)[0])
    elif kind == "raw":
        length, text = _header_bytes(path)
        version = _evt_version(path, text)
        return (_check_evt2 if version == "2" else _check_evt3)(path, size, length)
    elif kind == "es":
        return Expected(es_bytes=_check_es_head(path, size))
    return Expected()


def check_events(
    path: Path, chunks: Iterator[EventArray], width: int, height: int, expected: Expected
) -> Iterator[EventArray]:
    """Yield decoded events but those without a time.

    Raises:
        DataError: Times fall, events lie off the sensor, or there are fewer than in the bytes.
    """
    number, last_us, es_bytes, untimed = 0, 0, 0, expected.untimed
    for chunk in chunks:
        number, chunk = number + min(untimed, len(chunk)), chunk[untimed:]
        untimed = max(expected.untimed - number, 0)
        if not len(chunk):
            continue
        times = chunk["t"]
        before = np.concatenate([[last_us], times[:-1]])
        off = (chunk["x"] >= width) | (chunk["y"] >= height)
        for what, wrong in (("time runs backwards", times < before), ("off the sensor", off)):
            if wrong.any():
                at = int(np.argmax(wrong))
                said = (
                    f"{times[at]} us after {before[at]} us"
                    if wrong is not off
                    else f"x, y = {chunk['x'][at]}, {chunk['y'][at]} of {width}x{height} pixels"
                )
                raise DataError(
                    path, f"{what}: {said}; record or convert it again", f"event {number + at}"
                )
        number, last_us = number + len(chunk), int(times[-1])
        es_bytes += int((ES_EVENT_BYTES + (times - before) // ES_OVERFLOW_US).sum())
        yield chunk
    if number == expected.untimed:
        raise DataError(path, "no events: it holds not one with a time; leave it out")
    if expected.events is not None and number != expected.events:
        raise DataError(
            path,
            f"off the sensor: {expected.events - number} of {expected.events} events lie outside "
            f"{width}x{height} pixels; give the camera's own size in the header",
        )
    if expected.es_bytes is not None:
        _check_es_end(path, expected.es_bytes - es_bytes)


def _header_bytes(path: Path) -> tuple[int, str]:
    """Return the length and the text of a header of lines that begin with '%'."""
    lines: list[bytes] = []
    with path.open("rb") as file:
        # Bounded: what follows the header is binary and may have no end of line.
        while (line := file.readline(1 << 16)).startswith(b"%"):
            lines.append(line)
            if line.split() == [b"%", b"end"]:
                break
    return sum(map(len, lines)), b"".join(lines).decode("latin-1")


def _evt_version(path: Path, text: str) -> str:
    found = re.findall(r"^% *(?:evt|format) +(?:EVT)?([\d.]+)", text, re.MULTILINE | re.IGNORECASE)
    versions = {each.removesuffix(".0") for each in found}
    if len(versions) != 1 or not versions <= {"2", "3"}:
        said = " and ".join(sorted(versions)) or "none"
        raise DataError(
            path,
            f"format: EVT {said} by its header, not 2 or 3; convert it with metavision_file_to_dat",
        )
    return versions.pop()


def _whole(path: Path, size: int, start: int, word: int) -> int:
    """Return how many words lie behind a header."""
    if size <= start:
        raise DataError(
            path, f"truncated recording: {size} bytes, all of them header; copy it again"
        )
    if (size - start) % word:
        raise DataError(
            path,
            f"truncated recording: {size - start} bytes of events are no multiple of {word}; copy it again",
        )
    return (size - start) // word


def _blocks(path: Path, start: int, dtype: str) -> Iterator[npt.NDArray[Any]]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            yield np.frombuffer(block, dtype)


def _refuse_fall(path: Path, before: int, after: int, number: int) -> None:
    raise DataError(
        path,
        f"time runs backwards: {after} us after {before} us; record or convert it again",
        f"event {number}",
    )


def _check_dat(path: Path, size: int, start: int) -> Expected:
    """Look at the 32-bit times of DAT; one that falls by half its range has run over."""
    if size < start + 2:
        raise DataError(
            path, f"truncated recording: {size} bytes, all of them header; copy it again"
        )
    count = _whole(path, size, start + 2, 8)
    last = 0
    for number, block in enumerate(_blocks(path, start + 2, "<u4")):
        times = np.concatenate([[last], block[::2]]).astype(np.int64)
        steps = np.diff(times)
        falls = np.flatnonzero((steps < 0) & (steps >= -(1 << 31)))
        if len(falls):
            at = int(falls[0])
            _refuse_fall(path, times[at], times[at + 1], number * (BLOCK_BYTES // 8) + at)
        last = int(times[-1])
    return Expected(count)


def _check_evt2(path: Path, size: int, start: int) -> Expected:
    """Look at the times of EVT 2: 28 high bits in words of their own, 6 in each event."""
    _whole(path, size, start, 4)
    high, last, count, untimed = -1, 0, 0, 0
    for block in _blocks(path, start, "<u4"):
        is_high, is_event = block >> 28 == EVT2_HIGH, block >> 28 < 2
        places = np.maximum.accumulate(np.where(is_high, np.arange(len(block)), -1))
        # Behind a high word of this block, or with the last one of the block before; -1 for none.
        own = (block[places] & 0xFFFFFFF).astype(np.int64)
        highs = np.where(places < 0, high, own)
        untimed += int((is_event & (highs < 0)).sum())
        is_event &= highs >= 0
        times = (highs << 6 | block >> 22 & 63)[is_event]
        steps = np.diff(times, prepend=last)
        # A fall by more than half of the 2^34 us is the clock that has run over.
        falls = np.flatnonzero((steps < 0) & (steps >= -(1 << 33)))
        if len(falls):
            at = int(falls[0])
            _refuse_fall(path, times[at] - steps[at], times[at], untimed + count + at)
        high = int(highs[-1])
        last, count = int(times[-1]) if len(times) else last, count + len(times)
    return Expected(untimed + count, untimed)


def _check_evt3(path: Path, size: int, start: int) -> Expected:
    """Look at the high times of EVT 3, 12 bits of 4,096 us, and count its events."""
    _whole(path, size, start, 2)
    last, count, untimed = -1, 0, 0
    for block in _blocks(path, start, "<u2"):
        kind, value = block >> 12, block & 0xFFF
        if last < 0:
            first = int(np.argmax(kind == EVT3_HIGH)) if (kind == EVT3_HIGH).any() else len(block)
            untimed += _evt3_events(kind[:first], value[:first])
        highs = value[kind == EVT3_HIGH].astype(np.int64)
        known = np.concatenate([[last], highs]) if last >= 0 else highs
        falls = -np.diff(known)
        # A fall by nearly all of the 12 bits is the clock that has run over; faery takes any other
        # for an older word and stops the clock.
        wrong = np.flatnonzero((falls > EVT3_JITTER) & (falls < EVT3_LAP - EVT3_JITTER))
        if len(wrong):
            at = int(wrong[0])
            _refuse_fall(path, known[at] * EVT3_LAP, known[at + 1] * EVT3_LAP, count)
        count += _evt3_events(kind, value)
        last = int(known[-1]) if len(known) else last
    return Expected(count, untimed)


def _evt3_events(kind: npt.NDArray[Any], value: npt.NDArray[Any]) -> int:
    """Count single events and those of vectors, a bit each."""
    count = (kind == EVT3_ADDRESS).sum()
    count += SET_BITS[value[kind == EVT3_VECTOR12]].sum()
    return int(count + SET_BITS[value[kind == EVT3_VECTOR8] & 0xFF].sum())


def _check_packets(path: Path, size: int) -> None:
    """Walk over the packets of AEDAT4: magic, header, then (stream, length, bytes) up to the table.

    The table at the end is missing where a recorder was ended; a packet that was cut is refused.
    """
    with path.open("rb") as file:
        length, start = _unpack(path, "<I", file.read(18), 14)[0], 18
        if start + length > size:
            raise DataError(
                path,
                f"truncated recording: a header of {length} bytes in a file of {size}; copy it again",
            )
        place = start + length
        table = _table_place(path, file.read(length))
        end = size if table < 0 else table
        if not place <= end <= size:
            raise DataError(
                path,
                f"truncated recording: its table is said to be at byte {table} of {size}; copy it again",
            )
        number = 0
        while place < end:
            file.seek(place)
            packet = file.read(8)
            after = place + 8 + (_unpack(path, "<I", packet, 4)[0] if len(packet) == 8 else 0)
            if len(packet) < 8 or after > end:
                raise DataError(
                    path,
                    f"truncated recording: {end - place} bytes are left of it, it needs {after - place}; "
                    "copy it again",
                    f"packet {number}",
                )
            place, number = after, number + 1


def _table_place(path: Path, header: bytes) -> int:
    """Return the byte at which the table of packets lies; -1 for none.

    The header is a flatbuffer: a root table, whose first bytes lead to the list of its fields. The
    second field is the place.
    """
    root = _unpack(path, "<I", header, 0)[0]
    fields = root - _unpack(path, "<i", header, root)[0]
    at = (
        _unpack(path, "<H", header, fields + 6)[0]
        if _unpack(path, "<H", header, fields)[0] > 6
        else 0
    )
    return int(_unpack(path, "<q", header, root + at)[0]) if at else -1


def _unpack(path: Path, form: str, data: bytes, at: int) -> tuple[Any, ...]:
    try:
        if at < 0:  # struct would count from the end
            raise struct.error
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise DataError(
            path, f"damaged recording: its header leads to byte {at} of {len(data)}; copy it again"
        ) from None


def _check_es_head(path: Path, size: int) -> int:
    """Return how many bytes lie behind the header of an Event Stream."""
    with path.open("rb") as file:
        head = file.read(ES_HEADER_BYTES)
    if len(head) < ES_HEADER_BYTES:
        raise DataError(
            path,
            f"truncated recording: {size} bytes, of which {ES_HEADER_BYTES} are header; copy it again",
        )
    kinds = {0: "generic", 2: "ATIS", 4: "colour"}
    if head[15] != 1:
        kind = kinds.get(head[15], f"type {head[15]}")
        raise DataError(
            path, f"format: Event Stream of {kind} events, not of DVS events; convert it with faery"
        )
    return size - ES_HEADER_BYTES


def _check_es_end(path: Path, left: int) -> None:
    """Refuse what lies behind the last whole event, but for bytes that let time pass.

    An event has 5 bytes, and one more for every 127 us since the event before.
    """
    tail = b""
    if left > 0:
        with path.open("rb") as file:
            file.seek(-left, 2)
            tail = file.read()
    if left < 0 or any(byte < ES_RESET for byte in tail):
        raise DataError(
            path,
            f"truncated recording: the {left} bytes behind its last event are part of another; copy it again",
        )
