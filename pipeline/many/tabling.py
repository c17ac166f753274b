"""`knarr table`: the runs of a grid, those that are missing made where asked, as one table beside the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from knarr.cli.output import make_console, show_progress
from knarr.cli.text.table import print_table, table_json
from knarr.pipeline.evaluation_file import EVALUATION, RunEvaluation, read
from knarr.pipeline.files import json_text
from knarr.pipeline.many.grid import GridCell, GridError, RunGrid, expand, load_grid, row_folder
from knarr.pipeline.many.grid_rows import Planned
from knarr.pipeline.many.grid_summary import summarise
from knarr.pipeline.many.table_costs import Costs, mean_costs, read_costs
from knarr.pipeline.progress import Progress
from knarr.pipeline.run_folder import read_run
from knarr.train.settings import Recipe

ENERGY = "energy.json"

NOT_DEPLOYED = "not_deployed.txt"
"""In the folder of a run whose student should have come onto the chip and did not: why."""

FitAndEvaluate = Callable[[Recipe, Path | None, Path], None]
"""(recipe, data folder or None, run folder): leaves evaluation.json there, and NOT_DEPLOYED where the chip failed; goes on with a run
that was killed."""
CountPeople = Callable[[Recipe, Path], int]
"""(recipe, data folder) -> folds of leaving one person out."""


def table(
    name: str,
    data: Path | None,
    out: Path,
    *,
    fit: bool,
    json: bool,
    fit_and_evaluate: FitAndEvaluate,
    count_people: CountPeople,
) -> list[str]:
    """Print a grid's table; with `fit`, make its missing runs first. A run that is there is never made again.

    Returns runs that are measured without a chip, though they should have one, and why.

    Args:
        name: a shipped grid, or a YAML file.
        data: folder of the data; None where they are generated, or for runs that are there.
        out: folder of all grids.
        fit: make missing runs.
        json: print one document.
        fit_and_evaluate: makes a run.
        count_people: asked where folds depend on data.

    Raises:
        GridError: not such a grid, or runs that do not belong together.
        RecipeError: a recipe or a setting that is not there, a run with other settings than the grid says.
        EvaluationError: a damaged evaluation.json.
    """
    grid = load_grid(name)
    if data is not None and not data.is_dir():
        raise GridError(f"--data: {data} is no folder; check the path")

    def count_folds(recipe: Recipe, row: Planned) -> int | None:
        own = _data(data, row.data)
        if own is not None and own.is_dir():
            return count_people(recipe, own)
        return _known_folds(out / row_folder(grid, row))

    cells = expand(grid, count_folds=count_folds)
    for row in grid.planned() if fit else ():
        if row.runs_of is None and all(cell.row != row.name for cell in cells):
            own = _data(data, row.data)
            show_progress(
                Progress(
                    f"Row '{row.name}': no data at {own or '--data'} say how many folds it has; left out"
                )
            )
    results: list[tuple[GridCell, RunEvaluation | None]] = []
    for number, cell in enumerate(cells, start=1):
        folder = out / cell.folder
        if fit and not (folder / EVALUATION).is_file():
            own = _data(data, cell.data)
            if cell.data is not None and (own is None or not own.is_dir()):
                show_progress(
                    Progress(
                        f"Run {number} of {len(cells)}: {cell.folder}: no data at {own or '--data'}; left out"
                    )
                )
            else:
                show_progress(Progress(f"Run {number} of {len(cells)}: {cell.folder}"))
                fit_and_evaluate(cell.recipe, own, folder)
        results.append((cell, _finished(cell, folder)))
    summary = summarise(grid, results)
    costs = _costs(grid, results, out) if grid.costs else {}
    notes = {cell.folder: out / cell.folder / NOT_DEPLOYED for cell in cells}
    failed = [
        f"{folder}: {path.read_text('utf-8').strip()}"
        for folder, path in notes.items()
        if path.is_file()
    ]
    if json:
        print(json_text({**table_json(summary, costs), "not_deployed": failed}))
    else:
        print_table(summary, costs, make_console())
    return failed


def _data(data: Path | None, below: str | None) -> Path | None:
    return None if data is None else data / (below or "")


def _known_folds(folder: Path) -> int | None:
    """How many folds a row's data have, as a finished run of it says; None without one."""
    found = next(iter(sorted(folder.glob(f"seed-*/fold-*/{EVALUATION}"))), None)
    return None if found is None else read(found).fold_count


def _finished(cell: GridCell, folder: Path) -> RunEvaluation | None:
    """The evaluation of a run; None where there is none yet.

    Raises:
        GridError: the run or its evaluation is another one than the grid's.
    """
    if not (folder / EVALUATION).is_file():
        return None
    recipe, _ = read_run(folder)
    if recipe != cell.recipe:
        raise GridError(
            f"{folder}: holds a run with other settings than row '{cell.row}'; remove it or give another --out"
        )
    found = read(folder / EVALUATION)
    if cell.fold is not None and found.fold_numbers != (cell.fold,):
        raise GridError(
            f"{folder / EVALUATION}: of folds {list(found.fold_numbers)}, not {cell.fold}; remove it and evaluate again"
        )
    return found


def _costs(
    grid: RunGrid, results: list[tuple[GridCell, RunEvaluation | None]], out: Path
) -> dict[str, Costs | None]:
    """Of each row, by its name; means over its finished runs that were priced."""
    found: dict[str, Costs | None] = {}
    for row in grid.planned():
        files = [
            out / cell.folder / ENERGY
            for cell, evaluation in results
            if cell.row == (row.runs_of or row.name) and evaluation is not None
        ]
        read_ones = (read_costs(path, row.network) for path in files if path.is_file())
        found[row.name] = mean_costs([one for one in read_ones if one is not None])
    return found
