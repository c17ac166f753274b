"""Every neuron behind every layer form at several time steps: a million decisions each, through the file, none differs."""

from __future__ import annotations

import itertools
import os
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
    PLIFBoxCell,
    StepGraph,
    SumPool2d,
    read,
    scale_currents,
    step_nir,
    to_nir,
    trace_module,
    write,
)
from knarr.export.norse.layers import KINDS, take_apart
from knarr.export.norse.modules import Scale
from knarr.export.norse.rewrite import as_module, rewrite

DECISIONS = 1_000_000
TIMESTEPS = 50


def between(low: float, high: float, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def parameters(kind: Any, shape: tuple[int, ...], dt_s: float, *names: str) -> Any:
    """Norse parameters, each neuron with its own values."""
    values = {
        "tau_mem_inv": between(0.05, 0.95, shape, 1) / dt_s,
        "tau_syn_inv": between(0.1, 0.95, shape, 2) / dt_s,
        "v_leak": between(-0.2, 0.2, shape, 3),
        "v_th": between(0.3, 1.0, shape, 4),
        "v_reset": between(-0.4, 0.1, shape, 5),
    }
    return kind(**{name: values[name] for name in names})


def plif(shape: tuple[int, ...], dt_s: float) -> PLIFBoxCell:
    cell = PLIFBoxCell(4 * dt_s, dt_s, shape=shape, v_th=0.6, v_leak=0.05, v_reset=-0.2)
    with torch.no_grad():
        cell.w += between(-1, 1, shape, 6)
    return cell


LIF_FIELDS = ("tau_mem_inv", "v_leak", "v_th", "v_reset")
NEURONS: dict[str, Callable[[tuple[int, ...], float], nn.Module]] = {
    "LIFBoxCell": lambda s, dt: snn.LIFBoxCell(parameters(snn.LIFBoxParameters, s, dt, *LIF_FIELDS), dt=dt),
    "LIFCell": lambda s, dt: snn.LIFCell(parameters(snn.LIFParameters, s, dt, "tau_syn_inv", *LIF_FIELDS), dt=dt),
    "PLIFBoxCell": plif,
    "IAFCell": lambda s, dt: snn.IAFCell(parameters(snn.IAFParameters, s, dt, "v_th", "v_reset"), dt=dt),
    "LIBoxCell": lambda s, dt: snn.LIBoxCell(
        p=parameters(snn.LIBoxParameters, s, dt, "tau_mem_inv", "v_leak"), dt=dt
    ),
    "LICell": lambda s, dt: snn.LICell(
        p=parameters(snn.LIParameters, s, dt, "tau_syn_inv", "tau_mem_inv", "v_leak"), dt=dt
    ),
}  # fmt: skip


def norm(kind: type[nn.BatchNorm1d | nn.BatchNorm2d], channels: int) -> nn.Module:
    layer = kind(channels)
    with torch.no_grad():
        layer.running_mean.copy_(between(-0.2, 0.2, (channels,), 7))  # type: ignore[union-attr]
        layer.running_var.copy_(between(0.5, 2.0, (channels,), 8))  # type: ignore[union-attr]
        layer.weight.copy_(between(0.5, 1.5, (channels,), 9))
        layer.bias.copy_(between(-0.2, 0.4, (channels,), 10))
    return layer


IMAGE = (2, 8, 6)
FORMS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "Linear": (lambda: [nn.Linear(10, 24)], (10,)),
    "Linear without bias": (lambda: [nn.Linear(10, 24, bias=False)], (10,)),
    "Linear, BatchNorm1d": (lambda: [nn.Linear(10, 24), norm(nn.BatchNorm1d, 24)], (10,)),
    "Conv1d": (lambda: [nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2)], (2, 12)),
    "Conv1d, 2 groups": (lambda: [nn.Conv1d(2, 4, 3, padding="same", groups=2, bias=False)], (2, 8)),
    "Conv2d": (lambda: [nn.Conv2d(2, 3, 3)], IMAGE),
    "Conv2d, stride and padding": (lambda: [nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0), bias=False)], IMAGE),
    "Conv2d, dilation": (lambda: [nn.Conv2d(2, 3, 3, padding=2, dilation=2)], IMAGE),
    "Conv2d, 2 groups": (lambda: [nn.Conv2d(2, 4, 3, padding=1, groups=2)], IMAGE),
    "Conv2d, 3x1": (lambda: [nn.Conv2d(2, 3, (3, 1), padding=(1, 0))], IMAGE),
    "Conv2d, 'same' of even sides": (lambda: [nn.Conv2d(2, 3, (4, 2), padding="same", bias=False)], IMAGE),
    "Conv2d, BatchNorm2d": (lambda: [nn.Conv2d(2, 3, 3, bias=False), norm(nn.BatchNorm2d, 3)], IMAGE),
    "AvgPool2d, Conv2d": (lambda: [nn.AvgPool2d(2), nn.Conv2d(2, 6, 2)], IMAGE),
    "SumPool2d, Conv2d": (lambda: [SumPool2d((2, 1)), nn.Conv2d(2, 6, 2)], IMAGE),
    "LPPool2d, Conv2d": (lambda: [nn.LPPool2d(1, 2), nn.Conv2d(2, 6, 2)], IMAGE),
    "Flatten, Linear": (lambda: [nn.Dropout(), nn.Flatten(), nn.Linear(96, 24)], IMAGE),
    "Flatten in part, Conv1d": (lambda: [nn.Flatten(2, 3), nn.Conv1d(2, 4, 5, stride=5)], IMAGE),
}  # fmt: skip
POOLS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "AvgPool2d with padding": (lambda: [nn.AvgPool2d(3, 2, 1), nn.Conv2d(2, 6, 2)], IMAGE),
    "AvgPool2d in ceil_mode": (lambda: [nn.AvgPool2d(3, 2, 1, True), nn.Conv2d(2, 6, 2)], IMAGE),
    "AvgPool2d without zeros": (lambda: [nn.Conv2d(2, 6, 2), nn.AvgPool2d(3, 1, 1, False, False)], IMAGE),
    "AvgPool2d with divisor": (lambda: [nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(2, 6, 2)], IMAGE),
    "LPPool2d in ceil_mode": (lambda: [nn.LPPool2d(1, 4, ceil_mode=True), nn.Conv2d(2, 6, 1)], IMAGE),
}  # fmt: skip
"""Pools with windows that NIR's pools do not say."""
DTS_S = (5e-4, 1e-3, 2e-3)
WHOLE = "KNARR_CONFORMANCE" in os.environ


def spread(*axes: Any) -> list[Any]:
    """All combinations with every time step by `make conformance`; in `make test` each with one of them, in turn."""
    every = list(itertools.product(*axes))
    return [
        (*names, dt_s)
        for i, names in enumerate(every)
        for j, dt_s in enumerate(DTS_S)
        if WHOLE or i % 3 == j
    ]


def build(neuron: str, form: str, dt_s: float) -> tuple[snn.SequentialState, tuple[int, ...], int]:
    torch.manual_seed(11)
    make, shape = (FORMS | POOLS)[form]
    layers = make()
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                layer.weight *= 4
    features = tuple(nn.Sequential(*layers).eval()(torch.zeros(2, *shape)).shape[1:])
    cells = [NEURONS[neuron](features, dt_s)]
    if neuron.startswith("LI") and not neuron.startswith("LIF"):
        cells.insert(
            0, NEURONS["LIFBoxCell"](features, dt_s)
        )  # a readout alone has no spikes to certify
    return snn.SequentialState(*layers, *cells).eval(), shape, int(np.prod(features))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")  # torch, of speed
@pytest.mark.parametrize(("neuron", "form", "dt_s"), spread(NEURONS, FORMS))
def test_no_decision_differs_through_the_file(
    neuron: str, form: str, dt_s: float, tmp_path: Path
) -> None:
    module, shape, neurons = build(neuron, form, dt_s)
    samples = -(-DECISIONS // (neurons * TIMESTEPS))
    rng = np.random.default_rng(12)
    x = (rng.random((samples, TIMESTEPS, *shape), dtype=np.float32) < 0.3).astype(np.float32)
    write(to_nir(module, shape, dt_s), tmp_path / "a.nir")
    live, stepped = trace_module(module, x), step_nir(read(tmp_path / "a.nir"), x, dt_s)
    assert set(live.v) == set(stepped.v)
    assert set(live.spikes) == set(stepped.spikes)
    assert sum(v.size for v in live.v.values()) >= DECISIONS
    for name, z in live.spikes.items():
        assert 0.005 < z.mean() < 0.9
        assert np.count_nonzero(z != stepped.spikes[name]) == 0
    plain, rewrites = rewrite(take_apart(module), shape)
    assert bool(rewrites) == any(
        word in form
        for word in (
            "BatchNorm",
            "groups",
            "3x1",
            "LPPool",
            "even sides",
            "AvgPool2d with",
            "AvgPool2d in",
        )
    )
    exact = trace_module(as_module(plain), x) if rewrites else live
    for name, v in exact.v.items():
        assert v.std() > 0.01
        assert np.array_equal(
            v.view(np.uint32) & 0x7FFFFFFF, stepped.v[name].view(np.uint32) & 0x7FFFFFFF
        )
    assert np.array_equal(exact.output, stepped.output)


@pytest.mark.parametrize(
    ("neuron", "form", "dt_s"), spread(NEURONS if WHOLE else ["LIFBoxCell"], POOLS)
)
def test_pools_of_other_windows_are_convolutions(
    neuron: str, form: str, dt_s: float, tmp_path: Path
) -> None:
    test_no_decision_differs_through_the_file(neuron, form, dt_s, tmp_path)


def test_the_grid_has_every_kind_of_layer() -> None:
    met = {type(layer) for make, _ in FORMS.values() for layer in make()}
    met |= {type(make((3,), 1e-3)) for make in NEURONS.values()} | {snn.LIFRecurrentCell}
    # Only recording makes a Scale, of a factor as EncodedImages has (test_norse_nets.py).
    assert set(KINDS) - {Scale} <= met


# --- recurrence and branches


def scaled(layer: nn.Linear, gain: float) -> nn.Linear:
    with torch.no_grad():
        layer.weight *= gain
    return layer


def recurrent_cell(dt_s: float, autapses: bool) -> snn.SequentialState:
    torch.manual_seed(1)
    p = snn.LIFParameters(
        tau_syn_inv=torch.tensor(0.4 / dt_s), tau_mem_inv=torch.tensor(0.2 / dt_s), v_leak=torch.tensor(0.05),
        v_th=torch.tensor(0.5), v_reset=torch.tensor(-0.1),
    )  # fmt: skip
    return snn.SequentialState(
        snn.LIFRecurrentCell(10, 24, p, autapses=autapses, dt=dt_s),
        nn.Linear(24, 5),
        NEURONS["LICell"]((5,), dt_s),
    ).eval()


def residual(dt_s: float) -> StepGraph:
    torch.manual_seed(2)
    nodes = {
        "a": scaled(nn.Linear(10, 24), 4), "za": NEURONS["LIFBoxCell"]((24,), dt_s),
        "b": scaled(nn.Linear(24, 24), 3), "zb": NEURONS["LIFCell"]((24,), dt_s),
        "out": scaled(nn.Linear(24, 5), 3), "zo": NEURONS["LIFBoxCell"]((5,), dt_s),
    }  # fmt: skip
    edges = [
        ("input", "a"), ("a", "za"), ("za", "b"), ("b", "zb"), ("a", "zb"), ("za", "out"), ("zb", "out"), ("out", "zo"),
        ("zo", "output"),
    ]  # fmt: skip
    return StepGraph(nodes, edges).eval()


def loop(dt_s: float, cell: str = "LIFCell", bias: bool = True) -> StepGraph:
    torch.manual_seed(3)
    nodes = {
        "fc": scaled(nn.Linear(10, 24), 4), "lif": NEURONS[cell]((24,), dt_s), "rec": scaled(nn.Linear(24, 24, bias=bias), 2),
        "out": scaled(nn.Linear(24, 6), 4), "zo": NEURONS["PLIFBoxCell"]((6,), dt_s), "back": nn.Linear(6, 24),
    }  # fmt: skip
    edges = [
        ("input", "fc"),
        ("fc", "lif"),
        ("rec", "lif"),
        ("back", "lif"),
        ("lif", "out"),
        ("out", "zo"),
        ("zo", "output"),
    ]
    return StepGraph(nodes, edges, [("lif", "rec"), ("zo", "back")]).eval()


def nested(dt_s: float) -> snn.SequentialState:
    torch.manual_seed(4)
    body = snn.SequentialState(
        scaled(nn.Linear(24, 24), 3), nn.Dropout(), NEURONS["LIFBoxCell"]((24,), dt_s)
    )
    block = StepGraph(
        {"body": body, "join": nn.Identity()},
        [("input", "body"), ("body", "join"), ("input", "join"), ("join", "output")],
    )
    return snn.SequentialState(
        nn.Sequential(nn.Flatten(), scaled(nn.Linear(10, 24), 4)), NEURONS["IAFCell"]((24,), dt_s), block, nn.Linear(24, 5),
        NEURONS["LIFCell"]((5,), dt_s),
    ).eval()  # fmt: skip


def late(dt_s: float) -> StepGraph:
    """A recurrent edge that closes no loop: a plain delay of one step, written as a Delay node."""
    torch.manual_seed(5)
    nodes = {
        "a": scaled(nn.Linear(10, 24), 4),
        "za": NEURONS["LIFBoxCell"]((24,), dt_s),
        "b": scaled(nn.Linear(24, 24), 3),
        "zb": NEURONS["LIFBoxCell"]((24,), dt_s),
    }
    edges = [("input", "a"), ("a", "za"), ("b", "zb"), ("zb", "output")]
    return StepGraph(nodes, edges, [("za", "b")]).eval()


def unusual_wait(dt_s: float) -> StepGraph:
    """The forward edge of a loop waits, which no reader could guess: Delay nodes say it."""
    torch.manual_seed(6)
    nodes = {
        "a": scaled(nn.Linear(10, 24), 4),
        "za": NEURONS["LIFBoxCell"]((24,), dt_s),
        "b": scaled(nn.Linear(24, 24), 3),
        "zb": NEURONS["LIFBoxCell"]((24,), dt_s),
    }
    edges = [("input", "a"), ("a", "za"), ("b", "zb"), ("zb", "za"), ("zb", "output")]
    return StepGraph(nodes, edges, [("za", "b")]).eval()


GRAPHS: dict[str, tuple[Callable[[float], nn.Module], set[str]]] = {
    "LIFRecurrentCell": (lambda dt: recurrent_cell(dt, False), {"lif_0", "lif_0_in", "lif_0_rec"}),
    "LIFRecurrentCell with autapses": (lambda dt: recurrent_cell(dt, True), {"lif_0_rec"}),
    "residual": (residual, {"za", "zb", "zo"}),
    "loop of LIFCell": (loop, {"rec", "back"}),
    "loop of LIFBoxCell": (lambda dt: loop(dt, "LIFBoxCell"), {"rec"}),
    "loop without bias": (lambda dt: loop(dt, bias=False), {"rec"}),
    "nested": (nested, {"if_2", "graph_3_body_lif_2"}),
    "delay": (late, {"za_to_b_delay"}),
    "the forward edge waits": (unusual_wait, {"za_to_b_delay"}),
}  # fmt: skip


def synapses_that_meet(dt_s: float) -> StepGraph:
    """A delayed edge into a synapse that something else enters without delay."""
    torch.manual_seed(7)
    nodes = {
        "z": NEURONS["LIFBoxCell"]((10,), dt_s),
        "a": nn.Linear(10, 10),
        "b": scaled(nn.Linear(10, 24), 4),
        "zb": NEURONS["LIFBoxCell"]((24,), dt_s),
    }
    edges = [("input", "z"), ("input", "a"), ("a", "b"), ("b", "zb"), ("zb", "output")]
    return StepGraph(nodes, edges, [("z", "b")]).eval()


def loop_and_delay(dt_s: float) -> StepGraph:
    torch.manual_seed(8)
    nodes = {
        "in": scaled(nn.Linear(10, 24), 4),
        "j": NEURONS["LIFCell"]((24,), dt_s),
        "h": nn.Linear(10, 24),
        "f": scaled(nn.Linear(24, 12), 4),
        "z": NEURONS["LIFCell"]((12,), dt_s),
    }
    edges = [("input", "in"), ("in", "j"), ("input", "h"), ("h", "f"), ("f", "z"), ("z", "output")]
    return StepGraph(nodes, edges, [("j", "j"), ("j", "f")]).eval()


GRAPHS["a delay that meets a synapse"] = (synapses_that_meet, {"z_to_b_delay"})
GRAPHS["a loop and a delay"] = (loop_and_delay, {"j_to_j_delay", "j_to_f_delay"})


@pytest.mark.parametrize(("kind", "dt_s"), spread(GRAPHS))
def test_graphs_with_branches_and_loops(kind: str, dt_s: float, tmp_path: Path) -> None:
    make, names = GRAPHS[kind]
    module = make(dt_s)
    rng = np.random.default_rng(13)
    x = (rng.random((900, TIMESTEPS, 10), dtype=np.float32) < 0.3).astype(np.float32)
    write(to_nir(module, (10,), dt_s), tmp_path / "a.nir")
    graph = read(tmp_path / "a.nir")
    assert names <= set(graph.nodes)
    x[:50] += rng.normal(0, 1, x[:50].shape)
    live, stepped = trace_module(module, x), step_nir(graph, x, dt_s)
    assert sum(z.size for z in live.spikes.values()) >= DECISIONS
    for name, z in live.spikes.items():
        assert 0.005 < z.mean() < 0.95, name
        assert np.count_nonzero(z != stepped.spikes[name]) == 0
    for name, v in live.v.items():
        assert np.array_equal(v, stepped.v[name])
    assert np.array_equal(live.output, stepped.output)


def test_the_loop_matters() -> None:
    """Cutting what comes back changes spikes, so the equality above is not one of dead edges."""
    x = (np.random.default_rng(14).random((4, TIMESTEPS, 10)) < 0.3).astype(np.float32)
    graph = to_nir(loop(1e-3), (10,), 1e-3)
    before = step_nir(graph, x, 1e-3).spikes["lif"]
    for cut in ("rec", "back"):
        nodes = {name: node for name, node in graph.nodes.items() if name != cut}
        edges = [edge for edge in graph.edges if cut not in edge]
        without = nir.NIRGraph(nodes, edges, type_check=False)
        assert np.count_nonzero(before != step_nir(without, x, 1e-3).spikes["lif"]) > 100


def test_top_level_sequential_is_a_state_sequence() -> None:
    torch.manual_seed(0)
    layers = [scaled(nn.Linear(10, 24), 4), NEURONS["LIFBoxCell"]((24,), 1e-3)]
    plain, state = nn.Sequential(*layers).eval(), snn.SequentialState(*layers).eval()
    x = (np.random.default_rng(15).random((4, 20, 10)) < 0.3).astype(np.float32)
    one, other = (step_nir(to_nir(m, (10,), 1e-3), x, 1e-3) for m in (plain, state))
    assert one.output.sum() > 50
    assert np.array_equal(one.output, other.output)


def test_plif_learns_and_keeps_its_time_constant_in_the_checkpoint() -> None:
    torch.manual_seed(0)
    cell = PLIFBoxCell(0.019, 1e-3)
    target = PLIFBoxCell(0.0044, 1e-3)
    assert [name for name, _ in cell.named_parameters()] == ["w"]
    # w is a float32 logit, rounded there and back.
    assert 1 / float(cell.p.tau_mem_inv.detach()) == pytest.approx(0.019, rel=1e-6)
    optimiser = torch.optim.Adam(cell.parameters(), lr=0.05)
    for _ in range(200):
        x = torch.rand(16, 8)
        loss = (cell(x)[1].v - target(x)[1].v).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # A fit that stops after 200 steps comes near, not onto, the target.
    assert 1 / float(cell.p.tau_mem_inv.detach()) == pytest.approx(0.0044, rel=0.05)
    again = PLIFBoxCell(0.019, 1e-3)
    again.load_state_dict(cell.state_dict())
    assert torch.equal(again.w, cell.w)


def test_every_combination_is_run() -> None:
    assert len(list(itertools.product(NEURONS, FORMS, DTS_S))) == 6 * 17 * 3


@pytest.mark.parametrize("kind", ["LIFRecurrentCell", "residual", "loop of LIFCell"])
def test_scaled_currents_fire_the_same_spikes(kind: str) -> None:
    graph = to_nir(GRAPHS[kind][0](1e-3), (10,), 1e-3)
    scaled = scale_currents(graph, 1e-3)
    x = (np.random.default_rng(16).random((50, TIMESTEPS, 10)) < 0.3).astype(np.float32)
    # In float64: the factor is rounded, so the last bits of voltages move.
    before, after = (step_nir(g, x, 1e-3, dtype="float64") for g in (graph, scaled))
    currents = [name for name, node in graph.nodes.items() if isinstance(node, nir.CubaLIF)]
    assert currents
    for name in currents:
        # r * (tau / dt / r) and tau / dt are rounded one time apart.
        assert np.allclose(scaled.nodes[name].r, graph.nodes[name].tau_mem / 1e-3)
        assert not np.array_equal(scaled.nodes[name].v_threshold, graph.nodes[name].v_threshold)
    for name, z in before.spikes.items():
        assert z.sum() > 100
        assert np.array_equal(z, after.spikes[name])
    assert "certificate" not in scaled.metadata
