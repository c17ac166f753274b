"""Joules from counts: prices as data, three models, and comparisons that say when they hold."""

from knarr.hw_sim.energy.baseline import baseline
from knarr.hw_sim.energy.estimate import (
    EnergyEstimate,
    compare_models,
    price,
    ratio,
)
from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measure.protocol import MeasureError
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.prices import (
    PriceError,
    Profile,
    load_profile,
    profiles,
)
from knarr.hw_sim.energy.what_if import WhatIf, break_even, what_if

__all__ = [
    "CpuMeasurement",
    "EnergyEstimate",
    "GpuMeasurement",
    "MeasureError",
    "Options",
    "PriceError",
    "Profile",
    "WhatIf",
    "baseline",
    "break_even",
    "compare_models",
    "load_profile",
    "measure_cpu",
    "measure_gpu",
    "price",
    "profiles",
    "ratio",
    "what_if",
]
