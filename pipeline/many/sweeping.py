"""`knarr sweep`: trials that are real runs, with their progress, and the best of them as a table, a recipe and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.pytorch.callbacks import Callback
from rich.table import Table

from knarr.cli.output import make_console, show_progress
from knarr.files import write_atomic
from knarr.pipeline.files import json_text
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.many.sweep import Result, SweepTrial, run_sweep
from knarr.pipeline.many.sweep_file import load_sweep
from knarr.pipeline.many.sweep_worker import Report
from knarr.pipeline.many.validation import ValidationSet, validation_set_of
from knarr.pipeline.progress import Progress, counter
from knarr.pipeline.run_folder import claim_folder, generated_data
from knarr.pipeline.shared_teacher import TEACHERS, shared_teacher
from knarr.train import Recipe, RunData, load_data, train_student
from knarr.train.fitting.files import METRICS, read_rows
from knarr.train.settings import SettingsError
from knarr.train.systems.registry import check_networks

BEST, PICTURE = "best.yaml", "sweep.png"
SHOWN = 10


def sweep(
    path: Path, data: Path | None, out: Path | None, storage: str | None, *, json: bool
) -> bool:
    """Work on a sweep until it is done, then show its best trials; returns whether any finished.

    Args:
        path: YAML file of the sweep.
        data: folder of the recipe's data; None where knarr generates them.
        out: folder of trials and results; runs/<sweep name> when left out. Started again, or at once in several places, the command
            goes on with the same trials.
        storage: address of a database; None for a journal in `out`.
        json: print one JSON document.
    """
    loaded = load_sweep(path)
    folder = out if out is not None else Path("runs") / loaded.settings.name
    fitting = Fitting(data, folder, loaded.settings.metric)
    _, found = fitting.data_of(loaded.recipe)
    fitting.judged = validation_set_of(loaded.recipe, found)
    show_progress(Progress(f"Data: {len(found.train.labels)} clips to train and validate on"))
    result = run_sweep(
        loaded,
        fitting,
        folder,
        storage=storage,
        data_sha256=found.fingerprint,
        same_data=found.is_of,
        progress=lambda text: show_progress(Progress(text)),
    )
    files = _write(result, folder)
    if json:
        print(json_text({"out": str(folder), **_facts(result), "files": files}))
    else:
        _show(result, files)
    return result.best is not None


class Fitting:
    """The objective of a sweep: one run's teacher and student, and the metric of the student that is kept.

    Args:
        data: folder of the data; None where knarr generates them, beside `out` as for other runs.
        out: folder of the sweep.
        metric: column of metrics.csv.
    """

    def __init__(self, data: Path | None, out: Path, metric: str) -> None:
        self.data, self.out, self.metric = data, out, metric
        self.judged: ValidationSet | None = None
        """What the sweep's own recipe is validated on; a trial that is validated on anything else is refused."""

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        root, data = self.data_of(recipe)
        if self.judged is not None and validation_set_of(recipe, data) != self.judged:
            raise SettingsError(
                "the trial would be validated on other clips, labels or people than the sweep's recipe, and its value does not "
                "compare; set what changes the data instead of searching it"
            )
        return fit_and_score(
            recipe, data, root, folder, self.metric, report, teachers=self.out / TEACHERS
        )

    def data_of(self, recipe: Recipe) -> tuple[Path, RunData]:
        """A recipe's data and their folder; generated when they are not there."""
        cache = self.out.parent / "data"
        root = generated_data(recipe, cache, show_progress) if self.data is None else self.data
        return root, load_data(
            recipe, root, cache=cache, progress=counter(show_progress, "samples read")
        )


def fit_and_score(
    recipe: Recipe,
    data: RunData,
    root: Path,
    folder: Path,
    metric: str,
    report: Report,
    *,
    teachers: Path,
) -> float:
    """Train teacher and student of one run, or go on with them, and read the student's metric.

    Trials that differ in their students alone share one teacher, that of the first to finish it: same settings, seed, data and
    threads give the same teacher.

    Args:
        recipe, data, root: of the run; `root` is the data's folder.
        folder: of the run.
        metric: column of metrics.csv.
        report: called with epoch and metric after every epoch of the student.
        teachers: folder of finished teachers.
    """
    check_networks(recipe, data)
    claim_folder(recipe, data, root, folder)
    teacher = shared_teacher(
        recipe, data, folder, teachers, (FitProgress(show_progress, "teacher"),)
    )
    callbacks = (FitProgress(show_progress, "student"), _Reports(report, metric))
    train_student(recipe, data, teacher, folder, callbacks)
    rows = [row for row in read_rows(folder / METRICS) if row["stage"] == "student"]
    return score(rows, metric, recipe.student.fit.select)


def score(rows: Sequence[Mapping[str, Any]], metric: str, select: str) -> float:
    """The metric of the epoch whose weights were kept.

    Args:
        rows: of the student in metrics.csv.
        metric: column.
        select: "last", or "val": highest validation accuracy, then lowest loss, then first.
    """
    if select == "last":
        return float(rows[-1][metric])
    best = max(
        rows, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"]))
    )
    return float(best[metric])


class _Reports(Callback):
    def __init__(self, report: Callable[[int, float], None], metric: str) -> None:
        self.report, self.metric = report, metric

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.report(trainer.current_epoch, float(trainer.callback_metrics[self.metric]))


def _write(result: Result, folder: Path) -> dict[str, str]:
    """best.yaml and sweep.png, each whole or not at all; returns their paths."""
    from knarr.pipeline.pictures import sweep as sweep_picture

    write_atomic(folder / PICTURE, sweep_picture.png(result))
    files = {"picture": str(folder / PICTURE)}
    if result.recipe is not None:
        text = yaml.safe_dump(result.recipe.model_dump(mode="json"), sort_keys=False)
        write_atomic(folder / BEST, text.encode())
        files["best_recipe"] = str(folder / BEST)
    return files


def ranked(result: Result) -> list[SweepTrial]:
    """Finished trials from the best on, then pruned ones, then refused ones."""
    order = ("finished", "pruned", "refused")
    sign = -1.0 if result.sweep.maximise else 1.0
    return sorted(
        result.trials,
        key=lambda trial: (order.index(trial.state), sign * (trial.value or 0.0), trial.slot),
    )


def _facts(result: Result) -> dict[str, Any]:
    states = [trial.state for trial in result.trials]
    return {
        "sweep": result.sweep.settings.name,
        "metric": result.sweep.settings.metric,
        "trials": {state: states.count(state) for state in ("finished", "pruned", "refused")},
        "best": None if result.best is None else _plain(result.best),
        "ranked": [_plain(trial) for trial in ranked(result)[:SHOWN]],
        "importance": result.importance,
    }


def _plain(trial: SweepTrial) -> dict[str, Any]:
    facts = {
        "trial": trial.folder,
        "state": trial.state,
        "value": trial.value,
        "parameters": trial.parameters,
    }
    return {**facts, "reason": trial.reason} if trial.reason else facts


def _show(result: Result, files: dict[str, str]) -> None:
    settings, console = result.sweep.settings, make_console()
    shown = ranked(result)[:SHOWN]
    what = (
        f"best {len(shown)} of {len(result.trials)} trials"
        if len(shown) < len(result.trials)
        else "all trials"
    )
    table = Table(
        title=f"{settings.name}: {what}, {settings.metric.replace('_', ' ')} of the student"
    )
    table.add_column("trial")
    table.add_column("value", justify="right")
    table.add_column("parameters", overflow="fold")
    table.add_column("state", overflow="fold")
    for trial in shown:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        parameters = "\n".join(f"{path} {_text(found)}" for path, found in trial.parameters.items())
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        table.add_row(trial.folder, value, parameters, state)
    console.print(table)
    if result.best is None:
        console.print("No trial finished: see the states above, and widen the search.")
    else:
        found = ", ".join(
            f"{path} {_text(value)}" for path, value in result.best.parameters.items()
        )
        console.print(f"Best: {result.best.folder} with {found}")
        console.print(
            "Validation data chose it, so its value flatters it; only test data say how good it is."
        )
    for name, path in files.items():
        console.print(f"{name.replace('_', ' ')}: {path}", soft_wrap=True)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
