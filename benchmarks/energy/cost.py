"""What counting costs beside running: ratios of interleaved rounds, and memory over a loader that grows.

.venv/bin/python benchmarks/energy/cost.py writes benchmarks/results/counting_cost.md.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "hw_sim"))

from workloads import build

from knarr.export import step_nir, to_nir
from knarr.hw_sim import count, count_events, simulate

ROUNDS = 7
DT_S = 0.001


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(counting: Callable[[], Any], running: Callable[[], Any]) -> tuple[float, float, float]:
    """(least, median, most) of counting / running, round by round, after one of each."""
    counting(), running()
    rounds = [seconds(counting) / seconds(running) for _ in range(ROUNDS)]
    return min(rounds), statistics.median(rounds), max(rounds)


def graph() -> Any:
    """The shape of an N-MNIST student: two convolutions and a dense layer on 2 x 34 x 34."""
    torch.manual_seed(0)

    def neuron() -> Any:
        return snn.LIFBoxCell(snn.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0)), dt=DT_S)

    layers = nn.Conv2d(2, 16, 5, stride=2), neuron(), nn.Conv2d(16, 32, 3, stride=2), neuron()
    student = snn.SequentialState(*layers, nn.Flatten(), nn.Linear(1568, 10), neuron()).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(8)
    return to_nir(student, (2, 34, 34), DT_S)


def peak_mib(batches: int) -> float:
    """Of python and numpy memory, counting so many batches of 8."""
    rng = np.random.default_rng(0)

    def loader() -> Iterator[np.ndarray[Any, Any]]:
        for _ in range(batches):
            yield (rng.random((8, 20, 2, 34, 34)) < 0.1).astype(np.uint8)

    whole = graph()
    tracemalloc.start()
    count(whole, loader(), dt_s=DT_S)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name in ("W1", "W2"):
        work = build(name)
        network, inputs = work.network, work.inputs
        recording = simulate(network, inputs, record=("spikes",), threads=1)
        found = ratio(
            lambda n=network, x=inputs, r=recording: count_events(n, x, r),
            lambda n=network, x=inputs: simulate(n, x, record=("spikes",), threads=1),
        )
        rows.append(
            (f"{name}, {len(inputs)} samples, fast engine with spikes recorded, one thread", found)
        )
    student, events = (
        graph(),
        (np.random.default_rng(1).random((16, 40, 2, 34, 34)) < 0.1).astype(np.uint8),
    )
    counting = ratio(
        lambda: count(student, events, dt_s=DT_S), lambda: step_nir(student, events, DT_S)
    )
    rows.append(("NIR graph, 16 samples: count (which runs it too) over step_nir alone", counting))
    text = [
        "# What counting costs",
        "",
        f"Written by `.venv/bin/python benchmarks/energy/cost.py`: {ROUNDS} interleaved rounds, one thread.",
        "",
        "| run | least | median | most |",
        "|---|---:|---:|---:|",
        *(f"| {what} | {lo:.2f} | {mid:.2f} | {hi:.2f} |" for what, (lo, mid, hi) in rows),
        "",
        f"Memory of counting a loader of 2 batches: {peak_mib(2):.1f} MiB at most; of 20 batches: {peak_mib(20):.1f} MiB.",
        "",
    ]
    print("\n".join(text))
    (HERE.parent / "results" / "counting_cost.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
