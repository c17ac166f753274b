"""Count exactly what every core of a split layer needs, and find the smallest split that fits.

Neurons form a grid (C, H, W), flat layers (n, 1, 1). A split (a, b, c) cuts each axis into that
many contiguous blocks whose sizes differ by one at most, and gives every block of the grid a core;
flat layers are only cut along the first axis. A core's row block reaches the input rows
o*s - p + d*j that exist; columns and channels likewise, so senders and synapses of a convolution
are products over the axes. Synapses are stored ones, weights of 0 included; taps into the zero
padding do not exist. A brute-force tap walk certifies all counts (tests/deploy/test_place.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, reduce
from itertools import product
from math import prod

import numpy as np

from knarr.deploy.placement.chips import Resource, SynapseMemory
from knarr.hw_sim import Conv, Recurrent
from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.counting.fan_out import AxisWindow
from knarr.hw_sim.network import Layer

Split = tuple[int, int, int]
COUNTED: tuple[Resource, ...] = ("neurons", "input_axons", "synapse_words", "output_axons")
"""Resources that a split has to keep to."""


def edges(size: int, parts: int) -> Int64:
    """Return where the contiguous blocks of an axis begin and end.

    Returns:
        (parts + 1,); sizes differ by one at most.
    """
    return np.arange(parts + 1, dtype=np.int64) * size // parts


class LayerCounter:
    """Counts what the cores of a layer need.

    Args:
        shape: (C, H, W) of the neurons, (n, 1, 1) of a flat layer.
        memory: how synapses become words.
        reached: cores that each neuron sends to outside its layer, one per neuron, any shape.

    Attributes:
        loops: the layer's neurons send to the layer itself.
        delays: every synapse stores a delay.
    """

    loops = False
    delays = False

    def __init__(self, shape: Split, memory: SynapseMemory, reached: Int64) -> None:
        self.shape = shape
        self.memory = memory
        self.reached = reached.reshape(shape)

    def loads(self, resource: Resource, split: Split) -> Int64:
        """Return what each core needs of a resource of `COUNTED`, or of stored "synapses".

        Returns:
            int64 of shape `split`.
        """
        raise NotImplementedError

    def expanded(self) -> int:
        """Count the synapses of the layer with none shared."""
        raise NotImplementedError

    def receivers(self, split: Split) -> Int64:
        """Count the cores of this layer that each sender in front of it reaches.

        Returns:
            (in features,) of a flat layer, (C_in, H, W) of a convolution.
        """
        raise NotImplementedError

    def worst(self, resource: Resource, split: Split) -> int:
        """Return the fullest core's load."""
        return int(self.loads(resource, split).max())

    def peak_words(self, split: Split) -> int:
        """Return a number of synapse words that the fullest core has at least, quickly."""
        return 0

    def least_cores(self, resource: Resource, limit: int) -> int:
        """Return a bound from below on the cores that a resource needs."""
        return max(1, -(-self.worst(resource, (1, 1, 1)) // limit))


def layer_counter(layer: Layer, memory: SynapseMemory, reached: Int64) -> LayerCounter:
    """Return the counter of a layer; arguments as in `LayerCounter`."""
    if isinstance(layer, Conv):
        return ConvCounter(layer, memory, reached)
    neurons, inputs = layer.weight_int.shape
    if isinstance(layer, Recurrent):
        return FlatCounter(neurons, inputs, memory, reached, loops=True)
    delays = layer.delay_int is not None and bool(layer.delay_int.any())
    return FlatCounter(neurons, inputs, memory, reached, delays=delays)


class FlatCounter(LayerCounter):
    """Counts of a dense or recurrent layer, or of input neurons, which nothing feeds.

    Args:
        neurons, inputs: how many.
        memory, reached, loops, delays: as in `LayerCounter`.
    """

    def __init__(
        self,
        neurons: int,
        inputs: int,
        memory: SynapseMemory,
        reached: Int64,
        *,
        loops: bool = False,
        delays: bool = False,
    ) -> None:
        super().__init__((neurons, 1, 1), memory, reached)
        self.inputs = inputs
        self.loops, self.delays = loops, delays
        # Every neuron hears every sender, and so does every core.
        self.senders = inputs + (neurons if loops else 0)

    def loads(self, resource: Resource, split: Split) -> Int64:
        """Return what each core needs, as in `LayerCounter`."""
        bounds = edges(self.shape[0], split[0])
        neurons = np.diff(bounds)
        if resource == "neurons":
            need = neurons
        elif resource == "input_axons":
            need = np.full(split[0], self.senders)
        elif resource == "synapse_words":
            need = self.senders * self.memory.words(neurons, delays=self.delays)
        elif resource == "synapses":
            need = self.senders * neurons
        else:
            need = np.add.reduceat(self.reached.reshape(-1), bounds[:-1])
            # A neuron of a loop sends to every core of its own layer.
            if self.loops:
                need = need + neurons * split[0]
        return need.reshape(split)

    def least_cores(self, resource: Resource, limit: int) -> int:
        """Return a bound from below, as in `LayerCounter`."""
        # More cores do not have fewer senders each, nor fewer output axons in a loop.
        if resource == "input_axons" or (resource == "output_axons" and self.loops):
            return 1
        return super().least_cores(resource, limit)

    def expanded(self) -> int:
        """Count the synapses, as in `LayerCounter`."""
        return self.senders * self.shape[0]

    def receivers(self, split: Split) -> Int64:
        """Count the cores that each sender reaches, as in `LayerCounter`."""
        return np.full(self.inputs, prod(split))


class ConvCounter(LayerCounter):
    """Counts of a convolution; memory and reached are as in `LayerCounter`."""

    def __init__(self, layer: Conv, memory: SynapseMemory, reached: Int64) -> None:
        super().__init__(layer.output_shape, memory, reached)
        self.layer = layer
        self.shared = memory.kernel == "shared"
        self.inputs_per_group = layer.weight_int.shape[1]
        # Loads of these are the product of what each axis of a core takes.
        self.products = {"neurons", "input_axons", "synapses"}
        if self.shared:
            self.products.add("synapse_words")
        # A search asks for the same blocks of an axis in many splits.
        self._blocks = cache(self._find_blocks)
        self._kinds = cache(self._find_kinds)

    def _find_blocks(self, axis: int, parts: int) -> Int64:
        """Count what joins each block of an axis to what lies before it.

        Returns:
            Axis 0: (blocks, groups) channels of each group. Axes 1 and 2: (blocks, inputs) taps
            from each input row or column.
        """
        if axis == 0:
            groups = np.eye(self.layer.groups, dtype=np.int64)
            whole = np.repeat(groups, self.shape[0] // self.layer.groups, axis=0)
        else:
            whole = self._taps(axis - 1)
        starts = edges(self.shape[axis], parts)[:-1]
        return np.add.reduceat(whole, starts, axis=0)

    def _taps(self, axis: int) -> Int64:
        """Return (outputs, inputs) int64 of rows (axis 0) or columns: 1 where a tap joins them."""
        layer = self.layer
        window = AxisWindow(
            layer.input_shape[axis + 1],
            self.shape[axis + 1],
            layer.weight_int.shape[axis + 2],
            layer.stride[axis],
            layer.padding[axis],
            layer.dilation[axis],
        )
        return np.asarray(window.joined().T.toarray())

    def _factors(self, resource: Resource, split: Split) -> tuple[Int64, Int64, Int64]:
        """Return three axes whose product is the load of every core, where it is such a product."""
        channels, rows, columns = (self._blocks(axis, parts) for axis, parts in enumerate(split))
        sizes = [np.diff(edges(size, parts)) for size, parts in zip(self.shape, split, strict=True)]
        inputs = self.inputs_per_group
        if resource == "neurons":
            return sizes[0], sizes[1], sizes[2]
        if resource == "input_axons":
            groups = (channels > 0).sum(axis=1)
            return inputs * groups, (rows > 0).sum(axis=1), (columns > 0).sum(axis=1)
        if resource == "synapses" and not self.shared:
            return inputs * sizes[0], rows.sum(axis=1), columns.sum(axis=1)
        # A shared kernel takes the same wherever on the image its core lies.
        taps = inputs * prod(self.layer.weight_int.shape[2:])
        kernels = sizes[0] if resource == "synapses" else self.memory.words(channels).sum(axis=1)
        return taps * kernels, np.ones_like(sizes[1]), np.ones_like(sizes[2])

    def loads(self, resource: Resource, split: Split) -> Int64:
        """Return what each core needs, as in `LayerCounter`."""
        if resource in self.products:
            return _outer(*self._factors(resource, split))
        if resource == "synapse_words":
            return self._expanded_words(split)
        need = self.reached
        for axis, parts in enumerate(split):
            starts = edges(self.shape[axis], parts)[:-1]
            need = np.add.reduceat(need, starts, axis=axis)
        return need

    def worst(self, resource: Resource, split: Split) -> int:
        """Return the fullest core's load."""
        if resource not in self.products:
            return super().worst(resource, split)
        # The largest product has the largest factors.
        return prod(int(axis.max()) for axis in self._factors(resource, split))

    def _expanded_words(self, split: Split) -> Int64:
        # Few blocks differ: each axis is reduced to its distinct rows before they are combined.
        axes = [self._kinds(axis, parts) for axis, parts in enumerate(split)]
        kinds, places = zip(*axes, strict=True)
        words = np.array([self._row_words(*kind) for kind in product(*kinds)], dtype=np.int64)
        return words.reshape([len(kind) for kind in kinds])[np.ix_(*places)]

    def peak_words(self, split: Split) -> int:
        """Return the expanded words of the core with the most synapses, 0 if they are shared."""
        if self.shared:
            return 0
        rows = []
        for axis, factor in enumerate(self._factors("synapses", split)):
            kind, place = self._kinds(axis, split[axis])
            rows.append(kind[place[int(factor.argmax())]])
        return self._row_words(*rows)

    def _find_kinds(self, axis: int, parts: int) -> tuple[Int64, Int64]:
        """Return the distinct rows of an axis, and which of them each block has.

        A row holds the block's size, and how many groups or inputs have 0, 1, 2, ... channels or
        taps in it.
        """
        blocks = self._blocks(axis, parts)
        columns = [np.diff(edges(self.shape[axis], parts))]
        for taps in range(int(blocks.max()) + 1):
            columns.append((blocks == taps).sum(axis=1))
        rows = np.stack(columns, axis=1)
        kind, place = np.unique(rows, axis=0, return_inverse=True)
        return kind, place.reshape(-1)

    def _row_words(self, channels: Int64, rows: Int64, columns: Int64) -> int:
        """Count the words of a core whose axes are rows of `_find_kinds`.

        A sender with v row taps and u column taps into n channels of its group stores a row of
        n*v*u synapses.
        """
        axes = (channels, rows, columns)
        lengths = reduce(np.multiply.outer, [np.arange(len(axis) - 1) for axis in axes])
        senders = reduce(np.multiply.outer, [axis[1:] for axis in axes])
        targets = prod(int(axis[0]) for axis in axes)
        words = self.memory.words(lengths, targets=targets)
        return self.inputs_per_group * int((senders * words).sum())

    def least_cores(self, resource: Resource, limit: int) -> int:
        """Return a bound from below, as in `LayerCounter`."""
        if resource in self.products or resource == "output_axons":
            return super().least_cores(resource, limit)
        # Headers, indices and unfilled words only add to the bits of the weights.
        words = self.expanded() * self.memory.weight_bits // self.memory.word_bits
        return max(1, -(-words // limit))

    def expanded(self) -> int:
        """Count the synapses with none shared."""
        kernels = self.inputs_per_group * self.shape[0]
        return kernels * int(self._taps(0).sum()) * int(self._taps(1).sum())

    def receivers(self, split: Split) -> Int64:
        """Count the cores that each sender reaches, as in `LayerCounter`."""
        channels, rows, columns = (
            (self._blocks(axis, parts) > 0).sum(axis=0) for axis, parts in enumerate(split)
        )
        return _outer(np.repeat(channels, self.inputs_per_group), rows, columns)


def _outer(channels: Int64, rows: Int64, columns: Int64) -> Int64:
    return channels[:, None, None] * rows[:, None] * columns


def splits(shape: Split, cores: int) -> Iterator[Split]:
    """Yield every split of a grid into exactly this many blocks, none of them empty."""
    for channels in range(1, min(cores, shape[0]) + 1):
        if cores % channels:
            continue
        rest = cores // channels
        for rows in range(1, min(rest, shape[1]) + 1):
            columns, over = divmod(rest, rows)
            if not over and columns <= shape[2]:
                yield channels, rows, columns


def fits(counter: LayerCounter, split: Split, limits: dict[Resource, int]) -> bool:
    """Tell whether the fullest core stays within every limit."""
    for resource, limit in limits.items():
        # Most splits of a search are far too full, and one core tells that.
        if resource == "synapse_words" and counter.peak_words(split) > limit:
            return False
        if counter.worst(resource, split) > limit:
            return False
    return True


def smallest_split(
    counter: LayerCounter, limits: dict[Resource, int], at_least: int = 1
) -> Split | None:
    """Find the split into the fewest cores that fits.

    Of several it is the one whose fullest core has the fewest input axons.

    Args:
        counter: counts of the layer.
        limits: the most that a core holds of each resource; others are free.
        at_least: cores to begin with, where it is known that fewer do not fit.

    Returns:
        None when not even one neuron per core fits.
    """
    # A core's load never grows as its block shrinks, so the finest split decides whether any fits.
    # Only the output axons of a layer that feeds itself grow with the number of cores.
    shrinking = dict(limits)
    if counter.loops:
        shrinking.pop("output_axons", None)
    if not fits(counter, counter.shape, shrinking):
        return None
    bounds = [counter.least_cores(resource, limit) for resource, limit in limits.items()]
    for cores in range(max([at_least, *bounds]), prod(counter.shape) + 1):
        good = [split for split in splits(counter.shape, cores) if fits(counter, split, limits)]
        if good:
            return min(good, key=lambda split: (counter.worst("input_axons", split), split[::-1]))
    return None
