"""Read the precision of an ONNX file's layers: the numbers that are multiplied, and the bits of a
stored weight.

Codes of integers multiply as such where both factors are codes: between QuantizeLinear and
DequantizeLinear (QDQ), and in integer operators. Where the weight alone is a code it is turned into
a float first, and the multiplication is one of floats; it is read from memory in its own bits.
"""

from __future__ import annotations

from typing import Any

import onnx

from knarr.hw_sim.counting.onnx.model import OnnxGraph, OnnxNode
from knarr.hw_sim.counting.onnx.products import PRODUCT_RULES, operands

TYPES = onnx.TensorProto
NAMES = {
    TYPES.FLOAT: "fp32", TYPES.FLOAT16: "fp16", TYPES.BFLOAT16: "bf16", TYPES.DOUBLE: "fp64",
    TYPES.INT4: "int4", TYPES.UINT4: "int4", TYPES.INT8: "int8", TYPES.UINT8: "int8",
    TYPES.INT16: "int16", TYPES.UINT16: "int16", TYPES.INT32: "int32", TYPES.UINT32: "int32",
    TYPES.FLOAT8E4M3FN: "fp8", TYPES.FLOAT8E4M3FNUZ: "fp8", TYPES.FLOAT8E5M2: "fp8",
    TYPES.FLOAT8E5M2FNUZ: "fp8", TYPES.BOOL: "int8",
}  # fmt: skip
"""Element type -> the precision of arithmetic with it."""
MOVED = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Flatten", "Pad"})
"""Operations behind which a code is still the code it was."""
INT8_COMPUTE = 4
"""`accuracy_level` of MatMulNBits at which activations become int8 too."""


def bits_of(precision: str) -> int:
    """Return the bits of a number, of a name such as "int8" or "bf16"."""
    return int(precision.lstrip("bfpint"))


def precision_of(node: Any, graph: OnnxGraph) -> tuple[str, int | None]:
    """Return the precision that a node computes in, "" where the file does not say, and the bits of
    its stored weight; None where it has none or they are those of the precision.

    Args:
        node: onnx.NodeProto that is counted.
        graph: the graph that holds it.
    """
    if node.op_type == "MatMulNBits":
        return _block_quantised(node, graph)
    if node.op_type not in PRODUCT_RULES or node.op_type == "Einsum":
        return _joined([_code(name, graph)[0] for name in node.input[:2]]), None
    names = operands(OnnxNode(node, graph))
    left, right = (_code(name, graph) for name in (names.left, names.right))
    if node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
        return _joined([left[0], right[0]]), None
    # A code on one side alone is turned into a float, of the node's own type.
    codes = left[1] and right[1]
    precision = _joined([left[0], right[0]]) if codes else _element(names.left, graph)
    stored = next(
        (
            side[0]
            for name, side in ((names.right, right), (names.left, left))
            if name in graph.constants
        ),
        "",
    )
    return precision, _own_bits(stored, precision)


def _own_bits(stored: str, precision: str) -> int | None:
    if not stored or not precision or bits_of(stored) == bits_of(precision):
        return None
    return bits_of(stored)


def _joined(names: list[str]) -> str:
    """Return the wider of two precisions."""
    known = [name for name in names if name]
    return max(known, key=bits_of, default="")


def _block_quantised(node: Any, graph: OnnxGraph) -> tuple[str, int | None]:
    attributes = OnnxNode(node, graph).attributes
    bits = int(attributes.get("bits", 4))
    integers = attributes.get("accuracy_level", 0) == INT8_COMPUTE
    return "int8" if integers else _element(node.input[0], graph), bits


def _element(name: str, graph: OnnxGraph) -> str:
    """Return the precision of a tensor's own type, "" where nobody says it."""
    for tensor in graph.model.graph.initializer:
        if tensor.name == name:
            return NAMES.get(tensor.data_type, "")
    if name in graph.types:
        return NAMES.get(graph.types[name].type.tensor_type.elem_type, "")
    if name in graph.constants:
        kind = onnx.helper.np_dtype_to_tensor_dtype(graph.constants[name].dtype)
        return NAMES.get(kind, "")
    return ""


def _code(name: str, graph: OnnxGraph) -> tuple[str, bool]:
    """Return the precision in which a tensor is stored or sent, and whether it is a code there."""
    producer = graph.producers.get(name)
    while producer is not None and producer.op_type in MOVED:
        name = producer.input[0]
        producer = graph.producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        return _element(producer.input[0], graph), True
    if producer is not None and producer.op_type == "Cast" and name in graph.constants:
        return _element(producer.input[0], graph), False
    return _element(name, graph), False
