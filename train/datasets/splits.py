"""Splits as index arrays: pure functions of who (and which trial) each sample belongs to.

They depend on the ids alone: shuffling the samples moves the indices and nothing else. A person is never on two sides,
but for `trial_folds`, which is person-dependent by intent and then divides no trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Ids = npt.NDArray[np.generic] | Sequence[str] | Sequence[int]


class Fold(NamedTuple):
    """One fold: rising indices of the samples to train on and of those held out."""

    train: Indices
    test: Indices


class SplitIndices(NamedTuple):
    """Rising indices of three parts that share no person."""

    train: Indices
    validation: Indices
    test: Indices


def leave_one_subject_out(subjects: Ids) -> dict[str, Fold]:
    """One fold for each person, who is its test set.

    Args:
        subjects: (N,) person of each sample, at least two different ones.

    Returns:
        Folds by person, in the order of the sorted ids.

    Raises:
        ValueError: Fewer than two people.
    """
    ids, code = _codes("subjects", subjects)
    _enough("subjects", len(ids), 2)
    return {str(name): _fold(code == number) for number, name in enumerate(ids)}


def subject_folds(subjects: Ids, k: int, *, seed: int) -> tuple[Fold, ...]:
    """`k` folds over people; each person is in exactly one test set, and their numbers differ by at most one.

    Args:
        subjects: (N,) person of each sample.
        k: Number of folds, 2 .. number of people.
        seed: Of the draw.

    Raises:
        ValueError: `k` is out of its range.
    """
    ids, code = _codes("subjects", subjects)
    _check_k(k, len(ids), "people")
    fold_of = np.empty(len(ids), np.int64)
    fold_of[np.random.default_rng(seed).permutation(len(ids))] = np.arange(len(ids)) % k
    return tuple(_fold(fold_of[code] == number) for number in range(k))


def trial_folds(subjects: Ids, trials: Ids, k: int, *, seed: int) -> tuple[Fold, ...]:
    """`k` folds over the trials of each person: all windows of a trial on one side, a person on both.

    Person-dependent: what it measures is not how a model does on people it has not seen.

    Args:
        subjects: (N,) person of each sample.
        trials: (N,) trial of each sample; ids need to differ within a person only.
        k: Number of folds, 2 .. number of trials in all. A person's trials are spread over the folds as evenly as they
            can be, and so are all trials.
        seed: Of the draw.

    Raises:
        ValueError: `k` is out of its range, or the two arrays differ in length.
    """
    people, person = _codes("subjects", subjects)
    _, trial = _codes("trials", trials)
    if len(person) != len(trial):
        raise ValueError(
            f"trials: {len(trial)} ids for {len(person)} subjects; give one of each per sample"
        )
    pairs, code = np.unique(np.stack([person, trial]), axis=1, return_inverse=True)
    _check_k(k, pairs.shape[1], "trials")
    rng = np.random.default_rng(seed)
    fold_of = np.empty(pairs.shape[1], np.int64)
    dealt = 0
    for number in range(
        len(people)
    ):  # one deal for all, so that the folds stay even over people too
        own = rng.permutation(np.flatnonzero(pairs[0] == number))
        fold_of[own] = (dealt + np.arange(len(own))) % k
        dealt += len(own)
    return tuple(_fold(fold_of[code.reshape(-1)] == number) for number in range(k))


def subject_split(subjects: Ids, *, validation: float, test: float, seed: int) -> SplitIndices:
    """Three parts that share no person.

    Args:
        subjects: (N,) person of each sample, at least three different ones.
        validation: Share of the people to validate on, 0 < share < 1; rounded, at least one person.
        test: Likewise for the test set.
        seed: Of the draw.

    Raises:
        ValueError: A share is out of its range, or no person is left to train on.
    """
    ids, code = _codes("subjects", subjects)
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise ValueError(f"{name}: share {share} outside 0 .. 1; choose one inside")
    held = [max(1, round(share * len(ids))) for share in (validation, test)]
    if sum(held) >= len(ids):
        raise ValueError(
            f"subjects: {held[0]} to validate and {held[1]} to test leave none of {len(ids)} to train on; "
            "take smaller shares"
        )
    part_of = np.zeros(len(ids), np.int64)
    drawn = np.random.default_rng(seed).permutation(len(ids))
    part_of[drawn[: held[0]]] = 1
    part_of[drawn[held[0] : sum(held)]] = 2
    return SplitIndices(*(np.flatnonzero(part_of[code] == part) for part in range(3)))


def assert_apart(groups: Ids, *sides: Indices) -> None:
    """Refuse sides of a split that share a group, or a sample.

    Args:
        groups: (N,) person, trial or video of each sample.
        sides: Indices of each side.

    Raises:
        ValueError: A group is on two sides; the message names up to five.
    """
    names = np.asarray(groups)
    seen: set[object] = set()
    for side in sides:
        own = set(names[side].tolist())
        if shared := sorted(map(str, own & seen)):
            more = " ..." if len(shared) > 5 else ""
            raise ValueError(
                f"split: {', '.join(shared[:5])}{more} on two sides, none allowed; split by group"
            )
        seen |= own


def _codes(what: str, ids: Ids) -> tuple[npt.NDArray[np.generic], Indices]:
    """Sorted distinct ids, and the position of each sample's."""
    array = np.asarray(ids)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{what}: shape {array.shape}, not one id for each of at least one sample")
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{what}: ids of type {array.dtype}; use text or whole numbers")
    distinct, code = np.unique(array, return_inverse=True)
    return distinct, code.astype(np.int64)


def _fold(held_out: npt.NDArray[np.bool_]) -> Fold:
    return Fold(np.flatnonzero(~held_out), np.flatnonzero(held_out))


def _enough(what: str, found: int, least: int) -> None:
    if found < least:
        raise ValueError(f"{what}: {found} < {least}; a split needs that many")


def _check_k(k: int, groups: int, what: str) -> None:
    if not 2 <= k <= groups:
        raise ValueError(
            f"k: {k} folds outside 2 .. {groups}, the number of {what}; choose one inside"
        )
