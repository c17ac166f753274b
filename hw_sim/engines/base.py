"""What every engine is to `simulate`: layers laid out once, then run on blocks of samples and time steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from knarr.hw_sim.arrays import Int64, IntArray, UInt8
from knarr.hw_sim.engines.reference import LayerState, Spikes, at_rest, run_layer
from knarr.hw_sim.network import Layer


@dataclass(frozen=True)
class Wanted:
    """What `simulate` needs of a layer besides its counts."""

    spikes: bool
    states: bool


@dataclass(eq=False)
class LayerResult:
    """What one layer did in a block.

    Args:
        counts: (samples, timesteps) spikes.
        peak: largest |synaptic sum|.
        spikes: (samples, timesteps, *features) uint8, None where not wanted.
        u, v: (samples, timesteps, *features) chip integers, None where not wanted.
    """

    counts: IntArray
    peak: int
    spikes: UInt8 | None = None
    u: IntArray | None = None
    v: IntArray | None = None


class Engine(Protocol):
    """One way to compute the chip's integers."""

    name: str

    def lay_out(self, layer: Layer, entering: tuple[int, ...], bits: int) -> Any:
        """A layer as this engine wants it, or a string: why it does not take it."""

    def bytes_per_step(self, laid_out: Any) -> int:
        """About what a layer needs for one step of one sample."""

    def run(
        self,
        chain: list[Any],
        events: IntArray,
        bits: int,
        wanted: list[Wanted],
        states: list[Any],
        threads: int,
        *,
        carry: bool,
    ) -> list[LayerResult] | None:
        """Consecutive layers on a block.

        Args:
            chain: layers as `lay_out` gave them.
            events: (samples, timesteps, *features) of 0..2**bits-1.
            bits: of them.
            wanted: of each layer.
            states: of each layer, the engine's own: None at rest, left as they are after the block where `carry` asks.
            threads: at most so many.
            carry: another block of the same samples follows.

        Returns:
            What every layer did; None when a sum was too large for this engine.
        """


class ReferenceEngine:
    """The oracle: every layer, no conditions."""

    name = "reference"

    def lay_out(self, layer: Layer, entering: tuple[int, ...], bits: int) -> Layer:
        """As it is."""
        return layer

    def bytes_per_step(self, laid_out: Layer) -> int:
        """Sums, u and v and what numpy makes on the way."""
        return 64 * prod(laid_out.output_shape)

    def run(
        self,
        chain: list[Any],
        events: IntArray,
        bits: int,
        wanted: list[Wanted],
        states: list[Any],
        threads: int,
        *,
        carry: bool,
    ) -> list[LayerResult]:
        """See `Engine.run`."""
        found = []
        for i, (layer, want) in enumerate(zip(chain, wanted, strict=True)):
            state: LayerState = states[i] or at_rest(layer, len(events))
            states[i] = state
            fired, u, v, peak = run_layer(layer, events, state)
            ran = ran_of(fired, u, v, peak)
            assert ran.spikes is not None
            events = ran.spikes
            if not want.states:
                ran.u = ran.v = None
            found.append(ran)
        return found


def ran_of(fired: Spikes, u: Int64, v: Int64, peak: int) -> LayerResult:
    """What the reference's neurons did, spikes counted."""
    spikes = fired.view(np.uint8)
    counts = spikes.sum(axis=tuple(range(2, spikes.ndim)), dtype=np.int64)
    return LayerResult(counts, peak, spikes, u, v)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
