"""Count matrix products of ONNX, float and quantised, and recurrent layers made of them.

LSTM, GRU and RNN multiply the input and the state before it at each step of each direction. With
weights W, R and biases Wb, Rb of a direction, step t and batch element, their gates are
    W x_t + R h_(t-1) + Wb + Rb, h_(-1) being the initial state, zeros where none is given.
The hidden sequence Y shows h_(t-1) at every step but the first; a reverse direction walks it from
its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.onnx.model import OnnxGraph, OnnxNode, UnsupportedError
from knarr.hw_sim.counting.onnx.products import (
    Factor,
    NodeCounts,
    Product,
    Rule,
    factor,
    operands,
    product_row,
)

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PER_UNIT = {
    "RNN": 1,  # the activation
    "GRU": 3 + 1 + 4,  # z, r, n; the reset product; (1 - z) n + z h
    "LSTM": 3 + 2 + 3 + 1,  # i, f, o; tanh of g and c; f c + i g; o tanh(c)
}
"""Elementwise operations of one unit at one step."""
PEEPHOLES = 3
"""Gates of an LSTM that may look at the cell: i, o and f."""
REVERSED = {b"forward": (False,), b"reverse": (True,), b"bidirectional": (False, True)}
"""Direction -> whether each of its walks runs backward through time."""


def _matrix_product(node: OnnxNode) -> NodeCounts:
    """Count a product whose axes before the last two broadcast, as those of numpy.matmul do."""
    left, right, bias, zeros = operands(node)
    graph, attributes = node.graph, node.attributes
    # Gemm alone has these attributes.
    rescaled = 0
    if attributes.get("alpha", 1.0) != 1.0:
        rescaled += node.outputs
    if bias and attributes.get("beta", 1.0) != 1.0:
        rescaled += prod(graph.shape(bias))
    # Axis of each side that is summed over, of the last two.
    inner = (
        -2 if attributes.get("transA", 0) else -1,
        -1 if attributes.get("transB", 0) else -2,
    )
    # Zero points are given per row of the left side and per column of the right one.
    zero_axes = -2, -1
    factors, summed = [], []
    for tensor, axis, zero, zero_axis in zip((left, right), inner, zeros, zero_axes, strict=True):
        shape = graph.shape(tensor)
        if not shape:
            raise UnsupportedError(f"'{tensor}' is a scalar")
        # A vector has no axis but the one that is summed over.
        vector = len(shape) == 1
        summed.append(shape[-1 if vector else axis])
        partners = partial(np.sum, axis=() if vector else -3 - axis, dtype=np.int64)
        zero_at = 0 if vector else len(shape) + zero_axis
        factors.append(factor(graph, tensor, partners, zero=zero, zero_axis=zero_at))
    if summed[0] != summed[1]:
        raise UnsupportedError(f"sums over {summed[0]} and {summed[1]} elements")
    shape = graph.shape(right)
    kernel = 1 if len(shape) == 1 else shape[-3 - inner[1]]
    return product_row(node, Product(*factors), kernel=kernel, elementwise=rescaled)


def _einsum(node: OnnxNode) -> NodeCounts:
    """Count a product of two tensors.

    An index of one of them alone, or of both, has no other partner, so every pair that meets is
    multiplied.
    """
    graph, tensors = node.graph, node.proto.input
    equation = node.attributes["equation"].decode(errors="replace").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or len(tensors) != 2:
        raise UnsupportedError(
            f"equation '{equation}' joins {len(terms)} tensors; write it as MatMuls"
        )
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        shape = graph.shape(tensor)
        # An ellipsis or an index twice in a term, which stands for a diagonal, has no rule.
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
    a, b = (
        factor(graph, tensor, partial(_sum_unshared, term=term, shared=shared))
        for term, tensor in zip(terms, tensors, strict=True)
    )
    unshared = set(terms[1]) - set(terms[0])
    kernel = prod(sizes[label] for label in unshared)
    return product_row(node, Product(a, b), kernel=kernel)


def _sum_unshared(
    mask: Mask,
    term: str,
    shared: Sequence[str],
) -> Int64:
    """Sum over the indices of one term that are not shared, and put the shared ones in order."""
    unshared = tuple(axis for axis, label in enumerate(term) if label not in shared)
    left = [label for label in term if label in shared]
    summed = mask.sum(axis=unshared, dtype=np.int64)
    return np.transpose(summed, [left.index(label) for label in shared])


def _recurrent(node: OnnxNode) -> NodeCounts:
    graph, kind, attributes = node.graph, node.operation, node.attributes
    x, w, r = (graph.shape(name) for name in node.proto.input[:3])
    if attributes.get("layout", 0):
        raise UnsupportedError("layout 1 (batch first); export with the steps first")
    if attributes.get("input_forget", 0):
        raise UnsupportedError("input_forget couples two gates; export without")
    direction = attributes.get("direction", b"forward")
    if direction not in REVERSED:
        raise UnsupportedError(f"direction {direction.decode(errors='replace')} does not exist")
    reverse = REVERSED[direction]
    directions, hidden = len(reverse), r[-1] if r else 0
    gates = GATES[kind] * hidden
    if len(x) != 3 or w != (directions, gates, x[2]) or r != (directions, gates, hidden):
        raise UnsupportedError(
            f"weights {w} and {r} do not fit an input {x} and {directions} directions"
        )
    lengths = _lengths(node.operand(4), graph, x)
    read = partial(_inputs_read, lengths=lengths, directions=directions)
    inputs = Factor(x, read, node.operand(0), graph.constants.get(node.operand(0)))
    sequence = node.proto.output[0]
    states = Factor(
        (x[0], directions, x[1], hidden),
        partial(_states_read, lengths=lengths, reverse=reverse),
        sequence,
    )
    if node.output_shape != states.shape:
        raise UnsupportedError(f"hidden sequence {node.output_shape}, expected {states.shape}")
    products = [Product(inputs, _weight(graph, node.operand(1)))]
    recurrent = _weight(graph, node.operand(2))
    initial = _initial_state(node.operand(5), graph, lengths, states.shape[1:])
    products += [Product(states, recurrent), Product(initial, recurrent)]
    weights = prod(w) + prod(r)
    note = (
        "every step multiplies a state, the first one the initial state (zeros where none is given)"
    )
    units = int(lengths.sum()) * directions * hidden
    peepholes = node.operand(7) if kind == "LSTM" else ""
    if peepholes:
        shape = (directions, PEEPHOLES * hidden)
        products.append(_peephole_product(peepholes, graph, int(lengths.sum()), shape))
        weights += prod(shape)
        note += "; peepholes look at the cell, which no output shows: taken as non-zero"
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        note += "; the reset state is taken as zero only where the state is"
    # Wb and Rb are stored one behind the other, and both are added.
    bias, biases = node.operand(3), (directions, 2 * gates)
    if bias and graph.shape(bias) != biases:
        raise UnsupportedError(f"biases {graph.shape(bias)}, expected {biases}")
    bias_adds = 2 * GATES[kind] * units if bias else 0
    stored = bias in graph.constants
    per_unit = PER_UNIT[kind]
    if "clip" in attributes:
        per_unit += GATES[kind]
    sizes = LayerSizes(
        inputs=prod(x),
        outputs=prod(states.shape),
        weights=weights,
        biases=prod(biases) if stored else 0,
        kernel=directions * gates,
    )
    return NodeCounts(
        sizes,
        tuple(products),
        bias_adds=bias_adds if stored else 0,
        # A bias that is computed is added like any other tensor.
        elementwise=units * per_unit + (0 if stored else bias_adds),
        note=note,
    )


def _lengths(
    name: str,
    graph: OnnxGraph,
    x: tuple[int, ...],
) -> Int64:
    """Return the steps of each batch element, (batch,); all of them where the node does not say."""
    steps, batch, _ = x
    if not name:
        return np.full(batch, steps, dtype=np.int64)
    lengths = graph.constant(name, "sequence_lens").astype(np.int64)
    if lengths.shape != (batch,) or lengths.min() < 0 or lengths.max() > steps:
        raise UnsupportedError(f"sequence_lens {lengths.tolist()} of {steps} steps")
    return lengths


def _weight(graph: OnnxGraph, name: str) -> Factor:
    """Make a factor of weights (directions, rows, columns); each column meets one input."""
    partners = partial(np.sum, axis=1, dtype=np.int64)
    value = graph.constant(name, "weight")
    return Factor(graph.shape(name), partners, name, value, weight=True)


def _inputs_read(
    mask: Mask,
    lengths: Int64,
    directions: int,
) -> Int64:
    """Count elements that are read: (steps, batch, features) -> (directions, features)."""
    steps = np.arange(len(mask))[:, None]
    walked = steps < lengths
    elements = mask & walked[..., None]
    counts = elements.sum(axis=(0, 1), dtype=np.int64)
    return np.broadcast_to(counts, (directions, len(counts)))


def _states_read(
    mask: Mask,
    lengths: Int64,
    reverse: Sequence[bool],
) -> Int64:
    """Count states that come back: (steps, directions, batch, hidden) -> (directions, hidden)."""
    step = np.arange(len(mask))[:, None]
    counts = []
    for direction, backward in enumerate(reverse):
        # The last state of each walk does not come back, which is the first one in time where it
        # runs backward.
        last = 0 if backward else lengths - 1
        back = (step < lengths) & (step != last)
        states = mask[:, direction] & back[..., None]
        counts.append(states.sum(axis=(0, 1), dtype=np.int64))
    return np.asarray(counts)


def _initial_state(
    name: str,
    graph: OnnxGraph,
    lengths: Int64,
    shape: tuple[int, ...],
) -> Factor:
    """Make a factor of the state before the first step, (directions, batch, hidden)."""
    if name and graph.shape(name) != shape:
        raise UnsupportedError(f"initial state {graph.shape(name)}, expected {shape}")
    # Batch elements without a step never read it.
    runs = (lengths > 0)[:, None]

    def partners(mask: Mask) -> Int64:
        return np.asarray((mask & runs).sum(axis=1, dtype=np.int64))

    value: Array | None = np.zeros(shape, dtype=np.float32)
    if name:
        value = graph.constants.get(name)
    return Factor(shape, partners, name, value)


def _peephole_product(
    name: str,
    graph: OnnxGraph,
    steps: int,
    shape: tuple[int, int],
) -> Product:
    """Multiply one weight per gate and unit with the cell at every step of every batch element."""
    if graph.shape(name) != shape:
        raise UnsupportedError(f"peepholes {graph.shape(name)}, expected {shape}")
    cell = Factor(shape, lambda mask: mask.astype(np.int64) * steps)
    stored = graph.constant(name, "peepholes")
    weight = Factor(shape, lambda mask: mask.astype(np.int64), name, stored, weight=True)
    return Product(cell, weight)


MATRICES: dict[str, Rule] = {
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _matrix_product),
    **dict.fromkeys(GATES, _recurrent),
    "Einsum": _einsum,
}
"""Matrix products and recurrent layers that are counted."""
