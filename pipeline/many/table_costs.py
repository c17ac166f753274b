"""What a row's inferences cost, from the energy.json of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knarr.pipeline.evaluation import Network
from knarr.pipeline.files import expecting, read_json


@dataclass(frozen=True)
class Costs:
    """Of one inference; means over runs.

    Args:
        runs: how many they are means over.
        parameters: weights and biases that are stored; None where sizes were not counted.
        dense_macs: multiplications if every input were active at every step.
        mac, acc: operations that happened.
        spike_rate: spikes of a neuron in a step, 0 .. 1, a last layer that never fires left out; None for an ANN.
        layer_rates: the same of each layer.
        energy_pj: paper model; None where it was not priced.
    """

    runs: int
    parameters: float | None
    dense_macs: float
    mac: float
    acc: float
    spike_rate: float | None
    layer_rates: Mapping[str, float]
    energy_pj: float | None


def read_costs(path: Path, network: Network) -> Costs | None:
    """Of a run's energy.json: the student on the chip, or its baseline for the teacher; None where it was not counted whole.

    Raises:
        ChipError: not such a file.
    """
    side = "baseline" if network == "teacher" else "student"
    with expecting(path):
        facts = read_json(path)
        if facts[side] is None or facts[side]["counts"]["total"] is None:
            return None
        counts = facts[side]["counts"]
        total, layers = counts["total"], counts["layers"]
        priced = [
            row[side]
            for row in facts["models"]
            if row["model"] == "paper" and row[side] is not None
        ]
        sizes = counts["sizes"]
        fires = _firing(layers)
        updates = sum(layer["neuron_updates"] for layer in fires.values())
        return Costs(
            1,
            None
            if sizes is None
            else float(sum(one["weights"] + one["biases"] for one in sizes.values())),
            total["dense_valid"],
            total["mac"],
            total["acc"],
            sum(layer["spikes"] for layer in fires.values()) / updates if updates else None,
            {name: layer["spikes"] / layer["neuron_updates"] for name, layer in fires.items()},
            priced[0]["nominal_pj"] if priced else None,
        )


def _firing(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Layers of neurons, without a last one that never fires: a leaky integrator is read, and has no rate."""
    found = {name: layer for name, layer in layers.items() if layer["neuron_updates"] > 0}
    if found and found[last := list(found)[-1]]["spikes"] == 0:
        del found[last]
    return found


def mean_costs(found: Sequence[Costs]) -> Costs | None:
    """Over runs; None of none. What only some of them have is left out."""
    if not found:
        return None

    def mean(name: str) -> float | None:
        values = [getattr(one, name) for one in found]
        return None if None in values else sum(values) / len(values)

    names = [name for name in found[0].layer_rates if all(name in one.layer_rates for one in found)]
    return Costs(
        len(found),
        mean("parameters"),
        mean("dense_macs") or 0.0,
        mean("mac") or 0.0,
        mean("acc") or 0.0,
        mean("spike_rate"),
        {name: sum(one.layer_rates[name] for one in found) / len(found) for name in names},
        mean("energy_pj"),
    )
