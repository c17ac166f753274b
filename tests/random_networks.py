"""Networks drawn at random, with every kind of layer, register and input that the type allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

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
    compare,
)
from knarr.hw_sim.network import Layer, register_array, register_range

ALL = ("output", "spikes", "u", "v")
Array = npt.NDArray[Any]


def pick(rng: np.random.Generator, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def neuron(rng: np.random.Generator, scale: int) -> Neuron:
    extreme = (0, 1, 4095, 4096, int(rng.integers(0, 4097)), int(rng.integers(20, 1500)))
    high = int(pick(rng, 1, 8, scale, scale, 20 * scale))
    return Neuron(
        pick(rng, *extreme, 4096), pick(rng, *extreme), int(rng.integers(0, max(1, high)))
    )


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    limit = int(
        pick(rng, 1, 3, 20, 127, 127, 127, 255, 255, 900, *([30000] if rng.random() < 0.1 else []))
    )
    values = rng.integers(-limit, limit + 1, shape)
    sign = pick(rng, 0, 0, 0, 1, -1)
    values = sign * np.abs(values) if sign else values
    return values * int(pick(rng, 1, 1, 2, 8))


def layer(rng: np.random.Generator, name: str, shape: tuple[int, ...], fan: int) -> Layer:
    cell = neuron(rng, fan)
    if len(shape) == 3 and rng.random() < 0.75:
        c, h, w = shape
        groups = int(pick(rng, 1, 1, *[g for g in (2, c) if c % g == 0]))
        outputs = groups * int(pick(rng, 1, 2, 3, 33 if groups == 1 else 4))
        kernel_shape = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
        kernel = weights(rng, outputs, c // groups, *kernel_shape)
        stride, padding = (
            (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
            (int(rng.integers(0, 3)), int(rng.integers(0, 3))),
        )
        dilation = pick(rng, (1, 1), (1, 1), (2, 1), (1, 2))
        if rng.random() < 0.4:  # 2x2 pooling folded in
            kernel = kernel.repeat(2, axis=2).repeat(2, axis=3)
            stride, padding, dilation = (
                (2 * stride[0], 2 * stride[1]),
                (2 * padding[0], 2 * padding[1]),
                (1, 1),
            )
        bias = pick(rng, None, rng.integers(-min(3 * fan, 60_000), min(3 * fan, 60_000), outputs))
        return Conv(name, kernel, cell, (c, h, w), stride, padding, dilation, groups, bias)
    inputs, outputs = int(np.prod(shape)), int(pick(rng, 1, 3, 31, 32, 33, 70))
    weight = weights(rng, outputs, inputs)
    if len(shape) == 3 and rng.random() < 0.4:
        c, h, w = shape
        pooled = np.zeros((outputs, c, h, w), dtype=np.int64)
        cells = weights(rng, outputs, c, h // 2, w // 2).repeat(2, axis=2).repeat(2, axis=3)
        pooled[:, :, : cells.shape[2], : cells.shape[3]] = cells
        weight = pooled.reshape(outputs, inputs)
    bias = (
        pick(rng, None, rng.integers(-min(3 * fan, 60_000), min(3 * fan, 60_000), outputs))
        if rng.random() < 0.95
        else np.full(outputs, 70_000)
    )
    if rng.random() < 0.1:
        return Recurrent(name, weight, weights(rng, outputs, outputs), cell, bias)
    if rng.random() < 0.1:
        return Dense(
            name, weight, cell, bias, None, rng.integers(0, int(pick(rng, 1, 4)), weight.shape)
        )
    return Dense(name, weight, cell, bias)


def draw(seed: int) -> tuple[ChipNetwork, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    while True:
        image = rng.random() < 0.7
        side = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
        shape: tuple[int, ...] = (
            (int(pick(rng, 1, 2, 3, 33)), *side) if image else (int(pick(rng, 1, 7, 32, 65)),)
        )
        bits = int(pick(rng, 1, 1, 1, 2, 8, 9, 16))
        layers: list[Layer] = []
        here = shape
        try:
            for level in range(int(rng.integers(1, 4))):
                layers.append(
                    layer(rng, f"layer{level}", here, 40 * (2**bits - 1 if level == 0 else 1))
                )
                here = layers[-1].output_shape
            if rng.random() < 0.3:
                last = layers[-1]
                fields = {name: getattr(last, name) for name in last.__dataclass_fields__}
                cell = Neuron(last.neuron.i_decay, last.neuron.v_decay, NON_SPIKING_VTH)
                layers[-1] = type(last)(**{**fields, "neuron": cell})
        except (ChipError, ValueError):
            continue  # a kernel larger than what is left of the image
        kind = "spikes" if layers[-1].neuron.spikes else "voltage"
        network = ChipNetwork(tuple(layers), InputCoding(shape, bits), Readout(kind))  # type: ignore[arg-type]
        size = (int(rng.integers(1, 4)), int(pick(rng, 1, 2, 9, 40)), *shape)
        active = rng.random(size) < pick(rng, 0.0, 0.05, 0.5, 1.0)
        return network, active * rng.integers(1, 2**bits, size)


def same(one: Recording, other: Recording) -> list[str]:
    found = [str(divergence) for divergence in compare(one, other)]
    for name, counts in one.event_counts.items():
        if not np.array_equal(counts, other.event_counts[name]):
            found.append(f"counts of {name}")
    return found + (
        [] if one.peak_sum == other.peak_sum else [f"peaks {one.peak_sum} {other.peak_sum}"]
    )


def cases(
    network: ChipNetwork, inputs: np.ndarray[Any, Any], recording: Recording
) -> dict[str, bool]:
    """Which of the arithmetic's corners a run has met."""
    layers = network.layers
    registers = {
        value
        for one in layers
        for register in (one.neuron.i_decay, one.neuron.v_decay)
        for value in register_range(register)
    }
    return {
        # Beyond one wrap u would have to jump by more than 2**23 between two steps.
        "wrap": any((np.abs(np.diff(u, axis=1)) > 2**23).any() for u in recording.u.values()),
        "clip": any((np.abs(v) == 2**23 - 1).any() for v in recording.v.values()),
        "tie": any(
            (
                recording.v[one.name] == 64 * register_array(one.neuron.vth_int, one.output_shape)
            ).any()
            for one in layers
            if register_range(one.neuron.vth_int)[0]
        ),
        "silent input": not inputs.any(),
        "all on": bool(inputs.all()),
        "one step": inputs.shape[1] == 1,
        "decay 0": 0 in registers,
        "decay 4096": 4096 in registers,
    }


def own_registers(
    network: ChipNetwork, rng: np.random.Generator, *, decays: tuple[tuple[int, int], ...]
) -> ChipNetwork:
    """The network with registers of each neuron or channel, near its own; `decays` are the ranges of current and voltage."""

    def spread(cell: Neuron, shape: tuple[int, ...]) -> Neuron:
        found: dict[str, Any] = {}
        for register, limits in zip(("i_decay", "v_decay"), decays, strict=True):
            value = getattr(cell, register)
            few = rng.integers(limits[0], limits[1] + 1, 3)
            choices = np.array([value, *few, *np.clip([value - 30, value + 30], *limits)])
            size = (shape[0],) if rng.random() < 0.3 else shape
            found[register] = rng.choice(choices, size)
        if cell.spikes:
            size = (shape[0],) if rng.random() < 0.3 else shape
            vth = np.asarray(cell.vth_int)
            found["vth_int"] = np.rint(vth.max() * rng.uniform(0.3, 1.7, size)).astype(np.int64)
            found["vth_int"] = np.clip(found["vth_int"], 0, 2**17 - 1)
        kept = [name for name in found if rng.random() < 0.8]
        return replace(cell, **{name: found[name] for name in kept})

    layers: list[Layer] = [
        replace(one, neuron=spread(one.neuron, one.output_shape)) for one in network.layers
    ]
    source = network.input
    if source.neuron is not None:
        source = replace(source, neuron=spread(source.neuron, source.shape))
    return replace(network, layers=tuple(layers), input=source)


def with_sign(
    network: ChipNetwork, inputs: Array, rng: np.random.Generator
) -> tuple[ChipNetwork, Array]:
    """The network with signed inputs, and half of its inputs negative."""
    signed = replace(network, input=replace(network.input, signed=True))
    return signed, np.asarray(inputs, dtype=np.int64) * rng.choice([-1, 1], inputs.shape)


def with_loops_and_delays(network: ChipNetwork, rng: np.random.Generator) -> ChipNetwork:
    """The network with half of its dense layers recurrent or delayed, by input or by synapse."""

    def changed(one: Layer) -> Layer:
        if type(one) is not Dense or one.delay_int is not None or rng.random() < 0.5:
            return one
        outputs, inputs = one.weight_int.shape
        kind, longest = rng.random(), int(pick(rng, 2, 8, 63))
        if kind < 0.4:
            back = weights(rng, outputs, outputs)
            return Recurrent(one.name, one.weight_int, back, one.neuron, one.bias_int)
        size = inputs if kind < 0.7 else (outputs, inputs)
        delay = np.broadcast_to(rng.integers(0, longest, size), (outputs, inputs))
        return replace(one, delay_int=delay)

    return replace(network, layers=tuple(map(changed, network.layers)))


def draw_any(seed: int) -> tuple[ChipNetwork, Array]:
    """Draw a network of `draw` and change it: loops, delays, registers of each neuron, inputs with a sign or driven by bias."""
    network, inputs = draw(seed)
    rng = np.random.default_rng([seed, 1])
    network = with_loops_and_delays(network, rng)
    if network.input.bits == 1 and rng.random() < 0.15:
        source = InputCoding(network.input.shape, neuron=neuron(rng, 900))
        network = replace(network, input=source)
        inputs = rng.integers(-300, 1500, inputs.shape)
    if rng.random() < 0.4:
        network = own_registers(network, rng, decays=((0, 4096), (0, 4096)))
    if network.input.neuron is None and rng.random() < 0.4:
        network, inputs = with_sign(network, inputs, rng)
    return network, inputs
