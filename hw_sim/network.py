"""The integer chip network: frozen layers of integers, nothing else.

A layer is a synapse (Dense, Recurrent or Conv) and the CUBA neurons it feeds. Layers follow each other in order; between a Conv
and a Dense layer the features are flattened in (C, H, W) order, as torch does. A `ChipNetwork` says nothing about
whether hardware takes it: that is `knarr.deploy.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.layers import DECAY_UNITY, NON_SPIKING_VTH, Conv, Dense, IntArray, Layer, Neuron, Recurrent

__all__ = [
    "DECAY_UNITY",
    "NON_SPIKING_VTH",
    "ChipNetwork",
    "Conv",
    "Dense",
    "InputCoding",
    "IntArray",
    "Layer",
    "Neuron",
    "Readout",
    "Recurrent",
]

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
            raise ChipError("input: neurons driven by bias take mantissas as they are; leave kind at events")

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

    def scores(self, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(samples, timesteps, outputs) -> (samples, classes); a mean is left as the sum, which orders alike.

        Of the chip's integers or of the float graph's values.
        """
        reduced = output[:, -1] if self.over_time == "last" else output.sum(axis=1)
        return np.asarray(reduced.reshape(len(reduced), -1, self.votes).sum(axis=2))

    def decide(self, output: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
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
        names = [layer.name for layer in self.layers] + (["input"] if self.input.neuron is not None else [])
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
