"""`simulate`: check what comes in, choose an engine, run blocks of samples and time steps, hand
back a Recording.

A run is cut into blocks so that memory does not grow with samples or steps. Layers go to the chosen
engine, and where it does not take them to the compiled kernel; to the reference, with a warning, if
nothing else takes them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64, IntArray
from knarr.hw_sim.coding import check_count, check_inputs
from knarr.hw_sim.engines import selection
from knarr.hw_sim.engines.base import (
    MAX_SUM,
    Engine,
    LayerRequest,
    LayerResult,
    LayerState,
    RunRequest,
    TallyRequest,
    cores,
)
from knarr.hw_sim.engines.native import FastEngine
from knarr.hw_sim.engines.native_tally import MOST_STEPS
from knarr.hw_sim.engines.reference import ReferenceEngine
from knarr.hw_sim.engines.selection import ENGINES, choose_engine
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork, Conv
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
            works here. Layers that an engine does not take run on the compiled kernel, which takes
            every layer whose sums stay below 2**53. Where there is no kernel they run in the
            reference, hundreds of times slower: a `SlowEngineWarning` names them and says why. All
            give the same integers.
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
    if engine != "reference":
        _tell_slow_layers(network, chosen, refuse=engine == "fast")
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


def simulate_counted(
    network: ChipNetwork, events: IntArray, wanted: Sequence[TallyRequest]
) -> dict[str, LayerResult] | None:
    """Run a chip network on the compiled kernel, which counts what arrives meanwhile.

    Args:
        network: what runs.
        events: (samples, timesteps, *features), spikes that `check_inputs` has seen.
        wanted: what is counted of each layer.

    Returns:
        Layer -> its spike counts and tally; None where the kernel cannot count this run.
    """
    kernel = choose_engine("auto")
    if not isinstance(kernel, FastEngine) or events.shape[1] > MOST_STEPS:
        return None
    plan = plan_layers(network, kernel)
    buffer = RecordingBuffer(network, (), events.shape[:2])
    scheduler = BlockScheduler(network, kernel, buffer, cores())
    at_once, block = scheduler._sizes(events.shape[1])
    if any(carrier is not kernel for carrier, _ in plan) or block < events.shape[1]:
        return None
    found: list[list[LayerResult]] = []
    for start in range(0, len(events), at_once):
        rows = slice(start, start + at_once)
        request = RunRequest(
            chain=[laid_out for _, laid_out in plan],
            events=events[rows],
            bits=1,
            wanted=[LayerRequest(spikes=False, states=False)] * len(plan),
            states=[None] * len(plan),
            threads=cores(),
            carry=False,
            tally=[replace(each, paid=each.paid[rows]) for each in wanted],
        )
        results = kernel.run(request)
        if results is None:
            return None
        found.append(results)
    by_layer = zip(*found, strict=True)
    return {
        layer.name: LayerResult.joined(parts)
        for layer, parts in zip(network.layers, by_layer, strict=True)
    }


class SlowEngineWarning(UserWarning):
    """The reference runs layers, or all of a network: hundreds of times slower, the same integers."""


def _tell_slow_layers(network: ChipNetwork, engine: Engine, *, refuse: bool) -> None:
    """Warn of layers that go to the reference, or refuse what the engine does not take.

    Raises:
        ChipError: there is such a layer and `refuse`; names it.
    """
    if isinstance(engine, ReferenceEngine):
        _warn("engine: the reference runs this network", "knarr doctor says why no other does")
        return
    plan = plan_layers(network, engine)
    for layer, (carrier, _), laid_out in zip(
        network.layers, plan, laid_out_layers(network, engine), strict=True
    ):
        if carrier is not REFERENCE:
            continue
        if refuse:
            raise ChipError(
                f"layer '{layer.name}': the fast engine does not take it, {laid_out}; use engine "
                "auto, torch or reference"
            )
        _warn(f"layer '{layer.name}': the reference runs it", laid_out)


def _warn(what: str, why: str) -> None:
    warnings.warn(
        f"{what}, hundreds of times slower than a compiled kernel: {why}",
        SlowEngineWarning,
        stacklevel=4,
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
    found = [
        engine.lay_out(layer, *entering)
        for layer, entering in zip(network.layers, _entering(network), strict=True)
    ]
    _LAID_OUT[key] = (weakref.ref(network, lambda _: _LAID_OUT.pop(key, None)), found)
    return found


def _entering(network: ChipNetwork) -> list[tuple[tuple[int, ...], int, bool]]:
    """Return shape, bits and sign of what enters every layer."""
    source = network.input
    shape = source.shape
    if not isinstance(network.layers[0], Conv):
        shape = (prod(shape),)  # of an image engines would lay out every pixel apart
    found = [(shape, source.bits, source.signed)]
    return found + [(layer.output_shape, 1, False) for layer in network.layers[:-1]]


def plan_layers(
    network: ChipNetwork, engine: Engine, large: Collection[int] = ()
) -> list[tuple[Engine, Any]]:
    """Return the engine of every layer, and the layer as that engine lays it out.

    What `engine` does not take goes to the compiled kernel where there is one, else to the
    reference.

    Args:
        network: what runs.
        engine: the engine that was chosen.
        large: indices of layers that met sums larger than they were laid out for.
    """
    if isinstance(engine, ReferenceEngine):
        return [(engine, layer) for layer in network.layers]
    kernel = selection.fast_engine()
    candidates: list[Engine] = [engine]
    if not isinstance(kernel, str) and engine.name != kernel.name:
        candidates.append(kernel)
    plan: list[tuple[Engine, Any]] = []
    for i, entering in enumerate(_entering(network)):
        for candidate in candidates:
            layer = network.layers[i]
            laid_out = (
                candidate.lay_out(layer, *entering, large=True)
                if i in large
                else laid_out_layers(network, candidate)[i]
            )
            if not isinstance(laid_out, str):
                plan.append((candidate, laid_out))
                break
        else:
            plan.append((REFERENCE, network.layers[i]))
    return plan


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
        """Layers that may have met sums larger than they were laid out for."""
        self.done = 0
        """Samples times steps; what is run again counts once."""
        self.segments = self._segments()
        kernel = selection.fast_engine()
        self.driver: ReferenceEngine | FastEngine = REFERENCE
        """The engine of input neurons."""
        if not (isinstance(engine, ReferenceEngine) or isinstance(kernel, str)):
            self.driver = kernel

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
        nothing = np.zeros((len(zeros), 0), dtype=np.uint8)
        input_state = LayerState(zeros, zeros, nothing, nothing)
        for start in range(0, steps, block):
            now = slice(start, min(start + block, steps))
            events: IntArray = flow[rows, now].astype(network.input.dtype, copy=False)
            if network.input.neuron is not None:
                result = self.driver.drive(network.input.neuron, events, input_state)
                self.buffer.put(INPUT_LAYER, rows, now, result)
                assert result.spikes is not None  # which drivers always give
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
        plan = plan_layers(network, self.engine, self.too_large)
        engines, chain = [carrier for carrier, _ in plan], [laid_out for _, laid_out in plan]
        for i in self.too_large:
            if engines[i] is REFERENCE and self.engine is not REFERENCE:
                _warn(
                    f"layer '{network.layers[i].name}': the reference runs it",
                    f"sums beyond {MAX_SUM} need more bits",
                )
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
