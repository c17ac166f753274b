"""Verbs of whole runs: pipeline, report, doctor."""

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
from knarr.cli.files import check_out
from knarr.cli.output import show_progress


@app.command(epilog="Example: knarr pipeline nmnist --data nmnist_small")
def pipeline(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run all stages from data to energy; run again, it resumes after the last finished one."""
    check_out("--out", out, folder=True)
    from knarr.cli.text.report import print_run
    from knarr.train import load_recipe

    # A wrong name is answered before all that a run needs is loaded.
    read = load_recipe(recipe)
    from knarr.pipeline import run

    # Settings of a run that is there must be the same, so they may be given again.
    finished = run(read, out, data=data, settings=changes or (), on_progress=show_progress)
    finish(print_run(finished.folder, json=json))


@app.command(epilog="Example: knarr report runs/nmnist")
def report(run: RunArgument, json: JsonOption = False) -> None:
    """Print a finished run's table and the paths of its pictures.

    The exit code is 1 when the run's verification does not hold.
    """
    from knarr.cli.text.report import print_run
    from knarr.pipeline import missing_pictures

    # A run that was killed before its last stage has results and no pictures yet. They show its
    # data; a report alone needs neither those nor torch.
    if missing_pictures(run):
        from knarr.pipeline import reopen

        # A wrong path is answered before all that draws is loaded.
        opened = reopen(run, on_progress=show_progress)
        from knarr.pipeline import draw_pictures

        draw_pictures(opened)
    finish(print_run(run, json=json))


@app.command(epilog="Example: knarr doctor")
def doctor(json: JsonOption = False) -> None:
    """Say which backends work on this machine, and why others do not.

    The exit code is 1 when one that knarr needs fails.
    """
    from knarr.cli.verbs.doctor import print_findings

    finish(print_findings(json=json))
