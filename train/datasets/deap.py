"""DEAP: EEG, skin conductance and ratings of 32 people who watched 40 music videos each.

Reads the preprocessed release for Python, ``<root>/data_preprocessed_python/s01.dat`` .. ``s32.dat``: 128 Hz, EEG of
4-45 Hz against the common average, 3 s before and 60 s of each video (Koelstra et al. 2012,
https://doi.org/10.1109/T-AFFC.2011.15). The 3 s are dropped. The files do not name their channels: their order is that
of the documentation and cannot be checked. DEAP defines no official split; the windows offer those by person and trial.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np

from knarr.train.data_error import DataError
from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached, parallel
from knarr.train.datasets.deap_pickle import MAX_BYTES, Layout, read_dat
from knarr.train.datasets.files import checked_file, inside, sha256_of
from knarr.train.datasets.physio import EEG_28, EEG_32, Recordings, Trial, pick
from knarr.train.datasets.report import DataReport

FOLDER: Final = "data_preprocessed_python"
SUBJECTS: Final = tuple(f"s{number:02d}" for number in range(1, 33))
GSR_CHANNEL: Final = 36  # ohm
VERSION: Final = 1  # of `_prepare`
OFFICIAL: Final = Layout()

_log = logging.getLogger(__name__)


def read_deap(
    root: Path,
    *,
    subjects: Sequence[str] = SUBJECTS,
    channels: Sequence[str] = EEG_28,
    on_bad: Literal["raise", "skip"] = "raise",
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    layout: Layout = OFFICIAL,
) -> Recordings:
    """Read people's recordings, without the seconds before the video.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        subjects: Whom to read, of "s01" .. "s32".
        channels: Electrodes to keep, by name and in this order, of `physio.EEG_32`.
        on_bad: "raise" at the first missing file, bad file or bad trial, or "skip": leave bad trials out, all 40 of a bad
            file, log each, count them by reason and warn once at the end.
        cache: Folder for the prepared signals, 36 MB a person; without one every file is unpickled again.
        workers: Processes to read with.
        progress: Called with (people done, people in all).
        layout: Shape of each file; DEAP's unless a test says otherwise.

    Returns:
        The trials, named "01" .. "40" in the order of the file, 7,680 samples each.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder is missing or holds a file that DEAP does not have, a file or a trial is bad (with
            ``on_bad="raise"``), or no trial is left.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    load = partial(
        _load, root=root, channels=tuple(channels), cache=cache, layout=layout, strict=on_bad == "raise"
    )
    parts = _all(root, subjects, channels, load, workers, progress)
    trials = tuple(trial for part in parts for trial in part.trials)
    left_out = tuple(error for part in parts for error in part.left_out)
    missing = tuple(part.missing for part in parts if part.missing)
    found = Recordings(trials, tuple(channels), left_out, missing)
    for error in left_out:
        if on_bad == "raise":
            raise error
        _log.warning("%s", error)
    if left_out or missing:
        counts = "".join(f", {kind} {count}" for kind, count in sorted(found.skipped.items()))
        text = (
            f"{root}: skipped {len(left_out)} bad trials{counts}; missing {', '.join(missing) or 'nothing'}"
        )
        warnings.warn(text, stacklevel=2)
    if not trials:
        raise DataError(root, "no trials: none can be used; check the dataset")
    return found


def check(
    root: Path, *, workers: int = 1, progress: Progress | None = None, layout: Layout = OFFICIAL
) -> DataReport:
    """Read every file of DEAP and say what can be used.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        workers: Processes to read with.
        progress: Called with (people done, people in all).
        layout: As for `read_deap`.

    Returns:
        Samples are trials, 1,280 in all: ``samples + len(skipped) + 40 * len(missing)`` is always that. The splits are
        the test sets of leave-one-subject-out, "loso/s01" and so on.

    Raises:
        DataError: The folder is missing, or holds files that DEAP does not have.
    """
    load = partial(_verdict, root=root, layout=layout)
    parts = _all(root, SUBJECTS, EEG_32, load, workers, progress)
    splits = {f"loso/{part.subject}": part.good for part in parts if part.good}
    return DataReport(
        name="deap",
        root=str(root),
        samples=sum(splits.values()),
        splits=splits,
        subjects=len(splits),
        skipped=tuple(str(error) for part in parts for error in part.left_out),
        missing=tuple(part.missing for part in parts if part.missing),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """What one file gave: `good` trials (kept or only counted), and one error for each of the others."""

    subject: str
    digest: str = ""
    trials: tuple[Trial, ...] = ()
    good: int = 0
    left_out: tuple[DataError, ...] = ()
    missing: str = ""


def _all(
    root: Path,
    subjects: Sequence[str],
    channels: Sequence[str],
    load: partial[_Part],
    workers: int,
    progress: Progress | None,
) -> list[_Part]:
    """Read each subject's file; refuse those with the same content, for nobody knows whose it is."""
    pick(channels)
    if not subjects or len(set(subjects)) != len(subjects) or not set(subjects) <= set(SUBJECTS):
        raise ValueError(
            f"subjects: {list(subjects)} are not different ones of s01 .. s32; name some of them"
        )
    _check_folder(root)
    parts = parallel(sorted(subjects), load, workers=workers, progress=progress)
    same: defaultdict[str, list[str]] = defaultdict(list)
    for part in parts:
        if part.digest:
            same[part.digest].append(part.subject)
    for position, part in enumerate(parts):
        others = [subject for subject in same.get(part.digest, []) if subject != part.subject]
        if others:
            reason = (
                f"duplicate recording: the same content as {others[0]}.dat, so whose is unknown; restore both"
            )
            path, count = root / FOLDER / f"{part.subject}.dat", part.good + len(part.left_out)
            errors = tuple(DataError(path, reason, f"trial {k:02d}") for k in range(1, count + 1))
            parts[position] = _Part(part.subject, part.digest, left_out=errors)
    return parts


def _check_folder(root: Path) -> None:
    folder = inside(root / FOLDER, root)
    if not folder.is_dir():
        raise DataError(folder, f"missing folder: not there; give the folder that holds {FOLDER}")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".dat" and path.stem not in SUBJECTS:
            raise DataError(path, "unknown file: none of s01.dat .. s32.dat; rename or remove it")


def _verdict(subject: str, *, root: Path, layout: Layout) -> _Part:
    """`_load` without the signals."""
    part = _load(subject, root=root, channels=EEG_32, cache=None, layout=layout, strict=False)
    return _Part(part.subject, part.digest, (), part.good, part.left_out, part.missing)


def _load(
    subject: str, *, root: Path, channels: tuple[str, ...], cache: Path | None, layout: Layout, strict: bool
) -> _Part:
    """Read one subject's file; with `strict`, raise its first fault."""
    path = root / FOLDER / f"{subject}.dat"
    numbers = range(1, layout.trials + 1)
    try:
        if not strict and not path.exists() and not path.is_symlink():
            return _Part(subject, missing=f"{FOLDER}/{subject}.dat")
        checked_file(path, root, MAX_BYTES)
        digest = sha256_of(path)
        prepare = partial(_prepare, path, pick(channels), layout)
        if cache is None:
            arrays = prepare()
        else:
            settings = {
                "channels": list(channels),
                "layout": [layout.trials, layout.samples, layout.baseline],
            }
            arrays = cached(cache, cache_key("deap", VERSION, {path.name: digest}, settings), prepare)
    except DataError as error:
        if strict:
            raise
        record = "" if error.record is None else f"{error.record}, "
        errors = tuple(DataError(path, error.reason, f"{record}trial {k:02d}") for k in numbers)
        return _Part(subject, left_out=errors)
    trials, left_out = [], []
    for k in numbers:
        fault = _fault(arrays, k - 1)
        if fault is None:
            valence, arousal = map(float, arrays["labels"][k - 1, :2])
            eeg, gsr = arrays["eeg"][k - 1], arrays["gsr"][k - 1]
            trials.append(Trial(subject, f"{k:02d}", eeg, gsr, valence, arousal))
        else:
            left_out.append(DataError(path, fault, f"trial {k:02d}"))
    if strict and left_out:
        raise left_out[0]
    return _Part(subject, digest, tuple(trials), len(trials), tuple(left_out))


def _prepare(path: Path, channels: list[int], layout: Layout) -> Arrays:
    """The part of a file that is used; all of it is looked at for numbers that are none."""
    signals, ratings = read_dat(path, layout)
    largest = float(np.finfo(np.float32).max)
    finite = (np.abs(signals) <= largest).all(axis=(1, 2))  # NaN is not <= anything
    used = np.where(finite[:, None, None], signals[:, [*channels, GSR_CHANNEL], layout.baseline :], 0.0)
    return {
        "eeg": used[:, :-1].astype(np.float32),
        "gsr": used[:, -1].astype(np.float32),
        "labels": ratings.astype(np.float64),
        "finite": finite,
    }


def _fault(arrays: Arrays, row: int) -> str | None:
    if not arrays["finite"][row]:
        return "not finite: a signal is NaN, infinite or beyond float32; restore the file"
    ratings = arrays["labels"][row]
    if not ((ratings >= 1) & (ratings <= 9)).all():
        return f"label out of range: ratings {ratings.tolist()} are not all 1 .. 9; restore the file"
    return None
