"""What is recorded of a run, filled in block by block.

A run in blocks of samples and time steps, so that memory does not grow with either; layers go to the engine that takes them.

Which engines this machine has, and which one `auto` takes.

`simulate`: check what comes in, choose an engine, run blocks of samples and time steps, hand back a Recording.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64, IntArray
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.engines.base import Engine, LayerResult, ReferenceEngine, Wanted, cores, ran_of
from knarr.hw_sim.engines.native import FastEngine, load
from knarr.hw_sim.engines.reference import LayerState, run_neurons
from knarr.hw_sim.engines.self_test import differs
from knarr.hw_sim.engines.torch import TorchEngine, cuda_device, torch_engine
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork, Dense, Neuron
from knarr.hw_sim.recording import INPUT_LAYER, RECORDABLE, Recording


class RecordingBuffer:
    """Arrays over all samples and steps of a run.

    Args:
        network: what runs.
        record: of RECORDABLE.
        shape: (samples, timesteps).
    """

    def __init__(
        self, network: ChipNetwork, record: tuple[str, ...], shape: tuple[int, int]
    ) -> None:
        self.network, self.record, self.shape = network, record, shape
        self.arrays: dict[str, dict[str, Array]] = {name: {} for name in ("spikes", "u", "v")}
        self.counts: dict[str, Int64] = {}
        self.peaks: dict[str, int] = {}
        outputs = int(np.prod(network.output_shape))
        self.output = np.zeros((*shape, outputs), dtype=np.int64)

    def put(
        self, name: str, samples: slice, steps: slice, ran: LayerResult, *, peak: bool = True
    ) -> None:
        """Of one layer in one block."""
        counts = self.counts.setdefault(name, np.zeros(self.shape, dtype=np.int64))
        counts[samples, steps] = ran.counts
        if peak:
            self.peaks[name] = max(self.peaks.get(name, 0), ran.peak)
        for kind, values in (("spikes", ran.spikes), ("u", ran.u), ("v", ran.v)):
            if kind in self.record:
                assert values is not None  # it was wanted
                arrays = self.arrays[kind]
                if name not in arrays:
                    dtype = np.uint8 if kind == "spikes" else np.int64
                    arrays[name] = np.empty((*self.shape, *values.shape[2:]), dtype=dtype)
                arrays[name][samples, steps] = values
        if name == self.network.layers[-1].name:
            last = ran.v if self.network.readout.kind == "voltage" else ran.spikes
            assert last is not None  # it was wanted
            self.output[samples, steps] = last.reshape(*last.shape[:2], -1)

    def recording(self, shape: tuple[int, int], engine: str) -> Recording:
        """All of it, as (samples, timesteps) of `shape`: a run without reset laid its samples end to end."""

        def of(arrays: dict[str, Array]) -> dict[str, Array]:
            return {name: array.reshape(*shape, *array.shape[2:]) for name, array in arrays.items()}

        return Recording(
            output=self.output.reshape(*shape, -1),
            spikes=of(self.arrays["spikes"]),
            v=of(self.arrays["v"]),
            u=of(self.arrays["u"]),
            event_counts=of(self.counts),
            peak_sum=self.peaks,
            engine=engine,
        )


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


class BlockScheduler:
    """One network on one engine.

    Args:
        network: what runs.
        engine: for the layers it takes; the others go to the reference.
        keep: is filled in.
        threads: at most so many, all cores by default.
    """

    def __init__(
        self, network: ChipNetwork, engine: Engine, keep: RecordingBuffer, threads: int | None
    ) -> None:
        self.network, self.engine, self.keep = network, engine, keep
        self.threads = threads or cores()
        self.too_large: set[int] = set()
        """Layers whose sums the engine could not hold."""
        self.done = 0
        """Samples times steps; what is run again counts once."""
        self.segments = self._segments()

    def all(self, flow: IntArray, progress: Callable[[int, int], Any] | None) -> None:
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
        self, flow: IntArray, rows: slice, block: int, progress: Callable[[int, int], Any] | None
    ) -> bool:
        """All steps of some samples; False where they have to be run again with other segments."""
        samples, steps = flow.shape[:2]
        states: list[Any] = [None] * len(self.network.layers)
        driver = self.network.input.neuron
        drive = (
            None if driver is None else _Drive(driver, (rows.stop - rows.start, *flow.shape[2:]))
        )
        for start in range(0, steps, block):
            now = slice(start, min(start + block, steps))
            events: IntArray = flow[rows, now].astype(self.network.input.dtype, copy=False)
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
                    segment.chain,
                    events,
                    bits,
                    segment.wanted,
                    mine,
                    self.threads,
                    carry=now.stop < steps,
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
        self.neuron, self.state = (
            neuron,
            LayerState(zeros, zeros, zeros, np.zeros(0, dtype=np.uint8)),
        )

    def run(self, bias: IntArray) -> LayerResult:
        wide = bias.astype(np.int64)
        return ran_of(*run_neurons(self.neuron, np.zeros_like(wide), wide, self.state))


ENGINES = ("auto", "fast", "torch", "reference")


def choose(name: str) -> Engine:
    """The engine of a name; "auto": CUDA where there is a device, else the compiled kernel, else torch, else the reference.

    Raises:
        ChipError: it does not work on this machine.
    """
    if name == "reference":
        return ReferenceEngine()
    if name == "auto" and cuda_device() is not None:
        on_device = torch_engine()
        if isinstance(on_device, TorchEngine):
            return on_device
    if name in ("auto", "fast"):
        compiled = _fast()
        if isinstance(compiled, FastEngine):
            return compiled
        if name == "fast":
            raise ChipError(f"engine: no compiled kernel, {compiled}; use auto, torch or reference")
    portable = torch_engine()
    if isinstance(portable, TorchEngine):
        return portable
    if name == "torch":
        raise ChipError(f"engine: torch does not run here, {portable}; use auto or reference")
    return ReferenceEngine()


@cache
def _fast() -> FastEngine | str:
    """With the best instructions that give the reference's integers on this processor."""
    kernel = load()
    if isinstance(kernel, str):
        return kernel
    wrong = ""
    for level in range(kernel.level, -1, -1):
        wrong = differs(FastEngine(kernel, level))
        if not wrong:
            return FastEngine(kernel, level)
    return f"it differs from the reference here: {wrong}; report it"


def simulate(
    network: ChipNetwork,
    inputs: npt.ArrayLike,
    *,
    timesteps: int | None = None,
    engine: Literal["auto", "fast", "torch", "reference"] = "auto",
    record: Sequence[str] = ("output",),
    reset: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Recording:
    """Run a chip network on inputs, exactly as Lava's fixed_pt model does.

    Args:
        network: what to run.
        inputs: (samples, timesteps, *features) integers, 0/1 for binary input, 0..2**bits-1 for graded input.
            Driven by bias: see `check_inputs`.
        timesteps: must equal the inputs' time axis when given; says how many steps where they have none.
        engine: "reference" (numpy), "fast" (the compiled kernel), "torch" (no compiler; on a CUDA device where there is
            one), or "auto": the first of CUDA, fast, torch and reference that works here. Layers an engine does not take
            run in the reference. All give the same integers.
        record: any of "output", "spikes" (every layer), "v" and "u" (every layer's voltage and current). Event counts and
            peak sums are always there.
        reset: each sample starts at rest; False runs the samples one after the other in time.
        threads: at most so many; all cores of the process by default. The reference engine has one.
        progress: called with (samples times steps done, in all) after every block.

    Returns:
        Recording with `output`, `event_counts`, `peak_sum` and what `record` names.

    Raises:
        ChipError: inputs that do not fit, an unknown engine or recordable, or an engine that does not work here.
    """
    if isinstance(record, str) or not isinstance(record, Sequence):
        raise ChipError(f"record: {record!r} is no list of words; give one, such as ['output']")
    unknown = [name for name in record if name not in RECORDABLE]
    if unknown:
        raise ChipError(f"record: unknown {unknown}, choose from {list(RECORDABLE)}")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ChipError(f"engine: '{engine}' does not exist, choose {', '.join(ENGINES)}")
    if threads is not None and (
        isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1
    ):
        raise ChipError(f"threads: {threads!r}, needs a whole number from 1")
    events = check_inputs(network.input, inputs, timesteps)
    chosen = choose(engine)
    if engine == "reference" and threads not in (None, 1):
        raise ChipError(
            f"threads: {threads} asked for, the reference engine has 1; leave threads out"
        )
    samples, steps = events.shape[:2]
    flow = events if reset else events.reshape(1, samples * steps, *events.shape[2:])
    keep = RecordingBuffer(network, tuple(record), (flow.shape[0], flow.shape[1]))
    BlockScheduler(network, chosen, keep, threads).all(flow, progress)
    return keep.recording((samples, steps), chosen.name)
