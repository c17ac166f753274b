"""`count`: exact synaptic operations of a network on inputs, in one array or streamed from a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.counting.chip import ChipCounter, Lengths
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.network import ChipNetwork
from knarr.hw_sim.recording import Recording
from knarr.hw_sim.simulation import simulate

POOLING = ("folded", "float")
BLOCK_BYTES = 128 * 2**20
"""Of recorded spikes at one time; larger batches are cut into blocks of samples."""
Array = npt.NDArray[np.generic]


class _Counter(Protocol):
    def feed(self, inputs: Array, lengths: Lengths) -> None: ...

    def bytes_per_sample(self, inputs: Array) -> int: ...

    def finish(self) -> OperationCounts: ...


def count(
    model: object,
    inputs: npt.ArrayLike | Iterable[Any],
    *,
    dt_s: float | None = None,
    pooling: str = "folded",
    lengths: npt.ArrayLike | None = None,
    progress: Callable[[int], Any] | None = None,
) -> OperationCounts:
    """Run a network on inputs and count what every layer did.

    Args:
        model: a `ChipNetwork`, which the simulator runs, or a `nir.NIRGraph`, which `knarr.export.step_nir` runs.
        inputs: (samples, timesteps, *features), or an iterable of such batches, such as a torch DataLoader; of a batch
            that is a tuple or list the first element is taken. Memory is that of one batch.
        dt_s: length of a step in seconds; a graph needs it. A chip network's own must agree where both are known.
        pooling: "folded" delivers every event before a pool alone, with the fan-out of its cells, and the pool costs
            nothing; "float" counts what pools give, fractions as MAC, and their additions apart. A chip network has its
            pools in its synapses, so it takes "folded" alone.
        lengths: (samples,) steps of each sample of an array; the steps behind are padding that nobody pays.
        progress: called with the samples counted so far after every block.

    Returns:
        Counts per inference: means over the samples, with their spread, per layer and per step.

    Raises:
        CountError: a model, inputs or a policy that cannot be counted. What a graph holds that has no rule is a row of the
            ledger instead, and `.total` raises.
        ChipError: inputs that do not fit a chip network.
        knarr.export.ExportError: a graph that `step_nir` refuses, or inputs that do not fit it.
    """
    if pooling not in POOLING:
        raise CountError(f"pooling: {pooling!r}; choose folded or float")
    counter = _counter(model, dt_s, pooling)
    seen = 0
    for batch, steps in _batches(inputs, lengths):
        for at in blocks(batch, counter.bytes_per_sample(batch)):
            counter.feed(batch[at, : int(steps[at].max())], steps[at])
            seen += len(batch[at])
            if progress is not None:
                progress(seen)
    if not seen:
        raise CountError("inputs: no batch; give at least one sample")
    return counter.finish()


def count_events(
    network: ChipNetwork, inputs: npt.ArrayLike, recording: Recording
) -> OperationCounts:
    """Operations of a chip network that already ran.

    Args:
        network: what ran.
        inputs: (samples, timesteps, *network.input.shape), what it was fed.
        recording: what came out, with the spikes of every layer (`record=("spikes",)`).

    Returns:
        Counts per inference, as of `count`.

    Raises:
        CountError: inputs or recorded spikes are missing or do not fit the network.
    """
    events: Array = np.asarray(inputs)
    if (
        events.ndim != 2 + len(network.input.shape)
        or events.shape[2:] != network.input.shape
        or 0 in events.shape
    ):
        shape = ", ".join(map(str, network.input.shape))
        raise CountError(
            f"inputs: shape {events.shape}, needs (samples, timesteps, {shape}) with at least one of each"
        )
    for name, spikes in recording.spikes.items():
        if len(spikes) != len(events):
            raise CountError(
                f"layer '{name}': recorded spikes have shape {spikes.shape}, inputs {events.shape}; not of one run"
            )
    counter = ChipCounter(network)
    for at in blocks(events, counter.bytes_per_sample(events)):
        part = Recording(
            recording.output[at], {name: array[at] for name, array in recording.spikes.items()}
        )
        counter.add(events[at], part, np.full(len(events[at]), events.shape[1], dtype=np.int64))
    return counter.finish()


class _Chip(ChipCounter):
    def feed(self, inputs: Array, lengths: Lengths) -> None:
        events = check_inputs(self.network.input, inputs, None)
        self.add(events, simulate(self.network, events, record=("spikes",)), lengths)


def _counter(model: object, dt_s: float | None, pooling: str) -> _Counter:
    if isinstance(model, ChipNetwork):
        if pooling != "folded":
            raise CountError(
                f"pooling: '{pooling}' asked for, a chip network has its pools folded; use pooling='folded'"
            )
        if dt_s is not None and model.dt_s is not None and dt_s != model.dt_s:
            raise CountError(
                f"dt_s: {dt_s} s asked for, the network steps {model.dt_s} s; leave dt_s out"
            )
        return _Chip(model)
    if any(kind.__name__ == "NIRGraph" for kind in type(model).__mro__):
        from knarr.hw_sim.counting.graph.counter import GraphCounter

        if dt_s is None:
            raise CountError("dt_s: a graph does not say how long a step is; give dt_s in seconds")
        return GraphCounter(model, dt_s, pooling)
    raise CountError(
        f"model: {type(model).__name__} cannot be counted, only a ChipNetwork or a nir.NIRGraph; export the module "
        "(knarr.export.to_nir), or count an ONNX file (count_onnx)"
    )


def _batches(inputs: Any, lengths: npt.ArrayLike | None) -> Iterator[tuple[Array, Lengths]]:
    whole = hasattr(inputs, "shape") or isinstance(inputs, (list, tuple))
    if not whole and not isinstance(inputs, Iterable):
        raise CountError(
            f"inputs: {type(inputs).__name__} is neither an array nor batches; give (samples, timesteps, ...)"
        )
    if lengths is not None and not whole:
        raise CountError("lengths: go with one array; let a loader give batches of equal length")
    for batch in [inputs] if whole else inputs:
        if not whole and isinstance(batch, (list, tuple)) and not batch:
            raise CountError("inputs: an empty batch; give (samples, timesteps, ...) in each")
        first = batch[0] if not whole and isinstance(batch, (list, tuple)) else batch
        array = _array(first)
        yield array, _lengths(lengths, array)


def _array(batch: Any) -> Array:
    try:
        found: Array = np.asarray(batch.detach().cpu() if hasattr(batch, "detach") else batch)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CountError(
            f"inputs: no array of numbers ({error}); give (samples, timesteps, ...)"
        ) from error
    if found.dtype.kind not in "biuf":
        raise CountError(f"inputs: dtype {found.dtype} is no number; give integers or floats")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise CountError(
            "inputs: NaN or infinity is neither an event nor silence; find where it comes from"
        )
    if found.ndim < 2 or 0 in found.shape:
        raise CountError(
            f"inputs: shape {found.shape}, needs (samples, timesteps, ...) with at least one of each"
        )
    return found


def _lengths(lengths: npt.ArrayLike | None, array: Array) -> Lengths:
    samples, steps = array.shape[:2]
    if lengths is None:
        return np.full(samples, steps, dtype=np.int64)
    try:
        given = np.asarray(lengths)
    except (ValueError, TypeError) as error:
        raise CountError(f"lengths: no array of numbers ({error}); give one per sample") from error
    if (
        given.shape != (samples,)
        or given.dtype.kind not in "iu"
        or given.min() < 1
        or given.max() > steps
    ):
        raise CountError(f"lengths: needs {samples} whole numbers in 1..{steps}, one per sample")
    return given.astype(np.int64)


def blocks(batch: Array, bytes_per_sample: int) -> Iterator[slice]:
    """Slices of samples that stay below `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // max(1, bytes_per_sample))
    for first in range(0, len(batch), size):
        yield slice(first, first + size)
