"""Both networks in one technology: what each costs if the same arithmetic, memories and wires
served both.

Rows go from operations alone to operations, memory and movement. The student is held against the
ANN as it is, against the same with multiplications by zero skipped, and against its own quantised
twin (`knarr.hw_sim.energy.quantised_twin`), the fair rival of a rate code. Where the two sides
compute in other precisions, more rows price each as it is; these say nothing about spikes.

    E_movement = bits moved * price of a bit over one hop

A student's event carries its sender's address, an ANN's word its value, each over one hop. Prices
are Yan et al., arXiv 2409.08290 (profile yan_22nm).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, log2
from typing import Any, Final

from knarr.hw_sim import OperationCounts, PriceError
from knarr.hw_sim.energy import (
    EnergyEstimate,
    Family,
    Options,
    Profile,
    Quantity,
    families,
    load_profile,
    quantised_twin,
    twin_bits,
    twin_prices,
)
from knarr.pipeline.energy_report.pricing import DIGITAL, FAMILIES, LITERATURE, Pricing

MOVEMENT: Final = "yan_22nm"
WORD_BITS: Final = 8
ZEROS_SKIPPED: Final = "zeros skipped"
TWIN: Final = "quantised twin"
DENSE: Final = "dense"
PJ: Final = 1e-12
NO_BOUNDS: Final = "no bounds are published for a price"
Row = dict[str, Any]


def same_technology(
    student: OperationCounts, baseline: OperationCounts | None, pricing: Pricing
) -> list[Row]:
    """Price both networks by each model and profile, a row for each rival of the student.

    Args:
        student: Counts of the spiking network.
        baseline: Counts of the network beside it, None for none.
        pricing: Prices and models.

    Raises:
        CountError: Something was not counted, and a part was not asked for.
        PriceError: Prices that do not fit.
    """
    rows: list[Row] = []
    for model, profile in pricing.pairs():
        if model == "chip" and student.pooling == "float":
            continue  # a chip has its pools in its synapses
        if isinstance(profile, Family):
            rows += _as_they_are(student, baseline, model, profile, pricing)
        elif model == "chip":
            rows += _on_chip(student, profile, pricing)
        else:
            for options in _reuses(model, pricing.options):
                rows += _rows(student, baseline, model, profile, options, pricing)
    if pricing.profile is None and baseline is not None:
        for name in FAMILIES:
            for model in ("paper", "memory"):
                if pricing.model in (None, model):
                    rows += _where_they_differ(student, baseline, model, families()[name], pricing)
    return rows


def _where_they_differ(
    student: OperationCounts,
    baseline: OperationCounts,
    model: str,
    family: Family,
    pricing: Pricing,
) -> list[Row]:
    """Return the rows of both sides as they are, where they compute in other precisions."""
    try:
        rows = list(_as_they_are(student, baseline, model, family, pricing))
    except PriceError:
        return []  # a precision that has no price, or that nobody says
    return [row for row in rows if len(set(row["precision"].split(" / "))) > 1]


def _as_they_are(
    student: OperationCounts,
    baseline: OperationCounts | None,
    model: str,
    family: Family,
    pricing: Pricing,
) -> Iterator[Row]:
    """Price each side in the precision in which it computes."""
    mine = pricing.price(student, model, family)
    reuse = pricing.options.reuse_weights if model == "memory" else None
    label = "operations, as is" if model == "paper" else f"+ memory {reuse:g}, as is"
    name = "operations" if model == "paper" else model
    if baseline is None:
        yield _row(label, name, family.any, reuse, mine, None, None, own=family)
        return
    rivals = {DENSE: baseline}
    if baseline.effective is not None:
        rivals[ZEROS_SKIPPED] = baseline.skipping_zeros()
    for against, counts in rivals.items():
        rival = pricing.price(counts, model, family)
        yield _row(label, name, family.any, reuse, mine, against, rival, own=family)


def literature_formula(
    student: OperationCounts, baseline: OperationCounts | None, pricing: Pricing
) -> Row:
    """Price both by the formula of most papers, 4.6 MAC + 0.9 ACC pJ: for comparison with them
    alone.
    """
    profile = load_profile(LITERATURE)
    mine = pricing.price(student, "paper", profile)
    rival = None if baseline is None else pricing.price(baseline, "paper", profile)
    energy = None if rival is None else quantity(rival)
    return {
        "formula": "4.6 MAC + 0.9 ACC pJ",
        "label": "literature formula, to compare with papers; no price of a chip or a GPU",
        "student": quantity(mine).to_json(),
        "baseline": None if energy is None else energy.to_json(),
        "ratio": None if energy is None else quotient(quantity(mine), energy).to_json(),
        "provenance": mine.provenance,
    }


def over_technologies(rows: Sequence[Row]) -> list[Row]:
    """Put the rows of one model and rival together, over all technologies.

    Args:
        rows: What `same_technology` gives.

    Returns:
        `label`, `against`, `bits`, the `nominal` ratio of the first technology, and the least and
        the largest of all nominal values and published bounds as `low` and `high`; both None where
        there is one number alone.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["ratio"] is not None:
            groups.setdefault((row["label"], row["against"]), []).append(row)
    found = []
    for (label, against), members in groups.items():
        ends = [
            row["ratio"][name]
            for row in members
            for name in ("low", "nominal", "high")
            if row["ratio"][name] is not None
        ]
        alone = len(set(ends)) < 2
        found.append(
            {
                "label": label,
                "against": against,
                "bits": members[0]["bits"],
                "low": None if alone else min(ends),
                "nominal": members[0]["ratio"]["nominal"],
                "high": None if alone else max(ends),
                "unit": "",
            }
        )
    return found


def quantity(estimate: EnergyEstimate) -> Quantity:
    """Return an estimate in joules."""
    low, nominal, high = (
        None if pj is None else pj * PJ
        for pj in (estimate.lo_pj, estimate.nominal_pj, estimate.hi_pj)
    )
    why = "" if low is not None and high is not None else NO_BOUNDS
    return Quantity(low, nominal, high, "J", "a lower bound" if estimate.partial else why)


def quotient(student: Quantity, baseline: Quantity) -> Quantity:
    """Return student / baseline between the bounds that both leave; below 1 the student is cheaper."""
    (low, nominal, high), (least, middle, most) = student.bounds, baseline.bounds

    def over(one: float | None, other: float | None) -> float | None:
        return None if one is None or not other else one / other

    why = student.why_unknown or baseline.why_unknown
    return Quantity(over(low, most), over(nominal, middle), over(high, least), "", why)  # type: ignore[arg-type]  # a ratio has no unit


def _reuses(model: str, options: Options) -> list[Options]:
    """Return an ANN's memory with no reuse of a fetched word, and with some."""
    once = replace(options, reuse_weights=1.0, reuse_inputs=1.0)
    return [options] if model != "memory" or options == once else [once, options]


def _on_chip(student: OperationCounts, profile: Profile, pricing: Pricing) -> list[Row]:
    """Return the student alone by a chip's prices, by both readings of an active update."""
    rows = []
    for active in ("firing", "touched"):
        options = replace(pricing.options, active=active)
        mine = pricing.price(student, "chip", profile, options)
        rows.append(_row(f"chip, {active} updates", "chip", profile, None, mine, None, None))
    return rows


def _rows(
    student: OperationCounts,
    baseline: OperationCounts | None,
    model: str,
    profile: Profile,
    options: Options,
    pricing: Pricing,
) -> Iterator[Row]:
    mine = pricing.price(student, model, profile, options)
    reuse = options.reuse_weights if model == "memory" else None
    label = "operations only" if model == "paper" else f"+ memory, reuse {reuse:g}"
    name = "operations" if model == "paper" else model
    rivals = list(_rivals(student, baseline, profile))
    if not rivals:
        yield _row(label, name, profile, reuse, mine, None, None)
    moved = _settled(quantity(mine)) + _movement(student, WORD_BITS)
    # Wires of 22 nm under arithmetic of another node: a row of its own, alike for both sides.
    last = model == "memory" and options == pricing.options and profile.name in DIGITAL
    priced = [
        (against, counts, bits, pricing.price(counts, model, prices, options))
        for against, counts, prices, bits in rivals
    ]
    for against, _, bits, rival in priced:
        yield _row(label, name, profile, reuse, mine, against, rival, bits=bits)
    if last:
        for against, counts, bits, rival in priced:
            theirs = _settled(quantity(rival)) + _movement(counts, bits)
            compared = quotient(moved, theirs)
            if compared.low == compared.high:
                # Nothing moved: what is left is settled on both sides, and has no bounds.
                compared = replace(compared, low=None, high=None, why_unknown=NO_BOUNDS)
            row = _row("+ movement", "movement", profile, reuse, mine, against, rival, bits=bits)
            yield row | {
                "student": moved.to_json(),
                "baseline": theirs.to_json(),
                "ratio": None if row["partial"] else compared.to_json(),
            }


def _rivals(
    student: OperationCounts, baseline: OperationCounts | None, profile: Profile
) -> Iterator[tuple[str, OperationCounts, Profile, int]]:
    """Name the networks that the student is held against, with counts, prices and bits of a word."""
    if baseline is not None:
        yield DENSE, baseline, profile, WORD_BITS
        if baseline.effective is not None:
            yield ZEROS_SKIPPED, baseline.skipping_zeros(), profile, WORD_BITS
    bits = twin_bits(student)
    try:
        twin, prices = quantised_twin(student), twin_prices(profile, bits)
    except PriceError:
        return  # pools in its synapses, or more bits than the prices have
    yield TWIN, twin, prices, bits


def _movement(counts: OperationCounts, word_bits: int) -> Quantity:
    """Price what moves between layers over one hop: addresses of events, or words."""
    records = {record.term: record for record in load_profile(MOVEMENT).prices}
    sizes, moved = counts.sizes or {}, 0.0
    for name, layer in counts.layers.items():
        inputs = sizes[name].inputs if name in sizes else 0
        if counts.kind == "snn":
            moved += float(layer.events) * max(1, ceil(log2(max(1, inputs))))
        elif layer.dense_valid:
            moved += inputs * word_bits
    low, nominal, high = records["move_event" if counts.kind == "snn" else "move_dense"].si()
    return _settled(Quantity(low, nominal, high, "J")).times(moved)


def _settled(found: Quantity) -> Quantity:
    """Return the nominal value for each bound that nobody published, so that the bounds of other
    prices in a sum are not lost.
    """
    low, nominal, high = found.bounds
    low, high = (nominal if bound is None else bound for bound in (low, high))
    return Quantity(low, nominal, high, found.unit)


def _row(
    label: str,
    model: str,
    profile: Profile,
    reuse: float | None,
    mine: EnergyEstimate,
    against: str | None,
    rival: EnergyEstimate | None,
    *,
    bits: int | None = None,
    own: Family | None = None,
) -> Row:
    precisions = " / ".join(one.precision for one in (mine, rival) if one is not None)
    partial = mine.partial or (rival is not None and rival.partial)
    student = quantity(mine)
    theirs = None if rival is None else quantity(rival)
    # A bound of one side ranks nothing.
    compared = None if theirs is None or partial else quotient(student, theirs).to_json()
    return {
        "label": label,
        "model": model,
        "profile": profile.name if own is None else own.name,
        "technology": profile.technology,
        "precision": profile.precision if own is None else precisions,
        "own_precision": own is not None,
        "reuse": reuse,
        "against": against,
        "bits": bits,
        "student": student.to_json(),
        "baseline": None if theirs is None else theirs.to_json(),
        "ratio": compared,
        "partial": partial,
        "provenance": mine.provenance,
        "notes": list(mine.notes),
    }
