"""Verbs of whole runs: pipeline, report, doctor. Heavy imports happen inside a verb, so that help and bad input answer at once."""

from __future__ import annotations

from knarr.cli.app import (
    DataOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    app,
    finish,
)


@app.command(epilog="Example: knarr pipeline nmnist --data nmnist_small")
def pipeline(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """All stages from data to energy; run again, it goes on after the last finished one."""
    from knarr.cli.text import report
    from knarr.pipeline import stages

    run = stages.start(recipe, data, out, changes or [])
    for stage in stages.ALL:
        stage(run)
    finish(report.show(run.folder, json=json))


@app.command(name="report", epilog="Example: knarr report runs/nmnist")
def report_(run: RunArgument, json: JsonOption = False) -> None:
    """Print a finished run's table and the paths of its pictures; exit 1 when its verification does not hold."""
    from knarr.cli.text import report
    from knarr.pipeline import stages

    stages.pictures(stages.reopen(run))
    finish(report.show(run, json=json))


@app.command(epilog="Example: knarr doctor")
def doctor(json: JsonOption = False) -> None:
    """Say which backends work on this machine and why others do not; exit 1 when a needed one fails."""
    from knarr.cli.commands import doctor as checks

    finish(checks.show(json=json))
