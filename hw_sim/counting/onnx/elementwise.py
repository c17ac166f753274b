"""Count what ONNX nodes do apart from products: pools, normalisations, activations, arithmetic.

One operation per element produced, whatever the formula inside an activation costs; reductions and
windows one per element they read. A maximum over n elements is n - 1 comparisons. Normalisations
cost what their written-out form costs, so that a file counts the same before and after a converter
took them apart. All of it stays out of `mac`.
"""

from __future__ import annotations

from math import prod

import numpy as np

from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import AxisWindow
from knarr.hw_sim.counting.onnx.model import OnnxNode, UnsupportedError
from knarr.hw_sim.counting.onnx.products import NodeCounts, Rule, axis_windows, check_axes

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
"""Operations per element read and produced; a mean of n is n - 1 additions and a division."""
MAXIMA = frozenset({"ArgMax", "ArgMin", "GlobalMaxPool", "ReduceMax", "ReduceMin"})
"""Operations that compare: once less than there are elements, for each element produced."""
NEIGHBOURS = {b"linear": 2, b"cubic": 4}
"""Elements along one axis that an interpolated element is made of."""
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Products whose bias may be written as an addition behind them."""


def _row(
    node: OnnxNode,
    elementwise: int = 0,
    *,
    comparisons: int = 0,
    note: str = "",
) -> NodeCounts:
    """Return the counts of a node that works in place: its words are stored parameters."""
    constants = node.graph.constants
    stored = [constants[name].size for name in node.proto.input if name in constants]
    sizes = LayerSizes(weights=sum(stored))
    return NodeCounts(sizes, elementwise=elementwise, comparisons=comparisons, note=note)


def _per_output(node: OnnxNode) -> NodeCounts:
    return _row(node, node.outputs)


def _variadic(node: OnnxNode) -> NodeCounts:
    operations = len(node.proto.input) - 1
    if node.operation == "Mean":
        operations += 1  # the division
    return _row(node, node.outputs * operations)


def _per_input(node: OnnxNode) -> NodeCounts:
    read, produced = PER_INPUT[node.operation]
    elementwise = read * node.inputs + produced * node.outputs
    note = f"{read} per element read, {produced} per element produced"
    return _row(node, elementwise, note=note)


def _maximum(node: OnnxNode) -> NodeCounts:
    comparisons = node.inputs - node.outputs
    if comparisons < 0:
        raise UnsupportedError("a maximum over no elements")
    return _row(node, comparisons=comparisons)


def _add(node: OnnxNode) -> NodeCounts:
    """Count an addition, which is a bias where it adds one stored number per channel of a product.

    `Linear` on more than two axes is written as MatMul and Add, a folded batch-norm at times as
    Conv and Add.
    """
    outputs = node.output_shape
    size = prod(outputs)
    graph = node.graph
    left, right = node.proto.input
    for constant, other in ((left, right), (right, left)):
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
    return _row(node, size)


def _pool(node: OnnxNode) -> NodeCounts:
    inputs, outputs = node.input_shape, node.output_shape
    kernel = node.attributes.get("kernel_shape", [])
    if not kernel or len(inputs) != len(kernel) + 2 or len(outputs) != len(inputs):
        raise UnsupportedError(f"kernel_shape {list(kernel)} on {len(inputs)} axes")
    windows = axis_windows(node, kernel, inputs[2:], outputs[2:])
    check_axes(kernel, outputs[2:])
    # Elements of each window that are no padding, along each axis.
    elements = [window.output_taps().sum(axis=1) for window in windows]
    planes = prod(inputs[:2])
    read = planes * prod(int(axis.sum()) for axis in elements)
    if node.operation == "AveragePool":
        return _row(node, read, note="one per element inside a window, padding left out")
    # A window that lies in the padding altogether compares nothing.
    filled = planes * prod(int(np.count_nonzero(axis)) for axis in elements)
    return _row(node, comparisons=read - filled)


def _batch_norm(node: OnnxNode) -> NodeCounts:
    trained = node.attributes.get("training_mode", 0) or any(node.proto.output[1:])
    if trained:
        raise UnsupportedError(
            "training mode; export in eval mode so that it folds into the synapse before it"
        )
    note = "a multiplication and an addition per element, as it stands alone; folded into a synapse it would be free"
    return _row(node, 2 * node.outputs, note=note)


def _normalisation(node: OnnxNode) -> NodeCounts:
    """Count a mean, difference, square, mean, + eps, root and quotient; then scale and bias."""
    shape, attributes = node.input_shape, node.attributes
    per_element = 5
    affine = 2
    if node.operation == "InstanceNormalization":
        groups = prod(shape[:2])
    elif node.operation == "GroupNormalization":
        groups = shape[0] * attributes.get("num_groups", 0)
    else:
        axis = attributes.get("axis", -1)
        if not -len(shape) <= axis < len(shape):
            raise UnsupportedError(f"axis {axis} of {len(shape)}")
        groups = prod(shape[:axis])
        affine = sum(1 for name in node.proto.input[1:] if name)
        if node.operation == "RMSNormalization":
            per_element = 3  # no mean is taken away
    per_element += affine
    note = f"{per_element} per element and 2 per normalised group"
    return _row(node, per_element * node.outputs + 2 * groups, note=note)


def _local_response(node: OnnxNode) -> NodeCounts:
    """Count a square; the sum over neighbours; times alpha, plus bias, power, quotient."""
    channels, size = node.input_shape[1], node.attributes["size"]
    check_axes([size], [channels])
    # The definition puts the smaller half of an even window before the channel.
    window = AxisWindow(channels, channels, size, padding=(size - 1) // 2)
    elements = node.inputs
    added = elements // channels * int(window.output_taps().sum())
    return _row(node, 5 * elements + added, note="5 per element and one per neighbour")


def _resize(node: OnnxNode) -> NodeCounts | str:
    attributes = node.attributes
    mode = attributes.get("mode", b"nearest")
    if mode == b"nearest":
        return "copies elements"
    antialias = attributes.get("antialias", 0)
    if mode not in NEIGHBOURS or antialias:
        suffix = " with antialias" if antialias else ""
        raise UnsupportedError(f"mode {mode.decode(errors='replace')}{suffix}")
    shapes = node.input_shape, node.output_shape
    changed = sum(before != after for before, after in zip(*shapes, strict=True))
    if changed == 0:
        return "nothing is resized"
    # Each neighbour is multiplied with its share, and the products are added up.
    per_output = 2 * NEIGHBOURS[mode] ** changed - 1
    note = f"{per_output} per element produced"
    return _row(node, per_output * node.outputs, note=note)


def _dynamic_quantise(node: OnnxNode) -> NodeCounts:
    inputs = node.inputs
    note = "least and largest element, then scaled"
    return _row(node, inputs, comparisons=2 * (inputs - 1), note=note)


def _dropout(node: OnnxNode) -> str:
    training = node.operand(2)
    # A flag that is not known might be set.
    if training and np.any(node.graph.constants.get(training, np.asarray(True))):
        raise UnsupportedError("training mode; export in eval mode")
    return "does nothing in eval mode"


def _scatter(node: OnnxNode) -> str:
    reduction = node.attributes.get("reduction", b"none")
    if reduction != b"none":
        raise UnsupportedError(
            f"reduction {reduction.decode(errors='replace')}: its operations depend on the indices"
        )
    return MOVES


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

ELEMENTWISE: dict[str, Rule | str] = {
    **FREE,
    **dict.fromkeys(PER_OUTPUT, _per_output),
    **dict.fromkeys(VARIADIC, _variadic),
    **dict.fromkeys(PER_INPUT, _per_input),
    **dict.fromkeys(MAXIMA, _maximum),
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
