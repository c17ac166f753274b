"""Joules from counts: prices as data, three models side by side, and comparisons that say when they do not hold."""

from knarr.hw_sim.energy.baseline import Baseline, baseline
from knarr.hw_sim.energy.break_even import BreakEven, break_even
from knarr.hw_sim.energy.compare import Comparison, compare_models, ratio
from knarr.hw_sim.energy.estimate import EnergyEstimate, price
from knarr.hw_sim.energy.floor import Floor, gpu_floor, gpu_floors
from knarr.hw_sim.energy.interval import Interval
from knarr.hw_sim.energy.measure_cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure_gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measurement import MeasureError
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
from knarr.hw_sim.energy.trade import Trade, trade

__all__ = [
    "GRADES",
    "MODELS",
    "Baseline",
    "BreakEven",
    "Comparison",
    "CpuMeasurement",
    "EnergyEstimate",
    "Floor",
    "GpuMeasurement",
    "Interval",
    "MeasureError",
    "Options",
    "PriceError",
    "PriceRecord",
    "Profile",
    "Trade",
    "baseline",
    "break_even",
    "compare_models",
    "gpu_floor",
    "gpu_floors",
    "load_profile",
    "measure_cpu",
    "measure_gpu",
    "price",
    "profiles",
    "ratio",
    "trade",
    "usable",
]
