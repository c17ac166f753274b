"""Prepared data on disk, known by what it was made of, and preparation in several processes.

A cache file's name is a SHA-256 over the files' content, the settings and the version of the code that prepares them:
change any of them and another file is made. What it holds carries a SHA-256 of its own, so a damaged file is made again
and never trusted. Files are safetensors: numbers, and nothing that could run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from knarr.files import replacing
from knarr.train.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]
Item = TypeVar("Item")
Made = TypeVar("Made")
Progress = Callable[[int, int], Any]

_KEY = re.compile("[0-9a-f]{64}")
# fmt: off
_DTYPES = frozenset((
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
    "float32", "float64",
))
# fmt: on
_log = logging.getLogger(__name__)


def cache_key(
    dataset: str, version: int, files: Mapping[str, str], settings: Mapping[str, object]
) -> str:
    """The key of prepared data, 64 hexadecimal digits.

    Args:
        dataset: Name of the dataset.
        version: Of the code that prepares it; raise it whenever that code computes something else.
        files: SHA-256 of the content of each file it is made of, by the file's name inside the dataset.
        settings: Everything else the result depends on; plain values that `json.dumps` takes, finite numbers only.

    Raises:
        TypeError, ValueError: A setting is not a plain finite value.
    """
    content = {
        "dataset": dataset,
        "version": version,
        "files": dict(files),
        "settings": dict(settings),
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def cached(
    folder: Path,
    key: str,
    make: Callable[[], Mapping[str, npt.NDArray[Any]]],
    *,
    progress: Progress | None = None,
) -> Arrays:
    """The arrays under a key: read from the cache, or made and then kept.

    Safe with several processes: a file appears whole, by renaming. Two that make the same one write the same.

    Args:
        folder: Of the cache; made where it is missing.
        key: From `cache_key`.
        make: Called when there is no whole file of that key. Its arrays are of booleans or real numbers.
        progress: Called with (0, 1) before making and (1, 1) when the arrays are there.

    Returns:
        C-ordered arrays of native byte order, the same whether read or made.

    Raises:
        ValueError: `key` is not one of `cache_key`, or `make` gave an array of another kind of values.
        OSError: The folder cannot be written to.
        Exception: Whatever `make` raises; nothing is kept then.
    """
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"key: {key!r} is not 64 hexadecimal digits; make it with cache_key")
    path = folder / f"{key}.safetensors"
    found = _read(path, key)
    if found is None:
        if progress is not None:
            progress(0, 1)
        found = {name: _plain(name, array) for name, array in make().items()}
        _write(path, key, found)
    if progress is not None:
        progress(1, 1)
    return found


def parallel(
    items: Iterable[Item],
    make: Callable[[Item], Made],
    *,
    workers: int,
    progress: Progress | None = None,
) -> list[Made]:
    """``[make(item) for item in items]``, in several processes.

    Args:
        items: What to work on; picklable when `workers` > 1.
        make: A pure function; of a module, or a partial of one, when `workers` > 1.
        workers: Processes, at least 1; 1 works in this process. Each more imports what `make` needs, for knarr with torch
            about ten seconds: worth it for minutes of work.
        progress: Called here with (done, in all) whenever an item is done.

    Returns:
        The results, in the order of the items.

    Raises:
        ValueError: `workers` < 1.
        DataError: As raised by `make`: it names its file already.
        RuntimeError: `make` raised anything else, or its process died; the message names the item. What has not begun
            by then is not begun.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} < 1; use at least one process")
    queue = list(items)
    if workers == 1 or len(queue) < 2:
        results = []
        for done, item in enumerate(queue, start=1):
            try:
                results.append(make(item))
            except DataError:
                raise
            except Exception as error:
                raise _named(item, error) from error
            if progress is not None:
                progress(done, len(queue))
        return results
    # Not fork: a child of a process whose OpenMP threads have run waits for them for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(queue)), mp_context=context) as pool:
        futures: dict[Future[Made], Item] = {pool.submit(make, item): item for item in queue}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                _result(future, futures[future])
                if progress is not None:
                    progress(done, len(queue))
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[Made], item: Item) -> Made:
    try:
        return future.result()
    except DataError:
        raise
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"item {_short(item)}, or another under way: its process died; give it more memory or use fewer workers"
        ) from error
    except Exception as error:
        raise _named(item, error) from error


def _named(item: object, error: Exception) -> RuntimeError:
    return RuntimeError(f"item {_short(item)}: {type(error).__name__}: {error}")


def _short(item: object) -> str:
    text = str(item)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if array.dtype.name not in _DTYPES:
        raise ValueError(
            f"array '{name}': {array.dtype} is neither boolean nor a real number; convert it"
        )
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _digest(key: str, arrays: Arrays) -> str:
    """SHA-256 over the key and every array's name, type, shape and values."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> Arrays | None:
    """The arrays of a whole file; None where there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            arrays: Arrays = {name: _plain(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("%s: damaged cache file (%s); made again", path, error)
        return None
    if stored != _digest(key, arrays):
        _log.warning("%s: damaged cache file (its SHA-256 does not match); made again", path)
        return None
    return arrays


def _write(path: Path, key: str, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"sha256": _digest(key, arrays)})
