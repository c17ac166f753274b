"""A placement on one page."""

from __future__ import annotations

from knarr.deploy.chips import Resource
from knarr.deploy.placement import Placement

COLUMNS: tuple[Resource, ...] = ("neurons", "input_axons", "output_axons", "synapse_words")
SHORT: dict[Resource, str] = {
    "neurons": "neurons",
    "input_axons": "in axons",
    "output_axons": "out axons",
    "synapse_words": "syn words",
}


def table(placement: Placement) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A one-page table, at most 100 characters wide with a border and a space on both sides of every cell.

    Returns:
        Header, and rows: one per layer with what its fullest core needs, then their sum (cores used, of how many),
        the limits of a core, and how far to trust these. Notes, problems and warnings are not in it.
    """
    header = ("layer", "neurons", "cores", "neurons/core", "in axons", "out axons", "syn words", "decided by")
    rows = [
        (
            layer.name if len(layer.name) <= 14 else layer.name[:13] + "…",
            str(layer.neurons),
            str(layer.cores),
            *(str(layer.use(resource).used) for resource in COLUMNS),
            SHORT[layer.decided_by] if layer.decided_by else "",
        )
        for layer in placement.layers
    ]
    cores = next(use for use in placement.utilisation if use.resource == "cores")
    limits = [placement.layers[0].use(resource) for resource in COLUMNS]
    rows.append(
        (
            "all",
            str(sum(layer.neurons for layer in placement.layers)),
            str(placement.cores),
            *[""] * len(COLUMNS),
            f"{placement.chips} chip" + ("s" if placement.chips > 1 else ""),
        )
    )
    rows.append(
        (
            "limit",
            "",
            str(cores.available),
            *("?" if use.available is None else str(use.available) for use in limits),
            "",
        )
    )
    rows.append(("confidence", "", str(cores.confidence), *(use.confidence or "" for use in limits), ""))
    return header, rows
