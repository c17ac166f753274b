"""Read SEE into memory: event and grey images of one eye for each emotion, indexed by a JSON file.

`read_sequences` decodes the records that `tree` has checked: whole segments of whatever lengths, as
grey images, or their beginnings, with events as ON and OFF masks; these can be had as clips of one
length.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from knarr.train.datasets.arrays import Bools, Int64, UInt8
from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached
from knarr.train.datasets.events.camera import resize_grey
from knarr.train.datasets.files import (
    DataReport,
    OnBad,
    count_kinds,
    data_report,
    is_strict,
    kinds_text,
)
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
            Masks (images, 2, H, W) where read with `timesteps`.
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
        """Return the rows (B, x) of `events` and `frames` that windows see.

        Args:
            indices: (B,) sequences.
            windows: (B, x) positions in each of them.
        """
        rows: Int64 = self.first[indices][:, None] + windows
        return rows

    def stacked(self) -> tuple[UInt8, UInt8]:
        """Return the images of sequences of equal length, as read with `timesteps`.

        Returns:
            Grey images (N, T, H, W), and events (N, T, 2, H, W): 0 or 1, channel 0 ON (brighter),
            channel 1 OFF (darker).
        """
        # Rows of a bad sequence are left blank between the others, so the stack is not simply cut.
        rows = self.first[:, None] + np.arange(self.lengths[0])
        return self.frames[rows], self.events[rows]


def read_sequences(
    root: Path,
    *,
    size: int,
    timesteps: int | None = None,
    least: int = 1,
    subset: Literal["training", "testing"] | None = None,
    on_bad: OnBad = "raise",
    event_dir: str = "event",
    frame_dir: str = "frame",
    index: str = "emotion.json",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SeeSequences:
    """Read every sequence; no image is repeated, padded or repaired.

    Images of another size are resized by antialiased interpolation, events too, as the published
    code does. All of SEE at 90 x 90 takes 2.1 GB. With `timesteps`, event images become ON and OFF
    masks before they are resized: a pixel then has an event if any pixel it covers has one.

    Args:
        root: folder that holds the two image folders and the index.
        size: height and width of the result in pixels, 1 to 2048.
        timesteps: None for all images of a segment, events (images, H, W) grey; a number for so
            many from its first on, events (images, 2, H, W) of 0 and 1, channel 0 ON (brighter),
            channel 1 OFF (darker).
        least: images that a sequence must have; at least `timesteps`.
        subset: which records to read, those of the other are not looked at; None for both subsets.
        on_bad: "raise" at the first bad record, or "skip" it, count it by reason, and warn once at
            the end. A fault of the index or the folders as a whole always raises.
        event_dir, frame_dir, index: names ("event_30" and "emotion_new_adjust2.json" for older
            code).
        cache: folder for decoded images, known by the content of the files; None decodes them every
            time.
        progress: called with (sequences done, in all); with a cache each counts twice, looked at
            and decoded.

    Raises:
        ValueError: an argument is out of its range.
        DataError: the root, the index or a folder is missing or malformed, a record is bad (with
            ``on_bad="raise"``), or no record is left.
    """
    if subset not in (None, *SUBSETS):
        raise ValueError(
            f"subset: {subset!r} is neither 'training' nor 'testing'; name one of them"
        )
    strict = is_strict(on_bad)
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size: {size} outside 1 .. {MAX_SIDE}; choose a size inside")
    if timesteps is not None and timesteps < 1:
        raise ValueError(f"timesteps: {timesteps} < 1; read at least one image")
    tree = SeeTree(root, event_dir=event_dir, frame_dir=frame_dir, index=index)
    records: list[SeeRecord] = []
    faults: list[DataError] = []
    for name in tree.names:
        try:
            record = tree.record(name, subset=subset, least=max(least, timesteps or 1))
        except DataError as error:
            if strict:
                raise
            faults.append(error)
        else:
            if record is not None:
                records.append(record)

    lengths = np.array([len(record.images[:timesteps]) for record in records], np.int64)
    first = np.cumsum(lengths) - lengths
    passes = 1 if cache is None else 2
    steps = count(1)

    def step() -> None:
        if progress is not None:
            progress(next(steps), passes * len(records))

    decode = partial(_decode, root, records, size, timesteps, strict, step)
    if cache is None:
        made = decode()
    else:
        digests = {}
        for record in records:
            digests[record.name] = _digest(record)
            step()
        settings = {"size": size} if timesteps is None else {"size": size, "timesteps": timesteps}
        made = cached(cache, cache_key("see", VERSION, digests, settings), decode)
        if progress is not None:
            # What the cache has is not decoded, and then nobody has counted it.
            progress(2 * len(records), 2 * len(records))

    broken = {
        number: DataError(root / file, reason, records[number].name)
        for number, file, reason in json.loads(made["faults"].tobytes())
    }
    if broken and strict:  # a file of the cache may come from a reader that skipped them
        raise broken[min(broken)]
    skipped = count_kinds([*faults, *broken.values()])
    if skipped:
        warnings.warn(
            f"{root}: skipped {sum(skipped.values())} bad records: {kinds_text(skipped)}",
            stacklevel=2,
        )
    whole = [number for number in range(len(records)) if number not in broken]
    if not whole:
        which = "none" if subset is None else f"none of subset '{subset}'"
        raise DataError(tree.index, f"no records: {which} can be used; check the dataset")
    good = [records[number] for number in whole]
    return SeeSequences(
        events=made["events"],
        frames=made["frames"],
        first=first[whole],
        lengths=lengths[whole],
        labels=np.array([record.label for record in good], np.int64),
        label_names=tree.labels,
        names=tuple(record.name for record in good),
        subjects=tuple(record.subject for record in good),
        lights=tuple(record.light for record in good),
        subsets=tuple(record.subset for record in good),
        skipped=dict(skipped),
    )


def check(root: Path) -> DataReport:
    """Read every record of both subsets, one image of each, and say what can be used.

    Raises:
        DataError: the folder or its index cannot be used as a whole.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of is in the report
        found = read_sequences(root, size=CHECK_SIZE, timesteps=1, on_bad="skip")
    # The kinds are all that is known of them: one line for each.
    skipped: list[DataError] = []
    for kind, number in sorted(found.skipped.items()):
        skipped += [DataError(root, kind)] * number
    splits = {subset: found.subsets.count(subset) for subset in SUBSETS}
    return data_report("see", root, splits, skipped, subjects=len(set(found.subjects)))


def assert_disjoint(a: SeeSequences, b: SeeSequences) -> None:
    """Refuse two sets of sequences that share a person.

    Args:
        a: Usually the training set.
        b: Usually the test set.

    Raises:
        DataError: A subject is in both; the message names up to five.
    """
    shared = sorted(set(a.subjects) & set(b.subjects))
    if shared:
        # One sequence of each side that shows the first person, to look at.
        one = a.names[a.subjects.index(shared[0])]
        other = b.names[::-1][b.subjects[::-1].index(shared[0])]
        more = " ..." if len(shared) > 5 else ""
        raise DataError(
            "emotion.json",
            f"shared subjects: {', '.join(shared[:5])}{more} in both splits, none allowed; "
            "split by person",
            f"{one} and {other}",
        )


def _decode(
    root: Path,
    records: Sequence[SeeRecord],
    size: int,
    timesteps: int | None,
    strict: bool,
    step: Callable[[], None],
) -> Arrays:
    """Decode the images of records one after another.

    Returns:
        "events", "frames", and "faults", JSON of [record, file, reason] of each record that could
        not be decoded.
    """
    images = sum(len(record.images[:timesteps]) for record in records)
    to_events = resize_grey if timesteps is None else _polarities
    channels = () if timesteps is None else (2,)
    events = np.zeros((images, *channels, size, size), np.uint8)
    frames = np.zeros((images, size, size), np.uint8)
    faults: list[tuple[int, str, str]] = []
    row = 0
    for number, record in enumerate(records):
        end = row + len(record.images[:timesteps])
        try:
            for event, frame in decoded(record, timesteps):
                events[row], frames[row] = to_events(event, size), resize_grey(frame, size)
                row += 1
        except DataError as error:
            if strict:
                raise
            # Relative to the root, so that a cache file holds after the dataset has moved.
            file = Path(error.file).relative_to(root)
            faults.append((number, str(file), error.reason))
        row = end
        step()
    # A cache file holds arrays alone, so the text is stored as its bytes.
    listed = np.frombuffer(json.dumps(faults).encode(), np.uint8)
    return {"events": events, "frames": frames, "faults": listed}


def _digest(record: SeeRecord) -> str:
    """Return a SHA-256 over the content of a sequence's files, in order."""
    digest = hashlib.sha256()
    for pair in record.images:
        for path in pair:
            # Of each file's own digest: over the bare bytes, two files could exchange their ends
            # unseen.
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _polarities(grey: UInt8, size: int) -> UInt8:
    """Return ON and OFF masks (2, size, size) of an event image."""
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
