"""Write a recording of an event camera, or a folder of them, as the arrays of a `.npz` file.

    step = (t - first t) // dt;   row, column = (y - top) // pool, (x - left) // pool

An element is 1 where at least one event fell on it, or their number up to 255. Nothing is lost
unsaid: events = what the elements hold + merged + outside + late + untimed.

Each recording is read twice: once to check it and to learn how long it is, once to write it. Neither
a recording nor the array is ever held as a whole.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from knarr.files import replacing
from knarr.train.datasets.arrays import AnyArray, Int64, UInt8
from knarr.train.datasets.events.recordings import EventStream, RecordingReader
from knarr.train.errors import DataError

MAX_ARRAY_BYTES: Final = 16 << 30
"""Largest array that is written; who trains on it has to hold it."""
SLAB_BYTES: Final = 1 << 26
"""Memory of the steps that are filled at a time."""
MOST_COUNT: Final = 255
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Binning:
    """The way in which events become steps.

    Args:
        dt_us: Length of a step, microseconds.
        timesteps: Steps of a sample; None for those of the longest recording.
        windows: Cut each recording into samples of `timesteps`, the last one padded; without it a
            recording is one sample, and what is later than its last step is left out.
        crop: (left, top, width, height) in pixels of the sensor; None for all of it.
        pool: Side of the square of pixels that becomes one, pixels.
        channels: 2 for one of falling and one of rising light, 1 for both together.
        counts: Count the events of an element, up to 255, in place of 0 or 1.

    Raises:
        ValueError: A value is out of its range.
    """

    dt_us: int = 1000
    timesteps: int | None = None
    windows: bool = False
    crop: tuple[int, int, int, int] | None = None
    pool: int = 1
    channels: Literal[1, 2] = 2
    counts: bool = False

    def __post_init__(self) -> None:
        for name in ("dt_us", "timesteps", "pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} < 1; give a positive whole number")
        if self.channels not in (1, 2):
            raise ValueError(f"channels: {self.channels} is neither 1 nor 2; name one")
        if self.windows and self.timesteps is None:
            raise ValueError("windows: need their number of steps; give timesteps")
        if self.crop is not None and (min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(f"crop: {self.crop} is no left, top, width, height; give pixels")

    def place(self, stream: EventStream) -> tuple[int, int, int, int]:
        """Return (left, top, rows, columns): the first pixel that is used, and the size pooled.

        Raises:
            DataError: The crop does not lie on the sensor, or less than one square of it is left.
        """
        left, top, width, height = self.crop or (0, 0, stream.width, stream.height)
        if left + width > stream.width or top + height > stream.height:
            raise DataError(
                stream.path,
                f"crop: columns {left} .. {left + width - 1} and rows {top} .. {top + height - 1} of "
                f"{stream.width}x{stream.height} pixels; give one that lies on the sensor",
            )
        rows, columns = height // self.pool, width // self.pool
        if not rows or not columns:
            raise DataError(
                stream.path,
                f"pool: squares of {self.pool} pixels on {width}x{height}; give smaller ones",
            )
        return left, top, rows, columns


@dataclass
class Losses:
    """Numbers of events and steps that do not stand in the array as they were.

    Args:
        events: Events of all recordings.
        outside: Events outside the crop, or in a margin that is no whole square of the pool.
        late: Events after the last step.
        merged: Events on an element that is 1 already, or above 255 of them.
        untimed: Events before the first time of a recording.
        padded, steps_padded: Recordings that are shorter, and their steps without events.
        cut, steps_cut: Recordings that are longer, and their steps that were left out.
    """

    events: int = 0
    outside: int = 0
    late: int = 0
    merged: int = 0
    untimed: int = 0
    padded: int = 0
    steps_padded: int = 0
    cut: int = 0
    steps_cut: int = 0

    def sentences(self) -> list[str]:
        """Say each of them that is not nothing."""
        said = []
        if self.padded:
            said.append(
                f"{self.padded} recordings are shorter; padded with {self.steps_padded:,} steps without events"
            )
        if self.cut:
            said.append(f"{self.cut} recordings are longer; {self.steps_cut:,} steps were cut off")
        lost = {
            "lie outside the pixels that are kept": self.outside,
            "come after the last step": self.late,
            "found their element at its most already (1; 255 with --counts)": self.merged,
            "come before the first time of their recording": self.untimed,
        }
        return said + [
            f"{number:,} of {self.events:,} events {what}"
            for what, number in lost.items()
            if number
        ]


@dataclass(frozen=True)
class Converted:
    """The file that was written, and what it does not hold as it was.

    Args:
        out: The file.
        shape: (samples, timesteps, channels, height, width) of its inputs.
        dt_s: Length of a step, seconds.
        recordings: Recordings that were read.
        formats: Recordings of each format.
        classes: Names of the classes' folders; empty without labels.
        groups: Number of groups; 0 without groups.
        losses: What does not stand in the array as it was.
        skipped: A line for each recording that was left out.
    """

    out: Path
    shape: tuple[int, int, int, int, int]
    dt_s: float
    recordings: int
    formats: dict[str, int]
    classes: tuple[str, ...]
    groups: int
    losses: Losses
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `json.dump` takes."""
        facts = asdict(self)
        losses = facts.pop("losses")
        skipped = list(facts.pop("skipped"))
        return {
            **facts,
            "out": str(self.out),
            "shape": list(self.shape),
            **losses,
            "skipped": skipped,
        }


@dataclass(frozen=True)
class _Source:
    """A file, the name of its class where it has one, and a name that is none other's."""

    path: Path
    label: str | None
    name: str


@dataclass(frozen=True)
class _Plan:
    """A recording as its first reading has found it.

    Args:
        source: The recording.
        kind: Its format.
        size: (rows, columns) of its steps.
        origin_us: Time at which its step 0 begins.
        steps: Number of steps up to its last event.
    """

    source: _Source
    kind: str
    size: tuple[int, int]
    origin_us: int
    steps: int


def convert_recordings(
    path: Path,
    out: Path,
    steps: Binning,
    *,
    sensor: tuple[int, int] | None = None,
    stream: int | None = None,
    people: str | None = None,
    skip_damaged: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write recordings as arrays: inputs (N, T, C, H, W) uint8 and names (N,).

    Of a folder with a folder for each class there are also labels (N,), whole numbers where all
    classes are named so and text otherwise; and groups (N,), the person where `people` is given, and
    the recording where windows are cut.

    Args:
        path: A recording, a folder of them, or a folder with a folder of them for each class.
        out: The `.npz` file.
        steps: How events become steps.
        sensor, stream: As of `RecordingReader`.
        people: Regular expression whose first group, found in a file's name, says who was recorded.
        skip_damaged: Leave out recordings that cannot be read; each is named in the result.
        progress: Called with (recordings done, in all), for the first reading and for the second.

    Raises:
        DataError: A recording that cannot be read, sizes that differ, an array that is too large.
        ValueError: `people` is no regular expression with a group.
        MissingExtraError: The package that decodes a recording is not installed.
    """
    sources = _find(path)
    group_of = _groups(sources, people, steps.windows)
    with RecordingReader(sensor, stream) as reader:
        plans, skipped = _look(reader, sources, steps, skip_damaged, progress)
        if not plans:
            raise DataError(
                path, f"no recordings: not one of {len(sources)} files can be read; {skipped[0]}"
            )
        _check_sizes(plans)
        longest = max(plan.steps for plan in plans)
        timesteps = longest if steps.timesteps is None else steps.timesteps
        samples = [-(-plan.steps // timesteps) if steps.windows else 1 for plan in plans]
        shape = (sum(samples), timesteps, steps.channels, *plans[0].size)
        _check_room(path, shape)
        arrays = {"names": _names(plans, samples, steps.windows)}
        if plans[0].source.label is not None:
            labels = [str(plan.source.label) for plan in plans]
            arrays["labels"] = np.repeat(_numbers_or_text(labels), samples)
        if group_of:
            arrays["groups"] = np.repeat([group_of[plan.source.name] for plan in plans], samples)
        losses = Losses()
        with (
            replacing(out) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            with archive.open("inputs.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for number, (plan, count) in enumerate(zip(plans, samples, strict=True), start=1):
                    total = count * timesteps
                    _count_lengths(losses, plan.steps, total)
                    again = reader.open(plan.source.path)
                    for slab in slabs_of(again, steps, plan.origin_us, total, losses):
                        file.write(slab.tobytes())
                    if progress is not None:
                        progress(number, len(plans))
    return Converted(
        out=out,
        shape=shape,
        dt_s=steps.dt_us / 1e6,
        recordings=len(plans),
        formats=dict(Counter(plan.kind for plan in plans)),
        classes=tuple(
            dict.fromkeys(plan.source.label for plan in plans if plan.source.label is not None)
        ),
        groups=len(set(arrays["groups"].tolist())) if group_of else 0,
        losses=losses,
        skipped=tuple(skipped),
    )


def _find(path: Path) -> list[_Source]:
    """Return the recordings of a path, sorted by class and name."""
    if path.is_file():
        return [_Source(path, None, path.stem)]
    if not path.is_dir():
        raise DataError(path, "missing recording: no such file or folder; give one")
    files, folders = _entries(path)
    if not files and not folders:
        raise DataError(path, "empty folder: it holds no recording; give a folder of recordings")
    if not folders:
        return [_Source(file, None, file.name) for file in files]
    if files:
        raise DataError(
            path,
            f"files beside classes: {files[0].name} lies beside the folder {folders[0].name}; "
            "give a folder with a folder for each class and nothing else",
        )
    sources = []
    for folder in sorted(folders, key=_by_number):
        own, deeper = _entries(folder)
        if deeper:
            raise DataError(
                path,
                f"folders in folders: {folder.name} holds {deeper[0].name}; give the folder whose folders are "
                f"the classes, such as {folder}",
            )
        if not own:
            raise DataError(folder, "empty class: its folder holds no recording; remove it")
        sources += [_Source(file, folder.name, f"{folder.name}/{file.name}") for file in own]
    return sources


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the folders of a folder, but for hidden ones."""
    seen = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in seen if entry.is_file()], [entry for entry in seen if entry.is_dir()]


def _by_number(folder: Path) -> tuple[int, str]:
    """Order classes 2 and 10 as numbers."""
    return (int(folder.name), "") if folder.name.isdecimal() else (0, folder.name)


def _groups(sources: Sequence[_Source], people: str | None, windows: bool) -> dict[str, str]:
    """Return the group of each recording by its name; nothing where there are none."""
    if people is None:
        return {source.name: source.name for source in sources} if windows else {}
    try:
        pattern = re.compile(people)
    except re.error as error:
        raise ValueError(
            f"people: '{people}' is no regular expression ({error}); give one"
        ) from None
    if pattern.groups != 1:
        raise ValueError(
            f"people: '{people}' has {pattern.groups} groups, needs one; write user(\\d+)"
        )
    found = {}
    for source in sources:
        match = pattern.search(source.path.name)
        if match is None or not match[1]:
            raise DataError(
                source.path, f"people: '{people}' is not found in its name; give another"
            )
        found[source.name] = match[1]
    return found


def _look(
    reader: RecordingReader,
    sources: Sequence[_Source],
    steps: Binning,
    skip_damaged: bool,
    progress: Progress | None,
) -> tuple[list[_Plan], list[str]]:
    """Read every recording once; return what was found, and a line for each that was left out."""
    plans, skipped = [], []
    for number, source in enumerate(sources, start=1):
        try:
            plans.append(_plan(reader, source, steps))
        except DataError as error:
            if not skip_damaged:
                raise
            skipped.append(str(error))
        if progress is not None:
            progress(number, len(sources))
    return plans, skipped


def _plan(reader: RecordingReader, source: _Source, steps: Binning) -> _Plan:
    stream = reader.open(source.path)
    size = steps.place(stream)[2:]
    first_us, last_us = None, 0
    for events in stream.chunks:
        first_us = int(events["t"][0]) if first_us is None else first_us
        last_us = int(events["t"][-1])
    origin_us = 0 if stream.starts_at_zero or first_us is None else first_us
    return _Plan(source, stream.kind, size, origin_us, (last_us - origin_us) // steps.dt_us + 1)


def _check_sizes(plans: Sequence[_Plan]) -> None:
    first = plans[0]
    for plan in plans:
        if plan.size != first.size:
            mine, theirs = ("x".join(map(str, size[::-1])) for size in (plan.size, first.size))
            raise DataError(
                plan.source.path,
                f"size: {mine} pixels, {theirs} in {first.source.path}; give --crop, or convert them apart",
            )


def _check_room(path: Path, shape: tuple[int, ...]) -> None:
    size = 1
    for length in shape:
        size *= length  # of Python, which does not run over
    if size > MAX_ARRAY_BYTES:
        raise DataError(
            path,
            f"array too large: {' x '.join(map(str, shape))} is {size} bytes, allowed {MAX_ARRAY_BYTES}; take "
            "fewer or longer steps, a crop, or a pool",
        )


def _names(plans: Sequence[_Plan], samples: Sequence[int], windows: bool) -> AnyArray:
    pairs = [
        (plan.source.name, at)
        for plan, count in zip(plans, samples, strict=True)
        for at in range(count)
    ]
    return np.array([f"{name}#{at}" if windows else name for name, at in pairs])


def _numbers_or_text(labels: Sequence[str]) -> AnyArray:
    """Return classes as whole numbers where all are named so, and no two by the same number."""
    if all(map(str.isdecimal, labels)):
        numbers = [int(label) for label in labels]
        if len(set(numbers)) == len(set(labels)):
            return np.array(numbers)
    return np.array(labels)


def _count_lengths(losses: Losses, own: int, total: int) -> None:
    losses.padded += own < total
    losses.steps_padded += max(total - own, 0)
    losses.cut += own > total
    losses.steps_cut += max(own - total, 0)


def slabs_of(
    stream: EventStream, steps: Binning, origin_us: int, total: int, losses: Losses
) -> Iterator[UInt8]:
    """Yield the steps of a recording, as many at a time as `SLAB_BYTES` hold.

    Args:
        stream: The recording.
        steps: How its events become steps.
        origin_us: Time at which step 0 begins, microseconds.
        total: Number of steps that are wanted, those behind the last event empty.
        losses: Is added to.

    Yields:
        (k, channels, rows, columns) arrays whose k sum to `total`.

    Raises:
        DataError: As of the stream's chunks, and of `Binning.place`.
    """
    left, top, rows, columns = steps.place(stream)
    step_shape = (steps.channels, rows, columns)
    height = max(1, SLAB_BYTES // int(np.prod(step_shape)))
    start = 0
    slab = np.zeros((min(height, total), *step_shape), np.uint8)
    losses.untimed += stream.untimed
    losses.events += stream.untimed
    for events in stream.chunks:
        losses.events += len(events)
        step = (events["t"] - origin_us) // steps.dt_us
        column = (events["x"].astype(np.int64) - left) // steps.pool
        row = (events["y"].astype(np.int64) - top) // steps.pool
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        late = inside & (step >= total)
        losses.outside += int((~inside).sum())
        losses.late += int(late.sum())
        kept = inside & ~late
        channel = events["p"] if steps.channels == 2 else np.zeros(len(events), np.uint8)
        places = np.stack([step, channel, row, column])[:, kept]
        # Times never fall, so the events of a slab lie together.
        while places.shape[1]:
            end = int(np.searchsorted(places[0], start + len(slab)))
            losses.merged += _add(slab, places[:, :end], start, steps.counts)
            places = places[:, end:]
            if places.shape[1]:
                yield slab
                start += len(slab)
                slab = np.zeros((min(height, total - start), *step_shape), np.uint8)
    while start < total:
        yield slab
        start += len(slab)
        slab = np.zeros((min(height, total - start), *step_shape), np.uint8)


def _add(slab: UInt8, places: Int64, start: int, counts: bool) -> int:
    """Add events to the elements they fall on; return how many did not change one."""
    step, *rest = places
    flat = np.ravel_multi_index((step - start, *rest), slab.shape)
    elements, numbers = np.unique(flat, return_counts=True)
    before = slab.reshape(-1)[elements].astype(np.int64)
    after = np.minimum(before + numbers, MOST_COUNT if counts else 1)
    slab.reshape(-1)[elements] = after
    return int(numbers.sum() - (after - before).sum())
