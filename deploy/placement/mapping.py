"""Give every neuron of a placed network its core, for models of energy and time.

Cores are numbered from the input to the output, blocks of a layer in the order of their split:
channels first, then rows, then columns.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.placement.chips import chips
from knarr.deploy.placement.layer import LayerCounter, Split, edges
from knarr.deploy.placement.result import Placement
from knarr.hw_sim import ChipNetwork
from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.counting.fan_out import own_fan_out
from knarr.hw_sim.energy.mapping import CoreMapping, LayerCores
from knarr.hw_sim.network import Layer, Recurrent
from knarr.hw_sim.recording import INPUT_LAYER


def core_mapping(network: ChipNetwork, placement: Placement) -> CoreMapping:
    """Say which core each neuron of a placed network has, and what each core hears.

    Args:
        network: the chip network.
        placement: what `place` gives for it.

    Raises:
        DeployError: a placement of another network.
    """
    from scipy import sparse  # placing alone needs no matrix, and it loads slowly

    layers: dict[str, Layer | None] = {layer.name: layer for layer in network.layers}
    if network.input.neuron is not None:
        layers = {INPUT_LAYER: None} | layers
    if [placed.name for placed in placement.layers] != list(layers):
        raise DeployError(
            f"placement: of layers {[placed.name for placed in placement.layers]}, the network "
            f"has {list(layers)}; place this network"
        )
    memory = chips()["loihi2"].synapse_memory  # how synapses are stored is not asked here
    cores = placement.cores
    first, found = 0, {}
    for placed in placement.layers:
        layer = layers[placed.name]
        nobody = np.zeros(placed.neurons, dtype=np.int64)
        counter = LayerCounter(layer, memory, nobody)
        owner = _owners(counter.shape, placed.split)
        senders = loop = None

        def widened(block: Any, at: int = first, own: int = placed.cores) -> Any:
            """Put the columns of a layer's cores among those of the whole network."""
            left = sparse.csr_matrix((block.shape[0], at))
            right = sparse.csr_matrix((block.shape[0], cores - at - own))
            return sparse.hstack([left, block, right], format="csr")

        if layer is not None:
            senders = widened(counter.synapses_into(placed.split))
            if isinstance(layer, Recurrent):
                reached = np.tile(np.bincount(owner), (placed.neurons, 1))
                # No neuron has a synapse to itself where counting finds none.
                if own_fan_out(layer.recurrent_int).no_autapses:
                    reached[np.arange(placed.neurons), owner] -= 1
                loop = widened(sparse.csr_matrix(reached))
        found[placed.name] = LayerCores(owner + first, senders, loop)
        first += placed.cores
    return CoreMapping(placement.chip, cores, placement.chips, found)


def _owners(shape: Split, split: Split) -> Int64:
    """Return the block of each neuron, (neurons,)."""
    axes = [
        np.repeat(np.arange(parts), np.diff(edges(size, parts)))
        for size, parts in zip(shape, split, strict=True)
    ]
    grid = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), split)
    return np.asarray(grid.reshape(prod(shape)), dtype=np.int64)
