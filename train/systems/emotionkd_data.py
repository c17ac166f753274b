"""DEAP, MAHNOB-HCI and Stress-Predict as EmotionKD's recipes have them: one fold, scaled, and coded
for the chip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from knarr.train.clips import Batch, Indices, split_validation
from knarr.train.datasets.arrays import Float32, Float64, Int64, Rng, UInt8
from knarr.train.datasets.physio.deap import SUBJECTS, read_deap
from knarr.train.datasets.physio.mahnob import read_mahnob
from knarr.train.datasets.physio.windows import PhysioWindows, Recordings
from knarr.train.datasets.splits import Fold, leave_one_subject_out, subject_folds, trial_folds
from knarr.train.datasets.stress.read import read_people
from knarr.train.datasets.stress.windows import (
    CLASS_NAMES,
    StressWindows,
    cut_windows,
    encode_windows,
    frames,
)
from knarr.train.settings import RecipeError
from knarr.train.systems.base import Coding, Progress, RunData
from knarr.train.systems.emotionkd_recipe import EmotionRecipe, PhysioData, StressData

# --- people and folds


def folds_of(settings: PhysioData | StressData, windows: Any) -> tuple[Fold, ...]:
    """Part windows into folds as the recipe says.

    Args:
        settings: Split, number of folds and their seed.
        windows: `PhysioWindows` or `StressWindows`; the latter have no trials, and their settings
            no split by them.

    Raises:
        RecipeError: More folds than people or trials.
    """
    subjects, count, seed = windows.subjects, settings.folds, settings.split_seed
    try:
        if settings.split == "loso":
            return tuple(leave_one_subject_out(subjects).values())
        if settings.split == "kfold_trial":
            return trial_folds(subjects, windows.trials, count, seed=seed)
        return subject_folds(subjects, count, seed=seed)
    except ValueError as error:
        raise RecipeError(f"data.split: {settings.split}: {error}") from error


def fold_count(recipe: EmotionRecipe, root: Path, *, cache: Path | None = None) -> int:
    """Return how many folds a recipe's data give: `data.folds`, or as many as there are people, who
    are then read.

    Args:
        recipe: Recipe of this system.
        root: Folder of the data.
        cache: Folder of prepared data.

    Raises:
        DataError, RecipeError: Data that cannot be read or parted so.
    """
    settings = recipe.data
    if settings.split != "loso":
        return settings.folds
    if isinstance(settings, StressData):
        return len(folds_of(settings, read_stress(settings, root)))
    windows = PhysioWindows(read_physio(settings, root, cache, None), settings.windowing)
    return len(folds_of(settings, windows))


def _tested_fold(
    settings: PhysioData | StressData, windows: Any, groups: npt.NDArray[np.generic]
) -> tuple[Fold, int]:
    """Return the fold that is tested, and how many folds there are.

    Raises:
        RecipeError: The fold is none of them, or leaves a single group to train and validate on.
    """
    folds = folds_of(settings, windows)
    if settings.fold >= len(folds):
        raise RecipeError(
            f"data.fold: {settings.fold}, there are {len(folds)}; take one of 0 .. {len(folds) - 1}"
        )
    fold = folds[settings.fold]
    # One group validates and another is fitted on; a group is never divided.
    if len(np.unique(groups[fold.train])) < 2:
        raise RecipeError(
            "data: the fold leaves one group to train and validate on; it takes two or more"
        )
    return fold, len(folds)


SPLITS: Final = {
    "loso": "one of {} people left out",
    "kfold_subject": "{} folds by person",
    "kfold_trial": "{} folds by trial, all people on both sides",
}
"""Splits in words, for a number of folds."""


CODE_UNITS: Final = 255.0
CODING: Final = Coding(bits=8, units=CODE_UNITS, kind="graded")
"""Coding of skin conductance for the chip."""

# --- DEAP and MAHNOB-HCI

PHYSIO_NAMES: Final = {"deap": "DEAP", "mahnob": "MAHNOB-HCI"}
PUBLISHED_THRESHOLD: Final = 5.0
"""Rating, 1 .. 9, above which published numbers count a trial as high."""
CODE_OF_MEAN: Final = 128
"""Integer of the chip's input that stands for a signal at its mean."""
PHYSIO_CLASSES: Final = ("low", "high")


@dataclass(frozen=True, eq=False)
class Scaler:
    """Scales each channel to mean 0 and variance 1.

    Args:
        mean: (29, 1) float64 mean of each channel: EEG, then skin conductance.
        spread: (29, 1) float64 standard deviations; 1 where a channel never changes.
    """

    mean: Float64
    spread: Float64

    def __call__(self, signals: Float32) -> Float32:
        """Return (..., 29, samples) signals, scaled."""
        return ((signals - self.mean) / self.spread).astype(np.float32)


def fit_scaler(windows: PhysioWindows, chosen: Indices) -> Scaler:
    """Return the scaler of the windows `chosen` alone, each sample counted once."""
    # Window by window, since all of them at once would fill the memory; first means, then what is
    # off them, since a mean of squares less a squared mean would cancel.
    means = [windows[index].mean(axis=1, dtype=np.float64) for index in chosen]
    mean = np.mean(means, axis=0)[:, None]
    squares = [np.square(windows[index] - mean).mean(axis=1) for index in chosen]
    spread = np.sqrt(np.mean(squares, axis=0))[:, None]
    return Scaler(mean, np.where(spread > 0, spread, 1.0))


@dataclass(frozen=True, eq=False)
class PhysioClips:
    """Some windows. Teacher inputs are EEG (B, 28, samples) and skin conductance (B, 1, samples).

    The chip's inputs cannot be negative: a sample of z standard deviations becomes round(128 +
    per_sd * z), cut to 0..255. Where the first synapse has a bias, it takes the 128 away again and
    the student loses nothing by it.

    Args:
        windows: All windows.
        chosen: Indices of those of this split.
        settings: Task, frames and coding.
        scaler: Scaler of all windows; None where each was scaled by itself.
    """

    windows: PhysioWindows
    chosen: Indices
    settings: PhysioData
    scaler: Scaler | None = None

    @property
    def labels(self) -> Int64:
        """(N,) classes of the recipe's task."""
        every: Int64 = getattr(self.windows, self.settings.task)
        return every[self.chosen]

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return clips `indices`; nothing is augmented."""
        signals = self._signals(indices)
        eeg, gsr = signals[:, :-1], signals[:, -1:]
        inputs = self._coded(gsr).astype(np.float32) / np.float32(CODE_UNITS)
        shown = map(np.ascontiguousarray, (eeg, gsr))
        return Batch.from_arrays(inputs, *shown, labels=self.labels[indices])

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return (B, T, frame) codes of skin conductance."""
        return self._coded(self._signals(indices)[:, -1:])

    def _signals(self, indices: Indices) -> Float32:
        signals = np.stack([self.windows[at] for at in self.chosen[indices].tolist()])
        return signals if self.scaler is None else self.scaler(signals)

    def _coded(self, gsr: Float32) -> UInt8:
        settings = self.settings
        # In float64: in float32 a product may round to another side of a half.
        codes = CODE_OF_MEAN + settings.per_sd * gsr[:, 0].astype(np.float64)
        codes = np.rint(codes).clip(0, CODE_UNITS)
        return np.ascontiguousarray(
            frames(codes, settings.frame, settings.frame_step).astype(np.uint8)
        )


def read_physio(
    settings: PhysioData, root: Path, cache: Path | None, progress: Progress | None
) -> Recordings:
    """Read the recordings of the people asked for.

    Raises:
        DataError: What the reader refuses.
        RecipeError: People who are not in the data.
    """
    options: dict[str, Any] = {"channels": settings.channels, "on_bad": settings.on_bad}
    options |= {"cache": cache, "progress": progress}
    if settings.kind == "deap":
        wanted = SUBJECTS if settings.people is None else settings.people
        _assert_known(wanted, SUBJECTS)
        return read_deap(root, subjects=wanted, **options)
    # Who is in a session is known when it has been read; DEAP's files are named after people.
    found = read_mahnob(root, **options)
    if settings.people is None:
        return found
    _assert_known(settings.people, {trial.subject for trial in found.trials})
    trials = tuple(trial for trial in found.trials if trial.subject in settings.people)
    return Recordings(trials, found.channels, found.left_out, found.missing)


def _assert_known(wanted: tuple[str, ...], people: Collection[str]) -> None:
    unknown = sorted(set(wanted) - set(people))
    if unknown or not wanted:
        raise RecipeError(
            f"data.people: {', '.join(unknown) or 'nobody'}; name some of {min(people)} .. {max(people)}"
        )


def load_physio(
    settings: PhysioData, root: Path, seed: int, cache: Path | None, progress: Progress | None
) -> RunData:
    """Read one fold; `seed` is the run's, which draws who validates: no scaler sees them."""
    windows = PhysioWindows(read_physio(settings, root, cache, progress), settings.windowing)
    groups = windows.subjects
    if settings.split == "kfold_trial":
        # All people are on both sides then, so that validation too parts trials and not people.
        pairs = zip(windows.subjects, windows.trials, strict=True)
        groups = np.array([f"{subject}/{trial}" for subject, trial in pairs])
    fold, count = _tested_fold(settings, windows, groups)
    own = groups[fold.train]
    scaler = None
    if settings.normalise == "train":
        fitted, _ = split_validation(own, settings.validation_fraction, seed)
        scaler = fit_scaler(windows, fold.train[fitted])
    train, test = (PhysioClips(windows, side, settings, scaler) for side in fold)
    return RunData(
        train,
        test,
        own,
        PHYSIO_CLASSES,
        name_of(settings, windows.recordings),
        CODING,
        subjects=tuple(map(str, windows.subjects[fold.test])),
        names=_window_names(windows, fold.test),
        protocol=_protocol(settings, count, len(np.unique(windows.subjects))),
        fold=settings.fold,
        fold_count=count,
    )


def name_of(settings: PhysioData, read: Recordings) -> str:
    """Return what published tables call the data, and how ours differ in whose recordings and which
    labels they are.
    """
    differs = []
    if settings.people is not None:
        differs.append(f"{len(settings.people)} people")
    if settings.threshold != PUBLISHED_THRESHOLD or settings.inclusive:
        differs.append(f"high {'from' if settings.inclusive else 'above'} {settings.threshold:g}")
    # Sessions of HCI lack a signal or a rating in the published set itself; DEAP's are all there.
    if settings.kind == "deap" and (read.left_out or read.missing):
        differs.append(f"without {len(read.left_out)} trials and {len(read.missing)} files")
    return ", ".join([f"{PHYSIO_NAMES[settings.kind]} {settings.task}", *differs])


def _protocol(settings: PhysioData, folds: int, people: int) -> str:
    parts = [SPLITS[settings.split].format(folds), f"windows of {settings.window_s:g} s"]
    # Where people are left out one by one, the first part says how many they are.
    if settings.people is not None and settings.split != "loso":
        parts.append(f"{people} people")
    if settings.gsr_unit == "siemens":
        parts.append("skin conductance in siemens")
    return "; ".join(parts)


def _window_names(windows: PhysioWindows, chosen: Indices) -> tuple[str, ...]:
    """Return names such as "s01/07/3": person, trial, number of the window in it."""
    # Numbered over all windows, so that a window has the same name in every fold.
    counted: Counter[str] = Counter()
    names = []
    for subject, trial in zip(windows.subjects, windows.trials, strict=True):
        recording = f"{subject}/{trial}"
        names.append(f"{recording}/{counted[recording]}")
        counted[recording] += 1
    return tuple(names[index] for index in chosen)


# --- Stress-Predict

STRESS_NAME: Final = "Stress-Predict"
TEACHER_LIMIT_SD: Final = 4.0
"""Standard deviations at which the teacher's inputs are cut off."""


@dataclass(frozen=True, eq=False)
class StressClips:
    """Some windows. The teacher's input is (B, 2, samples): skin conductance, heart rate held for
    its second.

    Args:
        windows: All windows.
        chosen: Indices of those of this split; some more than once where classes are balanced.
        codes: (all, T, 12) integers of all windows' skin conductance.
    """

    windows: StressWindows
    chosen: Indices
    codes: UInt8

    @property
    def labels(self) -> Int64:
        """(N,) classes, 0 for rest and 1 for stress."""
        return self.windows.labels[self.chosen]

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return clips `indices`; nothing is augmented."""
        own = self.chosen[indices]
        inputs = self.codes[own].astype(np.float32) / np.float32(CODE_UNITS)
        signals = self.windows.eda_hr[own].clip(-TEACHER_LIMIT_SD, TEACHER_LIMIT_SD)
        return Batch.from_arrays(inputs, signals, labels=self.windows.labels[own])

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return (B, T, 12) codes of skin conductance."""
        return self.codes[self.chosen[indices]]


def read_stress(settings: StressData, root: Path) -> StressWindows:
    """Read all windows of everybody."""
    return cut_windows(
        read_people(root).people,
        window_s=settings.window_s,
        step_s=settings.step_s,
        min_labelled=settings.min_labelled,
        normalise=settings.normalise,
    )


def load_stress(settings: StressData, root: Path) -> RunData:
    """Read one fold."""
    windows = read_stress(settings, root)
    fold, count = _tested_fold(settings, windows, windows.subjects)
    codes = encode_windows(windows.eda)
    train = balanced(windows, fold.train) if settings.balance else fold.train
    subjects, starts_s = windows.subjects[fold.test], windows.starts_s[fold.test]
    cut = f"windows of {settings.window_s} s every {settings.step_s} s"
    return RunData(
        StressClips(windows, train, codes),
        StressClips(windows, fold.test, codes),
        windows.subjects[train],
        CLASS_NAMES,
        STRESS_NAME,
        CODING,
        subjects=tuple(map(str, subjects)),
        names=tuple(f"{who}/{start_s} s" for who, start_s in zip(subjects, starts_s, strict=True)),
        protocol=f"{SPLITS[settings.split].format(count)}; {cut}",
        fold=settings.fold,
        fold_count=count,
    )


def balanced(windows: StressWindows, chosen: Indices) -> Indices:
    """Return `chosen`, and windows of each person's rarer class again until that person has as many
    of both, in rising order.

    However people are parted afterwards, both classes are alike on every side. Who has windows of
    one class alone stays as is.
    """
    found = [chosen]
    for subject in np.unique(windows.subjects[chosen]):
        own = chosen[windows.subjects[chosen] == subject]
        rest, stress = (own[windows.labels[own] == label] for label in (0, 1))
        few, many = sorted((rest, stress), key=len)
        if len(few):
            # `resize` goes round: every window comes again as often as any other, give or take
            # once.
            found.append(np.resize(few, len(many) - len(few)))
    return np.sort(np.concatenate(found))
