"""How time and memory grow: with samples, threads, activity; every part can be run alone by main.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import engines
import numpy as np
import roofline
from published import SHAPES
from workloads import (
    Workload,
    build,
    drawn_inputs,
)

from knarr.hw_sim import simulate

SAMPLES = (10, 30, 100, 300, 1000)
PERCENTS = (1, 3, 5, 10, 20, 50)
MEMORY_SAMPLES = (100, 2000)
CALLS, LEAST_S = 7, 0.5
MOST_BIAS = 20_000
CHILD = Path(__file__).with_name("memory_child.py")

Say = Callable[[str], None]


def over_samples(say: Say, samples: tuple[int, ...] = SAMPLES) -> list[dict[str, Any]]:
    """Microseconds per sample of W1 at 10 %, one and more threads."""
    work = build("W1", 10)
    here, _ = engines.available(work)
    rows = []
    for count in samples:
        say(f"{count} samples")
        inputs = drawn_inputs(SHAPES["W1"], count)
        row: dict[str, Any] = {"samples": count}
        for engine in here:
            row[engine.key] = _median_s(partial(engine.run, work, inputs)) / count
        rows.append(row)
    return rows


def over_activity(say: Say, percents: tuple[int, ...] = PERCENTS) -> list[dict[str, Any]]:
    """Milliseconds per sample of the first two layers of W2s, both firing at a rate.

    A bias sets the rate: thresholds alone do not reach 50 %, since half of all sums are negative.
    """
    rows = []
    for percent in percents:
        say(f"{percent} % activity")
        work = _biased(percent / 100)
        expected = engines.reference(work)
        here, _ = engines.available(work)
        cost = roofline.work_of(work, expected)
        rates = [float(expected.spikes[layer.name].mean()) for layer in work.network.layers]
        row: dict[str, Any] = {"percent": percent, "rates": rates, "synops": cost.synops}
        for engine in here:
            if engine.threads == 1:
                engines.check(engine, work, expected)
                row[engine.key] = _median_s(partial(engine.run, work, work.inputs))
        rows.append(row)
    return rows


def _biased(rate: float) -> Workload:
    """The first two layers of W2s at their published thresholds, with a bias by which each fires at a rate."""
    work = build("W2s", 10, samples=1)
    network = work.network
    layers: list[Any] = []
    for place in (0, 1):
        low, high = -MOST_BIAS, MOST_BIAS
        while high - low > 1:
            middle = (low + high) // 2
            layer = network.layers[place]
            bias = np.full(layer.output_shape[0], middle, dtype=np.int32)
            tried = replace(network, layers=(*layers, replace(layer, bias_int=bias)))
            counts = simulate(tried, work.inputs).event_counts[layer.name]
            if counts.mean() / prod(layer.output_shape) > rate:
                high = middle
            else:
                low = middle
        layers.append(replace(layer, bias_int=np.full(layer.output_shape[0], high, dtype=np.int32)))
    biased = replace(network, layers=tuple(layers))
    return Workload("W2s", round(100 * rate), work.stages[:2], biased, work.inputs)


def over_memory(say: Say, samples: tuple[int, ...] = MEMORY_SAMPLES) -> list[dict[str, Any]]:
    """Peak memory of a process that simulates samples of W1, beyond what it held before and beyond its output; bytes."""
    rows = []
    for count in samples:
        say(f"memory of {count} samples")
        done = subprocess.run(
            [sys.executable, str(CHILD), str(count)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
    return rows


def _median_s(run: Callable[[], object]) -> float:
    run()
    times: list[float] = []
    while len(times) < CALLS or sum(times) < LEAST_S:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)
