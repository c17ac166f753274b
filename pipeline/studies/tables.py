"""Tables: the runs of a grid, those that are missing made where asked, as rows beside the published
numbers.

Two intervals stand beside each other and are never mixed. That over seeds says what another run of
the same recipe would give; that over people says what other people would give. The second is drawn
with all seeds of a row at once (each is one more pass over the same samples), so it belongs to the
mean that is printed; where seeds were tested on different samples there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from knarr.errors import KnarrError
from knarr.files import write_atomic
from knarr.pipeline import stages
from knarr.pipeline.energy_report.schema import read_energy
from knarr.pipeline.energy_report.verdict import BATCH_1
from knarr.pipeline.evaluation import EvaluationError, Network, RunEvaluation, pool
from knarr.pipeline.evaluation_file import read
from knarr.pipeline.files import expecting
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.measures import RATES, ConfidenceInterval, Estimate, t_interval
from knarr.pipeline.progress import OnProgress, Progress, ignore
from knarr.pipeline.published import Beside, compare_with_published
from knarr.pipeline.run_folder import ENERGY, EVALUATION, Run, open_run, read_run, release
from knarr.pipeline.studies.engine import Report, Study
from knarr.pipeline.studies.grid import (
    GridCell,
    GridError,
    PlannedRow,
    RunGrid,
    expand,
    load_grid,
    row_folder,
)
from knarr.pipeline.studies.shared_teacher import TEACHERS, shared_teacher
from knarr.pipeline.value_measures import ERRORS
from knarr.train.datasets.see.tree import LIGHTS
from knarr.train.settings import Recipe, RecipeError
from knarr.train.systems.emotionkd_data import fold_count
from knarr.train.systems.emotionkd_recipe import EmotionRecipe

BOUNDS = ("low", "nominal", "high")
NOT_DEPLOYED = "not_deployed.txt"
"""File of a run whose student should have come onto the chip and did not; it says why."""
Results = Sequence[tuple[GridCell, RunEvaluation | None]]
"""All runs of a grid, with their evaluation where they are finished."""


@dataclass(frozen=True)
class OverFolds:
    """A rate in each fold by itself, mean over seeds.

    Attributes:
        mean: Mean over folds, each counted once, whatever its size.
        spread: Standard deviation (n - 1) over folds; None with one.
        folds: How many folds the rate has a value in.
    """

    mean: float
    spread: float | None
    folds: int


@dataclass(frozen=True)
class Rate:
    """One rate of a row, 0 .. 1, or one error of float targets.

    Attributes:
        value: Mean over seeds of the rate of all folds pooled.
        over_seeds: Student's interval; None with one seed.
        over_people: Bootstrap of that mean; None where nobody's samples, one person's, or other
            ones for each seed.
        over_folds: None where there is one fold.
    """

    value: float
    over_seeds: ConfidenceInterval | None
    over_people: ConfidenceInterval | None
    over_folds: OverFolds | None


@dataclass(frozen=True, eq=False)
class RowSummary:
    """A row of the table.

    Attributes:
        name: Its name as printed.
        network: The network whose predictions are measured.
        finished: How many of its runs are evaluated.
        wanted: How many runs it has; None where nobody knows how many folds there are.
        seeds: Seeds that the rates are means over.
        folds, fold_count: How many folds are pooled, and how many there are.
        data: The data of our runs, in words; None with nothing finished.
        rates: Rates by column; None where a run lacks it, all None with nothing finished.
        beside: The published row; None where there is none. With nothing finished it is there
            without ours.
        protocol: The protocol of our runs, in words; None with nothing finished.
        samples: How many test samples there are.
        subjects: How many people; None where the samples are nobody's.
    """

    name: str
    network: Network
    finished: int
    wanted: int | None
    seeds: tuple[int, ...]
    rates: Mapping[str, Rate | None]
    folds: int = 0
    fold_count: int = 1
    data: str | None = None
    beside: Beside | None = None
    protocol: str | None = None
    samples: int = 0
    subjects: int | None = None

    def of(self, key: str) -> Estimate | None:
        """Return a rate by name, as `compare_with_published` takes it; None where there is none."""
        rate = self.rates.get(key)
        return None if rate is None else Estimate(rate.value, None, rate.over_people, None)

    @property
    def partial(self) -> bool:
        """True where something is there, and runs or folds are missing behind it."""
        whole = self.finished == self.wanted and self.folds == self.fold_count
        return self.finished > 0 and not whole


@dataclass(frozen=True, eq=False)
class GridTable:
    """All rows of a grid; `level` belongs to all intervals and is None with nothing finished."""

    name: str
    title: str
    columns: tuple[str, ...]
    level: float | None
    rows: tuple[RowSummary, ...]


@dataclass(frozen=True)
class Costs:
    """The costs of one inference, mean over runs.

    Attributes:
        runs: How many runs the others are means over.
        parameters: Weights and biases that are stored; None where sizes were not counted.
        dense_macs: Multiplications if every input were active at every step.
        mac, acc: Operations that happened.
        spike_rate: Spikes of a neuron in a step, 0 .. 1, a last layer that never fires left out;
            None for an ANN.
        layer_rates: The same of each layer.
        place: Where the energy is spent: the chip on which the student's is known best, or an edge
            GPU at batch 1 for a teacher; None where it was not priced.
        energy: Total energy there with bounds, J, as energy.json has it; None where any run lacks
            it.
    """

    runs: int
    parameters: float | None
    dense_macs: float
    mac: float
    acc: float
    spike_rate: float | None
    layer_rates: Mapping[str, float]
    place: str | None
    energy: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class TableResult:
    """A grid's table.

    Attributes:
        summary: Its rows.
        costs: What an inference of each row costs, by the row's name; empty where the grid does not
            ask for it.
        not_deployed: Runs that are measured without a chip, though they should have one, and why.
    """

    summary: GridTable
    costs: dict[str, Costs | None]
    not_deployed: list[str]


def table(
    name: str,
    *,
    data: Path | None = None,
    out: Path = Path("runs/grids"),
    fit: bool = False,
    storage: str | None = None,
    on_progress: OnProgress = ignore,
) -> TableResult:
    """Return a grid's table; with `fit`, make its missing runs first, beside any other workers.

    A run that is there is never made again; remove its evaluation.json to measure it again.

    Args:
        name: A shipped grid, or a YAML file.
        data: Folder of the data; None where they are generated, or for runs that are there.
        out: Folder of all grids.
        fit: Whether to make missing runs.
        storage: Address of a database by which workers share them; None for a SQLite file in the
            grid's folder.
        on_progress: Called with the progress of the runs.

    Raises:
        GridError: The grid is none, or has runs that do not belong together.
        RecipeError: A recipe or a setting is not there, or a run has other settings than the grid
            says.
        EvaluationError: An evaluation.json is damaged.
        StudyError: The storage does not answer.
    """
    grid = load_grid(name)
    if data is not None and not data.is_dir():
        raise GridError(f"--data: {data} is no folder; check the path")

    def count_folds(recipe: Recipe, row: PlannedRow) -> int | None:
        own = _data_folder(data, row.data)
        if own is not None and own.is_dir():
            return count_people(recipe, own)
        # Without data, a finished run says how many folds there are.
        done = sorted((out / row_folder(grid, row)).glob(f"seed-*/fold-*/{EVALUATION}"))
        return read(done[0]).fold_count if done else None

    cells = expand(grid, count_folds=count_folds)
    # Before any fit: a folder with another grid's run would be found out after days.
    found = {cell.folder: _finished(cell, out) for cell in cells}
    missing = _missing(grid, cells, found, data, on_progress) if fit else []
    if missing:

        def run(number: int, parameters: dict[str, Any], report: Report) -> float:
            title, cell = missing[number]
            on_progress(Progress(title))
            own, folder = _data_folder(data, cell.data), out / cell.folder
            fit_and_evaluate(cell.recipe, own, folder, grids=out, on_progress=on_progress)
            return 0.0  # what a run is worth stands in its evaluation.json

        study = Study(
            f"table-{grid.name}",
            {cell.folder: {} for _, cell in missing},
            out / grid.name,
            run,
            storage,
            # Whatever the storage says: whoever removes the file wants the run measured again.
            is_done=lambda folder: (out / folder / EVALUATION).is_file(),
            on_progress=on_progress,
        )
        study.work()
        found |= {cell.folder: _finished(cell, out) for _, cell in missing}
    results = [(cell, found[cell.folder]) for cell in cells]
    failed = []
    for folder in found:
        note = out / folder / NOT_DEPLOYED
        if note.is_file():
            failed.append(f"{folder}: {note.read_text('utf-8').strip()}")
    costs = _costs(grid, results, out) if grid.costs else {}
    return TableResult(summarise(grid, results), costs, failed)


def _missing(
    grid: RunGrid,
    cells: Sequence[GridCell],
    found: Mapping[str, RunEvaluation | None],
    data: Path | None,
    on_progress: OnProgress,
) -> list[tuple[str, GridCell]]:
    """Return titles and runs that are to be made, and say which cannot be made for want of their
    data.
    """
    rows = {cell.row for cell in cells}
    for row in grid.planned():
        if row.runs_of is None and row.name not in rows:
            own = _data_folder(data, row.data)
            text = f"Row '{row.name}': no data at {own or '--data'} say how many folds it has; left out"
            on_progress(Progress(text))
    missing = []
    for number, cell in enumerate(cells, start=1):
        if found[cell.folder] is not None:
            continue
        title, own = f"Run {number} of {len(cells)}: {cell.folder}", _data_folder(data, cell.data)
        # Data that lie nowhere below are generated, or missed by the recipe in its own words.
        if cell.data is None or (own is not None and own.is_dir()):
            missing.append((title, cell))
        else:
            on_progress(Progress(f"{title}: no data at {own or '--data'}; left out"))
    return missing


def fit_and_evaluate(
    recipe: Recipe,
    data: Path | None,
    folder: Path,
    *,
    grids: Path,
    on_progress: OnProgress = ignore,
) -> None:
    """Make a run of a grid, or the rest of it: train it, put it on the chip where that is possible,
    evaluate it.

    Args:
        recipe: Settings of the run.
        data: Folder of its data; None where knarr generates them.
        folder: Folder of the run.
        grids: Folder of all grids, where generated data and shared teachers lie.
        on_progress: Called with the progress.
    """
    try:
        run = open_run(recipe, folder, data=data, cache=grids / "data", on_progress=on_progress)
        show = FitProgress(on_progress, "teacher", on_test="teacher" in recipe.chosen_on_test)
        shared_teacher(recipe, run.data, folder, grids / TEACHERS, (show,))
        stages.train(run)
        _put_on_chip(run)
        # The evaluation comes last: a table takes a run that has one as finished.
        stages.evaluate(run)
    finally:
        release(folder)


def _put_on_chip(run: Run) -> None:
    """Export, deploy and price a student that a chip can hold by its recipe, or note why that
    failed.
    """
    failure = run.path(NOT_DEPLOYED)
    failure.unlink(missing_ok=True)
    try:
        run.system.deployable(run.networks()[1])
    except RecipeError as error:
        # Published networks that no chip holds are rows too.
        run.say(f"  not for the chip: {error}")
        return
    try:
        for stage in (stages.export, stages.deploy, stages.record, stages.energy):
            stage(run)
    except KnarrError as error:
        # One student that does not come onto the chip must not keep the others of a grid from being
        # measured.
        run.say(f"  NOT DEPLOYED: {error}")
        write_atomic(failure, (" ".join(str(error).split()) + "\n").encode())


def count_people(recipe: Recipe, data: Path) -> int:
    """Count the folds of a recipe that leaves each person out, which the data decide.

    Raises:
        RecipeError: The system has no folds.
    """
    if not isinstance(recipe, EmotionRecipe):
        raise RecipeError(
            f"recipe '{recipe.name}': system {recipe.system} has no folds that depend on data"
        )
    return fold_count(recipe, data)


def _data_folder(data: Path | None, below: str | None) -> Path | None:
    return None if data is None else data / (below or "")


def _finished(cell: GridCell, out: Path) -> RunEvaluation | None:
    """Read the evaluation of a run; None where there is none yet.

    Raises:
        GridError: The run or its evaluation is another one than the grid's.
    """
    folder = out / cell.folder
    path = folder / EVALUATION
    if not path.is_file():
        return None
    recipe, _ = read_run(folder)
    if not recipe.same_run(cell.recipe):
        raise GridError(
            f"{folder}: holds a run with other settings than row '{cell.row}'; remove it or give another --out"
        )
    found = read(path)
    if cell.fold is not None and found.fold_numbers != (cell.fold,):
        raise GridError(
            f"{path}: of folds {list(found.fold_numbers)}, not {cell.fold}; remove it and evaluate again"
        )
    return found


# --- rows


def summarise(grid: RunGrid, results: Results) -> GridTable:
    """Return the rows of a grid, in its order.

    Args:
        grid: The grid as it was expanded.
        results: All its runs.

    Raises:
        GridError: Runs of one row belong to other data, or folds were tested on the same samples.
    """
    finished = [found for _, found in results if found is not None]
    levels = {found.level for found in finished}
    if len(levels) > 1:
        raise GridError(
            f"grid '{grid.name}': intervals of {sorted(levels)}; evaluate all runs alike"
        )
    # While runs are missing, a class or a lighting may yet come with one of them.
    if len(finished) == len(results):
        _assert_columns(grid, finished)
    rows = []
    for row in grid.planned():
        fitted = row.runs_of or row.name
        own = [(cell, found) for cell, found in results if cell.row == fitted]
        try:
            rows.append(_row(grid, row, own))
        except EvaluationError as error:
            raise GridError(f"grid '{grid.name}': row '{row.name}': {error}") from None
    level = levels.pop() if levels else None
    return GridTable(grid.name, grid.title, grid.columns, level, tuple(rows))


def _assert_columns(grid: RunGrid, runs: Sequence[RunEvaluation]) -> None:
    """Refuse columns of a class, a target or a lighting that no run has; a dash would look like one
    that is not defined.
    """
    targets = {name for run in runs for name in run.targets}
    there = {"recall": {name for run in runs for name in run.classes}}
    there |= dict.fromkeys(ERRORS, targets)
    for column in grid.columns:
        if runs and column in (RATES if targets else ERRORS):
            what, cure = ("float targets", ERRORS) if targets else ("classes", RATES)
            raise GridError(
                f"grid '{grid.name}': column '{column}': labels are {what}; take columns of {', '.join(cure)}"
            )
    lights = {name for run in runs for name in run.lights or ()}
    if lights:
        # SEE has them all, some people of it may not.
        there["group"] = lights | set(LIGHTS)
    for column in grid.columns:
        kind, _, name = column.partition("/")
        if name and there.get(kind) and name not in there[kind]:
            raise GridError(
                f"grid '{grid.name}': column '{column}': no run has it; there are {', '.join(sorted(there[kind]))}"
            )


def _row(grid: RunGrid, row: PlannedRow, results: Results) -> RowSummary:
    finished: dict[int, list[RunEvaluation]] = defaultdict(list)
    for cell, found in results:
        # A run whose student did not come onto the chip has no predictions of the chip.
        if found is not None and row.network in found.predicted:
            finished[cell.seed].append(found.only(row.network))
    wanted = Counter(cell.seed for cell, _ in results)
    # A seed that lacks folds would be a mean over other people: it counts only where no seed is
    # whole.
    whole = [seed for seed, found in finished.items() if len(found) == wanted[seed]]
    pooled = {seed: pool(finished[seed]) for seed in sorted(whole or finished)}
    runs = list(pooled.values())
    _assert_alike(runs, row.network)
    joined = _as_passes(runs, row.network)
    rates = {key: _rate(runs, joined, row.network, key) for key in grid.columns}
    summary = RowSummary(
        name=row.name,
        network=row.network,
        finished=sum(map(len, finished.values())),
        wanted=len(results) or None,  # without any, nobody could say how many folds there are
        seeds=tuple(pooled),
        rates=rates,
    )
    if runs:
        first = runs[0]
        summary = replace(
            summary,
            folds=min(len(run.fold_numbers) for run in runs),
            fold_count=first.fold_count,
            data=first.on,
            protocol=first.protocol,
            samples=len(first.names),
            subjects=None if first.subjects is None else len(set(first.subjects)),
        )
    if row.beside is None:
        return summary
    # With nothing finished there is nothing to mark as other data.
    data = summary.data or row.beside.table.data
    beside = compare_with_published(summary, row.beside, data=data)
    cells = [cell for cell in beside.cells if cell.measure in grid.columns]
    if runs and summary.folds < summary.fold_count:  # a part of the data is other data
        cells = [replace(cell, difference=None) for cell in cells]
    return replace(summary, beside=replace(beside, cells=tuple(cells)))


def _assert_alike(runs: Sequence[RunEvaluation], network: Network) -> None:
    """Refuse seeds of a row that were measured on other data or otherwise."""
    for other in runs[1:]:
        passes = [len(run.predicted[network]) for run in (runs[0], other)]
        if passes[0] != passes[1]:
            raise EvaluationError(
                f"passes: {passes[0]} of one seed, {passes[1]} of another; evaluate them with the same --windows"
            )
        for field in ("on", "classes", "targets", "protocol", "sampling", "fold_count"):
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
    # A class that one seed's samples lack has no mean over seeds.
    if not runs or len(values) < len(runs):
        return None
    whole = None if joined is None else joined.measures[network].of(key)
    return Rate(
        float(np.mean(values)),
        t_interval(values, runs[0].level, most=inf if runs[0].targets else 1.0)
        if len(values) > 1
        else None,
        None if whole is None else whole.bootstrap,
        _over_folds(runs, network, key),
    )


def _as_passes(runs: Sequence[RunEvaluation], network: Network) -> RunEvaluation | None:
    """Return all seeds as passes over the same samples; None where they are not the same, or there
    are none.
    """
    rows = []
    for run in runs:
        wanted, places = _samples(runs[0]), _samples(run)
        if places.keys() != wanted.keys():
            return None
        # In the order of the first seed: the bootstrap draws by place, so another order gives
        # another interval.
        rows.append(run.predicted[network][:, [places[sample] for sample in wanted]])
    return replace(runs[0], predicted={network: np.concatenate(rows)}) if rows else None


def _samples(run: RunEvaluation) -> dict[tuple[object, ...], int]:
    """Return the place of each sample by its name, class and person."""
    people = run.subjects or (None,) * len(run.names)
    labels = [tuple(label) if run.targets else label for label in run.labels.tolist()]
    samples = zip(run.names, labels, people, strict=True)
    return {sample: place for place, sample in enumerate(samples)}


def _over_folds(runs: Sequence[RunEvaluation], network: Network, key: str) -> OverFolds | None:
    by_fold: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for fold, value in run.of_folds(network, key).items():
            by_fold[fold].append(value)
    if runs[0].fold_count == 1 or not by_fold:
        return None
    # Over seeds first: a fold counts once, however many seeds were tested in it.
    means = [float(np.mean(values)) for values in by_fold.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return OverFolds(float(np.mean(means)), spread, len(means))


# --- costs


def _costs(grid: RunGrid, results: Results, out: Path) -> dict[str, Costs | None]:
    """Return the costs of each row by its name, means over its finished runs that were priced."""
    found: dict[str, Costs | None] = {}
    for row in grid.planned():
        own = []
        for cell, evaluation in results:
            path = out / cell.folder / ENERGY
            of_row = cell.row == (row.runs_of or row.name)
            if of_row and evaluation is not None and path.is_file():
                own.append(read_costs(path, row.network))
        found[row.name] = mean_costs([costs for costs in own if costs is not None])
    return found


def read_costs(path: Path, network: Network) -> Costs | None:
    """Read what an inference of a run costs from its energy.json: of the student on the chip, or of
    the teacher's baseline.

    Returns:
        None where it was not counted whole.

    Raises:
        RunError: It is no such file.
    """
    side = "baseline" if network == "teacher" else "student"
    with expecting(path):
        facts = read_energy(path)
        counts = facts["counts"][side]
        if counts is None or counts["total"] is None:
            return None
        total, sizes = counts["total"], counts["sizes"]
        place = BATCH_1 if side == "baseline" else facts["why"]["place"]
        priced = facts["places"].get(place)
        layers = counts["layers"].items()
        fires = {name: layer for name, layer in layers if layer["neuron_updates"] > 0}
        # A last layer that never fires is a leaky integrator, which is read, and has no rate.
        if fires and list(fires.values())[-1]["spikes"] == 0:
            fires.popitem()
        updates = sum(layer["neuron_updates"] for layer in fires.values())
        spikes = sum(layer["spikes"] for layer in fires.values())
        parameters = None
        if sizes is not None:
            parameters = float(sum(one["weights"] + one["biases"] for one in sizes.values()))
        return Costs(
            runs=1,
            parameters=parameters,
            dense_macs=total["dense_valid"],
            mac=total["mac"],
            acc=total["acc"],
            spike_rate=spikes / updates if updates else None,
            layer_rates={
                name: layer["spikes"] / layer["neuron_updates"] for name, layer in fires.items()
            },
            place=place if priced else None,
            energy=priced["total"] if priced else None,
        )


def mean_costs(found: Sequence[Costs]) -> Costs | None:
    """Return the mean over runs; None of none. What only some of them have is left out."""
    if not found:
        return None

    def mean(values: list[Any]) -> Any:
        return None if None in values else sum(values) / len(values)

    rates = {
        layer: mean([one.layer_rates.get(layer) for one in found]) for layer in found[0].layer_rates
    }
    shared = {layer: rate for layer, rate in rates.items() if rate is not None}
    names = ("parameters", "dense_macs", "mac", "acc", "spike_rate")
    means: dict[str, Any] = {name: mean([getattr(one, name) for one in found]) for name in names}
    places, energies = {one.place for one in found}, [one.energy for one in found]
    energy = None
    # Energies of two places have no mean.
    if len(places) == 1 and None not in energies:
        known = [one for one in energies if one is not None]
        energy = {**known[0], **{name: mean([one[name] for one in known]) for name in BOUNDS}}
    place = None if energy is None else found[0].place
    return Costs(runs=len(found), layer_rates=shared, place=place, energy=energy, **means)
