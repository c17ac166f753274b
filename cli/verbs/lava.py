"""Verbs of the Lava simulator: lava install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from knarr.cli.app import app
from knarr.cli.output import show, show_progress

lava_app = typer.Typer(
    no_args_is_help=True,
    help="Install the Lava simulator, which `verify` and `simulate --engine lava` run.",
    epilog="Example: knarr lava install",
)
app.add_typer(lava_app, name="lava")


@lava_app.callback()
def _keep_subcommands() -> None:
    """Keep `install` a verb of its own; typer would make a lone one the group itself."""


@lava_app.command(epilog="Example: knarr lava install; knarr lava install --folder lava")
def install(
    folder: Annotated[
        Path | None,
        Option(
            help="Folder of its own for Lava; KNARR_LAVA_PATH, or share/knarr/lava in knarr's environment, when left out."
        ),
    ] = None,
) -> None:
    """Fetch Lava's wheels, check their hashes and keep what is needed: 78 MB to fetch, 2 MB to keep.

    pip or uv fetches them, whichever there is, from the index that it is set up for. The folder
    appears whole or not at all. `knarr doctor` runs what was installed.
    """
    from knarr.deploy import install_lava, lava_folder
    from knarr.pipeline import counter

    installed = install_lava(
        folder, progress=counter(show_progress, "Lava: MB fetched and unpacked")
    )
    show(f"Lava is in {installed}", soft_wrap=True)
    if installed != lava_folder():
        show(f"Set KNARR_LAVA_PATH={installed} so that knarr finds it.", soft_wrap=True)
