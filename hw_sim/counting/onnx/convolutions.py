"""Count convolutions of ONNX over any number of axes, forward and transposed, float and quantised.

A transposed convolution walks the taps of a forward one from its outputs to its inputs, so both
have the same windows, with the two ends exchanged. Zeros that pad a forward convolution are,
transposed, elements cropped from the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import ceil, prod
from typing import Any

import numpy as np

from knarr.hw_sim.arrays import Int64, Mask
from knarr.hw_sim.counting.fan_out import AxisWindow, targets_per_tap
from knarr.hw_sim.counting.onnx.model import OnnxGraph, OnnxNode, UnsupportedError
from knarr.hw_sim.counting.onnx.products import (
    NodeCounts,
    Product,
    Rule,
    factor,
    operands,
    product_row,
)

LONGEST_AXIS = 2**24
"""Positions of an axis times taps; beyond it the table of taps would fill the memory."""
Sizes = Sequence[int]


def axis_windows(
    node: OnnxNode,
    kernel: Sizes,
    inputs: Sizes,
    outputs: Sizes,
) -> list[AxisWindow]:
    """Return the window along each axis of Conv, of ConvTranspose or of a pool.

    `auto_pad` is resolved as the operator's definition says.

    Args:
        node: holds the attributes.
        kernel, inputs, outputs: sizes along the spatial axes.

    Returns:
        One window for each axis. That of ConvTranspose has the node's outputs as its inputs and the
        other way round.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes, rank = node.attributes, len(kernel)
    transposed = node.operation == "ConvTranspose"
    strides = _listed(attributes, "strides", rank, least=1)
    dilations = _listed(attributes, "dilations", rank, least=1)
    if transposed:
        inputs, outputs = outputs, inputs
    axes = zip(inputs, outputs, kernel, strides, dilations, strict=True)
    windows = [
        AxisWindow(size, places, taps, stride, dilation=dilation)
        for size, places, taps, stride, dilation in axes
    ]
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {auto_pad} does not exist")
    # Whoever names the output's shape leaves the padding to follow from it, whatever auto_pad says.
    if "output_shape" not in attributes:
        if auto_pad == "VALID":
            return windows
        if auto_pad == "NOTSET":
            pads = _listed(attributes, "pads", rank, least=0)
            return [
                replace(window, padding=pad) for window, pad in zip(windows, pads, strict=False)
            ]
    extra = attributes.get("output_padding", [0] * rank)
    found = []
    for axis, window in enumerate(windows):
        places = window.outputs if transposed else ceil(window.inputs / window.stride)
        extent = (window.kernel - 1) * window.dilation + 1
        missing = (places - 1) * window.stride + extent + extra[axis] - window.inputs
        if transposed and missing < 0:
            raise UnsupportedError(
                f"output of {window.inputs} on axis {axis} is larger than the kernel reaches"
            )
        half = max(missing, 0) // 2
        # SAME_UPPER puts an odd zero at the end, everything else at the beginning.
        begin = half if auto_pad == "SAME_UPPER" else max(missing, 0) - half
        found.append(replace(window, padding=begin))
    return found


def _listed(
    attributes: dict[str, Any],
    name: str,
    axes: int,
    *,
    least: int,
) -> tuple[int, ...]:
    """Return an attribute with numbers for each axis, the least ones where it is left out."""
    # The zeros before each axis are followed by those behind each.
    length = 2 * axes if name == "pads" else axes
    values = tuple(attributes.get(name, [least] * length))
    if len(values) != length or min(values, default=least) < least:
        raise UnsupportedError(f"{name} {list(values)} do not fit {axes} axes")
    return values


def check_axes(kernel: Sizes, sizes: Sizes) -> None:
    """Refuse axes on which a table of taps would be too large, or has no taps.

    Raises:
        UnsupportedError: an axis is refused.
    """
    for taps, size in zip(kernel, sizes, strict=True):
        if taps < 1 or size < 1 or taps * size > LONGEST_AXIS:
            raise UnsupportedError(f"a kernel of {taps} on {size} elements cannot be counted")


def _convolution(node: OnnxNode) -> NodeCounts:
    graph = node.graph
    source, weight, _, zeros = operands(node)
    inputs, outputs = node.input_shape, node.output_shape
    shape = graph.shape(weight)
    transposed = node.operation == "ConvTranspose"
    groups = _groups(node, inputs, shape)
    # Weights are stored as (outputs, inputs per group, *kernel), transposed as (inputs, outputs per
    # group, *kernel).
    if transposed:
        channels = shape[1] * groups
        fits = shape[0] == inputs[1]
    else:
        channels = shape[0]
        fits = channels % groups == 0
    if not fits or outputs[:2] != (inputs[0], channels):
        raise UnsupportedError(
            f"weight {shape} does not make {outputs} of {inputs} in {groups} groups"
        )
    kernel = shape[2:]
    windows = axis_windows(node, kernel, inputs[2:], outputs[2:])
    padded_by = _explicit_padding(source, graph) if node.operation == "Conv" else None
    if padded_by is not None:
        # These zeros exist no more than those that the convolution pads with.
        source, pads = padded_by
        axes = zip(windows, graph.shape(source)[2:], pads, strict=True)
        windows = [
            replace(window, inputs=size, padding=window.padding + pad) for window, size, pad in axes
        ]
    check_axes(kernel, graph.shape(source)[2:])
    if transposed:
        taps = [window.output_taps() for window in windows]
        targets = partial(np.sum, axis=1, dtype=np.int64)
    else:
        taps = [window.input_taps() for window in windows]
        targets = partial(targets_per_tap, groups=groups)
    product = Product(
        factor(graph, source, partial(_events_per_tap, taps=taps), zero=zeros[0]),
        factor(graph, weight, targets, zero=zeros[1]),
    )
    # Dense hardware walks every tap of every place, those beyond a border or cropped from the
    # output too.
    places = inputs if transposed else outputs
    return product_row(
        node,
        product,
        padded=prod(places) * prod(shape[1:]),
        kernel=channels * prod(kernel),
        convolution=True,
    )


def _groups(
    node: OnnxNode,
    inputs: Sizes,
    shape: Sizes,
) -> int:
    """Return `group` of a convolution, checked against the shapes of its input and weight."""
    attributes = node.attributes
    groups = attributes.get("group", 1)
    if len(shape) < 3 or len(inputs) != len(shape):
        raise UnsupportedError(
            f"weight {tuple(shape)} on an input {tuple(inputs)}: needs the same axes"
        )
    stated = attributes.get("kernel_shape", list(shape[2:]))
    if list(stated) != list(shape[2:]):
        raise UnsupportedError(f"kernel_shape {list(stated)}, the weight has {list(shape[2:])}")
    if node.operation == "ConvTranspose":
        fits = groups > 0 and inputs[1] % groups == 0
    else:
        fits = groups > 0 and inputs[1] == shape[1] * groups
    if not fits:
        raise UnsupportedError(
            f"weight {tuple(shape)} in {groups} groups on an input {tuple(inputs)}"
        )
    return int(groups)


def _explicit_padding(source: str, graph: OnnxGraph) -> tuple[str, list[int]] | None:
    """Look for a Pad node that puts zeros around the spatial axes.

    Returns:
        Its input and the zeros before each axis; None where `source` comes from anything else.
    """
    producer = graph.producers.get(source)
    if producer is None or producer.op_type != "Pad" or producer.domain not in ("", "ai.onnx"):
        return None
    node = OnnxNode(producer, graph)
    attributes = node.attributes
    # Before opset 11 the pads were an attribute.
    if attributes.get("mode", b"constant") != b"constant" or "pads" in attributes:
        return None
    pads = graph.constants.get(node.operand(1))
    filling = node.operand(2)
    unknown = np.asarray(1)
    if pads is None or (filling and np.any(graph.constants.get(filling, unknown) != 0)):
        return None
    rank = len(node.input_shape)
    axes = graph.constants.get(node.operand(3), np.arange(rank)).reshape(-1)
    zeros = np.zeros((rank, 2), dtype=np.int64)
    # All beginnings are listed first, then all ends. An axis below 0 counts from the last.
    zeros[axes] = pads.reshape(2, -1).T
    # Other axes than spatial ones change the layer; below 0 the node crops.
    if zeros[:2].any() or zeros.min() < 0:
        return None
    return node.operand(0), zeros[2:, 0].tolist()


def _events_per_tap(mask: Mask, taps: Sequence[Mask]) -> Int64:
    """Count the elements that each tap joins to an output: (batch, C, *axes) -> (C, *kernel)."""
    # Floats are multiplied many times as fast as integers, and are exact below 2^53.
    events = np.asarray(mask.sum(axis=0, dtype=np.float64))
    for joined in taps:
        # Each turn sums one spatial axis away and puts the kernel axis it meets last.
        events = np.tensordot(events, joined.astype(np.float64), axes=(1, 0))
    return events.astype(np.int64)


CONVOLUTIONS: dict[str, Rule] = dict.fromkeys(
    ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"), _convolution
)
"""Convolutions that are counted."""
