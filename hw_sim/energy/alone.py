"""The cost of one network by itself: counts, the operations in the network's own precision, the
literature formula, and the places where a network that does not spike may run.

Networks that are counted below their modules (`count_torch`) and ONNX files come here: nothing is known
of their neurons or cores, so no chip is priced.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.baseline import gpu_floors
from knarr.hw_sim.energy.estimate import EnergyEstimate, price
from knarr.hw_sim.energy.places import PlaceOptions, places_of
from knarr.hw_sim.energy.prices import PriceError
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.json_values import plain

FORMULA = "horowitz_fp32"
"""Prices of the formula that most papers use."""
OWN = "horowitz"
"""The same technology, with prices of several precisions."""


def price_alone(
    counts: OperationCounts,
    source: str,
    *,
    files: tuple[Path, ...] = (),
    profile: str | Path | None = None,
    model: str = "paper",
    allow_partial: bool = False,
) -> dict[str, Any]:
    """Price a network that nothing is compared with.

    Args:
        counts: of `count_torch` or `count_onnx`.
        source: what was counted, for the reader.
        files: those that were read, whose hashes stand in the result.
        profile, model: as for `price`. Without a profile every layer is priced in its own precision,
            at 45 nm; in fp32 where the counts do not say it or nobody published a price, which a
            note of the energy says.
        allow_partial: give lower bounds where something was not counted.

    Returns:
        Facts that JSON can hold: `counts`, `energy` (None, and `refused` why, where there is no
        total), `literature_formula` (its `lo_pj`, `nominal_pj` and `hi_pj`), and for a network that does not spike `places` and datasheet `floors`.

    Raises:
        PriceError: prices that there are not, or that the model cannot use.
    """
    facts: dict[str, Any] = {
        "schema": 1,
        "knarr": version("knarr"),
        "sha256": {str(path): sha256(path.read_bytes()).hexdigest() for path in files},
        "source": source,
        "counts": counts.to_json(),
        "energy": None,
        "literature_formula": None,
        "refused": None,
        "places": {},
        "floors": [],
    }
    try:
        formula = price(counts, FORMULA, allow_partial=allow_partial)
    except CountError as error:
        return facts | {"refused": str(error)}
    facts["literature_formula"] = {
        name: getattr(formula, name) for name in ("lo_pj", "nominal_pj", "hi_pj")
    }
    facts["energy"] = _estimate(counts, profile, model, allow_partial).to_json()
    if counts.kind == "ann":
        options = PlaceOptions(allow_partial=allow_partial)
        found = places_of(counts, {}, counts, options=options)
        facts["places"] = {place.place: plain(place) for place in found}
        if not counts.refused:
            facts["floors"] = plain(gpu_floors(counts))
    return facts


def _estimate(
    counts: OperationCounts, profile: str | Path | None, model: str, allow_partial: bool
) -> EnergyEstimate:
    if profile is not None:
        return price(counts, profile, model=model, allow_partial=allow_partial)
    if counts.precision is None:
        return price(counts, FORMULA, model=model, allow_partial=allow_partial)
    try:
        return price(counts, OWN, model=model, allow_partial=allow_partial)
    except PriceError as error:
        whole = price(counts, FORMULA, model=model, allow_partial=allow_partial)
        return replace(whole, notes=(*whole.notes, f"priced as fp32 throughout: {error}"))
