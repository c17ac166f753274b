"""A chip network that learns in its own arithmetic, and goes back to a chip network without being
quantised again.

A layer has float weights, bias and threshold, and one step by which all of them become integers, in
the scale of `knarr.deploy.lowering.quantise`, where the threshold is 1 and S = 1 / step:

    weight = round(w / step)
    threshold, bias, recurrent = round(units x / step)
    chip voltage = 64 units / step * v

Spikes depend on the ratios of these integers alone, so a layer has one free factor. Floats hold the
ratios, and start where the float student had them: threshold 1, weights as trained. The step is the
free factor, and decides only how finely weights are rounded and how many are clipped: that is what
it learns. Step and decays are learned relative to their start: an optimiser's rate then means the
same in every layer, and no exponential has to agree to the last bit between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    InputCoding,
    Readout,
    Recording,
    Recurrent,
)
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Mask
from knarr.hw_sim.coding import MAX_BIAS
from knarr.hw_sim.network import (
    DECAY_UNITY,
    TRAINED,
    Layer,
    Register,
    register_array,
    register_range,
)
from knarr.hw_sim.recording import INPUT_LAYER
from knarr.hw_sim.synapse_masks import SYNAPSES, synapse_mask
from knarr.train.chip.limits import UNIT, Limits, excess, series
from knarr.train.chip.neurons import Steps, Surrogate, cuba
from knarr.train.chip.quantiser import QuantisationGrid, damped, rounded
from knarr.train.chip.synapse import Accumulates, Synapse, one_side, returned
from knarr.train.settings import LEARNED, Learned

LEAST_STEP = 1 / 64
"""Least step, relative to its start; steps are positive."""


@dataclass(frozen=True)
class ChipLayerOutput(Steps):
    """Output of a layer for clips: its steps, each (B, T, *features), spikes in float32 for the
    next layer.

    Args:
        penalty: 0-d, `excess` of sums and states that no bound keeps inside their registers.
        acc: (B,) float64, see `Accumulates`.
        acc_in: the part of it that arriving events cost, without the layer's own spikes.
    """

    penalty: Tensor
    acc: Tensor
    acc_in: Tensor


class ChipLayer(nn.Module):
    """One chip layer that learns; the module says how its floats become integers.

    Args:
        layer: where it starts.
        entering: shape of what arrives.
        arriving: least and largest integer that arrive.
        units: integers per unit that arrives.
        limits: grids of legal integers.
        surrogate: gradient of its spikes.
        learn: names of what has gradients.
        unrounded: float weights in units of the layer's integers, which they round to; None starts
            at the integers.

    Raises:
        ChipError: integers outside the limits, or unrounded weights that round to others.
    """

    def __init__(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        arriving: tuple[int, int],
        units: float,
        limits: Limits,
        surrogate: Surrogate,
        learn: Collection[Learned],
        unrounded: npt.NDArray[np.float64] | None = None,
        synapses: Mask | None = None,
    ) -> None:
        super().__init__()
        self.chip_layer = layer
        self.arriving = arriving
        self.units = units
        self.limits = limits
        self.surrogate = surrogate
        self.compiled = True
        """True where numba runs its neurons on the CPU; torch runs them elsewhere."""
        grid = limits.grid_of(layer)
        first = _first_step(layer, units)
        self.first_step: Tensor
        self.register_buffer("first_step", torch.tensor(first, dtype=torch.float64))
        relays = relay_rows(layer)
        # Relay neurons stay as they are: they carry a branch past this layer, and what they carry
        # would change with them. So does the step, which would round them anew.
        self.step = _parameter(1.0, "steps" in learn and not relays.any())
        self.relays: Tensor
        self.register_buffer("relays", torch.from_numpy(relays), persistent=False)
        weight = layer.weight_int.astype(np.float64)
        if unrounded is not None:
            weight = _checked(layer, unrounded, grid)
        self.synapse = Synapse(layer, entering, first * weight, grid)
        # Parameters stay parameters where they do not learn, so that checkpoints hold all of them.
        self.synapse.weight.requires_grad_("weights" in learn)
        self.accumulates = Accumulates(layer, max(1, round(units)), synapses)
        neuron = layer.neuron
        self.threshold: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.recurrent: nn.Parameter | None = None
        if neuron.spikes:
            vth_int = np.asarray(neuron.vth_int)
            self.threshold = _parameter(vth_int * first / units, "thresholds" in learn)
        if layer.bias_int is not None:
            self.bias = _parameter(layer.bias_int * (first / units), "biases" in learn)
        if isinstance(layer, Recurrent):
            # A spike comes back as 1, where an arriving 1.0 is `units` integers.
            back = torch.from_numpy(layer.recurrent_int * (first / units)).float()
            self.recurrent = nn.Parameter(back, "weights" in learn)
        decays = np.asarray(neuron.i_decay), np.asarray(neuron.v_decay)
        self.start_i: Tensor
        self.start_v: Tensor
        # They follow from the network, so checkpoints need not hold them.
        self.register_buffer("start_i", torch.tensor(decays[0]).double(), persistent=False)
        self.register_buffer("start_v", torch.tensor(decays[1]).double(), persistent=False)
        self.i_decay, self.v_decay = (
            _parameter(
                np.ones(register.shape), "decays" in learn and bool(_forgets_some(register).any())
            )
            for register in decays
        )

    def integers(self) -> dict[str, Tensor]:
        """Return all integers of the layer, as floats that hold them and pass gradients; weights
        without copies.
        """
        limits = self.limits
        step = self.current_step()
        # Damped once for all: the gradients of everything that shares the step add up in it.
        step = damped(step, self.synapse.weight.numel(), self.synapse.grid)
        over_units = step / self.units
        whole = torch.ones_like(step)
        found = {
            "weight": self._held(self.synapse.integers(step)),
            "threshold": step.new_tensor(float(NON_SPIKING_VTH)),
        }
        if self.threshold is not None:
            grid = QuantisationGrid(0, limits.vth_max)
            found["threshold"] = self._held(rounded(self.threshold, over_units, grid))
        if self.bias is not None:
            grid = QuantisationGrid(-limits.bias_max, limits.bias_max)
            found["bias"] = self._held(rounded(self.bias, over_units, grid))
        if self.recurrent is not None:
            found["recurrent"] = self._held(rounded(self.recurrent, over_units, self.synapse.grid))
        for name, start, change, ends in (
            ("i_decay", self.start_i, self.i_decay, limits.i_decays),
            ("v_decay", self.start_v, self.v_decay, limits.v_decays),
        ):
            # A register that forgets nothing, or everything, has nothing to learn: no gradient.
            factor = torch.where(_forgets_some(start), change, 1.0)
            found[name] = rounded(start * factor, whole, QuantisationGrid(*ends))
        return found

    def _held(self, integers: Tensor) -> Tensor:
        """Return the integers of outputs or neurons, those of relay neurons without a gradient."""
        if not self.relays.any():
            return integers
        if not integers.ndim:
            return integers.detach()  # one threshold, relay neurons among those that share it
        rows = self.relays.repeat_interleave(len(integers) // len(self.relays))
        return torch.where(
            rows.reshape(-1, *(1,) * (integers.ndim - 1)), integers.detach(), integers
        )

    def current_step(self) -> Tensor:
        """Return the float value of one integer of a weight, 0-d."""
        return self.first_step * self.step.clamp(min=LEAST_STEP)

    def forward(
        self, x: Tensor, *, penalise: bool = False, keep_currents: bool = False
    ) -> ChipLayerOutput:
        """Run all steps.

        Args:
            x: (B, T, *entering) integers as floats.
            penalise: compute the penalty.
            keep_currents: keep u.

        Raises:
            ChipError: sums that no float holds.
        """
        found = self.integers()
        weight = found["weight"]
        bias = found.get("bias")
        back = found.get("recurrent")
        bound = self.synapse.bound(weight, self.arriving)
        if back is not None:
            bound += one_side(back)
        sums = self.synapse(x, weight, bound)
        shape = self.chip_layer.output_shape
        if bias is None:
            spread = torch.zeros(prod(shape), dtype=torch.float64, device=x.device)
        else:
            # A convolution has a bias for each channel, all others one for each neuron.
            places = prod(shape[1:])
            spread = bias[:, None].expand(-1, places).reshape(-1)
        # States cost something only where their worst case leaves the registers; elsewhere u is not
        # kept.
        worst_u, worst_v = self._worst(bound, bias, found)
        reach = UNIT * self.limits.accumulator
        check_u = penalise and worst_u + reach >= STATE_MAX
        check_v = penalise and worst_v >= STATE_MAX
        ran = cuba(
            sums.flatten(2),
            spread,
            found["threshold"],
            (found["i_decay"], found["v_decay"]),
            self.surrogate,
            back=back,
            keep_currents=keep_currents or self.i_decay.requires_grad or check_u,
            compiled=self.compiled,
        )
        penalty = ran.spikes.new_zeros((), dtype=torch.float32)
        if penalise and bound >= self.limits.accumulator:
            penalty = penalty + excess(ran.arrived, self.limits.accumulator)
        if check_u:
            # u must keep room for one more sum, or that sum wraps it.
            penalty = penalty + excess(ran.currents, STATE_MAX - reach)
        if check_v:
            penalty = penalty + excess(ran.peaks, STATE_MAX)

        def shaped(values: Tensor) -> Tensor:
            # Values that were not wanted have no elements.
            return values.reshape(*x.shape[:2], *shape) if values.numel() else values

        spikes = shaped(ran.spikes).float()
        acc = acc_in = self.accumulates(x)
        if back is not None:
            acc = acc_in + returned(spikes, back)
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
        self, bound: int, bias: Tensor | None, found: dict[str, Tensor]
    ) -> tuple[float, float]:
        """Return bounds of |u| and |v| whatever arrives."""
        most_bias = 0.0
        if bias is not None:
            most_bias = UNIT * float(bias.detach().abs().max())
        # The slowest neuron, which need not have the largest sums.
        u = series(float(UNIT * bound), int(found["i_decay"].min()))
        return u, series(u + most_bias, int(found["v_decay"].min()))

    def volts(self, ran: ChipLayerOutput) -> Tensor:
        """Return peaks, (B, T, *features), in volts of the float student (where lowering left a
        scale) or thresholds.
        """
        # The step's share in them is in the weights: volts are sums of step * integer.
        per_unit = self.current_step().detach() / (UNIT * self.units)
        return ran.peaks * per_unit.to(ran.peaks.dtype)

    def to_layer(self) -> Layer:
        """Return the integers as a layer of a chip network, on the CPU."""
        start = self.chip_layer
        with torch.no_grad():
            found = self.integers()
            neuron = replace(
                start.neuron,
                i_decay=_register(found["i_decay"]),
                v_decay=_register(found["v_decay"]),
                vth_int=_register(found["threshold"]),
            )
            change: dict[str, Any] = {
                "weight_int": self.synapse.copied(found["weight"]),
                "neuron": neuron,
            }
            if start.scale is not None:
                # A larger step makes smaller integers of the same voltage.
                change["scale"] = start.scale / float(self.step.clamp(min=LEAST_STEP))
            for name in ("bias", "recurrent"):
                if name in found:
                    change[f"{name}_int"] = found[name].cpu().numpy().astype(np.int32)
        return replace(start, **change)

    def extra_repr(self) -> str:
        """Show the layer in print(student)."""
        return f"{type(self.chip_layer).__name__} '{self.chip_layer.name}', weights {self.synapse.grid}"


def _parameter(value: float | npt.NDArray[np.floating[Any]], learns: bool) -> nn.Parameter:
    # A copy: as_tensor shares the memory of an array.
    tensor = torch.as_tensor(value, dtype=torch.float64).clone()
    return nn.Parameter(tensor, requires_grad=learns)


def relay_rows(layer: Layer) -> npt.NDArray[np.bool_]:
    """Tell which outputs only hand on what they hear, step by step, as lowering makes them.

    Returns:
        (neurons,), of a convolution (channels,): one weight that fires at once, no bias, no loop,
        and a current that forgets everything.
    """
    weight = layer.weight_int.reshape(len(layer.weight_int), -1)

    def rows(register: Register) -> npt.NDArray[Any]:
        return register_array(register, layer.output_shape).reshape(len(weight), -1)

    found = np.count_nonzero(weight, axis=1) == 1
    found &= (weight.max(axis=1)[:, None] > rows(layer.neuron.vth_int)).all(axis=1)
    found &= (rows(layer.neuron.i_decay) == DECAY_UNITY).all(axis=1)
    if layer.bias_int is not None:
        found &= layer.bias_int == 0
    if isinstance(layer, Recurrent):
        found &= ~layer.recurrent_int.any(axis=1)
    # A layer of nothing else is a layer of its own, which may learn.
    return found if not found.all() else np.zeros_like(found)


def _forgets_some(register: Any) -> Any:
    """Tell where a decay, an array or a tensor, forgets something and not everything."""
    return (register > 0) & (register < DECAY_UNITY)


def _register(values: Tensor) -> Register:
    """Return integers as a `Neuron` takes them: one, or one of each neuron."""
    array = values.detach().cpu().numpy().astype(np.int32)
    return array if array.ndim else int(array)


def _first_step(layer: Layer, units: float) -> float:
    """Return the step at which the largest threshold is 1; for a readout the one of its volts, or at
    which the largest weight is 1.
    """
    highest = register_range(layer.neuron.vth_int)[1]
    if layer.neuron.spikes and highest:
        return units / highest
    if layer.scale is not None:
        return UNIT * units / layer.scale
    return 1 / max(1, int(np.abs(layer.weight_int).max()))


def _checked(
    layer: Layer, unrounded: npt.NDArray[np.float64], grid: QuantisationGrid
) -> npt.NDArray[np.float64]:
    """Return unrounded weights, off the ties.

    Raises:
        ChipError: they do not round to the layer's.
    """
    weight = np.asarray(unrounded, dtype=np.float64)
    integers = layer.weight_int
    if weight.shape != integers.shape:
        raise ChipError(
            f"layer '{layer.name}': unrounded weights have shape {weight.shape}, needs {integers.shape}"
        )
    rounds_to = np.clip(np.rint(weight), grid.low, grid.high)
    if grid.multiple != 1 or not np.array_equal(rounds_to, integers):
        raise ChipError(
            f"layer '{layer.name}': its unrounded weights round to others than its own; give those it was rounded from"
        )
    # Moved off the ties that float32 would decide anew; a weight that is clipped stays where it is.
    inside = np.clip(weight, integers - 0.499, integers + 0.499)
    return np.where(np.abs(weight - integers) <= 0.5, inside, weight)


@dataclass(frozen=True)
class ChipStudentOutput:
    """Output of a student for clips; logits, step_logits and rates are those of
    `knarr.train.networks.heads.StepLogits`.

    Args:
        outputs: (B, T, outputs) spikes, or volts of a voltage readout; float32 with gradients.
        integers: (B, T, outputs) int64, the same on the chip.
        rates: mean spikes per neuron and step of each layer that fires, detached 0-d.
        penalty: 0-d, what left its registers; add a multiple of it to the loss.
        readout: how a decision is read.
        fired: (B, T, *) spikes of each layer that fires, with gradients.
        peaks: call one for v before the reset of the same shape, in volts of the float student
            where lowering left a scale, else in thresholds, with gradients.
        acc: (B,) synaptic accumulates of each layer per clip, float64, `LayerCounts.acc` of the
            same run; with gradients through the spikes that cause them. 0 where graded inputs
            multiply.
        input_acc: (B,) the part that the input's own events cause, detached.
    """

    outputs: Tensor
    integers: Tensor
    rates: tuple[Tensor, ...]
    penalty: Tensor
    readout: Readout
    fired: tuple[Tensor, ...]
    peaks: tuple[Callable[[], Tensor], ...]
    acc: tuple[Tensor, ...]
    input_acc: Tensor

    @property
    def step_logits(self) -> Tensor:
        """Give (B, T, classes): every class's outputs summed."""
        clips, timesteps = self.outputs.shape[:2]
        return self.outputs.reshape(clips, timesteps, -1, self.readout.votes).sum(3)

    @property
    def logits(self) -> Tensor:
        """Give (B, classes): sum, mean or last over time, as the readout says."""
        steps = self.step_logits
        if self.readout.over_time == "last":
            return steps[:, -1]
        return steps.mean(1) if self.readout.over_time == "mean" else steps.sum(1)

    @property
    def classes(self) -> Tensor:
        """Give (B,) int64: the chip's decision, `Readout.decide` of its integers."""
        # Of integers: logits in float32 may tie where these do not. A mean decides as the sum does.
        last = self.readout.over_time == "last"
        reduced = self.integers[:, -1] if last else self.integers.sum(1)
        voters = reduced.reshape(len(reduced), -1, self.readout.votes)
        return voters.sum(2).argmax(1)


class ChipStudent(nn.Module):
    """Layers that learn; build it with `from_network`.

    `forward` gives, on any device, the integers that `knarr.hw_sim.simulate` gives for
    `to_network()`: every spike, u and v.

    Args:
        layers: the layers in their order.
        network: the network that they start from.
    """

    def __init__(self, layers: Collection[ChipLayer], network: ChipNetwork) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
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
        """Make a student that starts as this network, integer by integer.

        Args:
            network: as `knarr.deploy.lower` calibrated it.
            limits: grids that its integers stay on; by default Loihi 2's with the bits that
                lowering noted, or 8.
            surrogate: gradient of spikes.
            learn: names of what has gradients: "weights", "steps", "thresholds", "biases",
                "decays".
            unrounded: by layer name, the float weights that its integers were rounded from, in
                units of those integers: training then starts with the digits that rounding took
                away.

        Raises:
            ChipError: integers outside the limits, or unrounded weights that round to others.
        """
        if limits is None:
            limits = Limits.of_bits(int(network.lowering.get("weight_bits", 8)))
        given = unrounded or {}
        unknown = set(given) - {layer.name for layer in network.layers}
        if unknown:
            raise ChipError(
                f"unrounded: no layers {sorted(unknown)} in the network; leave them out"
            )
        surrogate = surrogate or Surrogate()
        entering = network.input.shape
        units = network.input.units
        arriving = network.input.limits
        layers = []
        for layer in network.layers:
            exact, mask = given.get(layer.name), synapse_mask(network, layer)
            layers.append(
                ChipLayer(layer, entering, arriving, units, limits, surrogate, learn, exact, mask)
            )
            # All layers but the first get spikes.
            entering = layer.output_shape
            arriving = (0, 1)
            units = 1.0
        return cls(layers, network)

    def forward(self, inputs: Tensor) -> ChipStudentOutput:
        """Run clips.

        Args:
            inputs: (B, T, *input shape): integers as the chip gets them, or floats in units of the
                input coding, such as k / 255, which become the nearest integers.

        Returns:
            The chip's output; the penalty is 0 unless in training mode.

        Raises:
            ChipError: shape or range do not fit the input coding, or sums that no float holds.
        """
        ran = self._run(inputs, keep_currents=False)
        layers: list[Any] = list(self.layers)
        outputs = integers = ran[-1].spikes
        if self.start.readout.kind == "voltage":
            outputs = layers[-1].volts(ran[-1])
            integers = ran[-1].peaks
        pairs = zip(layers, ran, strict=True)
        firing = [(layer, one) for layer, one in pairs if layer.chip_layer.neuron.spikes]
        return ChipStudentOutput(
            outputs.flatten(2),
            integers.detach().flatten(2).long(),
            tuple(one.spikes.detach().mean() for _, one in firing),
            torch.stack([one.penalty for one in ran]).sum(),
            self.start.readout,
            tuple(one.spikes for _, one in firing),
            # Computed when called: most losses do not read them.
            tuple(partial(layer.volts, one) for layer, one in firing),
            tuple(one.acc for one in ran),
            ran[0].acc_in.detach(),
        )

    def _run(self, inputs: Tensor, *, keep_currents: bool) -> list[ChipLayerOutput]:
        x = integers_of(self.start.input, inputs)
        if self.start.input.neuron is not None:
            x = self._driven(x).spikes
        found = []
        for layer in self.layers:
            found.append(layer(x, penalise=self.training, keep_currents=keep_currents))
            x = found[-1].spikes
        return found

    def _driven(self, mantissas: Tensor) -> Steps:
        """Run input neurons: a current without memory does to v what a bias of every step does."""
        neuron = self.start.input.neuron
        assert neuron is not None  # the caller looked
        flat = mantissas.flatten(2)
        # A decay of 4096 forgets all of u at each step.
        threshold, no_memory, v_decay = (
            torch.tensor(np.asarray(register)).double()
            for register in (neuron.vth_int, DECAY_UNITY, neuron.v_decay)
        )
        last: Any = self.layers[-1]
        with torch.no_grad():
            ran = cuba(
                flat,
                flat.new_zeros(flat.shape[2], dtype=torch.float64),
                threshold,
                (no_memory, v_decay),
                Surrogate(),
                compiled=last.compiled,
            )
        peaks = ran.peaks.view(mantissas.shape)
        no_currents = torch.zeros_like(peaks)
        return Steps(ran.spikes.view(mantissas.shape), peaks, no_currents, mantissas)

    def recording(self, inputs: Tensor) -> Recording:
        """Return every spike, u, v and sum as `knarr.hw_sim.simulate` records them, for
        `knarr.hw_sim.compare`.
        """
        network = self.start
        names = [layer.name for layer in network.layers]
        with torch.no_grad():
            run = self._run(inputs, keep_currents=True)
            ran: dict[str, Steps] = dict(zip(names, run, strict=True))
            # Before the input neurons are added, whose sums `simulate` does not record.
            peaks = {name: int(one.arrived.abs().max()) for name, one in ran.items()}
            if network.input.neuron is not None:
                ran = {INPUT_LAYER: self._driven(integers_of(network.input, inputs)), **ran}
        spikes = {}
        u = {}
        v = {}
        events = {}
        for name, one in ran.items():
            fired = one.spikes.cpu().numpy().astype(np.uint8)
            peak = one.peaks.cpu().numpy()
            spikes[name] = fired
            u[name] = one.currents.cpu().numpy().astype(np.int64)
            v[name] = np.where(fired, 0, peak).astype(np.int64)
            flat = fired.reshape(*fired.shape[:2], -1)
            events[name] = flat.sum(2, dtype=np.int64)
        last = names[-1]
        output = v[last] if network.readout.kind == "voltage" else spikes[last].astype(np.int64)
        output = output.reshape(*output.shape[:2], -1)
        return Recording(output, spikes, v, u, events, peaks, "chip student")

    def to_network(self) -> ChipNetwork:
        """Return the trained network as the chip holds it.

        Returns:
            The network it started from where no integer has changed. Otherwise its layers without
            lowering's measurements, which were of other integers; the hash of the graph that it was
            lowered from moves to `lowering["trained"]`.
        """
        layers: Any = tuple(layer.to_layer() for layer in self.layers)
        if layers == self.start.layers:
            # The very object: its measurements and its graph's hash are still true.
            return self.start
        notes: dict[str, Any] = {TRAINED: {"lowered_from": self.start.graph_hash}}
        # Where nodes lie in layers that hold several stays true, whatever their integers are.
        kept = ("weight_bits", "places", "relays", SYNAPSES)
        notes = {
            key: self.start.lowering[key] for key in kept if key in self.start.lowering
        } | notes
        return replace(self.start, layers=layers, graph_hash=None, lowering=notes)

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group parameters for an optimiser: weights decay, the thresholds and steps that scale
        them do not.
        """
        synaptic = {
            id(parameter)
            for layer in self.layers
            for parameter in (layer.synapse.weight, layer.recurrent)
        }
        learned = [p for p in self.parameters() if p.requires_grad]
        weights = [p for p in learned if id(p) in synaptic]
        others = [p for p in learned if id(p) not in synaptic]
        return [
            {"params": weights, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]


def integers_of(coding: InputCoding, inputs: Tensor) -> Tensor:
    """Return (B, T, *shape) float32 integers as the first layer gets them.

    Raises:
        ChipError: shape or range do not fit; nothing is clipped.
    """
    shape = coding.shape
    # A graph over one axis is lowered to images of height 1; its inputs may have no such axis.
    one_axis = len(shape) == 3 and shape[1] == 1
    if one_axis and inputs.shape[2:] == (shape[0], shape[2]):
        inputs = inputs.unsqueeze(3)
    fits = inputs.ndim == 2 + len(shape) and inputs.shape[2:] == shape
    if not fits or not prod(inputs.shape):
        raise ChipError(
            f"inputs: shape {tuple(inputs.shape)}, needs (samples, timesteps, {', '.join(map(str, shape))})"
        )
    values = inputs
    if inputs.is_floating_point():
        values = (inputs.double() * coding.units).round()
    low, high = (int(value) for value in torch.aminmax(values))
    least, most = coding.limits
    if coding.neuron is not None:
        # Inputs are then the bias mantissas of input neurons, of either sign.
        least, most = -MAX_BIAS, MAX_BIAS
    if low < least or high > most:
        raise ChipError(
            f"inputs: integers {low}..{high}, the input takes {least}..{most}; clip or scale them"
        )
    return values.float()
