"""`knarr evaluate RUN`: the networks of a run on its test set, once or through random windows, into evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knarr.deploy import read_net
from knarr.files import write_atomic
from knarr.pipeline import stages
from knarr.pipeline.evaluation import check_size
from knarr.pipeline.evaluation_file import EVALUATION, RunEvaluation, write
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.progress import OnProgress, ignore
from knarr.pipeline.run_folder import NET, Run, open_run, release
from knarr.pipeline.shared_teacher import TEACHERS, shared_teacher
from knarr.pipeline.stages import decided
from knarr.train.clips import Indices
from knarr.train.datasets.see.windows import WINDOWS
from knarr.train.settings import Recipe, RecipeError
from knarr.train.systems.emotionkd import fold_count
from knarr.train.systems.emotionkd_recipe import EmotionRecipe
from knarr.train.train import student_predictions, teacher_predictions

NOT_DEPLOYED = "not_deployed.txt"
"""In the folder of a run whose student should have come onto the chip and did not: why."""
HOW = {
    "last": "weights of the last epoch",
    "val": "weights of the best validation epoch",
    "best_on_test": "weights of the best epoch ON THE TEST SET",
}


def evaluate(run: Run, *, windows: int = WINDOWS, seed: int = 0) -> RunEvaluation:
    """See what teacher, student and, where it was deployed, chip see in each test clip; writes evaluation.json.

    Args:
        run: trained.
        windows: passes over a test set that is seen through random windows; others are seen once.
        seed: of the windows, and of the bootstrap.

    Raises:
        RecipeError: not trained yet.
        EvaluationError: a test set that cannot be measured, or more windows than a measure may take.
    """
    if run.data.sampling is not None:
        check_size(
            windows,
            len(run.data.class_names),
            run.data.subjects,
            run.data.lights,
            RunEvaluation.draws,
        )
    teacher, student = run.networks()
    passes = run.system.passes(run.data, windows, seed)
    show = run.counter("passes over the test set")
    predicted: dict[str, list[Indices]] = {"teacher": [], "student": []}
    if run.has(NET):
        predicted["chip"] = []
    for number, clips in enumerate(passes, start=1):
        predicted["teacher"].append(teacher_predictions(run.recipe, teacher, clips))
        predicted["student"].append(student_predictions(run.recipe, student, clips))
        if "chip" in predicted:
            predicted["chip"].append(decided(run, read_net(run.path(NET)), clips))
        show(number, len(passes))
    data = run.data
    samples = len(data.test.labels)
    found = RunEvaluation(
        data=data.name,
        classes=data.class_names,
        names=data.names or tuple(f"{number}" for number in range(samples)),
        labels=data.test.labels,
        predicted={name: np.stack(rows) for name, rows in predicted.items()},  # type: ignore[misc]  # a dict of literals
        subjects=data.subjects,
        lights=data.lights,
        protocol=_protocol(run),
        sampling=data.sampling,
        folds=None if data.fold is None else np.full(samples, data.fold, np.int64),
        fold_count=data.fold_count,
        seed=seed,
    )
    write(run.path(EVALUATION), found)
    return found


def _protocol(run: Run) -> str:
    ways: Sequence[str] = [HOW[run.recipe.teacher.fit.select], HOW[run.recipe.student.fit.select]]
    chosen = ways[1] if ways[0] == ways[1] else f"teacher: {ways[0]}, student: {ways[1]}"
    chip = run.recipe.chip
    if chip is not None:
        steps = "" if chip.timesteps is None else f" of the first {chip.timesteps} steps"
        chosen += f"; chip: {chip.weight_bits}-bit integers of the best validation epoch{steps}"
    return f"{run.data.protocol}; {chosen}" if run.data.protocol else chosen


def fit_and_evaluate(
    recipe: Recipe,
    data: Path | None,
    folder: Path,
    *,
    grids: Path,
    on_progress: OnProgress = ignore,
) -> None:
    """A run of a grid, or the rest of it: trained, on the chip where it can be, evaluated.

    Args:
        recipe: of the run. data: folder of its data; None where knarr generates them.
        folder: of the run.
        grids: folder of all grids, where generated data and shared teachers lie.
        on_progress: called with the progress.
    """
    try:
        opened = open_run(recipe, folder, data=data, cache=grids / "data", on_progress=on_progress)
        _fit_and_evaluate(opened, grids)
    finally:
        release(folder)


def _fit_and_evaluate(run: Run, grids: Path) -> None:
    recipe, folder = run.recipe, run.folder
    shared_teacher(
        recipe,
        run.data,
        folder,
        grids / TEACHERS,
        (FitProgress(run.on_progress, "teacher", on_test="teacher" in recipe.chosen_on_test),),
    )
    stages.train(run)
    failure = run.path(NOT_DEPLOYED)
    failure.unlink(missing_ok=True)
    if _deployable(run):
        try:
            for stage in (stages.export, stages.deploy, stages.simulate, stages.energy):
                stage(run)
        except (ValueError, RuntimeError) as error:
            # One student that does not come onto the chip must not keep the others of a grid from being measured.
            if not type(error).__module__.startswith("knarr."):
                raise
            run.say(f"  NOT DEPLOYED: {error}")
            write_atomic(failure, (" ".join(str(error).split()) + "\n").encode())
    evaluate(run)


def _deployable(run: Run) -> bool:
    """Whether the recipe asks for a student that a chip can hold; published networks that none holds are rows too."""
    try:
        run.system.deployable(run.networks()[1])
    except RecipeError as error:
        run.say(f"  not for the chip: {error}")
        return False
    return True


def count_people(recipe: Recipe, data: Path) -> int:
    """How many folds a recipe has where the data decide it: of leaving each person out.

    Raises:
        RecipeError: a system without folds.
    """
    if not isinstance(recipe, EmotionRecipe):
        raise RecipeError(
            f"recipe '{recipe.name}': system {recipe.system} has no folds that depend on data"
        )
    return fold_count(recipe, data)
