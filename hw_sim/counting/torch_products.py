"""Count the products that torch dispatches, with the operands they have in the run.

Every product but a convolution joins two tensors along axes with names, as an einsum does. Names that
both tensors and the result have are groups, names that both have and the result has not are summed
over, and each of the others belongs to one tensor alone.

An activation on a stored weight is a set of events that take synapses: the product is a `FanOut`,
grouped, whose kernel of one tap passes along the names of the activation alone (rows, tokens).

A product of two activations (attention) has no stored side. It costs one operation for each pair of
elements that meet and are both not 0: an addition (ACC) where one of the two lies in a frame of
spikes, since the other is then added or taken away as it is, and an AND of two spikes is added; a
multiplication (MAC) where both frames are graded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import Axis, AxisWindow, FanOut, compose_axis
from knarr.hw_sim.counting.tally import LayerTally

Names = tuple[str, ...]


class UncountedError(Exception):
    """A call cannot be counted; the reason becomes its row in the ledger."""


@dataclass(frozen=True)
class Operand:
    """A tensor with a name for each of its axes."""

    tensor: Tensor
    names: Names

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> elements along its axis."""
        return dict(zip(self.names, self.tensor.shape, strict=True))

    def without(self, name: str) -> Operand:
        """Return one of the equal parts along an axis."""
        axis = self.names.index(name)
        names = self.names[:axis] + self.names[axis + 1 :]
        return Operand(self.tensor.select(axis, 0), names)

    def distinct(self, other: Operand) -> Operand:
        """Leave out axes of one element, and those along which it repeats itself for the other."""
        found = self
        for name, size, stride in zip(
            self.names, self.tensor.shape, self.tensor.stride(), strict=True
        ):
            if size == 1 or (stride == 0 and name in other.names):
                found = found.without(name)
        return found

    def split(self, name: str, steps: int) -> Operand:
        """Cut the axis of a name into steps, which keep the name, and what each step holds."""
        if name not in self.names:
            return self
        axis = self.names.index(name)
        tensor = self.tensor.unflatten(axis, (steps, -1))  # type: ignore[no-untyped-call]
        return Operand(tensor, (*self.names[: axis + 1], f"{name}'", *self.names[axis + 1 :]))

    def array(self, *groups: Sequence[str]) -> Array:
        """Return the values with one axis for each group of names."""
        order = [self.names.index(name) for group in groups for name in group]
        sizes = self.sizes
        shape = [prod(sizes[name] for name in group) for group in groups]
        return as_array(self.tensor.permute(order)).reshape(shape)


def as_array(tensor: Tensor) -> Array:
    """Return a tensor's values as an array; numpy has no bfloat16."""
    found = tensor.detach().cpu()
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()


def storage_of(tensor: Tensor) -> StorageWeakRef:
    """Return what tells the memory of a tensor apart, and keeps others from being taken for it."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Contraction:
    """Multiplications of two tensors, the activation first where there is one stored tensor.

    Args:
        left, right: the factors.
        result: names of the result's axes.
        steps: steps of an inference that may lie side by side in one call; 1 where none do.
        folded_steps: whether an axis of steps may hold other things within each step.
    """

    left: Operand
    right: Operand
    result: Names
    steps: int = 1
    folded_steps: bool = False

    def parted(self) -> tuple[Operand, Operand, str]:
        """Return both factors without repetition, and the name of the axis of steps, "" for none.

        Steps lie on the first axis of more than one element, or nowhere.
        """
        right = self.right.distinct(self.left)
        left = self.left.distinct(right)
        name = left.names[0] if left.names else ""
        if self.steps == 1 or name not in self.result:
            return left, right, ""
        size = left.sizes[name]
        if size != self.steps and self.folded_steps and size % self.steps == 0:
            left, right = left.split(name, self.steps), right.split(name, self.steps)
        return left, right, name if left.sizes[name] == self.steps else ""

    @property
    def dense(self) -> int:
        """Multiplications where nothing is 0."""
        return prod(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> elements along it, of the factor that does not repeat itself."""
        sizes = self.left.sizes
        for name, size in self.right.sizes.items():
            sizes[name] = max(size, sizes.get(name, 1))
        return sizes


class FanOuts(dict[Hashable, FanOut]):
    """Fan-outs of stored weights, each made once as long as nothing writes into the weight."""

    def of(self, weight: Tensor, what: Hashable, make: Callable[[], FanOut]) -> FanOut:
        """Return the fan-out of a weight in a geometry, made where it is not known.

        Args:
            weight: the stored tensor.
            what: everything else that the fan-out depends on.
            make: makes it.
        """
        if weight.is_inference():  # made in the run, and nobody tells when it changes
            return make()
        place = weight.storage_offset(), tuple(weight.shape), weight.stride(), weight._version
        key = storage_of(weight), place, what
        if key not in self:
            self[key] = make()
        return self[key]


def deliver(
    tally: LayerTally, product: Contraction, fan_outs: FanOuts, step: int
) -> tuple[int, LayerSizes]:
    """Count an activation on a stored weight.

    Args:
        tally: of the layer.
        product: its left factor is the activation.
        fan_outs: those that are known.
        step: frames that the layer got before in this inference.

    Returns:
        The frames that arrived, and the words of one.
    """
    left, right, steps = product.parted()
    if steps in right.names:
        steps = ""  # a weight of its own for each step: one frame, since fan-outs are one per input
    inner = set(left.names) & set(right.names)
    groups = [name for name in left.names if name in inner and _kept(name, product)]
    summed = [name for name in left.names if name in inner and not _kept(name, product)]
    rows = [name for name in left.names if name not in inner and name != steps]
    columns = [name for name in right.names if name not in inner]
    frames = left.array([steps] if steps else [], [*groups, *summed, *rows])
    along = prod(left.sizes[name] for name in rows)
    grouped = prod(left.sizes[name] for name in groups)

    def made() -> FanOut:
        weight = right.array([*groups, *columns], summed, [])
        return FanOut(weight, (compose_axis(AxisWindow(along, along, 1)),), grouped)

    order = tuple(map(right.names.index, (*groups, *columns, *summed)))
    fan_out = fan_outs.of(right.tensor, (order, len(summed), along, grouped), made)
    arrive(tally, fan_out, frames, step)
    tally.dense(fan_out, len(frames))
    sizes = LayerSizes(
        inputs=frames.shape[1],
        outputs=prod(fan_out.outputs),
        weights=fan_out.weight.size,
        kernel=len(fan_out.weight),
    )
    return len(frames), sizes


def _kept(name: str, product: Contraction) -> bool:
    return name.rstrip("'") in product.result


def arrive(tally: LayerTally, fan_out: FanOut, frames: Array, step: int) -> None:
    """Count frames (steps, features) of one sample that arrive at synapses."""
    paid = np.ones((1, len(frames)), dtype=np.bool_)
    tally.deliver(fan_out, frames[None], paid, step)


def meet(tally: LayerTally, product: Contraction) -> tuple[int, LayerSizes]:
    """Count a product of two activations; see `deliver`."""
    left, right, steps = product.parted()
    inner = [name for name in left.names if name in right.names and name != steps]
    arrays, partners = [], []
    for side in (left, right):
        mine = [steps] if steps in side.names else []
        others = [name for name in side.names if name not in inner and name not in mine]
        values = side.array(mine, inner, others)
        arrays.append(values.reshape(len(values), -1))
        partners.append(np.count_nonzero(values, axis=2).astype(np.int64))
    pairs = (partners[0] * partners[1]).sum(axis=1)
    tally.meet(arrays[0], arrays[1], pairs)
    for column in ("dense_valid", "dense_padded"):
        tally.add(column, product.dense)
    outputs = prod(product.sizes.get(name, 1) for name in product.result)
    sizes = LayerSizes(
        inputs=sum(array.shape[1] for array in arrays), outputs=outputs // len(pairs)
    )
    return len(pairs), sizes


@dataclass(frozen=True)
class Geometry:
    """Settings of a convolution: those of torch, and the `steps` that may lie side by side."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    groups: int
    steps: int


def convolve(
    tally: LayerTally,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    geometry: Geometry,
    fan_outs: FanOuts,
    step: int,
) -> tuple[int, LayerSizes]:
    """Count a convolution with a stored weight; see `deliver`.

    Args:
        tally, fan_outs, step: as for `deliver`.
        x: (batch, C_in, *sizes).
        weight: (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) transposed.
        out: (batch, C_out, *sizes).
        geometry: settings.
    """
    batch, spaces = len(x), (tuple(x.shape[2:]), tuple(out.shape[2:]))
    frames = geometry.steps if batch % geometry.steps == 0 else 1

    def made() -> FanOut:
        values = as_array(weight)
        if geometry.transposed:
            parted = values.reshape(geometry.groups, -1, *values.shape[1:]).swapaxes(1, 2)
            values = parted.reshape(-1, *parted.shape[2:])
        # The images of one frame are an axis that a kernel of one tap passes along.
        images = compose_axis(AxisWindow(batch // frames, batch // frames, 1))
        axes = (images, *_axes(spaces, weight.shape[2:], geometry))
        return FanOut(np.expand_dims(values, 2), axes, geometry.groups)

    fan_out = fan_outs.of(weight, (geometry, frames, batch, spaces), made)
    images = as_array(x).reshape(frames, batch // frames, *x.shape[1:]).swapaxes(1, 2)
    images = images.reshape(frames, -1)
    arrive(tally, fan_out, images, step)
    # Dense hardware walks every tap of every place, those beyond a border or cropped from the
    # output too.
    places = prod(spaces[0] if geometry.transposed else spaces[1])
    tally.add("dense_valid", frames * fan_out.dense_valid)
    tally.add("dense_padded", batch * places * weight.numel())
    sizes = LayerSizes(
        inputs=images.shape[1],
        outputs=out.numel() // frames,
        weights=weight.numel(),
        kernel=out.shape[1] * prod(weight.shape[2:]),
        convolution=True,
    )
    return frames, sizes


def _axes(
    spaces: tuple[tuple[int, ...], tuple[int, ...]], kernel: Sequence[int], geometry: Geometry
) -> Iterator[Axis]:
    """Yield the connections along each axis of the kernel."""
    ends = zip(*(spaces[::-1] if geometry.transposed else spaces), strict=True)
    for at, (sizes, taps) in enumerate(zip(ends, kernel, strict=True)):
        settings = (geometry.stride, geometry.padding, geometry.dilation)
        # One number stands for all axes.
        window = AxisWindow(*sizes, taps, *(each[at if len(each) > 1 else 0] for each in settings))
        if not geometry.transposed:
            yield compose_axis(window)
            continue
        # A transposed convolution walks the taps of a forward one from its outputs to its inputs.
        counts = window.output_taps().astype(np.int64)
        joined = window.joined().astype(np.float32).T
        yield Axis(counts, np.eye(taps, dtype=np.int64), joined, taps)
