"""Matrix products of ONNX, float and quantised, with a stored factor or between two activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from knarr.hw_sim.counting.fan_out import Int64
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError, attributes_of, operand
from knarr.hw_sim.counting.onnx.products import Mask, NodeCounts, Product, factor, product_row


def _gemm(node: Any, graph: OnnxGraph) -> NodeCounts:
    attributes = attributes_of(node)
    bias = operand(node, 2)
    rescaled = prod(graph.shape(node.output[0])) if attributes.get("alpha", 1.0) != 1.0 else 0
    if bias and attributes.get("beta", 1.0) != 1.0:
        rescaled += prod(graph.shape(bias))
    inner = (-2 if attributes.get("transA", 0) else -1, -1 if attributes.get("transB", 0) else -2)
    return _matrix(
        node, graph, node.input[0], node.input[1], inner, bias=bias, elementwise=rescaled
    )


def _matmul(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _matrix(node, graph, node.input[0], node.input[1])


def _matmul_integer(node: Any, graph: OnnxGraph) -> NodeCounts:
    return _matrix(
        node, graph, node.input[0], node.input[1], zeros=(operand(node, 2), operand(node, 3))
    )


def _qlinear_matmul(node: Any, graph: OnnxGraph) -> NodeCounts:
    rescaled = prod(graph.shape(node.output[0]))
    zeros = (operand(node, 2), operand(node, 5))
    return _matrix(node, graph, node.input[0], node.input[3], zeros=zeros, elementwise=rescaled)


def _matrix(
    node: Any,
    graph: OnnxGraph,
    left: str,
    right: str,
    inner: tuple[int, int] = (-1, -2),
    *,
    bias: str = "",
    zeros: tuple[str, str] = ("", ""),
    elementwise: int = 0,
) -> NodeCounts:
    """inner: axis of each side that is summed over; the axes before the last two broadcast, as numpy.matmul does."""
    factors, summed = [], []
    for tensor, axis, zero, zero_axis in zip((left, right), inner, zeros, (-2, -1), strict=True):
        shape = graph.shape(tensor)
        if not shape:
            raise UnsupportedError(f"'{tensor}' is a scalar")
        vector = len(shape) == 1
        summed.append(shape[-1 if vector else axis])
        free = () if vector else (-3 - axis,)
        factors.append(
            factor(
                graph,
                tensor,
                partial(_sum_over, axes=free),
                zero=zero,
                zero_axis=0 if vector else len(shape) + zero_axis,
            )
        )
    if summed[0] != summed[1]:
        raise UnsupportedError(f"sums over {summed[0]} and {summed[1]} elements")
    shape = graph.shape(right)
    kernel = 1 if len(shape) == 1 else shape[-3 - inner[1]]
    return product_row(
        node,
        graph,
        left,
        right,
        Product(*factors),
        bias=bias,
        kernel=kernel,
        elementwise=elementwise,
    )


def _sum_over(mask: Mask, axes: tuple[int, ...]) -> Int64:
    return np.asarray(mask.sum(axis=axes, dtype=np.int64) if axes else mask.astype(np.int64))


def _einsum(node: Any, graph: OnnxGraph) -> NodeCounts:
    """Two operands: an index of one alone, or of both, has no other partner, so every pair that meets is multiplied."""
    equation = attributes_of(node)["equation"].decode(errors="replace").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or len(node.input) != 2:
        raise UnsupportedError(
            f"equation '{equation}' joins {len(terms)} tensors; write it as MatMuls"
        )
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, node.input, strict=True):
        shape = graph.shape(tensor)
        if not term.isalpha() or len(set(term)) != len(term) or len(term) != len(shape):
            raise UnsupportedError(
                f"equation '{equation}': '{term}' on a shape of {len(shape)} axes"
            )
        for label, size in zip(term, shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise UnsupportedError(
                    f"equation '{equation}': index {label} is {sizes[label]} and {size}"
                )
    shared = sorted(set(terms[0]) & set(terms[1]))
    product = Product(
        *(
            factor(graph, tensor, partial(_sum_but, term=term, shared=shared))
            for term, tensor in zip(terms, node.input, strict=True)
        )
    )
    kernel = prod(sizes[label] for label in set(terms[1]) - set(terms[0]))
    return product_row(node, graph, node.input[0], node.input[1], product, kernel=kernel)


def _sum_but(mask: Mask, term: str, shared: Sequence[str]) -> Int64:
    """Sum over the indices of one term that are not shared, and put the shared ones in order."""
    free = tuple(axis for axis, label in enumerate(term) if label not in shared)
    left = [label for label in term if label in shared]
    return np.transpose(_sum_over(mask, free), [left.index(label) for label in shared])


MATRICES: dict[str, Callable[[Any, OnnxGraph], NodeCounts]] = {
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
}
"""Matrix products that are counted."""
