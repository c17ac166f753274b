"""From times of interleaved rounds to ratios: only engines that ran in the same round are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Round = Mapping[str, Mapping[str, float]]
"""Workload -> engine -> seconds per sample in one round; what failed is not in it."""


@dataclass(frozen=True)
class Spread:
    """Median and range of one number over the rounds.

    Args:
        median, low, high: over the rounds.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{number(self.median)} [{number(self.low)}-{number(self.high)}]"


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values: a benchmark that measured nothing has nothing to say."""
    if not values:
        raise ValueError("no rounds to take a median of")
    return Spread(median(values), min(values), max(values), len(values))


def ratio(rounds: Sequence[Round], workload: str, slow: str, quick: str) -> Spread | None:
    """How many times faster `quick` is than `slow`: the ratio within each round, then its median and range.

    None where the two never ran in the same round.
    """
    pairs = [
        (times[slow], times[quick])
        for times in (one.get(workload, {}) for one in rounds)
        if slow in times and quick in times
    ]
    return spread([slow_s / quick_s for slow_s, quick_s in pairs]) if pairs else None


def seconds(rounds: Sequence[Round], workload: str, engine: str) -> Spread | None:
    """Seconds per sample of an engine over the rounds, None where it never ran."""
    times = [one[workload][engine] for one in rounds if engine in one.get(workload, {})]
    return spread(times) if times else None


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return (
        f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 1
        else f"{value:.3f}"
    )
