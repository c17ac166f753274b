"""Effective multiplications of an ONNX file: samples are run one by one, and what is exactly 0 is skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from knarr.hw_sim.counting.onnx.model import OnnxGraph
from knarr.hw_sim.counting.onnx.products import Array, Product
from knarr.hw_sim.errors import CountError

Products = Mapping[str, Sequence[Product]]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def effective_counts(
    graph: OnnxGraph, products: Products, inputs: npt.NDArray[np.generic]
) -> tuple[dict[str, Fraction], dict[str, Fraction]]:
    """Mean multiplications per sample that are left when activations that are 0 are skipped.

    Args:
        graph: the model.
        products: layer -> its products.
        inputs: (samples, *shape) of the graph's one input.

    Returns:
        Layer -> mean, with zero weights multiplied and with zero weights skipped too.

    Raises:
        CountError: inputs that do not fit, a model that onnxruntime does not run, or NaN and infinity on the way.
    """
    name = _checked(graph, inputs)
    readers = {
        tensor: layer
        for layer, parts in reversed(list(products.items()))
        for part in parts
        for tensor in part.a.watched() | part.b.watched()
    }
    run = _runner(graph, sorted(readers.keys() - {name}))
    counted = {layer: [part.runs() for part in parts] for layer, parts in products.items()}
    stored, nonzero = dict.fromkeys(products, 0), dict.fromkeys(products, 0)
    for sample in inputs:
        feed = {name: sample[None]}
        values: dict[str, Array] = {**feed, **run(feed)}
        for tensor, layer in readers.items():
            held = values[tensor]
            if held.dtype.kind == "f" and not np.isfinite(held).all():
                raise CountError(
                    f"tensor '{tensor}': NaN or infinity before '{layer}'; check the inputs"
                )
        for layer, counts in counted.items():
            for one in counts:
                with_zeros, without = one(values)
                stored[layer] += with_zeros
                nonzero[layer] += without
    samples = len(inputs)
    return (
        {layer: Fraction(total, samples) for layer, total in stored.items()},
        {layer: Fraction(total, samples) for layer, total in nonzero.items()},
    )


def _checked(graph: OnnxGraph, inputs: npt.NDArray[np.generic]) -> str:
    """Name of the one input that these samples fit."""
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
    if inputs.shape[1:] != shape[1:] or len(inputs) == 0:
        needs = ", ".join(map(str, shape[1:]))
        raise CountError(
            f"inputs: shape {inputs.shape}, needs (samples, {needs}) with at least one sample"
        )
    return name


def _runner(graph: OnnxGraph, watched: Sequence[str]) -> Run:
    """The model in onnxruntime, unoptimised so that no tensor is fused away: feed -> the watched tensors."""

    def refused(error: Exception) -> CountError:
        first_line = str(error).strip().partition("\n")[0]
        return CountError(f"model: onnxruntime cannot run it ({first_line}); leave inputs out")

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        shown = {value.name for value in model.graph.output}
        model.graph.output.extend(graph.types[name] for name in watched if name not in shown)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no other base
        raise refused(error) from error

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return (
                dict(zip(watched, session.run(list(watched), dict(feed)), strict=True))
                if watched
                else {}
            )
        except Exception as error:
            raise refused(error) from error

    return run
