"""CUBA neurons for many steps at once, and sums of few events, compiled by numba for the CPU.

Neurons are `arithmetic.step` in float64, which holds every product exactly: states stay below 2**41
and the share they keep has 12 bits, so nothing is rounded and truncating is the chip's rounding
toward zero. The torch engine and training (`knarr.train.chip`) run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

AT_ONCE = 512
"""Neurons whose states stay in the first cache while time runs."""


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function to machine code, kept between processes where a folder can be written."""
    # numpy's error model: with Python's, the check for a division by zero keeps loops from becoming
    # vectors.
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def advance(
    sums: Any,
    unit: float,
    bias: Any,
    keep_u: Any,
    keep_v: Any,
    threshold: Any,
    u: Any,
    v: Any,
    spikes: Any,
    counts: Any,
    peaks: Any,
    currents: Any,
    voltages: Any,
    begin: int,
    end: int,
    first: int,
    last: int,
) -> None:
    """Run steps begin..end of neurons first..last of every sample.

    What is "or empty" below is written where the array has elements.

    Args:
        sums: (samples, timesteps, features) integers as floats.
        unit: what a sum is worth in u.
        bias: (features,) float64 in units of v.
        keep_u, keep_v: (features,) float64, 1 - decay / 4096, the shares that states keep.
        threshold: (features,) float64 in units of v.
        u, v: (samples, features) float64, moved on.
        spikes: (samples, timesteps, features), written.
        counts: (samples, timesteps) int64 that spikes are added to, or empty.
        peaks: (samples, timesteps, features) float32, v before its reset, or empty.
        currents, voltages: (samples, timesteps, features), u and v after the step, or empty.
    """
    unwanted = np.empty(AT_ONCE, dtype=np.float32)
    for s in range(len(sums)):
        for start in range(first, last, AT_ONCE):
            stop = min(start + AT_ONCE, last)
            n = stop - start
            # Slices with a unit stride, without which the loop below does not become vectors.
            b = bias[start:stop]
            ku, kv, th = keep_u[start:stop], keep_v[start:stop], threshold[start:stop]
            uu, vv = u[s, start:stop], v[s, start:stop]
            for t in range(begin, end):
                a = sums[s, t, start:stop]
                z = spikes[s, t, start:stop]
                # A store into the first cache costs less than a branch for every neuron.
                p = peaks[s, t, start:stop] if peaks.size else unwanted[:n]
                fires = 0
                for i in range(n):
                    x = np.trunc(uu[i] * ku[i]) + a[i] * unit
                    # One wrap past 2**23, as `arithmetic.wrap_current`.
                    x = x - 16777216.0 if x > 8388608.0 else x
                    x = x + 16777216.0 if x <= -8388608.0 else x
                    y = np.trunc(vv[i] * kv[i]) + x + b[i]
                    y = min(max(y, -8388607.0), 8388607.0)
                    fired = y > th[i]
                    uu[i] = x
                    vv[i] = 0.0 if fired else y
                    z[i] = fired
                    p[i] = y
                    fires += fired
                if counts.size:
                    counts[s, t] += fires
                if currents.size:
                    currents[s, t, start:stop] = uu
                if voltages.size:
                    voltages[s, t, start:stop] = vv


@compiled
def add_rows(
    x: Any,
    weight: Any,
    sums: Any,
    first: int,
    last: int,
) -> None:
    """Compute sums of frames first..last, event by event, four rows of weights at a time.

    Args:
        x: (frames, features) counts.
        weight: (features, outputs) floats.
        sums: (frames, outputs) of the same type, written.
    """
    features, outputs = weight.shape
    events = np.empty(features + 1, dtype=np.int64)
    for frame in range(first, last):
        n = 0
        # Without a branch, which would be guessed wrong at every event: silent inputs are written
        # over.
        for i in range(features):
            events[n] = i
            n += x[frame, i] != 0
        to = sums[frame]
        to[:] = 0
        at = 0
        # Four rows for one load and store of the sums, which are the bottleneck.
        while at + 4 <= n:
            a, b = events[at], events[at + 1]
            c, d = events[at + 2], events[at + 3]
            fa, fb = weight[a], weight[b]
            fc, fd = weight[c], weight[d]
            wa = weight.dtype.type(x[frame, a])
            wb = weight.dtype.type(x[frame, b])
            wc = weight.dtype.type(x[frame, c])
            wd = weight.dtype.type(x[frame, d])
            for j in range(outputs):
                to[j] += (fa[j] * wa + fb[j] * wb) + (fc[j] * wc + fd[j] * wd)
            at += 4
        for i in range(at, n):
            e = events[i]
            fe, we = weight[e], weight.dtype.type(x[frame, e])
            for j in range(outputs):
                to[j] += fe[j] * we
