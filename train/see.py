"""Strict reader of the SEE layout: event and grey images of one eye per emotion, indexed by a JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knarr.train.data_error import DataError
from knarr.train.datasets.see_tree import (
    LIGHTS,
    MAX_JPEG_BYTES,
    MAX_JSON_BYTES,
    MAX_SIDE,
    SUBSETS,
    SeeRecord,
    SeeTree,
    decoded,
    warn_of_skipped,
)

__all__ = [
    "LIGHTS",
    "MAX_JPEG_BYTES",
    "MAX_JSON_BYTES",
    "MAX_SIDE",
    "SUBSETS",
    "SeeClips",
    "assert_disjoint",
    "read_see",
]

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
        raise ValueError(f"subset: {subset!r} is neither 'training' nor 'testing'; name one of them")
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
        raise DataError(tree.index, f"no records: none of subset '{subset}' can be used; check the dataset")
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
        names = [n for n, s in zip(a.names + b.names, a.subjects + b.subjects, strict=True) if s == shared[0]]
        more = " ..." if len(shared) > 5 else ""
        reason = (
            f"shared subjects: {', '.join(shared[:5])}{more} in both splits, none allowed; split by person"
        )
        raise DataError("emotion.json", reason, f"{names[0]} and {names[-1]}")


def _read_clip(record: SeeRecord, timesteps: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
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
