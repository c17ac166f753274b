"""Integer CUBA neuron of Lava's fixed_pt model, one step, readable.

Source: lava-nc 0.10.0 `lava.proc.lif.models`, confirmed against running Lava
(tests/deploy/test_lava.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.network import DECAY_UNITY, Neuron

STATE_MAX = 2**23
"""u and v are 23 bits and sign."""
STATE_SHIFT = 6
"""Weights, biases and thresholds are worth 64 units of u and v."""
SYNAPSE_BITS = 24
"""Lava's Conv wraps its sum to 24 signed bits before the shift."""


def decay(state: Int64, register: int) -> Int64:
    """sign(x) * ((|x| * (4096 - register)) >> 12): rounds toward zero, as the chip does."""
    return np.sign(state) * ((np.abs(state) * (DECAY_UNITY - register)) >> 12)


def wrap_current(u: Int64) -> Int64:
    """One wrap of u past 23 bits; +2**23 itself survives, which two's complement would not do."""
    return np.where(
        u > STATE_MAX, u - 2 * STATE_MAX, np.where(u <= -STATE_MAX, u + 2 * STATE_MAX, u)
    )


def wrap_synapse(a: Int64) -> Int64:
    """Two's complement wrap of a synaptic sum to 24 bits (Lava's Conv; Dense sums are not wrapped)."""
    half = 1 << (SYNAPSE_BITS - 1)
    return (a + half) % (2 * half) - half


def step(
    u: Int64, v: Int64, a: Int64, bias_int: Int64 | int, neuron: Neuron
) -> tuple[Int64, Int64, npt.NDArray[np.bool_]]:
    """One time step of CUBA neurons.

    Args:
        u, v: current and voltage, int64, any shape, |u| <= 2**23, |v| < 2**23.
        a: synaptic sum arriving in this step, int64, same shape.
        bias_int: bias mantissa, broadcast against v; worth 64 units of v.
        neuron: the registers.

    Returns:
        (u, v, spike) after the step; v is 0 where a neuron fired, u is untouched by a spike.
    """
    u = wrap_current(decay(u, neuron.i_decay) + (a << STATE_SHIFT))
    bias = np.asarray(bias_int, dtype=np.int64) << STATE_SHIFT
    v = np.clip(decay(v, neuron.v_decay) + u + bias, -(STATE_MAX - 1), STATE_MAX - 1)
    spike = v > (neuron.vth_int << STATE_SHIFT)
    return u, np.where(spike, 0, v), spike
