"""CUBA neurons through time and back, compiled: all steps of a block of neurons while their states stay in the first cache.

Forward is `knarr.hw_sim.arithmetic.step` in float64, which holds every product: states are below 2**41 and a decay has 12 bits,
so truncating is the chip's rounding toward zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from knarr.hw_sim.engines.numba_cuba import compiled

AT_ONCE = 512
"""Neurons of a block."""


@compiled
def advance(
    sums: Any, bias: Any, keep_u: float, keep_v: float, threshold: float, u: Any, v: Any, spikes: Any, peaks: Any, currents: Any, begin: int,
    end: int, first: int, last: int,
) -> None:  # fmt: skip
    """Steps begin..end of samples first..last.

    Args:
        sums: (samples, timesteps, features) integers as floats.
        bias: (features,) float64 in units of v.
        keep_u, keep_v: 1 - decay / 4096.
        threshold: in units of v.
        u, v: (samples, features) float64, moved on.
        spikes: like sums, written.
        peaks: (samples, timesteps, features) float32, written: v before its reset.
        currents: the same in float64 of u, or without elements.
    """
    features = sums.shape[2]
    for s in range(first, last):
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            b, uu, vv = bias[start:stop], u[s, start:stop], v[s, start:stop]
            for t in range(begin, end):
                a, z, p = sums[s, t, start:stop], spikes[s, t, start:stop], peaks[s, t, start:stop]
                for i in range(stop - start):
                    x = np.trunc(uu[i] * keep_u) + a[i] * 64.0
                    x = x - 16777216.0 if x > 8388608.0 else x
                    x = x + 16777216.0 if x <= -8388608.0 else x
                    y = np.trunc(vv[i] * keep_v) + x + b[i]
                    y = min(max(y, -8388607.0), 8388607.0)
                    fired = y > threshold
                    uu[i] = x
                    vv[i] = 0.0 if fired else y
                    z[i] = fired
                    p[i] = y
                if currents.size:
                    for i in range(stop - start):
                        currents[s, t, start + i] = uu[i]


@compiled
def retrace(
    of_spikes: Any, of_peaks: Any, of_currents: Any, peaks: Any, currents: Any, keep_u: float, keep_v: float, threshold: float, height: float,
    width: float, box: bool, reset: float, gu: Any, gv: Any, of_sums: Any, of_bias: Any, of_threshold: Any, of_keep_u: Any,
    of_keep_v: Any, begin: int, end: int, first: int, last: int, part: int,
) -> None:  # fmt: skip
    """Gradients of steps end..begin, backwards, of samples first..last; rounding, wraps and clips let them pass.

    Args:
        of_spikes: (samples, timesteps, features) gradients.
        of_peaks, of_currents: the same, or without elements.
        peaks, currents: from `advance`; currents may be without elements where of_keep_u is.
        keep_u, keep_v, threshold: as `advance` has them.
        height: what distances from the threshold are divided by.
        width, box: of the surrogate, `knarr.train.networks.neurons.slope`.
        reset: 1 where gradients flow through the reset, else 0.
        gu, gv: (samples, features) gradients of u and v after step end - 1, moved back.
        of_sums: like of_spikes, written.
        of_bias, of_threshold: (parts, features) added to at `part`: of the bias in units of v, and of the threshold times -height.
        of_keep_u, of_keep_v: the same of the shares that states keep, or without elements.
    """
    features = of_spikes.shape[2]
    zero, one = of_sums.dtype.type(0), of_sums.dtype.type(1)
    level, inverse = of_sums.dtype.type(threshold), of_sums.dtype.type(1.0 / height)
    half, sharp = of_sums.dtype.type(width / 2), of_sums.dtype.type(np.pi * width / 2)
    wide, through = of_sums.dtype.type(width), of_sums.dtype.type(reset)
    kept_u, kept_v, unit = (
        of_sums.dtype.type(keep_u),
        of_sums.dtype.type(keep_v),
        of_sums.dtype.type(64),
    )
    slopes = np.empty(AT_ONCE, dtype=of_sums.dtype)
    into_v = np.empty(AT_ONCE, dtype=of_sums.dtype)
    into_u = np.empty(AT_ONCE, dtype=of_sums.dtype)
    for s in range(first, last):
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            n = stop - start
            uu, vv = gu[s, start:stop], gv[s, start:stop]
            bb, mm = of_bias[part, start:stop], of_threshold[part, start:stop]
            for t in range(end - 1, begin - 1, -1):
                p, gz, out = (
                    peaks[s, t, start:stop],
                    of_spikes[s, t, start:stop],
                    of_sums[s, t, start:stop],
                )
                if box:
                    for i in range(n):
                        slopes[i] = one if abs((p[i] - level) * inverse) < wide else zero
                else:
                    for i in range(n):
                        x = (p[i] - level) * inverse * sharp
                        slopes[i] = half / (one + x * x)
                if of_peaks.size:
                    for i in range(n):
                        into_v[i] = of_peaks[s, t, start + i]
                else:
                    for i in range(n):
                        into_v[i] = zero
                for i in range(n):
                    after = vv[i]
                    pull = (gz[i] - through * after * p[i]) * slopes[i] * inverse
                    into_v[i] += pull + (zero if p[i] > level else after)
                    mm[i] += pull * p[i]
                if of_currents.size:
                    for i in range(n):
                        uu[i] += of_currents[s, t, start + i]
                for i in range(n):
                    into_u[i] = uu[i] + into_v[i]
                    bb[i] += into_v[i]
                if of_keep_v.size and t > 0:
                    q, kk = peaks[s, t - 1, start:stop], of_keep_v[part, start:stop]
                    for i in range(n):
                        kk[i] += into_v[i] * (zero if q[i] > level else q[i])
                if of_keep_u.size and t > 0:
                    for i in range(n):
                        of_keep_u[part, start + i] += into_u[i] * currents[s, t - 1, start + i]
                for i in range(n):
                    out[i] = unit * into_u[i]
                    uu[i] = kept_u * into_u[i]
                    vv[i] = kept_v * into_v[i]
