"""Run `.net` files in the Lava simulator, behind a supervised worker.

Lava hangs in silence and orphans its children, so a process of its own runs it, and whatever
happens to that process the caller hears of it and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError, LavaError, LavaMissingError
from knarr.deploy.lava.compatibility import lava_folder
from knarr.deploy.lava.install import is_damaged
from knarr.deploy.lava.worker import NO_LAVA, kill_group, start_group
from knarr.deploy.netx.files import read_net
from knarr.deploy.rules import HARDWARE_RULES, check_network, fatal
from knarr.hw_sim import ChipNetwork, Conv, Dense, Recording, Recurrent
from knarr.hw_sim.arrays import Array, IntArray
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.recording import INPUT_LAYER, RECORDABLE

IMPORT_ALLOWANCE_S = 120.0
"""Time that a worker may take to import Lava."""
STEP_ALLOWANCE_S = 1.0
"""Time that one time step may take."""
BATCH_STEPS = 10_000
"""Time steps of one worker: minutes of Lava against seconds of imports, and a bounded memory."""
POLL_S = 0.05
CRASH_GRACE_S = 3.0
"""Time that a worker may live on after a traceback in its log; Lava recovers from none."""
LOG_TAIL_LINES = 8
WORKER = Path(__file__).with_name("worker.py")

Progress = Callable[[int, int], None]


def lava_python() -> str:
    """Return the interpreter that runs Lava: KNARR_LAVA_PYTHON, or the one that runs knarr."""
    named = os.environ.get("KNARR_LAVA_PYTHON") or sys.executable
    # It starts in a folder of the worker's own; a bare name is looked for in the PATH.
    return str(Path(named).absolute()) if os.sep in named else named


def require_lava() -> None:
    """See that Lava is there, for those who will need it after long work.

    Raises:
        LavaMissingError: it is not installed, or the interpreter named for it cannot start.
    """
    try:
        looked = subprocess.run(
            [lava_python(), "-I", str(WORKER)],
            env={**os.environ, **_lava_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=IMPORT_ALLOWANCE_S,
            check=False,
        )
    except OSError as error:
        raise LavaMissingError(_cannot_start(lava_python(), error)) from error
    except subprocess.TimeoutExpired:
        return  # what is slow may still be there
    if looked.returncode == NO_LAVA:
        raise LavaMissingError(_not_installed())


def run_on_lava(
    path: str | Path,
    inputs: npt.ArrayLike,
    *,
    record: Sequence[str] = ("output",),
    timesteps: int | None = None,
    input_bits: int | None = None,
    timeout_s: float | None = None,
    batch_steps: int = BATCH_STEPS,
    progress: Progress | None = None,
) -> Recording:
    """Run a `.net` file in the Lava simulator (fixed_pt).

    Samples run pipelined with a reset between them. Those whose spikes could be under way when the
    next begins (delays, loops) get a network each.

    Args:
        path: netx file; checked before launch, because a bad one hangs Lava.
        inputs: (samples, timesteps, *features) integers as `knarr.hw_sim.simulate` takes them.
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and
            current).
        timesteps: how many, where the inputs are a bias without a time axis.
        input_bits: as for `read_net`.
        timeout_s: limit of the whole run, seconds; by default 120 for each worker's imports and 1
            for every time step.
        batch_steps: time steps after which a fresh worker goes on with the next samples; the result
            does not depend on it.
        progress: called with (steps done, steps in all).

    Returns:
        Recording aligned like the simulator's own: column t answers input t.

    Raises:
        DeployError: the file is malformed or breaks a rule, or record or batch_steps are nothing
            this can do.
        ChipError: the inputs do not fit.
        LavaMissingError: Lava is not installed or damaged, or its interpreter cannot start.
        LavaError: the worker died, lost a child or ran out of time; carries the tail of its log.
            Nothing of it is left running.
    """
    path = Path(path)
    network = read_net(path, input_bits=input_bits)
    # The neurons that netx gives a bare readout are none that hardware has, and all that Lava needs.
    readouts = {layer.name for layer in network.layers if not layer.neuron.spikes}
    broken = [
        one
        for one in fatal(check_network(network))
        if one.rule not in HARDWARE_RULES or one.layer not in readouts
    ]
    if broken:
        raise DeployError(f"{path}: not run, {broken[0]}")
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise DeployError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    if batch_steps < 1:
        raise DeployError(f"batch_steps: {batch_steps}, needs at least 1")
    events = check_inputs(network.input, inputs, timesteps)
    samples, steps = events.shape[:2]
    job = LavaJob(path, network, tuple(record))
    batches = job.batches(samples, steps, batch_steps)
    batch_lengths = [job.steps(batch.stop - batch.start, steps) for batch in batches]
    in_all = sum(batch_lengths)
    limit_s = timeout_s or IMPORT_ALLOWANCE_S * len(batches) + STEP_ALLOWANCE_S * in_all
    started, before, shown = time.monotonic(), 0, -1
    parts = []
    for batch, length in zip(batches, batch_lengths, strict=True):

        def show(done: int, _: int, before: int = before) -> None:
            nonlocal shown
            if progress is not None and before + done != shown:
                shown = before + done
                progress(shown, in_all)

        with tempfile.TemporaryDirectory(prefix="knarr-lava-") as folder:
            job.write(Path(folder), events[batch])
            command = [lava_python(), "-I", str(WORKER), folder]
            try:
                supervise(command, Path(folder), limit_s, show, started=started)
            except LavaMissingError:
                raise
            except LavaError as error:
                _refuse_damaged(error)
                if len(batches) == 1:
                    raise
                raise LavaError(
                    f"samples {batch.start}..{batch.stop - 1} of {samples}: {error}"
                ) from error
            with np.load(Path(folder) / "result.npz", allow_pickle=False) as arrays:
                parts.append(dict(arrays))
        before += length
        show(0, in_all, before)
    return _as_recording(job, parts)


# --- what a worker is told, and what it gives back


@dataclass(frozen=True)
class LavaJob:
    """The task of one worker.

    Args:
        net: path of the `.net` file.
        network: the network in it.
        record: names of `knarr.hw_sim.simulate`.
    """

    net: Path
    network: ChipNetwork
    record: tuple[str, ...]

    @property
    def driven(self) -> bool:
        """True where the inputs are biases of an input layer."""
        return self.network.input.neuron is not None

    @property
    def isolated(self) -> bool:
        """True where every sample needs a network of its own."""
        # Lava's reset clears neurons, not what is under way to them.
        return any(
            isinstance(layer, Recurrent)
            or (isinstance(layer, Dense) and layer.delay_int is not None)
            for layer in self.network.layers
        )

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers in netx's order: an input is one only where it has neurons."""
        names = [layer.name for layer in self.network.layers]
        return [INPUT_LAYER, *names] if self.driven else names

    def steps(self, samples: int, timesteps: int) -> int:
        """Count the time steps that Lava runs for so many samples."""
        # Every network is run on until its last layer has answered the last input.
        networks = samples if self.driven or self.isolated else 1
        return samples * timesteps + networks * len(self.layer_names)

    def batches(self, samples: int, timesteps: int, most_steps: int) -> list[slice]:
        """Share samples out to workers: at most `most_steps` steps, at least one sample each."""
        size = 1
        while size < samples and self.steps(size + 1, timesteps) <= most_steps:
            size += 1
        return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]

    def _message_bits(self) -> int:
        """Return what netx is told of the input: 0 makes a spike of every payload, a sign included."""
        coding = self.network.input
        return 0 if coding.bits == 1 and not coding.signed else coding.bits + coding.signed

    def write(self, folder: Path, events: IntArray) -> None:
        """Write job.json and inputs.npy; events are (samples, timesteps, *features)."""
        job = {
            "net": str(self.net.resolve()),
            "message_bits": self._message_bits(),
            "readout": self.network.readout.kind,
            "record": list(self.record),
            "driven": self.driven,
            "isolated": self.isolated,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # netx feeds a first dense layer a vector.
        if not self.driven and not isinstance(self.network.layers[0], Conv):
            events = events.reshape(*events.shape[:2], -1)
        np.save(folder / "inputs.npy", events.astype(np.int64))


def _as_recording(job: LavaJob, parts: Sequence[dict[str, Array]]) -> Recording:
    """Join the results of all batches, whose arrays are "output" and "<kind>/<layer's number>"."""
    result = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    recorded: dict[str, dict[str, Any]] = {"spikes": {}, "v": {}, "u": {}}
    for kind, arrays in recorded.items():
        # The worker records a voltage readout's v, or the last spikes, even if nobody asked.
        if kind in job.record:
            for number, name in enumerate(job.layer_names):
                arrays[name] = result[f"{kind}/{number}"]
    counts = {}
    for name, spikes in recorded["spikes"].items():
        recorded["spikes"][name] = spikes.astype(np.uint8)
        counts[name] = spikes.sum(axis=tuple(range(2, spikes.ndim)), dtype=np.int64)
    return Recording(result["output"], **recorded, event_counts=counts, engine="lava")


# --- supervision


def supervise(
    command: list[str],
    job_folder: Path,
    limit_s: float,
    progress: Progress | None = None,
    *,
    started: float | None = None,
) -> None:
    """Run a worker in its own process group until result.npz appears.

    Whatever happens, nothing of it stays.

    Args:
        command: what to start, in job_folder.
        job_folder: holds the job and receives progress.json, fault.json, log.txt and result.npz.
        limit_s: seconds from `started` (a time.monotonic(), now when left out) to the result.
        progress: called with (steps done, steps in all).

    Raises:
        LavaMissingError: it could not start, or has no Lava.
        LavaError: it ended without a result, wrote a traceback, lost a child, or passed the limit.
    """
    # The worker's end of this pipe reads end-of-file when this process dies, whatever of.
    theirs, ours = os.pipe()
    environment = {
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(job_folder),
        "KNARR_STARTER_FD": str(theirs),
        **_lava_path(),
    }
    log = job_folder / "log.txt"
    try:
        worker = start_group(
            command, job_folder, log=log, environment=environment, pass_fds=(theirs,)
        )
    except OSError as error:
        os.close(ours)
        raise LavaMissingError(_cannot_start(command[0], error)) from error
    finally:
        os.close(theirs)
    deadline = (time.monotonic() if started is None else started) + limit_s
    try:
        _wait(worker, job_folder, limit_s, deadline, progress)
    finally:
        kill_group(worker.pid)
        os.close(ours)  # only now: it would start to end itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=10)


def _wait(
    worker: subprocess.Popen[bytes],
    job_folder: Path,
    limit_s: float,
    deadline: float,
    progress: Progress | None,
) -> None:
    result, log_path = job_folder / "result.npz", job_folder / "log.txt"
    crashed_at: float | None = None
    shown = -1
    while not result.exists():
        # Once more for the result: the worker may have ended between the two looks.
        ended = worker.poll() is not None and not result.exists()
        now = time.monotonic()
        state = _read_json(job_folder / "progress.json")
        steps, of = state.get("steps", 0), state.get("of", 0)
        if progress is not None and of and steps != shown:
            progress(steps, of)
            shown = steps
        if crashed_at is None and b"Traceback (most recent call last)" in log_path.read_bytes():
            crashed_at = now
        fault = None
        lost = _lost_child(job_folder)
        if ended and worker.returncode == NO_LAVA:
            raise LavaMissingError(_not_installed())
        if ended:
            fault = f"died with {_ending(worker.returncode)} after {steps} steps"
        elif lost is not None:
            fault = f"one of Lava's processes {lost} after {steps} steps"
        elif crashed_at is not None and now - crashed_at > CRASH_GRACE_S:
            fault = f"an exception in a Lava process hung it after {steps} steps"
        elif now > deadline:
            fault = (
                f"no result within {limit_s:.0f} s ({steps} of {of or 'unknown'} steps done); it "
                "hangs or needs a longer limit"
            )
        if fault is not None:
            raise LavaError(f"Lava worker: {fault}; {_tail(log_path)}")
        time.sleep(POLL_S)


def _read_json(path: Path) -> dict[str, int]:
    try:
        content: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # the worker has not written it yet, or has nothing to say
    return content


def _lost_child(job_folder: Path) -> str | None:
    """Say what ended a child of the worker, for which the rest of Lava would wait without end."""
    status = _read_json(job_folder / "fault.json").get("status")
    if status is None:
        return None
    if status < 0:
        return f"was killed by {_signal(-status)}"
    return f"ended too early, with exit status {status},"


def _lava_path() -> dict[str, str]:
    """Return KNARR_LAVA_PATH as the worker needs it, which starts in a folder of its own."""
    named = os.environ.get("KNARR_LAVA_PATH")
    return {"KNARR_LAVA_PATH": str(lava_folder())} if named else {}


def _refuse_damaged(error: LavaError) -> None:
    """Say so where a fault comes of files that changed since they were installed.

    Raises:
        LavaMissingError: they did.
    """
    # Another interpreter looks into its own environment, unless the folder is named.
    ours = os.environ.get("KNARR_LAVA_PATH") or not os.environ.get("KNARR_LAVA_PYTHON")
    if ours and is_damaged(lava_folder()):
        raise LavaMissingError(
            f"Lava: {lava_folder()} no longer holds what was installed there; run `knarr lava "
            "install`, which mends it"
        ) from error


def _cannot_start(python: str, error: OSError) -> str:
    return (
        f"Lava worker: cannot start {python} ({error}); set KNARR_LAVA_PYTHON to an interpreter "
        "that has Lava, or unset it and run `knarr lava install`"
    )


def _not_installed() -> str:
    named = os.environ.get("KNARR_LAVA_PYTHON")
    if named:
        return (
            f"Lava: not installed for {named}, which KNARR_LAVA_PYTHON names; name an interpreter "
            "that has Lava, or unset it and run `knarr lava install`"
        )
    return f"Lava: not installed, {lava_folder()} does not hold it; run `knarr lava install`"


def _ending(status: int) -> str:
    return f"exit status {status}" + (f", killed by {_signal(-status)}," if status < 0 else "")


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    # The kernel sends it when memory runs out; a user's kill -9 looks the same.
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name


def _tail(log_path: Path) -> str:
    stripped = [line.strip() for line in log_path.read_text(errors="replace").splitlines()]
    # Python underlines the place in a line by a line of its own.
    lines = [line for line in stripped if line.strip("~^ ")]
    return "log: " + " | ".join(lines[-LOG_TAIL_LINES:]) if lines else "its log is empty"
