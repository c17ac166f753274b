"""Sweeps: trials of one recipe, chosen by Optuna, that any number of processes and machines work off together.

A sweep of N trials has N slots, 0 to N - 1; a slot is done when a trial in it finished, was pruned, or was refused by the recipe. Its folder
is `trial-<slot>`. A trial whose worker was killed is closed and another one with its parameters is queued for the same slot, so that
its run goes on in the same folder after the last epoch that was saved; what had finished there is found finished. Several workers decide
all this without talking to each other, by the order of trials in their storage alone: of two trials in a slot the earlier one
counts, and the later one is dropped before it begins.

What repeats itself: every slot has a random generator of its own, seeded by the sweep's seed and the slot. "random" and "grid" therefore give
each slot the same parameters however many workers there are and whenever they are killed. "tpe" also learns from what has ended, so it
does only with one worker, killed or not. Values repeat as far as those of the recipe do: on one machine, with one thread setting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from knarr.pipeline.many.sweep_alive import PULSE_S, STALE_S, Watch
from knarr.pipeline.many.sweep_file import Sweep
from knarr.pipeline.many.sweep_space import SweepError
from knarr.pipeline.many.sweep_storage import open_storage
from knarr.pipeline.many.sweep_worker import (
    DONE,
    REFUSED,
    Objective,
    Seeded,
    Worker,
    folder_name,
    slots_of,
)
from knarr.train.recipe import check_recipe, with_settings
from knarr.train.settings import Recipe, RecipeError

IDENTITY = "sweep"
TRIALS_FOR_IMPORTANCE = 8  # of fewer, what the better ones have in common is chance


@dataclass(frozen=True)
class SweepTrial:
    """One slot of a sweep that is done.

    Args:
        slot: 0 to trials - 1.
        state: "finished"; "pruned", with the value of its last epoch; or "refused" by the recipe, see `reason`.
        value: of the metric; None where there is none.
        parameters: dotted path -> value, in the order of the sweep's file.
    """

    slot: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    reason: str = ""

    @property
    def folder(self) -> str:
        return folder_name(self.slot)


@dataclass(frozen=True)
class Result:
    """A sweep with all its trials done.

    Args:
        sweep: what was asked for.
        trials: by slot.
        best: the first of the best finished ones; None where none finished.
        recipe: of the best, with the sweep's name and "-best".
        importance: dotted path -> share of what the better trials have in common (PED-ANOVA, arXiv 2304.10255), adding up to 1;
            empty with few trials.
    """

    sweep: Sweep
    trials: tuple[SweepTrial, ...]
    best: SweepTrial | None
    recipe: Recipe | None
    importance: dict[str, float]


def run_sweep(
    sweep: Sweep,
    objective: Objective,
    out: Path,
    *,
    storage: str | None = None,
    data_sha256: str = "",
    same_data: Callable[[object], bool] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    poll_s: float = 1.0,
    pulse_s: float = PULSE_S,
    stale_s: float = STALE_S,
) -> Result:
    """Work on a sweep until all its trials are done, beside any other workers.

    Args:
        sweep: see `load_sweep`.
        objective: fits one trial.
        out: folder of trials and journal; workers that share it go on with each other's trials.
        storage: address of a database, None for a journal in `out`; see `open_storage`.
        data_sha256: of the data; a study is of one data set.
        same_data: whether what a study keeps of its data, perhaps by an earlier version, is of these; None asks for `data_sha256`.
        progress: gets lines for a person.
        poll_s: between two looks while others work on the last trials.
        pulse_s, stale_s: see `knarr.train.sweep_alive`; the same for all workers.

    Raises:
        SweepError: the storage is damaged, does not answer, or holds another sweep; or a trial's folder holds another one's.
        Exception: whatever the objective raises, apart from a SettingsError, which is a result; its trial goes on at the next start.
    """
    out.mkdir(parents=True, exist_ok=True)
    opened, cut = open_storage(storage, out)
    if cut:
        progress(
            f"A writer of the journal was killed: its half-written line of {cut} bytes is cut off"
        )
    try:
        study = optuna.create_study(
            storage=opened,
            study_name=sweep.settings.name,
            direction="maximize" if sweep.maximise else "minimize",
            sampler=Seeded(sweep),
            pruner=_pruner(sweep),
            load_if_exists=True,
        )
        _assert_same(study, sweep, data_sha256, same_data)
        worker = Worker(study, sweep, objective, out, progress, pulse_s, Watch(stale_s))
        said = ""
        while (waiting_for := worker.step()) is not None:
            if waiting_for and waiting_for != said:
                progress(waiting_for)
            if waiting_for:
                time.sleep(poll_s)
            said = waiting_for
        return _result(study, sweep)
    except StorageInternalError as error:
        raise SweepError(
            f"sweep '{sweep.settings.name}': its storage failed ({' '.join(str(error).split())[:300]}); run the same command again"
        ) from error


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.settings.pruner is None:
        return optuna.pruners.NopPruner()
    # While a one-cycle schedule still rises, values say little.
    return optuna.pruners.MedianPruner(n_warmup_steps=sweep.recipe.student.fit.epochs // 3)


def _assert_same(
    study: optuna.Study, sweep: Sweep, data_sha256: str, same_data: Callable[[object], bool] | None
) -> None:
    """Claim a new study for this sweep, or make sure that it is this sweep's."""
    wanted = json.loads(json.dumps({**sweep.identity(), "data_sha256": data_sha256}))
    if IDENTITY not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, wanted)
    found = study.user_attrs.get(IDENTITY)
    if isinstance(found, dict):
        # Of an earlier version it may lack settings that have been added since; their defaults stand for it.
        with suppress(RecipeError):
            found["recipe"] = check_recipe(found.get("recipe"), "of the study").model_dump(
                mode="json"
            )
        if same_data is not None and same_data(found.get("data_sha256")):
            found["data_sha256"] = data_sha256
    if found != wanted:
        where = _difference(found, wanted, "")
        raise SweepError(
            f"sweep '{sweep.settings.name}': its storage holds a study of this name with another {where}; "
            "give the sweep another name, or another --out"
        )


def _difference(found: Any, wanted: Any, path: str) -> str:
    """The first place where two plain structures differ, and how."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key, None) != wanted.get(key, None) or (key in found) != (key in wanted):
                return _difference(
                    found.get(key), wanted.get(key), f"{path}.{key}" if path else str(key)
                )
    return f"{path or 'content'}: {json.dumps(found)[:100]} there, {json.dumps(wanted)[:100]} here"


def _result(study: optuna.Study, sweep: Sweep) -> Result:
    trials = study.get_trials(deepcopy=False)
    done: dict[int, SweepTrial] = {}
    for each, slot in zip(trials, slots_of(trials), strict=True):
        if each.state in DONE and slot < sweep.trials:
            state = "finished" if each.state == TrialState.COMPLETE else "pruned"
            reason = str(each.user_attrs.get(REFUSED, ""))
            settings = sweep.values(each.params)
            value = None if reason else each.value
            done.setdefault(
                slot, SweepTrial(slot, "refused" if reason else state, value, settings, reason)
            )
    found = tuple(done[slot] for slot in sorted(done))
    finished = [trial for trial in found if trial.state == "finished" and trial.value is not None]
    sign = -1.0 if sweep.maximise else 1.0
    best = min(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.slot), default=None)
    recipe = None
    if best is not None:
        recipe = with_settings(
            sweep.recipe, {**best.parameters, "name": f"{sweep.settings.name}-best"}
        )
    enough = len(finished) >= TRIALS_FOR_IMPORTANCE and len({trial.value for trial in finished}) > 1
    importance = optuna.importance.get_param_importances(study) if enough else {}
    return Result(
        sweep, found, best, recipe, {path: float(share) for path, share in importance.items()}
    )
