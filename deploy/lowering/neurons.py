"""Put neurons into one normal form, in which they rest and reset at 0.

    v[t] = (1 - v_decay/4096) v[t-1] + u[t] + bias      fires above `height` (a readout never)
    u[t] = (1 - i_decay/4096) u[t-1] + sum(weight * input)

The change of v to (v - v_reset) / H changes no spike. H is the threshold above v_reset where all
neurons share it, so that `height` is 1, and else the power of two below each neuron's own, which
leaves weights on their grid. It scales the gain, and leaves a_mem * (v_leak - v_reset) as a bias,
with a_mem = dt/tau_mem. The chip starts at 0 and NIR at v_leak (IF: at v_reset), so that leak is
exact only where the two are equal. Gains are

    LIF, LI  r*dt/tau     CubaLIF, CubaLI  r*w_in*(dt/tau_mem)*(dt/tau_syn)     IF, I  r*dt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.export.graph.parameters import float64
from knarr.hw_sim.arrays import Float64, Int32
from knarr.hw_sim.network import DECAY_UNITY

SPIKING = (nir.LIF, nir.CubaLIF, nir.IF)
Register = int | Int32


@dataclass(frozen=True, eq=False)
class FloatNeuron:
    """The neurons of a node in the normal form.

    Args:
        name: name of the node.
        gain: per feature (or one for all): v per unit of synaptic input.
        i_decay, v_decay: registers, in 4096ths per step: one for all, or one per feature.
        i_share, v_share: dt/tau_syn and dt/tau_mem, from which the registers were rounded, the mean
            over neurons; None where there is no such state.
        fires: False for a readout.
        bias: per feature: added to v at every step.
        filtered: input passes a synaptic current of more than one step, a bias on the chip does
            not.
        volts: volts of one unit of v, None where they differ between neurons.
        rest: volts at which a readout rests, which the chip calls 0.
        height: per feature (or one for all): the threshold.
    """

    name: str
    gain: Float64
    i_decay: Register
    v_decay: Register
    i_share: float | None
    v_share: float | None
    fires: bool
    bias: Float64
    filtered: bool
    volts: float | None
    rest: float
    height: Float64


@dataclass(frozen=True)
class Notes:
    """The changes that reading a graph made, a line each.

    Args:
        allowed: map what has no exact form as nearly as the chip can, instead of refusing it.
        rewrites: what was changed exactly.
        approximations: what was changed to something near.
        rounded: what a register rounds.
        folded: what became a part of the synapse beside it.
    """

    allowed: bool
    rewrites: list[str] = field(default_factory=list)
    approximations: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)

    def approximate(self, found: str, cure: str, instead: str) -> None:
        """Note what the chip does instead of what was found.

        Raises:
            DeployError: approximations are not allowed; says the cure.
        """
        if not self.allowed:
            raise DeployError(f"{found}; {cure} or allow approximation")
        self.approximations.append(f"{found}: {instead}")


def normalise(name: str, node: Any, dt_s: float, notes: Notes) -> FloatNeuron:
    """Put a neuron node into the normal form.

    Args:
        name: name of the node, for messages.
        node: LIF, CubaLIF, LI, CubaLI, IF or I.
        dt_s: time step, seconds.
        notes: receive what was changed, and tell what may be.

    Raises:
        DeployError: a parameter that the chip cannot hold; names node, reason and cure.
    """
    integrates = isinstance(node, (nir.IF, nir.I))
    cuba = isinstance(node, (nir.CubaLIF, nir.CubaLI))
    v_share = None if integrates else _share(name, node, "tau_mem" if cuba else "tau", dt_s)
    i_share = _share(name, node, "tau_syn", dt_s) if cuba else None
    # Without a leak nothing is forgotten, without a synaptic current everything is.
    v_decay: Register = 0
    i_decay: Register = DECAY_UNITY
    gain_per_r: Float64 | float = dt_s
    if v_share is not None:
        v_decay = _register(name, "voltage", v_share, 0)
        gain_per_r = v_share
    gain = float64(node.r) * gain_per_r
    if i_share is not None:
        i_decay = _register(name, "current", i_share, 1)
        gain = gain * float64(node.w_in) * i_share
    leak = np.zeros(1) if integrates else float64(node.v_leak)
    if np.any(np.equal(v_decay, DECAY_UNITY)):
        v_decay = _shared(np.minimum(v_decay, DECAY_UNITY - 1))
        notes.rounded.append(
            f"'{name}': forgets within a step; keeps 1/4096 of v, the shortest memory in hardware"
        )
    fires = hasattr(node, "v_threshold")
    height, unit, bias, rest = np.ones(1), np.ones(1), np.zeros(1), 0.0
    if fires:
        reset = float64(node.v_reset)
        height = float64(node.v_threshold) - reset
        if (height <= 0).any():
            raise DeployError(
                f"node '{name}': v_threshold lies {height.min():g} above v_reset; a neuron needs "
                "it above the voltage it resets to"
            )
        if reset.any():
            notes.rewrites.append(f"'{name}': voltages moved by v_reset, {_span(reset)} V")
        # A power of two leaves weights on the grid that they were trained on.
        unit = 2.0 ** np.floor(np.log2(height)) if np.ptp(height) else height
        if not integrates:
            leak = leak - reset
        if leak.any():
            notes.approximate(
                f"node '{name}': rests at v_leak, {_span(leak)} V above v_reset, and starts there",
                "the chip starts at v_reset, set both equal",
                "the chip starts at v_reset and climbs by a bias",
            )
        # An integrator has no leak, so its bias is 0 whatever it would be a share of.
        bias = gain_per_r * leak / unit
    elif leak.any():
        # A readout that starts at v_leak and rests there: the same voltages, moved by a constant.
        if np.ptp(leak):
            raise DeployError(
                f"node '{name}': v_leak differs between readouts, {_span(leak)} V, and the chip's "
                "all start at 0; use one v_leak"
            )
        notes.rewrites.append(f"'{name}': voltages read {_span(leak)} V lower, all of them")
        rest = float(leak.flat[0])
    gain, height = gain / unit, height / unit
    if np.ptp(gain):
        notes.rewrites.append(f"'{name}': its own gains multiplied into the rows of weights")
    own = [
        what
        for what, values in (("thresholds", height), ("v_decay", v_decay), ("i_decay", i_decay))
        if np.ptp(values)
    ]
    if own:
        notes.rewrites.append(f"'{name}': a register of each neuron for {', '.join(own)}")
    return FloatNeuron(
        name=name,
        gain=gain,
        i_decay=i_decay,
        v_decay=v_decay,
        i_share=None if i_share is None else float(np.mean(i_share)),
        v_share=None if v_share is None else float(np.mean(v_share)),
        fires=fires,
        bias=bias,
        filtered=bool(np.any(np.less(i_decay, DECAY_UNITY))),
        volts=None if np.ptp(unit) else float(unit.flat[0]),
        rest=rest,
        height=height,
    )


def _share(name: str, node: Any, field: str, dt_s: float) -> Float64:
    """Return dt/tau of each neuron."""
    tau_s = float64(getattr(node, field))
    if (tau_s <= 0).any():
        raise DeployError(
            f"node '{name}': {field} is {tau_s.min():g} s; a time constant is above 0"
        )
    return dt_s / tau_s


def _register(name: str, which: str, share: Float64, low: int) -> Register:
    """Return the decay register of all neurons, or one for each of them."""
    registers = np.rint(DECAY_UNITY * share).astype(np.int64)
    least, most = int(registers.min()), int(registers.max())
    if least < low or most > DECAY_UNITY:
        raise DeployError(
            f"node '{name}': {which} decay register {least}..{most}, allowed {low}..{DECAY_UNITY}; "
            f"time constants of {1 / share.max():.3g}..{1 / share.min():.3g} steps do not fit, "
            "change tau or dt"
        )
    return _shared(registers)


def _shared(registers: Any) -> Register:
    """Return registers as one integer where all are equal."""
    values = np.asarray(registers)
    return values.astype(np.int32) if np.ptp(values) else int(values.flat[0])


def _span(values: Float64) -> str:
    return f"{values.min():g}..{values.max():g}" if np.ptp(values) else f"{values.min():g}"
