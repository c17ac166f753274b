"""Folding: pooling, scales and groups become plain synapses, and no spike moves in float64."""

from __future__ import annotations

import itertools
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from knarr.export import ExportError, SumPool2d, fold, fold_difference, graph_hash, step_nir, to_nir

DT_S = 1e-3
PLAIN = (
    nir.Input, nir.Output, nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.IF
)  # fmt: skip


def lif(threshold: float = 0.3) -> nir.LIF:
    one = np.ones(())
    return nir.LIF(
        tau=4e-3 * one, r=one, v_leak=0 * one, v_threshold=threshold * one, v_reset=0 * one
    )


def chain(shape: tuple[int, ...], *nodes: Any) -> nir.NIRGraph:
    names = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": None})
    return nir.NIRGraph(
        dict(zip(names, (ends[0], *nodes, ends[1]), strict=True)),
        list(itertools.pairwise(names)),
        type_check=False,
    )


def conv(
    rng: np.random.Generator, outputs: int, inputs: int, size: Any, **fields: Any
) -> nir.Conv2d:
    high, wide = np.broadcast_to(size, (2,))
    groups = fields.pop("groups", 1)
    return nir.Conv2d(
        input_shape=None,
        weight=rng.normal(0, 1, (outputs, inputs // groups, high, wide)),
        stride=np.broadcast_to(fields.pop("stride", 1), (2,)),
        padding=np.broadcast_to(fields.pop("padding", 0), (2,)),
        dilation=np.broadcast_to(fields.pop("dilation", 1), (2,)),
        groups=groups,
        bias=rng.normal(0, 0.1, outputs),
        **fields,
    )


def pool(kind: Any, size: Any, stride: Any, padding: Any = 0) -> Any:
    pair = (np.broadcast_to(v, (2,)) for v in (size, stride, padding))
    return kind(**dict(zip(("kernel_size", "stride", "padding"), pair, strict=True)))


def events(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).random((3, 12, *shape)) < 0.4).astype(np.float32)


def assert_folds(graph: nir.NIRGraph, shape: tuple[int, ...]) -> nir.NIRGraph:
    before = graph_hash(graph)
    folded = fold(graph)
    assert graph_hash(graph) == before  # the original is left alone
    assert all(isinstance(node, PLAIN) for node in folded.nodes.values())
    assert all(int(getattr(node, "groups", 1)) == 1 for node in folded.nodes.values())
    difference = fold_difference(graph, events(*shape), DT_S)
    assert difference.differing_float64 == 0
    assert 0 <= difference.v_difference_float32 < 1e-3
    # Summed in another order, so the last bits of float64 move: at most 1e-9 of values around 1.
    outputs = [step_nir(g, events(*shape), DT_S, dtype="float64").output for g in (graph, folded)]
    assert np.allclose(outputs[0], outputs[1], rtol=0, atol=1e-9)
    return folded


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([nir.AvgPool2d, nir.SumPool2d]),
    size=pairs, stride=pairs, pool_padding=st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    kernel=pairs, conv_stride=pairs, padding=st.sampled_from([(0, 0), (1, 1), (2, 0)]), dilation=st.sampled_from([(1, 1), (2, 1)]),
    groups=st.sampled_from([1, 2]), sides=st.tuples(st.integers(9, 12), st.integers(9, 12)), after=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_pool_and_convolution_are_one_or_two_in_a_row(
    kind: Any, size: Any, stride: Any, pool_padding: Any, kernel: Any, conv_stride: Any, padding: Any, dilation: Any,
    groups: int, sides: Any, after: bool, seed: int,
) -> None:  # fmt: skip
    """In either order, with every stride, padding and dilation: the same numbers."""
    rng = np.random.default_rng(seed)
    pooling = pool(kind, size, stride, (0, 0) if kind is nir.AvgPool2d else pool_padding)
    convolution = conv(
        rng, 4, 2, kernel, stride=conv_stride, padding=padding, dilation=dilation, groups=groups
    )
    nodes = (convolution, pooling) if after else (pooling, convolution)
    graph = chain((2, *sides), *nodes, lif(0.05))
    try:
        step_nir(graph, events(2, *sides), DT_S)
    except ExportError:
        return  # a window larger than what arrives
    if sum(z.sum() for z in step_nir(graph, events(2, *sides), DT_S).spikes.values()):
        folded = assert_folds(graph, (2, *sides))
        left = sum(isinstance(node, nir.Conv2d) for node in folded.nodes.values())
        # Padding alone keeps the two from being one.
        assert left == 1 or (left == 2 and (any(pool_padding) or any(padding)))


def test_pool_before_a_linear_layer_and_two_pools_in_a_row() -> None:
    rng = np.random.default_rng(0)
    flatten = nir.Flatten({"input": None}, start_dim=0, end_dim=-1)
    graph = chain(
        (2, 11, 9), pool(nir.SumPool2d, (3, 2), (2, 2)), lif(), pool(nir.AvgPool2d, 2, 2), pool(nir.SumPool2d, 2, 1), flatten,
        nir.Affine(rng.normal(0, 1, (5, 2)), rng.normal(0, 0.1, 5)), lif(0.02),
    )  # fmt: skip
    folded = assert_folds(graph, (2, 11, 9))
    assert (
        sum(isinstance(node, nir.Conv2d) for node in folded.nodes.values()) == 1
    )  # the pool before a neuron
    assert folded.nodes["n5"].weight.shape == (5, 2 * 5 * 4)
    assert folded.metadata["folded"].count("pooling") == 3


def test_scales_go_before_or_behind() -> None:
    rng = np.random.default_rng(1)
    per_channel = np.array([0.5, 2.0, 3.0]).reshape(3, 1, 1) * np.ones((3, 6, 6))
    graph = chain(
        (2, 6, 6), conv(rng, 3, 2, 3, padding=1), nir.Scale(per_channel), lif(), nir.Scale(np.array(0.3)),
        conv(rng, 4, 3, 2, groups=1), lif(0.1),
    )  # fmt: skip
    folded = assert_folds(graph, (2, 6, 6))
    assert "n1" not in folded.nodes
    assert "n3" not in folded.nodes
    uneven = chain((2, 6, 6), lif(), nir.Scale(rng.random((2, 6, 6))), conv(rng, 3, 2, 3), lif())
    with pytest.raises(ExportError, match=r"node 'n1': no synapse .* can take in this scale"):
        fold(uneven)


def test_branches_take_the_pool_each_for_itself() -> None:
    rng = np.random.default_rng(2)
    nodes = {
        "input": nir.Input({"input": np.array([2, 8, 8])}), "z": lif(), "pool": pool(nir.AvgPool2d, 2, 2),
        "a": conv(rng, 3, 2, 3, padding=1), "b": conv(rng, 3, 2, 1), "zz": lif(0.1), "output": nir.Output({"output": None}),
    }  # fmt: skip
    edges = [
        ("input", "z"),
        ("z", "pool"),
        ("pool", "a"),
        ("pool", "b"),
        ("a", "zz"),
        ("b", "zz"),
        ("zz", "output"),
    ]
    folded = assert_folds(nir.NIRGraph(nodes, edges, type_check=False), (2, 8, 8))
    assert "pool" not in folded.nodes
    assert {("z", "a"), ("z", "b")} <= set(folded.edges)


def test_an_exported_student_folds(
    student: snn.SequentialState, spikes: np.ndarray[Any, Any]
) -> None:
    graph = to_nir(student, (2, 18, 18), DT_S, samples=spikes)
    difference = fold_difference(graph, spikes, DT_S)
    assert difference.differing_float64 == 0
    assert difference.spikes > 500
    assert difference.v_difference_float32 < 1e-4
    assert "certificate" not in fold(graph).metadata


def test_batch_norm_and_groups_arrive_folded() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    module = snn.SequentialState(
        nn.Conv2d(2, 4, 3, groups=2), norm, snn.LIFBoxCell(snn.LIFBoxParameters(v_th=torch.tensor(0.1))), SumPool2d(2), nn.Flatten(),
        nn.Linear(16, 3), snn.LIFBoxCell(snn.LIFBoxParameters(v_th=torch.tensor(0.05))),
    ).eval()  # fmt: skip
    with torch.no_grad():
        module[0].weight *= 5
        module[5].weight *= 5
    graph = to_nir(module, (2, 6, 6), DT_S)
    assert_folds(graph, (2, 6, 6))


def test_a_pool_that_shares_its_synapse_is_a_convolution_of_its_own() -> None:
    rng = np.random.default_rng(3)
    nodes = {
        "input": nir.Input({"input": np.array([2, 4, 4])}), "z": lif(), "pool": pool(nir.SumPool2d, 1, 1), "a": conv(rng, 3, 2, 3),
        "y": lif(), "output": nir.Output({"output": None}),
    }  # fmt: skip
    edges = [("input", "z"), ("z", "pool"), ("pool", "a"), ("z", "a"), ("a", "y"), ("y", "output")]
    folded = assert_folds(nir.NIRGraph(nodes, edges, type_check=False), (2, 4, 4))
    assert folded.metadata["folded"] == "pooling 'pool' as a convolution of its own"


def test_silence_proves_nothing() -> None:
    graph = chain(
        (2, 6, 6), pool(nir.SumPool2d, 2, 2), conv(np.random.default_rng(0), 3, 2, 2), lif(1e6)
    )
    with pytest.raises(ExportError, match="never fired"):
        fold_difference(graph, events(2, 6, 6), DT_S)


def test_a_pool_that_closes_a_loop_keeps_its_step() -> None:
    """What comes back to the pool waits; handed on to two nodes it would wait at one of them alone."""
    fields = {"r": 1e3 * np.ones((1, 2, 2)), "v_reset": np.zeros((1, 2, 2))}
    one = conv(np.random.default_rng(0), 1, 1, 1)
    one.weight, one.bias = np.ones((1, 1, 1, 1)), np.zeros(1)
    nodes = {
        "input": nir.Input({"input": np.array([1, 2, 2])}), "pool": pool(nir.SumPool2d, 1, 1),
        "z": nir.IF(v_threshold=0.5 * np.ones((1, 2, 2)), **fields), "side": one, "y": nir.IF(v_threshold=1.5 * np.ones((1, 2, 2)), **fields),
        "output": nir.Output({"output": None}),
    }  # fmt: skip
    edges = [
        ("input", "pool"),
        ("pool", "z"),
        ("z", "pool"),
        ("pool", "side"),
        ("side", "y"),
        ("y", "output"),
    ]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    x = np.zeros((1, 4, 1, 2, 2))
    x[:, 1] = 1
    assert step_nir(graph, x, DT_S).output[0, :, 0, 0, 0].tolist() == [0, 0, 1, 0]
    assert step_nir(fold(graph), x, DT_S).output[0, :, 0, 0, 0].tolist() == [0, 0, 1, 0]
