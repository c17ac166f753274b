"""CUBA neurons for many steps at once, compiled by numba: `arithmetic.step` in float64, which holds every product exactly.

States are below 2**24 and a decay has 13 bits, so nothing is rounded and truncating is the chip's rounding toward zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

AT_ONCE = 1024
"""Neurons whose states stay in the first cache while time runs."""


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    # numpy's error model: with Python's, the check for a division by zero keeps loops from becoming vectors.
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def integrate(
    sums: Any, unit: float, bias: Any, keep_u: float, keep_v: float, threshold: float, u: Any, v: Any, spikes: Any, counts: Any, us: Any, vs: Any
) -> None:  # fmt: skip
    """All steps of neurons.

    Args:
        sums: (samples, timesteps, features) floats.
        unit: what a sum is worth in u.
        bias: (features,) in units of v.
        keep_u, keep_v: 1 - decay / 4096.
        threshold: in units of v.
        u, v: (samples, features) float64, moved on.
        spikes: (samples, timesteps, features) uint8, written.
        counts: (samples, timesteps) int64, spikes are added to.
        us, vs: the same int32 of states, or without elements.
    """
    samples, steps, features = sums.shape
    for s in range(samples):
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            b, uu, vv = bias[start:stop], u[s, start:stop], v[s, start:stop]
            for t in range(steps):
                a, z = sums[s, t, start:stop], spikes[s, t, start:stop]
                for i in range(stop - start):
                    x = np.trunc(uu[i] * keep_u) + a[i] * unit
                    x = x - 16777216.0 if x > 8388608.0 else x
                    x = x + 16777216.0 if x <= -8388608.0 else x
                    y = np.trunc(vv[i] * keep_v) + x + b[i]
                    y = min(max(y, -8388607.0), 8388607.0)
                    fired = y > threshold
                    uu[i] = x
                    vv[i] = 0.0 if fired else y
                    z[i] = fired
                fires = 0
                for i in range(stop - start):
                    fires += z[i]
                counts[s, t] += fires
                if us.size:
                    for i in range(stop - start):
                        us[s, t, start + i] = uu[i]
                        vs[s, t, start + i] = vv[i]
