"""A `.net` file as it lies on the disk, and the layers that can be built from it.

`load_groups` reads plain arrays within limits and judges nothing but their size. `read_draft`
builds every layer that can be built, so that the network's rules can look at it even where others
cannot be; the file rules say why those cannot.

Layout (lava-dl 0.6.0 `netx/hdf5.py`): /layer/<i>/ with type, shape, weight, stride, padding,
dilation, groups, bias and neuron/{type, iDecay, vDecay, vThMant}; what else may lie there netx does
not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.rules import PartialNetwork
from knarr.export import ExportError
from knarr.export.graph.hdf5_guard import load
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)
from knarr.hw_sim.arrays import Array, Int32, Int64
from knarr.hw_sim.network import DECAY_UNITY, Layer

MAX_VALUES = 2**25
"""Numbers in one file. Each becomes 8 bytes here; netx and Lava keep several copies of each."""
SYNAPSES = ("conv", "dense", "dense_rec")
"""Kinds of layers that hold weights."""
BARE = ("dense", "dense_rec")
"""Kinds of layers that netx gives neurons of its own where the file has none."""
NEURON_TYPES = ("CUBA", "LOIHI")
"""Names that netx has for the one neuron of the chip."""
REGISTERS = ("iDecay", "vDecay", "vThMant")
"""Registers of a neuron, in the order of `Neuron`."""

Shape = tuple[int, ...]


@dataclass(eq=False)
class NetLayer:
    """A group /layer/<index> of a file, and what could be made of it.

    Args:
        index: its number.
        group: its items by name: arrays, text, or dictionaries for groups; empty when it is no
            group.

    Attributes, which `read_draft` fills in:
        name: what people call it: the manifest's name, or its kind and number.
        incoming: shape of what arrives, None when unknown.
        outgoing: shape of what it sends, None when unknown.
        sender: the nearest layer before it that is no flatten, None when there is none.
        neuron: None when it has no neurons, or none that can be built.
        layer: None when it is no synapse or cannot be built.
    """

    index: int
    group: Mapping[str, Any]
    name: str = ""
    incoming: Shape | None = None
    outgoing: Shape | None = None
    sender: NetLayer | None = None
    neuron: Neuron | None = None
    layer: Layer | None = None
    _whole: dict[str, Int64 | None] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Path of the group in the file."""
        return f"/layer/{self.index}"

    @property
    def kind(self) -> str:
        """Text of `type`, "" when that is missing or no text."""
        return text(self.group.get("type"))

    @property
    def neuron_group(self) -> Mapping[str, Any] | None:
        """Items of the neuron group, None when there is no such group."""
        found = self.group.get("neuron")
        return found if isinstance(found, dict) else None

    def whole(self, key: str) -> Int64 | None:
        """Return the numbers of an item, None when it is missing or not made of whole numbers."""
        # Several rules ask for the same weights, which can be large.
        if key not in self._whole:
            self._whole[key] = whole_numbers(self.group.get(key))
        return self._whole[key]

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return one to eight numbers that netx wants stored as integers.

        Returns:
            None when they are missing, none, more than eight, or stored otherwise.
        """
        value = self.group.get(key)
        if not is_array(value, "iu") or not 1 <= value.size <= 8:
            return None
        return tuple(int(number) for number in value.reshape(-1))


@dataclass(frozen=True, eq=False)
class Draft:
    """All layers of a file.

    Args:
        names: names under /layer; None when there is no such group.
        layers: those that netx reads, in its order.
    """

    names: tuple[str, ...] | None
    layers: tuple[NetLayer, ...]

    @property
    def synapses(self) -> tuple[NetLayer, ...]:
        """Layers that hold weights, built or not."""
        return tuple(found for found in self.layers if found.kind in SYNAPSES)


def load_groups(path: Path) -> dict[str, Any] | None:
    """Read what lies under /layer as it is, in bounded time and memory.

    Returns:
        Items by name; None when there is no such group.

    Raises:
        DeployError: the file is missing, not HDF5, damaged, or beyond a limit.
    """
    try:
        tree = load(path, "netx .net file", "write one with `knarr deploy`", MAX_VALUES)
    except ExportError as error:
        raise DeployError(str(error)) from error
    found = tree.get("layer")
    return found if isinstance(found, dict) else None


def is_array(value: Any, kinds: str = "iuf") -> TypeGuard[Array]:
    """Tell whether an item is an array (of any rank, 0 too) of one of numpy's kinds of numbers."""
    return isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in kinds


def text(value: Any) -> str:
    """Return one text, alone or first in an array, as netx takes it; "" for anything else."""
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def whole_numbers(value: Any) -> Int64 | None:
    """Return integers, or floats without a fraction, which is how slayer writes them.

    Returns:
        None for anything else.
    """
    if not is_array(value):
        return None
    array = np.asarray(value)
    if array.dtype.kind == "f":
        # From 2**53 on a float does not hold every integer. A nan is not below it either.
        exact = (np.abs(array) < 2.0**53).all()
        if not exact or not np.array_equal(array, np.rint(array)):
            return None
    elif array.dtype == np.uint64:
        # Larger ones would turn negative; at this size every rule refuses them all the same.
        array = np.minimum(array, np.uint64(2**63 - 1))
    return array.astype(np.int64)


def fits_32_bits(whole: Int64) -> bool:
    """Tell whether there are numbers and a chip network can hold all of them."""
    return whole.size > 0 and np.array_equal(whole.astype(np.int32), whole)


def stored_register(value: Any) -> Int64 | None:
    """Return a register in (C, H, W) order: one number, or one per channel or per neuron.

    netx hands the array to neurons that lie in (W, H, C) order, so one per channel is (C,) or
    (1, 1, C) and one per neuron (W, H, C); (n,) where neurons lie in no image.

    Returns:
        (1,), (C,), (n,) or (C, H, W); None for what is not stored as integers of such a rank. A
        float, whole or not, hangs Lava.
    """
    if not is_array(value, "iu") or not value.size or value.ndim not in (0, 1, 3):
        return None
    whole = whole_numbers(value)
    if whole is None or whole.size == 1:
        return None if whole is None else whole.reshape(1)
    if whole.shape[:-1] == (1, 1):
        return whole.reshape(-1)
    return whole.T if whole.ndim == 3 else whole


def read_draft(groups: dict[str, Any] | None, named: Mapping[int, Mapping[str, Any]]) -> Draft:
    """Build every layer of a file that can be built.

    Args:
        groups: what `load_groups` gave.
        named: entries of the manifest, by position among the layers with synapses; -1 is the input.
    """
    if groups is None:
        return Draft(None, ())
    # The length is bounded because int() refuses thousands of digits.
    digits = [name for name in groups if name.isascii() and name.isdigit() and len(name) < 9]
    layers = []
    for index in sorted(int(name) for name in digits):
        # netx asks for "1" and never sees a group "01".
        if str(index) in groups:
            group = groups[str(index)]
            layers.append(NetLayer(index, group if isinstance(group, dict) else {}))
    sender: NetLayer | None = None
    synapses = 0
    shape: Shape | None = None
    for position, found in enumerate(layers):
        found.incoming, found.sender = shape, sender
        if found.kind == "input":
            found.name = "input" if position == 0 else f"input_{found.index}"
            found.neuron = _neuron(found, str(named.get(-1, {}).get("neuron") or ""))
            found.outgoing = _input_shape(found, layers[position + 1 :])
        elif found.kind in SYNAPSES:
            entry = named.get(synapses, {})
            synapses += 1
            found.name = str(entry.get("name", f"{found.kind}_{found.index}"))
            found.neuron = _neuron(found, str(entry.get("neuron", f"neuron_{found.index}")))
            found.layer = _synapse(found, entry.get("units_per_volt"))
            # The sizes that a layer states let the layers behind a broken one be checked.
            built = found.layer
            found.outgoing = _declared(found) if built is None else built.output_shape
        else:
            # A kind that is unknown may be any text, too long or odd for a message.
            short = found.kind.isidentifier() and len(found.kind) < 40
            found.name = f"{found.kind if short else 'layer'}_{found.index}"
            if shape is not None and found.kind == "flatten":
                found.outgoing = (prod(shape),)
        shape = found.outgoing
        if found.kind != "flatten":
            sender = found
    return Draft(tuple(groups), tuple(layers))


def _input_shape(found: NetLayer, after: Sequence[NetLayer]) -> Shape | None:
    shape = found.integers("shape")
    synapse = next((layer.kind for layer in after if layer.kind != "flatten"), "")
    if (
        shape is not None
        and shape[1:] == (1, 1)
        and found.neuron_group is None
        and synapse != "conv"
    ):
        return shape[:1]  # slayer writes (features, 1, 1) for a plain vector
    return shape


def _declared(found: NetLayer) -> Shape | None:
    """Return what a layer that is not built would send, as far as the file says it."""
    weight, shape = found.whole("weight"), found.integers("shape")
    if found.kind != "conv" and weight is not None and weight.ndim == 2 and weight.size:
        return (weight.shape[0],)
    if shape is None or min(shape) < 1:
        return None
    return shape if found.kind == "conv" else (prod(shape),)


def _neuron(found: NetLayer, name: str) -> Neuron | None:
    group = found.neuron_group
    if group is None and found.kind in BARE and "neuron" not in found.group:
        # netx's own: a current that never decays, which is the voltage. Its threshold, 2**23, lies
        # above every voltage.
        return Neuron(0, DECAY_UNITY, NON_SPIKING_VTH, name)
    if group is None or text(group.get("type")) not in NEURON_TYPES:
        return None
    i_decay, v_decay, vth_int = (stored_register(group.get(register)) for register in REGISTERS)
    if i_decay is None or v_decay is None or vth_int is None:
        return None
    try:
        return Neuron(i_decay, v_decay, vth_int, name)
    except ChipError:
        return None


def _synapse(found: NetLayer, scale: float | None) -> Layer | None:
    name, neuron = found.name, found.neuron
    if neuron is None:
        return None
    try:
        weight = _stored(found, "weight")
        if found.kind == "conv":
            return _conv(found, neuron, weight, scale)
        # netx cuts a vector of weights into as many rows as `shape` says.
        rows = prod(found.integers("shape") or ()) if weight.ndim == 1 else weight.shape[0]
        matrix = weight.reshape(rows, -1)
        bias = _bias(found, rows)
        if found.kind == "dense":
            return Dense(name, matrix, neuron, bias, scale, _delay(found, matrix.shape))
        recurrent = _stored(found, "weight_rec")
        if weight.ndim == 1:
            recurrent = recurrent.reshape(rows, -1)
        return Recurrent(name, matrix, recurrent, neuron, bias, scale)
    except (ChipError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None  # the file rules say why not


def _conv(found: NetLayer, neuron: Neuron, weight: Int32, scale: float | None) -> Conv | None:
    stride, padding, dilation = (pair(found, key) for key in ("stride", "padding", "dilation"))
    groups = found.integers("groups")
    if stride is None or padding is None or dilation is None or groups is None:
        return None
    if found.incoming is None or weight.ndim < 4:
        return None
    channels, height, width = found.incoming
    # slayer writes kernels with a last axis of time, of length 1; any other cannot be reshaped.
    kernel = weight.reshape(weight.shape[:4])
    return Conv(
        found.name,
        kernel,
        neuron,
        (channels, height, width),
        stride,
        padding,
        dilation,
        groups[0],
        _bias(found, len(kernel)),
        scale,
    )


def pair(found: NetLayer, key: str) -> tuple[int, int] | None:
    """Return (height, width) of a convolution's step, None when there are none.

    netx takes two integers, or one without a dimension.
    """
    numbers = found.integers(key)
    if numbers is None or found.group[key].shape not in ((), (2,)):
        return None
    return numbers[0], numbers[-1]


def _stored(found: NetLayer, key: str) -> Int32:
    whole = found.whole(key)
    if whole is None or not fits_32_bits(whole):
        raise ValueError(f"{found.where}/{key} is not made of whole numbers of 32 bits")
    return whole.astype(np.int32)


def _bias(found: NetLayer, outputs: int) -> Int32 | None:
    if "bias" not in found.group:
        return None
    bias = _stored(found, "bias")
    if found.kind != "conv" and bias.shape in ((), (1,)):
        return np.repeat(bias, outputs)  # netx spreads one bias over a dense layer
    return bias


def _delay(found: NetLayer, shape: Shape) -> Int32 | None:
    if "delay" not in found.group:
        return None
    delay = spread_delay(_stored(found, "delay"), shape)
    if delay is None:
        raise ValueError(f"{found.where}/delay does not fit its weights")
    return delay


def spread_delay(delay: Array, shape: Shape) -> Array | None:
    """Spread delays over the (out, in) synapses of a layer, None where they do not fit.

    One may hold for all, or there is one per output, per input or per synapse. netx tells them
    apart by their number, and where that fits both it takes outputs.
    """
    if delay.ndim == 1 and delay.size == shape[0]:
        delay = delay.reshape(-1, 1)
    elif delay.ndim == 1 and delay.size == shape[1]:
        delay = delay.reshape(1, -1)
    elif delay.ndim and delay.shape != shape:
        return None
    return np.broadcast_to(delay, shape)


def partial_network(draft: Draft) -> PartialNetwork:
    """Return what could be built, for the rules of a network to look at."""
    synapses = draft.synapses
    source = next((found for found in draft.layers if found.kind == "input"), None)
    try:
        coding = InputCoding(source.outgoing or (1,), neuron=source.neuron)  # type: ignore[union-attr]
    except (ChipError, AttributeError):
        # No input, or one whose neurons never fire or do not fit its shape: no rule may look at it.
        coding = InputCoding((1,))
    # Only the last layer may be a voltage readout. Where its neuron is not built, none is.
    last = synapses[-1].neuron if synapses else None
    silent = last is not None and not last.spikes
    biases = ((found.name, found.whole("bias")) for found in synapses)
    return PartialNetwork(
        tuple(found.layer for found in synapses if found.layer is not None),
        tuple((found.name, found.neuron) for found in synapses if found.neuron is not None),
        tuple((name, bias) for name, bias in biases if bias is not None and fits_32_bits(bias)),
        coding,
        Readout("voltage" if silent else "spikes"),
    )
