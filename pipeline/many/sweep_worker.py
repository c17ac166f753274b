"""One process at work on a study: which trial it takes next, and what becomes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from knarr.files import write_atomic
from knarr.pipeline.many.sweep_alive import OWNER, LostError, TakenError, Watch, working_on
from knarr.pipeline.many.sweep_file import Sweep
from knarr.pipeline.many.sweep_space import SweepError
from knarr.train.recipe import with_settings
from knarr.train.settings import Recipe, RecipeError, SettingsError

SLOT, REFUSED = "slot", "refused"
PARAMETERS = "parameters.json"
DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)

Report = Callable[[int, float], None]
"""(epoch, value of the metric) after every epoch; raises where the trial is to end, which an objective lets pass."""
Objective = Callable[[Recipe, Path, Report], float]
"""(recipe, folder of the trial, report) -> value of the metric. Called again for a trial that was cut short, with the same folder.
A SettingsError is a result, "refused"; any other exception ends the worker, and the trial goes on at the next start."""


def folder_name(slot: int) -> str:
    """Of a trial's folder."""
    return f"trial-{slot:05d}"


def slots_of(trials: list[FrozenTrial]) -> list[int]:
    """Of every trial of a study: written on it where it was queued for one, else its place among those without."""
    slots, place = [], 0
    for trial in trials:
        written = trial.user_attrs.get(SLOT)
        if isinstance(written, int) and written >= 0:
            slots.append(written)
        else:
            slots.append(place)
            place += 1
    return slots


class Seeded(BaseSampler):
    """A sampler with a random generator per slot; one of its own would begin anew with every process."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.inner: BaseSampler = RandomSampler()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        slot = slots_of(study.get_trials(deepcopy=False))[trial.number]
        seed = int(np.random.SeedSequence([self.sweep.settings.seed, slot]).generate_state(1)[0])
        learns = self.sweep.settings.sampler == "tpe"
        self.inner = TPESampler(seed=seed) if learns else RandomSampler(seed=seed)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.inner.after_trial(study, trial, state, values)


class Worker:
    """One process at work on a study. `FAIL` is the state of trials that were cut short or dropped; what was refused is `PRUNED`."""

    def __init__(
        self,
        study: optuna.Study,
        sweep: Sweep,
        objective: Objective,
        out: Path,
        progress: Callable[[str], None],
        pulse_s: float,
        watch: Watch,
    ) -> None:
        self.study, self.sweep, self.objective, self.out = study, sweep, objective, out
        self.progress, self.pulse_s, self.watch = progress, pulse_s, watch
        self.grid = sweep.settings.sampler == "grid"
        self.space = sweep.distributions()

    def step(self) -> str | None:
        """One trial, or a look around. None when all is done; a text says what is waited for, an empty one that there is more to do."""
        trials = self.study.get_trials(deepcopy=False)
        slots = self._slots(trials)
        wanted = range(self.sweep.trials)
        if all(any(trial.state in DONE for trial in slots.get(slot, ())) for slot in wanted):
            return None
        left = [
            trial
            for trial, slot in zip(trials, slots_of(trials), strict=True)
            if trial.state == TrialState.RUNNING
            and self.watch.left_behind(trial, self._folder(slot))
        ]
        if left:
            for trial in left:
                self._drop(trial.number)
            return ""
        for slot in wanted:
            there = slots.get(slot, ())
            if there and all(trial.state == TrialState.FAIL for trial in there):
                self._queue_again(slot, there)
                return ""
        if not any(trial.state == TrialState.WAITING for trial in trials):
            missing = next((slot for slot in wanted if slot not in slots), None)
            if missing is None:
                running = sum(trial.state == TrialState.RUNNING for trial in trials)
                return f"Waiting for other workers: {running} of {self.sweep.trials} trials are running"
            if self.grid:
                self._queue(missing, self.sweep.grid_point(missing), {})
        self._run_next()
        return ""

    def _slots(self, trials: list[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
        slots: dict[int, list[FrozenTrial]] = {}
        for trial, slot in zip(trials, slots_of(trials), strict=True):
            # All of a grid's are queued; what two workers made when one took what the other had queued is dropped.
            if not self.grid or SLOT in trial.user_attrs:
                slots.setdefault(slot, []).append(trial)
        return slots

    def _folder(self, slot: int) -> Path:
        return self.out / folder_name(slot)

    def _drop(self, number: int) -> None:
        try:
            self.study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # another worker was quicker

    def _queue_again(self, slot: int, there: list[FrozenTrial]) -> None:
        last = max(there, key=lambda trial: (len(trial.params), trial.number))
        if any(OWNER in trial.user_attrs for trial in there):
            self.progress(f"{folder_name(slot)} was cut short; it goes on")
        # Without all of them nothing had begun, and the others would be drawn as if they were the first.
        known = last.params if last.params.keys() == self.space.keys() else {}
        self._queue(slot, known, last.intermediate_values)

    def _queue(self, slot: int, parameters: dict[str, Any], values: dict[int, float]) -> None:
        self.study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=parameters,
                distributions={path: self.space[path] for path in parameters},
                user_attrs={SLOT: slot},
                intermediate_values=values,
            )
        )

    def _run_next(self) -> None:
        """Take the next trial of the queue, or a new one, unless it turns out that nobody needs it."""
        trial = self.study.ask(self.space)
        trials = self.study.get_trials(deepcopy=False)
        mine = trials[trial.number]
        slot = slots_of(trials)[mine.number]
        before = [
            other
            for other in self._slots(trials).get(slot, ())
            if other.number < mine.number and other.state != TrialState.FAIL
        ]
        surplus = slot >= self.sweep.trials or (self.grid and SLOT not in mine.user_attrs)
        if before or surplus:
            self._drop(mine.number)
            return
        settings = self.sweep.values(trial.params)
        shown = ", ".join(f"{path} {_short(value)}" for path, value in settings.items())
        self.progress(f"Trial {slot + 1} of {self.sweep.trials} ({folder_name(slot)}): {shown}")
        try:
            with working_on(trial, self._folder(slot), self.pulse_s) as lost:
                self._fit(trial, slot, settings, lost.is_set)
        except TakenError as error:
            # Of a queue in SQLite two workers may draw the same trial; then the other one has signed it.
            if OWNER not in self.study.get_trials(deepcopy=False)[mine.number].user_attrs:
                self._drop(mine.number)
                raise SweepError(
                    f"{error}: another knarr process works in it; wait for it"
                ) from error
        except (LostError, UpdateFinishedTrialError):
            self.progress(f"{folder_name(slot)}: another worker has taken it over")
        except BaseException:
            self._drop(mine.number)
            raise

    def _fit(
        self, trial: optuna.Trial, slot: int, settings: dict[str, Any], lost: Callable[[], bool]
    ) -> None:
        name = self.sweep.settings.metric
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def report(epoch: int, value: float) -> None:
            if lost():
                raise LostError
            if epoch not in reported:
                trial.report(value, epoch)
                reported.add(epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            recipe = with_settings(self.sweep.recipe, settings)
        except RecipeError as error:
            self._refuse(trial, slot, str(error))
            return
        _mark_folder(self._folder(slot), settings)
        try:
            value = float(self.objective(recipe, self._folder(slot), report))
        except SettingsError as error:
            # Other RecipeErrors (a damaged checkpoint, a folder of another run) can be cured: they end the worker, and the trial goes on.
            self._refuse(trial, slot, str(error))
        except optuna.TrialPruned:
            self._tell(trial, None)
            self.progress(
                f"  {folder_name(slot)} pruned after epoch {max(reported, default=-1) + 1}"
            )
        else:
            if not math.isfinite(value):
                self._refuse(trial, slot, f"{name} is {value}")
                return
            self._tell(trial, value)
            self.progress(f"  {folder_name(slot)}: {name} {value:.4f}")

    def _tell(self, trial: optuna.Trial, value: float | None) -> None:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        if self.study.tell(trial, value, state, skip_if_finished=True).state not in DONE:
            raise LostError

    def _refuse(self, trial: optuna.Trial, slot: int, reason: str) -> None:
        # Not FAIL: samplers learn from pruned trials to stay away, and know nothing of failed ones.
        trial.set_user_attr(REFUSED, reason[:1000])
        self._tell(trial, None)
        self.progress(f"  {folder_name(slot)} refused: {reason}")


def _mark_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Write a trial's parameters into its folder, or make sure that they are those there."""
    path, text = folder / PARAMETERS, json.dumps(settings, indent=2) + "\n"
    if not path.is_file():
        write_atomic(path, text.encode())
    elif path.read_text("utf-8") != text:
        raise SweepError(
            f"{path}: of another study than that in the storage; give another --out or remove the folder"
        )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
