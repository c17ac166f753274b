"""Quantities between bounds as text: three digits, a prefix that fits, never an exponent."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

PREFIXES: Final = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}
UNKNOWN: Final = "?"
Bounds = Mapping[str, Any]
"""low, nominal and high of a quantity, None where unknown, and its unit."""


def digits(value: float | None) -> str:
    """Return a number in three digits, all of those before the point; ? for None."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size >= 100 or size == 0:
        return f"{value:,.0f}"
    if size < 0.01:
        # Two digits, however many zeros stand before them.
        return f"{Decimal(f'{value:.1e}'):f}"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def prefix_of(bounds: Bounds, least: float = 0.1) -> str:
    """Return the prefix of a unit in which a quantity is a number of at least `least`."""
    values = (bounds["nominal"], bounds["high"], bounds["low"])
    shown = next((value for value in values if value), 1.0)
    # 0.249 mJ is as easy to read as 249 uJ, and stands beside other mJ.
    fits = (prefix for prefix, factor in PREFIXES.items() if shown >= least * factor)
    return next(fits, "f")


def amount(value: float | None, unit: str, prefix: str) -> str:
    """Return a value with its unit, such as "0.249 mJ"."""
    scaled = None if value is None else value / PREFIXES[prefix]
    return f"{digits(scaled)} {prefix}{unit}".rstrip()


def interval(bounds: Bounds, prefix: str = "") -> str:
    """Return [low, high] in a prefix of the unit; nothing where both are the nominal value."""
    low, high = bounds["low"], bounds["high"]
    if low is not None and low == high:
        return ""
    if low is None and high is None:
        return f"[{UNKNOWN}]"
    factor = PREFIXES[prefix]
    ends = (digits(None if end is None else end / factor) for end in (low, high))
    return f"[{', '.join(ends)}]"


def spelled(bounds: Bounds, prefix: str | None = None) -> str:
    """Return nominal value, unit and bounds, such as "0.249 mJ [0.121, 1.20]"."""
    shown = prefix_of(bounds) if prefix is None else prefix
    value = amount(bounds["nominal"], bounds["unit"], shown)
    return f"{value} {interval(bounds, shown)}".rstrip()
