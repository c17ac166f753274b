"""Integers with a learned step between them, and LSQ's gradients (Esser et al., ICLR 2020, arXiv
1902.08153).

    q = m clip(round(x / (m step)), low / m, high / m)
    dL/dx     =       dL/dq / step        where x is rounded, 0 where it is clipped
    dL/dstep  =  sum  dL/dq / step  e     e = q - x / step where x is rounded, q where it is clipped

An x is clipped where it lies more than half a step beyond the last level; LSQ's published form
clips at the level itself, and would freeze the largest weights of a network that starts on its
integers.

LSQ's layers compute with step * q, so dL/d(step q) = dL/dq / step. The chip computes with q itself,
and dq/dstep has one more term, -q / step. It is left out: weights, bias and threshold share the
step, multiplying all three changes no spike, and over a layer these terms add up to nothing. What
is left is the part that rounding and clipping make.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

FLOAT32_EXACT = 2**24
"""Every integer up to it is a float32."""


@dataclass(frozen=True)
class QuantisationGrid:
    """Integers low..high, multiples of `multiple`, which divides both."""

    low: int
    high: int
    multiple: int = 1

    def holds(self, integers: npt.NDArray[Any]) -> bool:
        """Tell whether all integers lie on it."""
        inside = self.low <= integers.min() and integers.max() <= self.high
        return bool(inside and not (integers % self.multiple).any())

    def __str__(self) -> str:
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.low}..{self.high}{steps}"


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, grid: QuantisationGrid) -> Tensor:
        # float64: the same quotient, and so the same integer, on every device.
        ratio = x.double() / (step.double() * grid.multiple)
        low = grid.low / grid.multiple
        high = grid.high / grid.multiple
        q = ratio.round().clamp(low, high)
        ctx.save_for_backward(ratio, q, step)
        ctx.low = low
        ctx.high = high
        ctx.multiple = grid.multiple
        narrow = x.dtype == torch.float32 and max(-grid.low, grid.high) < FLOAT32_EXACT
        return (q * grid.multiple).to(torch.float32 if narrow else torch.float64)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ratio, q, step = ctx.saved_tensors
        grad_value = gradients[0].double() / step.double()
        inside = (ratio >= ctx.low - 0.5) & (ratio <= ctx.high + 0.5)
        error = torch.where(inside, q - ratio, q) * ctx.multiple
        # Autograd casts to the types of x and step.
        grad_step = (grad_value * error).sum() if ctx.needs_input_grad[1] else None
        return grad_value * inside, grad_step, None


def rounded(x: Tensor, step: Tensor, grid: QuantisationGrid) -> Tensor:
    """Round x to integers of a grid, as floats that hold them.

    Args:
        x: any shape, float32 or float64.
        step: 0-d, positive: the value of one integer.
        grid: the integers that there are.

    Returns:
        Like x; float64 where x is or the grid passes 2**24.
    """
    return _Rounded.apply(x, step, grid)


class _Damped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.gain, None


def damped(step: Tensor, count: int, grid: QuantisationGrid) -> Tensor:
    """Return the step itself, its gradient divided by sqrt(count * largest level) as LSQ's, so that
    it moves no faster than a weight.
    """
    gain = 1 / sqrt(count * max(1, grid.high // grid.multiple))
    return _Damped.apply(step, gain)
