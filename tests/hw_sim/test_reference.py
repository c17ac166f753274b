"""`simulate` against a walk over single neurons in plain Python, and everything it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    compare,
)
from knarr.hw_sim import simulate as simulate_any
from knarr.hw_sim.network import Layer

Array = npt.NDArray[Any]
simulate = partial(simulate_any, engine="reference")
ALL = ("output", "spikes", "v")
M = 8_388_608


# --- the oracle: Python ints, one neuron after the other


@dataclass
class Walk:
    """What the walk saw of one layer: [sample][step][neuron], neurons in (C, H, W) order."""

    spikes: list[list[list[int]]] = field(default_factory=list)
    v: list[list[list[int]]] = field(default_factory=list)
    peak: int = 0
    wraps_of_u: int = 0
    wraps_of_sum: int = 0
    clips_of_v: int = 0


def taps(layer: Layer) -> list[list[tuple[int, int]]]:
    """For each output neuron its (flat input index, weight) pairs."""
    weight = layer.weight_int.tolist()
    if isinstance(layer, Dense):
        return [list(enumerate(row)) for row in weight]
    channels, height, width = layer.input_shape
    outputs, in_group, kernel_y, kernel_x = layer.weight_int.shape
    (stride_y, stride_x), (pad_y, pad_x), (step_y, step_x) = (
        layer.stride,
        layer.padding,
        layer.dilation,
    )
    high = (height + 2 * pad_y - step_y * (kernel_y - 1) - 1) // stride_y + 1
    wide = (width + 2 * pad_x - step_x * (kernel_x - 1) - 1) // stride_x + 1
    found = []
    for o, y, x in product(range(outputs), range(high), range(wide)):
        first = o // (outputs // layer.groups) * (channels // layer.groups)
        pairs = []
        for c, j, i in product(range(in_group), range(kernel_y), range(kernel_x)):
            at_y, at_x = y * stride_y + j * step_y - pad_y, x * stride_x + i * step_x - pad_x
            if 0 <= at_y < height and 0 <= at_x < width:
                pairs.append((((first + c) * height + at_y) * width + at_x, weight[o][c][j][i]))
        found.append(pairs)
    return found


def shrink(x: int, register: int) -> int:
    kept = abs(x) * (4096 - register) // 4096
    return kept if x > 0 else -kept


def walk_layer(layer: Layer, events: list[list[list[int]]], reset: bool) -> Walk:
    seen, wiring = Walk(), taps(layer)
    bias = [0] * len(layer.weight_int) if layer.bias_int is None else layer.bias_int.tolist()
    per_channel = len(wiring) // len(bias)
    u, v = [0] * len(wiring), [0] * len(wiring)
    for sample in events:
        if reset:
            u, v = [0] * len(wiring), [0] * len(wiring)
        all_spikes, all_v = [], []
        for frame in sample:
            spikes = []
            for n, pairs in enumerate(wiring):
                a = sum(frame[source] * weight for source, weight in pairs)
                if isinstance(layer, Conv):
                    wrapped = (a + M) % (2 * M) - M
                    seen.wraps_of_sum += wrapped != a
                    a = wrapped
                seen.peak = max(seen.peak, abs(a))
                new_u = shrink(u[n], layer.neuron.i_decay) + 64 * a
                if new_u > M:
                    u[n] = new_u - 2 * M
                elif new_u <= -M:
                    u[n] = new_u + 2 * M
                else:
                    u[n] = new_u
                seen.wraps_of_u += u[n] != new_u
                free = shrink(v[n], layer.neuron.v_decay) + u[n] + 64 * bias[n // per_channel]
                v[n] = max(1 - M, min(M - 1, free))
                seen.clips_of_v += v[n] != free
                spikes.append(int(v[n] > 64 * layer.neuron.vth_int))
                if spikes[-1]:
                    v[n] = 0
            all_spikes.append(spikes)
            all_v.append(list(v))
        seen.spikes.append(all_spikes)
        seen.v.append(all_v)
    return seen


def walk(network: ChipNetwork, inputs: Array, reset: bool) -> list[Walk]:
    events = inputs.reshape(*inputs.shape[:2], -1).astype(int).tolist()
    walks = []
    for layer in network.layers:
        walks.append(walk_layer(layer, events, reset))
        events = walks[-1].spikes
    return walks


# --- the networks


def weights(rng: np.random.Generator, *shape: int, low: int = -40, high: int = 80) -> Array:
    return rng.integers(low, high, shape)


def network(layers: list[Layer], shape: tuple[int, ...], bits: int = 1) -> ChipNetwork:
    kind = "spikes" if layers[-1].neuron.spikes else "voltage"
    return ChipNetwork(tuple(layers), InputCoding(shape, bits), Readout(kind))  # type: ignore[arg-type]


def dense(rng: np.random.Generator) -> ChipNetwork:
    cuba = Neuron(i_decay=1365, v_decay=301, vth_int=90)
    return network(
        [Dense("a", weights(rng, 7, 9), cuba), Dense("b", weights(rng, 4, 7), cuba)],
        (9,),
    )


def dense_bias(rng: np.random.Generator) -> ChipNetwork:
    first = Dense(
        "a", weights(rng, 6, 5), Neuron(4096, 700, 120), bias_int=np.array([40, -30, 5, 0, 150, 1])
    )
    last = Dense(
        "b",
        weights(rng, 3, 6),
        Neuron(2048, 4095, NON_SPIKING_VTH),
        bias_int=np.array([-7, 0, 4095]),
    )
    return network([first, last], (5,))


def one_conv(**geometry: Any) -> Any:
    def build(rng: np.random.Generator) -> ChipNetwork:
        groups = geometry.get("groups", 1)
        kernel = weights(rng, 4, 4 // groups, 3, 2)
        bias = weights(rng, 4, low=-20, high=40)
        return network(
            [Conv("c", kernel, Neuron(2000, 500, 150), (4, 7, 6), **geometry, bias_int=bias)],
            (4, 7, 6),
        )

    return build


def conv_dense(rng: np.random.Generator) -> ChipNetwork:
    box = Neuron(i_decay=4096, v_decay=1024, vth_int=130)
    first = Conv("c", weights(rng, 3, 2, 3, 3), box, (2, 6, 5), (2, 1), (1, 0))
    second = Conv("d", weights(rng, 2, 3, 2, 2), box, first.output_shape, dilation=(1, 2))
    readout = Neuron(i_decay=3000, v_decay=200, vth_int=NON_SPIKING_VTH)
    return network(
        [first, second, Dense("e", weights(rng, 5, prod(second.output_shape)), readout)], (2, 6, 5)
    )


def graded(rng: np.random.Generator) -> ChipNetwork:
    return network(
        [
            Dense("a", weights(rng, 5, 4), Neuron(1, 4095, 9000)),
            Dense("b", weights(rng, 3, 5), Neuron(4095, 1, 50)),
        ],
        (4,),
        bits=8,
    )


def overflowing_dense(rng: np.random.Generator) -> ChipNetwork:
    """Sums beyond 2**17 turn u over; a voltage that hardly leaks saturates."""
    return network(
        [
            Dense("a", weights(rng, 6, 8, low=-254, high=254), Neuron(500, 4, 100_000)),
            Dense("b", weights(rng, 4, 6), Neuron(100, 100, 60)),
        ],
        (8,),
        bits=8,
    )


def overflowing_conv(rng: np.random.Generator) -> ChipNetwork:
    """16-bit payloads take the sum itself beyond 24 bits."""
    first = Conv(
        "c", weights(rng, 3, 2, 3, 3, low=-128, high=128), Neuron(2000, 900, 40_000), (2, 5, 5)
    )
    return network(
        [first, Dense("d", weights(rng, 3, 27, low=-60, high=60), Neuron(3000, 300, 120))],
        (2, 5, 5),
        bits=16,
    )


CASES = {
    "dense": dense,
    "bias": dense_bias,
    "plain": one_conv(),
    "stride": one_conv(stride=(2, 3)),
    "padding": one_conv(padding=(1, 2)),
    "dilation": one_conv(dilation=(2, 3)),
    "groups": one_conv(groups=2),
    "depthwise": one_conv(groups=4, padding=(2, 1)),
    "geometry": one_conv(stride=(3, 2), padding=(2, 1), dilation=(2, 2), groups=2),
    "conv_dense": conv_dense,
    "graded": graded,
    "overflowing_dense": overflowing_dense,
    "overflowing_conv": overflowing_conv,
}
SEEDS = (0, 1)


def draw(name: str, seed: int, samples: int = 3, timesteps: int = 9) -> tuple[ChipNetwork, Array]:
    rng = np.random.default_rng((seed, sorted(CASES).index(name)))
    built = CASES[name](rng)
    shape = (samples, timesteps, *built.input.shape)
    if built.input.bits == 1:
        return built, (rng.random(shape) < 0.4).astype(np.int64)
    return built, rng.integers(0, 2**built.input.bits, shape)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_walk(name: str, seed: int, reset: bool) -> None:
    net, inputs = draw(name, seed)
    got = simulate(net, inputs, record=ALL, reset=reset)
    walks = walk(net, inputs, reset)
    assert (
        set(got.spikes)
        == set(got.v)
        == set(got.event_counts)
        == {layer.name for layer in net.layers}
    )
    for layer, expected in zip(net.layers, walks, strict=True):
        shape = (*inputs.shape[:2], *layer.output_shape)
        spikes, v = got.spikes[layer.name], got.v[layer.name]
        assert spikes.dtype == np.uint8
        assert v.dtype == np.int64
        np.testing.assert_array_equal(v, np.reshape(expected.v, shape), strict=True)
        np.testing.assert_array_equal(spikes, np.reshape(expected.spikes, shape))
        assert spikes.shape == shape
        assert (
            got.event_counts[layer.name].tolist() == spikes.reshape(*shape[:2], -1).sum(2).tolist()
        )
        assert got.peak_sum[layer.name] == expected.peak
        assert len(np.unique(v)) > 10  # nothing is equal because nothing happened
        assert bool(spikes.any()) == layer.neuron.spikes
        assert not spikes.all()
    last = walks[-1].v if net.readout.kind == "voltage" else walks[-1].spikes
    assert got.output.dtype == np.int64
    np.testing.assert_array_equal(got.output, np.array(last), strict=True)
    assert net.readout.decide(got.output).tolist() == [
        max(range(len(sums)), key=sums.__getitem__)
        for sums in ([sum(column) for column in zip(*sample, strict=True)] for sample in last)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cases_reach_every_overflow(seed: int) -> None:
    of_dense = walk(*draw("overflowing_dense", seed), reset=True)[0]
    of_conv = walk(*draw("overflowing_conv", seed), reset=True)[0]
    assert of_dense.wraps_of_u > 5
    assert of_dense.clips_of_v > 5
    assert of_conv.wraps_of_sum > 5
    assert of_conv.wraps_of_u > 5
    assert of_dense.wraps_of_sum == 0  # Dense sums have no such wrap


def test_reset_makes_a_difference() -> None:
    for name in CASES:
        net, inputs = draw(name, 0)
        assert compare(
            simulate(net, inputs, record=ALL), simulate(net, inputs, record=ALL, reset=False)
        ), name


@pytest.mark.parametrize("name", CASES)
def test_a_batch_equals_its_samples_one_by_one(name: str) -> None:
    net, inputs = draw(name, 3, samples=4)
    batch = simulate(net, inputs, record=ALL)
    for sample in range(4):
        alone = simulate(net, inputs[sample : sample + 1], record=ALL)
        for kind in ("spikes", "v", "event_counts"):
            for layer, array in getattr(alone, kind).items():
                np.testing.assert_array_equal(
                    array[0], getattr(batch, kind)[layer][sample], strict=True
                )
        np.testing.assert_array_equal(alone.output[0], batch.output[sample], strict=True)


def test_without_reset_samples_are_one_long_sample() -> None:
    net, inputs = draw("conv_dense", 0)
    long = simulate(net, inputs.reshape(1, -1, *inputs.shape[2:]), record=ALL)
    parts = simulate(net, inputs, record=ALL, reset=False)
    np.testing.assert_array_equal(parts.output.reshape(long.output.shape), long.output)
    for layer, v in parts.v.items():
        np.testing.assert_array_equal(v.reshape(long.v[layer].shape), long.v[layer])


def test_dtype_of_inputs_and_record_change_nothing() -> None:
    net, inputs = draw("dense", 0)
    everything = simulate(net, inputs, record=ALL)
    for dtype in (np.bool_, np.uint8, np.int8, np.uint64):
        got = simulate(net, inputs.astype(dtype), record=("output",))
        np.testing.assert_array_equal(got.output, everything.output, strict=True)
        assert not got.spikes
        assert not got.v
        assert all(
            np.array_equal(got.event_counts[k], counts)
            for k, counts in everything.event_counts.items()
        )
        assert got.peak_sum == everything.peak_sum
    assert simulate(net, inputs, engine="reference", threads=1, timesteps=9).engine == "reference"


def test_inputs_are_left_alone() -> None:
    net, inputs = draw("overflowing_conv", 0)
    before = inputs.copy()
    simulate(net, inputs)
    np.testing.assert_array_equal(inputs, before)


def test_columns_are_not_shifted() -> None:
    """A spike in step t crosses two layers within step t."""
    one = Neuron(i_decay=4096, v_decay=4096, vth_int=10)
    net = network([Dense("a", np.array([[11]]), one), Dense("b", np.array([[11]]), one)], (1,))
    assert simulate(net, [[[0], [1], [0], [1]]]).output.tolist() == [[[0], [1], [0], [1]]]


def test_flatten_goes_channel_row_column() -> None:
    through = Conv(
        "c", np.eye(2, dtype=np.int64)[:, :, None, None] * 11, Neuron(4096, 4096, 10), (2, 2, 3)
    )
    number = Dense("d", np.arange(12)[None], Neuron(4096, 4096, NON_SPIKING_VTH))
    net = network([through, number], (2, 2, 3))
    inputs = np.eye(12, dtype=np.int64).reshape(1, 12, 2, 2, 3)
    assert (simulate(net, inputs).output[0, :, 0] // 64).tolist() == list(range(12))


# --- refusals


def plain() -> ChipNetwork:
    return draw("dense", 0)[0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.full((1, 2, 9), 0.5), r"^inputs: 0.5 among float64, the chip takes integers; encode"),
        (np.full((1, 2, 9), 0.5, dtype=np.float32), "0.5 among float32"),
        (np.full((1, 2, 9), "1"), "dtype <U1"),
        (np.ones((1, 2, 9), dtype=object), "dtype object"),
        (np.ones((1, 2, 8), dtype=int), r"shape \(1, 2, 8\), needs \(samples, timesteps, 9\)"),
        (np.ones((2, 9), dtype=int), r"shape \(2, 9\), needs"),
        (np.ones((1, 2, 9, 1), dtype=int), r"shape \(1, 2, 9, 1\), needs"),
        (np.ones((1, 2, 3, 3), dtype=int), r"shape \(1, 2, 3, 3\), needs"),
        (np.ones((0, 2, 9), dtype=int), r"\(0, 2, 9\) holds nothing; give at least one sample"),
        (np.ones((1, 0, 9), dtype=int), r"\(1, 0, 9\) holds nothing"),
        (np.full((1, 2, 9), 2), r"values 2\.\.2, 1-bit input takes 0\.\.1; clip counts to spikes"),
        (np.full((1, 2, 9), -1), r"values -1\.\.-1, 1-bit"),
        (np.full((1, 2, 9), 2**64 - 1, dtype=np.uint64), "values 18446744073709551615"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Array, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        simulate(plain(), inputs)


def test_graded_range_ends_at_its_bits() -> None:
    net = draw("graded", 0)[0]
    simulate(net, np.full((1, 1, 4), 255))
    with pytest.raises(ChipError, match=r"256\.\.256, 8-bit input takes 0\.\.255"):
        simulate(net, np.full((1, 1, 4), 256))
    with pytest.raises(ChipError, match=r"-1\.\.0, 8-bit"):
        simulate(net, [[[0, 0, 0, -1]]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"record": ("output", "w")},
            r"record: unknown \['w'\], choose from \['output', 'spikes', 'v', 'u'\]",
        ),
        ({"engine": "quantum"}, "engine: 'quantum' does not exist, choose"),
        ({"threads": 2}, "threads: 2 asked for"),
        ({"threads": 0}, "threads: 0, needs a whole number from 1"),
        ({"timesteps": 3}, "timesteps: 3 asked for, the inputs have 2"),
        ({"timesteps": 0}, "timesteps: 0, needs a whole number from 1"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChipError, match=message):
        simulate(plain(), np.ones((1, 2, 9), dtype=int), **({"engine": "reference"} | options))


def test_sums_that_float64_cannot_hold_are_refused() -> None:
    huge = Dense("huge", np.full((1, 2**10), 2**31 - 1), Neuron(4096, 4096, NON_SPIKING_VTH))
    with pytest.raises(ChipError, match=r"layer 'huge': sums up to \d+ are not exact"):
        simulate(network([huge], (2**10,), bits=16), np.full((1, 1, 2**10), 2**16 - 1))


BOX = Neuron(4096, 0, 10)
SILENT = Neuron(4096, 0, NON_SPIKING_VTH)
ONES = np.ones((2, 3), dtype=int)
KERNEL = np.ones((2, 2, 3, 3), dtype=int)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: network([Dense("x", ONES, BOX)], (4,)),
            "layer 'x': receives 4 values, has 3 inputs",
        ),
        (lambda: network([Dense("x", ONES, BOX)] * 2, (3,)), r"names repeat: \['x', 'x'\]"),
        (lambda: ChipNetwork((), InputCoding((3,)), Readout("spikes")), "network: no layers"),
        (
            lambda: ChipNetwork((Dense("x", ONES, BOX),), InputCoding((3,)), Readout("voltage")),
            "threshold 10 does not go with a voltage readout",
        ),
        (
            lambda: ChipNetwork((Dense("x", ONES, SILENT),), InputCoding((3,)), Readout("spikes")),
            "threshold 262143 does not go with a spikes readout",
        ),
        (
            lambda: network([Conv("x", KERNEL, BOX, (2, 5, 5))], (2, 5, 6)),
            r"receives \(2, 5, 6\), was built for \(2, 5, 5\)",
        ),
        (lambda: Dense("x", ONES * 1.0, BOX), "weight_int has dtype float64"),
        (lambda: Dense("x", ONES > 0, BOX), "weight_int has dtype bool"),
        (lambda: Dense("x", np.ones(3, dtype=int), BOX), r"shape \(3,\), needs 2"),
        (lambda: Dense("x", np.ones((0, 3), dtype=int), BOX), r"shape \(0, 3\), needs 2 non-empty"),
        (lambda: Dense("x", ONES * 2**31, BOX), "does not fit 32 bits"),
        (
            lambda: Dense("x", ONES, BOX, np.ones(3, dtype=int)),
            r"bias_int has shape \(3,\), needs \(2,\)",
        ),
        (lambda: Dense("x", ONES, BOX, np.ones(2)), "bias_int has dtype float64"),
        (
            lambda: Conv("x", KERNEL, BOX, (3, 5, 5)),
            "3 input channels and 2 output channels do not",
        ),
        (lambda: Conv("x", KERNEL, BOX, (2, 5, 5), groups=2), "in 2 groups"),
        (lambda: Conv("x", KERNEL, BOX, (6, 5, 5), groups=3), "in 3 groups"),
        (lambda: Conv("x", KERNEL, BOX, (2, 5, 5), groups=0), "in 0 groups"),
        (lambda: Conv("x", KERNEL, BOX, (2, 2, 5)), "kernel is larger than its padded input"),
        (lambda: Conv("x", KERNEL, BOX, (2, 5, 5), dilation=(1, 3)), "kernel is larger"),
        (
            lambda: Conv("x", KERNEL, BOX, (2, 5, 5), stride=(0, 1)),
            "stride and dilation start at 1",
        ),
        (lambda: Conv("x", KERNEL, BOX, (2, 5, 5), padding=(0, -1)), "padding at 0"),
        (lambda: Neuron(4097, 0, 10, "n"), r"neuron 'n': i_decay = 4097, allowed 0\.\.4096"),
        (lambda: Neuron(0, -1, 10), "v_decay = -1, allowed"),
        (lambda: Neuron(0, 0, 2**18), r"vth_int = 262144, allowed 0\.\.262143"),
        (lambda: Neuron(0, 0.5, 1), r"v_decay = 0\.5 is not an integer"),  # type: ignore[arg-type]
        (lambda: Neuron(True, 0, 1), "i_decay = True is not an integer"),
        (lambda: InputCoding((3, 3)), r"shape \(3, 3\) is neither"),
        (lambda: InputCoding((0,)), r"shape \(0,\) is neither"),
        (lambda: InputCoding((3,), bits=17), r"17 bits, allowed 1\.\.16"),
        (lambda: InputCoding((3,), bits=0), "0 bits"),
    ],
)
def test_networks_that_cannot_be_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        build()


def test_frozen_arrays_are_copies_that_cannot_be_written() -> None:
    weight, bias = ONES.copy(), np.array([1, 2])
    for layer in (
        Dense("x", weight, BOX, bias),
        Conv("x", weight[:, :, None, None], BOX, (3, 4, 4), bias_int=bias),
    ):
        for array in (layer.weight_int, layer.bias_int):
            assert array is not None
            assert array.dtype == np.int32
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 5
    weight[:] = 99
    bias[:] = 99
    assert layer.weight_int.max() == 1
    assert layer.bias_int is not None
    assert layer.bias_int.tolist() == [1, 2]
    with pytest.raises(AttributeError, match="cannot assign"):
        layer.name = "y"  # type: ignore[misc]
