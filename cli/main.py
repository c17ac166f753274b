"""Verbs of the command line. Heavy imports happen inside a verb, so that help and bad input answer at once."""

from __future__ import annotations

import sys
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


@app.command(epilog="Example: knarr deploy runs/nmnist")
def deploy(run: RunArgument, json: JsonOption = False) -> None:
    """Lower a run's graph to integers and write the netx .net file."""
    from knarr.cli import report, stages

    opened = stages.reopen(run)
    stages.deploy(opened)
    report.show_file(run / f"{stages.NET}.json", "manifest", json=json)


@app.command(epilog="Example: knarr simulate student.net --inputs spikes.npy --out recording.npz")
def simulate(
    net: Annotated[Path, typer.Argument(help="netx file, ours or not.", metavar="NET")],
    inputs: Annotated[
        Path, typer.Option("--inputs", help=".npy of integers, (samples, timesteps, *features).")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the recording (.npz).")] = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, reference or lava.")] = "auto",
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Limit of a Lava run, seconds.", min=0.001)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a .net file on the chip simulator, or on Lava itself."""
    from knarr.cli import report, tools

    report.say(tools.simulate_file(net, inputs, out, engine, timeout_s), json=json)


@app.command(
    epilog="Example: knarr verify runs/nmnist --samples 20; knarr verify student.nir --module mystudent:build"
)
def verify(
    source: Annotated[Path, typer.Argument(help="Run folder, or a .nir file.", metavar="RUN|FILE.nir")],
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test samples to run on Lava (RUN).", min=1)
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("--module", help="package.module:factory to compare the file with (FILE.nir)."),
    ] = None,
    checkpoint: ModuleOption = None,
    inputs: SamplesOption = None,
    dt_s: Annotated[
        float | None,
        typer.Option("--dt", help="Time step, seconds; the certificate's when left out (FILE.nir)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare Norse, NIR, the chip simulator and Lava, layer by layer; or check one .nir file. Exit 1 when it fails."""
    from knarr.cli import report, stages

    if source.suffix == ".nir" and not source.is_dir():
        from knarr.cli import graphs

        _finish(graphs.verify_file(source, module, checkpoint, inputs, dt_s, json=json))
        return
    opened = stages.reopen(source)
    stages.verify(opened, samples=samples, again=True)
    _finish(report.show_verification(source / stages.VERIFICATION, json=json))


@app.command(epilog="Example: knarr energy runs/nmnist --json")
def energy(run: RunArgument, json: JsonOption = False) -> None:
    """Count a run's operations and price its inference against the ANN teacher."""
    from knarr.cli import report, stages

    opened = stages.reopen(run)
    stages.energy(opened)
    report.show_energy(run / stages.ENERGY, json=json)


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
