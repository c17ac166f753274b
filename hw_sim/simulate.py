"""`simulate`: check what comes in, choose an engine, run blocks of samples and time steps, hand back a Recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.blocks import Run
from knarr.hw_sim.engines import ENGINES, choose
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.inputs import check_inputs
from knarr.hw_sim.keep import Keep
from knarr.hw_sim.network import ChipNetwork
from knarr.hw_sim.recording import RECORDABLE, Recording


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
        raise ChipError(f"threads: {threads} asked for, the reference engine has 1; leave threads out")
    samples, steps = events.shape[:2]
    flow = events if reset else events.reshape(1, samples * steps, *events.shape[2:])
    keep = Keep(network, tuple(record), (flow.shape[0], flow.shape[1]))
    Run(network, chosen, keep, threads).all(flow, progress)
    return keep.recording((samples, steps), chosen.name)
