"""Checks the image from within: one small network must give the same integers in Lava and in knarr.

check.sh runs this file in a container, as the image's user, in an empty folder. Each step is a process group of its own with
a deadline and its output in a file, because a Lava that fails hangs in silence and leaves children that hold a pipe open.
"""

import contextlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import uuid

import h5py
import numpy as np

NET, INPUTS, FROM_LAVA, FROM_KNARR = "tiny.net", "inputs.npy", "lava.npz", "fast.npz"
SAMPLES, STEPS, WIDTHS = 3, 16, (6, 5, 4)

IMPORTS = "import torch, norse, nir, onnxruntime, lightning, optuna, matplotlib"

PYTHON = [sys.executable, __file__]
SIMULATE = ["knarr", "simulate", NET, "--inputs", INPUTS]
# name, seconds allowed, command. What the knarr command is called with stands here and nowhere else.
CHECKS = [
    ("imports", 120, [sys.executable, "-c", IMPORTS]),
    ("network", 60, [*PYTHON, "make"]),
    ("doctor", 180, ["knarr", "doctor"]),
    ("lava", 180, [*SIMULATE, "--engine", "lava", "--out", FROM_LAVA]),
    ("simulate", 120, [*SIMULATE, "--engine", "fast", "--out", FROM_KNARR]),
    ("same", 60, [*PYTHON, "compare"]),
]


def make() -> None:
    """Writes a two-layer netx file and binary inputs of shape (samples, timesteps, neurons)."""
    rng = np.random.default_rng(7)
    with h5py.File(NET, "w") as file:
        layer = file.create_group("layer/0")
        layer["type"], layer["shape"] = np.bytes_("input"), np.array([WIDTHS[0], 1, 1])
        for index, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS), start=1):
            layer = file.create_group(f"layer/{index}")
            layer["type"], layer["shape"] = np.bytes_("dense"), np.array([n_out])
            layer["inFeatures"], layer["outFeatures"] = n_in, n_out
            layer["weight"] = rng.integers(-40, 90, (n_out, n_in))
            layer["neuron/type"] = np.bytes_("CUBA")
            layer["neuron/iDecay"], layer["neuron/vDecay"], layer["neuron/vThMant"] = 1024, 512, 100
            layer["neuron/refDelay"], layer["neuron/gradedSpike"] = 1, 0
    np.save(INPUTS, (rng.random((SAMPLES, STEPS, WIDTHS[0])) < 0.4).astype(np.int64))


def compare() -> None:
    """Fails unless the compiled engine gives exactly the integers of Lava, and there were spikes to compare."""
    with np.load(FROM_LAVA) as lavas, np.load(FROM_KNARR) as knarrs:
        lava, knarr = lavas["output"], knarrs["output"]
    if not lava.any() or lava.all():
        sys.exit(f"the network's output says nothing: {int(lava.sum())} spikes of {lava.size}")
    if lava.shape != knarr.shape or not np.array_equal(lava, knarr):
        sys.exit(f"Lava and knarr differ: {lava.tolist()} against {knarr.tolist()}")
    print(f"{int(lava.sum())} spikes in {lava.size} places, equal in Lava and knarr")


def running(mark: str) -> list[pathlib.Path]:
    """Folders in /proc of the processes that inherited the mark of a step in their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process)
    return found


def kill_with_memory(processes: list[pathlib.Path]) -> None:
    """Kills processes and removes the shared memory they had mapped: without isolation it would stay on the host."""
    segments = set()
    for process in processes:
        with contextlib.suppress(OSError):
            segments |= set(re.findall(r"/dev/shm/psm_\w+", (process / "maps").read_text()))
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.name), signal.SIGKILL)
    for segment in segments:
        pathlib.Path(segment).unlink(missing_ok=True)


def check(name: str, seconds: int, command: list[str]) -> bool:
    mark, log, start = str(uuid.uuid4()), pathlib.Path(f"{name}.log"), time.monotonic()
    options = {
        "env": os.environ | {"OMP_NUM_THREADS": "1", "KNARR_CHECK": mark},
        "start_new_session": True,
    }
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options
            )
        except OSError as error:
            print(f"FAIL  {name}: {error}", flush=True)
            return False
        try:
            status = str(process.wait(seconds))
        except subprocess.TimeoutExpired:
            status = f"no end after {seconds} s"
    if process.returncode is not None:  # what it started may be on its way out
        settled = time.monotonic() + 3
        while running(mark) and time.monotonic() < settled:
            time.sleep(0.1)
    orphans = [entry for entry in running(mark) if entry.name != str(process.pid)]
    kill_with_memory(running(mark))
    process.kill()
    process.wait()
    passed = status == "0" and not orphans
    print(
        "ok  " if passed else "FAIL",
        f"{name}: {' '.join(command)} ({time.monotonic() - start:.1f} s)",
    )
    print(
        "".join(f"      {line}\n" for line in log.read_text(errors="replace").splitlines()[-30:]),
        end="",
    )
    if not passed:
        print(f"      exit status: {status}; processes left behind: {len(orphans)}")
    sys.stdout.flush()
    return passed


def main() -> None:
    if os.getuid() == 0:
        sys.exit("this runs as root; the image must not")
    results = [check(*step) for step in CHECKS]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    {"make": make, "compare": compare}.get(sys.argv[1] if sys.argv[1:] else "", main)()
