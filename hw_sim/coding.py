"""Data into the integers that a chip network's input takes, as its `InputCoding` says.

events  integers already, step by step
graded  round(units * x) at every step
rate    a spike with probability x at every step, seeded
direct  round(units * x), the same frame at every step
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import InputCoding


def with_height(shape: tuple[int, ...], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Signals (..., channels, length) as images one pixel high, where that is what `shape` asks for."""
    short = len(shape) == 3 and shape[1] == 1 and array.ndim in (3, 4)
    if short and array.shape[-3:] != shape and array.shape[array.ndim - 2 :] == (shape[0], shape[2]):
        return array[..., None, :]
    return array


def encode(
    coding: InputCoding, values: npt.ArrayLike, *, timesteps: int | None = None, seed: int = 0
) -> npt.NDArray[np.integer[Any]]:
    """Inputs of `simulate` from data.

    Args:
        coding: of the network.
        values: "events": returned as they are. "graded": (samples, timesteps, *shape) floats. "rate": (samples, *shape) of 0..1.
            "direct": (samples, *shape) floats. Integers with a time axis are taken as encoded before, whatever the kind.
        timesteps: how many, for "rate" and "direct".
        seed: of the random spikes of "rate".

    Returns:
        (samples, timesteps, *shape) integers, of the smallest type that holds them; read them only.

    Raises:
        ChipError: shape, dtype or range do not fit the coding; nothing is clipped.
    """
    array = with_height(coding.shape, np.asarray(values))
    encoded = array.dtype.kind in "iub" and array.ndim == len(coding.shape) + 2
    if coding.kind == "events" or encoded:
        if encoded and timesteps is not None and array.shape[1] != timesteps:
            raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {array.shape[1]}")
        return array
    timed = coding.kind == "graded"
    if array.ndim != len(coding.shape) + 1 + timed or array.shape[1 + timed :] != coding.shape:
        sizes = ", ".join(map(str, coding.shape))
        raise ChipError(
            f"inputs: shape {array.shape}, {coding.kind} coding takes (samples, {'timesteps, ' if timed else ''}{sizes})"
        )
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise ChipError("inputs: they hold something else than finite numbers; repair them")
    if not timed and (timesteps is None or timesteps < 1):
        raise ChipError(f"inputs: {coding.kind} coding of frames without a time axis; say how many timesteps")
    if coding.kind == "rate":
        if array.size and not 0 <= array.min() <= array.max() <= 1:
            raise ChipError(
                f"inputs: values {array.min():g}..{array.max():g}, a rate lies in 0..1; scale them"
            )
        assert timesteps is not None
        rng = np.random.default_rng(seed)
        spikes = np.empty((len(array), timesteps, *coding.shape), dtype=np.uint8)
        # One at a time: what is drawn takes eight times as much as the spikes.
        for sample, rates in zip(spikes, array, strict=True):
            sample[...] = rng.random(sample.shape) < rates
        return spikes
    integers = np.rint(coding.units * array).astype(np.int64)
    highest = 2**coding.bits - 1
    if array.size and not 0 <= integers.min() <= integers.max() <= highest:
        raise ChipError(
            f"inputs: values {array.min():g}..{array.max():g} times {coding.units:g} units pass 0..{highest}; scale them or lower "
            "the graph with other units"
        )
    small = integers.astype(coding.dtype)
    # The same frame at every step is there once.
    return small if timed else np.broadcast_to(small[:, None], (len(small), timesteps or 1, *small.shape[1:]))
