"""Lower a NIR graph to an integer chip network, pass by pass.

read_network  nodes that hear each other through linear maps    read.py
normalise     every neuron in one normal form                   neurons.py
lay_out       a row of layers, with relay neurons for branches  levels.py
              one scale per node, and what it costs             here
quantise      integers                                          quantise.py

Without calibration samples a scale comes from a node's weights alone. With samples, layers are
chosen from input to output, each hearing on the chip what the chip's layers before it sent, and the
scale is the one with which a node's output comes nearest to the float graph's. What is known of
a node is a dictionary of JSON values, which goes into the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.levels import FloatLayer, Level, lay_out, places, synapses
from knarr.deploy.lowering.quantise import (
    bias_error,
    exact_scale,
    fires,
    largest_weight,
    lowest_height,
    quantise,
    quantise_relay,
    register_scale,
    rounded_away,
    stack,
    weight_error,
    widest_scale,
)
from knarr.deploy.lowering.read import FloatNetwork, read_network
from knarr.deploy.rules import ACCUMULATOR, check_network, fatal, worst_sums
from knarr.export import ExportError, explain_silence, graph_hash, lost_in_file, step_nir
from knarr.export.arguments import as_dt
from knarr.export.graph.step import run_graph
from knarr.hw_sim import ChipError, ChipNetwork, Conv, InputCoding, Readout, simulate
from knarr.hw_sim.arithmetic import STATE_MAX, STATE_SHIFT
from knarr.hw_sim.arrays import Array, Int64, IntArray
from knarr.hw_sim.coding import check_inputs, takes_sign
from knarr.hw_sim.labels import check_labels
from knarr.hw_sim.network import DECAY_UNITY, RELAYS, Layer, register_range
from knarr.hw_sim.recording import first_difference
from knarr.hw_sim.synapse_masks import SYNAPSES, pack

FIRST_FACTORS = np.geomspace(0.5, 4.0, 16)
"""Parts of the widest scale; above 1 the largest weights are clipped and the others finer."""
NEAR_FACTORS = np.geomspace(0.92, 1.08, 13)
"""Parts of the best scale so far, tried next."""
STEP_DOWN = 1.2
"""Ratio of scales below the first ones, where only they keep the sums inside the accumulator."""
OFFSETS = (-2, -1, 1, 2)
"""Thresholds beside the rounded one: truncation toward zero makes the chip's voltages small."""
UNWRAPPED = STATE_MAX - (ACCUMULATOR << STATE_SHIFT)
"""While sums fit their accumulator a wrap leaves |u| above it, so below it there was none."""
COARSE_ERROR = 0.1
"""Share of its size by which rounding may move a kind of integers unmentioned.

4-bit weights lie near it.
"""


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
    input_signed: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ChipNetwork:
    """Lower a graph to integers.

    Args:
        graph: any that `step_nir` runs, of synapses (Linear, Affine, Conv1d, Conv2d), neurons (LIF,
            CubaLIF, IF; last also LI, CubaLI, I), pooling, Scale, Flatten, Delay, with branches that
            meet again. A neuron may hear itself one step later.
        dt_s: time step, seconds.
        chip: "loihi2".
        weight_bits: signed bits of a weight, 2..8.
        input_bits: 1 for spikes, more for graded input -(2**input_bits-1)..2**input_bits-1.
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
        input_signed: the input takes numbers below 0 (`InputCoding.signed`). None: graded input
            does, and spikes where the calibration inputs hold a -1.
        progress: called with (layers done, in all).

    Returns:
        A network named after the graph's nodes: layers after synapses, neurons after neurons, joined
        by + where several share a layer. `lowering` holds what was rewritten, approximated and
        measured.

    Raises:
        DeployError: a node, a structure or a parameter that the chip cannot hold; names it, the
            reason and the cure.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    # bool is an int to Python, and True would be 1 bit.
    if type(weight_bits) is not int or not 2 <= weight_bits <= 8:
        raise DeployError(f"weight_bits: {weight_bits!r}, allowed 2..8")
    if allow_approximate and calibration is None:
        raise DeployError(
            "allow_approximate: nothing to measure the error of an approximation on; give "
            "calibration samples"
        )
    if labels is not None and calibration is None:
        raise DeployError("labels: they are classes of calibration samples; give calibration")
    try:
        as_dt(dt_s)
        signed = takes_sign(input_signed, input_kind, input_bits, calibration)
        graded = input_bits != 1 or signed
        read = read_network(graph, dt_s, approximate=allow_approximate, graded=graded)
    except ExportError as error:
        raise DeployError(f"graph: not lowered, {error}") from error
    neuron = read.nodes[read.output].neuron
    assert neuron is not None  # the output is a node of the graph
    kind: Literal["spikes", "voltage"] = "spikes" if neuron.fires else "voltage"
    try:
        coding = InputCoding(
            read.input_shape, input_bits, None, float(input_units), input_kind, signed
        )
        readout = Readout(kind, over_time, votes)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options or another input shape") from error
    try:
        levels = lay_out(read, coding.units, coding.bits, coding.signed)
    except ExportError as error:
        raise DeployError(f"graph: not lowered, {error}") from error
    task = _Task(graph, read, levels, coding, readout, float(dt_s), weight_bits)
    overall = None
    if calibration is None:
        layers, facts = [], []
        for level in levels:
            chosen = [_scale_from_weights(part, weight_bits) for part in level.nodes]
            pairs = zip(level.nodes, chosen, strict=True)
            facts += [_describe(part, made, task.dt_s) for part, made in pairs]
            layers.append(_join(level, chosen, weight_bits))
    else:
        layers, facts, overall = _calibrate(task, calibration, labels, progress)
    lost = [line for known in facts for line in _rounding_notes(known)]
    notes = {
        "weight_bits": weight_bits,
        "folded": read.notes.folded,
        # The tool that the file looks like does this, and its file cannot say so.
        "lost": list(lost_in_file(graph, dt_s)),
        "rewrites": read.notes.rewrites + _relay_notes(levels, layers),
        "approximations": read.notes.approximations,
        "rounding": read.notes.rounded + lost,
        "calibration": overall,
        "layers": facts,
        "places": places(levels, layers),
        SYNAPSES: _synapses(task, layers),
        RELAYS: {
            made.name: sum(level.handed_on.values())
            for level, made in zip(levels, layers, strict=True)
            if level.handed_on
        },
    }
    try:
        return ChipNetwork(tuple(layers), coding, readout, float(dt_s), graph_hash(graph), notes)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options") from error


@dataclass(frozen=True)
class _Task:
    """A graph that is lowered, and its surroundings.

    Args:
        graph: the graph.
        read: what was read from it.
        levels: its layers.
        coding: how the network is fed.
        readout: how the network is read.
        dt_s: time step, seconds.
        weight_bits: signed bits of a weight.
    """

    graph: nir.NIRGraph
    read: FloatNetwork
    levels: list[Level]
    coding: InputCoding
    readout: Readout
    dt_s: float
    weight_bits: int


def _synapses(task: _Task, layers: list[Layer]) -> dict[str, str]:
    """Return which weights are synapses, packed, of the layers that store zeros beside them."""
    if all(part.weight.all() for level in task.levels for part in level.parts):
        return {}
    coding = task.coding
    graded = coding.bits != 1 or coding.signed
    outline = read_network(
        task.graph,
        task.dt_s,
        approximate=task.read.notes.allowed,
        graded=graded,
        outlined=True,
    )
    masks = synapses(task.levels, lay_out(outline, coding.units, coding.bits, coding.signed))
    named = zip(layers, masks, strict=True)
    return {layer.name: pack(mask) for layer, mask in named if not mask.all()}


Facts = dict[str, Any]
"""JSON values that say what is known of a layer, or of the whole network."""


def _calibrate(
    task: _Task,
    samples: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Layer], list[Facts], Facts]:
    """Lower with the scales that agree best with the float graph, and measure the difference.

    Args:
        task: what is lowered.
        samples: (samples, timesteps, *features) integers as the chip gets them.
        labels: (samples,) classes, or None.
        progress: called with (layers done, in all).

    Raises:
        DeployError: samples that do not fit or leave a layer silent, or a layer that no legal scale
            can hold.
    """
    try:
        events = check_inputs(task.coding, samples)
    except (ChipError, ValueError) as error:
        raise DeployError(f"calibration: {error}") from error
    ends = (node for node in task.graph.nodes.values() if isinstance(node, nir.Output))
    class_count = int(np.prod(next(ends).output_type["output"])) // task.readout.votes
    true = None
    if labels is not None:
        try:
            true = check_labels(labels, len(events), class_count)
        except ChipError as error:
            raise DeployError(str(error)) from error
    # The float graph hears the floats that the chip's integers stand for.
    values = events.reshape(*events.shape[:2], *task.read.graph_shape) / task.coding.units
    try:
        floats = step_nir(task.graph, values, task.dt_s)
    except ExportError as error:
        raise DeployError(f"graph: not calibrated, {error}") from error
    float_classes = _decide(task.readout, floats.output)
    arriving: IntArray = events
    layers, facts = [], []
    in_all = sum(len(level.nodes) for level in task.levels)
    sent: dict[str, Array] = {}
    for level in task.levels:
        chosen = []
        for part in level.nodes:
            neuron = part.neuron
            assert neuron is not None
            name = neuron.name
            # A readout does not fire: its volts above rest are compared.
            wanted: Array = floats.spikes[name] if neuron.fires else floats.v[name] - neuron.rest
            if neuron.fires and not wanted.any():
                silent = explain_silence(task.graph, name, float(floats.v[name].max()), task.dt_s)
                raise DeployError(
                    f"node '{name}': never fires on the calibration samples, so they say nothing "
                    f"about it: {silent}"
                )
            made = _scale_from_spikes(part, task.weight_bits, arriving, wanted)
            output, peaks = _run_alone(_alone(made.layer, part), arriving)
            output = part.seat.take(output)
            # The changes that rounding made here reach the classes as they will on the chip.
            sent[name] = output.reshape(wanted.shape)
            classes = _classes_from(task, name, sent, values)
            found = _describe(part, made, task.dt_s) | peaks
            found |= _measure(part, made, output, wanted)
            found["classes_kept"] = int((classes == float_classes).sum())
            if true is not None:
                found["correct"] = int((classes == true).sum())
            chosen.append(made)
            facts.append(found)
            if progress is not None:
                progress(len(facts), in_all)
        layers.append(_join(level, chosen, task.weight_bits))
        if level is not task.levels[-1]:
            # The next layer hears the chip's own spikes, relay neurons' among them.
            arriving, _ = _run_alone(_alone(layers[-1], level.parts[0]), arriving, states=False)
    overall = {
        "samples": events.shape[0],
        "timesteps": events.shape[1],
        "classes_kept": facts[-1]["classes_kept"],
    }
    if true is not None:
        overall["correct_float"] = int((float_classes == true).sum())
        overall["correct_chip"] = facts[-1]["correct"]
    return layers, facts, overall


def _decide(readout: Readout, output: Array) -> Int64:
    return readout.decide(output.reshape(*output.shape[:2], -1))


def _classes_from(task: _Task, neuron: str, sent: dict[str, Array], values: Array) -> Int64:
    """Decide classes when all behind the nodes so far stays float and hears what the chip sent.

    Args:
        task: what is lowered.
        neuron: name of the last of the nodes so far.
        sent: node -> (samples, timesteps, *features) on the chip.
        values: the float graph's inputs.
    """
    if neuron == task.read.output:
        return _decide(task.readout, sent[neuron])
    return _decide(task.readout, run_graph(task.graph, values, task.dt_s, given=sent).output)


def _join(level: Level, chosen: list[_ScaledLayer], weight_bits: int) -> Layer:
    """Return a chip layer of the integers of its nodes, with relay neurons beside them."""
    nodes = [made.layer for made in chosen]
    relays = [part for part in level.parts if part.neuron is None]
    made = stack(nodes + [quantise_relay(part, nodes, weight_bits) for part in relays])
    broken = fatal(check_network(_alone(made, level.parts[0]))) if len(level.parts) > 1 else []
    for violation in broken:
        raise DeployError(
            f"layer '{made.name}': {violation.message}; give its nodes layers of their own, with "
            "neurons between them"
        )
    return made


def _relay_notes(levels: list[Level], layers: list[Layer]) -> list[str]:
    """Say how many neurons hand spikes on, and how many synapses they and their places take."""
    lines = []
    for level, made in zip(levels, layers, strict=True):
        if not level.handed_on:
            continue
        neurons = ", ".join(f"{n:,} for '{name}'" for name, n in level.handed_on.items())
        own = sum(int(np.count_nonzero(part.weight)) for part in level.nodes)
        stored = int(made.weight_int.size)
        lines.append(
            f"'{made.name}': relay neurons {neurons}; the layer stores {stored:,} weights, {own:,} "
            "of its nodes' own"
        )
    return lines


# --- the scale of one layer


@dataclass(frozen=True, eq=False)
class _ScaledLayer:
    """A layer of integers and how its scale was found.

    Args:
        layer: the integers.
        scale: integers per unit of weight, S of `quantise`.
        tried: how many scales and thresholds were tried.
    """

    layer: Layer
    scale: float
    tried: int


def _scale_from_weights(layer: FloatLayer, weight_bits: int) -> _ScaledLayer:
    """Choose the largest scale that the registers hold and netx runs as it is written."""
    widest = widest_scale(layer, weight_bits)
    # netx may run a matrix as it is written at one scale and not at the next.
    scales = [float(widest * factor) for factor in np.linspace(1.0, 0.5, 51)]
    exact = exact_scale(layer, widest)
    # A scale that rounds nothing is worth its smaller range.
    if exact is not None:
        scales.insert(0, exact)
    for tried, scale in enumerate(scales, start=1):
        made = quantise(layer, scale, weight_bits)
        if not fatal(check_network(_alone(made, layer))):
            return _ScaledLayer(made, scale, tried)
    raise DeployError(
        f"node '{layer.name}': netx would run other weights than its own at any scale; give the "
        "matrix both signs"
    )


def _scale_from_spikes(
    layer: FloatLayer,
    weight_bits: int,
    events: IntArray,
    wanted: Array,
) -> _ScaledLayer:
    """Choose scale and threshold with which a layer comes nearest to the float graph.

    Args:
        layer, weight_bits: as `quantise` takes them.
        events: (samples, timesteps, *features) that arrive on the chip, from the chip's own layers
            before.
        wanted: (samples, timesteps, *features) of the float graph: spikes, or volts of a readout.

    Returns:
        The first of the best.

    Raises:
        DeployError: no scale is legal, or every one overflows the accumulator on these events.
    """
    widest = _scale_from_weights(layer, weight_bits).scale
    spiking = fires(layer)
    tried = 0
    best: _ScaledLayer | None = None
    nearest = np.inf

    def attempt(scale: float, offset: int = 0) -> None:
        nonlocal best, nearest, tried
        lowest = round(scale * layer.units * lowest_height(layer)) if spiking else 1
        if scale > register_scale(layer) or lowest + offset < 1:
            return
        made = quantise(layer, scale, weight_bits, vth_offset=offset)
        network = _alone(made, layer)
        violations = check_network(network)
        if fatal(violations):
            return
        tried += 1
        # States are recorded only where they could leave their registers: it takes time.
        may_leave = any(violation.rule == "states_fit_registers" for violation in violations)
        output, peaks = _run_alone(network, events, states=may_leave)
        # A recorded state may neither have wrapped nor saturated.
        states_fit = peaks["u_peak"] < UNWRAPPED and peaks["v_peak"] < STATE_MAX - 1
        if peaks["sum_peak"] >= ACCUMULATOR or not states_fit:
            return
        output = layer.seat.take(output)
        distance = _distance(output, wanted, None if spiking else made.scale)
        if best is None or distance < nearest:
            nearest = distance
            best = _ScaledLayer(made, scale, tried)

    exact = exact_scale(layer, widest)
    if exact is not None:
        attempt(exact)
    attempt(widest)
    attempt(_dyadic(widest))
    for factor in FIRST_FACTORS:
        attempt(float(widest * factor))
    smaller = widest * FIRST_FACTORS[0]
    # Scales at which not even the largest weight rounds to 1 say nothing.
    while best is None and smaller * largest_weight(layer) >= 1:
        smaller /= STEP_DOWN
        attempt(float(smaller))
    if best is None:
        raise DeployError(
            f"node '{layer.name}': at every legal scale its sums pass the accumulator's "
            f"{ACCUMULATOR - 1}, or its states leave 24 bits, on the calibration samples; "
            "use fewer weight bits or smaller payloads"
        )
    middle = best.scale
    for factor in NEAR_FACTORS:
        attempt(float(middle * factor))
    middle = best.scale
    for offset in OFFSETS if spiking else ():
        attempt(middle, offset)
    return replace(best, tried=tried)


def _dyadic(scale: float) -> float:
    """Return the largest power of two that is no larger: weights of k/2**n lie exactly on it."""
    return float(2.0 ** np.floor(np.log2(scale)))


def _distance(output: IntArray, wanted: Array, per_volt: float | None) -> float:
    """Measure how far the output of a chip layer is from the float graph's.

    Spikes count decisions that differ plus differences of spike counts, so that silence is no cheap
    agreement; readouts the mean absolute difference in volts, for which `per_volt` is how many
    units of their chip voltage stand for one volt.
    """
    wanted = wanted.reshape(output.shape)
    if per_volt is not None:
        return float(np.abs(output / per_volt - wanted).mean())
    counts, wanted_counts = (spikes.sum(axis=1, dtype=np.int64) for spikes in (output, wanted))
    return float((output != wanted).sum() + np.abs(counts - wanted_counts).sum())


def _alone(layer: Layer, floats: FloatLayer) -> ChipNetwork:
    """Return a layer as a network of its own, which receives what the float layer does."""
    shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
    kind: Literal["spikes", "voltage"] = "spikes" if layer.neuron.spikes else "voltage"
    coding = InputCoding(shape, floats.bits, signed=floats.signed)
    return ChipNetwork((layer,), coding, Readout(kind))


def _run_alone(
    network: ChipNetwork, events: IntArray, *, states: bool = True
) -> tuple[IntArray, Facts]:
    """Run a network of one layer on what arrives at it.

    Args:
        network: the layer, as `_alone` gives it.
        events: (samples, timesteps, *features).
        states: record currents and voltages too.

    Returns:
        (samples, timesteps, *features) spikes, or chip voltages of a readout; and the largest
        absolute sum, current and voltage, the last two 0 where they were not recorded.
    """
    (layer,) = network.layers
    # A dense layer takes flat what a convolution sends as an image.
    inputs = events.reshape(*events.shape[:2], *network.input.shape)
    record = ("output", "u", "v") if states else ("output",)
    recording = simulate(network, inputs, record=record)
    output = recording.output.reshape(*events.shape[:2], *layer.output_shape)
    peaks = {"sum_peak": recording.peak_sum[layer.name], "u_peak": 0, "v_peak": 0}
    if states:
        peaks["u_peak"] = int(np.abs(recording.u[layer.name]).max())
        peaks["v_peak"] = int(np.abs(recording.v[layer.name]).max())
    return output, peaks


# --- what is known of one layer


def _describe(layer: FloatLayer, chosen: _ScaledLayer, dt_s: float) -> Facts:
    """Say what can be said of a layer without running it."""
    made, neuron = chosen.layer, layer.neuron
    assert neuron is not None
    ((_, up, down),) = worst_sums(_alone(made, layer))
    error, clipped = weight_error(layer, made, chosen.scale)
    lost_rows, lost_biases = rounded_away(layer, made)
    threshold = threshold_error = None
    if neuron.fires:
        # The lowest of several thresholds is the one that rounding moves most.
        threshold = register_range(made.neuron.vth_int)[0]
        height = chosen.scale * layer.units * lowest_height(layer)
        threshold_error = abs(threshold / height - 1)
    facts: Facts = {
        "name": layer.name,
        "neuron": neuron.name,
        "units_per_volt": made.scale,
        "threshold_int": threshold,
        "weight_error": error,
        "weights_clipped": clipped,
        "bias_error": bias_error(layer, made, chosen.scale),
        "threshold_error": threshold_error,
        "outputs_without_weights": lost_rows,
        "biases_without_value": lost_biases,
        "largest_weight": int(np.abs(made.weight_int).max()),
        "sum_bound": max(int(up.max()), int(down.max())),
        "sum_limit": ACCUMULATOR - 1,
        "state_limit": STATE_MAX - 1,
        "scale": chosen.scale,
        "scales_tried": chosen.tried,
    }
    for field, share, register in (
        ("tau_mem_s", neuron.v_share, made.neuron.v_decay),
        ("tau_syn_s", neuron.i_share, made.neuron.i_decay),
    ):
        if share is not None:
            # A register of 0 never forgets: its time constant is no number.
            mean = float(np.mean(register))
            on_chip = dt_s * DECAY_UNITY / mean if mean else None
            facts[field] = {"asked": dt_s / share, "on_chip": on_chip}
    return facts


def _rounding_notes(facts: Facts) -> list[str]:
    """Return a line for all of a layer that became 0, and for all that is far from its float."""
    name = facts["name"]
    notes = []
    for key, what in (
        ("outputs_without_weights", "outputs' weights"),
        ("biases_without_value", "biases"),
    ):
        if facts[key]:
            notes.append(f"'{name}': {facts[key]} {what} round to nothing")
    for key, what in (
        ("weight_error", "weights"),
        ("threshold_error", "threshold"),
        ("bias_error", "biases"),
    ):
        if facts[key] is not None and facts[key] > COARSE_ERROR:
            notes.append(
                f"'{name}': {what} off by {facts[key]:.0%}: one scale holds weights, thresholds "
                "and biases, bring them closer together in training"
            )
    return notes


def _measure(layer: FloatLayer, chosen: _ScaledLayer, output: IntArray, wanted: Array) -> Facts:
    """Compare a chip layer, which hears the chip's layers before it, with the float graph's."""
    wanted = wanted.reshape(output.shape)
    if not fires(layer):
        off = _distance(output, wanted, chosen.layer.scale)
        return {"volts_float": float(np.abs(wanted).mean()), "volts_off": off}
    differs = output != wanted
    first = None
    if differs.any():
        sample, timestep, *index = first_difference(differs)
        first = {"sample": sample, "timestep": timestep, "index": index}
    # Neuron by neuron, so that one too many here and one too few there do not make it 0.
    counts, chip_counts = (spikes.sum(axis=(0, 1), dtype=np.int64) for spikes in (wanted, output))
    fired = int(counts.sum())
    rate_error = int(np.abs(counts - chip_counts).sum()) / fired if fired else None
    return {
        "decisions": int(wanted.size),
        "mismatches": int(differs.sum()),
        "spikes_float": fired,
        "spikes_chip": int(chip_counts.sum()),
        "rate_error": rate_error,
        "first_divergence": first,
    }
