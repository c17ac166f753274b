"""Lowering without loss: where weights lie on the grid and nothing decays, the chip's spikes are those of `step_nir`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from graphs import (
    DT_S,
    chain,
    conv1d,
    conv2d,
    cuba,
    fill,
    flatten,
    integrate,
    li,
    lif,
    loop,
    on_grid,
    pool,
    spikes,
)

from knarr.deploy import lower, read_net, write_net
from knarr.export import step_nir
from knarr.hw_sim import Conv, Dense, Recurrent, simulate

RNG = np.random.default_rng(7)
DELAYS = np.array([0, 3, 1, 0, 2, 5]) * DT_S


def two(n: int = 5, high: float = 3.0) -> dict[str, Any]:
    return {"b": nir.Linear(on_grid(RNG, 3, n)), "m": integrate((3,), v_threshold=np.full(3, high))}


EXACT: dict[str, tuple[nir.NIRGraph, tuple[int, ...], type]] = {
    "dense with bias": (
        chain((6,), (3,), a=nir.Affine(on_grid(RNG, 5, 6), on_grid(RNG, 5)), n=integrate((5,)), **two()), (6,), Dense,
    ),
    "own thresholds and gains": (
        chain(
            (6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6, limit=31)),
            n=integrate((5,), v_threshold=np.array([1, 2, 0.5, 1, 1.0]), r=np.array([1, 2, 0.5, 4, 1]) / DT_S), **two(),
        ),
        (6,), Dense,
    ),
    "reset below zero": (
        chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,), v_reset=np.full(5, -1.0)), **two()), (6,), Dense,
    ),
    "delay before": (
        chain((6,), (3,), d=nir.Delay(DELAYS), a=nir.Affine(on_grid(RNG, 5, 6), on_grid(RNG, 5)), n=integrate((5,)), **two()),
        (6,), Dense,
    ),
    "delay behind": (
        chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), d=nir.Delay(DELAYS[:5]), n=integrate((5,)), **two()), (6,), Dense,
    ),
    "loop": (
        loop(chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), **two()), "n", w=nir.Linear(on_grid(RNG, 5, 5))),
        (6,), Recurrent,
    ),
    "loop with bias": (
        loop(
            chain((6,), (3,), a=nir.Affine(on_grid(RNG, 5, 6), on_grid(RNG, 5)), n=integrate((5,)), **two()),
            "n", w=nir.Affine(on_grid(RNG, 5, 5), on_grid(RNG, 5)),
        ),
        (6,), Recurrent,
    ),
    "bare loop": (loop(chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), **two()), "n"), (6,), Recurrent),
    "no synapse": (chain((6,), (3,), n=integrate((6,)), **two(6)), (6,), Dense),
    "no synapse, image": (
        chain((2, 4, 3), (3,), n=integrate((2, 4, 3), v_threshold=np.full((2, 4, 3), 2.0)), f=flatten(2, 4, 3), **two(24)),
        (2, 4, 3), Conv,
    ),
    "conv": (
        chain(
            (2, 6, 5), (3,), a=conv2d(on_grid(RNG, 4, 2, 3, 2), stride=(2, 1), padding=(1, 0), bias=on_grid(RNG, 4)),
            n=integrate((4, 3, 4)), f=flatten(4, 3, 4), **two(48),
        ),
        (2, 6, 5), Conv,
    ),
    "groups and dilation": (
        chain(
            (4, 7, 7), (3,), a=conv2d(on_grid(RNG, 4, 2, 3, 3), groups=2, dilation=(2, 2)), n=integrate((4, 3, 3)),
            f=flatten(4, 3, 3), **two(36),
        ),
        (4, 7, 7), Conv,
    ),
    "sum pool, groups": (
        chain(
            (2, 8, 8), (3,), p=pool(nir.SumPool2d, 2), a=conv2d(on_grid(RNG, 4, 1, 3, 3), groups=2), n=integrate((4, 2, 2)),
            f=flatten(4, 2, 2), **two(16),
        ),
        (2, 8, 8), Conv,
    ),
    "pool alone": (
        chain(
            (2, 8, 8), (3,), a=conv2d(on_grid(RNG, 2, 2, 1, 1)), n=integrate((2, 8, 8)), p=pool(nir.SumPool2d, 2),
            k=integrate((2, 4, 4), v_threshold=np.full((2, 4, 4), 2.0)), f=flatten(2, 4, 4), **two(32, 1),
        ),
        (2, 8, 8), Conv,
    ),
    "signal": (
        chain(
            (2, 12), (3,), a=conv1d(on_grid(RNG, 3, 2, 4), stride=2, padding=1, bias=on_grid(RNG, 3)), n=integrate((3, 6)),
            f=flatten(3, 6), **two(18),
        ),
        (2, 12), Conv,
    ),
    "scale": (
        chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6, limit=31)), s=nir.Scale(np.array([1, 2, 1, 4, 1])), n=integrate((5,)), **two()),
        (6,), Dense,
    ),
    "a bias in every layer": (
        chain(
            (6,), (3,), a=nir.Affine(on_grid(RNG, 5, 6), on_grid(RNG, 5)), n=integrate((5,)),
            b=nir.Affine(on_grid(RNG, 3, 5), on_grid(RNG, 3)), m=integrate((3,)),
        ),
        (6,), Dense,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_the_chip_fires_as_the_graph_does(name: str, tmp_path: Path) -> None:
    graph, shape, kind = EXACT[name]
    events = spikes(4, 30, *shape, seed=3)
    network = lower(graph, DT_S)
    floats = step_nir(graph, events, DT_S, dtype="float64")
    chip = simulate(network, events, record=("spikes",))
    assert isinstance(network.layers[0], kind)
    for layer in network.layers:
        wanted = floats.spikes[layer.neuron.name]
        # Loops that excite themselves may fire at every step; both silence and that would prove little.
        assert 0.02 * wanted.size < wanted.sum() < 0.98 * wanted.size, (layer.name, wanted.mean())
        assert np.array_equal(chip.spikes[layer.name].reshape(wanted.shape), wanted), layer.name
    path = tmp_path / "a.net"
    write_net(network, path)
    assert read_net(path) == network


def test_graded_frames_are_scaled_into_threshold_and_bias() -> None:
    rng = np.random.default_rng(2)
    graph = chain((6,), (5,), a=nir.Affine(on_grid(rng, 5, 6), on_grid(rng, 5)), n=integrate((5,)))
    frames = rng.integers(0, 16, (4, 30, 6))
    network = lower(graph, DT_S, input_bits=4, input_units=16.0, input_kind="graded")
    floats = step_nir(graph, frames / 16, DT_S, dtype="float64")
    fired = simulate(network, frames, record=("spikes",)).spikes["a"]
    assert 0.05 < fired.mean() < 0.95
    assert np.array_equal(fired, floats.spikes["n"])
    assert (network.input.units, network.layers[0].neuron.vth_int) == (16.0, 64 * 16)


def test_spikes_that_come_back_to_graded_input_weigh_as_much_as_in_the_graph() -> None:
    """A payload is worth `units` times less than a spike, and one grid holds the weights of both."""
    rng, units = np.random.default_rng(3), 4.0
    graph = loop(
        chain((6,), (5,), a=nir.Linear(on_grid(rng, 5, 6)), n=integrate((5,))),
        "n", w=nir.Linear(on_grid(rng, 5, 5) / units),
    )  # fmt: skip
    frames = rng.integers(0, 16, (4, 40, 6))
    network = lower(graph, DT_S, input_bits=4, input_units=units)
    fired = simulate(network, frames, record=("spikes",)).spikes["a"]
    assert 0.02 < fired.mean() < 0.95
    assert np.array_equal(fired, step_nir(graph, frames / units, DT_S, dtype="float64").spikes["n"])


C = np.array([0.5, 2.0, 4.0])


def gauge(**fields: Any) -> tuple[nir.NIRGraph, nir.NIRGraph]:
    weight, cell = (
        np.array([[0.5, -0.25, 0.1], [1.0, 0.0, -1.0], [0.7, 0.3, -0.6]]),
        fields.pop("cell", lif),
    )
    plain = chain((3,), (3,), a=nir.Linear(weight), n=cell((3,)))
    other = chain(
        (3,), (3,), a=nir.Linear(fields.pop("weight", 1) * weight), n=cell((3,), **fields)
    )
    return plain, other


@pytest.mark.parametrize(
    "graphs",
    [
        gauge(r=C, v_threshold=C),
        gauge(r=C, weight=1 / C[:, None]),
        gauge(r=-np.ones(3), weight=-1),
        gauge(v_leak=np.full(3, -0.5), v_reset=np.full(3, -0.5), v_threshold=np.full(3, 0.5)),
        gauge(v_leak=C, v_reset=C, v_threshold=1 + C),
        gauge(cell=cuba, w_in=2 * C, weight=1 / C[:, None]),
        gauge(cell=cuba, r=C, v_threshold=C),
        gauge(cell=li, v_leak=np.full(3, 0.25)),
    ],
)
def test_gauges_lower_to_the_same_integers(graphs: tuple[nir.NIRGraph, nir.NIRGraph]) -> None:
    (plain,), (other,) = (lower(graph, DT_S).layers for graph in graphs)
    assert plain.neuron == other.neuron
    assert plain.weight_int.tolist() == other.weight_int.tolist()
    # All weights are multiples of 0.05 / 4, and 80 is the power of two that fits 127.
    assert np.abs(plain.weight_int).max() == 80


def test_a_readout_of_currents() -> None:
    weight = on_grid(np.random.default_rng(0), 3, 6)
    graph = chain((6,), (3,), a=nir.Linear(weight), n=nir.CubaLI(**fill((3,), tau_syn=0.002, tau_mem=0.004, r=1, v_leak=0, w_in=2)))  # fmt: skip
    events = spikes(4, 30, 6)
    network = lower(graph, DT_S)
    assert network.readout.kind == "voltage"
    (layer,) = network.layers
    assert layer.scale is not None
    volts = simulate(network, events).output / layer.scale
    wanted = step_nir(graph, events, DT_S).v["n"]
    assert np.abs(wanted).max() > 1
    assert (
        np.abs(volts - wanted).max() < 0.01 * np.abs(wanted).max()
    )  # truncation of two decays, measured 0.2 %
    integral = chain((6,), (3,), a=nir.Linear(weight), n=nir.I(np.full(3, 1 / DT_S)))
    network = lower(integral, DT_S)
    (layer,) = network.layers
    assert layer.scale is not None
    exact = simulate(network, events).output / layer.scale
    assert np.array_equal(exact, step_nir(integral, events, DT_S, dtype="float64").v["n"])


@pytest.mark.parametrize("threshold", [1.0, 1.001, 1.01, 1.015])
def test_thresholds_between_two_weights(threshold: float) -> None:
    """v holds whole weights where nothing decays: it passes a threshold when it passes the weight below."""
    graph = chain((6,), (5,), a=nir.Linear(on_grid(np.random.default_rng(5), 5, 6)), n=integrate((5,), v_threshold=np.full(5, threshold)))  # fmt: skip
    events = spikes(4, 60, 6)
    network = lower(graph, DT_S)
    assert np.array_equal(
        simulate(network, events, record=("spikes",)).spikes["a"],
        step_nir(graph, events, DT_S, dtype="float64").spikes["n"],
    )


def test_weights_that_fit_a_coarser_grid_are_not_rounded() -> None:
    weight = np.random.default_rng(6).integers(-31, 32, (5, 6)) / 16
    weight[0, 0] = 31 / 16
    network = lower(chain((6,), (5,), a=nir.Linear(weight), n=integrate((5,))), DT_S)
    assert network.lowering["layers"][0]["weight_error"] == 0.0
    assert np.array_equal(network.layers[0].weight_int, 64 * weight)
