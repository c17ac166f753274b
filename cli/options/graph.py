"""Verbs from module to chip network: export, deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import (
    BAD_INPUT,
    ChipName,
    ChipOption,
    JsonOption,
    Kind,
    LabelsOption,
    ModuleOption,
    OverTime,
    SamplesOption,
    TimestepsOption,
    app,
    fail,
    finish,
    refuse_unrelated_options,
)


@app.command(
    epilog="Example: knarr export runs/nmnist; knarr export mystudent:build --checkpoint s.safetensors "
    "--input-shape 2,34,34 --dt 0.001 --out student.nir"
)
def export(
    source: Annotated[
        str,
        typer.Argument(help="Run folder, or package.module:factory.", metavar="RUN|MODULE:FACTORY"),
    ],
    checkpoint: ModuleOption = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape", help="Sizes of one time step, such as 2,34,34 (MODULE:FACTORY)."
        ),
    ] = None,
    dt_s: Annotated[
        float, typer.Option("--dt", help="Time step, seconds (MODULE:FACTORY).")
    ] = 0.001,
    inputs: SamplesOption = None,
    out: Annotated[Path, typer.Option("--out", help="Graph to write (MODULE:FACTORY).")] = Path(
        "student.nir"
    ),
    json: JsonOption = False,
) -> None:
    """Export a run's student, or any one-step Norse module, to a certified NIR graph; a run's teacher to ONNX."""
    from knarr.cli.text import report
    from knarr.pipeline import stages

    if ":" in source and not Path(source).is_dir():
        from knarr.cli.commands import export as graphs

        if input_shape is None:
            fail("--input-shape: needed with MODULE:FACTORY, such as 2,34,34", BAD_INPUT)
        graphs.export_module(source, checkpoint, input_shape, dt_s, inputs, out)
        report.show_file(out.with_name(f"{out.name}.json"), "certificate", json=json)
        return
    run = Path(source)
    opened = stages.reopen(run)
    stages.export(opened)
    report.show_file(run / f"{stages.GRAPH}.json", "certificate", json=json)


@app.command(
    epilog="Example: knarr deploy runs/nmnist; knarr deploy student.nir --calibration spikes.npy --out student.net"
)
def deploy(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Run folder, or a .nir file.", metavar="RUN|FILE.nir")
    ],
    out: Annotated[Path, typer.Option("--out", help="netx file to write (FILE.nir).")] = Path(
        "student.net"
    ),
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help=".npy of samples to choose scales by and to measure on, never test data.",
        ),
    ] = None,
    labels: LabelsOption = None,
    allow_approximate: Annotated[
        bool,
        typer.Option(
            "--allow-approximate", help="Map what has no exact form nearly, and measure it."
        ),
    ] = False,
    weight_bits: Annotated[
        int, typer.Option("--weight-bits", help="Signed bits of a weight.", min=2, max=8)
    ] = 8,
    input_bits: Annotated[
        int, typer.Option("--input-bits", help="1 for spikes, more for graded.", min=1, max=16)
    ] = 1,
    input_units: Annotated[
        float, typer.Option("--input-units", help="Integers per unit of float input, such as 255.")
    ] = 1.0,
    input_kind: Annotated[
        Kind, typer.Option("--input-kind", help="How data become the input's integers.")
    ] = Kind.events,
    over_time: Annotated[
        OverTime, typer.Option("--over-time", help="How steps become a score.")
    ] = OverTime.sum,
    votes: Annotated[
        int, typer.Option("--votes", help="Neighbouring outputs per class.", min=1)
    ] = 1,
    timesteps: TimestepsOption = None,
    dt_s: Annotated[
        float | None, typer.Option("--dt", help="Time step, seconds; the file's when left out.")
    ] = None,
    chip: ChipOption = ChipName.loihi2,
    json: JsonOption = False,
) -> None:
    """Lower a graph to integers, write the netx .net file, and show what that cost and where it will lie.

    A run has all options but --chip and --json in its recipe.
    """
    from knarr.cli.commands import deploy as nets
    from knarr.pipeline import stages

    if source.suffix == ".nir" and not source.is_dir():
        nets.deploy_file(
            source,
            out,
            dt_s=dt_s,
            weight_bits=weight_bits,
            input_bits=input_bits,
            input_units=input_units,
            input_kind=input_kind.value,
            over_time=over_time.value,
            votes=votes,
            calibration=calibration,
            timesteps=timesteps,
            labels=labels,
            allow_approximate=allow_approximate,
        )
        finish(nets.show_net(out, chip.value, json=json))
        return
    refuse_unrelated_options(context, "a run", {"chip"})
    stages.deploy(stages.reopen(source))
    finish(nets.show_net(source / stages.NET, chip.value, json=json))
