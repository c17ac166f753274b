"""Read .npy and .npz files of numbers without trust, as plain arrays.

Nothing is unpickled, and no memory is spent on what a header only promises. What comes back has the
machine's byte order, rows that lie one behind the other, and one of numpy's plain types, whatever
wrote the file.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from knarr.errors import KnarrError

MAPPED_BYTES = 2**26
"""Larger files are mapped, so that only what is looked at comes into memory."""
MAX_UNPACKED_BYTES = 2**33
"""Most bytes that the members of one .npz may unpack to."""
MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK"


class ArrayFileError(KnarrError, ValueError):
    """A file that holds no arrays of numbers; the text names file, reason and cure."""


def read_npy(path: Path, *, text: bool = False) -> np.ndarray[Any, Any]:
    """Read an array of real numbers or booleans from a .npy file.

    Args:
        path: the file.
        text: whether it may hold words instead.

    Returns:
        The array; large ones are mapped, and must not be written to.

    Raises:
        ArrayFileError: no such file, or something else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ArrayFileError(f"{path}: no such file; save an array with numpy.save")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
        if start[:2] == ZIP_MAGIC:
            raise ArrayFileError(f"{path}: holds several arrays (.npz); name one, as {path}:inputs")
        if start != MAGIC:
            raise ArrayFileError(f"{path}: not a .npy array of numbers; save one with numpy.save")
        file.seek(0)
        header = _header(file, str(path), text=text)
        _require_bytes(header, size - file.tell(), str(path))
        offset = file.tell()
        if size > MAPPED_BYTES and 0 not in header.shape:
            array: Any = np.memmap(path, header.dtype, "r", offset, header.shape, header.order)
        else:
            flat = np.fromfile(file, header.dtype, math.prod(header.shape))
            array = flat.reshape(header.shape, order=header.order)
    return _plain(array)


def read_npz(
    path: Path, only: str | None = None, *, text: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """Read all arrays of numbers of a .npz file, by name.

    Args:
        path: the file.
        only: name of the one array that is read, whatever the others hold; None for all.
        text: whether they may hold words instead.

    Raises:
        ArrayFileError: no such file, damaged, something else than numbers in it, too large, or no
            array of that name.
    """
    path = Path(path)
    if not path.is_file():
        raise ArrayFileError(f"{path}: no such file; save arrays with numpy.savez")
    arrays = {}
    unpacked = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if only not in (None, name):
                    continue
                unpacked += member.file_size
                if name == member.filename or unpacked > MAX_UNPACKED_BYTES:
                    raise ArrayFileError(
                        f"{path}: '{member.filename}' is no array, or brings it to {unpacked:,} bytes "
                        f"of at most {MAX_UNPACKED_BYTES:,}; save arrays with numpy.savez"
                    )
                with archive.open(member) as file:
                    where = f"{path}: array '{name}'"
                    header = _header(file, where, text=text)
                    content = file.read()
                _require_bytes(header, len(content), where)
                flat = np.frombuffer(content, header.dtype, math.prod(header.shape))
                arrays[name] = _plain(flat.reshape(header.shape, order=header.order))
            if only is not None and only not in arrays:
                names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:8])
                raise ArrayFileError(f"{path}: has no array '{only}'; choose one of {names}")
    except ArrayFileError:
        raise
    except Exception as error:  # zipfile and zlib raise whatever the damaged bytes lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArrayFileError(
            f"{path}: not a .npz file of arrays ({reason}); save arrays with numpy.savez"
        ) from error
    return arrays


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]


def _header(file: IO[bytes], where: str, *, text: bool = False) -> _Header:
    """Read the header of one array, and leave the file behind it."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        # Version 3 is for names of fields that are no ASCII, and fields are no numbers.
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # the header is a Python literal: its parsers raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ArrayFileError(
            f"{where}: its header is damaged ({reason}); save it again with numpy.save"
        ) from error
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > 32 or not isinstance(fortran, bool):
        raise ArrayFileError(f"{where}: its header names no shape; save it again with numpy.save")
    # numpy makes an array of empty words of a type without a size.
    if dtype.kind not in ("biufU" if text else "biuf") or not dtype.itemsize:
        cure = "save real numbers with numpy.save"
        if dtype.kind == "U":
            # Names of classes, such as `knarr data events` writes for folders.
            cure = "number the names, as numpy.unique(names, return_inverse=True)[1] does"
        raise ArrayFileError(f"{where}: holds {dtype}, not plain numbers; {cure}")
    return _Header(shape, "F" if fortran else "C", dtype)


def _require_bytes(header: _Header, available: int, where: str) -> None:
    needed = math.prod(header.shape) * header.dtype.itemsize
    if needed > available:
        raise ArrayFileError(
            f"{where}: declares {header.shape}, {needed:,} bytes, and holds {available:,}; it was "
            "cut off, save it again"
        )


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    dtype = array.dtype.newbyteorder("=")
    # Half precision and long doubles are of no use beyond the file: most engines lack them.
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        dtype = np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    if dtype != array.dtype:
        array = array.astype(dtype)
    # A scalar would become an array of one axis.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
