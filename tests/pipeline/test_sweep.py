"""Sweeps: every trial once, whoever is killed where; nothing that ended is lost, and nothing is tuned on test data."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from shared_pieces import FORK, Forked, until

from knarr.cli.verbs import studies
from knarr.pipeline.progress import Progress
from knarr.pipeline.studies import engine, sweeps
from knarr.pipeline.studies.engine import STUDY_FILE, Report, StudyError, open_storage
from knarr.pipeline.studies.sweep_file import Sweep, load_sweep
from knarr.pipeline.studies.sweeps import SweepResult, run_sweep, validation_set_of
from knarr.train import Recipe, RecipeError, load_recipe
from knarr.train.recipe import with_settings
from knarr.train.settings import SettingsError

LIMIT_S = 60.0  # a bound on waiting for what takes well under a second
ALPHA, RATE = "student.kd_alpha", "student.fit.learning_rate"
SEARCH = {ALPHA: {"low": 0, "high": 1}, RATE: {"low": 1e-4, "high": 1e-1, "log": True}}


def written(folder: Path, **changes: Any) -> Path:
    plain = {
        "name": "tiny",
        "recipe": "eyes",
        "trials": 6,
        "sampler": "random",
        "search": SEARCH,
    } | changes
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in plain.items() if value is not None})
    )
    return path


def alpha_of(recipe: Recipe) -> float:
    found: float = recipe.model_dump()["student"]["kd_alpha"]
    return found


STALE_S = 2.1
"""Seconds after which a heartbeat is older than a grace of 1 s: SQLite's clock counts whole seconds."""


@pytest.fixture
def quickly_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process, and forks of it, miss a heartbeat soon."""
    monkeypatch.setattr(engine.Study, "heartbeat_s", 1)
    monkeypatch.setattr(engine.Study, "grace_s", 1)


def into(said: list[str]) -> Callable[[Progress], None]:
    """Keep the sentences of a study's progress."""
    return lambda event: said.append(event.text)


class Objective:
    """Stands in for a fit: three epochs of which each leaves a line in the folder, as a checkpoint does."""

    epochs = 3

    def __init__(self, log: Path | None = None, epoch_s: float = 0.0) -> None:
        self.calls: list[str] = []
        self.log, self.epoch_s = log, epoch_s

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        self.calls.append(folder.name)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{folder.name} {os.getpid()}\n")
        epochs = folder / "epochs"
        for epoch in range(len(epochs.read_text()) if epochs.is_file() else 0, self.epochs):
            time.sleep(self.epoch_s)
            report(epoch, alpha_of(recipe) * (epoch + 1) / self.epochs)
            with epochs.open("a") as file:  # last, as a checkpoint is
                file.write(str(epoch))
        return alpha_of(recipe)


def table(result: SweepResult) -> list[tuple[int, str, float | None, dict[str, Any]]]:
    return [(trial.number, trial.state, trial.value, trial.parameters) for trial in result.trials]


def test_every_trial_once_and_a_second_start_repeats_none(tmp_path: Path) -> None:
    sweep, objective = load_sweep(written(tmp_path)), Objective()
    result = run_sweep(sweep, objective, tmp_path / "out")
    assert objective.calls == [f"trial-{slot:05d}" for slot in range(6)]
    alphas = [trial.parameters[ALPHA] for trial in result.trials]
    assert len(set(alphas)) == 6
    assert all(1e-4 <= trial.parameters[RATE] <= 1e-1 for trial in result.trials)
    assert result.best is not None
    assert result.best.value == max(alphas) == alpha_of(result.recipe)  # type: ignore[arg-type]
    assert result.recipe is not None
    assert result.recipe.name == "tiny-best"
    kept = json.loads((tmp_path / "out" / "trial-00002" / "parameters.json").read_text())
    assert kept == result.trials[2].parameters

    again = Objective()
    assert table(run_sweep(sweep, again, tmp_path / "out")) == table(result)
    assert again.calls == []
    longer = run_sweep(load_sweep(written(tmp_path, trials=8)), again, tmp_path / "out")
    assert again.calls == ["trial-00006", "trial-00007"]
    assert table(longer)[:6] == table(result)
    shorter = run_sweep(load_sweep(written(tmp_path, trials=3)), Objective(), tmp_path / "out")
    assert table(shorter) == table(result)[:3]


@pytest.mark.parametrize(
    ("sampler", "trials"), [("random", 4), ("tpe", 13)]
)  # tpe learns after ten
def test_one_worker_repeats_itself_however_often_it_is_stopped(
    tmp_path: Path, sampler: str, trials: int
) -> None:
    sweep = load_sweep(written(tmp_path, sampler=sampler, trials=trials))
    unbroken = run_sweep(sweep, Objective(), tmp_path / "unbroken")
    assert len({trial.value for trial in unbroken.trials}) == trials
    assert [*unbroken.importance][:1] == (
        [ALPHA] if trials > 8 else []
    )  # the most important one first

    class Stopping(Objective):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
            value = super().__call__(recipe, folder, report)
            if not (folder / "stopped").exists():
                (folder / "stopped").touch()
                raise KeyboardInterrupt
            return value

    stopping, stops = Stopping(), 0
    while True:
        try:
            broken = run_sweep(sweep, stopping, tmp_path / "broken")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == trials
    assert stopping.calls == [f"trial-{slot:05d}" for slot in range(trials) for _ in range(2)]
    assert table(broken) == table(unbroken)
    other = run_sweep(
        load_sweep(written(tmp_path, sampler=sampler, trials=2, seed=1)),
        Objective(),
        tmp_path / "other",
    )
    assert {trial.value for trial in other.trials}.isdisjoint(
        {trial.value for trial in unbroken.trials}
    )


GRID = {
    ALPHA: {"low": 0.1, "high": 0.3, "step": 0.1},
    "student.channels": {"values": [[4, 8], [8, 16]]},
    "student.fit.epochs": {"low": 1, "high": 2, "int": True},
    "data.shift_px": {"values": [0, 1]},
}


def test_a_grid_tries_every_point_once(tmp_path: Path) -> None:
    objective = Objective()
    result = run_sweep(
        load_sweep(written(tmp_path, sampler="grid", search=GRID, trials=None)), objective, tmp_path
    )
    found = {json.dumps(trial.parameters, sort_keys=True) for trial in result.trials}
    wanted = {
        json.dumps(
            {
                ALPHA: alpha,
                "student.channels": channels,
                "student.fit.epochs": epochs,
                "data.shift_px": px,
            },
            sort_keys=True,
        )
        for alpha in (0.1, 0.2, 0.3)
        for channels in ([4, 8], [8, 16])
        for epochs in (1, 2)
        for px in (0, 1)
    }
    assert found == wanted
    assert len(objective.calls) == len(wanted) == 24


def test_part_of_a_grid_is_spread_by_the_seed(tmp_path: Path) -> None:
    def points(seed: int) -> list[dict[str, Any]]:
        path = written(tmp_path, sampler="grid", search=GRID, trials=5, seed=seed)
        return [
            trial.parameters
            for trial in run_sweep(load_sweep(path), Objective(), tmp_path / str(seed)).trials
        ]

    first, second = points(0), points(1)
    assert len(first) == len(second) == 5
    assert first != second
    assert len({json.dumps(point) for point in first}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search": {"student.fit.epoch": {"values": [1]}}},
            r"search.student.fit.epoch: .*there are .*epochs",
        ),
        ({"search": {}}, r"search: Dictionary should have at least 1"),
        (
            {"search": {ALPHA: {"values": [0.5, 2]}}},
            r"search.student.kd_alpha: 2 does not fit: .*less than or equal",
        ),
        (
            {"search": {"threads": {"low": -1, "high": 4, "int": True}}},
            r"search.threads: -1 does not fit",
        ),
        (
            {"search": {"seed": {"low": 0, "high": 4, "int": True}}},
            r"search.seed: changes the data that trials",
        ),
        (
            {"search": {"data.validation_fraction": {"values": [0.1]}}},
            r"changes the data that trials are compared on",
        ),
        (
            {"search": {"student.fit.epochs": {"low": 1, "high": 5}}},
            r"search.student.fit.epochs: 2.4.* does not fit: .*valid integer",
        ),
        (
            {"search": {"student.fit.epochs": {"low": 1, "high": 5, "step": 0.5}}},
            r"search.student.fit.epochs: 1.5 does not fit: .*valid integer",
        ),
        (
            {"search": {"data.subjects": {"values": [8]}}},
            r"changes the data that trials are compared on",
        ),
        ({"search": {"data": {"values": [1]}}}, r"changes the data"),
        ({"search": {"deploy.weight_bits": {"values": [4, 8]}}}, r"does not change the student"),
        ({"search": {"name": {"values": ["a"]}}}, r"does not change the student"),
        (
            {"search": {"student.fit.select": {"values": ["last", "best_on_test"]}}},
            r"looks at the test data",
        ),
        (
            {"set": {"teacher.fit.select": "best_on_test"}},
            r"teacher.fit.select best_on_test looks at the test data",
        ),
        ({"set": {ALPHA: 0.1}}, r"'student.kd_alpha' is set or searched too"),
        ({"set": {"student.fit": 1}}, r"student.fit: 1 is no mapping of settings"),
        (
            {"search": {**SEARCH, "student": {"values": [1]}}},
            r"'student.kd_alpha' is set or searched too",
        ),
        ({"set": {"nope": 1}}, r"recipe 'eyes': no setting 'nope'"),
        ({"search": {ALPHA: {"low": 1, "high": 0}}}, r"low 1 is not below high 0"),
        ({"search": {ALPHA: {"low": 0, "high": 1, "log": True}}}, r"log needs low above 0"),
        (
            {"search": {ALPHA: {"low": 0, "high": 1, "step": 0.3}}},
            r"high 1 is not low 0 plus whole steps of 0.3",
        ),
        ({"search": {ALPHA: {"low": 0, "high": 1, "step": 1e-9}}}, r"more than 1000000 steps"),
        (
            {"search": {ALPHA: {"low": 0.1, "high": 1, "step": 0.1, "log": True}}},
            r"log and step do not go together",
        ),
        ({"search": {"seed": {"low": 0.5, "high": 1, "int": True}}}, r"int needs whole low"),
        ({"search": {ALPHA: {"low": float("nan"), "high": 1}}}, r"low: "),
        ({"search": {ALPHA: {"values": [0, False]}}}, r"two values are the same"),
        ({"search": {ALPHA: {"values": [{"a": 1}]}}}, r"search.student.kd_alpha"),
        ({"search": {ALPHA: {"values": list(range(1001))}}}, r"at most 1000 items"),
        ({"search": {ALPHA: {"low": 0, "high": 1, "hihg": 1}}}, r"hihg: no such setting"),
        ({"trials": 0}, r"trials: .*greater"),
        ({"trials": 10_001}, r"trials: .*less"),
        ({"trials": None}, r"trials: needed where the sampler is random"),
        ({"metric": "test_accuracy"}, r"metric: .*validation_accuracy"),
        (
            {"sampler": "grid"},
            r"search.student.fit.learning_rate: a grid needs values, a step or int",
        ),
        (
            {
                "sampler": "grid",
                "search": {"student.fit.epochs": {"low": 1, "high": 2, "int": True}},
            },
            r"trials: 6, but the grid has 2",
        ),
        (
            {
                "sampler": "grid",
                "trials": None,
                "search": {
                    ALPHA: {"low": 0, "high": 1, "step": 0.001},
                    "student.fit.epochs": {"low": 1, "high": 10, "int": True},
                },
            },
            r"a grid of 10010 points, at most 10000",
        ),
        ({"recipe": "nope"}, r"its recipe 'nope' is neither shipped \(.*eyes"),
        ({"name": "../up"}, r"name: "),
    ],
)
def test_what_cannot_be_compared_or_tried_is_refused_beforehand(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((StudyError, RecipeError), match=message) as caught:
        load_sweep(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


# Lists of nine lists each, of which writing them out would take all memory.
BOMB = "a: &a [x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghijklm")
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\xff\xfe", "not UTF-8", id="bytes"),
        pytest.param(b"a: [", "is not YAML", id="open list"),
        pytest.param(b"[" * 500, "is not YAML", id="deep"),
        pytest.param(b"a: 2020-13-45", "is not YAML", id="date"),
        pytest.param(b"3", "sweep: 3 is no mapping", id="number"),
        pytest.param(b"x" * 100_001, "100001 bytes, at most 100000", id="large"),
        pytest.param(BOMB.encode(), "search: missing", id="bomb"),
        pytest.param(
            f"{BOMB}search: {{seed: {{values: [*m]}}}}".encode(),
            "search.seed.values",
            id="bomb as a value",
        ),
    ],
)
def test_files_that_are_no_sweep_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "sweep.yaml").write_bytes(content)
    with pytest.raises(StudyError, match=message):
        load_sweep(tmp_path / "sweep.yaml")
    with pytest.raises(StudyError, match="no such YAML file"):
        load_sweep(tmp_path / "nope.yaml")


def test_a_recipe_beside_the_sweep(tmp_path: Path) -> None:
    plain = load_recipe("eyes").model_dump(mode="json") | {"name": "mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    sweep = load_sweep(written(tmp_path, recipe="mine.yaml", set={"student.fit.epochs": 2}))
    assert (sweep.recipe.name, sweep.recipe.student.fit.epochs) == ("mine", 2)


class Choosy(Objective):
    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        value = super().__call__(recipe, folder, report)
        if folder.name == "trial-00001":
            raise SettingsError("two 2x2 pools do not divide 20 pixels")
        return float("nan") if folder.name == "trial-00003" else value


def test_what_the_recipe_refuses_is_a_result(tmp_path: Path) -> None:
    objective = Choosy()
    result = run_sweep(load_sweep(written(tmp_path)), objective, tmp_path)
    assert [trial.state for trial in result.trials] == [
        *("finished", "refused") * 2,
        "finished",
        "finished",
    ]
    assert [result.trials[slot].reason for slot in (1, 3)] == [
        "two 2x2 pools do not divide 20 pixels",
        "validation_accuracy is nan",
    ]
    assert result.trials[1].value is None
    assert [trial.number for trial in result.ranked()[4:]] == [1, 3]
    run_sweep(load_sweep(written(tmp_path)), objective, tmp_path)
    assert len(objective.calls) == 6


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "No space left on device"),
        RecipeError("student.ckpt: not a checkpoint; No space left"),
    ],
)
def test_any_other_exception_stops_and_its_trial_goes_on(tmp_path: Path, fault: Exception) -> None:
    class Failing(Objective):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
            value = super().__call__(recipe, folder, report)
            if folder.name == "trial-00002" and self.calls.count(folder.name) == 1:
                raise fault
            return value

    objective, said = Failing(), []
    sweep = load_sweep(written(tmp_path))
    with pytest.raises(type(fault), match="No space left"):
        run_sweep(sweep, objective, tmp_path / "out")
    result = run_sweep(sweep, objective, tmp_path / "out", on_progress=into(said))
    assert objective.calls == [f"trial-{slot:05d}" for slot in (0, 1, 2, 2, 3, 4, 5)]
    assert (tmp_path / "out" / "trial-00002" / "epochs").read_text() == "012"
    assert said[0] == "trial-00002 was cut short; it goes on"
    assert table(result) == table(run_sweep(sweep, Objective(), tmp_path / "unbroken"))


def test_the_median_pruner_ends_what_is_behind(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path, trials=12, pruner="median", set={"student.fit.epochs": 3}))
    result = run_sweep(sweep, Objective(), tmp_path)
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned
    assert min(trial.number for trial in pruned) >= 5
    assert all(trial.value is not None for trial in pruned)
    # Told to end when they report the second epoch, which is then not saved any more.
    assert {(tmp_path / trial.folder / "epochs").read_text() for trial in pruned} <= {"0", "01"}
    assert result.best is not None
    assert result.best.state == "finished"


def killed_in_mid_trial(sweep: Sweep, out: Path, trial: str, epochs: str, **options: Any) -> None:
    """A worker of its own, killed when a trial has saved some epochs."""
    worker = Forked(target=run_sweep, args=(sweep, Objective(epoch_s=0.1), out), kwargs=options)
    worker.start()
    path = out / trial / "epochs"
    assert until(lambda: path.is_file() and path.read_text() == epochs, LIMIT_S)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(LIMIT_S)
    assert worker.exitcode == -signal.SIGKILL
    time.sleep(STALE_S)


@pytest.mark.usefixtures("quickly_stale")
@pytest.mark.parametrize(
    ("sampler", "database"), [("random", False), ("grid", False), ("random", True)]
)
def test_kill_9_loses_nothing_but_the_current_epoch(
    tmp_path: Path, sampler: str, database: bool
) -> None:
    search = GRID if sampler == "grid" else SEARCH
    sweep = load_sweep(written(tmp_path, sampler=sampler, search=search, trials=3))
    options = {"storage": f"sqlite:///{tmp_path}/study.db"} if database else {}
    out = tmp_path / "out"
    killed_in_mid_trial(sweep, out, "trial-00001", "0", **options)
    assert not (out / "trial-00002").exists()
    if not database:  # which is slow
        killed_in_mid_trial(sweep, out, "trial-00001", "01")  # the one that went on is killed too
    objective, said = Objective(), []
    result = run_sweep(sweep, objective, out, on_progress=into(said), **options)
    assert objective.calls == ["trial-00001", "trial-00002"]
    assert said[0] == "trial-00001 was cut short; it goes on"
    assert [(out / trial.folder / "epochs").read_text() for trial in result.trials] == ["012"] * 3
    assert table(result) == table(run_sweep(sweep, Objective(), tmp_path / "unbroken"))
    url = options.get("storage", f"sqlite:///{out / STUDY_FILE}")
    study = study_at(url)
    values = [
        trial.intermediate_values for trial in study.trials if trial.state == TrialState.COMPLETE
    ]
    # Epochs reported by those who were killed as well.
    assert [sorted(each) for each in values] == [[0, 1, 2]] * 3
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == (1 if database else 2)


def test_two_processes_share_a_study_and_no_trial_is_run_twice(tmp_path: Path) -> None:
    for sampler, trials in (("random", 6), ("grid", 8)):
        out, log = tmp_path / sampler, tmp_path / f"{sampler}.log"
        sweep = load_sweep(
            written(
                tmp_path,
                sampler=sampler,
                trials=trials,
                search=GRID if sampler == "grid" else SEARCH,
            )
        )
        workers = [
            Forked(
                target=run_sweep, args=(sweep, Objective(log, 0.01), out), kwargs={"poll_s": 0.02}
            )
            for _ in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LIMIT_S)
        assert [worker.exitcode for worker in workers] == [0, 0]
        lines = [line.split() for line in log.read_text().splitlines()]
        assert sorted(name for name, _ in lines) == [f"trial-{slot:05d}" for slot in range(trials)]
        assert {pid for _, pid in lines} == {str(worker.pid) for worker in workers}
        result = run_sweep(sweep, Objective(), out)
        alone = run_sweep(sweep, Objective(), tmp_path / f"{sampler}-alone")
        assert table(result) == table(alone)  # neither sampler depends on who ended first


def test_a_writer_killed_with_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = load_sweep(written(tmp_path, trials=2))
    run_sweep(load_sweep(written(tmp_path, trials=1)), Objective(), out)
    locked = FORK.Event()

    def hold() -> None:
        connection = sqlite3.connect(out / STUDY_FILE, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM trials")  # never committed
        locked.set()
        time.sleep(LIMIT_S)

    holder = Forked(target=hold)
    holder.start()
    assert locked.wait(LIMIT_S)
    waiting = Forked(target=run_sweep, args=(sweep, Objective(), out))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()  # the lock of a living writer is respected
    holder.kill()
    holder.join(LIMIT_S)
    waiting.join(LIMIT_S / 2)
    assert waiting.exitcode == 0
    assert (out / "trial-00001").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search": {ALPHA: {"low": 0, "high": 0.5}, RATE: SEARCH[RATE]}},
            r"another search.student.kd_alpha.high: 1.0 there, 0.5 here",
        ),
        ({"search": {ALPHA: SEARCH[ALPHA]}}, r"another search.student.fit.learning_rate"),
        (
            {"set": {"student.fit.epochs": 2}},
            r"another recipe.student.fit.epochs: 26 there, 2 here",
        ),
        ({"recipe": "nmnist"}, r"another recipe"),
        ({"seed": 1}, r"another seed: 0 there, 1 here"),
        ({"sampler": "tpe"}, r"another sampler"),
        ({"metric": "validation_loss"}, r"another metric"),
    ],
)
def test_another_sweep_in_the_storage_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run_sweep(load_sweep(written(tmp_path, trials=1)), Objective(), tmp_path, data_sha256="d")
    other = load_sweep(written(tmp_path, trials=1, **changes))
    with pytest.raises(
        StudyError, match=f"sweep 'tiny': .*{message}.*; give the sweep another name"
    ):
        run_sweep(other, Objective(), tmp_path, data_sha256="d")
    renamed = load_sweep(written(tmp_path, trials=1, name="other", **changes))
    if changes.get("recipe") != "nmnist" and "search" not in changes and "seed" not in changes:
        run_sweep(renamed, Objective(), tmp_path / "elsewhere", data_sha256="d")
    with pytest.raises(StudyError, match=r"another data_sha256: \"d\" there, \"e\" here"):
        run_sweep(load_sweep(written(tmp_path, trials=1)), Objective(), tmp_path, data_sha256="e")


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    run_sweep(load_sweep(written(tmp_path, trials=1)), Objective(), tmp_path)
    (tmp_path / STUDY_FILE).unlink()
    other = load_sweep(written(tmp_path, trials=1, seed=3))
    with pytest.raises(StudyError, match=r"trial-00000/parameters.json: of another study"):
        run_sweep(other, Objective(), tmp_path)


def study_at(url: str) -> optuna.Study:
    """The study of a database; its connections end with their transactions, as those of knarr do."""
    storage = open_storage(url, 60, 60, lambda *_: None)
    return optuna.load_study(study_name="tiny", storage=storage)


def by_another_machine(out: Path) -> tuple[optuna.Study, optuna.Trial, Callable[[], None]]:
    """A trial that a worker far away began, and what shows that it lives."""
    run_sweep(load_sweep(written(out, trials=1)), Objective(), out)
    storage = open_storage(f"sqlite:///{out / STUDY_FILE}", 1, 1, lambda *_: None)
    study = optuna.load_study(study_name="tiny", storage=storage)
    study.enqueue_trial({}, user_attrs={"folder": "trial-00001"})
    with engine._quiet():
        trial = study.ask()
    trial.suggest_float(ALPHA, 0, 1)
    trial.suggest_float(RATE, 1e-4, 1e-1, log=True)
    trial.set_user_attr("begun", True)

    def beat() -> None:
        storage.record_heartbeat(trial._trial_id)

    return study, trial, beat


@pytest.mark.usefixtures("quickly_stale")
def test_a_trial_of_another_machine_is_taken_over_once_its_heartbeat_stops(tmp_path: Path) -> None:
    study, trial, beat = by_another_machine(tmp_path)
    sweep = load_sweep(written(tmp_path, trials=2))
    beats = 0

    def live() -> None:
        nonlocal beats
        for _ in range(6):
            beats += 1
            beat()
            time.sleep(0.3)

    heart = threading.Thread(target=live)
    heart.start()
    seen: list[int] = []

    class Noting(Objective):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
            seen.append(beats)
            return super().__call__(recipe, folder, report)

    objective = Noting()
    said: list[str] = []
    result = run_sweep(sweep, objective, tmp_path, poll_s=0.05, on_progress=into(said))
    heart.join()
    assert seen == [6]  # not before the last heartbeat
    assert objective.calls == ["trial-00001"]
    assert said[0] == "Waiting for other workers: 1 of 2 trials are running"
    assert result.trials[1].parameters[ALPHA] == trial.params[ALPHA]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, 99)
    folders = [each.user_attrs["folder"] for each in study.get_trials()]
    assert folders == ["trial-00000", "trial-00001", "trial-00001"]


@pytest.mark.usefixtures("quickly_stale")
def test_a_trial_taken_by_a_worker_that_never_showed_a_heartbeat_is_taken_over(
    tmp_path: Path,
) -> None:
    _, trial, _ = by_another_machine(tmp_path)
    objective = Objective()
    sweep = load_sweep(written(tmp_path, trials=2))
    result = run_sweep(sweep, objective, tmp_path, poll_s=0.05)
    assert objective.calls == ["trial-00001"]
    assert result.trials[1].parameters[ALPHA] == trial.params[ALPHA]


def test_a_trial_of_another_machine_that_lives_is_waited_for(tmp_path: Path) -> None:
    objective = Objective()
    study, trial, beat = by_another_machine(tmp_path)
    sweep = load_sweep(written(tmp_path, trials=2))
    beat()
    threading.Timer(0.3, lambda: study.tell(trial, 0.25)).start()
    result = run_sweep(sweep, objective, tmp_path, poll_s=0.05)
    assert objective.calls == []
    assert result.trials[1].value == 0.25


@pytest.mark.parametrize("told", ["when it reports", "when it ends", "when it refuses"])
def test_a_worker_that_lost_its_trial_lets_go(tmp_path: Path, told: str) -> None:
    sweep = load_sweep(written(tmp_path, trials=2))

    class Losing(Objective):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
            if not self.calls:
                url = f"sqlite:///{tmp_path / STUDY_FILE}"
                other = study_at(url)
                other.tell(0, state=TrialState.FAIL)
                if told == "when it refuses":
                    self.calls.append(folder.name)
                    raise SettingsError("no network")
            reports = report if told == "when it reports" else lambda *_: None
            return super().__call__(recipe, folder, reports)

    objective, said = Losing(), []
    result = run_sweep(sweep, objective, tmp_path, on_progress=into(said))
    assert "trial-00000: another worker has taken it over" in said
    assert objective.calls == ["trial-00000", "trial-00000", "trial-00001"]
    assert [trial.state for trial in result.trials] == ["finished"] * 2


def test_a_folder_that_another_command_works_in_is_named(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path, trials=1))
    ready, over = FORK.Event(), FORK.Event()

    def hold() -> None:
        from knarr.pipeline.run_folder import hold as hold_folder

        (tmp_path / "trial-00000").mkdir()
        hold_folder(tmp_path / "trial-00000")
        ready.set()
        over.wait(LIMIT_S)

    other = Forked(target=hold)
    other.start()
    assert ready.wait(LIMIT_S)
    with pytest.raises(
        RecipeError, match=r"trial-00000: another knarr process works in it; wait for it"
    ):
        run_sweep(sweep, Objective(), tmp_path)
    over.set()
    other.join(LIMIT_S)
    assert len(run_sweep(sweep, Objective(), tmp_path).trials) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", r"storage 'nonsense': no address of a database"),
        ("oracle://u:secret@h/d", r"oracle is none of sqlite, postgresql, mysql"),
        (
            "mysql://u:secret@h/d",
            r"storage 'mysql://u:\*\*\*@h/d': its driver is not installed",
        ),
        ("sqlite:////no/such/folder/x.db", r"unable to open database file; see that it is there"),
    ],
)
def test_databases_that_do_not_answer_are_named_without_passwords(
    tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        run_sweep(load_sweep(written(tmp_path)), Objective(), tmp_path, storage=url)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StudyError, match="file is not a database"):
        run_sweep(
            load_sweep(written(tmp_path)),
            Objective(),
            tmp_path,
            storage=f"sqlite:///{tmp_path}/x.db",
        )


TINY: dict[str, Any] = {
    "set": {
        "data.subjects": 4,
        "data.takes_per_emotion": 1,
        "data.timesteps": 6,
        "data.teacher_bins": 1,
        "data.validation_fraction": 0.34,
        "teacher.width": 2,
        "teacher.fit.epochs": 1,
        "student.channels": [4, 4],
        "student.tau_mem_s": 0.035,
        "student.tau_readout_s": 0.05,
        "student.fit.epochs": 2,
        "student.fit.batch_size": 4,
        "threads": 1,
    }
}


def test_a_real_sweep_from_generated_eyes_to_the_best_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"data.size": {"values": [20, 24]}, RATE: {"values": [0.001, 0.1]}}
    path = written(
        tmp_path, sampler="grid", trials=None, metric="validation_loss", search=search, **TINY
    )
    out = tmp_path / "runs" / "sweep"
    studies.sweep(path, out=out, json=True)  # a sweep without a finished trial would raise
    facts = json.loads(capsys.readouterr().out)
    # 20 pixels are not divided by the pools, which only the network finds out.
    assert facts["trials"] == {"finished": 2, "pruned": 0, "refused": 2}
    assert [each["parameters"]["data.size"] for each in facts["ranked"]] == [24, 24, 20, 20]
    assert "two 2x2 pools do not divide" in facts["ranked"][-1]["reason"]

    best, other = facts["ranked"][:2]
    assert facts["best"] == best
    rows = (out / best["trial"] / "metrics.csv").read_text().splitlines()
    assert rows[-1].split(",")[:2] == ["student", "1"]
    assert float(rows[-1].split(",")[3]) == best["value"] < other["value"]
    # One teacher for both: the second trial took it over.
    first, second = (out / name for name in sorted((best["trial"], other["trial"])))
    assert (first / "teacher.safetensors").read_bytes() == (
        second / "teacher.safetensors"
    ).read_bytes()
    assert ["teacher," in (folder / "metrics.csv").read_text() for folder in (first, second)] == [
        True,
        False,
    ]

    recipe = load_recipe(str(out / "best.yaml"))
    assert recipe.name == "tiny-best"
    assert recipe.student.fit.learning_rate == best["parameters"][RATE]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    studies.sweep(path, out=out, json=False)  # finds all done
    printed = capsys.readouterr().out
    assert "tiny: all trials, validation loss of the student" in printed
    assert all(len(line) <= 100 for line in printed.splitlines() if str(out) not in line)


def test_a_trial_that_is_validated_on_others_is_refused(tmp_path: Path) -> None:
    """Not by the setting's name, which a list may lack."""
    base = with_settings(load_sweep(written(tmp_path, **TINY)).recipe, {"data.size": 24})
    fitting = sweeps.Fitting(None, tmp_path / "out", "validation_accuracy")
    fitting.validation_set = validation_set_of(base, fitting.data_of(base)[1])
    for change in ({"data.validation_fraction": 0.67}, {"seed": 1}, {"data.takes_per_emotion": 2}):
        with pytest.raises(SettingsError, match="validated on other clips, labels or people"):
            fitting(with_settings(base, change), tmp_path / "out" / "trial-00000", lambda *_: None)
    assert not (tmp_path / "out" / "trial-00000").exists()
    alike = with_settings(base, {"data.shift_px": 0, "data.timesteps": 5})
    assert validation_set_of(alike, fitting.data_of(alike)[1]) == fitting.validation_set


def test_a_real_fit_ends_where_it_is_pruned(tmp_path: Path) -> None:
    path = written(
        tmp_path, **{**TINY, "set": {**TINY["set"], "data.size": 24, "student.fit.epochs": 9}}
    )
    recipe, reported = load_sweep(path).recipe, []

    def report(epoch: int, value: float) -> None:
        reported.append((epoch, value))
        if epoch == 1:
            raise optuna.TrialPruned

    fitting = sweeps.Fitting(None, tmp_path / "out", "validation_accuracy")
    with pytest.raises(optuna.TrialPruned):
        fitting(recipe, tmp_path / "out" / "trial-00000", report)
    rows = (tmp_path / "out" / "trial-00000" / "metrics.csv").read_text().splitlines()
    students = [row.split(",") for row in rows if row.startswith("student")]
    assert [(int(row[1]), f"{float(row[4]):.4f}") for row in students] == [
        (epoch, f"{value:.4f}") for epoch, value in reported
    ]
    assert [epoch for epoch, _ in reported] == [0, 1]


def test_the_metric_is_that_of_the_epoch_whose_weights_are_kept() -> None:
    columns = ("validation_accuracy", "validation_loss")
    rows = [
        dict(zip(columns, row, strict=True))
        for row in (("0.5", "1"), ("0.7", "2"), ("0.7", "1.5"), ("0.6", "1"))
    ]
    assert sweeps.score(rows, "validation_accuracy", "last") == 0.6
    assert sweeps.score(rows, "validation_accuracy", "val") == 0.7
    assert sweeps.score(rows, "validation_loss", "val") == 1.5
