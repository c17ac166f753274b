"""Verbs of many runs: table, sweep, pareto."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import DataOption, JsonOption, RecipeArgument, SetOption, app, finish
from knarr.cli.errors import UsageError
from knarr.cli.output import show_progress


@app.command(
    epilog="Example: knarr table seen_rows_eyes --fit; knarr table mine.yaml --data see --out runs/mine"
)
def table(
    grid: Annotated[
        str, typer.Argument(help="Name of a shipped grid, or a YAML file.", metavar="GRID")
    ],
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the grids' runs.")] = Path(
        "runs/grids"
    ),
    fit: Annotated[
        bool, typer.Option("--fit", help="Make the runs that are missing first.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print a grid of runs beside published numbers, with a source for each and a mark where data differ."""
    from knarr.pipeline import evaluating
    from knarr.pipeline.many import tabling

    failed = tabling.table(
        grid,
        data,
        out,
        fit=fit,
        json=json,
        fit_and_evaluate=partial(evaluating.fit_and_evaluate, grids=out, on_progress=show_progress),
        count_people=evaluating.count_people,
    )
    if failed and fit:
        raise UsageError(
            f"{len(failed)} run(s) measured without a chip: {'; '.join(failed)}; remove a run's evaluation.json to try it again"
        )


@app.command(epilog="Example: knarr sweep sweep.yaml --data nmnist_small --out runs/sweep")
def sweep(
    file: Annotated[
        Path, typer.Argument(help="YAML file: recipe, what to search, trials.", metavar="SWEEP")
    ],
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the trials; runs/<name> when left out.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="Database URL of the study, for machines without a shared folder."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search settings by the validation split; several machines may share one study, and killed trials go on."""
    from knarr.pipeline.many import sweeping

    finish(sweeping.sweep(file, data, out, storage, json=json))


@app.command(epilog="Example: knarr pareto nmnist --data nmnist_small --bits 8,4 --shares 1,0.5")
def pareto(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the trials; runs/pareto-<recipe> when left out."),
    ] = None,
    bits: Annotated[
        str, typer.Option("--bits", help="Weight bits to try, with commas between.")
    ] = "8,6,4,3",
    steps: Annotated[
        str,
        typer.Option(
            "--steps",
            help="Time steps to try, with commas between; all and half of them when left out.",
        ),
    ] = "",
    shares: Annotated[
        str,
        typer.Option(
            "--shares",
            help="Shares of the lowered network's ACC to aim at, with commas between; 1 sets no goal.",
        ),
    ] = "1,0.5,0.25",
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Energy that the front is found by: paper, memory, chip:PROFILE."
        ),
    ] = "paper",
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Fit one student in the chip's arithmetic at each of several costs; table and picture; a killed search goes on."""
    from knarr.pipeline.many import pareto as costs

    finish(
        costs.pareto(
            recipe,
            data,
            out,
            changes or [],
            bits=costs.numbers("--bits", bits, int, 8),
            steps=costs.numbers("--steps", steps, int, 10**6, none=True),
            shares=costs.numbers("--shares", shares, float, 1),
            model=model,
            json=json,
        )
    )
