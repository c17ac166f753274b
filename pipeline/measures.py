"""Rates of confusion matrices, by torchmetrics.

Matrices of people can be added up, so a bootstrap over people need not carry their clips. Counts are float64: torchmetrics turns
whole ones to float32.

How right predictions are, and how sure that is: rates from torchmetrics, Wilson intervals, a bootstrap over people.

**The unit is the person, not the window.** Clips and windows of one person resemble each other. The bootstrap draws whole people,
and its interval is the one to quote. Wilson's is for one look at each of N independent clips (windows are never counted): too
narrow where a person's clips are right or wrong together, too wide where a mean over passes evens out chance.

**Classes that never occur.** A class without a true sample has no recall: it is None there, and named in `absent`. UAR and macro
F1 are means over the classes that occur, so such a class is neither a 0 in them nor left out without a word. (A mean over all
classes, torchmetrics' own, would count a class that is only ever predicted as 0.) Predictions of it still count as wrong.

With several passes over the same samples (20 random windows of each clip), a value is the mean over passes of the pass's own
value, as SEEN's code averages (Zhang et al. 2023, arXiv 2310.04043), and `spread` says how far passes lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional.classification import multiclass_confusion_matrix

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer[Any]]
RATES: Final = ("war", "uar", "macro_f1", "weighted_f1")


def check_classes(guesses: Classes, truth: Classes, names: tuple[str, ...]) -> None:
    """Refuse what no confusion matrix can be made of.

    Args:
        guesses: to be (W, N) classes.
        truth: to be (N,) classes.
        names: to be C different names.

    Raises:
        ValueError: a shape, a type or a class that is not allowed.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"classes: {names}, needs two or more different names")
    if truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"true: shape {truth.shape}, needs (N,) with a sample at least")
    if guesses.ndim != 2 or len(guesses) == 0 or guesses.shape[1] != len(truth):
        raise ValueError(
            f"predicted: shape {guesses.shape} for {len(truth)} true classes; give one each, or rows of them"
        )
    for what, values in (("predicted", guesses), ("true", truth)):
        if values.dtype.kind not in "iu":
            raise ValueError(
                f"{what}: of type {values.dtype}; give classes as whole numbers, not scores"
            )
        if values.min() < 0 or values.max() >= len(names):
            raise ValueError(
                f"{what}: classes {values.min()} .. {values.max()} outside 0 .. {len(names) - 1}"
            )


def confusions(guesses: Classes, truth: Classes, classes: int) -> Array:
    """(W, C, C) confusion matrix of each pass, rows true, columns predicted.

    Args:
        guesses: (W, N) classes, 0 .. C - 1: W passes.
        truth: (N,) classes.
        classes: C.
    """
    target = torch.from_numpy(truth.astype(np.int64))
    one_pass = (torch.from_numpy(row.astype(np.int64)) for row in guesses)
    matrices = [
        multiclass_confusion_matrix(row, target, classes, validate_args=False) for row in one_pass
    ]
    return torch.stack(matrices).double().numpy()


class _FromConfusion:
    """Feeds a torchmetrics metric with confusion matrices, each a sample of its own, in place of predictions."""

    def update(self, confusion: torch.Tensor) -> None:
        """(B, C, C), rows true."""
        hits = confusion.diagonal(dim1=1, dim2=2)
        false, missed = confusion.sum(dim=1) - hits, confusion.sum(dim=2) - hits
        rest = confusion.sum(dim=(1, 2))[:, None] - hits - false - missed
        self._update_state(hits, false, rest, missed)  # type: ignore[attr-defined]


class _Accuracy(_FromConfusion, MulticlassAccuracy):
    pass


class _Recall(_FromConfusion, MulticlassRecall):
    pass


class _F1(_FromConfusion, MulticlassF1Score):
    pass


def rates(confusion: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """RATES and "recall/<class>" of each confusion matrix.

    recall_c = hits_c / true_c;  F1_c = 2 hits_c / (true_c + predicted_c);  WAR = sum hits / sum true;
    UAR, macro F1: means over the classes with true_c > 0;  weighted F1 = sum true_c F1_c / sum true.

    Args:
        confusion: (..., C, C) counts, rows true; each matrix holds one sample at least.
        names: C classes.

    Returns:
        Arrays of shape (...); a recall is NaN where its class does not occur.
    """
    shape, classes = confusion.shape[:-2], len(names)
    matrices = torch.from_numpy(confusion).reshape(-1, classes, classes)

    def compute(kind: type, average: str) -> Array:
        metric: Any = kind(
            classes, average=average, multidim_average="samplewise", validate_args=False
        )
        metric.update(matrices)
        values: Array = metric.compute().numpy()
        return values.reshape(*shape, classes) if average == "none" else values.reshape(shape)

    recall, f1 = compute(_Recall, "none"), compute(_F1, "none")
    occurs = confusion.sum(axis=-1) > 0
    return {
        "war": compute(_Accuracy, "micro"),
        "uar": recall.mean(axis=-1, where=occurs),
        "macro_f1": f1.mean(axis=-1, where=occurs),
        "weighted_f1": compute(_F1, "weighted"),
        **{
            f"recall/{name}": np.where(occurs[..., c], recall[..., c], np.nan)
            for c, name in enumerate(names)
        },
    }


Ids = npt.NDArray[np.generic] | Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class ConfidenceInterval:
    """Bounds, 0 .. 1.

    Args:
        lo, hi: the bounds.
        draws: of the bootstrap that have a value; fewer than asked for where some held no sample of a class. None: no bootstrap.
    """

    lo: float
    hi: float
    draws: int | None = None


@dataclass(frozen=True)
class Estimate:
    """One rate, 0 .. 1.

    Args:
        value: the rate; a mean over passes.
        wilson: of a proportion, with each sample counted once; None for rates that are none (UAR, F1).
        bootstrap: over people; None with fewer than two, or where nobody said whose the samples are.
        spread: standard deviation (n - 1) over passes; None with one pass. It is the noise of where windows were cut, and says
            nothing about other people.
    """

    value: float
    wilson: ConfidenceInterval | None
    bootstrap: ConfidenceInterval | None
    spread: float | None


@dataclass(frozen=True, eq=False)
class Measures:
    """What `measure` found.

    Args:
        classes: names; samples: N; passes: over them; level: of the intervals.
        subjects: how many people; None where nobody said.
        confusion: (C, C) int64, rows true, columns predicted, summed over passes.
        war: accuracy. uar: mean recall over the classes that occur.
        macro_f1: mean F1 over the classes that occur. weighted_f1: F1 weighted by true samples.
        recall: of each class; None where it never occurs.
        absent: classes that never occur, over which nothing is averaged.
        groups: the same of each group of samples, by its name.
    """

    classes: tuple[str, ...]
    samples: int
    passes: int
    level: float
    subjects: int | None
    confusion: npt.NDArray[np.int64]
    war: Estimate
    uar: Estimate
    macro_f1: Estimate
    weighted_f1: Estimate
    recall: Mapping[str, Estimate | None]
    absent: tuple[str, ...]
    groups: Mapping[str, Measures]

    @property
    def accuracy(self) -> Estimate:
        """Another name of WAR: recalls weighted by how many samples a class has."""
        return self.war

    @property
    def balanced_accuracy(self) -> Estimate:
        """Another name of UAR."""
        return self.uar

    def of(self, key: str) -> Estimate | None:
        """A rate by name: one of RATES, "recall/<class>", or "group/<name>" for a group's WAR; None where there is none."""
        kind, _, name = key.partition("/")
        if kind == "recall":
            return self.recall.get(name)
        if kind == "group":
            return self.groups[name].war if name in self.groups else None
        return getattr(self, key) if key in RATES else None


def wilson(share: float, samples: int, level: float = 0.95) -> ConfidenceInterval:
    """Wilson's score interval of a proportion p of n (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z the (1 + level)/2 quantile of the normal distribution.

    Args:
        share: p, 0 .. 1; a mean over passes need not be a multiple of 1/n.
        samples: n, at least 1, counted as independent.
        level: 0 < level < 1.

    Raises:
        ValueError: any of them out of range.
    """
    if not 0 <= share <= 1 or samples < 1:
        raise ValueError(f"wilson: share {share} of {samples}, needs 0 .. 1 of at least 1")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    scale = 1 + z * z / samples
    # p is never outside, though rounding may say so at 0 and 1.
    return ConfidenceInterval(
        max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))
    )


def t_interval(values: Sequence[float], level: float = 0.95) -> ConfidenceInterval:
    """Student's interval of the mean of n runs' rates: mean -+ t s / sqrt(n), t the (1 + level)/2 quantile with n - 1 freedoms.

    It says how far runs with other seeds lie apart, and nothing about other people. A rate is never outside 0 .. 1, so neither
    are the bounds.

    Args:
        values: of the runs, at least two, 0 .. 1.
        level: 0 < level < 1.

    Raises:
        ValueError: fewer than two, or a value out of range.
    """
    if len(values) < 2 or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"t interval: of {list(values)}, needs two or more rates of 0 .. 1")
    _check_level(level)
    centre, half = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half *= float(stdtrit(len(values) - 1, (1 + level) / 2))
    return ConfidenceInterval(max(0.0, centre - half), min(1.0, centre + half))


def draw_subjects(subjects: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """(draws, S) how often each person is drawn when S of S are drawn with replacement; whole, with all their samples.

    Raises:
        ValueError: fewer than two people, or no draw.
    """
    if subjects < 2 or draws < 1:
        raise ValueError(f"bootstrap: {draws} draws of {subjects} people, needs 1 of at least 2")
    return np.random.default_rng(seed).multinomial(
        subjects, np.full(subjects, 1 / subjects), size=draws
    )


def measure(
    predicted: Classes,
    true: Classes,
    classes: Sequence[str],
    groups: Ids | None = None,
    *,
    subjects: Ids | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Measures:
    """Rates of predictions, with intervals.

    The bootstrap's interval is that of percentiles, (1 - level)/2 and (1 + level)/2, over `draws` draws of `draw_subjects`; in each
    draw the same rule holds for classes that do not occur in it. Passes are not drawn: they keep the mean that is reported. Few
    people make the interval too narrow; fewer than about ten make it worthless.

    Args:
        predicted: (N,) classes, or (W, N): W passes over the same samples.
        true: (N,) classes.
        classes: C names, two or more, all different; class c is the c-th.
        groups: (N,) group of each sample, such as its lighting; each is measured on its own as well.
        subjects: (N,) whose each sample is; None leaves the bootstrap out.
        level: of all intervals, 0 < level < 1.
        draws: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Raises:
        ValueError: no sample, lengths that differ, classes that are no whole numbers in 0 .. C - 1, or a setting out of range.
    """
    guesses, truth, names = np.atleast_2d(predicted), np.asarray(true), tuple(classes)
    _check_level(level)
    check_classes(guesses, truth, names)
    owners = None if subjects is None else _ids("subjects", subjects, len(truth))
    parts = np.array([]) if groups is None else _ids("groups", groups, len(truth))
    found: dict[str, Measures] = {}
    for part in np.unique(parts):
        of = parts == part
        own = None if owners is None else owners[of]
        found[str(part)] = _measure(guesses[:, of], truth[of], names, own, level, draws, seed, {})
    return _measure(guesses, truth, names, owners, level, draws, seed, found)


def _measure(
    guesses: Classes,
    truth: Classes,
    names: tuple[str, ...],
    owners: npt.NDArray[np.generic] | None,
    level: float,
    draws: int,
    seed: int,
    groups: Mapping[str, Measures],
) -> Measures:
    people, owner = np.unique(
        np.zeros(len(truth), np.int64) if owners is None else owners, return_inverse=True
    )
    counts = np.stack(
        [
            confusions(guesses[:, owner == n], truth[owner == n], len(names))
            for n in range(len(people))
        ]
    )
    found = rates(counts.sum(axis=0), names)
    drawn: dict[str, Array] = {}
    if len(people) > 1:
        weights = draw_subjects(len(people), draws, seed).astype(np.float64)
        drawn = rates(np.tensordot(weights, counts, axes=1), names)

    def estimate(key: str, proportion_of: int | None = None) -> Estimate:
        value = min(1.0, float(found[key].mean()))
        bootstrap = None
        if drawn:
            values = drawn[key].mean(axis=-1)
            values = values[~np.isnan(values)]  # draws without a sample of this class
            lo, hi = (
                np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
                if len(values)
                else (0.0, 1.0)
            )
            bootstrap = ConfidenceInterval(float(lo), float(hi), len(values))
        return Estimate(
            value,
            None if proportion_of is None else wilson(value, proportion_of, level),
            bootstrap,
            float(found[key].std(ddof=1)) if len(guesses) > 1 else None,
        )

    confusion = counts.sum(axis=(0, 1)).astype(np.int64)
    support = dict(zip(names, np.bincount(truth, minlength=len(names)).tolist(), strict=True))
    return Measures(
        classes=names,
        samples=len(truth),
        passes=len(guesses),
        level=level,
        subjects=None if owners is None else len(people),
        confusion=confusion,
        war=estimate("war", len(truth)),
        uar=estimate("uar"),
        macro_f1=estimate("macro_f1"),
        weighted_f1=estimate("weighted_f1"),
        recall={name: estimate(f"recall/{name}", n) if n else None for name, n in support.items()},
        absent=tuple(name for name, n in support.items() if n == 0),
        groups=groups,
    )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} outside 0 .. 1; 0.95 is usual")


def _ids(what: str, ids: Ids, samples: int) -> npt.NDArray[np.generic]:
    array = np.asarray(ids)
    if array.shape != (samples,) or array.dtype.kind not in "iuU":
        raise ValueError(
            f"{what}: {array.dtype} of shape {array.shape}; give text or a whole number for each of {samples}"
        )
    return array
