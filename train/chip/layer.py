"""One chip layer that learns: float weights, bias and threshold, and the one step by which all of them become integers.

In the gauge of `knarr.deploy.quantise`, where the threshold is 1 and S = 1 / step:

    weight = round(w / step)     threshold, bias, recurrent = round(units x / step)     chip voltage = 64 units / step * v

Spikes depend on the ratios of these integers alone, so a layer has one free factor. Floats hold the ratios, and start where the
float student had them: threshold 1, weights as trained. The step is the free factor, and decides only how finely weights are
rounded and how many are clipped: that is what it learns. Step and decays are learned relative to their start: an optimiser's
rate then means the same in every layer, and no exponential has to agree to the last bit between devices.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knarr.hw_sim import NON_SPIKING_VTH, ChipError, Recurrent
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.network import DECAY_UNITY, Layer
from knarr.train.chip.limits import UNIT, Limits, excess, series
from knarr.train.chip.neurons import cuba
from knarr.train.chip.quantiser import QuantisationGrid, damped, rounded
from knarr.train.chip.registers import Surrogate
from knarr.train.chip.synapse import Accumulates, Synapse, one_side, returned

Learned = Literal["weights", "steps", "thresholds", "biases", "decays"]
LEAST_STEP = 1 / 64
"""Of a step, relative to its start; steps are positive."""


@dataclass(frozen=True)
class ChipLayerOutput:
    """A layer's run.

    Args:
        spikes: (B, T, *features) 0 or 1, float32, for the next layer.
        peaks: the same of v before its reset. currents: of u in float64, or without elements. arrived: of sums.
        penalty: 0-d, `excess` of sums and states that no bound keeps inside their registers.
        acc: (B,) float64, see `Accumulates`. acc_in: the part of what arrives, without the layer's own spikes.
    """

    spikes: torch.Tensor
    peaks: torch.Tensor
    currents: torch.Tensor
    arrived: torch.Tensor
    penalty: torch.Tensor
    acc: torch.Tensor
    acc_in: torch.Tensor


class ChipLayer(nn.Module):
    """See above.

    Args:
        layer: where it starts.
        entering: shape of what arrives.
        payload, units: its largest integer, and integers per unit.
        limits: grids of legal integers.
        surrogate: of its spikes.
        learn: what has gradients.
        unrounded: float weights in units of the layer's integers, which they round to; None starts at the integers.

    Raises:
        ChipError: integers outside the limits, or unrounded weights that round to others.
    """

    def __init__(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        payload: int,
        units: float,
        limits: Limits,
        surrogate: Surrogate,
        learn: Collection[Learned],
        unrounded: npt.NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__()
        self.chip_layer, self.payload, self.units = layer, payload, units
        self.limits, self.surrogate = limits, surrogate
        self.compiled: bool | None = None
        """Whether numba runs its neurons; None: on the CPU."""
        grid = limits.grid_of(layer)
        first = _first_step(layer, units)
        self.first_step: torch.Tensor
        self.register_buffer("first_step", torch.tensor(first, dtype=torch.float64))
        self.step = _learned(1.0, "steps" in learn)
        weight = layer.weight_int.astype(np.float64)
        if unrounded is not None:
            weight = _checked(layer, unrounded, grid)
        self.synapse = Synapse(layer, entering, first * weight, grid)
        self.synapse.weight.requires_grad_("weights" in learn)
        self.accumulates = Accumulates(layer)
        self.threshold = (
            _learned(layer.neuron.vth_int * first / units, "thresholds" in learn)
            if layer.neuron.spikes
            else None
        )
        self.bias = (
            None
            if layer.bias_int is None
            else _learned(layer.bias_int * (first / units), "biases" in learn)
        )
        self.recurrent = None
        if isinstance(layer, Recurrent):
            back = torch.from_numpy(layer.recurrent_int * (first / units)).float()
            self.recurrent = nn.Parameter(back, "weights" in learn)
        # A register that forgets nothing, or everything, has nothing to learn.
        self.i_decay, self.v_decay = (
            _learned(1.0, "decays" in learn and 0 < register < DECAY_UNITY)
            for register in (layer.neuron.i_decay, layer.neuron.v_decay)
        )

    def integers(self) -> dict[str, torch.Tensor]:
        """Everything that the chip holds of this layer, as floats that are integers and pass gradients; weights without copies."""
        step = self.current_step()
        count = self.synapse.weight.numel()
        shared = damped(step, count, self.synapse.grid)
        over_units = shared / self.units
        found = {"weight": self.synapse.integers(shared)}
        if self.threshold is not None:
            found["threshold"] = rounded(
                self.threshold, over_units, QuantisationGrid(0, self.limits.vth_max)
            )
        else:
            found["threshold"] = step.new_tensor(float(NON_SPIKING_VTH))
        if self.bias is not None:
            found["bias"] = rounded(
                self.bias, over_units, QuantisationGrid(-self.limits.bias_max, self.limits.bias_max)
            )
        if self.recurrent is not None:
            found["recurrent"] = rounded(self.recurrent, over_units, self.synapse.grid)
        neuron, whole = self.chip_layer.neuron, torch.ones_like(step)
        for name, start, share, span in (
            ("i_decay", neuron.i_decay, self.i_decay, self.limits.i_decays),
            ("v_decay", neuron.v_decay, self.v_decay, self.limits.v_decays),
        ):
            found[name] = rounded(start * share, whole, QuantisationGrid(*span))
        return found

    def current_step(self) -> torch.Tensor:
        """What an integer of a weight is worth, 0-d."""
        return self.first_step * self.step.clamp(min=LEAST_STEP)

    def forward(
        self, x: torch.Tensor, *, penalise: bool = False, keep_currents: bool = False
    ) -> ChipLayerOutput:
        """All steps.

        Args:
            x: (B, T, *entering) integers as floats.
            penalise: compute the penalty.
            keep_currents: keep u.
        """
        found = self.integers()
        weight, back = found["weight"], found.get("recurrent")
        bound = self.synapse.bound(weight, self.payload) + (0 if back is None else one_side(back))
        sums = self.synapse(x, weight, bound)
        shape = self.chip_layer.output_shape
        bias = found.get("bias")
        worst_u, worst_v = self._worst(bound, bias, found)
        learns_u = self.i_decay.requires_grad
        spread = (
            torch.zeros(prod(shape), dtype=torch.float64, device=x.device)
            if bias is None
            else bias[:, None].expand(-1, prod(shape[1:])).reshape(-1)
        )
        check_u, check_v = (
            penalise and worst >= STATE_MAX
            for worst in (worst_u + UNIT * self.limits.accumulator, worst_v)
        )
        ran = cuba(
            sums.flatten(2),
            spread,
            found["threshold"],
            (found["i_decay"], found["v_decay"]),
            self.surrogate,
            back=back,
            keep_currents=keep_currents or learns_u or check_u,
            compiled=self.compiled,
        )
        penalty = ran.spikes.new_zeros((), dtype=torch.float32)
        if penalise and bound >= self.limits.accumulator:
            penalty = penalty + excess(ran.arrived, self.limits.accumulator)
        if check_u:
            penalty = penalty + excess(ran.currents, STATE_MAX - UNIT * self.limits.accumulator)
        if check_v:
            penalty = penalty + excess(ran.peaks, STATE_MAX)

        def shaped(values: torch.Tensor) -> torch.Tensor:
            return values.reshape(*values.shape[:2], *shape) if values.numel() else values

        spikes = shaped(ran.spikes).float()
        acc_in = self.accumulates(x)
        acc = acc_in if back is None else acc_in + returned(spikes, back)
        return ChipLayerOutput(
            spikes,
            shaped(ran.peaks),
            shaped(ran.currents),
            shaped(ran.arrived),
            penalty.float(),
            acc,
            acc_in,
        )

    def _worst(
        self, bound: int, bias: torch.Tensor | None, found: dict[str, torch.Tensor]
    ) -> tuple[float, float]:
        """What |u| and |v| cannot pass whatever arrives."""
        most_bias = 0.0 if bias is None else UNIT * float(bias.detach().abs().max())
        u = series(np.array(float(UNIT * bound)), int(found["i_decay"]))
        return float(u), float(series(u + most_bias, int(found["v_decay"])))

    def volts(self, ran: ChipLayerOutput) -> torch.Tensor:
        """(B, T, *features) of peaks, in volts of the float student (where lowering left a scale) or thresholds."""
        # The step's share in them is in the weights: volts are sums of step * integer.
        per_unit = self.current_step().detach() / (UNIT * self.units)
        return ran.peaks * per_unit.to(ran.peaks.dtype)

    def to_layer(self) -> Layer:
        """The integers as a layer of a chip network, on the CPU."""
        with torch.no_grad():
            found = self.integers()
            start = self.chip_layer
            neuron = replace(
                start.neuron,
                i_decay=int(found["i_decay"]),
                v_decay=int(found["v_decay"]),
                vth_int=int(found["threshold"]),
            )
            change: dict[str, Any] = {
                "weight_int": self.synapse.copied(found["weight"]),
                "neuron": neuron,
                "bias_int": _ints(found["bias"]) if "bias" in found else None,
                "scale": None
                if start.scale is None
                else start.scale / float(self.step.clamp(min=LEAST_STEP)),
            }
            if "recurrent" in found:
                change["recurrent_int"] = _ints(found["recurrent"])
        return replace(start, **change)

    def extra_repr(self) -> str:
        return f"{type(self.chip_layer).__name__} '{self.chip_layer.name}', weights {self.synapse.grid}"


def _learned(value: float | npt.NDArray[np.float64], learns: bool) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(value, dtype=torch.float64).clone(), requires_grad=learns)


def _ints(values: torch.Tensor) -> npt.NDArray[np.int32]:
    return np.asarray(values.detach().cpu().numpy()).astype(np.int32)


def _first_step(layer: Layer, units: float) -> float:
    """The step at which the threshold is 1; of a readout the one of its volts, or at which the largest weight is 1."""
    if layer.neuron.spikes and layer.neuron.vth_int:
        return units / layer.neuron.vth_int
    if layer.scale is not None:
        return UNIT * units / layer.scale
    return 1 / max(1, int(np.abs(layer.weight_int).max()))


def _checked(
    layer: Layer, unrounded: npt.NDArray[np.float64], grid: QuantisationGrid
) -> npt.NDArray[np.float64]:
    weight = np.asarray(unrounded, dtype=np.float64)
    if weight.shape != layer.weight_int.shape:
        raise ChipError(
            f"layer '{layer.name}': unrounded weights have shape {weight.shape}, needs {layer.weight_int.shape}"
        )
    if grid.multiple != 1 or not np.array_equal(
        np.clip(np.rint(weight), grid.low, grid.high), layer.weight_int
    ):
        raise ChipError(
            f"layer '{layer.name}': its unrounded weights round to others than its own; give those it was rounded from"
        )
    # Moved off the ties that float32 would decide anew; what is clipped stays where it is.
    rounds = np.abs(weight - layer.weight_int) <= 0.5
    return np.where(
        rounds, np.clip(weight, layer.weight_int - 0.499, layer.weight_int + 0.499), weight
    )
