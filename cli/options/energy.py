"""The verb that says what an inference costs."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import BAD_INPUT, JsonOption, LabelsOption, OverTime, app, fail


class Pooling(str, Enum):
    """What becomes of pools."""

    folded = "folded"
    float = "float"


class EnergyModel(str, Enum):
    """How counts become joules."""

    paper = "paper"
    memory = "memory"
    chip = "chip"


@app.command(
    epilog="Example: knarr energy student.nir --data spikes.npy --baseline teacher.onnx --picture energy.png; "
    "knarr energy runs/nmnist; knarr energy runs/nmnist --profile horowitz_int8"
)
def energy(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help="Run folder, a .nir or a .net file.", metavar="RUN|FILE.nir|FILE.net"),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help=".npy of (samples, timesteps, *features), or a run folder (files)."
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="ONNX file to compare with (files).")
    ] = None,
    baseline_data: Annotated[
        Path | None,
        typer.Option(
            "--baseline-data", help=".npy of its inputs: zeros skipped are counted too (files)."
        ),
    ] = None,
    labels: LabelsOption = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Prices: a name, or a .toml file; 45 nm and Loihi 1 when left out."
        ),
    ] = None,
    model: Annotated[
        EnergyModel | None,
        typer.Option("--model", help="One model; all that have prices when left out."),
    ] = None,
    dt_s: Annotated[
        float | None,
        typer.Option("--dt", help="Time step of a .nir file, seconds; its own when left out."),
    ] = None,
    over_time: Annotated[
        OverTime, typer.Option("--over-time", help="How a .nir file's output is decided by.")
    ] = OverTime.sum,
    votes: Annotated[
        int, typer.Option("--votes", help="Outputs per class of a .nir file.", min=1)
    ] = 1,
    pooling: Annotated[
        Pooling,
        typer.Option(
            "--pooling", help="Of a .nir file: pools folded into synapses, or as they are."
        ),
    ] = Pooling.folded,
    word_bits: Annotated[
        int | None,
        typer.Option(
            "--word-bits", help="In memory; the precision's when left out (memory).", min=1, max=64
        ),
    ] = None,
    reuse: Annotated[
        float | None,
        typer.Option(
            "--reuse",
            help="Times a fetched word of the baseline is used, beside 1 (memory).",
            min=1,
        ),
    ] = None,
    on_chip_bytes: Annotated[
        float | None,
        typer.Option("--on-chip-bytes", help="Larger buffers lie in DRAM (memory).", min=0),
    ] = None,
    hops: Annotated[
        float | None,
        typer.Option("--hops", help="Mean hops of a spike between cores (chip).", min=0),
    ] = None,
    latency_s: Annotated[
        float | None,
        typer.Option("--latency", help="Seconds of an inference, for static power (chip).", min=0),
    ] = None,
    mix_technologies: Annotated[
        bool,
        typer.Option(
            "--mix-tech", help="Ratios across technologies too, labelled; they rank nothing."
        ),
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="A lower bound where something cannot be counted."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure the baseline on this machine's GPU and CPU; minutes."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="energy.json to write (files).")] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="PNG of energy per layer against the baseline (files)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Count an inference and price it by three models, against an ONNX baseline.

    A RUN has everything in it and keeps energy.json and its picture; with options of pricing its counts are priced anew.
    """
    from knarr.cli.text import report
    from knarr.pipeline import stages

    plain = all(
        context.get_parameter_source(name).name == "DEFAULT"  # type: ignore[union-attr]
        for name in context.params
        if name not in ("source", "json")
    )
    if source.is_dir() and plain:
        opened = stages.reopen(source)
        stages.energy(opened)
        report.show_energy(source / stages.ENERGY, json=json)
        return
    from knarr.hw_sim.energy import Options
    from knarr.pipeline.energy import REUSE, Pricing, Sources, energy_files

    if not source.exists():
        fail(f"{source}: no such run folder, .nir or .net file", BAD_INPUT)
    if source.suffix == ".net" or source.is_dir():
        for name, used in (
            ("--dt", dt_s is not None),
            ("--votes", votes != 1),
            ("--pooling", pooling is not Pooling.folded),
            ("--over-time", over_time is not OverTime.sum),
        ):
            if used:
                fail(f"{name}: goes with a .nir file; a chip network has its own", BAD_INPUT)
    if source.is_dir():
        for name, given in (("--data", data), ("--baseline", baseline), ("--labels", labels)):
            if given is not None:
                fail(f"{name}: {source} is a run and has its own; leave it out", BAD_INPUT)
        sources = stages.energy_sources(stages.reopen(source))
        sources = (
            sources if baseline_data is None else replace(sources, baseline_data=baseline_data)
        )
    elif data is None:
        fail("--data: needed with a file: .npy of (samples, timesteps, *features)", BAD_INPUT)
    else:
        sources = Sources(
            source,
            data,
            labels,
            baseline,
            baseline_data,
            dt_s,
            over_time.value,
            votes,
            pooling.value,
        )
    times = REUSE if reuse is None else reuse
    options = Options(
        word_bits=word_bits,
        reuse_weights=times,
        reuse_inputs=times,
        hops=hops,
        on_chip_bytes=on_chip_bytes,
        latency_s=latency_s,
    )
    named = None if model is None else model.value
    pricing = Pricing(profile, named, options, mix_technologies, allow_partial)
    facts = energy_files(sources, pricing, measure=measure, out=out, picture=picture)
    report.say_energy(facts, json=json)
