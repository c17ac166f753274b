"""Parts of an inference's energy by layer and term, and what would change who is cheaper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from knarr.hw_sim import OperationCounts
from knarr.hw_sim.energy import PlaceEnergy, break_even
from knarr.pipeline.energy_report.amounts import digits, spelled
from knarr.pipeline.energy_report.pricing import Pricing
from knarr.pipeline.energy_report.same_technology import DENSE, ZEROS_SKIPPED
from knarr.pipeline.energy_report.verdict import BATCH_1, LARGE_BATCH

LARGE: Final = 64
"""Inferences of the large batch whose prices the profile of the edge GPU has."""


@dataclass(frozen=True)
class Cores:
    """Cores of a chip under a network.

    Attributes:
        used: Cores in use.
        there: Cores of the chips in use.
        chips: Chips in use.
    """

    used: int
    there: int
    chips: int


def break_evens(
    student: OperationCounts, baseline: OperationCounts | None, pricing: Pricing
) -> list[dict[str, Any]]:
    """Return the activity and the steps that the student can afford, by each digital model."""
    if baseline is None or student.refused or baseline.refused:
        return []  # no break-even of a part
    rivals = {DENSE: baseline}
    if baseline.effective is not None:
        rivals[ZEROS_SKIPPED] = baseline.skipping_zeros()
    found = []
    for model, profile in pricing.pairs():
        for against, rival in rivals.items() if model != "chip" else ():
            limit = break_even(student, rival, profile, model=model, options=pricing.options)
            head = {"model": model, "profile": profile.name, "against": against}
            found.append({**head, **limit.to_json()})
    return found


def shares(place: PlaceEnergy | None) -> list[dict[str, Any]]:
    """Return the parts of a place's nominal energy, the largest first.

    Args:
        place: Where the student runs; its total, or where that is unknown its switching, is 1.
    """
    if place is None:
        return []
    parts = [
        (layer, term, joules)
        for layer, terms in place.breakdown.items()
        for term, joules in terms.items()
    ]
    known = place.terms["total"].nominal is not None
    for name in ("static", "input_output") if known else ():
        parts.append(("", name, place.terms[name].nominal or 0.0))
    whole = sum(joules for _, _, joules in parts)
    parts.sort(key=lambda part: part[2], reverse=True)
    return [
        {"layer": layer, "term": term, "joules": joules, "share": joules / whole}
        for layer, term, joules in parts
        if joules > 0
    ]


def levers(
    places: Mapping[str, PlaceEnergy],
    place: PlaceEnergy | None,
    limits: Sequence[Mapping[str, Any]],
    cores: Mapping[str, Cores],
) -> list[dict[str, Any]]:
    """Say how far rate, steps, batch and filled cores are from where the answer changes.

    Args:
        places: All places by name.
        place: Where the student runs.
        limits: What `break_evens` gives.
        cores: Cores in use, by the name of the chip.

    Returns:
        One record for each lever: `lever`, its value `now` and at the `limit` (None: there is
        none), and a `sentence`.
    """
    return [*_activity(limits), *_batch(places, place), *_cores(place, cores)]


def _activity(limits: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    # The strictest of the models: the most memory reuse, and zeros skipped where they are counted.
    strictest = min(
        (one for one in limits if one["rate_limit"] is not None),
        key=lambda one: one["rate_limit"],
        default=None,
    )
    if strictest is None:
        return
    # Break-even is taken with the reuse of words that was asked for.
    by = f"{strictest['model']} model, {strictest['profile']}, ANN {strictest['against']}"
    rate, largest = strictest["rate"], strictest["rate_limit"]
    paid = "the SNN is cheaper" if rate < largest else "the ANN is cheaper"
    # A neuron fires at most once a step.
    bound = f"it would be even at {_share(largest)}"
    if largest >= 1 or largest <= 0:
        bound = "at any rate" if largest >= 1 else "at no rate would it be even"
    yield {
        "lever": "spike rate",
        "now": rate,
        "limit": largest,
        "sentence": f"spike rate: {rate:.2%} of neurons a step; {bound} ({by}: {paid})",
    }
    steps, most = strictest["timesteps"], strictest["timesteps_limit"]
    if most is not None:
        most = max(0.0, most)
        yield {
            "lever": "time steps",
            "now": steps,
            "limit": most,
            "sentence": f"time steps: {steps:g}; {_even_steps(most)} ({by})",
        }


def _share(share: float) -> str:
    """Return a share in percent, which is not 0 where it is small."""
    return f"{share:.2%}" if share >= 1e-4 else f"{digits(100 * share)}%"


def _even_steps(most: float) -> str:
    """Say at how many steps both would cost the same; a network makes one at least."""
    return f"it would be even at {most:.1f}" if most >= 1 else "one step is too many already"


def _batch(
    places: Mapping[str, PlaceEnergy], student: PlaceEnergy | None
) -> Iterator[dict[str, Any]]:
    if student is None or BATCH_1 not in places or LARGE_BATCH not in places:
        return
    one, many, mine = (
        place.terms["total"].nominal for place in (places[BATCH_1], places[LARGE_BATCH], student)
    )
    if one is None or many is None or mine is None:
        return
    # A launch costs the same for any batch: a + b / batch through both.
    launch = (one - many) / (1 - 1 / LARGE)
    rest = one - launch
    limit = launch / (mine - rest) if mine > rest and launch > 0 else None
    head = "batch on the GPU: 1"
    if one <= mine:
        said = f"{head}; the ANN costs no more already (nominal)"
        limit = None
    elif limit is None:
        said = f"{head}; no batch makes the ANN as cheap as the SNN on {student.place} (nominal)"
    else:
        said = (
            f"{head}; from about {limit:,.0f} on the ANN costs no more than the SNN on "
            f"{student.place} (nominal, if a launch costs the same at any batch)"
        )
    yield {"lever": "batch", "now": 1, "limit": limit, "sentence": said}


def _cores(place: PlaceEnergy | None, cores: Mapping[str, Cores]) -> Iterator[dict[str, Any]]:
    if place is None or place.place not in cores:
        return
    own, static, dynamic = (
        cores[place.place],
        place.terms["static"],
        place.terms["dynamic"] + place.terms["input_output"],
    )
    if static.nominal is None or dynamic.nominal is None:
        return
    # Static power of a chip serves all that runs on it at once.
    filled = static.times(own.used / own.there) + dynamic
    yield {
        "lever": "cores filled",
        "now": own.used,
        "limit": own.there,
        "sentence": (
            f"cores filled: {own.used} of {own.there}; with all of them at work on such networks "
            f"one would cost {spelled(filled.to_json())}"
        ),
    }


def cores_json(cores: Mapping[str, Cores]) -> dict[str, Any]:
    """Return them as plain data."""
    return {name: asdict(one) for name, one in cores.items()}
