"""Lay nodes out as a row of chip layers.

netx is a row of layers and adds nothing, but a synapse is linear: W1 x1 + W2 x2 = [W1 | W2] [x1; x2].
So nodes of one depth share a layer, which receives all that its nodes hear, and what is heard
further behind is handed on by relay neurons.

Layers that convolve need one stride and one size of image. Where nodes of a layer differ in them,
a larger image travels as s*s channels of its pixels (y mod s, x mod s), and the kernels that give
and take it are rearranged. Places that then lie beyond a node's image never fire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.neurons import FloatNeuron, Register
from knarr.deploy.lowering.places import Seat
from knarr.deploy.lowering.read import (
    CONSTANT,
    FloatNetwork,
    FloatNode,
    Hearing,
    relay,
)
from knarr.export.graph.parameters import float64
from knarr.export.graph.paths import MAX_MATRIX, Convolution, Pair, identity
from knarr.export.graph.shapes import Shape, spread
from knarr.hw_sim.arrays import Float64, Int32, Int64, Mask
from knarr.hw_sim.network import DECAY_UNITY, Layer

MAX_STRIDE = 64
"""Strides that a layer of several nodes is tried with."""


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A synapse and its neurons, as a chip layer of its own.

    Args:
        name: name of the synapse's node.
        neuron: the neurons that it feeds; None for relay neurons.
        weight: (out, in), or (out, in / groups, height, width) of a convolution; the neurons' gain
            is in it.
        bias: (out,) per output or channel.
        height: (neurons,) thresholds, infinite where a neuron never fires; or one for all.
        i_decay, v_decay: (neurons,) registers, or one for all.
        seat: where its node's features lie among its own outputs.
        recurrent: (out, out) from the layer's own spikes of the step before, or None.
        delay: (out, in) whole steps, or None.
        geometry: input_shape, stride, padding, dilation and groups of a `knarr.hw_sim.Conv`, None
            for a dense layer.
        units: integers per unit of what arrives: 1 for spikes, such as 255 for frames of 8 bits.
        bits: bits of what arrives, a sign aside.
        signed: it may be negative.
        fires_always: it is the neuron that fires at every step.
    """

    name: str
    neuron: FloatNeuron | None
    weight: Float64
    bias: Float64
    height: Float64
    i_decay: Register
    v_decay: Register
    seat: Seat
    recurrent: Float64 | None = None
    delay: Int32 | None = None
    geometry: dict[str, Any] | None = None
    units: float = 1.0
    bits: int = 1
    signed: bool = False
    fires_always: bool = False


@dataclass(frozen=True, eq=False)
class Level:
    """One chip layer: parts that receive the same, nodes first, then relay neurons.

    Args:
        parts: their outputs follow each other.
        handed_on: source -> relay neurons that hand it on here.
    """

    parts: tuple[FloatLayer, ...]
    handed_on: dict[str, int]

    @property
    def nodes(self) -> list[FloatLayer]:
        """Parts that are nodes of the graph."""
        return [part for part in self.parts if part.neuron is not None]


def lay_out(network: FloatNetwork, units: float, bits: int, signed: bool) -> list[Level]:
    """Return the chip layers of a network, in order.

    Args:
        network: its nodes.
        units, bits, signed: what its input sends.

    Raises:
        DeployError: a payload that a relay neuron would have to hand on.
    """
    depth = _depths(network, bits > 1 or signed)
    needed = {name: _last_hearers(network, depth, name) for name in (network.input, *depth)}
    seats = {network.input: _first_seat(network.input_shape)}
    width = network.input_shape[0]
    last = depth[network.output]
    built: list[_Draft] = []
    for level in range(1, last + 1):
        here = [network.nodes[name] for name, at in depth.items() if at == level]
        copied = [name for name in seats if name != CONSTANT and needed[name] > level]
        constant = any(
            depth[name] == level + 1 and heard.source == CONSTANT
            for name, node in network.nodes.items()
            if name in depth
            for heard in node.hearings
        )
        # Relay neurons do not hear themselves as the nodes of the graph do, under their own name.
        copies = [_handed_on(network, name, seats[name]) for name in copied]
        draft = _Draft(here, copies, constant, seats, width, level == last)
        built.append(draft)
        seats, width = draft.seats, draft.width
    levels = [draft.level() for draft in built]
    if bits > 1 or signed or units != 1.0:
        first = [replace(part, units=units, bits=bits, signed=signed) for part in levels[0].parts]
        levels[0] = replace(levels[0], parts=tuple(first))
    return _without_idle(levels)


def synapses(levels: Sequence[Level], outline: Sequence[Level]) -> list[Mask]:
    """Return which weights of each layer are synapses of the graph, (out, ...) as its parts follow.

    Args:
        levels: of a graph.
        outline: of the same graph with weights of 1. A layer that came out otherwise, since weights
            that are 0 were left out of it, has those that are not 0.
    """
    found = []
    alike = len(levels) == len(outline)
    for at, level in enumerate(levels):
        parts: Sequence[FloatLayer] = level.parts
        if alike and [p.weight.shape for p in parts] == [p.weight.shape for p in outline[at].parts]:
            parts = outline[at].parts
        found.append(np.concatenate([part.weight != 0 for part in parts]))
    return found


def _first_seat(shape: Shape) -> Seat:
    return Seat(0, shape, (shape[1], shape[2]) if len(shape) == 3 else None)


def _depths(network: FloatNetwork, graded: bool) -> dict[str, int]:
    """Return the layer of every node, from 1."""
    depth: dict[str, int] = {network.input: 0}
    hearers: dict[str, list[str]] = {name: [] for name in network.nodes}
    for name, node in network.nodes.items():
        sources = [heard.source for heard in node.hearings]
        # The neuron that fires at every step lies in a layer, too.
        depth[name] = 1 + max(1 if source == CONSTANT else depth[source] for source in sources)
        for source in sources:
            if source in hearers:
                hearers[source].append(name)
    # It becomes dense as late as it is heard: all behind a dense layer is dense, relays are cheap.
    for name, node in reversed(network.nodes.items()):
        late = node.neuron is None or not node.convolves
        # Payloads reach the first layer alone.
        fixed = graded and any(heard.source == network.input for heard in node.hearings)
        if late and hearers[name] and not fixed:
            depth[name] = min(depth[hearer] for hearer in hearers[name]) - 1
    del depth[network.input]
    for name, node in network.nodes.items():
        hears = any(heard.source == network.input for heard in node.hearings)
        if graded and hears and depth[name] > 1:
            raise DeployError(
                f"node '{name}': hears the input beside or behind other layers, and a relay neuron "
                "hands on spikes, no payloads; feed spikes, or let the first layer alone hear it"
            )
    return depth


def _last_hearers(network: FloatNetwork, depth: dict[str, int], source: str) -> int:
    """Return the last layer that hears a source."""
    found = [
        depth[name]
        for name, node in network.nodes.items()
        if any(heard.source == source for heard in node.hearings)
    ]
    return max(found, default=0)


def _handed_on(network: FloatNetwork, source: str, seat: Seat) -> FloatNode:
    """Return the relay neurons of a source."""
    shape = seat.shape
    if len(shape) == 3:
        return relay(source, source, identity(shape))
    heard = Hearing(source, None, lambda: np.eye(prod(shape)))
    return FloatNode(source, source, shape, None, (heard,), np.zeros(shape), np.ones(shape))


class _Draft:
    """A layer while it is laid out.

    Args:
        nodes: nodes of the graph, and relay neurons that stand for windows.
        copies: relay neurons of sources that are heard further behind.
        constant: a neuron that fires at every step stands here.
        seats: source -> where it lies among what arrives.
        width: features or channels that arrive.
        last: it is the last layer, which shows the node's image as it is.
    """

    def __init__(
        self,
        nodes: list[FloatNode],
        copies: list[FloatNode],
        constant: bool,
        seats: dict[str, Seat],
        width: int,
        last: bool,
    ) -> None:
        self.nodes, self.copies, self.constant = nodes, copies, constant
        self.entering, self.entering_width = seats, width
        grids = {seat.grid for seat in seats.values()}
        self.entering_grid = None if None in grids else grids.pop()
        self.members = sorted(nodes, key=lambda node: node.neuron is None) + copies
        self.kinds = ["node" if node in nodes else "copy" for node in self.members]
        self.stride = self._stride(last) if self._images() else None
        self.seats: dict[str, Seat] = {}
        self.width = 0
        self.grid = self._grid() if self.stride else None
        for node in self.members:
            factors = self._factors(node) if self.stride else (1, 1)
            assert factors is not None
            seat = Seat(self.width, node.shape, self.grid, factors)
            self.seats[node.name] = seat
            self.width += seat.rows
        if constant:
            shape = (1, *self.grid) if self.grid else (1,)
            self.seats[CONSTANT] = Seat(self.width, shape, self.grid)
            self.width += 1
        self.neurons = self.width * prod(self.grid or (1,))
        self.entering_size = self.entering_width * prod(self.entering_grid or (1,))

    # --- one stride and one size for all

    def _images(self) -> bool:
        return self.entering_grid is not None and all(node.convolves for node in self.members)

    def _stride(self, last: bool) -> Pair | None:
        """Return the least stride that every node can have, None where there is none."""
        found = []
        for axis in (0, 1):
            own = [
                heard.convolution.stride[axis]
                for node in self.members
                for heard in node.hearings
                if heard.convolution is not None
            ]
            tries = range(1, max(MAX_STRIDE, *own) + 1)
            fits = (s for s in tries if all(self._factor(n, axis, s) for n in self.members))
            stride = next(fits, None)
            # The output keeps the order of its pixels.
            if stride is None or (last and self._factor(self.members[0], axis, stride) != 1):
                return None
            found.append(stride)
        return found[0], found[1]

    def _factor(self, node: FloatNode, axis: int, stride: int) -> int | None:
        """Return the side of the squares that a node's image is cut into, None where none fits."""
        sides = set()
        for heard in node.hearings:
            if heard.source == CONSTANT:
                continue
            assert heard.convolution is not None
            side, rest = divmod(
                self.entering[heard.source].factors[axis] * stride,
                heard.convolution.stride[axis],
            )
            if rest:
                return None
            sides.add(side)
        return sides.pop() if len(sides) == 1 else None

    def _factors(self, node: FloatNode) -> Pair | None:
        assert self.stride is not None
        down, across = (self._factor(node, axis, self.stride[axis]) for axis in (0, 1))
        return None if down is None or across is None else (down, across)

    def _grid(self) -> Pair:
        """Return the size of the layer's images, in which the largest has room."""
        sides = []
        for axis in (0, 1):
            each = [
                -(-node.shape[1 + axis] // (self._factors(node) or (1, 1))[axis])
                for node in self.members
            ]
            sides.append(max(each))
        return sides[0], sides[1]

    # --- its parts

    def level(self) -> Level:
        """Return the layer."""
        parts = self._image_parts() if self.grid else self._flat_parts()
        handed_on = {
            node.name: self.seats[node.name].rows * prod(self.grid or (1,))
            for node in self.members
            if node.neuron is None
        }
        if self.constant:
            handed_on["bias"] = prod(self.grid or (1,))
        return Level(tuple(parts), handed_on)

    def _flat_parts(self) -> list[FloatLayer]:
        weights = self.width * self.entering_size
        if weights > MAX_MATRIX:
            raise DeployError(
                f"layer '{'+'.join(node.synapse for node in self.members)}': {weights:,} weights as "
                f"one matrix, at most {MAX_MATRIX:,}; use fewer features, or sizes that its pooling "
                "divides, so that convolutions stay convolutions"
            )
        parts = []
        for node in self.members:
            weight = np.zeros((prod(node.shape), self.entering_size))
            delay = np.zeros(weight.shape, dtype=np.int32)
            for heard in node.hearings:
                columns = self._columns(heard.source)
                weight[:, columns] += heard.matrix()
                delay[:, columns] += heard.delay
            gain = node.gain.reshape(-1, 1)
            recurrent = None if node.recurrent is None else gain * node.recurrent
            part = self._part(node, gain * weight, node.bias.reshape(-1))
            if recurrent is not None and delay.any():
                raise DeployError(
                    f"node '{node.synapse}': delays in a layer with a loop, which netx drops; "
                    "remove them"
                )
            parts.append(replace(part, recurrent=recurrent, delay=delay if delay.any() else None))
        if self.constant:
            parts.append(self._constant(np.zeros((1, self.entering_size))))
        return parts

    def _columns(self, source: str) -> Int64:
        """Return the columns of a source, of whose image one pixel is enough where it never changes."""
        index = self.entering[source].index().reshape(-1)
        return index[:1] if source == CONSTANT else index

    def _image_parts(self) -> list[FloatLayer]:
        alone = self._alone()
        if alone is not None:
            return [alone]
        taps = {node.name: self._taps(node) for node in self.members}
        every = [place for each in taps.values() for place, *_ in each] or [(0, 0)]
        low, high = np.min(every, axis=0), np.max(every, axis=0)
        assert self.grid is not None
        assert self.entering_grid is not None
        assert self.stride is not None
        # One kernel for all, wide enough for the farthest tap of any of them.
        span = high - low + 1
        whole = Convolution(
            np.zeros((1, 1, int(span[0]), int(span[1]))), self.stride,
            (int(-low[0]), int(-low[1])), (1, *self.entering_grid), (1, *self.grid),
        )  # fmt: skip
        made, padding = whole.symmetric()
        geometry = {
            "input_shape": (self.entering_width, *self.entering_grid),
            "stride": self.stride, "padding": padding, "dilation": (1, 1), "groups": 1,
        }  # fmt: skip
        kernel = made.weight.shape[2:]
        parts = []
        for node in self.members:
            weight = np.zeros((self.seats[node.name].rows, self.entering_width, *kernel))
            for (down, across), rows, columns, values in taps[node.name]:
                block = weight[:, :, down + padding[0], across + padding[1]]
                block[np.ix_(rows, columns)] += values
            squares = prod(self.seats[node.name].factors)
            gain = self._channel_gain(node)
            weight *= gain.repeat(squares).reshape(-1, 1, 1, 1)
            bias = node.bias.reshape(len(node.bias), -1)[:, 0].repeat(squares)
            parts.append(replace(self._part(node, weight, bias), geometry=geometry))
        if self.constant:
            silent = np.zeros((1, self.entering_width, *kernel))
            parts.append(replace(self._constant(silent), geometry=geometry))
        return parts

    def _alone(self) -> FloatLayer | None:
        """Return a single convolution as the graph has it: with its groups and its dilation."""
        if len(self.members) != 1 or self.constant or len(self.members[0].hearings) != 1:
            return None
        (node,) = self.members
        (heard,) = node.hearings
        seat = self.entering.get(heard.source)
        if seat is None or seat.factors != (1, 1) or seat.rows != self.entering_width:
            return None
        if heard.source == CONSTANT or self.seats[node.name].factors != (1, 1):
            return None
        assert heard.convolution is not None
        made, padding = heard.convolution.symmetric()
        geometry = {
            "input_shape": made.entering, "stride": made.stride, "padding": padding,
            "dilation": made.dilation, "groups": made.groups,
        }  # fmt: skip
        weight = made.weight * self._channel_gain(node).reshape(-1, 1, 1, 1)
        bias = node.bias.reshape(len(node.bias), -1)[:, 0].copy()
        return replace(self._part(node, weight, bias), geometry=geometry)

    def _taps(self, node: FloatNode) -> list[tuple[Pair, Int64, Int64, Float64]]:
        """Return the taps of a node's kernels on the layer's grid.

        Returns:
            For every tap (its place from the pixel a neuron lies over, rows, columns, values).
        """
        found = []
        out = self.seats[node.name]
        channels = np.arange(node.shape[0])
        for heard in node.hearings:
            seat, convolution = self.entering[heard.source], heard.convolution
            assert convolution is not None
            plain = convolution.plain().dense()
            heard_channels = np.arange(plain.weight.shape[1])
            for phase in product(*map(range, out.factors)):
                rows = (channels * out.factors[0] + phase[0]) * out.factors[1] + phase[1]
                for tap in np.ndindex(*plain.weight.shape[2:]):
                    values = plain.weight[:, :, tap[0], tap[1]]
                    if not values.any():
                        continue
                    # On the source's own pixels, from the first pixel of its square.
                    place = [
                        p * s - b + t
                        for p, s, b, t in zip(phase, plain.stride, plain.before, tap, strict=True)
                    ]
                    if heard.source == CONSTANT:
                        place = [0, 0]  # it fires everywhere inside the image
                    down, across = (p // f for p, f in zip(place, seat.factors, strict=True))
                    inner = [p % f for p, f in zip(place, seat.factors, strict=True)]
                    columns = seat.first + (
                        (heard_channels * seat.factors[0] + inner[0]) * seat.factors[1] + inner[1]
                    )
                    found.append(((down, across), rows, columns, values))
        return found

    def _channel_gain(self, node: FloatNode) -> Float64:
        """Return the gain of each channel: the largest of its neurons."""
        return np.asarray(node.gain.reshape(len(node.gain), -1).max(axis=1))

    def _part(self, node: FloatNode, weight: Float64, bias: Float64) -> FloatLayer:
        seat = replace(self.seats[node.name], first=0)
        name = node.synapse
        if node.neuron is None:
            # Beyond its image a window may lie over pixels, which count there as silence; a pixel of
            # the source finds nothing there.
            kernel = node.hearings[0].convolution
            pixels = kernel is None or (
                kernel.weight.shape[2:] == (1, 1) and kernel.stride == (1, 1)
            )
            beyond = 1.0 if pixels else np.inf
            height = self._in_places(seat, np.ones(node.shape), beyond)
            return FloatLayer(name, None, weight, bias, height, 0, 0, seat)
        neuron = node.neuron
        height = spread(neuron.height, node.shape)
        if seat.grid is not None and node.gain.size > 1:
            # A gain below its channel's is a threshold above the others'.
            channel = self._channel_gain(node).reshape(-1, 1, 1)
            height = height * np.where(node.gain == channel, 1.0, channel / node.gain)
        return FloatLayer(
            name, neuron, weight, bias, self._in_places(seat, height, np.inf),
            self._registers(seat, node.shape, neuron.i_decay, DECAY_UNITY),
            self._registers(seat, node.shape, neuron.v_decay, DECAY_UNITY - 1), seat,
        )  # fmt: skip

    def _registers(self, seat: Seat, shape: Shape, register: Register, beyond: int) -> Register:
        """Return decays; neurons beyond the image forget at once, so that they never get high."""
        placed = self._in_places(seat, spread(float64(register), shape), beyond).astype(np.int32)
        return placed if np.ptp(placed) else int(placed[0])

    def _in_places(self, seat: Seat, values: Float64, beyond: float) -> Float64:
        """Return one value per neuron of a part, and `beyond` where none of the node's lies."""
        size = seat.rows * prod(self.grid or (1,))
        placed = np.full(size, beyond)
        placed[seat.index().reshape(-1)] = values.reshape(-1)
        return placed

    def _constant(self, weight: Float64) -> FloatLayer:
        seat = replace(self.seats[CONSTANT], first=0)
        size = prod(self.grid or (1,))
        return FloatLayer(
            "bias", None, weight, np.ones(1), np.ones(size), 0, 0, seat, fires_always=True
        )


def _without_idle(levels: list[Level]) -> list[Level]:
    """Drop relay neurons that nothing behind them hears, from the last layer to the first."""
    for position in range(len(levels) - 2, -1, -1):
        level, behind = levels[position], levels[position + 1]
        geometry = behind.parts[0].geometry
        if geometry is not None and geometry["groups"] > 1:
            continue
        flat_behind = behind.parts[0].geometry is None
        image = level.parts[0].geometry is not None
        heard = np.any([_heard_columns(part) for part in behind.parts], axis=0)
        pixels = prod(level.parts[0].seat.grid or (1,))
        rows_heard = heard.reshape(-1, pixels).any(axis=1) if image and flat_behind else heard
        kept_parts, kept_rows, handed_on = [], [], dict(level.handed_on)
        first = 0
        for part in level.parts:
            rows = len(part.weight)
            keep = np.ones(rows, dtype=bool)
            if part.neuron is None and not part.fires_always:
                keep = rows_heard[first : first + rows]
            kept_rows.append(keep)
            first += rows
            if keep.all():
                kept_parts.append(part)
                continue
            handed_on[part.name] = int(keep.sum()) * (pixels if image else 1)
            if keep.any():
                heights = part.height.reshape(rows, -1)[keep].reshape(-1)
                fewer = replace(
                    part, weight=part.weight[keep], bias=part.bias[keep], height=heights
                )
                kept_parts.append(fewer)
        kept = np.concatenate(kept_rows)
        if kept.all():
            continue
        columns = kept.repeat(pixels) if image and flat_behind else kept
        levels[position] = Level(tuple(kept_parts), {k: n for k, n in handed_on.items() if n})
        levels[position + 1] = replace(
            behind, parts=tuple(_only(part, columns) for part in behind.parts)
        )
    return levels


def _heard_columns(part: FloatLayer) -> Any:
    return part.weight.any(axis=(0, *range(2, part.weight.ndim)))


def _only(part: FloatLayer, columns: Any) -> FloatLayer:
    """Return a part without the columns of dropped relay neurons."""
    geometry = part.geometry
    if geometry is not None:
        _, *sides = geometry["input_shape"]
        geometry = {**geometry, "input_shape": (int(columns.sum()), *sides)}
    delay = None if part.delay is None else part.delay[:, columns]
    return replace(part, weight=part.weight[:, columns], delay=delay, geometry=geometry)


def places(levels: Sequence[Level], layers: Sequence[Layer]) -> dict[str, list[dict[str, Any]]]:
    """Return the nodes of every layer that is more than one node, as JSON values."""
    found = {}
    for level, made in zip(levels, layers, strict=True):
        first, here = 0, []
        for part in level.parts:
            if part.neuron is not None:
                seat = part.seat
                here.append(
                    {
                        "node": part.neuron.name,
                        "synapse": part.name,
                        "first": first,
                        "shape": list(seat.shape),
                        "grid": None if seat.grid is None else list(seat.grid),
                        "factors": list(seat.factors),
                    }
                )
            first += len(part.weight)
        whole = len(level.parts) == 1 and level.nodes
        if not (whole and level.parts[0].seat.plain):
            found[made.name] = here
    return found
