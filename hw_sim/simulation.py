"""`simulate`: check what comes in, choose an engine, run blocks of samples and time steps, hand
back a Recording.

A run is cut into blocks so that memory does not grow with samples or steps. Layers go to the chosen
engine, and to the reference where it does not take them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64, IntArray
from knarr.hw_sim.coding import check_count, check_inputs
from knarr.hw_sim.engines.base import Engine, LayerRequest, LayerResult, RunRequest, cores
from knarr.hw_sim.engines.native import OWN_REGISTERS, SIGNED_INPUT
from knarr.hw_sim.engines.reference import (
    LayerState,
    ReferenceEngine,
    layer_result,
    run_neurons,
)
from knarr.hw_sim.engines.selection import ENGINES, choose_engine
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork, Dense
from knarr.hw_sim.recording import INPUT_LAYER, RECORDABLE, Recording

BLOCK_BYTES = 2**28
"""Bytes that a block may need besides what is recorded."""
REFERENCE = ReferenceEngine()

Progress = Callable[[int, int], Any]


def simulate(
    network: ChipNetwork,
    inputs: npt.ArrayLike,
    *,
    timesteps: int | None = None,
    engine: Literal["auto", "fast", "torch", "reference"] = "auto",
    record: Sequence[str] = ("output",),
    reset: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Run a chip network on inputs, exactly as Lava's fixed_pt model does.

    Args:
        network: what to run.
        inputs: (samples, timesteps, *features) integers, 0/1 for binary input, 0..2**bits-1 for
            graded input, with a sign where the coding has one. Driven by bias: see `check_inputs`.
        timesteps: must equal the inputs' time axis when given; says how many steps where they have
            none.
        engine: "reference" (numpy), "fast" (the compiled kernel), "torch" (no compiler; on a CUDA
            device where there is one), or "auto": the first of CUDA, fast, torch and reference that
            works here. Layers an engine does not take run in the reference (`laid_out_layers` says
            which and why); "fast" asked for by name refuses those whose neurons have registers of
            their own or whose inputs have a sign. All give the same integers.
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and
            current). Event counts and peak sums are always there.
        reset: each sample starts at rest; False runs the samples one after the other in time.
        threads: at most so many; all cores of the process by default. The reference engine has one.
        progress: called with (samples times steps done, in all) after every block.

    Returns:
        Recording with `output`, `event_counts`, `peak_sum` and what `record` names.

    Raises:
        ChipError: inputs that do not fit, an unknown engine or recordable, or an engine that does
            not work here.
    """
    # A word is a sequence of its letters.
    if isinstance(record, str) or not isinstance(record, Sequence):
        raise ChipError(f"record: {record!r} is no list of words; give one, such as ['output']")
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise ChipError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ChipError(f"engine: '{engine}' does not exist, choose {', '.join(ENGINES)}")
    check_count("threads", threads)
    events = check_inputs(network.input, inputs, timesteps)
    chosen = choose_engine(engine)
    if engine == "fast":
        _demand_kernel(network, chosen)
    if engine == "reference" and threads not in (None, 1):
        raise ChipError(
            f"threads: {threads} asked for, the reference engine has 1; leave threads out"
        )
    samples, steps = events.shape[:2]
    # Without reset all samples are one: the next begins with the states that the last one left.
    flow = events if reset else events.reshape(1, samples * steps, *events.shape[2:])
    buffer = RecordingBuffer(network, tuple(record), flow.shape[:2])
    BlockScheduler(network, chosen, buffer, threads or cores()).run(flow, progress)
    return buffer.recording((samples, steps), chosen.name)


def _demand_kernel(network: ChipNetwork, kernel: Engine) -> None:
    """Refuse what the kernel was asked for by name and has not learnt.

    Loops and delays stay with the reference without a word, as they always have: no way to lay
    them out would be faster.

    Raises:
        ChipError: a layer has registers of its own, or inputs with a sign; names it.
    """
    for layer, laid_out in zip(network.layers, laid_out_layers(network, kernel), strict=True):
        if laid_out in (OWN_REGISTERS, SIGNED_INPUT):
            raise ChipError(
                f"layer '{layer.name}': the fast engine does not take it, {laid_out}; use engine "
                "auto, torch or reference"
            )


_LAID_OUT: dict[tuple[int, str], tuple[weakref.ref[ChipNetwork], list[Any]]] = {}
"""Layers of networks, by identity, since networks hold arrays and have no hash; an entry goes with
its network.
"""


def laid_out_layers(network: ChipNetwork, engine: Engine) -> list[Any]:
    """Return every layer as the engine lays it out, or why it does not take it; done once for a
    network.
    """
    key = (id(network), engine.name)
    known = _LAID_OUT.get(key)
    # An id may belong to a new network by now.
    if known is not None and known[0]() is network:
        return known[1]
    shape, bits, signed = network.input.shape, network.input.bits, network.input.signed
    if isinstance(network.layers[0], Dense):
        shape = (prod(shape),)  # of an image engines would lay out every pixel apart
    found = []
    for layer in network.layers:
        found.append(engine.lay_out(layer, shape, bits, signed))
        shape, bits, signed = layer.output_shape, 1, False
    _LAID_OUT[key] = (weakref.ref(network, lambda _: _LAID_OUT.pop(key, None)), found)
    return found


class RecordingBuffer:
    """Arrays over all samples and steps of a run, filled in block by block.

    Args:
        network: what runs.
        record: names of RECORDABLE.
        shape: (samples, timesteps).
    """

    def __init__(
        self, network: ChipNetwork, record: tuple[str, ...], shape: tuple[int, ...]
    ) -> None:
        self.network, self.record, self.shape = network, record, shape
        kinds = [kind for kind in ("spikes", "u", "v") if kind in record]
        self.arrays: dict[str, dict[str, Array]] = {kind: {} for kind in kinds}
        self.counts: dict[str, Int64] = {}
        self.peaks: dict[str, int] = {}
        self.output = np.zeros((*shape, prod(network.output_shape)), dtype=np.int64)

    def put(self, name: str, samples: slice, steps: slice, result: LayerResult) -> None:
        """Write what one layer did in one block."""
        counts = self.counts.setdefault(name, np.zeros(self.shape, dtype=np.int64))
        counts[samples, steps] = result.counts
        # Input neurons have no synapses whose sums could be large.
        if name != INPUT_LAYER:
            self.peaks[name] = max(self.peaks.get(name, 0), result.peak)
        for kind, arrays in self.arrays.items():
            values = getattr(result, kind)
            if name not in arrays:
                dtype = np.uint8 if kind == "spikes" else np.int64
                # Made at the first block, which knows the layer's shape; every place is written
                # once.
                arrays[name] = np.empty((*self.shape, *values.shape[2:]), dtype=dtype)
            arrays[name][samples, steps] = values
        if name == self.network.layers[-1].name:
            last = result.v if self.network.readout.kind == "voltage" else result.spikes
            assert last is not None  # it was wanted
            self.output[samples, steps] = last.reshape(*last.shape[:2], -1)

    def recording(self, shape: tuple[int, int], engine: str) -> Recording:
        """Return all of it, as (samples, timesteps) of `shape`: a run without reset laid its
        samples end to end.
        """

        def shaped(arrays: dict[str, Array]) -> dict[str, Array]:
            return {name: array.reshape(*shape, *array.shape[2:]) for name, array in arrays.items()}

        return Recording(
            output=self.output.reshape(*shape, -1),
            **{kind: shaped(arrays) for kind, arrays in self.arrays.items()},
            event_counts=shaped(self.counts),
            peak_sum=self.peaks,
            engine=engine,
        )


@dataclass
class _Segment:
    """Consecutive layers that one engine runs, and what it keeps of them from block to block."""

    engine: Engine
    first: int
    chain: list[Any]
    wanted: list[LayerRequest]
    states: list[Any]

    @property
    def layers(self) -> slice:
        return slice(self.first, self.first + len(self.chain))


class BlockScheduler:
    """One network on one engine.

    Args:
        network: what runs.
        engine: for the layers it takes; the others go to the reference.
        buffer: is filled in.
        threads: at most so many.
    """

    def __init__(
        self, network: ChipNetwork, engine: Engine, buffer: RecordingBuffer, threads: int
    ) -> None:
        self.network, self.engine, self.buffer = network, engine, buffer
        self.threads = threads
        self.too_large: set[int] = set()
        """Layers whose sums the engine could not hold."""
        self.done = 0
        """Samples times steps; what is run again counts once."""
        self.segments = self._segments()

    def run(self, flow: IntArray, progress: Progress | None) -> None:
        """Run every sample and step of (samples, timesteps, *features)."""
        samples, steps = flow.shape[:2]
        start = 0
        while start < samples:
            at_once, block = self._sizes(steps)
            rows = slice(start, min(start + at_once, samples))
            if self._run_samples(flow, rows, block, progress):
                start = rows.stop
            else:
                self.segments = self._segments()  # other engines need other sizes

    def _run_samples(
        self, flow: IntArray, rows: slice, block: int, progress: Progress | None
    ) -> bool:
        """Run all steps of some samples; False where they have to be run again with other segments."""
        network = self.network
        samples, steps = flow.shape[:2]
        for segment in self.segments:
            segment.states = [None] * len(segment.chain)
        zeros = np.zeros((rows.stop - rows.start, *flow.shape[2:]), dtype=np.int64)
        input_state = LayerState(zeros, zeros, zeros, np.zeros(0, dtype=np.uint8))
        for start in range(0, steps, block):
            now = slice(start, min(start + block, steps))
            events: IntArray = flow[rows, now].astype(network.input.dtype, copy=False)
            if network.input.neuron is not None:
                bias = events.astype(np.int64)
                driven = run_neurons(network.input.neuron, np.zeros_like(bias), bias, input_state)
                result = layer_result(*driven)
                self.buffer.put(INPUT_LAYER, rows, now, result)
                assert result.spikes is not None  # the reference always gives them
                events = result.spikes
            for segment in self.segments:
                request = RunRequest(
                    chain=segment.chain,
                    events=events,
                    bits=network.input.bits if segment.first == 0 else 1,
                    signed=network.input.signed and segment.first == 0,
                    wanted=segment.wanted,
                    states=segment.states,
                    threads=self.threads,
                    carry=now.stop < steps,
                )
                results = segment.engine.run(request)
                if results is None:
                    self.too_large.update(range(len(network.layers))[segment.layers])
                    return False
                for layer, result in zip(network.layers[segment.layers], results, strict=True):
                    self.buffer.put(layer.name, rows, now, result)
                if results[-1].spikes is not None:
                    events = results[-1].spikes
            finished = rows.start * steps + (rows.stop - rows.start) * now.stop
            self.done = max(self.done, finished)
            if progress is not None:
                progress(self.done, samples * steps)
        return True

    def _segments(self) -> list[_Segment]:
        network = self.network
        chain = list(laid_out_layers(network, self.engine))
        engines = [self.engine] * len(chain)
        for i, layer in enumerate(network.layers):
            if isinstance(chain[i], str) or i in self.too_large:
                chain[i], engines[i] = layer, REFERENCE
        record, voltage = self.buffer.record, network.readout.kind == "voltage"
        last = len(chain) - 1
        segments: list[_Segment] = []
        for i, engine in enumerate(engines):
            if i == 0 or engine is not engines[i - 1]:
                segments.append(_Segment(engine, i, [], [], []))
            # Within a segment spikes go from layer to layer inside the engine.
            hands_on = i < last and engine is not engines[i + 1]
            spikes = "spikes" in record or hands_on or (i == last and not voltage)
            states = "u" in record or "v" in record or (i == last and voltage)
            segments[-1].chain.append(chain[i])
            segments[-1].wanted.append(LayerRequest(spikes, states))
        return segments

    def _sizes(self, steps: int) -> tuple[int, int]:
        """Return samples and steps of a block: all steps of a sample first, then more samples."""
        needed = 4 * prod(self.network.input.shape)
        for segment in self.segments:
            layers = self.network.layers[segment.layers]
            for layer, laid_out, want in zip(layers, segment.chain, segment.wanted, strict=True):
                size = prod(layer.output_shape)
                # States come in blocks of 32 channels, twice 4 bytes, and leave as twice 8.
                wide = max(size, 32 * prod(layer.output_shape[1:]))
                recorded = size * want.spikes + 24 * wide * want.states
                # Recorded arrays of all layers are there at once, the rest one layer after the
                # other.
                needed = max(needed, segment.engine.bytes_per_step(laid_out)) + recorded
        block = min(steps, max(1, BLOCK_BYTES // needed))
        return max(1, BLOCK_BYTES // (needed * block)), block
