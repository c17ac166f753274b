"""Step a NIR graph: its executable meaning.

Forward Euler, synapse before membrane, strict >, hard reset, zero delay:

    LIF      v- = v + a_m*((r*x + v_leak) - v)
    CubaLIF  I  = (I - a_s*I) + g*x ;  g = w_in*dt/tau_syn
             v- = v + a_m*((v_leak - v) + r*I)
    LI       v- = v + a_m*((v_leak - v) + r*x)           CubaLI like CubaLIF, without threshold
    IF       v- = v + (dt*r)*x                           I like IF, without threshold
    z = [v- > v_th] ;  v = v_reset where z ;  init v = v_leak (IF: v_reset), I = 0

    Linear, Affine, Scale, Conv1d, Conv2d, AvgPool2d, SumPool2d, Flatten: of this step, no state
    Threshold  z = [x > threshold]        Delay  y[t] = x[t - delay/dt], 0 before

In float32, a = fl32(dt)*fl32(1/tau64); g and dt*r are rounded once from float64; brackets associate as printed. This
reproduces Norse 1.1.0 bit for bit, which `certify` checks for every graph that is exported. Edges of this step are summed
in their order. An edge that closes a loop (`topology.py` says which) brings the value of the step before; before the first
step every neuron is silent. A synaptic current takes such an edge last: I = ((I - a_s*I) + g*x) + g*x_loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from knarr.export.arguments import as_dt, as_inputs
from knarr.export.errors import ExportError
from knarr.export.graph.parameters import delay_steps, float64
from knarr.export.graph.shapes import Shape, infer
from knarr.export.graph.step_synapses import DelayLine, Step, add_up, synapse_step
from knarr.export.graph.topology import NEURONS, Topology, inline, topology


class NeuronStepper:
    """One neuron node between two time steps: its state and its coefficients.

    Args:
        name: for messages.
        node: LIF, CubaLIF, LI, CubaLI, IF, I or Threshold.
        dt_s: time step, seconds.
        dtype: arithmetic of states and coefficients.
        unstable: step coefficients above 1 too, as forward Euler would.
        keep: remember spikes, voltages and currents of every step.

    Raises:
        ExportError: a coefficient outside (0, 1], where forward Euler means something else than the equation.
    """

    def __init__(
        self,
        name: str,
        node: Any,
        dt_s: float,
        dtype: torch.dtype,
        *,
        unstable: bool = False,
        keep: bool = True,
    ) -> None:
        self.name, self.node, self.dtype = name, node, dtype
        self.unstable, self.keep = unstable, keep
        # Norse multiplies dt by an inverse in float32, so the product is rounded here as it is there.
        dt = torch.tensor(dt_s, dtype=dtype)
        self.threshold = self._tensor(node.v_threshold) if hasattr(node, "v_threshold") else None
        if self.threshold is not None:
            self.v_reset = self._tensor(node.v_reset)
        self.cuba = isinstance(node, (nir.CubaLIF, nir.CubaLI))
        self.leaky = not isinstance(node, (nir.IF, nir.I))
        if self.leaky:
            tau_name = "tau_mem" if self.cuba else "tau"
            self.a_mem = dt * self._inverse(tau_name, getattr(node, tau_name), dt_s)
            self.v_leak = self._tensor(node.v_leak)
            self.r = self._tensor(node.r)
            self.v_init = self.v_leak
        else:
            self.gain = self._tensor(dt_s * float64(node.r))
            # Without a leak there is no rest: Norse starts an IAFCell at its reset.
            self.v_init = self._tensor(0.0) if self.threshold is None else self.v_reset
        if self.cuba:
            tau_syn = float64(node.tau_syn)
            self.a_syn = dt * self._inverse("tau_syn", tau_syn, dt_s)
            self.gain = self._tensor(float64(node.w_in) * dt_s / tau_syn)
        self.v: Tensor | None = None
        self.i: Tensor | None = None
        self.margin = float("inf")
        self.spikes: list[Tensor] = []
        self.voltages: list[Tensor] = []
        self.currents: list[Tensor] = []

    def _tensor(self, array: object) -> Tensor:
        # A copy: what a caller does to the graph while it runs must not reach the stepper.
        copied = np.array(array, dtype=np.float64)
        return torch.as_tensor(copied).to(self.dtype)

    def _inverse(self, field: str, tau_s: object, dt_s: float) -> Tensor:
        tau = float64(tau_s)
        # float32 rounds dt/tau = 1 up at times, which the tolerance lets pass; a whole step too much is refused.
        stable = self.unstable | (dt_s < tau * (1 + 1e-6))
        if not ((tau > 0) & stable).all():
            raise ExportError(
                f"node '{self.name}': {field} spans {tau.min():g}..{tau.max():g} s, and forward Euler with dt {dt_s:g} s needs "
                f"at least dt; use a dt of {tau.min():g} s at most, or another model"
            )
        return self._tensor(1.0 / tau)

    def __call__(self, x: Tensor, looping: Tensor | None = None) -> Tensor:
        """Return what the node gives at this step.

        Args:
            x: (samples, *features) sum of what arrives at this step.
            looping: what came round a loop, added to a current last.
        """
        v = self.v_init.expand_as(x) if self.v is None else self.v
        if self.cuba:
            i = torch.zeros_like(x) if self.i is None else self.i
            # The brackets are those of Norse: another order of these sums rounds otherwise.
            i = (i - self.a_syn * i) + self.gain * x
            self.i = i if looping is None else i + self.gain * looping
            v = v + self.a_mem * ((self.v_leak - v) + self.r * self.i)
            self._note(self.currents, self.i)
        else:
            x = x if looping is None else x + looping
            if not self.leaky:
                v = v + self.gain * x
            elif isinstance(self.node, nir.LIF):
                # Norse brackets LIF and LI differently.
                v = v + self.a_mem * ((self.r * x + self.v_leak) - v)
            else:
                v = v + self.a_mem * ((self.v_leak - v) + self.r * x)
        if self.threshold is None:
            self.v = v
            self._note(self.voltages, v)
            return v
        z = v > self.threshold
        # How near a voltage came to the threshold says how much rounding would have changed a spike.
        nearest = (v - self.threshold).abs().min()
        self.margin = min(self.margin, float(nearest))
        self.v = torch.where(z, self.v_reset.expand_as(v), v)
        self._note(self.spikes, z)
        self._note(self.voltages, self.v)
        return z.to(self.dtype)

    def _note(self, steps: list[Tensor], value: Tensor) -> None:
        if self.keep:
            steps.append(value)


Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of what every neuron of a graph did.

    Args:
        output: (samples, timesteps, *features) values that reached the output node.
        spikes: node -> (samples, timesteps, *features) uint8, threshold neurons only.
        v: node -> the same shape, voltage after reset, volts, all neurons.
        i: node -> the same shape, synaptic current after this step's input, CubaLIF and CubaLI only.
        margin: node -> smallest |v - v_threshold| met before reset, volts, threshold neurons only.
    """

    output: Array
    spikes: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    v: Mapping[str, Array] = field(default_factory=dict)
    i: Mapping[str, Array] = field(default_factory=dict)
    margin: Mapping[str, float] = field(default_factory=dict)


def step_nir(
    graph: nir.NIRGraph,
    inputs: npt.ArrayLike,
    dt_s: float,
    *,
    dtype: Literal["float32", "float64"] = "float32",
) -> Trace:
    """Run a graph, ours or not.

    Args:
        graph: NIR graph with one Input and one Output node; nested graphs and loops are allowed.
        inputs: (samples, timesteps, *features).
        dt_s: time step, seconds.
        dtype: arithmetic of states and synapses.

    Raises:
        ExportError: an unsupported node, something that NIR leaves open, or inputs that do not fit the graph.
    """
    return run_graph(graph, inputs, dt_s, dtype)


def run_graph(
    graph: nir.NIRGraph,
    inputs: npt.ArrayLike,
    dt_s: float,
    dtype: Literal["float32", "float64"] = "float32",
    *,
    unstable: bool = False,
    given: Mapping[str, Array] | None = None,
) -> Trace:
    """Run a graph as `step_nir` does, and with `unstable` also where forward Euler diverges.

    A certificate needs that: it has to say what module and graph do there.

    Args:
        graph, inputs, dt_s, dtype: as `step_nir` takes them.
        unstable: step coefficients above 1 too.
        given: node -> (samples, timesteps, *features) that it sends instead of what the graph makes of it; what nothing
            else hears is not computed.
    """
    x = torch.as_tensor(as_inputs(inputs))
    played = {name: torch.as_tensor(np.asarray(values)) for name, values in (given or {}).items()}
    run = Stepper(graph, dt_s, len(x), dtype, unstable=unstable, given=tuple(played))
    x = run.check(x)
    outputs = []
    with plain_arithmetic():
        for step, now in enumerate(x.unbind(1)):
            sent = {name: values[:, step].to(run.dtype) for name, values in played.items()}
            outputs.append(run.step(now, sent)[run.order.output])
    neurons = run.neurons.items()
    spikes = {name: neuron.spikes for name, neuron in neurons}
    spikes |= run.crossed  # a Threshold node spikes without a voltage of its own
    return Trace(
        output=torch.stack(outputs, 1).numpy(),
        spikes={name: z.astype(np.uint8) for name, z in stacked(spikes).items()},
        v=stacked({name: neuron.voltages for name, neuron in neurons}),
        i=stacked({name: neuron.currents for name, neuron in neurons}),
        margin={name: neuron.margin for name, neuron in neurons if neuron.spikes},
    )


def stacked(steps: Mapping[str, list[Tensor]]) -> dict[str, npt.NDArray[Any]]:
    """Join what nodes did step by step into arrays (samples, timesteps, *features); drop nodes that did nothing."""
    arrays = {}
    for name, each in steps.items():
        if each:
            arrays[name] = torch.stack(each, 1).cpu().numpy()
    return arrays


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Switch off gradients and a caller's autocast: what a graph means does not depend on where it is asked."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


class Stepper:
    """A graph between two time steps: the states of its neurons, its delays, and what its loops carry.

    Args:
        graph: as for `step_nir`.
        dt_s: time step, seconds.
        samples: number of samples that run side by side.
        dtype: arithmetic of states and synapses.
        unstable: as for `run_graph`.
        keep: remember what neurons do, for a `Trace`; without it memory does not grow with time.
        given: names of nodes whose values every step is told.

    Raises:
        ExportError: an unsupported node, or something that NIR leaves open.
    """

    def __init__(
        self,
        graph: nir.NIRGraph,
        dt_s: float,
        samples: int,
        dtype: Literal["float32", "float64"] = "float32",
        *,
        unstable: bool = False,
        keep: bool = True,
        given: Collection[str] = (),
    ) -> None:
        dt_s = as_dt(dt_s)
        if dtype not in ("float32", "float64"):
            raise ExportError(f"dtype: {dtype!r}, choose 'float32' or 'float64'")
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.nodes, edges = inline(graph)
        self.order: Topology = topology(self.nodes, edges, dt_s)
        self.entering, self.leaving = infer(self.nodes, self.order)
        self.samples, self.keep = samples, keep
        self.neurons: dict[str, NeuronStepper] = {}
        self.delays: dict[str, DelayLine] = {}
        self.stateless: dict[str, Step] = {}
        self.crossed: dict[str, list[Tensor]] = {}
        for name in self.order.order:
            node = self.nodes[name]
            if isinstance(node, NEURONS):
                self.neurons[name] = NeuronStepper(
                    name, node, dt_s, self.dtype, unstable=unstable, keep=keep
                )
            elif isinstance(node, nir.Delay):
                self.delays[name] = DelayLine(delay_steps(name, node, dt_s))
            else:
                self.stateless[name] = synapse_step(name, node, self.dtype)
            if isinstance(node, nir.Threshold):
                self.crossed[name] = []
        self.rest = self._at_rest()
        # The value of the step before; before the first step a neuron is silent and a synapse gives its bias.
        self.before: dict[str, Tensor] = {}
        for sources in self.order.looping.values():
            self.before |= {source: self.rest[source] for source in sources}
        self.idle = self._idle(given) if given else frozenset()

    def _idle(self, given: Collection[str]) -> frozenset[str]:
        """Return the nodes that the output does not need while some nodes' values are given."""
        needed, waiting = set(given), [self.order.output]
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += [*self.order.sources[name], *self.order.looping[name]]
        return frozenset(self.nodes) - needed

    def check(self, x: Tensor) -> Tensor:
        """Return the inputs (samples, timesteps, *features) in the graph's arithmetic.

        Raises:
            ExportError: they do not fit the graph.
        """
        shape = self.leaving[self.order.input]
        if x.ndim < 2 or tuple(x.shape[2:]) != shape or 0 in x.shape:
            raise ExportError(
                f"inputs: shape {tuple(x.shape)}, the graph needs (samples, timesteps, {shape})"
            )
        return x.to(self.dtype)

    def _silence(self, shape: Shape) -> Tensor:
        return torch.zeros((self.samples, *shape), dtype=self.dtype)

    def _at_rest(self) -> dict[str, Tensor]:
        """Compute what every node gives while every neuron is silent: a synapse gives its bias; empty without loops."""
        rest: dict[str, Tensor] = {}
        if not any(self.order.looping.values()):
            return rest
        for name in self.order.order:
            sources = self.order.sources[name]
            parts = [rest[source] for source in sources if source in rest]
            # Neurons and delays are silent, and so is what only a loop feeds: before the first step nothing came round.
            if name in self.stateless and parts and len(parts) == len(sources):
                rest[name] = self.stateless[name](add_up(parts))
            else:
                rest[name] = self._silence(self.leaving[name])
        return rest

    def step(self, x: Tensor, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return what every node gives for the input (samples, *features) of one step.

        Args:
            x: the input.
            given: node -> (samples, *features), for the nodes that were named when this was made.
        """
        value: dict[str, Tensor] = {self.order.input: x, **(given or {})}
        late: list[str] = []  # delays whose input of this step is not there yet
        for name in self.order.order:
            if name in value or name in self.idle:
                continue
            sources = self.order.sources[name]
            if name in self.delays and not value.keys() >= set(sources):
                silence = self._silence(self.leaving[name])
                value[name] = self.delays[name].read(silence)
                late.append(name)
                continue
            parts = [value[source] for source in sources]
            back = [self.before[source] for source in self.order.looping[name]]
            if name in self.neurons:
                # A neuron takes what came round apart, since a current adds it last.
                total = add_up(parts) if parts else self._silence(self.entering[name])
                looping = add_up(back) if back else None
                value[name] = self.neurons[name](total, looping)
                continue
            apply = self.delays[name] if name in self.delays else self.stateless[name]
            value[name] = apply(add_up(parts, back))
            if name in self.crossed and self.keep:
                self.crossed[name].append(value[name])
        for name in late:
            parts = [value[source] for source in self.order.sources[name]]
            self.delays[name].push(add_up(parts))
        self.before = {source: value[source] for source in self.before if source in value}
        return value
