"""Intervals of joules, in picojoules: what is not known stays unknown through sums and products."""

from __future__ import annotations

from dataclasses import dataclass

from knarr.hw_sim.energy.prices import PriceRecord


@dataclass(frozen=True)
class Interval:
    """A nominal energy between bounds, in pJ; None is unknown."""

    lo: float | None
    nominal: float
    hi: float | None

    def __add__(self, other: Interval) -> Interval:
        return Interval(_sum(self.lo, other.lo), self.nominal + other.nominal, _sum(self.hi, other.hi))

    def times(self, count: float) -> Interval:
        """So many of it, at least 0; of nothing the energy is known to be 0."""
        if count == 0:
            return ZERO
        lo, hi = (None if bound is None else bound * count for bound in (self.lo, self.hi))
        return Interval(lo, self.nominal * count, hi)

    def to_json(self) -> dict[str, float | None]:
        """lo, nominal, hi."""
        return {"lo": self.lo, "nominal": self.nominal, "hi": self.hi}


ZERO = Interval(0.0, 0.0, 0.0)


def of_record(record: PriceRecord) -> Interval:
    """A price that is used has a nominal value."""
    assert record.nominal is not None
    return Interval(record.lo, record.nominal, record.hi)


def total(parts: list[Interval]) -> Interval:
    """Their sum."""
    found = ZERO
    for part in parts:
        found = found + part
    return found


def _sum(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right
