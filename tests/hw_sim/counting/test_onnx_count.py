"""Every operation that the ONNX counter knows, against loops that multiply one pair at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from knarr.hw_sim.counting.counts import LayerCounts, OperationCounts
from knarr.hw_sim.counting.onnx.count import RULES, count_onnx
from knarr.hw_sim.errors import CountError

Array = npt.NDArray[Any]
Pairs = list[tuple[Any, Any]]
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def sparse(rng: np.random.Generator, *shape: int, kept: float = 0.6) -> Array:
    return (rng.standard_normal(shape) * (rng.random(shape) < kept)).astype(np.float32)


def save(
    path: Path,
    nodes: Sequence[Any],
    weights: dict[str, Array],
    shape: Sequence[Any],
    *,
    outputs: Sequence[str] = ("y",),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> Path:
    """A file with input x of this shape; types and shapes of its outputs are left to be inferred."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in domains),
    ]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)
    if not functions:  # inference refuses those that call themselves
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
        del model.graph.output[:]
        model.graph.output.extend(inferred)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
        value.type.tensor_type.shape.SetInParent()  # the checker asks for one, even where nobody knows it
    path.write_bytes(model.SerializeToString())
    return path


def run(path: Path, x: Array, *names: str) -> list[Array]:
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(list(names), {"x": x}))


def tally(pairs: Pairs) -> tuple[int, int, int, int]:
    """Pairs (weight, activation or None for a place that does not exist): padded, valid, without zero weights, effective."""
    valid = [(w, a) for w, a in pairs if a is not None]
    return (
        len(pairs),
        len(valid),
        sum(w != 0 for w, _ in valid),
        sum(a != 0 for _, a in valid),
    )


def check(counts: OperationCounts, name: str, pairs: Sequence[Pairs]) -> LayerCounts:
    """The row of one stored-weight product against the pairs of each sample."""
    layer = counts.layers[name]
    padded, valid, nonzero, _ = tally(pairs[0])
    assert (layer.dense_padded, layer.dense_valid) == (padded, valid)
    assert (layer.mac, layer.mac_nonzero) == (valid, nonzero)
    assert layer.acc == layer.spikes == 0
    assert counts.effective is not None
    assert counts.effective_nonzero is not None
    assert counts.effective[name] == Fraction(sum(tally(one)[3] for one in pairs), len(pairs))
    both = sum(w != 0 and bool(a) for one in pairs for w, a in one if a is not None)
    assert counts.effective_nonzero[name] == Fraction(both, len(pairs))
    return layer


# Convolutions


def conv_pairs(
    x: Array,
    w: Array,
    outputs: Sequence[int],
    strides: Any,
    dilations: Any,
    begins: Any,
    groups: int,
) -> Pairs:
    pairs: Pairs = []
    per_group = w.shape[0] // groups
    for o, *at in product(range(w.shape[0]), *map(range, outputs)):
        for c, *tap in product(range(w.shape[1]), *map(range, w.shape[2:])):
            where = [
                a * s + j * d - p
                for a, s, j, d, p in zip(at, strides, tap, dilations, begins, strict=True)
            ]
            inside = all(0 <= i < n for i, n in zip(where, x.shape[1:], strict=True))
            channel = o // per_group * w.shape[1] + c
            pairs.append((w[(o, c, *tap)], x[(channel, *where)] if inside else None))
    return pairs


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    top = {1: 9, 2: 6, 3: 4}[axes]

    def per_axis(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    groups = draw(st.integers(1, 2))
    return {
        "sizes": per_axis(1, top),
        "kernel": per_axis(1, 3),
        "strides": per_axis(1, 3),
        "dilations": per_axis(1, 2),
        "begins": per_axis(0, 2),
        "ends": per_axis(0, 2),
        "groups": groups,
        "c_in": groups * draw(st.integers(1, 2)),
        "c_out": groups * draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@FEW
@given(geometries())
def test_conv(tmp_path: Path, g: dict[str, Any]) -> None:
    outputs = [
        (n + b + e - d * (k - 1) - 1) // s + 1
        for n, b, e, d, k, s in zip(
            g["sizes"],
            g["begins"],
            g["ends"],
            g["dilations"],
            g["kernel"],
            g["strides"],
            strict=True,
        )
    ]
    assume(min(outputs) >= 1)
    rng = np.random.default_rng(g["seed"])
    w, x = (
        sparse(rng, g["c_out"], g["c_in"] // g["groups"], *g["kernel"]),
        sparse(rng, 2, g["c_in"], *g["sizes"]),
    )
    weights = {"w": w, "b": np.zeros(g["c_out"], np.float32)}
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"] if g["bias"] else ["x", "w"],
        ["y"],
        "n",
        strides=g["strides"],
        dilations=g["dilations"],
        pads=g["begins"] + g["ends"],
        group=g["groups"],
    )
    counts = count_onnx(save(tmp_path / "m.onnx", [node], weights, ["batch", *x.shape[1:]]), x)
    walks = [
        conv_pairs(one, w, outputs, g["strides"], g["dilations"], g["begins"], g["groups"])
        for one in x
    ]
    layer = check(counts, "n", walks)
    assert layer.bias_adds == (g["c_out"] * prod(outputs) if g["bias"] else 0)
    assert layer.elementwise == layer.comparisons == 0


@FEW
@given(geometries(), st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
def test_auto_pad(tmp_path: Path, g: dict[str, Any], auto: str) -> None:
    """Effective counts of one event at a time are what onnxruntime sums with weights of 1, wherever it puts the pads."""
    axes = list(zip(g["sizes"], g["strides"], g["kernel"], g["dilations"], strict=True))
    extents = [d * (k - 1) + 1 for _, _, k, d in axes]
    if auto == "VALID":
        outputs = [
            (n - extent) // s + 1 for (n, s, _, _), extent in zip(axes, extents, strict=True)
        ]
        begins = [0] * len(axes)
    else:
        outputs = [ceil(n / s) for n, s, _, _ in axes]
        missing = [
            max((o - 1) * s + extent - n, 0)
            for o, (n, s, _, _), extent in zip(outputs, axes, extents, strict=True)
        ]
        begins = [m // 2 if auto == "SAME_UPPER" else ceil(m / 2) for m in missing]
    assume(min(outputs) >= 1)
    rng = np.random.default_rng(g["seed"])
    w, x = sparse(rng, 2, 1, *g["kernel"]), sparse(rng, 2, 1, *g["sizes"], kept=0.3)
    options = {"strides": g["strides"], "dilations": g["dilations"], "auto_pad": auto}
    node = helper.make_node("Conv", ["x", "w"], ["y"], "n", **options)
    path = save(tmp_path / "m.onnx", [node], {"w": w}, ["batch", *x.shape[1:]])
    walks = [conv_pairs(one, w, outputs, g["strides"], g["dilations"], begins, 1) for one in x]
    if (
        auto != "VALID" and max(g["dilations"]) > 1
    ):  # onnxruntime does not run these, their shapes are counted
        layer = count_onnx(path).layers["n"]
        assert (layer.dense_padded, layer.dense_valid, layer.mac_nonzero) == tally(walks[0])[:3]
        return
    check(count_onnx(path, x), "n", walks)
    path = save(tmp_path / "ones.onnx", [node], {"w": np.ones_like(w)}, ["batch", *x.shape[1:]])
    event = np.zeros_like(x[:1])
    event.flat[int(rng.integers(event.size))] = 1
    (y,) = run(path, event, "y")
    assert count_onnx(path, event).effective == {"n": Fraction(int(y.sum()))}


@FEW
@given(geometries(), st.data())
def test_conv_transpose(tmp_path: Path, g: dict[str, Any], data: st.DataObject) -> None:
    # onnxruntime refuses more than this from 1.32 on, where a dilation once allowed it too.
    extra = [data.draw(st.integers(0, stride - 1)) for stride in g["strides"]]
    outputs = [
        s * (n - 1) + e + d * (k - 1) + 1 - b - end
        for n, s, e, d, k, b, end in zip(
            g["sizes"],
            g["strides"],
            extra,
            g["dilations"],
            g["kernel"],
            g["begins"],
            g["ends"],
            strict=True,
        )
    ]
    assume(min(outputs) >= 1)
    rng = np.random.default_rng(g["seed"])
    w, x = (
        sparse(rng, g["c_in"], g["c_out"] // g["groups"], *g["kernel"]),
        sparse(rng, 2, g["c_in"], *g["sizes"]),
    )
    node = helper.make_node(
        "ConvTranspose",
        ["x", "w", "b"],
        ["y"],
        "n",
        strides=g["strides"],
        dilations=g["dilations"],
        pads=g["begins"] + g["ends"],
        group=g["groups"],
        output_padding=extra,
    )
    weights = {"w": w, "b": np.zeros(g["c_out"], np.float32)}
    path = save(tmp_path / "m.onnx", [node], weights, ["batch", *x.shape[1:]])
    counts = count_onnx(path, x)
    layer = check(
        counts,
        "n",
        [scattered(one, w, outputs, g["strides"], g["dilations"], g["begins"]) for one in x],
    )
    assert layer.bias_adds == g["c_out"] * prod(outputs)
    (y,) = run(path, x[:1], "y")
    assert y.shape == (1, g["c_out"], *outputs)


def scattered(
    x: Array, w: Array, outputs: Sequence[int], strides: Any, dilations: Any, begins: Any
) -> Pairs:
    """Every tap of every input, None where the output it would reach is cropped."""
    pairs: Pairs = []
    for c, *at in np.ndindex(*x.shape):
        for o, *tap in np.ndindex(*w.shape[1:]):
            where = [
                a * s + j * d - p
                for a, s, j, d, p in zip(at, strides, tap, dilations, begins, strict=True)
            ]
            inside = all(0 <= i < n for i, n in zip(where, outputs, strict=True))
            pairs.append((w[(c, o, *tap)], x[(c, *at)] if inside else None))
    return pairs


@pytest.mark.parametrize(
    ("changes", "outputs"),
    [
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (8, 6)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (8, 6)),
        ({"auto_pad": "VALID", "strides": [2, 2]}, (9, 7)),
        ({"output_shape": [8, 6], "strides": [2, 2]}, (8, 6)),
        ({"output_shape": [8, 5], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, (8, 5)),
        (
            {
                "output_shape": [8, 6],
                "strides": [2, 2],
                "output_padding": [1, 1],
                "auto_pad": "SAME_UPPER",
            },
            (8, 6),
        ),
    ],
)
def test_conv_transpose_crops_where_onnxruntime_does(
    changes: dict[str, Any], outputs: tuple[int, ...], tmp_path: Path
) -> None:
    """Each single event reaches as many outputs as onnxruntime makes non-zero with weights of 1."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "n", **changes)
    path = save(
        tmp_path / "m.onnx", [node], {"w": np.ones((1, 1, 3, 3), np.float32)}, ["batch", 1, 4, 3]
    )
    reached = set()
    for index in range(12):
        event = np.zeros((1, 1, 4, 3), np.float32)
        event.flat[index] = 1
        (y,) = run(path, event, "y")
        assert y.shape[2:] == outputs
        assert count_onnx(path, event).effective == {"n": Fraction(int(y.sum()))}
        reached.add(int(y.sum()))
    assert count_onnx(path).layers["n"].dense_padded == 12 * 9
    assert len(reached) > 1 or changes.get("auto_pad") == "VALID"  # something was cropped


def test_zeros_of_a_pad_node_do_not_exist_either(tmp_path: Path) -> None:
    """Pad then Conv, as TensorFlow writes it, counts as the Conv that pads."""
    rng = np.random.default_rng(0)
    w, x = sparse(rng, 3, 2, 3, 3), sparse(rng, 2, 2, 5, 4)
    conv = {"strides": [2, 1], "name": "n"}
    inside = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 2, 1], **conv)
    pads = np.array([0, 0, 1, 0, 0, 0, 2, 1])
    apart = [
        helper.make_node("Pad", ["x", "p"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"], **conv),
    ]
    one = count_onnx(save(tmp_path / "a.onnx", [inside], {"w": w}, ["batch", 2, 5, 4]), x)
    other = count_onnx(save(tmp_path / "b.onnx", apart, {"w": w, "p": pads}, ["batch", 2, 5, 4]), x)
    assert one.layers == other.layers
    assert (one.effective, one.effective_nonzero) == (other.effective, other.effective_nonzero)
    filled = {"w": w, "p": pads, "v": np.array(1, np.float32)}
    apart[0] = helper.make_node("Pad", ["x", "p", "v"], ["h"])
    ones = count_onnx(save(tmp_path / "c.onnx", apart, filled, ["batch", 2, 5, 4]), x)
    assert (
        ones.layers["n"].dense_valid
        == ones.layers["n"].dense_padded
        == one.layers["n"].dense_padded
    )


def test_a_weight_that_the_network_computes(tmp_path: Path) -> None:
    """Convolution with an activation: effective where both are non-zero."""
    nodes = [
        helper.make_node("Split", ["x", "parts"], ["a", "b"], axis=1),
        helper.make_node("Reshape", ["b", "kernel"], ["k"]),
        helper.make_node("Conv", ["a", "k"], ["y"], "n", pads=[1, 1, 1, 1]),
    ]
    weights = {"parts": np.array([1, 1]), "kernel": np.array([1, 1, 3, 3])}
    x = sparse(np.random.default_rng(1), 2, 2, 3, 3)
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 2, 3, 3]), x)
    walks = [conv_pairs(one[:1], one[None, 1:], (3, 3), (1, 1), (1, 1), (1, 1), 1) for one in x]
    assert counts.layers["n"].dense_valid == counts.layers["n"].mac_nonzero == tally(walks[0])[1]
    both = sum(w != 0 and bool(a) for walk in walks for w, a in walk if a is not None)
    assert counts.effective == counts.effective_nonzero == {"n": Fraction(both, 2)}
    assert "two activations" in next(row.note for row in counts.ledger if row.name == "n")


# Matrix products


def matmul_pairs(a: Array, b: Array) -> Pairs:
    """(a, b) of every multiplication of numpy.matmul."""
    a2, b2 = a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    batch = np.broadcast_shapes(a2.shape[:-2], b2.shape[:-2])
    a3 = np.broadcast_to(a2, (*batch, *a2.shape[-2:]))
    b3 = np.broadcast_to(b2, (*batch, *b2.shape[-2:]))
    return [
        (a3[(*lead, i, k)], b3[(*lead, k, j)])
        for lead in np.ndindex(*batch)
        for i, k, j in product(range(a2.shape[-2]), range(a2.shape[-1]), range(b2.shape[-1]))
    ]


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "right"),
    [
        ((3,), (3, 2), True),
        ((4, 3), (3, 2), True),
        ((4, 3), (3,), True),
        ((2, 4, 3), (3, 2), True),
        ((2, 4, 3), (2, 3, 5), True),
        ((2, 1, 4, 3), (5, 3, 2), True),
        ((3, 4), (2, 3), False),
        ((2, 3, 4), (5, 3), False),
        ((2, 3, 4), (3,), False),
        ((2, 3, 4), (6, 1, 5, 3), False),
    ],
)
def test_matmul_with_a_constant_of_any_rank(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], right: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x, w = sparse(rng, 2, *x_shape), sparse(rng, *w_shape)
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["h"]),
        helper.make_node("MatMul", ["h", "w"] if right else ["w", "h"], ["y"], "n"),
    ]
    weights = {"w": w, "s": np.array(x_shape)}
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", *x_shape]), x)
    walks = [
        [(b, a) for a, b in matmul_pairs(one, w)] if right else matmul_pairs(w, one) for one in x
    ]
    check(counts, "n", walks)


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((3, 4), (4, 2)),
        ((2, 3, 4), (2, 4, 3)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (4,)),
        ((4,), (2, 4, 3)),
    ],
)
def test_matmul_of_two_activations(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    sizes = prod(a_shape), prod(b_shape)
    x = sparse(rng, 3, sum(sizes))
    nodes = [
        helper.make_node("Split", ["x", "parts"], ["a", "b"], axis=1),
        helper.make_node("Reshape", ["a", "as"], ["p"]),
        helper.make_node("Reshape", ["b", "bs"], ["q"]),
        helper.make_node("MatMul", ["p", "q"], ["y"], "n"),
    ]
    weights = {"parts": np.array(sizes), "as": np.array(a_shape), "bs": np.array(b_shape)}
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", sum(sizes)]), x)
    walks = [
        matmul_pairs(one[: sizes[0]].reshape(a_shape), one[sizes[0] :].reshape(b_shape))
        for one in x
    ]
    layer = counts.layers["n"]
    assert (
        layer.dense_padded == layer.dense_valid == layer.mac == layer.mac_nonzero == len(walks[0])
    )
    both = Fraction(sum(bool(a) and bool(b) for walk in walks for a, b in walk), 3)
    assert counts.effective == counts.effective_nonzero == {"n": both}
    assert 0 < both < layer.mac
    assert "two activations" in next(row.note for row in counts.ledger if row.name == "n")


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_a: int, trans_b: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = sparse(rng, 2, 3, 4)
    a_shape = (3, 4)
    inner = a_shape[0] if trans_a else a_shape[1]
    w = sparse(rng, *((5, inner) if trans_b else (inner, 5)))
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["h"]),
        helper.make_node(
            "Gemm", ["h", "w", "c"], ["y"], "n", transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0
        ),
    ]
    weights = {"w": w, "s": np.array(a_shape), "c": np.ones((1, 5), np.float32)}
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", *a_shape]), x)
    walks = [
        [(b, a) for a, b in matmul_pairs(one.T if trans_a else one, w.T if trans_b else w)]
        for one in x
    ]
    layer = check(counts, "n", walks)
    outputs = (4 if trans_a else 3) * 5
    assert (layer.bias_adds, layer.elementwise) == (
        outputs,
        outputs + 5,
    )  # alpha every output, beta every bias


@pytest.mark.parametrize(
    ("equation", "a_shape", "b_shape"),
    [
        ("bik,kj->bij", (1, 3, 4), (4, 2)),
        ("bhwc,hkc->bhwk", (1, 2, 3, 4), (2, 5, 4)),
        ("bi,j->bij", (1, 3), (4,)),
        ("bi,bi->b", (1, 3), (1, 3)),
        ("bij, kji -> bk", (1, 3, 2), (4, 2, 3)),
    ],
)
def test_einsum(
    equation: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    x, w = sparse(rng, 3, *a_shape[1:]), sparse(rng, *b_shape)
    node = helper.make_node("Einsum", ["x", "w"], ["y"], "n", equation=equation)
    counts = count_onnx(save(tmp_path / "m.onnx", [node], {"w": w}, ["batch", *a_shape[1:]]), x)
    a_term, b_term = equation.replace(" ", "").partition("->")[0].split(",")
    labels = sorted(set(a_term + b_term))
    sizes = dict(zip(a_term + b_term, a_shape + b_shape, strict=True))
    walks: list[Pairs] = []
    for one in x:
        walk: Pairs = []
        for index in product(*(range(sizes[label]) for label in labels)):
            at = dict(zip(labels, index, strict=True))
            walk.append((w[tuple(at[i] for i in b_term)], one[None][tuple(at[i] for i in a_term)]))
        walks.append(walk)
    check(counts, "n", walks)


# Recurrent layers

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@FEW
@given(
    st.sampled_from(sorted(GATES)),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, (3, 5), (5, 1), (0, 4)]),
    st.integers(0, 2**16),
)
def test_recurrent(
    tmp_path: Path,
    kind: str,
    direction: str,
    bias: bool,
    initial: bool,
    lengths: tuple[int, int] | None,
    seed: int,
) -> None:
    """Two sequences, steps walked one by one. Relu (or its like) makes states that are exactly 0."""
    steps, features, hidden, gates = 5, 3, 2, GATES[kind]
    ways = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(seed)
    weights = {
        "w": sparse(rng, ways, gates * hidden, features),
        "r": sparse(rng, ways, gates * hidden, hidden),
        "s": np.array([steps, 2, features]),
    }
    names = ["h", "w", "r", "", "", ""]
    if bias:
        weights["b"] = np.full((ways, 2 * gates * hidden), -0.1, np.float32)
        names[3] = "b"
    if lengths:
        weights["lens"] = np.array(lengths, np.int32)
        names[4] = "lens"
    if initial:
        weights["h0"] = sparse(rng, ways, 2, hidden, kept=0.5)
        names[5] = "h0"
    while not names[-1]:
        names.pop()
    activations = {
        "RNN": ["Relu"],
        "GRU": ["HardSigmoid", "Relu"],
        "LSTM": ["HardSigmoid", "Relu", "Relu"],
    }[kind]
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["h"]),
        helper.make_node(
            kind,
            names,
            ["", "y"],  # the sequence of states is not an output
            "n",
            hidden_size=hidden,
            direction=direction,
            activations=activations * ways,
        ),
    ]
    x = sparse(rng, 2, steps, 2, features)
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", *x.shape[1:]]), x)
    nodes[1].output[0] = "seq"
    shown = save(
        tmp_path / "shown.onnx", nodes, weights, ["batch", *x.shape[1:]], outputs=["y", "seq"]
    )
    run_steps = lengths or (steps, steps)
    walks: list[Pairs] = []
    for one in x:
        (states,) = run(shown, one[None], "seq")
        walk: Pairs = []
        for way, element in product(range(ways), range(2)):
            order = range(run_steps[element])
            state = weights["h0"][way, element] if initial else np.zeros(hidden, np.float32)
            for t in reversed(order) if direction == "reverse" or way == 1 else order:
                for row in range(gates * hidden):
                    walk += [
                        (weights["w"][way, row, i], one[t, element, i]) for i in range(features)
                    ]
                    walk += [(weights["r"][way, row, i], state[i]) for i in range(hidden)]
                state = states[t, way, element]
        walks.append(walk)
    layer = check(counts, "n", walks)
    units = sum(run_steps) * ways * hidden
    assert layer.bias_adds == (2 * gates * units if bias else 0)
    assert layer.elementwise == {"RNN": 1, "GRU": 8, "LSTM": 9}[kind] * units


def test_peepholes_look_at_the_cell_in_every_step(tmp_path: Path) -> None:
    steps, features, hidden = 4, 3, 2
    weights = {
        "w": np.ones((1, 8, features), np.float32),
        "r": np.ones((1, 8, hidden), np.float32),
        "p": np.array([[1, 0, 2, 3, 0, 4]], np.float32),
        "s": np.array([steps, 1, features]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["h"]),
        helper.make_node(
            "LSTM", ["h", "w", "r", "", "", "", "", "p"], ["seq", "y"], "n", hidden_size=hidden
        ),
    ]
    x = np.zeros((1, steps, features), np.float32)
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", steps, features]), x)
    matrices = steps * 8 * (features + hidden)
    assert counts.layers["n"].mac == matrices + steps * 6
    assert counts.layers["n"].mac_nonzero == matrices + steps * 4
    assert counts.effective == {
        "n": steps * 6
    }  # nothing else is non-zero: no input, no bias, no state
    assert counts.effective_nonzero == {"n": steps * 4}
    assert "taken as non-zero" in next(row.note for row in counts.ledger if row.name == "n")


# Quantised


def test_a_quantised_weight_is_a_constant(tmp_path: Path) -> None:
    """QDQ: the float weight behind DequantizeLinear is seen, and 0 is where the integer is the zero point."""
    rng = np.random.default_rng(5)
    q = rng.integers(-2, 3, (3, 2, 3, 3)).astype(np.int8)
    points = np.array([0, 1, -1], np.int8)
    weights = {
        "q": q,
        "scale": np.array([0.5, 0.25, 1], np.float32),
        "points": points,
        "xs": np.array(0.1, np.float32),
        "xz": np.array(3, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "points"], ["w"], "dq", axis=0),
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quant"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"], "dequant"),
        helper.make_node("Conv", ["xf", "w"], ["y"], "n", pads=[1, 1, 1, 1]),
    ]
    x = sparse(rng, 2, 2, 4, 4)
    x[np.abs(x) < 0.3] *= 0.01  # rounds to the zero point
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 2, 4, 4]), x)
    rounded = np.rint(x / np.float32(0.1))
    w = q.astype(int) - points[:, None, None, None]
    walks = [conv_pairs(one, w, (4, 4), (1, 1), (1, 1), (1, 1), 1) for one in rounded]
    check(counts, "n", walks)
    assert tally(walks[0])[3] < np.count_nonzero(x[0]) * 27
    status = {row.name: row.status for row in counts.ledger}
    assert (status["dq"], status["quant"], status["dequant"]) == ("free", "counted", "counted")
    assert status["q"] == status["points"] == "folded"
    assert counts.layers["quant"].elementwise == 2 * 4 * 4


@pytest.mark.parametrize("kind", ["ConvInteger", "QLinearConv"])
def test_integer_convolution(kind: str, tmp_path: Path) -> None:
    """An element is 0 where it equals its zero point; padding is filled with it."""
    rng = np.random.default_rng(6)
    x = rng.integers(0, 4, (2, 2, 4, 3)).astype(np.uint8)
    weights = {
        "w": rng.integers(0, 3, (3, 2, 3, 2)).astype(np.uint8),
        "xz": np.array(2, np.uint8),
        "wz": np.array([0, 1, 2], np.uint8) if kind == "QLinearConv" else np.array(1, np.uint8),
        "s": np.array(0.5, np.float32),
        "z": np.array(0, np.uint8),
        "b": np.ones(3, np.int32),
    }
    names = {
        "ConvInteger": ["x", "w", "xz", "wz"],
        "QLinearConv": ["x", "s", "xz", "w", "s3", "wz", "s", "z", "b"],
    }[kind]
    weights["s3"] = np.ones(3, np.float32)
    weights = {name: value for name, value in weights.items() if name in names}
    node = helper.make_node(kind, names, ["y"], "n", pads=[1, 0, 0, 1])
    path = save(tmp_path / "m.onnx", [node], weights, ["batch", 2, 4, 3], kind=TensorProto.UINT8)
    counts = count_onnx(path, x)
    w = weights["w"].astype(int) - weights["wz"].astype(int).reshape(-1, 1, 1, 1)
    walks = [conv_pairs(one, w, (3, 3), (1, 1), (1, 1), (1, 0), 1) for one in x.astype(int) - 2]
    layer = check(counts, "n", walks)
    outputs = 3 * 3 * 3
    assert (layer.bias_adds, layer.elementwise) == (
        (outputs, outputs) if kind == "QLinearConv" else (0, 0)
    )


@pytest.mark.parametrize("kind", ["MatMulInteger", "QLinearMatMul"])
def test_integer_matrix_product(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    x = rng.integers(0, 3, (2, 4)).astype(np.uint8)
    weights = {
        "w": rng.integers(0, 3, (4, 3)).astype(np.uint8),
        "xz": np.array(1, np.uint8),
        "wz": np.array([0, 1, 2], np.uint8),
        "s": np.array(0.5, np.float32),
        "ws": np.ones(3, np.float32),
        "z": np.array(0, np.uint8),
    }
    names = {
        "MatMulInteger": ["x", "w", "xz", "wz"],
        "QLinearMatMul": ["x", "s", "xz", "w", "ws", "wz", "s", "z"],
    }[kind]
    weights = {name: value for name, value in weights.items() if name in names}
    node = helper.make_node(kind, names, ["y"], "n")
    path = save(tmp_path / "m.onnx", [node], weights, ["batch", 4], kind=TensorProto.UINT8)
    counts = count_onnx(path, x)
    w = weights["w"].astype(int) - weights["wz"].astype(int)
    check(
        counts, "n", [[(b, a) for a, b in matmul_pairs(one[None], w)] for one in x.astype(int) - 1]
    )


def test_a_zero_point_found_at_run_time(tmp_path: Path) -> None:
    """Dynamic quantisation: the zero point differs from sample to sample."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], "quant"),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["y"], "n"),
    ]
    w = np.array([[1, 0], [2, 3], [0, 4]], np.int8)
    x = np.array([[-1, 0, 1], [0, 1, 2]], np.float32)
    path = save(tmp_path / "m.onnx", nodes, {"w": w}, ["batch", 3])
    counts = count_onnx(path, x)
    assert counts.effective == {"n": Fraction(2 * 2 + 2 * 2, 2)}
    assert counts.effective_nonzero == {"n": Fraction((1 + 1) + (2 + 1), 2)}
    assert (counts.layers["quant"].elementwise, counts.layers["quant"].comparisons) == (3, 4)


# Pools, norms, activations


def windows(
    sizes: Sequence[int], outputs: Sequence[int], g: dict[str, Any], begins: Sequence[int]
) -> list[int]:
    """Count the elements that exist in each window of one channel."""
    held = []
    for at in product(*map(range, outputs)):
        inside = 0
        for tap in product(*map(range, g["kernel"])):
            where = [
                a * s + j * d - p
                for a, s, j, d, p in zip(at, g["strides"], tap, g["dilations"], begins, strict=True)
            ]
            inside += all(0 <= i < n for i, n in zip(where, sizes, strict=True))
        held.append(inside)
    return held


@FEW
@given(
    geometries(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]),
)
def test_pools(tmp_path: Path, g: dict[str, Any], average: bool, flag: bool, auto: str) -> None:
    if average or auto != "NOTSET":
        g["dilations"] = [1] * len(g["sizes"])
    options: dict[str, Any] = {
        "kernel_shape": g["kernel"],
        "strides": g["strides"],
        "ceil_mode": int(flag),
    }
    extents = [d * (k - 1) + 1 for d, k in zip(g["dilations"], g["kernel"], strict=True)]
    if auto == "NOTSET":
        begins, ends = (
            [min(p, k - 1) for p, k in zip(g[side], g["kernel"], strict=True)]
            for side in ("begins", "ends")
        )
        options["pads"] = begins + ends
    else:
        options |= {"auto_pad": auto, "ceil_mode": 0}
        missing = [
            (ceil(n / s) - 1) * s + e - n
            for n, s, e in zip(g["sizes"], g["strides"], extents, strict=True)
        ]
        # onnxruntime refuses a pool that would have to crop from 1.32 on.
        assume(min(missing) >= 0)
        begins = [m // 2 if auto == "SAME_UPPER" else ceil(m / 2) for m in missing]
        ends = [m - b for m, b in zip(missing, begins, strict=True)]
    spans = [n + b + e for n, b, e in zip(g["sizes"], begins, ends, strict=True)]
    assume(all(span >= extent for span, extent in zip(spans, extents, strict=True)))
    options |= {"count_include_pad": int(flag)} if average else {"dilations": g["dilations"]}
    node = helper.make_node("AveragePool" if average else "MaxPool", ["x"], ["y"], "n", **options)
    path = save(tmp_path / "m.onnx", [node], {}, ["batch", 3, *g["sizes"]])
    (y,) = run(path, np.zeros((1, 3, *g["sizes"]), np.float32), "y")
    held = windows(g["sizes"], y.shape[2:], g, begins)
    layer = count_onnx(path).layers["n"]
    assert layer.elementwise == (3 * sum(held) if average else 0)
    assert layer.comparisons == (0 if average else 3 * sum(max(n - 1, 0) for n in held))
    assert layer.mac == layer.dense_padded == layer.bias_adds == 0


def alone(
    tmp_path: Path,
    op: str,
    shape: Sequence[int],
    weights: dict[str, Array] | None = None,
    **options: Any,
) -> LayerCounts:
    """Counts of one node that reads x and the weights."""
    opset = options.pop("opset", 17)
    names = options.pop("names", ["x", *(weights or {})])
    node = helper.make_node(op, names, ["y"], "n", **options)
    path = save(tmp_path / "m.onnx", [node], weights or {}, ["batch", *shape[1:]], opset=opset)
    counts = count_onnx(path)
    assert [row.status for row in counts.ledger if row.name == "n"] == ["counted"]
    layer = counts.total
    assert layer.mac == layer.dense_padded == layer.bias_adds == 0
    return layer


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("Relu", {}),
        ("LeakyRelu", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("HardSwish", {}),
        ("HardSigmoid", {}),
        ("Softmax", {}),
        ("LogSoftmax", {}),
        ("Erf", {}),
        ("Gelu", {"opset": 20}),
        ("Clip", {}),
        ("Sqrt", {}),
        ("Softplus", {}),
    ],
)
def test_an_activation_is_one_operation_per_element(
    op: str, options: dict[str, Any], tmp_path: Path
) -> None:
    layer = alone(tmp_path, op, (1, 3, 4), **options)
    assert (layer.elementwise, layer.comparisons) == (12, 0)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "PRelu"])
def test_arithmetic_counts_what_it_produces(op: str, tmp_path: Path) -> None:
    """Broadcasting included: (1, 3, 1) with (1, 4) makes 12; a slope of PRelu never does."""
    shape = (1, 3, 4) if op == "PRelu" else (1, 3, 1)
    layer = alone(tmp_path, op, shape, {"w": np.ones((1, 4), np.float32)})
    assert (layer.elementwise, layer.comparisons) == (12, 0)


@pytest.mark.parametrize(("op", "per_output"), [("Max", 2), ("Sum", 2), ("Mean", 3)])
def test_three_tensors_at_once(op: str, per_output: int, tmp_path: Path) -> None:
    assert alone(tmp_path, op, (1, 5), names=["x", "x", "x"]).elementwise == per_output * 5


@pytest.mark.parametrize(
    ("op", "options", "elementwise", "comparisons"),
    [
        ("ReduceMean", {"axes": [2]}, 12, 0),
        ("ReduceL2", {"axes": [2]}, 2 * 12 + 3, 0),
        ("ReduceLogSumExp", {"axes": [2]}, 2 * 12 + 3, 0),
        ("ReduceMax", {"axes": [1]}, 0, 12 - 4),
        ("ArgMax", {"axis": 2}, 0, 12 - 3),
        ("GlobalAveragePool", {}, 12, 0),
        ("GlobalMaxPool", {}, 0, 12 - 3),
    ],
)
def test_reductions(
    op: str, options: dict[str, Any], elementwise: int, comparisons: int, tmp_path: Path
) -> None:
    layer = alone(tmp_path, op, (1, 3, 4), **options)
    assert (layer.elementwise, layer.comparisons) == (elementwise, comparisons)


ONES = np.ones(4, np.float32)
WRITTEN_OUT = ("ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")


def written_out(axes: list[int], scale_shape: Sequence[int]) -> tuple[list[Any], dict[str, Array]]:
    """A normalisation with scale and bias, operation by operation."""
    inputs = [
        ["x"],
        ["x", "t0"],
        ["t1", "two"],
        ["t2"],
        ["t3", "eps"],
        ["t4"],
        ["t1", "t5"],
        ["t6", "g"],
        ["t7", "h"],
    ]
    nodes = [
        helper.make_node(
            op,
            names,
            ["y" if i == 8 else f"t{i}"],
            **({"axes": axes, "keepdims": 1} if op == "ReduceMean" else {}),
        )
        for i, (op, names) in enumerate(zip(WRITTEN_OUT, inputs, strict=True))
    ]
    scale = np.full(scale_shape, 2, np.float32)
    return nodes, {
        "two": np.array(2, np.float32),
        "eps": np.array(1e-5, np.float32),
        "g": scale,
        "h": scale,
    }


@pytest.mark.parametrize(
    ("op", "names", "options", "axes", "scale_shape"),
    [
        ("LayerNormalization", ["x", "w", "b"], {"axis": -1}, [2], (4,)),
        ("LayerNormalization", ["x", "wide", "wide"], {"axis": 1}, [1, 2], (3, 4)),
        ("InstanceNormalization", ["x", "c", "c"], {}, [2], (3, 1)),
    ],
)
def test_a_normalisation_counts_as_its_written_out_form(
    op: str,
    names: list[str],
    options: dict[str, Any],
    axes: list[int],
    scale_shape: Sequence[int],
    tmp_path: Path,
) -> None:
    held = {"w": ONES, "b": ONES, "wide": np.ones((3, 4), np.float32), "c": np.ones(3, np.float32)}
    held = {name: value for name, value in held.items() if name in names}
    node = helper.make_node(op, names, ["y"], "n", **options)
    whole = count_onnx(save(tmp_path / "a.onnx", [node], held, ["batch", 3, 4])).total
    nodes, weights = written_out(axes, scale_shape)
    parts = count_onnx(save(tmp_path / "b.onnx", nodes, weights, ["batch", 3, 4])).total
    assert whole == parts
    groups = 1 if len(axes) == 2 else 3
    assert whole.elementwise == 7 * 12 + 2 * groups


@pytest.mark.parametrize(
    ("op", "weights", "options", "elementwise"),
    [
        ("BatchNormalization", {name: ONES for name in "sbmv"}, {}, 2 * 12),
        (
            "GroupNormalization",
            {"s": ONES, "b": ONES},
            {"num_groups": 2, "opset": 21},
            7 * 12 + 2 * 2,
        ),
        ("RMSNormalization", {"s": np.ones(3, np.float32)}, {"opset": 23}, 4 * 12 + 2 * 4),
        ("LayerNormalization", {"s": np.ones(3, np.float32)}, {}, 6 * 12 + 2 * 4),
        ("LRN", {}, {"size": 3}, 5 * 12 + 3 * (2 + 3 + 3 + 2)),
        ("LRN", {}, {"size": 2}, 5 * 12 + 3 * (2 + 2 + 2 + 1)),
    ],
)
def test_normalisations(
    op: str, weights: dict[str, Array], options: dict[str, Any], elementwise: int, tmp_path: Path
) -> None:
    """On (1, 4, 3)."""
    assert alone(tmp_path, op, (1, 4, 3), weights, **options).elementwise == elementwise


@pytest.mark.parametrize(
    ("options", "per_output"),
    [
        ({"mode": "nearest"}, None),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, 2 * 2**2 - 1),
        ({"mode": "cubic"}, 2 * 4**2 - 1),
    ],
)
def test_resize(options: dict[str, Any], per_output: int | None, tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "", "k"], ["y"], "n", **options)
    weights = {"k": np.array([1, 1, 2, 3], np.float32)}
    counts = count_onnx(save(tmp_path / "m.onnx", [node], weights, ["batch", 2, 3, 4]))
    if per_output is None:
        assert counts.ledger[-1].status == "free"
        assert "copies" in counts.ledger[-1].note
    else:
        assert counts.total.elementwise == per_output * 2 * 6 * 12


def test_what_only_moves_data_is_free_with_its_reason(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["a", "zero", "two", "one"], ["b"]),
        helper.make_node("Concat", ["b", "b"], ["c"], axis=1),
        helper.make_node("Gather", ["c", "indices"], ["d"], axis=1),
        helper.make_node("Expand", ["d", "wide"], ["e"]),
        helper.make_node("Cast", ["e"], ["f"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["f"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["g"], ["y"], "relu"),
    ]
    weights = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "indices": np.array([0, 3]),
        "wide": np.array([1, 2, 3]),
    }
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 3, 4]))
    assert list(counts.layers) == ["relu"]
    assert counts.total.elementwise == 6
    free = [row for row in counts.ledger if row.status == "free"]
    assert [row.operation for row in free] == [node.op_type for node in nodes[:-1]]
    assert all(row.note for row in counts.ledger)


@pytest.mark.parametrize(
    ("producer", "constant", "bias_adds", "elementwise"),
    [
        ("MatMul", (3,), 6, 0),
        ("MatMul", (1, 1, 3), 6, 0),
        ("MatMul", (2, 3), 0, 6),  # a mask or a position, not a bias
        ("MatMul", (1,), 0, 6),
        ("MatMul", (4, 2, 3), 0, 24),  # broadcasts the product
        ("Conv", (3, 1), 6, 0),
        ("Conv", (2,), 0, 6),
        ("Relu", (3,), 0, 6 + 6),
    ],
)
def test_which_additions_are_a_bias(
    producer: str, constant: tuple[int, ...], bias_adds: int, elementwise: int, tmp_path: Path
) -> None:
    """A constant per output channel of a product; the product makes (1, 2, 3), the convolution (1, 3, 2)."""
    first = {
        "MatMul": helper.make_node("MatMul", ["x", "w"], ["h"]),
        "Conv": helper.make_node("Conv", ["x", "k"], ["h"]),
        "Relu": helper.make_node("Relu", ["x"], ["h"]),
    }[producer]
    shape = {"MatMul": (2, 4), "Conv": (4, 2), "Relu": (2, 3)}[producer]
    held = {"w": np.ones((4, 3), np.float32), "k": np.ones((3, 4, 1), np.float32)}
    weights = {name: value for name, value in held.items() if name in first.input}
    weights["c"] = np.ones(constant, np.float32)
    for names in (["h", "c"], ["c", "h"]):
        nodes = [first, helper.make_node("Add", names, ["y"], "sum")]
        total = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", *shape])).total
        assert (total.bias_adds, total.elementwise) == (bias_adds, elementwise)


def test_a_constant_that_widens_a_product_is_no_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    weights = {"w": np.ones((4, 1), np.float32), "c": np.ones(3, np.float32)}
    total = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 2, 4])).total
    assert (total.mac, total.bias_adds, total.elementwise) == (8, 0, 6)


def test_a_batch_norm_of_old_files_that_trains_is_refused(tmp_path: Path) -> None:
    """Before opset 14 more than one output said so."""
    node = helper.make_node(
        "BatchNormalization", ["x", *"sbmv"], ["y", "m1", "v1", "m2", "v2"], "n"
    )
    path = save(
        tmp_path / "m.onnx", [node], {name: ONES for name in "sbmv"}, ["batch", 4, 3], opset=13
    )
    with pytest.raises(CountError, match=r"'n' \(BatchNormalization\): unsupported, training mode"):
        _ = count_onnx(path).total


def test_one_row_for_everything(tmp_path: Path) -> None:
    """Names that repeat, or that are made to look like the ones given to nameless nodes, lose no layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "n"),
        helper.make_node("Conv", ["a", "w"], ["b"], "n:y"),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"], "Conv:c"),
        helper.make_node("Conv", ["d", "w"], ["y"], "n"),
    ]
    weights = {"w": np.ones((2, 2, 1), np.float32), "idle": ONES}
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 2, 3]))
    assert counts.total.mac == 4 * 12
    names = [row.name for row in counts.ledger]
    assert len(names) == len(set(names)) == len(nodes) + len(weights)
    assert counts.sizes is not None
    assert counts.sizes.keys() == counts.layers.keys()
    assert {row.name: row.status for row in counts.ledger if row.operation == "Initializer"} == {
        "w": "folded",
        "idle": "free",
    }


def test_every_rule_names_an_operation_that_exists() -> None:
    known = {
        schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""
    }
    assert RULES.keys() <= known
    assert len(RULES) > 130


# Functions, constants, refusals


def test_a_function_counts_as_its_body(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["i", "j"], ["h"]), helper.make_node("Relu", ["h"], ["o"])]
    function = helper.make_function(
        "acme", "Layer", ["i", "j"], ["o"], body, [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["h"], "a", domain="acme"),
        helper.make_node("Layer", ["h", "w"], ["y"], "b", domain="acme"),
    ]
    weights = {"w": np.eye(3, dtype=np.float32)}
    path = save(
        tmp_path / "m.onnx", nodes, weights, ["batch", 3], functions=[function], domains=["acme"]
    )
    counts = count_onnx(path, np.array([[1, -1, 0]], np.float32))
    assert (counts.total.mac, counts.total.mac_nonzero, counts.total.elementwise) == (18, 6, 6)
    assert list((counts.effective or {}).values()) == [6, 3]


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    functions = [
        helper.make_function(
            "acme",
            name,
            ["i"],
            ["o"],
            [helper.make_node(other, ["i"], ["o"], domain="acme")],
            imports,
        )
        for name, other in (("Ping", "Pong"), ("Pong", "Ping"))
    ]
    node = helper.make_node("Ping", ["x"], ["y"], domain="acme")
    path = save(
        tmp_path / "m.onnx", [node], {}, ["batch", 3], functions=functions, domains=["acme"]
    )
    with pytest.raises(CountError, match=r"m\.onnx.*(itself|not a valid ONNX file)"):
        count_onnx(path)


def test_a_weight_computed_from_constants_is_a_constant(tmp_path: Path) -> None:
    """Transposed, scaled and multiplied before any input is seen: done once when the file is loaded, and its zeros are known."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t", perm=[1, 0]),
        helper.make_node("Mul", ["t", "scale"], ["s"], "s"),
        helper.make_node("MatMul", ["s", "eye"], ["v"], "v"),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "last"], ["features"], "features"),
        helper.make_node("Mul", ["features", "one"], ["same"], "same"),
        helper.make_node("Concat", ["minus", "same"], ["target"], "target", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["h"], "reshape"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "n"),
    ]
    weights = {
        "w": np.array([[1, 0, 2], [0, 0, 3]], np.float32),
        "scale": np.array(2, np.float32),
        "eye": np.eye(2, dtype=np.float32),
        "last": np.array([2]),
        "one": np.array([1]),
        "minus": np.array([-1]),
    }
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 4, 3]))
    assert list(counts.layers) == ["n"]
    assert (counts.total.mac, counts.total.mac_nonzero) == (4 * 6, 4 * 3)
    status = {row.name: (row.status, row.note) for row in counts.ledger}
    assert status["v"] == status["target"] == ("free", "computed from shapes and constants alone")
    assert status["w"] == ("folded", "into t")


def subgraph(op: str) -> Any:
    """A node that runs y = w x in a graph of its own, whatever the loop around it."""
    tensor = helper.make_tensor_value_info
    inner = [helper.make_node("MatMul", ["x", "w"], ["inner"])]
    out = tensor("inner", TensorProto.FLOAT, None)
    if op == "If":
        branch = helper.make_graph(inner, "branch", [], [out])
        return helper.make_node("If", ["yes"], ["y"], "n", then_branch=branch, else_branch=branch)
    if op == "Loop":
        inner += [helper.make_node("Identity", ["go"], ["on"])]
        inputs = [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("v", TensorProto.FLOAT, None),
        ]
        body = helper.make_graph(inner, "body", inputs, [tensor("on", TensorProto.BOOL, []), out])
        return helper.make_node("Loop", ["three", "yes", "x"], ["y"], "n", body=body)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["v", "w"], ["inner"])],
        "body",
        [tensor("v", TensorProto.FLOAT, None)],
        [out],
    )
    return helper.make_node("Scan", ["x"], ["y"], "n", body=body, num_scan_inputs=1)


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_a_graph_within_the_graph_is_refused_by_name(op: str, tmp_path: Path) -> None:
    weights = {"w": np.eye(3, dtype=np.float32), "yes": np.array(True), "three": np.array(3)}
    node = subgraph(op)
    held = {name: value for name, value in weights.items() if name == "w" or name in node.input}
    counts = count_onnx(save(tmp_path / "m.onnx", [node], held, ["batch", 3]))
    with pytest.raises(CountError, match=rf"'n' \({op}\): unsupported, runs a graph of its own"):
        _ = counts.total
    assert {row.name: row.note for row in counts.ledger}["w"] == "into n"  # read inside


FC = helper.make_node("MatMul", ["x", "w"], ["h"], "fc")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [
                helper.make_node(
                    "DynamicQuantizeLSTM", ["x", "w"], ["y"], "n", domain="com.microsoft"
                )
            ],
            r"'n' \(DynamicQuantizeLSTM\): unsupported, operation of domain 'com.microsoft'",
        ),
        (
            [FC, helper.make_node("TopK", ["h", "k"], ["y", "i"], "n")],
            r"'n' \(TopK\): unsupported, there is no rule",
        ),
        ([FC, helper.make_node("NonZero", ["h"], ["y"], "n")], r"'n' \(NonZero\): unsupported"),
        (
            [
                helper.make_node("NonZero", ["x"], ["i"]),
                helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("MatMul", ["w1", "f"], ["y"], "n"),
            ],
            r"'n' \(MatMul\): unsupported, the shape of tensor 'f' is not static",
        ),
        (
            [
                helper.make_node("RandomNormalLike", ["x"], ["r"], "n"),
                helper.make_node("MatMul", ["r", "w"], ["y"]),
            ],
            r"'n' \(RandomNormalLike\): unsupported",
        ),
        (
            [
                helper.make_node("RandomNormal", [], ["r"], "n", shape=[3, 3]),
                helper.make_node("MatMul", ["x", "r"], ["y"]),
            ],
            r"'n' \(RandomNormal\): unsupported",
        ),
        (
            [helper.make_node("Einsum", ["x", "w", "w"], ["y"], "n", equation="ij,jk,kl->il")],
            r"'n' \(Einsum\): unsupported, equation 'ij,jk,kl->il' joins 3 tensors",
        ),
        (
            [helper.make_node("Einsum", ["x", "w"], ["y"], "n", equation="...j,jk->...k")],
            r"'n' \(Einsum\): unsupported, equation",
        ),
        (
            [FC, helper.make_node("ScatterND", ["h", "at", "x"], ["y"], "n", reduction="add")],
            r"'n' \(ScatterND\): unsupported, reduction add",
        ),
        (
            [FC, helper.make_node("LpNormalization", ["h"], ["y"], "n")],
            r"'n' \(LpNormalization\): unsupported",
        ),
        (
            [
                helper.make_node("Dropout", ["w1", "", "true"], ["v"], "n"),
                helper.make_node("MatMul", ["x", "v"], ["y"]),
            ],
            r"'n' \(Dropout\): unsupported, training mode",
        ),
    ],
)
def test_refusals_name_the_node_and_the_reason(
    nodes: list[Any], message: str, tmp_path: Path
) -> None:
    held = {
        "w": np.ones((3, 3), np.float32),
        "w1": np.ones((3, 2), np.float32),
        "k": np.array([2]),
        "at": np.array([[0]]),
        "true": np.array(True),
    }
    read = {name for node in nodes for name in node.input}
    weights = {name: value for name, value in held.items() if name in read}
    domains = sorted({node.domain for node in nodes} - {""})
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 3], domains=domains))
    with pytest.raises(CountError, match=message):
        _ = counts.total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": 1}, r"'n' \(LSTM\): unsupported, layout 1"),
        ({"input_forget": 1}, "input_forget"),
        ({"direction": "sideways"}, "direction sideways|not a valid ONNX file"),
        ({"lens": "x"}, "sequence_lens 'lens' is not a constant"),
        ({"r": np.ones((1, 8, 3), np.float32)}, "do not fit|not a valid ONNX file"),
        ({"w": "x"}, "weight 'w' is not a constant"),
        ({"b": np.ones((1, 8), np.float32)}, "biases|not a valid ONNX file"),
    ],
)
def test_recurrent_layers_that_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights: dict[str, Any] = {
        "w": np.ones((1, 8, 3), np.float32),
        "r": np.ones((1, 8, 2), np.float32),
        "s": np.array([4, 1, 3]),
    }
    options = {
        name: value
        for name, value in changes.items()
        if name in ("layout", "input_forget", "direction")
    }
    nodes = [helper.make_node("Reshape", ["x", "s"], ["h"])]
    if changes.get("w") is not None:
        weights.pop("w")
        nodes += [
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
            helper.make_node("Expand", ["total", "ws"], ["w"]),
        ]
        weights["ws"] = np.array([1, 8, 3])
    if "lens" in changes:
        nodes += [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
            helper.make_node("Cast", ["most"], ["lens"], to=TensorProto.INT32),
        ]
    weights |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    names = ["h", "w", "r", "b" if "b" in changes else "", "lens" if "lens" in changes else ""]
    nodes.append(helper.make_node("LSTM", names, ["y"], "n", hidden_size=2, **options))
    with pytest.raises(CountError, match=message):
        _ = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 4, 3])).total


@pytest.mark.parametrize(
    ("op", "weight", "options"),
    [
        ("Conv", (3, 2, 3, 3), {"group": 2}),
        ("Conv", (3, 5, 3, 3), {}),
        ("Conv", (3, 2, 3, 3), {"strides": [0, 0]}),
        ("Conv", (3, 2, 3, 3), {"strides": [1]}),
        ("Conv", (3, 2, 3, 3), {"pads": [-9, 0, 0, 0]}),
        ("Conv", (3, 2, 3, 3), {"auto_pad": "BOGUS"}),
        ("Conv", (3, 2, 3, 3), {"kernel_shape": [2, 2]}),
        ("Conv", (3, 2, 3), {}),
        ("Conv", (3, 2, 0, 3), {}),
        ("ConvTranspose", (5, 2, 3, 3), {}),
        ("ConvTranspose", (2, 3, 3, 3), {"group": 0}),
        ("ConvTranspose", (2, 3, 3, 3), {"output_shape": [99, 99]}),
        ("MatMul", (5, 3), {}),
        ("Gemm", (5, 3), {}),
        ("Einsum", (5, 3), {"equation": "abcd,dq->abcq"}),
        ("AveragePool", (), {"kernel_shape": [2]}),
        ("MaxPool", (), {"kernel_shape": [2, 2], "strides": [0, 1]}),
        ("MaxPool", (), {"kernel_shape": [9, 9]}),
        ("LayerNormalization", (4,), {"axis": 9}),
    ],
)
def test_nodes_that_do_not_fit_are_refused_without_a_traceback(
    op: str, weight: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    held = {"w": np.ones(weight, np.float32)} if weight else {}
    node = helper.make_node(op, ["x", *held], ["y"], "n", **options)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CountError) as caught:
        _ = count_onnx(path).total
    assert "'n'" in str(caught.value) or "not a valid ONNX file" in str(caught.value)


def test_a_shape_that_nobody_means_is_refused_at_once(tmp_path: Path) -> None:
    weights = {"w": np.ones((1, 1, 3, 3), np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], "n")
    path = save(tmp_path / "m.onnx", [node], weights, ["batch", 1, 10**6, 10**6])
    with pytest.raises(
        CountError, match=r"'n' \(Conv\): unsupported, tensor 'x' has 1000000000000 elements"
    ):
        _ = count_onnx(path).total


def test_a_sparse_initializer_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", 3])
    model = onnx.load(path)
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [4])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CountError, match=r"'w' \(Initializer\): unsupported, stored sparsely"):
        _ = count_onnx(path).total


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.replace(b"first", b"f\xff\xfest"), "the name b'f.*' is no text"),
        (lambda data: data.replace(b"weight", b"we\xffght"), "not a valid ONNX file"),
    ],
)
def test_names_that_are_no_text(damage: Any, message: str, tmp_path: Path) -> None:
    weights = {"weight": np.ones((3, 3), np.float32)}
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "first")],
        weights,
        ["b", 3],
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CountError, match=message):
        count_onnx(path)


@pytest.mark.parametrize("change", [{"dims": [2, 2]}, {"data_type": 3}, {"data_type": 99}])
def test_an_initializer_that_does_not_hold_what_it_says(
    change: dict[str, Any], tmp_path: Path
) -> None:
    weights = {"w": np.ones((3, 3), np.float32)}
    path = save(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], weights, ["batch", 3]
    )
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    if "dims" in change:
        tensor.dims[:] = change["dims"]
    else:
        tensor.data_type = change["data_type"]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CountError, match=r"m\.onnx: not a valid ONNX file"):
        count_onnx(path)


def test_inputs_are_of_the_type_the_file_takes(tmp_path: Path) -> None:
    """Token numbers through a table: rows of zeros are zero activations."""
    table = np.array([[0, 0], [1, 0], [1, 2]], np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], "n"),
    ]
    weights = {"table": table, "w": np.ones((2, 3), np.float32)}
    path = save(tmp_path / "m.onnx", nodes, weights, ["batch", 4], kind=TensorProto.INT64)
    assert count_onnx(path, np.array([[0, 1, 2, 2]])).effective == {"n": (0 + 1 + 2 + 2) * 3}
    with pytest.raises(CountError, match="float32, needs a int64 array"):
        count_onnx(path, np.ones((1, 4), np.float32))
