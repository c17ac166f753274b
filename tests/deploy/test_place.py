"""Placement: every count against a walk over all taps, published compile logs, and limits that must fail by name."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knarr.deploy import DeployError
from knarr.deploy.placement.chips import Chip, chip_profile, chips
from knarr.deploy.placement.layer import (
    COUNTED,
    LayerCounter,
    Split,
    edges,
    smallest_split,
    splits,
)
from knarr.deploy.placement.place import place
from knarr.deploy.placement.result import Placement, table
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)

NEURON = Neuron(4096, 512, 100, "n")
Layer = Dense | Conv | Recurrent


def dense(name: str, inputs: int, outputs: int, **fields: Any) -> Dense:
    return Dense(name, np.ones((outputs, inputs), dtype=np.int32), NEURON, **fields)


def loop(name: str, inputs: int, outputs: int) -> Recurrent:
    return Recurrent(
        name, np.ones((outputs, inputs), np.int32), np.ones((outputs, outputs), np.int32), NEURON
    )


def conv(
    name: str, outputs: int, shape: tuple[int, int, int], kernel: int = 3, **fields: Any
) -> Conv:
    weight = np.ones((outputs, shape[0] // fields.get("groups", 1), kernel, kernel), dtype=np.int32)
    return Conv(name, weight, NEURON, shape, **fields)


def network(*layers: Layer, shape: tuple[int, ...] | None = None, **coding: Any) -> ChipNetwork:
    if shape is None:
        shape = (
            layers[0].input_shape
            if isinstance(layers[0], Conv)
            else (int(layers[0].weight_int.shape[1]),)
        )
    return ChipNetwork(layers, InputCoding(shape, **coding), Readout("spikes"))


def custom(base: str, **values: int | tuple[int, str]) -> Chip:
    """A known chip with other limits per core; a pair also sets the confidence."""
    limits = []
    for limit in chip_profile(base).limits:
        if limit.per == "core" and limit.resource in values and limit.hard:
            value = values.pop(limit.resource)
            number, confidence = value if isinstance(value, tuple) else (value, limit.confidence)
            limit = limit.model_copy(update={"value": number, "confidence": confidence})
        limits.append(limit)
    assert not values
    return Chip(
        title="tiny", limits=tuple(limits), synapse_memory=chip_profile(base).synapse_memory
    )


# --- the oracle: a walk over every tap of every neuron -----------------------------------------------------------------


def core_of(shape: Split, split: Split) -> dict[tuple[int, int, int], tuple[int, int, int]]:
    def block(size: int, parts: int) -> list[int]:
        return [b for b in range(parts) for _ in range((b + 1) * size // parts - b * size // parts)]

    axes = [block(size, parts) for size, parts in zip(shape, split, strict=True)]
    return {(c, y, x): (axes[0][c], axes[1][y], axes[2][x]) for c, y, x in np.ndindex(*shape)}


def grid_shape(layer: Layer) -> Split:
    return layer.output_shape if isinstance(layer, Conv) else (layer.output_shape[0], 1, 1)


def taps(layer: Layer) -> list[tuple[tuple[int, int, int], tuple[Any, ...]]]:
    """(neuron, sender) of every synapse; a sender is ("in", index...) or ("own", neuron)."""
    walked: list[tuple[tuple[int, int, int], tuple[Any, ...]]] = []
    channels, rows, columns = grid_shape(layer)
    for channel, row, column in itertools.product(range(channels), range(rows), range(columns)):
        neuron = (channel, row, column)
        if not isinstance(layer, Conv):
            for i in range(layer.weight_int.shape[1]):
                walked.append((neuron, ("in", i)))
            if isinstance(layer, Recurrent):
                for i in range(layer.weight_int.shape[0]):
                    walked.append((neuron, ("own", i)))
            continue
        group = channel // (layer.weight_int.shape[0] // layer.groups)
        for c, j, i in np.ndindex(*layer.weight_int.shape[1:]):
            y = row * layer.stride[0] - layer.padding[0] + layer.dilation[0] * j
            x = column * layer.stride[1] - layer.padding[1] + layer.dilation[1] * i
            if 0 <= y < layer.input_shape[1] and 0 <= x < layer.input_shape[2]:
                walked.append((neuron, ("in", group * layer.weight_int.shape[1] + c, y, x)))
    return walked


def words_by_hand(layer: Layer, chip: str, cores: dict[Any, Any], core: Any) -> int:
    on_core = [neuron for neuron, place in cores.items() if place == core]
    delay = 6 if getattr(layer, "delay_int", None) is not None else 0
    if chip == "loihi2":
        if not isinstance(layer, Conv):
            senders = {sender for _, sender in taps(layer)}
            return len(senders) * ceil((8 + delay) * len(on_core) / 32)
        channels = {neuron[0] for neuron in on_core}
        per_group = Counter(
            channel // (layer.weight_int.shape[0] // layer.groups) for channel in channels
        )
        per_tap = prod(layer.weight_int.shape[1:])
        return sum(per_tap * ceil(n * 8 / 32) for n in per_group.values())
    rows = Counter(sender for neuron, sender in taps(layer) if cores[neuron] == core)
    index = 0
    if isinstance(layer, Conv):
        index = next(bits for bits in (0, 6, 7, 8, 9, 10, 11, 12) if 2**bits >= len(on_core))
    words = 0
    for length in rows.values():
        for start in range(0, length, 64):
            words += ceil((10 + min(64, length - start) * (8 + delay + index)) / 64)
    return words


def stored_by_hand(layer: Layer, chip: str, cores: dict[Any, Any], core: Any) -> int:
    if chip == "loihi2" and isinstance(layer, Conv):
        channels = {neuron[0] for neuron, place in cores.items() if place == core}
        return len(channels) * prod(layer.weight_int.shape[1:])
    return sum(cores[neuron] == core for neuron, _ in taps(layer))


@st.composite
def convs(draw: st.DrawFn, channels: int | None = None) -> Conv:
    groups = draw(st.sampled_from([1, 1, 2])) if channels in (None, 2, 4) else 1
    inputs = channels or groups * draw(st.integers(1, 2))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 6))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    weight = np.zeros((groups * draw(st.integers(1, 3)), inputs // groups, *kernel), dtype=np.int32)
    return Conv("c", weight, NEURON, (inputs, size[0], size[1]), stride, padding, dilation, groups)


@st.composite
def flats(draw: st.DrawFn) -> Dense | Recurrent:
    inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    kind = draw(st.sampled_from(["dense", "delay", "loop"]))
    if kind == "loop":
        return loop("r", inputs, outputs)
    delay = np.full((outputs, inputs), 3, dtype=np.int32) if kind == "delay" else None
    return dense("d", inputs, outputs, delay_int=delay)


@settings(max_examples=60, deadline=None)
@given(st.one_of(convs(), flats()), st.sampled_from(["loihi1", "loihi2"]), st.data())
def test_every_count_of_every_core_against_a_tap_walk(
    layer: Layer, chip: str, data: st.DataObject
) -> None:
    shape = grid_shape(layer)
    split = tuple(data.draw(st.integers(1, min(size, 3))) for size in shape)
    assert len(split) == 3
    reached = np.arange(prod(shape), dtype=np.int64) % 5
    memory = chip_profile(chip).synapse_memory
    counter = LayerCounter(layer, memory, reached)
    cores, walked = core_of(shape, split), taps(layer)

    senders: dict[Any, set[Any]] = {core: set() for core in cores.values()}
    receivers: dict[Any, set[Any]] = defaultdict(set)
    for neuron, sender in walked:
        senders[cores[neuron]].add(sender)
        receivers[sender].add(cores[neuron])
    for core, sending in senders.items():
        mine = [neuron for neuron, place in cores.items() if place == core]
        output = 0
        for neuron in mine:
            output += int(reached.reshape(shape)[neuron]) + len(receivers[("own", neuron[0])])
        assert counter.loads("neurons", split)[core] == len(mine)
        assert counter.loads("input_axons", split)[core] == len(sending)
        assert counter.loads("synapses", split)[core] == stored_by_hand(layer, chip, cores, core)
        assert counter.loads("synapse_words", split)[core] == words_by_hand(
            layer, chip, cores, core
        )
        assert counter.loads("output_axons", split)[core] == output
    for resource in (*COUNTED, "synapses"):
        assert counter.loads(resource, split).shape == split
        assert counter.worst(resource, split) == counter.loads(resource, split).max()
    assert counter.expanded() == len(walked)
    to_cores = counter.receivers(split)
    for index in np.ndindex(*to_cores.shape):
        key: tuple[Any, ...] = ("in", *index)
        assert to_cores[index] == len(receivers[key])


@settings(max_examples=40, deadline=None)
@given(st.one_of(convs(), flats()), st.sampled_from(["loihi1", "loihi2"]), st.data())
def test_the_split_fits_and_no_smaller_one_does(
    layer: Layer, chip: str, data: st.DataObject
) -> None:
    reached = np.ones(prod(grid_shape(layer)), dtype=np.int64)
    memory = chip_profile(chip).synapse_memory
    counter = LayerCounter(layer, memory, reached)
    limits = {
        resource: data.draw(st.integers(1, max(1, counter.worst(resource, (1, 1, 1)))))
        for resource in COUNTED
    }
    found = smallest_split(counter, limits)

    def all_fit(split: Split) -> bool:
        return all(
            (counter.loads(resource, split) <= limit).all() for resource, limit in limits.items()
        )

    a, b, c = (range(1, size + 1) for size in counter.shape)
    fitting = [split for split in itertools.product(a, b, c) if all_fit(split)]
    if found is None:
        assert not fitting
    else:
        assert all_fit(found)
        assert prod(found) == min(prod(split) for split in fitting)


@given(st.integers(1, 200), st.integers(1, 200))
def test_blocks_are_contiguous_and_even(size: int, parts: int) -> None:
    parts = min(size, parts)
    widths = np.diff(edges(size, parts))
    assert len(widths) == parts
    assert widths.sum() == size
    assert widths.max() - widths.min() <= 1
    assert widths.min() >= 1


@pytest.mark.parametrize("cores", [1, 6, 7, 12])
def test_splits_are_all_of_them(cores: int) -> None:
    shape = (3, 4, 5)
    every = [s for s in itertools.product(*(range(1, n + 1) for n in shape)) if prod(s) == cores]
    assert sorted(splits(shape, cores)) == sorted(every)


# --- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_a_whole_network_core_by_core(chip: str) -> None:
    """Conv, Conv, Recurrent on tiny cores: what leaves each core is the cores that the walk finds behind it."""
    layers: tuple[Layer, ...] = (
        conv("a", 4, (2, 6, 5), padding=(1, 1), groups=2),
        conv("b", 3, (4, 6, 5), stride=(2, 1)),
        loop("c", 18, 23),
    )
    profile = custom(chip, neurons=20, input_axons=60, synapse_words=150)
    placement = place(network(*layers, neuron=NEURON), profile)
    assert placement.fits
    by_name = {layer.name: layer for layer in placement.layers}
    assert list(by_name) == ["input", "a", "b", "c"]
    assert min(by_name[name].cores for name in "abc") > 1
    behind: dict[int, set[Any]] = {i: {"host"} for i in range(23)}  # the host reads the last spikes
    for layer in reversed(layers):
        placed = by_name[layer.name]
        shape = grid_shape(layer)
        cores = core_of(shape, placed.split)
        assert placed.cores == len(set(cores.values()))
        walked = taps(layer)
        front: dict[int, set[Any]] = defaultdict(set)
        input_shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
        for neuron, sender in walked:
            if sender[0] == "own":
                behind[sender[1]].add(("own", cores[neuron]))
            else:
                front[int(np.ravel_multi_index(sender[1:], input_shape))].add(cores[neuron])
        flat = {neuron: int(np.ravel_multi_index(neuron, shape)) for neuron in cores}
        leaves: Counter[Any] = Counter()
        for neuron, core in cores.items():
            leaves[core] += len(behind.get(flat[neuron], ()))
        assert placed.use("output_axons").used == max(leaves.values())
        everywhere = set(cores.values())
        assert placed.use("synapse_words").used == max(
            words_by_hand(layer, chip, cores, c) for c in everywhere
        )
        assert placed.use("synapse_words").used <= 150
        assert placed.use("neurons").used <= 20
        assert placed.use("input_axons").used <= 60
        assert placed.synapses == sum(
            stored_by_hand(layer, chip, cores, core) for core in everywhere
        )
        assert placed.synapses_expanded == len(walked)
        behind = front
    assert by_name["input"].neurons == 60
    assert by_name["input"].use("input_axons").used == 0
    assert by_name["input"].use("synapse_words").used == 0
    assert placement.cores == sum(layer.cores for layer in placement.layers)


def mnist() -> ChipNetwork:
    return network(dense("fc1", 784, 128), dense("fc2", 128, 64), dense("fc3", 64, 10))


def test_mnist_takes_the_5_cores_of_the_compile_log() -> None:
    placement = place(mnist())
    assert [layer.cores for layer in placement.layers] == [3, 1, 1]
    assert (placement.cores, placement.chips, placement.fits) == (5, 1, True)
    first = placement.layers[0]
    # 784 rows of 43 weights, 4 to a word; two cores would need rows of 64: 12,544 words > 12,000.
    assert first.use("synapse_words").used == 784 * 11
    assert first.use("memory_bytes").used == 784 * 11 * 4
    assert first.decided_by == "synapse_words"
    assert placement.layers[1].decided_by is None


def test_a_layer_of_51_200_weights_takes_2_cores() -> None:
    # lava-dl oxford/run.ipynb 76c8fbb: the 256-200 layer takes 2 cores, the 200-256 layer 3, of which 2 would do.
    placement = place(network(dense("a", 200, 256), dense("b", 256, 200)))
    assert [layer.cores for layer in placement.layers] == [2, 2]
    assert [layer.synapses for layer in placement.layers] == [51_200, 51_200]
    assert [layer.use("synapse_words").used for layer in placement.layers] == [6400, 6400]
    one = custom("loihi2", synapse_words=12_800)
    assert [layer.cores for layer in place(network(dense("a", 200, 256)), one).layers] == [1]


def test_pilotnet_against_its_compile_log() -> None:
    """lava-dl pilotnet_snn/benchmark.ipynb 12f0402: 74 cores. Dense words agree; no layer takes more cores than there."""
    shapes = [
        (24, (2, 2), (0, 0)),
        (36, (2, 2), (0, 0)),
        (48, (2, 2), (0, 0)),
        (64, (2, 1), (1, 0)),
        (64, (1, 1), (0, 0)),
    ]
    layers: list[Layer] = []
    shape = (3, 66, 200)
    for number, (outputs, stride, padding) in enumerate(shapes):
        layer = conv(f"conv{number}", outputs, shape, stride=stride, padding=padding)
        layers.append(layer)
        shape = layer.output_shape
    assert shape == (64, 2, 20)
    layers += [
        dense("d0", 2560, 100),
        dense("d1", 100, 50),
        dense("d2", 50, 10),
        dense("d3", 10, 1),
    ]
    placement = place(network(*layers, neuron=NEURON))
    log = [13, 25, 13, 3, 3, 2, 12, 1, 1, 1]
    ours = [layer.cores for layer in placement.layers]
    assert ours == [10, 20, 7, 2, 2, 1, 7, 1, 1, 1]
    assert all(a <= b for a, b in zip(ours, log, strict=True))
    assert [layer.use("synapse_words").used for layer in placement.layers[-3:]] == [1300, 150, 10]
    # Kernels are counted at 8 bits a weight; the log's are narrower, so its words are fewer.
    kernels = [layer.use("synapse_words").used for layer in placement.layers[1:6]]
    assert all(
        used >= logged for used, logged in zip(kernels, [81, 864, 1620, 2160, 2880], strict=True)
    )
    assert (placement.chips, placement.fits) == (1, True)


def test_loihi1_words_follow_nengo_loihi() -> None:
    memory = chip_profile("loihi1").synapse_memory
    # (10 + 8 n) bits in words of 64, at most 64 weights to a block; indices of 7 bits reach 100 neurons.
    assert memory.words([0, 1, 6, 7, 64, 65]).tolist() == [0, 1, 1, 2, 9, 10]
    assert memory.words([3, 4, 64], targets=100).tolist() == [1, 2, 16]
    assert memory.words([6, 64], delays=True).tolist() == [2, 15]
    assert place(mnist(), "loihi1").cores == 3
    with pytest.raises(DeployError, match="synapse index: 4097 neurons on a core > 4096"):
        memory.words([3], targets=4097)


# --- what does not fit -------------------------------------------------------------------------------------------------


def test_a_neuron_with_too_many_inputs_cannot_be_split() -> None:
    placement = place(network(dense("fc", 4097, 2)), "loihi1")
    assert not placement.fits
    (problem,) = placement.problems
    assert problem.startswith(
        "layer 'fc': one neuron alone needs 4097 input axons > 4096 per core of Loihi 1 (high "
    )
    assert "; a neuron cannot be split, so give it fewer inputs" in problem
    assert place(network(dense("fc", 4096, 2)), "loihi1").fits
    # Loihi 2's limit is only of medium confidence and fails too.
    assert place(network(dense("fc", 12_000, 2))).fits
    (words,) = place(network(dense("fc", 12_001, 2))).problems  # a row of one weight is a word
    assert (
        "one neuron alone needs 12001 synapse words > 12000 per core of Loihi 2 (medium confidence: "
        in words
    )
    assert len(place(network(dense("fc", 16_001, 2))).problems) == 2


def test_a_neuron_with_too_many_synapses_is_named() -> None:
    placement = place(network(conv("big", 2, (200, 9, 9), kernel=9)))
    (axons, words) = placement.problems
    assert "one neuron alone needs 16200 input axons > 16000" in axons
    assert "one neuron alone needs 16200 synapse words > 12000 per core of Loihi 2" in words
    assert placement.layers[0].cores >= 1
    json.dumps(placement.to_json())


def test_a_loop_over_many_cores_runs_out_of_output_axons() -> None:
    chip = custom("loihi1", neurons=10, output_axons=39)
    assert place(network(loop("r", 3, 29)), chip).fits  # 5 cores of 6: 6 * (5 + 1) = 36
    placement = place(network(loop("r", 3, 40)), chip)
    (problem,) = placement.problems
    assert "layer 'r': a core of 4 needs 50 output axons > 39 per core" in problem
    assert placement.layers[0].cores == 4


def test_output_axons_split_a_layer() -> None:
    chip = custom("loihi1", neurons=10, output_axons=25)
    first, second = place(network(dense("a", 3, 20), dense("b", 20, 50)), chip).layers
    assert second.cores == 5
    assert first.cores == 4  # 5 axons per neuron: 5 neurons a core
    assert first.use("output_axons").used == 25
    assert first.decided_by == "output_axons"


def test_a_low_limit_warns_and_a_high_one_fails() -> None:
    net = network(dense("a", 50, 8), dense("b", 8, 30))
    low = custom("loihi1", output_axons=(7, "low"))
    placement = place(net, low)
    assert placement.fits
    assert [layer.cores for layer in placement.layers] == [1, 1]
    assert placement.layers[0].use("output_axons").available is None
    assert [w.split(" (")[0] for w in placement.warnings] == [
        "layer 'a': a core needs 8 output axons > 7 of tiny",
        "layer 'b': a core needs 30 output axons > 7 of tiny",
    ]
    high = place(net, custom("loihi1", output_axons=7))
    assert high.fits
    assert [layer.cores for layer in high.layers] == [
        8,
        5,
    ]  # a core of two neurons that reach 5 cores has 10
    assert not high.warnings


def test_more_chips_than_one_are_said() -> None:
    # One core holds 4096 neurons.
    placement = place(network(conv("c", 33, (1, 128, 128), kernel=1)))
    assert placement.layers[0].cores == 132
    assert (placement.chips, placement.fits) == (2, True)
    assert placement.warnings == (
        "network: 132 cores > 128 per chip of Loihi 2 (high confidence: open-neuromorphic.org, Loihi 2); it takes 2 chips",
    )
    assert placement.layers[0].decided_by == "neurons"
    uses = {use.resource: (use.used, use.available) for use in placement.utilisation}
    assert uses["cores"] == (132, 256)
    assert uses["neurons"] == (33 * 128 * 128, 256 * 4096)


def test_a_voltage_readout_has_no_output_axons() -> None:
    layer = Dense("fc", np.ones((4, 3), dtype=np.int32), Neuron(4096, 512, NON_SPIKING_VTH, "n"))
    placement = place(ChipNetwork((layer,), InputCoding((3,)), Readout("voltage")))
    assert placement.layers[0].use("output_axons").used == 0


def test_notes_say_how_synapses_were_counted() -> None:
    net = network(
        conv("c", 4, (2, 8, 8)), dense("fc", 144, 5, delay_int=np.ones((5, 144), dtype=np.int32))
    )
    two, one = place(net, "loihi2").layers, place(net, "loihi1").layers
    assert two[0].note == "kernel stored once per core: 72 weights for 2592 synapses"
    assert one[0].note == "no sharing assumed: all 2592 synapses stored"
    assert two[1].note == "6 bits of delay stored with every synapse"
    assert place(mnist()).layers[0].note == ""


# --- profiles, table, JSON ---------------------------------------------------------------------------------------------


def test_profiles_are_complete() -> None:
    assert set(chips()) == {"loihi1", "loihi2"}
    numbers = {
        (name, limit.resource, limit.per, limit.confidence): limit.value
        for name, chip in chips().items()
        for limit in chip.limits
    }
    assert numbers == {
        ("loihi1", "neurons", "core", "high"): 1024,
        ("loihi1", "input_axons", "core", "high"): 4096,
        ("loihi1", "output_axons", "core", "high"): 4096,
        ("loihi1", "synapse_words", "core", "high"): 128 * 1024 // 8,
        ("loihi1", "compartment_configs", "core", "high"): 32,
        ("loihi1", "threshold_configs", "core", "high"): 16,
        ("loihi1", "cores", "chip", "high"): 128,
        ("loihi2", "neurons", "core", "medium"): 4096,
        ("loihi2", "neurons", "core", "low"): 8192,
        ("loihi2", "input_axons", "core", "medium"): 16_000,
        ("loihi2", "synapse_words", "core", "medium"): 12_000,
        ("loihi2", "memory_bytes", "core", "low"): 192 * 1024,
        ("loihi2", "cores", "chip", "high"): 128,
        ("loihi2", "neurons", "chip", "high"): 1_000_000,
        ("loihi2", "synapses", "chip", "medium"): 120_000_000,
    }


def test_profiles_refuse_what_is_missing_or_unknown() -> None:
    with pytest.raises(DeployError, match="chip: 'loihi9' is not known; choose loihi1 or loihi2"):
        place(mnist(), "loihi9")
    raw = chip_profile("loihi2").model_dump()
    with pytest.raises(ValidationError, match="no limit of high or medium confidence"):
        Chip.model_validate({**raw, "limits": raw["limits"][1:]})
    with pytest.raises(
        ValidationError, match="two limits of one resource have the same confidence"
    ):
        Chip.model_validate({**raw, "limits": [*raw["limits"], raw["limits"][0]]})
    with pytest.raises(ValidationError, match="an index of 12 bits does not reach 4097 neurons"):
        custom("loihi1", neurons=4097)
    with pytest.raises(ValidationError, match="confidence"):
        Chip.model_validate({**raw, "limits": [{**raw["limits"][0], "confidence": "sure"}]})
    with pytest.raises(ValidationError, match="source"):
        Chip.model_validate({**raw, "limits": [{**raw["limits"][0], "source": ""}]})


def big() -> Placement:
    wide = conv("a convolution with a long name", 33, (1, 128, 128), kernel=1)
    return place(network(wide, dense("fc", 33 * 128 * 128, 1)), "loihi1")


@pytest.mark.parametrize("placement", [place(mnist()), place(mnist(), "loihi1")])
def test_table_rows(placement: Placement) -> None:
    header, rows = table(placement)
    assert len({len(header), *map(len, rows)}) == 1
    assert [row[0] for row in rows] == ["fc1", "fc2", "fc3", "all", "limit", "confidence"]


def test_table_of_mnist_by_hand() -> None:
    header, rows = table(place(mnist()))
    assert header == (
        "layer",
        "neurons",
        "cores",
        "neurons/core",
        "in axons",
        "out axons",
        "syn words",
        "decided by",
    )
    assert rows[0] == ("fc1", "128", "3", "43", "784", "43", "8624", "syn words")
    assert rows[3] == ("all", "202", "5", "", "", "", "", "1 chip")
    assert rows[4] == ("limit", "", "128", "4096", "16000", "?", "12000", "")
    assert rows[5] == ("confidence", "", "high", "medium", "medium", "", "medium", "")


def test_table_fits_a_page() -> None:
    placement = big()
    header, rows = table(placement)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    assert sum(widths) + 3 * len(widths) + 1 <= 100
    assert rows[0][0] == "a convolution…"


def test_json_round_trip() -> None:
    placement = place(mnist())
    read = json.loads(json.dumps(placement.to_json()))
    assert read["fits"] is True
    assert read["layers"][0]["per_core"][3] == {
        "resource": "output_axons", "used": 43, "available": None, "unit": "output axons", "confidence": None,
    }  # fmt: skip
    assert read["layers"][0]["split"] == [3, 1, 1]


# --- registers of each neuron


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 1, 1), (2, 3, 1), (3, 2, 4)])
def test_distinct_registers_of_every_core(split: Split) -> None:
    rng = np.random.default_rng(3)
    shape = (6, 5, 4)
    cell = Neuron(*(rng.integers(1, 5, shape) for _ in range(3)))
    layer = Conv("c", np.ones((6, 1, 1, 1), np.int32), cell, (1, 5, 4))
    memory = chip_profile("loihi1").synapse_memory
    counter = LayerCounter(layer, memory, np.ones(shape, dtype=np.int64))
    decays, thresholds = defaultdict(set), defaultdict(set)
    i, v, vth = (np.asarray(r).reshape(shape) for r in (cell.i_decay, cell.v_decay, cell.vth_int))
    for neuron, core in core_of(shape, split).items():
        decays[core].add((i[neuron], v[neuron]))
        thresholds[core].add(vth[neuron])
    for resource, walked in (("compartment_configs", decays), ("threshold_configs", thresholds)):
        loads = counter.loads(resource, split)  # type: ignore[arg-type]
        assert {core: int(loads[core]) for core in np.ndindex(split)} == {
            core: len(found) for core, found in walked.items()
        }
        assert counter.worst(resource, split) == max(map(len, walked.values()))  # type: ignore[arg-type]


def test_tables_of_registers_cut_layers_on_loihi_1_alone() -> None:
    """16 thresholds and 32 pairs of decays lie on a core of Loihi 1; of Loihi 2 nothing is known."""
    weight = np.ones((64, 10), dtype=np.int32)
    own = Dense("own", weight, Neuron(4096, 100, np.arange(1, 65)))
    placed = place(network(own), "loihi1")
    assert placed.fits
    assert (placed.cores, placed.layers[0].decided_by) == (4, "threshold_configs")
    assert placed.layers[0].use("threshold_configs").used == 16
    assert placed.layers[0].use("compartment_configs").used == 1
    assert "thresholds" in str(table(placed))
    decays = Dense("own", weight, Neuron(np.arange(1, 65), 100, 7))
    assert (place(network(decays), "loihi1").cores, place(network(own), "loihi2").cores) == (2, 1)
    assert place(network(own), "loihi2").layers[0].use("threshold_configs").available is None
    # Two kinds of neurons, such as neurons and relays, take two entries.
    relays = Dense("own", weight, Neuron(4096, 100, np.where(np.arange(64) % 2, 1, 50)))
    assert place(network(relays), "loihi1").cores == 1
    driven = network(
        Dense("d", np.ones((2, 64), np.int32), NEURON), neuron=Neuron(4096, 0, np.arange(1, 65))
    )
    assert place(driven, "loihi1").layers[0].cores == 4
