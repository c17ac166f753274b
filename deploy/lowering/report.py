"""What lowering did to every layer, measured on the calibration samples; it goes into the manifest as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.lowering.float_layers import FloatLayer
from knarr.deploy.lowering.quantise import bias_error, lost, weight_error
from knarr.deploy.lowering.scales import Chosen, alone, shaped
from knarr.deploy.rules import ACCUMULATOR, worst_sums
from knarr.export import Trace, step_nir
from knarr.export.graph.topology import Edge
from knarr.hw_sim import Readout, simulate
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.network import DECAY_UNITY, Layer

COARSE_ERROR = 0.1
"""Share of its own size by which rounding may move a kind of integers unmentioned; 4-bit weights lie near it."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What a layer gave on the calibration samples, and how far its registers went.

    Args:
        out: (samples, timesteps, *features) spikes or chip voltages.
        peak_sum, peak_u, peak_v: largest absolute values that were met.
    """

    out: npt.NDArray[np.integer[Any]]
    peak_sum: int
    peak_u: int
    peak_v: int


def send(layer: Layer, bits: int, events: npt.NDArray[np.integer[Any]]) -> Sent:
    """Run one layer of the chip on what arrives at it."""
    recording = simulate(alone(layer, bits), shaped(layer, events), record=("output", "u", "v"))
    out = recording.output.reshape(*events.shape[:2], *layer.output_shape)
    peaks = (int(np.abs(state[layer.name]).max()) for state in (recording.u, recording.v))
    return Sent(out, recording.peak_sum[layer.name], *peaks)


def describe(
    layer: FloatLayer, chosen: Chosen, units: float, bits: int, dt_s: float
) -> dict[str, Any]:
    """What can be said of a layer without running it; units and bits of what arrives."""
    ((_, up, down),) = worst_sums(alone(chosen.layer, bits))
    error, clipped = weight_error(layer, chosen.layer, chosen.scale, units)
    neuron = layer.neuron
    lost_rows, lost_biases = lost(layer, chosen.layer)
    facts: dict[str, Any] = {
        "name": layer.name,
        "neuron": neuron.name,
        "units_per_volt": chosen.layer.scale,
        "threshold_int": chosen.layer.neuron.vth_int if neuron.fires else None,
        "weight_error": error,
        "weights_clipped": clipped,
        "bias_error": bias_error(layer, chosen.layer, chosen.scale * units),
        "threshold_error": abs(chosen.layer.neuron.vth_int / (chosen.scale * units) - 1)
        if neuron.fires
        else None,
        "outputs_without_weights": lost_rows,
        "biases_without_value": lost_biases,
        "largest_weight": int(np.abs(chosen.layer.weight_int).max()),
        "sum_bound": max(int(up.max()), int(down.max())),
        "sum_limit": ACCUMULATOR - 1,
        "state_limit": STATE_MAX - 1,
        "scale": chosen.scale,
        "scales_tried": chosen.tried,
    }
    for field, share, register in (
        ("tau_mem_s", neuron.v_share, chosen.layer.neuron.v_decay),
        ("tau_syn_s", neuron.i_share, chosen.layer.neuron.i_decay),
    ):
        if share is not None:
            on_chip = dt_s * DECAY_UNITY / register if register else None
            facts[field] = {"asked": dt_s / share, "on_chip": on_chip}
    return facts


def coarse(facts: dict[str, Any]) -> list[str]:
    """A line for every kind of integer of a layer that is far from its float, and for what became 0."""
    gone = [
        f"'{facts['name']}': {facts[key]} {what} round to nothing"
        for key, what in (
            ("outputs_without_weights", "outputs' weights"),
            ("biases_without_value", "biases"),
        )
        if facts[key]
    ]
    return gone + [
        f"'{facts['name']}': {what} off by {facts[key]:.0%}: one scale holds weights, thresholds and biases, bring them closer "
        "together in training"
        for key, what in (
            ("weight_error", "weights"),
            ("threshold_error", "threshold"),
            ("bias_error", "biases"),
        )
        if facts[key] is not None and facts[key] > COARSE_ERROR
    ]


def wanted_of(layer: FloatLayer, floats: Trace) -> npt.NDArray[np.number[Any]]:
    """(samples, timesteps, *features): spikes of the float graph, or volts of a readout above its rest."""
    if layer.neuron.fires:
        return floats.spikes[layer.neuron.name]
    return floats.v[layer.neuron.name] - layer.neuron.rest


def measure(
    layer: FloatLayer, chosen: Chosen, sent: Sent, wanted: npt.NDArray[np.number[Any]], units: float
) -> dict[str, Any]:
    """Chip against float graph on the calibration samples: the chip's layer hears the chip's layers before it."""
    facts: dict[str, Any] = {
        "sum_peak": sent.peak_sum,
        "u_peak": sent.peak_u,
        "v_peak": sent.peak_v,
    }
    wanted = wanted.reshape(sent.out.shape)
    if not layer.neuron.fires:
        off = np.abs(sent.out / (64 * chosen.scale * units) - wanted)
        return facts | {"volts_float": float(np.abs(wanted).mean()), "volts_off": float(off.mean())}
    differs = np.argwhere(sent.out != wanted)
    first = None
    if len(differs):
        at = differs[np.lexsort((differs[:, 0], differs[:, 1]))[0]]
        first = {"sample": int(at[0]), "timestep": int(at[1]), "index": [int(i) for i in at[2:]]}
    fired, fires = int(wanted.sum()), int(sent.out.sum())
    # Neuron by neuron, so that one too many here and one too few there do not make it 0.
    counts = [z.sum(axis=(0, 1), dtype=np.int64) for z in (wanted, sent.out)]
    return facts | {
        "decisions": int(wanted.size),
        "mismatches": len(differs),
        "spikes_float": fired,
        "spikes_chip": fires,
        "rate_error": int(np.abs(counts[0] - counts[1]).sum()) / fired if fired else None,
        "first_divergence": first,
    }


def decide_behind(
    graph: nir.NIRGraph,
    neuron: str,
    sent: npt.NDArray[np.integer[Any]],
    dt_s: float,
    readout: Readout,
) -> npt.NDArray[np.int64]:
    """Classes when everything behind a neuron stays float and hears what the chip sent.

    Args:
        graph: the folded graph, a chain.
        neuron: whose spikes these are.
        sent: (samples, timesteps, *features).
        dt_s: time step, seconds.
        readout: how outputs become a class.
    """
    behind, edges = _behind(graph, neuron)
    start = "sent_by_the_chip"
    nodes: dict[str, Any] = {start: nir.Input({"input": np.array(sent.shape[2:])})}
    nodes |= {name: graph.nodes[name] for name in behind}
    edges = [(start if s == neuron else s, t) for s, t in edges]
    tail = nir.NIRGraph(nodes, edges, type_check=False)
    output = step_nir(tail, sent, dt_s).output
    return readout.decide(output.reshape(*output.shape[:2], -1))


def _behind(graph: nir.NIRGraph, neuron: str) -> tuple[list[str], list[Edge]]:
    """Nodes and edges that a neuron's spikes reach without coming back to itself."""
    into_self = {s for s, t in graph.edges if t == neuron and (neuron, s) in graph.edges}
    found: list[str] = []
    todo = [neuron]
    while todo:
        here = todo.pop()
        for source, target in graph.edges:
            if source == here and target not in (neuron, *found, *into_self):
                found.append(target)
                todo.append(target)
    edges = [(s, t) for s, t in graph.edges if t in found and (s in found or s == neuron)]
    return found, edges
