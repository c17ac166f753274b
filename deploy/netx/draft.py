"""A raw `.net` file turned into layers as far as that goes: every rule can then look at what there is.

Where a number cannot be held, a stand-in takes its place (what netx would make of it, or the nearest legal value) and is
noted in `mended`. A draft with stand-ins serves to find further faults; it never becomes a network.

As much of a network as a faulty file gives, for rules that look at one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.deploy.netx.raw import RawLayer, RawNet, text
from knarr.deploy.violation import I_DECAY_MAX, V_DECAY_MAX, VTH_MAX
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)
from knarr.hw_sim.arrays import IntArray
from knarr.hw_sim.network import DECAY_UNITY, MAX_DELAY, Layer

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
SYNAPSES = ("conv", "dense", "dense_rec")
REGISTERS = {"iDecay": DECAY_UNITY, "vDecay": DECAY_UNITY, "vThMant": NON_SPIKING_VTH}
"""What `Neuron` can hold, from 0; hardware takes less, which is the network rules' business."""
LEGAL = {"iDecay": I_DECAY_MAX, "vDecay": V_DECAY_MAX, "vThMant": VTH_MAX}

Shape = tuple[int, ...]
Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class DraftLayer:
    """One layer of the file and what could be made of it.

    Args:
        raw: as it lies in the file.
        name: what people call it: the manifest's name, or its kind and number.
        incoming: shape of what arrives, None when unknown.
        outgoing: shape of what it sends, None when unknown.
        layer: None when it is no synapse or cannot be built.
        neuron: None when there is no neuron group.
    """

    raw: RawLayer
    name: str
    incoming: Shape | None
    outgoing: Shape | None
    layer: Layer | None = None
    neuron: Neuron | None = None


@dataclass(frozen=True)
class Draft:
    """All layers in order; `mended` names what stand-ins took the place of."""

    raw: RawNet
    layers: tuple[DraftLayer, ...]
    mended: tuple[str, ...]

    @property
    def synapses(self) -> tuple[DraftLayer, ...]:
        return tuple(found for found in self.layers if found.raw.kind in SYNAPSES)


def draft_of(raw: RawNet, named: Mapping[int, Mapping[str, Any]]) -> Draft:
    """Build what can be built.

    Args:
        raw: the file.
        named: the manifest's entries, by position among the layers with synapses; -1 is the input.
    """
    layers: list[DraftLayer] = []
    mended: list[str] = []
    shape: Shape | None = None
    for index, found in enumerate(raw.layers):
        entry = named.get(sum(before.raw.kind in SYNAPSES for before in layers), {})
        if found.kind == "input":
            name = "input" if not index else f"input_{found.index}"
            neuron = _neuron(found, str(named.get(-1, {}).get("neuron") or ""), mended)
            after = _input_shape(found, raw.layers[index + 1 :])
            layers.append(DraftLayer(found, name, None, after, None, neuron))
        elif found.kind in SYNAPSES:
            name = str(entry.get("name", f"{found.kind}_{found.index}"))
            neuron = _neuron(found, str(entry.get("neuron", f"neuron_{found.index}")), mended)
            layer = _synapse(found, name, neuron, shape, entry.get("units_per_volt"), mended)
            after = _declared(found) if layer is None else layer.output_shape
            layers.append(DraftLayer(found, name, shape, after, layer, neuron))
        else:
            after = (prod(shape),) if shape is not None and found.kind == "flatten" else None
            layers.append(DraftLayer(found, f"{_plain(found.kind)}_{found.index}", shape, after))
        shape = after
    return Draft(raw, tuple(layers), tuple(mended))


def _plain(kind: str) -> str:
    return kind if kind.isidentifier() and len(kind) < 40 else "layer"


def _input_shape(found: RawLayer, after: tuple[RawLayer, ...]) -> Shape | None:
    shape = found.integers("shape")
    synapse = next((layer.kind for layer in after if layer.kind != "flatten"), "")
    if shape is not None and shape[1:] == (1, 1) and found.neuron is None and synapse != "conv":
        return shape[:1]  # slayer writes (features, 1, 1) for a plain vector
    return shape


def _declared(found: RawLayer) -> Shape | None:
    shape = found.integers("shape")
    if shape is None or min(shape, default=0) < 1:
        return None
    return shape if found.kind == "conv" else (prod(shape),)


def _neuron(found: RawLayer, name: str, mended: list[str]) -> Neuron | None:
    group = found.neuron
    if group is None:
        return None
    values = {}
    for key, legal in LEGAL.items():
        value = one_integer(group.get(key))
        if value is None or not 0 <= value <= REGISTERS[key]:
            mended.append(f"{found.where}/neuron/{key}")
            value = legal if value is None or value > 0 else 1
        values[key] = value
    if text(group.get("type")) not in ("CUBA", "LOIHI"):
        mended.append(f"{found.where}/neuron/type")
    return Neuron(values["iDecay"], values["vDecay"], values["vThMant"], name)


def one_integer(value: Any) -> int | None:
    """A register: one number stored as an integer, else None. A float, whole or not, hangs Lava."""
    if (
        not isinstance(value, (np.ndarray, np.generic))
        or value.dtype.kind not in "iu"
        or value.size != 1
    ):
        return None
    return int(value.reshape(()))


def _synapse(
    found: RawLayer,
    name: str,
    neuron: Neuron | None,
    incoming: Shape | None,
    scale: float | None,
    mended: list[str],
) -> Layer | None:
    weight = _array(found, "weight", mended)
    if weight is None:
        return None
    if neuron is None:
        mended.append(f"{found.where}/neuron")
        neuron = Neuron(I_DECAY_MAX, V_DECAY_MAX, 1, name)
    try:
        if found.kind == "conv":
            return _conv(found, name, neuron, weight, incoming, scale, mended)
        rows = prod(found.integers("shape") or ()) if weight.ndim == 1 else weight.shape[0]
        matrix = weight.reshape(rows, -1)
        bias = _bias(found, rows, mended)
        if found.kind == "dense":
            return Dense(name, matrix, neuron, bias, scale, _delay(found, matrix.shape, mended))
        feedback = _array(found, "weight_rec", mended)
        if feedback is None:
            return None
        feedback = feedback.reshape(rows, -1) if weight.ndim == 1 else feedback
        return Recurrent(name, matrix, feedback, neuron, bias, scale)
    except (ChipError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None  # why not, the file rules say


def _conv(
    found: RawLayer,
    name: str,
    neuron: Neuron,
    weight: Words,
    incoming: Shape | None,
    scale: float | None,
    mended: list[str],
) -> Conv | None:
    steps = [pair(found, key) for key in ("stride", "padding", "dilation")]
    groups = found.integers("groups")
    if incoming is None or len(incoming) != 3 or groups is None or weight.ndim < 4 or None in steps:
        return None
    stride, padding, dilation = (step for step in steps if step is not None)
    kernel = weight.reshape(weight.shape[:4])
    bias = _bias(found, len(kernel), mended)
    shape = (incoming[0], incoming[1], incoming[2])
    return Conv(name, kernel, neuron, shape, stride, padding, dilation, groups[0], bias, scale)


def pair(found: RawLayer, key: str) -> tuple[int, int] | None:
    """(height, width) of a convolution's step, from two integers or one without a dimension, as netx takes them."""
    value, numbers = found.group.get(key), found.integers(key)
    if (
        numbers is None
        or not isinstance(value, (np.ndarray, np.generic))
        or value.shape not in ((), (2,))
    ):
        return None
    return numbers[0], numbers[-1]


def _array(found: RawLayer, key: str, mended: list[str]) -> Words | None:
    """An array's integers; those netx would make of it where it holds others, None when it is no array."""
    if key not in found.group:
        return None
    whole = found.whole(key)
    if whole is not None and whole.size and whole.min() >= INT32_MIN and whole.max() <= INT32_MAX:
        return whole.astype(np.int32)
    mended.append(f"{found.where}/{key}")
    if whole is not None and whole.size:
        return np.clip(whole, -128, 127).astype(np.int32)
    value = found.group[key]
    if (
        not isinstance(value, (np.ndarray, np.generic))
        or value.dtype.kind not in "iuf"
        or not value.size
    ):
        return None
    return (
        np.clip(np.nan_to_num(value), INT32_MIN, INT32_MAX).astype(np.int64).astype(np.int32)
    )  # truncates, as netx does


def _bias(found: RawLayer, outputs: int, mended: list[str]) -> Words | None:
    bias = _array(found, "bias", mended)
    if bias is None:
        return None
    if found.kind != "conv" and bias.size == 1 and bias.ndim < 2:
        return np.repeat(bias.reshape(1), outputs)  # netx spreads one bias over a dense layer
    if bias.shape != (outputs,):
        mended.append(f"{found.where}/bias")
        return None
    return bias


def _delay(found: RawLayer, shape: tuple[int, ...], mended: list[str]) -> Words | None:
    delay = _array(found, "delay", mended)
    if delay is None:
        return None
    full = spread_delay(delay, shape)
    if full is None or full.min() < 0 or full.max() > MAX_DELAY:
        mended.append(f"{found.where}/delay")
        return None if full is None else np.clip(full, 0, MAX_DELAY)
    return full


def spread_delay(delay: IntArray, shape: tuple[int, ...]) -> Words | None:
    """One delay for all, per output, per input or per synapse, as netx tells them apart: outputs come first."""
    if delay.ndim == 0 or delay.shape == shape:
        turned = delay
    elif delay.ndim == 1 and delay.size == shape[0]:
        turned = delay.reshape(-1, 1)
    elif delay.ndim == 1 and delay.size == shape[1]:
        turned = delay.reshape(1, -1)
    else:
        return None
    return np.broadcast_to(turned, shape).astype(np.int32)


@dataclass(frozen=True)
class PartialNetwork:
    """Layers that need not fit each other, and stand-ins for what is said about the whole."""

    layers: tuple[Layer, ...]
    input: InputCoding
    readout: Readout


Network = ChipNetwork | PartialNetwork
"""What a network rule looks at."""


def parts_of(draft: Draft) -> PartialNetwork | None:
    """The layers that could be built, None when there are none."""
    layers = tuple(found.layer for found in draft.layers if found.layer is not None)
    if not layers:
        return None
    neuron = next((found.neuron for found in draft.layers if found.raw.kind == "input"), None)
    driven = neuron if neuron is not None and neuron.spikes else None
    readout = Readout("spikes" if layers[-1].neuron.spikes else "voltage")
    return PartialNetwork(layers, InputCoding((1,), neuron=driven), readout)
