"""Read the parameters of NIR nodes: sizes per axis, numbers in float64, delays in time steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.export.errors import ExportError

Steps = npt.NDArray[np.int64]
STEPS_TOLERANCE = 1e-6
"""Relative rounding allowed in delay / dt, a float64 quotient: 0.003 / 0.001 is 3 but for a rounding."""
MAX_DELAY_STEPS = 100_000


def ints(value: object, n: int = 2) -> tuple[int, ...]:
    """Return a size per axis from one integer or one per axis.

    Raises:
        ExportError: anything else, such as 1.5 or a text.
    """
    array = np.asarray(value)
    # Some exporters write sizes as floats, 2.0 for 2.
    whole = array.dtype.kind in "iu" or (
        array.dtype.kind == "f" and np.array_equal(array, np.rint(array))
    )
    if not whole or array.size not in (1, n) or array.ndim > 1:
        raise ExportError(f"a size or stride of {value!r} is no integer or {n} of them; rewrite it")
    sizes = [int(size) for size in array.reshape(-1)]
    return tuple(sizes * n if len(sizes) < n else sizes)


def float64(value: object) -> npt.NDArray[np.float64]:
    """Return a parameter in float64; a file may hold it in less."""
    return np.asarray(value, dtype=np.float64)


def delay_steps(name: str, node: Any, dt_s: float) -> Steps:
    """Return a Delay in whole time steps, one per element.

    Raises:
        ExportError: a delay that is negative, too long, or no whole number of steps, which NIR leaves open.
    """
    exact = float64(node.delay) / dt_s
    steps = np.rint(exact)
    whole = np.abs(exact - steps) <= STEPS_TOLERANCE * np.maximum(steps, 1)
    # NaN compares false, so a comparison that is negated refuses it.
    bad = ~whole | (steps < 0) | (steps > MAX_DELAY_STEPS)
    if bad.any():
        raise ExportError(
            f"node '{name}': delay {float(np.asarray(node.delay)[bad].flat[0]):g} s is not a whole number of steps of {dt_s:g} s "
            f"in 0..{MAX_DELAY_STEPS}, and NIR does not say how to round it; choose dt so that it divides the delay"
        )
    return steps.astype(np.int64)
