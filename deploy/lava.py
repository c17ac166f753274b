"""`run_on_lava`: the Lava simulator behind a supervised worker, since Lava hangs in silence and orphans its children."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError, LavaError
from knarr.deploy.netx_read import read_net
from knarr.deploy.process_group import kill_group
from knarr.deploy.rules import check
from knarr.hw_sim import Conv, Dense, Recording, Recurrent
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.simulate import INPUT_LAYER, RECORDABLE, check_inputs

IMPORT_ALLOWANCE_S = 120.0
STEP_ALLOWANCE_S = 1.0
POLL_S = 0.05
CRASH_GRACE_S = 3.0
"""How long a worker may live on after a traceback in its log: Lava never recovers from one."""
LOG_TAIL_LINES = 8
WORKER = Path(__file__).with_name("lava_worker.py")


def lava_python() -> str:
    """Interpreter that has Lava: KNARR_LAVA_PYTHON, or the one that runs knarr."""
    return os.environ.get("KNARR_LAVA_PYTHON") or sys.executable


def run_on_lava(
    path: Path,
    inputs: npt.ArrayLike,
    *,
    record: Sequence[str] = ("output",),
    timesteps: int | None = None,
    timeout_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Run a `.net` file in the Lava simulator (fixed_pt), all samples in one pipelined run with reset between them.

    Args:
        path: netx file; checked before launch, because a bad one hangs Lava.
        inputs: (samples, timesteps, *features) integers as `knarr.hw_sim.simulate` takes them.
            Samples whose spikes could be under way when the next begins (delays, loops) get a network each.
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and current).
        timesteps: how many, where the inputs are a bias without a time axis.
        timeout_s: the whole run, seconds; by default 120 for imports and 1 for every time step.
        progress: called with (steps done, steps in all).

    Returns:
        Recording aligned like the simulator's own: column t answers input t.

    Raises:
        DeployError: the file is malformed or breaks a rule, or record names something unknown.
        ChipError: the inputs do not fit.
        LavaError: the worker could not start, died or ran out of time; carries the tail of its log. Nothing of it is
            left running.
    """
    network = read_net(path)
    broken = [violation for violation in check(network) if violation.severity == "error"]
    if broken:
        raise DeployError(f"{path}: not run, {broken[0]}")
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise DeployError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    events = check_inputs(network, inputs, timesteps)
    samples, steps = events.shape[:2]
    limit_s = timeout_s or IMPORT_ALLOWANCE_S + STEP_ALLOWANCE_S * samples * (steps + len(network.layers))
    driven = network.input.neuron is not None
    job = {
        "net": str(path.resolve()),
        "bits": network.input.bits,
        "readout": network.readout.kind,
        "record": list(record),
        "driven": driven,
        "isolated": any(outlives_a_sample(layer) for layer in network.layers),
    }
    with tempfile.TemporaryDirectory(prefix="knarr-lava-") as folder:
        job_folder = Path(folder)
        (job_folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        flat = not driven and not isinstance(
            network.layers[0], Conv
        )  # netx feeds a first dense layer a vector
        np.save(job_folder / "inputs.npy", events.reshape(samples, steps, -1) if flat else events)
        supervise([lava_python(), "-I", str(WORKER), folder], job_folder, limit_s, progress)
        with np.load(job_folder / "result.npz", allow_pickle=False) as arrays:
            result = {key: arrays[key] for key in arrays.files}
    names = [*([INPUT_LAYER] if driven else []), *(layer.name for layer in network.layers)]
    recorded = {
        kind: {name: result[f"{kind}/{i}"] for i, name in enumerate(names) if kind in record}
        for kind in ("spikes", "v", "u")
    }
    spikes = {name: array.astype(np.uint8) for name, array in recorded["spikes"].items()}
    return Recording(
        output=result["output"],
        spikes=spikes,
        v=recorded["v"],
        u=recorded["u"],
        event_counts={
            name: s.sum(axis=tuple(range(2, s.ndim)), dtype=np.int64) for name, s in spikes.items()
        },
        engine="lava",
    )


def outlives_a_sample(layer: Layer) -> bool:
    """Whether spikes of a sample can arrive in the next: Lava's reset clears neurons, not what is under way to them."""
    return isinstance(layer, Recurrent) or (isinstance(layer, Dense) and layer.delay_int is not None)


def supervise(
    command: list[str], job_folder: Path, limit_s: float, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run a worker in its own process group until result.npz appears; whatever happens, nothing of it stays.

    Raises:
        LavaError: it could not start, ended without a result, wrote a traceback, or passed the limit.
    """
    log_path = job_folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(job_folder)}
    with log_path.open("wb") as log:
        try:
            # Files, not pipes: a pipe held by an orphan never ends. Its own session, so that one kill ends them all.
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=job_folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise LavaError(
                f"Lava worker: cannot start {command[0]} ({error}); set KNARR_LAVA_PYTHON to Python 3.10 with Lava"
            ) from error
    try:
        _wait(worker, job_folder, log_path, limit_s, progress)
    finally:
        kill_group(worker.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=10)


def _wait(
    worker: subprocess.Popen[bytes],
    job_folder: Path,
    log_path: Path,
    limit_s: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    started = time.monotonic()
    crashed_at: float | None = None
    result = job_folder / "result.npz"
    while not result.exists():
        ended = worker.poll() is not None and not result.exists()
        now = time.monotonic()
        steps, of = _progress(job_folder)
        if progress is not None and of:
            progress(steps, of)
        if crashed_at is None and b"Traceback (most recent call last)" in log_path.read_bytes():
            crashed_at = now
        if ended:
            raise LavaError(
                f"Lava worker: died with exit status {worker.returncode} after {steps} steps; {_tail(log_path)}"
            )
        if crashed_at is not None and now - crashed_at > CRASH_GRACE_S:
            raise LavaError(
                f"Lava worker: an exception in a Lava process hung it after {steps} steps; {_tail(log_path)}"
            )
        if now - started > limit_s:
            raise LavaError(
                f"Lava worker: no result within {limit_s:.0f} s ({steps} of {of or 'unknown'} steps done); it hangs or needs "
                f"a longer limit; {_tail(log_path)}"
            )
        time.sleep(POLL_S)


def _progress(job_folder: Path) -> tuple[int, int]:
    try:
        state = json.loads((job_folder / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0, 0
    return int(state["steps"]), int(state["of"])


def _tail(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    return "log: " + " | ".join(lines[-LOG_TAIL_LINES:]) if lines else "its log is empty"
