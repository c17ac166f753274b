"""Who works where: one process in a run's folder at a time, and one at a time makes what several want.

Generated data of a recipe: made by the first run that wants them, waited for by the others.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knarr.cli import output as progress
from knarr.train import Recipe, system_of
from knarr.train.settings import RecipeError

_HELD: dict[Path, int] = {}
"""Run folder -> descriptor of its lock."""


def hold(folder: Path) -> None:
    """Keep other processes out of a run folder until it is released or this one ends, however it ends.

    Raises:
        RecipeError: another process works in the folder.
    """
    key = folder.resolve()
    if key in _HELD:
        return
    lock = os.open(key / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise RecipeError(
            f"{folder}: another knarr process works in it; wait for it or give another --out"
        ) from error
    _HELD[key] = lock


def release(folder: Path) -> None:
    """Let others in again; of a thousand runs of a grid a process cannot hold all."""
    lock = _HELD.pop(folder.resolve(), None)
    if lock is not None:
        os.close(lock)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is here; `path` is a file for it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def made(recipe: Recipe, cache: Path) -> Path:
    """The folder of a recipe's generated data, which are made where they are not there.

    Args:
        recipe: of generated data.
        cache: folder of all of them.

    Raises:
        RecipeError: its data are not generated.
    """
    system = system_of(recipe)
    root = cache / system.folder_name()
    cache.mkdir(parents=True, exist_ok=True)
    # Another's half-made folder looks like one of a killed process, which the generator removes.
    with alone(cache / f".{root.name}.lock"):
        if not root.is_dir():
            progress.say(f"Generating {recipe.data.kind} into {root}")
            system.generate(root, progress.counter("clips"))
    return root
