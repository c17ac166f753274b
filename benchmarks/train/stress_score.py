"""Balanced accuracy, and intervals of means and paired differences: over seeds, and over people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from knarr.train.datasets.stress.windows import StressWindows

DRAWS: Final = 4000

Counts = Mapping[str, Sequence[int]]
"""Person -> windows of rest called rest, rest called stress, stress called rest, stress called stress."""


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def count_people(
    windows: StressWindows, indices: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]
) -> dict[str, list[int]]:
    """What was said of each person's windows, as `Counts`."""
    cell = 2 * windows.labels[indices] + classes
    people = windows.subjects[indices]
    return {
        str(who): np.bincount(cell[people == who], minlength=4).tolist()
        for who in np.unique(people)
    }


def balanced_accuracy(counts: Counts) -> float:
    """Mean of the two classes' shares that were found, over all windows of all people."""
    return float(_balanced(np.array(list(counts.values())).sum(axis=0)))


def _balanced(cells: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    rest, stress = cells[..., :2], cells[..., 2:]
    return (rest[..., 0] / rest.sum(axis=-1) + stress[..., 1] / stress.sum(axis=-1)) / 2


def fold_scores(runs: Sequence[Sequence[Counts]]) -> npt.NDArray[np.float64]:
    """(seeds, folds) of runs[seed][fold]."""
    return np.array([[balanced_accuracy(counts) for counts in folds] for folds in runs])


def over_seeds(scores: npt.NDArray[np.float64]) -> Interval:
    """Of (seeds, folds) scores or paired differences: mean over folds, then Student's t over seeds, one at least two."""
    seeds = scores.mean(axis=1)
    mean = float(seeds.mean())
    if len(seeds) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(student_t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / np.sqrt(len(seeds)))
    return Interval(mean, mean - half, mean + half)


def over_people(
    ours: Sequence[Sequence[Counts]], theirs: Sequence[Sequence[Counts]] | float
) -> Interval:
    """Of ours minus theirs, or minus a number: percentiles over draws of people with replacement, the same for both.

    All folds' windows are put together and seeds averaged, so the mean may differ from `over_seeds`'s in the third place.
    """
    drawn = _drawn(ours)
    difference = drawn - (theirs if isinstance(theirs, float) else _drawn(theirs))
    low, high = np.percentile(difference[1:], [2.5, 97.5])
    return Interval(float(difference[0]), float(low), float(high))


def _drawn(runs: Sequence[Sequence[Counts]]) -> npt.NDArray[np.float64]:
    """(1 + DRAWS,) balanced accuracy: of the people as they are, then of each draw."""
    names = sorted(_names(runs[0]))
    cells = np.array([_in_order(folds, names) for folds in runs])  # (seeds, people, 4)
    chosen = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    scores = [np.bincount(row, minlength=len(names)) @ cells for row in chosen]
    return _balanced(np.stack([cells.sum(axis=1), *scores])).mean(axis=1)


def _names(folds: Iterable[Counts]) -> set[str]:
    return {name for counts in folds for name in counts}


def _in_order(folds: Iterable[Counts], names: Sequence[str]) -> list[Sequence[int]]:
    together = {name: cells for counts in folds for name, cells in counts.items()}
    return [together[name] for name in names]
