"""How far this machine could go at best: additions of the events that there are, and updates of the neurons."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from workloads import Stage, Workload, pooled

from knarr.hw_sim import Recording

SOURCE = Path(__file__).with_name("peaks.c")
FLAGS = ("-O3", "-march=native", "-frounding-math", "-ffp-contract=off")
TAPS = 3


@dataclass(frozen=True)
class Work:
    """What one sample costs.

    Args:
        synops: additions of one weight for one spike.
        neuron_steps: updates of one neuron.
        macs: what a dense engine does, whatever the activity.
    """

    synops: float
    neuron_steps: int
    macs: int

    def floor_s(self, peaks: dict[str, float]) -> float:
        """Seconds on one core if every addition and every update ran at its peak, one after the other."""
        return self.synops / peaks["adds_per_s"] + self.neuron_steps / peaks["neuron_steps_per_s"]


def compiled(folder: Path) -> Path | str:
    """The program that measures the peaks, or why there is none."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "no compiler: no roofline"
    program = folder / "peaks"
    done = subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(program), "-lm"],
        check=False,
        capture_output=True,
        text=True,
    )
    return (
        program
        if done.returncode == 0
        else f"no roofline: cc says {done.stderr.strip().splitlines()[0]}"
    )


def peaks(program: Path) -> dict[str, float]:
    """adds_per_s and neuron_steps_per_s of one core, now; level says by which instructions."""
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def work_of(work: Workload, expected: Recording) -> Work:
    """Of the first sample.

    Args:
        work: whose stages.
        expected: its spikes, of every layer.
    """
    arriving: list[npt.NDArray[np.uint8]] = [work.inputs[:1]]
    arriving += [expected.spikes[layer.name] for layer in work.network.layers[:-1]]
    synops = sum(
        _synops(stage, spikes) for stage, spikes in zip(work.stages, arriving, strict=True)
    )
    neurons = sum(prod(stage.out) for stage in work.stages)
    macs = sum(prod(stage.out) * prod(stage.weight.shape[1:]) for stage in work.stages)
    return Work(synops, neurons * work.timesteps, macs * work.timesteps)


def _synops(stage: Stage, spikes: npt.NDArray[np.uint8]) -> float:
    """Spikes times the synapses they reach; 2x2 sums are counts of spikes."""
    if stage.pooled:
        spikes = pooled(spikes.reshape(*spikes.shape[:2], *stage.entering))
    if not stage.conv:
        return float(spikes.sum()) * len(stage.weight)
    rows, columns = (_windows(size) for size in stage.seen[1:])
    per_pixel = spikes.reshape(-1, *stage.seen).sum(axis=(0, 1), dtype=np.float64)
    return float(rows @ per_pixel @ columns) * len(stage.weight)


def _windows(size: int) -> npt.NDArray[np.float64]:
    """How many windows of a valid convolution each pixel of a line lies in."""
    return np.convolve(np.ones(size - TAPS + 1), np.ones(TAPS))
