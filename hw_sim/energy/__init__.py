"""Joules from counts: prices as data, three models, and comparisons that say when they hold."""

from typing import TYPE_CHECKING

from knarr.hw_sim.energy.estimate import (
    EnergyEstimate,
    compare_models,
    price,
    ratio,
)
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.prices import (
    PriceError,
    Profile,
    load_profile,
    profiles,
)
from knarr.hw_sim.energy.what_if import WhatIf, break_even, what_if
from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
    from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
    from knarr.hw_sim.energy.measure.protocol import MeasureError
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "CpuMeasurement",
    "EnergyEstimate",
    "GpuMeasurement",
    "MeasureError",
    "Options",
    "PriceError",
    "Profile",
    "WhatIf",
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
