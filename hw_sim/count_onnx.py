"""Multiplications of an ONNX file: the baseline that a spiking network is compared with.

Convolutions and products with a constant are counted from shapes, one pass at batch 1. What is known to be no synaptic
operation is free by policy and listed; everything else is listed as unsupported, and then there is no total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from knarr.hw_sim.counts import LayerCounts, LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.fanout import Int64, kernel_fanout, kernel_targets
from knarr.hw_sim.onnx_graph import OnnxGraph, UnsupportedError, attributes_of, read_onnx

FREE = {
    "AveragePool": "pooling: its additions are no synaptic operations",
    "Constant": "a value, no operation",
    "Dropout": "does nothing in eval mode",
    "Flatten": "moves no data",
    "GlobalAveragePool": "pooling: its additions are no synaptic operations",
    "Identity": "moves no data",
    "MaxPool": "pooling: its comparisons are no synaptic operations",
    "Relu": "activation",
    "Reshape": "moves no data",
    "Softmax": "activation of the readout",
}
"""Operations that cost nothing here by policy, and why."""
SHAPE_ARITHMETIC = frozenset({"Cast", "Concat", "Gather", "Shape", "Slice", "Squeeze", "Unsqueeze"})
"""Free too where they see nothing but shapes and constants: what `x.view(x.size(0), -1)` leaves in a file."""


@dataclass(frozen=True)
class _Product:
    """Multiplications of one node: fan-out maps that broadcast against its input tensor, padded taps, bias adds."""

    tensor: str
    fanout: Int64
    fanout_nonzero: Int64
    dense_padded: int
    bias_adds: int
    sizes: LayerSizes


def count_onnx(path: str | Path, inputs: npt.NDArray[np.float32] | None = None) -> OperationCounts:
    """Count one inference of an ONNX file.

    Args:
        path: file with static shapes (a dynamic first dimension is taken as batch 1), exported in eval mode.
        inputs: (samples, *shape) float32, to count effective operations too: zero activations skipped, one sample at
            a time, so that results do not depend on batch size.

    Returns:
        Per layer, for one inference: `dense_padded` (taps into the padding included), `dense_valid`, `mac` =
        `dense_valid` (a real multiplication needs both ends), `mac_nonzero` (weights that are 0 skipped), `bias_adds`.
        With `inputs`, also `effective` and `effective_nonzero`.

    Raises:
        CountError: not an ONNX file, shapes that are not static, or inputs that do not fit. Operations that cannot be
            counted are rows of the ledger, and `.total` raises.
        FileNotFoundError: no such file.
    """
    graph = read_onnx(Path(path))
    products: dict[str, _Product] = {}
    layers: dict[str, LayerCounts] = {}
    sizes: dict[str, LayerSizes] = {}
    ledger = [
        LedgerRow(name, "Initializer", "folded", f"into {', '.join(nodes)}")
        if nodes
        else LedgerRow(name, "Initializer", "free", "no node reads it")
        for name, nodes in graph.readers.items()
    ]
    shape_only = set(graph.constants)
    names: set[str] = set()
    for node in graph.model.graph.node:
        name = node.name or f"{node.op_type}:{node.output[0]}"
        if name in names:
            name = f"{name}:{node.output[0]}"
        names.add(name)
        try:
            if node.domain not in ("", "ai.onnx"):
                raise UnsupportedError(f"operation of domain '{node.domain}'")
            if node.op_type == "Shape" or (
                node.op_type in SHAPE_ARITHMETIC and shape_only.issuperset(node.input)
            ):
                shape_only.update(node.output)
                ledger.append(LedgerRow(name, node.op_type, "free", "computed from shapes alone"))
            elif node.op_type != "Constant" and graph.needed.isdisjoint(node.output):
                note = "no output of the model depends on it; remove it from the file"
                ledger.append(LedgerRow(name, node.op_type, "not executed", note))
            elif node.op_type in PRODUCTS:
                product = PRODUCTS[node.op_type](node, graph)
                layers[name] = _layer_counts(product, graph)
                products[name], sizes[name] = product, product.sizes
                ledger.append(LedgerRow(name, node.op_type, "counted", f"{layers[name].mac} multiplications"))
            elif node.op_type == "Add":
                layers[name] = _bias_after_matmul(node, graph)
                adds = int(layers[name].bias_adds)
                sizes[name] = LayerSizes(adds, adds, 0, graph.shape(node.output[0])[-1], 0, 0, False, False)
                ledger.append(LedgerRow(name, node.op_type, "counted", "bias of the MatMul before it"))
            else:
                ledger.append(LedgerRow(name, node.op_type, "free", _why_free(node, graph)))
        except UnsupportedError as reason:
            ledger.append(LedgerRow(name, node.op_type, "unsupported", str(reason)))
    effective = effective_nonzero = None
    if inputs is not None:
        effective, effective_nonzero = _effective(graph, products, inputs)
    samples = 0 if inputs is None else len(inputs)
    return OperationCounts(layers, tuple(ledger), samples, 1, "ann", effective, effective_nonzero, sizes)


def _conv(node: Any, graph: OnnxGraph) -> _Product:
    attributes = attributes_of(node)
    auto_pad = attributes.get("auto_pad", b"NOTSET")
    if auto_pad != b"NOTSET":
        raise UnsupportedError(f"auto_pad {auto_pad.decode()}; export with explicit pads")
    weight = graph.constant(node.input[1], "weight")
    axes = weight.ndim - 2
    outputs = graph.shape(node.output[0])

    stored, nonzero = (
        kernel_fanout(
            weight,
            graph.shape(node.input[0])[2:],
            outputs[2:],
            stride=attributes.get("strides", [1] * axes),
            padding=attributes.get("pads", [0] * 2 * axes)[:axes],
            dilation=attributes.get("dilations", [1] * axes),
            groups=attributes.get("group", 1),
            nz=nz,
        )
        for nz in (False, True)
    )
    bias_adds = prod(outputs) if len(node.input) > 2 and node.input[2] else 0
    padded = prod(outputs) * prod(weight.shape[1:])
    sizes = _sizes(
        node,
        graph,
        weight.size,
        weight.shape[0] if bias_adds else 0,
        prod((weight.shape[0], *weight.shape[2:])),
        True,
    )
    return _Product(node.input[0], stored, nonzero, padded, bias_adds, sizes)


def _sizes(
    node: Any, graph: OnnxGraph, weights: int, biases: int, kernel: int, convolution: bool
) -> LayerSizes:
    inputs, outputs = prod(graph.shape(node.input[0])), prod(graph.shape(node.output[0]))
    return LayerSizes(inputs, outputs, weights, biases, 0, kernel, convolution, False)


def _gemm(node: Any, graph: OnnxGraph) -> _Product:
    attributes = attributes_of(node)
    for name in ("alpha", "beta"):
        if attributes.get(name, 1.0) != 1.0:
            raise UnsupportedError(f"{name} = {attributes[name]}; fold it into the weight and bias")
    if attributes.get("transA", 0):
        raise UnsupportedError("transA; only a transposed weight can be counted")
    weight = graph.constant(node.input[1], "weight")
    bias_adds = prod(graph.shape(node.output[0])) if len(node.input) > 2 and node.input[2] else 0
    return _matrix(node, graph, weight if attributes.get("transB", 0) else weight.T, bias_adds)


def _matmul(node: Any, graph: OnnxGraph) -> _Product:
    weight = graph.constant(node.input[1], "right operand")
    if weight.ndim != 2:
        raise UnsupportedError(f"right operand has {weight.ndim} dimensions, only matrices can be counted")
    return _matrix(node, graph, weight.T, 0)


def _matrix(node: Any, graph: OnnxGraph, weight: npt.NDArray[np.generic], bias_adds: int) -> _Product:
    """weight: (out, in); the last axis of the node's first operand holds the in features."""
    if node.input[0] in graph.constants:
        raise UnsupportedError("both operands are constants; export with constant folding")
    rows = prod(graph.shape(node.input[0])[:-1])
    fanout, nonzero = kernel_targets(weight, 1), kernel_targets(weight, 1, nz=True)
    sizes = _sizes(node, graph, weight.size, len(weight) if bias_adds else 0, len(weight), False)
    return _Product(node.input[0], fanout, nonzero, rows * weight.size, bias_adds, sizes)


PRODUCTS: dict[str, Callable[[Any, OnnxGraph], _Product]] = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
"""Operations whose multiplications are counted."""


def _layer_counts(product: _Product, graph: OnnxGraph) -> LayerCounts:
    shape = graph.shape(product.tensor)
    valid = int(np.broadcast_to(product.fanout, shape).sum())
    nonzero = int(np.broadcast_to(product.fanout_nonzero, shape).sum())
    return _ann_counts(valid, nonzero, product.dense_padded, product.bias_adds)


def _bias_after_matmul(node: Any, graph: OnnxGraph) -> LayerCounts:
    """`Linear` on more than two axes is written as MatMul and Add; any other addition is not counted."""
    matmuls = {other.output[0] for other in graph.model.graph.node if other.op_type == "MatMul"}
    for constant, other in (node.input, reversed(node.input)):
        if constant in graph.constants and other in matmuls:
            outputs = graph.shape(node.output[0])
            if outputs == graph.shape(other):
                return _ann_counts(0, 0, 0, prod(outputs))
    raise UnsupportedError("only the addition of a constant bias to a MatMul can be counted")


def _ann_counts(valid: int, nonzero: int, padded: int, bias_adds: int) -> LayerCounts:
    none = Fraction(0)
    return LayerCounts(
        acc=none,
        mac=Fraction(valid),
        acc_nonzero=none,
        mac_nonzero=Fraction(nonzero),
        dense_valid=Fraction(valid),
        dense_padded=Fraction(padded),
        bias_adds=Fraction(bias_adds),
        neuron_updates=none,
        spikes=none,
    )


def _why_free(node: Any, graph: OnnxGraph) -> str:
    if node.op_type == "BatchNormalization":
        raise UnsupportedError("export in eval mode so that it folds into the synapse before it")
    if node.op_type not in FREE:
        raise UnsupportedError("there is no rule to count it by")
    if node.op_type == "Dropout" and any(graph.constants.get(flag, True) for flag in node.input[2:] if flag):
        raise UnsupportedError("training mode; export in eval mode")
    return FREE[node.op_type]


def _effective(
    graph: OnnxGraph, products: Mapping[str, _Product], inputs: npt.NDArray[np.float32]
) -> tuple[dict[str, Fraction], dict[str, Fraction]]:
    """Run the samples one by one and skip what is exactly 0 at the input of each product."""
    if len(graph.inputs) != 1:
        raise CountError(
            f"inputs: the model has {len(graph.inputs)} inputs {list(graph.inputs)}, one can be run"
        )
    ((name, shape),) = graph.inputs.items()
    if not isinstance(inputs, np.ndarray) or inputs.dtype != np.float32:
        raise CountError(f"inputs: {getattr(inputs, 'dtype', type(inputs).__name__)}, needs a float32 array")
    if inputs.shape[1:] != shape[1:] or len(inputs) == 0:
        needs = ", ".join(map(str, shape[1:]))
        raise CountError(f"inputs: shape {inputs.shape}, needs (samples, {needs}) with at least one sample")
    watched = sorted({product.tensor for product in products.values()} - {name})
    run = _runner(graph, watched)
    stored, nonzero = dict.fromkeys(products, 0), dict.fromkeys(products, 0)
    for sample in inputs:
        feed = {name: sample[None]}
        tensors = feed | run(feed)
        for layer, product in products.items():
            active = tensors[product.tensor]
            if not np.isfinite(active).all():
                raise CountError(
                    f"tensor '{product.tensor}': NaN or infinity before '{layer}'; check the inputs"
                )
            stored[layer] += int(np.where(active != 0, product.fanout, 0).sum(dtype=np.int64))
            nonzero[layer] += int(np.where(active != 0, product.fanout_nonzero, 0).sum(dtype=np.int64))
    samples = len(inputs)
    return (
        {layer: Fraction(total, samples) for layer, total in stored.items()},
        {layer: Fraction(total, samples) for layer, total in nonzero.items()},
    )


def _runner(
    graph: OnnxGraph, watched: Sequence[str]
) -> Callable[[Mapping[str, npt.NDArray[np.float32]]], dict[str, npt.NDArray[np.float32]]]:
    """The model in onnxruntime, unoptimised so that no tensor is fused away: feed -> the watched tensors."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    hidden = set(watched) - {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in graph.model.graph.value_info if value.name in hidden)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]

    def refused(error: Exception) -> CountError:
        first_line = str(error).strip().partition("\n")[0]
        return CountError(f"model: onnxruntime cannot run it ({first_line}); leave inputs out")

    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no other base
        raise refused(error) from error

    def run(feed: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
        try:
            return dict(zip(watched, session.run(list(watched), feed), strict=True)) if watched else {}
        except Exception as error:
            raise refused(error) from error

    return run
