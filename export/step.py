"""The executable meaning of a NIR graph: forward Euler, synapse before membrane, strict >, hard reset, zero delay.

    LIF      v- = v + a_m*((r*x + v_leak) - v)
    CubaLIF  I  = (I - a_s*I) + g*x ;  g = w_in*dt/tau_syn
             v- = v + a_m*((v_leak - v) + r*I)
    LI       v- = v + a_m*((v_leak - v) + r*x)
    IF       v- = v + (dt*r)*x
    z = [v- > v_th] ;  v = v_reset where z ;  init v = v_leak (IF: v_reset), I = 0

In float32, a = fl32(dt)*fl32(1/tau64); g and dt*r are rounded once from float64; brackets associate as printed. This
reproduces Norse 1.1.0 bit for bit, which `certify` checks for every graph that is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import nir
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from knarr.export.errors import ExportError

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Trace:
    """What every neuron of a graph did.

    Args:
        spikes: node -> (samples, timesteps, *features) uint8, threshold neurons only.
        v: node -> the same shape, voltage after reset, volts, all neurons.
        margin: node -> smallest |v - v_threshold| met before reset, volts, threshold neurons only.
        output: (samples, timesteps, *features) what reached the output node.
    """

    output: Array
    spikes: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    v: Mapping[str, Array] = field(default_factory=dict)
    margin: Mapping[str, float] = field(default_factory=dict)


def execution_order(graph: nir.NIRGraph) -> list[str]:
    """Nodes in an order that has every source before its targets.

    Raises:
        ExportError: an edge names a missing node, or the graph has a cycle (recurrence is not stepped yet).
    """
    for source, target in graph.edges:
        for name in (source, target):
            if name not in graph.nodes:
                raise ExportError(f"graph: edge {source} -> {target} names '{name}', which is not a node")
    waiting = {name: {s for s, t in graph.edges if t == name} for name in sorted(graph.nodes)}
    order: list[str] = []
    while waiting:
        ready = [name for name, sources in waiting.items() if sources <= set(order)]
        if not ready:
            raise ExportError(
                f"graph: nodes {sorted(waiting)} form a cycle; recurrent graphs are not supported yet"
            )
        order += ready
        for name in ready:
            del waiting[name]
    return order


def step_nir(
    graph: nir.NIRGraph,
    inputs: npt.ArrayLike,
    dt_s: float,
    *,
    dtype: Literal["float32", "float64"] = "float32",
) -> Trace:
    """Run a graph.

    Args:
        graph: NIR graph with one Input and one Output node.
        inputs: (samples, timesteps, *features).
        dt_s: time step, seconds.
        dtype: arithmetic of states and synapses.

    Raises:
        ExportError: an unsupported node, a cycle, or inputs that do not fit the graph.
    """
    order = execution_order(graph)
    ends = {kind: [n for n in order if isinstance(graph.nodes[n], kind)] for kind in (nir.Input, nir.Output)}
    for kind, names in ends.items():
        if len(names) != 1:
            raise ExportError(f"graph: {len(names)} {kind.__name__} nodes, needs exactly one")
    torch_dtype = {"float32": torch.float32, "float64": torch.float64}[dtype]
    x = torch.as_tensor(np.asarray(inputs)).to(torch_dtype)
    expected = tuple(int(n) for n in graph.nodes[ends[nir.Input][0]].input_type["input"])
    if tuple(x.shape[2:]) != expected:
        raise ExportError(f"inputs: shape {tuple(x.shape)}, the graph needs (samples, timesteps, {expected})")
    steppers = {
        name: _stepper(name, graph.nodes[name], dt_s, torch_dtype)
        for name in order
        if not isinstance(graph.nodes[name], (nir.Input, nir.Output))
    }
    sources = {name: sorted(s for s, t in graph.edges if t == name) for name in order}
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        for t in range(x.shape[1]):
            value: dict[str, torch.Tensor] = {}
            for name in order:
                if name in ends[nir.Input]:
                    value[name] = x[:, t]
                    continue
                arriving = [value[source] for source in sources[name]]
                if not arriving:
                    raise ExportError(f"node '{name}': nothing feeds it; connect or remove it")
                if any(part.shape != arriving[0].shape for part in arriving):
                    raise ExportError(
                        f"node '{name}': receives {[tuple(p.shape[1:]) for p in arriving]}, which do not add up"
                    )
                total = sum(arriving[1:], start=arriving[0])
                try:
                    value[name] = steppers[name](total) if name in steppers else total
                except RuntimeError as error:
                    raise ExportError(
                        f"node '{name}': what arrives, {tuple(total.shape[1:])}, does not fit it ({error})"
                    ) from error
            outputs.append(value[ends[nir.Output][0]])
    neurons = {name: s for name, s in steppers.items() if isinstance(s, _NeuronStepper)}
    firing = {name: s for name, s in neurons.items() if s.threshold is not None}
    return Trace(
        output=torch.stack(outputs, 1).numpy(),
        spikes={name: torch.stack(s.spikes, 1).numpy().astype(np.uint8) for name, s in firing.items()},
        v={name: torch.stack(s.voltages, 1).numpy() for name, s in neurons.items()},
        margin={name: s.margin for name, s in firing.items()},
    )


class _NeuronStepper:
    def __init__(self, name: str, node: Any, dt_s: float, dtype: torch.dtype) -> None:
        self.node, self.dtype = node, dtype
        self.threshold = self._tensor(node.v_threshold) if hasattr(node, "v_threshold") else None
        if self.threshold is not None:
            self.v_reset = self._tensor(node.v_reset)
        dt = torch.tensor(dt_s, dtype=dtype)
        if isinstance(node, nir.IF):
            self.gain = self._tensor(dt_s * node.r)
            self.v_init = self.v_reset
        else:
            tau = node.tau_mem if isinstance(node, (nir.CubaLIF, nir.CubaLI)) else node.tau
            self.a_mem = dt * self._tensor(1.0 / np.asarray(tau, dtype=np.float64))
            self.v_leak, self.r = self._tensor(node.v_leak), self._tensor(node.r)
            self.v_init = self.v_leak
        if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
            tau_syn = np.asarray(node.tau_syn, dtype=np.float64)
            self.a_syn = dt * self._tensor(1.0 / tau_syn)
            self.gain = self._tensor(np.asarray(node.w_in, dtype=np.float64) * dt_s / tau_syn)
        self.v: torch.Tensor | None = None
        self.i: torch.Tensor | None = None
        self.margin = float("inf")
        self.spikes: list[torch.Tensor] = []
        self.voltages: list[torch.Tensor] = []

    def _tensor(self, array: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        v = self.v_init.expand_as(x) if self.v is None else self.v
        if isinstance(self.node, nir.IF):
            v = v + self.gain * x
        elif isinstance(self.node, nir.LIF):
            v = v + self.a_mem * ((self.r * x + self.v_leak) - v)
        elif isinstance(self.node, nir.LI):
            v = v + self.a_mem * ((self.v_leak - v) + self.r * x)
        else:
            i = torch.zeros_like(x) if self.i is None else self.i
            self.i = (i - self.a_syn * i) + self.gain * x
            v = v + self.a_mem * ((self.v_leak - v) + self.r * self.i)
        if self.threshold is None:
            self.v = v
            self.voltages.append(v)
            return v
        z = v > self.threshold
        self.margin = min(self.margin, float((v - self.threshold).abs().min()))
        self.v = torch.where(z, self.v_reset.expand_as(v), v)
        self.spikes.append(z)
        self.voltages.append(self.v)
        return z.to(self.dtype)


def _stepper(name: str, node: Any, dt_s: float, dtype: torch.dtype) -> Any:
    if isinstance(node, (nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.IF)):
        return _NeuronStepper(name, node, dt_s, dtype)
    if isinstance(node, (nir.Linear, nir.Affine)):
        weight = torch.as_tensor(node.weight).to(dtype)
        bias = torch.as_tensor(node.bias).to(dtype) if isinstance(node, nir.Affine) else None
        return lambda x: F.linear(x, weight, bias)
    if isinstance(node, nir.Conv2d):
        kernel, offset = torch.as_tensor(node.weight).to(dtype), torch.as_tensor(node.bias).to(dtype)
        stride, padding, dilation = (_ints(v) for v in (node.stride, node.padding, node.dilation))
        return lambda x: F.conv2d(x, kernel, offset, stride, padding, dilation, int(node.groups))
    if isinstance(node, nir.AvgPool2d):
        size, step, pad = (_ints(v) for v in (node.kernel_size, node.stride, node.padding))
        return lambda x: F.avg_pool2d(x, size, step, pad)
    if isinstance(node, nir.Flatten):
        # +1: NIR counts dimensions without the batch.
        start, end = int(node.start_dim) + 1, int(node.end_dim)
        return lambda x: x.flatten(start, end if end < 0 else end + 1)
    raise ExportError(
        f"node '{name}': {type(node).__name__} has no stepper; supported are LIF, CubaLIF, LI, CubaLI, IF, "
        "Linear, Affine, Conv2d, AvgPool2d, Flatten"
    )


def _ints(value: object) -> tuple[int, int]:
    array = np.broadcast_to(np.asarray(value), (2,))
    return int(array[0]), int(array[1])
