"""Stress-Predict as EmotionKD's recipes have it: one fold by person, both classes alike in training, coded for the chip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from knarr.train.clips import Batch, Indices
from knarr.train.datasets.splits import Fold, leave_one_subject_out, subject_folds
from knarr.train.datasets.stress.read import read_people
from knarr.train.datasets.stress.windows import (
    CLASS_NAMES,
    Codes,
    StressWindows,
    cut_windows,
    encode_windows,
)
from knarr.train.settings import RecipeError
from knarr.train.systems.base import Coding, RunData
from knarr.train.systems.emotionkd_recipe import StressData
from knarr.train.systems.physio_data import enough_groups, in_words, pick_fold

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
