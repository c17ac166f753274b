"""Sweeps: trials of one recipe whose settings a sampler chooses, and the best of them as a recipe.

A trial's folder is `trial-<number>`. It is done when it finished, was pruned, or was refused by the
recipe.

Every trial has a random generator of its own, seeded by the sweep's seed and its number. "random"
and "grid" therefore give each trial the same parameters however many workers there are and whenever
they are killed. "tpe" also learns from what has ended, so it does only with one worker, killed or
not. Values repeat as far as those of the recipe do: on one machine, with one thread setting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import lightning
import numpy as np
import optuna
import yaml
from lightning.pytorch.callbacks import Callback
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from knarr.files import write_atomic
from knarr.pipeline.files import write_png
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore
from knarr.pipeline.run_folder import claim_folder, generated_data, hold, release
from knarr.pipeline.studies.engine import (
    DONE,
    REFUSED,
    RefusedError,
    Report,
    Study,
    StudyError,
    first,
)
from knarr.pipeline.studies.pictures import draw_sweep
from knarr.pipeline.studies.results import (
    BEST,
    SWEEP_PICTURE,
    State,
    SweepResult,
    SweepTrial,
    folder_name,
)
from knarr.pipeline.studies.shared_teacher import TEACHERS, shared_teacher
from knarr.pipeline.studies.sweep_file import Sweep, load_sweep
from knarr.train import Recipe, RunData, load_data, train_student
from knarr.train.fitting.files import METRICS, read_rows
from knarr.train.recipe import with_settings
from knarr.train.settings import RecipeError, SettingsError
from knarr.train.systems.registry import check_networks
from knarr.train.train import train_validation_split

PARAMETERS = "parameters.json"
IDENTITY = "sweep"
"""Attribute of a study: everything that decides what its trials mean."""
TRIALS_FOR_IMPORTANCE = 8  # of fewer, what the better ones have in common is chance

Objective: TypeAlias = Callable[[Recipe, Path, Report], float]
"""A function of (recipe, folder of the trial, report) that returns the value of the metric. It is
called again for a trial that was cut short, with the same folder. A SettingsError is a result,
"refused"; any other exception ends the worker."""


def sweep(
    path: Path,
    *,
    data: Path | None = None,
    out: Path | None = None,
    storage: str | None = None,
    on_progress: OnProgress = ignore,
) -> SweepResult:
    """Work on a sweep until it is done, beside any other workers.

    Args:
        path: YAML file of the sweep.
        data: Folder of the recipe's data; None where knarr generates them.
        out: Folder of trials and results; runs/<sweep name> when left out. Started again, or at
            once in several places, the sweep goes on with the same trials.
        storage: Address of a database; None for a SQLite file in `out`.
        on_progress: Called with the progress of the sweep and of its fits.

    Raises:
        StudyError: The file is no sweep, or the storage does not answer or holds another one.
        RecipeError: The recipe is none, or its data cannot be read.
    """
    loaded = load_sweep(path)
    folder = out if out is not None else Path("runs") / loaded.settings.name
    fitting = Fitting(data, folder, loaded.settings.metric, on_progress)
    _, found = fitting.data_of(loaded.recipe)
    fitting.validation_set = validation_set_of(loaded.recipe, found)
    on_progress(Progress(f"Data: {len(found.train.labels)} clips to train and validate on"))
    result = run_sweep(
        loaded,
        fitting,
        folder,
        storage=storage,
        data_sha256=found.fingerprint,
        on_progress=on_progress,
    )
    _write(result)
    return result


def run_sweep(
    sweep: Sweep,
    objective: Objective,
    out: Path,
    *,
    storage: str | None = None,
    data_sha256: str = "",
    on_progress: OnProgress = ignore,
    poll_s: float = 1.0,
) -> SweepResult:
    """Work on a sweep with any objective until all its trials are done.

    Args:
        sweep: See `load_sweep`.
        objective: Fits one trial.
        out: Folder of the trials.
        storage: Address of a database; None for a SQLite file in `out`.
        data_sha256: Fingerprint of the data; a study belongs to one data set.
        on_progress: Called with what happens.
        poll_s: Seconds between two looks while others work on the last trials.

    Raises:
        StudyError: The storage does not answer or holds another sweep, or a trial's folder holds
            another one's.
        RecipeError: Another process works in a trial's folder.
        Exception: Whatever the objective raises but SettingsError; its trial goes on at the next
            start.
    """
    settings = sweep.settings
    fixed = sweep.grid_points() if settings.sampler == "grid" else [{}] * sweep.trials
    pruner = None
    if settings.pruner is not None:
        # While a one-cycle schedule still rises, values say little.
        pruner = MedianPruner(n_warmup_steps=sweep.recipe.student.fit.epochs // 3)

    def draw(trial: optuna.Trial, number: int) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        learns = settings.sampler == "tpe"
        # One generator for all trials would begin anew with every process.
        trial.study.sampler = TPESampler(seed=seed) if learns else RandomSampler(seed=seed)
        return {path: space.suggest(trial, path) for path, space in settings.search.items()}

    def run(number: int, parameters: dict[str, Any], report: Report) -> float:
        name = folder_name(number)
        shown = ", ".join(
            f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
            for path, value in parameters.items()
        )
        on_progress(Progress(f"Trial {number + 1} of {sweep.trials} ({name}): {shown}"))
        value = _fit(sweep.recipe, parameters, objective, out / name, report)
        if not math.isfinite(value):
            raise RefusedError(f"{settings.metric} is {value}")
        on_progress(Progress(f"  {name}: {settings.metric} {value:.4f}"))
        return value

    study = Study(
        settings.name,
        {folder_name(number): values for number, values in enumerate(fixed)},
        out,
        run,
        storage,
        draw=draw,
        maximise=sweep.maximise,
        pruner=pruner,
        on_progress=on_progress,
    )
    _claim(study.optuna, sweep, data_sha256)
    trials = study.work(poll_s)
    found = [first(trials[folder], DONE) for folder in study.points]
    done = tuple(_trial(sweep, number, trial) for number, trial in enumerate(found) if trial)
    values = [trial.value for trial in done if trial.state == "finished"]
    importance: dict[str, float] = {}
    if len(values) >= TRIALS_FOR_IMPORTANCE and len(set(values)) > 1:
        importance = optuna.importance.get_param_importances(study.optuna)
    return SweepResult(sweep, out, done, importance)


def _claim(study: optuna.Study, sweep: Sweep, data_sha256: str) -> None:
    """Claim a new study for a sweep, or make sure that it is this sweep's.

    Raises:
        StudyError: It is another one's.
    """
    # Through JSON, as the storage gives it back: tuples become lists.
    wanted = json.loads(json.dumps({**sweep.identity(), "data_sha256": data_sha256}))
    # Two workers that begin at once both write it, and the same.
    if IDENTITY not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, wanted)
    found = study.user_attrs.get(IDENTITY)
    if found != wanted:
        raise StudyError(
            f"sweep '{sweep.settings.name}': its storage holds a study of this name with another "
            f"{_difference(found, wanted)}; give the sweep another name, or another --out"
        )


def _fit(
    recipe: Recipe, parameters: dict[str, Any], objective: Objective, folder: Path, report: Report
) -> float:
    """Fit one trial in its folder, where nobody else works meanwhile.

    Raises:
        RefusedError: The recipe refuses the parameters.
    """
    try:
        changed = with_settings(recipe, parameters)
    except RecipeError as error:
        raise RefusedError(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    # Other commands keep out of a trial that is being fitted, and so does a worker that takes this
    # one for dead.
    hold(folder)
    try:
        _mark_folder(folder, parameters)
        return float(objective(changed, folder, report))
    except SettingsError as error:
        # Other RecipeErrors (a damaged checkpoint, a folder of another run) can be cured: they end
        # the worker.
        raise RefusedError(str(error)) from error
    finally:
        release(folder)


def _trial(sweep: Sweep, number: int, trial: FrozenTrial) -> SweepTrial:
    reason = str(trial.user_attrs.get(REFUSED, ""))
    state: State = "finished" if trial.state == TrialState.COMPLETE else "pruned"
    # A refused trial that reported epochs has the value of the last one, which means nothing.
    value = None if reason else trial.value
    parameters = sweep.values(trial.params)
    return SweepTrial(number, "refused" if reason else state, value, parameters, reason)


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Return the first place where two plain structures differ, and how."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key) or (key in found) != (key in wanted):
                below = f"{path}.{key}" if path else str(key)
                return _difference(found.get(key), wanted.get(key), below)
    return f"{path or 'content'}: {json.dumps(found)[:100]} there, {json.dumps(wanted)[:100]} here"


def _mark_folder(folder: Path, parameters: dict[str, Any]) -> None:
    """Write a trial's parameters into its folder, or make sure that they are those there."""
    path, text = folder / PARAMETERS, json.dumps(parameters, indent=2) + "\n"
    if not path.is_file():
        write_atomic(path, text.encode())
    elif path.read_text("utf-8") != text:
        raise StudyError(
            f"{path}: of another study than that in the storage; give another --out or remove the folder"
        )


# --- trials that are real runs


def validation_set_of(recipe: Recipe, data: RunData) -> tuple[object, ...]:
    """Return the classes, and class and group of each clip that a recipe is validated on; values of
    equal sets compare.

    Raises:
        SettingsError: No clip is left to fit on.
    """
    _, chosen = train_validation_split(recipe, data)
    return data.class_names, data.train.labels[chosen].tolist(), data.groups[chosen].tolist()


class Fitting:
    """The objective of a sweep: fit one run's teacher and student, and read the metric of the
    student that is kept.

    Args:
        data: Folder of the data; None where knarr generates them, beside `out` as for other runs.
        out: Folder of the sweep.
        metric: Column of metrics.csv.
        on_progress: Called with the progress of the fits.

    Attributes:
        validation_set: What the sweep's own recipe is validated on; a trial with another one is
            refused.
    """

    def __init__(
        self, data: Path | None, out: Path, metric: str, on_progress: OnProgress = ignore
    ) -> None:
        self.data, self.out, self.metric, self.on_progress = data, out, metric, on_progress
        self.validation_set: tuple[object, ...] | None = None

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        """Fit the trial's student and return its metric; `report` takes the metric of each epoch."""
        root, data = self.data_of(recipe)
        if self.validation_set not in (None, validation_set_of(recipe, data)):
            raise SettingsError(
                "the trial would be validated on other clips, labels or people than the sweep's recipe, and its value does not "
                "compare; set what changes the data instead of searching it"
            )
        check_networks(recipe, data)
        claim_folder(recipe, data, root, folder)
        # Trials that differ in their students alone share the teacher of the first to finish it.
        show = FitProgress(self.on_progress, "teacher")
        teacher = shared_teacher(recipe, data, folder, self.out / TEACHERS, (show,))
        callbacks = (FitProgress(self.on_progress, "student"), _Reports(report, self.metric))
        train_student(recipe, data, teacher, folder, callbacks)
        rows = [row for row in read_rows(folder / METRICS) if row["stage"] == "student"]
        return score(rows, self.metric, recipe.student.fit.select)

    def data_of(self, recipe: Recipe) -> tuple[Path, RunData]:
        """Return a recipe's data and their folder; they are generated when they are not there."""
        cache = self.out.parent / "data"
        root = self.data or generated_data(recipe, cache, self.on_progress)
        show = counter(self.on_progress, "samples read")
        return root, load_data(recipe, root, cache=cache, progress=show)


def score(rows: Sequence[Mapping[str, Any]], metric: str, select: str) -> float:
    """Return the metric of the epoch whose weights were kept.

    Args:
        rows: Rows of the student in metrics.csv.
        metric: Their column.
        select: "last", or "val": highest validation accuracy, then lowest loss, then first.
    """
    if select == "last":
        return float(rows[-1][metric])

    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        return float(row["validation_accuracy"]), -float(row["validation_loss"])

    # Of equal ones `max` takes the first, as the fit does.
    return float(max(rows, key=rank)[metric])


class _Reports(Callback):
    def __init__(self, report: Report, metric: str) -> None:
        self.report, self.metric = report, metric

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Report the epoch, before its checkpoint is written: a pruned run needs none."""
        self.report(trainer.current_epoch, float(trainer.callback_metrics[self.metric]))


def _write(result: SweepResult) -> None:
    """Write best.yaml and sweep.png, each whole or not at all."""
    write_png(result.out / SWEEP_PICTURE, draw_sweep(result))
    if result.recipe is not None:
        text = yaml.safe_dump(result.recipe.model_dump(mode="json"), sort_keys=False)
        write_atomic(result.out / BEST, text.encode())
