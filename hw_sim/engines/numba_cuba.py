"""What the torch engine leaves to numba on the CPU: CUBA neurons for many steps at once, and sums of few events.

Neurons are `arithmetic.step` in float64, which holds every product exactly: states are below 2**24 and a decay has 13 bits, so
nothing is rounded and truncating is the chip's rounding toward zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

AT_ONCE = 1024
"""Neurons whose states stay in the first cache while time runs."""


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Machine code of a function, kept between processes where a folder can be written."""
    # numpy's error model: with Python's, the check for a division by zero keeps loops from becoming vectors.
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def integrate(
    sums: Any, unit: float, bias: Any, keep_u: float, keep_v: float, threshold: float, u: Any, v: Any, spikes: Any, counts: Any, us: Any, vs: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """All steps of neurons first..last of every sample.

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
    samples, steps, _ = sums.shape
    for s in range(samples):
        for start in range(first, last, AT_ONCE):
            stop = min(start + AT_ONCE, last)
            b, uu, vv = bias[start:stop], u[s, start:stop], v[s, start:stop]
            for t in range(steps):
                a, z = sums[s, t, start:stop], spikes[s, t, start:stop]
                fires = 0
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
                    fires += fired
                counts[s, t] += fires
                if us.size:
                    for i in range(stop - start):
                        us[s, t, start + i] = uu[i]
                        vs[s, t, start + i] = vv[i]


@compiled
def add_rows(x: Any, weight: Any, sums: Any, first: int, last: int) -> None:
    """Sums of frames first..last, event by event, four rows of weights at a time.

    Args:
        x: (frames, features) counts.
        weight: (features, outputs) floats.
        sums: (frames, outputs) of the same type, written.
    """
    features, outputs = weight.shape
    events = np.empty(features + 1, dtype=np.int64)
    for frame in range(first, last):
        n = 0
        for i in range(features):
            events[n] = i
            n += x[frame, i] != 0
        to = sums[frame]
        to[:] = 0
        at = 0
        while at + 4 <= n:
            a, b, c, d = events[at], events[at + 1], events[at + 2], events[at + 3]
            xa, xb, xc, xd = x[frame, a], x[frame, b], x[frame, c], x[frame, d]
            fa, fb, fc, fd = weight[a], weight[b], weight[c], weight[d]
            wa, wb, wc, wd = (
                weight.dtype.type(xa),
                weight.dtype.type(xb),
                weight.dtype.type(xc),
                weight.dtype.type(xd),
            )
            for j in range(outputs):
                to[j] += (fa[j] * wa + fb[j] * wb) + (fc[j] * wc + fd[j] * wd)
            at += 4
        for i in range(at, n):
            e = events[i]
            fe, we = weight[e], weight.dtype.type(x[frame, e])
            for j in range(outputs):
                to[j] += fe[j] * we
