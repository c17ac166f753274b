"""Parts of the torch engine: neurons through time, on the CPU by numba and on a device by torch, and sums of few events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.layers import DECAY_UNITY, Neuron

if TYPE_CHECKING:
    import torch


@dataclass
class State:
    """u and v of (samples, features), float64 on the CPU, int32 on a device."""

    u: Any
    v: Any


def neurons_on_cpu(
    neuron: Neuron,
    unit: int,
    bias: npt.NDArray[np.float64],
    sums: torch.Tensor,
    state: State,
    into: list[torch.Tensor],
    threads: int,
) -> npt.NDArray[np.int64]:
    """All steps of a block, features divided among threads.

    Args:
        neuron: the registers.
        unit: what sums were divided by.
        bias: (features,) in units of v.
        sums: (samples, timesteps, features) floats that hold integers.
        state: moved on.
        into: spikes, and u and v where they are wanted, all (samples, timesteps, features); written.
        threads: at most so many.

    Returns:
        (samples, timesteps) spikes.
    """
    from knarr.hw_sim.numba_kernels import integrate

    none = np.zeros((0, 0, 0), dtype=np.int32)
    u, v = (array.numpy() for array in into[1:]) if len(into) > 1 else (none, none)
    arrays, features = sums.contiguous().numpy(), sums.shape[2]

    def part(first: int, last: int) -> npt.NDArray[np.int64]:
        counts = np.zeros(arrays.shape[:2], dtype=np.int64)
        integrate(
            arrays, 64.0 * unit, bias, 1 - neuron.i_decay / DECAY_UNITY, 1 - neuron.v_decay / DECAY_UNITY,
            64.0 * neuron.vth_int, state.u, state.v, into[0].numpy(), counts, u, v, first, last,
        )  # fmt: skip
        return counts

    return np.sum(_shared(part, features, threads), axis=0)


def sums_of_rows(rows: npt.NDArray[Any], frames: torch.Tensor, threads: int) -> torch.Tensor:
    """(frames, features) counts times (features, outputs) weights, event by event; (frames, outputs)."""
    import torch

    from knarr.hw_sim.numba_kernels import add_rows

    x = frames.contiguous().numpy()
    sums = np.empty((len(x), rows.shape[1]), dtype=rows.dtype)
    _shared(lambda first, last: add_rows(x, rows, sums, first, last), len(x), threads)
    return torch.from_numpy(sums)


def _shared(part: Callable[[int, int], Any], n: int, threads: int) -> list[Any]:
    """`part` of first..last, by several threads where that pays."""
    threads = min(threads, max(1, n // 32))
    if threads == 1:
        return [part(0, n)]
    bounds = np.linspace(0, n, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, bounds[:-1].tolist(), bounds[1:].tolist()))


def neurons_on_device(
    neuron: Neuron,
    unit: int,
    bias: npt.NDArray[np.float64],
    sums: torch.Tensor,
    state: State,
    into: list[torch.Tensor],
    threads: int,
) -> npt.NDArray[np.int64]:
    """`arithmetic.step` in int32; decays in two parts, since 23 bits times 13 do not fit."""
    import torch

    driven = torch.tensor(bias, dtype=torch.int32, device=sums.device)
    threshold = 64 * neuron.vth_int

    def decay(x: torch.Tensor, register: int) -> torch.Tensor:
        keep, m = DECAY_UNITY - register, x.abs()
        return x.sign() * ((m >> 12) * keep + (((m & 4095) * keep) >> 12))

    for t in range(sums.shape[1]):
        u = decay(state.u, neuron.i_decay) + sums[:, t].to(torch.int32) * (64 * unit)
        u = torch.where(u > STATE_MAX, u - 2 * STATE_MAX, torch.where(u <= -STATE_MAX, u + 2 * STATE_MAX, u))
        v = (decay(state.v, neuron.v_decay) + u + driven).clamp(-(STATE_MAX - 1), STATE_MAX - 1)
        fired = v > threshold
        state.u, state.v = u, v.masked_fill(fired, 0)
        into[0][:, t] = fired
        for array, values in zip(into[1:], (state.u, state.v), strict=False):
            array[:, t] = values
    return into[0].sum(dim=2, dtype=torch.int64).cpu().numpy()
