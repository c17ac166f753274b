"""As much of a network as a faulty file gives, for rules that look at one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

from knarr.deploy.netx_draft import Draft
from knarr.hw_sim import ChipNetwork, InputCoding, Readout
from knarr.hw_sim.layers import Layer


@dataclass(frozen=True)
class Parts:
    """Layers that need not fit each other, and stand-ins for what is said about the whole."""

    layers: tuple[Layer, ...]
    input: InputCoding
    readout: Readout


Network = ChipNetwork | Parts
"""What a network rule looks at."""


def parts_of(draft: Draft) -> Parts | None:
    """The layers that could be built, None when there are none."""
    layers = tuple(found.layer for found in draft.layers if found.layer is not None)
    if not layers:
        return None
    neuron = next((found.neuron for found in draft.layers if found.raw.kind == "input"), None)
    driven = neuron if neuron is not None and neuron.spikes else None
    readout = Readout("spikes" if layers[-1].neuron.spikes else "voltage")
    return Parts(layers, InputCoding((1,), neuron=driven), readout)
