"""Whole SEE sequences in memory: grey event and frame images of one after another, of whatever lengths, and a cache of them.

Strict reader of the SEE layout: event and grey images of one eye per emotion, indexed by a JSON file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image

from knarr.train.datasets.cache import Arrays, cache_key, cached
from knarr.train.datasets.see.tree import (
    MAX_SIDE,
    SUBSETS,
    SeeRecord,
    SeeTree,
    decoded,
    warn_of_skipped,
)
from knarr.train.errors import DataError

VERSION: Final = 1
"""Of the code that decodes: raise it whenever pixels come out otherwise."""

Indices = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]
Progress = Callable[[int, int], Any]


@dataclass(frozen=True, eq=False)
class SeeSequences:
    """Sequences of different lengths, N of them in the order of their names.

    Attributes:
        events: (images, H, W) grey event images, 127 where nothing happened; bright ON, dark OFF.
        frames: (images, H, W) grey images, 0 .. 255.
        first: (N,) where each sequence begins in both.
        lengths: (N,) images of each.
        labels: (N,) positions in `label_names`.
        label_names: the classes, in the order of the index file.
        names, subjects, lights: (N,) of each sequence; a subject is its volunteer field.
        subsets: (N,) "training" or "testing", as the index says.
        skipped: number of records left out by reason; empty unless read with ``on_bad="skip"``.
    """

    events: Images
    frames: Images
    first: Indices
    lengths: Indices
    labels: Indices
    label_names: tuple[str, ...]
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    lights: tuple[str, ...]
    subsets: tuple[str, ...]
    skipped: Mapping[str, int]

    def rows(self, indices: Indices, windows: Indices) -> Indices:
        """(B, x) rows of `events` and `frames`: positions `windows` (B, x) in the sequences `indices` (B,)."""
        rows: Indices = self.first[indices][:, None] + windows
        return rows


def read_sequences(
    root: Path,
    *,
    size: int,
    least: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    event_dir: str = "event",
    frame_dir: str = "frame",
    index: str = "emotion.json",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SeeSequences:
    """Every sequence of both subsets, all images of its segment; none repeated, padded or cut.

    Images of another size are resized by antialiased interpolation, events too, as the published code does. All of SEE at 90 x 90
    takes 2.1 GB.

    Args:
        root: folder that holds the two image folders and the index.
        size: height and width of the result in pixels, 1 to 2048.
        least: images that a sequence must have, at least 1.
        on_bad: "raise" at the first bad record, or "skip" it, count it by reason, and warn once at the end.
        event_dir, frame_dir, index: names ("event_30" and "emotion_new_adjust2.json" for older code).
        cache: folder for decoded images, known by the content of the files; None decodes them every time.
        progress: called with (sequences done, in all); with a cache each counts twice, looked at and decoded.

    Raises:
        ValueError: an argument is out of its range.
        DataError: the root, the index or a folder is missing or malformed, a record is bad (with ``on_bad="raise"``), or no
            record is left.
    """
    if not 1 <= size <= MAX_SIDE or least < 1:
        raise ValueError(
            f"size, least: {size}, {least} outside 1 .. {MAX_SIDE} and 1 ..; choose others"
        )
    tree = SeeTree(root, event_dir=event_dir, frame_dir=frame_dir, index=index)
    records, faults = _records(tree, least)
    if faults and on_bad == "raise":
        raise faults[0]
    made = _images(root, records, size, on_bad == "raise", cache, progress)
    broken: dict[int, DataError] = {
        number: DataError(root / file, reason, records[number].name)
        for number, file, reason in json.loads(made["faults"].tobytes())
    }
    if broken and on_bad == "raise":  # a file of the cache may come from a reader that skipped them
        raise broken[min(broken)]
    skipped = Counter(error.kind for error in (*faults, *broken.values()))
    warn_of_skipped(root, skipped)
    whole = [number for number in range(len(records)) if number not in broken]
    if not whole:
        raise DataError(tree.index, "no records: none can be used; check the dataset")
    kept = [records[number] for number in whole]
    return SeeSequences(
        events=made["events"],
        frames=made["frames"],
        first=_first(records)[whole],
        lengths=np.array([len(record.images) for record in kept], np.int64),
        labels=np.array([record.label for record in kept], np.int64),
        label_names=tree.labels,
        names=tuple(record.name for record in kept),
        subjects=tuple(record.subject for record in kept),
        lights=tuple(record.light for record in kept),
        subsets=tuple(record.subset for record in kept),
        skipped=dict(skipped),
    )


def _records(tree: SeeTree, least: int) -> tuple[list[SeeRecord], list[DataError]]:
    records, faults = [], []
    for name in tree.names:
        try:
            record = tree.record(name, least=least)
            assert record is not None  # both subsets were asked for
            records.append(record)
        except DataError as error:
            faults.append(error)
    return records, faults


def _first(records: Sequence[SeeRecord]) -> Indices:
    lengths = [len(record.images) for record in records]
    return np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)


def _images(
    root: Path,
    records: Sequence[SeeRecord],
    size: int,
    strict: bool,
    cache: Path | None,
    progress: Progress | None,
) -> Arrays:
    """Decoded, or from the cache: "events", "frames", and "faults", JSON of [record, file, reason] that could not be decoded."""
    count = len(records)

    def decode() -> Arrays:
        begin = 0 if cache is None else count
        return _decode(
            root, records, size, strict, lambda done: _say(progress, begin + done, begin + count)
        )

    if cache is None:
        return decode()
    digests = {}
    for done, record in enumerate(records, start=1):
        digests[record.name] = _digest(record)
        _say(progress, done, 2 * count)
    made = cached(cache, cache_key("see", VERSION, digests, {"size": size}), decode)
    _say(progress, 2 * count, 2 * count)
    return made


def _say(progress: Progress | None, done: int, of: int) -> None:
    if progress is not None:
        progress(done, of)


def _digest(record: SeeRecord) -> str:
    """SHA-256 over the content of a sequence's files, in order."""
    digest = hashlib.sha256()
    for pair in record.images:
        for path in pair:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _decode(
    root: Path, records: Sequence[SeeRecord], size: int, strict: bool, done: Callable[[int], None]
) -> Arrays:
    images = sum(len(record.images) for record in records)
    events, frames = (np.zeros((images, size, size), np.uint8) for _ in range(2))
    faults: list[tuple[int, str, str]] = []
    for number, (record, first) in enumerate(zip(records, _first(records).tolist(), strict=True)):
        try:
            for row, (event, frame) in enumerate(decoded(record), start=first):
                events[row], frames[row] = _resized(event, size), _resized(frame, size)
        except DataError as error:
            if strict:
                raise
            faults.append((number, str(Path(error.file).relative_to(root)), error.reason))
        done(number + 1)
    listed = np.frombuffer(json.dumps(faults).encode(), np.uint8)
    return {"events": events, "frames": frames, "faults": listed}


def _resized(image: Image.Image, size: int) -> Images:
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels: Images = np.asarray(image)
    return pixels


ON_MIN: Final = 191  # half way from the mid-grey 127 to 255: JPEG ringing stays below
OFF_MAX: Final = 63  # half way from 127 to 0


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
        raise ValueError(
            f"subset: {subset!r} is neither 'training' nor 'testing'; name one of them"
        )
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size: {size} outside 1 .. {MAX_SIDE}; choose a size inside")
    if timesteps < 1:
        raise ValueError(f"timesteps: {timesteps} < 1; read at least one image")
    tree = SeeTree(root, event_dir=event_dir, frame_dir=frame_dir, index=index)
    clips: list[tuple[SeeRecord, NDArray[np.uint8], NDArray[np.uint8]]] = []
    skipped: Counter[str] = Counter()
    for name in tree.names:
        try:
            record = tree.record(name, subset=subset, least=timesteps)
            if record is not None:
                clips.append((record, *_read_clip(record, timesteps, size)))
        except DataError as error:
            if on_bad == "raise":
                raise
            skipped[error.kind] += 1
    warn_of_skipped(root, skipped)
    if not clips:
        raise DataError(
            tree.index, f"no records: none of subset '{subset}' can be used; check the dataset"
        )
    records = [clip[0] for clip in clips]
    return SeeClips(
        frames=np.stack([clip[2] for clip in clips]),
        events=np.stack([clip[1] for clip in clips]),
        labels=np.array([record.label for record in records], np.int64),
        label_names=tree.labels,
        names=tuple(record.name for record in records),
        subjects=tuple(record.subject for record in records),
        lights=tuple(record.light for record in records),
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
        names = [
            n
            for n, s in zip(a.names + b.names, a.subjects + b.subjects, strict=True)
            if s == shared[0]
        ]
        more = " ..." if len(shared) > 5 else ""
        reason = f"shared subjects: {', '.join(shared[:5])}{more} in both splits, none allowed; split by person"
        raise DataError("emotion.json", reason, f"{names[0]} and {names[-1]}")


def _read_clip(
    record: SeeRecord, timesteps: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return events (T, 2, size, size) and frames (T, size, size) of a record's first images."""
    events = np.empty((timesteps, 2, size, size), np.uint8)
    frames = np.empty((timesteps, size, size), np.uint8)
    for k, (event, frame) in enumerate(decoded(record, timesteps)):
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
