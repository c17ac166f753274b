"""The verb that says what an inference costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from knarr.cli.app import InputBitsOption, InputShapeOption, JsonOption, LabelsOption, OverTime, app
from knarr.cli.errors import UsageError
from knarr.cli.files import (
    check_out,
    keep_apart,
    need_drawing,
    read_array,
    read_graph,
    read_labels,
    read_sizes,
    time_step,
)
from knarr.cli.output import show_progress
from knarr.cli.verbs.energy_alone import InputAxes, energy_alone, is_alone

if TYPE_CHECKING:
    import nir
    import numpy.typing as npt

    from knarr.hw_sim import ChipNetwork

OF_A_MODULE = frozenset({"time_axis", "steps", "stepped"})
"""Parameters that a torch module alone takes."""
OF_ONE_ALONE = OF_A_MODULE | {
    "source", "data", "shapes", "batch_axis", "profile", "model", "allow_partial", "out", "json",
}  # fmt: skip
"""Parameters of a network that stands alone."""


@app.command(
    epilog="Example: knarr energy student.nir --data spikes.npy --baseline teacher.onnx --picture energy.png; "
    "knarr energy runs/nmnist --all; knarr energy runs/nmnist --latex energy.tex"
)
def energy(
    context: typer.Context,
    source: Annotated[
        Path,
        Argument(
            help="Folder of a run, a .nir or a .net file; or one network alone: an .onnx file, or the function that "
            "makes a torch module (its file is imported, so its code runs).",
            metavar="RUN|FILE|MODULE:FACTORY",
        ),
    ],
    data: Annotated[
        Path | None,
        Option(
            help=".npy file of (samples, timesteps, *features), or the folder of a run (files)."
        ),
    ] = None,
    baseline: Annotated[Path | None, Option(help="ONNX file to compare with (files).")] = None,
    baseline_data: Annotated[
        Path | None,
        Option(
            help=".npy file of the baseline's inputs, whose zeros skipped are counted too (files)."
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        Option(
            "--shape",
            help="Shape of an input of the baseline in one inference, such as x=100,1,64, where its first axis is no "
            "batch; may be given several times.",
            metavar="INPUT=SIZES",
        ),
    ] = None,
    batch_axis: Annotated[
        int | None,
        Option(
            help="Axis of the batch of the baseline, of an .onnx file or of a module, where it is not the first.",
            min=0,
        ),
    ] = None,
    time_axis: Annotated[
        int | None, Option(help="Axis of the steps in --data (MODULE:FACTORY).", min=0)
    ] = None,
    steps: Annotated[
        int | None,
        Option(help="Steps that a module makes of a still input (MODULE:FACTORY).", min=1),
    ] = None,
    stepped: Annotated[
        bool, Option("--stepped", help="The module is one time step (MODULE:FACTORY).")
    ] = False,
    labels: LabelsOption = None,
    profile: Annotated[
        str | None,
        Option(
            help="Prices: the name of a profile, or a .toml file; 45 nm and Loihi 1 when left out."
        ),
    ] = None,
    model: Annotated[
        Literal["paper", "memory", "chip"] | None,
        Option(help="Model of energy; all that have prices when left out."),
    ] = None,
    dt_s: Annotated[
        float | None,
        Option("--dt", help="Time step of a .nir file, seconds; its own when left out."),
    ] = None,
    input_shape: InputShapeOption = None,
    input_bits: InputBitsOption = None,
    over_time: Annotated[
        OverTime,
        Option(help="Way in which the outputs of all steps of a .nir file become a score."),
    ] = "sum",
    votes: Annotated[int, Option(help="Number of outputs per class of a .nir file.", min=1)] = 1,
    pooling: Annotated[
        Literal["folded", "float"],
        Option(help="Pools of a .nir file: folded into synapses, or as they are."),
    ] = "folded",
    word_bits: Annotated[
        int | None,
        Option(
            help="Bits of a word in memory; the precision's when left out (memory).", min=1, max=64
        ),
    ] = None,
    reuse: Annotated[
        float | None,
        Option(help="Times that a fetched word of the baseline is used, beside 1 (memory).", min=1),
    ] = None,
    on_chip_bytes: Annotated[
        float | None, Option(help="Bytes above which a buffer lies in DRAM (memory).", min=0)
    ] = None,
    hops: Annotated[
        float | None, Option(help="Mean number of hops of a spike between cores (chip).", min=0)
    ] = None,
    latency_s: Annotated[
        float | None,
        Option(
            "--latency", help="Seconds that an inference takes, for static power (chip).", min=0
        ),
    ] = None,
    allow_partial: Annotated[
        bool,
        Option("--allow-partial", help="Print a lower bound where something cannot be counted."),
    ] = False,
    measure: Annotated[
        bool,
        Option(
            "--measure", help="Measure the baseline on this machine's GPU and CPU; takes minutes."
        ),
    ] = False,
    out: Annotated[Path | None, Option(help="energy.json file to write (files).")] = None,
    picture: Annotated[
        Path | None,
        Option(help="Picture to draw: places with intervals, shares by layer; .png, .svg or .pdf."),
    ] = None,
    csv: Annotated[Path | None, Option(help=".csv file of every number.")] = None,
    latex: Annotated[
        Path | None, Option(help=".tex file of places, same technology and counts.")
    ] = None,
    everything: Annotated[
        bool, Option("--all", help="Print the long tables too: layers, models, trades, sources.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what an inference costs where, against an ONNX baseline, and who is cheaper.

    A RUN has everything in it and keeps energy.json and its picture; with options of pricing its
    counts are priced anew.
    """
    from knarr import pipeline
    from knarr.cli.text.energy import print_energy
    from knarr.hw_sim import Options, check_labels

    given = {
        name
        for name in context.params
        if context.get_parameter_source(name).name != "DEFAULT"  # type: ignore[union-attr]
    }
    # No option is passed over in silence.
    spelled = {param.name: param.opts[0] for param in context.command.params}
    if is_alone(source):
        for option in (spelled[name] for name in spelled if name in given - OF_ONE_ALONE):
            raise UsageError(
                f"{option}: does not go with one network alone; give a RUN, a .nir or .net file"
            )
        layout = InputAxes(batch_axis, time_axis, steps, stepped, _baseline_shapes(shapes or ()))
        energy_alone(
            source,
            data,
            layout,
            profile=profile,
            model=model,
            allow_partial=allow_partial,
            out=out,
            json=json,
        )
        return
    for option in (spelled[name] for name in spelled if name in given & OF_A_MODULE):
        raise UsageError(f"{option}: goes with MODULE:FACTORY; leave it out")
    # Options at their defaults were not asked for: such a run is read from its own energy.json.
    is_run = source.is_dir()
    written = {"--out": out, "--picture": picture, "--csv": csv, "--latex": latex}
    if is_run and given <= {"source", "json", "everything", "out", "picture", "csv", "latex"}:
        opened = pipeline.reopen(source, on_progress=show_progress)
        _check_outputs(written, [source])
        pipeline.energy(opened)
        facts = pipeline.read_energy(source / pipeline.ENERGY)
        _write(facts, written)
        print_energy(facts, json=json, everything=everything)
        return
    if not source.exists():
        raise UsageError(f"{source}: no such run folder, .nir or .net file")
    # These say how a graph is counted; a chip network fixed them when it was lowered.
    if is_run or source.suffix == ".net":
        of_graph = {
            "--dt": dt_s is not None,
            "--input-shape": input_shape is not None,
            "--votes": votes != 1,
            "--pooling": pooling != "folded",
            "--over-time": over_time != "sum",
        }
        for option in (name for name, used in of_graph.items() if used):
            raise UsageError(f"{option}: goes with a .nir file; a chip network has its own")
    elif input_bits is not None:
        raise UsageError("--input-bits: goes with a .net file; a graph takes inputs as they are")
    if is_run:
        of_files = {
            "--data": data,
            "--baseline": baseline,
            "--labels": labels,
            "--shape": shapes,
            "--batch-axis": batch_axis,
            "--input-bits": input_bits,
        }
        for option in (name for name, given_as in of_files.items() if given_as is not None):
            raise UsageError(f"{option}: {source} is a run and has its own; leave it out")
    elif data is None:
        raise UsageError("--data: needed with a file: .npy of (samples, timesteps, *features)")
    # The baseline is priced with no reuse too, whatever is given here.
    times = pipeline.REUSE if reuse is None else reuse
    pricing = pipeline.Pricing(
        profile,
        model,
        Options(
            word_bits=word_bits,
            reuse_weights=times,
            reuse_inputs=times,
            hops=hops,
            on_chip_bytes=on_chip_bytes,
            latency_s=latency_s,
        ),
        allow_partial,
    )
    read_from = [source, data, labels, baseline, baseline_data]
    # Both files of a run are inputs as well, though nobody named them.
    run = None
    if is_run:
        run = pipeline.reopen(source, on_progress=show_progress)
        read_from += [run.need(pipeline.NET, "deploy"), run.need(pipeline.BASELINE, "export")]
    _check_outputs(written, [path for path in read_from if path is not None])
    if run is not None:
        pricing.pairs()  # refuses what cannot be priced before anything is run
        facts = pipeline.price_run(
            run, pricing, baseline_inputs=_baseline_inputs(baseline_data), measure=measure
        )
    else:
        of_baseline = (baseline_data, shapes, batch_axis)
        if baseline is None and (measure or any(option is not None for option in of_baseline)):
            raise UsageError(
                "--baseline-data, --shape, --batch-axis, --measure: go with --baseline"
            )
        if measure and baseline_data is None:
            raise UsageError(
                "--measure: runs the baseline on its inputs; give them with --baseline-data"
            )
        pricing.pairs()
        assert data is not None  # refused above
        network, inputs, classes = _read_student(source, data, labels, input_shape, input_bits)
        step_s = None
        if source.suffix == ".nir":
            named = network.metadata.get("dt_s")  # type: ignore[union-attr]
            step_s = time_step(named, dt_s, source, network)
            outputs = pipeline.outputs_of(network, step_s)
            if outputs % votes:
                raise UsageError(f"--votes: {votes} per class do not divide {outputs} outputs")
            per_class = votes
        else:
            outputs = math.prod(network.output_shape)
            per_class = network.readout.votes
        if classes is not None:
            classes = check_labels(classes, len(inputs), outputs // per_class)
        facts = pipeline.energy_of(
            network,
            inputs,
            pricing,
            labels=classes,
            baseline=baseline,
            baseline_inputs=_baseline_inputs(baseline_data),
            baseline_shapes=_baseline_shapes(shapes or ()),
            baseline_batch_axis=batch_axis,
            dt_s=step_s,
            over_time=over_time,
            votes=votes,
            pooling=pooling,
            measure=measure,
            files={path.name: path for path in (source, baseline) if path is not None},
            on_progress=show_progress,
        )
    _write(facts, written)
    print_energy(facts, json=json, everything=everything)


def _write(facts: dict[str, Any], outputs: Mapping[str, Path | None]) -> None:
    """Write the files that were asked for."""
    from knarr import pipeline
    from knarr.files import write_atomic

    for option, path in outputs.items():
        if path is None:
            continue
        if option == "--out":
            pipeline.write_json(path, facts)
        elif option == "--picture":
            pipeline.write_picture(path, pipeline.draw_energy(facts))
        else:
            made = pipeline.csv_text if option == "--csv" else pipeline.latex_text
            write_atomic(path, made(facts).encode())


def _check_outputs(outputs: Mapping[str, Path | None], read_from: list[Path]) -> None:
    """Refuse to write over what is read, over a run's files, or where nothing can be written."""
    from knarr.pipeline import PICTURES

    given = {option: path.resolve() for option, path in outputs.items() if path is not None}
    for option, out_path in outputs.items():
        check_out(option, out_path)
    for number, out_path in enumerate(outputs.values()):
        keep_apart(out_path, *read_from, *list(outputs.values())[:number])
    picture = outputs["--picture"]
    runs = [path.resolve() for path in read_from if path.is_dir()]
    for option, path in given.items():
        # Also of a run that is only read for its data.
        inside = any(run in path.parents for run in runs)
        # A run's own energy.json and pictures may be made anew; its other files hold results.
        ours = path.name == "energy.json" or path.parent.name == "pictures"
        if inside and path.exists() and not ours:
            raise UsageError(f"{option}: {outputs[option]} belongs to the run; give another name")
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise UsageError(f"--picture: {picture}; give a name that ends in {', '.join(PICTURES)}")
    need_drawing(picture)


def _read_student(
    source: Path,
    data: Path,
    labels: Path | None,
    input_shape: str | None,
    input_bits: int | None,
) -> tuple[nir.NIRGraph | ChipNetwork, npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Read a network, its inputs and the class of each where one is known."""
    from knarr.deploy import hardware_faults
    from knarr.hw_sim import check_inputs, encode
    from knarr.pipeline import read_deployable, reopen

    classes = read_labels(labels)
    if data.is_dir():
        run = reopen(data, on_progress=show_progress)
        from knarr.pipeline import chip_samples  # behind a wrong path's answer: it loads torch

        inputs, its_labels = chip_samples(run)
        classes = its_labels if classes is None else classes
    else:
        inputs = read_array(data)
    network: nir.NIRGraph | ChipNetwork
    if source.suffix == ".nir":
        network = read_graph(source, input_shape)
    else:
        network = read_deployable(source, "counted", input_bits)
        # It is counted all the same: what hardware lacks are other registers, not other operations.
        for fault in hardware_faults(network):
            print(f"knarr: {fault}", file=sys.stderr)
        # A graph takes inputs as they are, a chip integers of its coding.
        inputs = check_inputs(network.input, encode(network.input, inputs))
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise UsageError(
            f"{data}: shape {inputs.shape}, needs (samples, timesteps, ...) with at least one of each"
        )
    return network, inputs, classes


def _baseline_inputs(path: Path | None) -> npt.NDArray[Any] | None:
    if path is None:
        return None
    inputs = read_array(path)
    # Other kinds are left to the baseline's reader, which names what it takes.
    return inputs.astype("float32") if inputs.dtype.kind in "biuf" else inputs


def _baseline_shapes(given: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read the values of --shape.

    Raises:
        UsageError: One that is no name and sizes.
    """
    found = {}
    for text in given:
        # A name may hold the sign itself, sizes cannot.
        name, _, sizes = text.rpartition("=")
        if not name:
            raise UsageError(
                f"--shape '{text}': write the input's name and sizes, such as x=1,32,12"
            )
        found[name] = read_sizes(sizes, "--shape")
    return found
