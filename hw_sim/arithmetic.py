"""Integer CUBA neuron of Lava's fixed_pt model, one step, readable.

Source: lava-nc 0.10.0 `lava.proc.lif.models`, confirmed against running Lava
(tests/deploy/test_lava.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.network import DECAY_UNITY, Neuron, Register

STATE_MAX = 2**23
"""u and v are 23 bits and sign."""
STATE_SHIFT = 6
"""Weights, biases and thresholds are worth 64 units of u and v."""
SYNAPSE_BITS = 24
"""Lava's Conv wraps its sum to 24 signed bits before the shift."""


def decay(state: Int64, register: Register) -> Int64:
    """sign(x) * ((|x| * (4096 - register)) >> 12): rounds toward zero, as the chip does."""
    kept: Int64 = np.multiply(np.abs(state), DECAY_UNITY - register)
    return np.sign(state) * (kept >> 12)


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
        u, v: current and voltage, int64, |u| <= 2**23, |v| < 2**23; any shape where all neurons share
            the registers, (samples, *features) where each has its own.
        a: synaptic sum arriving in this step, int64, same shape.
        bias_int: bias mantissa, broadcast against v; worth 64 units of v.
        neuron: the registers.

    Returns:
        (u, v, spike) after the step; v is 0 where a neuron fired, u is untouched by a spike.
    """
    features = u.shape[1:]
    u = wrap_current(decay(u, _placed(neuron.i_decay, features)) + (a << STATE_SHIFT))
    bias = np.asarray(bias_int, dtype=np.int64) << STATE_SHIFT
    v = np.clip(
        decay(v, _placed(neuron.v_decay, features)) + u + bias, -(STATE_MAX - 1), STATE_MAX - 1
    )
    spike = v > (_placed(neuron.vth_int, features) << STATE_SHIFT)
    return u, np.where(spike, 0, v), spike


def _placed(register: Register, features: tuple[int, ...]) -> Register:
    """Return a register that broadcasts against (samples, *features)."""
    return register if isinstance(register, int) else register.reshape(features)
