"""Joules from counts: prices as data, three models, and comparisons that say when they hold."""

from typing import TYPE_CHECKING

from knarr.hw_sim.energy.estimate import (
    EnergyEstimate,
    price,
    ratio,
)
from knarr.hw_sim.energy.mapping import CoreMapping, LayerCores, Traffic, traffic_of
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.places import PlaceEnergy, PlaceOptions, Quantity, places_of
from knarr.hw_sim.energy.prices import (
    Family,
    PriceError,
    Profile,
    families,
    load_prices,
    load_profile,
    profiles,
)
from knarr.hw_sim.energy.twin import quantised_twin, twin_bits, twin_prices
from knarr.hw_sim.energy.what_if import WhatIf, break_even, what_if
from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.hw_sim.energy.alone import price_alone
    from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
    from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
    from knarr.hw_sim.energy.measure.protocol import MeasureError
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "CoreMapping",
    "CpuMeasurement",
    "EnergyEstimate",
    "Family",
    "GpuMeasurement",
    "LayerCores",
    "MeasureError",
    "Options",
    "PlaceEnergy",
    "PlaceOptions",
    "PriceError",
    "Profile",
    "Quantity",
    "Traffic",
    "WhatIf",
    "break_even",
    "families",
    "load_prices",
    "load_profile",
    "measure_cpu",
    "measure_gpu",
    "places_of",
    "price",
    "price_alone",
    "profiles",
    "quantised_twin",
    "ratio",
    "traffic_of",
    "twin_bits",
    "twin_prices",
    "what_if",
]
