"""Counts do not change with batches, order, layout, dtype, nesting, engine, or graph versus chip network."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from count_oracle import graph_of, random_network
from graphs import (
    DT_S,
    chain,
    conv2d,
    cuba,
    flatten,
    integrate,
    li,
    lif,
    loop,
    on_grid,
    pool,
    spikes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from same_counts import of_both_sides
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from knarr.deploy import lower, read_net, write_net
from knarr.export import step_nir, to_nir
from knarr.hw_sim import (
    ChipError,
    CountError,
    LayerCounts,
    OperationCounts,
    count,
    count_events,
    simulate,
)
from knarr.hw_sim.synapse_masks import SYNAPSES, pack

RNG = np.random.default_rng(11)
SHAPE = (2, 8, 6)


def graph() -> nir.NIRGraph:
    """Convolution, pool, dense, loop: everything fires."""
    rng = np.random.default_rng(5)
    return loop(
        chain(
            SHAPE,
            (3,),
            conv=conv2d(rng.normal(0.5, 0.5, (4, 2, 3, 3)), padding=1, bias=rng.normal(size=4)),
            lif=lif((4, 8, 6)),
            pool=pool(nir.AvgPool2d, 2),
            flat=flatten(4, 4, 3),
            dense=nir.Linear(rng.normal(1.5, 0.6, (6, 48))),
            hidden=cuba((6,)),
            out=nir.Linear(rng.normal(size=(3, 6))),
            readout=li((3,)),
        ),
        "hidden",
        back=nir.Linear(rng.normal(size=(6, 6))),
    )


def mixed(samples: int, steps: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Samples of which every second has fractions in its first frame."""
    inputs = spikes(samples, steps, *SHAPE, seed=seed).astype(np.float64)
    inputs[1::2, 0] *= 0.5
    return inputs


def integers(counts: OperationCounts) -> dict[str, dict[str, int]]:
    """Totals over all samples: what can be added up."""
    return {
        name: {
            field.name: int(getattr(layer, field.name) * counts.samples)
            for field in fields(LayerCounts)
        }
        for name, layer in counts.layers.items()
    }


def added(*parts: OperationCounts) -> dict[str, dict[str, int]]:
    whole = [integers(part) for part in parts]
    return {
        name: {key: sum(part[name][key] for part in whole) for key in row}
        for name, row in whole[0].items()
    }


def busy(counts: OperationCounts) -> OperationCounts:
    assert all(layer.acc + layer.mac > 0 for layer in counts.layers.values() if layer.dense_valid)
    assert counts.total.acc > 0 < counts.total.mac
    return counts


@pytest.mark.parametrize("pooling", ["folded", "float"])
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), max_size=3, unique=True), seed=st.integers(0, 9))
def test_batches_and_order(pooling: str, cuts: list[int], seed: int) -> None:
    inputs = mixed(7, 4, seed)
    whole = busy(count(graph(), inputs, dt_s=DT_S, pooling=pooling))
    batches = np.split(inputs, sorted(cuts))
    assert count(graph(), iter(batches), dt_s=DT_S, pooling=pooling) == whole
    order = np.random.default_rng(seed).permutation(7)
    assert count(graph(), inputs[order], dt_s=DT_S, pooling=pooling) == whole
    singles = [count(graph(), one[None], dt_s=DT_S, pooling=pooling) for one in inputs]
    assert added(*singles) == integers(whole)


def test_loaders_of_torch_and_tuples() -> None:
    inputs = mixed(5, 3)
    whole = busy(count(graph(), inputs, dt_s=DT_S))
    data: Any = TensorDataset(torch.from_numpy(inputs), torch.arange(5))
    assert count(graph(), DataLoader(data, batch_size=2), dt_s=DT_S) == whole

    def pairs() -> Iterator[tuple[np.ndarray[Any, Any], int]]:
        for one in inputs:
            yield one[None], 0

    assert count(graph(), pairs(), dt_s=DT_S) == whole


def test_memory_is_that_of_a_batch() -> None:
    """A loader far larger than memory would be: every batch is gone when the next is made."""
    alive = []

    def batches() -> Iterator[np.ndarray[Any, Any]]:
        for _ in range(6):
            batch = mixed(1, 3)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            gc.collect()
            assert sum(one() is not None for one in alive) <= 1

    assert count(graph(), batches(), dt_s=DT_S).samples == 6


@pytest.mark.parametrize("pooling", ["folded", "float"])
def test_mixed_classes_in_a_batch(pooling: str) -> None:
    inputs = mixed(6, 3)
    whole = busy(count(graph(), inputs, dt_s=DT_S, pooling=pooling))
    graded, binary = (count(graph(), inputs[at::2], dt_s=DT_S, pooling=pooling) for at in (1, 0))
    assert added(graded, binary) == integers(whole)
    assert graded.layers["conv"].mac > 0 == binary.layers["conv"].mac


def test_time_in_the_batch() -> None:
    """Neurons that forget everything in a step: T steps are T samples of one."""
    plain = chain(
        SHAPE,
        (3,),
        conv=conv2d(RNG.normal(0.2, 0.5, (4, 2, 3, 3)), padding=1),
        lif=lif((4, 8, 6), tau=np.full((4, 8, 6), DT_S), v_threshold=np.full((4, 8, 6), 0.5)),
        flat=flatten(4, 8, 6),
        dense=nir.Linear(RNG.normal(size=(3, 192))),
        out=lif((3,), tau=np.full(3, DT_S)),
    )
    inputs = mixed(4, 5)
    whole = busy(count(plain, inputs, dt_s=DT_S))
    assert integers(count(plain, inputs.reshape(20, 1, *SHAPE), dt_s=DT_S)) == integers(whole)


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f8"),
        torch.from_numpy,
        lambda x: x.tolist(),
    ],
    ids=["fortran", "time first in memory", "strided", "float32", "big endian", "tensor", "lists"],
)
def test_layout_and_dtype_of_fractions(change: Any) -> None:
    inputs = mixed(3, 3)
    assert count(graph(), change(inputs), dt_s=DT_S) == busy(count(graph(), inputs, dt_s=DT_S))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64, np.float16, np.float32])
def test_dtype_of_spikes(dtype: type[np.generic]) -> None:
    inputs = spikes(3, 3, *SHAPE)
    whole = count(graph(), inputs, dt_s=DT_S)
    assert whole.total.acc > 0 == whole.total.mac
    assert count(graph(), inputs.astype(dtype), dt_s=DT_S) == whole


def test_settings_of_the_caller() -> None:
    inputs = mixed(3, 3)
    whole = busy(count(graph(), inputs, dt_s=DT_S))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert count(graph(), inputs, dt_s=DT_S) == whole
    torch.set_default_dtype(torch.float64)
    try:
        assert count(graph(), inputs, dt_s=DT_S) == whole
    finally:
        torch.set_default_dtype(torch.float32)


def test_nesting_and_order_of_nodes() -> None:
    flat = graph()
    inputs = mixed(3, 3)
    whole = busy(count(flat, inputs, dt_s=DT_S))
    turned = nir.NIRGraph(dict(reversed(flat.nodes.items())), flat.edges[::-1], type_check=False)
    assert count(turned, inputs, dt_s=DT_S) == whole
    inner_names = ("conv", "lif", "pool", "flat")
    inner = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array(SHAPE)}),
            **{name: flat.nodes[name] for name in inner_names},
            "output": nir.Output({"output": np.array([48])}),
        },
        [("input", "conv"), ("conv", "lif"), ("lif", "pool"), ("pool", "flat"), ("flat", "output")],
        type_check=False,
    )
    outer = nir.NIRGraph(
        {
            "block": inner,
            **{name: node for name, node in flat.nodes.items() if name not in inner_names},
        },
        [
            ("input", "block"),
            ("block", "dense"),
            *[e for e in flat.edges if not set(e) & set(inner_names)],
        ],
        type_check=False,
    )
    nested = count(outer, inputs, dt_s=DT_S)
    short = {name.removeprefix("block."): layer for name, layer in nested.layers.items()}
    assert short == dict(whole.layers)


def test_batch_norm_folded_by_hand_or_by_the_exporter() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.running_mean.uniform_(-0.2, 0.2), norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        norm.weight.uniform_(1, 3), norm.bias.uniform_(0, 1)
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())

    def student(*synapse: nn.Module) -> Any:
        neuron = snn.LIFBoxCell(snn.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0)), dt=DT_S)
        return snn.SequentialState(*synapse, neuron).eval()

    inputs = spikes(3, 6, *SHAPE)
    one = count(to_nir(student(conv, norm), SHAPE, DT_S), inputs, dt_s=DT_S)
    two = count(to_nir(student(folded), SHAPE, DT_S), inputs, dt_s=DT_S)
    assert one.total.acc > 0 < one.total.spikes
    assert one.total == two.total
    assert one.total.bias_adds == one.total.neuron_updates


def test_the_same_synapse_twice_is_two_rows() -> None:
    weight = np.random.default_rng(0).normal(0.8, 0.5, (5, 5))
    shared = chain((5,), (5,), a=nir.Linear(weight), n=lif((5,)), b=nir.Linear(weight), m=lif((5,)))
    inputs = spikes(2, 9, 5)
    counts = count(shared, inputs, dt_s=DT_S)
    assert counts.layers["a"].acc == 5 * inputs.sum() / 2
    assert counts.layers["b"].acc == 5 * counts.layers["a"].spikes > 0


LOWERED: dict[str, nir.NIRGraph] = {
    "conv": chain(
        SHAPE, (3,), a=conv2d(on_grid(RNG, 4, 2, 3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=on_grid(RNG, 4)),
        n=integrate((4, 4, 4)), f=flatten(4, 4, 4), b=nir.Linear(on_grid(RNG, 3, 64)), m=integrate((3,)),
    ),
    "pool before conv": chain(
        SHAPE, (3,), p=pool(nir.SumPool2d, 2), a=conv2d(on_grid(RNG, 3, 2, 2, 2), stride=2), n=integrate((3, 2, 1)),
        f=flatten(3, 2, 1), b=nir.Linear(on_grid(RNG, 3, 6)), m=integrate((3,)),
    ),
    "pool before dense": chain(
        SHAPE, (3,), p=pool(nir.SumPool2d, 2), f=flatten(2, 4, 3), b=nir.Linear(on_grid(RNG, 3, 24)), m=integrate((3,)),
    ),
    "conv before pool": chain(
        SHAPE, (3,), a=conv2d(on_grid(RNG, 3, 2, 2, 2, limit=31), stride=2), p=pool(nir.SumPool2d, 2), n=integrate((3, 2, 1)),
        f=flatten(3, 2, 1), b=nir.Linear(on_grid(RNG, 3, 6)), m=integrate((3,)),
    ),
    "pool drops cells before dense": chain(
        SHAPE, (3,), p=nir.SumPool2d(np.array([3, 2]), np.array([3, 4]), np.array([0, 0])), f=flatten(2, 2, 2),
        b=nir.Linear(on_grid(RNG, 3, 8)), m=integrate((3,)),
    ),
    "pool with gaps before conv": chain(
        SHAPE, (3,), p=nir.SumPool2d(np.array([1, 2]), np.array([2, 3]), np.array([0, 0])), a=conv2d(on_grid(RNG, 3, 2, 2, 1), dilation=2),
        n=integrate((3, 2, 2)), f=flatten(3, 2, 2), b=nir.Linear(on_grid(RNG, 3, 12)), m=integrate((3,)),
    ),
    "conv written as a matrix": chain(
        SHAPE, (3,), p=nir.SumPool2d(np.array([3, 3]), np.array([2, 2]), np.array([1, 1])), a=conv2d(on_grid(RNG, 3, 2, 3, 3, limit=31), padding=1),
        n=integrate((3, 4, 3)), f=flatten(3, 4, 3), b=nir.Linear(on_grid(RNG, 3, 36)), m=integrate((3,)),
    ),
    "padding of one side": chain(
        SHAPE, (3,), a=conv2d(on_grid(RNG, 3, 2, 2, 2), padding="same"), n=integrate((3, 8, 6)), f=flatten(3, 8, 6),
        b=nir.Linear(on_grid(RNG, 3, 144)), m=integrate((3,)),
    ),
    "loop": loop(
        chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), b=nir.Linear(on_grid(RNG, 3, 5)), m=integrate((3,))),
        "n", w=nir.Linear(on_grid(RNG, 5, 5)),
    ),
    "loop without autapses": loop(
        chain((6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), b=nir.Linear(on_grid(RNG, 3, 5)), m=integrate((3,))),
        "n", w=nir.Linear(on_grid(RNG, 5, 5) * (1 - np.eye(5))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_a_graph_or_its_chip_network(name: str, tmp_path: Path) -> None:
    """Where lowering loses nothing, every column is the same; a pool in a chip network is part of its synapse."""
    shape = tuple(LOWERED[name].nodes["input"].input_type["input"].tolist())
    inputs = spikes(4, 8, *shape, rate=0.2)
    network = lower(LOWERED[name], DT_S)
    chip = count(network, inputs)
    one = count(LOWERED[name], inputs, dt_s=DT_S)
    write_net(network, tmp_path / "chip.net")
    assert count(read_net(tmp_path / "chip.net"), inputs) == chip
    mine, its = integers(one), integers(chip)
    if name == "conv written as a matrix":
        # No border is left for taps to lie beyond.
        assert mine["a"].pop("dense_padded") > its["a"].pop("dense_padded")
    assert mine == its
    assert all(layer.acc > 0 < layer.spikes for layer in chip.layers.values())
    assert (one.per_step, one.spread, one.total_spread) == (
        chip.per_step,
        chip.spread,
        chip.total_spread,
    )
    assert (chip.layers["a" if "a" in chip.layers else "b"].recurrent_all_pairs > 0) == (
        "loop" in name
    )


def test_synapses_of_random_networks_are_the_graphs() -> None:
    """Zeros that a chip file stores where the graph has no synapse are none, and no event takes them."""
    alike = sparse = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layers = random_network(rng)
        drawn = graph_of(layers, rng)
        inputs = spikes(1, 3, *layers[0].shape, seed=seed)
        if not all(layer.weight.any() for layer in layers):
            continue
        network = lower(drawn, DT_S)
        # Relay neurons, and the one that fires at every step, have synapses of their own.
        if network.relay_neurons or any("relay" in note for note in network.lowering["rewrites"]):
            continue
        one, chip = count(drawn, inputs, dt_s=DT_S), count(network, inputs)
        columns = [(row.dense_valid, row.neuron_updates) for row in one.layers.values()]
        assert columns == [(row.dense_valid, row.neuron_updates) for row in chip.layers.values()]
        first, its = (next(iter(each.layers.values())) for each in (one, chip))
        assert (first.acc, first.touched_updates) == (its.acc, its.touched_updates), seed
        alike += 1
        sparse += bool(network.lowering[SYNAPSES])
    assert alike > 10
    assert sparse > 5


def test_a_manifest_that_hides_synapses() -> None:
    network = lower(LOWERED["pool with gaps before conv"], DT_S)
    inputs = spikes(2, 4, *SHAPE)
    whole = count(network, inputs).total
    packed = network.lowering[SYNAPSES]["a"]

    def noted(mask: object) -> LayerCounts:
        return count(replace(network, lowering={SYNAPSES: {"a": mask}}), inputs).total

    for wrong in ("", "no base64!", packed[:8], pack(np.zeros(10**7, np.bool_)), 7):
        with pytest.raises(ChipError, match="layer 'a': its manifest does not say which of its"):
            noted(wrong)
    # A weight that is not 0 is a synapse, whatever the manifest says.
    assert noted(pack(np.zeros(network.layers[0].weight_int.shape, np.bool_))) == whole
    assert count(replace(network, lowering={}), inputs).total.acc > whole.acc


@pytest.mark.parametrize(
    ("bits", "units", "signed"), [(8, 255.0, False), (6, 40.0, True), (1, 1.0, True)]
)
def test_classes_are_those_of_the_inputs_unit(
    bits: int, units: float, signed: bool, tmp_path: Path
) -> None:
    """Graph, chip network and chip file call the same frames spikes, whatever integers the chip takes."""
    rng = np.random.default_rng(3)
    inputs = (rng.random((4, 8, *SHAPE)) < 0.3) * units
    if bits > 1:
        inputs[1::2, 0] = rng.integers(0, int(units) + 1, (2, *SHAPE))  # a first frame of greys
        inputs[0, 3] = np.where(inputs[0, 3], 1, 0)  # payloads of 1, which are no spikes here
    if signed:
        inputs[:, 1::3] *= rng.choice([-1, 1], (4, 3, *SHAPE))
    integers_of = inputs.astype(np.int32)
    made = LOWERED["conv"]
    network = lower(made, DT_S, input_bits=bits, input_units=units, input_signed=signed)
    _, chip = of_both_sides(made, network, integers_of, DT_S, tmp_path)
    first = chip.layers["a"]
    assert (first.mac > 0) == (bits > 1)
    assert (first.signed > 0) == signed
    assert first.acc > first.signed
    # Of another unit these frames are no spikes: the class is not that of what happens to be in them.
    other = replace(network, input=replace(network.input, units=units + 1))
    assert count(other, integers_of).layers["a"].acc == 0


@pytest.mark.parametrize("engine", ["reference", "fast", "torch"])
def test_engines_of_the_chip(engine: Any) -> None:
    network = lower(LOWERED["conv"], DT_S)
    inputs = spikes(4, 8, *SHAPE, rate=0.2)
    recording = simulate(network, inputs, engine=engine, record=("spikes",))
    assert count_events(network, inputs, recording) == count(network, inputs)


def test_samples_of_different_length() -> None:
    inputs = mixed(4, 6)
    lengths = [6, 2, 5, 1]
    ragged = count(graph(), inputs, dt_s=DT_S, lengths=lengths)
    alone = [count(graph(), inputs[at : at + 1, :n], dt_s=DT_S) for at, n in enumerate(lengths)]
    assert added(*alone) == integers(ragged)
    assert float(ragged.timesteps) == np.mean(lengths)
    assert (
        count(graph(), (inputs[at : at + 1, :n] for at, n in enumerate(lengths)), dt_s=DT_S)
        == ragged
    )
    network, events = lower(LOWERED["loop"], DT_S), spikes(4, 6, 6)
    padded = count(network, events, lengths=lengths)
    assert integers(padded) == added(
        *(count(network, events[at : at + 1, :n]) for at, n in enumerate(lengths))
    )
    for wrong in ([6, 2, 5], [6, 2, 5, 7], [6, 2, 5, 0], [1.0] * 4):
        with pytest.raises(CountError, match="lengths"):
            count(network, events, lengths=wrong)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(10_000, 20_000))
def test_bounds_and_conservation(seed: int) -> None:
    """S <= T * valid <= T * padded; what arrives behind a neuron is what it fired."""
    rng = np.random.default_rng(seed)
    layers = random_network(rng)
    drawn = graph_of(layers, rng)
    inputs = spikes(2, 4, *layers[0].shape, seed=seed)
    counts = count(drawn, inputs, dt_s=DT_S)
    fired = {name: int(z.sum()) for name, z in step_nir(drawn, inputs, DT_S).spikes.items()}
    for layer in layers:
        row = counts.layers[layer.name]
        assert row.acc + row.mac <= row.dense_valid <= row.dense_padded
        assert row.mac == 0
        heard = sum(
            int(inputs.sum()) if source == "input" else fired[source] for source in layer.sources
        )
        back = row.recurrent_all_pairs * 2 / layer.out[0] if layer.loop is not None else 0
        assert row.events * 2 == heard + back
        assert row.spikes * 2 == fired.get(layer.neuron, 0)
