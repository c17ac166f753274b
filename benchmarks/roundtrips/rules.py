"""How the tools step a neuron where it is not how NIR is stepped here; used only to prove the reasons in the table.

I = keep_i * I + gain_i * x (without synapse: I = x)      I = keep_i * (I + x) with `decay_first`
v = keep_v * v + gain_v * I + bias;   z = [v >= v_th], or floor(v / v_th) with `many`
reset "zero": v = v_reset where z      "subtract": v -= z * v_th
"late subtract", "late zero": the same at the next step, on the v that has taken that step's input
v is never below `floor`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nir
import torch
import torch.nn.functional as F


class Rule(NamedTuple):
    keep_v: Any
    gain_v: Any
    v_th: Any
    keep_i: Any = None
    gain_i: Any = 1.0
    bias: Any = 0.0
    v_reset: Any = 0.0
    reset: str = "zero"
    many: bool = False
    decay_first: bool = False
    floor: Any = float("-inf")


Reading = Callable[[Any, float], Rule]


def replay(
    graph: nir.NIRGraph, inputs: torch.Tensor, dt_s: float, reading: Reading, loops: bool
) -> torch.Tensor:
    """Spikes of the last layer of a chain of Linear, Affine and neurons that obey `reading(node, dt_s)`.

    Args:
        inputs: (samples, timesteps, *features).
        loops: whether neuron -> Linear -> the same neuron brings the step before; else it brings nothing.
    """
    name = next(n for n, node in graph.nodes.items() if isinstance(node, nir.Input))
    x = inputs.float()
    while True:
        after = [t for s, t in graph.edges if s == name]
        back = [w for w in after if (w, name) in graph.edges]
        name = next(t for t in after if t not in back)
        node = graph.nodes[name]
        if isinstance(node, nir.Output):
            return x
        if isinstance(node, nir.NIRGraph):
            weight = next(n for n in node.nodes.values() if isinstance(n, (nir.Linear, nir.Affine)))
            neuron = next(n for n in node.nodes.values() if hasattr(n, "v_threshold"))
            x = _fire(reading(neuron, dt_s), x, _synapse(weight) if loops else None)
        elif isinstance(node, (nir.LIF, nir.CubaLIF, nir.IF)):
            back = [w for s, w in graph.edges if s == name and (w, name) in graph.edges]
            weight = _synapse(graph.nodes[back[0]]) if back and loops else None
            x = _fire(reading(node, dt_s), x, weight)
        else:
            x = _synapse(node)(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _fire(rule: Rule, x: torch.Tensor, weight: Any) -> torch.Tensor:
    rule = Rule(
        *(
            torch.as_tensor(v).float() if not isinstance(v, (str, bool, type(None))) else v
            for v in rule
        )
    )
    v, i, z = (torch.zeros_like(x[:, 0]) for _ in range(3))
    spikes = []
    for t in range(x.shape[1]):
        drive = x[:, t] if weight is None else x[:, t] + weight(z)
        if rule.keep_i is None:
            i = drive
        else:
            i = (
                rule.keep_i * (i + drive)
                if rule.decay_first
                else rule.keep_i * i + rule.gain_i * drive
            )
        v = rule.keep_v * v + rule.gain_v * i + rule.bias
        if rule.reset == "late subtract":
            v = v - z * rule.v_th
        elif rule.reset == "late zero":
            v = v * (1 - z)
        over = (v >= rule.v_th).float()
        z = over * torch.floor(v / rule.v_th) if rule.many else over
        if rule.reset == "zero":
            v = torch.where(z > 0, rule.v_reset, v)
        elif rule.reset == "subtract":
            v = v - z * rule.v_th
        v = torch.maximum(v, rule.floor)
        spikes.append(z)
    return torch.stack(spikes, 1)


def _synapse(node: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = torch.as_tensor(node.weight).float()
    bias = torch.as_tensor(node.bias).float() if isinstance(node, nir.Affine) else None
    return lambda x: F.linear(x, weight, bias)


def euler(node: Any, dt_s: float, **other: Any) -> Rule:
    """NIR as knarr steps it, but for `other`."""
    if isinstance(node, nir.IF):
        return Rule(1.0, node.r * dt_s, node.v_threshold, v_reset=node.v_reset)._replace(**other)
    cuba = isinstance(node, nir.CubaLIF)
    tau = node.tau_mem if cuba else node.tau
    a = dt_s / tau
    rule = Rule(1 - a, a * node.r, node.v_threshold, bias=a * node.v_leak, v_reset=node.v_reset)
    if cuba:
        rule = rule._replace(keep_i=1 - dt_s / node.tau_syn, gain_i=node.w_in * dt_s / node.tau_syn)
    return rule._replace(**other)
