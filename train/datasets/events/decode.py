"""Decode recordings for another process, which outlives what a damaged file does to this one.

The decoders are written in Rust: at some damaged headers they end their process, and a small file
may claim terabytes. Usage: `python -m knarr.train.datasets.events.decode`; each line of standard
input is a job as JSON, with path, kind, sensor and stream. The answer is a row of messages: a tag
and a length (`HEADER`), then as many bytes.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

EVENTS: Final = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""An event: microseconds, column, row from the top, polarity."""
HEADER: Final = struct.Struct("<cQ")
HEAD, EVENTS_TAG, END, FAULT = b"h", b"e", b".", b"!"
MOST_BYTES: Final = 4 << 30
"""Memory that decoding may take."""
Opened = tuple[tuple[int, int], Iterator[np.ndarray[Any, Any]]]


class FaultError(Exception):
    """A recording that cannot be decoded; the text is a reason as `DataError` has it."""


def main() -> None:
    """Answer each line of standard input."""
    # Not on every system, and where it is missing a large claim fails all the same, though later.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin:
        job = json.loads(line)
        try:
            _answer(**job)
            _send(END, b"")
        except FaultError as error:
            _send(FAULT, str(error).encode())
        except BrokenPipeError:
            return
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
            said = " ".join(str(error).split())[:200] or type(error).__name__
            # faery's own words, such as "x overflow (x=400 must be strictly smaller than width=320)".
            off = said.startswith(("x overflow", "y overflow"))
            kind = "off the sensor" if off else "damaged recording"
            _send(FAULT, f"{kind}: {said}; copy or convert it again".encode())


def _answer(path: str, kind: str, sensor: list[int] | None, stream: int | None) -> None:
    (width, height), chunks = (
        _aedat4(path, stream) if kind == "aedat4" else _faery(path, kind, sensor)
    )
    _send(HEAD, json.dumps({"width": width, "height": height}).encode())
    for chunk in chunks:
        events = np.empty(len(chunk), EVENTS)
        for name in EVENTS.names or ():
            events[name] = chunk[name]
        _send(EVENTS_TAG, events.tobytes())


def _aedat4(path: str, stream: int | None) -> Opened:
    from aedat import Decoder

    decoder = Decoder(path)
    cameras = {
        number: (int(about["width"]), int(about["height"]))
        for number, about in decoder.id_to_stream().items()
        if about["type"] == "events"
    }
    if not cameras:
        raise FaultError("no events: it holds other streams alone; record the camera's events")
    if stream is None and len(cameras) > 1:
        numbers = ", ".join(map(str, sorted(cameras)))
        raise FaultError(f"several cameras: streams {numbers}; choose one with --stream")
    chosen = min(cameras) if stream is None else stream
    if chosen not in cameras:
        numbers = ", ".join(map(str, sorted(cameras)))
        raise FaultError(
            f"stream: {chosen} is none of events; choose one of {numbers} with --stream"
        )
    return cameras[chosen], (
        packet["events"] for packet in decoder if packet["stream_id"] == chosen
    )


def _faery(path: str, kind: str, sensor: list[int] | None) -> Opened:
    import faery

    # A size of nothing is that of a header that does not say.
    width, height = sensor or (0, 0)
    decoder = faery.events_stream_from_file(
        Path(path),
        dimensions_fallback=(width, height),
        file_type="evt" if kind == "raw" else kind,
    )
    width, height = decoder.dimensions()
    return (width, height), iter(decoder)


def _send(tag: bytes, data: bytes) -> None:
    sys.stdout.buffer.write(HEADER.pack(tag, len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
