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


@app.command(epilog="Example: knarr export runs/nmnist")
def export(run: RunArgument, json: JsonOption = False) -> None:
    """Export a run's student to a certified NIR graph, and its teacher to ONNX."""
    from knarr.cli import report, stages

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


@app.command(epilog="Example: knarr verify runs/nmnist --samples 20")
def verify(
    run: RunArgument,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test samples to run on Lava.", min=1)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare Norse, NIR, the chip simulator and Lava, layer by layer; exit 1 when they differ."""
    from knarr.cli import report, stages

    opened = stages.reopen(run)
    stages.verify(opened, samples=samples, again=True)
    _finish(report.show_verification(run / stages.VERIFICATION, json=json))


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
