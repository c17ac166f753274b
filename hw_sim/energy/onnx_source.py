"""What an ONNX file says about how it can be run, and the batches to run it with. Nothing is run here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from knarr.hw_sim.energy.measurement import MeasureError

Array = npt.NDArray[Any]
MAX_BATCHES = 64
"""Batches that lie ready on the device; they are run in turn, so that energy is no property of one input."""
QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)


@dataclass(frozen=True)
class OnnxSource:
    """What a file says about how it can be run.

    Args:
        path: of the file.
        input_name: its one input; dtype: numpy's; sample_shape: of one sample.
        fixed_batch: None where the batch is dynamic.
        batch_name: of the dynamic batch, None where it has none.
        precision: of the weights, such as "fp32"; "int8" where the file quantises.
        sha256: of the file, hexadecimal.
    """

    path: Path
    input_name: str
    dtype: np.dtype[Any]
    sample_shape: tuple[int, ...]
    fixed_batch: int | None
    batch_name: str | None
    precision: str
    sha256: str


def read_source(path: str | Path) -> OnnxSource:
    """Look into a file without running it.

    Raises:
        MeasureError: not an ONNX file, more than one input, a shape that is not static beyond the batch, or a fixed
            batch other than 1, of which an inference is no run.
        FileNotFoundError: no such file.
    """
    content = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise MeasureError(f"{path}: not a valid ONNX file ({first_line}); export it again") from None
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise MeasureError(f"{path}: inputs {[value.name for value in inputs]}, exactly one can be fed")
    tensor = inputs[0].type.tensor_type
    dims = tensor.shape.dim
    sample = tuple(int(dim.dim_value) for dim in dims[1:])
    if not dims or 0 in sample:
        raise MeasureError(f"{path}: input '{inputs[0].name}' is not static; only the batch may be dynamic")
    fixed = int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
    if fixed not in (None, 1):
        raise MeasureError(f"{path}: fixed batch of {fixed}; export with a dynamic batch, or batch 1")
    return OnnxSource(
        path=Path(path),
        input_name=inputs[0].name,
        dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
        sample_shape=sample,
        fixed_batch=fixed,
        batch_name=dims[0].dim_param or None,
        precision=_precision(graph),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def check_inputs(source: OnnxSource, inputs: Array) -> None:
    """Refuse inputs that are not (samples, *sample_shape) of the file's type, with at least one sample.

    Raises:
        MeasureError: they are not; says what is needed.
    """
    if not isinstance(inputs, np.ndarray) or inputs.dtype != source.dtype:
        got = getattr(inputs, "dtype", type(inputs).__name__)
        raise MeasureError(f"inputs: {got}, the file needs a {source.dtype} array")
    if inputs.shape[1:] != source.sample_shape or len(inputs) == 0:
        needs = ", ".join(map(str, source.sample_shape))
        raise MeasureError(f"inputs: shape {inputs.shape}, needs (samples, {needs}) with at least one sample")


def batches(source: OnnxSource, large_batch: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Batch sizes to measure, and what has to be said about them.

    Raises:
        MeasureError: a large batch that is not an integer above 1.
    """
    if isinstance(large_batch, bool) or not isinstance(large_batch, int) or large_batch < 2:
        raise MeasureError(f"large_batch: {large_batch}, needs an integer from 2")
    if source.fixed_batch is None:
        return (1, large_batch), ()
    return (1,), (
        f"the file has a fixed batch of 1, batch {large_batch} cannot run; export with a dynamic batch to measure it",
    )


def split(inputs: Array, batch: int) -> list[Array]:
    """Batches that cover the samples, at most `MAX_BATCHES`; the last one is filled up from the first sample on."""
    count = min(-(-len(inputs) // batch), MAX_BATCHES)
    return [inputs[np.arange(k * batch, (k + 1) * batch) % len(inputs)] for k in range(count)]


def _precision(graph: Any) -> str:
    """Of the weights; scalars and shapes are none."""
    if any(node.op_type in QUANTISED for node in graph.node):
        return "int8"
    names = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.DOUBLE: "fp64",
    }
    found = {names[tensor.data_type] for tensor in graph.initializer if tensor.data_type in names}
    return "+".join(sorted(found)) or "unknown"
