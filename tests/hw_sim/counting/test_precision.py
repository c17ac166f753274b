"""The numbers that a file or a chip computes with, read from it, and priced as such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
from graphs import DT_S, chain, integrate, on_grid, spikes
from onnx import TensorProto, helper, numpy_helper

from knarr.deploy import lower
from knarr.hw_sim import count, count_onnx

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
