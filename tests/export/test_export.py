"""Export: the file does what the module does, bit for bit; the certificate sees each wrong neighbour; refusals name names."""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
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
from norse.torch.functional.reset import reset_subtract
from torch import nn

from knarr.export import ExportError, certify, graph_hash, read, step_nir, to_nir, write
from knarr.export.graph import step as step_neurons

DT_S = 0.001
Mutation = Callable[[nir.NIRGraph], None]


def linear(
    inputs: int, outputs: int, *, bias: bool = True, seed: int = 0, gain: float = 6.0
) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight *= gain
    return layer


def between(low: float, high: float, *shape: int, seed: int = 0) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def box_of(shape: tuple[int, ...], dt_s: float = DT_S) -> snn.LIFBoxCell:
    """A LIFBoxCell each of whose neurons has its own four parameters."""
    parameters = snn.LIFBoxParameters(
        tau_mem_inv=between(0.05, 0.9, *shape, seed=1) / dt_s,
        v_leak=between(-0.2, 0.2, *shape, seed=2),
        v_th=between(0.3, 1.0, *shape, seed=3),
        v_reset=between(-0.4, 0.1, *shape, seed=4),
    )
    return snn.LIFBoxCell(parameters, dt=dt_s)


def cuba_of(shape: tuple[int, ...], dt_s: float = DT_S) -> snn.LIFCell:
    """A LIFCell each of whose neurons has its own five parameters."""
    parameters = snn.LIFParameters(
        tau_syn_inv=between(0.1, 0.9, *shape, seed=5) / dt_s,
        tau_mem_inv=between(0.05, 0.9, *shape, seed=6) / dt_s,
        v_leak=between(-0.2, 0.2, *shape, seed=7),
        v_th=between(0.3, 1.0, *shape, seed=8),
        v_reset=between(-0.4, 0.1, *shape, seed=9),
    )
    return snn.LIFCell(parameters, dt=dt_s)


def readout_of(shape: tuple[int, ...], dt_s: float = DT_S) -> snn.LIBoxCell:
    parameters = snn.LIBoxParameters(
        tau_mem_inv=between(0.05, 0.9, *shape, seed=10) / dt_s,
        v_leak=between(-0.2, 0.2, *shape, seed=11),
    )
    return snn.LIBoxCell(p=parameters, dt=dt_s)


def seq(*layers: nn.Module) -> snn.SequentialState:
    return snn.SequentialState(*layers).eval()


def conv_vector(cells: SimpleNamespace) -> snn.SequentialState:
    torch.manual_seed(3)
    conv = nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0))
    with torch.no_grad():
        conv.weight *= 5
    return seq(
        conv, box_of((3, 4, 4)), nn.AvgPool2d((2, 1)), nn.Flatten(), linear(24, 4), cuba_of((4,)), readout_of((4,))
    )  # fmt: skip


MODULES: dict[str, tuple[Callable[[SimpleNamespace], snn.SequentialState], tuple[int, ...], float]] = {
    "LIFBox, no bias": (lambda c: seq(linear(5, 6, bias=False), c.lif_box()), (5,), DT_S),
    "LIFBox, Affine bias": (lambda c: seq(linear(5, 6), c.lif_box(0.1)), (5,), DT_S),
    "LIFBox without memory": (lambda c: seq(linear(5, 6), c.lif_box(1.0)), (5,), DT_S),
    "LIFCell, no bias": (lambda c: seq(linear(5, 6, bias=False), c.lif_cuba()), (5,), DT_S),
    "LIFCell, Affine bias": (lambda c: seq(linear(5, 6), c.lif_cuba(0.3, 0.1)), (5,), DT_S),
    "LIFBox, a vector of each": (lambda c: seq(linear(5, 6), box_of((6,))), (5,), DT_S),
    "LIFCell, a vector of each": (lambda c: seq(linear(5, 6), cuba_of((6,))), (5,), DT_S),
    "both, dt 0.5 ms": (
        lambda c: seq(linear(5, 8), box_of((8,), 5e-4), linear(8, 6), cuba_of((6,), 5e-4)),
        (5,),
        5e-4,
    ),
    "both, dt 7 ms": (
        lambda c: seq(linear(5, 8), cuba_of((8,), 7e-3), linear(8, 6), box_of((6,), 7e-3), readout_of((6,), 7e-3)),
        (5,),
        7e-3,
    ),
    "nested, with no-ops": (
        lambda c: seq(nn.Dropout(), linear(5, 6), snn.SequentialState(c.lif_box(), nn.Identity(), linear(6, 4)), c.lif_cuba()),
        (5,),
        DT_S,
    ),
    "conv student": (lambda c: c.conv_student(), (2, 18, 18), DT_S),
    "conv, a vector per pixel": (conv_vector, (2, 8, 6), DT_S),
}  # fmt: skip


def leaves(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += leaves(child) if isinstance(child, snn.SequentialState) else [child]
    return found


def live(
    module: snn.SequentialState, inputs: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """(output, spikes of each threshold layer, voltages of each neuron layer): our own walk along Norse's cells."""
    layers = leaves(module)
    states: list[Any] = [None] * len(layers)
    spikes: dict[int, list[torch.Tensor]] = {}
    voltages: dict[int, list[torch.Tensor]] = {}
    outputs = []
    frames = torch.from_numpy(inputs).float()
    with torch.no_grad():
        for t in range(inputs.shape[1]):
            # Not made contiguous: torch's matrix product rounds otherwise on another memory layout of the same numbers.
            x = frames[:, t]
            for i, layer in enumerate(layers):
                if hasattr(layer, "p") and hasattr(layer, "dt"):
                    x, states[i] = layer(x, states[i])
                    voltages.setdefault(i, []).append(states[i].v.clone())
                    if not isinstance(layer, snn.LIBoxCell):
                        spikes.setdefault(i, []).append(x)
                else:
                    x = layer(x)
            outputs.append(x)
    stacked = [[torch.stack(z, 1).numpy() for z in kind.values()] for kind in (spikes, voltages)]
    return torch.stack(outputs, 1).numpy(), stacked[0], stacked[1]


def number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def bits(array: np.ndarray) -> np.ndarray:
    assert array.dtype == np.float32
    return array.view(np.uint32)


@pytest.mark.parametrize("kind", MODULES)
def test_written_and_read_graph_equals_the_module(
    kind: str, cells: SimpleNamespace, tmp_path: Path
) -> None:
    build, shape, dt_s = MODULES[kind]
    module = build(cells)
    rng = np.random.default_rng(11)
    x = np.concatenate(
        [(rng.random((2, 40, *shape)) < density).astype(np.uint8) for density in (0.15, 0.5)]
    )
    write(to_nir(module, shape, dt_s, samples=x), tmp_path / "a.nir")
    trace = step_nir(read(tmp_path / "a.nir"), x, dt_s)
    output, spikes, voltages = live(module, x)
    assert len(trace.spikes) == len(spikes) >= 1
    for name, expected in zip(sorted(trace.spikes, key=number), spikes, strict=True):
        assert trace.spikes[name].shape == expected.shape
        assert np.array_equal(trace.spikes[name], expected)
        assert 0 < expected.mean() < 1
    for name, expected in zip(sorted(trace.v, key=number), voltages, strict=True):
        assert trace.v[name].shape == expected.shape
        assert np.array_equal(bits(trace.v[name]), bits(expected))
        assert expected.std() > 0.05
    assert np.array_equal(bits(trace.output), bits(output))


def test_parameters_are_seconds_in_float64_and_copies(cells: SimpleNamespace) -> None:
    module = seq(linear(5, 6), cells.lif_cuba(0.5, 0.25), linear(6, 2), cells.li_box(0.125))
    graph = to_nir(module, (5,), DT_S)
    lif, readout = graph.nodes["lif_1"], graph.nodes["readout_3"]
    assert lif.tau_syn.dtype == lif.tau_mem.dtype == readout.tau.dtype == np.float64
    # The rates 500, 250 and 125 per second are float32 numbers, so their inverses are these doubles.
    assert lif.tau_syn.tolist() == [0.002] * 6
    assert lif.tau_mem.tolist() == [0.004] * 6
    assert lif.w_in.tolist() == [2.0] * 6
    assert lif.r.tolist() == [1.0] * 6
    assert readout.tau.tolist() == [0.008] * 2
    before = graph_hash(graph)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
        module[1].p.v_th.fill_(7)
    assert graph_hash(graph) == before


# --- the stepper by hand


def one(node: Any) -> nir.NIRGraph:
    ends = {
        "input": nir.Input({"input": np.array([1])}),
        "output": nir.Output({"output": np.array([1])}),
    }
    return nir.NIRGraph({**ends, "n": node}, [("input", "n"), ("n", "output")])


def full(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in values.items()}


HAND: dict[str, tuple[Any, float, list[float], list[float], list[int] | None]] = {
    # a = 1/2, starts at v_leak. v- = 1/4 + 1/2*((3/2 + 1/4) - 1/4) = 1: a tie. v- = 1 + 1/2*((2 + 1/4) - 1) = 13/8: spike.
    # v- = -1/2 + 1/2*((0 + 1/4) + 1/2) = -1/8
    "LIF": (
        nir.LIF(**full(tau=1, r=1, v_leak=0.25, v_threshold=1, v_reset=-0.5)),
        0.5,
        [1.5, 2.0, 0.0],
        [1.0, -0.5, -0.125],
        [0, 1, 0],
    ),
    # r = 3 multiplies the input, not v_leak: v- = 1/4 + 1/2*((3*1/2 + 1/4) - 1/4) = 1; 1 + 1/2*((0 + 1/4) - 1) = 5/8
    "LIF, r": (
        nir.LIF(**full(tau=1, r=3, v_leak=0.25, v_threshold=1, v_reset=0)),
        0.5,
        [0.5, 0.0],
        [1.0, 0.625],
        [0, 0],
    ),
    # a_mem = 1/4, a_syn = 1/2, g = 1*1/2. I = 2, 2 - 1 + 1 = 2, 1.
    # v- = 1/2 + 1/4*(0 + 2*2) = 3/2: a tie; 3/2 + 1/4*((1/2 - 3/2) + 4) = 9/4: spike; -1 + 1/4*((1/2 + 1) + 2) = -1/8
    "CubaLIF": (
        nir.CubaLIF(
            **full(tau_syn=2, tau_mem=4, r=2, v_leak=0.5, v_threshold=1.5, v_reset=-1, w_in=1)
        ),
        1.0,
        [4.0, 2.0, 0.0],
        [1.5, -1.0, -0.125],
        [0, 1, 0],
    ),
    # v = 1 + 1/2*((1 - 1) + 2*1) = 2; 2 + 1/2*((1 - 2) + 0) = 3/2
    "LI": (nir.LI(**full(tau=2, r=2, v_leak=1)), 1.0, [1.0, 0.0], [2.0, 1.5], None),
    # dt*r = 1, starts at v_reset: 1/4 + 1/2 = 3/4; 3/4 + 1/4 = 1: a tie; 5/4: spike, back to 1/4
    "IF": (
        nir.IF(**full(r=2, v_threshold=1, v_reset=0.25)),
        0.5,
        [0.5, 0.25, 0.25],
        [0.75, 1.0, 0.25],
        [0, 0, 1],
    ),
    "tie": (
        nir.LIF(**full(tau=2, r=1, v_leak=0, v_threshold=1, v_reset=0)),
        1.0,
        [2.0],
        [1.0],
        [0],
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", HAND)
def test_steps_computed_by_hand(case: str, dtype: Any) -> None:
    node, dt_s, x, v, spikes = HAND[case]
    trace = step_nir(one(node), np.array(x).reshape(1, -1, 1), dt_s, dtype=dtype)
    assert trace.v["n"].dtype == np.dtype(dtype)
    assert trace.v["n"].shape == (1, len(x), 1)
    assert trace.v["n"].ravel().tolist() == v
    if spikes is None:
        assert trace.spikes == {}
        assert trace.output.ravel().tolist() == v
        return
    assert trace.spikes["n"].dtype == np.uint8
    assert trace.spikes["n"].ravel().tolist() == spikes
    assert trace.output.ravel().tolist() == spikes


def test_an_exact_tie_is_no_spike_in_norse_and_in_the_graph(cells: SimpleNamespace) -> None:
    module = tie(cells)
    x = np.array(
        [[[1], [0], [1]]], dtype=np.uint8
    )  # a = 1/2, input 2, threshold 1: v = 1, 1/2, 5/4
    output, (spikes,), (v,) = live(module, x)
    assert v.ravel().tolist() == [1.0, 0.5, 0.0]
    assert spikes.ravel().tolist() == output.ravel().tolist() == [0, 0, 1]
    trace = step_nir(to_nir(module, (1,), DT_S), x, DT_S)
    assert trace.spikes["lif_1"].ravel().tolist() == [0, 0, 1]
    assert trace.margin["lif_1"] == 0.0


def tie(cells: SimpleNamespace) -> snn.SequentialState:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    return seq(layer, cells.lif_box(0.5, v_th=1.0))


# --- the certificate catches every wrong neighbour


def scale(node: str, field: str, factor: float) -> Mutation:
    def mutate(graph: nir.NIRGraph) -> None:
        value = getattr(graph.nodes[node], field)
        assert np.any(value != factor * value)
        setattr(graph.nodes[node], field, factor * value)

    return mutate


def set_to(node: str, field: str, number: float) -> Mutation:
    def mutate(graph: nir.NIRGraph) -> None:
        value = getattr(graph.nodes[node], field)
        assert np.any(value != number)
        setattr(graph.nodes[node], field, np.full_like(value, number))

    return mutate


def next_float32(node: str, field: str, downward: bool = False) -> Mutation:
    """All values of a field to their neighbours in float32."""

    def mutate(graph: nir.NIRGraph) -> None:
        value = getattr(graph.nodes[node], field).astype(np.float32)
        moved = np.nextafter(value, np.float32(-np.inf if downward else np.inf))
        setattr(graph.nodes[node], field, moved.astype(np.float64))

    return mutate


def without(source: str, target: str) -> Mutation:
    def mutate(graph: nir.NIRGraph) -> None:
        graph.edges.remove((source, target))

    return mutate


def transposed_kernel(graph: nir.NIRGraph) -> None:
    graph.nodes["conv_3"].weight = graph.nodes["conv_3"].weight.transpose(0, 1, 3, 2).copy()


def channels_last_columns(graph: nir.NIRGraph) -> None:
    """What a reader that flattens (H, W, C) would need."""
    cells = graph.nodes["linear_7"].weight.reshape(5, 6, 2, 2)
    graph.nodes["linear_7"].weight = cells.transpose(0, 2, 3, 1).reshape(5, 24).copy()


def width_first_columns(graph: nir.NIRGraph) -> None:
    cells = graph.nodes["linear_7"].weight.reshape(5, 6, 2, 2)
    graph.nodes["linear_7"].weight = cells.transpose(0, 1, 3, 2).reshape(5, 24).copy()


def vectors(cells: SimpleNamespace) -> snn.SequentialState:
    return seq(linear(5, 8), box_of((8,)), linear(8, 6), cuba_of((6,)), readout_of((6,)))


STUDENT_CHAIN = (
    "input", "conv_0", "lif_1", "pool_2", "conv_3", "lif_4", "pool_5", "flatten_6", "linear_7", "readout_8", "output"
)  # fmt: skip
STUDENT_MUTATIONS: dict[str, Mutation] = {
    "tau * dt": scale("lif_1", "tau", DT_S),
    "tau_mem * dt": scale("lif_4", "tau_mem", DT_S),
    "tau_syn * dt": scale("lif_4", "tau_syn", DT_S),
    "readout tau * dt": scale("readout_8", "tau", DT_S),
    "w_in = 1": set_to("lif_4", "w_in", 1.0),
    "v_threshold of LIF": scale("lif_1", "v_threshold", 1.02),
    "v_threshold of CubaLIF": scale("lif_4", "v_threshold", 0.98),
    "r of LIF": scale("lif_1", "r", 4.0),
    "transposed kernel": transposed_kernel,
    "flatten (H, W, C)": channels_last_columns,
    "flatten (C, W, H)": width_first_columns,
    "lost conv bias": set_to("conv_0", "bias", 0.0),
    "weights one float32 step off": next_float32("conv_0", "weight"),
    **{f"no edge to {b}": without(a, b) for a, b in itertools.pairwise(STUDENT_CHAIN)},
}
VECTOR_MUTATIONS: dict[str, Mutation] = {
    "tau * dt": scale("lif_1", "tau", DT_S),
    "tau_syn * dt": scale("lif_3", "tau_syn", DT_S),
    "w_in = 1": set_to("lif_3", "w_in", 1.0),
    "dropped v_reset of LIF": set_to("lif_1", "v_reset", 0.0),
    "dropped v_reset of CubaLIF": set_to("lif_3", "v_reset", 0.0),
    "dropped v_leak of LIF": set_to("lif_1", "v_leak", 0.0),
    "dropped v_leak of CubaLIF": set_to("lif_3", "v_leak", 0.0),
    "dropped v_leak of LI": set_to("readout_4", "v_leak", 0.0),
    "v_threshold": scale("lif_3", "v_threshold", 1.1),
    "lost Affine bias": set_to("linear_2", "bias", 0.0),
}


def random_spikes(*shape: int) -> np.ndarray:
    return (np.random.default_rng(13).random(shape) < 0.4).astype(np.uint8)


def certificate_refuses(
    module: snn.SequentialState, graph: nir.NIRGraph, x: np.ndarray, mutate: Mutation, match: str
) -> None:
    assert certify(module, graph, x, DT_S).graph_hash == graph_hash(graph)
    mutant = copy.deepcopy(graph)
    mutate(mutant)
    assert graph_hash(mutant) != graph_hash(graph)
    with pytest.raises(ExportError, match=match) as caught:
        certify(module, mutant, x, DT_S)
    assert "\n" not in str(caught.value)


DIFFER = r"certificate: node '\w+': \d+ of \d+ \w+ differ between module and graph, first at sample \d+, time step \d+"


@pytest.mark.parametrize("mutation", STUDENT_MUTATIONS)
def test_certificate_of_the_student_catches(
    mutation: str, student: snn.SequentialState, spikes: np.ndarray
) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S)
    match = r"node '\w+': nothing feeds it" if mutation.startswith("no edge") else DIFFER
    certificate_refuses(student, graph, spikes, STUDENT_MUTATIONS[mutation], match)


@pytest.mark.parametrize("mutation", VECTOR_MUTATIONS)
def test_certificate_of_vectors_catches(mutation: str, cells: SimpleNamespace) -> None:
    module = vectors(cells)
    x = random_spikes(4, 30, 5)
    certificate_refuses(module, to_nir(module, (5,), DT_S), x, VECTOR_MUTATIONS[mutation], DIFFER)


def test_certificate_catches_at_or_above_threshold(cells: SimpleNamespace) -> None:
    """Firing at v >= th is firing at v > (the float32 below th): ties alone tell them apart."""
    module = tie(cells)
    lower_threshold = next_float32("lif_1", "v_threshold", downward=True)
    certificate_refuses(
        module, to_nir(module, (1,), DT_S), np.ones((1, 6, 1)) * [[[1], [0], [1]] * 2], lower_threshold, DIFFER
    )  # fmt: skip


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_certificate_catches_a_wrong_dt(
    factor: float, student: snn.SequentialState, spikes: np.ndarray
) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S)
    with pytest.raises(ExportError, match=DIFFER):
        certify(student, graph, spikes, factor * DT_S)


def membrane_first(right: Any) -> Any:
    """The order of the NIR paper's reference code: the membrane sees the current of the step before."""

    def call(self: Any, x: torch.Tensor, looping: torch.Tensor | None = None) -> torch.Tensor:
        if not isinstance(self.node, nir.CubaLIF):
            return right(self, x)
        before = torch.zeros_like(x) if self.i is None else self.i
        gain, a_syn = self.gain, self.a_syn
        self.i, self.gain, self.a_syn = before, 0 * gain, 0 * a_syn
        out = right(self, x)
        self.gain, self.a_syn = gain, a_syn
        self.i = (before - a_syn * before) + gain * x
        return out

    return call


def subtracting(right: Any) -> Any:
    """Reset by subtraction, which no NIR graph can say."""

    def call(self: Any, x: torch.Tensor, looping: torch.Tensor | None = None) -> torch.Tensor:
        before = self.v_init.expand_as(x) if self.v is None else self.v
        out = right(self, x)
        if isinstance(self.node, nir.LIF):
            risen = before + self.a_mem * ((self.r * x + self.v_leak) - before)
            self.v = torch.where(out > 0, risen - self.threshold, risen)
            self.voltages[-1] = self.v
        return out

    return call


@pytest.mark.parametrize(("wrong", "node"), [(membrane_first, "lif_4"), (subtracting, "lif_1")])
def test_certificate_catches_another_stepper(
    wrong: Any,
    node: str,
    monkeypatch: pytest.MonkeyPatch,
    student: snn.SequentialState,
    spikes: np.ndarray,
) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S)
    stepper = step_neurons.NeuronStepper
    monkeypatch.setattr(stepper, "__call__", wrong(stepper.__call__))
    with pytest.raises(
        ExportError, match=f"node '{node}': .* differ between module and graph, first at"
    ):
        certify(student, graph, spikes, DT_S)


def test_a_rerouted_edge_is_an_export_error(
    student: snn.SequentialState, spikes: np.ndarray
) -> None:
    """The pool is skipped, so shapes no longer fit: still the certificate's error, with a name in it."""
    graph = to_nir(student, (2, 18, 18), DT_S)
    graph.edges.remove(("lif_1", "pool_2"))
    graph.edges.remove(("pool_2", "conv_3"))
    graph.edges.append(("lif_1", "conv_3"))
    del graph.nodes["pool_2"]
    with pytest.raises(ExportError, match="node '"):
        certify(student, graph, spikes, DT_S)


def test_a_silent_layer_is_refused_and_nothing_is_left(
    cells: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = seq(linear(5, 6), cells.lif_box(), linear(6, 3, bias=False), cells.lif_box(v_th=1e4))
    with pytest.raises(
        ExportError, match="certificate: node 'lif_3' never fired on the given samples"
    ):
        to_nir(module, (5,), DT_S)
    assert list(tmp_path.iterdir()) == []
    # Random inputs make it fire, but samples that are given must do so themselves.
    module = seq(linear(5, 6, bias=False), cells.lif_box())
    to_nir(module, (5,), DT_S)
    with pytest.raises(ExportError, match="'lif_1' never fired"):
        to_nir(module, (5,), DT_S, samples=np.zeros((2, 10, 5)))
    assert list(tmp_path.iterdir()) == []


def test_a_module_without_spikes_is_refused(cells: SimpleNamespace) -> None:
    with pytest.raises(ExportError, match="no spiking layer"):
        to_nir(seq(linear(5, 6), cells.li_box()), (5,), DT_S)


# --- refusals


def box(**parameters: Any) -> snn.LIFBoxCell:
    return snn.LIFBoxCell(snn.LIFBoxParameters(**parameters), dt=DT_S)


def cuba(**parameters: Any) -> snn.LIFCell:
    return snn.LIFCell(snn.LIFParameters(**parameters), dt=DT_S)


def spoiled(value: float, parameter: str = "weight") -> nn.Linear:
    layer = linear(4, 3)
    with torch.no_grad():
        getattr(layer, parameter).view(-1)[1] = value
    return layer


def rate(fraction: float) -> torch.Tensor:
    return torch.tensor(fraction / DT_S)


IMAGE = (1, 4, 4)
JUST_ABOVE_1 = torch.nextafter(torch.tensor(1000.0), torch.tensor(2000.0))


class Both(nn.Module):
    """A module that gives the spikes of its cell beside what a layer behind it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cell, self.readout = linear(4, 3), box(v_th=torch.tensor(0.1)), linear(3, 2)
        self.eval()

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        z, state = self.cell(self.fc(x), state)
        return (z, self.readout(z)), state


REFUSED: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "plain Sequential": (lambda: nn.Sequential(linear(4, 3)).eval(), (4,), "module has no spiking layer"),
    "cell in an inner Sequential": (
        lambda: seq(nn.Sequential(linear(4, 3), box())), (4,), r"module '0\.1': LIFBoxCell inside an nn\.Sequential"
    ),
    "lifted model": (lambda: snn.Lift(linear(4, 3)).eval(), (4,), "module: no neurons of Norse stepped in it, so"),
    "no cells": (
        lambda: snn.SequentialState(snn.Lift(nn.Sequential(linear(4, 3), nn.ReLU()))).eval(), (4,),
        r"module: .*ReLU",
    ),
    "two outputs": (lambda: Both(), (4,), r"gives more than one output \(of 'cell', 'readout'\), a graph has one"),
    "return_hidden": (
        lambda: snn.SequentialState(linear(4, 3), box(), return_hidden=True).eval(), (4,), "return_hidden"
    ),
    "train mode": (lambda: seq(linear(4, 3), box()).train(), (4,), r"train mode; call \.eval\(\)"),
    "empty": (lambda: seq(), (4,), "no layers"),
    "MaxPool2d": (
        lambda: seq(nn.MaxPool2d(2), box()), IMAGE, "module '0': MaxPool2d cannot be exported.*use AvgPool2d"
    ),
    "ReLU": (lambda: seq(linear(4, 3), nn.ReLU(), box()), (4,), "module '1': ReLU cannot be exported.*neurons in its place"),
    "BatchNorm1d": (lambda: seq(box(), nn.BatchNorm1d(4)), (4,), "module '1': BatchNorm1d folds only into"),
    "BatchNorm2d": (lambda: seq(nn.AvgPool2d(2), nn.BatchNorm2d(1)), IMAGE, "module '1': BatchNorm2d folds only into"),
    "BatchNorm of the batch": (
        lambda: seq(nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1, track_running_stats=False)), IMAGE, "'1': without running"
    ),
    "nested path": (lambda: seq(snn.SequentialState(nn.Dropout(), nn.ReLU()), box()), (4,), r"module '0\.1': ReLU"),
    "refractory": (lambda: seq(snn.LIFRefracCell()), (4,), "module '0': LIFRefracCell cannot be exported"),
    "adaptive": (lambda: seq(linear(4, 3), snn.LSNNCell()), (4,), "module '1': LSNNCell cannot be exported"),
    "exponential": (lambda: seq(snn.LIFExCell()), (4,), "module '0': LIFExCell cannot be exported"),
    "Lift": (lambda: seq(snn.Lift(nn.Linear(4, 3))), (4,), "module: no neurons of Norse stepped in it"),
    "subtract reset": (
        lambda: seq(linear(4, 3), box(reset_method=reset_subtract)), (4,), "module '1': reset method reset_subtract"
    ),
    "mixed dt": (
        lambda: seq(linear(4, 3), box(), linear(3, 3), snn.LIFBoxCell(dt=0.002)),
        (4,), r"module '3': its dt is 0\.002 s, the export's dt_s is 0\.001",
    ),
    "readout of another dt": (lambda: seq(box(), snn.LIBoxCell(dt=5e-4)), (4,), "module '1': its dt is 0.0005"),
    "a above 1": (lambda: seq(box(tau_mem_inv=rate(2.5))), (4,), r"module '0': .*tau_mem_inv spans 2\.5\.\.2\.5"),
    "a just above 1": (lambda: seq(box(tau_mem_inv=JUST_ABOVE_1)), (4,), r"allowed \(0, 1\]"),
    "a of one neuron": (
        lambda: seq(box(tau_mem_inv=torch.tensor([100.0, 100.0, 1500.0, 100.0]))), (4,), r"spans 0\.1\.\.1\.5"
    ),
    "a = 0": (lambda: seq(box(tau_mem_inv=rate(0.0))), (4,), r"allowed \(0, 1\]"),
    "a below 0": (lambda: seq(box(tau_mem_inv=rate(-0.5))), (4,), r"spans -0\.5\.\.-0\.5"),
    "a_syn above 1": (lambda: seq(cuba(tau_syn_inv=rate(1.5))), (4,), r"tau_syn_inv spans 1\.5\.\.1\.5"),
    "a_mem of LIFCell": (lambda: seq(cuba(tau_mem_inv=rate(1.5))), (4,), r"tau_mem_inv spans 1\.5\.\.1\.5"),
    "float tau": (lambda: seq(box(tau_mem_inv=100.0)), (4,), "module '0': tau_mem_inv is a float, needs a tensor"),
    "float v_th": (lambda: seq(box(v_th=1.0)), (4,), "module '0': v_th is a float, needs a tensor"),
    "int v_leak": (lambda: seq(box(v_leak=0)), (4,), "module '0': v_leak is a int, needs a tensor"),
    "NaN weight": (lambda: seq(spoiled(float("nan")), box()), (4,), "module '0': weight holds NaN or infinity"),
    "infinite bias": (lambda: seq(spoiled(float("inf"), "bias"), box()), (4,), "module '0': bias holds NaN"),
    "NaN threshold": (lambda: seq(box(v_th=torch.tensor(float("nan")))), (4,), "module '0': v_th is not finite"),
    "three thresholds for four": (lambda: seq(box(v_th=torch.ones(3))), (4,), r"v_th has shape \(3,\), does not"),
    "circular": (
        lambda: seq(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), IMAGE, "module '0': .* mode 'circular'"
    ),
    "kernel": (lambda: seq(nn.Conv2d(1, 1, (2, 1))), IMAGE, r"module '0': kernel \(2, 1\) is not square"),
    "LPPool2d(2)": (lambda: seq(nn.LPPool2d(2, 2)), IMAGE, "module '0': LPPool2d of norm 2"),
    "ceil_mode of a signal": (
        lambda: seq(nn.AvgPool2d(3, ceil_mode=True), box()), (4, 4), r"module '0': .* in ceil_mode .* receives \(4, 4\), needs \(C, H, W\)"
    ),
    "Flatten(0)": (lambda: seq(nn.Flatten(0)), IMAGE, r"module '0': flattens 0\.\.-1 .*features only"),
    "no Flatten": (lambda: seq(linear(16, 3)), IMAGE, r"module '0': receives \(1, 4, 4\), needs \(16,\); flatten"),
    "channels": (lambda: seq(nn.Conv2d(2, 1, 2)), IMAGE, r"module '0': receives \(1, 4, 4\), needs \(2, H, W\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_nothing_is_left(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build, shape, message = REFUSED[case]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ExportError, match=message) as caught:
        to_nir(build(), shape, DT_S)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dropout_that_drops_is_refused(cells: SimpleNamespace) -> None:
    module = seq(linear(5, 6), nn.Dropout(), cells.lif_box())
    module[1].train()
    with pytest.raises(ExportError, match="module '1': in train mode"):
        to_nir(module, (5,), DT_S)


def test_a_synapse_used_twice_is_copied_and_a_cell_is_refused(cells: SimpleNamespace) -> None:
    layer, cell = linear(5, 5), cells.lif_box()
    graph = to_nir(seq(layer, cell, layer, cells.lif_box()), (5,), DT_S)
    assert np.array_equal(graph.nodes["linear_0"].weight, graph.nodes["linear_2"].weight)
    with pytest.raises(ExportError, match="module '3': the same neuron cell as '1'"):
        to_nir(seq(layer, cell, linear(5, 5, seed=1), cell), (5,), DT_S)


def test_what_no_graph_holds_is_refused(cells: SimpleNamespace) -> None:
    hooked = seq(linear(5, 6), cells.lif_box())
    hooked[0].register_forward_hook(lambda module, x, y: y.clamp(-10, 10))
    with pytest.raises(ExportError, match="module '0': has forward hooks"):
        to_nir(hooked, (5,), DT_S)
    replaced = seq(linear(5, 6), cells.lif_box())
    replaced[1].activation = lambda x, state, p, dt: (x, state)
    with pytest.raises(ExportError, match="module '1': its activation is not Norse's own"):
        to_nir(replaced, (5,), DT_S)


@pytest.mark.parametrize(
    "metadata", [{"dt_s": 0.5}, {"reset": "subtract"}, {"integration": "exponential"}]
)
def test_metadata_must_say_what_was_certified(
    metadata: dict[str, Any], cells: SimpleNamespace, tmp_path: Path
) -> None:
    module = seq(linear(5, 6), cells.lif_box())
    graph = to_nir(module, (5,), DT_S)
    graph.metadata.update(metadata)
    with pytest.raises(ExportError, match=f"metadata say {next(iter(metadata))}"):
        certify(module, graph, random_spikes(4, 30, 5), DT_S)
    with pytest.raises(ExportError, match=f"metadata say {next(iter(metadata))}"):
        write(graph, tmp_path / "a.nir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": 5}, r"input_shape: 5 is no sequence of sizes; write \(5,\)"),
        ({"input_shape": (5.0,)}, r"input_shape: \(5.0,\); give the positive sizes"),
        ({"input_shape": ("5",)}, "give the positive sizes"),
        ({"dt_s": "0.001"}, "dt_s: '0.001' is no number"),
        ({"dt_s": None}, "dt_s: None is no number"),
        ({"dt_s": float("nan")}, "dt_s: nan, needs a positive number"),
        ({"samples": np.zeros((2, 0, 5))}, r"samples: shape \(2, 0, 5\), needs"),
        ({"samples": np.zeros(5)}, r"samples: shape \(5,\), needs"),
        ({"samples": np.full((2, 3, 5), np.nan)}, "samples: hold NaN or infinity"),
        (
            {"samples": np.ones((2, 3, 5), dtype=complex)},
            "samples: dtype complex128 is no real number",
        ),
        ({"samples": [[1], [1, 2]]}, "samples: no array of numbers"),
        ({"samples": "text"}, "is no real number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: Any, message: str, cells: SimpleNamespace
) -> None:
    with pytest.raises(ExportError, match=message):
        to_nir(
            seq(linear(5, 6), cells.lif_box()), **{"input_shape": (5,), "dt_s": DT_S, **arguments}
        )


def test_any_array_of_numbers_is_taken(cells: SimpleNamespace) -> None:
    module = seq(linear(5, 6), cells.lif_box())
    x = random_spikes(4, 30, 5)
    expected = step_nir(to_nir(module, (5,), DT_S, samples=x), x, DT_S).output
    forms = (
        x.tolist(),
        torch.tensor(x, dtype=torch.float32, requires_grad=True),
        x.astype(">f4"),
        x[:, ::-1][:, ::-1],
        x.astype(bool),
    )
    for form in forms:
        assert np.array_equal(
            step_nir(to_nir(module, (5,), DT_S, samples=form), form, DT_S).output, expected
        )


# --- files


@pytest.fixture
def good(student: snn.SequentialState, spikes: np.ndarray) -> nir.NIRGraph:
    return to_nir(student, (2, 18, 18), DT_S, samples=spikes)


def test_sidecar_is_the_certificate_of_the_file(
    good: nir.NIRGraph, student: snn.SequentialState, spikes: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    write(good, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.nir", "student.nir.json"]
    certificate = json.loads((tmp_path / "student.nir.json").read_text())
    again = read(path)
    assert certificate["graph_hash"] == graph_hash(again) == graph_hash(good)
    _, fired, voltages = live(student, spikes)
    assert (certificate["samples"], certificate["timesteps"], certificate["dt_s"]) == (4, 20, DT_S)
    assert certificate["spikes"] == {"lif_1": int(fired[0].sum()), "lif_4": int(fired[1].sum())}
    assert min(certificate["spikes"].values()) > 0
    # 4 samples * 20 steps of 4*8*8 and 6*4*4 neurons; the voltages of 5 readouts more
    assert certificate["decisions"] == 80 * (256 + 96)
    assert certificate["voltages_compared"] == 80 * (256 + 96 + 5) == sum(v.size for v in voltages)
    assert certificate["margin_v"] == step_nir(again, spikes, DT_S).margin
    assert set(certificate["versions"]) == {"knarr", "norse", "nir", "torch", "numpy"}
    assert (again.metadata["dt_s"], again.metadata["time_unit"]) == (DT_S, "s")


def test_writing_is_repeatable_and_replaces(good: nir.NIRGraph, tmp_path: Path) -> None:
    path = tmp_path / "student.nir"
    path.write_text("old")
    write(good, path)
    write(read(path), path)
    assert graph_hash(read(path)) == graph_hash(good)
    assert json.loads((tmp_path / "student.nir.json").read_text())["graph_hash"] == graph_hash(good)


def test_a_graph_without_certificate_takes_the_old_sidecar_away(
    good: nir.NIRGraph, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    write(good, path)
    del good.metadata["certificate"]
    write(good, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_graph_changed_after_its_certificate_does_not_keep_it(
    good: nir.NIRGraph, tmp_path: Path
) -> None:
    """Refuse it or write it without a sidecar; never beside a certificate of another graph."""
    path = tmp_path / "student.nir"
    good.nodes["lif_1"].v_threshold = 2 * good.nodes["lif_1"].v_threshold
    try:
        write(good, path)
    except ExportError:
        assert list(tmp_path.iterdir()) == []
        return
    sidecar = tmp_path / "student.nir.json"
    assert not sidecar.exists() or json.loads(sidecar.read_text())["graph_hash"] == graph_hash(
        read(path)
    )


def none_for_tau(graph: nir.NIRGraph) -> None:
    graph.nodes["lif_1"].tau = None


def edge_to_nowhere(graph: nir.NIRGraph) -> None:
    graph.edges.append(("input", "nowhere"))


def wrong_width(graph: nir.NIRGraph) -> None:
    graph.nodes["linear_7"] = nir.Linear(np.ones((5, 9)))


def no_input_shape(graph: nir.NIRGraph) -> None:
    graph.nodes["conv_3"].input_shape = None


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("spoil", [none_for_tau, edge_to_nowhere, wrong_width, no_input_shape])
def test_a_failed_write_changes_no_file(
    spoil: Mutation, exists: bool, good: nir.NIRGraph, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    if exists:
        write(good, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 2 * exists
    broken = copy.deepcopy(good)
    spoil(broken)
    with pytest.raises(ExportError) as caught:
        write(broken, path)
    assert "student.nir" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_hash_sees_every_parameter_and_edge(good: nir.NIRGraph) -> None:
    original = graph_hash(good)
    seen = {original}
    changed = []
    for name, node in good.nodes.items():
        for field, value in vars(node).items():
            array = np.asarray(value)
            if array.dtype.kind not in "iuf" or array.size == 0:
                continue
            mutant = copy.deepcopy(good)
            moved = array.astype(np.float64).copy()
            moved.flat[-1] = (
                np.nextafter(moved.flat[-1], np.inf)
                if array.dtype.kind == "f"
                else moved.flat[-1] + 1
            )
            setattr(mutant.nodes[name], field, moved)
            seen.add(graph_hash(mutant))
            changed.append(f"{name}.{field}")
    assert {
        "conv_0.weight", "conv_0.bias", "conv_0.stride", "conv_0.padding", "lif_1.tau", "lif_1.v_threshold",
        "lif_1.v_reset", "lif_1.v_leak", "lif_1.r", "pool_2.kernel_size", "lif_4.tau_syn", "lif_4.tau_mem",
        "lif_4.w_in", "linear_7.weight", "readout_8.tau",
    } <= set(changed)  # fmt: skip
    for edge in good.edges:
        mutant = copy.deepcopy(good)
        mutant.edges.remove(edge)
        seen.add(graph_hash(mutant))
        changed.append(str(edge))
    assert len(seen) == 1 + len(changed)


def test_hash_sees_types_and_names_not_order_or_metadata(good: nir.NIRGraph) -> None:
    same = copy.deepcopy(good)
    same.nodes = dict(reversed(same.nodes.items()))
    same.edges = list(reversed(same.edges))
    same.metadata = {}
    assert graph_hash(same) == graph_hash(good)
    fields = full(tau=1, r=1, v_leak=0)
    assert graph_hash(one(nir.LI(**fields))) != graph_hash(
        one(nir.LIF(**fields, **full(v_threshold=1)))
    )
    renamed = copy.deepcopy(good)
    renamed.nodes["linear_9"] = renamed.nodes.pop("linear_7")
    renamed.edges = [
        tuple(n.replace("linear_7", "linear_9") for n in edge) for edge in renamed.edges
    ]
    assert graph_hash(renamed) != graph_hash(good)


def only_a_dataset(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def only_a_node(path: Path) -> None:
    nir.write(path, nir.Linear(np.ones((2, 3))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file; write one with `knarr export`"),
        (lambda path: path.mkdir(), "no such file"),
        (b"", "not an HDF5 file"),
        (b"NIR? no, a text", "not an HDF5 file"),
        (only_a_dataset, "not a valid NIR graph"),
        (only_a_node, "not a valid NIR graph|holds a single Linear"),
    ],
    ids=["missing", "folder", "empty", "text", "HDF5, no NIR", "a node alone"],
)
def test_what_is_no_graph_is_refused_in_one_line(
    content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content(path)
    with pytest.raises(ExportError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [4, 8, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(
    keep: float, good: nir.NIRGraph, tmp_path: Path
) -> None:
    path = tmp_path / "student.nir"
    write(good, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(ExportError, match=r"student\.nir: not a") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(20, 2, 18, 18), (4, 20, 1, 18, 18), (4, 20, 648)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...], good: nir.NIRGraph) -> None:
    with pytest.raises(ExportError, match="inputs: shape"):
        step_nir(good, np.zeros(shape), DT_S)


def test_graphs_that_cannot_be_stepped_are_refused() -> None:
    node = nir.Linear(np.ones((1, 1)))
    ends = {
        "input": nir.Input({"input": np.array([1])}),
        "output": nir.Output({"output": np.array([1])}),
    }
    x = np.ones((1, 2, 1))
    loop = nir.NIRGraph(
        {**ends, "a": node, "b": node}, [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")], type_check=False
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"\['a', 'b'\] form a cycle without neuron or delay"):
        step_nir(loop, x, DT_S)
    lost = one(node)
    lost.edges.append(("n", "nowhere"))
    with pytest.raises(ExportError, match="names 'nowhere', which is not a node"):
        step_nir(lost, x, DT_S)
    two = nir.NIRGraph(
        {**ends, "more": ends["input"], "n": node}, [("input", "n"), ("more", "n"), ("n", "output")]
    )
    with pytest.raises(ExportError, match="2 Input nodes, needs exactly one"):
        step_nir(two, x, DT_S)
