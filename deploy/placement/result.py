"""Results of a placement, frozen and ready for JSON, and their table on one page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from knarr.deploy.placement.chips import Confidence, Resource
from knarr.deploy.placement.layer import Split


@dataclass(frozen=True)
class Use:
    """The use of one resource.

    Args:
        resource: one of `knarr.deploy.placement.chips.Resource`.
        used: how many.
        available: the limit beyond which the network does not fit, None when no trusted one is known.
        unit: what one of them is.
        confidence: how far to trust the limit, None without one.
    """

    resource: Resource
    used: int
    available: int | None
    unit: str
    confidence: Confidence | None


@dataclass(frozen=True)
class LayerPlacement:
    """One layer on its cores.

    Args:
        name: the layer's name; "input" for input neurons.
        neurons: how many.
        cores: how many.
        split: blocks along channels, rows and columns, whose product is `cores`; (cores, 1, 1) for
            flat layers.
        per_core: what the fullest core needs of each resource; the maxima may lie on different
            cores.
        synapses: stored on all cores together, zeros included; a shared kernel counts once per
            core.
        synapses_expanded: the same with none shared.
        decided_by: the resource that alone needs the most cores, None when one core is enough.
        note: how the synapses were counted, empty when there is nothing to say.
    """

    name: str
    neurons: int
    cores: int
    split: Split
    per_core: tuple[Use, ...]
    synapses: int
    synapses_expanded: int
    decided_by: Resource | None
    note: str

    def use(self, resource: Resource) -> Use:
        """Return what the fullest core needs of a resource."""
        return next(use for use in self.per_core if use.resource == resource)


@dataclass(frozen=True)
class Placement:
    """A network on a chip.

    Args:
        chip: the chip's title.
        layers: input to output.
        cores: of all layers.
        chips: the fewest that hold as many cores, neurons and synapses.
        utilisation: what all cores use together, against all cores of those chips.
        problems: what does not fit and cannot be split: "object: observed > limit; cure".
        warnings: limits of low confidence that are exceeded, and that one chip is not enough.
    """

    chip: str
    layers: tuple[LayerPlacement, ...]
    cores: int
    chips: int
    utilisation: tuple[Use, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True when every core holds what it is given, on as many chips as `chips` says."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return everything as dicts, lists, numbers and text."""
        return {**asdict(self), "fits": self.fits}


COLUMNS: dict[Resource, str] = {
    "neurons": "neurons",
    "input_axons": "in axons",
    "output_axons": "out axons",
    "synapse_words": "syn words",
}
"""Resources of the table, and their short names."""
TABLES: dict[Resource, str] = {"compartment_configs": "decays", "threshold_configs": "thresholds"}
"""Resources without a column, which may decide on the cores of a layer all the same."""


def table(placement: Placement) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return a one-page table, at most 100 characters wide with a border and padded cells.

    Returns:
        Header, and rows: one per layer with what its fullest core needs, then their sum (cores
        used, of how many), the limits of a core, and how far to trust these. Notes, problems and
        warnings are not in it.
    """
    _, *short = COLUMNS.values()
    header = ("layer", "neurons", "cores", "neurons/core", *short, "decided by")
    rows = []
    for layer in placement.layers:
        # Every other column is as wide as its header, so a long name would pass the page.
        name = layer.name if len(layer.name) <= 14 else layer.name[:13] + "…"
        used = (str(layer.use(resource).used) for resource in COLUMNS)
        decided_by = {**COLUMNS, **TABLES}[layer.decided_by] if layer.decided_by else ""
        rows.append((name, str(layer.neurons), str(layer.cores), *used, decided_by))
    neurons = sum(layer.neurons for layer in placement.layers)
    chips = f"{placement.chips} chip" + ("s" if placement.chips > 1 else "")
    rows.append(("all", str(neurons), str(placement.cores), *[""] * len(COLUMNS), chips))
    cores = next(use for use in placement.utilisation if use.resource == "cores")
    # The limits of a core are the same for every layer.
    limits = [placement.layers[0].use(resource) for resource in COLUMNS]
    most = ("?" if use.available is None else str(use.available) for use in limits)
    rows.append(("limit", "", str(cores.available), *most, ""))
    confidence = (use.confidence or "" for use in limits)
    rows.append(("confidence", "", str(cores.confidence), *confidence, ""))
    return header, rows
