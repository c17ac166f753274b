"""The integer chip network: layers of synapses and CUBA neurons, its input coding and its readout.

A layer is a synapse (Dense, Recurrent or Conv) and the CUBA neurons it feeds. Layers follow each
other in order; between a Conv and a Dense layer the features are flattened in (C, H, W) order, as
torch does. Everything is frozen and an integer. A `ChipNetwork` says nothing about whether hardware
takes it: that is `knarr.deploy.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite, prod
from typing import Any, Literal, TypeGuard

import numpy as np

from knarr.hw_sim.arrays import Array, Float64, Int32, Int64, IntArray
from knarr.hw_sim.errors import ChipError

DECAY_UNITY = 4096
"""A decay register of 4096 forgets everything in one step; 0 forgets nothing."""
NON_SPIKING_VTH = 2**18 - 1
"""Lava's clip of v lies below this threshold, so a neuron that has it never fires: the declared
voltage readout.
"""
MAX_DELAY = 62
"""netx clamps synaptic delays above; hardware has 6 bits."""


def is_integer(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number of Python or numpy; a bool is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


Register = int | IntArray
"""A register of a layer's neurons: one integer that all share, or a read-only array of one for each
neuron, flat in (C, H, W) order.
"""
REGISTER_LIMITS = {"i_decay": DECAY_UNITY, "v_decay": DECAY_UNITY, "vth_int": NON_SPIKING_VTH}
"""Registers of a neuron, each with the largest value that Lava tells apart."""


@dataclass(frozen=True, eq=False)
class Neuron:
    """CUBA neuron registers of a layer (equations: `knarr.hw_sim.arithmetic`).

    Each register is one integer that all neurons share, or an array with one for each of them. An
    array is held flat in (C, H, W) order, read-only and in 32 bits, and one whose values are all
    equal is held as that integer: two neurons are equal when every register and the name is. A
    layer with channels takes an array of one value per channel too, and holds it as one per neuron.

    Args:
        i_decay: current decay register, 0..4096 (4096: no current memory). netx calls it iDecay.
        v_decay: voltage decay register, 0..4096 (0: no leak). netx calls it vDecay.
        vth_int: threshold mantissa, 0..2**18-1; the chip compares v > vth_int * 64.
            `NON_SPIKING_VTH` never fires.
        name: name of the neuron's node in the graph it was lowered from.

    Raises:
        ChipError: a register is not an integer or out of range.
    """

    i_decay: Register
    v_decay: Register
    vth_int: Register
    name: str = ""

    def __post_init__(self) -> None:
        for register, high in REGISTER_LIMITS.items():
            value = getattr(self, register)
            if isinstance(value, np.ndarray):
                value = self._flat(register, value)
            elif not is_integer(value):
                raise ChipError(
                    f"neuron '{self.name}': {register} = {value!r} is not an integer; round it first"
                )
            low, top = register_range(value)
            if not 0 <= low <= top <= high:
                shown = str(low) if low == top else f"{low}..{top}"
                raise ChipError(f"neuron '{self.name}': {register} = {shown}, allowed 0..{high}")
            if isinstance(value, np.ndarray) and low < top:
                # After the check of its range: the cast would wrap what is wider.
                frozen = np.array(value, dtype=np.int32)
                frozen.flags.writeable = False
                object.__setattr__(self, register, frozen)
            else:
                # numpy's integers would wrap at their own width in later arithmetic.
                object.__setattr__(self, register, low)

    def _flat(self, register: str, values: Array) -> Array:
        if values.dtype.kind not in "iu" or not values.size:
            raise ChipError(
                f"neuron '{self.name}': {register} is an array of {values.size} {values.dtype}; give "
                "integers, one per neuron"
            )
        return values.reshape(-1)

    def __eq__(self, other: object) -> bool:
        """Compare the name and every register, arrays by value."""
        if not isinstance(other, Neuron):
            return NotImplemented
        registers = all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in REGISTER_LIMITS
        )
        return registers and self.name == other.name

    def __hash__(self) -> int:
        """Return equal numbers for equal neurons."""
        return hash((self.name, *(register_range(getattr(self, name)) for name in REGISTER_LIMITS)))

    @property
    def shared(self) -> bool:
        """Tell whether all neurons share every register."""
        return not any(isinstance(getattr(self, name), np.ndarray) for name in REGISTER_LIMITS)

    @property
    def spikes(self) -> bool:
        """Tell whether any of these neurons can fire at all."""
        return register_range(self.vth_int)[0] < NON_SPIKING_VTH

    def fitted(self, shape: tuple[int, ...], owner: str) -> Neuron:
        """Return these registers with one value per neuron where they are arrays.

        Args:
            shape: of the layer's neurons, (features,) or (C, H, W).
            owner: what has these neurons, for the error.

        Raises:
            ChipError: an array has neither one value per neuron nor one per channel.
        """
        neurons, channels = prod(shape), shape[0]
        found: dict[str, Any] = {}
        for register in REGISTER_LIMITS:
            value = getattr(self, register)
            if not isinstance(value, np.ndarray) or len(value) == neurons:
                continue
            if len(value) != channels:
                allowed = f"{neurons}, one per neuron"
                allowed += f", or {channels}, one per channel" if len(shape) == 3 else ""
                raise ChipError(
                    f"{owner}: {register} has {len(value)} values, needs {allowed}; or give one integer"
                )
            found[register] = value.repeat(neurons // channels)
        return replace(self, **found) if found else self


def register_range(register: Register) -> tuple[int, int]:
    """Return the least and the largest value of a register."""
    if isinstance(register, np.ndarray):
        return int(register.min()), int(register.max())
    return int(register), int(register)


def register_array(register: Register, shape: tuple[int, ...]) -> Int64:
    """Return a register as one value per neuron.

    Args:
        register: of a neuron.
        shape: of the layer's neurons, which the array gets.
    """
    values = np.asarray(register, dtype=np.int64)
    return values.reshape(shape) if values.ndim else np.broadcast_to(values, shape)


class _Synapses:
    """Equality by value and frozen copies of arrays, shared by all layers."""

    name: str
    weight_int: Int32
    bias_int: Int32 | None
    neuron: Neuron

    # Defining this takes the hash away, rightly: arrays inside have none.
    def __eq__(self, other: object) -> bool:
        """Compare every field, arrays by value."""
        if type(self) is not type(other):
            return False
        names = [each.name for each in fields(self)]  # type: ignore[arg-type]  # layers are dataclasses
        # array_equal takes what is no array too, and a bias of None differs from any array.
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def _freeze(self, field: str, ndim: int) -> Int32:
        """Replace a field by a read-only copy of 32 bits, or refuse what is not integers of `ndim`
        dimensions.
        """
        values = np.asarray(getattr(self, field))
        if not np.issubdtype(values.dtype, np.integer):
            raise ChipError(
                f"layer '{self.name}': {field} has dtype {values.dtype}, chip networks hold integers; quantise it first"
            )
        if values.ndim != ndim or 0 in values.shape:
            raise ChipError(
                f"layer '{self.name}': {field} has shape {values.shape}, needs {ndim} non-empty dimensions"
            )
        # Before the cast, which would wrap what is wider.
        if values.min() < -(2**31) or values.max() >= 2**31:
            raise ChipError(f"layer '{self.name}': {field} does not fit 32 bits")
        # A copy even of int32: the caller may go on writing in its own array.
        copy = np.array(values, dtype=np.int32)
        copy.flags.writeable = False
        object.__setattr__(self, field, copy)
        return copy

    def _fit_neuron(self, shape: tuple[int, ...]) -> None:
        """Hold registers that are arrays with one value per neuron of the layer, or refuse them."""
        object.__setattr__(self, "neuron", self.neuron.fitted(shape, f"layer '{self.name}'"))

    def _freeze_weight_and_bias(self, ndim: int) -> None:
        outputs = len(self._freeze("weight_int", ndim))
        if self.bias_int is None:
            return
        bias = self._freeze("bias_int", 1)
        if bias.shape != (outputs,):
            raise ChipError(
                f"layer '{self.name}': bias_int has shape {bias.shape}, needs ({outputs},)"
            )


class _FullyConnected(_Synapses):
    """Sizes of layers whose weights are one matrix."""

    @property
    def in_features(self) -> int:
        """Number of values that arrive."""
        return self.weight_int.shape[1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what the layer sends: (neurons,)."""
        return (len(self.weight_int),)


@dataclass(frozen=True, eq=False)
class Dense(_FullyConnected):
    """Fully connected layer.

    Args:
        name: the synapse's node name.
        weight_int: (out, in) integers.
        neuron: registers of the out neurons, which they share or each has its own.
        bias_int: (out,) integers added to v (times 64) every step, or None.
        scale: chip voltage units per float volt (64 * S of the lowering), or None when unknown.
        delay_int: (out, in) whole steps 0..62 by which a spike arrives later than the step it was
            sent in, or None.

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
        self._freeze_weight_and_bias(2)
        self._fit_neuron(self.output_shape)
        if self.delay_int is None:
            return
        delay, shape = self._freeze("delay_int", 2), self.weight_int.shape
        if delay.shape != shape or delay.min() < 0 or delay.max() > MAX_DELAY:
            raise ChipError(
                f"layer '{self.name}': delay_int of shape {delay.shape} spans {delay.min()}..{delay.max()}, needs "
                f"{shape} and 0..{MAX_DELAY}"
            )


@dataclass(frozen=True, eq=False)
class Recurrent(_FullyConnected):
    """Fully connected layer whose spikes come back to it one step later.

    Args:
        name: the synapse's node name.
        weight_int: (out, in) integers, from what arrives.
        recurrent_int: (out, out) integers, from the layer's own spikes of the step before.
        neuron: registers of the out neurons, which they share or each has its own.
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
        self._freeze_weight_and_bias(2)
        self._fit_neuron(self.output_shape)
        shape, outputs = self._freeze("recurrent_int", 2).shape, len(self.weight_int)
        if shape != (outputs, outputs):
            raise ChipError(
                f"layer '{self.name}': recurrent_int has shape {shape}, needs ({outputs}, {outputs})"
            )


@dataclass(frozen=True, eq=False)
class Conv(_Synapses):
    """2-d convolution layer: a cross-correlation, as in torch.

    Args:
        name: the synapse's node name.
        weight_int: (out channels, in channels / groups, kernel height, kernel width) integers.
        neuron: registers, shared or one per neuron in (C, H, W) order; one per channel is taken too.
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
        self._freeze_weight_and_bias(4)
        channels_out, channels_in_group = self.weight_int.shape[:2]
        channels_in = self.input_shape[0]
        # Groups first: a remainder by 0 groups would raise an error of Python's own.
        divides = self.groups >= 1 and channels_out % self.groups == 0
        if not divides or channels_in != channels_in_group * self.groups:
            raise ChipError(
                f"layer '{self.name}': {channels_in} input channels and {channels_out} output channels do not "
                f"fit a kernel of {channels_in_group} input channels in {self.groups} groups"
            )
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0:
            raise ChipError(f"layer '{self.name}': stride and dilation start at 1, padding at 0")
        if min(self.output_shape) < 1:
            raise ChipError(
                f"layer '{self.name}': the kernel is larger than its padded input {self.input_shape}"
            )
        self._fit_neuron(self.output_shape)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Shape of what the layer sends: (channels, height, width)."""
        return (len(self.weight_int), self._length(0), self._length(1))

    def _length(self, axis: int) -> int:
        """Count the positions of the kernel along an axis, 0 for height and 1 for width."""
        reach = self.dilation[axis] * (self.weight_int.shape[2 + axis] - 1) + 1
        padded = self.input_shape[1 + axis] + 2 * self.padding[axis]
        return (padded - reach) // self.stride[axis] + 1


Layer = Dense | Conv | Recurrent

MAX_INPUT_BITS = 16


@dataclass(frozen=True)
class InputCoding:
    """Format of what the first layer is fed.

    Args:
        shape: (features,) or (C, H, W).
        bits: 1 takes spikes (0 or 1), more bits take graded payloads 0..2**bits-1.
        signed: the sign comes on top: -(2**bits-1)..2**bits-1, so that 1 bit takes -1, 0 and 1. Lava
            sends every payload as it is, whatever its sign (measured: tests/deploy/test_lava.py).
        neuron: registers of an input layer that has neurons of its own: it is driven by bias, so
            the inputs are its bias mantissas step by step, and its spikes feed the first layer.
            None: the inputs are what the first layer receives.
        units: integer per unit of the float input that a graded payload stands for, 1 for spikes.
        kind: how data become these integers (`knarr.hw_sim.encode`): they are "events" already,
            "graded" floats at every step, or frames without time that fire at a "rate" or stand at
            every step ("direct").

    Raises:
        ChipError: a shape or number of bits that does not exist.
    """

    shape: tuple[int, ...]
    bits: int = 1
    neuron: Neuron | None = None
    units: float = 1.0
    kind: Literal["events", "graded", "rate", "direct"] = "events"
    signed: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ChipError(f"input: shape {self.shape} is neither (features,) nor (C, H, W)")
        if type(self.bits) is not int or not 1 <= self.bits <= MAX_INPUT_BITS:
            raise ChipError(f"input: {self.bits} bits, allowed 1..{MAX_INPUT_BITS}")
        if self.neuron is not None and (self.bits != 1 or not self.neuron.spikes):
            raise ChipError(
                "input: neurons driven by bias send spikes; give them a threshold and leave bits at 1"
            )
        # isfinite first: NaN passes every comparison by failing it.
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
        if type(self.signed) is not bool:
            raise ChipError(f"input: signed = {self.signed!r} is neither True nor False")
        if self.signed and (self.neuron is not None or self.kind == "rate"):
            raise ChipError(
                "input: rate coding and neurons driven by bias send spikes; leave signed at False"
            )
        if self.neuron is not None:
            object.__setattr__(self, "neuron", self.neuron.fitted(self.shape, "input"))

    @property
    def limits(self) -> tuple[int, int]:
        """Least and largest payload that the first layer can receive."""
        most = 2**self.bits - 1
        return (-most if self.signed else 0), most

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """Smallest type that holds every input."""
        if self.neuron is not None:
            # Bias mantissas have a sign, and Lava holds them in 16 bits.
            return np.int16
        if self.signed:
            return np.int8 if self.bits < 8 else np.int16 if self.bits < 16 else np.int32
        return np.uint8 if self.bits <= 8 else np.uint16


@dataclass(frozen=True)
class Readout:
    """The last layer's output at each step, and how a decision is read from it.

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
        known = self.kind in ("spikes", "voltage") and self.over_time in ("sum", "mean", "last")
        if not known or not is_integer(self.votes) or self.votes < 1:
            raise ChipError(
                f"readout: {self.kind!r}, {self.over_time!r}, {self.votes!r} votes; choose spikes or voltage, sum, mean or "
                "last, and at least 1 vote"
            )

    def scores(self, output: Array) -> Array:
        """Reduce (samples, timesteps, outputs), integers or floats, to (samples, classes).

        A mean is left as the sum: it orders the classes alike, and integers stay exact.
        """
        reduced = output[:, -1] if self.over_time == "last" else output.sum(axis=1)
        return np.asarray(reduced.reshape(len(reduced), -1, self.votes).sum(axis=2))

    def values(self, output: Array, scale: float | None) -> Float64:
        """Reduce (samples, timesteps, outputs) integers of the chip to (samples, values) of the
        float student: volts, or spikes.

        Args:
            output: Integers of the last layer.
            scale: Integers per volt of a voltage readout, `Dense.scale` of the last layer.

        Raises:
            ChipError: A voltage readout whose scale nobody knows.
        """
        if self.kind == "voltage" and scale is None:
            raise ChipError(
                "readout: no scale says what a volt is on the chip; lower the network from its graph"
            )
        per_value = 1.0 if self.kind == "spikes" or scale is None else scale
        steps = output.shape[1] if self.over_time == "mean" else 1
        return np.asarray(self.scores(output) / (per_value * steps), dtype=np.float64)

    def decide(self, output: Array) -> Int64:
        """Return the (samples,) class with the highest score; the lowest index wins a tie."""
        return np.asarray(self.scores(output).argmax(axis=1), dtype=np.int64)


TRAINED = "trained"
"""Key in `ChipNetwork.lowering` of networks that were fitted on after they were lowered."""

RELAYS = "relays"
"""Key in `ChipNetwork.lowering` of how many neurons of a layer only hand spikes on."""


@dataclass(frozen=True)
class ChipNetwork:
    """A network of integers as the chip holds it; two are equal when every field and integer is.

    Args:
        layers: at least one layer, input to output, names unique.
        input: coding of what the first layer receives.
        readout: what the last layer gives.
        dt_s: length of a time step in seconds, None when the file does not say.
        graph_hash: SHA-256 of the certified graph it was lowered from, None when it came from
            elsewhere.
        lowering: what lowering measured and approximated, as JSON values; no engine looks at it.

    Raises:
        ChipError: no layers, a repeated name, widths that do not chain, or a readout the last
            neurons cannot give.
    """

    layers: tuple[Layer, ...]
    input: InputCoding
    readout: Readout
    dt_s: float | None = None
    graph_hash: str | None = None
    lowering: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lowered_from(self) -> str | None:
        """Hash of the graph that it was lowered from, or began at where it was fitted on since.

        None when it came from elsewhere.
        """
        # Fitting changes the integers, so that they no longer are what the graph lowers to: it
        # clears graph_hash.
        found: str | None = self.graph_hash or self.lowering.get(TRAINED, {}).get("lowered_from")
        return found

    @property
    def relay_neurons(self) -> dict[str, int]:
        """Number of neurons that only hand spikes on, by layer, as lowering noted it.

        Layers without any are left out, and so is what a manifest says of no layer.
        """
        noted = self.lowering.get(RELAYS)
        if not isinstance(noted, Mapping):
            return {}
        sizes = {layer.name: prod(layer.output_shape) for layer in self.layers}
        return {
            name: int(noted[name])
            for name, size in sizes.items()
            if is_integer(noted.get(name)) and 0 < noted[name] <= size
        }

    def __post_init__(self) -> None:
        if not self.layers:
            raise ChipError("network: no layers; a chip network has at least one")
        names = [layer.name for layer in self.layers]
        # Input neurons are recorded under this name, beside the layers.
        names += ["input"] if self.input.neuron is not None else []
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
        last = self.layers[-1]
        # Neurons that fire lose their voltage at every spike: it says nothing about the inputs
        # then.
        if last.neuron.spikes != (self.readout.kind == "spikes"):
            threshold = "..".join(map(str, dict.fromkeys(register_range(last.neuron.vth_int))))
            raise ChipError(
                f"layer '{last.name}': threshold {threshold} does not go with a "
                f"{self.readout.kind} readout; a voltage readout has {NON_SPIKING_VTH}, a spike readout less"
            )

    def values(self, output: Array) -> Float64:
        """Return (samples, values) of the float student for a recorded output, see `Readout.values`.

        Raises:
            ChipError: A voltage readout whose scale nobody knows.
        """
        return self.readout.values(output, self.layers[-1].scale)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what the last layer sends in one step of one sample."""
        return self.layers[-1].output_shape
