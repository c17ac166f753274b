"""An energy.json as a stage leaves it, of counts that nobody had to run a network for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from knarr.hw_sim.counting.counts import LayerCounts, LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.energy import places_of
from knarr.pipeline.energy_report.facts import energy_facts
from knarr.pipeline.energy_report.pricing import Pricing
from knarr.pipeline.files import write_json

LEDGER = (LedgerRow("fc", "Linear", "counted"),)
SIZES = {"fc": LayerSizes(inputs=12, outputs=10, weights=120, states=10, kernel=10)}


def counts(kind: Any, **layer: int) -> OperationCounts:
    """Counts of one dense layer."""
    names = ("acc", "mac", "acc_nonzero", "mac_nonzero", "bias_adds", "neuron_updates", "spikes")
    values = {name: Fraction(layer.get(name, 0)) for name in names}
    dense = Fraction(layer.get("dense", 4800))
    fc = LayerCounts(dense_valid=dense, dense_padded=dense, **values)
    steps = 4 if kind == "snn" else 1
    pooling = "folded" if kind == "snn" else None
    return OperationCounts({"fc": fc}, LEDGER, 2, steps, kind, sizes=SIZES, pooling=pooling)  # type: ignore[arg-type]


def small_facts() -> dict[str, Any]:
    """The content of an energy.json of one layer on both sides."""
    student = counts("snn", acc=340, acc_nonzero=340, neuron_updates=40, spikes=12)
    baseline = counts("ann", mac=4800, mac_nonzero=4800)
    return energy_facts(
        student, baseline, Pricing(), places=places_of(student, {}, baseline), trades_of=""
    )


def write_energy(path: Path) -> dict[str, Any]:
    """Write it, and return it."""
    facts = small_facts()
    write_json(path, facts)
    return facts
