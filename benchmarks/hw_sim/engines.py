"""knarr's own engines: their spikes against the reference, and their time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args, get_type_hints

import numpy as np
from workloads import Bytes, Workload

from knarr.hw_sim import ChipError, Recording, compare, simulate

CALLS, LEAST_S = 5, 0.4
"""Calls whose median counts: at least so many, and for so long."""


@dataclass(frozen=True)
class Engine:
    """One way to call `simulate`.

    Args:
        key: in the results.
        engine: of `simulate`.
        threads: of it.
    """

    key: str
    engine: str
    threads: int

    def run(self, work: Workload, inputs: Bytes, **how: Any) -> Recording:
        return simulate(work.network, inputs, engine=self.engine, threads=self.threads, **how)  # type: ignore[arg-type]


NAMES = tuple(
    name
    for name in get_args(get_type_hints(simulate)["engine"])
    if name not in ("auto", "reference")
)
"""Engines that `simulate` knows, but for the readable one, which the others must equal."""
ENGINES = tuple(
    Engine(f"{name}, {threads} thread{'s' if threads > 1 else ''}", name, threads)
    for name in NAMES
    for threads in (1, 2)
)


class WrongSpikesError(Exception):
    """An engine's integers are not the reference's: its speed means nothing."""


def available(work: Workload) -> tuple[dict[Engine, float], dict[str, str]]:
    """Engines that run here, with the seconds of this first call (compilation, layout of weights), and why the others do not."""
    here, missing = {}, {}
    for engine in ENGINES:
        start = time.perf_counter()
        try:
            engine.run(work, work.inputs[:1])
        except ChipError as error:
            missing[engine.engine] = str(error)
        else:
            here[engine] = time.perf_counter() - start
    return here, missing


def reference(work: Workload) -> Recording:
    """Spikes of every layer for the first sample, by the readable engine."""
    return simulate(work.network, work.inputs[:1], engine="reference", record=("output", "spikes"))


def check(engine: Engine, work: Workload, expected: Recording) -> int:
    """How many integers of the first sample equal the reference's, all layers and steps.

    Raises:
        WrongSpikesError: one of them does not, or a layer is silent.
    """
    got = engine.run(work, work.inputs[:1], record=("output", "spikes"))
    differing = compare(got, expected)
    if differing:
        raise WrongSpikesError(f"{engine.key}, {work.title}: {differing[0]}")
    silent = [name for name, spikes in expected.spikes.items() if not spikes.any()]
    if silent:
        raise WrongSpikesError(
            f"{work.title}: layers {', '.join(silent)} are silent, equality says nothing"
        )
    return sum(spikes.size for spikes in expected.spikes.values())


def time_engine(engine: Engine, work: Workload, expected: Recording) -> dict[str, Any]:
    """Seconds per sample: the median of several calls after one that is not counted.

    Args:
        engine, work: what to run.
        expected: of the first sample.

    Raises:
        WrongSpikesError: the output, or how many spikes a layer fired in a step, is not the reference's in a timed call.
    """
    inputs = work.inputs
    engine.run(work, inputs)
    times: list[float] = []
    while len(times) < CALLS or sum(times) * len(inputs) < LEAST_S:
        start = time.perf_counter()
        got = engine.run(work, inputs)
        times.append((time.perf_counter() - start) / len(inputs))
        same = np.array_equal(got.output[:1], expected.output) and all(
            np.array_equal(got.event_counts[name][:1], counts)
            for name, counts in expected.event_counts.items()
        )
        if not same:
            raise WrongSpikesError(
                f"{engine.key}, {work.title}: a timed call gave other spikes than the reference"
            )
    return {
        "s_per_sample": median(times),
        "times_s": times,
        "samples": len(inputs),
        "repeats": len(times),
    }
