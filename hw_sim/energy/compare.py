"""Two energies beside each other: ratios that hold, and a flag where the ranking does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from knarr.hw_sim.energy.estimate import EnergyEstimate
from knarr.hw_sim.energy.prices import PriceError


def ratio(snn: EnergyEstimate, ann: EnergyEstimate, *, mix_technologies: bool = False) -> float:
    """E_snn / E_ann, nominal; below 1 the spiking network is cheaper.

    Args:
        snn, ann: one inference each.
        mix_technologies: allow different models, nodes, precisions or scopes; such a number ranks nothing.

    Raises:
        PriceError: not an SNN and an ANN, technologies that differ, or an ANN that costs nothing.
    """
    if (snn.kind, ann.kind) != ("snn", "ann"):
        raise PriceError(f"ratio: of '{snn.kind}' to '{ann.kind}', needs 'snn' to 'ann'")
    for field in ("model", "node_nm", "precision", "scope"):
        left, right = getattr(snn, field), getattr(ann, field)
        if left != right and not mix_technologies:
            raise PriceError(
                f"ratio: {field} {left} vs {right}; price both sides with the same profile and model"
            )
    if ann.nominal_pj == 0:
        raise PriceError("ratio: the ANN costs 0 pJ, there is nothing to compare with")
    return snn.nominal_pj / ann.nominal_pj


@dataclass(frozen=True)
class Comparison:
    """What several models say about the same two networks.

    Args:
        ratios: model and profile -> (lo, nominal, hi) of E_snn / E_ann; a bound is None where one is unknown.
        flips: whether the ratio crosses 1 within an interval or between two models: then there is no winner.
        responsible: where it flips, the term of the spiking network that costs most, per model.
    """

    ratios: dict[str, tuple[float | None, float, float | None]]
    flips: bool
    responsible: dict[str, str]


def compare_models(pairs: Sequence[tuple[EnergyEstimate, EnergyEstimate]]) -> Comparison:
    """Pairs of (SNN, ANN), each priced alike.

    Raises:
        PriceError: no pairs, or a pair that `ratio` refuses.
    """
    if not pairs:
        raise PriceError("compare: nothing to compare; give at least one pair of energies")
    ratios: dict[str, tuple[float | None, float, float | None]] = {}
    for snn, ann in pairs:
        nominal = ratio(snn, ann)
        lo = None if snn.lo_pj is None or not ann.hi_pj else snn.lo_pj / ann.hi_pj
        hi = None if snn.hi_pj is None or not ann.lo_pj else snn.hi_pj / ann.lo_pj
        ratios[f"{snn.model}, {snn.profile}"] = (lo, nominal, hi)
    known = [bound for corners in ratios.values() for bound in corners if bound is not None]
    flips = min(known) < 1 < max(known)
    responsible = {
        f"{snn.model}, {snn.profile}": max(snn.terms, key=lambda term: snn.terms[term].nominal)
        for snn, _ in pairs
        if flips
    }
    return Comparison(ratios, flips, responsible)
