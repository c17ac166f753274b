"""`kill -9` of the command, of its Lava worker, of one of Lava's processes: in two seconds nothing of the run is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from shared_pieces import until

from knarr.deploy import write_net
from knarr.deploy.lava.worker import kill_group, members, shared_memory
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout

LEFT_WITHIN_S = 10.0  # a bound on waiting: below 1 s on an idle machine, several on a busy one
START_S = 120.0
TIMESTEPS = 100_000  # minutes of Lava: no run here comes to its end


def children(parent: int) -> list[int]:
    """Living forks of a process, oldest first; those that run another program (the resource tracker) left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                same = (entry / "cmdline").read_bytes() == Path(
                    f"/proc/{parent}/cmdline"
                ).read_bytes()
            except OSError:
                continue  # it ended while we looked
            if int(of) == parent and state != "Z" and same:
                found.append(int(entry.name))
    return sorted(found)


@dataclass
class Running:
    """`knarr simulate --engine lava` in an own scratch folder, with what its worker's group held while it ran."""

    command: subprocess.Popen[str]
    scratch: Path
    group: int = 0
    processes: tuple[int, ...] = ()
    shared: frozenset[str] = frozenset()

    @property
    def job_folders(self) -> list[Path]:
        return list(self.scratch.glob("knarr-lava-*"))

    def find_group(self) -> bool:
        """Its worker leads the only group of its own among the command's children."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    _, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                except OSError:
                    continue
                if int(parent) == self.command.pid and group == entry.name:
                    self.group = int(group)
        return self.group != 0

    def in_mid_run(self) -> bool:
        return any(self.scratch.glob("*/progress.json"))

    def look(self) -> None:
        self.processes = tuple(members(self.group))
        self.shared = frozenset(shared_memory(list(self.processes)))

    def assert_nothing_left(self) -> None:
        gone = until(lambda: members(self.group) == [], LEFT_WITHIN_S)
        assert gone, f"{members(self.group)} run on"
        assert until(lambda: not any(map(os.path.exists, self.shared)), 0.5)
        assert until(lambda: self.job_folders == [], 0.5)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    layer = Dense("d", np.array([[30, -3], [-20, 9]]), Neuron(4096, 100, 20))
    write_net(ChipNetwork((layer,), InputCoding((2,)), Readout("spikes")), tmp_path / "tiny.net")
    np.save(tmp_path / "in.npy", np.ones((1, TIMESTEPS, 2), dtype=np.uint8))
    scratch = (
        tmp_path / f"scratch{'-long' * 20}"
    )  # names of sockets in it would pass what the system takes
    scratch.mkdir()
    started: list[Running] = []

    def begin(**environment: str) -> Running:
        knarr = Path(sys.executable).with_name("knarr")
        assert knarr.exists()
        run = Running(
            subprocess.Popen(
                [
                    knarr,
                    "simulate",
                    "tiny.net",
                    "--inputs",
                    "in.npy",
                    "--engine",
                    "lava",
                    "--out",
                    "out.npz",
                ],
                cwd=tmp_path,
                env={**os.environ, "TMPDIR": str(scratch), **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ),
            scratch,
        )
        started.append(run)
        return run

    yield begin
    for run in started:
        run.command.kill()
        run.command.communicate()
        if run.group:
            kill_group(run.group)
    assert not (tmp_path / "out.npz").exists()


def in_mid_run(run: Running) -> Running:
    assert until(lambda: run.in_mid_run() or run.command.poll() is not None, START_S)
    assert run.command.poll() is None
    assert run.find_group()
    run.look()
    assert len(run.processes) > 4
    assert run.shared
    assert run.job_folders
    return run


def one_line(run: Running, *words: str) -> None:
    _, err = run.command.communicate(timeout=20)
    assert run.command.returncode == 1, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "Lava steps: " not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("knarr: Lava worker: ")
    for word in words:
        assert word in lines[0]


def test_kill_of_the_command(start: Callable[..., Running]) -> None:
    run = in_mid_run(start())
    os.kill(run.command.pid, signal.SIGKILL)
    run.assert_nothing_left()
    assert run.command.wait(5) == -signal.SIGKILL


def test_kill_of_the_command_while_a_wrapped_worker_starts(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """The worker's parent is a shell that lives on, and Lava is not imported yet."""
    wrapper = tmp_path / "wrapped-python"
    wrapper.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    run = start(KNARR_LAVA_PYTHON=str(wrapper))
    assert until(run.find_group, START_S)
    assert until(lambda: len(members(run.group)) > 1, 10)  # the shell and its Python
    os.kill(run.command.pid, signal.SIGKILL)
    run.assert_nothing_left()


def test_kill_of_the_worker(start: Callable[..., Running]) -> None:
    run = in_mid_run(start())
    os.kill(run.group, signal.SIGKILL)
    run.assert_nothing_left()
    one_line(run, "died with exit status -9, killed by SIGKILL (out of memory?)", " steps; ")


WHICH = {"shared-memory manager": 0, "neuron or synapse": -1}
SOME = list(WHICH) if "KNARR_CONFORMANCE" in os.environ else ["neuron or synapse"]


@pytest.mark.parametrize("which", [WHICH[name] for name in SOME], ids=SOME)
def test_kill_of_one_of_lavas_processes(which: int, start: Callable[..., Running]) -> None:
    """What is left of Lava would wait for it for ever."""
    run = in_mid_run(start())
    forks = children(run.group)
    assert len(forks) >= 4
    os.kill(forks[which], signal.SIGKILL)
    run.assert_nothing_left()
    one_line(
        run, "one of Lava's processes was killed by SIGKILL (out of memory?) after ", " steps; "
    )
