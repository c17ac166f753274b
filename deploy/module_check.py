"""Tell before training whether a network will go to the chip: exported, lowered, placed, and what stands against it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.placement.chips import chip_profile
from knarr.deploy.placement.place import place
from knarr.deploy.placement.result import Placement
from knarr.deploy.rules import Violation, check_network, fatal

if TYPE_CHECKING:
    from torch import nn


TIMESTEPS, DENSITY = 16, 0.3
"""Random spikes on which near forms are looked at; what they lose is told by `lower` on one's own data."""


@dataclass(frozen=True)
class ModuleCheck:
    """The answer to whether a module will go to the chip.

    Args:
        nodes: kinds of the graph's nodes by name, in order; empty where it cannot be exported.
        decisions: decisions of neurons that were compared, each equal.
        not_exported: why it cannot be exported, each with its layer and its cure.
        not_lowered: why its graph has no integers on the chip; empty where it has, or where there is no graph.
        approximations: what its integers only come near to; they are looked at where nothing else stands against it.
        approximate: whether approximations are allowed.
        violations: rules of the chip that its integers break.
        placement: its cores; None where there are no integers.
        silent: layers that never fired on random inputs.
        left_out: what the module does behind the output of its graph.
        rewrites: module path -> what stands in its place.
    """

    nodes: dict[str, str]
    decisions: int
    not_exported: tuple[str, ...]
    not_lowered: tuple[str, ...] = ()
    approximations: tuple[str, ...] = ()
    approximate: bool = False
    violations: tuple[Violation, ...] = ()
    placement: Placement | None = None
    silent: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    rewrites: tuple[tuple[str, str], ...] = ()

    @property
    def holds(self) -> bool:
        """Tell whether it will go to the chip as it is."""
        fits = self.placement is not None and self.placement.fits
        exact = self.approximate or not self.approximations
        return fits and exact and not fatal(self.violations)

    def to_json(self) -> dict[str, Any]:
        """Return everything as dicts, lists, numbers and text."""
        facts = asdict(self) | {"violations": [str(each) for each in self.violations]}
        facts["rewrites"] = dict(self.rewrites)
        facts["placement"] = None if self.placement is None else self.placement.to_json()
        return {**facts, "holds": self.holds}


def check_module(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dt_s: float,
    *,
    weight_bits: int = 8,
    chip: str = "loihi2",
    allow_approximate: bool = False,
) -> ModuleCheck:
    """Export, lower and place a module, trained or not, and collect what stands against it.

    Args:
        module: in eval mode, as `knarr.export.to_nir` takes it.
        input_shape: sizes of one step, without batch and time.
        dt_s: time step, seconds.
        weight_bits: signed bits of a weight.
        chip: the chip whose cores it is placed on.
        allow_approximate: take what has only a near form on the chip, as `lower` does.

    Raises:
        ExportError, DeployError: a shape, a time step, a number of bits or a chip that makes no sense.
    """
    # Not at the top: whoever checks files alone needs no torch.
    from knarr.deploy.lowering.lower import lower
    from knarr.export import check_export, execution_order

    # A mistake in an argument must not cost an export first.
    chip_profile(chip)
    if not 2 <= weight_bits <= 8:
        raise DeployError(f"weight_bits: {weight_bits!r}, allowed 2..8")
    exported = check_export(module, input_shape, dt_s)
    if exported.graph is None or exported.certificate is None:
        return ModuleCheck({}, 0, exported.reasons)
    certificate, graph = exported.certificate, exported.graph
    facts: dict[str, Any] = {
        "nodes": {name: type(graph.nodes[name]).__name__ for name in execution_order(graph)},
        "decisions": certificate.decisions,
        "not_exported": (),
        "silent": exported.silent,
        "left_out": certificate.left_out,
        "rewrites": tuple(certificate.rewrites.items()),
    }
    try:
        network = lower(graph, dt_s, weight_bits=weight_bits)
    except DeployError as error:
        # Where near forms are all that it lacks, every layer that has one is told, not the first alone.
        spikes = np.random.default_rng(0).random((2, TIMESTEPS, *input_shape)) < DENSITY
        try:
            network = lower(
                graph, dt_s, weight_bits=weight_bits, allow_approximate=True, calibration=spikes
            )
        except DeployError:
            return ModuleCheck(**facts, not_lowered=(str(error),))
    facts["approximations"] = tuple((network.lowering or {}).get("approximations", ()))
    facts["approximate"] = allow_approximate
    violations = tuple(check_network(network))
    return ModuleCheck(**facts, violations=violations, placement=place(network, chip))
