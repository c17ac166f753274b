"""The facts of energy.json: counts, places and prices of both networks, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

import knarr
from knarr.hw_sim import ChipNetwork, OperationCounts, PriceError, Readout, count
from knarr.hw_sim.energy import (
    Family,
    PlaceEnergy,
    PlaceOptions,
    Traffic,
    WhatIf,
    load_prices,
    places_of,
    traffic_of,
    what_if,
)
from knarr.hw_sim.energy.prices import GRADES
from knarr.pipeline.energy_report.accuracy import accuracy_of_files
from knarr.pipeline.energy_report.check import checks
from knarr.pipeline.energy_report.footprint import summary
from knarr.pipeline.energy_report.pricing import LITERATURE, Pricing
from knarr.pipeline.energy_report.same_technology import literature_formula, same_technology
from knarr.pipeline.energy_report.schema import SCHEMA
from knarr.pipeline.energy_report.verdict import CHIPS, verdict
from knarr.pipeline.energy_report.why import Cores, break_evens, cores_json, levers, shares
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore

if TYPE_CHECKING:
    import nir

TRADE_SAMPLES: Final = 32
TRAFFIC_SAMPLES: Final = 16
"""Samples on which traffic between cores is counted; ratios of it price the others."""
PLACED_ON: Final = {"Loihi 1": "loihi1", "Loihi 2": "loihi2"}
CHIP_WEIGHT_BITS: Final = 8
"""Bits of a weight in a chip's memory, whatever a network uses of them."""
NOT_ASKED: Final = "not asked for; --measure does it"
POOLED: Final = ("AvgPool2d", "SumPool2d", "Scale")
"""Nodes that the two policies for pools count differently."""
NEVER_INCLUDED: Final = (
    "training, data capture and the display of results",
    "the supply and cooling around chips and GPUs",
)
Array = npt.NDArray[Any]


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
    traffic: Mapping[str, Traffic] | None = None,
    cores: Mapping[str, Cores] | None = None,
    accuracy: dict[str, Any] | None = None,
    sha256: Mapping[str, str] | None = None,
    weight_bits: int | None = None,
) -> dict[str, Any]:
    """Price counts everywhere, compare them and say who is cheaper, as plain data.

    Args:
        student: Counts of the spiking network; what is priced.
        baseline: Counts of the network beside it.
        pricing: Prices and models.
        other: The student counted by the other policy for pools, where that differs.
        trades: Runs with fewer steps or other thresholds.
        trades_of: The samples of those runs, in words.
        measured: What `Baseline.to_json` gives.
        places: What `places_of` gives.
        traffic: Traffic of the student on the cores of each chip, by its title.
        cores: Cores in use, likewise.
        accuracy: What `accuracy_of` gives; None where nobody knows.
        sha256: Hashes of what was read, by name.
        weight_bits: Of the student, where it is integers.

    Returns:
        The content of energy.json, as `knarr.pipeline.energy_report.schema` describes it.

    Raises:
        CountError: Something was not counted, and a part was not asked for.
        PriceError: Prices that do not fit.
    """
    rows = same_technology(student, baseline, pricing)
    if not rows:
        raise PriceError(
            "--pooling: 'float' has no chip model; use paper or memory, or pools folded"
        )
    by_name = {one.place: one for one in places}
    of_student = [by_name[name] for name in CHIPS if name in by_name]
    known = [one for one in of_student if one.terms["total"].nominal is not None]
    place = next(iter([*known, *of_student]), None)
    limits = break_evens(student, baseline, pricing)
    formula = literature_formula(student, baseline, pricing)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "knarr": knarr.__version__,
        "sha256": dict(sha256 or {}),
        "verdict": None,
        "accuracy": accuracy,
        "places": {one.place: one.to_json() for one in places},
        "cores": cores_json(cores or {}),
        "same_technology": rows,
        "counts": {
            "summary": summary(student, baseline, traffic or {}, weight_bits),
            "student": student.to_json(),
            "student_other_pooling": None if other is None else other.to_json(),
            "baseline": None if baseline is None else baseline.to_json(),
            "traffic": {title: one.to_json() for title, one in (traffic or {}).items()},
        },
        "why": {
            "place": None if place is None else place.place,
            "shares": shares(place),
            "levers": levers(by_name, place, limits, cores or {}),
            "break_even": limits,
            "trades": [one.to_json() for one in trades],
            "trades_of": trades_of,
        },
        "check": checks(),
        "not_included": _not_included(places),
        "provenance": _provenance(places, rows, formula),
        "literature_formula": formula,
        "measured": measured,
    }
    return facts | {"verdict": verdict(facts)}


def _not_included(places: Sequence[PlaceEnergy]) -> list[str]:
    found: dict[str, list[str]] = {}
    for one in places:
        for what in one.not_included:
            found.setdefault(what, []).append(one.place)
    return [*(f"{what} ({', '.join(where)})" for what, where in found.items()), *NEVER_INCLUDED]


def _provenance(
    places: Sequence[PlaceEnergy], rows: Sequence[dict[str, Any]], formula: dict[str, Any]
) -> dict[str, Any]:
    sources = {one.place: list(one.sources) for one in places}
    lines = list(dict.fromkeys([*(row["provenance"] for row in rows), formula["provenance"]]))
    grades = [one.grade for one in places]
    for name in {*(row["profile"] for row in rows), LITERATURE}:
        if not name.endswith(".toml"):
            prices = load_prices(name)
            used = prices.profiles.values() if isinstance(prices, Family) else [prices]
            grades += [record.grade for profile in used for record in profile.prices]
    return {
        "worst_grade": max(grades, key=GRADES.index) if grades else None,
        "places": sources,
        "prices": lines,
    }


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
    accuracy: dict[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
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
        accuracy: How right both sides are, where that is known.
        files: What was read, by name; energy.json has their hashes.
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
    hashes = {name: _sha256(path) for name, path in (files or {}).items()}
    for name, array in (("inputs", inputs), ("baseline inputs", baseline_inputs)):
        if array is not None:
            hashes[name] = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
    readout = Readout("spikes", over_time, votes)  # type: ignore[arg-type]
    if accuracy is None and labels is not None:
        accuracy = accuracy_of_files(
            model,
            inputs,
            labels,
            dt_s=dt_s,
            readout=readout,
            baseline=baseline,
            baseline_inputs=baseline_inputs,
        )
    traffic, cores, unplaced = on_cores(model, inputs[:TRAFFIC_SAMPLES])
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
            readout=readout,
            progress=counter(on_progress, "runs"),
        )
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
        traffic=traffic,
        cores=cores,
        accuracy=accuracy,
        sha256=hashes,
        weight_bits=CHIP_WEIGHT_BITS if chip else None,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def on_cores(
    model: nir.NIRGraph | ChipNetwork, inputs: Array
) -> tuple[Mapping[str, Traffic], Mapping[str, Cores], Mapping[str, str]]:
    """Place a network on each chip and count the traffic between its cores.

    Args:
        model: A NIR graph, which is on no cores, or a chip network.
        inputs: (samples, timesteps, *features), a few.

    Returns:
        By the chip's title: traffic, cores in use, and why there are none where they are missing.
    """
    from knarr.deploy import core_mapping, place

    if not isinstance(model, ChipNetwork):
        why = "a graph is on no cores; price the .net file that knarr deploy makes of it"
        return {}, {}, dict.fromkeys(PLACED_ON, why)
    found, cores, missing = {}, {}, {}
    for title, name in PLACED_ON.items():
        placement = place(model, name)
        if placement.fits:
            found[title] = traffic_of(model, inputs, core_mapping(model, placement))
            taken = placement.utilisation[0]
            cores[title] = Cores(taken.used, taken.available or taken.used, placement.chips)
        else:
            missing[title] = "does not fit: " + "; ".join(placement.problems)
    return found, cores, missing


def outputs_of(graph: nir.NIRGraph, dt_s: float) -> int:
    """Return how many outputs a graph has."""
    from knarr.export.graph.step import Stepper

    stepper = Stepper(graph, dt_s, 1, keep=False)
    return prod(stepper.leaving[stepper.order.output])
