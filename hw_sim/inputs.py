"""Inputs of a chip network, checked: what does not fit is refused, never truncated or clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.coding import with_height
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import InputCoding

Integers = npt.NDArray[np.integer[Any]]

MAX_BIAS = 2**15 - 1
"""Lava holds a bias mantissa in int16 and wraps what is larger."""


def check_inputs(coding: InputCoding, inputs: npt.ArrayLike, timesteps: int | None = None) -> Integers:
    """Inputs as integers with a time axis, or an error that says what does not fit.

    Args:
        coding: of the network's input.
        inputs: (samples, timesteps, *coding.shape) integers or booleans within the input coding's range; (channels,
            length) signals may leave out the height of 1. Where the input layer has neurons: their bias mantissas, and
            without a time axis the same ones at every step.
        timesteps: how many steps; needed without a time axis, and must equal it otherwise.

    Returns:
        (samples, timesteps, *coding.shape) of the same dtype, booleans as uint8; not a copy, read it only.

    Raises:
        ChipError: wrong dtype, shape, range or number of steps. Floats are never truncated, counts never clipped to spikes.
    """
    try:
        array = np.asarray(inputs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ChipError(
            f"inputs: not one array ({error}); give (samples, timesteps, ...) of equal length"
        ) from error
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    elif array.dtype.kind not in "iu":
        raise ChipError(
            f"inputs: dtype {array.dtype}, the chip takes integers; encode floats as spikes or integers first"
        )
    if timesteps is not None and (
        isinstance(timesteps, bool) or not isinstance(timesteps, (int, np.integer)) or timesteps < 1
    ):
        raise ChipError(f"timesteps: {timesteps!r}, needs a whole number from 1")
    shape = coding.shape
    driven = coding.neuron is not None
    if not driven and array.ndim == 4:
        array = with_height(shape, array)
    if driven and array.ndim == 1 + len(shape) and array.shape[1:] == shape:
        if timesteps is None:
            raise ChipError("inputs: bias without a time axis; say how many timesteps")
        array = np.broadcast_to(array[:, None], (len(array), timesteps, *shape))
    if timesteps is not None and array.ndim == 2 + len(shape) and timesteps != array.shape[1]:
        raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {array.shape[1]}")
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
        raise ChipError(
            f"inputs: shape {array.shape}, needs (samples, timesteps, {', '.join(map(str, shape))})"
        )
    if 0 in array.shape:
        raise ChipError(
            f"inputs: shape {array.shape} holds nothing; give at least one sample and one time step"
        )
    high = int(array.max())
    # Twice through all inputs would cost more than a small network on them, and nothing unsigned is below 0.
    low = 0 if array.dtype.kind == "u" and high < 2**coding.bits else int(array.min())
    if driven:
        if max(-low, high) > MAX_BIAS:
            raise ChipError(f"inputs: bias mantissas {low}..{high}, allowed +-{MAX_BIAS}; scale them down")
    elif low < 0 or high >= 2**coding.bits:
        raise ChipError(
            f"inputs: values {low}..{high}, {coding.bits}-bit input takes 0..{2**coding.bits - 1}; "
            "clip counts to spikes or lower the graph with more input_bits"
        )
    return array
