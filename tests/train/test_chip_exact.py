"""Training on the chip's integers: the forward pass is the reference engine, the gradients are what they are said to be."""

from __future__ import annotations

import copy
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from graphs import DT_S, chain, conv2d, cuba, flatten, li, lif, loop, pool, spikes
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import cases, draw, same
from test_conformance import random_network

from knarr.deploy import check, lower, read_net, rules, run_on_lava, write_net
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recording,
    Recurrent,
    count_events,
    simulate,
)
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.train.chip import (
    ChipStudent,
    ChipStudentOutput,
    Limits,
    Surrogate,
)
from knarr.train.chip.limits import excess
from knarr.train.chip.neurons import cuba as run_cuba
from knarr.train.chip.quantiser import QuantisationGrid, damped, rounded
from knarr.train.chip.synapse import Accumulates, wrapped
from knarr.train.networks.neurons import NeuronSettings as FloatNeuron
from knarr.train.networks.neurons import fire

ALL = ("output", "spikes", "u", "v")
LOIHI2 = Limits()
# What the simulator takes beyond the chip.
SIMULATOR = Limits(
    QuantisationGrid(-(2**22), 2**22), None, NON_SPIKING_VTH - 1, 2**31 - 1, (0, 4096), (0, 4096)
)
Array = npt.NDArray[Any]


def ints(inputs: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(inputs).astype(np.int64))


def as_on_a_device(student: ChipStudent) -> ChipStudent:
    """Unfolded convolutions and torch's neurons, as on CUDA."""
    one: Any
    for one in student.layers:
        one.compiled, one.synapse.unfolds = False, True
    return student


# --- the forward pass


def reference_and_student(
    network: ChipNetwork, inputs: Array, *, device: bool
) -> tuple[Recording, ChipStudent] | None:
    """What the reference engine gives, and a student to compare; None where sums pass 2**53, which it refuses."""
    try:
        wanted = simulate(network, inputs, record=ALL, engine="reference")
    except ChipError:
        return None
    student = ChipStudent.from_network(network, limits=SIMULATOR)
    return wanted, as_on_a_device(student) if device else student


def kinds(network: ChipNetwork, student: ChipStudent) -> set[str]:
    found = {type(layer).__name__ for layer in network.layers} | {network.readout.kind}
    for layer in network.layers:
        found |= {"delay"} if getattr(layer, "delay_int", None) is not None else set()
        found |= {"groups"} if getattr(layer, "groups", 1) > 1 else set()
        found |= {"dilation"} if getattr(layer, "dilation", (1, 1)) != (1, 1) else set()
        found |= {"bias"} if layer.bias_int is not None else set()
    one: Any
    for one in student.layers:
        found |= (
            {f"pooled {type(one.chip_layer).__name__}"} if one.synapse.pool != (1, 1) else set()
        )
    found |= {"graded"} if network.input.bits > 1 else set()
    return found | ({"driven"} if network.input.neuron is not None else set())


def test_inputs_with_a_sign() -> None:
    compared = accumulates = other_units = 0
    kept: set[str] = set()
    for seed in range(24):
        network, inputs = draw(seed)
        if network.input.neuron is not None or network.input.bits > 4:
            continue
        network = replace(network, input=replace(network.input, signed=True))
        signs = np.random.default_rng(seed).choice([-1, 1], inputs.shape)
        pair = reference_and_student(network, signs * inputs.astype(np.int32), device=False)
        if pair is None:
            continue
        wanted, student = pair
        turned = signs * inputs.astype(np.int32)
        assert same(wanted, student.recording(ints(turned))) == [], seed
        counts = count_events(network, turned, wanted)
        first = network.layers[0].name
        found = int(student(ints(turned)).acc[0].sum())
        assert found == len(inputs) * counts.layers[first].acc, seed
        # In another unit other frames are spikes.
        scaled = turned.copy()
        scaled[:, ::2] *= 3
        network = replace(network, input=replace(network.input, units=3.0))
        counts = count_events(network, scaled, wanted)
        its = int(Accumulates(network.layers[0], 3)(ints(scaled)).sum())
        if not isinstance(network.layers[0], Recurrent):
            assert its == len(inputs) * counts.layers[first].acc, seed
            other_units += its
        compared += bool((turned < 0).any())
        accumulates += found
        kept |= kinds(network, student)
    assert compared > 8
    assert accumulates > 1000
    assert other_units > 0
    assert {"Conv", "Dense", "Recurrent", "graded"} <= kept, kept


@pytest.mark.parametrize("device", [False, True])
def test_every_integer_of_random_networks(device: bool) -> None:
    met: Counter[str] = Counter()
    fired = compared = accumulates = 0
    for seed in [*range(device, 100, 2), *range(1000 + device, 1016, 2)]:
        network, inputs = draw(seed) if seed < 1000 else random_network(seed)
        pair = reference_and_student(network, inputs, device=device)
        if pair is None:
            continue
        wanted, student = pair
        recording = student.recording(ints(inputs))
        assert same(wanted, recording) == [], seed
        assert student.to_network() is network
        ran = student(ints(inputs))
        assert np.array_equal(ran.integers.numpy(), wanted.output)
        assert np.array_equal(ran.classes.numpy(), network.readout.decide(wanted.output))
        counts = count_events(network, inputs, wanted)
        found = {
            layer.name: int(acc.sum()) for layer, acc in zip(network.layers, ran.acc, strict=True)
        }
        assert found == {name: len(inputs) * counts.layers[name].acc for name in found}, seed
        if not isinstance(network.layers[0], Recurrent):
            assert int(ran.input_acc.sum()) == found[network.layers[0].name]
        accumulates += sum(found.values())
        met.update(kinds(network, student))
        met.update(name for name, hit in cases(network, inputs, wanted).items() if hit)
        fired += sum(int(z.sum()) for z in wanted.spikes.values())
        compared += 1
    assert fired > 10_000
    assert accumulates > 100_000
    assert compared > 50
    assert {
        "Conv", "Dense", "Recurrent", "spikes", "voltage", "delay", "groups", "dilation", "bias", "pooled Conv", "pooled Dense",
        "graded", "driven", "wrap", "clip", "tie", "silent input", "all on", "one step", "decay 0", "decay 4096",
    } <= set(met), met  # fmt: skip


@settings(max_examples=60 if "KNARR_CONFORMANCE" in os.environ else 15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_random_networks_that_hypothesis_draws(seed: int, device: bool) -> None:
    network, inputs = draw(seed)
    pair = reference_and_student(network, inputs, device=device)
    if pair is None:
        return
    wanted, student = pair
    assert same(wanted, student.recording(ints(inputs))) == []


def test_sums_of_a_convolution_wrap_to_24_bits_and_currents_once() -> None:
    kernel = np.full((2, 1, 3, 3), 40_000, dtype=np.int64)
    kernel[1] = -30_000
    layer = Conv("c", kernel, Neuron(0, 0, 2**17), (1, 5, 5))
    network = ChipNetwork((layer,), InputCoding((1, 5, 5), 8), Readout("spikes"))
    inputs = np.random.default_rng(0).integers(0, 256, (2, 9, 1, 5, 5))
    wanted = simulate(network, inputs, record=ALL, engine="reference")
    free = 9 * 128 * 40_000
    assert free > 2**24 > 2 * wanted.peak_sum["c"] > 2**23  # the sums did wrap
    assert (np.abs(wanted.u["c"]) > STATE_MAX).any()  # beyond what one wrap brings back
    assert (np.abs(wanted.v["c"]) == STATE_MAX - 1).any()
    student = ChipStudent.from_network(network, limits=SIMULATOR)
    assert same(wanted, student.recording(ints(inputs))) == []
    assert same(wanted, as_on_a_device(student).recording(ints(inputs))) == []


def test_the_very_edges_of_the_registers() -> None:
    """u stays at +2**23 and leaves -2**23; v ends one short of both; the threshold itself does not fire."""
    weight = np.array([[2**17], [2**17 + 1], [-(2**17)], [-(2**17) + 1], [7]], dtype=np.int32)
    network = ChipNetwork(
        (Dense("d", weight, Neuron(4096, 4096, 7)),), InputCoding((1,)), Readout("spikes")
    )
    wanted = simulate(network, np.ones((1, 2, 1), dtype=np.uint8), record=ALL, engine="reference")
    m = STATE_MAX
    assert wanted.u["d"][0, 0].tolist() == [m, 64 - m, m, 64 - m, 448]
    assert wanted.v["d"][0, 0].tolist() == [0, 64 - m, 0, 64 - m, 448]
    student = ChipStudent.from_network(network, limits=SIMULATOR)
    assert same(wanted, student.recording(torch.ones(1, 2, 1))) == []
    assert same(wanted, as_on_a_device(student).recording(torch.ones(1, 2, 1))) == []


def test_settings_of_torch_do_not_reach_it() -> None:
    network = ChipNetwork(
        (Conv("c", np.random.default_rng(0).integers(-127, 128, (33, 32, 3, 3)), Neuron(4096, 500, 900), (32, 9, 9)),),
        InputCoding((32, 9, 9), 8),
        Readout("spikes"),
    )  # fmt: skip
    inputs = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 9, 9))
    wanted = simulate(network, inputs, record=ALL, engine="reference")
    assert wanted.output.sum() > 100
    student = ChipStudent.from_network(network)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert same(wanted, student.recording(ints(inputs))) == []
            loss = student(ints(inputs)).outputs.mean()
        loss.backward()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert student.layers[0].synapse.weight.grad.abs().sum() > 0


# --- gradients


def through(x: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
    """The integers, with the gradient of x."""
    return x + (integers - x).detach()


def in_autograd(
    sums: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor, decays: tuple[torch.Tensor, ...], back: torch.Tensor | None,
    surrogate: Surrogate, *, round_: bool = True,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The same neurons as plain operations of torch in float64, which differentiates them itself."""
    spike = FloatNeuron(coefficient=0.5, surrogate=surrogate.kind, width=surrogate.width)
    keep_u, keep_v = (1 - decay / 4096 for decay in decays)
    u = v = z = torch.zeros_like(sums[:, 0])
    found: list[list[torch.Tensor]] = [[], [], [], []]
    for t in range(sums.shape[1]):
        a = sums[:, t] if back is None else sums[:, t] + z @ back.T
        kept_u, kept_v = keep_u * u, keep_v * v
        if round_:
            kept_u, kept_v = through(kept_u, kept_u.trunc()), through(kept_v, kept_v.trunc())
        u = kept_u + 64 * a
        wraps = torch.where(u > STATE_MAX, -1, torch.where(u <= -STATE_MAX, 1, 0))
        u = u + 2 * STATE_MAX * wraps
        peak = kept_v + u + 64 * bias
        peak = through(peak, peak.clamp(-(STATE_MAX - 1), STATE_MAX - 1))
        z = fire(peak / (64 * threshold) - 1, spike)
        v = peak * (1 - (z.detach() if surrogate.detach_reset else z))
        for into, values in zip(found, (z, peak, u, a), strict=True):
            into.append(values)
    return tuple(torch.stack(values, 1) for values in found)


def leaves(seed: int, *, recurrent: bool) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    drawn: dict[str, Any] = {
        "sums": rng.integers(-90, 130, (3, 11, 7)),
        "bias": rng.integers(-20, 20, 7),
        "threshold": 150,
        "i_decay": 2300,
        "v_decay": 431,
    }
    drawn |= {"back": rng.integers(-60, 60, (7, 7))} if recurrent else {}
    return {
        name: torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for name, values in drawn.items()
    }


def arguments(of: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    return of["sums"], of["bias"], of["threshold"], (of["i_decay"], of["v_decay"])


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(
    "surrogate",
    [
        Surrogate(),
        Surrogate(kind="box", width=0.8),
        Surrogate(kind="atan", width=5, detach_reset=False),
        Surrogate(kind="box", width=0.5, detach_reset=False),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_are_those_of_autograd(
    surrogate: Surrogate, recurrent: bool, compiled: bool
) -> None:
    ours, theirs = leaves(3, recurrent=recurrent), leaves(3, recurrent=recurrent)
    options: Any = {"back": ours.get("back"), "keep_currents": True, "compiled": compiled}
    ran = run_cuba(*arguments(ours), surrogate, **options)
    wanted = in_autograd(*arguments(theirs), theirs.get("back"), surrogate)
    rng = np.random.default_rng(5)
    for got, one in zip((ran.spikes, ran.peaks, ran.currents, ran.arrived), wanted, strict=True):
        assert torch.equal(got.double(), one.double())
    assert 20 < float(ran.spikes.sum()) < 200
    # Different weights for every number, so that no two mistakes cancel.
    mix = [torch.from_numpy(rng.standard_normal(ran.spikes.shape)) for _ in wanted]
    # Of a float32 output autograd takes float32 gradients.
    mix[1], mix[2] = (mix[1] / 10_000).float().double(), mix[2] / 10_000
    mix[3] = mix[3] / 100
    torch.stack(
        [
            (m * got).sum()
            for m, got in zip(mix, (ran.spikes, ran.peaks, ran.currents, ran.arrived), strict=True)
        ]
    ).sum().backward()
    torch.stack([(m * one).sum() for m, one in zip(mix, wanted, strict=True)]).sum().backward()
    for name, leaf in ours.items():
        expected = theirs[name].grad
        assert leaf.grad is not None
        assert expected is not None
        assert float(expected.abs().max()) > 0, name
        # The same sums in another order, in float64.
        assert torch.allclose(
            leaf.grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        ), name


def test_without_rounding_they_are_a_float_network_s() -> None:
    """Decays of one half and multiples that stay whole: nothing is rounded, wrapped or clipped."""

    def start() -> dict[str, torch.Tensor]:
        found = leaves(4, recurrent=False)
        for name, value in (("i_decay", 2048.0), ("v_decay", 2048.0)):
            found[name] = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            found["sums"] *= 2**6  # with the 64 of a sum enough for six steps of halves
        found["sums"] = found["sums"][:, :6].detach().requires_grad_()
        found["threshold"] = torch.tensor(9e3, dtype=torch.float64, requires_grad=True)
        return found

    ours, theirs = start(), start()
    ran = run_cuba(*arguments(ours), Surrogate(), keep_currents=True)
    spikes_, peaks, *_ = in_autograd(*arguments(theirs), None, Surrogate(), round_=False)
    assert torch.equal(ran.peaks.double(), peaks)
    assert ran.spikes.sum() > 5
    weights = torch.linspace(-1, 1, spikes_.numel(), dtype=torch.float64).reshape(spikes_.shape)
    (weights * ran.spikes).sum().backward()
    (weights * spikes_).sum().backward()
    for name, leaf in ours.items():
        assert torch.allclose(leaf.grad, theirs[name].grad, rtol=1e-9, atol=0), name


def test_single_precision_gradients_come_near() -> None:
    exact, quick = leaves(6, recurrent=False), leaves(6, recurrent=False)
    quick = {name: leaf.detach().float().requires_grad_() for name, leaf in quick.items()}
    for found in (exact, quick):
        ran = run_cuba(*arguments(found), Surrogate(), keep_currents=True)
        (
            ran.spikes * torch.linspace(-1, 1, ran.spikes.numel()).reshape(ran.spikes.shape)
        ).sum().backward()
    for name, leaf in quick.items():
        wanted = exact[name].grad
        assert leaf.grad.dtype == torch.float32
        # float32 has 24 bits; a dozen steps lose two or three.
        assert torch.allclose(
            leaf.grad.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
        ), name


@pytest.mark.parametrize(
    "grid", [QuantisationGrid(-128, 127), QuantisationGrid(-4, 3), QuantisationGrid(-256, 254, 2)]
)
def test_steps_learn_as_lsq_says(grid: QuantisationGrid) -> None:
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal(400) * 0.9, 1.2 / grid.high
    upstream = rng.standard_normal(400)
    master = torch.tensor(x, requires_grad=True)
    step = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    q = rounded(master, damped(step, 400, grid), grid)
    (q * torch.from_numpy(upstream)).sum().backward()
    # Esser et al. 2020, equations 1-4, for x^ = step * q with the levels of the grid.
    m, low, high = grid.multiple, grid.low / grid.multiple, grid.high / grid.multiple
    level, share = m * s, x / (m * s)
    expected, of_x, of_step = np.empty(400), np.empty(400), 0.0
    for i in range(400):
        expected[i] = m * min(max(round(share[i]), low), high)
        clips = abs(share[i] - expected[i] / m) > 0.5
        of_x[i] = 0 if clips else upstream[i] / s
        # d x^ / d level is q / m - x / level or the last level; a level is m steps.
        of_step += upstream[i] / s * m * (expected[i] / m - (0 if clips else share[i]))
    assert np.array_equal(q.detach().numpy(), expected)
    assert 20 < (of_x == 0).sum() < 380
    assert level > 0
    assert np.allclose(master.grad, of_x, rtol=1e-12)
    assert np.isclose(float(step.grad), of_step / np.sqrt(400 * high), rtol=1e-9)


def test_a_common_factor_has_no_gradient() -> None:
    """What `grid` leaves out: without rounding, sum of q dL/dq over weights, bias and threshold is nothing."""
    rng = np.random.default_rng(2)
    layer = Dense(
        "d", rng.integers(-60, 90, (6, 12)), Neuron(4096, 0, 170), rng.integers(-9, 20, 6)
    )
    student = ChipStudent.from_network(ChipNetwork((layer,), InputCoding((12,)), Readout("spikes")))
    ran = student(ints(spikes(4, 9, 12)))
    assert 20 < ran.outputs.sum() < 200
    (
        ran.outputs * torch.linspace(-1, 2, ran.outputs.numel()).reshape(ran.outputs.shape)
    ).sum().backward()
    one: Any = student.layers[0]
    parts = [
        float((p.double() * p.grad.double()).sum())
        for p in (one.synapse.weight, one.bias, one.threshold)
    ]
    # float32 gradients of the weights
    assert abs(sum(parts)) < 1e-5 * max(map(abs, parts))
    assert min(map(abs, parts)) > 0.1


# --- training


def graph_of(kind: str) -> tuple[nir.NIRGraph, tuple[int, ...], dict[str, Any]]:
    """A student, the shape of its input, and options of lowering."""
    rng = np.random.default_rng(11)

    def normal(*shape: int, gain: float = 1.5) -> Array:
        return gain * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    if kind == "conv":
        layers = {
            "a": conv2d(normal(4, 2, 3, 3, gain=6), padding=1, bias=normal(4, 1)[:, 0]),
            "n": lif((4, 9, 9)),
            "p": pool(nir.AvgPool2d, 2),
            "b": conv2d(normal(6, 4, 3, 3, gain=9)),
            "m": lif((6, 2, 2)),
            "q": pool(nir.AvgPool2d, 2),
            "f": flatten(6, 1, 1),
            "c": nir.Affine(normal(6, 6), normal(6, 1)[:, 0]),
            "r": li((6,)),
        }
        return chain((2, 9, 9), (6,), **layers), (2, 9, 9), {"votes": 2, "over_time": "mean"}
    if kind == "graded":
        layers = {
            "a": nir.Linear(normal(9, 7, gain=15)),
            "n": cuba((9,)),
            "b": nir.Linear(normal(3, 9, gain=15)),
            "m": lif((3,)),
        }
        graded = {"input_bits": 8, "input_units": 255.0, "input_kind": "graded"}
        return chain((7,), (3,), **layers), (7,), graded
    if kind == "recurrent":
        layers = {
            "a": nir.Linear(normal(9, 7, gain=14)),
            "n": lif((9,)),
            "b": nir.Linear(normal(3, 9, gain=18)),
            "m": lif((3,)),
        }
        return loop(chain((7,), (3,), **layers), "n", back=nir.Linear(normal(9, 9))), (7,), {}
    if kind == "plif":
        # A time constant for each layer, voters that spike.
        layers = {
            "a": nir.Affine(normal(12, 7, gain=9), normal(12, 1, gain=0.3)[:, 0]),
            "n": lif((12,), tau=np.full(12, 1.7 * DT_S)),
            "b": nir.Linear(normal(10, 12, gain=9)),
            "m": lif((10,), tau=np.full(10, 5.3 * DT_S)),
            "c": nir.Linear(normal(6, 10, gain=9)),
            "o": lif((6,), tau=np.full(6, 2.9 * DT_S)),
        }
        return chain((7,), (6,), **layers), (7,), {"votes": 2, "over_time": "mean"}
    delay = nir.Delay(np.array([0, 3, 1, 0, 2, 5, 0]) * DT_S)
    layers = {
        "d": delay,
        "a": nir.Linear(normal(9, 7, gain=7)),
        "n": lif((9,)),
        "b": nir.Linear(normal(3, 9)),
        "r": li((3,)),
    }
    return chain((7,), (3,), **layers), (7,), {"over_time": "last"}


def lowered(kind: str, bits: int = 8) -> tuple[ChipNetwork, torch.Tensor]:
    graph, shape, options = graph_of(kind)
    inputs = spikes(24, 10, *shape)
    if "input_bits" in options:
        inputs = inputs * np.random.default_rng(1).integers(1, 256, inputs.shape).astype(np.uint8)
    return lower(graph, DT_S, weight_bits=bits, calibration=inputs[:6], **options), ints(inputs)


def train(
    student: ChipStudent, inputs: torch.Tensor, labels: torch.Tensor, steps: int, rate: float
) -> list[float]:
    optimiser = torch.optim.Adam(student.groups(0.0), lr=rate)
    losses = []
    for _ in range(steps):
        ran: ChipStudentOutput = student(inputs)
        loss = F.cross_entropy(4 * ran.logits, labels) + ran.penalty
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("conv", 8), ("conv", 3), ("graded", 6), ("recurrent", 4), ("plif", 8), ("delay", 8)],
)
def test_after_training_the_file_holds_what_was_trained(
    kind: str, bits: int, tmp_path: Path
) -> None:
    network, inputs = lowered(kind, bits)
    learn: Any = ("weights", "steps", "thresholds", "biases", "decays")
    student = ChipStudent.from_network(network, learn=learn)
    assert student.to_network() is network
    labels = torch.arange(len(inputs)) % 3
    losses = train(student, inputs, labels, 12, 0.02)
    assert min(losses[6:]) < losses[0]
    trained = student.to_network()
    write_net(trained, tmp_path / "student.net")
    found = read_net(tmp_path / "student.net")
    assert [violation for violation in check(trained) if violation.severity == "error"] == []
    wanted = simulate(found, inputs.numpy(), record=ALL, engine="reference")
    assert same(wanted, student.recording(inputs)) == []
    assert all(
        int(wanted.event_counts[one.name].sum()) > 20 for one in found.layers if one.neuron.spikes
    )
    assert trained.layers == found.layers
    assert np.array_equal(student(inputs).classes.numpy(), trained.readout.decide(wanted.output))
    assert (trained.graph_hash, trained.lowering["weight_bits"]) == (None, bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for old, new, layer in zip(network.layers, trained.layers, student.layers, strict=True):
        assert not np.array_equal(old.weight_int, new.weight_int)
        assert new.weight_int.min() >= low
        assert new.weight_int.max() <= high
        assert old.neuron.v_decay != new.neuron.v_decay
        # Pooling that was folded is still one.
        again = ChipStudent.from_network(trained).layers[len(names_before(trained, new.name))]
        assert again.synapse.pool == layer.synapse.pool
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            started = dict(ChipStudent.from_network(network).named_parameters())[name]
            assert not torch.equal(parameter, started), name
    # Starting again from the file gives the same integers, and so do the trained floats on the network they started from.
    assert same(wanted, ChipStudent.from_network(trained).recording(inputs)) == []
    resumed = ChipStudent.from_network(network)
    resumed.load_state_dict(copy.deepcopy(student).state_dict())
    assert resumed.to_network() == trained


def names_before(network: ChipNetwork, name: str) -> list[str]:
    names = [layer.name for layer in network.layers]
    return names[: names.index(name)]


def test_a_task_is_learned_in_the_chip_s_arithmetic() -> None:
    """Which of three lines is lit, through noise, from a student that knows nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    lit = np.repeat(np.eye(3), 4, axis=1)[labels]
    inputs = ints(rng.random((60, 12, 12)) < 0.08 + 0.35 * lit[:, None])
    layers = (
        Dense("a", rng.integers(-60, 61, (16, 12)), Neuron(4096, 700, 120)),
        Dense("b", rng.integers(-60, 61, (6, 16)), Neuron(2048, 700, 400)),
    )
    student = ChipStudent.from_network(
        ChipNetwork(layers, InputCoding((12,)), Readout("spikes", "mean", 2))
    )
    before = (student(inputs).classes.numpy() == labels).mean()
    losses = train(student, inputs, torch.from_numpy(labels), 40, 0.02)
    network = student.to_network()
    on_chip = network.readout.decide(simulate(network, inputs.numpy(), engine="reference").output)
    assert losses[-1] < 0.6 * losses[0]
    assert before < 0.7
    assert (on_chip == labels).mean() > 0.9
    assert np.array_equal(student(inputs).classes.numpy(), on_chip)


def test_what_rounding_took_away_can_be_given_back() -> None:
    network, inputs = lowered("delay", 3)
    rng = np.random.default_rng(0)
    floats = {
        one.name: np.clip(one.weight_int + rng.uniform(-0.5, 0.5, one.weight_int.shape), -4.4, 3.4)
        for one in network.layers
    }
    student = ChipStudent.from_network(network, unrounded=floats)
    assert student.to_network() is network
    for layer, one in zip(student.layers, network.layers, strict=True):
        first: Any = layer
        got = (first.synapse.weight.double() / first.first_step).detach().numpy()
        assert np.allclose(
            got.reshape(one.weight_int.shape), floats[one.name], atol=2e-3
        )  # ties are moved by 1e-3
    wrong = {network.layers[0].name: network.layers[0].weight_int + 0.7}
    with pytest.raises(ChipError, match="'a': its unrounded weights round to others than its own"):
        ChipStudent.from_network(network, unrounded=wrong)
    with pytest.raises(ChipError, match=r"unrounded: no layers \['z'\]"):
        ChipStudent.from_network(network, unrounded={"z": floats["a"]})
    assert inputs.shape == (24, 10, 7)


@pytest.mark.parametrize("kind", ["sum", "mean", "last"])
def test_logits_are_the_readout_s_scores(kind: Any) -> None:
    rng = np.random.default_rng(0)
    layer = Dense(
        "d", rng.integers(-60, 61, (6, 8)), Neuron(4096, 300, NON_SPIKING_VTH), None, 12_800.0
    )
    network = ChipNetwork((layer,), InputCoding((8,)), Readout("voltage", kind, 2))
    inputs = spikes(5, 7, 8)
    ran = ChipStudent.from_network(network)(ints(inputs))
    scores = network.readout.scores(simulate(network, inputs).output) / 12_800
    assert ran.logits.shape == (5, 3)
    assert ran.step_logits.shape == (5, 7, 3)
    scale = 7 if kind == "mean" else 1
    assert np.allclose(
        ran.logits.detach(), scores / scale, rtol=1e-5, atol=1e-6
    )  # volts, in float32
    assert np.abs(scores).max() > 0.01
    assert np.array_equal(ran.classes, network.readout.decide(simulate(network, inputs).output))
    tie = replace(ran, integers=torch.zeros_like(ran.integers))
    assert tie.classes.tolist() == [0] * 5


def test_floats_of_the_input_s_unit_become_its_integers() -> None:
    network, inputs = lowered("graded", 6)
    student = ChipStudent.from_network(network)
    assert int(inputs.max()) > 200
    ours = student.recording((inputs / 255).float())
    assert same(student.recording(inputs), ours) == []
    assert ours.output.any()


# --- registers


def test_what_leaves_its_register_costs_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    layer = Dense("d", rng.integers(60, 120, (4, 500)), Neuron(4096, 4095, 2**16))
    network = ChipNetwork((layer,), InputCoding((500,)), Readout("spikes"))
    inputs = ints(np.ones((2, 3, 500)))
    student = ChipStudent.from_network(network)
    assert simulate(network, inputs.numpy()).peak_sum["d"] > 2**15
    optimiser = torch.optim.Adam(student.groups(0.0), lr=2e-5)
    first = float(student(inputs).penalty)
    assert first > 0
    for _ in range(60):
        penalty = student(inputs).penalty
        if penalty.requires_grad:  # there is one to come back from
            optimiser.zero_grad()
            penalty.backward()
            optimiser.step()
    assert float(student(inputs).penalty) < first / 10
    assert simulate(student.to_network(), inputs.numpy()).peak_sum["d"] < 2**15
    assert float(student.eval()(inputs).penalty) == 0


def test_states_cost_where_no_bound_holds_them() -> None:
    values = torch.tensor([[[10.0, -30.0]], [[-5.0, 2.0]]], requires_grad=True)
    cost = excess(values, 16.0)  # from 15 on
    assert float(cost) == 15 / 16 / 2
    cost.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[[0, -1 / 32]], [[0, 0]]]
    layer = Dense("d", np.array([[100], [-100]]), Neuron(1, 4095, 2**17 - 1))
    student = ChipStudent.from_network(ChipNetwork((layer,), InputCoding((1,)), Readout("spikes")))
    short, long = (student(ints(np.ones((1, steps, 1)))).penalty for steps in (5, 1500))
    assert float(short) == 0 < float(long)
    long.backward()
    assert student.layers[0].synapse.weight.grad.abs().min() > 0


def test_wrapped_sums_are_a_shift() -> None:
    sums = torch.tensor(
        [2.0**23 - 1, 2.0**23, -(2.0**23), -(2.0**23) - 1, 3e9],
        dtype=torch.float64,
        requires_grad=True,
    )
    out = wrapped(sums)
    assert out.tolist() == [
        2**23 - 1,
        -(2**23),
        -(2**23),
        2**23 - 1,
        (3_000_000_000 + 2**23) % 2**24 - 2**23,
    ]
    out.sum().backward()
    assert sums.grad is not None
    assert sums.grad.tolist() == [1] * 5


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_int": np.array([[200, 1]])}, "weights 1..200, the grid is -128..127"),
        ({"bias_int": np.array([5000])}, "bias up to 5000, allowed 0..4095"),
        ({"neuron": Neuron(0, 5, 5)}, "i_decay 0, allowed 1..4096"),
        ({"neuron": Neuron(5, 4096, 5)}, "v_decay 4096, allowed 0..4095"),
        ({"neuron": Neuron(5, 5, 2**17)}, "threshold 131072, allowed 0..131071"),
    ],
)
def test_integers_that_no_chip_holds(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "weight_int": np.array([[3, 1]]),
        "neuron": Neuron(5, 5, 5),
        "bias_int": None,
    }
    layer = Dense("d", **{**fields, **change})
    network = ChipNetwork((layer,), InputCoding((2,)), Readout("spikes"))
    with pytest.raises(ChipError, match=f"layer 'd': {message}"):
        ChipStudent.from_network(network)


def test_even_weights_stay_even() -> None:
    layer = Recurrent(
        "d", np.array([[200, 2], [-256, 6]]), np.array([[0, 4], [-8, 2]]), Neuron(4096, 300, 90)
    )
    network = ChipNetwork((layer,), InputCoding((2,)), Readout("spikes"))
    student = ChipStudent.from_network(network)
    train(student, ints(spikes(8, 9, 2)), torch.arange(8) % 2, 8, 0.02)
    (trained,) = student.to_network().layers
    assert isinstance(trained, Recurrent)
    assert not np.array_equal(trained.weight_int, layer.weight_int)
    assert not (trained.weight_int & 1).any()
    assert not (trained.recurrent_int & 1).any()
    assert check(student.to_network()) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ones((2, 3, 5)), r"inputs: shape \(2, 3, 5\), needs \(samples, timesteps, 2\)"),
        (np.full((2, 3, 2), 2), r"inputs: integers 2..2, the input takes 0..1"),
        (np.full((2, 3, 2), -1), r"inputs: integers -1..-1, the input takes 0..1"),
        (np.ones((0, 3, 2)), r"inputs: shape \(0, 3, 2\)"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Array, message: str) -> None:
    layer = Dense("d", np.array([[3, 1]]), Neuron(5, 5, 5))
    student = ChipStudent.from_network(ChipNetwork((layer,), InputCoding((2,)), Readout("spikes")))
    with pytest.raises(ChipError, match=message):
        student(ints(inputs))


def test_sums_that_no_float_holds() -> None:
    layer = Dense("d", np.full((1, 90_000), 2**22), Neuron(5, 5, 5))
    network = ChipNetwork((layer,), InputCoding((90_000,), 16), Readout("spikes"))
    student = ChipStudent.from_network(network, limits=SIMULATOR)
    with pytest.raises(ChipError, match=r"'d': sums up to .* are not exact"):
        student(torch.zeros((1, 1, 90_000), dtype=torch.int64))


def test_limits_are_those_of_the_rules() -> None:
    registers = (rules.VTH_MAX, rules.BIAS_MAX, rules.ACCUMULATOR)
    assert (LOIHI2.vth_max, LOIHI2.bias_max, LOIHI2.accumulator) == registers
    assert LOIHI2.i_decays == rules.DECAY_LIMITS["i"]
    assert LOIHI2.v_decays == rules.DECAY_LIMITS["v"]
    assert (LOIHI2.weights.low, LOIHI2.weights.high) == (rules.WEIGHT_MIN, rules.WEIGHT_MAX)
    assert Limits.of_bits(8) == LOIHI2
    assert Limits.of_bits(4).weights == QuantisationGrid(-8, 7)
    with pytest.raises(ChipError, match=r"weight_bits: 9, allowed 2..8"):
        Limits.of_bits(9)


# --- Lava


@pytest.mark.parametrize(
    "kind",
    ["conv", "graded", "recurrent", "plif", "delay"]
    if "KNARR_CONFORMANCE" in os.environ
    else ["conv"],
)
def test_lava_runs_what_was_trained(kind: str, tmp_path: Path) -> None:
    network, inputs = lowered(kind, 8)
    student = ChipStudent.from_network(network)
    train(student, inputs, torch.arange(len(inputs)) % 3, 6, 0.01)
    path = tmp_path / "student.net"
    write_net(student.to_network(), path)
    some = inputs[:12]
    ours = student.recording(some)
    lava = run_on_lava(path, some.numpy(), record=ALL, timeout_s=120)
    assert [str(found) for found in same(ours, lava) if not found.startswith("peaks")] == []
    assert set(lava.spikes) == set(ours.spikes)
    assert all(int(ours.spikes[one.name].sum()) > 20 for one in network.layers if one.neuron.spikes)
    assert np.ptp(ours.output) > 0
