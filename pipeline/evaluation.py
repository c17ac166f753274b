"""Evaluations: what networks saw in each test sample, and folds of several runs as one result over
all people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from knarr.errors import KnarrError
from knarr.pipeline.measures import Measures, check_classes, measure
from knarr.pipeline.value_measures import ValueMeasures, check_values, measure_values

MAX_CELLS: Final = 20_000_000
"""Most numbers that a bootstrap may hold at a time, 160 MB: a small file must not ask for more
memory than there is.
"""
MAX_MATRICES: Final = 1_000_000  # of people, passes and lightings; each takes some 50 us

Network = Literal["teacher", "student", "chip"]
"""The teacher, the student in floating point, the student on the simulated chip."""
StoredNetwork = Literal["teacher", "student", "chip", "lowered"]
"""Networks whose predictions are stored; "lowered" is the chip's before its integers were fitted.
"""
NETWORKS: Final[tuple[Network, ...]] = get_args(Network)
Indices = npt.NDArray[np.int64]
Seen = npt.NDArray[Any]
"""Classes in int64, or float targets in float64."""


class EvaluationError(KnarrError, ValueError):
    """An evaluation, or its file, that cannot be."""


def check_size(
    passes: int,
    classes: int,
    subjects: Sequence[str] | None,
    lights: Sequence[str] | None,
    draws: int,
) -> None:
    """Refuse more passes and draws than a measure may take, best before the passes are made.

    Args:
        passes: Passes over the test samples.
        classes: Number of classes.
        subjects: (N,) person of each sample, as in `RunEvaluation`.
        lights: (N,) lighting of each sample, likewise.
        draws: Draws of the bootstrap.

    Raises:
        EvaluationError: They are too many.
    """
    people = len(set(subjects or ()))
    # A bootstrap holds its draws of people, and a confusion matrix for each draw and pass.
    cells = max(draws, people) * max(people, passes * classes**2)
    matrices = max(people, 1) * passes * (1 + len(set(lights or ())))
    if cells > MAX_CELLS or matrices > MAX_MATRICES:
        raise EvaluationError(
            f"draws: {draws} of {people} people in {passes} passes are more than a measure may take; "
            "take fewer windows"
        )


@dataclass(frozen=True, eq=False)
class RunEvaluation:
    """An evaluation of one run, or of the folds of several: the samples and what networks saw in
    them.

    Attributes:
        data: Name of the data set: that of a published table if and only if it is the same ("SEE");
            "generated eyes".
        classes: Names of the C classes; empty where labels are float targets.
        names: (N,) names of the test samples, all different, also over the folds of one data set.
        labels: (N,) int64, 0 .. C - 1; or (N, k) float targets.
        predicted: (W, N) or (N,) classes for each network: W passes over the same samples, each
            through other windows. Of float targets (W, N, k) or (N, k).
        subjects: (N,) person of each sample; None where the samples are nobody's.
        lights: (N,) lighting of each sample; None where there is none to tell apart.
        task: Which of the data's labels ("valence"), where there are several and `data` does not
            say it.
        protocol: In words, how training and test samples were parted and weights were chosen.
        sampling: How windows were cut ("E4-S3"); None where samples are seen whole.
        folds: (N,) int64, the fold each sample was tested in; None for a single one.
        fold_count: Number of folds in all, whether they are here or not.
        seed: Seed of the windows, and of the bootstrap.
        level: Level of the intervals, see `measure`.
        draws: Draws of the bootstrap, see `measure`.
        targets: Names of the k float targets; empty where labels are classes.

    Raises:
        EvaluationError: Lengths that differ, a name twice, a class or a fold out of range, no
            network.
    """

    data: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Seen
    predicted: Mapping[StoredNetwork, Seen]
    subjects: tuple[str, ...] | None = None
    lights: tuple[str, ...] | None = None
    task: str | None = None
    protocol: str = ""
    sampling: str | None = None
    folds: Indices | None = None
    fold_count: int = 1
    seed: int = 0
    level: float = 0.95
    draws: int = 2000
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known: tuple[StoredNetwork, ...] = get_args(StoredNetwork)
        # In one order, whatever the file's or the caller's.
        axes = 3 if self.targets else 2
        rows = {
            network: seen[None] if seen.ndim == axes - 1 else seen
            for network in known
            if network in self.predicted
            for seen in [np.asarray(self.predicted[network])]
        }
        if not rows or len(rows) < len(self.predicted):
            named = ", ".join(self.predicted) or "none"
            raise EvaluationError(f"networks: {named}; name some of {NETWORKS}")
        labels, samples = np.asarray(self.labels), len(self.names)
        folds = np.zeros(samples, np.int64) if self.folds is None else np.asarray(self.folds)
        lists = {"labels": labels, "folds": folds, "subjects": self.subjects, "lights": self.lights}
        for what, each in lists.items():
            if each is not None and len(each) != samples:
                raise EvaluationError(f"{what}: {len(each)} for {samples} names; give one each")
        twice = samples - len(set(self.names))
        if twice:
            raise EvaluationError(
                f"names: {twice} stand there already; each sample needs a name of its own"
            )
        if self.targets and self.classes:
            raise EvaluationError(
                f"targets: {self.targets} beside classes; labels are one or the other"
            )
        try:
            for row in rows.values():
                if self.targets:
                    check_values(row, labels, self.targets)
                else:
                    labels = check_classes(row, labels, self.classes)
        except ValueError as error:
            raise EvaluationError(str(error)) from None
        if folds.dtype.kind not in "iu" or folds.min() < 0 or folds.max() >= self.fold_count:
            found = sorted(set(folds.tolist()))
            raise EvaluationError(f"folds: of {self.fold_count}, but samples in {found}")
        passes = max(map(len, rows.values()))
        check_size(passes, len(self.classes), self.subjects, self.lights, self.draws)
        # Frozen for everybody else: from here on arrays have one type and two axes.
        kind = np.float64 if self.targets else np.int64
        object.__setattr__(self, "labels", labels.astype(kind))
        object.__setattr__(self, "folds", folds.astype(np.int64))
        as_kind = {name: row.astype(kind) for name, row in rows.items()}
        object.__setattr__(self, "predicted", as_kind)

    @property
    def on(self) -> str:
        """Data and task, in the words of a published table if and only if they are the same."""
        return self.data if self.task is None else f"{self.data} {self.task}"

    @property
    def fold_numbers(self) -> tuple[int, ...]:
        """Numbers of the folds that are here, rising."""
        return tuple(np.unique(np.asarray(self.folds)).tolist())

    @cached_property
    def measures(self) -> Mapping[Network, Measures | ValueMeasures]:
        """Measures of each network: over all samples, and over those under each lighting."""
        # One of the two, by what labels are; their arguments are the same.
        measured: Callable[..., Measures | ValueMeasures]
        measured = measure_values if self.targets else measure
        return {
            network: measured(
                self.predicted[network],
                self.labels,
                self.targets or self.classes,
                self.lights,
                subjects=self.subjects,
                level=self.level,
                draws=self.draws,
                seed=self.seed,
            )
            for network in NETWORKS
            if network in self.predicted
        }

    def of_folds(self, network: Network, key: str) -> dict[int, float]:
        """Return a rate in each fold by itself.

        Args:
            network: Which network.
            key: Name of the rate, as `Measures.of` takes it.

        Returns:
            Number of the fold -> rate, 0 .. 1; folds without a value are left out.
        """
        rates = {fold: found[network].of(key) for fold, found in self._by_fold.items()}
        return {fold: rate.value for fold, rate in rates.items() if rate is not None}

    @cached_property
    def _by_fold(self) -> Mapping[int, Mapping[Network, Measures | ValueMeasures]]:
        """Measures of each network in each fold by itself; made once, as tables ask for many rates."""
        found = {}
        measured: Callable[..., Measures | ValueMeasures]
        measured = measure_values if self.targets else measure
        names = self.targets or self.classes
        for fold in self.fold_numbers:
            own = np.flatnonzero(self.folds == fold)
            lights = None if self.lights is None else [self.lights[n] for n in own]
            labels = self.labels[own]
            found[fold] = {
                network: measured(self.predicted[network][:, own], labels, names, lights)
                for network in self.measures
            }
        return found

    def only(self, network: Network) -> RunEvaluation:
        """Return the same without the other networks."""
        return replace(self, predicted={network: self.predicted[network]})


_OF_SAMPLES: Final = ("names", "labels", "predicted", "subjects", "lights", "folds")
SHARED: Final = tuple(
    field.name for field in fields(RunEvaluation) if field.name not in _OF_SAMPLES
)
"""Fields that all folds of one evaluation have in common."""


def pool(evaluations: Sequence[RunEvaluation]) -> RunEvaluation:
    """Pool folds into one evaluation: every sample once, as the network saw it that was not trained
    on it.

    Args:
        evaluations: Different folds of the same data, at least one.

    Raises:
        EvaluationError: No fold, a fold or a sample twice, or evaluations that differ in more than
            their samples.
    """
    if not evaluations:
        raise EvaluationError("pool: no evaluation; evaluate a fold at least")
    # By fold, so that the order of samples does not depend on which run ended first.
    ordered = sorted(evaluations, key=lambda one: one.fold_numbers)
    first = ordered[0]
    names, folds = set(first.names), set(first.fold_numbers)
    for other in ordered[1:]:
        _check_alike(first, other)
        if again := sorted(names & set(other.names)):
            raise EvaluationError(
                f"samples: {len(again)} tested twice, {again[0]!r} among them; folds share none"
            )
        if again_folds := sorted(folds & set(other.fold_numbers)):
            raise EvaluationError(f"folds: {again_folds} are there twice; evaluate each once")
        names |= set(other.names)
        folds |= set(other.fold_numbers)
    return replace(
        first,
        names=tuple(name for one in ordered for name in one.names),
        labels=np.concatenate([one.labels for one in ordered]),
        predicted={
            network: np.concatenate([one.predicted[network] for one in ordered], axis=1)
            for network in first.predicted
        },
        subjects=_joined("subjects", [one.subjects for one in ordered]),
        lights=_joined("lights", [one.lights for one in ordered]),
        folds=np.concatenate([np.asarray(one.folds) for one in ordered]),
    )


def _check_alike(first: RunEvaluation, other: RunEvaluation) -> None:
    for field in SHARED:
        mine, theirs = getattr(first, field), getattr(other, field)
        if mine != theirs:
            raise EvaluationError(
                f"{field}: {mine!r} in one fold, {theirs!r} in another; evaluate them alike"
            )
    mine, theirs = (
        {name: len(rows) for name, rows in one.predicted.items()} for one in (first, other)
    )
    if mine != theirs:
        raise EvaluationError(
            f"passes: {mine} in one fold, {theirs} in another; evaluate them alike"
        )


def _joined(what: str, parts: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    known = [part for part in parts if part is not None]
    # Half of the people would make an interval of half of them.
    if known and len(known) < len(parts):
        raise EvaluationError(
            f"{what}: known in {len(known)} of {len(parts)} folds; evaluate them alike"
        )
    return tuple(name for part in known for name in part) if known else None
