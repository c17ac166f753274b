"""The root of the `knarr` command, and what several verbs share: options, refusals, exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from typer import Argument, Option

import knarr
from knarr.cli.errors import UsageError
from knarr.cli.output import show_progress
from knarr.errors import KnarrError
from knarr.ranks import world_size

DOES_NOT_HOLD, BAD_INPUT = 1, 2
"""Exit codes: the thing that was checked does not hold; the input cannot be used."""

app = typer.Typer(
    no_args_is_help=True,
    # Completion would write to the configuration of the user's shell.
    add_completion=False,
    # A traceback is a fault in knarr, and is reported best as Python prints it.
    pretty_exceptions_enable=False,
    help="Carries a spiking student network from Norse to Loihi, and proves that what arrives is what left.",
    epilog="Example: knarr pipeline eyes --out runs/eyes",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"knarr {knarr.__version__}")
        raise typer.Exit


@app.callback()
def refuse_torchrun(
    context: typer.Context,
    version: Annotated[
        bool,
        Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Refuse several processes for every verb but `train`, whose fits alone they can share.

    Raises:
        UsageError: Another verb was started by torchrun.
    """
    verb, processes = context.invoked_subcommand, world_size()
    if processes > 1 and verb != "train":
        raise UsageError(
            f"{verb}: {processes} processes, but torchrun shares the work of `knarr train` alone; run it without torchrun"
        )


OverTime = Literal["sum", "mean", "last"]
"""Ways in which the outputs of all time steps become one score."""
ChipName = Literal["loihi1", "loihi2"]
"""Chips whose cores are known."""
RunArgument = Annotated[
    Path, Argument(help="Folder of the run, such as runs/nmnist.", metavar="RUN")
]
RecipeArgument = Annotated[
    str,
    Argument(
        help="Name of a shipped recipe, such as nmnist or eyes, or a YAML file.", metavar="RECIPE"
    ),
]


def _demand_folder(path: Path | None) -> Path | None:
    """Refuse a folder that is not there before all that reads it is loaded.

    Raises:
        UsageError: It is none.
    """
    if path is not None and not path.is_dir():
        raise UsageError(f"{path}: the data folder is missing; check the path")
    return path


DataOption = Annotated[
    Path | None,
    Option(
        "--data",
        help="Folder of the recipe's data; leave it out where knarr generates them.",
        callback=_demand_folder,
    ),
]
DatasetArgument = Annotated[
    Path, Argument(help="Folder of the dataset, as it is published.", callback=_demand_folder)
]
OutOption = Annotated[
    Path | None, Option("--out", help="Folder of the run; runs/<recipe name> when left out.")
]
SetOption = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Change of a setting, such as student.fit.epochs=3; may be given several times.",
        metavar="PATH=VALUE",
    ),
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON document on standard output.")]
CheckpointOption = Annotated[
    Path | None,
    Option(
        "--checkpoint",
        help="safetensors or .pt file with the module's weights (with MODULE:FACTORY).",
    ),
]
ChipOption = Annotated[
    ChipName, Option("--chip", help="Chip whose cores the network is placed on.")
]
TimestepsOption = Annotated[
    int | None,
    Option("--timesteps", help="Number of time steps, where the inputs have no time axis.", min=1),
]
InputBitsOption = Annotated[
    int | None,
    Option(
        "--input-bits",
        help="Bits of the payloads, of either sign, that a file of another tool is fed: netx's input_message_bits. Default: spikes.",
        min=1,
        max=16,
    ),
]
InputShapeOption = Annotated[
    str | None,
    Option(
        "--input-shape",
        help="Sizes of one time step, such as 2,34,34, where the file declares batch or time as well (FILE.nir).",
    ),
]
LabelsOption = Annotated[
    Path | None, Option("--labels", help=".npy file with the class of each sample.")
]


def refuse_unrelated_options(context: typer.Context, what: str, allowed: set[str]) -> None:
    """Refuse options that do not go with the source that was named, instead of leaving them out in
    silence.

    Args:
        context: Of the verb.
        what: The kind of source, for the message.
        allowed: Names of the parameters that go with it.

    Raises:
        UsageError: Another one was given.
    """
    for parameter in context.command.params:
        # A default says nothing about what the user wants; click calls what was typed COMMANDLINE.
        source = context.get_parameter_source(str(parameter.name))
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in {"source", "json", *allowed}:
            cure = "its recipe holds it" if what == "a run" else "see --help"
            raise UsageError(f"{parameter.opts[-1]}: does not go with {what}; {cure}")


def finish(holds: bool) -> None:
    """End a verb that checked something: with exit code 1 if it does not hold."""
    # typer turns the exception into the exit code without a message.
    if not holds:
        raise typer.Exit(DOES_NOT_HOLD)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every expected fault is one line on standard error, never a
    traceback.
    """
    try:
        app(args=arguments, prog_name="knarr")
    except KnarrError as error:
        from knarr.deploy import LavaMissingError

        # A RuntimeError says that the thing itself failed; anything else, and a Lava that is not there, that nothing was tried.
        failed = isinstance(error, RuntimeError) and not isinstance(error, LavaMissingError)
        _fail(str(error), DOES_NOT_HOLD if failed else BAD_INPUT)
    # A full disk or a folder without permission is the user's to mend, and names its file.
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    finally:
        show_progress.close()


def _fail(message: str, status: int) -> NoReturn:
    show_progress.close()  # or the terminal's cursor stays hidden behind a bar
    # One line, whatever line breaks the message of a library has.
    print(f"knarr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
