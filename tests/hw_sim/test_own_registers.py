"""Registers of each neuron and inputs with a sign: the same integers on every engine, and the counts of a tap walk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from count_oracle import Layer as Walked
from count_oracle import walk
from random_networks import draw, own_registers, same, with_sign
from test_fast import everything

from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    count,
    encode,
    load_recording,
    save_recording,
    simulate,
)
from knarr.hw_sim.energy.what_if import with_thresholds
from knarr.hw_sim.engines.torch import TorchEngine, TorchLayer
from knarr.hw_sim.simulation import SlowEngineWarning, laid_out_layers

ALL = ("output", "spikes", "u", "v")
Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)


def changed(seed: int) -> tuple[ChipNetwork, Array]:
    """A network of `draw` with registers of each neuron, and in two of three with signed inputs."""
    network, inputs = draw(seed)
    rng = np.random.default_rng(seed)
    network = own_registers(network, rng, decays=((0, 4096), (0, 4096)))
    return with_sign(network, inputs, rng) if seed % 3 else (network, inputs)


def kinds(network: ChipNetwork) -> set[str]:
    found = {"signed"} if network.input.signed else set()
    found |= {"ternary"} if network.input.signed and network.input.bits == 1 else set()
    for layer in network.layers:
        for register in ("i_decay", "v_decay", "vth_int"):
            if isinstance(getattr(layer.neuron, register), np.ndarray):
                found.add(f"{register} {type(layer).__name__}")
    return found


# --- the type


def test_one_canonical_form() -> None:
    """Flat in (C, H, W) order, one value per neuron, frozen; an array of equal values is that integer."""
    kernel = np.ones((2, 1, 1, 1), dtype=np.int64)
    whole = RNG.integers(1, 99, (2, 3, 4))
    each = Conv("c", kernel, Neuron(4096, whole, np.array([7, 9])), (1, 3, 4)).neuron
    assert isinstance(each.v_decay, np.ndarray)
    assert isinstance(each.vth_int, np.ndarray)
    assert (each.v_decay.dtype, each.v_decay.shape) == (np.int32, (24,))
    assert np.array_equal(each.v_decay, whole.ravel())
    assert np.array_equal(each.vth_int, [7] * 12 + [9] * 12)
    assert not each.v_decay.flags.writeable
    whole[0, 0, 0] += 1  # the caller's own array is not the layer's
    assert each.v_decay[0] == whole[0, 0, 0] - 1
    equal = Neuron(np.full(5, 7), np.array([3]), np.int64(9))
    assert equal == Neuron(7, 3, 9)
    assert all(type(value) is int for value in (equal.i_decay, equal.v_decay, equal.vth_int))
    assert equal.shared
    assert not each.shared
    again = replace(each, vth_int=np.array(each.vth_int))
    assert (again == each, hash(again) == hash(each)) == (True, True)
    assert again != replace(each, vth_int=7)
    assert again != replace(each, vth_int=np.r_[each.vth_int[1:], 8])
    # One per channel and the same one per neuron are one layer.
    weight = np.ones((3, 2), dtype=np.int64)
    one = Dense("d", weight, Neuron(1, 2, np.array([3, 3, 3])))
    assert one == Dense("d", weight, Neuron(1, 2, 3))


@pytest.mark.parametrize(
    ("register", "value", "message"),
    [
        ("i_decay", np.array([1, 4097]), r"i_decay = 1..4097, allowed 0..4096"),
        ("v_decay", np.array([-1, -1]), r"v_decay = -1, allowed 0..4096"),
        ("vth_int", np.array([2**40, 5]), r"vth_int = 5..1099511627776, allowed"),
        ("vth_int", np.array([1.0, 2.0]), "an array of 2 float64; give integers"),
        ("vth_int", np.array([True, False]), "an array of 2 bool"),
        ("vth_int", np.array([], dtype=np.int64), "an array of 0 int64"),
    ],
)
def test_registers_outside_their_range(register: str, value: Array, message: str) -> None:
    registers = {"i_decay": 1, "v_decay": 1, "vth_int": 1, register: value}
    with pytest.raises(ChipError, match=message):
        Neuron(**registers, name="n")


def test_an_array_of_another_length() -> None:
    with pytest.raises(ChipError, match=r"layer 'd': vth_int has 2 values, needs 3, one per neuron; or give one"):  # fmt: skip
        Dense("d", np.ones((3, 2), dtype=np.int64), Neuron(1, 2, np.array([3, 4])))
    with pytest.raises(ChipError, match="needs 24, one per neuron, or 2, one per channel"):
        Conv("c", np.ones((2, 1, 1, 1), dtype=np.int64), Neuron(1, np.array([1, 2, 3]), 5), (1, 3, 4))  # fmt: skip
    with pytest.raises(ChipError, match="input: v_decay has 3 values, needs 4"):
        InputCoding((4,), neuron=Neuron(1, np.array([1, 2, 3]), 5))


def test_readouts_and_neurons_that_never_fire() -> None:
    """Some neurons of a layer that fires may be out of reach; a voltage readout has no others."""
    weight = np.full((2, 1), 100, dtype=np.int64)
    mixed = Neuron(4096, 0, np.array([50, NON_SPIKING_VTH]))
    assert mixed.spikes
    network = ChipNetwork((Dense("d", weight, mixed),), InputCoding((1,)), Readout("spikes"))
    output = simulate(network, np.ones((1, 9, 1), dtype=np.int64)).output
    assert output.sum(axis=(0, 1)).tolist() == [9, 0]
    with pytest.raises(ChipError, match=r"threshold 50..262143 does not go with a voltage readout"):
        replace(network, readout=Readout("voltage"))
    # A readout of registers of its own.
    silent = Neuron(np.array([4096, 1024]), np.array([0, 2048]), NON_SPIKING_VTH)
    network = ChipNetwork((Dense("d", weight, silent),), InputCoding((1,)), Readout("voltage"))
    v = simulate(network, np.array([[[1], [0], [0]]]), engine="reference").output
    assert v[0].T.tolist() == [[6400, 6400, 6400], [6400, 8000, 7600]]


# --- engines


def test_every_neuron_is_the_one_with_its_registers_alone() -> None:
    """Column by column the reference equals a layer whose neurons all share that column's registers."""
    compared = 0
    for seed in range(40):
        network, inputs = changed(seed)
        one = network.layers[0]
        readout = Readout("spikes" if one.neuron.spikes else "voltage")
        alone = replace(network, layers=(one,), readout=readout)
        features = int(np.prod(one.output_shape))
        try:
            ran = simulate(alone, inputs, record=ALL, engine="reference")
        except ChipError:  # sums beyond 2**53
            continue
        if type(one).__name__ == "Recurrent":
            continue  # what comes back depends on all of them
        registers = {
            name: np.broadcast_to(getattr(one.neuron, name), features)
            for name in ("i_decay", "v_decay", "vth_int")
        }
        for column in RNG.integers(0, features, 3):
            shared = Neuron(**{name: int(value[column]) for name, value in registers.items()})
            own = Readout("spikes" if shared.spikes else "voltage")
            other = replace(alone, layers=(replace(one, neuron=shared),), readout=own)
            wanted = simulate(other, inputs, record=ALL, engine="reference")
            for kind in ("spikes", "u", "v"):
                found, right = (
                    getattr(recording, kind)[one.name].reshape(*inputs.shape[:2], -1)[..., column]
                    for recording in (ran, wanted)
                )
                assert np.array_equal(found, right), (seed, column, kind)
                compared += found.size
    assert compared > 3000


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_engines_equal_the_reference(engine: Any) -> None:
    fired = taken = 0
    met: Counter[str] = Counter()
    for seed in range(90):
        network, inputs = changed(seed)
        reset = seed % 5 > 0
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference", reset=reset)
        except ChipError:  # sums beyond 2**53
            continue
        got = simulate(network, inputs, record=ALL, engine=engine, reset=reset)
        assert same(wanted, got) == [], seed
        fired += sum(int(z.sum()) for z in wanted.spikes.values())
        met.update(kinds(network))
        if engine == "torch":
            found = laid_out_layers(network, TorchEngine("cpu"))
            taken += sum(isinstance(one, TorchLayer) for one in found)
    assert fired > 3000
    assert min(met[f"{register} {kind}"] for register in ("i_decay", "v_decay", "vth_int") for kind in ("Conv", "Dense")) > 15, met  # fmt: skip
    assert met["signed"] > 40
    assert met["ternary"] > 10
    assert engine != "torch" or taken > 90


def test_the_path_of_devices_on_the_cpu() -> None:
    engine, fired = TorchEngine("cpu:0"), 0
    assert engine.device != "cpu"  # which is what the engine asks
    for seed in range(60):
        network, inputs = changed(seed)
        chain = laid_out_layers(network, engine)
        if any(isinstance(found, str) for found in chain):
            continue
        wanted = simulate(network, inputs, record=ALL, engine="reference")
        request = everything(chain, inputs, network.input.bits)
        ran = engine.run(replace(request, signed=network.input.signed))
        for one, got in zip(network.layers, ran or [], strict=ran is not None):
            for name in ("spikes", "u", "v"):
                right = getattr(wanted, name)[one.name]
                assert np.array_equal(getattr(got, name), right), (seed, name)
            fired += int(got.counts.sum())
    assert fired > 500


def small(neuron: Neuron, **coding: Any) -> ChipNetwork:
    layers = (
        Dense("first", np.array([[3, -2], [1, 4]]), Neuron(4096, 100, 3)),
        Dense("second", np.array([[5, -1], [2, 2]]), neuron),
    )
    return ChipNetwork(layers, InputCoding((2,), **coding), Readout("spikes"))


def test_the_kernel_refuses_by_name_and_auto_warns_of_what_the_reference_runs() -> None:
    """Only sums that might pass 2**53, which the reference too refuses where they do."""
    first = Dense("first", np.full((2, 200), 2**31 - 1), Neuron(4096, 100, 3))
    network = ChipNetwork((first,), InputCoding((200,), 16), Readout("spikes"))
    inputs = np.zeros((1, 4, 200), dtype=np.uint16)
    inputs[0, 1, 7] = 1
    reference = simulate(network, inputs, record=ALL, engine="reference")
    message = "layer 'first': the reference runs it, hundreds of times slower than a compiled kernel: sums up to"
    with pytest.warns(SlowEngineWarning, match=message):
        assert same(reference, simulate(network, inputs, record=ALL)) == []
    message = r"layer 'first': the fast engine does not take it, sums up to \d+ may pass 2\*\*53; use engine auto, torch or reference"
    with pytest.raises(ChipError, match=message):
        simulate(network, inputs, engine="fast")


# --- inputs with a sign


@pytest.mark.parametrize(
    ("bits", "limits", "dtype"),
    [(1, (-1, 1), np.int8), (7, (-127, 127), np.int8), (8, (-255, 255), np.int16), (16, (-65535, 65535), np.int32)],
)  # fmt: skip
def test_ranges_of_signed_inputs(bits: int, limits: tuple[int, int], dtype: Any) -> None:
    coding = InputCoding((2,), bits, signed=True)
    assert (coding.limits, coding.dtype) == (limits, dtype)
    assert np.iinfo(dtype).min <= limits[0]
    network = small(Neuron(4096, 100, 4), bits=bits, signed=True)
    simulate(network, np.array([[limits, limits[::-1]]]))
    for beyond in (limits[0] - 1, limits[1] + 1):
        with pytest.raises(ChipError, match=f"takes {limits[0]}..{limits[1]}; clip counts"):
            simulate(network, np.array([[[0, beyond]]]))


def test_negative_inputs_without_a_sign_get_a_cure_that_cures() -> None:
    unsigned = small(Neuron(4096, 100, 4), bits=8)
    with pytest.raises(ChipError, match=r"values -3..0, 8-bit input takes 0..255; lower the graph with input_signed=True .*, or with"):  # fmt: skip
        simulate(unsigned, np.array([[[0, -3]]]))
    floats = InputCoding((2,), 8, units=100.0, kind="graded")
    with pytest.raises(ChipError, match=r"pass 0..255; lower the graph with input_signed=True"):
        encode(floats, np.array([[[0.5, -0.5]]]))
    coded = encode(replace(floats, signed=True), np.array([[[0.5, -0.505]]]))
    assert (coded.tolist(), coded.dtype) == ([[[50, -50]]], np.int16)
    for other in ({"kind": "rate"}, {"neuron": Neuron(1, 1, 1)}):
        with pytest.raises(ChipError, match="leave signed at False"):
            InputCoding((2,), signed=True, **other)  # type: ignore[arg-type]
    with pytest.raises(ChipError, match="signed = 1 is neither True nor False"):
        InputCoding((2,), signed=1)  # type: ignore[arg-type]


# --- counts, files, other thresholds


def as_walked(network: ChipNetwork) -> list[Walked]:
    """The layers as the tap walk takes them; it knows no delays."""
    found, shape, source = [], network.input.shape, "input"
    for one in network.layers:
        conv, loop = isinstance(one, Conv), getattr(one, "recurrent_int", None)
        fields = ("stride", "padding", "dilation", "groups") if conv else ()
        geometry: Any = {field: getattr(one, field) for field in fields}
        found.append(
            Walked(one.name, [source], shape, one.weight_int, f"{one.name} fires", bias=one.bias_int, loop=loop, **geometry)
        )  # fmt: skip
        shape, source = one.output_shape, f"{one.name} fires"
    return found


def test_counts_equal_the_tap_walk() -> None:
    met: Counter[str] = Counter()
    acc = mac = signed = 0
    for seed in range(60):
        network, inputs = changed(seed)
        delays = any(getattr(one, "delay_int", None) is not None for one in network.layers)
        shapes = [network.input.shape, *(one.output_shape for one in network.layers)]
        if delays or max(np.prod(shape) for shape in shapes) > 70:
            continue  # the walk tries every place for every tap
        inputs = inputs[:1, :5]
        try:
            ran = simulate(network, inputs, record=("spikes",), engine="reference")
        except ChipError:  # sums beyond 2**53
            continue
        counts = count(network, inputs)
        values = {f"{name} fires": spikes for name, spikes in ran.spikes.items()}
        spiking = {f"{one.name} fires" for one in network.layers if one.neuron.spikes}
        walked = walk(as_walked(network), {"input": inputs, **values}, folded=True, spiking=spiking)
        for name, row in counts.layers.items():
            for column, value in walked[name].items():
                assert getattr(row, column) * len(inputs) == value, (seed, name, column)
        acc, mac = acc + counts.total.acc, mac + counts.total.mac
        signed += counts.total.signed
        met.update(kinds(network))
    assert min(met[kind] for kind in ("signed", "ternary", "i_decay Conv", "vth_int Dense")) > 2, met  # fmt: skip
    assert min(acc, mac, signed) > 0


def test_states_count_currents_that_are_kept() -> None:
    own = small(Neuron(np.array([4096, 100]), 0, 5))
    sizes = count(own, np.ones((1, 2, 2), dtype=np.uint8)).sizes
    assert (sizes["first"].states, sizes["second"].states) == (2, 3)
    assert sizes["second"].leaky


def test_recordings_and_other_thresholds(tmp_path: Path) -> None:
    own = small(Neuron(4096, 100, np.array([3, NON_SPIKING_VTH])))
    recording = simulate(own, np.ones((1, 4, 2), dtype=np.uint8), record=ALL)
    save_recording(recording, tmp_path / "r.npz")
    assert same(recording, load_recording(tmp_path / "r.npz")) == []
    doubled = with_thresholds(own, 2.0).layers[1].neuron.vth_int
    assert doubled.tolist() == [6, NON_SPIKING_VTH]
