"""A product of ONNX as two factors, and the row it makes: what convolutions and matrix products share."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from knarr.hw_sim.counts import LayerSizes
from knarr.hw_sim.fanout import Int64
from knarr.hw_sim.onnx_graph import OnnxGraph, UnsupportedError
from knarr.hw_sim.onnx_row import Factor, Mask, NodeCounts, Product

TWO_ACTIVATIONS = "product of two activations: effective where both are non-zero"


def factor(
    graph: OnnxGraph,
    tensor: str,
    occurrences: Callable[[Mask], Int64],
    *,
    zero: str = "",
    zero_axis: int = 0,
) -> Factor:
    """A factor from a tensor of the graph: a weight if the file holds its value, an activation otherwise."""
    value, shape = graph.constants.get(tensor), graph.shape(tensor)
    zero_point = graph.constants.get(zero, zero) if zero else None
    if value is not None and isinstance(zero_point, str):
        raise UnsupportedError(f"zero point '{zero}' of the stored '{tensor}' is not a constant of the file")
    if zero and prod(graph.shape(zero)) not in (1, shape[zero_axis]):
        raise UnsupportedError(
            f"{prod(graph.shape(zero))} zero points '{zero}' for an axis of {shape[zero_axis]}"
        )
    return Factor(shape, occurrences, tensor, value, value is not None, zero_point, zero_axis)


def product_row(
    node: Any,
    graph: OnnxGraph,
    left: str,
    right: str,
    product: Product,
    *,
    kernel: int,
    padded: int | None = None,
    bias: str = "",
    convolution: bool = False,
    elementwise: int = 0,
) -> NodeCounts:
    """Counts of a node that is one product.

    Args:
        node: onnx.NodeProto; its first output is the product's.
        graph: the model.
        left, right: tensors of the two factors, of which at least one is an activation.
        product: the factors.
        kernel, convolution: as of `LayerSizes`.
        padded: multiplications with taps into the padding, None where there is none.
        bias: tensor added to every output, "" for none; one that is not stored is an elementwise addition.
        elementwise: operations besides.

    Raises:
        UnsupportedError: both factors are constants, or a shape is not static.
    """
    outputs = prod(graph.shape(node.output[0]))
    stored = bias in graph.constants
    if bias and not stored:
        elementwise += outputs
    both = product.a.weight + product.b.weight
    if both == 2:
        raise UnsupportedError("both operands are constants; export with constant folding")
    activation, weight = (right, left) if product.a.weight else (left, right)
    sizes = LayerSizes(
        inputs=prod(graph.shape(activation)),
        outputs=outputs,
        weights=prod(graph.shape(weight)),
        biases=graph.constants[bias].size if stored else 0,
        states=0,
        kernel=kernel,
        convolution=convolution,
        leaky=False,
    )
    return NodeCounts(
        sizes,
        (product,),
        padded,
        outputs if stored else 0,
        elementwise=elementwise,
        note="" if both else TWO_ACTIVATIONS,
    )
