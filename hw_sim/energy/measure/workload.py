"""An ONNX file as a load: the same file that is counted, in onnxruntime, inputs and outputs bound
on the device.

`read_source` tells how a file can be run, `OnnxWorkload` runs one batch size of it. onnxruntime
waits for the device at the end of every run (its default), so a run is a whole inference of one
batch, the call from Python included. Nothing is copied from or to the host within a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.measure.protocol import Macs, MeasureError, macs_of
from knarr.hw_sim.errors import first_line

MAX_BATCHES = 64
"""Batches that lie ready on the device; they are run in turn, so that energy is no property of one
input.
"""
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
    """An ONNX file, and how it can be run.

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
        MeasureError: not an ONNX file, more than one input, a shape that is not static beyond the
            batch, or a fixed batch other than 1, of which an inference is no run.
        FileNotFoundError: no such file.
    """
    content = Path(path).read_bytes()
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise MeasureError(
            f"{path}: not a valid ONNX file ({first_line(error)}); export it again"
        ) from None
    graph = model.graph
    # Older files list weights among the inputs.
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise MeasureError(
            f"{path}: inputs {[value.name for value in inputs]}, exactly one can be fed"
        )
    tensor = inputs[0].type.tensor_type
    dims = tensor.shape.dim
    sample = tuple(int(dim.dim_value) for dim in dims[1:])
    if not dims or 0 in sample:
        raise MeasureError(
            f"{path}: input '{inputs[0].name}' is not static; only the batch may be dynamic"
        )
    fixed = int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
    if fixed not in (None, 1):
        raise MeasureError(
            f"{path}: fixed batch of {fixed}; export with a dynamic batch, or batch 1"
        )
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
    """Refuse inputs that are not (samples, *sample_shape) of the file's type, with at least one
    sample.

    Raises:
        MeasureError: they are not; says what is needed.
    """
    if not isinstance(inputs, np.ndarray) or inputs.dtype != source.dtype:
        got = getattr(inputs, "dtype", type(inputs).__name__)
        raise MeasureError(f"inputs: {got}, the file needs a {source.dtype} array")
    if inputs.shape[1:] != source.sample_shape or len(inputs) == 0:
        needs = ", ".join(map(str, source.sample_shape))
        raise MeasureError(
            f"inputs: shape {inputs.shape}, needs (samples, {needs}) with at least one sample"
        )


def batches(source: OnnxSource, large_batch: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return batch sizes to measure, and notes on them.

    Raises:
        MeasureError: a large batch that is not an integer above 1.
    """
    if type(large_batch) is not int or large_batch < 2:
        raise MeasureError(f"large_batch: {large_batch}, needs an integer from 2")
    if source.fixed_batch is None:
        return (1, large_batch), ()
    return (1,), (
        f"the file has a fixed batch of 1, batch {large_batch} cannot run; export with a dynamic batch to measure it",
    )


def prepare(
    path: str | Path, inputs: Array | None, large_batch: int, counts: OperationCounts | None
) -> tuple[OnnxSource, tuple[int, ...], tuple[str, ...], Macs | None]:
    """Check all that can be checked before a device is touched.

    Args:
        path: the ONNX file.
        inputs: (samples, *shape) of the file's type, or None.
        large_batch: the second batch size, from 2.
        counts: counts of the file, or None.

    Returns:
        (source, batch sizes, notes on them, multiplications)

    Raises:
        MeasureError: a file, inputs or a batch that do not fit.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    source = read_source(path)
    if inputs is not None:
        check_inputs(source, inputs)
    sizes, notes = batches(source, large_batch)
    return source, sizes, notes, None if counts is None else macs_of(counts)


def split(inputs: Array, batch: int) -> list[Array]:
    """Return batches that cover the samples, at most `MAX_BATCHES`; the last one is filled up from
    the first sample on.
    """
    count = min(-(-len(inputs) // batch), MAX_BATCHES)
    return [inputs[np.arange(k * batch, (k + 1) * batch) % len(inputs)] for k in range(count)]


def _precision(graph: Any) -> str:
    """Name the precision of the weights; scalars and shapes are none."""
    # Weights of such files may be stored as floats beside their quantisers.
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


Provider = Literal["CUDAExecutionProvider", "CPUExecutionProvider"]


class OnnxWorkload:
    """One batch size of a file in one session.

    Args:
        source: the file, as `read_source` gives it.
        inputs: (samples, *shape) that `check_inputs` let through.
        batch: samples of one run.
        provider: of onnxruntime. On CUDA no node may run on the CPU: the session is refused.
        ordinal: CUDA's number of the device.
        tf32: let CUDA compute fp32 products in TF32.
        threads: of the CPU provider, 0 takes every core.

    Raises:
        MeasureError: the provider is not there, did not start, or cannot run every node.
    """

    def __init__(
        self,
        source: OnnxSource,
        inputs: Array,
        batch: int,
        provider: Provider,
        *,
        ordinal: int = 0,
        tf32: bool = True,
        threads: int = 0,
    ) -> None:
        self.batch = batch
        device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
        self._session = _session(source, batch, provider, ordinal, tf32, threads)
        self._bindings: list[Any] = []
        # On the CPU a binding points into numpy's memory and does not keep it alive.
        self._inputs: list[Any] = []
        try:
            for chunk in split(inputs, batch):
                binding = self._session.io_binding()
                value = onnxruntime.OrtValue.ortvalue_from_numpy(
                    np.ascontiguousarray(chunk), device, ordinal
                )
                self._inputs.append(value)
                binding.bind_ortvalue_input(source.input_name, value)
                for output in self._session.get_outputs():
                    binding.bind_output(output.name, device, ordinal)
                self._bindings.append(binding)
        except Exception as error:  # onnxruntime's errors share no other base
            raise MeasureError(
                f"{provider}: inputs do not get to the device ({first_line(error)}); is its memory full?"
            ) from error
        self._next = 0

    def run(self) -> None:
        """Run the next batch."""
        binding = self._bindings[self._next]
        self._next = (self._next + 1) % len(self._bindings)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors share no other base
            raise MeasureError(
                f"onnxruntime: run of batch {self.batch} failed ({first_line(error)})"
            ) from error

    def synchronise(self) -> None:
        """Wait for the device."""
        for binding in self._bindings:
            binding.synchronize_inputs()
            binding.synchronize_outputs()


def require_provider(provider: Provider) -> None:
    """Refuse where this onnxruntime was not built with a provider.

    Raises:
        MeasureError: it was not; says which package has it.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MeasureError(
            f"onnxruntime: no {provider}, only {', '.join(available)}; on a machine with an NVIDIA GPU replace the "
            "package onnxruntime by onnxruntime-gpu (never install both)"
        )


def _session(
    source: OnnxSource, batch: int, provider: Provider, ordinal: int, tf32: bool, threads: int
) -> Any:
    require_provider(provider)
    options = onnxruntime.SessionOptions()
    if source.batch_name is not None:
        # Static shapes fold away what would compute them on the CPU.
        options.add_free_dimension_override_by_name(source.batch_name, batch)
    settings: dict[str, str] = {}
    if provider == "CUDAExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {"device_id": str(ordinal), "use_tf32": str(int(tf32))}
        if hasattr(onnxruntime, "preload_dlls"):
            # It prints what it cannot find, and stdout belongs to the command's result.
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
    else:
        options.intra_op_num_threads = threads
    try:
        # Without enable_fallback=0 onnxruntime prints an error and goes on with the CPU.
        session = onnxruntime.InferenceSession(
            source.path, options, providers=[(provider, settings)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors share no other base
        raise MeasureError(
            f"{provider}: cannot run {source.path} ({first_line(error)}); on a GPU, CUDA and cuDNN must be those "
            "that onnxruntime-gpu needs, and every node must have a CUDA kernel"
        ) from error
    # It may fall back all the same, where the libraries of a provider do not load.
    got = session.get_providers()
    if provider not in got[:1]:
        raise MeasureError(
            f"onnxruntime: runs on {', '.join(got) or 'nothing'} instead of {provider}; its libraries did not load "
            "(the log above says which), so nothing was measured"
        )
    return session
