"""Where the window of a convolution, transposed convolution or pool lies, axis by axis.

Convolutions of ONNX over any number of axes, forward and transposed, float and quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.fan_out import Int64, axis_taps, kernel_targets
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError, attributes_of, operand
from knarr.hw_sim.counting.onnx.products import Mask, NodeCounts, Product, factor, product_row

LONGEST_AXIS = 2**24
"""Positions of an axis times taps; beyond it the table of taps would fill the memory."""


@dataclass(frozen=True)
class KernelWindow:
    """Kernel, stride, dilation and zeros before the first element, per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]

    def extent(self, axis: int) -> int:
        """Elements from the first tap to the last."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def window_of(node: Any, kernel: Sequence[int], inputs: Sequence[int]) -> KernelWindow:
    """Window of Conv and of pools; `auto_pad` is resolved as the operator's definition says.

    Args:
        node: onnx.NodeProto.
        kernel, inputs: sizes along the spatial axes.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes = attributes_of(node)
    strides, dilations = (
        _per_axis(attributes, "strides", kernel),
        _per_axis(attributes, "dilations", kernel),
    )
    bare = KernelWindow(tuple(kernel), strides, dilations, (0,) * len(kernel))
    auto = _auto_pad(attributes)
    if auto == "NOTSET":
        return KernelWindow(
            tuple(kernel), strides, dilations, _pads(attributes, kernel)[: len(kernel)]
        )
    if auto == "VALID":
        return bare
    begins = []
    for axis, size in enumerate(inputs):
        outputs = -(-size // strides[axis])
        missing = max((outputs - 1) * strides[axis] + bare.extent(axis) - size, 0)
        begins.append(missing // 2 if auto == "SAME_UPPER" else missing - missing // 2)
    return KernelWindow(tuple(kernel), strides, dilations, tuple(begins))


def transposed_window_of(
    node: Any, kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
) -> KernelWindow:
    """Window of ConvTranspose; `begins` are the elements cropped before the first output.

    Args:
        node: onnx.NodeProto.
        kernel, inputs, outputs: sizes along the spatial axes.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes = attributes_of(node)
    strides, dilations = (
        _per_axis(attributes, "strides", kernel),
        _per_axis(attributes, "dilations", kernel),
    )
    bare = KernelWindow(tuple(kernel), strides, dilations, (0,) * len(kernel))
    auto = _auto_pad(attributes)
    asked = "output_shape" in attributes
    if not asked and auto == "NOTSET":
        return KernelWindow(
            tuple(kernel), strides, dilations, _pads(attributes, kernel)[: len(kernel)]
        )
    if not asked and auto == "VALID":
        return bare
    extra = attributes.get("output_padding", [0] * len(kernel))
    begins = []
    for axis, (size, wanted) in enumerate(zip(inputs, outputs, strict=True)):
        cropped = strides[axis] * (size - 1) + extra[axis] + bare.extent(axis) - wanted
        if cropped < 0:
            raise UnsupportedError(
                f"output of {wanted} on axis {axis} is larger than the kernel reaches"
            )
        begins.append(cropped // 2 if auto == "SAME_UPPER" else cropped - cropped // 2)
    return KernelWindow(tuple(kernel), strides, dilations, tuple(begins))


def spread_taps(
    positions: int, targets: int, kernel: int, *, stride: int, padding: int, dilation: int
) -> npt.NDArray[np.bool_]:
    """(positions, kernel): whether stride * position + dilation * tap - padding lies in 0..targets-1.

    For a transposed convolution positions are inputs and targets outputs, for a pool the other way round.
    """
    at = stride * np.arange(positions)[:, None] + dilation * np.arange(kernel)[None, :] - padding
    return np.asarray((at >= 0) & (at < targets))


def _auto_pad(attributes: dict[str, Any]) -> str:
    value: str = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if value not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {value} does not exist")
    return value


def _per_axis(attributes: dict[str, Any], name: str, kernel: Sequence[int]) -> tuple[int, ...]:
    values = tuple(attributes.get(name, [1] * len(kernel)))
    if len(values) != len(kernel) or min(values, default=1) < 1:
        raise UnsupportedError(f"{name} {list(values)} do not fit {len(kernel)} axes")
    return values


def _pads(attributes: dict[str, Any], kernel: Sequence[int]) -> tuple[int, ...]:
    values = tuple(attributes.get("pads", [0] * 2 * len(kernel)))
    if len(values) != 2 * len(kernel) or min(values, default=0) < 0:
        raise UnsupportedError(f"pads {list(values)} do not fit {len(kernel)} axes")
    return values


def check_axes(kernel: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise UnsupportedError where a table of taps would be too large, or has no taps."""
    for taps, size in zip(kernel, sizes, strict=True):
        if taps < 1 or size < 1 or taps * size > LONGEST_AXIS:
            raise UnsupportedError(f"a kernel of {taps} on {size} elements cannot be counted")


def _conv(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _convolution(node, graph, node.input[0], node.input[1], operand(node, 2))


def _conv_integer(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _convolution(
        node,
        graph,
        node.input[0],
        node.input[1],
        "",
        (operand(node, 2), operand(node, 3)),
        quantised=True,
    )


def _qlinear_conv(node: Any, graph: OnnxGraph) -> NodeCounts:
    zeros = (operand(node, 2), operand(node, 5))
    return _convolution(
        node,
        graph,
        node.input[0],
        node.input[3],
        operand(node, 8),
        zeros,
        quantised=True,
        rescaled=True,
    )


def _convolution(
    node: Any,
    graph: OnnxGraph,
    source: str,
    weight: str,
    bias: str,
    zeros: tuple[str, str] = ("", ""),
    *,
    quantised: bool = False,
    rescaled: bool = False,
) -> NodeCounts:
    inputs, outputs, kernel = graph.shape(source), graph.shape(node.output[0]), graph.shape(weight)
    groups = _groups(node, inputs, kernel, kernel[1])
    if kernel[0] % groups or outputs[:2] != (inputs[0], kernel[0]):
        raise UnsupportedError(
            f"weight {kernel} does not make {outputs} of {inputs} in {groups} groups"
        )
    window = window_of(node, kernel[2:], inputs[2:])
    sizes, begins = inputs[2:], window.begins
    before = None if quantised else _explicit_padding(source, graph)
    if before is not None:  # these zeros exist no more than those that the convolution pads with
        source, pads = before
        sizes = graph.shape(source)[2:]
        begins = tuple(begin + pad for begin, pad in zip(begins, pads, strict=True))
    check_axes(kernel[2:], sizes)
    taps = [
        axis_taps(
            size,
            outputs[2 + axis],
            window.kernel[axis],
            stride=window.strides[axis],
            padding=begins[axis],
            dilation=window.dilations[axis],
        )
        for axis, size in enumerate(sizes)
    ]
    product = Product(
        factor(graph, source, lambda mask: _events_per_tap(mask, taps), zero=zeros[0]),
        factor(
            graph,
            weight,
            lambda mask: kernel_targets(mask, groups, nz=True),
            zero=zeros[1],
        ),
    )
    return product_row(
        node,
        graph,
        source,
        weight,
        product,
        padded=prod(outputs) * prod(kernel[1:]),
        bias=bias,
        kernel=kernel[0] * prod(kernel[2:]),
        convolution=True,
        elementwise=prod(outputs) if rescaled else 0,
    )


def _conv_transpose(node: Any, graph: OnnxGraph) -> NodeCounts:
    source, weight = node.input[0], node.input[1]
    inputs, outputs, kernel = graph.shape(source), graph.shape(node.output[0]), graph.shape(weight)
    groups = _groups(node, inputs, kernel, inputs[1])
    if kernel[0] != inputs[1] or outputs[:2] != (inputs[0], kernel[1] * groups):
        raise UnsupportedError(
            f"weight {kernel} does not make {outputs} of {inputs} in {groups} groups"
        )
    window = transposed_window_of(node, kernel[2:], inputs[2:], outputs[2:])
    check_axes(kernel[2:], inputs[2:])
    taps = [
        spread_taps(
            size,
            outputs[2 + axis],
            window.kernel[axis],
            stride=window.strides[axis],
            padding=window.begins[axis],
            dilation=window.dilations[axis],
        )
        for axis, size in enumerate(inputs[2:])
    ]
    product = Product(
        factor(graph, source, lambda mask: _events_per_tap(mask, taps)),
        factor(graph, weight, lambda mask: np.asarray(mask.sum(axis=1, dtype=np.int64))),
    )
    return product_row(
        node,
        graph,
        source,
        weight,
        product,
        padded=prod(inputs)
        * prod(kernel[1:]),  # every tap of every input, cropped outputs included
        bias=operand(node, 2),
        kernel=outputs[1] * prod(kernel[2:]),
        convolution=True,
    )


def _groups(node: Any, inputs: Sequence[int], kernel: Sequence[int], channels: int) -> int:
    """`group` of a convolution over (batch, channels, *axes), checked; `channels` are those a group must divide."""
    groups = attributes_of(node).get("group", 1)
    if len(kernel) < 3 or len(inputs) != len(kernel):
        raise UnsupportedError(
            f"weight {tuple(kernel)} on an input {tuple(inputs)}: needs the same axes"
        )
    stated = attributes_of(node).get("kernel_shape", list(kernel[2:]))
    if list(stated) != list(kernel[2:]):
        raise UnsupportedError(f"kernel_shape {list(stated)}, the weight has {list(kernel[2:])}")
    transposed = node.op_type == "ConvTranspose"
    if groups < 1 or (channels % groups if transposed else channels * groups != inputs[1]):
        raise UnsupportedError(
            f"weight {tuple(kernel)} in {groups} groups on an input {tuple(inputs)}"
        )
    return int(groups)


def _explicit_padding(source: str, graph: OnnxGraph) -> tuple[str, tuple[int, ...]] | None:
    """Of a Pad node that puts zeros around the spatial axes: its input, and the zeros before each axis."""
    node = graph.producers.get(source)
    if node is None or node.op_type != "Pad" or node.domain not in ("", "ai.onnx"):
        return None
    attributes = attributes_of(node)
    if attributes.get("mode", b"constant") != b"constant" or "pads" in attributes:
        return None
    pads, filled = graph.constants.get(node.input[1]), operand(node, 2)
    if pads is None or (filled and np.any(graph.constants.get(filled, np.asarray(1)) != 0)):
        return None
    rank = len(graph.shape(node.input[0]))
    listed = graph.constants.get(operand(node, 3), np.arange(rank))
    begins, ends = [0] * rank, [0] * rank
    for index, axis in enumerate(listed.reshape(-1)):
        begins[int(axis)], ends[int(axis)] = int(pads[index]), int(pads[len(listed) + index])
    if any((*begins[:2], *ends[:2])) or min((*begins, *ends)) < 0:
        return None
    return node.input[0], tuple(begins[2:])


def _events_per_tap(mask: Mask, taps: Sequence[npt.NDArray[np.bool_]]) -> Int64:
    """(batch, C, *axes) -> (C, *kernel): present elements that tap j joins to an output that exists."""
    events = np.asarray(mask.sum(axis=0, dtype=np.float64))  # exact below 2^53
    for joined in taps:
        # Each turn sums one spatial axis away and puts the kernel axis it meets last.
        events = np.tensordot(events, joined.astype(np.float64), axes=(1, 0))
    return np.asarray(events).astype(np.int64)


CONVOLUTIONS: dict[str, Callable[[Any, OnnxGraph], NodeCounts]] = {
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transpose,
    "QLinearConv": _qlinear_conv,
}
"""Convolutions that are counted."""
