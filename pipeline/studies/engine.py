"""Work on the points of a study in any number of processes, which share them through a database.

A point is one run: a folder below the study's, and parameters that are fixed or drawn when its turn
comes. Sweeps, tables and Pareto searches are lists of points. Optuna keeps a trial for each attempt
at a point, in a SQLite file for the processes of one machine or on a database server for several
machines, and every worker decides what to do next by these trials alone:

- A worker takes the first point that nobody has finished and nobody works on.
- A worker shows with a heartbeat that it lives. A trial whose heartbeat stops (its worker was
  killed, its machine switched off) is failed by whoever looks next, and queued again for the same
  folder and with the same parameters, so that its run goes on there after the last epoch that was
  saved.
- Of two trials for one folder the earlier one counts, and the later one is dropped before it
  begins.

Nothing is unpickled: a database of somebody else's can name wrong parameters, which the recipe
checks, but runs nothing.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState, create_trial

from knarr.errors import KnarrError
from knarr.pipeline.progress import OnProgress, Progress, ignore

STUDY_FILE = "study.db"
DATABASES: Final = ("sqlite", "postgresql", "mysql")
BUSY_S = 60
TABLE_TRIES = 5
FOLDER, BEGUN, REFUSED = "folder", "begun", "refused"
"""Attributes of a trial: its point, whether its parameters are known, why they make no run."""
DONE: Final = (TrialState.COMPLETE, TrialState.PRUNED)

Report: TypeAlias = Callable[[int, float], None]
"""A function to call with (epoch, value) after every epoch. What it raises ends the run, which has
to let it pass."""
Trials: TypeAlias = Mapping[str, Sequence[FrozenTrial]]
"""Trials by their point's folder, each list in the order in which they were made."""


class StudyError(KnarrError, ValueError):
    """A study's file or storage is unreadable or holds something else, or two of its settings
    contradict each other.
    """


class RefusedError(Exception):
    """The parameters of a point make no run, which is a result; any other exception ends the
    worker.
    """


Run: TypeAlias = Callable[[int, dict[str, Any], Report], float]
"""A function of (number of a point, its parameters, report) that makes its run, or goes on with one
that was cut short, and returns its value. RefusedError says that the parameters make no run; any
other exception ends the worker."""
Draw: TypeAlias = Callable[[optuna.Trial, int], dict[str, Any]]
"""A function of (trial, number of its point) that returns its parameters, asking the trial for
those that it keeps."""


@dataclass(eq=False)
class Study:
    """A list of points and its storage.

    Attributes:
        name: Name of the study in its storage.
        points: Folder of each point below the study's -> its fixed parameters as Optuna keeps them,
            in the order in which they are begun.
        folder: Folder of the study, made when it is not there.
        run: Makes the run of a point.
        storage: Address of a database, see `open_storage`; None for a SQLite file in `folder`.
        draw: Gives the parameters of a point.
        is_done: Tells of a point's folder whether its run is finished; None asks the storage.
        maximise: Whether high values are good ones.
        pruner: Decides after each report whether a run is worth going on with; None for always.
        on_progress: Called with what happens.

    Raises:
        StudyError: The storage does not answer, or is none.
    """

    heartbeat_s = 10
    """Seconds between two heartbeats of a worker."""
    grace_s = 90
    """Seconds without a heartbeat after which a trial counts as left behind. A worker that stands
    still for longer, such as a suspended laptop, loses its trial; it is told so when it goes on."""

    name: str
    points: Mapping[str, Mapping[str, Any]]
    folder: Path
    run: Run
    storage: str | None = None
    draw: Draw = lambda trial, number: {}
    is_done: Callable[[str], bool] | None = None
    maximise: bool = True
    pruner: optuna.pruners.BasePruner | None = None
    on_progress: OnProgress = ignore

    def __post_init__(self) -> None:
        self._watched: set[int] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        url = self.storage or f"sqlite:///{self.folder / STUDY_FILE}"
        self._storage = open_storage(url, self.heartbeat_s, self.grace_s, self._queue_again)
        with self._storage_errors():
            self.optuna = optuna.create_study(
                storage=self._storage,
                study_name=self.name,
                direction="maximize" if self.maximise else "minimize",
                sampler=RandomSampler(),  # `draw` sets another one for each point
                pruner=self.pruner or optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

    def say(self, text: str) -> None:
        """Report a sentence as progress."""
        self.on_progress(Progress(text))

    def work(self, poll_s: float = 1.0) -> Trials:
        """Work until all points are done, beside any other workers, and return all trials.

        Args:
            poll_s: Seconds between two looks while others work on the last points.

        Raises:
            StudyError: The storage fails.
            Exception: Whatever `run` raises but RefusedError; its point goes on at the next start.
        """
        said = ""
        with self._storage_errors():
            while (waits_for := self._step()) is not None:
                if waits_for and waits_for != said:
                    self.say(waits_for)
                if waits_for:
                    time.sleep(poll_s)
                said = waits_for
            return self._trials()

    def _step(self) -> str | None:
        """Make one run, or look around.

        Returns:
            None when all is done, a text that says what is waited for, or an empty one when there
            is more to do.
        """
        with _quiet():
            optuna.storages.fail_stale_trials(self.optuna)
        trials = self._trials()
        left = [folder for folder in self.points if not self._done(folder, trials)]
        if not left:
            return None
        states = Counter(trial.state for own in trials.values() for trial in own)
        # What is queued goes first: mostly runs that were cut short, whose checkpoints are there.
        if not states[TrialState.WAITING]:
            free = (name for name in left if first(trials[name], [TrialState.RUNNING]) is None)
            folder = next(free, None)
            if folder is None:
                self._watch()
                running = states[TrialState.RUNNING]
                return (
                    f"Waiting for other workers: {running} of {len(self.points)} trials are running"
                )
            self._queue(folder, trials[folder])
        with _quiet():
            trial = self.optuna.ask()
        with get_heartbeat_thread(trial._trial_id, self._storage):
            self._attempt(trial)
        return ""

    def _done(self, folder: str, trials: Trials) -> bool:
        if self.is_done is not None:
            return self.is_done(folder)
        return first(trials[folder], DONE) is not None

    def _trials(self) -> Trials:
        found: dict[str, list[FrozenTrial]] = defaultdict(list)
        for trial in self.optuna.get_trials(deepcopy=False):
            found[trial.user_attrs.get(FOLDER, "")].append(trial)
        return found

    def _watch(self) -> None:
        """Give each running trial that is seen for the first time a heartbeat.

        A worker that is killed between taking a trial and its own first heartbeat leaves one that
        never becomes stale.
        """
        for trial in self.optuna.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.number not in self._watched:
                self._watched.add(trial.number)
                self._storage.record_heartbeat(trial._trial_id)

    def _queue(self, folder: str, failed: Sequence[FrozenTrial]) -> None:
        """Queue a trial for a point that is free, with the parameters of an earlier one that had
        begun.
        """
        begun = [trial for trial in failed if trial.user_attrs.get(BEGUN)]
        if begun:
            self._queue_again(self.optuna, begun[-1])
        else:
            self.optuna.enqueue_trial(dict(self.points[folder]), user_attrs={FOLDER: folder})

    def _queue_again(self, study: optuna.Study, failed: FrozenTrial) -> None:
        """Queue another trial for the folder and with the parameters of one that was cut short."""
        # Before all its parameters are known nothing is in its folder; drawn from anew, the
        # generator repeats them all.
        if not failed.user_attrs.get(BEGUN):
            return
        self.say(f"{failed.user_attrs[FOLDER]} was cut short; it goes on")
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=failed.params,
                distributions=failed.distributions,
                user_attrs=failed.user_attrs,
                intermediate_values=failed.intermediate_values,
            )
        )

    def _attempt(self, trial: optuna.Trial) -> None:
        """Make the run that a trial is for, unless it turns out that nobody needs it."""
        folder, trials = trial.user_attrs.get(FOLDER, ""), self._trials()
        other = first(trials[folder], [TrialState.RUNNING])
        taken = other is not None and other.number < trial.number
        # A trial without a folder is what Optuna makes when another worker took the one that was
        # queued.
        if folder not in self.points or taken or self._done(folder, trials):
            self.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return
        try:
            refusal, value = None, None
            try:
                value = self._make(trial, folder, trials[folder][-1].intermediate_values)
            except RefusedError as error:
                refusal = f"refused: {error}"
                trial.set_user_attr(REFUSED, str(error)[:1000])
            except optuna.TrialPruned as error:
                refusal = f"pruned after epoch {error}"
            # Not failed but pruned: samplers learn to stay away from those, and know nothing of
            # failed ones.
            state = TrialState.COMPLETE if refusal is None else TrialState.PRUNED
            told = self.optuna.tell(trial, value, state, skip_if_finished=True)
            if told.state != state:
                raise UpdateFinishedTrialError
            if refusal is not None:
                self.say(f"  {folder} {refusal}")
        except UpdateFinishedTrialError:
            # It stood still for too long. The one that has the trial now goes on in the same
            # folder.
            self.say(f"{folder}: another worker has taken it over")
        except BaseException:
            self.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise

    def _make(self, trial: optuna.Trial, folder: str, known: Mapping[int, float]) -> float:
        """Make a run and return its value; `known` are the values by epoch that were reported
        before.
        """
        number = list(self.points).index(folder)
        last = max(known, default=-1)

        def report(epoch: int, value: float) -> None:
            nonlocal last
            # A run that goes on repeats the epoch it was in, which may have been reported.
            if epoch > last:
                trial.report(value, epoch)
                last = epoch
            if trial.should_prune():
                raise optuna.TrialPruned(last + 1)

        parameters = self.draw(trial, number)
        trial.set_user_attr(BEGUN, True)
        return self.run(number, parameters, report)

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except StorageInternalError as error:
            # Optuna's own text says nothing; the database's stands in its cause.
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise StudyError(
                f"study '{self.name}': its storage failed ({reason}); run the same command again"
            ) from error


def first(trials: Sequence[FrozenTrial], states: Sequence[TrialState]) -> FrozenTrial | None:
    """Return the earliest trial in one of these states."""
    return next((trial for trial in trials if trial.state in states), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Optuna says of heartbeats: that they are experimental, and made for
    Study.optimize.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
        yield


def open_storage(
    url: str,
    heartbeat_s: int,
    grace_s: int,
    on_stale: Callable[[optuna.Study, FrozenTrial], None],
) -> RDBStorage:
    """Open the database of a study, making its tables when they are not there.

    Args:
        url: "sqlite:///file" for the processes of one machine, "postgresql://..." or "mysql://..."
            with their drivers installed for several.
        heartbeat_s, grace_s: Seconds between two heartbeats, and without any.
        on_stale: Called by the worker that failed a trial whose heartbeat has stopped.

    Raises:
        StudyError: The address is none, or the database does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise StudyError(
            f"storage '{url}': no address of a database; such as sqlite:///study.db"
        ) from error
    shown = parsed.render_as_string(hide_password=True)
    kind = parsed.get_backend_name()
    if kind not in DATABASES:
        raise StudyError(f"storage '{shown}': {kind} is none of {', '.join(DATABASES)}")
    # The driver of SQLite begins a transaction with the first change only, after what the change
    # depends on was read; its own transactions are off, and the listener below begins them.
    engine: dict[str, Any] = {}
    if kind == "sqlite":
        # Without a pool a connection is closed where its transaction ends: nobody else closes those of a file.
        engine["poolclass"] = sqlalchemy.pool.NullPool
        engine["connect_args"] = {"timeout": BUSY_S, "isolation_level": None}
    for attempt in range(1, TABLE_TRIES + 1):
        try:
            with _quiet():
                storage = RDBStorage(
                    url,
                    engine_kwargs=engine,
                    heartbeat_interval=heartbeat_s,
                    grace_period=grace_s,
                    heartbeat_stale_trial_callback=on_stale,
                )
            break
        except ImportError as error:
            raise StudyError(
                f"storage '{shown}': its driver is not installed ({error.__cause__})"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(getattr(error, "orig", error)).splitlines()[:1])
            # Two workers that begin at once both make the tables, and one of them is refused.
            raced = ("already exists", "locked", "UNIQUE constraint", "duplicate key")
            if attempt == TABLE_TRIES or not any(words in reason for words in raced):
                raise StudyError(f"storage '{shown}': {reason}; see that it is there") from error
            time.sleep(0.1 * 2**attempt)
    if kind == "sqlite":
        # Optuna keeps two workers from taking one trial by SELECT .. FOR UPDATE, which SQLite does
        # not know: here each transaction locks the file from its beginning.
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return storage
