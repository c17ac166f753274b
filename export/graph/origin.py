"""Read from a graph's constants at which time step its tool ran it, and what that tool does and no
NIR file can say.

A NIR file holds time constants in seconds and no time step, but most tools have one in mind, and
write constants that hold it:

    snnTorch       r = tau/dt, w_in = tau_syn/dt, dt 1e-4 fixed in its code: v += -v dt/tau + x
    SpikingJelly   tau = steps dt, r = 1 or tau/dt; IF with r = 1/dt; dt 1e-4 unless told otherwise
    Rockpool       r = tau exp(-dt/tau) / dt, without w_in; dt as the module has it
    Sinabs         tau in steps, r = 1, so dt 1
    Norse          tau = dt / tau_inv, which is tau dt; read at dt^2, its ratios are those of the net

The sources are the exporters of snnTorch 0.9.4 and 1.0.0, SpikingJelly 2.0.0, Rockpool 3.1.0, Sinabs
3.1.3 and Norse 1.1.0, and docs/thirdparty.md and docs/roundtrips.md measured what they lose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from typing import Any

import nir
import numpy as np

from knarr.export.arguments import as_graph
from knarr.export.graph.parameters import float64
from knarr.export.graph.topology import inline

SAME = 1e-4
"""Relative difference of time steps that are one: tools compute in float32, 1 - 0.99 in 6 digits."""
USUAL_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
"""Time steps, seconds, of which one is taken where constants in seconds are all that is known."""
NORSE_STEP = 1e-3
"""The time step of Norse's exporter unless told otherwise, seconds."""


IN_SECONDS = "dt/tau is"
"""First words of a proposal that only says that time constants in seconds go with a step."""


@dataclass(frozen=True)
class StepProposal:
    """A time step that makes a graph's constants plausible.

    Args:
        dt_s: the step, seconds.
        tools: names of the tools whose exporters write constants like these for such a step.
        reason: what in the graph says so, as a clause.
        lost: what these tools do and a NIR file cannot say, a sentence each; empty where the file
            says all.
    """

    dt_s: float
    tools: tuple[str, ...]
    reason: str
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the proposal as an option of the command line with its reason."""
        return f"--dt {self.dt_s:.6g} ({' or '.join(self.tools)}: {self.reason})"


SNNTORCH_LOST = (
    "snnTorch subtracts the threshold one step after a spike unless a layer has "
    "reset_mechanism='zero' (Synaptic also reset_delay=False), and the file says reset to v_reset "
    "in the same step"
)
SINABS_LOST = (
    "Sinabs subtracts the threshold and fires several times a step unless a layer has "
    "MembraneReset and SingleSpike, and the file says reset to v_reset and one spike"
)
SINABS_DECAY_LOST = "Sinabs decays by exp(-1/tau), and forward Euler of the file by 1 - dt/tau"
ROCKPOOL_LOST = (
    "Rockpool subtracts the threshold, fires several times a step and decays by exp(-dt/tau), and "
    "the file says reset to v_reset, one spike and forward Euler"
)
ROCKPOOL_GAIN_LOST = (
    "Rockpool adds an input to the synaptic current in full and writes no w_in, so that the file's "
    "current is dt/tau_syn of its own"
)
NORSE_GAIN_LOST = (
    "Norse's LIFCell adds an input to its current in full and its to_nir writes no w_in, so that "
    "the file's current is dt/tau_syn of its own; `knarr export` writes it"
)
SOFT_RESET_LOST = (
    "SpikingJelly writes v_reset=None, which subtracts the threshold, as a reset to 0 in some "
    "releases"
)


@dataclass(frozen=True)
class _Constants:
    """Holds what one kind of neuron says, spread over all neurons of a graph in a row.

    Args:
        tau, r: membranes; tau is nan where a neuron has no leak.
        tau_syn, w_in: synapses, nan where a neuron has no current.
    """

    tau: Any
    r: Any
    tau_syn: Any
    w_in: Any


def proposed_steps(graph: nir.NIRGraph) -> tuple[StepProposal, ...]:
    """Return the time steps that make a graph's constants plausible, the most plausible first.

    Args:
        graph: any NIR graph; what its metadata say of a time step is not looked at.

    Returns:
        Empty where no neuron says anything: there are none, or nothing about them fits a tool.
    """
    neurons = _neurons(as_graph(graph))
    if neurons is None:
        return ()
    leaky = np.isfinite(neurons.tau)
    found: list[StepProposal] = []
    if (neurons.r == 1).all():
        found += _of_unit_resistance(neurons, leaky)
    else:
        found += _of_scaled_resistance(neurons, leaky)
    return tuple(found)


def step_advice(graph: nir.NIRGraph) -> str:
    """Return the proposals of `proposed_steps` as a cure for a message; no proposal gives advice
    of its own.
    """
    found = proposed_steps(graph)
    if not found:
        return "nothing in the graph says which; give that of the tool that made it"
    return "its constants fit " + " or ".join(str(one) for one in found)


def doubt_step(graph: nir.NIRGraph, dt_s: float) -> str:
    """Return why a time step that a user gave is probably not the one that a file was written at.

    Args:
        graph: a graph that names no step itself.
        dt_s: the step that was given, seconds.

    Returns:
        A sentence; empty where the step is among the proposals, or nothing tells.
    """
    found = proposed_steps(graph)
    # Time constants in seconds go with many steps, and say nothing against any of them.
    guessed = any(one.reason.startswith(IN_SECONDS) for one in found)
    if not found or guessed or any(abs(one.dt_s - dt_s) <= SAME * dt_s for one in found):
        return ""
    return f"steps of {dt_s:g} s may be wrong: {step_advice(graph)}"


def lost_in_file(graph: nir.NIRGraph, dt_s: float) -> tuple[str, ...]:
    """Return what the tool that a graph looks like does, and its file cannot say.

    Args:
        graph: any NIR graph.
        dt_s: the time step it is read at, seconds; proposals for others are left out.

    Returns:
        A sentence each; empty where the graph is knarr's own, or looks like no tool's that loses
        anything.
    """
    # The exporter of knarr certifies that nothing is lost, and writes its arithmetic down.
    if "integration" in as_graph(graph).metadata:
        return ()
    lost: dict[str, None] = {}
    for one in proposed_steps(graph):
        if abs(one.dt_s - dt_s) <= SAME * dt_s:
            lost |= dict.fromkeys(one.lost)
    return tuple(lost)


def explain_silence(graph: nir.NIRGraph, name: str, peak_v: float, dt_s: float) -> str:
    """Return why a neuron may be silent, and what to do, as the end of a message.

    Args:
        graph: the graph that was stepped.
        name: name of the silent neuron's node, by its path in nested graphs.
        peak_v: highest voltage that any of its neurons reached, volts.
        dt_s: the time step, seconds.
    """
    node: Any = inline(graph)[0].get(name)
    reached = ""
    if hasattr(node, "v_threshold"):
        lowest = float(float64(node.v_threshold).min())
        reached = f"at steps of {dt_s:g} s its voltage reaches {peak_v:.3g} of {lowest:.3g}"
    found = proposed_steps(graph)
    if found and all(abs(one.dt_s - dt_s) > SAME * dt_s for one in found):
        return f"{reached}, and {step_advice(graph)}; give that step"
    return f"{reached}; give samples on which it fires, in the units it was trained on"


def _neurons(graph: nir.NIRGraph) -> _Constants | None:
    rows: list[Any] = []
    for node in inline(graph)[0].values():
        if not hasattr(node, "r"):
            continue
        cuba = isinstance(node, (nir.CubaLIF, nir.CubaLI))
        missing = np.full((), np.nan)
        tau = getattr(node, "tau_mem" if cuba else "tau", missing)
        fields = (tau, node.r, getattr(node, "tau_syn", missing), getattr(node, "w_in", missing))
        rows.append([part.ravel() for part in np.broadcast_arrays(*map(float64, fields))])
    if not rows:
        return None
    constants = _Constants(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))
    # Constants out of range have messages of their own where they are used.
    positive = constants.r > 0
    return constants if positive.all() and not (constants.tau <= 0).any() else None


def _of_scaled_resistance(neurons: _Constants, leaky: Any) -> list[StepProposal]:
    """Return the steps that resistances other than 1 hold."""
    gain = np.where(leaky, neurons.tau, 1.0) / neurons.r
    filtered = np.isfinite(neurons.tau_syn)
    # SpikingJelly gives a leak that decays its input r = 1, beside others that hold the step.
    telling = neurons.r != 1
    step = _one(gain[telling])
    if filtered.any() and (neurons.w_in[filtered] == 1).all():
        # exp(-y) / y = r is solved by Newton's steps on y + log(y) = -log(r).
        at = _lambert(1 / neurons.r[filtered & telling])
        exact = _one(neurons.tau[filtered & telling] * at)
        if exact is not None and (step is None or _digits(exact) < _digits(step)):
            reason = "r is tau exp(-dt/tau) / dt"
            return [StepProposal(exact, ("Rockpool",), reason, (ROCKPOOL_LOST, ROCKPOOL_GAIN_LOST))]
    if step is None:
        return []
    if not leaky.any():
        return [StepProposal(step, ("SpikingJelly",), "r is 1/dt", (SOFT_RESET_LOST,))]
    # A leak that decays its input holds the step as a factor of tau alone.
    decayed = (leaky & ~telling).any() and not np.isclose(
        neurons.tau[leaky & ~telling], step, rtol=SAME
    ).all()
    plain = (~leaky).any()
    if decayed or plain or abs(step - 1e-4) > SAME * 1e-4:
        return [StepProposal(step, ("SpikingJelly",), "tau/r is dt", (SOFT_RESET_LOST,))]
    return [StepProposal(step, ("snnTorch", "SpikingJelly"), "tau/r is dt", (SNNTORCH_LOST,))]


def _of_unit_resistance(neurons: _Constants, leaky: Any) -> list[StepProposal]:
    """Return the steps that time constants alone leave."""
    filtered = np.isfinite(neurons.tau_syn)
    taus = np.concatenate([neurons.tau[leaky], neurons.tau_syn[filtered]])
    if not taus.size:
        return [StepProposal(1.0, ("Sinabs",), "r is 1 and nothing leaks", (SINABS_LOST,))]
    lowest = float(taus.min())
    if lowest >= 1:
        first = StepProposal(1.0, ("Sinabs",), "tau counts steps", (SINABS_LOST, SINABS_DECAY_LOST))
        tau = _one(taus)
        if tau is None:
            return [first]
        # One tau: the step at which forward Euler decays as exp(-1/tau) does.
        reason = "tau counts steps, and this is tau (1 - exp(-1/tau)), its exact decay"
        exact = float(f"{tau * (1 - exp(-1 / tau)):.6g}")
        return [first, replace(first, dt_s=exact, reason=reason, lost=(SINABS_LOST,))]
    if _one(taus) == 1e-4:
        # A layer that forgets at once; tau of 1 step is nothing that SpikingJelly takes.
        return [StepProposal(1e-4, ("snnTorch",), "tau is dt, beta 0", (SNNTORCH_LOST,))]
    found = []
    for step in USUAL_STEPS:
        # Euler is stable up to dt; with less than a thousandth a step it hardly moves.
        if step <= lowest * (1 + SAME) and lowest / step <= 1000:
            tools, lost = _seconds_tools(step, filtered.any())
            reason = f"{IN_SECONDS} {step / lowest:.3g} at most"
            found.append(StepProposal(step, tools, reason, lost))
    return found


def _seconds_tools(step: float, filtered: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tools whose files hold constants in seconds for such a step, and what they lose."""
    if step == NORSE_STEP:
        return ("Norse",), ()
    if step == NORSE_STEP**2:
        lost = (NORSE_GAIN_LOST,) if filtered else ()
        return ("Norse's to_nir, which writes tau dt",), lost
    if abs(step - 1e-4) <= SAME * 1e-4:
        return ("SpikingJelly",), (SOFT_RESET_LOST,)
    return ("constants in seconds",), ()


def _one(values: Any) -> float | None:
    """Return the one number that all values are but for float32's rounding, as short as it is."""
    if not values.size:
        return None
    first = float(np.median(values))
    if not np.allclose(values, first, rtol=SAME, atol=0):
        return None
    short = float(f"{first:.3g}")
    return short if abs(short - first) <= SAME * first else first


def _digits(value: float) -> int:
    """Return the number of digits that a value needs: steps that people choose need few."""
    return len(f"{value:.6g}".replace(".", "").lstrip("0").partition("e")[0].rstrip("0"))


def _lambert(z: Any) -> Any:
    """Return y > 0 with y exp(y) = z, for z > 0: scipy's lambertw without scipy."""
    y = np.log1p(z)
    for _ in range(50):
        y = y - (y * np.exp(y) - z) / (np.exp(y) * (1 + y))
    return y
