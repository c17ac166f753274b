"""Measures of float targets: mean absolute and root mean square error, with a bootstrap over people.

    mae  = mean over samples and targets of |predicted - true|
    rmse = sqrt(mean over samples and targets of (predicted - true)^2)

As in `measures`, the unit is the person: whole people are drawn. Where nobody said whose the samples
are, samples are drawn, as if they were independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from knarr.pipeline.measures import Array, Estimate, Ids, as_ids, check_level, draws_of, percentiles

ERRORS: Final = ("mae", "rmse")
MAX_CELLS: Final = 20_000_000
"""Most numbers that a bootstrap holds, 160 MB; of more than 10,000 people or samples there are fewer
draws.
"""


@dataclass(frozen=True, eq=False)
class ValueMeasures:
    """Errors of predicted float targets, as `measure_values` finds them.

    Attributes:
        targets: Names of the k targets.
        samples: Number of samples.
        passes: Number of passes over them.
        level: Level of the intervals.
        subjects: Number of people; None where nobody said, and samples were drawn.
        errors: "mae" and "rmse" of all targets, and "mae/<target>" and "rmse/<target>" of each.
        groups: The same of each group of samples, by its name.
    """

    targets: tuple[str, ...]
    samples: int
    passes: int
    level: float
    subjects: int | None
    errors: Mapping[str, Estimate]
    groups: Mapping[str, ValueMeasures]

    def of(self, key: str) -> Estimate | None:
        """Return an error by name.

        Args:
            key: One of `errors`, or "group/<name>" for a group's mean absolute error.

        Returns:
            The error; None where there is none.
        """
        kind, _, name = key.partition("/")
        if kind == "group":
            return self.groups[name].errors["mae"] if name in self.groups else None
        return self.errors.get(key)


def measure_values(
    predicted: Array,
    true: Array,
    targets: Sequence[str],
    groups: Ids | None = None,
    *,
    subjects: Ids | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> ValueMeasures:
    """Return errors of predictions, with intervals of percentiles over draws of people.

    Args:
        predicted: (N, k) values, or (W, N, k): W passes over the same samples, whose errors are
            averaged.
        true: (N, k) values.
        targets: k names, all different.
        groups: (N,) group of each sample; each is measured on its own as well.
        subjects: (N,) person of each sample; None draws samples.
        level: Level of all intervals, 0 < level < 1.
        draws: Draws of the bootstrap, at least 1; see MAX_CELLS.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: No sample, shapes that differ, values that are not finite, or a setting out of
            range.
    """
    guesses, truth, names = np.asarray(predicted, float), np.asarray(true, float), tuple(targets)
    guesses = guesses[None] if guesses.ndim == 2 else guesses
    check_level(level)
    check_values(guesses, truth, names)
    owners = None if subjects is None else as_ids("subjects", subjects, len(truth))
    parts = np.array([]) if groups is None else as_ids("groups", groups, len(truth))
    of_groups = {}
    for part in np.unique(parts):
        own = parts == part
        of_groups[str(part)] = measure_values(
            guesses[:, own],
            truth[own],
            names,
            subjects=None if owners is None else owners[own],
            level=level,
            draws=draws,
            seed=seed,
        )
    keys = np.arange(len(truth)) if owners is None else owners
    people, owner = np.unique(keys, return_inverse=True)
    # (S, W, k): sums of people can be added up, so draws need not carry their samples.
    sums = {}
    for key, power in (("mae", 1), ("rmse", 2)):
        sums[key] = np.zeros((len(people), *guesses.shape[::2]))
        np.add.at(sums[key], owner, (np.abs(guesses - truth) ** power).transpose(1, 0, 2))
    counts = np.bincount(owner).astype(float)
    found = _errors(np.ones((1, len(people))), sums, counts, names)
    drawn = {}
    if len(people) > 1:
        fitting = max(1, min(draws, MAX_CELLS // len(people)))
        drawn = _errors(draws_of(len(people), fitting, seed), sums, counts, names)

    def estimate(key: str) -> Estimate:
        passes = found[key][0]
        return Estimate(
            float(passes.mean()),
            None,
            percentiles(drawn[key].mean(axis=-1), level) if drawn else None,
            float(passes.std(ddof=1)) if len(passes) > 1 else None,
        )

    return ValueMeasures(
        names,
        len(truth),
        len(guesses),
        level,
        None if owners is None else len(people),
        {key: estimate(key) for key in found},
        of_groups,
    )


def _errors(
    weights: Array, sums: Mapping[str, Array], counts: Array, names: tuple[str, ...]
) -> dict[str, Array]:
    """Return (D, W) errors of each of ERRORS and targets, of (D, S) weights of people."""
    samples = (weights @ counts)[:, None, None]
    found = {}
    for key in ERRORS:
        means = np.tensordot(weights, sums[key], axes=1) / samples
        finish = np.sqrt if key == "rmse" else np.asarray
        found[key] = finish(means.mean(axis=2))
        for number, name in enumerate(names):
            found[f"{key}/{name}"] = finish(means[..., number])
    return found


def check_values(guesses: Array, truth: Array, names: tuple[str, ...]) -> None:
    """Refuse what has no error.

    Args:
        guesses: Supposed to be (W, N, k).
        truth: Supposed to be (N, k).
        names: Supposed to be k different names.

    Raises:
        ValueError: A shape or a value is not allowed.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError(f"targets: {names}, needs one or more different names")
    if truth.ndim != 2 or truth.shape[1] != len(names) or len(truth) == 0:
        raise ValueError(
            f"true: shape {truth.shape}, needs (N, {len(names)}) with a sample at least"
        )
    if guesses.ndim != 3 or len(guesses) == 0 or guesses.shape[1:] != truth.shape:
        raise ValueError(f"predicted: shape {guesses.shape} for {truth.shape} true values")
    for what, values in (("predicted", guesses), ("true", truth)):
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise ValueError(f"{what}: not all finite numbers")
