"""`knarr energy FILE`: any graph or chip network on any inputs, against any ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from knarr.cli import progress
from knarr.cli.energy_facts import Pricing, energy_facts
from knarr.cli.output import json_text
from knarr.cli.tools import keep_apart, read_inputs
from knarr.deploy import DeployError, check, read_net
from knarr.deploy.violation import fatal
from knarr.export import ExportError, read
from knarr.export.step import Stepper
from knarr.hw_sim import ChipError, ChipNetwork, OperationCounts, Readout, count, count_onnx, encode
from knarr.hw_sim.energy import baseline as measure_baseline
from knarr.hw_sim.energy import trade
from knarr.hw_sim.inputs import check_inputs
from knarr.train.fit_files import write_atomic

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
        raise ChipError("--measure: runs the baseline on its inputs; give them with --baseline-data")
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
        return count(model, inputs, dt_s=dt_s, pooling=pooling, progress=lambda done: show(done, len(inputs)))

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
    trades, of = ((), "") if student.refused else _trades(model, inputs, labels, dt_s, sources, pricing)
    facts = energy_facts(student, rival, pricing, other=other, trades=trades, trades_of=of, measured=measured)
    if out is not None:
        write_atomic(out, (json_text(facts) + "\n").encode())
    if picture is not None:
        from knarr.cli.energy_picture import png

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
    runs = [path.resolve() for path in (sources.run, sources.data) if path is not None and path.is_dir()]
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
        from knarr.cli import stages

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
    return trade(
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
