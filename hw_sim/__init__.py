"""The chip: its network type, its integer arithmetic, its simulator, and what an inference costs on it."""

from knarr.hw_sim.coding import encode
from knarr.hw_sim.counting.count import count, count_events
from knarr.hw_sim.counting.counts import LayerCounts, LedgerRow, OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.energy import (
    EnergyEstimate,
    GpuMeasurement,
    MeasureError,
    PriceError,
    load_profile,
    measure_gpu,
    price,
    profiles,
    ratio,
)
from knarr.hw_sim.errors import ChipError, CountError
from knarr.hw_sim.network import (
    NON_SPIKING_VTH,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)
from knarr.hw_sim.recording import Divergence, Recording, compare, load_recording, save_recording
from knarr.hw_sim.simulation import simulate

__all__ = [
    "NON_SPIKING_VTH",
    "ChipError",
    "ChipNetwork",
    "Conv",
    "CountError",
    "Dense",
    "Divergence",
    "EnergyEstimate",
    "GpuMeasurement",
    "InputCoding",
    "LayerCounts",
    "LedgerRow",
    "MeasureError",
    "Neuron",
    "OperationCounts",
    "PriceError",
    "Readout",
    "Recording",
    "Recurrent",
    "compare",
    "count",
    "count_events",
    "count_onnx",
    "encode",
    "load_profile",
    "load_recording",
    "measure_gpu",
    "price",
    "profiles",
    "ratio",
    "save_recording",
    "simulate",
]
