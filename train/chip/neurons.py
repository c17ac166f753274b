"""CUBA neurons of a layer through all time steps and back: compiled on the CPU, torch elsewhere.

The gradients are those of v = keep_v v + u + b, u = keep_u u + 64 a, z = [v / threshold - 1 > 0],
v = 0 where z: rounding, wraps and saturation let them pass as they are, so that a state outside its
registers can come back.

Each direction stands here twice: in torch, for devices and to be read, and in numba, where all
steps of a block of neurons run while their states stay in the first cache. Forward is
`knarr.hw_sim.arithmetic.step` in float64, which holds every product: states are below 2**41 and a
decay has 12 bits, so truncating is the chip's rounding toward zero.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from knarr.hw_sim.engines import numba_cuba
from knarr.hw_sim.engines.numba_cuba import AT_ONCE, compiled
from knarr.hw_sim.engines.torch import torch_step
from knarr.hw_sim.network import DECAY_UNITY
from knarr.train.chip.limits import UNIT
from knarr.train.chip.synapse import exact_floats
from knarr.train.networks.neurons import slope
from knarr.train.settings import Frozen, Positive

Tensors = tuple[Tensor, ...]


class Surrogate(Frozen):
    """The gradient of a spike (`knarr.train.networks.neurons.slope`) over v / threshold - 1.

    Args:
        kind: shape of the gradient.
        width: its width (box) or sharpness (atan), in thresholds.
        detach_reset: no gradient flows through the reset.
    """

    kind: Literal["box", "atan"] = "atan"
    width: Positive = 2.0
    detach_reset: bool = True


@dataclass(frozen=True)
class Registers:
    """Registers of a layer: decays 0..4096, threshold mantissa, and how spikes pass gradients.

    Each is float64, 0-d where all neurons share it and (features,) where each has its own.
    """

    i_decay: Tensor
    v_decay: Tensor
    vth_int: Tensor
    surrogate: Surrogate

    @property
    def keep_u(self) -> Tensor:
        """Give the share of u that a step keeps; exact in binary."""
        return 1 - self.i_decay / DECAY_UNITY

    @property
    def keep_v(self) -> Tensor:
        """Give the share of v that a step keeps; exact in binary."""
        return 1 - self.v_decay / DECAY_UNITY

    @property
    def threshold(self) -> Tensor:
        """Give the threshold in units of v."""
        return UNIT * self.vth_int

    @property
    def height(self) -> Tensor:
        """Give the divisor of distances from the threshold: itself, or one unit where it is 0."""
        return self.threshold.clamp(min=UNIT)


@dataclass(frozen=True)
class Steps:
    """Steps of a layer's neurons, each (B, T, features).

    Args:
        spikes: 0 or 1, like the sums.
        peaks: v before its reset, float32, which holds it.
        currents: u in float64, or without elements.
        arrived: sums with the spikes that came back; the sums themselves without recurrence.
    """

    spikes: Tensor
    peaks: Tensor
    currents: Tensor
    arrived: Tensor


def cuba(
    sums: Tensor,
    bias: Tensor,
    threshold: Tensor,
    decays: tuple[Tensor, Tensor],
    surrogate: Surrogate,
    *,
    back: Tensor | None = None,
    keep_currents: bool = False,
    compiled: bool = True,
) -> Steps:
    """Run CUBA neurons from rest through all steps: the chip's integers forward, surrogate
    gradients back.

    Gradients flow from spikes, peaks, currents and arrived sums to all tensors that came in.

    Args:
        sums: (B, T, features) integers as floats, of which a sum with the spikes that come back is
            exact too.
        bias: (features,) mantissas.
        threshold: mantissa, 0-d or (features,).
        decays: registers of current and voltage, 0..4096, each 0-d or (features,).
        surrogate: the gradient of spikes.
        back: (features, features) integer weights of spikes that come back a step later, or None.
        keep_currents: whether u is wanted; a decay of the current learns from it.
        compiled: whether numba runs it where the sums are on the CPU.
    """
    options = surrogate, keep_currents, compiled and sums.device.type == "cpu"
    spikes, peaks, currents, arrived = _Cuba.apply(
        sums,
        bias,
        threshold,
        *decays,
        back,
        options,
    )
    return Steps(spikes, peaks, currents, sums if back is None else arrived)


class _Cuba(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        bias: Tensor,
        threshold: Tensor,
        i_decay: Tensor,
        v_decay: Tensor,
        back: Tensor | None,
        options: tuple[Surrogate, bool, bool],
    ) -> Tensors:
        surrogate, keep_currents, use_numba = options
        found = [
            value.detach().to(sums.device, torch.float64) for value in (i_decay, v_decay, threshold)
        ]
        registers = Registers(found[0], found[1], found[2], surrogate)
        sums = sums.contiguous()
        bias = UNIT * bias.double()
        samples, timesteps, features = sums.shape
        u = sums.new_zeros((samples, features), dtype=torch.float64)
        v = torch.zeros_like(u)
        spikes = torch.empty_like(sums)
        peaks = sums.new_empty(sums.shape, dtype=torch.float32)
        kept = sums.shape if keep_currents else (0, 0, 0)
        currents = sums.new_empty(kept, dtype=torch.float64)
        advance = _advance_compiled if use_numba else _advance
        with exact_floats(sums.device):
            if back is not None:
                # Not the caller's: what comes back is added to it, step by step.
                sums, back = sums.clone(), back.to(sums.dtype)
            for steps in _spans(timesteps, back):
                if back is not None and steps.start:
                    sums[:, steps.start] += spikes[:, steps.start - 1] @ back.T
                advance(registers, (sums, bias, u, v, spikes, peaks, currents), steps)
        ctx.registers = registers
        ctx.use_numba = use_numba
        # Sums are needed no more, and without recurrence neither are spikes: peaks tell.
        ctx.save_for_backward(spikes, peaks, currents, back)
        ctx.set_materialize_grads(False)
        # An output that is an input, untouched, would confuse autograd; `cuba` has the sums itself.
        return spikes, peaks, currents, sums.new_zeros(0) if back is None else sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        spikes, peaks, currents, back = ctx.saved_tensors
        samples, timesteps, features = spikes.shape
        absent = spikes.new_zeros((0, 0, 0))
        grad_spikes, grad_peaks, grad_currents, grad_arrived = (
            absent if grad is None or not grad.numel() else grad.to(spikes.dtype).contiguous()
            for grad in gradients
        )
        if not grad_spikes.numel():
            grad_spikes = torch.zeros_like(spikes)
        elif back is not None:
            # Not autograd's own: gradients of later steps are added to it.
            grad_spikes = grad_spikes.clone()
        decays = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        parts = _threads(samples) if ctx.use_numba else 1
        into = StepGradients(
            torch.empty_like(spikes),
            *(spikes.new_zeros((samples, features)) for _ in range(2)),
            *(
                spikes.new_zeros((parts, features if wanted else 0), dtype=torch.float64)
                for wanted in (True, True, decays and currents.numel() > 0, decays)
            ),
        )
        given = grad_spikes, grad_peaks, grad_currents, peaks, currents
        retrace = _retrace_compiled if ctx.use_numba else _retrace
        for steps in reversed(_spans(timesteps, back)):
            retrace(ctx.registers, given, into, steps)
            if back is not None:
                t = steps.start
                if grad_arrived.numel():
                    into.sums[:, t] += grad_arrived[:, t]
                if t:
                    grad_spikes[:, t - 1] += into.sums[:, t] @ back
        grad_back = None
        if back is not None:
            late = into.sums[:, 1:].flatten(0, 1)
            early = spikes[:, :-1].flatten(0, 1)
            grad_back = late.T @ early
        registers = ctx.registers

        def summed(parts: Tensor, register: Tensor) -> Tensor | None:
            """Sum (parts, features) to what the register is: one number, or one for each feature."""
            if not parts.numel():
                return None if register.ndim else register.new_zeros(())
            return parts.sum(0) if register.ndim else parts.sum()

        # Not wanted where it has no elements.
        grad_keep_u, grad_keep_v = (
            summed(parts, register)
            for parts, register in (
                (into.keep_u, registers.i_decay),
                (into.keep_v, registers.v_decay),
            )
        )
        grad_threshold = summed(into.threshold, registers.vth_int)
        assert grad_threshold is not None  # its elements are always there
        # Shares kept are 1 - decay / 4096. Autograd casts each gradient to its input's type.
        return (
            into.sums,
            UNIT * into.bias.sum(0),
            UNIT * (-grad_threshold / registers.height),
            None if grad_keep_u is None else -grad_keep_u / DECAY_UNITY,
            None if grad_keep_v is None else -grad_keep_v / DECAY_UNITY,
            grad_back,
            None,
        )


@dataclass(frozen=True)
class StepGradients:
    """Gradients on their way back through time; their order is that of the compiled code's
    arguments.

    Args:
        sums: (samples, timesteps, features), written.
        u, v: (samples, features), of the states after a step, moved back.
        bias: (parts, features) float64, added to; each thread has a part.
        threshold: the same, times -height.
        keep_u, keep_v: the same of the shares that states keep, or without elements.
    """

    sums: Tensor
    u: Tensor
    v: Tensor
    bias: Tensor
    threshold: Tensor
    keep_u: Tensor
    keep_v: Tensor


def _spans(timesteps: int, back: Tensor | None) -> list[range]:
    """Cut a run into steps that need nothing from each other's spikes: one span without recurrence."""
    if back is None:
        return [range(timesteps)]
    return [range(t, t + 1) for t in range(timesteps)]


def _advance(registers: Registers, tensors: Tensors, steps: range) -> None:
    """Run steps forward: u and v move on, spikes, peaks and currents are written; the bias is in
    units of v.
    """
    sums, bias, u, v, spikes, peaks, currents = tensors
    keeps = registers.keep_u, registers.keep_v
    for t in steps:
        arriving = sums[:, t].double() * UNIT
        new, peak, fired = torch_step(u, v, arriving, bias, *keeps, registers.threshold)
        u.copy_(new)
        v.copy_(peak.masked_fill(fired, 0))
        spikes[:, t] = fired
        peaks[:, t] = peak
        if currents.numel():
            currents[:, t] = new


def _retrace(registers: Registers, given: Tensors, into: StepGradients, steps: range) -> None:
    """Run steps backward; given are gradients of spikes, peaks and currents, then peaks and
    currents.
    """
    grad_spikes, grad_peaks, grad_currents, peaks, currents = given
    surrogate = registers.surrogate
    threshold, height, keep_u, keep_v = _of_kind(registers, into.sums.dtype)
    for t in reversed(steps):
        p = peaks[:, t].to(into.sums.dtype)
        over = (p - threshold) / height
        grad_fired = grad_spikes[:, t]
        if not surrogate.detach_reset:
            # v after the step is (1 - z) p, so a spike also takes p away.
            grad_fired = grad_fired - into.v * p
        pull = grad_fired * slope(over, surrogate.kind, surrogate.width) / height
        into_v = pull + into.v.masked_fill(p > threshold, 0)
        if grad_peaks.numel():
            into_v = into_v + grad_peaks[:, t]
        into_u = into.u + into_v
        if grad_currents.numel():
            into_u = into_u + grad_currents[:, t]
        into.bias[0] += into_v.double().sum(0)
        into.threshold[0] += (pull * p).double().sum(0)
        if t and into.keep_v.numel():
            before = peaks[:, t - 1]
            reset = before.masked_fill(before > threshold, 0)
            into.keep_v[0] += (into_v * reset).double().sum(0)
        if t and into.keep_u.numel():
            into.keep_u[0] += (into_u * currents[:, t - 1]).double().sum(0)
        into.sums[:, t] = UNIT * into_u
        into.u.copy_(keep_u * into_u)
        into.v.copy_(keep_v * into_v)


def _of_kind(registers: Registers, kind: torch.dtype) -> Tensors:
    """Return threshold, height and kept shares in the gradients' own type, which wider numbers would
    widen.
    """
    wanted = (registers.threshold, registers.height, registers.keep_u, registers.keep_v)
    return tuple(value.to(kind) for value in wanted)


def _of_every_feature(value: Tensor, features: int) -> npt.NDArray[Any]:
    """Return (features,) for compiled code."""
    return np.ascontiguousarray(np.broadcast_to(value.numpy(), features))


def _threads(samples: int) -> int:
    return max(1, min(torch.get_num_threads(), samples))


def _shared(
    part: Callable[[int, int, int], None],
    samples: int,
    steps: range,
) -> None:
    """Call `part` with first, last and its number until all samples are done, several at once."""
    # A single step is over before a thread has started.
    threads = _threads(samples) if len(steps) > 1 else 1
    if threads == 1:
        part(0, samples, 0)
        return
    cuts = [samples * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(
            pool.map(
                part,
                cuts[:-1],
                cuts[1:],
                range(threads),
            )
        )


def _advance_compiled(registers: Registers, tensors: Tensors, steps: range) -> None:
    sums, bias, u, v, spikes, peaks, currents = (tensor.numpy() for tensor in tensors)
    # Only the simulator wants these.
    no_counts = np.zeros((0, 0), np.int64)
    no_voltages = np.zeros((0, 0, 0), np.int32)
    features = sums.shape[2]
    keep_u, keep_v, threshold = (
        _of_every_feature(value, features)
        for value in (registers.keep_u, registers.keep_v, registers.threshold)
    )

    def part(first: int, last: int, number: int) -> None:
        mine = slice(first, last)
        numba_cuba.advance(
            sums[mine],
            float(UNIT),
            bias,
            keep_u,
            keep_v,
            threshold,
            u[mine],
            v[mine],
            spikes[mine],
            no_counts,
            peaks[mine],
            currents[mine],
            no_voltages,
            steps.start,
            steps.stop,
            0,
            features,
        )

    _shared(part, len(sums), steps)


def _retrace_compiled(
    registers: Registers, given: Tensors, into: StepGradients, steps: range
) -> None:
    givens = tuple(tensor.numpy() for tensor in given)
    intos = tuple(tensor.numpy() for tensor in vars(into).values())
    surrogate = registers.surrogate
    threshold, height, keep_u, keep_v = _of_kind(registers, into.sums.dtype)
    features = into.sums.shape[2]
    every = tuple(
        _of_every_feature(value, features) for value in (keep_u, keep_v, threshold, 1 / height)
    )
    # Numbers of the gradients' own type: a float64 among float32 would widen every product.
    kind = into.sums.numpy().dtype.type
    numbers = tuple(
        kind(number)
        for number in (
            0,
            1,
            UNIT,
            surrogate.width,
            surrogate.width / 2,
            np.pi * surrogate.width / 2,
            not surrogate.detach_reset,
        )
    )
    box = surrogate.kind == "box"

    def part(first: int, last: int, number: int) -> None:
        retrace_block(
            givens,
            intos,
            every,
            numbers,
            box,
            steps.start,
            steps.stop,
            first,
            last,
            number,
        )

    _shared(part, len(into.sums), steps)


@compiled
def retrace_block(
    given: Any,
    into: Any,
    registers: Any,
    numbers: Any,
    box: bool,
    begin: int,
    end: int,
    first: int,
    last: int,
    part: int,
) -> None:
    """Run steps end..begin of samples first..last backward as `_retrace` does.

    Many short loops, each of one kind of work: numba makes vectors of these, not of one long loop.
    """
    grad_spikes, grad_peaks, grad_currents, peaks, currents = given
    grad_sums, gu, gv, grad_bias, grad_threshold, grad_keep_u, grad_keep_v = into
    keep_u, keep_v, threshold, inverse = registers
    zero, one, unit, width, half, sharp, reset = numbers
    features = grad_spikes.shape[2]
    slopes = np.empty(AT_ONCE, dtype=grad_sums.dtype)
    into_v = np.empty(AT_ONCE, dtype=grad_sums.dtype)
    into_u = np.empty(AT_ONCE, dtype=grad_sums.dtype)
    for s in range(first, last):
        for start in range(0, features, AT_ONCE):
            stop = min(start + AT_ONCE, features)
            n = stop - start
            uu = gu[s, start:stop]
            vv = gv[s, start:stop]
            bb = grad_bias[part, start:stop]
            mm = grad_threshold[part, start:stop]
            ku, kv = keep_u[start:stop], keep_v[start:stop]
            th, over = threshold[start:stop], inverse[start:stop]
            for t in range(end - 1, begin - 1, -1):
                p = peaks[s, t, start:stop]
                gz = grad_spikes[s, t, start:stop]
                out = grad_sums[s, t, start:stop]
                if box:
                    for i in range(n):
                        x = (p[i] - th[i]) * over[i]
                        slopes[i] = one if abs(x) < width else zero
                else:
                    for i in range(n):
                        x = (p[i] - th[i]) * over[i] * sharp
                        slopes[i] = half / (one + x * x)
                if grad_peaks.size:
                    for i in range(n):
                        into_v[i] = grad_peaks[s, t, start + i]
                else:
                    for i in range(n):
                        into_v[i] = zero
                for i in range(n):
                    after = vv[i]
                    pull = (gz[i] - reset * after * p[i]) * slopes[i] * over[i]
                    into_v[i] += pull + (zero if p[i] > th[i] else after)
                    mm[i] += pull * p[i]
                if grad_currents.size:
                    for i in range(n):
                        uu[i] += grad_currents[s, t, start + i]
                for i in range(n):
                    into_u[i] = uu[i] + into_v[i]
                    bb[i] += into_v[i]
                # The state before step 0 is 0, so the share that is kept of it has no gradient.
                if grad_keep_v.size and t > 0:
                    q = peaks[s, t - 1, start:stop]
                    kk = grad_keep_v[part, start:stop]
                    for i in range(n):
                        kk[i] += into_v[i] * (zero if q[i] > th[i] else q[i])
                if grad_keep_u.size and t > 0:
                    c = currents[s, t - 1, start:stop]
                    cc = grad_keep_u[part, start:stop]
                    for i in range(n):
                        cc[i] += into_u[i] * c[i]
                for i in range(n):
                    out[i] = unit * into_u[i]
                    uu[i] = ku[i] * into_u[i]
                    vv[i] = kv[i] * into_v[i]
