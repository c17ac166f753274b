"""Check the index and the folders of a SEE dataset, and decode its images strictly."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from knarr.train.datasets.arrays import UInt8
from knarr.train.datasets.files import check_root, check_size, checked_folder, inside
from knarr.train.errors import DataError

LIGHTS = ("normal", "Overexposed", "Low", "HDR")
SUBSETS = ("training", "testing")
MAX_JPEG_BYTES = 8 << 20
MAX_JSON_BYTES = 64 << 20
MAX_SIDE = 2048

# number, volunteer, sex, age, degree, light, emotion, length, take
_NAME = re.compile(
    r"[0-9]+_(?P<volunteer>[0-9]{3})_(?:man|woman)_[0-9]+_[A-Za-z]+_"
    rf"(?P<light>{'|'.join(LIGHTS)})_(?P<emotion>[A-Za-z]+)_[0-9]+_take[0-9]{{3}}"
)


@dataclass(frozen=True)
class SeeRecord:
    """One sequence.

    Attributes:
        name: Name of the sequence.
        subset: One of SUBSETS, as the index says.
        label: Position in the tree's labels.
        subject: The volunteer field of the name.
        light: The light field of the name, one of LIGHTS.
        images: Event and frame image of every instant of the segment; all are there, none is empty.
    """

    name: str
    subset: str
    label: int
    subject: str
    light: str
    images: tuple[tuple[Path, Path], ...]


class SeeTree:
    """Index and folders, read once.

    Args:
        root: Folder that holds the two image folders and the index.
        event_dir: Name of the folder of event images.
        frame_dir: Name of the folder of grey images.
        index: Name of the index file.

    Attributes:
        labels: The classes, in the order of the index file.
        names: Names of all sequences that the index or a folder has, sorted.

    Raises:
        DataError: The root, the index or a folder is missing or malformed as a whole.
    """

    def __init__(
        self,
        root: Path,
        *,
        event_dir: str,
        frame_dir: str,
        index: str,
    ) -> None:
        check_root(root)
        self.root, self.index = root, root / index
        self.labels, self._database = _read_index(inside(self.index, root))
        self._folders = tuple(
            _Folder(root / name, root, self.labels) for name in (event_dir, frame_dir)
        )
        # A folder without a record is a fault like a record without a folder, so both give names.
        on_disk = {name for folder in self._folders for name in folder.sequences}
        self.names = tuple(sorted(self._database.keys() | on_disk))

    def record(self, name: str, *, subset: str | None, least: int) -> SeeRecord | None:
        """Return what is known of a sequence, or None where it is of another subset.

        Nothing more is looked at then.

        Args:
            name: One of `names`.
            subset: One of SUBSETS; None for both.
            least: Images that the segment must hold.

        Raises:
            DataError: A bad record.
        """
        fault = partial(DataError, self.index, record=name)
        if name not in self._database:
            raise fault(
                "not in the index: the folder has no record there; add one or remove the folder"
            )
        found, label, (start, end) = self._indexed(name)
        if subset not in (None, found):
            return None
        fields = _NAME.fullmatch(name)
        if fields is None:
            raise fault("malformed name: not the nine fields of a SEE sequence; correct it")
        if fields["emotion"].casefold() != label.casefold():
            raise fault(
                f"label clash: labelled '{label}' but named '{fields['emotion']}'; correct one"
            )
        if end - start < least:
            raise fault(
                f"short segment: [{start}, {end}) holds {end - start} < {least} images; ask for fewer"
            )
        events, frames = (folder.images(name, label, start, end) for folder in self._folders)
        images = tuple(zip(events, frames, strict=True))
        number = self.labels.index(label)
        return SeeRecord(name, found, number, fields["volunteer"], fields["light"], images)

    def _indexed(self, name: str) -> tuple[str, str, tuple[int, int]]:
        """Return (subset, label, (start, end)) of a record of the index, or refuse it."""
        fault = partial(DataError, self.index, record=name)
        record = self._database[name]
        notes = record.get("annotations") if isinstance(record, dict) else None
        if not isinstance(notes, dict):
            raise fault("malformed record: no object 'annotations'; restore it")
        subset, label, segment = record.get("subset"), notes.get("label"), notes.get("segment")
        if subset not in SUBSETS:
            raise fault(f"unknown subset: {subset!r} is none of {', '.join(SUBSETS)}; correct it")
        if label not in self.labels:
            raise fault(f"unknown label: {label!r} is none of {', '.join(self.labels)}; correct it")
        # type() and not isinstance(): True is an int, and 1.0 is not an index.
        if not isinstance(segment, list) or [type(end) for end in segment] != [int, int]:
            raise fault(f"malformed segment: {segment!r} is not [start, end]; correct it")
        start, end = segment
        if not 0 <= start < end:
            raise fault(f"empty segment: [{start}, {end}) holds no image; correct it")
        return subset, label, (start, end)


def decoded(record: SeeRecord, count: int | None) -> Iterator[tuple[UInt8, UInt8]]:
    """Decode event and frame image of each instant to grey, all square and of one size.

    Args:
        record: The sequence.
        count: Number of instants, from the first; None for all.

    Raises:
        DataError: An image that is truncated, not square, too large, neither grey nor RGB, or of
            another size.
    """
    side = None
    for pair in record.images[:count]:
        with warnings.catch_warnings():
            # Pillow only warns of a picture that is up to twice as large as it allows.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            event, frame = (_read_jpeg(path, record.name) for path in pair)
        side = side or len(event)
        for path, image in zip(pair, (event, frame), strict=True):
            if len(image) != side:
                raise DataError(
                    path,
                    f"changing size: {len(image)} pixels after {side} in the same sequence; restore it",
                    record.name,
                )
        yield event, frame


class _Folder:
    """The event or the frame folder: where each sequence lies, found once."""

    def __init__(self, path: Path, root: Path, labels: tuple[str, ...]) -> None:
        self.path = checked_folder(path, root, "check the root and the folder names")
        self.root = root
        self.emotions: dict[str, Path] = {}
        self.sequences: dict[str, list[str]] = {}
        # Folders and index may write the same emotion in upper and in lower case.
        known = {label.casefold(): label for label in labels}
        for folder in sorted(path.iterdir()):
            if not folder.is_dir():
                continue
            label = known.get(folder.name.casefold())
            if label is None:
                raise DataError(
                    folder,
                    f"unknown label: folder is none of {', '.join(labels)}; rename or remove it",
                )
            if label in self.emotions:
                raise DataError(
                    folder,
                    f"duplicate folder: as well as '{self.emotions[label].name}'; merge the two",
                )
            self.emotions[label] = folder
            for entry in sorted(inside(folder, root).iterdir()):
                if entry.is_dir():
                    self.sequences.setdefault(entry.name, []).append(label)

    def images(self, name: str, label: str, start: int, end: int) -> list[Path]:
        """Return the paths of a sequence's images start .. end - 1.

        Each is checked to be there, inside the root, and of a size that can be.
        """
        found = self.sequences.get(name, [])
        if not found:
            raise DataError(
                self.path,
                f"missing sequence: no folder of that name; restore it or leave the record out ('{label}')",
                name,
            )
        if found != [label]:
            raise DataError(
                self.path,
                f"label clash: labelled '{label}' but lies in {', '.join(found)}; correct the index or move it",
                name,
            )
        folder = inside(self.emotions[label] / name, self.root, name)
        # One listing instead of a question for each image: SEE has more than a hundred thousand.
        with os.scandir(folder) as entries:
            present = {entry.name: entry for entry in entries}
        paths = []
        for k in range(start, end):
            path = folder / f"{k:05d}.jpg"
            entry = present.get(path.name)
            if entry is None:
                raise DataError(
                    path,
                    f"missing image: not there, but the segment is [{start}, {end}); restore it",
                    name,
                )
            # The folder itself is inside the root, so only a link can lead out from here.
            if entry.is_symlink():
                inside(path, self.root, name)
            check_size(path, entry.stat().st_size, MAX_JPEG_BYTES, name)
            paths.append(path)
        return paths


def _read_index(path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Read labels and database; a record's content is checked by `SeeTree.record`."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        # json keeps the last of two equal keys in silence.
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise DataError(path, "duplicate id: two records of that name; keep one", key)
            result[key] = value
        return result

    def refuse(constant: str) -> NoReturn:
        raise DataError(path, f"malformed index: number {constant}; use finite numbers")

    if not path.is_file():
        raise DataError(path, "missing index: no such file; check the root and the index name")
    check_size(path, path.stat().st_size, MAX_JSON_BYTES)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # undecodable text is a ValueError too
        raise DataError(path, f"malformed index: not UTF-8 JSON ({error}); restore it") from error
    if not isinstance(content, dict):
        content = {}
    labels, database = content.get("labels"), content.get("database")
    if not isinstance(database, dict) or not isinstance(labels, list) or not labels:
        raise DataError(path, "malformed index: no list 'labels' or object 'database'; restore it")
    # Labels name folders: words alone, so that none leads elsewhere.
    if not all(isinstance(label, str) and label.isalpha() for label in labels):
        raise DataError(path, f"malformed index: labels {labels!r} are not words; restore it")
    if len({label.casefold() for label in labels}) != len(labels):
        raise DataError(path, f"duplicate label: {', '.join(labels)}; name each once")
    return tuple(labels), database


def _read_jpeg(path: Path, name: str) -> UInt8:
    """Decode a whole square JPEG to grey."""
    fault = partial(DataError, path, record=name)
    data = path.read_bytes()
    # Pillow can be told to accept truncated files, process-wide, so the end marker is checked here.
    # A marker cannot occur inside the image data; cameras may pad the file with zeros.
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise fault("truncated image: no JPEG from start to end marker; restore it")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            # All three are known from the header, before any pixel is decoded.
            width, height = image.size
            if width != height:
                raise fault(f"not square: {width} x {height} pixels; crop the images to squares")
            if width > MAX_SIDE:
                raise fault(f"image too large: {width} > {MAX_SIDE} pixels a side")
            if image.mode not in ("L", "RGB"):
                raise fault(f"wrong channels: mode {image.mode}, not grey or RGB; convert it")
            return np.asarray(image.convert("L"))
    except DataError:
        raise
    except (
        OSError,
        SyntaxError,  # what Pillow raises for a broken marker
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise fault(f"truncated image: cannot decode it ({error}); restore it") from error
