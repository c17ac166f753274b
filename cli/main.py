"""Verbs of the command line. Heavy imports happen inside a verb, so that help and bad input answer at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Carries a spiking student network from Norse to Loihi, and proves that what arrives is what left.",
    epilog="Example: knarr pipeline eyes --out runs/eyes",
)

RunArgument = Annotated[Path, typer.Argument(help="Run folder, such as runs/nmnist.", metavar="RUN")]
RecipeArgument = Annotated[
    str, typer.Argument(help="Shipped recipe (nmnist, eyes) or a YAML file.", metavar="RECIPE")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the recipe's data; eyes are generated when it is left out."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/<recipe name>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

DOES_NOT_HOLD, BAD_INPUT = 1, 2


@app.command(epilog="Example: knarr pipeline nmnist --data nmnist_small")
def pipeline(
    recipe: RecipeArgument, data: DataOption = None, out: OutOption = None, json: JsonOption = False
) -> None:
    """All stages from data to energy; run again, it goes on after the last finished one."""
    from knarr.cli import report, stages

    run = stages.start(recipe, data, out)
    for stage in stages.ALL:
        stage(run)
    _finish(report.show(run.folder, json=json))


@app.command(epilog="Example: knarr train nmnist --data nmnist_small --out runs/nmnist")
def train(
    recipe: RecipeArgument, data: DataOption = None, out: OutOption = None, json: JsonOption = False
) -> None:
    """Train the teacher and distil the student; a killed run goes on after its last epoch."""
    from knarr.cli import report, stages
    from knarr.train.run import STUDENT, TEACHER

    run = stages.start(recipe, data, out)
    stages.train(run)
    report.say({"run": str(run.folder), "teacher": TEACHER, "student": STUDENT}, json=json)


ModuleOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="safetensors with the module's weights (with MODULE:FACTORY)."),
]
SamplesOption = Annotated[
    Path | None,
    typer.Option("--inputs", help=".npy of (samples, timesteps, *features); random spikes otherwise."),
]


@app.command(
    epilog="Example: knarr export runs/nmnist; knarr export mystudent:build --checkpoint s.safetensors "
    "--input-shape 2,34,34 --dt 0.001 --out student.nir"
)
def export(
    source: Annotated[
        str, typer.Argument(help="Run folder, or package.module:factory.", metavar="RUN|MODULE:FACTORY")
    ],
    checkpoint: ModuleOption = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input-shape", help="Sizes of one time step, such as 2,34,34 (MODULE:FACTORY)."),
    ] = None,
    dt_s: Annotated[float, typer.Option("--dt", help="Time step, seconds (MODULE:FACTORY).")] = 0.001,
    inputs: SamplesOption = None,
    out: Annotated[Path, typer.Option("--out", help="Graph to write (MODULE:FACTORY).")] = Path(
        "student.nir"
    ),
    json: JsonOption = False,
) -> None:
    """Export a run's student, or any one-step Norse module, to a certified NIR graph; a run's teacher to ONNX."""
    from knarr.cli import report, stages

    if ":" in source and not Path(source).is_dir():
        from knarr.cli import graphs

        if input_shape is None:
            _fail("--input-shape: needed with MODULE:FACTORY, such as 2,34,34", BAD_INPUT)
        graphs.export_module(source, checkpoint, input_shape, dt_s, inputs, out)
        report.show_file(out.with_name(f"{out.name}.json"), "certificate", json=json)
        return
    run = Path(source)
    opened = stages.reopen(run)
    stages.export(opened)
    report.show_file(run / f"{stages.GRAPH}.json", "certificate", json=json)


class Kind(str, Enum):
    """How data become the integers of the input."""

    events = "events"
    graded = "graded"
    rate = "rate"
    direct = "direct"


class OverTime(str, Enum):
    """How the outputs of all steps become one score."""

    sum = "sum"
    mean = "mean"
    last = "last"


class ChipName(str, Enum):
    """Chips whose cores are known."""

    loihi1 = "loihi1"
    loihi2 = "loihi2"


ChipOption = Annotated[ChipName, typer.Option("--chip", help="Whose cores the network is placed on.")]
TimestepsOption = Annotated[
    int | None, typer.Option("--timesteps", help="How many, where inputs have no time axis.", min=1)
]
LabelsOption = Annotated[Path | None, typer.Option("--labels", help=".npy of one class per sample.")]


def _only(context: typer.Context, what: str, allowed: set[str]) -> None:
    """Refuse options that do not go with what was named, instead of leaving them out in silence."""
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name))
        if (
            given is not None
            and given.name == "COMMANDLINE"
            and parameter.name not in {"source", "json", *allowed}
        ):
            cure = "its recipe holds it" if what == "a run" else "see --help"
            _fail(f"{parameter.opts[-1]}: does not go with {what}; {cure}", BAD_INPUT)


@app.command(
    epilog="Example: knarr deploy runs/nmnist; knarr deploy student.nir --calibration spikes.npy --out student.net"
)
def deploy(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Run folder, or a .nir file.", metavar="RUN|FILE.nir")],
    out: Annotated[Path, typer.Option("--out", help="netx file to write (FILE.nir).")] = Path("student.net"),
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help=".npy of samples to choose scales by and to measure on, never test data."
        ),
    ] = None,
    labels: LabelsOption = None,
    allow_approximate: Annotated[
        bool, typer.Option("--allow-approximate", help="Map what has no exact form nearly, and measure it.")
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
    votes: Annotated[int, typer.Option("--votes", help="Neighbouring outputs per class.", min=1)] = 1,
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
    from knarr.cli import nets, stages

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
        _finish(nets.show_net(out, chip.value, json=json))
        return
    _only(context, "a run", {"chip"})
    stages.deploy(stages.reopen(source))
    _finish(nets.show_net(source / stages.NET, chip.value, json=json))


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
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the recording (.npz).")] = None,
    record: Annotated[
        str | None,
        typer.Option("--record", help="What it holds: any of output,spikes,u,v. Default: output,spikes."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of one sample's spikes through all layers.")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", help="Which one.", min=0)] = 0,
    labels: LabelsOption = None,
    engine: Annotated[
        str, typer.Option("--engine", help="auto, fast (compiled), torch (CUDA or CPU), reference or lava.")
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
    from knarr.cli import report, simulating

    facts = simulating.simulate_file(
        net,
        data,
        out,
        engine,
        record=record,
        picture=picture,
        sample=sample,
        labels=labels,
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
        Path, typer.Argument(help="Run folder, a .nir or a .net file.", metavar="RUN|FILE.nir|FILE.net")
    ],
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test samples to run on Lava (RUN).", min=1)
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(
            "--module", help="package.module:factory to compare with (FILE.nir; FILE.net with --graph)."
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
        typer.Option("--dt", help="Time step, seconds; the certificate's when left out (FILE.nir)."),
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Limit of a Lava run, seconds (FILE.net).", min=0.001)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of where they part (FILE.net with --inputs).")
    ] = None,
    chip: ChipOption = ChipName.loihi2,
    json: JsonOption = False,
) -> None:
    """Compare Norse, NIR, the chip simulator and Lava, layer by layer; or check one file. Exit 1 when it fails.

    A FILE.net without --inputs is checked against the chip's rules and placed on its cores.
    """
    from knarr.cli import report, stages

    if source.suffix == ".nir" and not source.is_dir():
        from knarr.cli import graphs

        _only(context, "a .nir file", {"module", "checkpoint", "inputs", "dt_s"})
        _finish(graphs.verify_file(source, module, checkpoint, inputs, dt_s, json=json))
        return
    if source.suffix == ".net" and not source.is_dir():
        from knarr.cli import nets

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
        _only(context, "a .net file", everything)

        if inputs is None:
            _only(context, "a .net file without --inputs", {"chip"})
            _finish(nets.show_net(source, chip.value, json=json))
            return
        from knarr.cli.verify_files import verify_files

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
        _finish(holds)
        return
    _only(context, "a run", {"samples"})
    opened = stages.reopen(source)
    stages.verify(opened, samples=samples, again=True)
    _finish(report.show_verification(source / stages.VERIFICATION, json=json))


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
        Path, typer.Argument(help="Run folder, a .nir or a .net file.", metavar="RUN|FILE.nir|FILE.net")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help=".npy of (samples, timesteps, *features), or a run folder (files)."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="ONNX file to compare with (files).")
    ] = None,
    baseline_data: Annotated[
        Path | None,
        typer.Option("--baseline-data", help=".npy of its inputs: zeros skipped are counted too (files)."),
    ] = None,
    labels: LabelsOption = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="Prices: a name, or a .toml file; 45 nm and Loihi 1 when left out."),
    ] = None,
    model: Annotated[
        EnergyModel | None, typer.Option("--model", help="One model; all that have prices when left out.")
    ] = None,
    dt_s: Annotated[
        float | None, typer.Option("--dt", help="Time step of a .nir file, seconds; its own when left out.")
    ] = None,
    over_time: Annotated[
        OverTime, typer.Option("--over-time", help="How a .nir file's output is decided by.")
    ] = OverTime.sum,
    votes: Annotated[int, typer.Option("--votes", help="Outputs per class of a .nir file.", min=1)] = 1,
    pooling: Annotated[
        Pooling,
        typer.Option("--pooling", help="Of a .nir file: pools folded into synapses, or as they are."),
    ] = Pooling.folded,
    word_bits: Annotated[
        int | None,
        typer.Option("--word-bits", help="In memory; the precision's when left out (memory).", min=1, max=64),
    ] = None,
    reuse: Annotated[
        float | None,
        typer.Option(
            "--reuse", help="Times a fetched word of the baseline is used, beside 1 (memory).", min=1
        ),
    ] = None,
    on_chip_bytes: Annotated[
        float | None, typer.Option("--on-chip-bytes", help="Larger buffers lie in DRAM (memory).", min=0)
    ] = None,
    hops: Annotated[
        float | None, typer.Option("--hops", help="Mean hops of a spike between cores (chip).", min=0)
    ] = None,
    latency_s: Annotated[
        float | None,
        typer.Option("--latency", help="Seconds of an inference, for static power (chip).", min=0),
    ] = None,
    mix_technologies: Annotated[
        bool, typer.Option("--mix-tech", help="Ratios across technologies too, labelled; they rank nothing.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="A lower bound where something cannot be counted.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the baseline on this machine's GPU and CPU; minutes.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="energy.json to write (files).")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of energy per layer against the baseline (files).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Count an inference and price it by three models, against an ONNX baseline.

    A RUN has everything in it and keeps energy.json and its picture; with options of pricing its counts are priced anew.
    """
    from knarr.cli import report, stages

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
    from knarr.cli.energy_facts import REUSE, Pricing
    from knarr.cli.energy_files import Sources, energy_files
    from knarr.hw_sim.energy import Options

    if not source.exists():
        _fail(f"{source}: no such run folder, .nir or .net file", BAD_INPUT)
    if source.suffix == ".net" or source.is_dir():
        for name, used in (
            ("--dt", dt_s is not None),
            ("--votes", votes != 1),
            ("--pooling", pooling is not Pooling.folded),
            ("--over-time", over_time is not OverTime.sum),
        ):
            if used:
                _fail(f"{name}: goes with a .nir file; a chip network has its own", BAD_INPUT)
    if source.is_dir():
        for name, given in (("--data", data), ("--baseline", baseline), ("--labels", labels)):
            if given is not None:
                _fail(f"{name}: {source} is a run and has its own; leave it out", BAD_INPUT)
        sources = stages.energy_sources(stages.reopen(source))
        sources = sources if baseline_data is None else replace(sources, baseline_data=baseline_data)
    elif data is None:
        _fail("--data: needed with a file: .npy of (samples, timesteps, *features)", BAD_INPUT)
    else:
        sources = Sources(
            source, data, labels, baseline, baseline_data, dt_s, over_time.value, votes, pooling.value
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


data_app = typer.Typer(
    no_args_is_help=True,
    help="Datasets: what a folder holds, and events of any video.",
    epilog="Example: knarr data check nmnist nmnist_small",
)
app.add_typer(data_app, name="data")


@data_app.command(name="check", epilog="Example: knarr data check stress_predict stress_predict --json")
def data_check(
    name: Annotated[str, typer.Argument(help="deap, mahnob, mosi, nmnist, see or stress_predict.")],
    path: Annotated[Path, typer.Argument(help="Folder of the dataset, as it is published.")],
    json: JsonOption = False,
) -> None:
    """Say what was found, what is missing, and how many samples each split has. Exit 1 when something is left out."""
    from knarr.cli import datasets

    _finish(datasets.check_data(name, path, json=json))


@data_app.command(
    name="events", epilog="Example: knarr data events talk.mp4 --out events.npz --sensitivity 0.001"
)
def data_events(
    video: Annotated[Path, typer.Argument(help="Any video file.")],
    out: Annotated[Path, typer.Option("--out", help=".npz to write.")] = Path("events.npz"),
    sensitivity: Annotated[
        float, typer.Option("--sensitivity", help="Change of grey (0..1) that fires.", min=0, max=1)
    ] = 0.001,
    size: Annotated[int, typer.Option("--size", help="Height and width, pixels.", min=1)] = 128,
    frames: Annotated[int, typer.Option("--frames", help="Frames taken, the first as grey.", min=2)] = 68,
    json: JsonOption = False,
) -> None:
    """Simulate an event camera on a video: a grey frame, then ON and OFF events of its changes."""
    from knarr.cli import datasets, report

    facts = datasets.write_events(video, out, sensitivity=sensitivity, size=size, frames=frames)
    report.say(facts, json=json)


@app.command(name="report", epilog="Example: knarr report runs/nmnist")
def report_(run: RunArgument, json: JsonOption = False) -> None:
    """Print a finished run's table and the paths of its pictures; exit 1 when its verification does not hold."""
    from knarr.cli import report, stages

    stages.pictures(stages.reopen(run))
    _finish(report.show(run, json=json))


@app.command(epilog="Example: knarr doctor")
def doctor(json: JsonOption = False) -> None:
    """Say which backends work on this machine and why others do not; exit 1 when a needed one fails."""
    from knarr.cli import doctor as checks

    _finish(checks.show(json=json))


def _finish(holds: bool) -> None:
    if not holds:
        raise typer.Exit(DOES_NOT_HOLD)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every expected fault is one line on standard error, never a traceback."""
    try:
        app(args=arguments, prog_name="knarr")
    except ValueError as error:
        # Every stage's own errors are ValueErrors with one line for the user; anything else is a fault in knarr.
        if not type(error).__module__.startswith("knarr."):
            raise
        _fail(str(error), BAD_INPUT)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    except RuntimeError as error:
        if not type(error).__module__.startswith("knarr."):
            raise
        _fail(str(error), DOES_NOT_HOLD)


def _fail(message: str, status: int) -> NoReturn:
    print(f"knarr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
