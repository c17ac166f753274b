"""Read N-MNIST, recordings of an event camera, and count their events in time bins.

Strict: nothing is dropped or repaired in silence. Format: 5 bytes an event: x, y, then bit 7 of
byte 2 is the polarity and its low 7 bits with bytes 3 and 4 (big-endian) the time in microseconds
(Orchard et al. 2015, https://doi.org/10.3389/fnins.2015.00437).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.arrays import Float64, Int64, Rng, UInt8
from knarr.train.datasets.files import DataReport, data_report
from knarr.train.errors import DataError

SENSOR = 34
CLASSES = 10
EVENT_BYTES = 5
MAX_FILE_BYTES = 10_000_000
LISTS = {"train": "train1K.txt", "test": "test100.txt"}
"""Lists of the small set, beside the recordings."""
FOLDERS = {"train": "Train", "test": "Test"}
"""Folders of the published set, as its archives and tonic lay them out."""
OVERFLOW_Y, OVERFLOW_US = 240, 2**13
"""An event on this row is none: all events from there on are later by as much. Source: the authors'
own reader, Read_Ndataset.m.
"""
_EVENT_DTYPE = np.dtype([("x", np.uint8), ("y", np.uint8), ("t", np.int32), ("p", np.uint8)])


@dataclass(frozen=True, eq=False)
class EventRecordings:
    """Recordings of events laid end to end.

    Args:
        x, y: (events,) pixel column and row, 0..width-1 and 0..height-1.
        p: (events,) polarity, 0 or 1.
        t_us: (events,) microseconds since the recording began, rising within a recording.
        offsets: (recordings + 1,) where each recording begins and ends.
        labels: (recordings,) class.
        names: one per recording.
        height, width: size of the sensor in pixels.
    """

    x: UInt8
    y: UInt8
    p: UInt8
    t_us: npt.NDArray[np.int32]
    offsets: Int64
    labels: Int64
    names: tuple[str, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Jitter:
    """Random affine motion of a recording's pixels: the augmentation for small event sets.

    Args:
        rotation_deg: largest rotation either way, degrees.
        scale: largest relative change of size.
        shift_px: largest shift along each axis, pixels.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    shift_px: float = 0.0


def read_nmnist(root: Path, split: Literal["train", "test"]) -> EventRecordings:
    """Read all recordings of a split.

    Args:
        root: folder with the recordings and `train1K.txt`, `test100.txt`, or with the folders `Train`
            and `Test` of the published set, which hold `<digit>/<number>.bin`.
        split: "train" or "test".

    Raises:
        DataError: anything missing or malformed; names the file, the record and the reason.
    """
    if not root.is_dir():
        raise DataError(root, "data folder is missing; pass the N-MNIST folder with --data")
    listed = _listed(root, split)
    recordings = [read_bs2(path) for path, _ in listed.values()]
    events = np.concatenate(recordings)
    return EventRecordings(
        x=events["x"],
        y=events["y"],
        p=events["p"],
        t_us=events["t"],
        offsets=np.cumsum([0, *map(len, recordings)]),
        labels=np.array([label for _, label in listed.values()], dtype=np.int64),
        names=tuple(listed),
        height=SENSOR,
        width=SENSOR,
    )


def check(root: Path) -> DataReport:
    """Read every recording of both lists and say what can be used.

    Raises:
        DataError: no folder, or a list that cannot be used as a whole.
    """
    if not root.is_dir():
        raise DataError(root, "data folder is missing; give the N-MNIST folder")
    splits = dict.fromkeys(LISTS, 0)
    skipped: list[DataError] = []
    for split in LISTS:
        for path, _ in _listed(root, split).values():
            try:
                read_bs2(path)
                splits[split] += 1
            except DataError as error:
                skipped.append(error)
    # Neither lists nor folders say who wrote a digit, so there are no subjects to count.
    return data_report("nmnist", root, splits, skipped, subjects=0)


def _listed(root: Path, split: str) -> dict[str, tuple[Path, int]]:
    """Return the recording and the class of each sample of a split by its name.

    Raises:
        DataError: neither a list nor the folders of the published set, or something else in them.
    """
    file = root / LISTS[split]
    folder = root / FOLDERS[split]
    if file.is_file():
        return {name: (root / f"{name}.bs2", label) for name, label in read_labels(file).items()}
    if not folder.is_dir():
        # A folder with one of the two lists or folders is named by what it lacks.
        if any((root / name).is_file() for name in LISTS.values()):
            raise DataError(file, "label list is missing; point --data at the folder that holds it")
        raise DataError(
            root,
            f"holds neither {' and '.join(LISTS.values())} nor the folder {FOLDERS[split]}; unpack Train.zip and "
            "Test.zip of the published set into it, which gives Train/<digit>/<number>.bin",
        )
    found: dict[str, tuple[Path, int]] = {}
    for digit in sorted(folder.iterdir()):
        if digit.name.startswith("."):
            continue
        if not digit.is_dir() or digit.name not in map(str, range(CLASSES)):
            raise DataError(digit, f"is no folder of a digit 0..{CLASSES - 1}; take it away")
        for path in sorted(digit.iterdir()):
            if path.suffix.lower() not in (".bin", ".bs2"):
                raise DataError(path, "is no recording .bin; take it away")
            found[f"{digit.name}/{path.stem}"] = path, int(digit.name)
    if not found:
        raise DataError(folder, "holds no recording; unpack the published set again")
    return found


def read_bs2(path: Path) -> npt.NDArray[np.void]:
    """Read the events of one recording.

    Returns:
        A structured array of x, y (0..33), t (microseconds, rising) and p (0 or 1).

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
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, EVENT_BYTES)
    overflows = raw[:, 1] == OVERFLOW_Y
    late_us = np.cumsum(overflows)[~overflows] * OVERFLOW_US
    raw = raw[~overflows]
    if not len(raw):
        raise DataError(path, "recording holds no event; restore it")
    off = (raw[:, :2] >= SENSOR).any(axis=1)
    if off.any():
        event = int(np.argmax(off))
        x, y = raw[event, :2]
        raise DataError(
            path, f"x, y = {x}, {y} lie off the {SENSOR}x{SENSOR} sensor", f"event {event}"
        )
    events = np.empty(len(raw), dtype=_EVENT_DTYPE)
    events["x"], events["y"] = raw[:, 0], raw[:, 1]
    events["p"] = raw[:, 2] >> 7
    high, middle, low = raw[:, 2:].astype(np.int32).T
    events["t"] = ((high & 127) << 16 | middle << 8 | low) + late_us
    falls = np.flatnonzero(np.diff(events["t"]) < 0)
    if len(falls):
        raise DataError(path, "time runs backwards", f"event {falls[0] + 1}")
    return events


def read_labels(path: Path) -> dict[str, int]:
    """Read the class 0..9 of each sample by its name, in the file's order.

    Raises:
        DataError: missing, not text, a malformed row, a class out of range, a sample named twice,
            or no rows.
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
        # A name becomes a path: digits alone cannot leave the folder.
        if len(fields) != 2 or not all(map(str.isdecimal, fields)):
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


def bin_counts(
    recordings: EventRecordings,
    indices: Int64,
    timesteps: int,
    bin_us: int,
    *,
    jitter: Jitter | None = None,
    rng: Rng | None = None,
) -> npt.NDArray[np.int32]:
    """Count events per time bin, polarity and pixel.

    Args:
        recordings: where from.
        indices: (B,) which recordings.
        timesteps: number of bins, T; events after the last bin are left out.
        bin_us: length of a bin, microseconds.
        jitter: random motion of each recording, None for none; needs `rng`. Events moved off the
            sensor are lost.
        rng: source of the motion.

    Returns:
        (B, T, 2, height, width) counts.
    """
    # Indices of all events of the chosen recordings, and which of these each belongs to.
    spans = [np.arange(*recordings.offsets[index : index + 2]) for index in indices]
    events = np.concatenate(spans)
    owner = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
    x, y = recordings.x[events].astype(np.int64), recordings.y[events].astype(np.int64)
    height, width = recordings.height, recordings.width
    if jitter is not None:
        if rng is None:
            raise ValueError("jitter: needs a random generator; pass rng")
        angle = np.deg2rad(_draw(rng, jitter.rotation_deg, len(indices)))
        size = 1 + _draw(rng, jitter.scale, len(indices))
        shift_x, shift_y = _draw(rng, jitter.shift_px, (2, len(indices)))
        cosine, sine = (size * np.cos(angle))[owner], (size * np.sin(angle))[owner]
        # Turned and scaled about the middle of the sensor, not its corner.
        dx, dy = x - (width - 1) / 2, y - (height - 1) / 2
        moved_x = cosine * dx - sine * dy + (width - 1) / 2 + shift_x[owner]
        moved_y = sine * dx + cosine * dy + (height - 1) / 2 + shift_y[owner]
        x, y = np.rint(moved_x).astype(np.int64), np.rint(moved_y).astype(np.int64)
    step = recordings.t_us[events] // bin_us
    keep = (step < timesteps) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    shape = (len(indices), timesteps, 2, height, width)
    places = (owner, step, recordings.p[events], y, x)
    flat = np.ravel_multi_index(tuple(place[keep] for place in places), shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.int32)


def _draw(rng: Rng, most: float, shape: int | tuple[int, int]) -> Float64:
    """Draw evenly between -`most` and `most`."""
    return rng.uniform(-most, most, shape)
