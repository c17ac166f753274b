"""What a training step on the chip's integers costs, beside the float step of the same student.

    .venv/bin/python benchmarks/train/chip_step.py                  both students, 8 rounds, batch 32, one thread

conv   2x34x34 -> conv 4x4 stride 2, 24 -> LIF -> pool 2 -> conv 3x3, 48 -> LIF -> pool 2 -> 10 readouts; 20 steps
dense  240 -> 256 LIF -> 128 LIF -> 10 readouts; 20 steps

A step is forward, cross entropy, backward and Adam. The float student is `heads.over_time` with BoxCell and ReadoutCell; the chip
student is what `lower` makes of it. Rounds take both in turn; ratios are taken within a round. Nothing is printed of a student whose
integers are not the reference engine's, or that is silent. Parts of a step are torch's own times of one profiled step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import norse.torch as snn
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from knarr.deploy import lower
from knarr.export import to_nir
from knarr.hw_sim import compare, simulate
from knarr.train.chip import ChipStudent
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.heads import over_time
from knarr.train.networks.neurons import BoxCell, NeuronSettings, ReadoutCell

DT_S: Final = 1e-3
STEPS: Final = 20
CLASSES: Final = 10
RATE: Final = 0.1
PARTS: Final = {
    "sums": ("conv", "addmm", "aten::mm", "aten::bmm", "unfold", "col2im"),
    "pooling": ("pool",),
    "neurons": ("_Cuba",),
    "integers": ("_Rounded", "_Damped"),
    "optimiser": ("Optimizer", "aten::_foreach", "aten::_fused"),
}
"""Kind of work -> what names of operations begin with or hold; all others are the rest."""


@dataclass(frozen=True, eq=False)
class Case:
    """A float student and the clips it is fed."""

    student: snn.SequentialState
    spikes: torch.Tensor
    labels: torch.Tensor


def case(name: str, batch: int) -> Case:
    torch.manual_seed(0)
    neuron = NeuronSettings(coefficient=0.2)

    def cell() -> nn.Module:
        return BoxCell(neuron, DT_S, snap=True)

    if name == "conv":
        shape: tuple[int, ...] = (2, 34, 34)
        layers = [
            nn.Conv2d(2, 24, 4, stride=2), cell(), nn.AvgPool2d(2), nn.Conv2d(24, 48, 3, padding=1), cell(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(48 * 16, CLASSES),
        ]  # fmt: skip
    else:
        shape = (240,)
        layers = [nn.Linear(240, 256), cell(), nn.Linear(256, 128), cell(), nn.Linear(128, CLASSES)]
    student = snn.SequentialState(*layers, ReadoutCell(0.1, DT_S, snap=True))
    synapses = [layer for layer in student if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():  # so that every layer fires
        for synapse in synapses[:-1]:
            synapse.weight *= 20 if name == "conv" else 12
    spikes = (torch.rand((batch, STEPS, *shape), generator=torch.manual_seed(1)) < RATE).float()
    return Case(student, spikes, torch.arange(batch) % CLASSES)


def on_chip(of: Case) -> ChipStudent:
    """The student as lowered, proved to be the reference engine on some clips before it is timed."""
    some = of.spikes[:4].numpy().astype(np.uint8)
    form = chip_form(of.student, snap=True)
    network = lower(
        to_nir(form, some.shape[2:], DT_S, samples=some), DT_S, calibration=some, over_time="mean"
    )
    student = ChipStudent.from_network(network)
    wanted = simulate(network, some, record=("output", "spikes", "u", "v"), engine="reference")
    found = compare(wanted, student.recording(torch.from_numpy(some)))
    silent = [
        one.name
        for one in network.layers
        if one.neuron.spikes and not wanted.spikes[one.name].any()
    ]
    if found or silent:
        raise SystemExit(f"chip_step: differs from the reference: {found}; silent: {silent}")
    return student


def steps_of(of: Case, student: ChipStudent) -> dict[str, Callable[[], None]]:
    integers = of.spikes.to(torch.uint8)
    floats = torch.optim.Adam(of.student.parameters(), lr=1e-4)
    chips = torch.optim.Adam(student.groups(0.0), lr=1e-4)

    def float_step() -> None:
        floats.zero_grad()
        F.cross_entropy(over_time(of.student, of.spikes).outputs.mean(1), of.labels).backward()
        floats.step()

    def chip_step() -> None:
        chips.zero_grad()
        ran = student(integers)
        (F.cross_entropy(ran.logits, of.labels) + ran.penalty).backward()
        chips.step()

    return {"float": float_step, "chip": chip_step}


def timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - start)


def parts(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of one profiled step by kind of work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found = dict.fromkeys([*PARTS, "rest"], 0.0)
    averages: Any = profiled.key_averages()
    for event in averages:
        kind = next(
            (kind for kind, marks in PARTS.items() if any(mark in event.key for mark in marks)),
            "rest",
        )
        found[kind] += event.self_cpu_time_total / 1000
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"batch {asked.batch}, {STEPS} steps, {asked.threads} threads, torch {torch.__version__}")
    for name in ("conv", "dense"):
        of = case(name, asked.batch)
        student = on_chip(of)
        steps = steps_of(of, student)
        for step in steps.values():  # compiled code, memory
            step()
        rates = [float(rate) for rate in student(of.spikes.to(torch.uint8)).rates]
        rounds = [{kind: timed(step) for kind, step in steps.items()} for _ in range(asked.rounds)]
        ratios = [one["chip"] / one["float"] for one in rounds]
        print(
            f"{name}: float {median(one['float'] for one in rounds):.0f} ms, chip {median(one['chip'] for one in rounds):.0f} ms, "
            f"chip / float {median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] over {asked.rounds} rounds, rates "
            f"{', '.join(f'{rate:.3f}' for rate in rates)}, load {os.getloadavg()[0]:.1f}"
        )
        shares = parts(steps["chip"])
        whole = sum(shares.values())
        print("  " + ", ".join(f"{kind} {value / whole:.0%}" for kind, value in shares.items()))


if __name__ == "__main__":
    main()
