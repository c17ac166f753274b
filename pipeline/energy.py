"""What `energy.json` holds: counts of both networks, three models side by side, what flips, and where it breaks even.

`knarr energy FILE`: any graph or chip network on any inputs, against any ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from knarr.cli import output as progress
from knarr.cli.output import json_text, keep_apart, read_inputs
from knarr.deploy import DeployError, check, read_net
from knarr.deploy.violation import fatal
from knarr.export import ExportError, read
from knarr.export.graph.step import Stepper
from knarr.files import write_atomic
from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    OperationCounts,
    PriceError,
    Readout,
    count,
    count_onnx,
    encode,
    price,
)
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.energy import (
    EnergyEstimate,
    Options,
    Profile,
    WhatIf,
    break_even,
    compare_models,
    load_profile,
    ratio,
    what_if,
)
from knarr.hw_sim.energy import baseline as measure_baseline

DIGITAL, NEUROMORPHIC = "horowitz_fp32", ("loihi1_table", "loihi1_cal")
REUSE = 16.0
"""Times a word of an ANN is used once fetched: as in a 16 x 16 array of multipliers. An assumption, shown beside 1."""


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
    options: Options = field(
        default_factory=lambda: Options(reuse_weights=REUSE, reuse_inputs=REUSE)
    )
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
    other: OperationCounts | None = None,
    trades: Sequence[WhatIf] = (),
    trades_of: str = "",
    measured: dict[str, object] | None = None,
) -> dict[str, Any]:
    """Everything, as plain data.

    Args:
        student: the spiking network; what is priced.
        baseline: the network beside it.
        pricing: how.
        other: the student counted by the other policy for pools, where that differs.
        trades: runs with fewer steps or other thresholds.
        trades_of: which samples those are, in words.
        measured: of `Baseline.to_json`.

    Raises:
        CountError: something was not counted, and a part was not asked for.
        PriceError: prices that do not fit.
    """
    rows: list[dict[str, Any]] = []
    compared: dict[str, tuple[EnergyEstimate, EnergyEstimate]] = {}
    for model, profile in pricing.pairs():
        if model == "chip" and student.pooling == "float":
            continue  # a chip has its pools in its synapses
        for options in _variants(model, pricing.options, with_baseline=baseline is not None):
            row, pairs = _row(student, baseline, model, profile, options, pricing)
            rows.append(row)
            compared |= pairs
    if not rows:
        raise PriceError(
            "--pooling: 'float' has no chip model; use paper or memory, or pools folded"
        )
    first = rows[0]
    return {
        "student": {
            "counts": student.to_json(),
            "counts_other_pooling": None if other is None else other.to_json(),
            "energy": first["student"],
        },
        "baseline": None
        if baseline is None
        else {"counts": baseline.to_json(), "energy": first["baseline"]},
        "ratio": first["ratio"],
        "models": rows,
        "comparison": asdict(compare_models(list(compared.values()), list(compared)))
        if compared
        else None,
        "break_even": [] if baseline is None else _break_even(student, baseline, pricing),
        "trades": [one.to_json() for one in trades],
        "trades_of": trades_of,
        "measured": measured,
    }


def _variants(model: str, options: Options, *, with_baseline: bool) -> list[Options]:
    """Both readings of an active update; an ANN's memory with no reuse of a fetched word, and with some."""
    if model == "chip":
        return [options, replace(options, active="touched")]
    if model == "memory" and with_baseline:
        once = replace(options, reuse_weights=1.0, reuse_inputs=1.0)
        return [once] if options == once else [once, options]
    return [options]


def _row(
    student: OperationCounts,
    baseline: OperationCounts | None,
    model: str,
    profile: Profile,
    options: Options,
    pricing: Pricing,
) -> tuple[dict[str, Any], dict[str, tuple[EnergyEstimate, EnergyEstimate]]]:
    def priced(counts: OperationCounts, *, mine: bool = False) -> EnergyEstimate:
        mixed = model == "chip" and not mine  # no chip prices an ANN
        prices, by = (load_profile(DIGITAL), "paper") if mixed else (profile, model)
        return price(counts, prices, model=by, options=options, allow_partial=pricing.allow_partial)

    mine = priced(student, mine=True)
    row: dict[str, Any] = {
        "model": model,
        "profile": profile.name,
        "active": options.active if model == "chip" else None,
        "reuse": options.reuse_weights if model == "memory" and baseline is not None else None,
        "student": mine.to_json(),
        "baseline": None,
        "effective": None,
        "ratio": None,
        "ratio_effective": None,
        "mixed": False,
    }
    if baseline is None or (model == "chip" and not pricing.mix_technologies):
        return row, {}
    rivals = {"baseline": priced(baseline)}
    if baseline.effective is not None:
        rivals["effective"] = priced(baseline.skipping_zeros())
    row |= {side: estimate.to_json() for side, estimate in rivals.items()}
    row["mixed"] = model == "chip"
    if any(one.partial for one in (mine, *rivals.values())):  # a bound of one side ranks nothing
        return row, {}
    label = f"{model}, {profile.name}" + (
        f", reuse {options.reuse_weights:g}" if row["reuse"] else ""
    )
    pairs = {}
    for side, name in (("baseline", "ratio"), ("effective", "ratio_effective")):
        if side in rivals and rivals[side].nominal_pj > 0:
            row[name] = ratio(mine, rivals[side], mix_technologies=pricing.mix_technologies)
            pairs[label + ("" if side == "baseline" else ", zeros skipped")] = (mine, rivals[side])
    return row, {} if model == "chip" else pairs


def _break_even(
    student: OperationCounts, baseline: OperationCounts, pricing: Pricing
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    rivals = [("dense", baseline)]
    if baseline.effective is not None:
        rivals.append(("effective", baseline.skipping_zeros()))
    if student.refused or baseline.refused:
        return []  # no break-even of a part
    for model, profile in pricing.pairs():
        for against, rival in rivals if model != "chip" else []:
            limit = break_even(student, rival, profile, model=model, options=pricing.options)
            found.append(
                {"model": model, "profile": profile.name, "against": against, **limit.to_json()}
            )
    return found


TRADE_SAMPLES = 32
NOT_ASKED = "not asked for; --measure does it"
POOLED = ("AvgPool2d", "SumPool2d", "Scale")
"""Nodes that the two policies for pools count differently."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sources:
    """What is read.

    Args:
        student: .nir or .net file.
        data: .npy of (samples, timesteps, *features), or a run folder: its test set.
        labels: .npy of classes.
        baseline: .onnx file.
        baseline_data: .npy of its inputs, or these.
        dt_s: time step of a graph, seconds; what the file says when None.
        over_time, votes: how a graph's decision is read.
        pooling: "folded" or "float"; of a graph.
        choosing: samples and labels to try fewer steps and other thresholds on; the first of `data` when None.
        run: folder whose files are not to be written over.
    """

    student: Path
    data: Path
    labels: Path | None = None
    baseline: Path | None = None
    baseline_data: Path | Array | None = None
    dt_s: float | None = None
    over_time: str = "sum"
    votes: int = 1
    pooling: str = "folded"
    choosing: tuple[Array, Array] | None = None
    run: Path | None = None


def energy_files(
    sources: Sources, pricing: Pricing, *, measure: bool, out: Path | None, picture: Path | None
) -> dict[str, Any]:
    """Count, price, compare; write and draw where asked.

    Raises:
        ExportError, DeployError, ChipError: what is wrong with files, inputs or options.
    """
    _writable(sources, out, picture)
    if sources.baseline is None and (
        sources.baseline_data is not None or measure or pricing.mix_technologies
    ):
        raise ChipError("--baseline-data, --measure, --mix-tech: go with --baseline")
    if measure and sources.baseline_data is None:
        raise ChipError(
            "--measure: runs the baseline on its inputs; give them with --baseline-data"
        )
    pricing.pairs()  # refuses what cannot be priced before anything is run
    model, inputs, labels = _student(sources)
    rival_inputs = _rival_inputs(sources)
    rival = None if sources.baseline is None else count_onnx(sources.baseline, rival_inputs)
    progress.say(f"Counting {len(inputs)} samples of {inputs.shape[1]} steps")
    show = progress.counter("samples")
    chip = isinstance(model, ChipNetwork)
    dt_s = None if chip else _dt_s(sources, model)
    if not chip:
        _check_votes(sources, model, dt_s or 0.0)

    def counted(pooling: str) -> OperationCounts:
        return count(
            model, inputs, dt_s=dt_s, pooling=pooling, progress=lambda done: show(done, len(inputs))
        )

    student = counted(sources.pooling)
    other = None
    if not chip and any(row.operation in POOLED for row in student.ledger):
        other = counted("float" if sources.pooling == "folded" else "folded")
        other = other if other.layers != student.layers else None
    measured = None
    if sources.baseline is not None:
        progress.say("Baseline: floors" + (", and measuring; minutes" if measure else ""))
        measured = measure_baseline(
            sources.baseline, rival_inputs if measure else None, counts=rival
        ).to_json()
        if not measure:
            measured |= {"gpu_refused": NOT_ASKED, "cpu_refused": NOT_ASKED}
    trades, of = (
        ((), "") if student.refused else _trades(model, inputs, labels, dt_s, sources, pricing)
    )
    facts = energy_facts(
        student, rival, pricing, other=other, trades=trades, trades_of=of, measured=measured
    )
    if out is not None:
        write_atomic(out, (json_text(facts) + "\n").encode())
    if picture is not None:
        from knarr.pipeline.pictures.energy import png

        write_atomic(picture, png(facts))
    return facts


def _writable(sources: Sources, out: Path | None, picture: Path | None) -> None:
    """Refuse to write over what is read, over a run's files, or where nothing can be written."""
    read_from = [sources.student, sources.data, sources.labels, sources.baseline]
    if isinstance(sources.baseline_data, Path):
        read_from.append(sources.baseline_data)
    for option, path in (("--out", out), ("--picture", picture)):
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise ChipError(
                f"{option}: {path} is a folder, or lies in none; give a file in a folder that exists"
            )
    keep_apart(out, *read_from)
    keep_apart(picture, *read_from, out)
    runs = [
        path.resolve() for path in (sources.run, sources.data) if path is not None and path.is_dir()
    ]
    for option, path in (("--out", out), ("--picture", picture)):
        if path is None:
            continue
        inside = any(run in path.resolve().parents for run in runs)
        ours = path.name == "energy.json" or path.resolve().parent.name == "pictures"
        if inside and path.exists() and not ours:
            raise ChipError(f"{option}: {path} belongs to the run; give another name")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ChipError(f"--picture: {picture} is drawn as PNG; give a name that ends in .png")


def _check_votes(sources: Sources, graph: Any, dt_s: float) -> None:
    run = Stepper(graph, dt_s, 1, keep=False)
    outputs = prod(run.leaving[run.order.output])
    if outputs % sources.votes:
        raise ChipError(f"--votes: {sources.votes} per class do not divide {outputs} outputs")


def _student(sources: Sources) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    labels = None if sources.labels is None else read_inputs(sources.labels)
    if sources.data.is_dir():
        from knarr.pipeline import stages

        run = stages.reopen(sources.data)
        test = run.on_chip(run.data.test)
        data: np.ndarray[Any, Any] = test.chip_inputs(np.arange(len(test.labels)))
        labels = np.asarray(test.labels) if labels is None else labels
    else:
        data = read_inputs(sources.data)
    if sources.student.suffix == ".nir":
        model: Any = read(sources.student)
    else:
        model = read_net(sources.student)
        broken = fatal(check(model))
        if broken:
            raise DeployError(f"{sources.student}: not counted, no chip runs it: {broken[0]}")
        data = check_inputs(model.input, encode(model.input, data))
    if data.ndim < 2 or 0 in data.shape:
        raise ChipError(
            f"{sources.data}: shape {data.shape}, needs (samples, timesteps, ...) with at least one of each"
        )
    if labels is not None and (labels.shape != data.shape[:1] or labels.dtype.kind not in "iu"):
        raise ChipError(
            f"labels: {labels.dtype} {labels.shape} for {len(data)} samples; give one integer each"
        )
    return model, data, labels


def _rival_inputs(sources: Sources) -> np.ndarray[Any, Any] | None:
    if sources.baseline_data is None:
        return None
    given = sources.baseline_data
    if isinstance(given, Path):
        given = read_inputs(given)
    return np.asarray(given, dtype=np.float32) if given.dtype.kind in "biuf" else given


def _dt_s(sources: Sources, graph: Any) -> float:
    step = sources.dt_s if sources.dt_s is not None else graph.metadata.get("dt_s")
    if not isinstance(step, (float, np.floating)):
        raise ExportError(f"{sources.student}: names no time step; give --dt in seconds")
    return float(step)


def _trades(
    model: Any,
    inputs: Array,
    labels: Array | None,
    dt_s: float | None,
    sources: Sources,
    pricing: Pricing,
) -> tuple[Any, str]:
    energy_model, profile = pricing.pairs()[0]
    if sources.pooling == "float":
        return (), ""
    of = f"the first {min(len(inputs), TRADE_SAMPLES)} samples"
    if sources.choosing is not None:
        (inputs, labels), of = sources.choosing, f"{len(sources.choosing[0])} training samples"
    progress.say("Running with fewer steps and other thresholds")
    return what_if(
        model,
        np.asarray(inputs[:TRADE_SAMPLES]),
        profile,
        dt_s=dt_s,
        energy_model=energy_model,
        options=pricing.options,
        labels=None if labels is None else labels[:TRADE_SAMPLES],
        readout=Readout("spikes", sources.over_time, sources.votes),  # type: ignore[arg-type]
        progress=progress.counter("runs"),
    ), of
