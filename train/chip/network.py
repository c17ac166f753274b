"""A chip network that learns in its own arithmetic, and goes back to a chip network without being quantised again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knarr.hw_sim import ChipError, ChipNetwork, InputCoding, Readout, Recording
from knarr.hw_sim.coding import MAX_BIAS
from knarr.hw_sim.network import DECAY_UNITY, TRAINED
from knarr.hw_sim.recording import INPUT_LAYER
from knarr.train.chip.layer import ChipLayer, ChipLayerOutput, Learned
from knarr.train.chip.limits import Limits
from knarr.train.chip.neurons import cuba
from knarr.train.chip.registers import Surrogate

LEARNED: tuple[Learned, ...] = ("weights", "steps", "thresholds", "biases")


@dataclass(frozen=True)
class ChipStudentOutput:
    """A run over clips; logits, step_logits and rates are what `knarr.train.networks.heads.StepLogits` has.

    Args:
        outputs: (B, T, outputs) spikes, or volts of a voltage readout; float32 with gradients.
        integers: (B, T, outputs) int64, the same on the chip.
        rates: mean spikes per neuron and step of each layer that fires, detached 0-d.
        penalty: 0-d, what left its registers; add a multiple of it to the loss.
        readout: how a decision is read.
        fired: (B, T, *) spikes of each layer that fires, with gradients.
        peaks: call one for v before the reset of the same shape, in volts of the float student where lowering left a scale, else in
            thresholds, with gradients.
        acc: (B,) synaptic accumulates of each layer per clip, float64, `LayerCounts.acc` of the same run; with gradients through the
            spikes that cause them. 0 where graded inputs multiply.
        input_acc: (B,) the part that the input's own events cause, detached.
    """

    outputs: torch.Tensor
    integers: torch.Tensor
    rates: tuple[torch.Tensor, ...]
    penalty: torch.Tensor
    readout: Readout
    fired: tuple[torch.Tensor, ...]
    peaks: tuple[Callable[[], torch.Tensor], ...]
    acc: tuple[torch.Tensor, ...]
    input_acc: torch.Tensor

    @property
    def step_logits(self) -> torch.Tensor:
        """(B, T, classes): every class's outputs summed."""
        return self.outputs.reshape(*self.outputs.shape[:2], -1, self.readout.votes).sum(3)

    @property
    def logits(self) -> torch.Tensor:
        """(B, classes): sum, mean or last over time, as the readout says."""
        steps = self.step_logits
        if self.readout.over_time == "last":
            return steps[:, -1]
        return steps.mean(1) if self.readout.over_time == "mean" else steps.sum(1)

    @property
    def classes(self) -> torch.Tensor:
        """(B,) int64: the chip's decision, `Readout.decide` of its integers; logits in float32 may tie where it does not."""
        reduced = self.integers[:, -1] if self.readout.over_time == "last" else self.integers.sum(1)
        return reduced.reshape(len(reduced), -1, self.readout.votes).sum(2).argmax(1)


class ChipStudent(nn.Module):
    """Layers that learn; build it with `from_network`.

    `forward` gives, on any device, the integers that `knarr.hw_sim.simulate` gives for `to_network()`: every spike, u and v.
    """

    def __init__(self, layers: Collection[ChipLayer], network: ChipNetwork) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.start = network

    @classmethod
    def from_network(
        cls,
        network: ChipNetwork,
        *,
        limits: Limits | None = None,
        surrogate: Surrogate | None = None,
        learn: Collection[Learned] = LEARNED,
        unrounded: Mapping[str, npt.NDArray[np.float64]] | None = None,
    ) -> ChipStudent:
        """A student that starts as this network, integer by integer.

        Args:
            network: as `knarr.deploy.lower` calibrated it.
            limits: grids that its integers stay on; by default Loihi 2's with the bits that lowering noted, or 8.
            surrogate: gradient of spikes.
            learn: what has gradients: "weights", "steps", "thresholds", "biases", "decays".
            unrounded: by layer name, the float weights that its integers were rounded from, in units of those integers: what
                rounding took away is then not lost to training.

        Raises:
            ChipError: integers outside the limits, or unrounded weights that round to others.
        """
        if limits is None:
            limits = Limits.of_bits(int(network.lowering.get("weight_bits", 8)))
        given = dict(unrounded or {})
        unknown = set(given) - {layer.name for layer in network.layers}
        if unknown:
            raise ChipError(
                f"unrounded: no layers {sorted(unknown)} in the network; leave them out"
            )
        coding = network.input
        entering, payload, units = coding.shape, 2**coding.bits - 1, coding.units
        chosen, layers = surrogate or Surrogate(), []
        for layer in network.layers:
            exact = given.get(layer.name)
            layers.append(ChipLayer(layer, entering, payload, units, limits, chosen, learn, exact))
            entering, payload, units = layer.output_shape, 1, 1.0
        return cls(layers, network)

    def forward(self, inputs: torch.Tensor) -> ChipStudentOutput:
        """Run clips.

        Args:
            inputs: (B, T, *input shape): integers as the chip gets them, or floats in units of the input coding, such as
                k / 255, which become the nearest integers.

        Returns:
            What the chip gives; the penalty is 0 unless in training mode.

        Raises:
            ChipError: shape or range do not fit the input coding, or sums that no float holds.
        """
        ran = self._run(inputs, keep_currents=False)
        last = self._last_layer
        outputs = last.volts(ran[-1]) if self.start.readout.kind == "voltage" else ran[-1].spikes
        integers = ran[-1].peaks if self.start.readout.kind == "voltage" else ran[-1].spikes
        firing: list[tuple[Any, ChipLayerOutput]] = [
            (layer, one)
            for layer, one in zip(self.layers, ran, strict=True)
            if layer.chip_layer.neuron.spikes
        ]
        return ChipStudentOutput(
            outputs.flatten(2),
            integers.detach().flatten(2).long(),
            tuple(one.spikes.detach().mean() for _, one in firing),
            torch.stack([one.penalty for one in ran]).sum(),
            self.start.readout,
            tuple(one.spikes for _, one in firing),
            tuple(partial(layer.volts, one) for layer, one in firing),
            tuple(one.acc for one in ran),
            ran[0].acc_in.detach(),
        )

    @property
    def _last_layer(self) -> ChipLayer:
        last: Any = self.layers[-1]
        return last

    def _run(self, inputs: torch.Tensor, *, keep_currents: bool) -> list[ChipLayerOutput]:
        x = integers_of(self.start.input, inputs)
        if self.start.input.neuron is not None:
            x = self._driven(x).spikes
        found = []
        for layer in self.layers:
            ran: ChipLayerOutput = layer(x, penalise=self.training, keep_currents=keep_currents)
            found.append(ran)
            x = ran.spikes
        return found

    def _driven(self, mantissas: torch.Tensor) -> ChipLayerOutput:
        """Input neurons: a current without memory does to v what a bias of every step does."""
        neuron, compiled = self.start.input.neuron, self._last_layer.compiled
        assert neuron is not None  # the caller looked
        flat = mantissas.flatten(2)
        none, *registers = (
            torch.tensor(float(value), dtype=torch.float64)
            for value in (0, neuron.vth_int, DECAY_UNITY, neuron.v_decay)
        )
        with torch.no_grad():
            bias = none.expand(flat.shape[2]).to(flat.device)
            ran = cuba(
                flat,
                bias,
                registers[0],
                (registers[1], registers[2]),
                Surrogate(),
                compiled=compiled,
            )
        spikes, peaks = (array.view(mantissas.shape) for array in (ran.spikes, ran.peaks))
        nothing = peaks.new_zeros(len(peaks), dtype=torch.float64)
        return ChipLayerOutput(
            spikes, peaks, torch.zeros_like(peaks), mantissas, peaks.new_zeros(()), nothing, nothing
        )

    def recording(self, inputs: torch.Tensor) -> Recording:
        """Every spike, u, v and sum as `knarr.hw_sim.simulate` records them, for `knarr.hw_sim.compare`."""
        with torch.no_grad():
            ran = dict(
                zip(
                    (layer.name for layer in self.start.layers),
                    self._run(inputs, keep_currents=True),
                    strict=True,
                )
            )
            peaks = {name: int(one.arrived.abs().max()) for name, one in ran.items()}
            if self.start.input.neuron is not None:
                ran = {INPUT_LAYER: self._driven(integers_of(self.start.input, inputs)), **ran}
        spikes = {name: one.spikes.cpu().numpy().astype(np.uint8) for name, one in ran.items()}
        v = {
            name: np.where(spikes[name], 0, one.peaks.cpu().numpy()).astype(np.int64)
            for name, one in ran.items()
        }
        last = self.start.layers[-1].name
        output = v[last] if self.start.readout.kind == "voltage" else spikes[last].astype(np.int64)
        return Recording(
            output.reshape(*output.shape[:2], -1),
            spikes,
            v,
            {name: one.currents.cpu().numpy().astype(np.int64) for name, one in ran.items()},
            {
                name: z.reshape(*z.shape[:2], -1).sum(2, dtype=np.int64)
                for name, z in spikes.items()
            },
            peaks,
            "chip student",
        )

    def to_network(self) -> ChipNetwork:
        """What is trained, as the chip holds it.

        Returns:
            The network it started from where no integer has changed. Otherwise its layers without what lowering measured, which
            speaks of other integers; the hash of the graph that it was lowered from moves to `lowering["trained"]`.
        """
        layers = tuple(self._of(layer) for layer in self.layers)
        if layers == self.start.layers:
            return self.start
        kept = {
            key: self.start.lowering[key] for key in ("weight_bits",) if key in self.start.lowering
        }
        notes = {**kept, TRAINED: {"lowered_from": self.start.graph_hash}}
        return replace(self.start, layers=layers, graph_hash=None, lowering=notes)

    @staticmethod
    def _of(layer: Any) -> Any:
        return layer.to_layer()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for an optimiser: weights decay, what their scale is measured by does not."""
        weights = {
            id(p)
            for layer in self.layers
            for p in (layer.synapse.weight, layer.recurrent)
            if p is not None
        }
        learned = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in learned if id(p) in weights], "weight_decay": weight_decay},
            {"params": [p for p in learned if id(p) not in weights], "weight_decay": 0.0},
        ]


def integers_of(coding: InputCoding, inputs: torch.Tensor) -> torch.Tensor:
    """(B, T, *shape) float32 integers as the first layer gets them.

    Raises:
        ChipError: shape or range do not fit; nothing is clipped.
    """
    shape = coding.shape
    if (
        len(shape) == 3
        and shape[1] == 1
        and inputs.ndim == 4
        and inputs.shape[2:] == (shape[0], shape[2])
    ):
        inputs = inputs.unsqueeze(3)
    if inputs.ndim != 2 + len(shape) or inputs.shape[2:] != shape or not prod(inputs.shape):
        raise ChipError(
            f"inputs: shape {tuple(inputs.shape)}, needs (samples, timesteps, {', '.join(map(str, shape))})"
        )
    values = (inputs.double() * coding.units).round() if inputs.is_floating_point() else inputs
    low, high = (int(value) for value in torch.aminmax(values))
    least, most = (-MAX_BIAS, MAX_BIAS) if coding.neuron is not None else (0, 2**coding.bits - 1)
    if low < least or high > most:
        raise ChipError(
            f"inputs: integers {low}..{high}, the input takes {least}..{most}; clip or scale them"
        )
    return values.float()
