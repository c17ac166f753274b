"""A run in blocks of samples and time steps, so that memory does not grow with either; layers go to the engine that takes them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.engine import Engine, Events, Ran, ReferenceEngine, Wanted, cores, ran_of
from knarr.hw_sim.keep import Keep
from knarr.hw_sim.layers import Dense, Neuron
from knarr.hw_sim.network import ChipNetwork
from knarr.hw_sim.recording import INPUT_LAYER
from knarr.hw_sim.reference import LayerState, run_neurons

BLOCK_BYTES = 2**28
"""What a block may need besides what is recorded."""
REFERENCE = ReferenceEngine()

_PLANS: dict[tuple[int, str], tuple[weakref.ref[ChipNetwork], list[Any]]] = {}
"""By identity, since networks hold arrays and have no hash; an entry goes with its network."""


def plans(network: ChipNetwork, engine: Engine) -> list[Any]:
    """Every layer as the engine lays it out, or why it does not take it; done once for a network."""
    key = (id(network), engine.name)
    known = _PLANS.get(key)
    if known is not None and known[0]() is network:
        return known[1]
    shape, bits = network.input.shape, network.input.bits
    found = []
    if isinstance(network.layers[0], Dense):
        shape = (prod(shape),)  # of an image engines would lay out every pixel apart
    for layer in network.layers:
        found.append(engine.lay_out(layer, shape, bits))
        shape, bits = layer.output_shape, 1
    _PLANS[key] = (weakref.ref(network, lambda _: _PLANS.pop(key, None)), found)
    return found


@dataclass
class _Segment:
    """Consecutive layers that one engine runs."""

    engine: Engine
    first: int
    chain: list[Any]
    wanted: list[Wanted]


class Run:
    """One network on one engine.

    Args:
        network: what runs.
        engine: for the layers it takes; the others go to the reference.
        keep: is filled in.
        threads: at most so many, all cores by default.
    """

    def __init__(self, network: ChipNetwork, engine: Engine, keep: Keep, threads: int | None) -> None:
        self.network, self.engine, self.keep = network, engine, keep
        self.threads = threads or cores()
        self.too_large: set[int] = set()
        """Layers whose sums the engine could not hold."""
        self.done = 0
        """Samples times steps; what is run again counts once."""
        self.segments = self._segments()

    def all(self, flow: Events, progress: Callable[[int, int], Any] | None) -> None:
        """Every sample and step of (samples, timesteps, *features)."""
        samples, steps = flow.shape[:2]
        start = 0
        while start < samples:
            at_once, block = self._sizes(steps)
            rows = slice(start, min(start + at_once, samples))
            if self._samples(flow, rows, block, progress):
                start = rows.stop
            else:
                self.segments = self._segments()  # other engines need other sizes

    def _samples(
        self, flow: Events, rows: slice, block: int, progress: Callable[[int, int], Any] | None
    ) -> bool:
        """All steps of some samples; False where they have to be run again with other segments."""
        samples, steps = flow.shape[:2]
        states: list[Any] = [None] * len(self.network.layers)
        driver = self.network.input.neuron
        drive = None if driver is None else _Drive(driver, (rows.stop - rows.start, *flow.shape[2:]))
        for start in range(0, steps, block):
            now = slice(start, min(start + block, steps))
            events: Events = flow[rows, now].astype(self.network.input.dtype, copy=False)
            if drive is not None:
                ran = drive.run(events)
                self.keep.put(INPUT_LAYER, rows, now, ran, peak=False)
                assert ran.spikes is not None
                events = ran.spikes
            for segment in self.segments:
                layers = slice(segment.first, segment.first + len(segment.chain))
                bits = self.network.input.bits if segment.first == 0 else 1
                mine = states[layers]
                done = segment.engine.run(
                    segment.chain, events, bits, segment.wanted, mine, self.threads, carry=now.stop < steps
                )
                if done is None:
                    self.too_large |= set(range(layers.start, layers.stop))
                    return False
                states[layers] = mine
                for layer, ran in zip(self.network.layers[layers], done, strict=True):
                    self.keep.put(layer.name, rows, now, ran)
                if done[-1].spikes is not None:
                    events = done[-1].spikes
            self.done = max(self.done, rows.start * steps + (rows.stop - rows.start) * now.stop)
            if progress is not None:
                progress(self.done, samples * steps)
        return True

    def _segments(self) -> list[_Segment]:
        found: list[_Segment] = []
        for i, (layer, plan) in enumerate(
            zip(self.network.layers, plans(self.network, self.engine), strict=True)
        ):
            refused = isinstance(plan, str) or i in self.too_large
            engine: Engine = REFERENCE if refused else self.engine
            if not found or found[-1].engine is not engine:
                found.append(_Segment(engine, i, [], []))
            found[-1].chain.append(layer if refused else plan)
        record, voltage = self.keep.record, self.network.readout.kind == "voltage"
        for segment in found:
            for i in range(segment.first, segment.first + len(segment.chain)):
                last = i == len(self.network.layers) - 1
                hands_on = i == segment.first + len(segment.chain) - 1 and not last
                segment.wanted.append(
                    Wanted(
                        "spikes" in record or hands_on or (last and not voltage),
                        "u" in record or "v" in record or (last and voltage),
                    )
                )
        return found

    def _sizes(self, steps: int) -> tuple[int, int]:
        """Samples and steps of a block."""
        needed = 4 * prod(self.network.input.shape)
        for segment in self.segments:
            for want, laid_out, layer in zip(
                segment.wanted,
                segment.chain,
                self.network.layers[segment.first :],
                strict=False,
            ):
                # States come in blocks of 32 channels, twice 4 bytes, and leave as twice 8.
                wide = max(prod(layer.output_shape), 32 * prod(layer.output_shape[1:]))
                recorded = prod(layer.output_shape) * want.spikes + 24 * wide * want.states
                needed = max(needed, segment.engine.bytes_per_step(laid_out)) + recorded
        block = min(steps, max(1, BLOCK_BYTES // needed))
        return max(1, BLOCK_BYTES // (needed * block)), block


class _Drive:
    """Input neurons that (samples, timesteps, *features) bias mantissas drive."""

    def __init__(self, neuron: Neuron, shape: tuple[int, ...]) -> None:
        zeros = np.zeros(shape, dtype=np.int64)
        self.neuron, self.state = neuron, LayerState(zeros, zeros, zeros, np.zeros(0, dtype=np.uint8))

    def run(self, bias: npt.NDArray[np.integer[Any]]) -> Ran:
        wide = bias.astype(np.int64)
        return ran_of(*run_neurons(self.neuron, np.zeros_like(wide), wide, self.state))
