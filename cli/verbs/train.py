"""Verbs that fit and measure one run: train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from knarr.cli.app import (
    DataOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    app,
)
from knarr.cli.files import check_out
from knarr.cli.output import show_progress
from knarr.ranks import rank


@app.command(epilog="Example: knarr train nmnist --data nmnist_small --out runs/nmnist")
def train(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: OutOption = None,
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train the teacher and distil the student.

    With `chip:` in the recipe the student is fitted on the chip's integers as well. A killed run
    resumes after its last epoch.
    """
    check_out("--out", out, folder=True)
    from knarr import pipeline
    from knarr.cli.text.report import print_facts
    from knarr.train import STUDENT, TEACHER

    run = pipeline.open_run(
        recipe, out, data=data, settings=changes or (), on_progress=show_progress
    )
    pipeline.train(run)
    if rank() > 0:
        return  # rank 0 speaks for all processes that torchrun has started
    facts: dict[str, object] = {"run": str(run.folder)}
    facts |= {"teacher": TEACHER, "student": STUDENT}
    if run.recipe.chip is not None:
        # The fit of integers starts from the lowered graph, so both stages before it run too.
        pipeline.export(run)
        pipeline.deploy(run)
        facts["chip"] = pipeline.NET
    if run.recipe.chosen_on_test:
        facts[pipeline.ON_TEST] = list(run.recipe.chosen_on_test)
    print_facts(facts, json=json)


@app.command(epilog="Example: knarr evaluate runs/mskd_eyes --windows 20")
def evaluate(
    run: RunArgument,
    data: Annotated[
        Path | None, Option(help="Folder where the run's data lie now, if they were moved.")
    ] = None,
    # 20 passes, as in the published protocol of SEE.
    windows: Annotated[
        int,
        Option(
            help="Number of passes over the test set, where clips are seen through random windows.",
            min=1,
        ),
    ] = 20,
    seed: Annotated[int, Option(help="Seed of the windows and of the intervals.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a run on its test set: accuracy, recall, F1, each with its interval.

    The results are written to evaluation.json in the run's folder.
    """
    from knarr import pipeline

    # A wrong path is answered before all that measures is loaded.
    opened = pipeline.reopen(run, data, on_progress=show_progress)
    found = pipeline.evaluate(opened, windows=windows, seed=seed)
    from knarr.cli.text.evaluation import evaluation_facts, print_evaluation

    if json:
        print(pipeline.json_text(evaluation_facts(found)))
    else:
        print_evaluation(found)
