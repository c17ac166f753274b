"""Help generators of datasets: ranges of settings, tables, and a folder that appears whole."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knarr.train.errors import DataError


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Refuse a whole number outside low .. high.

    Raises:
        ValueError: It is outside.
    """
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} outside {low} .. {high}; choose a value inside")


def check_seed(seed: int) -> None:
    """Refuse a seed that numpy's generators do not take.

    Raises:
        ValueError: It is negative.
    """
    if seed < 0:
        raise ValueError(f"seed: {seed} < 0; use a number that is not negative")


def numbers_by_name(table: str) -> dict[str, list[float]]:
    """Return the numbers of each line of a table, by the name at the line's beginning."""
    rows = map(str.split, table.strip().splitlines())
    return {name: [float(number) for number in numbers] for name, *numbers in rows}


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `root` when the block ends.

    An exception in the block removes it.

    What a killed run left beside `root` is removed first, so one process at a time may write a
    given root.

    Args:
        root: Folder to create; it must not exist. Missing parents are created.

    Raises:
        DataError: `root` exists.
    """
    # A link that leads nowhere counts as well: renaming would replace it in silence.
    if os.path.lexists(root):
        raise DataError(root, "exists: will not overwrite it; remove it or name a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}.partial-"
    for leftover in root.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover)
    # In the same parent, because a rename is one step on one file system only.
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        whole = partial / root.name
        whole.mkdir()
        yield whole
        whole.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
