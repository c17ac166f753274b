"""Count operators that hold several products: attention of ONNX and of onnxruntime's own domain, and
the other fused operators of that domain.

Attention is softmax(Q K' scale + mask) V, over the keys that are given now and those of the past, with
each head of K and V shared by as many heads of Q as there are. Its two products are counted whole,
masked pairs too, as a dense device computes them; the softmax's weights are taken as non-zero.

onnx knows no shapes of the operators of `MICROSOFT`; `model` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from knarr.hw_sim.arrays import Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.onnx.model import OnnxNode, UnsupportedError
from knarr.hw_sim.counting.onnx.products import (
    PRODUCT_RULES,
    TWO_ACTIVATIONS,
    Factor,
    NodeCounts,
    Product,
    Rule,
    factor,
)

Shape = tuple[int, ...]


class _Heads(NamedTuple):
    """A tensor of attention, whose axes are taken as (batch, heads, length, width).

    Args:
        name: of the tensor; "" for the softmax's weights, which nobody sees.
        shape: as the file has it: of 4 axes, or (batch, length, heads * width).
        heads: how many.
    """

    name: str
    shape: Shape
    heads: int

    @property
    def length(self) -> int:
        return self.shape[-2]

    @property
    def width(self) -> int:
        return self.shape[-1] if len(self.shape) == 4 else self.shape[-1] // self.heads

    def parted(self, mask: Mask, shared: int) -> Mask:
        """Return (batch, heads / shared, shared, length, width)."""
        if len(self.shape) == 3:
            batch, length, _ = self.shape
            mask = mask.reshape(batch, length, self.heads, self.width).swapaxes(1, 2)
        return mask.reshape(len(mask), -1, shared, self.length, self.width)


def _along(mask: Mask, side: _Heads, shared: int, axis: int) -> Int64:
    """Count the present elements per (batch, head of K, element of the last two axes but `axis`)."""
    return np.asarray(side.parted(mask, shared).sum(axis=(2, axis), dtype=np.int64))


def _heads(name: str, shape: Shape, heads: int) -> _Heads:
    if len(shape) not in (3, 4) or (len(shape) == 3 and (heads < 1 or shape[-1] % heads)):
        raise UnsupportedError(f"'{name}' of shape {shape} has no {heads} heads")
    return _Heads(name, shape, shape[1] if len(shape) == 4 else heads)


def _attend(
    node: OnnxNode, query: _Heads, keys: Sequence[_Heads], values: Sequence[_Heads], per_score: int
) -> NodeCounts:
    """Count both products of attention over keys and values of the past and of now."""
    first, graph = keys[0], node.graph
    fits = len(keys) == len(values) and all(
        key.heads == value.heads == first.heads
        and key.length == value.length
        and key.width == query.width
        for key, value in zip(keys, values, strict=False)
    )
    if not fits or not first.heads or query.heads % first.heads:
        shapes = [each.shape for each in (query, *keys, *values)]
        raise UnsupportedError(f"shapes {shapes} are no attention")
    shared = query.heads // first.heads
    batch = query.shape[0]

    def seen(side: _Heads, repeated: int, axis: int) -> Factor:
        count = partial(_along, side=side, shared=repeated, axis=axis)
        return factor(graph, side.name, count) if side.name else Factor(side.shape, count)

    products = []
    for key, value in zip(keys, values, strict=True):
        products.append(Product(seen(query, shared, 3), seen(key, 1, 3)))
        weights = _Heads("", (batch, query.heads, query.length, key.length), query.heads)
        products.append(Product(seen(weights, shared, 3), seen(value, 1, 4)))
    length = sum(key.length for key in keys)
    scores = batch * query.heads * query.length * length
    sizes = LayerSizes(
        inputs=sum(prod(side.shape) for side in (query, *keys, *values)),
        outputs=batch * query.heads * query.length * values[0].width,
    )
    note = f"{TWO_ACTIVATIONS}; masked pairs are multiplied too; {per_score} operations per score"
    return NodeCounts(sizes, tuple(products), elementwise=scores * per_score, note=note)


def _attention(node: OnnxNode) -> NodeCounts:
    """Count `Attention` of opset 23 and later."""
    graph, attributes = node.graph, node.attributes
    names = [node.operand(at) for at in range(7)]
    if names[6]:
        raise UnsupportedError("lengths of keys that are given as values; pad them instead")
    q_heads = attributes.get("q_num_heads", 0)
    kv_heads = attributes.get("kv_num_heads", 0)
    query = _heads(names[0], graph.shape(names[0]), q_heads)
    keys, values = ([_heads(name, graph.shape(name), kv_heads)] for name in names[1:3])
    if names[4] and 0 not in graph.shape(names[4]):
        keys.append(_heads(names[4], graph.shape(names[4]), kv_heads))
        values.append(_heads(names[5], graph.shape(names[5]), kv_heads))
    masked = bool(names[3]) or bool(attributes.get("is_causal", 0))
    softcap = 3 if attributes.get("softcap", 0.0) else 0  # quotient, tanh, product
    return _attend(node, query, keys, values, 2 + masked + softcap)


def _multi_head(node: OnnxNode) -> NodeCounts:
    """Count `MultiHeadAttention` and `GroupQueryAttention` of onnxruntime."""
    graph, attributes = node.graph, node.attributes
    grouped = node.operation == "GroupQueryAttention"
    heads = attributes.get("num_heads", 0)
    kv_heads = attributes.get("kv_num_heads", heads) if grouped else heads
    names = [node.operand(at) for at in range(3)]
    if not all(names):
        raise UnsupportedError("query, key and value in one tensor; export them apart")
    past = (3, 4) if grouped else (6, 7)
    query = _heads(names[0], graph.shape(names[0]), heads)
    keys, values = ([_heads(name, graph.shape(name), kv_heads)] for name in names[1:])
    if node.operand(past[0]) and 0 not in graph.shape(node.operand(past[0])):
        old = [_heads(node.operand(at), graph.shape(node.operand(at)), kv_heads) for at in past]
        keys.append(old[0])
        values.append(old[1])
    rotated = bool(attributes.get("do_rotary", 0))
    masked = grouped or bool(node.operand(4)) or bool(node.operand(5))
    counts = _attend(node, query, keys, values, 2 + masked)
    # Each rotated element is two products and a sum, of the query and of the keys of now.
    extra = 3 * (prod(query.shape) + prod(keys[0].shape)) * rotated
    bias = 0 if grouped or not node.operand(3) else prod(query.shape) + 2 * prod(keys[0].shape)
    return replace(counts, elementwise=counts.elementwise + extra, bias_adds=bias)


def _packed_attention(node: OnnxNode) -> NodeCounts:
    """Count `Attention` of onnxruntime: one product gives query, key and value, which nobody sees."""
    graph, attributes = node.graph, node.attributes
    source, packed = node.operand(0), node.operand(1)
    if node.operand(4):
        raise UnsupportedError("attention with a past in one tensor")
    batch, length, width = graph.shape(source)
    inner, columns = graph.shape(packed)
    sizes = attributes.get("qkv_hidden_sizes", [columns // 3] * 3)
    if inner != width or sum(sizes) != columns:
        raise UnsupportedError(f"weights {(inner, columns)} on an input {(batch, length, width)}")
    heads = attributes.get("num_heads", 0)
    query, key, value = (_heads("", (batch, length, size), heads) for size in sizes)
    masked = bool(node.operand(3)) or bool(attributes.get("unidirectional", 0))
    counts = _attend(node, query, [key], [value], 2 + masked)
    projection = Product(
        factor(graph, source, lambda mask: np.asarray(mask.sum(axis=(0, 1), dtype=np.int64))),
        factor(graph, packed, lambda mask: np.asarray(mask.sum(axis=1, dtype=np.int64))),
    )
    return replace(
        counts,
        sizes=replace(counts.sizes, inputs=batch * length * width, weights=inner * columns),
        products=(projection, *counts.products),
        bias_adds=batch * length * columns * bool(node.operand(2)),
    )


def _rotary(node: OnnxNode) -> NodeCounts:
    width = node.attributes.get("rotary_embedding_dim", 0)
    shape = node.input_shape
    heads = node.attributes.get("num_heads", 0)
    whole = shape[-1] if len(shape) == 4 or not heads else shape[-1] // heads
    rotated = node.inputs * (width or whole) // whole
    note = "two products and a sum per rotated element"
    return NodeCounts(LayerSizes(), elementwise=3 * rotated, note=note)


def _per_element(operations: int, note: str = "") -> Rule:
    def rule(node: OnnxNode) -> NodeCounts:
        return NodeCounts(LayerSizes(), elementwise=operations * node.outputs, note=note)

    return rule


def _skip_norm(node: OnnxNode) -> NodeCounts:
    """Count the sum of two branches (and a bias), and the normalisation of it."""
    simplified = "Simplified" in node.operation
    skip = "Skip" in node.operation
    affine = sum(bool(node.operand(at)) for at in range(2 if skip else 1, 5))
    per_element = (3 if simplified else 5) + skip + affine
    groups = node.inputs // node.input_shape[-1]
    note = f"{per_element} per element and 2 per normalised group"
    return NodeCounts(LayerSizes(), elementwise=per_element * node.outputs + 2 * groups, note=note)


def _packed_product(node: OnnxNode) -> NodeCounts:
    """Count `MatMulNBits`, whose weights are packed several to a byte: none of them is seen as 0."""
    graph, attributes = node.graph, node.attributes
    inner, columns = attributes.get("K", 0), attributes.get("N", 0)
    source = node.operand(0)
    shape = graph.shape(source)
    if shape[-1] != inner or columns < 1:
        raise UnsupportedError(f"K {inner} and N {columns} on an input {shape}")

    def events(mask: Mask) -> Int64:
        return np.asarray(mask.reshape(-1, inner).sum(axis=0, dtype=np.int64))

    def columns_of(mask: Mask) -> Int64:
        return np.asarray(mask.sum(axis=1, dtype=np.int64))

    weight = Factor((inner, columns), columns_of)
    sizes = LayerSizes(
        inputs=prod(shape), outputs=node.outputs, weights=inner * columns, kernel=columns
    )
    note = f"weights of {attributes.get('bits', 4)} bits, unpacked in the product"
    biased = node.outputs if node.operand(5) else 0
    product = Product(factor(graph, source, events), weight)
    return NodeCounts(sizes, (product,), bias_adds=biased, note=note)


FUSED: dict[str, Rule] = {"Attention": _attention, "RotaryEmbedding": _rotary}
"""Operators of ONNX."""
MICROSOFT_RULES: dict[str, Rule] = {
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), _multi_head),
    "Attention": _packed_attention,
    "RotaryEmbedding": _rotary,
    **dict.fromkeys(
        (
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "SimplifiedLayerNormalization",
            "LayerNormalization",
        ),
        _skip_norm,
    ),
    **dict.fromkeys(("Gelu", "QuickGelu", "FastGelu"), _per_element(1)),
    "BiasGelu": _per_element(2, "a bias and the function"),
    "FusedMatMul": PRODUCT_RULES["MatMul"],
    "MatMulNBits": _packed_product,
}
"""Operators of `MICROSOFT`."""
