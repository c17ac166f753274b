"""Operations of an ONNX file: the baseline that a spiking network is compared with.

Products are counted from shapes, one pass at batch 1; pools, normalisations and activations stand apart from them. What
only moves data is free by policy and listed; everything else is listed as unsupported, and then there is no total.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerCounts, LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.onnx.convolutions import CONVOLUTIONS
from knarr.hw_sim.counting.onnx.effective import effective_counts
from knarr.hw_sim.counting.onnx.elementwise import ELEMENTWISE, Rule
from knarr.hw_sim.counting.onnx.matrices import MATRICES
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError, holds_subgraph, read_onnx
from knarr.hw_sim.counting.onnx.products import NodeCounts
from knarr.hw_sim.counting.onnx.recurrent import RECURRENT

RULES: dict[str, Rule] = {**ELEMENTWISE, **CONVOLUTIONS, **MATRICES, **RECURRENT}
"""Operation -> its counts, or why it is free."""


def count_onnx(path: str | Path, inputs: npt.NDArray[np.generic] | None = None) -> OperationCounts:
    """Count one inference of an ONNX file.

    Args:
        path: file with static shapes (a dynamic first dimension is taken as batch 1), exported in eval mode.
        inputs: (samples, *shape) of the type the file takes, to count effective operations too: zero activations
            skipped, one sample at a time, so that results do not depend on batch size. Between two activations an
            operation is effective where both are non-zero.

    Returns:
        Per layer, for one inference: `dense_padded` (taps into the padding included), `dense_valid`, `mac` =
        `dense_valid` (a real multiplication needs both ends), `mac_nonzero` (weights that are 0 skipped), `bias_adds`,
        `comparisons` and `elementwise`. With `inputs`, also `effective` and `effective_nonzero` of the products.

    Raises:
        CountError: not an ONNX file, shapes that are not static, or inputs that do not fit. Operations that cannot be
            counted are rows of the ledger, and `.total` raises.
        FileNotFoundError: no such file.
    """
    graph = read_onnx(Path(path))
    counted: dict[str, NodeCounts] = {}
    layers: dict[str, LayerCounts] = {}
    ledger = _initializer_rows(graph)
    names: set[str] = set()
    for node in graph.model.graph.node:
        name = _unique(node, names)
        names.add(name)
        try:
            outcome = _outcome(node, graph)
            if isinstance(outcome, LedgerRow):
                ledger.append(LedgerRow(name, node.op_type, outcome.status, outcome.note))
                continue
            layers[name], counted[name] = _layer_counts(outcome), outcome
            ledger.append(LedgerRow(name, node.op_type, "counted", _what(layers[name], outcome)))
        except UnsupportedError as reason:
            ledger.append(LedgerRow(name, node.op_type, "unsupported", str(reason)))
    effective = effective_nonzero = None
    if inputs is not None:
        products = {name: row.products for name, row in counted.items() if row.products}
        effective, effective_nonzero = effective_counts(graph, products, inputs)
    samples = 0 if inputs is None else len(inputs)
    sizes: dict[str, LayerSizes] = {name: row.sizes for name, row in counted.items()}
    return OperationCounts(
        layers, tuple(ledger), samples, 1, "ann", effective, effective_nonzero, sizes
    )


def _initializer_rows(graph: OnnxGraph) -> list[LedgerRow]:
    rows = [
        LedgerRow(name, "Initializer", "folded", f"into {', '.join(nodes)}")
        if nodes
        else LedgerRow(name, "Initializer", "free", "no node reads it")
        for name, nodes in graph.readers.items()
    ]
    sparse = [tensor.values.name for tensor in graph.model.graph.sparse_initializer]
    return rows + [
        LedgerRow(name, "Initializer", "unsupported", "stored sparsely; export it dense")
        for name in sparse
    ]


def _unique(node: Any, names: set[str]) -> str:
    """Name of a node's rows: its own, or its operation and output where that is missing or taken."""
    output = node.output[0] if node.output else ""
    name: str = node.name or f"{node.op_type}:{output}"
    if name in names:
        name = f"{name}:{output}"
    while name in names:
        name += "'"
    return name


def _outcome(node: Any, graph: OnnxGraph) -> NodeCounts | LedgerRow:
    """Counts of a node, or a ledger row that has no counts."""

    def row(status: Any, note: str) -> LedgerRow:
        return LedgerRow("", node.op_type, status, note)

    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedError(f"operation of domain '{node.domain}'")
    outputs = [name for name in node.output if name]
    if node.op_type != "Constant" and outputs and all(name in graph.constants for name in outputs):
        return row("free", "computed from shapes and constants alone")
    if node.op_type != "Constant" and graph.needed.isdisjoint(outputs):
        return row("not executed", "no output of the model depends on it; remove it from the file")
    if holds_subgraph(node):
        raise UnsupportedError(
            "runs a graph of its own, how often depends on values; export it unrolled"
        )
    if node.op_type not in RULES:
        raise UnsupportedError("there is no rule to count it by")
    outcome = RULES[node.op_type](node, graph)
    return row("free", outcome) if isinstance(outcome, str) else outcome


def _layer_counts(row: NodeCounts) -> LayerCounts:
    none = Fraction(0)
    valid = sum(product.count() for product in row.products)
    nonzero = sum(product.count(nz=True) for product in row.products)
    return LayerCounts(
        acc=none,
        mac=Fraction(valid),
        acc_nonzero=none,
        mac_nonzero=Fraction(nonzero),
        dense_valid=Fraction(valid),
        dense_padded=Fraction(valid if row.padded is None else row.padded),
        bias_adds=Fraction(row.bias_adds),
        neuron_updates=none,
        spikes=none,
        comparisons=Fraction(row.comparisons),
        elementwise=Fraction(row.elementwise),
    )


def _what(counts: LayerCounts, row: NodeCounts) -> str:
    """What a counted row holds, for the ledger."""
    parts = {
        "multiplications": counts.mac,
        "bias additions": counts.bias_adds,
        "comparisons": counts.comparisons,
        "elementwise operations": counts.elementwise,
    }
    shown = (
        ", ".join(f"{number} {what}" for what, number in parts.items() if number) or "0 operations"
    )
    return f"{shown}; {row.note}" if row.note else shown
