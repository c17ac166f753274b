"""The simulator's view of an engine: layers laid out once, then run on blocks of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from knarr.hw_sim.arrays import Int64, IntArray, Mask, UInt8
from knarr.hw_sim.network import Layer

MAX_SUM = 2**17
"""Largest |synaptic sum| that floats take; beyond, a layer is laid out as `large`.

Within it 64 * |sum| stays within 2**23: float32 holds it, one wrap brings u back, and 24 bits hold
a convolution's sum.
"""


@dataclass(frozen=True)
class LayerRequest:
    """Arrays that are wanted of a layer besides its counts: its spikes, and its u and v."""

    spikes: bool
    states: bool


@dataclass(frozen=True, eq=False)
class TallyRequest:
    """Facts of a layer that counting needs, and the steps that it counts.

    Args:
        paid: (samples,) steps of each that somebody pays; events that act later are not counted.
        stored: (features,) outputs that an event at each input reaches, in (C, H, W) order.
        nonzero: the same through weights that are not 0.
        geometry: kernel, stride, padding and dilation of a convolution, (y, x) each; None of others.
        delays: (outputs, inputs) steps, and which weights are not 0; None where nothing is late.
        loop: its own spikes come back to it.
    """

    paid: Int64
    stored: Int64
    nonzero: Int64
    geometry: tuple[tuple[int, int], ...] | None = None
    delays: tuple[IntArray, Mask] | None = None
    loop: bool = False


@dataclass(eq=False)
class TallyResult:
    """Events and synapses counted at a layer in a block.

    Args:
        heard: (samples, timesteps) events that arrive.
        stored: (samples, timesteps) synapses that take them to an output within the steps that are
            paid, by the step they were sent in.
        nonzero: weights that are not 0 among them, all samples and steps together.
        events: events that some synapse takes to an output in time.
        touched: (samples, timesteps) neurons that some event reaches, those of a loop aside; None of
            dense layers without delays, where any event reaches all.
        own: (features,) spikes that come back in time, by neuron; of layers with a loop.
    """

    heard: Int64
    stored: Int64
    nonzero: int
    events: int
    touched: Int64 | None
    own: Int64 | None

    @staticmethod
    def joined(parts: Sequence[TallyResult]) -> TallyResult:
        """Put blocks of samples together."""
        touched = [part.touched for part in parts if part.touched is not None]
        own = [part.own for part in parts if part.own is not None]
        return TallyResult(
            np.concatenate([part.heard for part in parts]),
            np.concatenate([part.stored for part in parts]),
            sum(part.nonzero for part in parts),
            sum(part.events for part in parts),
            np.concatenate(touched) if touched else None,
            np.sum(own, axis=0) if own else None,
        )


@dataclass(frozen=True, eq=False)
class RunRequest:
    """Consecutive layers and a block of samples and time steps to run them on.

    Args:
        chain: layers as `Engine.lay_out` gave them.
        events: (samples, timesteps, *features) of 0..2**bits-1, or with a sign on top.
        bits: width of the events, a sign aside.
        wanted: what is asked of each layer.
        states: the engine's own of each layer: None at rest, left as they are after the block where
            `carry` asks.
        threads: at most so many.
        carry: another block of the same samples follows.
        signed: the events may be negative.
        tally: what is counted of each layer; only spikes that enter, all steps at once, and engines
            that say so can count.
    """

    chain: list[Any]
    events: IntArray
    bits: int
    wanted: list[LayerRequest]
    states: list[Any]
    threads: int
    carry: bool
    signed: bool = False
    tally: list[TallyRequest] | None = None


@dataclass(eq=False)
class LayerResult:
    """Result of one layer in a block.

    Args:
        counts: (samples, timesteps) spikes.
        peak: largest |synaptic sum|.
        spikes: (samples, timesteps, *features) uint8, None where not wanted.
        u, v: (samples, timesteps, *features) chip integers, None where not wanted.
        tally: what arrived, None where not wanted.
    """

    counts: IntArray
    peak: int
    spikes: UInt8 | None = None
    u: IntArray | None = None
    v: IntArray | None = None
    tally: TallyResult | None = None

    @staticmethod
    def joined(parts: Sequence[LayerResult]) -> LayerResult:
        """Put counts and tallies of blocks of samples together; arrays are left out."""
        counts = np.concatenate([part.counts for part in parts])
        tallies = [part.tally for part in parts if part.tally is not None]
        tally = TallyResult.joined(tallies) if tallies else None
        return LayerResult(counts, max(part.peak for part in parts), tally=tally)


@dataclass(eq=False)
class LayerState:
    """Memory of a layer between two time steps, the same for every engine; zeros at rest.

    Args:
        u, v: (samples, *features) int64 registers.
        fired: (samples, features) 0 or 1, its own spikes of the last step, which come back in the
            next one; without features where the layer has no loop.
        sent: (samples, longest delay, features) what arrived last; without steps where the layer
            has no delays.
    """

    u: Int64
    v: Int64
    fired: UInt8
    sent: IntArray


class Engine(Protocol):
    """One way to compute the chip's integers."""

    name: str
    description: str
    """Text for people: what the engine uses of this machine."""

    def lay_out(
        self,
        layer: Layer,
        entering: tuple[int, ...],
        bits: int,
        signed: bool = False,
        large: bool = False,
    ) -> Any:
        """Return a layer as this engine wants it, or a string that says why it does not take it.

        Args:
            layer: a layer of a chip network.
            entering: shape of what arrives, (features,) or (C, H, W).
            bits: width of what arrives, a sign aside.
            signed: it may be negative.
            large: a run met sums beyond `MAX_SUM`; any sum has to be taken.
        """

    def bytes_per_step(self, laid_out: Any) -> int:
        """Estimate what a layer needs for one step of one sample, recorded arrays aside."""

    def run(self, request: RunRequest) -> list[LayerResult] | None:
        """Return what every layer did, or None when a sum was larger than one of them was laid out
        for.
        """

    def read_state(self, laid_out: Any, state: Any) -> LayerState:
        """Return what `run` left in `RunRequest.states` of a layer."""

    def write_state(self, laid_out: Any, state: LayerState) -> Any:
        """Return a state for `RunRequest.states`, from which a run goes on."""


def cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
