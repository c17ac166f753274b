"""Files of a dataset: inside its folder, of a size that can be, and known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from knarr.train.errors import DataError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class DataReport:
    """How many samples of a dataset can be used, and why each of the others cannot.

    Attributes:
        name: The dataset, such as "deap".
        root: The folder that was checked.
        samples: Number of usable samples. A sample is what carries one label of its own: a sequence, a trial, a
            session; not the windows it is cut into later.
        splits: Usable samples of each split, by its name.
        subjects: Number of people (or videos, where a person is a video) with at least one usable sample.
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
        """Whether nothing was left out and nothing is missing."""
        return not self.skipped and not self.missing

    def to_json(self) -> dict[str, object]:
        """Plain values that `json.dump` takes, with the key "complete" beside the attributes."""
        return {
            "name": self.name,
            "root": self.root,
            "samples": self.samples,
            "splits": dict(self.splits),
            "subjects": self.subjects,
            "skipped": list(self.skipped),
            "missing": list(self.missing),
            "complete": self.complete,
        }


def inside(path: Path, root: Path, record: str | None = None) -> Path:
    """`path` itself, unless it leads out of the root through ``..`` or a link.

    Raises:
        DataError: It leads out; `record` is named in the message.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        reason = f"outside root: leads to {path.resolve()}; keep the dataset in one folder"
        raise DataError(path, reason, record)
    return path


def checked_file(path: Path, root: Path, max_bytes: int, record: str | None = None) -> Path:
    """`path` itself, when it is a file inside the root that holds 1 .. `max_bytes` bytes.

    Raises:
        DataError: "outside root", "missing file", "empty file" or "file too large".
    """
    inside(path, root, record)
    if not path.is_file():
        raise DataError(path, "missing file: not there; restore it", record)
    size = path.stat().st_size
    if size == 0:
        raise DataError(path, "empty file: 0 bytes; restore it", record)
    if size > max_bytes:
        reason = f"file too large: {size} > {max_bytes} bytes; this is no file of the dataset"
        raise DataError(path, reason, record)
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
