"""Studies that several worker processes share: one is killed and its run goes on, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from shared_pieces import FORK, Forked, until
from test_pareto import LITTLE
from test_sweep import Objective, study_at, written
from test_sweep import table as trials_of
from test_table import SMALL, Fitting

from knarr.pipeline.studies import tables
from knarr.pipeline.studies.engine import BEGUN, STUDY_FILE, Report, Study
from knarr.pipeline.studies.sweep_file import load_sweep
from knarr.pipeline.studies.sweeps import run_sweep
from knarr.train import Recipe

LIMIT_S = 90.0  # a bound on waiting for what takes seconds
NOT_INSTALLED = "PostgreSQL is not installed: apt-get install postgresql"


@pytest.fixture(scope="module")
def own_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="knarr-postgresql-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def postgresql(own_folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL server of our own, on a socket in a folder of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    programs = found[-1].parent if found else Path(on_path).parent if on_path else None
    if programs is None:
        pytest.skip(NOT_INSTALLED)
    # It refuses to run as root.
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    account = pwd.getpwnam(user)
    folder = own_folder
    os.chown(folder, account.pw_uid, account.pw_gid)
    who: dict[str, Any] = {"user": user, "group": account.pw_gid, "extra_groups": []}
    run: dict[str, Any] = who if os.getuid() == 0 else {}
    data = folder / "data"
    options = ["--auth=trust", "--username=knarr", "--locale=C", "--no-sync"]
    command = [programs / "initdb", *options, data]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **run)
    assert made.returncode == 0, made.stderr
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-F"],
            cwd=folder,
            stdout=log,
            stderr=log,
            **run,
        )
    try:
        ready = [programs / "pg_isready", "-h", folder, "-q"]
        assert until(lambda: subprocess.run(ready, check=False).returncode == 0, LIMIT_S), (
            "not ready"
        )
        yield f"postgresql+psycopg2://knarr@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # at once, without waiting for clients
        server.wait(LIMIT_S)


@pytest.fixture(autouse=True)
def soon_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are forks of this process miss a heartbeat soon, and never one of a living worker."""
    monkeypatch.setattr(Study, "heartbeat_s", 1)
    monkeypatch.setattr(Study, "grace_s", 3)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgresql")
    return url


def runs_in(log: Path) -> list[tuple[str, int]]:
    """(run, process) in the order in which they were begun."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(run, int(pid)) for run, pid in (line.rsplit(" ", 1) for line in lines)]


def kill(worker: BaseProcess) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(LIMIT_S)
    assert worker.exitcode == -signal.SIGKILL


def stand_still(stands: Event) -> None:
    """Say that this worker is in the middle of a run, and stay there until it is killed."""
    stands.set()
    time.sleep(LIMIT_S)


def wait(stands: Event) -> None:
    """Go on when the other worker stands in the middle of a run."""
    assert stands.wait(LIMIT_S)


class Pausing(Objective):
    """Calls a function in the second epoch of each trial, when only the first one is saved."""

    def __init__(self, log: Path, pause: Callable[[], None]) -> None:
        super().__init__(log)
        self.pause = pause

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        def then_pause(epoch: int, value: float) -> None:
            report(epoch, value)
            if epoch == 1:
                self.pause()

        return super().__call__(recipe, folder, then_pause)


def test_two_workers_share_a_sweep_and_the_trial_of_a_killed_one_goes_on(
    tmp_path: Path, storage: str | None
) -> None:
    sweep, out, log = load_sweep(written(tmp_path, trials=5)), tmp_path / "out", tmp_path / "log"
    options: dict[str, Any] = {"storage": storage, "poll_s": 0.05}
    stands = FORK.Event()
    workers = [
        Forked(
            target=run_sweep,
            args=(sweep, Pausing(log, partial(pause, stands)), out),
            kwargs=options,
        )
        for pause in (stand_still, wait)
    ]
    for worker in workers:
        worker.start()
    victim, other = workers
    assert stands.wait(LIMIT_S)
    (killed,) = (run for run, pid in runs_in(log) if pid == victim.pid)
    kill(victim)
    assert (out / killed / "epochs").read_text() == "0"
    parameters = (out / killed / "parameters.json").read_bytes()
    other.join(LIMIT_S)
    assert other.exitcode == 0

    begun = runs_in(log)
    assert [pid for run, pid in begun if run == killed] == [victim.pid, other.pid]
    assert Counter(run for run, _ in begun) == {
        f"trial-{number:05d}": 2 if f"trial-{number:05d}" == killed else 1 for number in range(5)
    }
    # From where it was, with the same parameters, and the same values as if nobody had been killed.
    assert (out / killed / "epochs").read_text() == "012"
    assert (out / killed / "parameters.json").read_bytes() == parameters
    result = run_sweep(sweep, Objective(), out, storage=storage)
    assert trials_of(result) == trials_of(run_sweep(sweep, Objective(), tmp_path / "alone"))
    url = storage or f"sqlite:///{out / STUDY_FILE}"
    trials = study_at(url).trials
    states = Counter(trial.state.name for trial in trials if BEGUN in trial.user_attrs)
    assert states == {"COMPLETE": 5, "FAIL": 1}
    # Two workers that look at once may queue the same point; the later trial is dropped unbegun.
    dropped = [trial.state.name for trial in trials if BEGUN not in trial.user_attrs]
    assert set(dropped) <= {"FAIL"}


class InTwoParts(Fitting):
    """A run of which the first part is kept, and a function that is called before the second."""

    def __init__(self, log: Path, pause: Callable[[], None]) -> None:
        super().__init__()
        self.log, self.pause = log, pause

    def __call__(self, recipe: Recipe, data: Path | None, folder: Path) -> None:
        with self.log.open("a") as file:
            file.write(f"{folder.parent.name}/{folder.name} {os.getpid()}\n")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").touch()
        self.pause()
        super().__call__(recipe, data, folder)


def test_two_workers_share_a_table_and_the_run_of_a_killed_one_goes_on(
    tmp_path: Path, storage: str | None
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "small.yaml").write_text(SMALL)
    out, log = tmp_path / "grids", tmp_path / "log"
    stands = FORK.Event()

    def work(pause: Callable[[Event], None]) -> None:
        fitting = InTwoParts(log, partial(pause, stands))
        tables.fit_and_evaluate = lambda *run, **_: fitting(*run)
        tables.table(
            str(tmp_path / "small.yaml"), data=tmp_path, out=out, fit=True, storage=storage
        )

    workers = [Forked(target=work, args=(pause,)) for pause in (stand_still, wait)]
    for worker in workers:
        worker.start()
    victim, other = workers
    assert stands.wait(LIMIT_S)
    (killed,) = (run for run, pid in runs_in(log) if pid == victim.pid)
    kill(victim)
    assert (out / "small" / killed / "half").is_file()
    assert not (out / "small" / killed / "evaluation.json").is_file()
    other.join(LIMIT_S)
    assert other.exitcode == 0
    begun = Counter(run for run, _ in runs_in(log))
    assert len(begun) == 4
    assert {run: times for run, times in begun.items() if times > 1} == {killed: 2}
    rows = tables.table(str(tmp_path / "small.yaml"), data=tmp_path, out=out).summary.rows
    assert [(row.finished, row.wanted) for row in rows] == [(2, 2), (2, 2)]


def test_two_workers_share_a_pareto_search(tmp_path: Path) -> None:
    """Whole processes of the command: one makes the float student, and no point is fitted twice."""
    out = tmp_path / "search"
    command = [sys.executable, "-c", "from knarr.cli import main; main()", "pareto", "eyes"]
    options = ["--out", out, "--bits", "8,3", "--steps", "6", "--shares", "1", "--json"]
    changes = [part for change in LITTLE for part in ("--set", change)]
    workers = [
        subprocess.Popen(
            [*command, *options, *changes],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    first, second = (json.loads(shown) for shown, _ in said)
    assert first == second
    assert sorted(point["weight_bits"] for point in first["points"]) == [3, 8]
    lines = [line for _, errors in said for line in errors.splitlines()]
    assert lines.count("Training the teacher") == 1
    begun = sorted(line.split(":")[0] for line in lines if line.startswith("Trial "))
    assert begun == ["Trial 1 of 2 (trial-00000)", "Trial 2 of 2 (trial-00001)"]
