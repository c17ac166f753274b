"""Measures of predictions: rates from torchmetrics, Wilson's intervals, a bootstrap over people.

**The unit is the person, not the window.** Clips and windows of one person resemble each other. The
bootstrap draws whole people, and its interval is the one to quote. Wilson's is for one look at each
of N independent clips (windows are never counted): too narrow where a person's clips are right or
wrong together, too wide where a mean over passes evens out chance.

**Classes that never occur.** A class without a true sample has no recall: it is None there, and
named in `absent`. UAR and macro F1 are means over the classes that occur, so such a class is
neither a 0 in them nor left out without a word. (A mean over all classes, torchmetrics' own, would
count a class that is only ever predicted as 0.) Predictions of it still count as wrong.

With several passes over the same samples (20 random windows of each clip), a value is the mean over
passes of the pass's own value, as SEEN's code averages (Zhang et al. 2023, arXiv 2310.04043), and
`spread` says how far passes lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from knarr.hw_sim import ChipError, check_labels

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer[Any]]
Ids = npt.NDArray[np.generic] | Sequence[str] | Sequence[int]
RATES: Final = ("war", "uar", "macro_f1", "weighted_f1")


@dataclass(frozen=True)
class ConfidenceInterval:
    """Bounds of a rate.

    Attributes:
        lo: Lower bound, 0 .. 1.
        hi: Upper bound, 0 .. 1.
        draws: Draws of the bootstrap that have a value; fewer than asked for where some held no
            sample of a class. None: no bootstrap.
    """

    lo: float
    hi: float
    draws: int | None = None


@dataclass(frozen=True)
class Estimate:
    """One rate.

    Attributes:
        value: The rate, 0 .. 1; a mean over passes.
        wilson: Interval of a proportion, with each sample counted once; None for rates that are
            none (UAR, F1).
        bootstrap: Interval over people; None with fewer than two, or where nobody said whose the
            samples are.
        spread: Standard deviation (n - 1) over passes; None with one pass. It is the noise of where
            windows were cut, and says nothing about other people.
    """

    value: float
    wilson: ConfidenceInterval | None
    bootstrap: ConfidenceInterval | None
    spread: float | None


@dataclass(frozen=True, eq=False)
class Measures:
    """Rates of predictions, as `measure` finds them.

    Attributes:
        classes: Names of the C classes.
        samples: Number of samples.
        passes: Number of passes over them.
        level: Level of the intervals.
        subjects: Number of people; None where nobody said.
        confusion: (C, C) int64, rows true, columns predicted, summed over passes.
        war: Accuracy: recalls weighted by how many samples a class has.
        uar: Mean recall over the classes that occur.
        macro_f1: Mean F1 over the classes that occur.
        weighted_f1: F1 weighted by true samples.
        recall: Recall of each class; None where it never occurs.
        absent: Classes that never occur, over which nothing is averaged.
        groups: The same of each group of samples, by its name.
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

    def of(self, key: str) -> Estimate | None:
        """Return a rate by name.

        Args:
            key: One of RATES, "recall/<class>", or "group/<name>" for a group's WAR.

        Returns:
            The rate; None where there is none.
        """
        kind, _, name = key.partition("/")
        if kind == "recall":
            return self.recall.get(name)
        if kind == "group":
            return self.groups[name].war if name in self.groups else None
        return getattr(self, key) if key in RATES else None


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
    """Return rates of predictions, with intervals.

    The bootstrap's interval is that of percentiles, (1 - level)/2 and (1 + level)/2, over `draws`
    draws of `draw_subjects`; in each draw the same rule holds for classes that do not occur in it.
    Passes are not drawn: they keep the mean that is reported. Few people make the interval too
    narrow; fewer than about ten make it worthless.

    Args:
        predicted: (N,) classes, or (W, N): W passes over the same samples.
        true: (N,) classes.
        classes: C names, two or more, all different; class c is the c-th.
        groups: (N,) group of each sample, such as its lighting; each is measured on its own as
            well.
        subjects: (N,) person of each sample; None leaves the bootstrap out.
        level: Level of all intervals, 0 < level < 1.
        draws: Draws of the bootstrap, at least 1.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: No sample, lengths that differ, classes that are no whole numbers in 0 .. C - 1,
            or a setting out of range.
    """
    guesses, truth, names = np.atleast_2d(predicted), np.asarray(true), tuple(classes)
    check_level(level)
    truth = check_classes(guesses, truth, names)
    owners = None if subjects is None else as_ids("subjects", subjects, len(truth))
    parts = np.array([]) if groups is None else as_ids("groups", groups, len(truth))
    of_groups: dict[str, Measures] = {}
    for part in np.unique(parts):
        own = parts == part
        of_groups[str(part)] = measure(
            guesses[:, own],
            truth[own],
            names,
            subjects=None if owners is None else owners[own],
            level=level,
            draws=draws,
            seed=seed,
        )
    # Samples of nobody are one person's, whom no bootstrap can draw.
    keys = np.zeros(len(truth), np.int64) if owners is None else owners
    people, owner = np.unique(keys, return_inverse=True)
    # (S, W, C, C): matrices of people can be added up, so draws need not carry their clips.
    counts = np.stack(
        [
            confusions(guesses[:, owner == person], truth[owner == person], len(names))
            for person in range(len(people))
        ]
    )
    found = rates(counts.sum(axis=0), names)
    drawn: dict[str, Array] = {}
    if len(people) > 1:
        weights = draws_of(len(people), draws, seed)
        drawn = rates(np.tensordot(weights, counts, axes=1), names)

    def estimate(key: str, proportion_of: int | None = None) -> Estimate:
        value = min(1.0, float(found[key].mean()))  # a mean of ones may round to more
        return Estimate(
            value,
            None if proportion_of is None else wilson(value, proportion_of, level),
            percentiles(drawn[key].mean(axis=-1), level) if drawn else None,
            float(found[key].std(ddof=1)) if len(guesses) > 1 else None,
        )

    support = dict(zip(names, np.bincount(truth, minlength=len(names)).tolist(), strict=True))
    return Measures(
        classes=names,
        samples=len(truth),
        passes=len(guesses),
        level=level,
        subjects=None if owners is None else len(people),
        confusion=counts.sum(axis=(0, 1)).astype(np.int64),
        war=estimate("war", len(truth)),
        uar=estimate("uar"),
        macro_f1=estimate("macro_f1"),
        weighted_f1=estimate("weighted_f1"),
        recall={name: estimate(f"recall/{name}", n) if n else None for name, n in support.items()},
        absent=tuple(name for name, n in support.items() if n == 0),
        groups=of_groups,
    )


# --- rates


def confusions(guesses: Classes, truth: Classes, classes: int) -> Array:
    """Count the confusion matrix of each pass.

    Args:
        guesses: (W, N) classes, 0 .. C - 1: W passes.
        truth: (N,) classes.
        classes: C.

    Returns:
        (W, C, C) counts, rows true, columns predicted; float64, since torchmetrics turns whole ones
        to float32.
    """
    # One number for each pair of classes, so that one count of them makes the matrix.
    pairs = truth.astype(np.int64) * classes + guesses
    counts = [np.bincount(row, minlength=classes**2) for row in pairs]
    return np.stack(counts).reshape(-1, classes, classes).astype(np.float64)


class _FromConfusion:
    """Feeds a torchmetrics metric with confusion matrices, each a sample of its own, in place of
    predictions.
    """

    def update(self, confusion: torch.Tensor) -> None:
        """Take (B, C, C) counts, rows true."""
        hits = confusion.diagonal(dim1=1, dim2=2)
        false, missed = confusion.sum(dim=1) - hits, confusion.sum(dim=2) - hits
        rest = confusion.sum(dim=(1, 2))[:, None] - hits - false - missed
        self._update_state(hits, false, rest, missed)  # type: ignore[attr-defined]


@cache
def _metrics() -> tuple[type, type, type]:
    """Return accuracy, recall and F1 of torchmetrics, fed with confusion matrices."""
    # Not at the top: an evaluation is read where neither this nor torch is installed.
    from torchmetrics import classification

    class Accuracy(_FromConfusion, classification.MulticlassAccuracy):
        pass

    class Recall(_FromConfusion, classification.MulticlassRecall):
        pass

    class F1(_FromConfusion, classification.MulticlassF1Score):
        pass

    return Accuracy, Recall, F1


def rates(confusion: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """Return RATES and "recall/<class>" of each confusion matrix.

    recall_c = hits_c / true_c;  F1_c = 2 hits_c / (true_c + predicted_c);  WAR = sum hits / sum
    true; UAR, macro F1: means over the classes with true_c > 0;  weighted F1 = sum true_c F1_c /
    sum true.

    Args:
        confusion: (..., C, C) counts, rows true; each matrix holds one sample at least.
        names: C classes.

    Returns:
        Arrays of shape (...); a recall is NaN where its class does not occur.
    """
    import torch

    accuracy, recall_of, f1_of = _metrics()
    shape, classes = confusion.shape[:-2], len(names)
    matrices = torch.from_numpy(confusion).reshape(-1, classes, classes)

    def compute(kind: type, average: str) -> Array:
        metric: Any = kind(
            classes, average=average, multidim_average="samplewise", validate_args=False
        )
        metric.update(matrices)
        values: Array = metric.compute().numpy()
        return values.reshape(*shape, classes) if average == "none" else values.reshape(shape)

    recall, f1 = compute(recall_of, "none"), compute(f1_of, "none")
    occurs = confusion.sum(axis=-1) > 0
    found = {
        "war": compute(accuracy, "micro"),
        "uar": recall.mean(axis=-1, where=occurs),
        "macro_f1": f1.mean(axis=-1, where=occurs),
        "weighted_f1": compute(f1_of, "weighted"),
    }
    recall = np.where(occurs, recall, np.nan)  # torchmetrics makes a 0 of it
    return found | {f"recall/{name}": recall[..., c] for c, name in enumerate(names)}


# --- intervals


def wilson(share: float, samples: int, level: float = 0.95) -> ConfidenceInterval:
    """Return Wilson's score interval of a proportion p of n (Wilson 1927, doi
    10.1080/01621459.1927.10502953).

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z the (1 + level)/2 quantile of
    the normal distribution. `scipy.stats.binomtest` has it for whole hits alone.

    Args:
        share: p, 0 .. 1; a mean over passes need not be a multiple of 1/n.
        samples: n, at least 1, counted as independent.
        level: 0 < level < 1.

    Raises:
        ValueError: One of them is out of range.
    """
    if not 0 <= share <= 1 or samples < 1:
        raise ValueError(f"wilson: share {share} of {samples}, needs 0 .. 1 of at least 1")
    check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    scale = 1 + z * z / samples
    # p is never outside, though rounding may say so at 0 and 1.
    lo, hi = min(share, (centre - half) / scale), max(share, (centre + half) / scale)
    return ConfidenceInterval(max(0.0, lo), min(1.0, hi))


def t_interval(
    values: Sequence[float], level: float = 0.95, *, most: float = 1.0
) -> ConfidenceInterval:
    """Return Student's interval of the mean of n runs' rates or errors.

    mean -+ t s / sqrt(n), t the (1 + level)/2 quantile with n - 1 degrees of freedom. It says how
    far runs with other seeds lie apart, and nothing about other people. A rate is never outside 0
    .. 1, so neither are the bounds.

    Args:
        values: Rates of the runs, at least two, 0 .. `most`.
        level: 0 < level < 1.
        most: Highest possible value; infinity for errors.

    Raises:
        ValueError: There are fewer than two, or one is out of range.
    """
    from scipy.special import stdtrit  # takes as long to load as all else that a report needs

    if len(values) < 2 or not all(0 <= value <= most for value in values):
        raise ValueError(f"t interval: of {list(values)}, needs two or more rates of 0 .. {most:g}")
    check_level(level)
    centre, half = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half *= float(stdtrit(len(values) - 1, (1 + level) / 2))
    return ConfidenceInterval(max(0.0, centre - half), min(most, centre + half))


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two networks on the same samples.

    Attributes:
        value: Mean of second - first; of rates in -1 .. 1.
        lo: Lower bound, None with fewer than two people.
        hi: Upper bound, None with fewer than two people.
    """

    value: float
    lo: float | None
    hi: float | None


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    subjects: Ids | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Return how much better the second of two networks is on the same samples, with an interval.

    Samples that both get right or both wrong cancel, so that the interval is narrower than those
    of the two rates tell. Its draws are those of `measure`: whole people with all their samples.

    Args:
        first, second: (N,) what each network scores on each sample: 1 where it is right and 0
            where it is not, or an error.
        subjects: (N,) person of each sample; None counts each sample as independent.
        level: Level of the interval, 0 < level < 1.
        draws: Draws of the bootstrap, at least 1.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: No sample, lengths that differ, or a setting out of range.
    """
    check_level(level)
    gained = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    if gained.ndim != 1 or not len(gained):
        raise ValueError(f"difference: of shape {gained.shape}, needs two scores for each sample")
    owners = (
        np.arange(len(gained)) if subjects is None else as_ids("subjects", subjects, len(gained))
    )
    people, owner = np.unique(owners, return_inverse=True)
    if len(people) < 2:
        return PairedDifference(float(gained.mean()), None, None)
    weights = draw_subjects(len(people), draws, seed).astype(np.float64)
    # Of each person the sum and the number, since people may have few samples or many.
    sums, counts = np.bincount(owner, gained), np.bincount(owner)
    interval = percentiles((weights @ sums) / (weights @ counts), level)
    return PairedDifference(float(gained.mean()), interval.lo, interval.hi)


def draw_subjects(subjects: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw S of S people with replacement, each whole, with all their samples.

    Returns:
        (draws, S) how often each person is drawn.

    Raises:
        ValueError: There are fewer than two people, or no draw.
    """
    if subjects < 2 or draws < 1:
        raise ValueError(f"bootstrap: {draws} draws of {subjects} people, needs 1 of at least 2")
    shares = np.full(subjects, 1 / subjects)
    return np.random.default_rng(seed).multinomial(subjects, shares, size=draws)


def draws_of(people: int, draws: int, seed: int) -> Array:
    """Return `draw_subjects` as weights of people."""
    return draw_subjects(people, draws, seed).astype(np.float64)


def percentiles(values: Array, level: float) -> ConfidenceInterval:
    """Return the interval of percentiles of a bootstrap's draws."""
    values = values[~np.isnan(values)]  # without draws that hold no sample of the class
    bounds = (1 - level) / 2, (1 + level) / 2
    lo, hi = np.quantile(values, bounds) if len(values) else (0.0, 1.0)
    return ConfidenceInterval(float(lo), float(hi), len(values))


# --- refusals


def check_classes(guesses: Classes, truth: npt.ArrayLike, names: tuple[str, ...]) -> Classes:
    """Return the true classes, or refuse what no confusion matrix can be made of.

    Args:
        guesses: Supposed to be (W, N) classes.
        truth: Supposed to be (N,) classes.
        names: Supposed to be C different names.

    Returns:
        (N,) int64, as `check_labels` reads them.

    Raises:
        ValueError: A shape, a type or a class is not allowed.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"classes: {names}, needs two or more different names")
    samples = len(np.asarray(truth)) if np.ndim(truth) else 0
    if samples == 0:
        raise ValueError(f"true: shape {np.shape(truth)}, needs (N,) with a sample at least")
    try:
        labels = check_labels(truth, samples, len(names))
    except ChipError as error:
        raise ValueError(str(error)) from error
    if guesses.ndim != 2 or len(guesses) == 0 or guesses.shape[1] != samples:
        raise ValueError(
            f"predicted: shape {guesses.shape} for {samples} true classes; "
            "give one each, or rows of them"
        )
    if guesses.dtype.kind not in "iu":
        raise ValueError(
            f"predicted: of type {guesses.dtype}; give classes as whole numbers, not scores"
        )
    low, high = guesses.min(), guesses.max()
    if low < 0 or high >= len(names):
        raise ValueError(f"predicted: classes {low} .. {high} outside 0 .. {len(names) - 1}")
    return labels


def check_level(level: float) -> None:
    """Refuse a level that is no share.

    Raises:
        ValueError: It is not.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: {level} outside 0 .. 1; 0.95 is usual")


def as_ids(what: str, ids: Ids, samples: int) -> npt.NDArray[np.generic]:
    """Return one text or whole number for each sample, as an array.

    Raises:
        ValueError: They are something else.
    """
    array = np.asarray(ids)
    if array.shape != (samples,) or array.dtype.kind not in "iuU":
        raise ValueError(
            f"{what}: {array.dtype} of shape {array.shape}; "
            f"give text or a whole number for each of {samples}"
        )
    return array
