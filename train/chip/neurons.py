"""A layer's neurons as one function of autograd, and the integers of their registers."""

from __future__ import annotations

from typing import Any

import torch

from knarr.hw_sim.layers import DECAY_UNITY
from knarr.train.chip.arithmetic import Steps, run, run_back
from knarr.train.chip.limits import UNIT
from knarr.train.chip.registers import Registers, Surrogate
from knarr.train.chip.synapse import exact_floats

__all__ = ["Surrogate", "cuba"]


class _Cuba(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sums: torch.Tensor,
        bias: torch.Tensor,
        threshold: torch.Tensor,
        i_decay: torch.Tensor,
        v_decay: torch.Tensor,
        back: torch.Tensor | None,
        options: tuple[Surrogate, bool, bool],
    ) -> tuple[torch.Tensor, ...]:
        surrogate, keep_currents, compiled = options
        registers = Registers(int(i_decay), int(v_decay), int(threshold), surrogate)
        weight = None if back is None else back.to(sums.dtype)
        with exact_floats(sums.device):
            ran = run(
                registers,
                sums.contiguous(),
                UNIT * bias.double(),
                weight,
                keep_currents=keep_currents,
                compiled=compiled,
            )
        ctx.registers, ctx.compiled = registers, compiled
        ctx.types = (
            bias.dtype,
            threshold.dtype,
            i_decay.dtype,
            v_decay.dtype,
            None if back is None else back.dtype,
        )
        # Sums are needed no more, and without recurrence neither are spikes: peaks tell.
        ctx.save_for_backward(ran.spikes, ran.peaks, ran.currents, weight)
        ctx.set_materialize_grads(False)
        return ran.spikes, ran.peaks, ran.currents, sums.new_zeros(0) if back is None else ran.arrived

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        spikes, peaks, currents, weight = ctx.saved_tensors
        none = spikes.new_zeros((0, 0, 0))
        of_spikes, of_peaks, of_currents, of_arrived = (
            none if gradient is None or not gradient.numel() else gradient.to(spikes.dtype).contiguous()
            for gradient in gradients
        )
        if not of_spikes.numel():
            of_spikes = torch.zeros_like(spikes)
        found = run_back(
            ctx.registers,
            Steps(spikes, peaks, currents, none),
            (of_spikes, of_peaks, of_currents, of_arrived),
            weight,
            decays=ctx.needs_input_grad[3] or ctx.needs_input_grad[4],
            compiled=ctx.compiled,
        )
        bias, threshold, i_decay, v_decay, back = ctx.types
        return (
            found.sums,
            (UNIT * found.bias).to(bias),
            (UNIT * found.threshold).to(threshold),
            (-found.keep_u / DECAY_UNITY).to(i_decay),
            (-found.keep_v / DECAY_UNITY).to(v_decay),
            None if found.back is None else found.back.to(back),
            None,
        )


def cuba(
    sums: torch.Tensor,
    bias: torch.Tensor,
    threshold: torch.Tensor,
    decays: tuple[torch.Tensor, torch.Tensor],
    surrogate: Surrogate,
    *,
    back: torch.Tensor | None = None,
    keep_currents: bool = False,
    compiled: bool | None = None,
) -> Steps:
    """CUBA neurons from rest through all steps: the chip's integers forward, surrogate gradients back.

    Args:
        sums: (B, T, features) integers as floats, of which a sum with what comes back is exact too.
        bias: (features,) mantissas.
        threshold: 0-d mantissa.
        decays: 0-d registers of current and voltage, 0..4096.
        surrogate: the gradient of spikes.
        back: (features, features) integer weights of spikes that come back a step later, or None.
        keep_currents: whether u is wanted; a decay of the current learns from it.
        compiled: whether numba runs it, where the sums are on the CPU; there by default.

    Returns:
        Gradients flow from spikes, peaks, currents and what arrived to everything that came in.
    """
    on_cpu = sums.device.type == "cpu"
    options = (surrogate, keep_currents, on_cpu if compiled is None else compiled and on_cpu)
    spikes, peaks, currents, arrived = _Cuba.apply(sums, bias, threshold, *decays, back, options)  # type: ignore[no-untyped-call]
    return Steps(spikes, peaks, currents, sums if back is None else arrived)
