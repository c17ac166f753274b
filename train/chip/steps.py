"""The same steps as `kernels`, written in torch: for devices, and to be read beside `knarr.hw_sim.arithmetic.step`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.train.chip.limits import UNIT
from knarr.train.chip.registers import Registers
from knarr.train.networks.neurons import slope


def advance(
    registers: Registers,
    sums: torch.Tensor,
    bias: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor],
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    steps: range,
) -> None:
    """See `kernels.advance`; state is (u, v), into is (spikes, peaks, currents), both written."""
    u, v = state
    spikes, peaks, currents = into
    for t in steps:
        new = torch.trunc(u * registers.keep_u) + sums[:, t].double() * UNIT
        new = torch.where(new > STATE_MAX, new - 2 * STATE_MAX, new)
        new = torch.where(new <= -STATE_MAX, new + 2 * STATE_MAX, new)
        peak = (torch.trunc(v * registers.keep_v) + new + bias).clamp(
            -(STATE_MAX - 1), STATE_MAX - 1
        )
        fired = peak > registers.threshold
        u.copy_(new)
        v.copy_(peak.masked_fill(fired, 0))
        spikes[:, t], peaks[:, t] = fired, peak
        if currents.numel():
            currents[:, t] = new


@dataclass
class StepGradients:
    """Gradients on their way back: of u and v after a step, (samples, features), and of what all steps share.

    Args:
        u, v: moved back. bias: (parts, features) float64. threshold: the same, times -height.
        keep_u, keep_v: the same of the shares that states keep, or without elements.
    """

    u: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    keep_u: torch.Tensor
    keep_v: torch.Tensor


def retrace(
    registers: Registers,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    met: tuple[torch.Tensor, torch.Tensor],
    pulls: StepGradients,
    of_sums: torch.Tensor,
    steps: range,
) -> None:
    """See `kernels.retrace`; given are gradients of (spikes, peaks, currents), met are (peaks, currents)."""
    of_spikes, of_peaks, of_currents = given
    peaks, currents = met
    surrogate = registers.surrogate
    for t in reversed(steps):
        p = peaks[:, t].to(of_sums.dtype)
        over = (p - registers.threshold) / registers.height
        fired = p > registers.threshold
        total = of_spikes[:, t] if surrogate.detach_reset else of_spikes[:, t] - pulls.v * p
        pull = total * slope(over, surrogate.kind, surrogate.width) / registers.height
        into_v = pull + pulls.v.masked_fill(fired, 0)
        if of_peaks.numel():
            into_v = into_v + of_peaks[:, t]
        into_u = pulls.u + into_v
        if of_currents.numel():
            into_u = into_u + of_currents[:, t]
        pulls.bias[0] += into_v.double().sum(0)
        pulls.threshold[0] += (pull * p).double().sum(0)
        if t and pulls.keep_v.numel():
            before = peaks[:, t - 1]
            pulls.keep_v[0] += (
                (into_v * before.masked_fill(before > registers.threshold, 0)).double().sum(0)
            )
        if t and pulls.keep_u.numel():
            pulls.keep_u[0] += (into_u * currents[:, t - 1]).double().sum(0)
        of_sums[:, t] = UNIT * into_u
        pulls.u.copy_(registers.keep_u * into_u)
        pulls.v.copy_(registers.keep_v * into_v)
