"""Splits as index arrays: pure functions of the person (and the trial) that each sample belongs to.

They depend on the ids alone: shuffling the samples moves the indices and nothing else. A person is
never on two sides, but for `trial_folds`, which is person-dependent by intent and then divides no
trial.

scikit-learn's GroupKFold deals groups out in another order: the same seed would name other folds
than those that runs were made on. Hence the draws here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.arrays import Bools, Int64

Ids = npt.NDArray[np.generic] | Sequence[str] | Sequence[int]


class Fold(NamedTuple):
    """One fold: rising indices of the samples to train on and of those held out."""

    train: Int64
    test: Int64


def leave_one_subject_out(subjects: Ids) -> dict[str, Fold]:
    """Make one fold for each person, who is its test set.

    Args:
        subjects: (N,) person of each sample, at least two different ones.

    Returns:
        Folds by person, in the order of the sorted ids.

    Raises:
        ValueError: Fewer than two people.
    """
    people, person = _codes("subjects", subjects)
    if len(people) < 2:
        raise ValueError(f"subjects: {len(people)} < 2; a split needs that many")
    return {str(name): _fold(person == number) for number, name in enumerate(people)}


def subject_folds(subjects: Ids, k: int, *, seed: int) -> tuple[Fold, ...]:
    """Make `k` folds over people.

    Each person is in exactly one test set, and their numbers differ by at most one.

    Args:
        subjects: (N,) person of each sample.
        k: Number of folds, 2 .. number of people.
        seed: Seed of the draw.

    Raises:
        ValueError: `k` is out of its range.
    """
    people, person = _codes("subjects", subjects)
    _check_k(k, len(people), "people")
    order = np.random.default_rng(seed).permutation(len(people))
    fold_of = np.empty(len(people), np.int64)
    # People are dealt out like cards: the n-th drawn goes to fold n mod k.
    fold_of[order] = np.arange(len(people)) % k
    return _folds(fold_of[person], k)


def trial_folds(subjects: Ids, trials: Ids, k: int, *, seed: int) -> tuple[Fold, ...]:
    """Make `k` folds over the trials of each person.

    All windows of a trial are on one side, a person is on both.

    Person-dependent: what it measures is not how a model does on people it has not seen.

    Args:
        subjects: (N,) person of each sample.
        trials: (N,) trial of each sample; ids need to differ within a person only.
        k: Number of folds, 2 .. number of trials in all. A person's trials are spread over the
            folds as evenly as they can be, and so are all trials.
        seed: Seed of the draw.

    Raises:
        ValueError: `k` is out of its range, or the two arrays differ in length.
    """
    people, person = _codes("subjects", subjects)
    _, trial = _codes("trials", trials)
    if len(person) != len(trial):
        raise ValueError(
            f"trials: {len(trial)} ids for {len(person)} subjects; give one of each per sample"
        )
    pairs, pair = np.unique(np.stack([person, trial]), axis=1, return_inverse=True)
    n_trials = pairs.shape[1]
    _check_k(k, n_trials, "trials")
    rng = np.random.default_rng(seed)
    fold_of = np.empty(n_trials, np.int64)
    dealt = 0
    for number in range(len(people)):
        own = rng.permutation(np.flatnonzero(pairs[0] == number))
        # The deal goes on where the last person's ended, so that the folds stay even over people
        # too.
        fold_of[own] = (dealt + np.arange(len(own))) % k
        dealt += len(own)
    # numpy 2.0 gives the inverse of a 2-d unique as a row, other versions flat.
    return _folds(fold_of[pair.reshape(-1)], k)


def assert_apart(groups: Ids, *sides: Int64) -> None:
    """Refuse sides of a split that share a group, or a sample.

    Args:
        groups: (N,) person, trial or video of each sample.
        sides: Int64 of each side.

    Raises:
        ValueError: A group is on two sides; the message names up to five.
    """
    names = np.asarray(groups)
    seen: set[object] = set()
    for side in sides:
        own = set(names[side].tolist())
        shared = sorted(map(str, own & seen))
        if shared:
            more = " ..." if len(shared) > 5 else ""
            raise ValueError(
                f"split: {', '.join(shared[:5])}{more} on two sides, none allowed; split by group"
            )
        seen |= own


def _codes(name: str, ids: Ids) -> tuple[npt.NDArray[np.generic], Int64]:
    """Return the sorted distinct ids, and the position of each sample's id among them."""
    array = np.asarray(ids)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name}: shape {array.shape}, not one id for each of at least one sample")
    # Not floats, of which NaN equals nothing, and not objects, which need not have an order.
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{name}: ids of type {array.dtype}; use text or whole numbers")
    distinct, code = np.unique(array, return_inverse=True)
    return distinct, code.astype(np.int64)


def _fold(held_out: Bools) -> Fold:
    return Fold(np.flatnonzero(~held_out), np.flatnonzero(held_out))


def _folds(fold_of_sample: Int64, k: int) -> tuple[Fold, ...]:
    return tuple(_fold(fold_of_sample == number) for number in range(k))


def _check_k(k: int, groups: int, what: str) -> None:
    if not 2 <= k <= groups:
        raise ValueError(
            f"k: {k} folds outside 2 .. {groups}, the number of {what}; choose one inside"
        )
