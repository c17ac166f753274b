"""Verbs that run a chip network: simulate, verify."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import (
    ChipName,
    ChipOption,
    JsonOption,
    LabelsOption,
    ModuleOption,
    TimestepsOption,
    app,
    finish,
    refuse_unrelated_options,
)


class SplitName(str, Enum):
    """Of a run's clips."""

    test = "test"
    validation = "validation"


@app.command(
    epilog="Example: knarr simulate student.net --data spikes.npy --out recording.npz --record output,spikes,v --picture raster.png"
)
def simulate(
    net: Annotated[Path, typer.Argument(help="netx file, ours or not.", metavar="NET")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "--inputs",
            help=".npy of integers, (samples, timesteps, *features), or of data as the file's coding says; "
            "or a run folder: its test set.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the recording (.npz).")
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            "--record", help="What it holds: any of output,spikes,u,v. Default: output,spikes."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="PNG of one sample's spikes through all layers."),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", help="Which one.", min=0)] = 0,
    labels: LabelsOption = None,
    split: Annotated[
        SplitName,
        typer.Option(
            "--split", help="Of a run folder: its test set, or the clips it validates on."
        ),
    ] = SplitName.test,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="auto, fast (compiled), torch (CUDA or CPU), reference or lava."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", help="At most so many; all cores by default.", min=1)
    ] = None,
    timesteps: TimestepsOption = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Limit of a Lava run, seconds.", min=0.001)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a .net file on the chip simulator, or on Lava itself."""
    from knarr.cli.commands import simulate as simulating
    from knarr.cli.text import report

    facts = simulating.simulate_file(
        net,
        data,
        out,
        engine,
        record=record,
        picture=picture,
        sample=sample,
        labels=labels,
        split=split.value,
        threads=threads,
        timesteps=timesteps,
        timeout_s=timeout_s,
        json=json,
    )
    report.say(facts, json=json)


@app.command(
    epilog="Example: knarr verify runs/nmnist --samples 20; knarr verify student.nir --module mystudent:build; "
    "knarr verify student.net --graph student.nir --inputs spikes.npy"
)
def verify(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help="Run folder, a .nir or a .net file.", metavar="RUN|FILE.nir|FILE.net"),
    ],
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test samples to run on Lava (RUN).", min=1)
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            help="package.module:factory to compare with (FILE.nir; FILE.net with --graph).",
        ),
    ] = None,
    checkpoint: ModuleOption = None,
    graph: Annotated[
        Path | None, typer.Option("--graph", help=".nir file it was lowered from (FILE.net).")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help=".npy of samples; with FILE.net they run on Lava as well."),
    ] = None,
    labels: LabelsOption = None,
    timesteps: TimestepsOption = None,
    dt_s: Annotated[
        float | None,
        typer.Option(
            "--dt", help="Time step, seconds; the certificate's when left out (FILE.nir)."
        ),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", help="Limit of a Lava run, seconds (FILE.net).", min=0.001),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="PNG of where they part (FILE.net with --inputs)."),
    ] = None,
    chip: ChipOption = ChipName.loihi2,
    json: JsonOption = False,
) -> None:
    """Compare Norse, NIR, the chip simulator and Lava, layer by layer; or check one file. Exit 1 when it fails.

    A FILE.net without --inputs is checked against the chip's rules and placed on its cores.
    """
    from knarr.cli.text import report
    from knarr.pipeline import stages

    if source.suffix == ".nir" and not source.is_dir():
        from knarr.cli.commands import export as graphs

        refuse_unrelated_options(context, "a .nir file", {"module", "checkpoint", "inputs", "dt_s"})
        finish(graphs.verify_file(source, module, checkpoint, inputs, dt_s, json=json))
        return
    if source.suffix == ".net" and not source.is_dir():
        from knarr.cli.commands import deploy as nets

        everything = {
            "module",
            "checkpoint",
            "graph",
            "inputs",
            "labels",
            "timesteps",
            "dt_s",
            "timeout_s",
            "picture",
            "chip",
        }
        refuse_unrelated_options(context, "a .net file", everything)

        if inputs is None:
            refuse_unrelated_options(context, "a .net file without --inputs", {"chip"})
            finish(nets.show_net(source, chip.value, json=json))
            return
        from knarr.cli.commands.verify import verify_files

        holds = verify_files(
            source,
            inputs,
            graph=graph,
            factory=module,
            checkpoint=checkpoint,
            labels=labels,
            dt_s=dt_s,
            timesteps=timesteps,
            timeout_s=timeout_s,
            picture=picture,
            json=json,
        )
        finish(holds)
        return
    refuse_unrelated_options(context, "a run", {"samples"})
    opened = stages.reopen(source)
    stages.verify(opened, samples=samples, again=True)
    finish(report.show_verification(source / stages.VERIFICATION, json=json))
