"""Training on the chip's integers with registers of each neuron and inputs with a sign: the reference's integers, and gradients of each register."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_networks import draw, own_registers, same
from test_chip_exact import ALL, SIMULATOR, as_on_a_device, ints
from test_own_registers import changed, kinds

from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    simulate,
)
from knarr.train.chip import ChipStudent, Surrogate
from knarr.train.chip.neurons import cuba


@pytest.mark.parametrize("device", [False, True])
def test_every_integer_of_random_networks(device: bool) -> None:
    met: Counter[str] = Counter()
    fired = compared = 0
    for seed in range(device, 80, 2):
        network, inputs = changed(seed)
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference")
        except ChipError:  # sums beyond 2**53
            continue
        student = ChipStudent.from_network(network, limits=SIMULATOR)
        student = as_on_a_device(student) if device else student
        assert same(wanted, student.recording(ints(inputs))) == [], seed
        assert student.to_network() is network
        # Copied layer by layer, not handed back as it was.
        assert tuple(layer.to_layer() for layer in student.layers) == network.layers
        ran = student(ints(inputs))
        assert np.array_equal(ran.integers.numpy(), wanted.output)
        fired += sum(int(spikes.sum()) for spikes in wanted.spikes.values())
        compared += 1
        met.update(kinds(network))
    assert fired > 1000
    assert compared > 30
    assert min(met[f"{register} {kind}"] for register in ("i_decay", "v_decay", "vth_int") for kind in ("Conv", "Dense")) > 5, met  # fmt: skip
    assert met["signed"] > 15


def gradients(
    shared: bool, compiled: bool, registers: tuple[Any, Any, Any]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients of some sum of spikes, peaks and currents by sums and registers, in float64."""
    rng = torch.Generator().manual_seed(4)
    sums = torch.randint(-30, 60, (3, 8, 5), generator=rng).double().requires_grad_()
    given = [torch.tensor(value, dtype=torch.float64) for value in registers]
    leaves = [value if shared else value.expand(5).clone() for value in given]
    threshold, i_decay, v_decay = (leaf.requires_grad_() for leaf in leaves)
    ran = cuba(
        sums, torch.zeros(5, dtype=torch.float64), threshold, (i_decay, v_decay),
        Surrogate(width=1.0, detach_reset=False), keep_currents=True, compiled=compiled,
    )  # fmt: skip
    ways = torch.rand((3, 8, 5), generator=rng).double()
    total = (ran.spikes * ways).sum() + (ran.peaks * ways).sum() / 900 + ran.currents.mean() / 70
    total.backward()
    return [leaf.grad for leaf in (sums, threshold, i_decay, v_decay)], ran.spikes  # type: ignore[misc]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_each_register_add_up_to_those_of_a_shared_one(compiled: bool) -> None:
    registers = (40.0, 900.0, 300.0)
    together, fired = gradients(True, compiled, registers)
    apart, same_fired = gradients(False, compiled, registers)
    assert torch.equal(fired, same_fired)
    assert 0.1 < float(fired.mean()) < 0.9
    # Sums of float64 in another order.
    torch.testing.assert_close(apart[0], together[0], rtol=1e-9, atol=1e-9)
    for own, shared in zip(apart[1:], together[1:], strict=True):
        assert own.shape == (5,)
        assert own.abs().min() > 0
        torch.testing.assert_close(own.sum(), shared, rtol=1e-9, atol=1e-9)


def test_compiled_gradients_are_those_of_torch() -> None:
    registers = ([40.0, 1.0, 60.0, 25.0, 90.0], [900.0, 4096.0, 1.0, 50.0, 700.0], [300.0, 4095.0, 0.0, 9.0, 70.0])  # fmt: skip
    here, fired = gradients(True, True, registers)
    there, same_fired = gradients(True, False, registers)
    assert torch.equal(fired, same_fired)
    for one, other in zip(here, there, strict=True):
        assert one.abs().max() > 0
        # Products of float64 in another order.
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_fitting_moves_each_register_and_leaves_those_that_forget_all() -> None:
    rng = np.random.default_rng(5)
    own = Neuron(np.array([4096, 900, 900, 2000]), np.array([4095, 300, 20, 0]), np.array([1, 90, 150, 60]))  # fmt: skip
    layers = (
        Dense("own", rng.integers(-60, 90, (4, 6)), own),
        Dense("out", rng.integers(-60, 90, (3, 4)), Neuron(4096, 100, 80)),
    )
    network = ChipNetwork(layers, InputCoding((6,)), Readout("spikes"))
    inputs = rng.integers(0, 2, (16, 12, 6))
    student = ChipStudent.from_network(network, learn=("weights", "thresholds", "decays"))
    optimiser = torch.optim.Adam(student.groups(0.0), lr=0.02)
    labels = torch.from_numpy(rng.integers(0, 3, 16))
    for _ in range(12):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(student(ints(inputs)).logits, labels).backward()
        optimiser.step()
    fitted = student.to_network()
    found = fitted.layers[0].neuron
    assert isinstance(found.i_decay, np.ndarray)
    assert isinstance(found.v_decay, np.ndarray)
    assert isinstance(found.vth_int, np.ndarray)
    assert found.i_decay[0] == 4096
    assert found.v_decay[3] == 0
    assert (found.i_decay[1:] != own.i_decay[1:]).any()  # type: ignore[index]
    assert found.i_decay[1] != found.i_decay[2]  # each learns for itself
    assert (found.vth_int != own.vth_int).any()
    wanted = simulate(fitted, inputs, record=ALL, engine="reference")
    assert same(wanted, student.recording(ints(inputs))) == []


def test_registers_outside_the_limits_are_refused_by_the_one_that_is() -> None:
    network, _ = draw(3)
    rng = np.random.default_rng(3)
    network = own_registers(network, rng, decays=((1, 4096), (0, 4096)))
    one = network.layers[0]
    cell = Neuron(4096, np.arange(int(np.prod(one.output_shape))) % 3 + 4094, 90)
    broken = replace(network, layers=(replace(one, neuron=cell), *network.layers[1:]))
    with pytest.raises(ChipError, match=r"v_decay 4096, allowed 0..4095; lower it anew"):
        ChipStudent.from_network(broken)
