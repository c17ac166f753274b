"""Facts of energy.json: counts of both networks, three models side by side, what flips, and where
it breaks even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from knarr.hw_sim import (
    ChipNetwork,
    OperationCounts,
    PriceError,
    Readout,
    count,
    price,
)
from knarr.hw_sim.energy import (
    EnergyEstimate,
    Options,
    PlaceEnergy,
    PlaceOptions,
    Profile,
    Traffic,
    WhatIf,
    break_even,
    compare_models,
    load_profile,
    places_of,
    ratio,
    traffic_of,
    what_if,
)
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore

if TYPE_CHECKING:
    import nir

DIGITAL: Final = "horowitz_fp32"
NEUROMORPHIC: Final = ("loihi1_table", "loihi1_cal")
REUSE: Final = 16.0
"""Times a word of an ANN is used once fetched: as in a 16 x 16 array of multipliers. An assumption,
shown beside 1.
"""
TRADE_SAMPLES: Final = 32
TRAFFIC_SAMPLES: Final = 16
"""Samples on which traffic between cores is counted; ratios of it price the others."""
CHIPS: Final = {"Loihi 1": "loihi1", "Loihi 2": "loihi2"}
NOT_ASKED: Final = "not asked for; --measure does it"
POOLED: Final = ("AvgPool2d", "SumPool2d", "Scale")
"""Nodes that the two policies for pools count differently."""
Array = npt.NDArray[Any]
Pairs = dict[str, tuple[EnergyEstimate, EnergyEstimate]]
"""Name of a comparison -> energies of the student and of its rival, of one technology."""


@dataclass(frozen=True)
class Pricing:
    """Prices and models to turn counts into energy with.

    Attributes:
        profile: Name or .toml file; None: table values at 45 nm, and both sets of Loihi 1.
        model: "paper", "memory" or "chip"; None: all that the profile has prices for.
        options: Options of the models.
        mix_technologies: Whether to take ratios across technologies too, labelled.
        allow_partial: Whether to price what was counted where something was not.
    """

    profile: str | None = None
    model: str | None = None
    options: Options = field(
        default_factory=lambda: Options(reuse_weights=REUSE, reuse_inputs=REUSE)
    )
    mix_technologies: bool = False
    allow_partial: bool = False

    def pairs(self) -> list[tuple[str, Profile]]:
        """Return the models and the profiles that they use.

        Raises:
            PriceError: A profile that prices nothing, or does not go with the model.
        """
        names = [self.profile] if self.profile is not None else [DIGITAL, *NEUROMORPHIC]
        found: list[tuple[str, Profile]] = []
        for name in names:
            profile = load_profile(name)
            models = ["chip"] if profile.kind == "neuromorphic" else ["paper", "memory"]
            if profile.kind == "reference":
                profile.record("add")  # says what a reference is, and what to choose instead
            # Of a table of operations alone nobody knows what a memory costs.
            if profile.kind == "digital" and all(one.term != "sram_8k" for one in profile.prices):
                models = ["paper"]
            found += [(model, profile) for model in models if self.model in (None, model)]
        if not found:
            where = self.profile or "the default profiles"
            raise PriceError(
                f"--model: '{self.model}' finds no prices in '{where}'; paper and memory need "
                "a digital profile, chip a neuromorphic one"
            )
        return found

    def price(self, counts: OperationCounts, model: str, profile: Profile) -> EnergyEstimate:
        """Price counts with these options, in part where that is allowed."""
        allow = self.allow_partial
        return price(counts, profile, model=model, options=self.options, allow_partial=allow)


def energy_facts(
    student: OperationCounts,
    baseline: OperationCounts | None,
    pricing: Pricing,
    *,
    other: OperationCounts | None = None,
    trades: Sequence[WhatIf] = (),
    trades_of: str = "",
    measured: dict[str, object] | None = None,
    places: Sequence[PlaceEnergy] = (),
) -> dict[str, Any]:
    """Price counts by all models and compare them, as plain data.

    Args:
        student: Counts of the spiking network; what is priced.
        baseline: Counts of the network beside it.
        pricing: Prices and models.
        other: The student counted by the other policy for pools, where that differs.
        trades: Runs with fewer steps or other thresholds.
        trades_of: The samples of those runs, in words.
        measured: What `Baseline.to_json` gives.
        places: What `places_of` gives.

    Raises:
        CountError: Something was not counted, and a part was not asked for.
        PriceError: Prices that do not fit.
    """
    rows: list[dict[str, Any]] = []
    compared: Pairs = {}
    for model, profile in pricing.pairs():
        if model == "chip" and student.pooling == "float":
            continue  # a chip has its pools in its synapses
        for options in _variants(model, pricing.options, with_baseline=baseline is not None):
            row, pairs = _row(student, baseline, model, profile, replace(pricing, options=options))
            rows.append(row)
            compared |= pairs
    if not rows:
        raise PriceError(
            "--pooling: 'float' has no chip model; use paper or memory, or pools folded"
        )
    first, comparison = rows[0], None
    if compared:
        comparison = asdict(compare_models(compared))
    return {
        "student": {
            "counts": student.to_json(),
            "counts_other_pooling": None if other is None else other.to_json(),
            "energy": first["student"],
        },
        "baseline": None
        if baseline is None
        else {"counts": baseline.to_json(), "energy": first["baseline"]},
        "places": {one.place: one.to_json() for one in places},
        "ratio": first["ratio"],
        "models": rows,
        "comparison": comparison,
        "break_even": [] if baseline is None else _break_even(student, baseline, pricing),
        "trades": [one.to_json() for one in trades],
        "trades_of": trades_of,
        "measured": measured,
    }


def _variants(model: str, options: Options, *, with_baseline: bool) -> list[Options]:
    """Return both readings of an active update; an ANN's memory with no reuse of a fetched word,
    and with some.
    """
    if model == "chip":
        return [options, replace(options, active="touched")]
    if model == "memory" and with_baseline:
        once = replace(options, reuse_weights=1.0, reuse_inputs=1.0)
        return [once] if options == once else [once, options]
    return [options]


def _rivals(baseline: OperationCounts) -> dict[str, OperationCounts]:
    """Return the baseline, and where its zeros were counted the same without them."""
    if baseline.effective is None:
        return {"baseline": baseline}
    return {"baseline": baseline, "effective": baseline.skipping_zeros()}


def _row(
    student: OperationCounts,
    baseline: OperationCounts | None,
    model: str,
    profile: Profile,
    pricing: Pricing,
) -> tuple[dict[str, Any], Pairs]:
    """Return one model's row, and the comparisons of it that rank something."""
    chip, options = model == "chip", pricing.options
    mine = pricing.price(student, model, profile)
    row: dict[str, Any] = {
        "model": model,
        "profile": profile.name,
        "active": options.active if chip else None,
        "reuse": options.reuse_weights if model == "memory" and baseline is not None else None,
        "student": mine.to_json(),
        "baseline": None,
        "effective": None,
        "ratio": None,
        "ratio_effective": None,
        "mixed": False,
    }
    if baseline is None or (chip and not pricing.mix_technologies):
        return row, {}
    # No chip prices an ANN, so that its rival is priced at 45 nm.
    theirs = ("paper", load_profile(DIGITAL)) if chip else (model, profile)
    rivals = {side: pricing.price(one, *theirs) for side, one in _rivals(baseline).items()}
    row |= {side: estimate.to_json() for side, estimate in rivals.items()}
    row["mixed"] = chip
    if mine.partial or any(one.partial for one in rivals.values()):
        return row, {}  # a bound of one side ranks nothing
    label = f"{model}, {profile.name}"
    if row["reuse"]:
        label += f", reuse {options.reuse_weights:g}"
    pairs = {}
    for side, rival in rivals.items():
        if rival.nominal_pj > 0:
            name = "ratio" if side == "baseline" else "ratio_effective"
            row[name] = ratio(mine, rival, mix_technologies=pricing.mix_technologies)
            pairs[label + ("" if side == "baseline" else ", zeros skipped")] = (mine, rival)
    return row, {} if chip else pairs


def _break_even(
    student: OperationCounts, baseline: OperationCounts, pricing: Pricing
) -> list[dict[str, Any]]:
    if student.refused or baseline.refused:
        return []  # no break-even of a part
    found = []
    names = {"baseline": "dense", "effective": "effective"}
    for model, profile in pricing.pairs():
        for side, rival in _rivals(baseline).items() if model != "chip" else ():
            limit = break_even(student, rival, profile, model=model, options=pricing.options)
            head = {"model": model, "profile": profile.name, "against": names[side]}
            found.append({**head, **limit.to_json()})
    return found


def energy_of(
    model: nir.NIRGraph | ChipNetwork,
    inputs: Array,
    pricing: Pricing,
    *,
    labels: Array | None = None,
    counts: OperationCounts | None = None,
    baseline: Path | None = None,
    baseline_inputs: Array | None = None,
    baseline_shapes: Mapping[str, tuple[int, ...]] | None = None,
    baseline_batch_axis: int | None = None,
    dt_s: float | None = None,
    over_time: str = "sum",
    votes: int = 1,
    pooling: str = "folded",
    choosing: tuple[Array, Array | None] | None = None,
    measure: bool = False,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Count an inference of any graph or chip network, price it and compare it with a baseline.

    Args:
        model: A NIR graph or a chip network.
        inputs: (samples, timesteps, *features); integers of the chip for a chip network.
        pricing: Prices and models.
        labels: (samples,) classes; None counts no accuracy.
        counts: Operations of `model` on `inputs`; counted when left out.
        baseline: An .onnx file.
        baseline_inputs: Its inputs, whose zeros are counted; needed to measure.
        baseline_shapes, baseline_batch_axis: `input_shapes` and `batch_axis` of `count_onnx`.
        dt_s: Time step of a graph, seconds.
        over_time: How a graph's outputs of all steps become a score.
        votes: Neighbouring outputs per class of a graph.
        pooling: "folded" into synapses or "float", of a graph.
        choosing: Samples and labels to try fewer steps and other thresholds on; the first of
            `inputs` when None.
        measure: Whether to measure the baseline on this machine.
        on_progress: Called with the progress.

    Returns:
        What `energy_facts` gives.
    """
    rival = None
    if baseline is not None:
        from knarr.hw_sim import count_onnx
        from knarr.hw_sim.energy.baseline import baseline as measure_baseline

        # First, for a file that cannot be counted is found in seconds.
        rival = count_onnx(
            baseline,
            baseline_inputs,
            input_shapes=baseline_shapes,
            batch_axis=baseline_batch_axis,
        )
    on_progress(Progress(f"Counting {len(inputs)} samples of {inputs.shape[1]} steps"))
    show = counter(on_progress, "samples")

    def counted(policy: str) -> OperationCounts:
        return count(
            model, inputs, dt_s=dt_s, pooling=policy, progress=lambda done: show(done, len(inputs))
        )

    student = counted(pooling) if counts is None else counts
    other = None
    chip = isinstance(model, ChipNetwork)
    # Only a graph with pools is counted by both policies.
    if not chip and any(row.operation in POOLED for row in student.ledger):
        other = counted("float" if pooling == "folded" else "folded")
        other = other if other.layers != student.layers else None
    measured = found = None
    if baseline is not None:
        on_progress(Progress("Baseline: floors" + (", and measuring; minutes" if measure else "")))
        found = measure_baseline(baseline, baseline_inputs if measure else None, counts=rival)
        measured = found.to_json()
        if not measure:
            measured |= {"gpu_refused": NOT_ASKED, "cpu_refused": NOT_ASKED}
    trades: Sequence[WhatIf] = ()
    trades_of = ""
    # A network that was counted in part has no price to compare with.
    if not student.refused and pooling != "float":
        trades_of = f"the first {min(len(inputs), TRADE_SAMPLES)} samples"
        if choosing is not None:
            inputs, labels = choosing
            trades_of = f"{len(inputs)} training samples"
        on_progress(Progress("Running with fewer steps and other thresholds"))
        energy_model, profile = pricing.pairs()[0]
        trades = what_if(
            model,
            np.asarray(inputs[:TRADE_SAMPLES]),
            profile,
            dt_s=dt_s,
            energy_model=energy_model,
            options=pricing.options,
            labels=None if labels is None else labels[:TRADE_SAMPLES],
            readout=Readout("spikes", over_time, votes),  # type: ignore[arg-type]
            progress=counter(on_progress, "runs"),
        )
    traffic, unplaced = _traffic(model, inputs[:TRAFFIC_SAMPLES])
    options = PlaceOptions(allow_partial=pricing.allow_partial)
    return energy_facts(
        student,
        rival,
        pricing,
        other=other,
        trades=trades,
        trades_of=trades_of,
        measured=measured,
        places=places_of(student, traffic, rival, found, options, unplaced=unplaced),
    )


def _traffic(
    model: nir.NIRGraph | ChipNetwork, inputs: Array
) -> tuple[Mapping[str, Traffic], Mapping[str, str]]:
    """Return the traffic on each chip by its title, and why there is none where it is missing."""
    from knarr.deploy import core_mapping, place

    if not isinstance(model, ChipNetwork):
        why = "a graph is on no cores; price the .net file that knarr deploy makes of it"
        return {}, dict.fromkeys(CHIPS, why)
    found, missing = {}, {}
    for title, name in CHIPS.items():
        placement = place(model, name)
        if placement.fits:
            found[title] = traffic_of(model, inputs, core_mapping(model, placement))
        else:
            missing[title] = "does not fit: " + "; ".join(placement.problems)
    return found, missing


def outputs_of(graph: nir.NIRGraph, dt_s: float) -> int:
    """Return how many outputs a graph has."""
    from knarr.export.graph.step import Stepper

    stepper = Stepper(graph, dt_s, 1, keep=False)
    return prod(stepper.leaving[stepper.order.output])
