"""Verbs from a module to a chip network: export, deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from knarr.cli.app import (
    CheckpointOption,
    ChipOption,
    InputShapeOption,
    JsonOption,
    LabelsOption,
    OverTime,
    TimestepsOption,
    app,
    finish,
    refuse_unrelated_options,
)
from knarr.cli.errors import UsageError
from knarr.cli.files import (
    check_out,
    keep_apart,
    make_module,
    read_array,
    read_graph,
    read_labels,
    read_sizes,
    time_step,
)
from knarr.cli.output import show_progress


@app.command(
    epilog="Example: knarr export runs/nmnist; knarr export mystudent:build --checkpoint s.safetensors "
    "--input-shape 2,34,34 --dt 0.001 --out student.nir"
)
def export(
    source: Annotated[
        str,
        Argument(help="Folder of a run, or package.module:factory.", metavar="RUN|MODULE:FACTORY"),
    ],
    checkpoint: CheckpointOption = None,
    input_shape: Annotated[
        str | None, Option(help="Sizes of one time step, such as 2,34,34 (MODULE:FACTORY).")
    ] = None,
    dt_s: Annotated[float, Option("--dt", help="Time step, seconds (MODULE:FACTORY).")] = 0.001,
    inputs: Annotated[
        Path | None,
        Option(help=".npy file of (samples, timesteps, *features); random spikes when left out."),
    ] = None,
    out: Annotated[Path, Option(help="Graph file to write (MODULE:FACTORY).")] = Path(
        "student.nir"
    ),
    json: JsonOption = False,
) -> None:
    """Export a run's student, or any module of Norse's cells, as a certified NIR graph.

    A run's teacher is written as an ONNX file beside it.
    """
    from knarr import pipeline
    from knarr.cli.text.report import print_certificate

    run = Path(source)
    # A folder may have a colon in its name.
    if ":" in source and not run.is_dir():
        if input_shape is None:
            raise UsageError("--input-shape: needed with MODULE:FACTORY, such as 2,34,34")
        from knarr.export import as_inputs, to_nir, write

        shape = read_sizes(input_shape)
        check_out("--out", out)
        keep_apart(out, checkpoint, inputs)
        # The shape first: making a module may take long.
        module = make_module(source, checkpoint, shape, dt_s)
        samples = None if inputs is None else as_inputs(read_array(inputs), str(inputs))
        if samples is not None and samples.shape[2:] != shape:
            raise UsageError(
                f"{inputs}: shape {samples.shape}, needs (samples, timesteps, {input_shape})"
            )
        write(to_nir(module, shape, dt_s, samples=samples), out)
    else:
        opened = pipeline.reopen(run, on_progress=show_progress)
        pipeline.export(opened)
        out = run / pipeline.GRAPH
    print_certificate(out.with_name(f"{out.name}.json"), json=json)


@app.command(
    epilog="Example: knarr deploy runs/nmnist; knarr deploy student.nir --calibration spikes.npy --out student.net"
)
def deploy(
    context: typer.Context,
    source: Annotated[
        Path, Argument(help="Folder of a run, or a .nir file.", metavar="RUN|FILE.nir")
    ],
    out: Annotated[Path, Option(help="netx file to write (FILE.nir).")] = Path("student.net"),
    calibration: Annotated[
        Path | None,
        Option(help=".npy file of samples to choose scales by and to measure on, never test data."),
    ] = None,
    labels: LabelsOption = None,
    allow_approximate: Annotated[
        bool,
        Option(
            "--allow-approximate",
            help="Map what has no exact form to a near one, and measure the difference.",
        ),
    ] = False,
    # A synapse of the chip holds 8 bits at most.
    weight_bits: Annotated[int, Option(help="Signed bits of a weight.", min=2, max=8)] = 8,
    input_bits: Annotated[
        int, Option(help="Bits of an input: 1 for spikes, more for graded.", min=1, max=16)
    ] = 1,
    input_units: Annotated[
        float, Option(help="Integers per unit of float input, such as 255.")
    ] = 1.0,
    input_signed: Annotated[
        bool | None,
        Option(
            "--input-signed/--input-unsigned",
            help="Allow inputs below 0. Default: graded input has them, spikes where --calibration holds a -1.",
            show_default=False,
        ),
    ] = None,
    input_kind: Annotated[
        # The names of `InputCoding.kind`.
        Literal["events", "graded", "rate", "direct"],
        Option(help="Coding of data as the input's integers."),
    ] = "events",
    over_time: Annotated[
        OverTime, Option(help="Way in which the outputs of all steps become a score.")
    ] = "sum",
    votes: Annotated[int, Option(help="Number of neighbouring outputs per class.", min=1)] = 1,
    timesteps: TimestepsOption = None,
    dt_s: Annotated[
        float | None, Option("--dt", help="Time step, seconds; the file's when left out.")
    ] = None,
    input_shape: InputShapeOption = None,
    chip: ChipOption = "loihi2",
    json: JsonOption = False,
) -> None:
    """Lower a graph to integers, write its netx .net file, and show what was lost and where.

    The table also says on which cores the network lies. A run has all options but --chip and --json in its recipe.
    """
    from knarr import pipeline
    from knarr.cli.text.deployment import print_net

    # Anything but a .nir file is taken for a run, so that a wrong path is answered as one.
    if source.suffix != ".nir" or source.is_dir():
        refuse_unrelated_options(context, "a run", {"chip"})
        opened = pipeline.reopen(source, on_progress=show_progress)
        pipeline.deploy(opened)
        finish(print_net(source / pipeline.NET, chip, json=json))
        return

    # Before anything is read: a mistake must not cost a lowering first.
    check_out("--out", out)
    keep_apart(out, source, calibration, labels)
    graph = read_graph(source, input_shape)
    from knarr.deploy import chip_shape, lower, write_net
    from knarr.export import graph_input_shape
    from knarr.hw_sim import InputCoding, encode, takes_sign

    classes = read_labels(labels)
    samples = None
    step_s = time_step(graph.metadata.get("dt_s"), dt_s, source, graph)
    if calibration is not None:
        samples = read_array(calibration)
        # Calibration looks at what the chip will be given, so data are coded as they will be.
        if input_kind != "events":
            shape = chip_shape(graph_input_shape(graph))
            signed = takes_sign(input_signed, input_kind, input_bits, samples)
            coding = InputCoding(shape, input_bits, None, input_units, input_kind, signed)
            samples = encode(coding, samples, timesteps=timesteps)
    network = lower(
        graph,
        step_s,
        weight_bits=weight_bits,
        input_bits=input_bits,
        input_units=input_units,
        input_kind=input_kind,
        input_signed=input_signed,
        over_time=over_time,
        votes=votes,
        calibration=samples,
        labels=classes,
        allow_approximate=allow_approximate,
        progress=pipeline.counter(show_progress, "layers"),
    )
    write_net(network, out)
    finish(print_net(out, chip, json=json))
