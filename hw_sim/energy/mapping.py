"""Cores of a chip under a network, and the traffic between them: what a layer's counts do not hold.

`knarr.deploy.core_mapping` makes a `CoreMapping` from a placement. `traffic_of` runs the network on
it and says per layer how many messages a spike becomes (one per core that hears it), over how many
hops, how many neurons are updated in a step because they have an input, a bias or a potential, and
what the busiest core does in each step.

A core counts as SANA-FE's does (arch/loihi.yaml, src/pipeline.hpp, src/schedule.cpp at 8951ab0), so
that the two can be compared term by term: every neuron is visited in every step, four cores share a
tile, tiles are numbered down the columns of a mesh, and a message crosses |dx| + |dy| links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.counting.fan_out import FanOut, layer_fan_outs, own_fan_out
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.json_values import JsonRecord
from knarr.hw_sim.network import ChipNetwork, Conv, Recurrent
from knarr.hw_sim.recording import INPUT_LAYER
from knarr.hw_sim.simulation import simulate
from knarr.hw_sim.synapse_masks import synapse_mask

CORES_PER_TILE = 4
MESH_HEIGHT = 4
"""Tiles of a column; with 8 columns the mesh has Loihi's 32 tiles (SANA-FE, arch/loihi.yaml)."""
LOADS = ("neurons", "updated", "spikes", "messages_out", "messages_in", "synapses", "synapses_conv")
"""Work of a core in a step, in the order of `Traffic.loads`."""


@dataclass(frozen=True, eq=False)
class LayerCores:
    """Cores of one layer.

    Args:
        core: (neurons,) number of each neuron's core, counted over the whole network.
        senders: sparse (senders, cores of the network): synapses from each sender into each core;
            None of input neurons, which nothing feeds.
        loop: the same from the layer's own neurons, where their spikes come back.
    """

    core: Int64
    senders: Any = None
    loop: Any = None


@dataclass(frozen=True, eq=False)
class CoreMapping:
    """A network on the cores of a chip.

    Args:
        chip: its title, such as "Loihi 2".
        cores, chips: in use.
        layers: layer name -> its cores, `knarr.hw_sim.recording.INPUT_LAYER` for input neurons;
            input to output.
    """

    chip: str
    cores: int
    chips: int
    layers: Mapping[str, LayerCores]


@dataclass(frozen=True)
class LayerTraffic(JsonRecord):
    """Traffic of one layer, as ratios, so that counts of other samples can be priced by it.

    Args:
        cores: in use.
        messages_per_spike: mean number of cores that hear a spike of this layer.
        hops_x, hops_y: links that a message crosses, mean, east-west and north-south.
        updated: share of the clocked updates that have an input, a bias or a potential, 0..1.
    """

    cores: int
    messages_per_spike: float
    hops_x: float
    hops_y: float
    updated: float


@dataclass(frozen=True, eq=False)
class Traffic:
    """Traffic of a network between its cores.

    Args:
        chip: title of the chip.
        cores, chips, tiles: in use.
        samples: how many were run for it.
        layers: layer name -> traffic.
        external: messages per event of an input that comes from outside, mean; 0 where the input
            has neurons of its own.
        loads: (samples, steps, cores, len(LOADS)) what each core does in each step.
    """

    chip: str
    cores: int
    chips: int
    tiles: int
    samples: int
    layers: Mapping[str, LayerTraffic]
    external: float
    loads: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, without the loads of each step."""
        return {
            "chip": self.chip,
            "cores": self.cores,
            "chips": self.chips,
            "tiles": self.tiles,
            "samples": self.samples,
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "external_messages_per_event": self.external,
        }


def traffic_of(network: ChipNetwork, inputs: npt.ArrayLike, mapping: CoreMapping) -> Traffic:
    """Run a network and count the traffic between its cores.

    Args:
        network: the network that was mapped.
        inputs: (samples, timesteps, *network.input.shape); a few dozen samples are enough, since
            ratios are kept.
        mapping: of that network.

    Raises:
        ChipError: inputs that do not fit, or a mapping of another network.
    """
    names = [layer.name for layer in network.layers]
    driven = network.input.neuron is not None
    expected = [INPUT_LAYER, *names] if driven else names
    if list(mapping.layers) != expected:
        raise ChipError(
            f"mapping: of layers {list(mapping.layers)}, the network has {expected}; map this network"
        )
    sizes = [prod(network.input.shape)] if driven else []
    sizes += [prod(layer.output_shape) for layer in network.layers]
    for (name, placed), size in zip(mapping.layers.items(), sizes, strict=True):
        if len(placed.core) != size:
            raise ChipError(
                f"mapping: layer '{name}' has {len(placed.core)} neurons there, {size} in the network; "
                "map this network"
            )
    events = check_inputs(network.input, inputs)
    fan_outs = {
        layer.name: layer_fan_outs(layer, synapse_mask(network, layer)) for layer in network.layers
    }
    count = _Counter(mapping, *events.shape[:2])
    # One after the other: voltages of every step take hundreds of MB in a large network.
    for sample in range(len(events)):
        count.sample = sample
        _run(network, events[sample : sample + 1], mapping, fan_outs, count)
    return count.traffic()


def _run(
    network: ChipNetwork,
    events: Array,
    mapping: CoreMapping,
    fan_outs: Mapping[str, Mapping[int, FanOut]],
    count: _Counter,
) -> None:
    """Run one sample and count it."""
    recording = simulate(network, events, record=("spikes", "v"))
    size, source = prod(network.input.shape), ""
    sent = _flat(events != 0, size)
    if network.input.neuron is not None:
        awake = sent | _before(recording.v[INPUT_LAYER], size)
        source, sent = INPUT_LAYER, _flat(recording.spikes[INPUT_LAYER], size)
        count.neurons(source, awake | sent, sent)
    for layer in network.layers:
        placed = mapping.layers[layer.name]
        synapses = "synapses_conv" if isinstance(layer, Conv) else "synapses"
        spikes = _flat(recording.spikes[layer.name], prod(layer.output_shape))
        reached = _reached(fan_outs[layer.name], sent)
        count.messages(source, placed.senders, sent, synapses)
        if isinstance(layer, Recurrent):
            reached |= _reached({1: own_fan_out(layer.recurrent_int)}, spikes)
            count.messages(layer.name, placed.loop, spikes, synapses)
        if layer.bias_int is not None:
            # One for each neuron, or for each channel.
            biased = (layer.bias_int != 0).reshape(-1)
            reached |= np.repeat(biased, reached.shape[-1] // biased.size)
        before = _before(recording.v[layer.name], reached.shape[-1])
        count.neurons(layer.name, reached | before | spikes, spikes)
        source, sent = layer.name, spikes


def _flat(values: Array, size: int) -> Mask:
    """Return (samples, steps, size) of booleans."""
    return np.asarray(values).reshape(*values.shape[:2], size).astype(bool)


def _before(v: Array, size: int) -> Mask:
    """Return where a neuron has a potential when a step begins."""
    held = np.zeros((*v.shape[:2], size), dtype=bool)
    held[:, 1:] = _flat(v != 0, size)[:, :-1]
    return held


def _reached(fan_outs: Mapping[int, FanOut], active: Mask) -> Mask:
    """Return (samples, steps, outputs): where an event arrives."""
    found = None
    for delay, fan_out in fan_outs.items():
        moved = np.zeros_like(active)
        moved[:, delay:] = active[:, : active.shape[1] - delay] if delay else active
        here = fan_out.touched(moved.reshape(-1, moved.shape[-1]))
        found = here if found is None else found | here
    assert found is not None  # a layer has one synapse at least
    return found.reshape(*active.shape[:2], -1).copy()


class _Counter:
    """Adds up what cores do, sample after sample and layer after layer.

    Attributes:
        sample: number of the one that is counted.
    """

    def __init__(self, mapping: CoreMapping, samples: int, steps: int) -> None:
        self.mapping, self.sample = mapping, 0
        self.loads = np.zeros((samples, steps, mapping.cores, len(LOADS)))
        # Messages, and the links that they crossed in both directions, by the layer they left.
        self.sent = {name: np.zeros(3) for name in ("", *mapping.layers)}
        # Updates and spikes of each layer.
        self.counts = {name: np.zeros(2) for name in mapping.layers}
        self.events = 0
        tile = np.arange(mapping.cores) // CORES_PER_TILE
        self.x, self.y = tile // MESH_HEIGHT, tile % MESH_HEIGHT

    def neurons(self, name: str, updated: Mask, spikes: Mask) -> None:
        """Count the updates and spikes of a layer, both (1, steps, neurons)."""
        core = self.mapping.layers[name].core
        self._add("neurons", np.ones_like(updated), core)
        self._add("updated", updated, core)
        self._add("spikes", spikes, core)
        self.counts[name] += np.count_nonzero(updated), np.count_nonzero(spikes)

    def messages(self, source: str, senders: Any, sent: Mask, synapses: str) -> None:
        """Count the messages of senders, (1, steps, senders), into the cores of a layer."""
        frames = sent[0].astype(np.float64)
        hears = senders.copy()
        hears.data = np.ones_like(hears.data, dtype=np.float64)
        loads = self.loads[self.sample]
        arrived = np.asarray(frames @ hears)
        loads[..., LOADS.index("messages_in")] += arrived
        loads[..., LOADS.index(synapses)] += np.asarray(frames @ senders)
        if source == "":
            self.sent[source] += arrived.sum(), 0.0, 0.0
            self.events += int(np.count_nonzero(sent))
            return
        core = self.mapping.layers[source].core
        spikes, heard = frames.sum(axis=0), np.asarray(hears.sum(axis=1)).reshape(-1)
        self._add("messages_out", sent * heard, core)
        rows, columns = hears.nonzero()
        across, along = (abs(at[core[rows]] - at[columns]) for at in (self.x, self.y))
        self.sent[source] += arrived.sum(), spikes[rows] @ across, spikes[rows] @ along

    def _add(self, load: str, values: Array, core: Int64) -> None:
        """Sum (1, steps, neurons) over each core."""
        order = np.argsort(core, kind="stable")
        numbers, starts = np.unique(core[order], return_index=True)
        summed = np.add.reduceat(values[0][:, order].astype(np.float64), starts, axis=-1)
        self.loads[self.sample][:, numbers, LOADS.index(load)] += summed

    def traffic(self) -> Traffic:
        """Return what was counted, as ratios."""
        layers = {}
        frames = self.loads.shape[0] * self.loads.shape[1]
        for name, (updated, spikes) in self.counts.items():
            messages, hops_x, hops_y = map(float, self.sent[name])
            core = self.mapping.layers[name].core
            layers[name] = LayerTraffic(
                cores=len(np.unique(core)),
                messages_per_spike=messages / float(spikes) if spikes else 0.0,
                hops_x=hops_x / messages if messages else 0.0,
                hops_y=hops_y / messages if messages else 0.0,
                updated=float(updated) / (frames * len(core)),
            )
        tiles = -(-self.mapping.cores // CORES_PER_TILE)
        external = float(self.sent[""][0]) / self.events if self.events else 0.0
        return Traffic(
            self.mapping.chip,
            self.mapping.cores,
            self.mapping.chips,
            tiles,
            len(self.loads),
            layers,
            external,
            self.loads,
        )
