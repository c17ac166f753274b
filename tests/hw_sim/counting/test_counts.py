"""Counts of chip networks: against a walk in plain Python, under every invariance, and never a silent zero."""

from __future__ import annotations

import json
from dataclasses import fields
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.hw_sim.counting.chip import count_events
from knarr.hw_sim.counting.count import count
from knarr.hw_sim.counting.counts import LayerCounts, LedgerRow, OperationCounts
from knarr.hw_sim.counting.fan_out import FanOut
from knarr.hw_sim.counting.tally import LayerTally
from knarr.hw_sim.errors import ChipError, CountError
from knarr.hw_sim.network import (
    NON_SPIKING_VTH,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Layer,
    Neuron,
    Readout,
)
from knarr.hw_sim.recording import Recording
from knarr.hw_sim.simulation import simulate

Array = npt.NDArray[Any]
SHAPE = (2, 6, 5)


def weights(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.int32]:
    """-2..3, zeros among them."""
    return rng.integers(-2, 4, shape, dtype=np.int32)


def network(rng: np.random.Generator, *, bits: int = 1, vth: int = 2) -> ChipNetwork:
    """Conv with stride, padding, dilation and groups, then two Dense layers, the last a voltage readout."""
    neuron = Neuron(i_decay=4096, v_decay=1024, vth_int=vth)
    return ChipNetwork(
        layers=(
            Conv(
                "conv",
                weights(rng, 4, 1, 3, 2),
                Neuron(i_decay=4096, v_decay=1024, vth_int=vth, name="lif1"),
                SHAPE,
                stride=(2, 1),
                padding=(2, 1),
                dilation=(2, 1),
                groups=2,
                bias_int=np.array([1, 0, 2, 0], dtype=np.int32),
            ),
            Dense("fc", weights(rng, 7, 4 * 3 * 6), neuron),
            Dense("readout", weights(rng, 3, 7), Neuron(4096, 100, NON_SPIKING_VTH)),
        ),
        input=InputCoding(SHAPE, bits),
        readout=Readout("voltage"),
        dt_s=0.001,
    )


def targets(layer: Layer, position: tuple[int, ...]) -> list[int]:
    """Weights through which one event at `position` acts, output by output."""
    if isinstance(layer, Dense):
        return [int(row[position[0]]) for row in layer.weight_int]
    channel, row, column = position
    outputs, in_group, kernel_y, kernel_x = layer.weight_int.shape
    found = []
    for o, y, x in product(*map(range, layer.output_shape)):
        if o // (outputs // layer.groups) != channel // in_group:
            continue
        for j_y, j_x in product(range(kernel_y), range(kernel_x)):
            if (
                y * layer.stride[0] + j_y * layer.dilation[0] - layer.padding[0] == row
                and x * layer.stride[1] + j_x * layer.dilation[1] - layer.padding[1] == column
            ):
                found.append(int(layer.weight_int[o, channel % in_group, j_y, j_x]))
    return found


def walk_counts(layer: Layer, events: Array) -> dict[str, int]:
    """acc, mac, acc_nonzero, mac_nonzero of all samples, event by event."""
    sums = {"acc": 0, "mac": 0, "acc_nonzero": 0, "mac_nonzero": 0}
    if isinstance(layer, Dense):
        events = events.reshape(*events.shape[:2], -1)
    for sample, t in product(*map(range, events.shape[:2])):
        frame = events[sample, t]
        kind = "acc" if set(np.unique(frame).tolist()) <= {-1, 0, 1} else "mac"
        for position in np.argwhere(frame):
            weights = targets(layer, tuple(position.tolist()))
            sums[kind] += len(weights)
            sums[f"{kind}_nonzero"] += sum(weight != 0 for weight in weights)
    return sums


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 3),
    timesteps=st.integers(1, 4),
    graded=st.booleans(),
)
def test_counts_are_the_walk(seed: int, samples: int, timesteps: int, graded: bool) -> None:
    rng = np.random.default_rng(seed)
    net = network(rng, bits=3 if graded else 1)
    inputs = rng.integers(0, 2, (samples, timesteps, *SHAPE))
    if graded:  # about half of the frames
        inputs *= rng.integers(1, 4, (samples, timesteps, 1, 1, 1))
    recording = simulate(net, inputs, record=("spikes",))
    counts = count(net, inputs)
    assert (counts.kind, counts.samples, counts.timesteps) == ("snn", samples, timesteps)
    assert counts == count_events(net, inputs, recording)
    assert list(counts.layers) == ["conv", "fc", "readout"]
    events: Array = inputs
    for layer in net.layers:
        found = counts.layers[layer.name]
        for name, walked in walk_counts(layer, events).items():
            assert getattr(found, name) == Fraction(walked, samples), (layer.name, name)
        neurons = prod(layer.output_shape)
        assert found.neuron_updates == timesteps * neurons
        assert found.bias_adds == (timesteps * neurons if layer.name == "conv" else 0)
        assert found.spikes == Fraction(int(recording.spikes[layer.name].sum()), samples)
        assert found.acc + found.mac <= found.dense_valid <= found.dense_padded
        events = recording.spikes[layer.name]
    for field in fields(LayerCounts):
        assert getattr(counts.total, field.name) == sum(
            getattr(layer, field.name) for layer in counts.layers.values()
        )


def busy() -> tuple[ChipNetwork, Array]:
    """A network and inputs in which every layer that can fire does."""
    rng = np.random.default_rng(7)
    net = network(rng)
    inputs = rng.integers(0, 2, (6, 5, *SHAPE))
    counts = count(net, inputs)
    assert all(counts.layers[name].spikes > 0 for name in ("conv", "fc"))
    assert all(layer.acc > layer.acc_nonzero > 0 for layer in counts.layers.values())
    assert counts.layers["conv"].dense_valid < counts.layers["conv"].dense_padded
    return net, inputs


def test_literal_counts_of_one_event() -> None:
    """k3 s1 p1 on 3x3, 2 output channels: an event costs 18 in the middle and 8 in a corner."""
    layer = Conv(
        "conv",
        np.ones((2, 1, 3, 3), dtype=np.int32),
        Neuron(4096, 0, 1000),
        (1, 3, 3),
        padding=(1, 1),
        bias_int=np.ones(2, dtype=np.int32),
    )
    net = ChipNetwork((layer,), InputCoding((1, 3, 3)), Readout("spikes"))
    inputs = np.zeros((2, 3, 1, 3, 3), dtype=np.int64)
    inputs[0, 1, 0, 1, 1] = 1
    inputs[1, 2, 0, 0, 2] = 1
    assert count(net, inputs).layers["conv"] == LayerCounts(
        acc=Fraction(18 + 8, 2),
        mac=Fraction(0),
        acc_nonzero=Fraction(13),
        mac_nonzero=Fraction(0),
        dense_valid=Fraction(3 * 2 * 49),
        dense_padded=Fraction(3 * 2 * 81),
        bias_adds=Fraction(3 * 18),
        neuron_updates=Fraction(3 * 18),
        spikes=Fraction(0),
        events=Fraction(1),
        touched_updates=Fraction(3 * 18),
    )


def test_a_third_is_exactly_a_third() -> None:
    net = ChipNetwork(
        (Dense("fc", np.ones((1, 1), dtype=np.int32), Neuron(4096, 0, 9)),),
        InputCoding((1,)),
        Readout("spikes"),
    )
    counts = count(net, np.array([1, 0, 0]).reshape(3, 1, 1))
    assert counts.total.acc == Fraction(1, 3)
    assert counts.to_json()["total"]["acc"] == 1 / 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("frame", "acc", "mac", "field"),
    [
        ([0, 1, 1], 2, 0, "binary"),
        ([0, -1, 1], 2, 0, "signed"),
        ([0, -1, 0], 1, 0, "signed"),
        ([0, 2, 1], 0, 2, "graded"),
        ([0, 2, 2], 0, 2, "graded"),
        ([0, -1, 2], 0, 2, "graded"),
        ([0, 0.5, 1], 0, 2, "graded"),
        ([0.0, 1.0, 0.0], 1, 0, "binary"),
        ([False, True, False], 1, 0, "binary"),
    ],
)
def test_class_of_a_frame(frame: list[float], acc: int, mac: int, field: str) -> None:
    tally = delivered([[frame]])
    assert (tally.columns["acc"], tally.columns["mac"]) == (acc, mac)
    assert tally.frames == {
        name: int(name == field) for name in ("binary", "signed", "graded", "silent")
    }


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int8, np.uint64, np.int64, np.float32, np.float64]
)
def test_the_class_does_not_depend_on_the_dtype(dtype: type[np.generic]) -> None:
    tally = delivered(np.array([[[1, 0, 1], [0, 0, 0]]]).astype(dtype))
    assert (tally.columns["acc"], tally.per_step) == (2, [2, 0])
    assert tally.frames == {"binary": 1, "signed": 0, "graded": 0, "silent": 1}


def test_one_graded_frame_does_not_make_its_neighbours_graded() -> None:
    """Frames of one batch, one sample: graded, binary, silent, signed."""
    tally = delivered([[[3, 1], [1, 1], [0, 0], [-1, 0]]])
    assert tally.per_step == [2, 2, 0, 1]
    assert (tally.columns["mac"], tally.columns["acc"], tally.columns["signed"]) == (2, 3, 1)
    assert tally.note == "4 frames: 1 binary, 1 signed (counted as ACC), 1 graded (MAC), 1 silent"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(CountError, match="NaN or infinity"):
        delivered([[[value, 1.0]]])
    with pytest.raises(CountError, match="dtype"):
        delivered([[["1"]]])


def delivered(events: npt.ArrayLike) -> LayerTally:
    """(samples, timesteps, features) into one output."""
    frames = np.asarray(events)
    tally = LayerTally("fc")
    tally.begin(len(frames))
    alive = np.ones(frames.shape[:2], dtype=np.bool_)
    tally.deliver(FanOut(np.ones((1, frames.shape[2]))), frames, alive, 0)
    return tally


def test_sums_of_one_frame_stay_exact_beyond_float32() -> None:
    width = 2**12 + 1
    tally = LayerTally("fc")
    tally.begin(1)
    frame = np.ones((1, 1, width), dtype=np.uint8)
    tally.deliver(
        FanOut(np.ones((width, width), dtype=np.int8)), frame, np.ones((1, 1), dtype=np.bool_), 0
    )
    assert tally.columns["acc"] == tally.columns["acc_nonzero"] == width**2 > 2**24


def test_sums_stay_exact_beyond_float32() -> None:
    """2**24 + 1 events in a step: float32 would lose the last one."""
    width = 2**12 + 1
    inputs = np.ones((1, width, width), dtype=np.uint8)
    net = ChipNetwork(
        (Dense("fc", np.ones((1, width), dtype=np.int32), Neuron(4096, 0, NON_SPIKING_VTH)),),
        InputCoding((width,)),
        Readout("voltage"),
    )
    silent = np.zeros((1, width, 1), dtype=np.uint8)
    counts = count_events(
        net, inputs, Recording(np.zeros((1, width, 1), dtype=np.int64), {"fc": silent})
    )
    assert counts.total.acc == width**2


def test_batch_size_and_order_do_not_matter() -> None:
    net, inputs = busy()
    whole = count(net, inputs)
    order = np.random.default_rng(1).permutation(len(inputs))
    assert count(net, inputs[order]) == whole
    parts = [inputs[:1], inputs[1:5], inputs[5:]]
    for name, layer in whole.layers.items():
        for field in fields(LayerCounts):
            pieces = [
                getattr(count(net, part).layers[name], field.name) * len(part) for part in parts
            ]
            assert sum(pieces) / len(inputs) == getattr(layer, field.name), (name, field.name)


def test_mixing_graded_and_binary_samples_changes_neither() -> None:
    rng = np.random.default_rng(3)
    net = network(rng, bits=4)
    binary = rng.integers(0, 2, (2, 4, *SHAPE))
    graded = binary * 5
    both = count(net, np.concatenate([binary, graded])).layers["conv"]
    assert both.acc * 2 == count(net, binary).layers["conv"].acc
    assert both.mac * 2 == count(net, graded).layers["conv"].mac
    assert both.acc == both.mac > 0


def test_memory_layout_does_not_matter() -> None:
    net, inputs = busy()
    assert count(net, np.asfortranarray(inputs)) == count(net, inputs)


def test_the_ledger_names_everything() -> None:
    net, inputs = busy()
    counts = count(net, inputs)
    rows = {row.name: (row.operation, row.status) for row in counts.ledger}
    assert rows == {
        "conv": ("Conv", "counted"),
        "conv.bias": ("Bias", "counted"),
        "lif1": ("CUBA", "counted"),
        "fc.flatten": ("Flatten", "free"),
        "fc": ("Dense", "counted"),
        "fc.neuron": ("CUBA", "counted"),
        "readout": ("Dense", "counted"),
        "readout.neuron": ("CUBA", "counted"),
        "readout.output": ("Readout", "free"),
    }
    assert len(counts.ledger) == len(rows)


def test_a_silent_network_costs_updates_and_says_that_it_saw_silence() -> None:
    rng = np.random.default_rng(0)
    net = network(rng)
    inputs = np.zeros((2, 3, *SHAPE), dtype=np.uint8)
    counts = count(net, inputs)
    assert counts.layers["conv"].acc == 0
    assert counts.total.neuron_updates == 3 * (4 * 3 * 6 + 7 + 3)
    assert counts.total.bias_adds == 3 * 4 * 3 * 6
    assert "6 frames: 0 binary" in counts.ledger[0].note
    assert "6 silent" in counts.ledger[0].note


def test_json_has_the_same_names() -> None:
    net, inputs = busy()
    counts = count(net, inputs)
    loaded = json.loads(json.dumps(counts.to_json()))
    assert loaded["layers"]["fc"]["acc"] == float(counts.layers["fc"].acc) > 0
    assert set(loaded["total"]) == {field.name for field in fields(LayerCounts)}
    assert (loaded["samples"], loaded["timesteps"], loaded["kind"]) == (6, 5, "snn")
    assert loaded["total_refused"] is None
    assert loaded["ledger"][0]["status"] == "counted"


def one_layer(**changes: int) -> LayerCounts:
    values: dict[str, int] = {field.name: 0 for field in fields(LayerCounts)}
    values |= {
        "acc": 5,
        "mac": 2,
        "acc_nonzero": 4,
        "mac_nonzero": 1,
        "dense_valid": 7,
        "dense_padded": 9,
    } | changes
    return LayerCounts(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", ["unsupported", "not executed"])
def test_a_refused_row_refuses_the_total_by_name(status: str) -> None:
    ledger = (LedgerRow("fc", "Dense", "counted"), LedgerRow("lstm1", "LSTM", status, "no rule"))  # type: ignore[arg-type]
    counts = OperationCounts({"fc": one_layer()}, ledger, 1, 1, "ann")
    with pytest.raises(CountError, match=r"'lstm1' \(LSTM\): .*no rule"):
        _ = counts.total
    assert counts.to_json()["total"] is None
    assert "lstm1" in str(counts.to_json()["total_refused"])


@pytest.mark.parametrize("status", ["counted", "folded", "free"])
def test_the_other_rows_do_not(status: str) -> None:
    ledger = (LedgerRow("fc", "Dense", "counted"), LedgerRow("x", "X", status))  # type: ignore[arg-type]
    assert OperationCounts({"fc": one_layer()}, ledger, 1, 1, "ann").total == one_layer()


def test_nothing_counted_is_no_zero() -> None:
    with pytest.raises(CountError, match="no layer that is counted"):
        _ = OperationCounts({}, (LedgerRow("relu", "Relu", "free"),), 1, 1, "ann").total


def test_counts_need_a_row() -> None:
    with pytest.raises(CountError, match="'fc': has counts but no counted row"):
        OperationCounts({"fc": one_layer()}, (LedgerRow("fc", "Dense", "free"),), 1, 1, "ann")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acc": -1}, "acc: -1"),
        ({"spikes": 0.5}, "spikes: 0.5 is not an exact number"),
        ({"acc_nonzero": 6}, "acc_nonzero: 6 > 5"),
        ({"mac_nonzero": 3}, "mac_nonzero: 3 > 2"),
        ({"dense_valid": 10}, "dense_valid: 10 > 9"),
        ({"dense_valid": 6}, "acc \\+ mac: 7 events > 6"),
    ],
)
def test_impossible_counts_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(CountError, match=message):
        one_layer(**changes)


def test_what_count_refuses() -> None:
    net, inputs = busy()
    with pytest.raises(
        CountError, match=r"object cannot be counted, only a ChipNetwork or a nir\.NIRGraph"
    ):
        count(object(), inputs)
    with pytest.raises(CountError, match="pools folded"):
        count(net, inputs, pooling="float")
    with pytest.raises(CountError, match=r"dt_s: 0.002 s asked for, the network steps 0.001 s"):
        count(net, inputs, dt_s=0.002)
    assert count(net, inputs, dt_s=0.001) == count(net, inputs)
    # Whole numbers are judged by their value, whatever type holds them.
    assert count(net, inputs.astype(np.float64)) == count(net, inputs)
    with pytest.raises(ChipError, match=r"0\.5"):
        count(net, inputs * 0.5)


def test_recordings_that_do_not_fit_are_refused() -> None:
    net, inputs = busy()
    recording = simulate(net, inputs, record=("spikes",))

    def broken(name: str, spikes: Array | None) -> Recording:
        layers = {key: value for key, value in recording.spikes.items() if key != name}
        return Recording(recording.output, layers if spikes is None else layers | {name: spikes})

    fc = recording.spikes["fc"]
    for name, spikes, message in (
        ("fc", None, "'fc': its spikes were not recorded"),
        ("fc", fc[:, :-1], "'fc': recorded spikes have shape"),
        ("fc", fc * np.uint8(2), "'fc': recorded spikes hold values other than 0 and 1"),
        ("readout", np.ones_like(recording.spikes["readout"]), "'readout': never fires"),
    ):
        with pytest.raises(CountError, match=message):
            count_events(net, inputs, broken(name, spikes))
    for wrong in (inputs[0], inputs[..., :-1], inputs[:0]):
        with pytest.raises(CountError, match="inputs: shape"):
            count_events(net, wrong, recording)
