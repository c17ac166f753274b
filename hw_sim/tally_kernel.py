"""Sums over spikes in one pass over their bytes: what makes counting cheap beside a fast simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.numba_kernels import compiled

AT_ONCE = 8192
"""Elements whose partial sums stay in 32 bits: 8192 times a fan-out below 2**18."""
MAX_FANOUT = 2**18


@compiled
def add_up(rows: Any, stored: Any, nonzero: Any, table: Any) -> None:
    """table[r] = sums of stored, nonzero and 1 over the spikes of row r.

    Args:
        rows: (frames, features) uint8 of 0 and 1, in one piece.
        stored, nonzero: (features,) int32 below `MAX_FANOUT`.
        table: (frames, 3) int64, written.
    """
    frames, features = rows.shape
    for r in range(frames):
        a, b, n = np.int64(0), np.int64(0), np.int64(0)
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            x, f, g = rows[r, start:stop], stored[start:stop], nonzero[start:stop]
            some, others, many = np.int32(0), np.int32(0), np.int32(0)
            for i in range(stop - start):
                spike = np.int32(x[i])
                some += spike * f[i]
                others += spike * g[i]
                many += spike
            a, b, n = a + some, b + others, n + many
        table[r, 0], table[r, 1], table[r, 2] = a, b, n


@compiled
def sort_and_add(rows: Any, stored: Any, nonzero: Any, table: Any, sort: Any) -> None:
    """`add_up` over what is not 0, and the class of each frame: 0 binary, 1 signed, 2 graded, 3 silent, 4 no number.

    Args:
        rows: (frames, features) float32 or float64, in one piece.
        stored, nonzero, table: as for `add_up`.
        sort: (frames,) int8, written.
    """
    frames, features = rows.shape
    for r in range(frames):
        a, b, n = np.int64(0), np.int64(0), np.int64(0)
        ones, minus, finite = np.int64(0), np.int64(0), True
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            x, f, g = rows[r, start:stop], stored[start:stop], nonzero[start:stop]
            some, others, many = np.int32(0), np.int32(0), np.int32(0)
            up, down, odd = np.int32(0), np.int32(0), np.int32(0)
            for i in range(stop - start):
                event = np.int32(x[i] != 0)
                some += event * f[i]
                others += event * g[i]
                many += event
                up += np.int32(x[i] == 1)
                down += np.int32(x[i] == -1)
                odd += np.int32(not abs(x[i]) < np.inf)
            a, b, n = a + some, b + others, n + many
            ones, minus, finite = ones + up, minus + down, finite and odd == 0
        table[r, 0], table[r, 1], table[r, 2] = a, b, n
        sort[r] = 3 if n == 0 else 0 if ones == n else 1 if ones + minus == n else 2
        if not finite:
            sort[r] = 4


def sums(
    rows: npt.NDArray[np.uint8], stored: npt.NDArray[np.int32], nonzero: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """(frames, 3) of `add_up`."""
    table = np.empty((len(rows), 3), dtype=np.int64)
    add_up(np.ascontiguousarray(rows), stored, nonzero, table)
    return table


def sorted_sums(
    rows: npt.NDArray[np.floating[Any]], stored: npt.NDArray[np.int32], nonzero: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """(frames,) classes and (frames, 3) sums of `sort_and_add`."""
    table, sort = np.empty((len(rows), 3), dtype=np.int64), np.empty(len(rows), dtype=np.int8)
    sort_and_add(np.ascontiguousarray(rows), stored, nonzero, table, sort)
    return sort, table
