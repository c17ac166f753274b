"""The command's root, and what several verbs share: options, refusals, exit codes.

The `knarr` command. Verbs register themselves with the root in the order of this file, which is the order of the help.
"""

from __future__ import annotations

import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from knarr.errors import KnarrError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Carries a spiking student network from Norse to Loihi, and proves that what arrives is what left.",
    epilog="Example: knarr pipeline eyes --out runs/eyes",
)


RunArgument = Annotated[
    Path, typer.Argument(help="Run folder, such as runs/nmnist.", metavar="RUN")
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="Shipped recipe, such as nmnist or eyes, or a YAML file.", metavar="RECIPE"
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder of the recipe's data; left out where knarr generates them."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run folder; default runs/<recipe name>.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting, such as student.fit.epochs=3; several times.",
        metavar="PATH=VALUE",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.")
]

DOES_NOT_HOLD, BAD_INPUT = 1, 2

ModuleOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="safetensors with the module's weights (with MODULE:FACTORY)."
    ),
]
SamplesOption = Annotated[
    Path | None,
    typer.Option(
        "--inputs", help=".npy of (samples, timesteps, *features); random spikes otherwise."
    ),
]


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


ChipOption = Annotated[
    ChipName, typer.Option("--chip", help="Whose cores the network is placed on.")
]
TimestepsOption = Annotated[
    int | None, typer.Option("--timesteps", help="How many, where inputs have no time axis.", min=1)
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", help=".npy of one class per sample.")
]


def refuse_unrelated_options(context: typer.Context, what: str, allowed: set[str]) -> None:
    """Refuse options that do not go with what was named, instead of leaving them out in silence."""
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name))
        if (
            given is not None
            and given.name == "COMMANDLINE"
            and parameter.name not in {"source", "json", *allowed}
        ):
            cure = "its recipe holds it" if what == "a run" else "see --help"
            fail(f"{parameter.opts[-1]}: does not go with {what}; {cure}", BAD_INPUT)


def finish(holds: bool) -> None:
    if not holds:
        raise typer.Exit(DOES_NOT_HOLD)


def fail(message: str, status: int) -> NoReturn:
    print(f"knarr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


for _verbs in ("run", "train", "graph", "chip", "energy", "data"):
    import_module(f"knarr.cli.options.{_verbs}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every expected fault is one line on standard error, never a traceback."""
    try:
        app(args=arguments, prog_name="knarr")
    except KnarrError as error:
        # A RuntimeError says that the thing itself failed; anything else that its input cannot be used.
        fail(str(error), DOES_NOT_HOLD if isinstance(error, RuntimeError) else BAD_INPUT)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
