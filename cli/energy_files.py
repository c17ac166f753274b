"""`knarr energy FILE`: any graph or chip network on any inputs, against any ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
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
from knarr.hw_sim import ChipError, ChipNetwork, OperationCounts, Readout, count, count_onnx, encode
from knarr.hw_sim.energy import baseline as measure_baseline
from knarr.hw_sim.energy import trade
from knarr.hw_sim.inputs import check_inputs
from knarr.train.fit import write_atomic

TRADE_SAMPLES = 32


@dataclass(frozen=True)
class Sources:
    """What is read.

    Args:
        student: .nir or .net file.
        data: .npy of (samples, timesteps, *features), or a run folder: its test set.
        labels: .npy of classes.
        baseline: .onnx file.
        baseline_data: .npy of its inputs.
        dt_s: time step of a graph that names none, seconds.
        over_time, votes: how a graph's decision is read.
    """

    student: Path
    data: Path
    labels: Path | None = None
    baseline: Path | None = None
    baseline_data: Path | None = None
    dt_s: float | None = None
    over_time: str = "sum"
    votes: int = 1


def energy_files(
    sources: Sources, pricing: Pricing, *, measure: bool, out: Path | None, picture: Path | None
) -> dict[str, Any]:
    """Count, price, compare; write and draw where asked.

    Raises:
        ExportError, DeployError, ChipError: what is wrong with files, inputs or options.
    """
    read_from = (sources.student, sources.data, sources.labels, sources.baseline, sources.baseline_data)
    keep_apart(out, *read_from)
    keep_apart(picture, *read_from, out)
    if sources.baseline is None and (sources.baseline_data is not None or measure):
        raise ChipError("--baseline-data, --measure: go with --baseline")
    pricing.pairs()  # refuses what cannot be priced before anything is run
    model, inputs, labels = _student(sources)
    rival_inputs = _rival_inputs(sources)
    progress.say(f"Counting {len(inputs)} samples of {inputs.shape[1]} steps")
    show = progress.counter("samples")
    dt_s = None if isinstance(model, ChipNetwork) else _dt_s(sources, model)

    def counted(pooling: str) -> OperationCounts:
        return count(model, inputs, dt_s=dt_s, pooling=pooling, progress=lambda done: show(done, len(inputs)))

    student = counted("folded")
    as_float = None
    if not isinstance(model, ChipNetwork):
        other = counted("float")
        as_float = other if other.layers != student.layers else None
    rival = None if sources.baseline is None else count_onnx(sources.baseline, rival_inputs)
    measured = None
    if sources.baseline is not None:
        progress.say("Baseline: floors" + (", and measuring; minutes" if measure else ""))
        measured = measure_baseline(
            sources.baseline, rival_inputs if measure else None, counts=rival
        ).to_json()
    trades = () if student.refused else _trades(model, inputs, labels, dt_s, sources, pricing)
    facts = energy_facts(student, rival, pricing, as_float=as_float, trades=trades, measured=measured)
    if out is not None:
        write_atomic(out, (json_text(facts) + "\n").encode())
    if picture is not None:
        from knarr.cli.energy_picture import png

        write_atomic(picture, png(facts))
    return facts


def _student(sources: Sources) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    labels = None if sources.labels is None else read_inputs(sources.labels)
    if sources.data.is_dir():
        from knarr.cli import stages

        test = stages.reopen(sources.data).data.test
        data: np.ndarray[Any, Any] = test.spikes(np.arange(len(test.labels)))
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
    given = read_inputs(sources.baseline_data)
    return np.asarray(given, dtype=np.float32) if given.dtype.kind in "biuf" else given


def _dt_s(sources: Sources, graph: Any) -> float:
    step = sources.dt_s if sources.dt_s is not None else graph.metadata.get("dt_s")
    if not isinstance(step, (float, np.floating)):
        raise ExportError(f"{sources.student}: names no time step; give --dt in seconds")
    return float(step)


def _trades(
    model: Any,
    inputs: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any] | None,
    dt_s: float | None,
    sources: Sources,
    pricing: Pricing,
) -> Any:
    energy_model, profile = pricing.pairs()[0]
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
    )
