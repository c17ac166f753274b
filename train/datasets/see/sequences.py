"""Read SEE into memory: event and grey images of one eye for each emotion, indexed by a JSON file.

`read_sequences` gives whole segments of whatever lengths, as grey images; `read_see` clips of equal length, with events
as ON and OFF masks. Both decode the records that `tree` has checked.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from knarr.train.datasets.arrays import Bools, Int64, UInt8
from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached
from knarr.train.datasets.files import DataReport, OnBad, check_on_bad, count_kinds, kinds_text
from knarr.train.datasets.see.tree import MAX_SIDE, SUBSETS, SeeRecord, SeeTree, decoded
from knarr.train.errors import DataError

VERSION = 1
"""Version of the code that decodes whole sequences: raise it whenever pixels come out otherwise."""
ON_MIN = 191  # half way from the mid-grey 127 to 255: JPEG ringing stays below
OFF_MAX = 63  # half way from 127 to 0
CHECK_SIZE = 16  # pixels to which a check resizes: small, since only the faults are wanted

Images: TypeAlias = UInt8


@dataclass(frozen=True, eq=False)
class SeeSequences:
    """Sequences of different lengths, N of them in the order of their names.

    Attributes:
        events: (images, H, W) grey event images, 127 where nothing happened; bright ON, dark OFF.
        frames: (images, H, W) grey images, 0 .. 255.
        first: (N,) row of both in which each sequence begins.
        lengths: (N,) images of each.
        labels: (N,) positions in `label_names`.
        label_names: the classes, in the order of the index file.
        names, subjects, lights: (N,) of each sequence; a subject is its volunteer field.
        subsets: (N,) "training" or "testing", as the index says.
        skipped: number of records left out by reason; empty unless read with ``on_bad="skip"``.
    """

    events: Images
    frames: Images
    first: Int64
    lengths: Int64
    labels: Int64
    label_names: tuple[str, ...]
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    lights: tuple[str, ...]
    subsets: tuple[str, ...]
    skipped: Mapping[str, int]

    def rows(self, indices: Int64, windows: Int64) -> Int64:
        """Return the rows (B, x) of `events` and `frames` at positions `windows` (B, x) in the sequences `indices` (B,)."""
        rows: Int64 = self.first[indices][:, None] + windows
        return rows


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

    frames: UInt8
    events: UInt8
    labels: Int64
    label_names: tuple[str, ...]
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    lights: tuple[str, ...]
    skipped: Mapping[str, int]


def read_sequences(
    root: Path,
    *,
    size: int,
    least: int = 1,
    on_bad: OnBad = "raise",
    event_dir: str = "event",
    frame_dir: str = "frame",
    index: str = "emotion.json",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SeeSequences:
    """Read every sequence of both subsets, all images of its segment; none repeated, padded or cut.

    Images of another size are resized by antialiased interpolation, events too, as the published code does. All of SEE at
    90 x 90 takes 2.1 GB.

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
    return _read(tree, size, least, on_bad, cache=cache, progress=progress)


def read_see(
    root: Path,
    *,
    subset: Literal["training", "testing"],
    size: int,
    timesteps: int,
    on_bad: OnBad = "raise",
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
    check_on_bad(on_bad)
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size: {size} outside 1 .. {MAX_SIDE}; choose a size inside")
    if timesteps < 1:
        raise ValueError(f"timesteps: {timesteps} < 1; read at least one image")
    tree = SeeTree(root, event_dir=event_dir, frame_dir=frame_dir, index=index)
    found = _read(tree, size, timesteps, on_bad, subset=subset, count=timesteps, masks=True)
    # Rows of a bad sequence are left blank between the others, so the stack is not simply cut into clips.
    rows = found.first[:, None] + np.arange(timesteps)
    return SeeClips(
        frames=found.frames[rows],
        events=found.events[rows],
        labels=found.labels,
        label_names=found.label_names,
        names=found.names,
        subjects=found.subjects,
        lights=found.lights,
        skipped=found.skipped,
    )


def check(root: Path) -> DataReport:
    """Read every record of both subsets, one image of each, and say what can be used.

    Raises:
        DataError: the folder or its index cannot be used as a whole.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of is in the report
        found = _read(SeeTree(root), CHECK_SIZE, 1, "skip", count=1)
    skipped = [
        f"{root}: {kind}" for kind, count in sorted(found.skipped.items()) for _ in range(count)
    ]
    return DataReport(
        name="see",
        root=str(root),
        samples=len(found.names),
        splits={subset: found.subsets.count(subset) for subset in SUBSETS},
        subjects=len(set(found.subjects)),
        skipped=tuple(skipped),
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
    if not shared:
        return
    subject_of = zip(a.names + b.names, a.subjects + b.subjects, strict=True)
    names = [name for name, subject in subject_of if subject == shared[0]]
    more = " ..." if len(shared) > 5 else ""
    reason = (
        f"shared subjects: {', '.join(shared[:5])}{more} in both splits, none allowed; "
        "split by person"
    )
    # Training names come first, so the two ends are one name of each side.
    raise DataError("emotion.json", reason, f"{names[0]} and {names[-1]}")


def _read(
    tree: SeeTree,
    size: int,
    least: int,
    on_bad: OnBad,
    *,
    subset: str | None = None,
    count: int | None = None,
    masks: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SeeSequences:
    """Read the sequences of a tree.

    Args:
        tree: index and folders.
        size, least, on_bad, cache, progress: as of `read_sequences`.
        subset: which records to look at; None for both subsets.
        count: how many images of each, from the first; None for all.
        masks: make events (images, 2, H, W) ON and OFF masks in place of grey images; such are never cached.
    """
    strict = on_bad == "raise"
    records: list[SeeRecord] = []
    faults: list[DataError] = []
    for name in tree.names:
        try:
            record = tree.record(name, subset=subset, least=least)
        except DataError as error:
            if strict:
                raise
            faults.append(error)
        else:
            if record is not None:
                records.append(record)

    first, made = _images(tree, records, size, strict, count, masks, cache, progress)
    broken = {
        number: DataError(tree.root / file, reason, records[number].name)
        for number, file, reason in json.loads(made["faults"].tobytes())
    }
    if broken and strict:  # a file of the cache may come from a reader that skipped them
        raise broken[min(broken)]
    skipped = count_kinds([*faults, *broken.values()])
    if skipped:
        text = f"{tree.root}: skipped {sum(skipped.values())} bad records: {kinds_text(skipped)}"
        warnings.warn(text, stacklevel=3)
    whole = [number for number in range(len(records)) if number not in broken]
    if not whole:
        which = "none" if subset is None else f"none of subset '{subset}'"
        raise DataError(tree.index, f"no records: {which} can be used; check the dataset")
    good = [records[number] for number in whole]
    return SeeSequences(
        events=made["events"],
        frames=made["frames"],
        first=first[whole],
        lengths=np.array([len(record.images[:count]) for record in good], np.int64),
        labels=np.array([record.label for record in good], np.int64),
        label_names=tree.labels,
        names=tuple(record.name for record in good),
        subjects=tuple(record.subject for record in good),
        lights=tuple(record.light for record in good),
        subsets=tuple(record.subset for record in good),
        skipped=dict(skipped),
    )


def _images(
    tree: SeeTree,
    records: Sequence[SeeRecord],
    size: int,
    strict: bool,
    count: int | None,
    masks: bool,
    cache: Path | None,
    progress: Progress | None,
) -> tuple[Int64, Arrays]:
    """Decode the images of records, or take them from the cache.

    Returns:
        The row in which each record begins; and "events", "frames", and "faults", JSON of [record, file, reason] of each
        record that could not be decoded.
    """
    ends = np.cumsum([0] + [len(record.images[:count]) for record in records])

    def say(done: int, passes: int) -> None:
        if progress is not None:
            progress(done, passes * len(records))

    def decode() -> Arrays:
        shape = (ends[-1], size, size)
        events = np.zeros((ends[-1], 2, size, size) if masks else shape, np.uint8)
        frames = np.zeros(shape, np.uint8)
        to_events = _polarities if masks else _resized
        faults: list[tuple[int, str, str]] = []
        for number, record in enumerate(records):
            try:
                for row, (event, frame) in enumerate(decoded(record, count), start=ends[number]):
                    events[row], frames[row] = to_events(event, size), _resized(frame, size)
            except DataError as error:
                if strict:
                    raise
                # Relative to the root, so that a cache file holds after the dataset has moved.
                file = Path(error.file).relative_to(tree.root)
                faults.append((number, str(file), error.reason))
            if cache is None:
                say(number + 1, 1)
            else:
                say(len(records) + number + 1, 2)
        # A cache file holds arrays alone, so the text is stored as its bytes.
        listed = np.frombuffer(json.dumps(faults).encode(), np.uint8)
        return {"events": events, "frames": frames, "faults": listed}

    first = ends[:-1].astype(np.int64)
    if cache is None:
        return first, decode()
    digests = {}
    for done, record in enumerate(records, start=1):
        digests[record.name] = _digest(record)
        say(done, 2)
    made = cached(cache, cache_key("see", VERSION, digests, {"size": size}), decode)
    say(2 * len(records), 2)
    return first, made


def _digest(record: SeeRecord) -> str:
    """Return a SHA-256 over the content of a sequence's files, in order."""
    digest = hashlib.sha256()
    for pair in record.images:
        for path in pair:
            # Of each file's own digest: over the bare bytes, two files could exchange their ends unseen.
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _resized(image: Image.Image, size: int) -> UInt8:
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _polarities(image: Image.Image, size: int) -> UInt8:
    """Return ON and OFF masks (2, size, size) of an event image."""
    grey = np.asarray(image)
    masks = [_shrink_mask(grey >= ON_MIN, size), _shrink_mask(grey <= OFF_MAX, size)]
    return np.stack(masks).astype(np.uint8)


def _shrink_mask(mask: Bools, size: int) -> Bools:
    """Resize a mask (H, H) to (size, size): set where any covered pixel is set."""
    if len(mask) == size:
        return mask
    # The box filter averages exactly the covered pixels; in float none is rounded away.
    image = Image.fromarray(mask.astype(np.float32))
    covered: Bools = np.asarray(image.resize((size, size), Image.Resampling.BOX)) > 0
    return covered
