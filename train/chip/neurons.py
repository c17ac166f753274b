"""All time steps of a layer's neurons, forward and back: compiled on the CPU, torch elsewhere; recurrent layers step by step.

The gradients are those of v = keep_v v + u + b, u = keep_u u + 64 a, z = [v / threshold - 1 > 0], v = 0 where z: rounding, wraps
and saturation let them pass as they are, so that a state outside its registers can come back.

A layer's neurons as one function of autograd, and the integers of their registers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from knarr.hw_sim.network import DECAY_UNITY
from knarr.train.chip import kernels, steps
from knarr.train.chip.limits import UNIT
from knarr.train.chip.registers import Registers, Surrogate
from knarr.train.chip.steps import StepGradients
from knarr.train.chip.synapse import exact_floats


@dataclass(frozen=True)
class Steps:
    """What a layer's neurons did, each (B, T, features).

    Args:
        spikes: 0 or 1, like the sums.
        peaks: v before its reset, float32, which holds it.
        currents: u in float64, or without elements.
        arrived: sums with what came back; the sums themselves without recurrence.
    """

    spikes: torch.Tensor
    peaks: torch.Tensor
    currents: torch.Tensor
    arrived: torch.Tensor


def run(
    registers: Registers,
    sums: torch.Tensor,
    bias: torch.Tensor,
    back: torch.Tensor | None,
    *,
    keep_currents: bool,
    compiled: bool,
) -> Steps:
    """Forward, exact.

    Args:
        registers: of the layer.
        sums: (B, T, features) contiguous integers as floats.
        bias: (features,) float64 in units of v.
        back: (features, features) integer weights, in the type of the sums, of spikes that come back a step later, or None.
        keep_currents: whether u is wanted.
        compiled: by `kernels`, on the CPU alone; else by `steps`.
    """
    samples, timesteps, features = sums.shape
    u, v = (sums.new_zeros((samples, features), dtype=torch.float64) for _ in range(2))
    spikes = torch.empty_like(sums)
    peaks = sums.new_empty(sums.shape, dtype=torch.float32)
    currents = sums.new_empty(sums.shape if keep_currents else (0, 0, 0), dtype=torch.float64)
    if back is None:
        _advance(
            registers, sums, bias, (u, v), (spikes, peaks, currents), range(timesteps), compiled
        )
        return Steps(spikes, peaks, currents, sums)
    arrived = sums.clone()
    for t in range(timesteps):
        if t:
            arrived[:, t] += spikes[:, t - 1] @ back.T
        _advance(
            registers, arrived, bias, (u, v), (spikes, peaks, currents), range(t, t + 1), compiled
        )
    return Steps(spikes, peaks, currents, arrived)


@dataclass(frozen=True)
class Gradients:
    """Of sums (B, T, features), back (features, features) or None, bias (features,) in units of v, threshold in units of v, keeps: 0-d."""

    sums: torch.Tensor
    back: torch.Tensor | None
    bias: torch.Tensor
    threshold: torch.Tensor
    keep_u: torch.Tensor
    keep_v: torch.Tensor


def run_back(
    registers: Registers,
    ran: Steps,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    back: torch.Tensor | None,
    *,
    decays: bool,
    compiled: bool,
) -> Gradients:
    """Backward through time.

    Args:
        registers, back, compiled: as of the run.
        ran: what it gave.
        given: gradients of its spikes, and of peaks, currents and what arrived, which may be without elements.
        decays: whether gradients of the kept shares are wanted; that of u needs currents.
    """
    of_spikes, of_peaks, of_currents, of_arrived = given
    samples, timesteps, features = ran.spikes.shape
    parts = _threads(samples) if compiled else 1
    shared = [
        torch.zeros(
            (parts, features if wanted else 0), dtype=torch.float64, device=of_spikes.device
        )
        for wanted in (True, True, decays and ran.currents.numel() > 0, decays)
    ]
    carried = (of_spikes.new_zeros((samples, features)) for _ in range(2))
    pulls = StepGradients(*carried, *shared)
    of_sums = torch.empty_like(of_spikes)
    met = (ran.peaks, ran.currents)
    if back is None:
        spans = [range(timesteps)]
    else:
        spans = [range(t, t + 1) for t in reversed(range(timesteps))]
        of_spikes = of_spikes.clone()
    for span in spans:
        _retrace(registers, (of_spikes, of_peaks, of_currents), met, pulls, of_sums, span, compiled)
        if back is not None:
            t = span.start
            if of_arrived.numel():
                of_sums[:, t] += of_arrived[:, t]
            if t:
                of_spikes[:, t - 1] += of_sums[:, t] @ back
    of_back = None
    if back is not None:
        late, early = of_sums[:, 1:].flatten(0, 1), ran.spikes[:, :-1].flatten(0, 1)
        of_back = late.T @ early.to(late.dtype)
    return Gradients(
        of_sums,
        of_back,
        pulls.bias.sum(0),
        -pulls.threshold.sum() / registers.height,
        pulls.keep_u.sum(),
        pulls.keep_v.sum(),
    )


def _threads(samples: int) -> int:
    return max(1, min(torch.get_num_threads(), samples))


def _shared(part: Callable[[int, int, int], None], samples: int, threads: int) -> None:
    """`part` of first..last and its number, all samples."""
    if threads == 1:
        part(0, samples, 0)
        return
    cuts = [samples * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:], range(threads)))


def _advance(
    registers: Registers,
    sums: torch.Tensor,
    bias: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor],
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    span: range,
    compiled: bool,
) -> None:
    if not compiled:
        steps.advance(registers, sums, bias, state, into, span)
        return
    arrays = [tensor.numpy() for tensor in (sums, bias)]
    moved = [tensor.numpy() for tensor in (*state, *into)]

    def part(first: int, last: int, number: int) -> None:
        kernels.advance(
            *arrays, registers.keep_u, registers.keep_v, registers.threshold, *moved, span.start, span.stop, first, last
        )  # fmt: skip

    _shared(part, len(sums), _threads(len(sums)) if len(span) > 1 else 1)


def _retrace(
    registers: Registers,
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    met: tuple[torch.Tensor, torch.Tensor],
    pulls: StepGradients,
    of_sums: torch.Tensor,
    span: range,
    compiled: bool,
) -> None:
    if not compiled:
        steps.retrace(registers, given, met, pulls, of_sums, span)
        return
    arrays = [tensor.numpy() for tensor in (*given, *met)]
    moved = [
        tensor.numpy()
        for tensor in (
            pulls.u,
            pulls.v,
            of_sums,
            pulls.bias,
            pulls.threshold,
            pulls.keep_u,
            pulls.keep_v,
        )
    ]
    surrogate = registers.surrogate

    def part(first: int, last: int, number: int) -> None:
        kernels.retrace(
            *arrays, registers.keep_u, registers.keep_v, registers.threshold, registers.height, surrogate.width, surrogate.kind == "box",
            0.0 if surrogate.detach_reset else 1.0, *moved, span.start, span.stop, first, last, number,
        )  # fmt: skip

    _shared(part, len(of_sums), _threads(len(of_sums)) if len(span) > 1 else 1)


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
        return (
            ran.spikes,
            ran.peaks,
            ran.currents,
            sums.new_zeros(0) if back is None else ran.arrived,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        spikes, peaks, currents, weight = ctx.saved_tensors
        none = spikes.new_zeros((0, 0, 0))
        of_spikes, of_peaks, of_currents, of_arrived = (
            none
            if gradient is None or not gradient.numel()
            else gradient.to(spikes.dtype).contiguous()
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
