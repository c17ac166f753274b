"""Count the operations of an ONNX file: the baseline that a spiking network is compared with.

Products are counted from shapes, one pass at batch 1; pools, normalisations and activations stand
apart from them. What only moves data is free by policy and listed; everything else is listed as
unsupported, and then there is no total.

Effective products need inputs: samples are run one by one, and multiplications with an exact 0 are
skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from knarr.errors import one_line
from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import (
    LayerCounts,
    LayerSizes,
    LedgerRow,
    OperationCounts,
    Status,
)
from knarr.hw_sim.counting.onnx.batch import OpenAxisError
from knarr.hw_sim.counting.onnx.elementwise import ELEMENTWISE
from knarr.hw_sim.counting.onnx.fused import FUSED, MICROSOFT_RULES
from knarr.hw_sim.counting.onnx.model import (
    MICROSOFT,
    OnnxGraph,
    OnnxNode,
    UnsupportedError,
    holds_subgraph,
    read_onnx,
    session_of,
)
from knarr.hw_sim.counting.onnx.precision import precision_of
from knarr.hw_sim.counting.onnx.products import PRODUCT_RULES, NodeCounts, Product, Rule
from knarr.hw_sim.counting.onnx.spikes import spike_tensors
from knarr.hw_sim.errors import CountError, first_line

RULES: dict[str, Rule | str] = {**ELEMENTWISE, **PRODUCT_RULES, **FUSED}
"""Operation -> the function that returns its counts, or why it is free."""


def count_onnx(
    path: str | Path,
    inputs: Array | None = None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    batch_axis: int | None = None,
) -> OperationCounts:
    """Count one inference of an ONNX file.

    Args:
        path: file with static shapes (a dynamic first dimension is taken as batch 1 where the graph
            treats it as a batch), exported in eval mode.
        inputs: (samples, *shape without batch) of the type the file takes, to count effective
            operations too: zero activations skipped, one sample at a time, so that results do not
            depend on batch size. Between two activations an operation is effective where both are
            non-zero. Activations that are spikes, or sums of a few, are told apart
            (`knarr.hw_sim.counting.onnx.products`). An input without a batch axis takes (samples, *shape), or one *shape.
        input_shapes: graph input -> its whole shape in one inference, such as {"x": (100, 1, 64)},
            where the file leaves an axis open that is no batch.
        batch_axis: the axis of the batch, where it is not the first.

    Returns:
        Per layer, for one inference: `dense_padded` (taps into the padding included), `dense_valid`,
        `mac` = `dense_valid` (a real multiplication needs both ends), `mac_nonzero` (weights that
        are 0 skipped), `bias_adds`, `comparisons` and `elementwise`. With `inputs`, also
        `effective` and `effective_nonzero` of the products; and of a network that spikes in part,
        the additions of spikes as `acc`, which leave `mac`.

    Raises:
        CountError: not an ONNX file, shapes that are not static, a first axis that is no batch and
            of no known size, or inputs that do not fit.
            Operations that cannot be counted are rows of the ledger, and `.total` raises.
        FileNotFoundError: no such file.
    """
    try:
        graph = read_onnx(Path(path), input_shapes, batch_axis)
    except OpenAxisError as error:
        # Samples tell the size that the file leaves open; one alone has no axis more than the input.
        sizes = np.shape(() if inputs is None else inputs)
        extra = len(sizes) - error.rank
        if inputs is None or extra not in (0, 1):
            raise
        known = {**(input_shapes or {}), error.name: sizes[extra:]}
        graph = read_onnx(Path(path), known, batch_axis)
    counted: dict[str, NodeCounts] = {}
    layers: dict[str, LayerCounts] = {}
    precision: dict[str, str] = {}
    words: dict[str, LayerSizes] = {}
    ledger = _initializer_rows(graph)
    names: set[str] = set()
    for node in graph.model.graph.node:
        name = _unique(node, names)
        names.add(name)
        status: Status = "counted"
        try:
            outcome = _outcome(node, graph)
            if isinstance(outcome, NodeCounts):
                layers[name], counted[name] = _layer_counts(outcome), outcome
                precision[name], bits = precision_of(node, graph)
                words[name] = replace(outcome.sizes, weight_bits=bits)
                note = _describe(layers[name], outcome)
            else:
                status, note = outcome
        except UnsupportedError as reason:
            status, note = "unsupported", str(reason)
        ledger.append(LedgerRow(name, node.op_type, status, note))
    effective = effective_nonzero = None
    samples = 0
    if inputs is not None:
        name, fed = _checked_input(graph, inputs)
        samples = len(fed)
        products = {name: row.products for name, row in counted.items() if row.products}
        totals = _run(graph, products, name, fed)
        effective, effective_nonzero = (
            {layer: Fraction(total[column], samples) for layer, total in totals.items()}
            for column in ("effective", "effective_nonzero")
        )
        layers |= {layer: _hybrid(layers[layer], totals[layer], samples) for layer in products}
        ledger = [_with_spikes(row, layers.get(row.name)) for row in ledger]
    return OperationCounts(
        layers,
        tuple(ledger),
        samples=samples,
        timesteps=1,
        kind="ann",
        effective=effective,
        effective_nonzero=effective_nonzero,
        sizes=words,
        precision=precision,
    )


def _initializer_rows(graph: OnnxGraph) -> list[LedgerRow]:
    rows = []
    for name, nodes in graph.readers.items():
        if nodes:
            rows.append(LedgerRow(name, "Initializer", "folded", f"into {', '.join(nodes)}"))
        else:
            rows.append(LedgerRow(name, "Initializer", "free", "no node reads it"))
    note = "stored sparsely; export it dense"
    for tensor in graph.model.graph.sparse_initializer:
        rows.append(LedgerRow(tensor.values.name, "Initializer", "unsupported", note))
    return rows


def _unique(node: Any, names: set[str]) -> str:
    """Return the name of a node's rows: its own, or where that will not do one made up."""
    output = node.output[0] if node.output else ""
    name: str = node.name or f"{node.op_type}:{output}"
    if name in names:
        name = f"{name}:{output}"
    # A node without outputs adds nothing to tell it by.
    while name in names:
        name += "'"
    return name


def _outcome(node: Any, graph: OnnxGraph) -> NodeCounts | tuple[Status, str]:
    """Return the counts of a node, or status and note of one that has none.

    Raises:
        UnsupportedError: it cannot be counted.
    """
    rules = RULES if node.domain in ("", "ai.onnx") else MICROSOFT_RULES
    fused = node.domain == MICROSOFT and node.op_type in rules
    if node.domain not in ("", "ai.onnx") and not fused:
        raise UnsupportedError(f"operation of domain '{one_line(node.domain, 60)}'")
    outputs = {name for name in node.output if name}
    # Constant has a rule of its own, with a note that says more.
    if node.op_type != "Constant":
        if outputs and outputs <= graph.constants.keys():
            return "free", "computed from shapes and constants alone"
        if graph.needed.isdisjoint(outputs):
            return (
                "not executed",
                "no output of the model depends on it; remove it from the file",
            )
    if holds_subgraph(node):
        raise UnsupportedError(
            "runs a graph of its own, how often depends on values; export it unrolled"
        )
    if node.op_type not in rules:
        raise UnsupportedError("there is no rule to count it by")
    rule = rules[node.op_type]
    outcome = rule if isinstance(rule, str) else rule(OnnxNode(node, graph))
    return ("free", outcome) if isinstance(outcome, str) else outcome


def _layer_counts(row: NodeCounts) -> LayerCounts:
    counted = [product.count() for product in row.products]
    valid = sum(stored for stored, _ in counted)
    nonzero = sum(without_zeros for _, without_zeros in counted)
    totals = {
        "mac": valid,
        "mac_nonzero": nonzero,
        "dense_valid": valid,
        "dense_padded": valid if row.padded is None else row.padded,
        "bias_adds": row.bias_adds,
        "comparisons": row.comparisons,
        "elementwise": row.elementwise,
    }
    return LayerCounts.mean(totals)


def _describe(counts: LayerCounts, row: NodeCounts) -> str:
    """Say in a line of the ledger what a counted row holds."""
    parts = {
        "multiplications": counts.mac,
        "bias additions": counts.bias_adds,
        "comparisons": counts.comparisons,
        "elementwise operations": counts.elementwise,
    }
    shown = ", ".join(f"{number} {what}" for what, number in parts.items() if number)
    shown = shown or "0 operations"
    return f"{shown}; {row.note}" if row.note else shown


def _hybrid(layer: LayerCounts, totals: Counter[str], samples: int) -> LayerCounts:
    """Return the counts of a layer with the additions of spikes that arrived at it."""
    columns = (
        "acc", "acc_nonzero", "signed", "repeats", "repeats_nonzero", "mac", "mac_nonzero",
    )  # fmt: skip
    return replace(layer, **{name: Fraction(totals[name], samples) for name in columns})


def _with_spikes(row: LedgerRow, layer: LayerCounts | None) -> LedgerRow:
    if layer is None or not layer.acc:
        return row
    note = (
        f"{row.note}; on these inputs spikes arrive: {float(layer.acc):g} additions, and "
        f"{float(layer.mac):g} multiplications are left"
    )
    return replace(row, note=note)


def _run(
    graph: OnnxGraph,
    products: dict[str, tuple[Product, ...]],
    name: str,
    inputs: Array,
) -> dict[str, Counter[str]]:
    """Count the operations of products on inputs.

    Args:
        graph: the model.
        products: layer -> its products.
        name: the graph's one input.
        inputs: (samples, *its shape).

    Returns:
        Layer -> totals over the samples, of the columns of `Product.classed`, or of `Product.dense` where
        nothing spikes.

    Raises:
        CountError: a model that onnxruntime does not run, or NaN and infinity on the way.
    """
    # Tensor -> the layer that reads it; of several the first one, which is written last.
    readers: dict[str, str] = {}
    for layer, parts in reversed(products.items()):
        for product in parts:
            for tensor in product.a.watched() | product.b.watched():
                readers[tensor] = layer
    watched = sorted(readers.keys() - {name})
    with _refusals():
        session = session_of(_showing(graph, watched))
    counted = spike_tensors(graph)
    # Data of 0 and 1 do not make a network one that spikes.
    hybrid = not counted.isdisjoint(watched)
    totals: dict[str, Counter[str]] = {layer: Counter() for layer in products}
    # One at a time, so that a model's results cannot depend on the batch.
    for sample in inputs:
        values = {name: sample}
        # An empty list would ask for all outputs.
        if watched:
            with _refusals():
                seen = session.run(watched, values)
            values |= zip(watched, seen, strict=True)
        for tensor, layer in readers.items():
            value = values[tensor]
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise CountError(
                    f"tensor '{tensor}': NaN or infinity before '{layer}'; check the inputs"
                )
        for layer, parts in products.items():
            for product in parts:
                if hybrid:
                    totals[layer].update(product.classed(values, counted))
                else:
                    totals[layer].update(product.dense(values))
    return totals


def _checked_input(graph: OnnxGraph, inputs: Array) -> tuple[str, Array]:
    """Return the name of the one input, and samples that fit it, (samples, *shape)."""
    if len(graph.inputs) != 1:
        raise CountError(
            f"inputs: the model has {len(graph.inputs)} inputs {list(graph.inputs)}, one can be run"
        )
    ((name, shape),) = graph.inputs.items()
    wanted = onnx.helper.tensor_dtype_to_np_dtype(graph.types[name].type.tensor_type.elem_type)
    if not isinstance(inputs, np.ndarray) or inputs.dtype != wanted:
        raise CountError(
            f"inputs: {getattr(inputs, 'dtype', type(inputs).__name__)}, needs a {wanted} array"
        )
    axis = graph.batch_axes[name]
    # A shape that was given may begin with a batch of 1.
    if axis is None and shape[:1] == (1,) and inputs.shape[1:] == shape[1:]:
        axis = 0
    alone = shape if axis is None else (*shape[:axis], *shape[axis + 1 :])
    if axis is None and inputs.shape == shape:
        return name, inputs[None]
    if inputs.shape[1:] != alone or len(inputs) == 0:
        needs = ", ".join(map(str, alone))
        raise CountError(
            f"inputs: shape {inputs.shape}, needs (samples, {needs}) with at least one sample"
        )
    return name, inputs if axis is None else np.expand_dims(inputs, 1 + axis)


def _showing(graph: OnnxGraph, watched: Sequence[str]) -> Any:
    """Return a copy of the model in which these tensors can be seen, as outputs of it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    shown = {value.name for value in model.graph.output}
    hidden = [name for name in watched if name not in shown]
    model.graph.output.extend(graph.types[name] for name in hidden)
    return model


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what onnxruntime raises into a CountError; its errors share no base but Exception."""
    try:
        yield
    except Exception as error:
        raise CountError(
            f"model: onnxruntime cannot run it ({first_line(error)}); leave inputs out"
        ) from error
