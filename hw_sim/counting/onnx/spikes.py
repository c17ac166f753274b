"""Find the tensors of an ONNX file that are spikes, or sums of spikes, by the way they are made.

A comparison gives spikes, a Cast makes them numbers, and what moves, adds, multiplies or compares
whole numbers gives whole numbers. So a silent frame of such a tensor is a frame of spikes, and a 2
in it is two of them. Elsewhere a 2 is a value that happens to be whole, and silence that of a dense
layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from knarr.hw_sim.counting.onnx.model import OnnxGraph

MOVED = frozenset({
    "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad",
    "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operations that make whole numbers of their first input's."""
JOINED = frozenset({"Abs", "Add", "Concat", "Max", "Min", "Mul", "Neg", "Relu", "Sub", "Sum"})
"""Operations that make whole numbers of whole numbers, whatever their inputs are."""


def spike_tensors(graph: OnnxGraph) -> frozenset[str]:
    """Return the names of the tensors of a graph that are spikes or sums of them."""
    whole: set[str] = set()

    def known(name: str) -> bool:
        value = graph.constants.get(name)
        if value is None:
            return name in whole
        return value.dtype.kind in "biuf" and np.array_equal(value, np.rint(value))

    def logical(name: str) -> bool:
        kind = graph.types[name].type.tensor_type.elem_type if name in graph.types else None
        return bool(kind == onnx.TensorProto.BOOL)

    def made_whole(node: Any) -> bool:
        if node.domain not in ("", "ai.onnx"):
            return False
        inputs = [name for name in node.input if name]
        if node.op_type == "Sign":
            return True
        if node.op_type == "Cast" and logical(inputs[0]):
            return True
        if node.op_type == "Where":
            return all(map(known, inputs[1:]))
        if node.op_type in MOVED:
            return known(inputs[0])
        if node.op_type == "MatMul":  # of two activations; weights would scale what they add
            return whole.issuperset(inputs)
        return node.op_type in JOINED and all(map(known, inputs))

    for node in graph.model.graph.node:
        if node.input and made_whole(node):
            whole.update(name for name in node.output if name)
    return frozenset(whole)
