"""Verbs that fit and measure: train, evaluate, table, sweep."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import (
    BAD_INPUT,
    DataOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    app,
    fail,
    finish,
)


@app.command(epilog="Example: knarr train nmnist --data nmnist_small --out runs/nmnist")
def train(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train the teacher and distil the student, with `chip:` to the chip's integers; a killed run goes on after its last epoch."""
    from knarr.cli.text import report
    from knarr.pipeline import stages
    from knarr.train.train import STUDENT, TEACHER

    run = stages.start(recipe, data, out, changes or [])
    stages.train(run)
    fitted = {}
    if run.recipe.chip is not None:
        stages.export(run)
        stages.deploy(run)
        fitted = {"chip": stages.NET}
    on_test = {report.ON_TEST: list(run.recipe.chosen_on_test)} if run.recipe.chosen_on_test else {}
    names = {"teacher": TEACHER, "student": STUDENT, **fitted}
    report.say({"run": str(run.folder), **names, **on_test}, json=json)


@app.command(epilog="Example: knarr evaluate runs/mskd_eyes --windows 20")
def evaluate(
    run: RunArgument,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Where the run's data lie now, if they were moved."),
    ] = None,
    windows: Annotated[
        int,
        typer.Option(
            "--windows", help="Passes, where clips are seen through random windows.", min=1
        ),
    ] = 20,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the windows and of the intervals.", min=0)
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a run on its test set: accuracy, recall, F1, each with its interval; writes evaluation.json."""
    from knarr.pipeline import evaluating, stages

    evaluating.show(stages.reopen(run, data), windows=windows, seed=seed, json=json)


@app.command(
    epilog="Example: knarr table seen_rows_eyes --fit; knarr table mine.yaml --data see --out runs/mine"
)
def table(
    grid: Annotated[str, typer.Argument(help="Shipped grid or a YAML file.", metavar="GRID")],
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
        fit_and_evaluate=partial(evaluating.fit_and_evaluate, grids=out),
        count_people=evaluating.count_people,
    )
    if failed and fit:
        fail(
            f"{len(failed)} run(s) measured without a chip: {'; '.join(failed)}; remove a run's evaluation.json to try it again",
            BAD_INPUT,
        )


@app.command(epilog="Example: knarr sweep sweep.yaml --data nmnist_small --out runs/sweep")
def sweep(
    file: Annotated[
        Path, typer.Argument(help="YAML file: recipe, what to search, trials.", metavar="SWEEP")
    ],
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the trials; default runs/<name>.")
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
        typer.Option("--out", help="Folder of the trials; default runs/pareto-<recipe>."),
    ] = None,
    bits: Annotated[str, typer.Option("--bits", help="Weight bits, with commas.")] = "8,6,4,3",
    steps: Annotated[
        str, typer.Option("--steps", help="Time steps, with commas; default all and half of them.")
    ] = "",
    shares: Annotated[
        str,
        typer.Option("--shares", help="Of the lowered network's ACC, with commas; 1 sets no goal."),
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
