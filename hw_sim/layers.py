"""Layers of a chip network: registers of its CUBA neurons, and the integer synapses that feed them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.errors import ChipError

IntArray = npt.NDArray[np.integer[Any]]

DECAY_UNITY = 4096
"""A decay register of 4096 forgets everything in one step; 0 forgets nothing."""
NON_SPIKING_VTH = 2**18 - 1
"""Lava's clip of v lies below this threshold, so a neuron that has it never fires: the declared voltage readout."""
MAX_DELAY = 62
"""netx clamps synaptic delays above; hardware has 6 bits."""


def _frozen(name: str, field: str, array: object, ndim: int) -> npt.NDArray[np.int32]:
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
        for field, high in (("i_decay", DECAY_UNITY), ("v_decay", DECAY_UNITY), ("vth_int", NON_SPIKING_VTH)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise ChipError(
                    f"neuron '{self.name}': {field} = {value!r} is not an integer; round it first"
                )
            if not 0 <= value <= high:
                raise ChipError(f"neuron '{self.name}': {field} = {value}, allowed 0..{high}")
            object.__setattr__(self, field, int(value))

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
    weight_int: npt.NDArray[np.int32]
    neuron: Neuron
    bias_int: npt.NDArray[np.int32] | None = None
    scale: float | None = None
    delay_int: npt.NDArray[np.int32] | None = None

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
    weight_int: npt.NDArray[np.int32]
    recurrent_int: npt.NDArray[np.int32]
    neuron: Neuron
    bias_int: npt.NDArray[np.int32] | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_int", _frozen(self.name, "weight_int", self.weight_int, 2))
        object.__setattr__(self, "recurrent_int", _frozen(self.name, "recurrent_int", self.recurrent_int, 2))
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
    weight_int: npt.NDArray[np.int32]
    neuron: Neuron
    input_shape: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias_int: npt.NDArray[np.int32] | None = None
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
    for field in fields(one):  # type: ignore[arg-type]  # both are layers
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
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
        raise ChipError(f"layer '{layer.name}': bias_int has shape {bias.shape}, needs ({outputs},)")
    object.__setattr__(layer, "bias_int", bias)


Layer = Dense | Conv | Recurrent
