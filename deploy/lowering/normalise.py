"""Pass: a NIR neuron into the chip's one gauge, where it rests and resets at 0 and fires above 1.

v -> (v - v_reset) / (v_threshold - v_reset) changes no spike; it scales the gain, and leaves a_mem * (v_leak - v_reset) as a
bias. The chip starts at 0, NIR at v_leak (IF: at v_reset), so that leak is exact only where the two are equal.

gain    LIF, LI  r*dt/tau     CubaLIF, CubaLI  r*w_in*(dt/tau_mem)*(dt/tau_syn)     IF, I  r*dt
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.float_layers import Float, FloatNeuron
from knarr.hw_sim.network import DECAY_UNITY

CHIP_NEURONS = (nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.IF, nir.I)
_CURRENTS = (nir.CubaLIF, nir.CubaLI)


def normalise(name: str, node: Any, dt_s: float, *, approximate: bool) -> FloatNeuron:
    """Registers, gain and bias of a neuron node.

    Args:
        name: of the node, for messages.
        node: LIF, CubaLIF, LI, CubaLI, IF or I.
        dt_s: time step, seconds.
        approximate: round what the chip has no exact form of, and say so, instead of refusing it.

    Raises:
        DeployError: a parameter that the chip cannot hold; names node, reason and cure.
    """
    integrates = isinstance(node, (nir.IF, nir.I))
    filtered = isinstance(node, _CURRENTS)
    rewrites: list[str] = []
    near: list[str] = []
    rounded: list[str] = []
    v_share = None if integrates else dt_s / _field(name, node, "tau_mem" if filtered else "tau")
    i_share = dt_s / _field(name, node, "tau_syn") if filtered else None
    v_decay = (
        0
        if v_share is None
        else _register(name, "voltage", v_share, 0, near if approximate else None)
    )
    i_decay = (
        DECAY_UNITY
        if i_share is None
        else _register(name, "current", i_share, 1, near if approximate else None)
    )
    if v_decay == DECAY_UNITY:
        rounded.append(
            f"'{name}': forgets within a step; keeps 1/4096 of v, the shortest memory in hardware"
        )
    gain = _field(name, node, "r") * (dt_s if v_share is None else v_share)
    if i_share is not None:
        gain = gain * _field(name, node, "w_in") * i_share
    leak = np.zeros(1) if integrates else _field(name, node, "v_leak")
    fires = hasattr(node, "v_threshold")
    if fires:
        reset = _field(name, node, "v_reset")
        height = _field(name, node, "v_threshold") - reset
        if (height <= 0).any():
            raise DeployError(
                f"node '{name}': v_threshold lies {height.min():g} above v_reset; a neuron needs it above the voltage it resets to"
            )
        if reset.any():
            rewrites.append(f"'{name}': voltages moved by v_reset, {_span(reset)} V")
        leak = np.zeros(1) if integrates else leak - reset
        if leak.any():
            _leak(name, leak, near if approximate else None)
        assert v_share is not None or not leak.any()
        bias = (0.0 if v_share is None else v_share) * leak / height
        rest = 0.0
    else:
        # A readout that starts at v_leak and rests there: the same voltages, moved by a constant.
        if leak.any() and np.ptp(leak):
            raise DeployError(
                f"node '{name}': v_leak differs between readouts, {_span(leak)} V, and the chip's all start at 0; use one v_leak"
            )
        if leak.any():
            rewrites.append(f"'{name}': voltages read {_span(leak)} V lower, all of them")
        height, bias, rest = np.ones(1), np.zeros(1), float(leak.flat[0])
    if np.ptp(height) or np.ptp(gain):
        rewrites.append(
            f"'{name}': its own thresholds and gains multiplied into the rows of weights"
        )
    return FloatNeuron(
        name=name,
        gain=gain / height,
        i_decay=i_decay,
        v_decay=min(v_decay, DECAY_UNITY - 1),
        i_share=None if i_share is None else float(np.mean(i_share)),
        v_share=None if v_share is None else float(np.mean(v_share)),
        fires=fires,
        bias=np.asarray(bias, dtype=np.float64),
        filtered=i_decay < DECAY_UNITY,
        volts=None if np.ptp(height) else float(height.flat[0]),
        rest=rest,
        rewrites=tuple(rewrites),
        rounded=tuple(rounded),
        approximations=tuple(near),
    )


def _field(name: str, node: Any, field: str) -> Float:
    array = np.atleast_1d(np.asarray(getattr(node, field), dtype=np.float64))
    if not np.isfinite(array).all():
        raise DeployError(
            f"node '{name}': {field} holds something else than finite numbers; repair it"
        )
    if field.startswith("tau") and (array <= 0).any():
        raise DeployError(
            f"node '{name}': {field} is {array.min():g} s; a time constant is above 0"
        )
    return array


def _register(name: str, which: str, share: Float, low: int, near: list[str] | None) -> int:
    """Decay register of all neurons; refused, or the mean of them, where they need several."""
    registers = np.rint(DECAY_UNITY * share).astype(np.int64)
    if registers.min() < low or registers.max() > DECAY_UNITY:
        raise DeployError(
            f"node '{name}': {which} decay register {registers.min()}..{registers.max()}, allowed {low}..{DECAY_UNITY}; "
            f"time constants of {1 / share.max():.3g}..{1 / share.min():.3g} steps do not fit, change tau or dt"
        )
    if registers.min() == registers.max():
        return int(registers.flat[0])
    needs = f"node '{name}': {which} decays differ between neurons, registers {registers.min()}..{registers.max()}"
    if near is None:
        raise DeployError(
            f"{needs}; a layer of a .net file has one, use one tau or allow approximation"
        )
    middle = round(float(registers.mean()))
    near.append(f"{needs}: all take {middle}")
    return middle


def _leak(name: str, leak: Float, near: list[str] | None) -> None:
    text = f"node '{name}': rests at v_leak, {_span(leak)} V above v_reset, and starts there"
    if near is None:
        raise DeployError(
            f"{text}; the chip starts at v_reset, set both equal or allow approximation"
        )
    near.append(f"{text}: the chip starts at v_reset and climbs by a bias")


def _span(values: Float) -> str:
    return f"{values.min():g}" if not np.ptp(values) else f"{values.min():g}..{values.max():g}"
