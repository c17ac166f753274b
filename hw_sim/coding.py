"""Data and events as the integers that a chip network's input takes; what does not fit is refused,
never clipped.

`encode` makes integers from data as the network's `InputCoding` says:

    events  integers already, step by step
    graded  round(units * x) at every step, of either sign where the coding is signed
    rate    a spike with probability x at every step, seeded
    direct  round(units * x), the same frame at every step

`check_inputs` is what every engine and counter looks at its inputs with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, IntArray
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import InputCoding, is_integer

SIGNED_CURE = (
    "lower the graph with input_signed=True (--input-signed), or with calibration inputs of both "
    "signs, which does the same; read another tool's .net file with input_bits=2 (--input-bits) or more"
)
MAX_BIAS = 2**15 - 1
"""Lava holds a bias mantissa in int16 and wraps what is larger."""


def encode(
    coding: InputCoding, values: npt.ArrayLike, *, timesteps: int | None = None, seed: int = 0
) -> IntArray:
    """Turn data into inputs of `simulate`.

    Args:
        coding: input coding of the network.
        values: "events": returned as they are. "graded": (samples, timesteps, *shape) floats.
            "rate": (samples, *shape) of 0..1. "direct": (samples, *shape) floats. Integers with a
            time axis are taken as encoded before, whatever the kind.
        timesteps: number of time steps, for "rate" and "direct".
        seed: seed of the random spikes of "rate".

    Returns:
        (samples, timesteps, *shape) integers, of the smallest type that holds them; read them only.

    Raises:
        ChipError: shape, dtype or range do not fit the coding; nothing is clipped.
    """
    array = _with_height(coding.shape, np.asarray(values))
    encoded = array.dtype.kind in "iub" and array.ndim == len(coding.shape) + 2
    if coding.kind == "events" or encoded:
        if encoded and timesteps is not None and array.shape[1] != timesteps:
            raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {array.shape[1]}")
        return array
    timed = coding.kind == "graded"
    first = 2 if timed else 1  # axes before the features
    if array.ndim != first + len(coding.shape) or array.shape[first:] != coding.shape:
        sizes = ", ".join(map(str, coding.shape))
        raise ChipError(
            f"inputs: shape {array.shape}, {coding.kind} coding takes (samples, {'timesteps, ' if timed else ''}{sizes})"
        )
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise ChipError("inputs: they hold something else than finite numbers; repair them")
    if timed:
        return _graded(coding, array)
    if timesteps is None or timesteps < 1:
        raise ChipError(
            f"inputs: {coding.kind} coding of frames without a time axis; say how many timesteps"
        )
    if coding.kind == "rate":
        return _rate(array, timesteps, seed)
    frames = _graded(coding, array)
    # A view: the same frame at every step is in memory once.
    return np.broadcast_to(frames[:, None], (len(frames), timesteps, *coding.shape))


def takes_sign(
    asked: bool | None, kind: str, bits: int, values: npt.ArrayLike | None = None
) -> bool:
    """Tell whether an input has a sign (`InputCoding.signed`) where nobody may have said so.

    A payload goes as it is whatever its sign, so that more than one bit has one; a single bit has
    one where the data do, since Lava would make a spike of a -1 that it takes for a bit.

    Args:
        asked: what the user said, None where nothing.
        kind, bits: of the `InputCoding`; a rate's spikes have no sign.
        values: data as `encode` takes them, or None.
    """
    if asked is not None:
        return asked
    return kind != "rate" and (bits != 1 or _has_negative(values))


def _has_negative(values: npt.ArrayLike | None) -> bool:
    try:
        array = np.asarray(0 if values is None else values)
    except (ValueError, TypeError, RuntimeError):
        return False  # no array: `check_inputs` says why
    return array.dtype.kind in "if" and array.size > 0 and bool(np.nanmin(array) < 0)


def _rate(array: Array, timesteps: int, seed: int) -> IntArray:
    if array.size and not 0 <= array.min() <= array.max() <= 1:
        raise ChipError(
            f"inputs: values {array.min():g}..{array.max():g}, a rate lies in 0..1; scale them"
        )
    rng = np.random.default_rng(seed)
    spikes = np.empty((len(array), timesteps, *array.shape[1:]), dtype=np.uint8)
    # One at a time: what is drawn takes eight times as much as the spikes.
    for sample, rates in zip(spikes, array, strict=True):
        sample[...] = rng.random(sample.shape) < rates
    return spikes


def _graded(coding: InputCoding, array: Array) -> IntArray:
    integers = np.rint(coding.units * array).astype(np.int64)
    lowest, highest = coding.limits
    # Before the cast to the small type, which would wrap.
    if array.size and not lowest <= integers.min() <= integers.max() <= highest:
        cure = "scale them or lower the graph with other units"
        if integers.min() < 0 and not coding.signed:
            cure = SIGNED_CURE
        raise ChipError(
            f"inputs: values {array.min():g}..{array.max():g} times {coding.units:g} units pass "
            f"{lowest}..{highest}; {cure}"
        )
    return integers.astype(coding.dtype)


def check_count(name: str, value: object) -> None:
    """Refuse an option that is neither None nor a whole number from 1.

    Raises:
        ChipError: it is not; names the option.
    """
    if value is not None and not (is_integer(value) and value >= 1):
        raise ChipError(f"{name}: {value!r}, needs a whole number from 1")


def check_inputs(
    coding: InputCoding, inputs: npt.ArrayLike, timesteps: int | None = None
) -> IntArray:
    """Return inputs as integers with a time axis, or refuse what does not fit.

    Args:
        coding: input coding of the network.
        inputs: (samples, timesteps, *coding.shape) whole numbers of any type, or booleans, within
            the input coding's range; (channels, length) signals may leave out the height of 1. Where the input layer
            has neurons: their bias mantissas, and without a time axis the same ones at every step.
        timesteps: number of time steps; needed without a time axis, and must equal it otherwise.

    Returns:
        (samples, timesteps, *coding.shape) of the same dtype, booleans as uint8, floats as int32;
        not a copy where it need not be, read it only.

    Raises:
        ChipError: wrong dtype, shape, range or number of steps. Floats are never truncated, counts
            never clipped to spikes.
    """
    try:
        array = np.asarray(inputs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ChipError(
            f"inputs: not one array ({error}); give (samples, timesteps, ...) of equal length"
        ) from error
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    elif array.dtype.kind == "f":
        array = _whole(array)
    elif array.dtype.kind not in "iu":
        raise ChipError(f"inputs: dtype {array.dtype}, the chip takes integers; give numbers")
    check_count("timesteps", timesteps)
    shape = coding.shape
    driven = coding.neuron is not None
    # Driven inputs of four axes may be images without time: no height is made up for them.
    if not driven and array.ndim == 4:
        array = _with_height(shape, array)
    if driven and array.ndim == 1 + len(shape) and array.shape[1:] == shape:
        if timesteps is None:
            raise ChipError("inputs: bias without a time axis; say how many timesteps")
        array = np.broadcast_to(array[:, None], (len(array), timesteps, *shape))
    if timesteps is not None and array.ndim == 2 + len(shape) and timesteps != array.shape[1]:
        raise ChipError(f"timesteps: {timesteps} asked for, the inputs have {array.shape[1]}")
    if array.ndim != 2 + len(shape) or array.shape[2:] != shape:
        raise ChipError(
            f"inputs: shape {array.shape}, needs (samples, timesteps, {', '.join(map(str, shape))}){_axis_cure(array.shape, shape)}"
        )
    if 0 in array.shape:
        raise ChipError(
            f"inputs: shape {array.shape} holds nothing; give at least one sample and one time step"
        )
    high = int(array.max())
    # Twice through all inputs would cost more than a small network on them, and nothing unsigned is
    # below 0.
    least, most = coding.limits
    low = 0 if array.dtype.kind == "u" and high <= most else int(array.min())
    if driven:
        if max(-low, high) > MAX_BIAS:
            raise ChipError(
                f"inputs: bias mantissas {low}..{high}, allowed +-{MAX_BIAS}; scale them down"
            )
    elif low < least or high > most:
        cure = "clip counts to spikes or lower the graph with more input_bits"
        if low < 0 and not coding.signed and coding.kind != "rate":
            cure = SIGNED_CURE
        raise ChipError(
            f"inputs: values {low}..{high}, {coding.bits}-bit input takes {least}..{most}; {cure}"
        )
    return array


def _whole(array: Array) -> IntArray:
    """Return floats as integers: what they are is said by their values, as tools save spikes.

    Raises:
        ChipError: one has a fraction, or is too large or not finite.
    """
    # A comparison with NaN is false, so that it counts as odd.
    whole = (array == np.rint(array)) & (np.abs(array) < 2.0**31)
    if not whole.all():
        odd = array[~whole].flat[0]
        raise ChipError(
            f"inputs: {odd:g} among {array.dtype}, the chip takes integers; encode floats as spikes "
            "or integers first"
        )
    return array.astype(np.int32)


def _axis_cure(given: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return what to do about inputs that lack the axis of time, or have an axis of 1 too many."""
    if given[1:] == shape:
        return "; there is no time axis: save numpy.repeat(inputs[:, None], steps, axis=1)"
    for axis, size in enumerate(given):
        rest = given[:axis] + given[axis + 1 :]
        if size == 1 and len(rest) == 2 + len(shape) and rest[2:] == shape:
            return f"; axis {axis} is one too many: save numpy.squeeze(inputs, {axis})"
    return ""


def _with_height(shape: tuple[int, ...], array: Array) -> Array:
    """Return signals (..., channels, length) as images one pixel high where `shape` asks for it."""
    signal = len(shape) == 3 and shape[1] == 1 and array.ndim in (3, 4)
    # An image of one pixel's height has the same three axes at the end: it stays.
    if signal and array.shape[-3:] != shape and array.shape[-2:] == (shape[0], shape[2]):
        return array[..., None, :]
    return array
