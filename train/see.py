"""Strict reader of the SEE layout: event and grey images of one eye per emotion, indexed by a JSON file."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knarr.train.data_error import DataError

LIGHTS: Final = ("normal", "Overexposed", "Low", "HDR")
SUBSETS: Final = ("training", "testing")
ON_MIN: Final = 191  # half way from the mid-grey 127 to 255: JPEG ringing stays below
OFF_MAX: Final = 63  # half way from 127 to 0
MAX_JPEG_BYTES: Final = 8 << 20
MAX_JSON_BYTES: Final = 64 << 20
MAX_SIDE: Final = 2048

# number, volunteer, sex, age, degree, light, emotion, length, take
_NAME: Final = re.compile(
    r"[0-9]+_(?P<volunteer>[0-9]{3})_(?:man|woman)_[0-9]+_[A-Za-z]+_"
    rf"(?P<light>{'|'.join(LIGHTS)})_(?P<emotion>[A-Za-z]+)_[0-9]+_take[0-9]{{3}}"
)


@dataclass(frozen=True, eq=False)
class SeeClips:
    """Clips of equal length, in the order of their names.

    Attributes:
        frames: Grey images, uint8 of shape (N, T, H, W), 0 .. 255.
        events: uint8 of shape (N, T, 2, H, W), 0 or 1; channel 0 is ON (brighter), channel 1 OFF (darker).
        labels: int64 of shape (N,): positions in `label_names`.
        label_names: The classes, in the order of the index file.
        names: Sequence names, N of them.
        subjects: The volunteer field of each name.
        lights: The light field of each name, one of LIGHTS.
        skipped: Number of records left out by reason; empty unless read with ``on_bad="skip"``.
    """

    frames: NDArray[np.uint8]
    events: NDArray[np.uint8]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    lights: tuple[str, ...]
    skipped: Mapping[str, int]


def read_see(
    root: Path,
    *,
    subset: Literal["training", "testing"],
    size: int,
    timesteps: int,
    on_bad: Literal["raise", "skip"] = "raise",
    event_dir: str = "event",
    frame_dir: str = "frame",
    index: str = "emotion.json",
) -> SeeClips:
    """Read one subset: the first `timesteps` images of every sequence's segment.

    Nothing is repaired or padded. Images are resized to `size` where they differ: grey images by antialiased
    interpolation, events after decoding, where a pixel has an event if any pixel it covers has one.

    Args:
        root: Folder that holds the two image folders and the index.
        subset: Which records to read; those of the other subset are not looked at.
        size: Height and width of the result in pixels, 1 to 2048.
        timesteps: Images per clip, at least 1.
        on_bad: "raise" at the first bad record, or "skip" it, count it by reason, and warn once at the end. A fault
            of the index or the folders as a whole always raises.
        event_dir: Name of the folder of event images ("event_30" for older code).
        frame_dir: Name of the folder of grey images.
        index: Name of the index file ("emotion_new_adjust2.json" for older code).

    Returns:
        The clips, sorted by sequence name.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The root, the index or a folder is missing or malformed, a record is bad (with ``on_bad="raise"``),
            or no record is left.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset: {subset!r} is neither 'training' nor 'testing'; name one of them")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size: {size} outside 1 .. {MAX_SIDE}; choose a size inside")
    if timesteps < 1:
        raise ValueError(f"timesteps: {timesteps} < 1; read at least one image")
    if not root.is_dir():
        raise DataError(root, "missing root: no such folder; check the path, or get the dataset first")

    labels, database = _read_index(_inside(root / index, root))
    folders = {d: _Folder(_inside(root / d, root), root, labels) for d in (event_dir, frame_dir)}
    clips: list[tuple[str, re.Match[str], int, NDArray[np.uint8], NDArray[np.uint8]]] = []
    skipped: Counter[str] = Counter()
    on_disk = {name for folder in folders.values() for name in folder.sequences}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for name in sorted(database.keys() | on_disk):
            try:
                if name not in database:
                    reason = "not in the index: the folder has no record there; add one or remove the folder"
                    raise DataError(root / index, reason, name)
                found, label, (start, end) = _check_record(root / index, name, database[name], labels)
                if found != subset:
                    continue
                fields = _check_name(root / index, name, label)
                if end - start < timesteps:
                    reason = f"short segment: [{start}, {end}) holds {end - start} < {timesteps} images; ask for fewer"
                    raise DataError(root / index, reason, name)
                files = {d: folder.images(name, label, start, end) for d, folder in folders.items()}
                pairs = list(zip(files[event_dir], files[frame_dir], strict=True))
                events, frames = _read_clip(name, pairs[:timesteps], size)
                clips.append((name, fields, labels.index(label), events, frames))
            except DataError as error:
                if on_bad == "raise":
                    raise
                skipped[error.kind] += 1
    if skipped:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items()))
        warnings.warn(f"{root}: skipped {skipped.total()} bad records: {counts}", stacklevel=2)
    if not clips:
        raise DataError(root / index, f"no records: none of subset '{subset}' can be used; check the dataset")
    return SeeClips(
        frames=np.stack([clip[4] for clip in clips]),
        events=np.stack([clip[3] for clip in clips]),
        labels=np.array([clip[2] for clip in clips], np.int64),
        label_names=labels,
        names=tuple(clip[0] for clip in clips),
        subjects=tuple(clip[1]["volunteer"] for clip in clips),
        lights=tuple(clip[1]["light"] for clip in clips),
        skipped=dict(skipped),
    )


def assert_disjoint(a: SeeClips, b: SeeClips) -> None:
    """Refuse two sets of clips that share a person.

    Args:
        a: Usually the training set.
        b: Usually the test set.

    Raises:
        DataError: A subject is in both; the message names up to five.
    """
    shared = sorted(set(a.subjects) & set(b.subjects))
    if shared:
        names = [n for n, s in zip(a.names + b.names, a.subjects + b.subjects, strict=True) if s == shared[0]]
        more = " ..." if len(shared) > 5 else ""
        reason = (
            f"shared subjects: {', '.join(shared[:5])}{more} in both splits, none allowed; split by person"
        )
        raise DataError("emotion.json", reason, f"{names[0]} and {names[-1]}")


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
                reason = f"unknown label: folder is none of {', '.join(labels)}; rename or remove it"
                raise DataError(folder, reason)
            if label in self.emotions:
                reason = f"duplicate folder: as well as '{self.emotions[label].name}'; merge the two"
                raise DataError(folder, reason)
            self.emotions[label] = folder
            for entry in sorted(_inside(folder, root).iterdir()):
                if entry.is_dir():
                    self.sequences.setdefault(entry.name, []).append(label)

    def images(self, name: str, label: str, start: int, end: int) -> list[Path]:
        """Paths of a sequence's images start .. end - 1, each checked to be there and inside the root."""
        found = self.sequences.get(name, [])
        if not found:
            reason = (
                f"missing sequence: no folder of that name; restore it or leave the record out ('{label}')"
            )
            raise DataError(self.path, reason, name)
        if found != [label]:
            reason = f"label clash: labelled '{label}' but lies in {', '.join(found)}; correct the index or move it"
            raise DataError(self.path, reason, name)
        place = _inside(self.emotions[label] / name, self.root, name)
        with os.scandir(place) as entries:
            present = {entry.name: entry for entry in entries}
        paths = []
        for k in range(start, end):
            entry = present.get(f"{k:05d}.jpg")
            if entry is None:
                reason = f"missing image: not there, but the segment is [{start}, {end}); restore it"
                raise DataError(place / f"{k:05d}.jpg", reason, name)
            path = Path(entry.path)
            if entry.is_symlink():
                _inside(path, self.root, name)
            _check_size(path, MAX_JPEG_BYTES, entry.stat().st_size, name)
            paths.append(path)
        return paths


def _inside(path: Path, root: Path, record: str | None = None) -> Path:
    """Refuse a path that leads out of the root, through ``..`` or a link."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            path, f"outside root: leads to {path.resolve()}; keep the dataset in one folder", record
        )
    return path


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
        raise DataError(path, f"unknown subset: {subset!r} is none of {', '.join(SUBSETS)}; correct it", name)
    if label not in labels:
        raise DataError(path, f"unknown label: {label!r} is none of {', '.join(labels)}; correct it", name)
    # type() and not isinstance(): True is an int, and 1.0 is not an index.
    if not isinstance(segment, list) or len(segment) != 2 or any(type(end) is not int for end in segment):
        raise DataError(path, f"malformed segment: {segment!r} is not [start, end]; correct it", name)
    start, end = segment
    if not 0 <= start < end:
        raise DataError(path, f"empty segment: [{start}, {end}) holds no image; correct it", name)
    return subset, label, (start, end)


def _check_name(path: Path, name: str, label: str) -> re.Match[str]:
    """Split a sequence name into its fields and check its emotion against the label."""
    fields = _NAME.fullmatch(name)
    if fields is None:
        raise DataError(path, "malformed name: not the nine fields of a SEE sequence; correct it", name)
    if fields["emotion"].casefold() != label.casefold():
        raise DataError(
            path, f"label clash: labelled '{label}' but named '{fields['emotion']}'; correct one", name
        )
    return fields


def _read_clip(
    name: str, pairs: list[tuple[Path, Path]], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return events (T, 2, size, size) and frames (T, size, size) of (event, frame) image pairs."""
    events = np.empty((len(pairs), 2, size, size), np.uint8)
    frames = np.empty((len(pairs), size, size), np.uint8)
    side = None
    for k, pair in enumerate(pairs):
        images = [_read_jpeg(path, name) for path in pair]
        for path, image in zip(pair, images, strict=True):
            side = side or image.width
            if image.width != side:
                reason = f"changing size: {image.width} pixels after {side} in the same sequence; restore it"
                raise DataError(path, reason, name)
        event, frame = images
        grey = np.asarray(event)
        events[k, 0] = _shrink_mask(grey >= ON_MIN, size)
        events[k, 1] = _shrink_mask(grey <= OFF_MAX, size)
        if frame.width != size:
            frame = frame.resize((size, size), Image.Resampling.BILINEAR)
        frames[k] = np.asarray(frame)
    return events, frames


def _shrink_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize a mask (H, H) to (size, size): set where any covered pixel is set."""
    if mask.shape[0] == size:
        return mask
    # The box filter averages exactly the covered pixels; in float none is rounded away.
    grey = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    result: NDArray[np.bool_] = np.asarray(grey) > 0.0
    return result


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
                reason = f"not square: {image.width} x {image.height} pixels; crop the images to squares"
                raise DataError(path, reason, name)
            if image.width > MAX_SIDE:
                raise DataError(path, f"image too large: {image.width} > {MAX_SIDE} pixels a side", name)
            if image.mode not in ("L", "RGB"):
                raise DataError(path, f"wrong channels: mode {image.mode}, not grey or RGB; convert it", name)
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
        raise DataError(path, f"truncated image: cannot decode it ({error}); restore it", name) from error
