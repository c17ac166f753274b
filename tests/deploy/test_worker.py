"""Whatever a worker does, its starter hears of it in one line and nothing of it stays."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from knarr.cli import main
from knarr.deploy import (
    LavaError,
    LavaMissingError,
    lava_folder,
    lava_python,
    require_lava,
    run_on_lava,
    write_net,
)
from knarr.deploy.lava import run as lava
from knarr.deploy.lava.worker import kill_group, members, shared_memory
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout

LONG_S = 300.0
"""A limit no test waits for: it ends by what the worker shows."""


@dataclass(frozen=True)
class Ended:
    """A process group as it was just before it was ended."""

    group: int
    processes: list[int]
    shared: set[str]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    seen: list[Ended] = []

    def spy(group: int) -> None:
        processes = members(group)
        seen.append(Ended(group, processes, shared_memory(processes)))
        kill_group(group)

    monkeypatch.setattr(lava, "kill_group", spy)
    return seen


def fake(folder: Path, body: str) -> list[str]:
    script = folder / "fake_worker.py"
    prelude = "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
    script.write_text(prelude + textwrap.dedent(body), encoding="utf-8")
    return [sys.executable, "-I", str(script)]


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def assert_nothing_left(ended: list[Ended], *, processes: int) -> None:
    (group,) = ended
    assert len(group.processes) >= processes  # there was something to end
    assert members(group.group) == []
    for process in group.processes:
        stat = Path(f"/proc/{process}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not [name for name in group.shared if os.path.exists(name)]


def refused(command: list[str], folder: Path, limit_s: float = LONG_S) -> str:
    with pytest.raises(LavaError) as caught:
        lava.supervise(command, folder, limit_s)
    text = str(caught.value)
    assert text.startswith("Lava worker: ")
    assert "\n" not in text
    return text


FAMILY = """
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        subprocess.Popen([sys.executable, "-I", "-c", child])
    while Path("log.txt").read_text().count("deaf") < 2:
        time.sleep(0.02)
"""


def test_a_worker_that_dies_says_why(tmp_path: Path, ended: list[Ended]) -> None:
    body = """
        for i in range(20):
            print("line", i, flush=True)
        print("no such layer", file=sys.stderr)
        sys.exit(3)
    """
    text = refused(fake(tmp_path, body), tmp_path)
    assert "died with exit status 3 after 0 steps; log: line 13 | line 14 |" in text
    assert text.endswith("line 19 | no such layer")
    assert_nothing_left(ended, processes=0)


def test_a_worker_that_dies_in_silence(tmp_path: Path, ended: list[Ended]) -> None:
    body = """
        Path("progress.json").write_text('{"steps": 5, "of": 9}')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    text = refused(fake(tmp_path, body), tmp_path)
    assert text == (
        "Lava worker: died with exit status -9, killed by SIGKILL (out of memory?), after 5 steps; its log is empty"
    )
    assert_nothing_left(ended, processes=0)


def test_a_log_of_any_bytes_makes_one_line(tmp_path: Path, ended: list[Ended]) -> None:
    body = r"""
        os.write(1, b"\xff\xfe bad\r\n\n\x0b  \xc3\xa9nd\n")
        sys.exit(1)
    """
    text = refused(fake(tmp_path, body), tmp_path)
    assert text.endswith("bad | énd")
    assert_nothing_left(ended, processes=0)


def test_children_of_a_dead_worker_go_too(tmp_path: Path, ended: list[Ended]) -> None:
    text = refused(fake(tmp_path, textwrap.dedent(FAMILY) + "sys.exit(4)"), tmp_path)
    assert "exit status 4" in text
    assert_nothing_left(ended, processes=2)


def test_a_hanging_worker_and_its_deaf_children(tmp_path: Path, ended: list[Ended]) -> None:
    hang = textwrap.dedent(FAMILY) + textwrap.dedent(
        """
        Path("progress.json").write_text('{"steps": 2, "of": 9}')
        time.sleep(600)
        """
    )
    text = refused(fake(tmp_path, hang), tmp_path, limit_s=5.0)
    assert "no result within 5 s (2 of 9 steps done); it hangs or needs a longer limit" in text
    assert text.endswith("log: deaf | deaf")
    assert_nothing_left(ended, processes=3)


def test_a_traceback_ends_a_worker_before_its_limit(
    tmp_path: Path, ended: list[Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lava, "CRASH_GRACE_S", 0.3)
    body = """
        print("Traceback (most recent call last):\\n  File ...\\nValueError: iDecay is a float", flush=True)
        time.sleep(600)
    """
    text = refused(fake(tmp_path, body), tmp_path)
    assert "an exception in a Lava process hung it after 0 steps" in text
    assert text.endswith("File ... | ValueError: iDecay is a float")
    assert_nothing_left(ended, processes=1)


SHARED = """
    child = '''
    import time
    from multiprocessing import resource_tracker, shared_memory
    memory = shared_memory.SharedMemory(create=True, size=1000)
    resource_tracker.unregister(memory._name, "shared_memory")
    print("memory", memory.name, flush=True)
    time.sleep(600)
    '''
    import textwrap
    for _ in range(2):
        subprocess.Popen([sys.executable, "-I", "-c", textwrap.dedent(child)])
    while Path("log.txt").read_text().count("memory") < 2:
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("sys.exit(5)", "exit status 5"),
        (
            "print('Traceback (most recent call last):', flush=True); time.sleep(600)",
            "an exception",
        ),
    ],
)
def test_shared_memory_of_children_is_removed(
    end: str, message: str, tmp_path: Path, ended: list[Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lava, "CRASH_GRACE_S", 0.0)
    text = refused(fake(tmp_path, textwrap.dedent(SHARED) + end), tmp_path)
    assert message in text
    log = (tmp_path / "log.txt").read_text().split()
    names = {f"/dev/shm/{log[i + 1]}" for i, word in enumerate(log) if word == "memory"}
    assert len(names) == 2
    assert ended[0].shared == names
    assert not [name for name in names if os.path.exists(name)]
    assert_nothing_left(ended, processes=2)


def test_a_result_ends_a_worker_that_would_stay(tmp_path: Path, ended: list[Ended]) -> None:
    stay = textwrap.dedent(FAMILY) + 'Path("result.npz").write_bytes(b"done")\ntime.sleep(600)\n'
    lava.supervise(fake(tmp_path, stay), tmp_path, LONG_S)
    assert (tmp_path / "result.npz").read_bytes() == b"done"
    assert_nothing_left(ended, processes=3)


def test_a_result_counts_whatever_the_exit_status(tmp_path: Path, ended: list[Ended]) -> None:
    body = 'Path("result.npz").write_bytes(b"done")\nos._exit(139)\n'
    lava.supervise(fake(tmp_path, body), tmp_path, LONG_S)
    assert_nothing_left(ended, processes=0)


def test_an_error_in_the_starter_ends_the_worker(tmp_path: Path, ended: list[Ended]) -> None:
    body = textwrap.dedent(FAMILY) + textwrap.dedent(
        """
        Path("tmp").write_text('{"steps": 1, "of": 2}')
        os.replace("tmp", "progress.json")
        time.sleep(600)
        """
    )

    def interrupt(steps: int, of: int) -> None:
        assert (steps, of) == (1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lava.supervise(fake(tmp_path, body), tmp_path, LONG_S, interrupt)
    assert_nothing_left(ended, processes=3)


def test_the_worker_has_no_stdin_one_thread_and_its_own_session(
    tmp_path: Path, ended: list[Ended]
) -> None:
    body = """
        alone = os.getpid() == os.getpgrp() == os.getsid(0)
        print(sys.stdin.read() == "", os.environ["OMP_NUM_THREADS"], alone, os.getcwd())
        sys.exit(1)
    """
    assert refused(fake(tmp_path, body), tmp_path).endswith(f"log: True 1 True {tmp_path}")
    assert_nothing_left(ended, processes=0)


# --- the interpreter


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "network.net"
    layer = Dense("d", np.array([[30, -3], [-20, 9]]), Neuron(4096, 0, 20))
    write_net(ChipNetwork((layer,), InputCoding((2,)), Readout("spikes")), path)
    return path


def test_the_interpreter_is_our_own_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNARR_LAVA_PYTHON", raising=False)
    assert lava_python() == sys.executable
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "")
    assert lava_python() == sys.executable
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "/opt/python3.10")
    assert lava_python() == "/opt/python3.10"


def test_the_named_interpreter_is_used(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = net.with_name("other python")
    other.write_text('#!/bin/sh\necho "other python: $*"\nexit 7\n')
    other.chmod(0o755)
    monkeypatch.setenv("KNARR_LAVA_PYTHON", str(other))
    with pytest.raises(
        LavaError, match=r"exit status 7 .*other python: -I .*lava/worker\.py .*knarr-lava-"
    ):
        run_on_lava(net, [[[0, 1]]])


@pytest.mark.parametrize("name", ["none", "data"])
def test_an_interpreter_that_cannot_start(
    name: str, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = net.with_name(name)
    if name == "data":
        path.write_text("not executable")
    monkeypatch.setenv("KNARR_LAVA_PYTHON", str(path))
    for needs_lava in (require_lava, lambda: run_on_lava(net, [[[0, 1]]])):
        with pytest.raises(
            LavaMissingError,
            match=rf"^Lava worker: cannot start {path} \(.*\); set KNARR_LAVA_PYTHON",
        ):
            needs_lava()


def bare_python(folder: Path) -> Path:
    """An interpreter without any packages."""
    bare = folder / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    return bare


def test_an_interpreter_without_lava(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = bare_python(net.parent)
    monkeypatch.setenv("KNARR_LAVA_PYTHON", str(bare))
    monkeypatch.setenv("KNARR_LAVA_PATH", str(net.with_name("nothing")))
    for needs_lava in (require_lava, lambda: run_on_lava(net, [[[0, 1]]])):
        with pytest.raises(LavaMissingError) as caught:
            needs_lava()
        assert str(caught.value) == (
            f"Lava: not installed for {bare}, which KNARR_LAVA_PYTHON names; name an interpreter that has Lava, or unset it and "
            "run `knarr lava install`"
        )


def test_a_folder_without_lava(
    net: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = net.with_name("nothing")
    monkeypatch.delenv("KNARR_LAVA_PYTHON", raising=False)
    monkeypatch.setenv("KNARR_LAVA_PATH", str(folder))
    said = f"Lava: not installed, {folder} does not hold it; run `knarr lava install`"
    for needs_lava in (require_lava, lambda: run_on_lava(net, [[[0, 1]]])):
        with pytest.raises(LavaMissingError) as caught:
            needs_lava()
        assert str(caught.value) == said
    # Nothing was compared, so this is no verdict on the network.
    np.save(net.with_name("in.npy"), np.ones((1, 4, 2), dtype=np.uint8))
    arguments = ["simulate", str(net), "--data", str(net.with_name("in.npy")), "--engine", "lava"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"knarr: {said}\n"


def test_paths_from_here_hold_for_the_worker(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").symlink_to(lava_folder())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNARR_LAVA_PATH", "here")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "bin/python")
    require_lava()
    assert run_on_lava(net, [[[0, 1]]]).engine == "lava"


@pytest.mark.parametrize("lost", ["lava/lib/dl/netx/hdf5.py", "lava/magma/core/run_configs.py"])
def test_damaged_lava_is_named_with_its_cure(
    lost: str, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = net.with_name("damaged")
    shutil.copytree(lava_folder(), folder)
    monkeypatch.setenv("KNARR_LAVA_PATH", str(folder))
    (folder / lost).write_bytes(b"\xff\0")
    with pytest.raises(LavaMissingError) as caught:
        run_on_lava(net, [[[0, 1]]])
    assert str(caught.value) == (
        f"Lava: {folder} no longer holds what was installed there; run `knarr lava install`, "
        "which mends it"
    )


def test_an_interpreter_with_lava_and_without_its_needs(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNARR_LAVA_PYTHON", str(bare_python(net.parent)))
    monkeypatch.setenv("KNARR_LAVA_PATH", str(lava_folder()))
    with pytest.raises(LavaError, match=r"exit status 1 .*No module named 'numpy'"):
        run_on_lava(net, [[[0, 1]]])


def test_the_job_folder_is_removed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = net.with_name("scratch")
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "/bin/false")
    with pytest.raises(LavaError, match="exit status 1"):
        run_on_lava(net, [[[0, 1]]])
    assert list(scratch.iterdir()) == []


def test_what_a_process_of_lavas_raised_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lava reads it first at times, logs it where nobody looks, and raises an error that does not say it."""
    spec = importlib.util.spec_from_file_location("worker", lava.WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    traced = "Traceback (most recent call last):\nValueError: iDecay is a float\n"
    actors = [SimpleNamespace(exitcode=None, exception=None), SimpleNamespace(exitcode=1, exception=(ValueError(), traced))]  # fmt: skip
    runtime = SimpleNamespace(_messaging_infrastructure=SimpleNamespace(actors=actors))
    with (
        pytest.raises(RuntimeError, match="a process of Lava's raised ValueError: iDecay is a flo"),
        worker._Watch(SimpleNamespace(_runtime=runtime), tmp_path),
    ):
        raise RuntimeError("1 Exception(s) occurred. See output above for details.")
    log = capfd.readouterr().err
    assert log.index("1 Exception(s)") < log.index("ValueError: iDecay is a float")


# --- Lava itself


def test_lava_that_hangs_is_ended(net: Path, tmp_path: Path, ended: list[Ended]) -> None:
    """A float decay raises in one of Lava's children, and `run` waits for it for ever."""
    with h5py.File(net, "r+") as file:
        del file["layer/1/neuron/iDecay"]
        file["layer/1/neuron/iDecay"] = np.float64(409.5)
    folder = tmp_path / "job"
    folder.mkdir()
    job = {
        "net": str(net),
        "message_bits": 0,
        "readout": "spikes",
        "record": ["output"],
        "driven": False,
        "isolated": False,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    np.save(folder / "inputs.npy", np.ones((1, 4, 2), dtype=np.int64))
    text = refused([lava_python(), "-I", str(lava.WORKER), str(folder)], folder, limit_s=20.0)
    assert not (folder / "result.npz").exists()
    assert ended[0].shared  # Lava's channels
    assert_nothing_left(ended, processes=4)
    assert "an exception in a Lava process hung it after 0 steps; log: " in text
    assert "Error: " in text  # the exception itself, not only that there was one


STARTER = """
import sys
from pathlib import Path
import numpy as np
from knarr.deploy import run_on_lava
run_on_lava(Path(sys.argv[1]), np.ones((5000, 4, 2), dtype=np.int64))
"""


def worker_of(starter: int) -> int | None:
    """The child that leads a group of its own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                _, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(parent) == starter and group == entry.name:
                return int(group)
    return None


def test_lava_ends_with_its_starter(net: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(net)],
        env={**os.environ, "TMPDIR": str(scratch)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    group: int | None = None
    try:
        running = until(lambda: bool(list(scratch.glob("*/progress.json"))), 120)
        assert starter.poll() is None
        assert running
        group = worker_of(starter.pid)
        assert group is not None
        processes = members(group)
        shared = shared_memory(processes)
        assert len(processes) > 3
        assert shared
        os.kill(starter.pid, signal.SIGKILL)
        assert starter.wait(10) == -signal.SIGKILL
        assert until(lambda: members(group) == [], 30), "Lava runs on without its starter"
        assert not [name for name in shared if os.path.exists(name)]
        assert not list(scratch.glob("*/result.npz"))
    finally:
        starter.kill()
        starter.wait(10)
        if group is not None:
            kill_group(group)
