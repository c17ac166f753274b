"""The chip: its network type, integer arithmetic and simulator, and what an inference costs."""

from typing import TYPE_CHECKING

from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.hw_sim.coding import check_inputs, encode, takes_sign
    from knarr.hw_sim.counting import (
        LayerCounts,
        OperationCounts,
        count,
        count_events,
        count_onnx,
        count_torch,
    )
    from knarr.hw_sim.energy import (
        EnergyEstimate,
        GpuMeasurement,
        Options,
        PriceError,
        measure_gpu,
        price,
        price_alone,
    )
    from knarr.hw_sim.engines.selection import ENGINES, choose_engine
    from knarr.hw_sim.errors import ChipError, CountError
    from knarr.hw_sim.labels import check_labels, is_one_hot
    from knarr.hw_sim.network import (
        NON_SPIKING_VTH,
        TRAINED,
        ChipNetwork,
        Conv,
        Dense,
        InputCoding,
        Neuron,
        Readout,
        Recurrent,
    )
    from knarr.hw_sim.recording import (
        RECORDABLE,
        Divergence,
        Recording,
        compare,
        load_recording,
        save_recording,
    )
    from knarr.hw_sim.simulation import (
        SlowEngineWarning,
        laid_out_layers,
        plan_layers,
        simulate,
    )
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "ENGINES",
    "NON_SPIKING_VTH",
    "RECORDABLE",
    "TRAINED",
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
    "Neuron",
    "OperationCounts",
    "Options",
    "PriceError",
    "Readout",
    "Recording",
    "Recurrent",
    "SlowEngineWarning",
    "check_inputs",
    "check_labels",
    "choose_engine",
    "compare",
    "count",
    "count_events",
    "count_onnx",
    "count_torch",
    "encode",
    "is_one_hot",
    "laid_out_layers",
    "load_recording",
    "measure_gpu",
    "plan_layers",
    "price",
    "price_alone",
    "save_recording",
    "simulate",
    "takes_sign",
]
