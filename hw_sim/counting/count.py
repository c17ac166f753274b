"""Count exact synaptic operations of a network on an array or on batches of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array, Int64
from knarr.hw_sim.counting.chip import ChipCounter
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.counting.tally import SAMPLE_BLOCK_BYTES, blocks
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.network import ChipNetwork

if TYPE_CHECKING:
    from knarr.hw_sim.counting.graph import GraphCounter


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
        model: a `ChipNetwork`, which the simulator runs, or a `nir.NIRGraph`, which
            `knarr.export.step_nir` runs.
        inputs: (samples, timesteps, *features), or an iterable of such batches, such as a torch
            DataLoader; of a batch that is a tuple or list the first element is taken. Memory is
            that of one batch.
        dt_s: length of a step in seconds; a graph needs it. A chip network's own must agree where
            both are known.
        pooling: "folded" delivers every event before a pool alone, with the fan-out of its cells,
            and the pool costs nothing; "float" counts what pools give, fractions as MAC, and their
            additions apart. A chip network has its pools in its synapses, so it takes "folded"
            alone.
        lengths: (samples,) steps of each sample of an array; the steps behind are padding that
            nobody pays.
        progress: called with the samples counted so far after every block.

    Returns:
        Counts per inference: means over the samples, with their spread, per layer and per step.

    Raises:
        CountError: a model, inputs or a policy that cannot be counted. What a graph holds that has
            no rule is a row of the ledger instead, and `.total` raises.
        ChipError: inputs that do not fit a chip network.
        knarr.export.ExportError: a graph that `step_nir` refuses, or inputs that do not fit it.
    """
    if pooling not in ("folded", "float"):
        raise CountError(f"pooling: {pooling!r}; choose folded or float")
    counter = _counter(model, dt_s, pooling)
    counted = 0
    for batch, steps in _batches(inputs, lengths):
        for block in blocks(len(batch), counter.bytes_per_sample(batch), SAMPLE_BLOCK_BYTES):
            # Steps in which no sample of the block is alive need not run.
            longest = int(steps[block].max())
            counter.feed(batch[block, :longest], steps[block])
            counted += len(batch[block])
            if progress is not None:
                progress(counted)
    if not counted:
        raise CountError("inputs: no batch; give at least one sample")
    return counter.finish()


def _counter(
    model: object,
    dt_s: float | None,
    pooling: str,
) -> ChipCounter | GraphCounter:
    if isinstance(model, ChipNetwork):
        if pooling != "folded":
            raise CountError(
                f"pooling: '{pooling}' asked for, a chip network has its pools folded; use pooling='folded'"
            )
        if dt_s is not None and model.dt_s is not None and dt_s != model.dt_s:
            raise CountError(
                f"dt_s: {dt_s} s asked for, the network steps {model.dt_s} s; leave dt_s out"
            )
        return ChipCounter(model)
    # Asked by name: whoever has a graph has nir and torch, and nobody else needs to import them.
    if any(kind.__name__ == "NIRGraph" for kind in type(model).__mro__):
        from knarr.hw_sim.counting.graph import GraphCounter

        if dt_s is None:
            raise CountError("dt_s: a graph does not say how long a step is; give dt_s in seconds")
        return GraphCounter(model, dt_s, pooling)
    raise CountError(
        f"model: {type(model).__name__} cannot be counted, only a ChipNetwork or a nir.NIRGraph; export the module "
        "(knarr.export.to_nir), or count an ONNX file (count_onnx)"
    )


def _batches(inputs: Any, lengths: npt.ArrayLike | None) -> Iterator[tuple[Array, Int64]]:
    """Yield each batch with the lengths of its samples."""
    # A list or tuple is an array written out; batches come from any other iterable.
    if hasattr(inputs, "shape") or isinstance(inputs, (list, tuple)):
        array = _array(inputs)
        yield array, _lengths(lengths, array)
        return
    if not isinstance(inputs, Iterable):
        raise CountError(
            f"inputs: {type(inputs).__name__} is neither an array nor batches; give (samples, timesteps, ...)"
        )
    if lengths is not None:
        raise CountError("lengths: go with one array; let a loader give batches of equal length")
    for batch in inputs:
        if isinstance(batch, (list, tuple)):
            if not batch:
                raise CountError("inputs: an empty batch; give (samples, timesteps, ...) in each")
            # The labels that a data loader puts behind are of no use here.
            batch = batch[0]
        array = _array(batch)
        yield array, _lengths(None, array)


def _array(batch: Any) -> Array:
    try:
        # A tensor that requires gradients or lies on a GPU does not become an array by itself.
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


def _lengths(lengths: npt.ArrayLike | None, array: Array) -> Int64:
    samples, steps = array.shape[:2]
    if lengths is None:
        return np.full(samples, steps, dtype=np.int64)
    try:
        given = np.asarray(lengths)
    except (ValueError, TypeError) as error:
        raise CountError(f"lengths: no array of numbers ({error}); give one per sample") from error
    whole = given.dtype.kind in "iu"
    if given.shape != (samples,) or not whole or given.min() < 1 or given.max() > steps:
        raise CountError(f"lengths: needs {samples} whole numbers in 1..{steps}, one per sample")
    return given.astype(np.int64)
