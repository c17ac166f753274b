"""The students that knarr exports for the other tools to read, and the second form of their neurons."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import nir
import norse.torch as snn
import numpy as np
import torch
from norse.torch.functional.iaf import IAFParameters
from torch import nn
from worker import FEATURES, IMAGE, NEURONS, binary, fill

from knarr.export import to_nir

OUT = 40


class Student(NamedTuple):
    graph: nir.NIRGraph
    inputs: torch.Tensor


def box(dt_s: float, v_leak: float = 0.0, v_reset: float = 0.0, a: float = 0.1) -> nn.Module:
    p = snn.LIFBoxParameters(
        tau_mem_inv=torch.tensor(a / dt_s),
        v_th=torch.tensor(1.0),
        v_leak=torch.tensor(v_leak),
        v_reset=torch.tensor(v_reset),
    )
    return snn.LIFBoxCell(p, dt=dt_s)


def lif(dt_s: float) -> snn.LIFParameters:
    return snn.LIFParameters(
        tau_syn_inv=torch.tensor(0.2 / dt_s),
        tau_mem_inv=torch.tensor(0.1 / dt_s),
        v_th=torch.tensor(1.0),
        v_leak=torch.tensor(0.0),
        v_reset=torch.tensor(0.0),
    )


def students(dt_s: float) -> Iterator[tuple[str, Student]]:
    """(case, certified student); ", scaled" is the same with r = tau_mem/dt, " scaled" with that for CubaLIF alone.

    Args:
        dt_s: time step, seconds; tau_mem is ten steps, tau_syn five, so the spikes are the same at every dt.
    """
    torch.manual_seed(0)

    def linear(
        drive: float, bias: bool = False, n_in: int = FEATURES, n_out: int = NEURONS
    ) -> nn.Module:
        return fill(nn.Linear(n_in, n_out, bias=bias), drive)

    recurrent = snn.LIFRecurrentCell(NEURONS, NEURONS, p=lif(dt_s), autapses=True, dt=dt_s)
    with torch.no_grad():
        recurrent.input_weights.copy_(torch.eye(NEURONS))
        recurrent.recurrent_weights.copy_(torch.randn(NEURONS, NEURONS) * 0.1)
    grid = linear(8.0)
    with torch.no_grad():
        weight: torch.Tensor = grid.weight  # type: ignore[assignment]
        weight.copy_((weight * 4).round() / 4)
    iaf = snn.IAFCell(IAFParameters(v_th=torch.tensor(1.0), v_reset=torch.tensor(0.0)), dt=dt_s)
    flat, image = (FEATURES,), IMAGE
    nets: dict[str, tuple[tuple[int, ...], list[nn.Module]]] = {
        "LIF": (flat, [linear(8.0), box(dt_s)]),
        "LIF, bias": (flat, [linear(8.0, bias=True), box(dt_s)]),
        "LIF, v_reset -0.5": (flat, [linear(8.0), box(dt_s, v_reset=-0.5)]),
        "LIF, v_leak and v_reset -0.5": (flat, [linear(8.0), box(dt_s, v_leak=-0.5, v_reset=-0.5)]),
        "CubaLIF": (flat, [linear(2.0), snn.LIFCell(lif(dt_s), dt=dt_s)]),
        "CubaLIF, recurrent": (flat, [linear(2.0), recurrent]),
        "IF": (flat, [linear(0.5), iaf]),
        "IF, bias": (flat, [linear(0.5, bias=True), iaf]),
        "LIF, ties": (
            flat,
            [grid, box(dt_s, a=0.5)],
        ),  # weights k/4 and a = 1/2: v meets v_th exactly
        "LIF, CubaLIF": (
            flat,
            [
                linear(8.0),
                box(dt_s),
                linear(3.0, False, NEURONS, OUT),
                snn.LIFCell(lif(dt_s), dt=dt_s),
            ],
        ),
        "Conv2d, LIF": (
            image,
            [
                fill(nn.Conv2d(IMAGE[0], 6, 3, stride=2, padding=1), 8.0),
                box(dt_s),
                nn.Flatten(),
                linear(8.0, False, 150, OUT),
                box(dt_s),
            ],
        ),
        "Conv2d, LIF, AvgPool2d": (
            image,
            [
                fill(nn.Conv2d(IMAGE[0], 6, 3, padding=1), 8.0),
                box(dt_s),
                nn.AvgPool2d(2),
                nn.Flatten(),
                linear(8.0, False, 150, OUT),
                box(dt_s),
            ],
        ),
    }
    for case, (shape, layers) in nets.items():
        inputs = binary(shape)
        graph = to_nir(snn.SequentialState(*layers).eval(), shape, dt_s, samples=inputs.numpy())
        graph.metadata.pop(
            "certificate"
        )  # a tool has no use for it, and `scaled` changes the graph
        yield case, Student(graph, inputs)
        if case == "LIF, CubaLIF":
            yield f"{case} scaled", Student(scaled(graph, dt_s, (nir.CubaLIF,)), inputs)
        if case == "CubaLIF, recurrent":
            yield f"{case}, scaled, nested", Student(nested(scaled(graph, dt_s)), inputs)
        if case not in ("IF", "IF, bias", "LIF, bias", "LIF, v_reset -0.5"):
            yield f"{case}, scaled", Student(scaled(graph, dt_s), inputs)


def scaled(
    graph: nir.NIRGraph, dt_s: float, kinds: tuple[type, ...] = (nir.LIF, nir.CubaLIF)
) -> nir.NIRGraph:
    """The same spikes with `r = tau_mem/dt`: r, v_threshold, v_reset and v_leak of these neurons times tau_mem/dt."""
    graph = copy.deepcopy(graph)
    for node in graph.nodes.values():
        if isinstance(node, kinds):
            factor = np.asarray(node.tau if isinstance(node, nir.LIF) else node.tau_mem) / dt_s
            for field in ("r", "v_threshold", "v_reset", "v_leak"):
                setattr(node, field, getattr(node, field) * factor)
    return graph


def nested(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The same net with neuron and loop in a graph of their own, as snnTorch and Rockpool look for them."""
    loop = next(
        s
        for s, t in graph.edges
        if (t, s) in graph.edges and isinstance(graph.nodes[s], nir.Linear)
    )
    lif = next(t for s, t in graph.edges if s == loop)
    shape = np.array([NEURONS])
    inner = nir.NIRGraph(
        {
            "input": nir.Input({"input": shape}),
            "lif": graph.nodes[lif],
            "w_rec": graph.nodes[loop],
            "output": nir.Output({"output": shape}),
        },
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )
    nodes = {name: node for name, node in graph.nodes.items() if name not in (lif, loop)} | {
        "rnn": inner
    }
    edges = [
        tuple("rnn" if n == lif else n for n in edge) for edge in graph.edges if loop not in edge
    ]
    return nir.NIRGraph(nodes, edges)
