"""Reader of N-MNIST `.bs2` recordings and their label lists: strict, nothing dropped or repaired in silence.

Format: 5 bytes an event: x, y, then bit 7 of byte 2 is the polarity and its low 7 bits with bytes 3 and 4 (big-endian)
the time in microseconds (Orchard et al. 2015, https://doi.org/10.3389/fnins.2015.00437). Decoded by tonic.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tonic.io

from knarr.train.data_error import DataError
from knarr.train.events import EventRecordings

SENSOR = 34
CLASSES = 10
EVENT_BYTES = 5
MAX_FILE_BYTES = 10_000_000
LISTS = {"train": "train1K.txt", "test": "test100.txt"}
_EVENT_DTYPE = np.dtype([("x", np.uint8), ("y", np.uint8), ("t", np.int32), ("p", np.uint8)])


def read_bs2(path: Path) -> npt.NDArray[np.void]:
    """Events of one recording, a structured array of x, y (0..33), t (microseconds, rising) and p (0 or 1).

    Raises:
        DataError: missing, empty, too large, truncated, off the sensor, or time runs backwards.
    """
    if not path.is_file():
        raise DataError(path, "recording is missing; restore it or take it off the list")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise DataError(path, f"recording has {size} bytes, allowed 1..{MAX_FILE_BYTES}")
    if size % EVENT_BYTES:
        raise DataError(
            path,
            f"recording has {size} bytes, not a multiple of {EVENT_BYTES}: it is truncated; copy it again",
        )
    # tonic takes y = 240 for a clock overflow of the full set; here it is off the sensor like any other, so check first.
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, EVENT_BYTES)
    if raw[:, :2].max() >= SENSOR:
        event = int(np.argmax(raw[:, :2].max(axis=1) >= SENSOR))
        raise DataError(
            path,
            f"x, y = {raw[event, 0]}, {raw[event, 1]} lie off the {SENSOR}x{SENSOR} sensor",
            f"event {event}",
        )
    events: npt.NDArray[np.void] = tonic.io.read_mnist_file(
        io.BytesIO(raw.tobytes()), dtype=_EVENT_DTYPE, is_stream=True
    )
    falls = np.flatnonzero(np.diff(events["t"]) < 0)
    if len(falls):
        raise DataError(path, "time runs backwards", f"event {falls[0] + 1}")
    return events


def read_labels(path: Path) -> dict[str, int]:
    """Sample name -> class 0..9, in the file's order.

    Raises:
        DataError: missing, not text, a malformed row, a class out of range, a sample named twice, or no rows.
    """
    if not path.is_file():
        raise DataError(path, "label list is missing; point --data at the folder that holds it")
    try:
        rows = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(path, "label list is not UTF-8 text") from error
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not row.strip() or row.startswith("#"):
            continue
        fields = row.split()
        if len(fields) != 2 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise DataError(path, f"'{row[:60]}' is not 'sample<TAB>class'", f"line {number}")
        name, label = fields[0], int(fields[1])
        if label >= CLASSES:
            raise DataError(path, f"class {label}, allowed 0..{CLASSES - 1}", f"line {number}")
        if name in labels:
            raise DataError(path, f"sample {name} is named twice", f"line {number}")
        labels[name] = label
    if not labels:
        raise DataError(path, "label list names no sample")
    return labels


def read_nmnist(root: Path, split: Literal["train", "test"]) -> EventRecordings:
    """All recordings of a split.

    Args:
        root: folder with the recordings and `train1K.txt`, `test100.txt`.
        split: "train" or "test".

    Raises:
        DataError: anything missing or malformed; names the file, the record and the reason.
    """
    if not root.is_dir():
        raise DataError(root, "data folder is missing; pass the N-MNIST folder with --data")
    labels = read_labels(root / LISTS[split])
    recordings = [read_bs2(root / f"{name}.bs2") for name in labels]
    events = np.concatenate(recordings)
    return EventRecordings(
        x=events["x"],
        y=events["y"],
        p=events["p"],
        t_us=events["t"],
        offsets=np.cumsum([0, *(len(r) for r in recordings)]),
        labels=np.array(list(labels.values()), dtype=np.int64),
        names=tuple(labels),
        height=SENSOR,
        width=SENSOR,
    )
