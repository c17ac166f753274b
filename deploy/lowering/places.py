"""Find the nodes of a graph in the layers of the chip network that it was lowered to.

A layer may hold several nodes, and an image as channels of its pixels. A manifest says so for the
layers of which it is true; every other layer is one node, in the graph's order. A manifest is read
without the graph, and without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.hw_sim import ChipNetwork
from knarr.hw_sim.arrays import Array, Int64

PLACES = "places"
"""Key of what `knarr.deploy.lowering.levels.places` gives in `ChipNetwork.lowering`."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class Seat:
    """The place of a node among what a layer sends.

    Args:
        first: its first neuron of a flat layer, its first channel of an image.
        shape: the node's own, (features,) or (C, H, W).
        grid: (H, W) of the layer's images, None for a flat layer.
        factors: (height, width) of the squares of pixels that became channels.
    """

    first: int
    shape: tuple[int, ...]
    grid: Pair | None = None
    factors: Pair = (1, 1)

    @property
    def rows(self) -> int:
        """Number of the layer's neurons, or channels, that it takes."""
        return self.shape[0] * prod(self.factors) if self.grid else prod(self.shape)

    @property
    def plain(self) -> bool:
        """Tell whether the node's features lie in their own order, from the first place on."""
        whole = self.grid is None or self.grid == self.shape[1:]
        return self.first == 0 and whole and self.factors == (1, 1)

    def index(self) -> Int64:
        """Return the place of every feature in the layer's neurons, which lie flat in (C, H, W) order."""
        if self.grid is None:
            return self.first + np.arange(prod(self.shape)).reshape(self.shape)
        channel, y, x = np.indices(self.shape)
        (down, across), (high, wide) = self.factors, self.grid
        row = (channel * down + y % down) * across + x % across
        return np.asarray(((self.first + row) * high + y // down) * wide + x // across)

    def take(self, sent: Array) -> Array:
        """Return what the node did, (samples, timesteps, *shape), of what its layer did."""
        if self.plain and prod(sent.shape[2:]) == prod(self.shape):
            return sent.reshape(*sent.shape[:2], *self.shape)
        return np.asarray(sent.reshape(*sent.shape[:2], -1)[:, :, self.index()])


def node_places(network: ChipNetwork) -> dict[str, tuple[str, Seat]]:
    """Return the layer and the place of every node of the graph.

    Args:
        network: a chip network; its manifest may have been edited.

    Returns:
        By the node's name; relay neurons are no nodes of the graph.

    Raises:
        DeployError: the manifest says what its layers cannot hold.
    """
    said = network.lowering.get(PLACES, {})
    found: dict[str, tuple[str, Seat]] = {}
    for layer in network.layers:
        shape = layer.output_shape
        grid = (shape[1], shape[2]) if len(shape) == 3 else None
        if not isinstance(said, dict) or layer.name not in said:
            found[layer.neuron.name] = (layer.name, Seat(0, shape, grid))
            continue
        try:
            for entry in said[layer.name]:
                seat = Seat(
                    int(entry["first"]), tuple(int(n) for n in entry["shape"]), grid,
                    (int(entry["factors"][0]), int(entry["factors"][1])),
                )  # fmt: skip
                inside = min(seat.first, 0) == 0 and min((*seat.shape, *seat.factors)) >= 1
                # Sizes before the index is made, which takes memory.
                if (
                    not inside
                    or prod(seat.shape) > prod(shape)
                    or seat.index().max() >= prod(shape)
                ):
                    raise ValueError(f"{entry} lies outside {shape}")
                found[str(entry["node"])] = (layer.name, seat)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise DeployError(
                f"layer '{layer.name}': its manifest does not say where its nodes lie ({error}); "
                "lower the graph again"
            ) from error
    return found
