"""What verbs that take files share: arrays read without trust, and outputs kept apart from inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from knarr.hw_sim import ChipError

MAPPED_BYTES = 2**26


def keep_apart(out: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over what is read, or over the file of facts beside it.

    Raises:
        ChipError: `out` is one of the inputs.
    """
    if out is None:
        return
    mine = {path.resolve() for path in (out, out.with_name(f"{out.name}.json"))}
    for path in inputs:
        if path is not None and mine & {path.resolve(), path.with_name(f"{path.name}.json").resolve()}:
            raise ChipError(f"{out}: is read as {path}; give another name to write to")


def read_inputs(path: Path) -> np.ndarray[Any, Any]:
    """An array of numbers from a .npy file; nothing is unpickled."""
    if not path.is_file():
        raise ChipError(f"{path}: no such file; save integers with numpy.save")
    try:
        # Of large files only what is looked at comes into memory.
        array = np.load(
            path, mmap_mode="r" if path.stat().st_size > MAPPED_BYTES else None, allow_pickle=False
        )
    except (ValueError, EOFError, OSError) as error:
        raise ChipError(f"{path}: not a .npy array of numbers ({error}); save one with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise ChipError(f"{path}: holds several arrays; save one with numpy.save")
    return array
