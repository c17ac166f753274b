"""Write a torch network as an ONNX file that provably computes the same: the form of every non-spiking baseline."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from knarr.export.arguments import as_shape
from knarr.export.errors import ExportError
from knarr.files import write_atomic

OPSET = 17
TRACER_WARNING = torch.jit.TracerWarning  # type: ignore[attr-defined]  # public, but missing from torch's __all__
CHECKED_BATCHES = (1, 3)
"""Batch sizes that are compared: 1 is what is counted, a larger one shows that the batch was not baked into the file."""
RELATIVE_TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest output. torch and onnxruntime sum float32 products in another
order: a sum of n terms differs by about sqrt(n) * 6e-8, 5e-6 for n = 6272, and layers add up. A wrong weight, pad or
axis differs by 1e-2 and more."""


def to_onnx(module: torch.nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Export a network in eval mode (batch-norm folds into the synapse before it) and check the file against torch.

    The file takes one float32 input "input" of shape (batch, *input_shape), batch dynamic, and gives one "output". It
    is checked before it is written, and written under a temporary name first, so a failed export leaves nothing.

    Args:
        module: network with float32 parameters in eval mode, from one tensor to one tensor.
        input_shape: shape of one sample, without batch.
        path: file to write.

    Raises:
        ExportError: train mode, a module that cannot be traced, or a file whose outputs differ from the module's by
            more than `RELATIVE_TOLERANCE` on random inputs.
        OSError: the file cannot be written.
    """
    path, input_shape = Path(path), as_shape(input_shape)
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"module: {type(module).__name__} is no torch module; wrap it in one")
    _check_module(module, input_shape)
    exported = _export(module, input_shape)
    _compare(module, input_shape, exported)
    write_atomic(path, exported)


def open_session(
    exported: bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Open a file on one thread of the CPU.

    Raises:
        ExportError: onnxruntime does not take it.
    """
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise ExportError(f"module: onnxruntime does not take the file ({error})") from error


def _check_module(module: torch.nn.Module, input_shape: tuple[int, ...]) -> None:
    training = [
        name or "the module itself" for name, part in module.named_modules() if part.training
    ]
    if training:
        raise ExportError(f"module: {training[0]} is in train mode; call module.eval() first")
    if not input_shape or min(input_shape) < 1:
        raise ExportError(
            f"input_shape: {input_shape} holds nothing; give the shape of one sample without batch"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(
                f"module: '{name}' is {tensor.dtype}, the file takes float32; call module.float()"
            )


def _samples(module: torch.nn.Module, input_shape: tuple[int, ...], batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return torch.randn((batch, *input_shape), generator=generator).to(device)


def _run(module: torch.nn.Module, inputs: torch.Tensor) -> npt.NDArray[np.float32]:
    try:
        with torch.no_grad():
            output = module(inputs)
    except Exception as error:  # the module's own code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExportError(
            f"module: cannot be exported for input {tuple(inputs.shape[1:])} ({reason}); see that it runs"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ExportError(f"module: returns {type(output).__name__}, needs one tensor; wrap it")
    if output.ndim < 1 or output.numel() == 0:
        raise ExportError(f"module: returns shape {tuple(output.shape)}, needs a batch of values")
    return np.asarray(output.cpu().numpy())


def _export(module: torch.nn.Module, input_shape: tuple[int, ...]) -> bytes:
    inputs = _samples(module, input_shape, 1)
    buffer = io.BytesIO()
    try:
        _run(module, inputs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.onnx.export(
                module,
                (inputs,),
                buffer,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.EVAL,
            )
        onnx.checker.check_model(onnx.load_model_from_string(buffer.getvalue()), full_check=True)
    except ExportError:
        raise
    except (
        RuntimeError,  # torch.onnx.errors.OnnxExporterError too
        TypeError,
        ValueError,
        IndexError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"module: cannot be exported for input {input_shape} ({first_line})"
        ) from error
    for warning in caught:
        if issubclass(warning.category, TRACER_WARNING):
            # A branch on a value or size went one way for this input and was frozen: the file is another function.
            where = f"{Path(warning.filename).name}:{warning.lineno}"
            raise ExportError(
                f"module: cannot be exported, its trace depends on the input ({where}: {warning.message})"
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return buffer.getvalue()


def _compare(module: torch.nn.Module, input_shape: tuple[int, ...], exported: bytes) -> None:
    session = open_session(exported, onnxruntime.SessionOptions())
    for batch in CHECKED_BATCHES:
        inputs = _samples(module, input_shape, batch)
        expected = _run(module, inputs)
        try:
            (got,) = session.run(None, {"input": inputs.cpu().numpy()})
        except Exception as error:
            raise ExportError(
                f"module: the file does not run at batch {batch} ({error})"
            ) from error
        if got.shape != expected.shape or len(got) != batch:
            raise ExportError(
                f"module: batch {batch} gives shape {got.shape} in onnxruntime and {expected.shape} in torch; "
                "keep the batch as the first axis"
            )
        if not np.isfinite(expected).all():
            raise ExportError(
                f"module: outputs of random inputs are not finite at batch {batch}; check its weights"
            )
        difference, scale = float(np.abs(got - expected).max()), float(np.abs(expected).max())
        if not difference <= RELATIVE_TOLERANCE * scale:
            raise ExportError(
                f"module: onnxruntime differs from torch by {difference:g} at batch {batch}, allowed "
                f"{RELATIVE_TOLERANCE:g} of {scale:g}; the file is not this module"
            )
