"""Read HDF5 into plain dictionaries within limits.

A file that declares gigabytes, nests without end or links elsewhere is refused before any memory is spent on it.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from knarr.export.errors import ExportError

MAX_FILE_BYTES = 2_000_000_000
MAX_DECLARED_BYTES = 2_000_000_000
MAX_ITEMS = 20_000
MAX_DEPTH = 40
MAX_TEXT_BYTES = 50_000_000


def load(
    path: Path,
    noun: str = "NIR graph",
    cure: str = "write one with `knarr export`",
    max_values: int | None = None,
) -> dict[str, Any]:
    """Return the file's tree: groups as dictionaries, numbers as arrays, text as str, arrays of text as nested lists.

    Args:
        path: HDF5 file.
        noun: what the file should be, for messages.
        cure: how to get a good one, for messages.
        max_values: most numbers that the whole file may hold, where they are few bytes each and grow when they are used;
            None for no limit.

    Raises:
        ExportError: missing, too large, not HDF5, damaged, or beyond a limit; always in bounded time and memory.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file; {cure}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ExportError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    if not h5py.is_hdf5(path):
        raise ExportError(f"{path}: not an HDF5 file, so not a {noun}; {cure}")
    try:
        with h5py.File(path, "r") as file:
            return _FileWalk(path, noun, max_values).group(file, 0)
    except ExportError:
        raise
    except Exception as error:  # h5py raises whatever the damaged bytes lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"{path}: not a readable HDF5 file ({reason}); it is damaged") from error


class _FileWalk:
    """A walk over one file that keeps count of what it met."""

    def __init__(self, path: Path, noun: str, max_values: int | None) -> None:
        self.path, self.noun, self.max_values = path, noun, max_values
        self.items, self.values, self.declared, self.text = 0, 0, 0, 0
        self.heaps: set[bytes] = set()
        self.heap_bytes = 0

    def group(self, group: Any, depth: int) -> dict[str, Any]:
        """Read a group with all that is in it."""
        if depth > MAX_DEPTH:
            raise ExportError(
                f"{self.path}: groups nested more than {MAX_DEPTH} deep; it is no {self.noun}"
            )
        found: dict[str, Any] = {}
        for name in group:
            self.items += 1
            if self.items > MAX_ITEMS:
                raise ExportError(f"{self.path}: more than {MAX_ITEMS} items; it is no {self.noun}")
            # Soft and external links could lead round in circles or to other files of the machine.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ExportError(
                    f"{self.path}: {name!r} is a link elsewhere; a {self.noun} holds its own data"
                )
            item = group[name]
            found[name] = (
                self.group(item, depth + 1) if isinstance(item, h5py.Group) else self.dataset(item)
            )
        return found

    def dataset(self, item: Any) -> Any:
        """Read an array or a text."""
        if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            raise ExportError(
                f"{self.path}: {item.name!r} is no plain dataset; a {self.noun} holds its own data"
            )
        text = h5py.check_string_dtype(item.dtype) is not None
        if not text and item.dtype.kind not in "iufb":
            raise ExportError(
                f"{self.path}: {item.name!r} is of type {item.dtype}; only numbers and text are read"
            )
        self.values += int(item.size or 0)
        # A chunk is unpacked whole, and may be declared larger than the data it belongs to.
        self.declared += max(int(item.size or 0), prod(item.chunks or (0,))) * item.dtype.itemsize
        for unit, found, most in (
            ("bytes", self.declared, MAX_DECLARED_BYTES),
            ("values", self.values, self.max_values),
        ):
            if most is not None and found > most:
                raise ExportError(
                    f"{self.path}: {item.name!r} of shape {item.shape} brings the data to {found:,} {unit}, at most "
                    f"{most:,} are read; split the {self.noun}"
                )
        if not text:
            return item[()]
        self.text += self._text_bytes(item)
        if self.text > MAX_TEXT_BYTES:
            raise ExportError(
                f"{self.path}: {item.name!r} brings the text to {self.text:,} bytes, at most {MAX_TEXT_BYTES:,} are read; "
                f"it is damaged or no {self.noun}"
            )
        return _decoded(np.asarray(item[()], dtype=object).tolist())

    def _text_bytes(self, item: Any) -> int:
        """Count the bytes that texts and their references claim; HDF5 allocates a text before it looks for it."""
        if item.dtype.kind == "S":
            return int(item.size or 0) * int(item.dtype.itemsize)
        layout = item.id.get_create_plist()
        kind = layout.get_layout()
        chunked = kind == h5py.h5d.CHUNKED
        # Lengths lie where they cannot be counted in a fill value, in packed chunks and in an object's header.
        if (
            layout.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
            or layout.get_nfilters()
            or not (chunked or kind == h5py.h5d.CONTIGUOUS)
        ):
            raise ExportError(
                f"{self.path}: {item.name!r} is text that is packed or has a fill value; store it contiguous, as h5py does"
            )
        # A length of 4 bytes, then the address and the number (4 bytes) of an object of the global heap.
        address_bytes, length_bytes = item.file.id.get_create_plist().get_sizes()
        width = 8 + address_bytes
        values = int(item.size or 0)
        in_chunks = item.id.get_num_chunks() * prod(item.chunks) if chunked else 0
        total = max(values, in_chunks) * width
        if total > MAX_TEXT_BYTES:
            return total
        places: list[tuple[int, int]] = []
        if chunked:
            size = prod(item.chunks)
            item.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, size)))
        elif (start := item.id.get_offset()) is not None:
            places.append((start, values))
        with self.path.open("rb") as file:
            for offset, count in places:
                file.seek(offset)
                raw = np.frombuffer(file.read(count * width), np.uint8)
                references = raw[: raw.size // width * width].reshape(-1, width)
                total += int(
                    np.ascontiguousarray(references[:, :4]).view("<u4").sum(dtype=np.int64)
                )
                for place in {bytes(row[4:-4]) for row in references} - self.heaps:
                    self.heaps.add(place)
                    # Texts that were never written have no place: zeros or ones.
                    if set(place) not in ({0}, {255}):
                        start = item.file.userblock_size + int.from_bytes(place, "little")
                        self._check_heap(file, start, length_bytes, item.name)
        return total

    def _check_heap(self, file: BinaryIO, start: int, length_bytes: int, name: str) -> None:
        """Walk from object to object of a global heap collection, as HDF5 does to find a text.

        HDF5 itself would stay for ever where free space claims to take none. Layout: HDF5 file
        format specification, version 3.0, section III.E.
        """
        damaged = ExportError(
            f"{self.path}: {name!r} is text whose heap at byte {start} is damaged; get the file anew"
        )
        head = (
            8 + length_bytes
        )  # of the collection: "GCOL", version, padding, size; of an object: number, uses, padding, size
        file.seek(start)
        collection = file.read(head)
        size = int.from_bytes(collection[8:], "little")
        self.heap_bytes += size
        # Sound collections lie side by side, so that together they are no longer than the file.
        if collection[:4] != b"GCOL" or size < head or self.heap_bytes > self.path.stat().st_size:
            raise damaged
        objects = file.read(size - head)
        at = 0
        while at + head <= len(objects):
            number = int.from_bytes(objects[at : at + 2], "little")
            takes = int.from_bytes(objects[at + 8 : at + head], "little")
            if number:  # the size of free space holds its own head, that of an object does not
                takes = head + -(-takes // 8) * 8
            if takes < head or at + takes > len(objects):
                raise damaged
            at += takes


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
