"""Joules from counts: prices as data, three models, and comparisons that say when they hold."""

from knarr.hw_sim.energy.baseline import Baseline, Floor, baseline, gpu_floors
from knarr.hw_sim.energy.estimate import (
    EnergyEstimate,
    ModelComparison,
    compare_models,
    price,
    ratio,
)
from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measure.protocol import MeasureError
from knarr.hw_sim.energy.models import MODELS, Interval, Options
from knarr.hw_sim.energy.prices import (
    GRADES,
    PriceError,
    PriceRecord,
    Profile,
    load_profile,
    profiles,
    usable,
)
from knarr.hw_sim.energy.what_if import BreakEven, WhatIf, break_even, what_if

__all__ = [
    "GRADES",
    "MODELS",
    "Baseline",
    "BreakEven",
    "CpuMeasurement",
    "EnergyEstimate",
    "Floor",
    "GpuMeasurement",
    "Interval",
    "MeasureError",
    "ModelComparison",
    "Options",
    "PriceError",
    "PriceRecord",
    "Profile",
    "WhatIf",
    "baseline",
    "break_even",
    "compare_models",
    "gpu_floors",
    "load_profile",
    "measure_cpu",
    "measure_gpu",
    "price",
    "profiles",
    "ratio",
    "usable",
    "what_if",
]
