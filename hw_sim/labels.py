"""Labels of samples: read by their values, and refused alike by whatever takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.errors import ChipError

MOST_CLASSES = 2**31
"""Larger numbers are no classes, and floats do not hold all of them."""


def check_labels(labels: npt.ArrayLike, samples: int, classes: int | None = None) -> Int64:
    """Return the class of each sample.

    Args:
        labels: (samples,) whole numbers from 0, of any type: 3.0 is 3, and True is 1.
        samples: number of samples that they belong to.
        classes: number of classes that the network tells apart; None leaves that to whoever knows.

    Raises:
        ChipError: another shape (one-hot rows say how to turn them), numbers with a fraction, not
            finite or below 0, or a class that the network does not have, such as 10 of 1..10.
    """
    try:
        array: Any = np.asarray(labels)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ChipError(f"labels: not one array ({error}); give one class per sample") from error
    if array.dtype.kind not in "biuf":
        raise ChipError(f"labels: of type {array.dtype}; number the classes 0, 1, 2, ...")
    if array.ndim == 2 and array.shape[0] == samples and is_one_hot(array):
        raise ChipError(
            f"labels: shape {array.shape} of one 1 in each row; save numpy.argmax(labels, axis=1)"
        )
    if array.shape != (samples,):
        raise ChipError(
            f"labels: shape {array.shape} for {samples} samples; give one class for each, ({samples},)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ChipError("labels: they hold NaN or infinity; give every sample its class")
    whole = np.rint(array) if array.dtype.kind == "f" else array
    if not np.array_equal(whole, array):
        odd = array[array != whole].flat[0]
        raise ChipError(f"labels: {odd:g} is no class; number the classes 0, 1, 2, ...")
    low, high = (int(whole.min()), int(whole.max())) if samples else (0, 0)
    if low < 0 or high >= MOST_CLASSES:
        raise ChipError(f"labels: {low}..{high}; number the classes 0, 1, 2, ...")
    if classes is not None and high >= classes:
        cure = "give those of this network"
        if low >= 1 and high == classes:
            cure = "they begin at 1, subtract 1"
        raise ChipError(f"labels: {low}..{high}, the network has classes 0..{classes - 1}; {cure}")
    return np.asarray(whole, dtype=np.int64)


def is_one_hot(array: Any) -> bool:
    """Tell whether the rows of an array each hold one 1 and zeros: classes, written another way."""
    if array.ndim != 2 or array.shape[1] < 2:
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all())
