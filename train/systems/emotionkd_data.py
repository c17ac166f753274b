"""DEAP, MAHNOB-HCI and Stress-Predict as EmotionKD's recipes have them: one fold, scaled, and coded for the chip."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from knarr.train.clips import Batch, Indices, split_validation
from knarr.train.datasets.physio.deap import SUBJECTS, read_deap
from knarr.train.datasets.physio.mahnob import read_mahnob
from knarr.train.datasets.physio.windows import PhysioWindows, Recordings
from knarr.train.datasets.splits import Fold, leave_one_subject_out, subject_folds, trial_folds
from knarr.train.datasets.stress.read import read_people
from knarr.train.datasets.stress.windows import (
    CLASS_NAMES,
    Codes,
    StressWindows,
    cut_windows,
    encode_windows,
    frames,
)
from knarr.train.settings import RecipeError
from knarr.train.systems.base import Coding, Progress, RunData
from knarr.train.systems.emotionkd_recipe import PhysioData, StressData

NAMES: Final = {"deap": "DEAP", "mahnob": "MAHNOB-HCI"}
THRESHOLD: Final = 5.0
"""Of the ratings, 1 .. 9: what published numbers are of."""
MEAN: Final = 128
UNITS: Final = 255.0
CODING: Final = Coding(bits=8, units=UNITS, kind="graded")
CLASSES: Final = ("low", "high")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and standard deviation of each channel, (29, 1) float64: EEG, then skin conductance; 1 where a channel never changes."""

    mean: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    def __call__(self, signals: Floats) -> Floats:
        """(..., 29, samples) -> the same, scaled."""
        return ((signals - self.mean) / self.spread).astype(np.float32)


def fit_scaler(windows: PhysioWindows, chosen: Indices) -> Scaler:
    """Of the windows `chosen` alone, each sample counted once."""
    mean = np.mean(
        [both(windows, index).mean(axis=1, dtype=np.float64) for index in chosen], axis=0
    )[:, None]
    off = [np.square(both(windows, index) - mean).mean(axis=1) for index in chosen]
    spread = np.sqrt(np.mean(off, axis=0))[:, None]
    return Scaler(mean, np.where(spread > 0, spread, 1.0))


def both(windows: PhysioWindows, index: int) -> Floats:
    """(29, samples): EEG, then skin conductance."""
    window = windows[index]
    return np.concatenate([window.eeg.numpy(), window.gsr.numpy()])


@dataclass(frozen=True, eq=False)
class PhysioClips:
    """Some windows. Teacher inputs are EEG (B, 28, samples) and skin conductance (B, 1, samples).

    The chip's inputs cannot be negative: a sample of z standard deviations becomes round(128 + per_sd * z), cut to 0..255. Where the
    first synapse has a bias, it takes the 128 away again and the student loses nothing by it.

    Args:
        windows: all of them.
        chosen: those of this split.
        settings: task, frames, coding.
        scaler: where windows are not scaled each by itself.
    """

    windows: PhysioWindows
    chosen: Indices
    settings: PhysioData
    scaler: Scaler | None = None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        every: npt.NDArray[np.int64] = getattr(self.windows, self.settings.task)
        return every[self.chosen]

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        signals = self._signals(indices)
        eeg, gsr = signals[:, :-1], signals[:, -1:]
        return Batch(
            torch.from_numpy(self._coded(gsr).astype(np.float32) / np.float32(UNITS)),
            (
                torch.from_numpy(np.ascontiguousarray(eeg)),
                torch.from_numpy(np.ascontiguousarray(gsr)),
            ),
            torch.from_numpy(self.labels[indices]),
        )

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        return self._coded(self._signals(indices)[:, -1:])

    def _signals(self, indices: Indices) -> Floats:
        read = [both(self.windows, int(self.chosen[index])) for index in indices]
        rows, samples = len(self.settings.channels) + 1, self.settings.samples
        signals = np.stack(read) if read else np.zeros((0, rows, samples), np.float32)
        return signals if self.scaler is None else self.scaler(signals)

    def _coded(self, gsr: Floats) -> npt.NDArray[np.uint8]:
        settings = self.settings
        whole = np.rint(MEAN + settings.per_sd * gsr[:, 0].astype(np.float64)).clip(0, 255)
        coded = frames(whole, settings.frame, settings.frame_step).astype(np.uint8)
        return np.ascontiguousarray(coded)


def read_physio(
    settings: PhysioData, root: Path, cache: Path | None, progress: Progress | None
) -> Recordings:
    """The recordings of the people asked for.

    Raises:
        DataError: what the reader refuses.
        RecipeError: people who are not in the data.
    """
    options: dict[str, Any] = {"channels": settings.channels, "on_bad": settings.on_bad}
    options |= {"cache": cache, "progress": progress}
    if settings.kind == "deap":
        wanted = SUBJECTS if settings.people is None else settings.people
        _known(wanted, SUBJECTS)
        return read_deap(root, subjects=wanted, **options)
    found = read_mahnob(root, **options)
    if settings.people is None:
        return found
    _known(settings.people, sorted({trial.subject for trial in found.trials}))
    kept = tuple(trial for trial in found.trials if trial.subject in settings.people)
    return Recordings(kept, found.channels, found.left_out, found.missing)


def _known(wanted: tuple[str, ...], there: tuple[str, ...] | list[str]) -> None:
    unknown = sorted(set(wanted) - set(there))
    if unknown or not wanted:
        raise RecipeError(
            f"data.people: {', '.join(unknown) or 'nobody'}; name some of {there[0]} .. {there[-1]}"
        )


def physio_folds(windows: PhysioWindows, settings: PhysioData) -> tuple[Fold, ...]:
    """All folds.

    Raises:
        RecipeError: more than people or trials.
    """
    subjects = windows.subjects
    try:
        if settings.split == "loso":
            return tuple(leave_one_subject_out(subjects).values())
        if settings.split == "kfold_subject":
            return subject_folds(subjects, settings.folds, seed=settings.split_seed)
        return trial_folds(subjects, windows.trials, settings.folds, seed=settings.split_seed)
    except ValueError as error:
        raise RecipeError(f"data.split: {settings.split}: {error}") from error


def load_physio(
    settings: PhysioData, root: Path, seed: int, cache: Path | None, progress: Progress | None
) -> RunData:
    """One fold; `seed` is the run's, which draws who validates: no scaler sees them."""
    windows = PhysioWindows(read_physio(settings, root, cache, progress), settings.windowing)
    folds = physio_folds(windows, settings)
    fold = pick_fold(folds, settings.fold)
    groups = windows.subjects
    if settings.split == "kfold_trial":
        pairs = zip(windows.subjects, windows.trials, strict=True)
        groups = np.array([f"{subject}/{trial}" for subject, trial in pairs])
    own = groups[fold.train]
    enough_groups(own)
    scaler = None
    if settings.normalise == "train":
        fitted, _ = split_validation(own, settings.validation_fraction, seed)
        scaler = fit_scaler(windows, fold.train[fitted])
    train, test = (PhysioClips(windows, side, settings, scaler) for side in fold)
    return RunData(
        train,
        test,
        own,
        CLASSES,
        name_of(settings, windows.recordings),
        CODING,
        subjects=tuple(map(str, windows.subjects[fold.test])),
        names=names_of(windows, fold.test),
        protocol=_protocol(settings, len(folds), len(np.unique(windows.subjects))),
        fold=settings.fold,
        fold_count=len(folds),
    )


def name_of(settings: PhysioData, read: Recordings) -> str:
    """What published tables call the data, and how ours differ in whose recordings and which labels they are."""
    differs = []
    if settings.people is not None:
        differs.append(f"{len(settings.people)} people")
    if settings.threshold != THRESHOLD or settings.inclusive:
        differs.append(f"high {'from' if settings.inclusive else 'above'} {settings.threshold:g}")
    # Sessions of HCI lack a signal or a rating in the published set itself; DEAP's are all there.
    if settings.kind == "deap" and (read.left_out or read.missing):
        differs.append(f"without {len(read.left_out)} trials and {len(read.missing)} files")
    return ", ".join([f"{NAMES[settings.kind]} {settings.task}", *differs])


def _protocol(settings: PhysioData, folds: int, people: int) -> str:
    said = [in_words(settings.split, folds), f"windows of {settings.window_s:g} s"]
    said += [f"{people} people"] if settings.people is not None and settings.split != "loso" else []
    said += ["skin conductance in siemens"] if settings.gsr_unit == "siemens" else []
    return "; ".join(said)


def names_of(windows: PhysioWindows, chosen: Indices) -> tuple[str, ...]:
    """ "s01/07/3": person, trial, number of the window in it."""
    seen: Counter[str] = Counter()
    every = []
    for subject, trial in zip(windows.subjects, windows.trials, strict=True):
        recording = f"{subject}/{trial}"
        every.append(f"{recording}/{seen[recording]}")
        seen[recording] += 1
    return tuple(every[index] for index in chosen)


def in_words(split: str, folds: int) -> str:
    """How people or trials are parted."""
    if split == "loso":
        return f"one of {folds} people left out"
    if split == "kfold_subject":
        return f"{folds} folds by person"
    return f"{folds} folds by trial, all people on both sides"


def pick_fold(folds: tuple[Fold, ...], number: int) -> Fold:
    """One of them.

    Raises:
        RecipeError: there are fewer.
    """
    if number >= len(folds):
        raise RecipeError(
            f"data.fold: {number}, there are {len(folds)}; take one of 0 .. {len(folds) - 1}"
        )
    return folds[number]


def enough_groups(groups: npt.NDArray[np.generic]) -> None:
    """Refuse a fold that leaves nobody to fit on beside those who validate."""
    if len(np.unique(groups)) < 2:
        raise RecipeError(
            "data: the fold leaves one group to train and validate on; it takes two or more"
        )


NAME: Final = "Stress-Predict"
LOUDEST: Final = 4.0
"""Standard deviations at which the teacher's inputs are cut off."""


@dataclass(frozen=True, eq=False)
class StressClips:
    """Some windows. The teacher's input is (B, 2, samples): skin conductance, heart rate held for its second.

    Args:
        windows: all of them.
        chosen: those of this split; some more than once where classes are balanced.
        codes: of all windows.
    """

    windows: StressWindows
    chosen: Indices
    codes: Codes

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.windows.labels[self.chosen]

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        here = self.chosen[indices]
        return Batch(
            torch.from_numpy(
                self.codes.integers[here].astype(np.float32) / np.float32(self.codes.units)
            ),
            (torch.from_numpy(self.windows.eda_hr[here].clip(-LOUDEST, LOUDEST)),),
            torch.from_numpy(self.windows.labels[here]),
        )

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        return self.codes.integers[self.chosen[indices]]


def stress_folds(windows: StressWindows, settings: StressData) -> tuple[Fold, ...]:
    """All folds.

    Raises:
        RecipeError: more than people.
    """
    try:
        if settings.split == "loso":
            return tuple(leave_one_subject_out(windows.subjects).values())
        return subject_folds(windows.subjects, settings.folds, seed=settings.split_seed)
    except ValueError as error:
        raise RecipeError(f"data.split: {settings.split}: {error}") from error


def read_stress(settings: StressData, root: Path) -> StressWindows:
    """All windows of everybody."""
    return cut_windows(
        read_people(root).people,
        window_s=settings.window_s,
        step_s=settings.step_s,
        min_labelled=settings.min_labelled,
        normalise=settings.normalise,
    )


def load_stress(settings: StressData, root: Path) -> RunData:
    """One fold."""
    windows = read_stress(settings, root)
    folds = stress_folds(windows, settings)
    fold = pick_fold(folds, settings.fold)
    codes = encode_windows(windows.eda, "graded")
    train = balanced(windows, fold.train) if settings.balance else fold.train
    enough_groups(windows.subjects[train])
    return RunData(
        StressClips(windows, train, codes),
        StressClips(windows, fold.test, codes),
        windows.subjects[train],
        CLASS_NAMES,
        NAME,
        Coding(bits=codes.bits, units=codes.units, kind=codes.kind),
        subjects=tuple(map(str, windows.subjects[fold.test])),
        names=tuple(
            f"{windows.subjects[index]}/{windows.starts_s[index]} s" for index in fold.test
        ),
        protocol=f"{in_words(settings.split, len(folds))}; windows of {settings.window_s} s every {settings.step_s} s",
        fold=settings.fold,
        fold_count=len(folds),
    )


def balanced(windows: StressWindows, chosen: Indices) -> Indices:
    """`chosen`, and windows of each person's rarer class again until that person has as many of both, in rising order.

    However people are parted afterwards, both classes are alike on every side. Who has windows of one class alone stays as is.
    """
    found = [chosen]
    for subject in np.unique(windows.subjects[chosen]):
        own = chosen[windows.subjects[chosen] == subject]
        rest, stress = (own[windows.labels[own] == label] for label in (0, 1))
        few, many = sorted((rest, stress), key=len)
        if len(few):
            found.append(np.resize(few, len(many) - len(few)))
    return np.sort(np.concatenate(found))
