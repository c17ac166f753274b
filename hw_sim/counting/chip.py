"""Counting a chip network: what its layers heard and sent, from inputs and a recording of the same run."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.counting.fan_out import delayed_reach, layer_reach, loop_reach
from knarr.hw_sim.counting.tally import LayerTally, spread
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.network import DECAY_UNITY, ChipNetwork, Conv, Dense, Layer, Neuron, Recurrent
from knarr.hw_sim.recording import INPUT_LAYER, Recording

Lengths = npt.NDArray[np.int64]


class ChipCounter:
    """Adds up batch after batch of one network.

    Args:
        network: what runs; one that is driven by bias has a row for its input neurons.
    """

    def __init__(self, network: ChipNetwork) -> None:
        self.network = network
        self.reach = {
            layer.name: delayed_reach(layer)
            if isinstance(layer, Dense)
            else {0: layer_reach(layer)}
            for layer in network.layers
        }
        self.loops = {
            layer.name: loop_reach(layer)
            for layer in network.layers
            if isinstance(layer, Recurrent)
        }
        driven = [INPUT_LAYER] if network.input.neuron is not None else []
        self.tallies = {name: LayerTally(name) for name in (*driven, *self.reach)}
        self.samples = self.steps = 0

    def add(self, inputs: npt.NDArray[np.generic], recording: Recording, lengths: Lengths) -> None:
        """One batch.

        Args:
            inputs: (samples, timesteps, *network.input.shape), what the network was fed.
            recording: what came out, with the spikes of every layer.
            lengths: (samples,) steps of each; later ones are padding that nobody pays.

        Raises:
            CountError: inputs or recorded spikes are missing or do not fit the network.
        """
        samples, steps = inputs.shape[:2]
        alive = np.arange(steps) < lengths[:, None]
        paid = int(alive.sum())
        self.samples, self.steps = self.samples + samples, self.steps + paid
        for tally in self.tallies.values():
            tally.begin(samples)
        events = inputs
        source = self.network.input.neuron
        if source is not None:
            events = _recorded(
                INPUT_LAYER, source, self.network.input.shape, recording, samples, steps
            )
            neurons = prod(self.network.input.shape)
            self._neurons(self.tallies[INPUT_LAYER], events, alive, neurons)
            self.tallies[INPUT_LAYER].add("bias_adds", paid * neurons)
            self.tallies[INPUT_LAYER].add("touched_updates", paid * neurons)
        for layer in self.network.layers:
            tally = self.tallies[layer.name]
            reaches = self.reach[layer.name]
            for ago, reach in reaches.items():
                # What would act after the inference is not paid.
                acts = np.arange(ago, steps + ago) < lengths[:, None]
                tally.deliver(reach, events, acts, 0, again=len(reaches) > 1)
                tally.dense(reach, paid)
            if isinstance(layer, Dense) and len(reaches) > 1:
                tally.add("events", _heard(events, layer, lengths))
                tally.sort(events, alive)
            spikes = _recorded(
                layer.name, layer.neuron, layer.output_shape, recording, samples, steps
            )
            neurons = prod(layer.output_shape)
            if layer.name in self.loops:
                # A spike of the last step would come back after the inference.
                back = np.arange(1, steps + 1) < lengths[:, None]
                tally.deliver(self.loops[layer.name], spikes, back, 0, returning=True)
                tally.dense(self.loops[layer.name], paid)
            self._neurons(tally, spikes, alive, neurons)
            bias = layer.bias_int is not None
            tally.add("bias_adds", paid * neurons if bias else 0)
            tally.add(
                "touched_updates",
                paid * neurons if bias else self._touched(layer, events, spikes, alive),
            )
            events = spikes

    def _touched(
        self,
        layer: Layer,
        events: npt.NDArray[np.generic],
        spikes: npt.NDArray[np.generic],
        alive: npt.NDArray[np.bool_],
    ) -> int:
        """(neuron, step) pairs that an event reaches, those of earlier steps through delays and loops."""
        reaches = self.reach[layer.name]
        whole = bool(alive.all())
        flat = events.reshape(*alive.shape, -1)
        arrived = (
            flat.view(np.bool_)
            if flat.dtype == np.uint8 and flat.max(initial=0) <= 1
            else flat != 0
        )
        if layer.name not in self.loops and list(reaches) == [0]:
            rows = arrived.reshape(-1, arrived.shape[2]) if whole else arrived[alive]
            return int(reaches[0].touched_count(rows).sum())
        parts = [reach.touched(_later(arrived, ago)[alive]) for ago, reach in reaches.items()]
        if layer.name in self.loops:
            parts.append(self.loops[layer.name].touched(_later(spikes != 0, 1)[alive]))
        return int(np.logical_or.reduce(parts).sum())

    @staticmethod
    def _neurons(
        tally: LayerTally,
        spikes: npt.NDArray[np.generic],
        alive: npt.NDArray[np.bool_],
        neurons: int,
    ) -> None:
        tally.add("neuron_updates", int(alive.sum()) * neurons)
        fired = spikes if alive.all() else spikes[alive]
        tally.add(
            "spikes", np.count_nonzero(fired.view(np.bool_) if fired.dtype == np.uint8 else fired)
        )

    def bytes_per_sample(self, inputs: npt.NDArray[np.generic]) -> int:
        """That a sample and its recording take, about."""
        features = prod(inputs.shape[2:]) + sum(
            prod(layer.output_shape) for layer in self.network.layers
        )
        return features * inputs.shape[1]

    def finish(self) -> OperationCounts:
        """Means over everything that was added."""
        return assemble(
            self.tallies,
            tuple(self._ledger()),
            self._sizes(),
            self.samples,
            self.steps,
            pooling="folded",
        )

    def _ledger(self) -> list[LedgerRow]:
        rows: list[LedgerRow] = []
        arriving = self.network.input.shape
        if self.network.input.neuron is not None:
            note = "bias_adds at every step, neuron_updates and spikes; nothing arrives by synapse"
            rows.append(LedgerRow(INPUT_LAYER, "CUBA", "counted", note))
        for layer in self.network.layers:
            if not isinstance(layer, Conv) and len(arriving) > 1:
                rows.append(LedgerRow(f"{layer.name}.flatten", "Flatten", "free", "moves no data"))
            note = self.tallies[layer.name].note
            if layer.name in self.loops:
                what = "no autapses" if self.loops[layer.name].loop else "autapses included"
                note += f"; its own spikes come back a step later, those of the last step never ({what})"
            rows.append(LedgerRow(layer.name, type(layer).__name__, "counted", note))
            if layer.bias_int is not None:
                note = "bias_adds: every step, silent ones too"
                rows.append(LedgerRow(f"{layer.name}.bias", "Bias", "counted", note))
            named = layer.neuron.name not in ("", *self.tallies)
            neuron = layer.neuron.name if named else f"{layer.name}.neuron"
            note = "neuron_updates (clocked), touched_updates and spikes"
            rows.append(LedgerRow(neuron, "CUBA", "counted", note))
            arriving = layer.output_shape
        last = self.network.layers[-1].name
        note = f"{self.network.readout.kind} of '{last}'; their sum and argmax over time cost nothing here"
        rows.append(LedgerRow(f"{last}.output", "Readout", "free", note))
        return rows

    def _sizes(self) -> dict[str, LayerSizes]:
        sizes, arriving = {}, self.network.input.shape
        if self.network.input.neuron is not None:
            neurons = prod(arriving)
            sizes[INPUT_LAYER] = LayerSizes(
                0, neurons, 0, neurons, 2 * neurons, neurons, False, True
            )
        for layer in self.network.layers:
            sizes[layer.name] = _layer_sizes(layer, prod(arriving))
            arriving = layer.output_shape
        return sizes


def _heard(events: npt.NDArray[np.generic], layer: Dense, lengths: Lengths) -> int:
    """Events that act through one synapse at least before the inference ends, each once."""
    samples, steps = events.shape[:2]
    assert layer.delay_int is not None  # the caller saw several delays
    first = np.arange(steps)[:, None] + layer.delay_int.min(
        axis=0
    )  # (steps, inputs): when the first synapse acts
    acts = first[None] < lengths[:, None, None]
    return int(np.count_nonzero((events.reshape(samples, steps, -1) != 0) & acts))


def _later(active: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """(samples, steps, features) so many steps later."""
    moved = np.zeros_like(active)
    moved[:, steps:] = active[:, : max(0, active.shape[1] - steps)]
    return moved


def assemble(
    tallies: dict[str, LayerTally],
    ledger: tuple[LedgerRow, ...],
    sizes: dict[str, LayerSizes],
    samples: int,
    steps: int,
    pooling: str,
) -> OperationCounts:
    """Counts from tallies; `steps` of all samples together."""
    if not samples:
        raise CountError("inputs: no sample; give at least one")
    mean = Fraction(steps, samples)
    whole = [
        np.sum([tally.per_sample[at] for tally in tallies.values()], axis=0)
        for at in _batches(tallies)
    ]
    return OperationCounts(
        layers={name: tally.counts(samples) for name, tally in tallies.items()},
        ledger=ledger,
        samples=samples,
        timesteps=int(mean) if mean.denominator == 1 else mean,
        kind="snn",
        sizes=sizes,
        pooling="float" if pooling == "float" else "folded",
        per_step={name: tally.steps(samples) for name, tally in tallies.items()},
        later_macs=any(tally.later_macs for tally in tallies.values()),
        spread={name: spread(tally.per_sample) for name, tally in tallies.items()},
        total_spread=spread(whole) if whole else None,
    )


def _batches(tallies: dict[str, LayerTally]) -> range:
    return range(len(next(iter(tallies.values())).per_sample)) if tallies else range(0)


def _layer_sizes(layer: Layer, inputs: int) -> LayerSizes:
    outputs, registers = prod(layer.output_shape), (layer.neuron.i_decay, layer.neuron.v_decay)
    back = layer.recurrent_int.size if isinstance(layer, Recurrent) else 0
    current = layer.neuron.i_decay < DECAY_UNITY
    return LayerSizes(
        inputs=inputs,
        outputs=outputs,
        weights=layer.weight_int.size + back,
        biases=0 if layer.bias_int is None else layer.bias_int.size,
        states=outputs * (2 if current else 1),
        kernel=layer.weight_int.shape[0] * prod(layer.weight_int.shape[2:]),
        convolution=isinstance(layer, Conv),
        leaky=any(0 < register < DECAY_UNITY for register in registers),
    )


def _recorded(
    name: str,
    neuron: Neuron,
    shape: tuple[int, ...],
    recording: Recording,
    samples: int,
    steps: int,
) -> npt.NDArray[np.generic]:
    if name not in recording.spikes:
        raise CountError(
            f"layer '{name}': its spikes were not recorded; simulate with record=('spikes',)"
        )
    spikes = np.asarray(recording.spikes[name])
    expected = (samples, steps, *shape)
    if spikes.shape != expected:
        raise CountError(
            f"layer '{name}': recorded spikes have shape {spikes.shape}, the network makes {expected}"
        )
    known = (
        spikes.dtype == np.uint8 and spikes.max(initial=0) <= 1
    )  # much faster than the two comparisons
    if not known and not ((spikes == 0) | (spikes == 1)).all():
        raise CountError(f"layer '{name}': recorded spikes hold values other than 0 and 1")
    if not neuron.spikes and spikes.any():
        raise CountError(
            f"layer '{name}': never fires, yet the recording holds its spikes; it is of another network"
        )
    return spikes
