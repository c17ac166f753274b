"""What `energy.json` holds: counts of both networks, three models side by side, what flips, and where it breaks even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from knarr.hw_sim import CountError, OperationCounts, PriceError, price
from knarr.hw_sim.energy import (
    EnergyEstimate,
    Options,
    Profile,
    Trade,
    break_even,
    compare_models,
    load_profile,
    ratio,
)

DIGITAL, NEUROMORPHIC = "horowitz_fp32", ("loihi1_table", "loihi1_cal")


@dataclass(frozen=True)
class Pricing:
    """How counts are priced.

    Args:
        profile: name or .toml file; None: table values at 45 nm, and both sets of Loihi 1.
        model: "paper", "memory" or "chip"; None: all that the profile has prices for.
        options: of the models.
        mix_technologies: ratios across technologies too, labelled.
        allow_partial: price what was counted where something was not.
    """

    profile: str | None = None
    model: str | None = None
    options: Options = field(default_factory=Options)
    mix_technologies: bool = False
    allow_partial: bool = False

    def pairs(self) -> list[tuple[str, Profile]]:
        """Models and the profiles they use.

        Raises:
            PriceError: a profile that prices nothing, or does not go with the model.
        """
        names = [self.profile] if self.profile is not None else [DIGITAL, *NEUROMORPHIC]
        found: list[tuple[str, Profile]] = []
        for name in names:
            loaded = load_profile(name)
            if loaded.kind == "reference":
                loaded.record("add")  # says what a reference is, and what to choose instead
            models = ("chip",) if loaded.kind == "neuromorphic" else ("paper", "memory")
            if loaded.kind == "digital" and not any(one.term == "sram_8k" for one in loaded.prices):
                models = ("paper",)
            found += [(model, loaded) for model in models if self.model in (None, model)]
        if not found:
            raise PriceError(
                f"--model: '{self.model}' finds no prices in '{self.profile or 'the default profiles'}'; paper and memory need "
                "a digital profile, chip a neuromorphic one"
            )
        return found


def energy_facts(
    student: OperationCounts,
    baseline: OperationCounts | None,
    pricing: Pricing,
    *,
    as_float: OperationCounts | None = None,
    trades: Sequence[Trade] = (),
    measured: dict[str, object] | None = None,
) -> dict[str, Any]:
    """Everything, as plain data.

    Args:
        student: the spiking network, pools folded.
        baseline: the network beside it.
        pricing: how.
        as_float: the student counted with pools as float, where that differs.
        trades: runs with fewer steps or other thresholds.
        measured: of `Baseline.to_json`.

    Raises:
        CountError: something was not counted, and a part was not asked for.
        PriceError: prices that do not fit.
    """
    rows, compared = [], []
    for model, profile in pricing.pairs():
        variants = [pricing.options]
        if model == "chip":
            variants.append(Options(**{**asdict(pricing.options), "active": "touched"}))
        for options in variants:
            row, pair = _row(student, baseline, model, profile, options, pricing)
            rows.append(row)
            compared += [] if pair is None else [pair]
    first = rows[0]
    return {
        "student": {
            "counts": student.to_json(),
            "counts_float": None if as_float is None else as_float.to_json(),
            "energy": first["student"],
        },
        "baseline": None if baseline is None else {"counts": baseline.to_json(), "energy": first["baseline"]},
        "ratio": first["ratio"],
        "models": rows,
        "comparison": asdict(compare_models(compared)) if compared else None,
        "break_even": [] if baseline is None else _break_even(student, baseline, pricing),
        "trades": [one.to_json() for one in trades],
        "measured": measured,
    }


def _row(
    student: OperationCounts,
    baseline: OperationCounts | None,
    model: str,
    profile: Profile,
    options: Options,
    pricing: Pricing,
) -> tuple[dict[str, Any], tuple[EnergyEstimate, EnergyEstimate] | None]:
    def priced(counts: OperationCounts, model: str, profile: Profile) -> EnergyEstimate:
        return price(counts, profile, model=model, options=options, allow_partial=pricing.allow_partial)

    mine = priced(student, model, profile)
    row: dict[str, Any] = {
        "model": model,
        "profile": profile.name,
        "active": options.active if model == "chip" else None,
        "student": mine.to_json(),
        "baseline": None,
        "effective": None,
        "ratio": None,
        "mixed": False,
    }
    if baseline is None:
        return row, None
    if model == "chip" and not pricing.mix_technologies:
        return row, None
    theirs = (
        priced(baseline, model, profile)
        if model != "chip"
        else priced(baseline, "paper", load_profile(DIGITAL))
    )
    row["baseline"] = theirs.to_json()
    if baseline.effective is not None:
        skipping = baseline.skipping_zeros()
        row["effective"] = (
            priced(skipping, model, profile)
            if model != "chip"
            else priced(skipping, "paper", load_profile(DIGITAL))
        ).to_json()
    row["mixed"] = model == "chip"
    if mine.partial or theirs.partial:  # a bound of one side ranks nothing
        return row, None
    row["ratio"] = ratio(mine, theirs, mix_technologies=pricing.mix_technologies)
    return row, None if model == "chip" else (mine, theirs)


def _break_even(
    student: OperationCounts, baseline: OperationCounts, pricing: Pricing
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    rivals = [("dense", baseline)]
    if baseline.effective is not None:
        rivals.append(("effective", baseline.skipping_zeros()))
    for model, profile in pricing.pairs():
        for against, rival in rivals if model != "chip" else []:
            try:
                limit = break_even(student, rival, profile, model=model, options=pricing.options)
            except CountError:
                if not pricing.allow_partial:
                    raise
                continue  # no break-even of a part
            found.append({"model": model, "profile": profile.name, "against": against, **limit.to_json()})
    return found
