"""Open files of a dataset strictly, and report the bad ones.

A file lies inside its folder, has a size that can be, and is known by its content.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from knarr.train.errors import DataError

_BLOCK_BYTES = 1 << 20
_log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]
"""Choice of a reader at a bad record: raise its error, or leave it out and count it."""


@dataclass(frozen=True)
class DataReport:
    """Numbers of samples of a dataset that can be used, and why each of the others cannot.

    Attributes:
        name: The dataset, such as "deap".
        root: The folder that was checked.
        samples: Number of usable samples. A sample is what carries one label of its own: a
            sequence, a trial, a session; not the windows it is cut into later.
        splits: Usable samples of each split, by its name.
        subjects: Number of people (or videos, where a person is a video) with at least one usable
            sample.
        skipped: One line for each sample left out: the file, the record and the reason.
        missing: What should be there and is not: files, folders, numbers of records.
    """

    name: str
    root: str
    samples: int
    splits: Mapping[str, int]
    subjects: int
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True where nothing was left out and nothing is missing."""
        return not self.skipped and not self.missing

    def to_json(self) -> dict[str, object]:
        """Return plain values that `json.dump` takes: the attributes, then "complete"."""
        return {**asdict(self), "complete": self.complete}


def data_report(
    name: str,
    root: Path,
    splits: Mapping[str, int],
    skipped: Iterable[DataError],
    *,
    missing: Iterable[str] = (),
    subjects: int | None = None,
) -> DataReport:
    """Return the report of a dataset whose splits hold every usable sample once.

    Args:
        name, root, splits, missing: as in the report.
        skipped: an error for each sample left out.
        subjects: number of people; None where each split is the samples of one person.
    """
    return DataReport(
        name,
        str(root),
        sum(splits.values()),
        splits,
        len(splits) if subjects is None else subjects,
        tuple(map(str, skipped)),
        tuple(missing),
    )


def is_strict(on_bad: OnBad) -> bool:
    """Say whether the first bad record is to be raised.

    Raises:
        ValueError: `on_bad` is neither "raise" nor "skip".
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    return on_bad == "raise"


def report_skipped(root: Path, what: str, errors: Sequence[DataError]) -> None:
    """Log each error, and warn the caller of a reader once with their number and kinds.

    Args:
        root: the dataset's folder.
        what: noun for what was left out, such as "sessions".
        errors: one for each of them.
    """
    for error in errors:
        _log.warning("%s", error)
    if errors:
        warnings.warn(
            f"{root}: skipped {len(errors)} {what}: {kinds_text(count_kinds(errors))}", stacklevel=3
        )


def count_kinds(errors: Iterable[DataError]) -> Counter[str]:
    """Count errors by kind."""
    return Counter(error.kind for error in errors)


def kinds_text(counts: Mapping[str, int]) -> str:
    """Return counts by kind as a warning states them: "empty file 1, missing image 2"."""
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def check_root(root: Path) -> None:
    """Refuse a dataset's folder that is not there.

    Raises:
        DataError: "missing root".
    """
    if not root.is_dir():
        raise DataError(
            root, "missing root: no such folder; check the path, or get the dataset first"
        )


def inside(path: Path, root: Path, record: str | None = None) -> Path:
    """Return `path` itself, unless it leads out of the root through ``..`` or a link.

    Raises:
        DataError: It leads out; `record` is named in the message.
    """
    # Both are resolved: the root may be a link itself, and then its files lie elsewhere too.
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            path, f"outside root: leads to {path.resolve()}; keep the dataset in one folder", record
        )
    return path


def checked_file(path: Path, root: Path, max_bytes: int, record: str | None = None) -> Path:
    """Return `path` itself, when it is a file inside the root that holds 1 .. `max_bytes` bytes.

    Raises:
        DataError: "outside root", "missing file", "empty file" or "file too large".
    """
    inside(path, root, record)
    if not path.is_file():
        raise DataError(path, "missing file: not there; restore it", record)
    check_size(path, path.stat().st_size, max_bytes, record)
    return path


def check_size(path: Path, n_bytes: int, max_bytes: int, record: str | None = None) -> None:
    """Refuse a file by its size, before any of it is read.

    Raises:
        DataError: "empty file" or "file too large".
    """
    if n_bytes == 0:
        raise DataError(path, "empty file: 0 bytes; restore it", record)
    if n_bytes > max_bytes:
        raise DataError(
            path,
            f"file too large: {n_bytes} > {max_bytes} bytes; this is no file of the dataset",
            record,
        )


def checked_folder(path: Path, root: Path, cure: str) -> Path:
    """Return `path` itself, when it is a folder inside the root.

    Raises:
        DataError: "outside root", or "missing folder" with the cure.
    """
    inside(path, root)
    if not path.is_dir():
        raise DataError(path, f"missing folder: not there; {cure}")
    return path


def read_text(path: Path, record: str | None = None) -> str:
    """Read a file of UTF-8, with or without a byte-order mark.

    Raises:
        DataError: "not UTF-8".
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            path, f"not UTF-8: {error.reason} at byte {error.start}; convert it", record
        ) from error


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row of a file's text, such as "line 3", and its fields.

    Raises:
        DataError: "malformed CSV".
    """
    # Line ends are left to the reader: one inside quotes belongs to the field.
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise DataError(
            path, f"malformed CSV: {error}; restore it", f"line {rows.line_num}"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
