"""One layer on cores: what every core of a split needs, counted exactly, and the smallest split that fits.

Neurons form a grid (C, H, W), flat layers (n, 1, 1). A split (a, b, c) cuts each axis into that many contiguous blocks
whose sizes differ by one at most, and gives every block of the grid a core; flat layers are only cut along the first
axis. A core's row block reaches the input rows o*s - p + d*j that exist; columns and channels likewise, so senders and
synapses of a convolution are products over the axes. Synapses are stored ones, weights of 0 included; taps into the zero
padding do not exist. A brute-force tap walk certifies all counts (tests/deploy/test_place.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from itertools import product
from math import prod

import numpy as np

from knarr.deploy.placement.chips import Int64, Resource, SynapseMemory
from knarr.hw_sim import Conv, Dense, Recurrent
from knarr.hw_sim.counting.fan_out import AxisWindow

Split = tuple[int, int, int]
COUNTED: tuple[Resource, ...] = ("neurons", "input_axons", "synapse_words", "output_axons")


def edges(size: int, parts: int) -> Int64:
    """(parts + 1,): where contiguous blocks of an axis begin and end; sizes differ by one at most."""
    return np.arange(parts + 1, dtype=np.int64) * size // parts


class Flat:
    """Counts of a dense or recurrent layer, or of input neurons, which nothing feeds.

    Args:
        layer: the layer, or how many input neurons.
        memory: how synapses become words.
        reached: cores that each neuron sends to outside its layer, one per neuron, any shape.
    """

    def __init__(
        self, layer: Dense | Recurrent | int, memory: SynapseMemory, reached: Int64
    ) -> None:
        neurons = layer if isinstance(layer, int) else layer.output_shape[0]
        recurrent = None if isinstance(layer, int) else getattr(layer, "recurrent_int", None)
        delay = None if isinstance(layer, int) else getattr(layer, "delay_int", None)
        self.shape: Split = (neurons, 1, 1)
        self.loops = recurrent is not None
        self.senders = (0 if isinstance(layer, int) else layer.in_features) + (
            neurons if self.loops else 0
        )
        self.delays = delay is not None and bool(np.any(delay))
        self.memory = memory
        self.reached = reached.reshape(-1)

    def loads(self, resource: Resource, split: Split) -> Int64:
        """What each core needs: int64 of shape `split`; resources are `COUNTED` and "synapses" (stored)."""
        bounds = edges(self.shape[0], split[0])
        neurons = np.diff(bounds)
        if resource == "neurons":
            need = neurons
        elif resource == "input_axons":
            need = np.full(split[0], self.senders, dtype=np.int64)
        elif resource == "synapse_words":
            need = self.senders * self.memory.words(neurons, delays=self.delays)
        elif resource == "synapses":
            need = self.senders * neurons
        else:
            need = np.add.reduceat(self.reached, bounds[:-1]) + (
                neurons * split[0] if self.loops else 0
            )
        return np.asarray(need, dtype=np.int64).reshape(split)

    def worst(self, resource: Resource, split: Split) -> int:
        """The fullest core's load."""
        return int(self.loads(resource, split).max())

    def peak_words(self, split: Split) -> int:
        """As in `ConvCounter`: 0 says nothing."""
        return 0

    def least_cores(self, resource: Resource, limit: int) -> int:
        """A bound from below on the cores that this resource needs."""
        if resource == "input_axons" or (resource == "output_axons" and self.loops):
            return 1
        return max(1, -(-self.worst(resource, (1, 1, 1)) // limit))

    def expanded(self) -> int:
        """Synapses of the layer with none shared."""
        return self.senders * self.shape[0]

    def receivers(self, split: Split) -> Int64:
        """(in features,): cores of this layer that each sender in front of it reaches."""
        outside = self.senders - (self.shape[0] if self.loops else 0)
        return np.full(outside, prod(split), dtype=np.int64)


class ConvCounter:
    """Counts of a convolution; arguments, methods and results as in `Flat`."""

    loops = False
    delays = False

    def __init__(self, layer: Conv, memory: SynapseMemory, reached: Int64) -> None:
        self.layer = layer
        self.memory = memory
        self.shape: Split = layer.output_shape
        self.shared = memory.kernel == "shared"
        self.reached = reached.reshape(self.shape)
        self.inputs_per_group = layer.weight_int.shape[1]
        self._cache: dict[tuple[int, int], Int64] = {}
        self._kind_cache: dict[tuple[int, int], tuple[Int64, Int64]] = {}

    def _blocks(self, axis: int, parts: int) -> Int64:
        """Axis 0: (blocks, groups) channels of each group. Axes 1, 2: (blocks, inputs) taps from each input row."""
        if (axis, parts) not in self._cache:
            whole = self._channels() if axis == 0 else self._taps(axis - 1)
            bounds = edges(self.shape[axis], parts)
            self._cache[axis, parts] = np.add.reduceat(whole, bounds[:-1], axis=0)
        return self._cache[axis, parts]

    def _channels(self) -> Int64:
        return np.repeat(
            np.eye(self.layer.groups, dtype=np.int64), self.shape[0] // self.layer.groups, 0
        )

    def _taps(self, axis: int) -> Int64:
        """(outputs, inputs) int64: 1 where a tap joins them."""
        layer, outputs = self.layer, self.shape[axis + 1]
        inputs, kernel = layer.input_shape[axis + 1], layer.weight_int.shape[axis + 2]
        stride, padding, dilation = layer.stride[axis], layer.padding[axis], layer.dilation[axis]
        window = AxisWindow(inputs, outputs, kernel, stride, padding, dilation)
        return np.asarray(window.joined().T.toarray())

    def _sizes(self, axis: int, parts: int) -> Int64:
        return np.diff(edges(self.shape[axis], parts))

    def _factors(self, resource: Resource, split: Split) -> tuple[Int64, Int64, Int64]:
        """Three axes whose product is the load of every core, for the resources that are such a product."""
        channels, rows, columns = (self._blocks(axis, parts) for axis, parts in enumerate(split))
        sizes = (self._sizes(0, split[0]), self._sizes(1, split[1]), self._sizes(2, split[2]))
        if resource == "neurons":
            return sizes
        if resource == "input_axons":
            return (
                self.inputs_per_group * (channels > 0).sum(1),
                (rows > 0).sum(1),
                (columns > 0).sum(1),
            )
        ones = (np.ones_like(sizes[1]), np.ones_like(sizes[2]))
        taps = self.inputs_per_group * prod(self.layer.weight_int.shape[2:])
        if resource == "synapses" and self.shared:
            return (taps * sizes[0], *ones)
        if resource == "synapses":
            return (self.inputs_per_group * sizes[0], rows.sum(1), columns.sum(1))
        return (taps * self.memory.words(channels).sum(1), *ones)

    def loads(self, resource: Resource, split: Split) -> Int64:
        """What each core needs, as in `Flat`."""
        if resource == "output_axons":
            need = self.reached
            for axis, parts in enumerate(split):
                need = np.add.reduceat(need, edges(self.shape[axis], parts)[:-1], axis=axis)
            return np.asarray(need)
        if resource == "synapse_words" and not self.shared:
            return self._expanded_words(split)
        channels, rows, columns = self._factors(resource, split)
        return np.asarray(channels[:, None, None] * rows[None, :, None] * columns[None, None, :])

    def worst(self, resource: Resource, split: Split) -> int:
        """The fullest core's load."""
        if resource == "output_axons" or (resource == "synapse_words" and not self.shared):
            return int(self.loads(resource, split).max())
        return prod(int(axis.max()) for axis in self._factors(resource, split))

    def _expanded_words(self, split: Split) -> Int64:
        """int64 of shape `split`."""
        # Few blocks differ: each axis is reduced to its distinct rows before they are combined.
        kinds, places = zip(
            *(self._kinds(axis, parts) for axis, parts in enumerate(split)), strict=True
        )
        words = np.array([self._row_words(*kind) for kind in product(*kinds)], dtype=np.int64)
        return np.asarray(words.reshape([len(kind) for kind in kinds])[np.ix_(*places)])

    def peak_words(self, split: Split) -> int:
        """Expanded words of the core with the most synapses: at most the fullest core's, and quick; 0 if shared."""
        if self.shared:
            return 0
        fullest = [int(factor.argmax()) for factor in self._factors("synapses", split)]
        axes = [self._kinds(axis, parts) for axis, parts in enumerate(split)]
        return self._row_words(
            *(kind[place[index]] for (kind, place), index in zip(axes, fullest, strict=True))
        )

    def _kinds(self, axis: int, parts: int) -> tuple[Int64, Int64]:
        """Distinct rows (size, how many groups or inputs have 0, 1, 2... channels or taps), and which each block has."""
        if (axis, parts) not in self._kind_cache:
            blocks = self._blocks(axis, parts)
            counts = [(blocks == taps).sum(1) for taps in range(int(blocks.max()) + 1)]
            keyed = np.stack([self._sizes(axis, parts), *counts], axis=1)
            kind, place = np.unique(keyed, axis=0, return_inverse=True)
            self._kind_cache[axis, parts] = (kind, place.reshape(-1))
        return self._kind_cache[axis, parts]

    def _row_words(self, channels: Int64, rows: Int64, columns: Int64) -> int:
        """A sender with v row taps and u column taps into n channels of its group stores a row of n*v*u synapses."""
        axes = (channels, rows, columns)
        lengths = reduce(np.multiply.outer, [np.arange(len(axis) - 1) for axis in axes])
        how_many = reduce(np.multiply.outer, [axis[1:] for axis in axes])
        targets = prod(int(axis[0]) for axis in axes)
        return self.inputs_per_group * int(
            (how_many * self.memory.words(lengths, targets=targets)).sum()
        )

    def least_cores(self, resource: Resource, limit: int) -> int:
        """A bound from below on the cores that this resource needs."""
        if resource == "synapse_words" and not self.shared:
            least = self.expanded() * self.memory.weight_bits // self.memory.word_bits
        else:
            least = self.worst(resource, (1, 1, 1))
        return max(1, -(-least // limit))

    def expanded(self) -> int:
        """Synapses of the layer with none shared."""
        taps = [int(self._taps(axis).sum()) for axis in (0, 1)]
        return self.inputs_per_group * self.shape[0] * prod(taps)

    def receivers(self, split: Split) -> Int64:
        """(C_in, H, W): cores of this layer that each sender reaches."""
        channels, rows, columns = (
            (self._blocks(axis, n) > 0).sum(0) for axis, n in enumerate(split)
        )
        per_channel = np.repeat(channels, self.inputs_per_group)
        return np.asarray(per_channel[:, None, None] * rows[None, :, None] * columns[None, None, :])


Counter = Flat | ConvCounter


@lru_cache(maxsize=4096)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, number + 1) if number % divisor == 0)


def splits(shape: Split, cores: int) -> Iterator[Split]:
    """Every split of a grid into exactly this many blocks, none of them empty."""
    for channels in _divisors(cores):
        rest = cores // channels
        for rows in _divisors(rest):
            if channels <= shape[0] and rows <= shape[1] and rest // rows <= shape[2]:
                yield channels, rows, rest // rows


def fits(counter: Counter, split: Split, limits: dict[Resource, int]) -> bool:
    """Whether the fullest core stays within every limit."""
    for resource in COUNTED:
        if resource not in limits:
            continue
        # Most splits of a search are far too full, and one core tells that.
        if resource == "synapse_words" and counter.peak_words(split) > limits[resource]:
            return False
        if counter.worst(resource, split) > limits[resource]:
            return False
    return True


def smallest_split(
    counter: Counter, limits: dict[Resource, int], at_least: int = 1
) -> Split | None:
    """The split into the fewest cores that fits; of several, the one whose fullest core has the fewest input axons.

    Args:
        counter: counts of the layer.
        limits: the most that a core holds of each resource; others are free.
        at_least: cores to begin with, where it is known that fewer do not fit.

    Returns:
        None when not even one neuron per core fits.
    """
    # A core's load never grows as its block shrinks, so the finest split decides whether any fits. Only the output axons
    # of a layer that feeds itself grow with the number of cores.
    shrinking = {
        key: limit for key, limit in limits.items() if not (counter.loops and key == "output_axons")
    }
    if not fits(counter, counter.shape, shrinking):
        return None
    first = max(
        [at_least, *(counter.least_cores(resource, limit) for resource, limit in limits.items())]
    )
    for cores in range(first, prod(counter.shape) + 1):
        good = [split for split in splits(counter.shape, cores) if fits(counter, split, limits)]
        if good:
            return min(
                good, key=lambda split: (counter.worst("input_axons", split), split[2], split[1])
            )
    return None
