"""Random legal networks on Lava and in the simulator: every spike, current and voltage of every layer is equal.

A few run in `make test`; `make conformance` sets KNARR_CONFORMANCE to the number of networks (200 and more).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from knarr.deploy import check, read_net, run_on_lava, write_net
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
    compare,
    simulate,
)
from knarr.hw_sim.network import Layer
from knarr.hw_sim.recording import INPUT_LAYER

NETWORKS = int(os.environ.get("KNARR_CONFORMANCE", "3"))
ALL = ("output", "spikes", "v", "u")


def pick(rng: np.random.Generator, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def own(rng: np.random.Generator, cell: Neuron, shape: tuple[int, ...]) -> Neuron:
    """The neuron, in half of all draws with registers of each neuron or channel of a layer of this shape."""
    if rng.random() < 0.5:
        return cell
    found: dict[str, Any] = {}
    for register in ("i_decay", "v_decay", "vth_int"):
        size = pick(rng, None, shape[:1], shape, shape)
        value = getattr(cell, register)
        if size is None or value == NON_SPIKING_VTH:
            continue
        low, high = {"i_decay": (1, 4096), "v_decay": (0, 4095), "vth_int": (1, 2 * value)}[
            register
        ]
        few = [value, *rng.integers(low, high + 1, 3)]
        found[register] = rng.choice(few, size) if rng.random() < 0.5 else rng.integers(low, high + 1, size)  # fmt: skip
    return replace(cell, **found)


def neuron(rng: np.random.Generator, scale: int) -> Neuron:
    return Neuron(
        i_decay=int(pick(rng, 1, 4096, 4096, int(rng.integers(1, 4096)))),
        v_decay=int(pick(rng, 0, 4095, int(rng.integers(0, 4096)), int(rng.integers(50, 1500)))),
        vth_int=int(rng.integers(1, max(2, scale))),
    )


def weights(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.int64]:
    """Every sign mode, small and large, odd and even."""
    kind = pick(rng, "mixed", "mixed", "mixed", "positive", "negative", "even")
    if kind == "mixed":
        limit = int(pick(rng, 3, 20, 127))
        return rng.integers(-limit, limit + 1, shape)
    if kind == "even":
        return 2 * rng.integers(-128, 128, shape)
    if kind == "positive":
        return rng.integers(0, 128, shape)
    return rng.integers(-128, 1, shape)


def bias(rng: np.random.Generator, outputs: int) -> npt.NDArray[np.int64] | None:
    return pick(rng, None, None, rng.integers(-40, 60, outputs))


def random_network(seed: int) -> tuple[ChipNetwork, npt.NDArray[np.int64]]:
    """A network that breaks no rule, and inputs for it."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            network, inputs = _draw(rng)
        except ChipError:
            continue  # a kernel larger than what is left of the image
        broken = [v for v in check(network) if v.severity == "error"]
        fired = simulate(network, inputs, record=("spikes",)).spikes
        if not broken and sum(int(z.sum()) for z in fired.values()) > 20:
            return network, inputs


def _draw(rng: np.random.Generator) -> tuple[ChipNetwork, npt.NDArray[np.int64]]:
    image = bool(rng.integers(2))
    shape: tuple[int, ...] = tuple(rng.integers(4, 8, 2)) if image else (int(rng.integers(3, 12)),)
    shape = tuple(int(n) for n in ((pick(rng, 1, 2, 4), *shape) if image else shape))
    bits = int(pick(rng, 1, 1, 1, 4, 8))
    driven = own(rng, neuron(rng, 200), shape) if bits == 1 and rng.random() < 0.2 else None
    signed = driven is None and rng.random() < 0.4
    layers: list[Layer] = []
    here = shape
    for level in range(int(rng.integers(1, 4))):
        name = f"layer{level}"
        fan = 60 * (1 if bits == 1 or level else 2**bits)
        cell = neuron(rng, 4 * fan)
        if len(here) == 3 and rng.random() < 0.7:
            groups = int(pick(rng, *[g for g in (1, 2) if here[0] % g == 0]))
            outputs = groups * int(rng.integers(1, 4))
            kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
            layer: Layer = Conv(
                name,
                weights(rng, outputs, here[0] // groups, *kernel),
                cell,
                here,  # type: ignore[arg-type]
                stride=(int(rng.integers(1, 3)), int(rng.integers(1, 3))),
                padding=(int(rng.integers(0, 2)), int(rng.integers(0, 3))),
                dilation=pick(rng, (1, 1), (1, 1), (2, 1)),
                groups=groups,
                bias_int=bias(rng, outputs),
            )
        else:
            outputs, inputs = int(rng.integers(2, 10)), int(np.prod(here))
            kind = pick(rng, "dense", "recurrent", "delayed")
            weight = weights(rng, outputs, inputs)
            if kind == "recurrent":
                layer = Recurrent(
                    name, weight, weights(rng, outputs, outputs), cell, bias(rng, outputs)
                )
            elif kind == "delayed":
                layer = Dense(
                    name,
                    weight,
                    cell,
                    bias(rng, outputs),
                    None,
                    rng.integers(0, int(pick(rng, 3, 9)), weight.shape),
                )
            else:
                layer = Dense(name, weight, cell, bias(rng, outputs))
        layer = replace(layer, neuron=own(rng, cell, layer.output_shape))
        layers.append(layer)
        here = layer.output_shape
    if rng.random() < 0.3:
        last = layers[-1]
        silent = Neuron(last.neuron.i_decay, last.neuron.v_decay, NON_SPIKING_VTH)
        fields = {k: getattr(last, k) for k in last.__dataclass_fields__}
        layers[-1] = type(last)(**{**fields, "neuron": silent})
    kind = "spikes" if layers[-1].neuron.spikes else "voltage"
    coding = InputCoding(shape, bits, driven, signed=signed)
    network = ChipNetwork(tuple(layers), coding, Readout(kind))  # type: ignore[arg-type]
    samples, timesteps = int(rng.integers(1, 4)), int(rng.integers(6, 16))
    if driven is not None:
        return network, rng.integers(-100, 300, (samples, timesteps, *shape))
    active = rng.random((samples, timesteps, *shape)) < 0.5
    events = active * rng.integers(1, 2**bits, active.shape)
    return network, events * rng.choice([-1, 1], events.shape) if signed else events


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_lava_equals_the_simulator(seed: int, tmp_path: Path) -> None:
    network, inputs = random_network(seed)
    path = tmp_path / "network.net"
    write_net(network, path)
    assert read_net(path) == network
    lava = run_on_lava(path, inputs, record=ALL, timeout_s=120)
    for engine in ("reference", "auto"):
        ours = simulate(network, inputs, record=ALL, engine=engine)  # type: ignore[arg-type]
        assert [str(divergence) for divergence in compare(lava, ours)] == [], engine
    names = {layer.name for layer in network.layers} | (
        {INPUT_LAYER} if network.input.neuron is not None else set()
    )
    assert set(lava.u) == set(lava.v) == set(lava.spikes) == names


def test_the_generator_draws_every_kind() -> None:
    seen: set[str] = set()
    for seed in range(60):
        network, inputs = random_network(seed)
        seen |= {type(layer).__name__ for layer in network.layers} | {network.readout.kind}
        seen |= {
            "delay" for layer in network.layers if getattr(layer, "delay_int", None) is not None
        }
        seen |= {"bias" for layer in network.layers if layer.bias_int is not None}
        seen |= {"groups" for layer in network.layers if getattr(layer, "groups", 1) > 1}
        seen |= {"driven"} if network.input.neuron is not None else set()
        seen |= {"graded"} if network.input.bits > 1 else set()
        seen |= {f"signed {network.input.bits > 1}"} if network.input.signed else set()
        for layer in network.layers:
            for register in ("i_decay", "v_decay", "vth_int"):
                if isinstance(getattr(layer.neuron, register), np.ndarray):
                    seen.add(f"{register} {type(layer).__name__}")
        if network.input.neuron is not None and not network.input.neuron.shared:
            seen.add("driven by its own registers")
        seen |= {"reset"} if len(inputs) > 1 else set()
    assert seen == {
        "Conv", "Dense", "Recurrent", "spikes", "voltage", "delay", "bias", "groups", "driven", "graded", "reset",
        "signed True", "signed False", "driven by its own registers",
        *(f"{register} {kind}" for register in ("i_decay", "v_decay", "vth_int") for kind in ("Conv", "Dense", "Recurrent")),
    }  # fmt: skip
