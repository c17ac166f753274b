"""Joules from counts: prices as data, three models side by side, and comparisons that say when they do not hold."""

from knarr.hw_sim.energy.break_even import BreakEven, break_even
from knarr.hw_sim.energy.compare import Comparison, compare_models, ratio
from knarr.hw_sim.energy.estimate import EnergyEstimate, price
from knarr.hw_sim.energy.interval import Interval
from knarr.hw_sim.energy.models import MODELS, Options
from knarr.hw_sim.energy.prices import (
    GRADES,
    PriceError,
    PriceRecord,
    Profile,
    load_profile,
    profiles,
    usable,
)

__all__ = [
    "GRADES",
    "MODELS",
    "BreakEven",
    "Comparison",
    "EnergyEstimate",
    "Interval",
    "Options",
    "PriceError",
    "PriceRecord",
    "Profile",
    "break_even",
    "compare_models",
    "load_profile",
    "price",
    "profiles",
    "ratio",
    "usable",
]
