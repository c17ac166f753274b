"""Arithmetic of a measured window: joules per inference, gross and net, and what makes a window untrustworthy.

    gross = E / n        net = (E - P_idle t) / n        P_idle = mean of idle before and after

E is the difference of an energy counter over the window, t its duration, n the inferences in it. Nothing here reads a
device; `protocol` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from knarr.hw_sim.counts import OperationCounts
from knarr.hw_sim.errors import ChipError

MAX_IDLE_DRIFT = 0.05
"""Largest relative difference of idle power before and after a window that is kept."""
MAX_POLLED_DIFFERENCE = 0.10
"""Counter and integrated power that differ by more are flagged: one public report has 187 J against 327 J for the same
5 s (Zeus, issue 181)."""


class MeasureError(ChipError):
    """Energy cannot be measured here, or what was read cannot be energy. The message says why, and the cure."""


@dataclass(frozen=True)
class Spread:
    """Repeats of one quantity: mean, smallest, largest, and sample standard deviation (n - 1)."""

    mean: float
    lo: float
    hi: float
    std: float

    def to_json(self) -> dict[str, float]:
        """The same names."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Of at least two values."""
    return Spread(fmean(values), min(values), max(values), stdev(values))


@dataclass(frozen=True)
class Window:
    """One window of looped inference between two synchronised ends.

    Args:
        batch: samples of one run, at least 1.
        runs: runs in the window, at least 1.
        duration_s: between the two readings of the counter.
        energy_j: their difference.
        idle_before_w, idle_after_w: mean power with the context alive and nothing running.
        polled_j: power integrated over the window, None where there is no power to poll.
        conditions: clocks and the like at the end of the window, still under load; units in the names.

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
        object.__setattr__(self, "conditions", MappingProxyType(dict(self.conditions)))
        if self.batch < 1 or self.runs < 1:
            raise MeasureError(
                f"window: {self.runs} runs of batch {self.batch}, needs at least one inference"
            )
        if not (isfinite(self.duration_s) and self.duration_s > 0):
            raise MeasureError(f"window: lasted {self.duration_s} s, needs more than 0; check the clock")
        for name, value, unit in (
            ("energy", self.energy_j, "J"),
            ("idle power before", self.idle_before_w, "W"),
            ("idle power after", self.idle_after_w, "W"),
        ):
            if not (isfinite(value) and value > 0):
                raise MeasureError(
                    f"window: {name} {value} {unit}, needs more than 0; the energy counter stands still or was reset: "
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
        """Plain dict for json.dump: fields and properties, by name."""
        return {
            **vars(self),
            "conditions": dict(self.conditions),
            "inferences": self.inferences,
            "gross_j": self.gross_j,
            "net_j": self.net_j,
            "power_w": self.power_w,
            "run_ms": self.run_ms,
            "idle_drift": self.idle_drift,
            "polled_difference": self.polled_difference,
        }


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
    """Of `count_onnx`.

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

    windows: tuple[Window, ...]
    discarded: int

    def __post_init__(self) -> None:
        if len(self.windows) < 2 or len({window.batch for window in self.windows}) != 1:
            batches = [window.batch for window in self.windows]
            raise MeasureError(f"windows: of batches {batches}, needs two or more of the same batch")

    @property
    def batch(self) -> int:
        """Samples of one run."""
        return self.windows[0].batch

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the numbers are used."""
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
            found.append(f"batch {self.batch}: net_j below 0 is noise: the load does not show above idle")
        return tuple(found)

    def to_json(self, macs: Macs | None = None) -> dict[str, object]:
        """Plain dict for json.dump: {mean, lo, hi, std} of each quantity, and of pJ per MAC where `macs` are known."""
        found = {
            name: spread([getattr(window, name) for window in self.windows])
            for name in ("gross_j", "net_j", "power_w", "idle_w", "run_ms")
        }
        dense, effective = (macs.dense_padded, macs.effective) if macs is not None else (None, None)
        gross_j, net_j = found["gross_j"].mean, found["net_j"].mean
        return {
            "batch": self.batch,
            **{name: values.to_json() for name, values in found.items()},
            "ms_per_inference": found["run_ms"].mean / self.batch,
            "gross_pj_per_dense_padded_mac": per_mac_pj(gross_j, dense),
            "net_pj_per_dense_padded_mac": per_mac_pj(net_j, dense),
            "gross_pj_per_effective_mac": per_mac_pj(gross_j, effective),
            "net_pj_per_effective_mac": per_mac_pj(net_j, effective),
            "windows": [window.to_json() for window in self.windows],
            "discarded": self.discarded,
            "notes": list(self.notes),
        }


def per_mac_pj(energy_j: float, macs: float | None) -> float | None:
    """Energy of one inference, J, over its multiplications, in pJ; None where those are unknown or 0."""
    return energy_j * 1e12 / macs if macs else None


def measurement_json(found: Any) -> dict[str, object]:
    """Fields of a measurement of a GPU or a CPU, its batches per MAC where these are known."""
    return {
        **vars(found),
        "macs": None if found.macs is None else vars(found.macs),
        "batches": [batch.to_json(found.macs) for batch in found.batches],
        "notes": list(found.notes),
    }
