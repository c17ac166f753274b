"""Counts of graph structures that the random networks of the oracle do not have, against numbers worked out by hand."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import fields
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
from graphs import DT_S, chain, conv1d, conv2d, flatten, integrate, li, lif, loop, pool, spikes

from knarr.export import ExportError
from knarr.export.graph.topology import inline
from knarr.hw_sim import (
    ChipNetwork,
    CountError,
    Dense,
    InputCoding,
    LayerCounts,
    Neuron,
    Readout,
    count,
)

X = np.array([[[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]])  # six events in three of four steps
CELLS = np.zeros((1, 3, 1, 4, 4))
CELLS[0, 0, 0, 1, 1] = CELLS[0, 1, 0, 0, 0] = CELLS[0, 1, 0, 3, 3] = CELLS[0, 2] = 1
ONE, FULL = nir.Linear(np.eye(3)), nir.Linear(np.ones((3, 3)))
Found = dict[str, int]


def wired(
    edges: str, i: tuple[int, ...] = (3,), o: tuple[int, ...] = (3,), **nodes: Any
) -> nir.NIRGraph:
    nodes |= {"i": nir.Input({"input": np.array(i)}), "o": nir.Output({"output": np.array(o)})}
    return nir.NIRGraph(nodes, [tuple(edge.split(">")) for edge in edges.split()], type_check=False)


def relay(*shape: int) -> Any:
    """Fires where anything positive arrives."""
    return integrate(shape, v_threshold=np.full(shape, 0.5))


def delay(*steps: int, shape: tuple[int, ...] = (3,)) -> Any:
    return nir.Delay(np.broadcast_to(steps, shape) * DT_S)


def line(**nodes: Any) -> nir.NIRGraph:
    return chain((3,), (3,), **nodes)


def back(way: str, **nodes: Any) -> nir.NIRGraph:
    """w feeds n, which hears itself through `way`, a synapse without autapses among it."""
    edges = " ".join(f"{a}>{b}" for a, b in pairwise(["n", *way.split(), "n"]))
    nodes |= {} if "b" in nodes else {"l": nir.Linear(1 - np.eye(3))}
    return wired(f"i>w w>n n>o {edges}", w=ONE, n=relay(3), **nodes)


def total(graph: nir.NIRGraph, inputs: Any, pooling: str = "folded", **more: Any) -> Found:
    """Return the totals that are not 0, of all samples; every node has a row of its own."""
    counts = count(graph, inputs, dt_s=DT_S, pooling=pooling, **more)
    names = [row.name for row in counts.ledger]
    assert len(set(names)) == len(names)
    assert set(inline(graph)[0]) <= set(names)
    aside = {"acc_nonzero", "mac_nonzero", "dense_valid", "dense_padded", "spikes", "graded"}
    sums = {
        f.name: int(getattr(counts.total, f.name) * counts.samples) for f in fields(LayerCounts)
    }
    return {name: n for name, n in sums.items() if n and name not in aside}


def sums(acc: int, events: int, updates: int, touched: int, **more: int) -> Found:
    plain = {"acc": acc, "events": events, "neuron_updates": updates, "touched_updates": touched}
    return {name: n for name, n in {**plain, **more}.items() if n}


# fmt: off
# An event costs one operation per neuron behind a synapse (3), on a bare edge one; 3 neurons and 4 steps make 12 updates.
SAME: dict[str, tuple[nir.NIRGraph, Found]] = {
    "delay before": (line(d=delay(1), w=FULL, n=relay(3)), sums(9, 3, 12, 6)),
    "unequal delays before": (line(d=delay(0, 1, 3), w=FULL, n=relay(3)), sums(9, 3, 12, 6)),
    "delay behind": (line(w=FULL, d=delay(1), n=relay(3)), sums(9, 3, 12, 6)),
    "unequal delays behind": (line(w=FULL, d=delay(0, 0, 3), n=relay(3)), sums(14, 6, 12, 7)),
    "threshold": (line(t=nir.Threshold(np.full(3, 0.5)), w=FULL, n=relay(3)), sums(6 + 18, 12, 12, 9, comparisons=12)),
    "bare, arrows in names": (line(**{"n->1": relay(3), "a->b": relay(3)}), sums(12, 12, 24, 12)),
    "name of a row": (line(w=nir.Affine(np.eye(3), np.ones(3)), **{"w.bias": relay(3)}), sums(18, 6, 12, 12, bias_adds=12)),
    # Fires 101, 101, 101, 111; what it fires in the last step never comes back.
    "bare loop": (loop(line(n=relay(3)), "n"), sums(6 + 6, 12, 12, 9)),
    "synapse after synapse": (line(a=nir.Linear(2 * np.eye(3)), b=FULL, n=relay(3)), sums(18, 12, 12, 9, mac=18)),
    "around a block": (wired("i>w w>n n>a a>m n>m m>o", w=ONE, n=relay(3), a=ONE, m=relay(3)), sums(42, 18, 24, 18)),
    "two neurons": (wired("i>w w>n w>m n>o", w=FULL, n=lif((3,)), m=integrate((3,))), sums(18, 6, 24, 18)),
    "two synapses": (wired("i>n n>a n>b a>m b>m m>o", n=relay(3), a=FULL, b=FULL, m=relay(3)), sums(42, 18, 24, 15)),
    # A membrane that leaks is never 0 again: 2, 2, 2 and 3 graded events.
    "graded": (line(a=ONE, n=li((3,)), b=FULL, m=li((3,))), sums(18, 15, 24, 9 + 12, mac=27)),
}
PLAIN = line(w=FULL, n=relay(3))
BLOCK = nir.NIRGraph({"in": nir.Input({"input": np.array([3])}), "s": nir.Linear(1 - np.eye(3)),
                      "out": nir.Output({"output": np.array([3])})}, [("in", "s"), ("s", "out")], type_check=False)
# All three fire in every step. Spikes that come back before the end, and their operations:
LOOPS = {
    "plain": (back("l"), 9, 18), "nested": (back("b", b=BLOCK), 9, 18), "loop, delay behind": (back("l d", d=delay(1)), 9, 18),
    "loop, two steps": (back("l d", d=delay(2)), 6, 12), "loop, delay before": (back("d l", d=delay(1)), 9, 18),
    "both sides": (back("d l e", d=delay(1), e=delay(1)), 6, 12), "unequal": (back("d l", d=delay(1, 2, 3)), 6, 12),
}
# Graph, inputs, folded, float.
APART: dict[str, tuple[nir.NIRGraph, Any, Found, Found]] = {
    # n fires 101, 101, 101, 111. Apart: 6 events and 6 that come back; together 101, 102, 101, 212.
    "loop into the synapse": (
        wired("i>w w>n n>w n>o", w=ONE, n=relay(3)), X,
        sums(36, 12, 12, 12), sums(12, 9, 12, 12, mac=15, merge_adds=3)),
    "branches into a synapse": (
        wired("i>a i>b a>c b>c c>n n>o", a=relay(3), b=relay(3), c=FULL, n=relay(3)), X,
        sums(12 + 36, 24, 36, 12 + 9), sums(12, 18, 36, 21, mac=18, merge_adds=6)),
    # 19 events lie in windows of p, 5 in those of q. p gives 1; 1, 1; 4, 4, 4, 4 and q nothing; 1; 1, 1, 1, 1.
    "two pools to one neuron": (
        wired("i>p p>n i>q q>n n>o", (1, 4, 4), (1, 2, 2), p=pool(nir.SumPool2d, 2), n=relay(1, 2, 2),
              q=nir.SumPool2d(np.array([1, 1]), np.array([2, 2]), np.array([0, 0]))), CELLS,
        sums(19 + 5, 38, 12, 7), sums(3 + 5, 12, 12, 7, mac=4, pool_adds=24)),
    "pool heard by a synapse and as it is": (
        wired("i>p p>w w>n p>o", (1, 4, 4), (1, 2, 2), p=pool(nir.SumPool2d, 2), w=conv2d(np.ones((1, 1, 1, 1))),
              n=relay(1, 2, 2)), CELLS,
        sums(19, 19, 12, 7, pool_adds=19), sums(3, 7, 12, 7, mac=4, pool_adds=19)),
    "zeros behind": (
        line(w=FULL, s=nir.Scale(np.array([0.0, 1, 1])), n=relay(3)), X,
        sums(18, 6, 12, 9, elementwise=9), sums(18, 6, 12, 9, elementwise=9)),
}
# fmt: on


@pytest.mark.parametrize("pooling", ["folded", "float"])
@pytest.mark.parametrize("name", [*SAME, *LOOPS, *APART])
def test_structures(name: str, pooling: str) -> None:
    if name in SAME:
        assert total(SAME[name][0], X, pooling) == SAME[name][1]
    elif name in APART:
        graph, inputs, *expected = APART[name]
        assert total(graph, inputs, pooling) == expected[pooling == "float"]
    else:
        graph, heard, acc = LOOPS[name]
        pairs = {"recurrent_all_pairs": acc * 3 // 2, "recurrent_no_autapse": acc}
        assert total(graph, np.ones((1, 4, 3)), pooling) == sums(
            36 + acc, 12 + heard, 12, 12, **pairs
        )


@pytest.mark.parametrize("way", ["l s", "s l"])
def test_scale_in_a_loop_is_folded(way: str) -> None:
    assert total(back(way, s=nir.Scale(np.full(3, 2.0))), X) == total(back("l"), X)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"), [(2, 2, "same"), (4, 2, "same"), (3, 2, "valid")]
)
def test_named_padding_in_one_dimension(kernel: int, dilation: int, padding: str) -> None:
    size, reach = 7, dilation * (kernel - 1)
    before, outputs = (reach // 2, size) if padding == "same" else (0, size - reach)
    geometry = {"groups": 2, "dilation": dilation, "padding": padding, "bias": np.ones(4)}
    graph = chain(
        (2, size), (4, outputs), w=conv1d(np.ones((4, 1, kernel)), **geometry), n=relay(4, outputs)
    )
    for at in range(size):
        inputs = np.zeros((1, 1, 2, size))
        inputs[0, 0, 1, at] = 1
        taps = [o + j * dilation - before for o in range(outputs) for j in range(kernel)]
        expected = sums(2 * taps.count(at), 1, 4 * outputs, 4 * outputs, bias_adds=4 * outputs)
        assert total(graph, inputs) == expected


@pytest.mark.parametrize("behind", [{}, {"d": delay(1, shape=(2, 3))}], ids=["plain", "delay"])
def test_partial_flatten_behind_a_pool(behind: dict[str, Any]) -> None:
    part = nir.Flatten({"input": np.array([1, 2, 2])}, 1, 2)
    synapse = {"p": pool(nir.SumPool2d, 2), "f": part, "w": conv1d(np.ones((2, 1, 2)))}
    graph = chain((1, 4, 4), (2, 3), **synapse, **behind, n=relay(2, 3))
    with pytest.raises(CountError, match=r"'w' \(Conv1d\): unsupported, .*use pooling='float'"):
        total(graph, CELLS)
    # Sums at 0; at 0 and 3; everywhere: an end reaches 1 output per channel, a middle 2.
    late = sums(2 + 4, 3, 18, 2 + 4, pool_adds=19)
    assert total(graph, CELLS, "float") == (
        late if behind else sums(6, 7, 18, 12, mac=12, pool_adds=19)
    )


@pytest.mark.parametrize("lengths", [[2, 1], [1, 1], [4, 2]])
def test_lengths_are_runs_that_end_there(lengths: list[int]) -> None:
    """Also where no sample lasts as long as the array."""
    events = sum(int(X[0, :n].sum()) for n in lengths)
    touched = sum(3 * int(X[0, :n].any(axis=1).sum()) for n in lengths)
    found = total(PLAIN, np.concatenate([X, X]), lengths=lengths)
    assert found == sums(3 * events, events, 3 * sum(lengths), touched)


@pytest.mark.parametrize("delays", [[[0, 2]], [[1, 2], [0, 2]], [[2, 2], [2, 9]]])
def test_delays_of_a_chip_network(delays: list[list[int]]) -> None:
    """Arrivals after the inference are not paid; an event is one, whatever its synapses' delays."""
    late = np.array(delays, dtype=np.int32)
    inputs = np.array([[[1, 0], [0, 0], [0, 1], [1, 1], [0, 0]]])
    layer = Dense("a", np.ones(late.shape, dtype=np.int32), Neuron(4096, 0, 1), delay_int=late)
    found = count(ChipNetwork((layer,), InputCoding((2,)), Readout("spikes")), inputs).layers["a"]
    ways = [(t + late[o, j], o, t, j) for _, t, j in np.argwhere(inputs) for o in range(len(late))]
    arriving = [way for way in ways if way[0] < 5]
    assert found.acc == len(arriving)
    assert found.touched_updates == len({way[:2] for way in arriving})
    assert found.events == len({way[2:] for way in arriving})


@pytest.mark.parametrize("pooling", ["folded", "float"])
def test_many_paths_are_refused(pooling: str) -> None:
    edges, nodes, last = "i>w n>o", {"w": ONE, "n": relay(3)}, "w"
    for at in range(15):
        nodes |= {f"{kind}{at}": nir.Scale(np.full(3, 0.5)) for kind in "abc"}
        edges += f" {last}>a{at} {last}>b{at} a{at}>c{at} b{at}>c{at}"
        last = f"c{at}"
    with pytest.raises(CountError, match="paths of events"):
        total(wired(f"{edges} {last}>n", **nodes), X, pooling)


def test_long_kernels_on_long_signals() -> None:
    size, kernel = 4000, 80
    synapse, neurons = conv1d(np.ones((1, 1, kernel))), size - kernel + 1
    inputs, places = spikes(1, 1, 1, size), np.arange(size)
    tracemalloc.start()
    found = total(chain((1, size), (1, neurons), w=synapse, n=relay(1, neurons)), inputs)["acc"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fanout = np.minimum.reduce([places + 1, size - places, np.full(size, kernel)])
    assert found == int(fanout[inputs[0, 0, 0] > 0].sum())
    assert peak < 100 * 2**20


def test_blocks_fit_what_the_graph_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["knarr.hw_sim.counting.count"], "SAMPLE_BLOCK_BYTES", 2**16)
    seen = [0]
    wide = chain((4,), (1000,), w=nir.Linear(np.ones((1000, 4))), n=relay(1000))
    total(wide, spikes(100, 1, 4), progress=seen.append)
    assert max(b - a for a, b in pairwise(seen)) <= 2**16 // 1000


# fmt: off
@pytest.mark.parametrize(("inputs", "acc", "mac"), [
    (X.astype(np.uint64), 18, 0), (X.astype(np.uint64) << np.uint64(63), 0, 18), (X.astype(np.int8) * -128, 0, 18),
    (X * -0.0, 0, 0), (X * -1.0, 18, 0), (iter([(X[:, :2], "label"), (X[:, :1], "label")]), 15, 0),
    (X * (1 + 1e-9), 18, 0), (X * (1 + 2.0**-23), 0, 18),  # the graph computes in float32, where the first is 1
])
def test_values(inputs: Any, acc: int, mac: int) -> None:
    found = total(PLAIN, inputs)
    assert (found.get("acc", 0), found.get("mac", 0)) == (acc, mac)


@pytest.mark.parametrize(("graph", "inputs", "message"), [
    (PLAIN, X * np.nan, "inputs: NaN"), (PLAIN, X.astype(object), "dtype object"), (PLAIN, None, "NoneType"),
    (PLAIN, X * 1e39, "'w': NaN or infinity"),  # more than a float32 holds
    (PLAIN, [[[1, 0, 1]], [[1, 0]]], "no array of numbers"), (PLAIN, iter([X, X[..., :2]]), "inputs: shape"),
    (PLAIN, iter([]), "no batch"), (PLAIN, iter([()]), "empty batch"),
    (back("l d", d=delay(1, 2, 3)), X, "'l' .*delays that differ"),
    (chain((1, 3), (1, 3), w=conv1d(np.ones((1, 1, 1))), d=delay(0, 1, 3, shape=(1, 3)), n=relay(1, 3)),
     np.ones((1, 4, 1, 3)), "'w' .*delays that differ"),
    (chain((1, 4, 4), (1, 2, 2), p=pool(nir.AvgPool2d, 2), d=delay(1, shape=(1, 2, 2)), n=relay(1, 2, 2)),
     CELLS, "pooling 'p' before a Delay"),
    (line(f=flatten(3)), X, "no layer that is counted"),
    (line(s=nir.Scale(np.array([0.0, 1, 1])), w=FULL, n=relay(3)), X, "scale 's' holds zeros"),
    (wired("i>n n>o n>i", n=relay(3)), X, "'i': something feeds this Input"),
])
def test_refusals(graph: nir.NIRGraph, inputs: Any, message: str) -> None:
    with pytest.raises((CountError, ExportError), match=message):
        total(graph, inputs)
