"""Cells to train with: own surrogate gradients, learnable decays, the membrane before its reset;
each with a twin in Norse.

Norse's parameters are tuples that `.to()` does not move and optimisers do not see; all tensors here
are buffers or parameters.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import norse.torch as snn
import torch
from pydantic import model_validator
from torch import Tensor, nn

from knarr.hw_sim.network import DECAY_UNITY
from knarr.train.settings import Frozen, Positive, RecipeError, UnitFraction

Reads = Literal["spikes", "membrane"]


class NeuronSettings(Frozen):
    """Settings of a layer of neurons.

    Args:
        coefficient: a = dt / tau_mem; of a learned one the value at the start, below 1.
        learned: one a per layer is trained, a = sigmoid(w).
        v_th: volts.
        surrogate: gradient of the spike, see `fire`.
        width: the surrogate's width in volts (box) or its sharpness (atan).
        fires: "gt" above the threshold, as Norse, NIR and the chip; "ge" at it too. They differ on
            exact ties alone.
        detach_reset: no gradient flows through the reset.
    """

    coefficient: UnitFraction
    learned: bool = False
    v_th: Positive = 1.0
    surrogate: Literal["box", "atan"] = "atan"
    width: Positive = 2.0
    fires: Literal["gt", "ge"] = "gt"
    detach_reset: bool = True

    @model_validator(mode="after")
    def _room_to_learn(self) -> NeuronSettings:
        if self.learned and self.coefficient == 1:
            raise ValueError(
                "coefficient: 1 is no value of a sigmoid; start below it, or do not learn it"
            )
        return self


class CellState(NamedTuple):
    """Membranes (B, *features), volts: `v` after the reset, `peak` before it."""

    v: Tensor
    peak: Tensor


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        over: Tensor,
        surrogate: str,
        width: float,
        fires: str,
    ) -> Tensor:
        # Through torch, which then notices if it is overwritten before the backward pass.
        ctx.save_for_backward(over)
        ctx.surrogate = surrogate
        ctx.width = width
        fired = over >= 0 if fires == "ge" else over > 0
        return fired.to(over.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (over,) = ctx.saved_tensors
        grad_over = gradients[0] * slope(over, ctx.surrogate, ctx.width)
        return grad_over, None, None, None


def slope(over: Tensor, surrogate: str, width: float) -> Tensor:
    """Return the gradient that stands for a spike's.

    box   1 where |over| < width, else 0
    atan  (width / 2) / (1 + (pi * width * over / 2)^2)

    PLIF's code uses atan of width 2 [reconstruction: library default].
    """
    if surrogate == "box":
        return (over.abs() < width).to(over.dtype)
    return (width / 2) / (1 + (torch.pi * width / 2 * over) ** 2)


def fire(over: Tensor, neuron: NeuronSettings) -> Tensor:
    """Return spikes, 0 or 1 in the dtype of `over`, which is v - v_th in volts."""
    return _Fire.apply(over, neuron.surrogate, neuron.width, neuron.fires)


class SpikingCell(nn.Module):
    """A layer that fires above a threshold and resets to 0; a subclass says how it charges.

    Args:
        neuron: settings of the layer.
        reads: what a step gives: spikes, or the membrane before its reset (a readout that still
            resets) [SEEN, code].
    """

    def __init__(self, neuron: NeuronSettings, reads: Reads = "spikes") -> None:
        super().__init__()
        self.neuron = neuron
        self.reads = reads
        self.v_th: Tensor
        # A buffer moves to the device with its cell, and lies in the checkpoint.
        self.register_buffer("v_th", torch.tensor(neuron.v_th))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the membrane of this step before its reset, from the one after the last reset and
        the input.
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: CellState | None = None,
    ) -> tuple[Tensor, CellState]:
        """Run one step on (B, *features); None is the state at rest."""
        before = torch.zeros_like(x) if state is None else state.v
        peak = self.charge(before, x)
        spikes = fire(peak - self.v_th, self.neuron)
        # Detached, a spike tells nothing to the membrane that it resets.
        gone = spikes.detach() if self.neuron.detach_reset else spikes
        after = CellState((1 - gone) * peak, peak)
        return (peak if self.reads == "membrane" else spikes), after

    def extra_repr(self) -> str:
        """Show the settings in print(network)."""
        return f"{self.neuron!r}, reads={self.reads!r}"


class DecayCell(SpikingCell):
    """v- = (1 - a) v + x;  z = [v- > v_th];  v = 0 where z. SEEN's neuron: 1 - a = 0.2, v_th = 0.3
    [code].
    """

    def __init__(self, neuron: NeuronSettings, reads: Reads = "spikes") -> None:
        super().__init__(neuron, reads)
        self.keeps: Tensor
        self.register_buffer("keeps", torch.tensor(1 - neuron.coefficient))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Decay the membrane and add the whole input."""
        return self.keeps * v + x


class BoxCell(SpikingCell):
    """v- = v + a (x - v);  z = [v- > v_th];  v = 0 where z. Norse's LIFBoxCell; learned, PLIF (Fang
    et al., ICCV 2021).

    Args:
        neuron: settings of the layer.
        dt_s: time step, seconds; matters where the network is exported.
        reads: see SpikingCell.
        snap: a fixed coefficient moves to the nearest k/4096, which the chip's register holds.
    """

    def __init__(
        self,
        neuron: NeuronSettings,
        dt_s: float,
        reads: Reads = "spikes",
        *,
        snap: bool = False,
    ) -> None:
        super().__init__(neuron, reads)
        self.dt = dt_s
        _hold_rate(self, neuron.coefficient, learned=neuron.learned, snap=snap)

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Move the membrane towards the input by the share a."""
        return v + self.dt * _rate(self) * (x - v)

    def norse(self, *, snap: bool = False) -> nn.Module:
        """Return Norse's LIFBoxCell, equal in every bit of float32; a is constant in it, and on
        k/4096 with `snap`.

        Raises:
            ValueError: it fires at its threshold or gives its membrane, which no exported cell
                does.
        """
        if self.neuron.fires != "gt" or self.reads != "spikes":
            raise ValueError(
                f"BoxCell: fires '{self.neuron.fires}' and gives its {self.reads}; a graph has 'gt' and spikes, end "
                "with a leaky integrator"
            )
        # A copy: Norse's tuple would share memory with the buffer of a cell that may train on.
        v_th = self.v_th.float().cpu().clone()
        parameters = snn.LIFBoxParameters(tau_mem_inv=_fixed_rate(self, snap), v_th=v_th)
        return snn.LIFBoxCell(parameters, dt=self.dt).eval()


class ReadoutCell(nn.Module):
    """A leaky integrator, v = v + a (x - v), which gives its voltage: Norse's LIBoxCell.

    Args:
        coefficient: a.
        dt_s: time step, seconds.
        snap: a fixed coefficient moves to the nearest k/4096.
    """

    def __init__(
        self,
        coefficient: float,
        dt_s: float,
        *,
        snap: bool = False,
    ) -> None:
        super().__init__()
        self.dt = dt_s
        _hold_rate(self, coefficient, snap=snap)

    def forward(
        self,
        x: Tensor,
        state: CellState | None = None,
    ) -> tuple[Tensor, CellState]:
        """Run one step on (B, *features); None is the state at rest."""
        before = torch.zeros_like(x) if state is None else state.v
        v = before + self.dt * _rate(self) * (x - before)
        return v, CellState(v, v)

    def norse(self, *, snap: bool = False) -> nn.Module:
        """Return the same cell of Norse, equal in every bit of float32; `snap` puts a on k/4096."""
        parameters = snn.LIBoxParameters(tau_mem_inv=_fixed_rate(self, snap))
        return snn.LIBoxCell(p=parameters, dt=self.dt).eval()


def snap_inverse(tau_s: float, dt_s: float) -> Tensor:
    """Return 1 / tau, per second, with dt/tau moved to the nearest k/4096 (k = 1..4095), which a
    chip's register holds.

    Raises:
        RecipeError: tau is so short or long that no register comes near.
    """
    register = round(DECAY_UNITY * dt_s / tau_s)
    if not 1 <= register < DECAY_UNITY:
        raise RecipeError(
            f"tau {tau_s:g} s at dt {dt_s:g} s needs decay register {register}, allowed 1..{DECAY_UNITY - 1}"
        )
    return torch.tensor(register / (DECAY_UNITY * dt_s))


def _hold_rate(cell: Any, coefficient: float, *, snap: bool, learned: bool = False) -> None:
    """Give a cell its a: parameter `w` with a = sigmoid(w), or buffer `tau_mem_inv` = a / dt, per
    second.
    """
    # The logit of a: whatever the optimiser does to w, a stays between 0 and 1.
    if learned:
        cell.w = nn.Parameter(torch.logit(torch.tensor(coefficient)))
        return
    inverse = torch.tensor(coefficient / cell.dt)
    if snap:
        inverse = snap_inverse(cell.dt / coefficient, cell.dt)
    cell.register_buffer("tau_mem_inv", inverse)


def _rate(cell: Any) -> Tensor:
    """Return 1 / tau_mem, per second."""
    # dt cancels in the cells, but Norse divides and multiplies by it: so every bit is the same.
    if hasattr(cell, "w"):
        return torch.sigmoid(cell.w) / cell.dt
    return cell.tau_mem_inv


def _fixed_rate(cell: Any, snap: bool) -> Tensor:
    """Return 1 / tau_mem as float32 that no cell shares, on the chip's grid where `snap`."""
    inverse = _rate(cell).detach().float().cpu().clone()
    if snap:
        return snap_inverse(1 / float(inverse), cell.dt)
    return inverse
