"""Pools, normalisations, activations and arithmetic between elements: what ONNX nodes do apart from products of weights.

One operation per element produced, whatever the formula inside an activation costs; reductions and windows one per element
they read. A maximum over n elements is n - 1 comparisons. Normalisations cost what their written-out form costs, so that a
file counts the same before and after a converter took them apart. All of it stays out of `mac`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.onnx.convolutions import check_axes, spread_taps, window_of
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError, attributes_of, operand
from knarr.hw_sim.counting.onnx.products import NodeCounts

PER_OUTPUT = frozenset({
    "Abs", "Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Clip", "Cos", "Cosh", "CumSum",
    "DequantizeLinear", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Hardmax", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
"""One operation per element produced."""
VARIADIC = frozenset({"Max", "Mean", "Min", "Sum"})
"""One operation per element produced and input after the first."""
PER_INPUT = {
    "GlobalAveragePool": (1, 0),
    "ReduceL1": (2, 0),  # absolute value, addition
    "ReduceL2": (2, 1),  # square, addition; root
    "ReduceLogSum": (1, 1),
    "ReduceLogSumExp": (2, 1),  # exponential, addition; logarithm
    "ReduceMean": (1, 0),
    "ReduceProd": (1, 0),
    "ReduceSum": (1, 0),
    "ReduceSumSquare": (2, 0),
}
"""Operations per element read and per element produced; a mean of n is n - 1 additions and a division."""
MAXIMA = frozenset({"ArgMax", "ArgMin", "GlobalMaxPool", "ReduceMax", "ReduceMin"})
NEIGHBOURS = {b"linear": 2, b"cubic": 4}
"""Elements along one axis that an interpolated element is made of."""
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _row(
    node: Any, graph: OnnxGraph, elementwise: int, *, comparisons: int = 0, note: str = ""
) -> NodeCounts:
    """A node that works in place: no words of its own but stored parameters."""
    weights = sum(graph.constants[name].size for name in node.input if name in graph.constants)
    sizes = LayerSizes(0, 0, weights, 0, 0, 0, False, False)
    return NodeCounts(sizes, elementwise=elementwise, comparisons=comparisons, note=note)


def _outputs(node: Any, graph: OnnxGraph) -> int:
    return prod(graph.shape(node.output[0]))


def _inputs(node: Any, graph: OnnxGraph) -> int:
    return prod(graph.shape(node.input[0]))


def _per_output(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _row(node, graph, _outputs(node, graph))


def _variadic(node: Any, graph: OnnxGraph) -> NodeCounts:
    division = node.op_type == "Mean"
    return _row(node, graph, _outputs(node, graph) * (len(node.input) - 1 + division))


def _per_input(node: Any, graph: OnnxGraph) -> NodeCounts:
    read, produced = PER_INPUT[node.op_type]
    elementwise = read * _inputs(node, graph) + produced * _outputs(node, graph)
    return _row(
        node, graph, elementwise, note=f"{read} per element read, {produced} per element produced"
    )


def _maximum(node: Any, graph: OnnxGraph) -> NodeCounts:
    found = _inputs(node, graph) - _outputs(node, graph)
    if found < 0:
        raise UnsupportedError("a maximum over no elements")
    return _row(node, graph, 0, comparisons=found)


def _add(node: Any, graph: OnnxGraph) -> NodeCounts:
    """`Linear` on more than two axes is written as MatMul and Add, a folded batch-norm at times as Conv and Add."""
    outputs = graph.shape(node.output[0])
    for constant, other in (tuple(node.input), tuple(reversed(node.input))):
        producer = graph.producers.get(other)
        if constant in graph.constants and producer is not None and producer.op_type in BIASED:
            value = graph.constants[constant]
            channel = 1 if producer.op_type.startswith("Conv") else len(outputs) - 1
            fitting = [1] * len(outputs)
            fitting[channel] = outputs[channel]
            padded = (1,) * (len(outputs) - value.ndim) + value.shape
            if outputs == graph.shape(other) and list(padded) == fitting:
                sizes = LayerSizes(prod(outputs), prod(outputs), 0, value.size, 0, 0, False, False)
                return NodeCounts(
                    sizes, bias_adds=prod(outputs), note=f"bias of the {producer.op_type} before it"
                )
    return _row(node, graph, prod(outputs))


def _pool(node: Any, graph: OnnxGraph) -> NodeCounts:
    inputs, outputs = graph.shape(node.input[0]), graph.shape(node.output[0])
    kernel = attributes_of(node).get("kernel_shape", [])
    if not kernel or len(inputs) != len(kernel) + 2 or len(outputs) != len(inputs):
        raise UnsupportedError(f"kernel_shape {list(kernel)} on {len(inputs)} axes")
    window = window_of(node, kernel, inputs[2:])
    check_axes(kernel, outputs[2:])
    taps = [
        spread_taps(
            outputs[2 + axis],
            inputs[2 + axis],
            kernel[axis],
            stride=window.strides[axis],
            padding=window.begins[axis],
            dilation=window.dilations[axis],
        ).sum(axis=1)
        for axis in range(len(kernel))
    ]
    planes = prod(inputs[:2])
    read = planes * prod(int(axis.sum()) for axis in taps)
    if node.op_type == "AveragePool":
        return _row(node, graph, read, note="one per element inside a window, padding left out")
    filled = planes * prod(int(np.count_nonzero(axis)) for axis in taps)
    return _row(node, graph, 0, comparisons=read - filled)


def _batch_norm(node: Any, graph: OnnxGraph) -> NodeCounts:
    trained = attributes_of(node).get("training_mode", 0) or any(node.output[1:])
    if trained:
        raise UnsupportedError(
            "training mode; export in eval mode so that it folds into the synapse before it"
        )
    note = "a multiplication and an addition per element, as it stands alone; folded into a synapse it would be free"
    return _row(node, graph, 2 * _outputs(node, graph), note=note)


def _normalisation(
    node: Any, graph: OnnxGraph, groups: int, affine: int, centred: bool = True
) -> NodeCounts:
    """mean, difference, square, mean, + eps, root, quotient; then scale and bias."""
    per_element = (5 if centred else 3) + affine
    elementwise = per_element * _outputs(node, graph) + 2 * groups
    return _row(
        node, graph, elementwise, note=f"{per_element} per element and 2 per normalised group"
    )


def _rows_from_axis(node: Any, graph: OnnxGraph) -> int:
    shape = graph.shape(node.input[0])
    axis = attributes_of(node).get("axis", -1)
    if not -len(shape) <= axis < len(shape):
        raise UnsupportedError(f"axis {axis} of {len(shape)}")
    return prod(shape[:axis])


def _layer_norm(node: Any, graph: OnnxGraph) -> NodeCounts:
    affine = sum(1 for name in node.input[1:] if name)
    centred = node.op_type == "LayerNormalization"
    return _normalisation(node, graph, _rows_from_axis(node, graph), affine, centred)


def _instance_norm(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _normalisation(node, graph, prod(graph.shape(node.input[0])[:2]), 2)


def _group_norm(node: Any, graph: OnnxGraph) -> NodeCounts:
    groups = attributes_of(node).get("num_groups", 0)
    return _normalisation(node, graph, graph.shape(node.input[0])[0] * groups, 2)


def _local_response(node: Any, graph: OnnxGraph) -> NodeCounts:
    """Square; sum over neighbouring channels; times alpha, plus bias, power, quotient."""
    shape, size = graph.shape(node.input[0]), attributes_of(node)["size"]
    check_axes([size], shape[1:2])
    window = spread_taps(shape[1], shape[1], size, stride=1, padding=(size - 1) // 2, dilation=1)
    positions = _inputs(node, graph) // shape[1]
    added = positions * int(window.sum())
    return _row(
        node, graph, 5 * _inputs(node, graph) + added, note="5 per element and one per neighbour"
    )


def _resize(node: Any, graph: OnnxGraph) -> NodeCounts | str:
    attributes = attributes_of(node)
    mode = attributes.get("mode", b"nearest")
    if mode == b"nearest":
        return "copies elements"
    if mode not in NEIGHBOURS or attributes.get("antialias", 0):
        raise UnsupportedError(
            f"mode {mode.decode(errors='replace')}{' with antialias' * bool(attributes.get('antialias', 0))}"
        )
    shapes = graph.shape(node.input[0]), graph.shape(node.output[0])
    changed = sum(before != after for before, after in zip(*shapes, strict=True))
    per_output = 2 * NEIGHBOURS[mode] ** changed - 1
    if changed == 0:
        return "nothing is resized"
    return _row(
        node, graph, per_output * _outputs(node, graph), note=f"{per_output} per element produced"
    )


def _dynamic_quantise(node: Any, graph: OnnxGraph) -> NodeCounts:
    inputs = _inputs(node, graph)
    return _row(
        node,
        graph,
        inputs,
        comparisons=2 * (inputs - 1),
        note="least and largest element, then scaled",
    )


def _dropout(node: Any, graph: OnnxGraph) -> str:
    training = operand(node, 2)
    if training and np.any(graph.constants.get(training, np.asarray(True))):
        raise UnsupportedError("training mode; export in eval mode")
    return "does nothing in eval mode"


def _scatter(node: Any, graph: OnnxGraph) -> str:
    reduction = attributes_of(node).get("reduction", b"none")
    if reduction != b"none":
        raise UnsupportedError(
            f"reduction {reduction.decode(errors='replace')}: its operations depend on the indices"
        )
    return MOVES


def _free(node: Any, graph: OnnxGraph, *, why: str) -> str:
    return why


MOVES = "moves data, computes nothing"
MOVING = (
    "CenterCropPad", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
)  # fmt: skip
FREE = {
    **dict.fromkeys(MOVING, MOVES),
    "Cast": "changes the number format",
    "CastLike": "changes the number format",
    "Constant": "a value, no operation",
    "ConstantOfShape": "a value, no operation",
    "Shape": "reads a shape",
    "Size": "reads a shape",
}
"""Operations that cost nothing here by policy, and why."""

Rule = Callable[[Any, OnnxGraph], NodeCounts | str]
ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(PER_OUTPUT, _per_output),
    **dict.fromkeys(VARIADIC, _variadic),
    **dict.fromkeys(PER_INPUT, _per_input),
    **dict.fromkeys(MAXIMA, _maximum),
    **{name: partial(_free, why=why) for name, why in FREE.items()},
    "Add": _add,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantise,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _local_response,
    "MaxPool": _pool,
    "RMSNormalization": _layer_norm,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Upsample": _resize,
}
"""Everything but products: counts, or why it is free."""
