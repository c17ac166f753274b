"""Times how long light verbs take to start: two `knarr` commands in turn, with the user time and the memory of each.

    python benchmarks/start_up.py OLD/.venv/bin/knarr .venv/bin/knarr [RUN]

OLD may be a checkout of any commit. With the folder of a finished run its report is timed as well. Least user time of all rounds, since a busy
machine only adds to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from knarr.deploy import write_net
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout

ROUNDS = 5


def main() -> None:
    old, new, *runs = (str(Path(argument).absolute()) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        write_job(Path(folder))
        jobs = {
            "simulate": ["simulate", "tiny.net", "--data", "inputs.npy"],
            "verify FILE.net": ["verify", "tiny.net"],
            "energy FILE.net": ["energy", "tiny.net", "--data", "inputs.npy"],
            "data check": ["data", "check", "nmnist", "nmnist"],
            "report of a wrong path": ["report", "nowhere"],
            "--help": ["--help"],
        }
        if runs:
            jobs["report"] = ["report", runs[0]]
        print(
            f"{'':24}{'old user s':>12}{'new user s':>12}{'ratio':>8}{'old MB':>8}{'new MB':>8}{'ratio':>8}"
        )
        for name, arguments in jobs.items():
            # In turn, so that both meet the same machine.
            rounds = [
                [cost([knarr, *arguments], folder) for knarr in (old, new)] for _ in range(ROUNDS)
            ]
            (old_s, old_mb), (new_s, new_mb) = (
                tuple(min(values) for values in zip(*each, strict=True))
                for each in zip(*rounds, strict=True)
            )
            print(
                f"{name:24}{old_s:12.2f}{new_s:12.2f}{new_s / old_s:8.2f}"
                f"{old_mb:8.0f}{new_mb:8.0f}{new_mb / old_mb:8.2f}",
                flush=True,
            )


def cost(command: list[str], folder: str) -> tuple[float, float]:
    """Return user time, seconds, and the largest memory, MB, of a command and its children."""
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return usage.ru_utime, usage.ru_maxrss / 1024


def write_job(folder: Path) -> None:
    """Write a small network, inputs for it, and N-MNIST of two recordings."""
    rng = np.random.default_rng(0)
    layers = (
        Dense("hidden", rng.integers(-60, 64, (5, 6), dtype=np.int32), Neuron(4096, 512, 40)),
        Dense("output", rng.integers(-30, 64, (3, 5), dtype=np.int32), Neuron(4096, 512, 30)),
    )
    write_net(ChipNetwork(layers, InputCoding((6,)), Readout("spikes")), folder / "tiny.net")
    np.save(folder / "inputs.npy", rng.integers(0, 2, (3, 16, 6)))
    (folder / "nmnist").mkdir()
    for file, name in (("train1K.txt", "1"), ("test100.txt", "2")):
        (folder / "nmnist" / file).write_text(f"{name}\t3\n")
        (folder / "nmnist" / f"{name}.bs2").write_bytes(bytes([5, 6, 0x80, 0, 9, 7, 8, 0, 1, 0]))


if __name__ == "__main__":
    main()
