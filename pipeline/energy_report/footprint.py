"""Counts of both networks in one short table, by the names that NeuroBench uses.

`synops` is NeuroBench's synaptic operations (ACC and MAC), `dense` its dense operations, `updates`
its membrane updates, `footprint_bytes` its footprint. NeuroBench's activation sparsity is the share of
neurons and steps without a spike. `skipped_share` is the share of dense operations that never happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knarr.hw_sim import OperationCounts
from knarr.hw_sim.energy import Traffic

FLOAT_BITS = 32


def summary(
    student: OperationCounts,
    baseline: OperationCounts | None,
    traffic: Mapping[str, Traffic],
    weight_bits: int | None,
) -> dict[str, dict[str, Any] | None]:
    """Return one row for each network, per inference.

    Args:
        student: Counts of the spiking network.
        baseline: Counts of the network beside it.
        traffic: Traffic of the student on the cores of each chip.
        weight_bits: Of the student's weights; None: floats of 32 bits.
    """
    own = _row(student, weight_bits or FLOAT_BITS)
    # The chip for which everything else is told first, or the only one that holds the network.
    placed = next((traffic[name] for name in ("Loihi 2", "Loihi 1") if name in traffic), None)
    if placed is not None:
        messages = {
            name: float(layer.spikes) * placed.layers[name].messages_per_spike
            for name, layer in student.layers.items()
            if name in placed.layers
        }
        first = next(iter(student.layers.values()))
        outside = float(first.events) * placed.external
        own["messages"] = sum(messages.values()) + outside
        own["hops"] = sum(
            sent * (placed.layers[name].hops_x + placed.layers[name].hops_y)
            for name, sent in messages.items()
        )
    return {
        "student": own,
        "baseline": None if baseline is None else _row(baseline, FLOAT_BITS),
    }


def _row(counts: OperationCounts, bits: int) -> dict[str, Any]:
    total = counts.lower_bound if counts.refused else counts.total
    spiking = counts.kind == "snn"
    skipped = float(total.acc + total.mac)
    if not spiking and counts.effective is not None:
        skipped = float(sum(counts.effective.values()))
    fires = [layer for layer in counts.layers.values() if layer.neuron_updates]
    # A last layer that never fires is read, and has no spikes to be sparse in.
    if len(fires) > 1 and not fires[-1].spikes:
        fires.pop()
    updates = float(sum(layer.neuron_updates for layer in fires))
    spikes = float(sum(layer.spikes for layer in fires))
    words = [] if counts.sizes is None else list(counts.sizes.values())
    dense = float(total.dense_valid)
    return {
        "partial": bool(counts.refused),
        "synops": float(total.acc + total.mac),
        "acc": float(total.acc),
        "mac": float(total.mac),
        "dense": dense,
        "effective": skipped if spiking or counts.effective is not None else None,
        "events": float(total.events) if spiking else None,
        "updates": float(total.neuron_updates) if spiking else None,
        "spikes": float(total.spikes) if spiking else None,
        "messages": None,
        "hops": None,
        "bias_adds": float(total.bias_adds),
        "activation_sparsity": 1 - spikes / updates if updates else None,
        "skipped_share": 1 - skipped / dense if dense else None,
        "parameters": sum(one.weights + one.biases for one in words) if words else None,
        "footprint_bytes": sum(one.weights + one.biases for one in words) * bits / 8
        if words
        else None,
    }
