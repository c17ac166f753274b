"""Read CMU-MOSI: filmed opinions with a sentiment score, in two classes.

A simulated event camera looks at the films.

Labels come from any of the files that `labels` reads; pictures from the first of these folders that
is there:

| folder | what it holds |
|-|-|
| ``Video/Segmented/<video>_<k>.mp4`` | a file per segment |
| ``Video/Full/<video>.mp4`` | whole videos, cut here by the label file's times |
| ``Raw/<video>/<k>.mp4`` | a file per segment (MMSA) |

The first two may also lie in ``Raw``, as the authors' archive has them.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from knarr.train.datasets.cache import Arrays, Progress, cached, parallel
from knarr.train.datasets.events.camera import Dvs
from knarr.train.datasets.events.video import MAX_VIDEO_BYTES, events_of_video
from knarr.train.datasets.files import (
    DataReport,
    OnBad,
    check_root,
    checked_file,
    data_report,
    report_skipped,
)
from knarr.train.datasets.mosi.clips import MosiClips, Source, source_key
from knarr.train.datasets.mosi.labels import (
    MODES,
    STANDARD_FOLDS,
    Segment,
    find_labels,
    read_segments,
)
from knarr.train.errors import DataError

SEGMENTS = 2199
"""Segments of the complete set, of 93 videos: 1,284 to train, 229 to validate, 686 to test."""
VERSION = 1
"""Version of `_prepare`: raise it whenever it computes something else."""

_VIDEO_FILES = {
    "Video/Segmented": "{video}_{k}.mp4",
    "Raw/Video/Segmented": "{video}_{k}.mp4",
    "Video/Full": "{video}.mp4",
    "Raw/Video/Full": "{video}.mp4",
    "Raw": "{video}/{k}.mp4",
}

Folds = Mapping[str, str] | Literal["standard", "mode"]
_Item = tuple[Segment, Source]
_log = logging.getLogger(__name__)


def read_mosi(
    root: Path,
    camera: Dvs,
    *,
    zeros: Literal["drop", "positive"] = "drop",
    folds: Folds = "standard",
    fps: float | None = None,
    on_bad: OnBad = "raise",
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> MosiClips:
    """Read every segment and show it to the simulated camera.

    Args:
        root: folder with the label file and the videos.
        camera: settings of the simulation; `size` and `frames` must be numbers.
        zeros: segments of score 0 are left out and counted, or are of the positive class.
        folds: "standard" for the 52, 10 and 31 videos, "mode" for what the label file says (MMSA
            only), or a fold of `MODES` for each video.
        fps: the rate that every video must have; None for any.
        on_bad: "raise" at the first bad segment (no video, a damaged one, a bad record, no fold),
            or "skip": log each, count them by reason and warn once at the end.
        cache: folder for the events; 0.3 MB a segment at the default camera. Without one they are
            computed again.
        workers: processes to decode with.
        progress: called with (segments done, segments in all).

    Raises:
        ValueError: an argument is out of its range.
        DataError: no root, label file or video folder; the label file is malformed; a video lies in
            two folds; a segment is bad (with ``on_bad="raise"``); no segment is left.
    """
    if on_bad not in ("raise", "skip") or zeros not in ("drop", "positive"):
        raise ValueError(
            f"on_bad, zeros: {on_bad!r}, {zeros!r}; give 'raise' or 'skip', 'drop' or 'positive'"
        )
    if camera.size is None or camera.frames is None:
        raise ValueError("camera: size and frames must be numbers, for the clips are stacked")
    strict = on_bad == "raise"
    every, fold_of, bad = _scan(root, folds)
    if bad and strict:
        raise bad[0]
    items = [item for item in every if item[0].score != 0 or zeros == "positive"]
    zeros_dropped = len(every) - len(items)
    if zeros_dropped:
        _log.info("%s: %d segments of score 0 dropped", root, zeros_dropped)
    make = partial(_prepare, root=root, camera=camera, fps=fps, cache=cache, strict=strict)
    good = _sorted_out(items, parallel(items, make, workers=workers, progress=progress), bad)
    report_skipped(root, "bad segments", bad)
    if not good:
        raise DataError(root, "no segments: none can be used; check the dataset")
    segments, sources, made = zip(*good, strict=True)
    stacked = {name: np.stack([arrays[name] for arrays in made]) for name in made[0]}
    scores = np.array([segment.score for segment in segments])
    return MosiClips(
        **stacked,
        width=camera.size,
        labels=(scores >= 0).astype(np.int64),
        scores=scores,
        keys=tuple(segment.key for segment in segments),
        folds=tuple(fold_of[segment.key.video] for segment in segments),
        left_out=tuple(bad),
        zeros_dropped=zeros_dropped,
        sources=sources,
    )


def check(root: Path, *, folds: Folds = "standard") -> DataReport:
    """Read the label file, decode the beginning of every segment, and say what can be used.

    Returns:
        Samples are segments, those of score 0 included; a subject is a video; the splits are the
        folds.

    Raises:
        DataError: no root, label file or video folder; the label file is malformed; a video lies in
            two folds.
    """
    items, fold_of, bad = _scan(root, folds)
    make = partial(_prepare, root=root, camera=Dvs(size=16), fps=None, cache=None, strict=False)
    named = len(items) + len(bad)
    good = _sorted_out(items, map(make, items), bad)
    videos = [segment.key.video for segment, _, _ in good]
    counts = Counter(fold_of[video] for video in videos)
    absent = SEGMENTS - named
    missing = [f"{absent} of {SEGMENTS} segments are not in the label file"]
    return data_report(
        "mosi",
        root,
        {mode: counts[mode] for mode in MODES},
        bad,
        subjects=len(set(videos)),
        missing=missing if absent > 0 else (),
    )


def _sorted_out(
    items: list[_Item], results: Iterable[Arrays | DataError], bad: list[DataError]
) -> list[tuple[Segment, Source, Arrays]]:
    """Return the segments that were read, and add the errors of the others to `bad`."""
    good = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, DataError):
            bad.append(result)
        else:
            good.append((*item, result))
    return good


def _scan(root: Path, folds: Folds) -> tuple[list[_Item], Mapping[str, str], list[DataError]]:
    """Return good segments with their sources, the fold of each video, and the bad ones' errors."""
    check_root(root)
    layout, path = find_labels(root)
    segments, errors = read_segments(root, path, layout)
    fold_of = _folds(path, segments, folds)
    folder, files = _video_folder(root)
    whole_videos = "{k}" not in files
    bad = list(errors)
    items: list[_Item] = []
    for segment in segments:
        video, k = segment.key
        if video not in fold_of:
            reason = "no fold: the video is in none of them; name its fold, or take the segment out"
            bad.append(DataError(path, reason, str(segment.key)))
            continue
        if whole_videos and segment.span_s is None:
            raise DataError(
                path,
                f"no times: {layout} labels have none to cut whole videos by; use the CSV or csd file",
                str(segment.key),
            )
        # A file per segment is cut already, whatever times the label file has.
        span_s = segment.span_s if whole_videos else None
        items.append((segment, (folder / files.format(video=video, k=k), span_s)))
    return items, fold_of, bad


def _folds(path: Path, segments: tuple[Segment, ...], folds: Folds) -> Mapping[str, str]:
    if isinstance(folds, Mapping):
        unknown = sorted(set(folds.values()) - set(MODES))
        if unknown:
            raise ValueError(
                f"folds: {', '.join(unknown)} is none of {', '.join(MODES)}; name those"
            )
        return folds
    if folds == "standard":
        return STANDARD_FOLDS
    if folds != "mode":
        raise ValueError(
            f"folds: {folds!r} is neither 'standard' nor 'mode'; name one or give a mapping"
        )
    found: defaultdict[str, set[str]] = defaultdict(set)
    for segment in segments:
        if segment.mode is not None:
            found[segment.key.video].add(segment.mode)
    for video, modes in found.items():
        # A video is one person, who must not be on two sides.
        if len(modes) > 1:
            raise DataError(
                path, f"shared video: in {', '.join(sorted(modes))}; one fold is allowed", video
            )
    return {video: mode for video, (mode,) in found.items()}


def _video_folder(root: Path) -> tuple[Path, str]:
    """Return the first folder of `_VIDEO_FILES` that is there, and how its files are called."""
    for name, files in _VIDEO_FILES.items():
        if (root / name).is_dir():
            return root / name, files
    raise DataError(
        root, "missing videos: no folder Video/Segmented, Video/Full or Raw; check the root"
    )


def _prepare(
    item: _Item, *, root: Path, camera: Dvs, fps: float | None, cache: Path | None, strict: bool
) -> Arrays | DataError:
    """Return the events of one segment, from the cache where it has them.

    What is wrong with the segment is returned too, or raised where `strict`.
    """
    segment, source = item
    path, span_s = source
    record = str(segment.key)

    def make() -> Arrays:
        start_s, end_s = span_s or (0.0, None)
        events = events_of_video(path, camera, start_s=start_s, end_s=end_s, fps=fps)
        # A cache file holds arrays alone: no first frame is one without pixels, no rate is NaN.
        return {
            "first": np.zeros((0, 0), np.uint8) if events.first is None else events.first,
            "packed": np.packbits(events.spikes, axis=-1),
            "shown": np.array(events.shown),
            "fps": np.array(np.nan if events.fps is None else events.fps),
        }

    try:
        checked_file(path, root, MAX_VIDEO_BYTES, record)
        if cache is None:
            return make()
        settings = {"camera": asdict(camera), "fps": fps}
        name = path.relative_to(root).as_posix()
        return cached(cache, source_key("mosi", VERSION, name, source, settings), make)
    except DataError as error:
        place = record if error.record in (None, record) else f"{record}, {error.record}"
        named = DataError(error.file, error.reason, place)
        if strict:
            raise named from error
        return named
