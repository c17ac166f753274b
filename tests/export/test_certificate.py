"""The export and its certificate: equal to Norse bit for bit, and every wrong neighbour is caught."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from torch import nn

from knarr.export import (
    ExportError,
    certify,
    graph_hash,
    read,
    step_nir,
    to_nir,
    trace_module,
    write,
)

DT_S = 0.001
FIRST_CONV, SECOND_CONV, LINEAR = "conv_0", "conv_3", "linear_7"
LIF, CUBA = "lif_1", "lif_4"


def test_file_equals_the_module_spike_for_spike_and_bit_for_bit(
    student: snn.SequentialState, spikes: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    write(to_nir(student, (2, 18, 18), DT_S, samples=spikes), path)
    live, stepped = trace_module(student, spikes), step_nir(read(path), spikes, DT_S)
    assert {name: int(z.sum()) > 100 for name, z in live.spikes.items()} == {LIF: True, CUBA: True}
    for name in live.v:
        assert live.v[name].dtype == stepped.v[name].dtype == np.float32
        assert np.array_equal(live.v[name], stepped.v[name])
    for name in live.spikes:
        assert np.array_equal(live.spikes[name], stepped.spikes[name])
    certificate = json.loads((tmp_path / "student.nir.json").read_text())
    assert certificate["graph_hash"] == graph_hash(read(path))
    assert certificate["decisions"] == sum(z.size for z in live.spikes.values())
    assert all(margin > 0 for margin in certificate["margin_v"].values())


def test_every_neuron_may_have_its_own_parameters() -> None:
    rng = torch.Generator().manual_seed(0)

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(6, generator=rng)

    parameters = snn.LIFBoxParameters(
        tau_mem_inv=between(50, 900),
        v_leak=between(-0.1, 0.1),
        v_th=between(0.2, 1),
        v_reset=between(-0.3, 0.1),
    )
    torch.manual_seed(1)
    module = snn.SequentialState(nn.Linear(5, 6), snn.LIFBoxCell(parameters, dt=5e-4)).eval()
    with torch.no_grad():
        module[0].weight *= 6
    graph = to_nir(module, (5,), 5e-4)
    assert np.array_equal(graph.nodes["lif_1"].v_reset, parameters.v_reset.double().numpy())
    assert graph.nodes["lif_1"].tau == pytest.approx(
        1 / parameters.tau_mem_inv.double().numpy(), rel=1e-15
    )  # float64


def one_neuron(node: Any) -> nir.NIRGraph:
    nodes = {
        "input": nir.Input({"input": np.array([1])}),
        "n": node,
        "output": nir.Output({"output": np.array([1])}),
    }
    return nir.NIRGraph(nodes, [("input", "n"), ("n", "output")])


def test_lif_by_hand() -> None:
    one = np.ones(1)
    graph = one_neuron(
        nir.LIF(tau=2 * one, r=one, v_leak=0 * one, v_threshold=one, v_reset=-0.5 * one)
    )
    trace = step_nir(graph, np.array([[[1.5], [2.0], [0.0]]]), 1.0)  # a = 1/2
    # v- = .75; v- = .75 + (2 - .75)/2 = 1.375 > 1: spike, v = -.5; v- = -.25
    assert trace.v["n"].ravel().tolist() == [0.75, -0.5, -0.25]
    assert trace.spikes["n"].ravel().tolist() == [0, 1, 0]


def test_cuba_lif_by_hand() -> None:
    one = np.ones(1)
    node = nir.CubaLIF(
        tau_syn=4 * one,
        tau_mem=2 * one,
        r=one,
        v_leak=0 * one,
        v_threshold=2 * one,
        v_reset=0 * one,
        w_in=4 * one,
    )
    trace = step_nir(
        one_neuron(node), np.array([[[2.0], [0.0], [0.0]]]), 1.0
    )  # a_mem = 1/2, a_syn = 1/4, g = 1
    # I = 2, 1.5, 1.125; v = 1, 1 + .5*(1.5 - 1) = 1.25, 1.25 + .5*(1.125 - 1.25) = 1.1875
    assert trace.v["n"].ravel().tolist() == [1.0, 1.25, 1.1875]


def test_an_exact_tie_is_no_spike() -> None:
    one = np.ones(1)
    graph = one_neuron(
        nir.LIF(tau=2 * one, r=one, v_leak=0 * one, v_threshold=one, v_reset=0 * one)
    )
    trace = step_nir(graph, np.array([[[2.0]]]), 1.0)
    assert trace.v["n"].ravel().tolist() == [1.0]
    assert trace.spikes["n"].ravel().tolist() == [0]
    assert trace.margin["n"] == 0.0


def scaled(name: str, field: str, factor: float) -> Callable[[nir.NIRGraph], None]:
    def mutate(graph: nir.NIRGraph) -> None:
        setattr(graph.nodes[name], field, factor * getattr(graph.nodes[name], field))

    return mutate


def transposed_kernel(graph: nir.NIRGraph) -> None:
    graph.nodes[SECOND_CONV].weight = graph.nodes[SECOND_CONV].weight.transpose(0, 1, 3, 2).copy()


def wrong_flatten_order(graph: nir.NIRGraph) -> None:
    weight = graph.nodes[LINEAR].weight
    graph.nodes[LINEAR].weight = (
        weight.reshape(5, 6, 2, 2).transpose(0, 2, 3, 1).reshape(5, 24).copy()
    )


MUTATIONS = {
    "tau * dt": scaled(LIF, "tau", DT_S),
    "tau_syn * dt": scaled(CUBA, "tau_syn", DT_S),
    "w_in = 1": scaled(CUBA, "w_in", 0.5),
    "threshold": scaled(LIF, "v_threshold", 1.05),
    "lost bias": scaled(FIRST_CONV, "bias", 0.0),
    "transposed kernel": transposed_kernel,
    "wrong flatten order": wrong_flatten_order,
    "readout gain": scaled("readout_8", "r", 2.0),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_certificate_catches(
    mutation: str, student: snn.SequentialState, spikes: np.ndarray
) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S, samples=spikes)
    before = graph_hash(graph)
    certify(student, graph, spikes, DT_S)
    mutant = copy.deepcopy(graph)
    MUTATIONS[mutation](mutant)
    assert graph_hash(mutant) != before
    with pytest.raises(ExportError, match="differ between module and graph, first at sample"):
        certify(student, mutant, spikes, DT_S)


def test_certificate_catches_another_dt(student: snn.SequentialState, spikes: np.ndarray) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S, samples=spikes)
    with pytest.raises(ExportError, match="differ between module and graph"):
        certify(student, graph, spikes, 2 * DT_S)


@pytest.mark.parametrize("field", ["v_leak", "v_reset"])
def test_certificate_catches_dropped_voltages(field: str) -> None:
    torch.manual_seed(0)
    parameters = snn.LIFBoxParameters(
        tau_mem_inv=torch.tensor(300.0),
        v_leak=torch.tensor(0.1),
        v_th=torch.tensor(0.5),
        v_reset=torch.tensor(-0.2),
    )
    module = snn.SequentialState(nn.Linear(5, 6), snn.LIFBoxCell(parameters, dt=DT_S)).eval()
    with torch.no_grad():
        module[0].weight *= 6
    x = (np.random.default_rng(0).random((4, 30, 5)) < 0.5).astype(np.float32)
    graph = to_nir(module, (5,), DT_S, samples=x)
    setattr(graph.nodes["lif_1"], field, 0 * getattr(graph.nodes["lif_1"], field))
    with pytest.raises(ExportError, match="differ between module and graph"):
        certify(module, graph, x, DT_S)


def test_silence_certifies_nothing(cells: SimpleNamespace) -> None:
    module = snn.SequentialState(nn.Linear(4, 3, bias=False), cells.lif_box(v_th=100.0)).eval()
    with pytest.raises(ExportError, match="'lif_1' never fired"):
        to_nir(module, (4,), DT_S)


def test_files_that_are_no_graphs_are_refused(
    student: snn.SequentialState, spikes: np.ndarray, tmp_path: Path
) -> None:
    good = tmp_path / "good.nir"
    write(to_nir(student, (2, 18, 18), DT_S, samples=spikes), good)
    (tmp_path / "text.nir").write_text("hello")
    (tmp_path / "cut.nir").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with h5py.File(tmp_path / "other.nir", "w") as file:
        file["x"] = 1
    for name, message in (
        ("none.nir", "no such file"),
        ("text.nir", "not an HDF5 file"),
        ("cut.nir", "not a"),
        ("other.nir", "not a valid NIR graph"),
    ):
        with pytest.raises(ExportError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_graph_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "student.nir"
    path.write_text("old")
    one = np.ones(1)
    broken = one_neuron(nir.LIF(tau=one, r=one, v_leak=one, v_threshold=one))
    broken.nodes["n"].tau = None
    with pytest.raises(ExportError, match="cannot write"):
        write(broken, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
