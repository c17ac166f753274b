"""Lower a NIR graph to an integer chip network, pass by pass.

fold        pooling and scales into synapses                  knarr.export.fold
read_chain  a row of layers; every neuron in one normal form  chain.py
calibrate   one scale per layer, and what it costs            calibrate.py
quantise    integers                                          quantise.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import nir
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.calibrate import (
    LoweringTask,
    calibrate,
    from_weights_alone,
    rounding_notes,
)
from knarr.deploy.lowering.chain import chip_shape, read_chain
from knarr.export import ExportError, fold, graph_hash
from knarr.export.arguments import as_dt
from knarr.hw_sim import ChipError, ChipNetwork, InputCoding, Readout


def lower(
    graph: nir.NIRGraph,
    dt_s: float,
    *,
    chip: str = "loihi2",
    weight_bits: int = 8,
    input_bits: int = 1,
    calibration: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    allow_approximate: bool = False,
    input_units: float = 1.0,
    input_kind: Literal["events", "graded", "rate", "direct"] = "events",
    over_time: Literal["sum", "mean", "last"] = "sum",
    votes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ChipNetwork:
    """Lower a graph to integers.

    Args:
        graph: any that `step_nir` runs and whose nodes form a row: synapses (Linear, Affine,
            Conv1d, Conv2d), neurons (LIF, CubaLIF, IF; last also LI, CubaLI, I), pooling, Scale,
            Flatten, Delay. A neuron behind a dense synapse may hear itself through one Linear or
            Affine.
        dt_s: time step, seconds.
        chip: "loihi2".
        weight_bits: signed bits of a weight, 2..8.
        input_bits: 1 for spikes, more for graded input 0..2**input_bits-1.
        calibration: (samples, timesteps, *features) integers as the chip will get them: scales and
            thresholds are then chosen by agreement with the float graph, and errors measured.
            Never test data. None: scales come from the weights alone.
        labels: (samples,) classes of the calibration samples, to report accuracies.
        allow_approximate: map what has no exact form as nearly as the chip can; needs calibration,
            which measures the error.
        input_units: integers per unit of the float graph's input, such as 255 for frames of 0..1
            sent as 8 bits.
        input_kind: how data become those integers (`InputCoding.kind`).
        over_time, votes: how a decision is read (`Readout`).
        progress: called with (layers done, in all).

    Returns:
        A network named after the graph's nodes: layers after synapses, neurons after neurons.
        `lowering` holds what was rewritten, approximated and measured.

    Raises:
        DeployError: a node, a structure or a parameter that the chip cannot hold; names it, the
            reason and the cure.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    # bool is an int to Python, and True would be 1 bit.
    whole = isinstance(weight_bits, int) and not isinstance(weight_bits, bool)
    if not whole or not 2 <= weight_bits <= 8:
        raise DeployError(f"weight_bits: {weight_bits!r}, allowed 2..8")
    if allow_approximate and calibration is None:
        raise DeployError(
            "allow_approximate: nothing to measure the error of an approximation on; give calibration samples"
        )
    if labels is not None and calibration is None:
        raise DeployError("labels: they are classes of calibration samples; give calibration")
    try:
        as_dt(dt_s)
        # Groups of convolutions stay: the chip has them as well.
        folded = fold(graph, keep_groups=True)
        chain = read_chain(folded, dt_s, approximate=allow_approximate)
    except ExportError as error:
        raise DeployError(f"graph: not lowered, {error}") from error
    shape = chip_shape(chain.input_shape)
    neurons = [layer.neuron for layer in chain.layers]
    kind: Literal["spikes", "voltage"] = "spikes" if neurons[-1].fires else "voltage"
    try:
        coding = InputCoding(shape, input_bits, None, float(input_units), input_kind)
        readout = Readout(kind, over_time, votes)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options or another input shape") from error
    task = LoweringTask(folded, chain, coding, readout, float(dt_s), weight_bits)
    if calibration is None:
        found = from_weights_alone(task)
    else:
        found = calibrate(task, calibration, labels, progress)
    rounding = [line for neuron in neurons for line in neuron.rounded]
    rounding += [line for facts in found.facts for line in rounding_notes(facts)]
    notes = {
        "weight_bits": weight_bits,
        "folded": str(folded.metadata.get("folded", "")).splitlines(),
        "rewrites": [line for neuron in neurons for line in neuron.rewrites],
        "approximations": [line for neuron in neurons for line in neuron.approximations],
        "rounding": rounding,
        "calibration": found.overall,
        "layers": list(found.facts),
    }
    try:
        return ChipNetwork(found.layers, coding, readout, float(dt_s), graph_hash(graph), notes)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options") from error
