"""Verbs of datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from knarr.cli.app import JsonOption, app, finish

data_app = typer.Typer(
    no_args_is_help=True,
    help="Datasets: what a folder holds, and events of any video.",
    epilog="Example: knarr data check nmnist nmnist_small",
)
app.add_typer(data_app, name="data")


@data_app.command(
    name="check", epilog="Example: knarr data check stress_predict stress_predict --json"
)
def data_check(
    name: Annotated[str, typer.Argument(help="deap, mahnob, mosi, nmnist, see or stress_predict.")],
    path: Annotated[Path, typer.Argument(help="Folder of the dataset, as it is published.")],
    json: JsonOption = False,
) -> None:
    """Say what was found, what is missing, and how many samples each split has. Exit 1 when something is left out."""
    from knarr.cli.commands import data as datasets

    finish(datasets.check_data(name, path, json=json))


@data_app.command(name="generate", epilog="Example: knarr data generate eyes eyes --seed 1")
def data_generate(
    name: Annotated[str, typer.Argument(help="eyes or clips.")],
    path: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same.", min=0)] = 0,
    size: Annotated[
        int | None, typer.Option("--size", help="Height and width, pixels.", min=1)
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Of a clip.", min=1)] = None,
    json: JsonOption = False,
) -> None:
    """Draw a data set in the layout of a real one: eyes as SEE, clips as CMU-MOSI."""
    from knarr.cli.commands import data as generating
    from knarr.cli.text import report

    report.say(generating.generate_data(name, path, seed=seed, size=size, frames=frames), json=json)


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
    frames: Annotated[
        int, typer.Option("--frames", help="Frames taken, the first as grey.", min=2)
    ] = 68,
    json: JsonOption = False,
) -> None:
    """Simulate an event camera on a video: a grey frame, then ON and OFF events of its changes."""
    from knarr.cli.commands import data as datasets
    from knarr.cli.text import report

    facts = datasets.write_events(video, out, sensitivity=sensitivity, size=size, frames=frames)
    report.say(facts, json=json)
