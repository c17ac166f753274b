"""Count a chip network: what its layers heard and sent, simulated here or recorded elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arithmetic import SYNAPSE_BITS
from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.fan_out import FanOut, layer_fan_outs, own_fan_out
from knarr.hw_sim.counting.tally import SAMPLE_BLOCK_BYTES, LayerTally, Tallies, blocks
from knarr.hw_sim.engines.base import LayerResult, TallyRequest
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.network import (
    DECAY_UNITY,
    ChipNetwork,
    Conv,
    Dense,
    Layer,
    Neuron,
    Recurrent,
    register_array,
)
from knarr.hw_sim.recording import INPUT_LAYER, Recording
from knarr.hw_sim.simulation import simulate, simulate_counted
from knarr.hw_sim.synapse_masks import synapse_mask


def count_events(
    network: ChipNetwork,
    inputs: npt.ArrayLike,
    recording: Recording,
) -> OperationCounts:
    """Count the operations of a chip network that already ran.

    Args:
        network: the network that ran.
        inputs: (samples, timesteps, *network.input.shape), what it was fed.
        recording: what came out, with the spikes of every layer (`record=("spikes",)`).

    Returns:
        Counts per inference, as those of `count`.

    Raises:
        CountError: inputs or recorded spikes are missing or do not fit the network.
    """
    events: Array = np.asarray(inputs)
    shape = network.input.shape
    if events.shape[2:] != shape or events.ndim != 2 + len(shape) or 0 in events.shape:
        sizes = ", ".join(map(str, shape))
        raise CountError(
            f"inputs: shape {events.shape}, needs (samples, timesteps, {sizes}) with at least one of each"
        )
    for name, spikes in recording.spikes.items():
        if len(spikes) != len(events):
            raise CountError(
                f"layer '{name}': recorded spikes have shape {spikes.shape}, inputs {events.shape}; not of one run"
            )
    counter = ChipCounter(network)
    for block in blocks(len(events), counter.bytes_per_sample(events), SAMPLE_BLOCK_BYTES):
        part = {name: spikes[block] for name, spikes in recording.spikes.items()}
        steps = np.full(len(events[block]), events.shape[1])
        counter.add(events[block], Recording(recording.output[block], part), steps)
    return counter.finish()


@dataclass(frozen=True, eq=False)
class _Reached:
    """The outputs that events reach in one network.

    Args:
        fan_outs: of every layer, by the steps after which synapses act.
        loops: of layers with themselves.
        whole: every stored weight is a synapse.
        wanted: what the kernel has to know of layers, filled in when first asked for.
        sizes: words of every layer, filled in likewise.
    """

    fan_outs: dict[str, dict[int, FanOut]]
    loops: dict[str, FanOut]
    whole: bool
    wanted: dict[str, TallyRequest] = field(default_factory=dict)
    sizes: dict[str, LayerSizes] = field(default_factory=dict)


_KNOWN: dict[int, tuple[weakref.ref[ChipNetwork], _Reached]] = {}
"""Synapses by identity of their network, as `simulation` keeps layers that are laid out: sums over
millions of weights take longer than a sample.
"""


def _synapses(network: ChipNetwork) -> _Reached:
    known = _KNOWN.get(id(network))
    # An id may belong to a new network by now.
    if known is not None and known[0]() is network:
        return known[1]
    masks = {layer.name: synapse_mask(network, layer) for layer in network.layers}
    found = _Reached(
        {layer.name: layer_fan_outs(layer, masks[layer.name]) for layer in network.layers},
        {
            layer.name: own_fan_out(layer.recurrent_int)
            for layer in network.layers
            if isinstance(layer, Recurrent)
        },
        all(mask is None for mask in masks.values()),
    )
    key = id(network)
    _KNOWN[key] = (weakref.ref(network, lambda _: _KNOWN.pop(key, None)), found)
    return found


class ChipCounter:
    """Adds up batch after batch of one network.

    Args:
        network: the network; one that is driven by bias has a row for its input neurons.
    """

    def __init__(self, network: ChipNetwork) -> None:
        self.network = network
        synapses = _synapses(network)
        self.fan_outs, self.loops = synapses.fan_outs, synapses.loops
        self.wanted, self.whole, self.sizes = synapses.wanted, synapses.whole, synapses.sizes
        driven = [INPUT_LAYER] if network.input.neuron is not None else []
        self.tallies = Tallies([*driven, *self.fan_outs])

    def feed(self, inputs: Array, lengths: Int64) -> None:
        """Simulate and count one batch; arguments as those of `add`.

        Raises:
            ChipError: inputs that do not fit the network.
        """
        events = check_inputs(self.network.input, inputs)
        if self._counts_while_running(events):
            wanted = [self._wanted(layer, lengths) for layer in self.network.layers]
            found = simulate_counted(self.network, events, wanted)
            if found is not None:
                self._take(found, lengths)
                return
        self.add(events, simulate(self.network, events, record=("spikes",)), lengths)

    def _counts_while_running(self, events: Array) -> bool:
        """Tell whether the kernel can count: spikes arrive, every stored weight is a synapse, and no
        convolution has groups.
        """
        coding = self.network.input
        spikes = coding.bits == 1 and not coding.signed and coding.neuron is None
        grouped = any(getattr(layer, "groups", 1) > 1 for layer in self.network.layers)
        return spikes and round(coding.units) == 1 and self.whole and not grouped

    def _wanted(self, layer: Layer, lengths: Int64) -> TallyRequest:
        """Return what the kernel has to know of a layer to count what arrives."""
        if layer.name not in self.wanted:
            fan_outs = list(self.fan_outs[layer.name].values())
            geometry = delays = None
            if isinstance(layer, Conv):
                kernel = layer.weight_int.shape[2:]
                geometry = (kernel, layer.stride, layer.padding, layer.dilation)
            elif isinstance(layer, Dense) and layer.delay_int is not None:
                delays = (layer.delay_int, layer.weight_int != 0)
            self.wanted[layer.name] = TallyRequest(
                lengths,
                np.sum([each.stored.reshape(-1) for each in fan_outs], axis=0),
                np.sum([each.nonzero.reshape(-1) for each in fan_outs], axis=0),
                geometry,
                delays,
                layer.name in self.loops,
            )
        return replace(self.wanted[layer.name], paid=lengths)

    def _take(self, found: Mapping[str, LayerResult], lengths: Int64) -> None:
        """Take over what the kernel counted in one batch; `add` counts the same from spikes."""
        self.tallies.begin(lengths)
        for layer in self.network.layers:
            tally, result = self.tallies[layer.name], found[layer.name]
            counted, outputs = result.tally, prod(layer.output_shape)
            assert counted is not None  # it was asked for
            alive = np.arange(result.counts.shape[1]) < lengths[:, None]
            paid = int(lengths.sum())
            delays = list(self.fan_outs[layer.name])
            # With one delay for all, frames that would act after the end are none.
            late = delays[0] if len(delays) == 1 else 0
            acting = np.arange(late, late + alive.shape[1]) < lengths[:, None]
            tally.take(counted.stored, counted.nonzero, counted.events, counted.heard[acting])
            for fan_out in self.fan_outs[layer.name].values():
                tally.dense(fan_out, paid)
            touched = counted.touched
            if touched is None:
                touched = outputs * (counted.heard > 0)
            if layer.name in self.loops:
                loop = self.loops[layer.name]
                touched = np.maximum(touched, self._take_own(tally, loop, result, lengths))
                tally.dense(loop, paid)
            tally.add("neuron_updates", paid * outputs)
            tally.add("spikes", result.counts[alive].sum())
            if layer.bias_int is not None:
                tally.add("bias_adds", paid * outputs)
                tally.add("touched_updates", paid * outputs)
            else:
                tally.add("touched_updates", touched[alive].sum())

    def _take_own(
        self, tally: LayerTally, loop: FanOut, result: LayerResult, lengths: Int64
    ) -> Int64:
        """Take over the spikes that come back; return (samples, timesteps) neurons they reach."""
        assert result.tally is not None  # it was asked for
        assert result.tally.own is not None  # of a layer with a loop
        own, counts = result.tally.own, result.counts.astype(np.int64)
        neurons, per_spike = loop.outputs[0], int(loop.stored[0])
        # A spike of the last step would come back after the inference.
        returning = np.where(np.arange(1, counts.shape[1] + 1) < lengths[:, None], counts, 0)
        events = int(own.sum())
        tally.take(returning * per_spike, int(own @ loop.nonzero.reshape(-1)), events)
        tally.add("recurrent_all_pairs", events * neurons)
        tally.add("recurrent_no_autapse", events * (neurons - 1))
        before = np.zeros_like(counts)
        before[:, 1:] = counts[:, :-1]
        # A single spike does not reach the neuron that sent it where there are no autapses.
        return np.select([before > 1, before == 1], [neurons, per_spike], 0)

    def add(
        self,
        inputs: Array,
        recording: Recording,
        lengths: Int64,
    ) -> None:
        """Count one batch that ran.

        Args:
            inputs: (samples, timesteps, *network.input.shape), what the network was fed.
            recording: what came out, with the spikes of every layer.
            lengths: (samples,) steps of each; later ones are padding that nobody pays.

        Raises:
            CountError: inputs or recorded spikes are missing or do not fit the network.
        """
        samples, steps = inputs.shape[:2]

        def acting(delay: int) -> Mask:
            """(samples, steps): whether what is sent in a step acts before the inference ends."""
            return np.arange(delay, steps + delay) < lengths[:, None]

        alive = acting(0)
        paid = int(alive.sum())
        self.tallies.begin(lengths)
        events, active = inputs, _as_mask(inputs)
        source, shape = self.network.input.neuron, self.network.input.shape
        # Integers of the chip for 1 of the graph's input; neurons send 1 everywhere.
        unit = max(1, round(self.network.input.units)) if source is None else 1
        if source is not None:
            tally = self.tallies[INPUT_LAYER]
            events = active = _recorded(INPUT_LAYER, source, recording, (samples, steps, *shape))
            _count_neurons(tally, active, alive)
            # The bias that drives the input reaches every neuron in every step.
            tally.add("bias_adds", paid * prod(shape))
            tally.add("touched_updates", paid * prod(shape))
        for layer in self.network.layers:
            tally = self.tallies[layer.name]
            fan_outs = self.fan_outs[layer.name]
            delayed = len(fan_outs) > 1
            for delay, fan_out in fan_outs.items():
                tally.deliver(fan_out, events, acting(delay), 0, unit=unit, repeated=delayed)
                tally.dense(fan_out, paid)
            active = active.reshape(samples, steps, -1)
            if delayed:
                # An event that several synapses hear at different steps is one event.
                heard = [
                    active & (fan_out.stored > 0) & acting(delay)[..., None]
                    for delay, fan_out in fan_outs.items()
                ]
                tally.add("events", np.count_nonzero(np.logical_or.reduce(heard)))
                tally.note_classes(events, alive, unit)
            shape = (samples, steps, *layer.output_shape)
            spikes = _recorded(layer.name, layer.neuron, recording, shape)
            if layer.name in self.loops:
                # A spike of the last step would come back after the inference.
                loop = self.loops[layer.name]
                tally.deliver(loop, spikes, acting(1), 0, own_spikes=True)
                tally.dense(loop, paid)
            _count_neurons(tally, spikes, alive)
            if layer.bias_int is not None:
                updates = paid * prod(layer.output_shape)
                tally.add("bias_adds", updates)
                tally.add("touched_updates", updates)
            else:
                tally.add("touched_updates", self._touched(layer, active, spikes, alive))
            events = active = spikes
            unit = 1

    def _touched(
        self,
        layer: Layer,
        active: Mask,
        spikes: Mask,
        alive: Mask,
    ) -> int:
        """Count (neuron, step) pairs that an event of this or of an earlier step reaches."""
        ways = [(active, *way) for way in self.fan_outs[layer.name].items()]
        if layer.name in self.loops:
            ways.append((spikes, 1, self.loops[layer.name]))
        masks = [
            fan_out.touched(_paid_frames(_later(events, delay), alive))
            for events, delay, fan_out in ways
        ]
        reached = masks.pop()
        # One after another: stacked, they would take a copy of the recording each.
        for mask in masks:
            reached = reached | mask
        return int(np.count_nonzero(reached))

    def bytes_per_sample(self, inputs: Array) -> int:
        """Return about how much a sample and its recording take."""
        # Spikes are bytes.
        features = prod(inputs.shape[2:])
        features += sum(prod(layer.output_shape) for layer in self.network.layers)
        return features * inputs.shape[1]

    def finish(self) -> OperationCounts:
        """Return the means over everything that was added."""
        if not self.sizes:
            self.sizes.update(self._sizes())
        counts = self.tallies.counts(self._ledger(), dict(self.sizes), "folded")
        # Input layers have no weights: the values that drive them are added into their states instead.
        widest = {layer.name: self.sizes[layer.name].weight_bits for layer in self.network.layers}
        names = {name: _integers(widest.get(name) or 8) for name in counts.layers}
        return replace(counts, precision=names)

    def _ledger(self) -> list[LedgerRow]:
        rows: list[LedgerRow] = []
        relays = self.network.relay_neurons
        arriving = self.network.input.shape
        if INPUT_LAYER in self.tallies:
            note = "bias_adds at every step, neuron_updates and spikes; nothing arrives by synapse"
            rows.append(LedgerRow(INPUT_LAYER, "CUBA", "counted", note))
        for layer in self.network.layers:
            if not isinstance(layer, Conv) and len(arriving) > 1:
                rows.append(LedgerRow(f"{layer.name}.flatten", "Flatten", "free", "moves no data"))
            note = self.tallies[layer.name].note
            if layer.name in self.loops:
                what = "no autapses" if self.loops[layer.name].no_autapses else "autapses included"
                note += f"; its own spikes come back a step later, those of the last step never ({what})"
            rows.append(LedgerRow(layer.name, type(layer).__name__, "counted", note))
            if layer.bias_int is not None:
                note = "bias_adds: every step, silent ones too"
                rows.append(LedgerRow(f"{layer.name}.bias", "Bias", "counted", note))
            # Rows have names of their own, so a neuron called like a layer gets another one.
            neuron = layer.neuron.name
            if neuron in ("", *self.tallies):
                neuron = f"{layer.name}.neuron"
            note = "neuron_updates (clocked), touched_updates and spikes"
            if layer.name in relays:
                note += (
                    f"; {relays[layer.name]:,} of {prod(layer.output_shape):,} are relay neurons, "
                    "which hand on what layers behind the next one hear"
                )
            rows.append(LedgerRow(neuron, "CUBA", "counted", note))
            arriving = layer.output_shape
        last = self.network.layers[-1].name
        note = f"{self.network.readout.kind} of '{last}'; their sum and argmax over time cost nothing here"
        rows.append(LedgerRow(f"{last}.output", "Readout", "free", note))
        return rows

    def _sizes(self) -> dict[str, LayerSizes]:
        sizes = {}
        arriving = prod(self.network.input.shape)
        if INPUT_LAYER in self.tallies:
            sizes[INPUT_LAYER] = LayerSizes(
                outputs=arriving,
                biases=arriving,
                # Each has a current and a voltage.
                states=2 * arriving,
                kernel=arriving,
                leaky=True,
            )
        for layer in self.network.layers:
            sizes[layer.name] = _layer_sizes(layer, arriving)
            arriving = prod(layer.output_shape)
        return sizes


def _as_mask(values: Array) -> Mask:
    """Return where values are not 0, without a copy where they are bytes of 0 and 1."""
    if values.dtype == np.uint8 and values.max(initial=0) <= 1:
        return values.view(np.bool_)
    return np.asarray(values != 0)


def _paid_frames(values: Mask, alive: Mask) -> Mask:
    """Return the frames that are alive, (frames, *features), uncopied where all are."""
    if alive.all():
        return values.reshape(-1, *values.shape[2:])
    return values[alive]


def _count_neurons(
    tally: LayerTally,
    spikes: Mask,
    alive: Mask,
) -> None:
    neurons = prod(spikes.shape[2:])
    paid = _paid_frames(spikes, alive)
    tally.add("neuron_updates", len(paid) * neurons)
    tally.add("spikes", np.count_nonzero(paid))


def _later(active: Mask, steps: int) -> Mask:
    """Shift (samples, steps, features) to so many steps later."""
    if steps == 0:
        return active
    moved = np.zeros_like(active)
    # A delay may be longer than the inference.
    left = max(0, active.shape[1] - steps)
    moved[:, steps:] = active[:, :left]
    return moved


def weight_bits(layer: Layer) -> int:
    """Return the signed bits of a layer's weights, less the power of 2 that all of them share."""
    weights = [layer.weight_int]
    if isinstance(layer, Recurrent):
        weights.append(layer.recurrent_int)
    every = np.bitwise_or.reduce([np.bitwise_or.reduce(each, axis=None) for each in weights])
    shared = int(every) & -int(every) or 1
    least = min(int(each.min()) for each in weights) // shared
    most = max(int(each.max()) for each in weights) // shared
    return 1 + max(most.bit_length(), (-1 - least).bit_length())


def _integers(bits: int) -> str:
    """Return the narrowest precision of integers that holds so many bits."""
    return next((f"int{width}" for width in (8, 16) if bits <= width), "int32")


def _layer_sizes(layer: Layer, inputs: int) -> LayerSizes:
    outputs = prod(layer.output_shape)
    registers = [
        register_array(register, layer.output_shape)
        for register in (layer.neuron.i_decay, layer.neuron.v_decay)
    ]
    weights = layer.weight_int.size
    if isinstance(layer, Recurrent):
        weights += layer.recurrent_int.size
    # A current that decays completely in each step is no state.
    currents = int(np.count_nonzero(registers[0] < DECAY_UNITY))
    return LayerSizes(
        inputs=inputs,
        outputs=outputs,
        weights=weights,
        biases=0 if layer.bias_int is None else layer.bias_int.size,
        states=outputs + currents,
        kernel=layer.weight_int.shape[0] * prod(layer.weight_int.shape[2:]),
        convolution=isinstance(layer, Conv),
        # A register of 0 keeps the state, one of 4096 drops it: neither multiplies.
        leaky=any(((register > 0) & (register < DECAY_UNITY)).any() for register in registers),
        weight_bits=weight_bits(layer),
        state_bits=SYNAPSE_BITS,
    )


def _recorded(
    name: str,
    neuron: Neuron,
    recording: Recording,
    shape: tuple[int, ...],
) -> Mask:
    """Return a layer's recorded spikes after checking that they are spikes of this network."""
    if name not in recording.spikes:
        raise CountError(
            f"layer '{name}': its spikes were not recorded; simulate with record=('spikes',)"
        )
    spikes: Array = np.asarray(recording.spikes[name])
    if spikes.shape != shape:
        raise CountError(
            f"layer '{name}': recorded spikes have shape {spikes.shape}, the network makes {shape}"
        )
    mask = _as_mask(spikes)
    # A view of the recording is made of bytes of 0 and 1 alone; comparing these would take as long
    # as counting them.
    if not np.may_share_memory(mask, spikes) and not np.array_equal(spikes, mask):
        raise CountError(f"layer '{name}': recorded spikes hold values other than 0 and 1")
    if not neuron.spikes and mask.any():
        raise CountError(
            f"layer '{name}': never fires, yet the recording holds its spikes; it is of another network"
        )
    return mask
