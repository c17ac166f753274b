"""Count what ONNX nodes do apart from products of weights: pools, normalisations, activations, arithmetic between elements.

One operation per element produced, whatever the formula inside an activation costs; reductions and windows one per element
they read. A maximum over n elements is n - 1 comparisons. Normalisations cost what their written-out form costs, so that a
file counts the same before and after a converter took them apart. All of it stays out of `mac`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import AxisWindow
from knarr.hw_sim.counting.onnx.convolutions import axis_windows, check_axes
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
"""Operations that count once per element produced."""
VARIADIC = frozenset({"Max", "Mean", "Min", "Sum"})
"""Operations that count once per element produced and input after the first."""
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
"""Operations that compare: once less than there are elements, for each element produced."""
NEIGHBOURS = {b"linear": 2, b"cubic": 4}
"""Elements along one axis that an interpolated element is made of."""
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Products whose bias may be written as an addition behind them."""


def _row(
    node: Any, graph: OnnxGraph, elementwise: int = 0, *, comparisons: int = 0, note: str = ""
) -> NodeCounts:
    """Return the counts of a node that works in place: no words of its own but stored parameters."""
    weights = sum(graph.constants[name].size for name in node.input if name in graph.constants)
    sizes = LayerSizes(weights=weights)
    return NodeCounts(sizes, elementwise=elementwise, comparisons=comparisons, note=note)


def _outputs(node: Any, graph: OnnxGraph) -> int:
    return prod(graph.shape(node.output[0]))


def _inputs(node: Any, graph: OnnxGraph) -> int:
    return prod(graph.shape(node.input[0]))


def _per_output(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _row(node, graph, _outputs(node, graph))


def _variadic(node: Any, graph: OnnxGraph) -> NodeCounts:
    operations = len(node.input) - 1
    if node.op_type == "Mean":
        operations += 1  # the division
    return _row(node, graph, _outputs(node, graph) * operations)


def _per_input(node: Any, graph: OnnxGraph) -> NodeCounts:
    read, produced = PER_INPUT[node.op_type]
    elementwise = read * _inputs(node, graph) + produced * _outputs(node, graph)
    note = f"{read} per element read, {produced} per element produced"
    return _row(node, graph, elementwise, note=note)


def _maximum(node: Any, graph: OnnxGraph) -> NodeCounts:
    comparisons = _inputs(node, graph) - _outputs(node, graph)
    if comparisons < 0:
        raise UnsupportedError("a maximum over no elements")
    return _row(node, graph, comparisons=comparisons)


def _add(node: Any, graph: OnnxGraph) -> NodeCounts:
    """Count an addition, which is a bias where it adds one stored number per channel of a product.

    `Linear` on more than two axes is written as MatMul and Add, a folded batch-norm at times as Conv and Add.
    """
    outputs = graph.shape(node.output[0])
    size = prod(outputs)
    for constant, other in (tuple(node.input), tuple(reversed(node.input))):
        producer = graph.producers.get(other)
        if constant not in graph.constants or producer is None or producer.op_type not in BIASED:
            continue
        value = graph.constants[constant]
        channel = 1 if producer.op_type.startswith("Conv") else len(outputs) - 1
        per_channel = [1] * len(outputs)
        per_channel[channel] = outputs[channel]
        # Shapes broadcast from their ends, so missing axes are axes of 1 in front.
        padded = [1] * (len(outputs) - value.ndim) + list(value.shape)
        if outputs == graph.shape(other) and padded == per_channel:
            sizes = LayerSizes(inputs=size, outputs=size, biases=value.size)
            note = f"bias of the {producer.op_type} before it"
            return NodeCounts(sizes, bias_adds=size, note=note)
    return _row(node, graph, size)


def _pool(node: Any, graph: OnnxGraph) -> NodeCounts:
    inputs, outputs = graph.shape(node.input[0]), graph.shape(node.output[0])
    kernel = attributes_of(node).get("kernel_shape", [])
    if not kernel or len(inputs) != len(kernel) + 2 or len(outputs) != len(inputs):
        raise UnsupportedError(f"kernel_shape {list(kernel)} on {len(inputs)} axes")
    windows = axis_windows(node, kernel, inputs[2:], outputs[2:])
    check_axes(kernel, outputs[2:])
    # Elements of each window that are no padding, along each axis.
    elements = [window.output_taps().sum(axis=1) for window in windows]
    planes = prod(inputs[:2])
    read = planes * prod(int(axis.sum()) for axis in elements)
    if node.op_type == "AveragePool":
        return _row(node, graph, read, note="one per element inside a window, padding left out")
    # A window that lies in the padding altogether compares nothing.
    filled = planes * prod(int(np.count_nonzero(axis)) for axis in elements)
    return _row(node, graph, comparisons=read - filled)


def _batch_norm(node: Any, graph: OnnxGraph) -> NodeCounts:
    trained = attributes_of(node).get("training_mode", 0) or any(node.output[1:])
    if trained:
        raise UnsupportedError(
            "training mode; export in eval mode so that it folds into the synapse before it"
        )
    note = "a multiplication and an addition per element, as it stands alone; folded into a synapse it would be free"
    return _row(node, graph, 2 * _outputs(node, graph), note=note)


def _normalisation(node: Any, graph: OnnxGraph) -> NodeCounts:
    """Count a mean, difference, square, mean, + eps, root and quotient; then scale and bias."""
    shape, attributes = graph.shape(node.input[0]), attributes_of(node)
    per_element = 5
    affine = 2
    if node.op_type == "InstanceNormalization":
        groups = prod(shape[:2])
    elif node.op_type == "GroupNormalization":
        groups = shape[0] * attributes.get("num_groups", 0)
    else:
        axis = attributes.get("axis", -1)
        if not -len(shape) <= axis < len(shape):
            raise UnsupportedError(f"axis {axis} of {len(shape)}")
        groups = prod(shape[:axis])
        affine = sum(1 for name in node.input[1:] if name)
        if node.op_type == "RMSNormalization":
            per_element = 3  # no mean is taken away
    per_element += affine
    note = f"{per_element} per element and 2 per normalised group"
    return _row(node, graph, per_element * _outputs(node, graph) + 2 * groups, note=note)


def _local_response(node: Any, graph: OnnxGraph) -> NodeCounts:
    """Count a square; the sum over neighbouring channels; times alpha, plus bias, power, quotient."""
    channels, size = graph.shape(node.input[0])[1], attributes_of(node)["size"]
    check_axes([size], [channels])
    # The definition puts the smaller half of an even window before the channel.
    window = AxisWindow(channels, channels, size, padding=(size - 1) // 2)
    elements = _inputs(node, graph)
    added = elements // channels * int(window.output_taps().sum())
    return _row(node, graph, 5 * elements + added, note="5 per element and one per neighbour")


def _resize(node: Any, graph: OnnxGraph) -> NodeCounts | str:
    attributes = attributes_of(node)
    mode = attributes.get("mode", b"nearest")
    if mode == b"nearest":
        return "copies elements"
    antialias = attributes.get("antialias", 0)
    if mode not in NEIGHBOURS or antialias:
        suffix = " with antialias" if antialias else ""
        raise UnsupportedError(f"mode {mode.decode(errors='replace')}{suffix}")
    shapes = graph.shape(node.input[0]), graph.shape(node.output[0])
    changed = sum(before != after for before, after in zip(*shapes, strict=True))
    if changed == 0:
        return "nothing is resized"
    # Each neighbour is multiplied with its share, and the products are added up.
    per_output = 2 * NEIGHBOURS[mode] ** changed - 1
    note = f"{per_output} per element produced"
    return _row(node, graph, per_output * _outputs(node, graph), note=note)


def _dynamic_quantise(node: Any, graph: OnnxGraph) -> NodeCounts:
    inputs = _inputs(node, graph)
    note = "least and largest element, then scaled"
    return _row(node, graph, inputs, comparisons=2 * (inputs - 1), note=note)


def _dropout(node: Any, graph: OnnxGraph) -> str:
    training = operand(node, 2)
    # A flag that is not known might be set.
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


def _free(node: Any, graph: OnnxGraph) -> str:
    return FREE[node.op_type]


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
    **dict.fromkeys(FREE, _free),
    "Add": _add,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantise,
    "GroupNormalization": _normalisation,
    "InstanceNormalization": _normalisation,
    "LayerNormalization": _normalisation,
    "LRN": _local_response,
    "MaxPool": _pool,
    "RMSNormalization": _normalisation,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Upsample": _resize,
}
"""Operation -> the function that returns its counts, or why it is free; everything but products."""
