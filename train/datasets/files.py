"""Files of a dataset: inside its folder, of a size that can be, and known by their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from knarr.train.data_error import DataError

_BLOCK_BYTES = 1 << 20


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
