"""The numbers that a file or a chip computes with, read from it, and priced as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
from graphs import DT_S, chain, integrate, on_grid, spikes
from onnx import TensorProto, helper, numpy_helper

from knarr.deploy import lower
from knarr.hw_sim import PriceError, count, count_onnx, price
from knarr.hw_sim.energy import Options, ratio

RNG = np.random.default_rng(0)


def save(
    path: Path,
    nodes: Sequence[Any],
    weights: Sequence[Any],
    *,
    kind: int = TensorProto.FLOAT,
    width: int = 32,
    opset: int = 21,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, ["batch", width])],
        [helper.make_tensor_value_info("y", kind, ["batch", 4])],
        list(weights),
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def named(name: str, value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value), name)


def qdq(path: Path) -> Path:
    """An int8 layer as quantisers write it: activations and weights between Quantize and Dequantize, then a float head."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Gemm", ["d", "wd", "b"], ["h"], "body", transB=1),
        helper.make_node("MatMul", ["h", "v"], ["y"], "head"),
    ]
    weights = [
        named("s", np.float32(0.1)), named("z", np.int8(0)), named("b", np.zeros(16, np.float32)),
        named("w", RNG.integers(-9, 9, (16, 32)).astype(np.int8)), named("v", np.ones((16, 4), np.float32)),
    ]  # fmt: skip
    return save(path, nodes, weights)


def half(path: Path, kind: int = TensorProto.FLOAT16) -> Path:
    weight = helper.make_tensor("w", kind, (32, 4), np.ones(128, np.float32))
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"], "n")], [weight], kind=kind)


def weights_of_4_bits(path: Path, activations: bool = False) -> Path:
    """A weight of int4 codes; activations stay floats, or become int8 codes too."""
    weight = helper.make_tensor("w", TensorProto.INT4, (32, 4), RNG.integers(-8, 8, 128))
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["wd"])]
    source = "x"
    if activations:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        ]
        source = "d"
    nodes.append(helper.make_node("MatMul", [source, "wd"], ["y"], "n"))
    scale = [named("s", np.float32(0.5)), named("z", np.int8(0))]
    return save(path, nodes, [weight, *(scale if activations else scale[:1])])


def integer(path: Path) -> Path:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], "n"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    return save(path, nodes, [named("w", np.ones((32, 4), np.int8))])


@pytest.mark.parametrize(
    ("make", "layer", "precision", "bits"),
    [
        (qdq, "body", "int8", None),
        (qdq, "head", "fp32", None),
        (half, "n", "fp16", None),
        (lambda path: half(path, TensorProto.BFLOAT16), "n", "bf16", None),
        (weights_of_4_bits, "n", "fp32", 4),
        (lambda path: weights_of_4_bits(path, activations=True), "n", "int8", 4),
        (integer, "n", "int8", None),
    ],
    ids=["QDQ", "behind it", "fp16", "bf16", "int4 weights", "int4 by int8", "integer operator"],
)
def test_of_a_file(make: Any, layer: str, precision: str, bits: int | None, tmp_path: Path) -> None:
    path = make(tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(path))
    counts = count_onnx(path)
    assert counts.precision is not None
    assert counts.sizes is not None
    assert (counts.precision[layer], counts.sizes[layer].weight_bits) == (precision, bits)
    assert counts.total.mac > 0
    assert counts.to_json()["precision"] == dict(counts.precision)


def test_of_a_chip() -> None:
    graph = chain(
        (6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), b=nir.Linear(on_grid(RNG, 3, 5)), m=integrate((3,))
    )  # fmt: skip
    inputs = spikes(2, 4, 6)
    for bits in (8, 4):
        counts = count(lower(graph, DT_S, weight_bits=bits), inputs)
        assert counts.precision == {"a": "int8", "b": "int8"}
        assert counts.sizes is not None
        assert [size.weight_bits for size in counts.sizes.values()] == [bits, bits]
        assert {size.state_bits for size in counts.sizes.values()} == {24}
    assert count(graph, inputs, dt_s=DT_S).precision == {"a": "fp32", "b": "fp32"}


# Priced as such, by hand: Horowitz at 45 nm, pJ.
INT8, FP16, FP32 = 0.2 + 0.1, 1.1 + 0.4, 3.7 + 0.9


@pytest.mark.parametrize(
    ("make", "expected", "precision"),
    [
        # 32 x 16 in int8 into 32-bit accumulators, and a float head of 16 x 4.
        (qdq, 512 * INT8 + 64 * FP32, "int8 + fp32"),
        (half, 128 * FP16, "fp16"),
        # Codes of 4 bits become floats before they are multiplied; with int8 codes they stay integers.
        (weights_of_4_bits, 128 * FP32, "fp32"),
        (lambda path: weights_of_4_bits(path, activations=True), 128 * INT8, "int8"),
    ],
    ids=["QDQ", "fp16", "int4 weights", "int4 by int8"],
)
def test_a_file_is_priced_as_it_computes(
    make: Any, expected: float, precision: str, tmp_path: Path
) -> None:
    counts = count_onnx(make(tmp_path / "m.onnx"))
    own = price(counts, "horowitz")
    assert own.nominal_pj == pytest.approx(expected)
    assert (own.precision, own.profile, own.node_nm) == (precision, "horowitz", 45)
    assert price(counts, "horowitz_fp32").nominal_pj == pytest.approx(
        float(counts.total.mac) * FP32
    )


def test_weights_are_read_in_their_own_bits(tmp_path: Path) -> None:
    """128 codes of 4 bits are 64 bytes: the price of a memory of so many, for 4 of 64 bits."""
    counts = count_onnx(weights_of_4_bits(tmp_path / "m.onnx"))
    own = price(counts, "horowitz", model="memory").terms["memory"].nominal
    whole = price(counts, "horowitz_fp32", model="memory").terms["memory"].nominal

    def fetched(words: int, bits: int) -> float:
        return 10 * (words * bits / 8 / 8192) * bits / 64

    assert whole - own == pytest.approx(128 * (fetched(128, 32) - fetched(128, 4)))
    told = price(counts, "horowitz", model="memory", options=Options(word_bits=32))
    assert told.terms["memory"].nominal == pytest.approx(whole)


def test_a_precision_without_a_price(tmp_path: Path) -> None:
    both = half(tmp_path / "m.onnx", TensorProto.BFLOAT16)
    assert price(count_onnx(both), "jouppi").precision == "bf16"
    found = price(count_onnx(both), "horowitz")
    assert found.precision == "fp16"
    assert "bf16 priced as fp16, for which there is a price" in found.notes
    wide = count_onnx(half(tmp_path / "wide.onnx", TensorProto.DOUBLE))
    with pytest.raises(PriceError, match=r"layer 'n': computes in fp64, and 'horowitz' has prices"):
        price(wide, "horowitz")
    unknown = replace(wide, precision=None)
    with pytest.raises(PriceError, match="do not say in which precision each layer computes"):
        price(unknown, "horowitz")


def test_a_mixed_pair_is_priced_by_side(tmp_path: Path) -> None:
    """A student of int8 weights beside a teacher of floats: same technology, each as it computes."""
    graph = chain(
        (6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6)), n=integrate((5,)), b=nir.Linear(on_grid(RNG, 3, 5)), m=integrate((3,))
    )  # fmt: skip
    student = count(lower(graph, DT_S), spikes(2, 4, 6))
    weight = named("w", np.ones((32, 4), np.float32))
    path = save(
        tmp_path / "ann.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "n")], [weight]
    )
    teacher = count_onnx(path)
    mine, theirs = price(student, "horowitz"), price(teacher, "horowitz")
    assert (mine.precision, theirs.precision) == ("int8", "fp32")
    assert mine.nominal_pj == pytest.approx(float(student.total.acc) * 0.1)
    by_hand = float(student.total.acc) * 0.1 / (128 * FP32)
    assert ratio(mine, theirs) == pytest.approx(by_hand)
    # Profiles named side by side: of one technology, and said.
    named_so = price(student, "horowitz_int8"), price(teacher, "horowitz_fp32")
    with pytest.raises(PriceError, match="precision int8 vs fp32"):
        ratio(*named_so)
    assert ratio(*named_so, mix_precisions=True) == pytest.approx(by_hand)
    with pytest.raises(PriceError, match="node_nm 45 vs 7"):
        ratio(mine, price(teacher, "jouppi_fp32"), mix_precisions=True)
    # A chip's states are wider than its weights.
    sizes = student.sizes
    assert sizes is not None
    narrow = replace(student, sizes={n: replace(s, state_bits=8) for n, s in sizes.items()})
    assert price(narrow, "horowitz", model="memory").nominal_pj < (
        price(student, "horowitz", model="memory").nominal_pj
    )
