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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning
import matplotlib as mpl
import numpy as np
import optuna
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from knarr.files import write_atomic
from knarr.pipeline.files import write_picture
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.pictures import SMALL
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore
from knarr.pipeline.run_folder import announce_code, claim_folder, default_data, hold, release
from knarr.pipeline.studies.engine import (
    DONE,
    REFUSED,
    RefusedError,
    Report,
    Study,
    StudyError,
    first,
)
from knarr.pipeline.studies.shared_teacher import TEACHERS, shared_teacher
from knarr.pipeline.studies.sweep_file import Sweep, load_sweep
from knarr.train import Recipe, RunData, load_data, train_student
from knarr.train.fitting.files import ACCURACY, ERROR, METRICS, read_rows
from knarr.train.recipe import with_settings
from knarr.train.settings import RecipeError, SettingsError
from knarr.train.systems.registry import check_networks
from knarr.train.train import train_validation_split

PARAMETERS, BEST, PICTURE = "parameters.json", "best.yaml", "sweep.png"
IDENTITY = "sweep"
"""Attribute of a study: everything that decides what its trials mean."""
TRIALS_FOR_IMPORTANCE = 8  # of fewer, what the better ones have in common is chance
FINISHED_COLOUR, BEST_COLOUR, PRUNED_COLOUR = "tab:blue", "tab:red", "tab:gray"

Objective: TypeAlias = Callable[[Recipe, Path, Report], float]
"""A function of (recipe, folder of the trial, report) that returns the value of the metric. It is
called again for a trial that was cut short, with the same folder. A SettingsError is a result,
"refused"; any other exception ends the worker."""

State: TypeAlias = Literal["finished", "pruned", "refused"]


@dataclass(frozen=True)
class SweepTrial:
    """A trial of a sweep that is done.

    Attributes:
        number: Its number, from 0.
        state: "finished"; "pruned", with the value of its last epoch; or "refused" by the recipe,
            see `reason`.
        value: Value of the metric; None where there is none.
        parameters: Dotted path -> value, in the order of the sweep's file.
        reason: Why the recipe refused it.
    """

    number: int
    state: State
    value: float | None
    parameters: dict[str, Any]
    reason: str = ""

    @property
    def folder(self) -> str:
        """Its folder below the sweep's."""
        return folder_name(self.number)


@dataclass(frozen=True)
class SweepResult:
    """A sweep with all its trials done.

    Attributes:
        sweep: What was asked for.
        out: Folder of the trials.
        trials: All trials, by number.
        importance: Dotted path -> share of what the better trials have in common (PED-ANOVA, arXiv
            2304.10255), adding up to 1; empty with few trials.
    """

    sweep: Sweep
    out: Path
    trials: tuple[SweepTrial, ...]
    importance: dict[str, float]

    def ranked(self) -> list[SweepTrial]:
        """Return finished trials from the best on, then pruned ones, then refused ones."""
        order = ("finished", "pruned", "refused")
        # Sorting puts low values first, and a metric such as accuracy is good where it is high.
        sign = -1.0 if self.sweep.maximise else 1.0

        def rank(trial: SweepTrial) -> tuple[int, float, int]:
            return order.index(trial.state), sign * (trial.value or 0.0), trial.number

        return sorted(self.trials, key=rank)

    @property
    def best(self) -> SweepTrial | None:
        """The first of the best finished trials; None where none finished."""
        trial = self.ranked()[0]  # a sweep has at least one trial
        return trial if trial.state == "finished" else None

    @property
    def recipe(self) -> Recipe | None:
        """Recipe of the best trial, with the sweep's name and "-best"."""
        if self.best is None:
            return None
        name = f"{self.sweep.settings.name}-best"
        return with_settings(self.sweep.recipe, {**self.best.parameters, "name": name})

    @property
    def files(self) -> dict[str, str]:
        """Paths of what `sweep` writes beside the trials."""
        files = {"picture": str(self.out / PICTURE)}
        return files if self.best is None else files | {"best_recipe": str(self.out / BEST)}


def folder_name(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"trial-{number:05d}"


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
    announce_code(loaded.recipe, on_progress)
    _, found = fitting.data_of(loaded.recipe)
    wrong = ACCURACY if found.targets else ERROR
    if loaded.settings.metric == wrong:
        right, labels = (ERROR, "float targets") if found.targets else (ACCURACY, "classes")
        raise StudyError(f"sweep '{path}': metric: {wrong}, but labels are {labels}; take {right}")
    for note in found.notes:
        on_progress(Progress(f"  {note}"))
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
    write_picture(folder / PICTURE, draw_sweep(result))
    if result.recipe is not None:
        text = yaml.safe_dump(result.recipe.model_dump(mode="json"), sort_keys=False)
        write_atomic(folder / BEST, text.encode())
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
        fit = sweep.recipe.fit_of("student")
        assert fit is not None, "the sweep's file was checked"
        pruner = MedianPruner(n_warmup_steps=fit.epochs // 3)

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
    done = []
    for number, folder in enumerate(study.points):
        trial = first(trials[folder], DONE)
        if trial is not None:
            done.append(_trial(sweep, number, trial))
    values = [trial.value for trial in done if trial.state == "finished"]
    importance: dict[str, float] = {}
    if len(values) >= TRIALS_FOR_IMPORTANCE and len(set(values)) > 1:
        importance = optuna.importance.get_param_importances(study.optuna)
    return SweepResult(sweep, out, tuple(done), importance)


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
    parameters, reason = sweep.values(trial.params), str(trial.user_attrs.get(REFUSED, ""))
    if reason:
        # It may have reported epochs, but the value of the last one means nothing.
        return SweepTrial(number, "refused", None, parameters, reason)
    state: State = "finished" if trial.state == TrialState.COMPLETE else "pruned"
    return SweepTrial(number, state, trial.value, parameters)


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
    names = data.targets or data.class_names
    return names, data.train.labels[chosen].tolist(), data.groups[chosen].tolist()


@dataclass
class Fitting:
    """The objective of a sweep: fit one run's teacher and student, and read the metric of the
    student that is kept.

    Attributes:
        data: Folder of the data; None where knarr generates them, beside `out` as for other runs.
        out: Folder of the sweep.
        metric: Column of metrics.csv.
        on_progress: Called with the progress of the fits.
        validation_set: What the sweep's own recipe is validated on; a trial with another one is
            refused.
    """

    data: Path | None
    out: Path
    metric: str
    on_progress: OnProgress = ignore
    validation_set: tuple[object, ...] | None = None

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        """Fit the trial's student and return its metric; `report` takes that of each epoch."""
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

        def end_epoch(trainer: lightning.Trainer, student: Any) -> None:
            # Before the checkpoint of the epoch is written: a pruned run needs none.
            report(trainer.current_epoch, float(trainer.callback_metrics[self.metric]))

        show = FitProgress(self.on_progress, "student")
        callbacks = (show, LambdaCallback(on_train_epoch_end=end_epoch))
        train_student(recipe, data, teacher, folder, callbacks)
        rows = [row for row in read_rows(folder / METRICS) if row["stage"] == "student"]
        fit = recipe.fit_of("student")
        return score(rows, self.metric, "last" if fit is None else fit.select)

    def data_of(self, recipe: Recipe) -> tuple[Path, RunData]:
        """Return a recipe's data and their folder; they are generated when they are not there."""
        cache = self.out.parent / "data"
        root = self.data or default_data(recipe, cache, self.on_progress)
        show = counter(self.on_progress, "samples read")
        return root, load_data(recipe, root, cache=cache, progress=show)


def score(rows: Sequence[Mapping[str, Any]], metric: str, select: str) -> float:
    """Return the metric of the epoch whose weights were kept.

    Args:
        rows: Rows of the student in metrics.csv.
        metric: Their column.
        select: "last", or "val": highest validation accuracy or lowest error, then lowest loss,
            then first.
    """
    if select == "last":
        return float(rows[-1][metric])

    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        quality = -float(row[ERROR]) if row.get(ERROR) else float(row[ACCURACY])
        return quality, -float(row["validation_loss"])

    # Of equal ones `max` takes the first, as the fit does.
    return float(max(rows, key=rank)[metric])


# --- picture


@mpl.rc_context(SMALL)
def draw_sweep(result: SweepResult) -> Figure:
    """Draw values by trial, and importance beside them where there are trials enough for it."""
    settings = result.sweep.settings
    height = max(3.6, 0.3 * len(result.importance) + 1.2)  # inches; a bar needs 0.3
    figure = Figure(figsize=(9, height), layout="constrained")
    columns = 2 if result.importance else 1
    _history(figure.add_subplot(1, columns, 1), result)
    if result.importance:
        _importance(figure.add_subplot(1, columns, 2), result.importance)
    figure.suptitle(f"{settings.name}: {len(result.trials)} trials, {settings.sampler}")
    return figure


def _history(axes: Axes, result: SweepResult) -> None:
    """Draw every trial with a value as a point, and the best one up to each trial as a line."""
    looks = (("finished", "o", FINISHED_COLOUR), ("pruned", "x", PRUNED_COLOUR))
    for state, marker, colour in looks:
        # A trial that was pruned before its first epoch ended has no value.
        shown = [t for t in result.trials if t.state == state and t.value is not None]
        if not shown:
            continue
        # People count trials from 1, as the progress of a sweep does.
        places = [trial.number + 1 for trial in shown]
        values = np.array([trial.value for trial in shown], dtype=float)
        axes.scatter(places, values, s=18, marker=marker, c=colour, label=state)
        if state == "finished":
            best = (np.maximum if result.sweep.maximise else np.minimum).accumulate(values)
            axes.step(places, best, where="post", color=BEST_COLOUR, label="best so far")
    # A legend without entries would be an empty box.
    if result.best is not None:
        axes.legend()
    refused = sum(trial.state == "refused" for trial in result.trials)
    note = f" ({refused} refused by the recipe, not shown)" if refused else ""
    axes.set(xlabel=f"trial{note}", ylabel=result.sweep.settings.metric.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _importance(axes: Axes, importance: dict[str, float]) -> None:
    places = range(len(importance))
    bars = axes.barh(places, list(importance.values()), color=FINISHED_COLOUR)
    axes.bar_label(bars, [f"{share:.0%}" for share in importance.values()], padding=2, fontsize=8)
    axes.set_yticks(places, list(importance), fontsize=8)
    axes.invert_yaxis()  # the most important one on top
    # Shares end at 1; the text of the longest bar needs room.
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1.15))
