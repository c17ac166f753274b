"""A tree of the SEE layout: what its index and folders say of every sequence, checked, and its images, decoded strictly."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from PIL import Image

from knarr.train.datasets.files import inside
from knarr.train.errors import DataError

LIGHTS: Final = ("normal", "Overexposed", "Low", "HDR")
SUBSETS: Final = ("training", "testing")
MAX_JPEG_BYTES: Final = 8 << 20
MAX_JSON_BYTES: Final = 64 << 20
MAX_SIDE: Final = 2048

# number, volunteer, sex, age, degree, light, emotion, length, take
_NAME: Final = re.compile(
    r"[0-9]+_(?P<volunteer>[0-9]{3})_(?:man|woman)_[0-9]+_[A-Za-z]+_"
    rf"(?P<light>{'|'.join(LIGHTS)})_(?P<emotion>[A-Za-z]+)_[0-9]+_take[0-9]{{3}}"
)


@dataclass(frozen=True)
class SeeRecord:
    """One sequence.

    Attributes:
        name: Of the sequence.
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
        names: Of all sequences that the index or a folder has, sorted.

    Raises:
        DataError: The root, the index or a folder is missing or malformed as a whole.
    """

    def __init__(self, root: Path, *, event_dir: str, frame_dir: str, index: str) -> None:
        if not root.is_dir():
            raise DataError(
                root, "missing root: no such folder; check the path, or get the dataset first"
            )
        self.root, self.index = root, root / index
        self.labels, self._database = _read_index(inside(self.index, root))
        self._folders = tuple(
            _Folder(inside(root / d, root), root, self.labels) for d in (event_dir, frame_dir)
        )
        on_disk = {name for folder in self._folders for name in folder.sequences}
        self.names = tuple(sorted(self._database.keys() | on_disk))

    def record(self, name: str, *, subset: str | None = None, least: int = 1) -> SeeRecord | None:
        """What is known of a sequence; None where it is of another subset, and then nothing more is looked at.

        Args:
            name: One of `names`.
            subset: One of SUBSETS; None for both.
            least: Images that the segment must hold.

        Raises:
            DataError: A bad record.
        """
        if name not in self._database:
            reason = (
                "not in the index: the folder has no record there; add one or remove the folder"
            )
            raise DataError(self.index, reason, name)
        found, label, (start, end) = _check_record(
            self.index, name, self._database[name], self.labels
        )
        if subset not in (None, found):
            return None
        fields = _check_name(self.index, name, label)
        if end - start < least:
            reason = f"short segment: [{start}, {end}) holds {end - start} < {least} images; ask for fewer"
            raise DataError(self.index, reason, name)
        events, frames = (folder.images(name, label, start, end) for folder in self._folders)
        images = tuple(zip(events, frames, strict=True))
        return SeeRecord(
            name, found, self.labels.index(label), fields["volunteer"], fields["light"], images
        )


def decoded(
    record: SeeRecord, count: int | None = None
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Event and frame image of each instant in grey, all square and of one size.

    Args:
        record: Whose images.
        count: How many, from the first; None for all.

    Raises:
        DataError: An image that is truncated, not square, too large, neither grey nor RGB, or of another size.
    """
    side = None
    for pair in record.images[:count]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            event, frame = (_read_jpeg(path, record.name) for path in pair)
        side = side or event.width
        for path, image in zip(pair, (event, frame), strict=True):
            if image.width != side:
                reason = f"changing size: {image.width} pixels after {side} in the same sequence; restore it"
                raise DataError(path, reason, record.name)
        yield event, frame


def warn_of_skipped(root: Path, skipped: Mapping[str, int]) -> None:
    """One warning with the number of bad records that were left out, by reason; none where there are none."""
    if skipped:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items()))
        warnings.warn(
            f"{root}: skipped {sum(skipped.values())} bad records: {counts}", stacklevel=3
        )


class _Folder:
    """The event or the frame folder: where each sequence lies, found once."""

    def __init__(self, path: Path, root: Path, labels: tuple[str, ...]) -> None:
        if not path.is_dir():
            raise DataError(path, "missing folder: not there; check the root and the folder names")
        self.path = path
        self.root = root
        self.emotions: dict[str, Path] = {}
        self.sequences: dict[str, list[str]] = {}
        known = {label.casefold(): label for label in labels}
        for folder in sorted(path.iterdir()):
            if not folder.is_dir():
                continue
            label = known.get(folder.name.casefold())
            if label is None:
                reason = (
                    f"unknown label: folder is none of {', '.join(labels)}; rename or remove it"
                )
                raise DataError(folder, reason)
            if label in self.emotions:
                reason = (
                    f"duplicate folder: as well as '{self.emotions[label].name}'; merge the two"
                )
                raise DataError(folder, reason)
            self.emotions[label] = folder
            for entry in sorted(inside(folder, root).iterdir()):
                if entry.is_dir():
                    self.sequences.setdefault(entry.name, []).append(label)

    def images(self, name: str, label: str, start: int, end: int) -> list[Path]:
        """Paths of a sequence's images start .. end - 1, each checked to be there and inside the root."""
        found = self.sequences.get(name, [])
        if not found:
            reason = f"missing sequence: no folder of that name; restore it or leave the record out ('{label}')"
            raise DataError(self.path, reason, name)
        if found != [label]:
            reason = f"label clash: labelled '{label}' but lies in {', '.join(found)}; correct the index or move it"
            raise DataError(self.path, reason, name)
        place = inside(self.emotions[label] / name, self.root, name)
        with os.scandir(place) as entries:
            present = {entry.name: entry for entry in entries}
        paths = []
        for k in range(start, end):
            entry = present.get(f"{k:05d}.jpg")
            if entry is None:
                reason = (
                    f"missing image: not there, but the segment is [{start}, {end}); restore it"
                )
                raise DataError(place / f"{k:05d}.jpg", reason, name)
            path = Path(entry.path)
            if entry.is_symlink():
                inside(path, self.root, name)
            _check_size(path, MAX_JPEG_BYTES, entry.stat().st_size, name)
            paths.append(path)
        return paths


def _check_size(path: Path, limit: int, size: int, record: str | None = None) -> None:
    """Refuse an empty or an oversized file before reading it."""
    if size == 0:
        raise DataError(path, "empty file: 0 bytes; restore it", record)
    if size > limit:
        raise DataError(
            path, f"file too large: {size} > {limit} bytes; this is no file of the dataset", record
        )


def _read_index(path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Read labels and database; a record's content is checked by `_check_record`."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
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
    _check_size(path, MAX_JSON_BYTES, path.stat().st_size)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # undecodable text is a ValueError too
        raise DataError(path, f"malformed index: not UTF-8 JSON ({error}); restore it") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not isinstance(labels, list) or not labels:
        raise DataError(path, "malformed index: no list 'labels' or object 'database'; restore it")
    if not all(isinstance(label, str) and label.isalpha() for label in labels):
        raise DataError(path, f"malformed index: labels {labels!r} are not words; restore it")
    if len({label.casefold() for label in labels}) != len(labels):
        raise DataError(path, f"duplicate label: {', '.join(labels)}; name each once")
    return tuple(labels), database


def _check_record(
    path: Path, name: str, record: Any, labels: tuple[str, ...]
) -> tuple[str, str, tuple[int, int]]:
    """Return (subset, label, (start, end)) of a record, or refuse it."""
    notes = record.get("annotations") if isinstance(record, dict) else None
    if not isinstance(notes, dict):
        raise DataError(path, "malformed record: no object 'annotations'; restore it", name)
    subset, label, segment = record.get("subset"), notes.get("label"), notes.get("segment")
    if subset not in SUBSETS:
        raise DataError(
            path, f"unknown subset: {subset!r} is none of {', '.join(SUBSETS)}; correct it", name
        )
    if label not in labels:
        raise DataError(
            path, f"unknown label: {label!r} is none of {', '.join(labels)}; correct it", name
        )
    # type() and not isinstance(): True is an int, and 1.0 is not an index.
    if (
        not isinstance(segment, list)
        or len(segment) != 2
        or any(type(end) is not int for end in segment)
    ):
        raise DataError(
            path, f"malformed segment: {segment!r} is not [start, end]; correct it", name
        )
    start, end = segment
    if not 0 <= start < end:
        raise DataError(path, f"empty segment: [{start}, {end}) holds no image; correct it", name)
    return subset, label, (start, end)


def _check_name(path: Path, name: str, label: str) -> re.Match[str]:
    """Split a sequence name into its fields and check its emotion against the label."""
    fields = _NAME.fullmatch(name)
    if fields is None:
        raise DataError(
            path, "malformed name: not the nine fields of a SEE sequence; correct it", name
        )
    if fields["emotion"].casefold() != label.casefold():
        raise DataError(
            path,
            f"label clash: labelled '{label}' but named '{fields['emotion']}'; correct one",
            name,
        )
    return fields


def _read_jpeg(path: Path, name: str) -> Image.Image:
    """Decode a whole square JPEG to grey."""
    data = path.read_bytes()
    # Pillow can be told to accept truncated files, process-wide, so the end marker is checked here. A marker cannot
    # occur inside the image data; cameras may pad the file with zeros.
    if not data.startswith(b"\xff\xd8") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DataError(path, "truncated image: no JPEG from start to end marker; restore it", name)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width != image.height:
                reason = (
                    f"not square: {image.width} x {image.height} pixels; crop the images to squares"
                )
                raise DataError(path, reason, name)
            if image.width > MAX_SIDE:
                raise DataError(
                    path, f"image too large: {image.width} > {MAX_SIDE} pixels a side", name
                )
            if image.mode not in ("L", "RGB"):
                raise DataError(
                    path, f"wrong channels: mode {image.mode}, not grey or RGB; convert it", name
                )
            grey: Image.Image = image.convert("L")
            return grey
    except DataError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            path, f"truncated image: cannot decode it ({error}); restore it", name
        ) from error
