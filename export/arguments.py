"""Check what callers hand in: inputs, shapes, time steps, graphs."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.export.errors import ExportError


def as_inputs(value: object, what: str = "inputs") -> npt.NDArray[Any]:
    """Return inputs as a finite, contiguous array of (samples, timesteps, *features).

    Args:
        value: array, nested lists or tensor of real numbers; a tensor's gradient is left behind.
        what: name for messages.

    Raises:
        ExportError: something else, NaN or infinity, or an empty or missing axis.
    """
    # A tensor is known by what it can do: whoever has one has torch, and nobody else needs it.
    # numpy and torch differ in what they raise for ragged lists, texts and tensors on other devices.
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ExportError(
            f"{what}: no array of numbers ({error}); give (samples, timesteps, *features)"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ExportError(f"{what}: dtype {array.dtype} is no real number; give integers or floats")
    if array.ndim < 2 or 0 in array.shape:
        raise ExportError(
            f"{what}: shape {array.shape}, needs (samples, timesteps, *features) with at least one of each"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ExportError(
                f"{what}: hold NaN or infinity, on which nothing can be compared; find where they come from"
            )
        # Half precision and long doubles have no counterpart in the stepper.
        array = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    # Native byte order and no negative strides, which torch does not take.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def as_shape(value: object) -> tuple[int, ...]:
    """Return an `input_shape`, the positive sizes of one time step, without batch.

    Raises:
        ExportError: no sequence of positive integers.
    """
    try:
        sizes: tuple[Any, ...] = tuple(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ExportError(
            f"input_shape: {value!r} is no sequence of sizes; write ({value},)"
        ) from error
    whole = all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in sizes
    )
    if not sizes or not whole:
        raise ExportError(
            f"input_shape: {sizes}; give the positive sizes of one step without batch"
        )
    return tuple(int(n) for n in sizes)


def as_dt(value: object) -> float:
    """Return a time step in seconds as a float.

    Raises:
        ExportError: no positive number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ExportError(f"dt_s: {value!r} is no number; give the time step in seconds")
    if not (np.isfinite(value) and value > 0):
        raise ExportError(f"dt_s: {value}, needs a positive number of seconds")
    return float(value)


def as_graph(value: object) -> nir.NIRGraph:
    """Return a NIR graph as it is.

    Raises:
        ExportError: something else.
    """
    if not isinstance(value, nir.NIRGraph):
        raise ExportError(
            f"graph: {type(value).__name__} is no NIRGraph; read one with knarr.export.read"
        )
    return value
