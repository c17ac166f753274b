"""Wrong graphs in files: the certificate fails at the layer and step where they first part from the module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from torch import nn

from knarr.export import (
    CertificateError,
    StepGraph,
    certify,
    read,
    step_nir,
    to_nir,
    trace_module,
    write,
)

DT_S = 1e-3
Mutation = Callable[[nir.NIRGraph], None]


def module() -> StepGraph:
    """Residual and recurrent, with every kind of neuron and every voltage away from zero."""
    torch.manual_seed(0)
    leak, reset = torch.tensor(0.05), torch.tensor(-0.15)
    box = snn.LIFBoxParameters(
        tau_mem_inv=torch.tensor(250.0), v_leak=leak, v_th=torch.tensor(0.4), v_reset=reset
    )
    cuba = snn.LIFParameters(
        tau_syn_inv=torch.tensor(400.0), tau_mem_inv=torch.tensor(300.0), v_leak=leak, v_th=torch.tensor(0.5), v_reset=reset
    )  # fmt: skip
    nodes = {
        "conv": nn.Conv2d(1, 2, (3, 3)), "box": snn.LIFBoxCell(box), "flat": nn.Flatten(), "fc": nn.Linear(32, 12), "cuba": snn.LIFCell(cuba),
        "rec": nn.Linear(12, 12), "mid": nn.Linear(12, 12),
        "iaf": snn.IAFCell(snn.IAFParameters(v_th=torch.tensor(1.0), v_reset=reset)), "out": nn.Linear(12, 4), "end": snn.LIFBoxCell(box),
    }  # fmt: skip
    edges = [
        ("input", "conv"), ("conv", "box"), ("box", "flat"), ("flat", "fc"), ("fc", "cuba"), ("rec", "cuba"), ("cuba", "mid"),
        ("mid", "iaf"), ("iaf", "out"), ("cuba", "out"), ("out", "end"), ("end", "output"),
    ]  # fmt: skip
    graph = StepGraph(nodes, edges, [("cuba", "rec")]).eval()
    with torch.no_grad():
        for name in ("conv", "fc", "rec", "mid", "out"):
            graph.nodes[name].weight *= 4
    return graph


def change(node: str, field: str, new: Callable[[Any], Any]) -> Mutation:
    def mutate(graph: nir.NIRGraph) -> None:
        old = getattr(graph.nodes[node], field)
        changed = np.array(new(old))
        assert changed.shape == old.shape
        assert np.any(changed != old)
        setattr(graph.nodes[node], field, changed)

    return mutate


def cut(*edge: str) -> Mutation:
    def mutate(graph: nir.NIRGraph) -> None:
        graph.edges.remove((edge[0], edge[1]))

    return mutate


def flatten_columns(w: Any) -> Any:
    return w.reshape(-1, 2, 4, 4).transpose(0, 2, 3, 1).reshape(w.shape)


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "tau * dt": (change("box", "tau", lambda v: v * DT_S), "box"),
    "tau_syn * dt": (change("cuba", "tau_syn", lambda v: v * DT_S), "cuba"),
    "w_in = 1": (change("cuba", "w_in", np.ones_like), "cuba"),
    "IF r = 1": (change("iaf", "r", np.ones_like), "iaf"),
    "lost v_reset of LIF": (change("box", "v_reset", np.zeros_like), "box"),
    "lost v_reset of CubaLIF": (change("cuba", "v_reset", np.zeros_like), "cuba"),
    "lost v_reset of IF": (change("iaf", "v_reset", np.zeros_like), "iaf"),
    "lost v_leak": (change("cuba", "v_leak", np.zeros_like), "cuba"),
    "lost residual edge": (cut("cuba", "out"), "end"),
    "lost main edge": (cut("iaf", "out"), "end"),
    "lost recurrent edge": (cut("rec", "cuba"), "cuba"),
    "transposed kernel": (change("conv", "weight", lambda w: w.transpose(0, 1, 3, 2)), "box"),
    "flatten (H, W, C)": (change("fc", "weight", flatten_columns), "cuba"),
    "transposed recurrence": (change("rec", "weight", lambda w: w.T), "cuba"),
    "lost bias": (change("fc", "bias", np.zeros_like), "cuba"),
    "lost recurrent bias": (change("rec", "bias", np.zeros_like), "cuba"),
    "a threshold one float32 lower": (
        change("end", "v_threshold", lambda v: np.nextafter(v.astype(np.float32), np.float32(0)).astype(np.float64)), "end"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_certificate_names_the_layer_and_step_that_part_first(
    mutation: str, tmp_path: Path
) -> None:
    live = module()
    rng = np.random.default_rng(1)
    x = (rng.random((40, 40, 1, 6, 6)) < 0.3).astype(np.float32)
    if mutation == "a threshold one float32 lower":
        live = tie_at_the_end()
        x = np.ones((1, 6, 1), dtype=np.float32) * [[[1], [0], [1]] * 2]
    graph = to_nir(live, x.shape[2:], DT_S, samples=x)
    mutant = copy.deepcopy(graph)
    mutate, layer = MUTATIONS[mutation]
    mutate(mutant)
    del mutant.metadata["certificate"]
    write(mutant, tmp_path / "mutant.nir")
    written = read(tmp_path / "mutant.nir")
    with pytest.raises(CertificateError) as caught:
        certify(live, written, x, DT_S)
    # The oracle of "first": walk over time by hand, comparing the layers in the order they act.
    if not mutation.endswith("* dt"):  # there step_nir itself refuses, and the certificate steps on
        reference, wrong = trace_module(live, x), step_nir(written, x, DT_S)
        order = [n for n in ("box", "cuba", "iaf", "end") if n in reference.v]
        first = min(
            (t, place)
            for place, name in enumerate(order)
            for t in range(x.shape[1])
            if (reference.v[name][:, t] != wrong.v[name][:, t]).any()
            or (reference.spikes[name][:, t] != wrong.spikes[name][:, t]).any()
        )
        assert order[first[1]] == layer
        assert f"time step {first[0]}," in str(caught.value)
    else:
        assert "time step" in str(caught.value)
    assert f"certificate: node '{layer}':" in str(caught.value)


def tie_at_the_end() -> StepGraph:
    half = snn.LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(1.0))
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    nodes = {"out": layer, "end": snn.LIFBoxCell(half)}
    return StepGraph(nodes, [("input", "out"), ("out", "end"), ("end", "output")]).eval()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_dt(factor: float) -> None:
    live = module()
    x = (np.random.default_rng(1).random((8, 40, 1, 6, 6)) < 0.3).astype(np.float32)
    graph = to_nir(live, (1, 6, 6), DT_S, samples=x)
    with pytest.raises(CertificateError, match=r"node 'box': .* first at sample \d+, time step 0"):
        certify(live, graph, x, factor * DT_S)
