"""The protocol by which energy is measured: idle, warm up, synchronise, run for a window,
synchronise, idle; repeat.

    gross = E / n        net = (E - P_idle t) / n        P_idle = mean of idle before and after

E is the difference of an energy counter over the window, t its duration, n the inferences in it.

Why so long: sensors of the A100 and H100 see about a quarter of the time, and power is an average
over 1 s (arXiv 2312.02741), so that only a long, looped window is right. Everything that touches
the world comes in as a `Workload`, a `Meter` and a `Clock`, and tests put a simulated machine in
their places.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from statistics import fmean, stdev
from typing import Protocol

from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.prices import Grade
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.json_values import JsonRecord

MAX_IDLE_DRIFT = 0.05
"""Largest relative difference of idle power before and after a window that is kept."""
MAX_POLLED_DIFFERENCE = 0.10
"""Counter and integrated power that differ by more are flagged: one public report has 187 J against
327 J for the same 5 s (Zeus, issue 181).
"""
MIN_WINDOW_S = 8.0
MIN_REPEATS = 3
TRIES_PER_REPEAT = 2
"""Windows measured at most per repeat asked for; where idle power drifts in all of them, the best
are kept and it is said.
"""


class MeasureError(ChipError):
    """Energy cannot be measured here, or what was read cannot be energy. The message says why, and
    the cure.
    """


def spread(values: Sequence[float]) -> dict[str, float]:
    """Summarise at least two repeats of one quantity: mean, smallest, largest, and sample standard
    deviation (n - 1).
    """
    return {"mean": fmean(values), "lo": min(values), "hi": max(values), "std": stdev(values)}


@dataclass(frozen=True)
class MeasuredWindow(JsonRecord):
    """One window of looped inference between two synchronised ends.

    Args:
        batch: samples of one run, at least 1.
        runs: runs in the window, at least 1.
        duration_s: between the two readings of the counter.
        energy_j: their difference.
        idle_before_w, idle_after_w: mean power with the context alive and nothing running.
        polled_j: power integrated over the window, None where there is no power to poll.
        conditions: clocks and the like at the end of the window, still under load; units in the
            names.

    Raises:
        MeasureError: no time, no runs, or a counter that did not move.
    """

    batch: int
    runs: int
    duration_s: float
    energy_j: float
    idle_before_w: float
    idle_after_w: float
    polled_j: float | None = None
    conditions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or self.runs < 1:
            raise MeasureError(
                f"window: {self.runs} runs of batch {self.batch}, needs at least one inference"
            )
        if not (isfinite(self.duration_s) and self.duration_s > 0):
            raise MeasureError(
                f"window: lasted {self.duration_s} s, needs more than 0; check the clock"
            )
        for name, value in (
            ("energy {} J", self.energy_j),
            ("idle power before {} W", self.idle_before_w),
            ("idle power after {} W", self.idle_after_w),
        ):
            # Idle power is divided by, and no machine idles at nothing.
            if not (isfinite(value) and value > 0):
                raise MeasureError(
                    f"window: {name.format(value)}, needs more than 0; the energy counter stands still or was reset: "
                    "it cannot be used on this machine"
                )

    @property
    def inferences(self) -> int:
        """Samples in the window."""
        return self.batch * self.runs

    @property
    def idle_w(self) -> float:
        """Mean of idle power before and after, W."""
        return (self.idle_before_w + self.idle_after_w) / 2

    @property
    def idle_drift(self) -> float:
        """Difference of the two, relative to the one before, at least 0."""
        return abs(self.idle_after_w - self.idle_before_w) / self.idle_before_w

    @property
    def power_w(self) -> float:
        """Mean power under load, W."""
        return self.energy_j / self.duration_s

    @property
    def gross_j(self) -> float:
        """Energy of one inference, J."""
        return self.energy_j / self.inferences

    @property
    def net_j(self) -> float:
        """Energy of one inference above idle, J; below 0 is noise, and stays below 0."""
        return (self.energy_j - self.idle_w * self.duration_s) / self.inferences

    @property
    def run_ms(self) -> float:
        """Duration of one run of a whole batch, ms: the latency at batch 1."""
        return self.duration_s / self.runs * 1e3

    @property
    def polled_difference(self) -> float | None:
        """Integrated power relative to the counter, minus 1."""
        return None if self.polled_j is None else self.polled_j / self.energy_j - 1

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump: fields and properties, by name."""
        derived = [
            "inferences",
            "gross_j",
            "net_j",
            "power_w",
            "run_ms",
            "idle_drift",
            "polled_difference",
        ]
        return super().to_json() | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True)
class Macs:
    """Multiplications of one inference that energies are divided by.

    Args:
        dense_padded: taps into the padding included, above 0.
        effective: zero activations skipped, None where the network was not run to count them.
    """

    dense_padded: float
    effective: float | None


def macs_of(counts: OperationCounts) -> Macs:
    """Return the multiplications that `count_onnx` counted.

    Raises:
        CountError: the counts have no total.
    """
    dense = float(counts.total.dense_padded)
    return Macs(dense, None if counts.effective is None else float(sum(counts.effective.values())))


@dataclass(frozen=True)
class BatchMeasurement:
    """Repeated windows at one batch size.

    Args:
        windows: those that count, at least two.
        discarded: windows measured and left out, because idle power drifted around them.

    Raises:
        MeasureError: fewer windows, or of different batches.
    """

    windows: tuple[MeasuredWindow, ...]
    discarded: int

    def __post_init__(self) -> None:
        batches = [window.batch for window in self.windows]
        # One window has no standard deviation.
        if len(batches) < 2 or len(set(batches)) != 1:
            raise MeasureError(
                f"windows: of batches {batches}, needs two or more of the same batch"
            )

    @property
    def batch(self) -> int:
        """Samples of one run."""
        return self.windows[0].batch

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings to read before the numbers are used."""
        found = []
        drift = max(window.idle_drift for window in self.windows)
        if drift > MAX_IDLE_DRIFT:
            found.append(
                f"batch {self.batch}: idle power drifts by {drift:.0%} (> {MAX_IDLE_DRIFT:.0%}) in every try; "
                "net_j is not to be trusted, let the machine settle and measure again"
            )
        worst = max((window.polled_difference or 0.0 for window in self.windows), key=abs)
        if abs(worst) > MAX_POLLED_DIFFERENCE:
            found.append(
                f"batch {self.batch}: integrated power differs from the energy counter by {worst:+.0%} "
                f"(> {MAX_POLLED_DIFFERENCE:.0%}); one of the two is wrong on this device"
            )
        if min(window.net_j for window in self.windows) < 0:
            found.append(
                f"batch {self.batch}: net_j below 0 is noise: the load does not show above idle"
            )
        return tuple(found)

    def to_json(self, macs: Macs | None = None) -> dict[str, object]:
        """Return a plain dict for json.dump: spreads, and means in pJ per MAC where known."""
        found = {
            name: spread([getattr(window, name) for window in self.windows])
            for name in ("gross_j", "net_j", "power_w", "idle_w", "run_ms")
        }
        per_mac = {
            f"{side}_pj_per_{kind}_mac": per_mac_pj(
                found[f"{side}_j"]["mean"], getattr(macs, kind, None)
            )
            for kind in ("dense_padded", "effective")
            for side in ("gross", "net")
        }
        return {
            "batch": self.batch,
            **found,
            "ms_per_inference": found["run_ms"]["mean"] / self.batch,
            **per_mac,
            "windows": [window.to_json() for window in self.windows],
            "discarded": self.discarded,
            "notes": list(self.notes),
        }


def per_mac_pj(energy_j: float, macs: float | None) -> float | None:
    """Return the energy of one inference, J, over its multiplications, in pJ; None where those are
    unknown or 0.
    """
    return energy_j * 1e12 / macs if macs else None


@dataclass(frozen=True, kw_only=True)
class Measurement(JsonRecord):
    """Energy of an inference, per batch size, on whatever device.

    Args:
        batches: batch 1 (latency), then the large one (throughput) where the file can run it.
        macs: multiplications of one inference, None where nobody gave counts.
        precision: of the file's weights.
        sha256: of the file.
        notes: warnings to read before the numbers are used.
        grade: how good the evidence is, see `PriceRecord`.
    """

    batches: tuple[BatchMeasurement, ...]
    macs: Macs | None
    precision: str
    sha256: str
    notes: tuple[str, ...]
    grade: Grade

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, units in the names."""
        return super().to_json() | {"batches": [batch.to_json(self.macs) for batch in self.batches]}


class Clock:
    """The machine's own clock."""

    def now_s(self) -> float:
        """Return seconds since some start; never goes back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)


class Workload(Protocol):
    """A network that is ready to run."""

    @property
    def batch(self) -> int:
        """Samples of one run."""

    def run(self) -> None:
        """Run one batch."""

    def synchronise(self) -> None:
        """Return when everything started has ended."""


class Meter(Protocol):
    """A device's energy counter; one that inherits from it knows energy alone."""

    def energy_j(self) -> float:
        """Return joules since some start; never goes back."""

    def power_w(self) -> float | None:
        """Return power now, W; None where there is nothing to poll."""
        return None

    def conditions(self) -> Mapping[str, float]:
        """Return clocks and the like; units in the names."""
        return {}

    def check(self) -> None:
        """Raise MeasureError where something else uses the device."""
        return


@dataclass(frozen=True)
class MeasurementPlan:
    """Durations of everything, seconds.

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
        # type(), since True is an int too.
        if type(self.repeats) is not int or self.repeats < MIN_REPEATS:
            raise MeasureError(
                f"repeats: {self.repeats}, needs at least {MIN_REPEATS} for a mean and a spread"
            )


USUAL_PLAN = MeasurementPlan()


def measure_batches(
    sizes: Sequence[int],
    make_workload: Callable[[int], Workload],
    meter: Meter,
    clock: Clock | None,
    plan: MeasurementPlan,
) -> tuple[tuple[BatchMeasurement, ...], list[str]]:
    """Measure a network at several batch sizes, one after the other; return the notes on them too.

    Args:
        sizes: batch sizes.
        make_workload: makes the network of a batch size ready to run.
        meter: the device's counter.
        clock: in place of the machine's own.
        plan: durations.

    Raises:
        MeasureError: the counter stands still or goes back, or something else uses the device.
    """
    measured = []
    notes: list[str] = []
    for batch in sizes:
        workload = make_workload(batch)
        found = measure_batch(workload, meter, clock or Clock(), plan)
        measured.append(found)
        notes += found.notes
        # Before the next one asks for memory; and its threads must not spin in the idle time of the
        # next one.
        del workload
    return tuple(measured), notes


def measure_batch(
    workload: Workload, meter: Meter, clock: Clock, plan: MeasurementPlan
) -> BatchMeasurement:
    """Measure one workload. A window around which idle power drifts is measured again, up to twice
    the repeats in all.

    Returns:
        `plan.repeats` windows: the first ones without drift, or else those with the least (its
        notes say so).

    Raises:
        MeasureError: the counter stands still or goes back, or something else uses the device.
    """
    _run_for(workload, clock, plan.warm_up_s)  # a cold device idles lower than one that has worked
    workload.synchronise()
    idle_w = _idle_w(meter, clock, plan)
    windows: list[MeasuredWindow] = []
    steady: list[MeasuredWindow] = []
    while len(steady) < plan.repeats and len(windows) < TRIES_PER_REPEAT * plan.repeats:
        window = _window(workload, meter, clock, plan, idle_w)
        meter.check()
        # Idle after one window is idle before the next: nothing ran between.
        idle_w = window.idle_after_w
        windows.append(window)
        if window.idle_drift <= MAX_IDLE_DRIFT:
            steady.append(window)
    if len(steady) < plan.repeats:
        bound = sorted(window.idle_drift for window in windows)[plan.repeats - 1]
        # In the order they were measured; several may drift by the bound.
        steady = [window for window in windows if window.idle_drift <= bound][: plan.repeats]
    return BatchMeasurement(tuple(steady), discarded=len(windows) - len(steady))


def integrate_j(samples: list[tuple[float, float]]) -> float:
    """Return joules under (seconds, watts), trapezoidal."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))


def _window(
    workload: Workload, meter: Meter, clock: Clock, plan: MeasurementPlan, idle_before_w: float
) -> MeasuredWindow:
    _run_for(workload, clock, plan.warm_up_s)
    workload.synchronise()
    polled: list[tuple[float, float]] = []  # seconds and watts

    def poll() -> None:
        watts = meter.power_w()
        if watts is not None:
            polled.append((clock.now_s(), watts))

    # Before the start and after the end, so that the samples span the window.
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
    conditions = meter.conditions()  # clocks fall as soon as the load ends
    workload.synchronise()
    end_s, end_j = clock.now_s(), meter.energy_j()
    poll()
    return MeasuredWindow(
        batch=workload.batch,
        runs=runs,
        duration_s=end_s - start_s,
        energy_j=end_j - start_j,
        idle_before_w=idle_before_w,
        idle_after_w=_idle_w(meter, clock, plan),
        polled_j=integrate_j(polled) if polled else None,
        conditions=conditions,
    )


def _idle_w(meter: Meter, clock: Clock, plan: MeasurementPlan) -> float:
    """Return mean power by the same counter as the load, so that what is wrong with it cancels in
    the difference.
    """
    clock.sleep(plan.settle_s)
    start_s, start_j = clock.now_s(), meter.energy_j()
    clock.sleep(plan.idle_s)
    end_s, end_j = clock.now_s(), meter.energy_j()
    return (end_j - start_j) / (end_s - start_s)


def _run_for(workload: Workload, clock: Clock, seconds: float) -> None:
    start_s = clock.now_s()
    workload.run()  # once at least, however long it takes
    while clock.now_s() - start_s < seconds:
        workload.run()
