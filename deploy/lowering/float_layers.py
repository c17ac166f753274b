"""A network on its way to integers: chip layers that still hold floats, in the one gauge the chip has.

In that gauge a neuron rests and resets at 0 and fires above 1 (a readout has no threshold and keeps its volts):

    v[t] = (1 - v_decay/4096) v[t-1] + u[t] + bias        u[t] = (1 - i_decay/4096) u[t-1] + sum(weight * input)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FloatNeuron:
    """What a neuron node becomes.

    Args:
        name: of the node.
        gain: per feature (or one for all): v per unit of synaptic input, in the gauge above.
        i_decay, v_decay: registers, in 4096ths per step.
        i_share, v_share: what they were rounded from, dt/tau_syn and dt/tau_mem; None where there is no such state.
        fires: False for a readout.
        bias: per feature: added to v at every step.
        filtered: input passes a synaptic current of more than one step, a bias on the chip does not.
        volts: what one unit of v stands for, None where it differs between neurons.
        rest: volts at which a readout rests, which the chip calls 0.
        rewrites, approximations, rounded: what was changed exactly, what only nearly, and what a register rounds; a line each.
    """

    name: str
    gain: Float
    i_decay: int
    v_decay: int
    i_share: float | None
    v_share: float | None
    fires: bool
    bias: Float
    filtered: bool
    volts: float | None
    rest: float = 0.0
    rewrites: tuple[str, ...] = ()
    approximations: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Of a convolution: (height, width) each, and the (C, H, W) it receives."""

    input_shape: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A synapse and its neurons.

    Args:
        name: of the synapse's node.
        neuron: what it feeds.
        weight: (out, in), or (out, in / groups, height, width) of a convolution; gain is in it.
        bias: (out,) per output or channel.
        recurrent: (out, out) from the layer's own spikes of the step before, or None.
        delay: (out, in) whole steps, or None.
        geometry: of a convolution, None for dense.
    """

    name: str
    neuron: FloatNeuron
    weight: Float
    bias: Float
    recurrent: Float | None = None
    delay: npt.NDArray[np.int32] | None = None
    geometry: Geometry | None = None
