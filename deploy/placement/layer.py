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
from typing import Any

import numpy as np

from knarr.deploy.placement.chips import Resource, SynapseMemory
from knarr.hw_sim import Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.counting.fan_out import AxisWindow
from knarr.hw_sim.network import DECAY_UNITY, Layer, register_array

Split = tuple[int, int, int]
COUNTED: tuple[Resource, ...] = ("neurons", "input_axons", "synapse_words", "output_axons")
"""Resources that a split has to keep to, and whose sum over all cores says something."""
CONFIGS: tuple[Resource, ...] = ("compartment_configs", "threshold_configs")
"""Tables of a core that its neurons share: distinct pairs of decays, and distinct thresholds."""


def edges(size: int, parts: int) -> Int64:
    """Return where the contiguous blocks of an axis begin and end.

    Returns:
        (parts + 1,); sizes differ by one at most.
    """
    return np.arange(parts + 1, dtype=np.int64) * size // parts


class LayerCounter:
    """Counts what the cores of a layer need.

    A flat layer is counted as a convolution of one pixel, whose channels are its neurons.

    Args:
        layer: the layer; None for input neurons, which nothing feeds.
        memory: how synapses become words.
        reached: cores that each neuron sends to outside its layer, one per neuron, any shape.
        neuron: the registers; None takes the layer's.

    Attributes:
        shape: (C, H, W) of the neurons, (n, 1, 1) of a flat layer.
        conv: the layer where it is a convolution, else None.
        loops: the layer's neurons send to the layer itself.
        delays: every synapse stores a delay.
        whole_rows: a core stores the same synapses wherever its block lies: a matrix's rows, or a
            kernel once.
    """

    def __init__(
        self,
        layer: Layer | None,
        memory: SynapseMemory,
        reached: Int64,
        neuron: Neuron | None = None,
    ) -> None:
        self.memory = memory
        self.conv = layer if isinstance(layer, Conv) else None
        self.loops = isinstance(layer, Recurrent)
        delay = layer.delay_int if isinstance(layer, Dense) else None
        self.delays = delay is not None and bool(delay.any())
        self.whole_rows = self.conv is None or memory.kernel == "shared"
        self.shape: Split = (reached.size, 1, 1) if self.conv is None else self.conv.output_shape
        self.reached = reached.reshape(self.shape)
        self.configs = self._find_configs(neuron if layer is None else layer.neuron)
        self.groups = 1 if self.conv is None else self.conv.groups
        inputs, *kernel = (0,) if layer is None else layer.weight_int.shape[1:]
        self.taps = prod(kernel)
        self.input_shape = (inputs,) if self.conv is None else self.conv.input_shape
        # Senders that a neuron has at one tap: in a loop its whole layer is among them.
        self.senders = inputs + (self.shape[0] if self.loops else 0)
        # A search asks for the same blocks of an axis in many splits.
        self._blocks = cache(self._find_blocks)
        self._kinds = cache(self._find_kinds)

    def _find_configs(self, neuron: Neuron | None) -> dict[Resource, Int64]:
        """Number the distinct entries of each table that neurons ask for, (C, H, W) of each."""
        if neuron is None or neuron.shared:
            return {}
        i_decay, v_decay, vth_int = (
            register_array(register, self.shape)
            for register in (neuron.i_decay, neuron.v_decay, neuron.vth_int)
        )
        return {
            "compartment_configs": i_decay * (DECAY_UNITY + 1) + v_decay,
            "threshold_configs": vth_int,
        }

    def _find_blocks(self, axis: int, parts: int) -> Int64:
        """Count what joins each block of an axis to what lies before it.

        Returns:
            Axis 0: (blocks, groups) channels of each group. Axes 1 and 2: (blocks, inputs) taps
            from each input row or column.
        """
        if axis == 0:
            groups = np.eye(self.groups, dtype=np.int64)
            whole = np.repeat(groups, self.shape[0] // self.groups, axis=0)
        elif self.conv is None:
            whole = np.ones((1, 1), dtype=np.int64)
        else:
            window = AxisWindow(
                self.conv.input_shape[axis],
                self.shape[axis],
                self.conv.weight_int.shape[axis + 1],
                self.conv.stride[axis - 1],
                self.conv.padding[axis - 1],
                self.conv.dilation[axis - 1],
            )
            # (outputs, inputs) of rows (axis 1) or columns: 1 where a tap joins them.
            whole = window.joined().T.toarray()
        starts = edges(self.shape[axis], parts)[:-1]
        return np.add.reduceat(whole, starts, axis=0)

    def _is_product(self, resource: Resource) -> bool:
        """Tell whether the load of a core is the product of what each of its axes takes."""
        if resource == "synapse_words":
            return self.whole_rows
        return resource != "output_axons"

    def _factors(self, resource: Resource, split: Split) -> tuple[Int64, Int64, Int64]:
        """Return three axes whose product is the load of every core, where it is such a product."""
        channels, rows, columns = (self._blocks(axis, parts) for axis, parts in enumerate(split))
        sizes = [np.diff(edges(size, parts)) for size, parts in zip(self.shape, split, strict=True)]
        if resource == "neurons":
            return sizes[0], sizes[1], sizes[2]
        if resource == "input_axons":
            groups = (channels > 0).sum(axis=1)
            return self.senders * groups, (rows > 0).sum(axis=1), (columns > 0).sum(axis=1)
        if resource == "synapses" and not self.whole_rows:
            return self.senders * sizes[0], rows.sum(axis=1), columns.sum(axis=1)
        # Whole rows take the same wherever on the image their core lies.
        stored = sizes[0]
        if resource == "synapse_words":
            stored = self.memory.words(channels, delays=self.delays).sum(axis=1)
        return self.senders * self.taps * stored, np.ones_like(sizes[1]), np.ones_like(sizes[2])

    def loads(self, resource: Resource, split: Split) -> Int64:
        """Return what each core needs of a resource of `COUNTED` or `CONFIGS`, or of stored
        "synapses".

        Returns:
            int64 of shape `split`.
        """
        if resource in CONFIGS:
            return self._distinct(resource, split)
        if self._is_product(resource):
            return _outer(*self._factors(resource, split))
        if resource == "synapse_words":
            return self._expanded_words(split)
        need = self.reached
        for axis, parts in enumerate(split):
            starts = edges(self.shape[axis], parts)[:-1]
            need = np.add.reduceat(need, starts, axis=axis)
        # A neuron of a loop sends to every core of its own layer.
        return need + self.loads("neurons", split) * prod(split) if self.loops else need

    def worst(self, resource: Resource, split: Split) -> int:
        """Return the fullest core's load."""
        if resource in CONFIGS or not self._is_product(resource):
            return int(self.loads(resource, split).max())
        # The largest product has the largest factors.
        return prod(int(axis.max()) for axis in self._factors(resource, split))

    def _distinct(self, resource: Resource, split: Split) -> Int64:
        found = np.ones(split, dtype=np.int64)
        if resource in self.configs:
            cuts = [edges(size, parts) for size, parts in zip(self.shape, split, strict=True)]
            for core in np.ndindex(split):
                block = tuple(
                    slice(cut[at], cut[at + 1]) for cut, at in zip(cuts, core, strict=True)
                )
                found[core] = len(np.unique(self.configs[resource][block]))
        return found

    def _expanded_words(self, split: Split) -> Int64:
        # Few blocks differ: each axis is reduced to its distinct rows before they are combined.
        axes = [self._kinds(axis, parts) for axis, parts in enumerate(split)]
        kinds, places = zip(*axes, strict=True)
        words = np.array([self._row_words(*kind) for kind in product(*kinds)], dtype=np.int64)
        return words.reshape([len(kind) for kind in kinds])[np.ix_(*places)]

    def peak_words(self, split: Split) -> int:
        """Return the expanded words of the core with the most synapses, 0 for whole rows.

        It is a number that the fullest core has at least, quickly found.
        """
        if self.whole_rows:
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
        sizes = np.diff(edges(self.shape[axis], parts))
        counts = [(blocks == taps).sum(axis=1) for taps in range(int(blocks.max()) + 1)]
        rows = np.column_stack([sizes, *counts])
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
        return self.senders * int((senders * words).sum())

    def least_cores(self, resource: Resource, limit: int) -> int:
        """Return a bound from below on the cores that a resource needs."""
        if resource != "synapse_words" or self.whole_rows:
            # All cores together need no less than one that holds the whole layer.
            need = self.worst(resource, (1, 1, 1))
        else:
            # Headers, indices and unfilled words only add to the bits of the weights.
            need = self.expanded() * self.memory.weight_bits // self.memory.word_bits
        return max(1, -(-need // limit))

    def expanded(self) -> int:
        """Count the synapses of the layer with none shared."""
        rows, columns = (int(self._blocks(axis, 1).sum()) for axis in (1, 2))
        return self.senders * self.shape[0] * rows * columns

    def receivers(self, split: Split) -> Int64:
        """Count the cores of this layer that each sender in front of it reaches.

        Returns:
            (in features,) of a flat layer, (C_in, H, W) of a convolution.
        """
        channels, rows, columns = (
            (self._blocks(axis, parts) > 0).sum(axis=0) for axis, parts in enumerate(split)
        )
        inputs = self.input_shape[0] // self.groups
        return _outer(np.repeat(channels, inputs), rows, columns).reshape(self.input_shape)

    def synapses_into(self, split: Split) -> Any:
        """Count the synapses from each sender in front of this layer into each core.

        Returns:
            sparse (senders, cores), stored synapses, weights of 0 included.
        """
        from scipy import sparse  # placing needs no matrix, and it loads slowly

        channels, rows, columns = (self._blocks(axis, parts) for axis, parts in enumerate(split))
        inputs = self.input_shape[0] // self.groups
        of_channel = sparse.csr_matrix(np.repeat(channels, inputs, axis=1))
        image = sparse.kron(sparse.csr_matrix(rows), sparse.csr_matrix(columns))
        found = sparse.csr_matrix(sparse.kron(of_channel, image).T)
        found.eliminate_zeros()  # products of filled blocks are stored whole
        return found


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
