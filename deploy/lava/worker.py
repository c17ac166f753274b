"""The one script that runs Lava: `python -I worker.py JOB_FOLDER`, started by `run_on_lava`.

Without a folder it only looks whether Lava is there.

It reads job.json and inputs.npy, writes progress.json while it runs and, last of all, renames
result.npz into place: that file's existence is the only sign of success. An exception in any of
Lava's child processes, or a kill of one, hangs `run` for ever, so a thread looks after them and the
starter watches the clock, the log and fault.json.

At the top only the standard library is imported, and nothing of knarr: the interpreter that has
Lava need not have knarr, and knarr takes `start_group` and `kill_group` from here without having
Lava. Its one companion, compatibility.py, is loaded by its path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WATCH_S = 0.25
"""Time between two looks at Lava's processes."""
CHUNK_STEPS = 200
"""Time steps between two writings of progress.json."""
SHARED_MEMORY = "/dev/shm/"
NO_LAVA = 69
"""Exit status where Lava is not installed (EX_UNAVAILABLE of sysexits.h)."""


# --- a process group from its start to its end: every member, and the shared memory that they leave


def start_group(
    command: list[str],
    folder: Path,
    *,
    log: Path,
    environment: dict[str, str],
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, which `kill_group` ends with all its children.

    Args:
        command: what to start; it reads nothing.
        folder: where it starts.
        log: file that receives its output. A pipe that an orphan holds would never end.
        environment: variables beside those of this process.
        pass_fds: descriptors that it inherits.

    Raises:
        OSError: it cannot be started.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=pass_fds,
        )


def members(group: int) -> list[int]:
    """Return the process ids of a group that still run; zombies have ended and do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # A process may end while it is looked at.
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command in parentheses may itself hold spaces, so split after it: state,
                # parent, group.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def shared_memory(processes: list[int]) -> set[str]:
    """Return the files under /dev/shm that processes have mapped."""
    files: set[str] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/maps").read_text().splitlines():
                _, slash, rest = line.partition("/")
                if (slash + rest).startswith(SHARED_MEMORY):
                    files.add((slash + rest).removesuffix(" (deleted)"))
    return files


def kill_group(group: int, *, wait_s: float = 10.0, spare: int | None = None) -> None:
    """SIGKILL every member of a group, wait until all are gone, remove the memory only they had.

    Args:
        group: process group id.
        wait_s: how long to wait for the end, seconds.
        spare: a member to let live: the one that calls.

    Raises:
        TimeoutError: a member survived SIGKILL for `wait_s` seconds.
    """
    files = shared_memory(members(group))
    deadline = time.monotonic() + wait_s
    while left := [process for process in members(group) if process != spare]:
        files |= shared_memory(left)  # of what was forked meanwhile
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if spare is None:
                os.killpg(group, signal.SIGKILL)
        for process in left if spare is not None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"processes {left} of group {group} survive SIGKILL; end them by hand"
            )
        time.sleep(0.02)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _die_with_starter(alive: int, job_folder: Path) -> None:
    """End the whole group when the process that started us is gone.

    Lava's children would otherwise run for ever.

    Args:
        alive: reading end of a pipe that the starter holds open; its end-of-file is the starter's
            end.
        job_folder: removed, since the starter cannot do it any more.
    """
    os.read(alive, 1)
    group = os.getpgrp()
    try:
        kill_group(group, spare=os.getpid())
        for _ in range(20):  # the main thread may still be writing
            shutil.rmtree(job_folder, ignore_errors=True)
            if not job_folder.exists():
                break
            time.sleep(0.05)
    finally:
        os.killpg(group, signal.SIGKILL)


# --- faults of Lava's processes


class _Watch:
    """Looks after Lava's processes while one network runs.

    `with` it around all use of the network but its stop. A process that raised sends its traceback
    down a pipe that nobody reads, or Lava reads and logs at a level that nobody sees: it is printed
    to the log. One that ended, killed or not, leaves the others waiting: fault.json tells it.

    Raises:
        RuntimeError: at the end, where Lava raised since a process of its had: says what that was.
    """

    def __init__(self, net: Any, job_folder: Path) -> None:
        self.net, self.job_folder = net, job_folder
        self.looking, self.running = threading.Lock(), True

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        with self.looking:  # Lava's own stop reads the same pipes and would wait for what we took
            self.running = False
        if error is None:
            return
        traceback.print_exception(error)  # before stop, which may hang after a fault
        failures = [failure for failure in map(_failure, self._processes()) if failure]
        for failure in failures:
            print(failure, file=sys.stderr, flush=True)  # noqa: T201 - to the log
        if failures:
            said = failures[0].strip().splitlines()[-1]
            raise RuntimeError(f"a process of Lava's raised {said}") from error

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_S)
            with self.looking:
                if not self.running or self._fault():
                    return

    def _processes(self) -> list[Any]:
        # None of this is public in Lava, and little of it exists before the first run.
        runtime = getattr(self.net, "_runtime", None)
        infrastructure = getattr(runtime, "_messaging_infrastructure", None)
        memory = getattr(getattr(infrastructure, "smm", None), "_manager", None)
        manager = getattr(memory, "_process", None)
        processes = list(getattr(infrastructure, "actors", None) or [])
        if manager:
            processes.append(manager)
        return processes

    def _fault(self) -> bool:
        for process in self._processes():
            status = None
            with contextlib.suppress(ValueError):  # Lava has closed it
                status = process.exitcode  # before the pipe, which is written before the end
            failure = _failure(process)
            if failure:
                print(failure, file=sys.stderr, flush=True)  # noqa: T201 - to the log
                return True
            if status is not None:
                _write_json(self.job_folder / "fault.json", {"status": status})
                return True
        return False


def _failure(process: Any) -> str | None:
    """Return the traceback that a process of Lava's sent when it raised."""
    # Its pipe closes when the run ends.
    with contextlib.suppress(OSError, EOFError, ValueError):
        failure = getattr(process, "exception", None)
        return str(failure[1]) if failure else None
    return None


def _write_json(path: Path, value: object) -> None:
    # The starter reads these files at any moment and must not find half of one.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


# --- recording


class Recorder:
    """Records in memory that Lava's processes share, being forks of this one.

    Lava's own way to read what a sink or monitor holds takes 20 us for every number: minutes for a
    network of some size. Make one before Lava forks: sinks and monitors then write each step into
    their array instead of a Var of theirs.

    Attributes:
        recorded: key -> (steps, *lava shape) int32, which holds all that a register of the chip
            can.
    """

    def __init__(self) -> None:
        from lava.proc.io.sink import AbstractPyReceiveModel
        from lava.proc.monitor.models import PyMonitorModel

        self.recorded: dict[str, Any] = {}

        def keep(model: Any, state: Any) -> None:
            # Lava counts steps from 1.
            self.recorded[model.proc_params["recorded_as"]][model.time_step - 1] = state

        def receive(model: Any) -> None:
            keep(model, model.a_in.recv())

        def read(model: Any) -> None:
            keep(model, getattr(model, model.proc_params["RefPorts"][0]).read())

        AbstractPyReceiveModel.run_spk = receive
        PyMonitorModel.run_post_mgmt = read

    def record(self, process: Any, key: str, steps: int, shape: tuple[int, ...]) -> None:
        """Let a sink, or the one probe of a monitor, write into an array of its own.

        Args:
            process: the sink or monitor.
            key: name of its array.
            steps: time steps that Lava will run.
            shape: Lava's shape of one step.
        """
        import numpy as np

        # Memory of no file stays shared after a fork, and goes with the last process.
        memory = mmap.mmap(-1, 4 * steps * math.prod(int(n) for n in shape))
        self.recorded[key] = np.frombuffer(memory, dtype=np.int32).reshape(steps, *shape)
        process.proc_params["recorded_as"] = key


# --- the run


def load_compatibility() -> Any:
    """Return the module of compatibility.py, which lies beside this file."""
    path = Path(__file__).with_name("compatibility.py")
    spec = importlib.util.spec_from_file_location("knarr_lava_compatibility", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(job_folder: Path) -> None:
    """Run a batch of equally long samples.

    They run in one pipelined, resetting run, or each in a network of its own.

    Args:
        job_folder: holds job.json: net (path), message_bits, readout, record, driven (inputs are bias
            mantissas of the input layer), isolated (spikes under way in delays and loops would
            reach the next sample). And inputs.npy: (samples, timesteps, *features) integers.
            Receives result.npz: output, and spikes/<i>, v/<i>, u/<i> of each of netx's layers;
            (samples, timesteps, *features), time aligned to the inputs.

    Raises:
        ModuleNotFoundError: Lava (name "lava") or a package that it needs is not there.
    """
    load_compatibility().prepare()
    import numpy as np

    job = json.loads((job_folder / "job.json").read_text(encoding="utf-8"))
    inputs = np.load(job_folder / "inputs.npy", allow_pickle=False)
    alone = job["driven"] or job["isolated"]
    batches = np.split(inputs, len(inputs)) if alone else [inputs]
    results = []
    for number, batch in enumerate(batches):

        def progress(done: int, of: int, number: int = number) -> None:
            state = {"steps": number * of + done, "of": len(batches) * of}
            _write_json(job_folder / "progress.json", state)

        results.append(_run_batch(job, batch, progress, job_folder))
    result: dict[str, Any] = {
        key: np.concatenate([part[key] for part in results]) for key in results[0]
    }
    temporary = job_folder / "result.tmp.npz"
    np.savez(temporary, **result)
    os.replace(temporary, job_folder / "result.npz")


def _run_batch(job: Any, inputs: Any, progress: Any, job_folder: Path) -> dict[str, Any]:
    """Run one network once and return what was recorded."""
    import numpy as np
    from lava.lib.dl import netx
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.source import RingBuffer as Source

    samples, timesteps = inputs.shape[:2]
    driven = job["driven"]
    alone = driven or job["isolated"]  # one sample from rest, nothing to reset
    net = netx.hdf5.Network(
        net_config=job["net"],
        input_message_bits=job["message_bits"],
        reset_interval=None if alone else timesteps,
        # Layer by layer, one step later each, so that pipelined samples equal isolated ones.
        reset_offset=1,
    )
    layers = list(net.layers)
    # An input layer with neurons answers in the step it is driven, any other layer one step after
    # it is fed.
    late = 0 if driven else 1
    steps = samples * timesteps + len(layers)

    columns = np.moveaxis(inputs.reshape(samples * timesteps, *inputs.shape[2:]), 0, -1)
    if inputs.ndim == 5:
        columns = columns.transpose(2, 1, 0, 3)  # (C, H, W, t) -> Lava's (W, H, C, t)
    # Without the zero columns the source would begin anew while the last layers still work.
    padding = [(0, 0)] * (columns.ndim - 1) + [(0, len(layers) + 1)]
    columns = np.pad(columns, padding)
    waiting: dict[int, list[tuple[Any, Any]]] = {}  # step -> biases that begin there
    if alone:
        # A layer would integrate its bias before the first input reaches it, and what it fires
        # could not be taken back.
        first = 1 if driven else 0
        for index, layer in enumerate(layers[first:], start=first):
            bias = layer.neuron.bias_mant
            value = np.broadcast_to(bias.init, bias.shape).copy()
            waiting.setdefault(index + late, []).append((bias, value))
            bias.init = np.zeros(bias.shape, dtype=np.int32)
    if driven:
        layers[0].neuron.bias_mant.init = columns[..., 0].astype(np.int32)
    else:
        source = Source(data=columns.astype(np.int32))
        source.s_out.connect(net.inp)

    recorder = _record(job, layers, steps)
    done = 0
    try:
        with _Watch(net, job_folder):
            while done < steps:
                for bias, value in waiting.pop(done, []):
                    bias.set(value.astype(np.int32))
                chunk = 1 if driven or waiting else min(timesteps, CHUNK_STEPS)
                if driven and done:
                    # The bias of the steps after the last sample does not matter: nobody looks at
                    # them.
                    column = columns[..., min(done, columns.shape[-1] - 1)]
                    layers[0].neuron.bias_mant.set(column.astype(np.int32))
                now = min(chunk, steps - done)
                net.run(
                    condition=RunSteps(num_steps=now), run_cfg=Loihi2SimCfg(select_tag="fixed_pt")
                )
                done += now
                progress(done, steps)
    finally:
        net.stop()
    result = {}
    for key, data in recorder.recorded.items():
        # (steps, *lava shape): layer l (from 0) answers column k in step k + late + l.
        begin = int(key.partition("/")[2]) + late
        data = data[begin : begin + samples * timesteps]
        if data.ndim == 4:
            data = data.transpose(0, 3, 2, 1)
        data = data.astype(np.int64, order="C")
        result[key] = data.reshape(samples, timesteps, *data.shape[1:])
    last = result[f"{_output_kind(job)}/{len(layers) - 1}"]
    result["output"] = last.reshape(samples, timesteps, -1)
    return result


def _output_kind(job: Any) -> str:
    return "v" if job["readout"] == "voltage" else "spikes"


def _record(job: Any, layers: list[Any], steps: int) -> Recorder:
    """Connect a sink or monitor to all that is recorded, which the output always is."""
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.monitor.process import Monitor

    recorder = Recorder()
    for index, layer in enumerate(layers):
        kinds = set(job["record"])
        if layer is layers[-1]:
            kinds.add(_output_kind(job))
        if "spikes" in kinds:
            sink = Sink(shape=layer.out.shape, buffer=1)
            layer.out.connect(sink.a_in)
            recorder.record(sink, f"spikes/{index}", steps, layer.out.shape)
        for state in ("v", "u"):
            if state in kinds:
                var = getattr(layer.neuron, state)
                monitor = Monitor()
                monitor.probe(var, 1)
                recorder.record(monitor, f"{state}/{index}", steps, var.shape)
    return recorder


def _main(folder: Path | None) -> None:
    if folder is None:
        load_compatibility().find()
        return
    if "KNARR_STARTER_FD" in os.environ:
        pipe = int(os.environ["KNARR_STARTER_FD"])
        threading.Thread(target=_die_with_starter, args=(pipe, folder), daemon=True).start()
    # Lava's processes meet at sockets whose names the system cuts at 107 bytes, which a long TMPDIR
    # passes: name them from here.
    multiprocessing.current_process()._config["tempdir"] = "."  # type: ignore[attr-defined]
    run(folder)


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except ModuleNotFoundError as error:
        if error.name != "lava":
            raise
        sys.exit(NO_LAVA)
