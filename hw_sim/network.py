"""Layers of a chip network: registers of its CUBA neurons, and the integer synapses that feed them.

The integer chip network: frozen layers of integers, nothing else.

A layer is a synapse (Dense, Recurrent or Conv) and the CUBA neurons it feeds. Layers follow each other in order; between a Conv
and a Dense layer the features are flattened in (C, H, W) order, as torch does. A `ChipNetwork` says nothing about
whether hardware takes it: that is `knarr.deploy.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite, prod
from typing import Any, Literal

import numpy as np

from knarr.hw_sim.arrays import Array, Int32, Int64
from knarr.hw_sim.errors import ChipError

DECAY_UNITY = 4096
"""A decay register of 4096 forgets everything in one step; 0 forgets nothing."""
NON_SPIKING_VTH = 2**18 - 1
"""Lava's clip of v lies below this threshold, so a neuron that has it never fires: the declared voltage readout."""
MAX_DELAY = 62
"""netx clamps synaptic delays above; hardware has 6 bits."""


def _frozen(name: str, field: str, array: object, ndim: int) -> Int32:
    values = np.asarray(array)
    if not np.issubdtype(values.dtype, np.integer):
        raise ChipError(
            f"layer '{name}': {field} has dtype {values.dtype}, chip networks hold integers; quantise it first"
        )
    if values.ndim != ndim or 0 in values.shape:
        raise ChipError(
            f"layer '{name}': {field} has shape {values.shape}, needs {ndim} non-empty dimensions"
        )
    if values.min() < -(2**31) or values.max() >= 2**31:
        raise ChipError(f"layer '{name}': {field} does not fit 32 bits")
    copy = np.array(values, dtype=np.int32)
    copy.flags.writeable = False
    return copy


@dataclass(frozen=True)
class Neuron:
    """CUBA neuron registers shared by a layer (equations: `knarr.hw_sim.arithmetic`).

    Args:
        i_decay: current decay register, 0..4096 (4096: no current memory). netx calls it iDecay.
        v_decay: voltage decay register, 0..4096 (0: no leak). netx calls it vDecay.
        vth_int: threshold mantissa, 0..2**18-1; the chip compares v > vth_int * 64. `NON_SPIKING_VTH` never fires.
        name: name of the neuron's node in the graph it was lowered from.

    Raises:
        ChipError: a register is not an integer or out of range.
    """

    i_decay: int
    v_decay: int
    vth_int: int
    name: str = ""

    def __post_init__(self) -> None:
        for register, high in (
            ("i_decay", DECAY_UNITY),
            ("v_decay", DECAY_UNITY),
            ("vth_int", NON_SPIKING_VTH),
        ):
            value = getattr(self, register)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise ChipError(
                    f"neuron '{self.name}': {register} = {value!r} is not an integer; round it first"
                )
            if not 0 <= value <= high:
                raise ChipError(f"neuron '{self.name}': {register} = {value}, allowed 0..{high}")
            object.__setattr__(self, register, int(value))

    @property
    def spikes(self) -> bool:
        """Whether these neurons can fire at all."""
        return self.vth_int < NON_SPIKING_VTH


@dataclass(frozen=True, eq=False)
class Dense:
    """Fully connected layer.

    Args:
        name: the synapse's node name.
        weight_int: (out, in) integers.
        neuron: registers of the out neurons.
        bias_int: (out,) integers added to v (times 64) every step, or None.
        scale: chip voltage units per float volt (64 * S of the lowering), or None when unknown.
        delay_int: (out, in) whole steps 0..62 by which a spike arrives later than the step it was sent in, or None.

    Raises:
        ChipError: shapes, dtypes or delays do not fit.
    """

    name: str
    weight_int: Int32
    neuron: Neuron
    bias_int: Int32 | None = None
    scale: float | None = None
    delay_int: Int32 | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_int", _frozen(self.name, "weight_int", self.weight_int, 2))
        _freeze_bias(self, self.weight_int.shape[0])
        if self.delay_int is not None:
            delay = _frozen(self.name, "delay_int", self.delay_int, 2)
            if delay.shape != self.weight_int.shape or delay.min() < 0 or delay.max() > MAX_DELAY:
                raise ChipError(
                    f"layer '{self.name}': delay_int of shape {delay.shape} spans {delay.min()}..{delay.max()}, needs "
                    f"{self.weight_int.shape} and 0..{MAX_DELAY}"
                )
            object.__setattr__(self, "delay_int", delay)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]  # arrays inside

    @property
    def in_features(self) -> int:
        return int(self.weight_int.shape[1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (int(self.weight_int.shape[0]),)


@dataclass(frozen=True, eq=False)
class Recurrent:
    """Fully connected layer whose spikes come back to it one step later.

    Args:
        name: the synapse's node name.
        weight_int: (out, in) integers, from what arrives.
        recurrent_int: (out, out) integers, from the layer's own spikes of the step before.
        neuron: registers of the out neurons.
        bias_int: (out,) integers added to v (times 64) every step, or None.
        scale: chip voltage units per float volt, or None when unknown.

    Raises:
        ChipError: shapes or dtypes do not fit.
    """

    name: str
    weight_int: Int32
    recurrent_int: Int32
    neuron: Neuron
    bias_int: Int32 | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_int", _frozen(self.name, "weight_int", self.weight_int, 2))
        object.__setattr__(
            self, "recurrent_int", _frozen(self.name, "recurrent_int", self.recurrent_int, 2)
        )
        outputs = self.weight_int.shape[0]
        _freeze_bias(self, outputs)
        if self.recurrent_int.shape != (outputs, outputs):
            raise ChipError(
                f"layer '{self.name}': recurrent_int has shape {self.recurrent_int.shape}, needs ({outputs}, {outputs})"
            )

    @property
    def in_features(self) -> int:
        return int(self.weight_int.shape[1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (int(self.weight_int.shape[0]),)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]  # arrays inside


@dataclass(frozen=True, eq=False)
class Conv:
    """2-d convolution layer: a cross-correlation, as in torch.

    Args:
        name: the synapse's node name.
        weight_int: (out channels, in channels / groups, kernel height, kernel width) integers.
        neuron: registers of all neurons.
        input_shape: (C, H, W) of what arrives.
        stride, padding, dilation: (height, width).
        groups: channel groups.
        bias_int: (out channels,) integers added to v (times 64) every step, or None.
        scale: chip voltage units per float volt, or None when unknown.

    Raises:
        ChipError: shapes or dtypes do not fit.
    """

    name: str
    weight_int: Int32
    neuron: Neuron
    input_shape: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias_int: Int32 | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_int", _frozen(self.name, "weight_int", self.weight_int, 4))
        channels_out, channels_in_group = self.weight_int.shape[:2]
        _freeze_bias(self, channels_out)
        if (
            self.groups < 1
            or channels_out % self.groups
            or self.input_shape[0] != channels_in_group * self.groups
        ):
            raise ChipError(
                f"layer '{self.name}': {self.input_shape[0]} input channels and {channels_out} output channels do not "
                f"fit a kernel of {channels_in_group} input channels in {self.groups} groups"
            )
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0:
            raise ChipError(f"layer '{self.name}': stride and dilation start at 1, padding at 0")
        if min(self.output_shape) < 1:
            raise ChipError(
                f"layer '{self.name}': the kernel is larger than its padded input {self.input_shape}"
            )

    @property
    def output_shape(self) -> tuple[int, int, int]:
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                self.input_shape[1:],
                self.padding,
                self.dilation,
                self.weight_int.shape[2:],
                self.stride,
                strict=True,
            )
        )
        return (int(self.weight_int.shape[0]), height, width)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]  # arrays inside


def _same(one: object, other: object) -> bool:
    """Field by field, arrays by value."""
    if type(one) is not type(other):
        return False
    for each in fields(one):  # type: ignore[arg-type]  # both are layers
        ours, theirs = getattr(one, each.name), getattr(other, each.name)
        if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
            if ours is None or theirs is None or not np.array_equal(ours, theirs):
                return False
        elif ours != theirs:
            return False
    return True


def _freeze_bias(layer: Dense | Conv | Recurrent, outputs: int) -> None:
    if layer.bias_int is None:
        return
    bias = _frozen(layer.name, "bias_int", layer.bias_int, 1)
    if bias.shape != (outputs,):
        raise ChipError(
            f"layer '{layer.name}': bias_int has shape {bias.shape}, needs ({outputs},)"
        )
    object.__setattr__(layer, "bias_int", bias)


Layer = Dense | Conv | Recurrent


MAX_INPUT_BITS = 16


@dataclass(frozen=True)
class InputCoding:
    """What the first layer is fed.

    Args:
        shape: (features,) or (C, H, W).
        bits: 1 takes spikes (0 or 1), more bits take graded payloads 0..2**bits-1.
        neuron: registers of an input layer that has neurons of its own: it is driven by bias, so the inputs are its bias
            mantissas step by step, and its spikes feed the first layer. None: the inputs are what the first layer receives.
        units: integer per unit of the float input that a graded payload stands for, 1 for spikes.
        kind: how data become these integers (`knarr.hw_sim.encode`): they are "events" already, "graded" floats at every step,
            or frames without time that fire at a "rate" or stand at every step ("direct").

    Raises:
        ChipError: a shape or number of bits that does not exist.
    """

    shape: tuple[int, ...]
    bits: int = 1
    neuron: Neuron | None = None
    units: float = 1.0
    kind: Literal["events", "graded", "rate", "direct"] = "events"

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ChipError(f"input: shape {self.shape} is neither (features,) nor (C, H, W)")
        if (
            isinstance(self.bits, bool)
            or not isinstance(self.bits, int)
            or not 1 <= self.bits <= MAX_INPUT_BITS
        ):
            raise ChipError(f"input: {self.bits} bits, allowed 1..{MAX_INPUT_BITS}")
        if self.neuron is not None and (self.bits != 1 or not self.neuron.spikes):
            raise ChipError(
                "input: neurons driven by bias send spikes; give them a threshold and leave bits at 1"
            )
        if not (isfinite(self.units) and self.units > 0):
            raise ChipError(f"input: {self.units} units, needs a positive number")
        if self.kind not in ("events", "graded", "rate", "direct"):
            raise ChipError(f"input: kind {self.kind!r}; choose events, graded, rate or direct")
        if self.kind == "rate" and (self.bits != 1 or self.units != 1.0):
            raise ChipError("input: rate coding sends spikes; leave bits and units at 1")
        if self.kind != "events" and self.neuron is not None:
            raise ChipError(
                "input: neurons driven by bias take mantissas as they are; leave kind at events"
            )

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """Smallest type that holds every input."""
        if self.neuron is not None:
            return np.int16
        return np.uint8 if self.bits <= 8 else np.uint16


@dataclass(frozen=True)
class Readout:
    """What the last layer gives away each step, and how a decision is read from it.

    Args:
        kind: its spikes, or the voltage of neurons that never fire.
        over_time: how the steps become one number per output: their sum, their mean or the last.
        votes: outputs per class, neighbours: class c owns outputs c * votes .. (c + 1) * votes - 1.

    Raises:
        ChipError: an unknown kind or reduction, or no votes.
    """

    kind: Literal["spikes", "voltage"]
    over_time: Literal["sum", "mean", "last"] = "sum"
    votes: int = 1

    def __post_init__(self) -> None:
        if (
            self.kind not in ("spikes", "voltage")
            or self.over_time not in ("sum", "mean", "last")
            or self.votes < 1
        ):
            raise ChipError(
                f"readout: {self.kind!r}, {self.over_time!r}, {self.votes} votes; choose spikes or voltage, sum, mean or "
                "last, and at least 1 vote"
            )

    def scores(self, output: Array) -> Array:
        """(samples, timesteps, outputs) -> (samples, classes); a mean is left as the sum, which orders alike.

        Of the chip's integers or of the float graph's values.
        """
        reduced = output[:, -1] if self.over_time == "last" else output.sum(axis=1)
        return np.asarray(reduced.reshape(len(reduced), -1, self.votes).sum(axis=2))

    def decide(self, output: Array) -> Int64:
        """(samples,) class with the highest score; the lowest index wins a tie."""
        return np.asarray(self.scores(output).argmax(axis=1), dtype=np.int64)


TRAINED = "trained"
"""In `ChipNetwork.lowering` of networks that were fitted on after they were lowered."""


@dataclass(frozen=True)
class ChipNetwork:
    """A network of integers as the chip holds it; two are equal when every field and integer is.

    Args:
        layers: at least one layer, input to output, names unique.
        input: coding of what the first layer receives.
        readout: what the last layer gives.
        dt_s: length of a time step in seconds, None when the file does not say.
        graph_hash: SHA-256 of the certified graph it was lowered from, None when it came from elsewhere.
        lowering: what lowering measured and approximated, as JSON values; no engine looks at it.

    Raises:
        ChipError: no layers, a repeated name, widths that do not chain, or a readout the last neurons cannot give.
    """

    layers: tuple[Layer, ...]
    input: InputCoding
    readout: Readout
    dt_s: float | None = None
    graph_hash: str | None = None
    lowering: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lowered_from(self) -> str | None:
        """Hash of the graph that it was lowered from, or began at where it was fitted on since; None when it came from elsewhere."""
        found: str | None = self.graph_hash or self.lowering.get(TRAINED, {}).get("lowered_from")
        return found

    def __post_init__(self) -> None:
        if not self.layers:
            raise ChipError("network: no layers; a chip network has at least one")
        names = [layer.name for layer in self.layers] + (
            ["input"] if self.input.neuron is not None else []
        )
        if len(set(names)) != len(names):
            raise ChipError(f"network: layer names repeat: {names}")
        shape = self.input.shape
        for layer in self.layers:
            if isinstance(layer, Conv):
                if shape != layer.input_shape:
                    raise ChipError(
                        f"layer '{layer.name}': receives {shape}, was built for {layer.input_shape}"
                    )
            elif prod(shape) != layer.in_features:
                raise ChipError(
                    f"layer '{layer.name}': receives {prod(shape)} values, has {layer.in_features} inputs"
                )
            shape = layer.output_shape
        if prod(shape) % self.readout.votes:
            raise ChipError(
                f"readout: {self.readout.votes} votes per class do not divide {prod(shape)} outputs"
            )
        silent = not self.layers[-1].neuron.spikes
        if silent != (self.readout.kind == "voltage"):
            raise ChipError(
                f"layer '{self.layers[-1].name}': threshold {self.layers[-1].neuron.vth_int} does not go with a "
                f"{self.readout.kind} readout; a voltage readout has {NON_SPIKING_VTH}, a spike readout less"
            )

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.layers[-1].output_shape
