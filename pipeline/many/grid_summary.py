"""Finished runs of a grid as rows: the mean over seeds of what all folds give together, how sure it is, and the published row.

Two intervals stand beside each other and are never mixed. That over seeds says what another run of the same recipe would give; that
over people says what other people would give. The second is drawn with all seeds of a row at once (each is one more pass over the
same samples), so it belongs to the mean that is printed; where seeds were tested on different samples there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knarr.pipeline.evaluation import EvaluationError, Indices, Network, RunEvaluation, pool
from knarr.pipeline.many.grid import GridCell, GridError, RunGrid
from knarr.pipeline.many.grid_rows import Planned
from knarr.pipeline.measures import ConfidenceInterval, Estimate, t_interval
from knarr.pipeline.published import Beside, compare_with_published
from knarr.train.datasets.eyes.generate import LIGHTS


@dataclass(frozen=True)
class OverFolds:
    """A rate in each fold by itself, mean over seeds.

    Args:
        mean: over folds, each counted once, whatever its size.
        spread: standard deviation (n - 1) over folds; None with one.
        folds: in which the rate has a value.
    """

    mean: float
    spread: float | None
    folds: int


@dataclass(frozen=True)
class Rate:
    """One rate of a row, 0 .. 1.

    Args:
        value: mean over seeds of the rate of all folds pooled.
        over_seeds: Student's interval; None with one seed.
        over_people: bootstrap of that mean; None where nobody's samples, one person's, or other ones for each seed.
        over_folds: None where there is one fold.
    """

    value: float
    over_seeds: ConfidenceInterval | None
    over_people: ConfidenceInterval | None
    over_folds: OverFolds | None


@dataclass(frozen=True, eq=False)
class RowSummary:
    """A row of the table.

    Args:
        name: as printed. network: whose predictions.
        finished: runs that are evaluated. wanted: runs of the row; None where nobody knows how many folds there are.
        seeds: those that the rates are means over; folds: those pooled, of fold_count.
        data, protocol: of ours, in words; None with nothing finished.
        samples, subjects: how many; subjects None where nobody's.
        rates: by column; None where a run lacks it, all None with nothing finished.
        beside: the published row; None where there is none. Also there with nothing finished, without ours.
    """

    name: str
    network: Network
    finished: int
    wanted: int | None
    seeds: tuple[int, ...]
    folds: int
    fold_count: int
    data: str | None
    protocol: str | None
    samples: int
    subjects: int | None
    rates: Mapping[str, Rate | None]
    beside: Beside | None

    @property
    def partial(self) -> bool:
        """Something is there, and runs or folds are missing behind it."""
        whole = self.finished == self.wanted and self.folds == self.fold_count
        return self.finished > 0 and not whole


@dataclass(frozen=True, eq=False)
class GridTable:
    """All rows of a grid. `level` is of all intervals; None with nothing finished."""

    name: str
    title: str
    columns: tuple[str, ...]
    level: float | None
    rows: tuple[RowSummary, ...]


@dataclass(frozen=True)
class _Rates:
    """Rates by name, as `compare_with_published` takes them."""

    rates: Mapping[str, Rate | None]

    def of(self, key: str) -> Estimate | None:
        rate = self.rates.get(key)
        return None if rate is None else Estimate(rate.value, None, rate.over_people, None)


Results = Sequence[tuple[GridCell, RunEvaluation | None]]


def summarise(grid: RunGrid, results: Results) -> GridTable:
    """Rows of a grid, in its order.

    Args:
        grid: as it was expanded.
        results: all its cells, with their evaluation where they are finished.

    Raises:
        GridError: runs of one row that are of other data, or folds that were tested on the same samples.
    """
    levels = {found.level for _, found in results if found is not None}
    if len(levels) > 1:
        raise GridError(
            f"grid '{grid.name}': intervals of {sorted(levels)}; evaluate all runs alike"
        )
    _columns_exist(grid, results)
    rows = []
    for row in grid.planned():
        own = [(cell, found) for cell, found in results if cell.row == (row.runs_of or row.name)]
        try:
            rows.append(_row(grid, row, own))
        except EvaluationError as error:
            raise GridError(f"grid '{grid.name}': row '{row.name}': {error}") from None
    return GridTable(grid.name, grid.title, grid.columns, next(iter(levels), None), tuple(rows))


def _columns_exist(grid: RunGrid, results: Results) -> None:
    """Refuse columns of a class or a lighting that no run has; a dash would look like one that is not defined."""
    runs = [found for _, found in results if found is not None]
    if len(runs) < len(results):  # a class or a lighting may yet come with another run
        return
    there = {"recall": {name for run in runs for name in run.classes}}
    lights = {name for run in runs for name in run.lights or ()}
    if lights:
        # SEE has them all, some people of it may not.
        there["group"] = lights | set(LIGHTS)
    for column in grid.columns:
        kind, _, name = column.partition("/")
        if there.get(kind) and name not in there[kind]:
            raise GridError(
                f"grid '{grid.name}': column '{column}': no run has it; there are {', '.join(sorted(there[kind]))}"
            )


def _row(grid: RunGrid, row: Planned, results: Results) -> RowSummary:
    finished: dict[int, list[RunEvaluation]] = {}
    for cell, found in results:
        if found is not None and row.network in found.predicted:
            finished.setdefault(cell.seed, []).append(found.only(row.network))
    wanted = {seed: sum(cell.seed == seed for cell, _ in results) for seed in finished}
    # A seed that lacks folds would be a mean over other people: it counts only where no seed is whole.
    whole = [seed for seed, found in finished.items() if len(found) == wanted[seed]] or list(
        finished
    )
    pooled = {seed: pool(finished[seed]) for seed in sorted(whole)}
    runs = list(pooled.values())
    _alike(runs, row.network)
    joined = _as_passes(runs, row.network) if runs else None
    rates = {key: _rate(runs, joined, row.network, key) for key in grid.columns}
    first = runs[0] if runs else None
    folds = min((len(run.fold_numbers) for run in runs), default=0)
    published = None
    if row.beside is not None:
        data = row.beside.table.data if first is None else first.on
        published = compare_with_published(_Rates(rates), row.beside, data=data, name=row.name)
        cells = [cell for cell in published.cells if cell.measure in grid.columns]
        if first is not None and folds < first.fold_count:  # not all of the data, so not the same
            cells = [replace(cell, difference=None) for cell in cells]
        published = replace(published, cells=tuple(cells))
    return RowSummary(
        name=row.name,
        network=row.network,
        finished=sum(map(len, finished.values())),
        wanted=len(results) or None,
        seeds=tuple(pooled),
        folds=folds,
        fold_count=1 if first is None else first.fold_count,
        data=None if first is None else first.on,
        protocol=None if first is None else first.protocol,
        samples=0 if first is None else len(first.names),
        subjects=None if first is None or first.subjects is None else len(set(first.subjects)),
        rates=rates,
        beside=published,
    )


def _alike(runs: Sequence[RunEvaluation], network: Network) -> None:
    for other in runs[1:]:
        passes = [len(run.predicted[network]) for run in (runs[0], other)]
        if passes[0] != passes[1]:
            raise EvaluationError(
                f"passes: {passes[0]} of one seed, {passes[1]} of another; evaluate them with the same --windows"
            )
        for field in ("on", "classes", "protocol", "sampling", "fold_count"):
            mine, theirs = getattr(runs[0], field), getattr(other, field)
            if mine != theirs:
                raise EvaluationError(
                    f"{field}: {mine!r} of one seed, {theirs!r} of another; evaluate them alike"
                )


def _rate(
    runs: Sequence[RunEvaluation], joined: RunEvaluation | None, network: Network, key: str
) -> Rate | None:
    found = [run.measures[network].of(key) for run in runs]
    values = [estimate.value for estimate in found if estimate is not None]
    if not runs or len(values) < len(
        runs
    ):  # a class that a seed's samples lack has no mean over seeds
        return None
    whole = None if joined is None else joined.measures[network].of(key)
    return Rate(
        float(np.mean(values)),
        t_interval(values, runs[0].level) if len(values) > 1 else None,
        None if whole is None else whole.bootstrap,
        _over_folds(runs, network, key),
    )


def _as_passes(runs: Sequence[RunEvaluation], network: Network) -> RunEvaluation | None:
    """All seeds as passes over the same samples; None where they are not the same."""
    if len(runs) == 1:
        return runs[0]
    orders = [np.argsort(np.array(run.names), kind="stable") for run in runs]
    first = _described(runs[0], orders[0])
    if any(_described(run, order) != first for run, order in zip(runs, orders, strict=True)):
        return None
    back = np.argsort(orders[0], kind="stable")
    rows = [
        run.predicted[network][:, order][:, back] for run, order in zip(runs, orders, strict=True)
    ]
    return replace(runs[0], predicted={network: np.concatenate(rows)})


def _described(run: RunEvaluation, order: Indices) -> list[tuple[object, ...]]:
    """Name, class and person of each sample, in this order."""
    people = run.subjects or (None,) * len(run.names)
    return [(run.names[n], int(run.labels[n]), people[n]) for n in order]


def _over_folds(runs: Sequence[RunEvaluation], network: Network, key: str) -> OverFolds | None:
    if runs[0].fold_count == 1:
        return None
    by_fold: dict[int, list[float]] = {}
    for run in runs:
        for fold, value in run.of_folds(network, key).items():
            by_fold.setdefault(fold, []).append(value)
    if not by_fold:
        return None
    means = [float(np.mean(values)) for values in by_fold.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return OverFolds(float(np.mean(means)), spread, len(means))
