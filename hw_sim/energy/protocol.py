"""The loop that measures: idle, warm up, synchronise, run for a window, synchronise, idle; repeat.

Why so long: sensors of the A100 and H100 see about a quarter of the time, and power is an average over 1 s (arXiv
2312.02741), so that only a long, looped window is right. Everything that touches the world comes in through three small
protocols, and tests put a simulated machine behind them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Protocol

from knarr.hw_sim.energy.measurement import MAX_IDLE_DRIFT, BatchMeasurement, MeasureError, Window

MIN_WINDOW_S = 8.0
MIN_REPEATS = 3
TRIES_PER_REPEAT = 2
"""How often idle power may drift: twice the windows asked for, then the best are kept and it is said."""


class Clock(Protocol):
    """Time."""

    def now_s(self) -> float:
        """Seconds since some start; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        ...


class SystemClock:
    """The machine's own."""

    def now_s(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Workload(Protocol):
    """A network that is ready to run."""

    @property
    def batch(self) -> int:
        """Samples of one run."""
        ...

    def run(self) -> None:
        """One batch."""
        ...

    def synchronise(self) -> None:
        """Return when everything started has ended."""
        ...


class Meter(Protocol):
    """A device's energy counter."""

    def energy_j(self) -> float:
        """Joules since some start; never goes back."""
        ...

    def power_w(self) -> float | None:
        """Power now, W; None where there is nothing to poll. Called every `Plan.poll_s` of a window."""
        ...

    def conditions(self) -> Mapping[str, float]:
        """Clocks and the like; units in the names."""
        ...

    def check(self) -> None:
        """Raise MeasureError where something else uses the device."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long everything takes, seconds.

    Args:
        window_s: looped inference per window, at least 8.
        repeats: windows, at least 3.
        warm_up_s: of the same load before each window, at least 1 (power is an average over 1 s).
        settle_s: after the load, before idle power is read, at least 1.
        idle_s: window of idle power, at least 2 (the counter moves about every 0.1 s).
        poll_s: between readings of power within a window, above 0.

    Raises:
        MeasureError: a number outside of these.
    """

    window_s: float = 10.0
    repeats: int = 3
    warm_up_s: float = 2.0
    settle_s: float = 3.0
    idle_s: float = 5.0
    poll_s: float = 0.1

    def __post_init__(self) -> None:
        least = {"window_s": MIN_WINDOW_S, "warm_up_s": 1.0, "settle_s": 1.0, "idle_s": 2.0}
        for name, bound in least.items():
            value = getattr(self, name)
            if not (isfinite(value) and value >= bound):
                raise MeasureError(
                    f"{name}: {value}, needs at least {bound:g} s; sensors are too slow for less"
                )
        if not (isfinite(self.poll_s) and self.poll_s > 0):
            raise MeasureError(f"poll_s: {self.poll_s}, needs more than 0 s")
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < MIN_REPEATS:
            raise MeasureError(
                f"repeats: {self.repeats}, needs at least {MIN_REPEATS} for a mean and a spread"
            )


def measure_batch(workload: Workload, meter: Meter, clock: Clock, plan: Plan) -> BatchMeasurement:
    """Measure one workload. A window around which idle power drifts is measured again, up to twice the repeats in all.

    Returns:
        `plan.repeats` windows: the first ones without drift, or else those with the least (its notes say so).

    Raises:
        MeasureError: the counter stands still or goes back, or something else uses the device.
    """
    _run_for(workload, clock, plan.warm_up_s)  # a cold device idles lower than one that has worked
    workload.synchronise()
    idle_w = _idle_w(meter, clock, plan)
    windows: list[Window] = []
    steady: list[Window] = []
    while len(steady) < plan.repeats and len(windows) < TRIES_PER_REPEAT * plan.repeats:
        window = _window(workload, meter, clock, plan, idle_w)
        meter.check()
        idle_w = window.idle_after_w
        windows.append(window)
        steady = [window for window in windows if window.idle_drift <= MAX_IDLE_DRIFT]
    if len(steady) < plan.repeats:
        bound = sorted(window.idle_drift for window in windows)[plan.repeats - 1]
        steady = [window for window in windows if window.idle_drift <= bound][: plan.repeats]
    return BatchMeasurement(tuple(steady), discarded=len(windows) - len(steady))


def integrate_j(samples: list[tuple[float, float]]) -> float:
    """Joules under (seconds, watts), trapezoidal."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))


def _window(workload: Workload, meter: Meter, clock: Clock, plan: Plan, idle_before_w: float) -> Window:
    _run_for(workload, clock, plan.warm_up_s)
    workload.synchronise()
    polled: list[tuple[float, float]] = []

    def poll() -> None:
        watts = meter.power_w()
        if watts is not None:
            polled.append((clock.now_s(), watts))

    poll()
    start_s, start_j = clock.now_s(), meter.energy_j()
    runs, now_s, next_poll_s = 0, start_s, start_s + plan.poll_s
    while now_s - start_s < plan.window_s:
        workload.run()
        runs += 1
        now_s = clock.now_s()
        if now_s >= next_poll_s:
            poll()
            next_poll_s = now_s + plan.poll_s
    conditions = meter.conditions()
    workload.synchronise()
    end_s, end_j = clock.now_s(), meter.energy_j()
    poll()
    return Window(
        batch=workload.batch,
        runs=runs,
        duration_s=end_s - start_s,
        energy_j=end_j - start_j,
        idle_before_w=idle_before_w,
        idle_after_w=_idle_w(meter, clock, plan),
        polled_j=integrate_j(polled) if polled else None,
        conditions=conditions,
    )


def _idle_w(meter: Meter, clock: Clock, plan: Plan) -> float:
    """Mean power by the same counter as the load, so that what is wrong with it cancels in the difference."""
    clock.sleep(plan.settle_s)
    start_s, start_j = clock.now_s(), meter.energy_j()
    clock.sleep(plan.idle_s)
    end_s, end_j = clock.now_s(), meter.energy_j()
    return (end_j - start_j) / (end_s - start_s)


def _run_for(workload: Workload, clock: Clock, seconds: float) -> None:
    start_s = clock.now_s()
    workload.run()
    while clock.now_s() - start_s < seconds:
        workload.run()
