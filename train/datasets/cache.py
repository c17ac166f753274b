"""Prepared data on disk, known by what it was made of, and preparation in several processes.

A cache file's name is a SHA-256 over the files' content, the settings and the version of the code
that prepares them: change any of them and another file is made. What it holds carries a SHA-256 of
its own, so a damaged file is made again and never trusted. Files are safetensors: numbers, and
nothing that could run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from knarr.errors import KnarrError
from knarr.files import replacing
from knarr.train.datasets.arrays import AnyArray

Arrays = dict[str, AnyArray]
Item = TypeVar("Item")
Made = TypeVar("Made")
Progress = Callable[[int, int], Any]

_KEY = re.compile("[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def cache_key(
    dataset: str, version: int, files: Mapping[str, str], settings: Mapping[str, object]
) -> str:
    """Return the key of prepared data, 64 hexadecimal digits.

    Args:
        dataset: Name of the dataset.
        version: Number of the code that prepares it; raise it whenever that code computes something
            else.
        files: SHA-256 of the content of each file it is made of, by the file's name inside the
            dataset.
        settings: Everything else the result depends on; plain values that `json.dumps` takes,
            finite numbers only.

    Raises:
        TypeError, ValueError: A setting is not a plain finite value.
    """
    content = {
        "dataset": dataset,
        "version": version,
        "files": dict(files),
        "settings": dict(settings),
    }
    # One spelling for one content: sorted and without spaces, so that equal settings give equal
    # keys.
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def cached(folder: Path, key: str, make: Callable[[], Mapping[str, AnyArray]]) -> Arrays:
    """Return the arrays under a key: read from the cache, or made and then stored there.

    Safe with several processes: a file appears whole, by renaming. Two that make the same one write
    the same.

    Args:
        folder: Folder of the cache; made where it is missing.
        key: A key from `cache_key`.
        make: Called when there is no whole file of that key. Its arrays are of booleans or real
            numbers.

    Returns:
        C-ordered arrays of native byte order, the same whether read or made.

    Raises:
        ValueError: `key` is not one of `cache_key`, or `make` gave an array of another kind of
            values.
        OSError: The folder cannot be written to.
        Exception: Whatever `make` raises; nothing is stored then.
    """
    # The key becomes a file's name, so nothing with a slash or a dot may pass for one.
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"key: {key!r} is not 64 hexadecimal digits; make it with cache_key")
    path = folder / f"{key}.safetensors"
    found = _read(path, key)
    if found is None:
        from safetensors.numpy import save_file  # checking data needs no cache, nor this package

        found = {name: _plain(name, array) for name, array in make().items()}
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(found, temporary, metadata={"sha256": _digest(key, found)})
    return found


def parallel(
    items: Iterable[Item],
    make: Callable[[Item], Made],
    *,
    workers: int,
    progress: Progress | None = None,
) -> list[Made]:
    """Call `make` with every item, in this process or in several.

    Args:
        items: What to work on; picklable when `workers` > 1.
        make: A pure function; of a module, or a partial of one, when `workers` > 1.
        workers: Number of processes, at least 1; 1 works in this process. Each more imports what
            `make` needs, for knarr with torch about ten seconds: worth it for minutes of work.
        progress: Called here with (items done, items in all) after each item.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: `workers` < 1.
        DataError: As raised by `make`: it names its file already.
        RuntimeError: `make` raised anything else, or its process died; the message names the item.
            What has not begun by then is not begun.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} < 1; use at least one process")
    queue = list(items)
    named = partial(_make_named, make)
    if workers == 1 or len(queue) < 2:
        return _collect(map(named, queue), queue, progress)
    # Not fork: a child of a process whose OpenMP threads have run waits for them for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(queue)), context) as pool:
        return _collect(pool.map(named, queue), queue, progress)


def _make_named(make: Callable[[Item], Made], item: Item) -> Made:
    """Call `make`; anything it raises but an error of ours becomes one that names the item."""
    try:
        return make(item)
    except KnarrError:
        raise
    except Exception as error:
        raise RuntimeError(f"item {_short(item)}: {type(error).__name__}: {error}") from error


def _collect(
    results: Iterator[Made], queue: Sequence[Item], progress: Progress | None
) -> list[Made]:
    """List results as they come, in the order of the queue."""
    made: list[Made] = []
    try:
        for result in results:
            made.append(result)
            if progress is not None:
                progress(len(made), len(queue))
    except BrokenProcessPool as error:
        # The pool does not say whose process died; the first result that is missing is the best
        # guess.
        raise RuntimeError(
            f"item {_short(queue[len(made)])}, or another under way: its process died; "
            "give it more memory or use fewer workers"
        ) from error
    return made


def _short(item: object) -> str:
    text = str(item)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(name: str, array: AnyArray) -> AnyArray:
    """Return an array as it would come back from a file: C-ordered, of native byte order."""
    array = np.asarray(array)
    # What safetensors and numpy have in common: no complex numbers, no text, no objects, and no
    # float of more than 8 bytes.
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(
            f"array '{name}': {array.dtype} is neither boolean nor a real number; convert it"
        )
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _digest(key: str, arrays: Arrays) -> str:
    """Return a SHA-256 over the key and every array's name, type, shape and values."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        # Name, type and shape too: the same bytes are another array as (2, 3) than as (3, 2).
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> Arrays | None:
    """Return the arrays of a whole file; None where there is none."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays: Arrays = {name: _plain(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("%s: damaged cache file (%s); made again", path, error)
        return None
    # The digest covers the key too: a whole file that was renamed to another key is not taken for
    # it.
    if stored != _digest(key, arrays):
        _log.warning("%s: damaged cache file (its SHA-256 does not match); made again", path)
        return None
    return arrays
