"""The chip: its network type, its integer arithmetic, its simulator, and what an inference costs on it."""

from knarr.hw_sim.errors import ChipError, CountError
from knarr.hw_sim.network import NON_SPIKING_VTH, ChipNetwork, Conv, Dense, InputCoding, Neuron, Readout
from knarr.hw_sim.recording import Divergence, Recording, compare, load_recording, save_recording
from knarr.hw_sim.simulate import simulate

__all__ = [
    "NON_SPIKING_VTH",
    "ChipError",
    "ChipNetwork",
    "Conv",
    "CountError",
    "Dense",
    "Divergence",
    "InputCoding",
    "Neuron",
    "Readout",
    "Recording",
    "compare",
    "load_recording",
    "save_recording",
    "simulate",
]
