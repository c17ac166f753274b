"""LSTM, GRU and RNN of ONNX: a product with the input and one with the state before it, at each step of each direction.

Gates of weights W, R and biases Wb, Rb per direction, step t and batch element:
    W x_t + R h_(t-1) + Wb + Rb, h_(-1) being the initial state, zeros where none is given.
The hidden sequence Y shows h_(t-1) at every step but the first; a reverse direction walks it from its end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import Int64
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError, attributes_of, operand
from knarr.hw_sim.counting.onnx.products import Factor, Mask, NodeCounts, Product

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PER_UNIT = {
    "RNN": 1,  # the activation
    "GRU": 3 + 1 + 4,  # z, r, n; the reset product; (1 - z) n + z h
    "LSTM": 3 + 2 + 3 + 1,  # i, f, o; tanh of g and c; f c + i g; o tanh(c)
}
"""Elementwise operations of one unit at one step."""
PEEPHOLES = 3
"""Gates i, o and f of an LSTM may look at the cell."""


def _recurrent(node: Any, graph: OnnxGraph) -> NodeCounts:
    attributes, gates = attributes_of(node), GATES[node.op_type]
    x, w, r = (graph.shape(name) for name in node.input[:3])
    if attributes.get("layout", 0):
        raise UnsupportedError("layout 1 (batch first); export with the steps first")
    if attributes.get("input_forget", 0):
        raise UnsupportedError("input_forget couples two gates; export without")
    direction = attributes.get("direction", b"forward")
    reverse = {b"forward": (False,), b"reverse": (True,), b"bidirectional": (False, True)}.get(
        direction
    )
    if reverse is None:
        raise UnsupportedError(f"direction {direction.decode(errors='replace')} does not exist")
    hidden = r[-1] if r else 0
    rows = (len(reverse), gates * hidden)
    if len(x) != 3 or w != (*rows, x[2]) or r != (*rows, hidden):
        raise UnsupportedError(
            f"weights {w} and {r} do not fit an input {x} and {rows[0]} directions"
        )
    lengths = _lengths(operand(node, 4), graph, x)
    steps = int(lengths.sum())
    walked = _walked(lengths, x[0])

    def weight(name: str) -> Factor:
        return Factor(
            graph.shape(name), _rows_per_input, name, graph.constant(name, "weight"), weight=True
        )

    inputs = Factor(
        x,
        partial(_inputs, walked=walked, directions=len(reverse)),
        node.input[0],
        graph.constants.get(node.input[0]),
    )
    sequence = node.output[0]
    states = Factor(
        (x[0], len(reverse), x[1], hidden),
        partial(_states, lengths=lengths, reverse=reverse),
        sequence,
    )
    if graph.shape(sequence) != states.shape:
        raise UnsupportedError(f"hidden sequence {graph.shape(sequence)}, expected {states.shape}")
    products = [
        Product(inputs, weight(node.input[1])),
        Product(states, weight(node.input[2])),
        Product(_initial(operand(node, 5), graph, lengths, states.shape), weight(node.input[2])),
    ]
    peepholes = operand(node, 7) if node.op_type == "LSTM" else ""
    note = (
        "every step multiplies a state, the first one the initial state (zeros where none is given)"
    )
    if peepholes:
        products.append(_peephole_product(peepholes, graph, steps, len(reverse), hidden))
        note += "; peepholes look at the cell, which no output shows: taken as non-zero"
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        note += "; the reset state is taken as zero only where the state is"
    bias = operand(node, 3)
    if bias and graph.shape(bias) != (len(reverse), 2 * gates * hidden):
        raise UnsupportedError(
            f"biases {graph.shape(bias)}, expected {(len(reverse), 2 * gates * hidden)}"
        )
    units = steps * len(reverse) * hidden
    bias_adds = 2 * gates * units if bias else 0
    stored = bias in graph.constants
    clipped = gates if "clip" in attributes else 0
    sizes = LayerSizes(
        inputs=prod(x),
        outputs=prod(states.shape),
        weights=prod(w) + prod(r) + (prod(graph.shape(peepholes)) if peepholes else 0),
        biases=prod(graph.shape(bias)) if stored else 0,
        states=0,
        kernel=len(reverse) * gates * hidden,
        convolution=False,
        leaky=False,
    )
    return NodeCounts(
        sizes,
        tuple(products),
        bias_adds=bias_adds if stored else 0,
        elementwise=units * (PER_UNIT[node.op_type] + clipped) + (0 if stored else bias_adds),
        note=note,
    )


def _lengths(name: str, graph: OnnxGraph, x: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Steps of each batch element."""
    if not name:
        return np.full(x[1], x[0], dtype=np.int64)
    lengths = graph.constant(name, "sequence_lens").astype(np.int64)
    if lengths.shape != (x[1],) or lengths.min() < 0 or lengths.max() > x[0]:
        raise UnsupportedError(f"sequence_lens {lengths.tolist()} of {x[0]} steps")
    return lengths


def _walked(lengths: npt.NDArray[np.int64], steps: int) -> Mask:
    """(steps, batch): whether the step is run."""
    return np.asarray(np.arange(steps)[:, None] < lengths[None, :])


def _rows_per_input(mask: Mask) -> Int64:
    """(directions, rows, columns) -> (directions, columns)."""
    return np.asarray(mask.sum(axis=1, dtype=np.int64))


def _inputs(mask: Mask, walked: Mask, directions: int) -> Int64:
    """(steps, batch, features) -> (directions, features): elements that each direction reads."""
    counts = (mask & walked[:, :, None]).sum(axis=(0, 1), dtype=np.int64)
    return np.broadcast_to(counts, (directions, len(counts)))


def _states(mask: Mask, lengths: npt.NDArray[np.int64], reverse: tuple[bool, ...]) -> Int64:
    """(steps, directions, batch, hidden) -> (directions, hidden): states that come back; the last of each walk does not."""
    position = np.arange(mask.shape[0])[:, None]
    counts = [
        (
            mask[:, index]
            & ((position < lengths) & ((position > 0) if back else (position < lengths - 1)))[
                ..., None
            ]
        ).sum(axis=(0, 1), dtype=np.int64)
        for index, back in enumerate(reverse)
    ]
    return np.asarray(counts)


def _initial(
    name: str, graph: OnnxGraph, lengths: npt.NDArray[np.int64], sequence: tuple[int, ...]
) -> Factor:
    """The state before the first step, (directions, batch, hidden); batch elements without a step never read it."""
    shape = sequence[1:]
    if name and graph.shape(name) != shape:
        raise UnsupportedError(f"initial state {graph.shape(name)}, expected {shape}")
    runs = (lengths > 0)[None, :, None]
    value = graph.constants.get(name) if name else np.zeros(shape, dtype=np.float32)
    return Factor(
        shape, lambda mask: np.asarray((mask & runs).sum(axis=1, dtype=np.int64)), name, value
    )


def _peephole_product(
    name: str, graph: OnnxGraph, steps: int, directions: int, hidden: int
) -> Product:
    """One weight per gate and unit, multiplied with the cell at every step."""
    shape = (directions, PEEPHOLES * hidden)
    if graph.shape(name) != shape:
        raise UnsupportedError(f"peepholes {graph.shape(name)}, expected {shape}")
    cell = Factor(shape, lambda mask: mask.astype(np.int64) * steps)
    stored = graph.constant(name, "peepholes")
    return Product(
        cell, Factor(shape, lambda mask: mask.astype(np.int64), name, stored, weight=True)
    )


RECURRENT: dict[str, Callable[[Any, OnnxGraph], NodeCounts]] = dict.fromkeys(GATES, _recurrent)
"""Recurrent operations that are counted."""
