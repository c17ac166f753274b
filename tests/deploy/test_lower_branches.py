"""Branches, skips, sums, windows and registers of each neuron: the chip fires just where the graph does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from branching import FEATURES, SENT, Branching, bits_of, events
from graphs import DT_S, chain, conv2d, cuba, flatten, integrate, lif, on_grid, pool, spikes
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from knarr.deploy import DeployError, check, lower, read_net, run_on_lava, verify, write_net
from knarr.deploy.lowering.places import node_places
from knarr.export import graph_hash, step_nir, to_nir
from knarr.hw_sim import ChipNetwork, Conv, Dense, compare, count, simulate
from knarr.hw_sim.network import Layer
from knarr.hw_sim.synapse_masks import synapse_mask

RUNS = int(os.environ.get("KNARR_CONFORMANCE", "0"))
EXAMPLES = max(60, 2 * RUNS)
"""Graphs whose spikes are compared: hundreds by `make conformance`."""
RNG = np.random.default_rng(19)
Array = np.ndarray[Any, Any]


def differing(graph: nir.NIRGraph, network: ChipNetwork, inputs: Array) -> dict[str, int]:
    """Decisions of each node that differ between graph and chip, of networks that lost nothing to rounding."""
    for facts in network.lowering["layers"]:
        assert facts["weight_error"] < 1e-9, facts
        assert (facts["bias_error"] or 0.0) < 1e-9, facts
    floats = step_nir(graph, inputs / network.input.units, DT_S, dtype="float64")
    chip = simulate(network, inputs, record=("spikes",))
    found = {}
    for name, (layer, seat) in node_places(network).items():
        if name in floats.spikes:
            fired = seat.take(chip.spikes[layer])
            found[name] = int((fired != floats.spikes[name].reshape(fired.shape)).sum())
    assert set(found) == set(floats.spikes)
    return found


def whole(network: ChipNetwork) -> bool:
    """Tell whether 8 bits held every weight and bias."""
    return all(
        facts["weight_error"] < 1e-9 and (facts["bias_error"] or 0.0) < 1e-9
        for facts in network.lowering["layers"]
    )


def drawn_and_lowered(random: Random, sent: str) -> tuple[Branching, nir.NIRGraph, ChipNetwork]:
    drawn = Branching(random, graded=sent != "spikes")
    graph = drawn.graph()
    network = lower(graph, DT_S, input_bits=bits_of(sent), input_signed="signed" in sent)
    return drawn, graph, network


def test_drawn_graphs_fire_alike_on_the_chip() -> None:
    """Count the networks that were compared: what 8 bits do not hold is drawn anew, and no graph counts twice."""
    compared: set[str] = set()
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )  # fmt: skip
    @given(random=st.randoms(use_true_random=True), sent=st.sampled_from(SENT))
    def fires_alike(random: Random, sent: str) -> None:
        drawn, graph, network = drawn_and_lowered(random, sent)
        assume(whole(network))  # pools that overlap may give weights of more than 8 bits
        assert [str(v) for v in check(network) if v.severity == "error"] == []
        inputs = events(drawn, 0, sent)
        assert set(differing(graph, network, inputs).values()) <= {0}
        key = f"{sent} {graph_hash(graph)}"
        if key not in compared and simulate(network, inputs).output.any():
            compared.add(key)
            seen.update({*drawn.features(), sent})

    fires_alike()
    # pytest -s shows it.
    sys.stdout.write(f"{len(compared)} networks were compared: {dict(seen)}\n")
    assert len(compared) >= (300 if RUNS else 30)
    assert set(seen) == {*FEATURES, *SENT}


def test_what_is_drawn_holds_every_kind_and_fires() -> None:
    seen: set[str] = set()
    kept = 0
    for seed in range(40):
        drawn = Branching(Random(seed))
        graph = drawn.graph()
        network = lower(graph, DT_S)
        kept += whole(network)
        said = " ".join(network.lowering["rewrites"])
        seen |= {type(layer).__name__ for layer in network.layers}
        seen |= {"windows"} if "windows" in said else set()
        seen |= {"relay"} if "relay neurons" in said else set()
        seen |= {"dense"} if "as a dense layer" in said else set()
        for what in ("thresholds", "v_decay"):
            seen |= {what} if f"a register of each neuron for {what}" in said else set()
        for places in network.lowering["places"].values():
            seen |= {"shared layer"} if len(places) > 1 else set()
            seen |= {"squares"} if any(p["factors"] != [1, 1] for p in places) else set()
        trace = step_nir(graph, events(drawn, seed), DT_S)
        seen |= {"fires"} if all(z.any() for z in trace.spikes.values()) else set()
    assert seen == {
        "Conv", "Dense", "windows", "relay", "dense", "thresholds", "v_decay", "shared layer", "squares", "fires"
    }  # fmt: skip
    assert kept > 30


# --- Lava and counts


ON_LAVA = range(1000, 1000 + max(1, RUNS * 5 // 11))
"""Seeds of networks, each of which a test compares or fails: 100 in `make conformance`."""
COUNTED = range(2000, 2000 + max(5, RUNS * 5 // 11))


def test_what_lava_runs_and_what_is_counted_holds_every_kind() -> None:
    """Look at the first 100 of both, which `make test` only begins with."""
    for seeds in (ON_LAVA, COUNTED):
        assert not RUNS or len(seeds) >= 100
        seen: Counter[str] = Counter()
        for seed in range(seeds.start, seeds.start + 100):
            sent = SENT[seed % len(SENT)]
            seen.update({*Branching(Random(seed), graded=sent != "spikes").features(), sent})
        assert set(seen) == {*FEATURES, *SENT}
        assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("seed", ON_LAVA)
def test_lava_equals_the_simulator_in_branching_networks(seed: int, tmp_path: Path) -> None:
    sent = SENT[seed % len(SENT)]
    drawn, _, network = drawn_and_lowered(Random(seed), sent)
    path = tmp_path / "network.net"
    write_net(network, path)
    again = read_net(path)
    assert again == network
    assert node_places(again) == node_places(network)
    inputs = events(drawn, seed, sent)
    record = ("output", "spikes", "v", "u")
    lava = run_on_lava(path, inputs, record=record, timeout_s=180)
    ours = simulate(network, inputs, record=record)
    assert [str(divergence) for divergence in compare(lava, ours)] == []
    assert sum(int(z.sum()) for z in ours.spikes.values()) > 0


def tap_walk(layer: Layer, arrived: Array, synapses: Array) -> int:
    """Synaptic operations of what arrived at a layer, one tap at a time; a payload is one event.

    Args:
        layer: the layer.
        arrived: (samples, timesteps, ...).
        synapses: which of its weights are synapses; zeros between those of branches are none.
    """
    arrived = (arrived != 0).sum(axis=(0, 1))
    if not isinstance(layer, Conv):
        return int((arrived * synapses.sum(axis=0)).sum())
    total = 0
    outputs, inside, high, wide = layer.weight_int.shape
    _, rows, columns = layer.output_shape
    by_group = synapses.reshape(layer.groups, outputs // layer.groups, inside, high, wide)
    reached = by_group.sum(axis=1).reshape(-1, high, wide)
    for y, x in product(range(rows), range(columns)):
        for a, b in product(range(high), range(wide)):
            here = (
                y * layer.stride[0] - layer.padding[0] + a * layer.dilation[0],
                x * layer.stride[1] - layer.padding[1] + b * layer.dilation[1],
            )
            if 0 <= here[0] < arrived.shape[-2] and 0 <= here[1] < arrived.shape[-1]:
                total += int((arrived[:, here[0], here[1]] * reached[:, a, b]).sum())
    return total


@pytest.mark.parametrize("seed", COUNTED)
def test_counts_equal_the_tap_walk(seed: int) -> None:
    sent = SENT[seed % len(SENT)]
    drawn, _, network = drawn_and_lowered(Random(seed), sent)
    inputs = events(drawn, seed, sent)
    found = count(network, inputs)
    chip = simulate(network, inputs, record=("spikes",))
    arriving: Array = inputs
    for layer in network.layers:
        shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
        mask = synapse_mask(network, layer)
        synapses = np.ones(layer.weight_int.shape, dtype=bool) if mask is None else mask
        assert synapses[layer.weight_int != 0].all()
        walked = tap_walk(layer, arriving.reshape(*arriving.shape[:2], *shape), synapses)
        operations = found.layers[layer.name]
        # Counts are means over the two samples; a payload of more than one bit is multiplied.
        assert (operations.acc + operations.mac) * 2 == walked, layer.name
        arriving = chip.spikes[layer.name]
    assert found.total.acc + found.total.mac > 0
    assert (found.total.mac > 0) == ("payloads" in sent)
    assert found.total.signed > 0 or sent != "signed spikes"


def through(node: Any, x: torch.Tensor) -> torch.Tensor:
    """What a node without neurons lets pass if every weight of it is 1."""
    if isinstance(node, (nir.Linear, nir.Affine)):
        return x.flatten(1).sum(1, keepdim=True).expand(-1, len(node.weight))
    if isinstance(node, nir.Conv2d):
        padding, stride = (
            side if isinstance(side, str) else tuple(map(int, np.broadcast_to(side, 2)))
            for side in (node.padding, node.stride)
        )
        ones = torch.ones(node.weight.shape, dtype=x.dtype)
        return torch.conv2d(x, ones, None, stride, padding, groups=node.groups)  # type: ignore[arg-type]
    if isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
        size, stride = (tuple(map(int, side)) for side in (node.kernel_size, node.stride))
        return torch.nn.functional.avg_pool2d(x, size, stride)
    assert isinstance(node, (nir.Flatten, nir.Scale)), node
    return x.flatten(1) if isinstance(node, nir.Flatten) else x


def pairs(drawn: Branching, source: str, name: str) -> Array | None:
    """Which element of a source has a synapse to which neuron of a node, zeros among them; None where none has.

    Every element is sent alone through everything between the two, by the graph and never by the chip's layers.
    """
    nodes, stops = drawn.nodes, (nir.IF, nir.LIF, nir.I)
    shape = drawn.input_shape if source == "input" else nodes[source].v_threshold.shape
    alone = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)

    def arriving(at: str) -> torch.Tensor | None:
        parts = [leaving(before) for before, behind in drawn.edges if behind == at]
        there = [part for part in parts if part is not None]
        return (sum(there, torch.zeros(())) > 0).double() if there else None

    def leaving(at: str) -> torch.Tensor | None:
        if at == source:
            return alone
        heard = None if at == "input" or isinstance(nodes[at], stops) else arriving(at)
        return None if heard is None else (through(nodes[at], heard) > 0).double()

    found = arriving(name)
    return None if found is None else np.asarray(found.flatten(1) > 0)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_synapses_of_the_chip_are_those_of_the_graph() -> None:
    """Each event at each neuron that the graph lets it reach, and each spike that a relay neuron hands on."""
    met: Counter[str] = Counter()
    for seed in range(2000, 2000 + max(16, RUNS // 2)):
        sent = SENT[seed % len(SENT)]
        drawn, _, network = drawn_and_lowered(Random(seed), sent)
        inputs = events(drawn, seed, sent)
        found, chip = count(network, inputs), simulate(network, inputs, record=("spikes",))
        seats = node_places(network)
        sending = {
            name: (seat.take(chip.spikes[layer]) != 0).sum(axis=(0, 1)).ravel()
            for name, (layer, seat) in seats.items()
            if not isinstance(drawn.nodes[name], nir.I)
        }
        sending["input"] = (inputs != 0).sum(axis=(0, 1)).ravel()
        arrived: Array = inputs
        copies = False
        for layer in network.layers:
            here = {name: seat for name, (there, seat) in seats.items() if there == layer.name}
            spikes = chip.spikes[layer.name]
            size = int(np.prod(layer.output_shape[1:]))
            shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
            arriving = arrived.reshape(*arrived.shape[:2], *shape)
            arrived = spikes
            # Relay neurons of a pool's windows are no nodes of the graph, and send an element once for each window.
            copied, copies = copies, "_windows" in layer.name
            if copied or copies:
                met["windows"] += 1
                continue
            # A convolution computes its whole grid, whether a node has neurons everywhere or not.
            if isinstance(layer, Conv) and any(
                seat.factors != (1, 1) or np.prod(seat.shape[1:]) != size for seat in here.values()
            ):
                met["part of a grid"] += 1
                continue
            own = np.zeros(int(np.prod(layer.output_shape)), dtype=bool)
            expected = 0
            for name, seat in here.items():
                own[seat.index().ravel()] = True
                for source, sent_by in sending.items():
                    there = pairs(drawn, source, name)
                    expected += 0 if there is None else int(sent_by @ there.sum(axis=1))
            relayed = int((spikes.reshape(*spikes.shape[:2], -1)[..., ~own] != 0).sum())
            operations = found.layers[layer.name]
            counted = (operations.acc + operations.mac) * 2
            kind = f"{type(layer).__name__}{' and relays' if relayed else ''}"
            if counted == expected + relayed:
                met[kind] += 1
                continue
            # Where relay neurons were dropped that only weights of 0 hear, zeros are no synapses.
            assert counted == tap_walk(layer, arriving, layer.weight_int != 0), (seed, layer.name)
            assert counted < expected + relayed
            met["zeros dropped"] += 1
    assert min(met[kind] for kind in ("Conv", "Conv and relays", "Dense", "Dense and relays")) > 5, met  # fmt: skip
    assert met["zeros dropped"] < met.total() / 10, met


# --- one of each


def fires(shape: tuple[int, ...], high: float = 1.0) -> nir.IF:
    return integrate(shape, v_threshold=np.full(shape, high))


def grown(input_shape: tuple[int, ...], edges: str, **nodes: Any) -> nir.NIRGraph:
    """A graph of named nodes and edges written "a>b b>c"."""
    outputs = nodes[edges.split(">")[-2].split()[-1]].v_threshold.shape
    ends = {
        "input": nir.Input({"input": np.array(input_shape)}),
        "output": nir.Output({"output": np.array(outputs)}),
    }
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    return nir.NIRGraph({**ends, **nodes}, pairs, type_check=False)


def kernel(outputs: int, inputs: int, size: int = 3, **fields: Any) -> nir.Conv2d:
    return conv2d(RNG.integers(-30, 31, (outputs, inputs, size, size)) / 32, **fields)


RESIDUAL = grown(
    (2, 6, 6),
    "input>a a>n1 n1>b b>n2 n2>c n1>c c>n3 n3>f f>d d>n4 n4>output",
    a=kernel(3, 2, padding=1), n1=fires((3, 6, 6), 2), b=kernel(3, 3, padding=1), n2=fires((3, 6, 6), 2),
    c=kernel(2, 3, padding=1), n3=fires((2, 6, 6), 2), f=flatten(2, 6, 6), d=nir.Linear(on_grid(RNG, 3, 72)), n4=fires((3,), 3),
)  # fmt: skip
"""SEW-add: spikes of two layers are summed before a synapse."""
STRIDED = grown(
    (2, 8, 8),
    "input>a a>n1 n1>b b>n2 n2>c c>n3 n3>s n1>p p>n3 s>n4 n4>f f>d d>n5 n5>output",
    a=kernel(2, 2, padding=1), n1=fires((2, 8, 8)), b=kernel(3, 2, padding=1, stride=2), n2=fires((3, 4, 4)),
    c=kernel(3, 3, padding=1), n3=fires((3, 4, 4)), p=kernel(3, 2, size=1, stride=2), s=kernel(2, 3, padding=1),
    n4=fires((2, 4, 4)), f=flatten(2, 4, 4), d=nir.Linear(on_grid(RNG, 3, 32)), n5=fires((3,)),
)  # fmt: skip
"""A projection of stride 2 over two layers, as residual networks have it."""
CONCATENATED = grown(
    (6,),
    "input>a a>n1 n1>b b>n2 n2>c c>n3 n3>d1 n1>d2 input>d3 d1>n4 d2>n4 d3>n4 n4>output",
    a=nir.Linear(on_grid(RNG, 5, 6)), n1=fires((5,)), b=nir.Linear(on_grid(RNG, 4, 5)), n2=fires((4,)),
    c=nir.Affine(on_grid(RNG, 4, 4), on_grid(RNG, 4)), n3=fires((4,)), d1=nir.Linear(on_grid(RNG, 3, 4)),
    d2=nir.Linear(on_grid(RNG, 3, 5)), d3=nir.Linear(on_grid(RNG, 3, 6)), n4=fires((3,), 2),
)  # fmt: skip
"""The last layer hears three layers, one of them the input: what a concatenation is."""


@pytest.mark.parametrize(
    ("graph", "shape", "depth", "relays"),
    [
        (RESIDUAL, (2, 6, 6), 4, {"b+n1": 108}),
        # Of the squares of the larger image one pixel in four is heard.
        (STRIDED, (2, 8, 8), 5, {"b+n1": 32}),
        (CONCATENATED, (6,), 4, {"a+input": 6, "b+n1+input": 11, "c+n1+input": 11}),
    ],
)
def test_branches_become_a_row_of_layers(
    graph: nir.NIRGraph, shape: tuple[int, ...], depth: int, relays: dict[str, int]
) -> None:
    inputs = spikes(3, 30, *shape, seed=4)
    network = lower(graph, DT_S)
    assert len(network.layers) == depth
    assert set(differing(graph, network, inputs).values()) == {0}
    trace = step_nir(graph, inputs, DT_S)
    assert all(0.01 < z.mean() < 0.99 for z in trace.spikes.values())
    found = {}
    for layer in network.layers:
        own = sum(
            int(np.prod(seat.shape))
            for name, seat in node_places(network).values()
            if name == layer.name
        )
        if int(np.prod(layer.output_shape)) > own:
            found[layer.name] = int(np.prod(layer.output_shape)) - own
    assert found == relays
    assert network.relay_neurons == relays
    ledger = " ".join(row.note for row in count(network, inputs).ledger)
    assert all(f"{n:,} of " in ledger for n in relays.values())
    said = " ".join(network.lowering["rewrites"])
    assert all(f"'{name}': relay neurons" in said for name in relays)


def test_calibration_measures_every_node_of_a_shared_layer() -> None:
    inputs = spikes(4, 30, 2, 8, 8, seed=5)
    network = lower(STRIDED, DT_S, calibration=inputs)
    facts = network.lowering["layers"]
    assert [each["neuron"] for each in facts] == ["n1", "n2", "n3", "n4", "n5"]
    assert [each["mismatches"] for each in facts] == [0] * 5
    assert all(each["classes_kept"] == 4 for each in facts)


def test_verification_names_the_nodes_of_a_shared_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    inputs = spikes(2, 12, 6, seed=6)
    shared = grown(
        (6,), "input>a a>n1 input>b b>n2 n1>c n2>d c>n3 d>n3 n3>output",
        a=nir.Linear(on_grid(RNG, 5, 6)), n1=fires((5,)), b=nir.Linear(on_grid(RNG, 4, 6)), n2=fires((4,)),
        c=nir.Linear(on_grid(RNG, 3, 5)), d=nir.Linear(on_grid(RNG, 3, 4)), n3=fires((3,)),
    )  # fmt: skip
    write_net(lower(shared, DT_S), path)
    found = verify(shared, path, inputs, DT_S)
    measured = [row for row in found.rows if "~" in row.pair]
    assert [(row.layer, row.mismatches) for row in measured] == [("n1", 0), ("n2", 0), ("c+d", 0)]
    assert all(min(row.active) > 0 for row in measured)
    assert found.holds


def padded_behind_pool(
    side: int, size: int, hop: int, **conv: Any
) -> tuple[nir.NIRGraph, tuple[int, ...]]:
    cells = (side - size) // hop + 1
    pooling = nir.SumPool2d(np.array([size] * 2), np.array([hop] * 2), np.array([0, 0]))
    behind = kernel(3, 2, **conv)
    step, around = conv.get("stride", 1), conv.get("padding", 0)
    out = (cells + 2 * around - 3) // step + 1
    graph = chain(
        (2, side, side), (3,), a=kernel(2, 2, size=1), n=fires((2, side, side), 2), p=pooling, b=behind,
        m=fires((3, out, out), 4), f=flatten(3, out, out), d=nir.Linear(on_grid(RNG, 3, 3 * out * out)), k=fires((3,), 4),
    )  # fmt: skip
    return graph, (2, side, side)


@pytest.mark.parametrize(
    ("side", "size", "stride", "conv", "relays"),
    [
        (17, 2, 2, {"padding": 1, "stride": 2}, 0),  # the padding at the far side is never read
        (17, 2, 2, {"padding": 1}, 4 * 2 * 8 * 8),
        (17, 3, 2, {"padding": 1}, 9 * 2 * 8 * 8),
        (16, 2, 2, {"padding": 1}, 0),
        (17, 3, 2, {}, 0),
    ],
)
def test_a_padded_convolution_behind_a_pool(
    side: int, size: int, stride: int, conv: dict[str, int], relays: int
) -> None:
    graph, shape = padded_behind_pool(side, size, stride, **conv)
    network = lower(graph, DT_S)
    assert set(differing(graph, network, spikes(2, 12, *shape, seed=3)).values()) == {0}
    assert all(isinstance(layer, Conv) for layer in network.layers[:-1])
    nodes = sum(int(np.prod(seat.shape)) for _, seat in node_places(network).values())
    assert sum(int(np.prod(layer.output_shape)) for layer in network.layers) - nodes == relays


@pytest.mark.parametrize(
    ("pool_of", "kinds"),
    [
        ({"ceil_mode": True}, (Conv, Dense, Dense)),  # windows of 4, 2 and 1 pixels: no convolution divides so
        ({"padding": 1}, (Conv, Conv, Dense)),
        ({"padding": 1, "count_include_pad": False}, (Conv, Dense, Dense)),
        ({"divisor_override": 2}, (Conv, Conv, Dense)),
    ],
)  # fmt: skip
def test_pools_with_windows_that_nir_does_not_say(
    pool_of: dict[str, Any], kinds: tuple[type, ...]
) -> None:
    module = snn.SequentialState(
        nn.Conv2d(1, 2, 2, bias=False), fires_in_norse(), nn.AvgPool2d(2, **pool_of), nn.Conv2d(2, 3, 2, bias=False), fires_in_norse(),
        nn.Flatten(), nn.LazyLinear(4, bias=False), fires_in_norse(),
    ).eval()  # fmt: skip
    module[6](torch.zeros(1, *module[3](module[2](torch.zeros(1, 2, 5, 5))).flatten(1).shape[1:]))
    with torch.no_grad():
        for at in (0, 3, 6):
            drawn = on_grid(RNG, *module[at].weight.shape, limit=3) * 16
            drawn.flat[0] = 0.75
            module[at].weight.copy_(torch.tensor(drawn))
    inputs = spikes(3, 12, 1, 6, 6, seed=8)
    graph = to_nir(module, (1, 6, 6), DT_S, samples=inputs)
    network = lower(graph, DT_S)
    assert tuple(type(layer) for layer in network.layers) == kinds
    assert set(differing(graph, network, inputs).values()) == {0}


def fires_in_norse() -> snn.IAFCell:
    return snn.IAFCell(snn.IAFParameters(v_th=torch.tensor(0.5)), dt=DT_S)


def test_payloads_that_no_relay_hands_on_go_through_a_dense_layer() -> None:
    graph = chain(
        (1, 7, 7), (3,), p=pool(nir.SumPool2d, 2), b=kernel(2, 1, padding=1), m=fires((2, 3, 3), 4), f=flatten(2, 3, 3),
        d=nir.Linear(on_grid(RNG, 3, 18)), k=fires((3,), 2),
    )  # fmt: skip
    network = lower(graph, DT_S, input_bits=3)
    assert isinstance(network.layers[0], Dense)
    assert (
        "'m': 882 weights as a dense layer, no convolution is exact" in network.lowering["rewrites"]
    )
    inputs = np.random.default_rng(0).integers(0, 8, (2, 12, 1, 7, 7))
    assert set(differing(graph, network, inputs).values()) == {0}


def test_payloads_beside_a_branch_are_refused() -> None:
    with pytest.raises(
        DeployError, match=r"node 'n4': hears the input beside or behind other layers.*feed spikes"
    ):
        lower(CONCATENATED, DT_S, input_bits=4)


def test_a_bias_that_a_current_filters_is_heard_from_a_neuron_that_always_fires() -> None:
    """Currents that forget within a step filter nothing; with the others no bit is lost in 6 steps."""
    current = cuba(
        (5,),
        tau_syn=np.full(5, 2 * DT_S),
        tau_mem=np.full(5, 2 * DT_S),
        w_in=np.full(5, 2.0),
        r=np.full(5, 2.0),
    )
    weight = np.round(on_grid(RNG, 5, 6) * 2) / 4
    graph = chain(
        (6,), (3,), a=nir.Affine(weight, np.array([0.25, -0.25, 0.5, 0, 0.75])), n=current, b=nir.Linear(on_grid(RNG, 3, 5)), m=fires((3,), 2),
    )  # fmt: skip
    network = lower(graph, DT_S)
    assert [layer.name for layer in network.layers] == ["input+bias", "a", "b"]
    assert set(differing(graph, network, spikes(4, 6, 6, seed=2)).values()) == {0}


def test_registers_of_each_neuron() -> None:
    thresholds = np.array([0.5, 1.25, 0.75, 2.0, 1.0])
    taus = np.array([1.0, 2.0, 4 / 3, 2.0, 4.0]) * 2 * DT_S
    cell = lif((5,), tau=taus, r=taus / DT_S, v_threshold=thresholds)
    graph = chain(
        (6,),
        (3,),
        a=nir.Linear(np.round(on_grid(RNG, 5, 6)) / 4),
        n=cell,
        b=nir.Linear(on_grid(RNG, 3, 5)),
        m=fires((3,)),
    )
    network = lower(graph, DT_S)
    neuron = network.layers[0].neuron
    assert np.asarray(neuron.v_decay).tolist() == [2048, 1024, 1536, 1024, 512]
    assert len(set(np.asarray(neuron.vth_int).tolist())) > 2
    assert set(differing(graph, network, spikes(4, 5, 6, seed=2)).values()) == {0}


def test_a_synapse_behind_a_synapse_is_their_product() -> None:
    graph = chain(
        (1, 6, 6), (3,), c=kernel(2, 1, size=3), k=conv2d(np.ones((1, 2, 2, 2)), stride=2), m=fires((1, 2, 2)), f=flatten(1, 2, 2),
        d=nir.Linear(np.ones((4, 4))), e=nir.Affine(on_grid(RNG, 3, 4) / 4, on_grid(RNG, 3)), n=fires((3,)),
    )  # fmt: skip
    network = lower(graph, DT_S)
    assert network.lowering["folded"] == ["synapse 'c' into 'k'", "synapse 'd' into 'e'"]
    assert [layer.weight_int.shape for layer in network.layers] == [(1, 1, 4, 4), (3, 4)]
