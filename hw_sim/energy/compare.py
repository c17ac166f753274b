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
        unknown = field == "node_nm" and left is None and snn.profile != ann.profile
        if (left != right or unknown) and not mix_technologies:
            raise PriceError(
                f"ratio: {field} {left} vs {right}; price both sides with the same profile and model"
            )
    bits = snn.options.get("word_bits"), ann.options.get("word_bits")
    if snn.model == "memory" and bits[0] != bits[1] and not mix_technologies:
        raise PriceError(
            f"ratio: words of {bits[0]} vs {bits[1]} bits; price both sides with the same options"
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


def compare_models(
    pairs: Sequence[tuple[EnergyEstimate, EnergyEstimate]], labels: Sequence[str] | None = None
) -> Comparison:
    """Pairs of (SNN, ANN), each priced alike.

    Args:
        pairs: to compare.
        labels: of the pairs, each once; model and profile where there are none.

    Raises:
        PriceError: no pairs, or a pair that `ratio` refuses.
    """
    if not pairs:
        raise PriceError("compare: nothing to compare; give at least one pair of energies")
    names = labels or [f"{snn.model}, {snn.profile}" for snn, _ in pairs]
    if len(set(names)) != len(pairs):
        raise PriceError(
            f"compare: {len(pairs)} pairs under the names {sorted(set(names))}; give each its own label"
        )
    ratios: dict[str, tuple[float | None, float, float | None]] = {}
    for name, (snn, ann) in zip(names, pairs, strict=True):
        nominal = ratio(snn, ann)
        lo = None if snn.lo_pj is None or not ann.hi_pj else snn.lo_pj / ann.hi_pj
        hi = None if snn.hi_pj is None or not ann.lo_pj else snn.hi_pj / ann.lo_pj
        ratios[name] = (lo, nominal, hi)
    known = [bound for corners in ratios.values() for bound in corners if bound is not None]
    flips = min(known) < 1 < max(known)
    responsible = {
        name: max(snn.terms, key=lambda term: snn.terms[term].nominal)
        for name, (snn, _) in zip(names, pairs, strict=True)
        if flips
    }
    return Comparison(ratios, flips, responsible)
