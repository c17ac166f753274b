"""Verbs of datasets: data check, data generate, data events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from knarr.cli.app import JsonOption, app, finish
from knarr.cli.errors import UsageError
from knarr.cli.files import keep_apart
from knarr.cli.output import make_table, show, show_progress

if TYPE_CHECKING:
    from knarr.train import DataReport

SHOWN = 20
"""Lines of each kind that are printed; all of them stand in the JSON document."""

GENERATED = {
    "eyes": ("single eyes with seven emotions, in the layout of SEE", 48, 24),
    "clips": ("talking faces, negative or positive, in the layout of CMU-MOSI", 80, 20),
}
"""Name -> description, and default height and width (pixels) and frames."""

data_app = typer.Typer(
    no_args_is_help=True,
    help="Check a folder of data, generate data, or make events of any video.",
    epilog="Example: knarr data check nmnist nmnist_small",
)
app.add_typer(data_app, name="data")


@data_app.command(epilog="Example: knarr data check stress_predict stress_predict --json")
def check(
    name: Annotated[
        str,
        Argument(help="Name of the dataset: deap, mahnob, mosi, nmnist, see or stress_predict."),
    ],
    path: Annotated[Path, Argument(help="Folder of the dataset, as it is published.")],
    json: JsonOption = False,
) -> None:
    """Say what was found, what is missing, and how many samples each split has.

    The exit code is 1 when something is left out.
    """
    from knarr.pipeline import json_text
    from knarr.train import CHECKS, check_dataset

    # Published names have hyphens and capitals.
    if name.lower().replace("-", "_") not in CHECKS:
        raise UsageError(f"data: '{name}' is not known; choose one of {', '.join(CHECKS)}")
    report = check_dataset(name, path)
    if json:
        print(json_text(report.to_json()))
    else:
        _print_dataset(report)
    finish(report.complete)


def _print_dataset(report: DataReport) -> None:
    table = make_table(report.name, "split", "samples")
    for split, samples in report.splits.items():
        table.add_row(split, f"{samples:,}")
    table.add_section()
    table.add_row("all", f"{report.samples:,}")
    show(f"folder: {report.root}", soft_wrap=True)
    show(table)
    if report.subjects:
        show(f"people (or videos): {report.subjects}")
    for what, lines in (("missing", report.missing), ("left out", report.skipped)):
        if lines:
            show(f"{what}: {len(lines)}")
        for line in lines[:SHOWN]:
            show(f"  {line}", soft_wrap=True)
        if len(lines) > SHOWN:
            show(f"  ... and {len(lines) - SHOWN} more; all of them with --json")


@data_app.command(epilog="Example: knarr data generate eyes eyes --seed 1")
def generate(
    name: Annotated[str, Argument(help="Kind of data to draw: eyes or clips.")],
    path: Annotated[Path, Argument(help="Folder to make; it must not exist.")],
    seed: Annotated[int, Option(help="Seed; the same seed draws the same data.", min=0)] = 0,
    size: Annotated[
        int | None, Option(help="Height and width of the pictures, pixels.", min=1)
    ] = None,
    frames: Annotated[int | None, Option(help="Number of frames of a clip.", min=1)] = None,
    json: JsonOption = False,
) -> None:
    """Draw a data set in the layout of a real one: eyes as SEE, clips as CMU-MOSI."""
    from knarr.cli.text.report import print_facts
    from knarr.pipeline import counter
    from knarr.train import generate as generate_eyes
    from knarr.train import generate_clips

    if name not in GENERATED:
        raise UsageError(
            f"data: '{name}' cannot be generated; choose one of {', '.join(GENERATED)}"
        )
    what, own_size, own_frames = GENERATED[name]
    size = own_size if size is None else size
    frames = own_frames if frames is None else frames
    draw = generate_eyes if name == "eyes" else generate_clips
    try:
        draw(path, size=size, frames=frames, seed=seed, progress=counter(show_progress, "clips"))
    except ValueError as error:
        if type(error) is not ValueError:  # a DataError names its file already
            raise
        raise UsageError(f"data: {error}") from error
    facts = {"folder": str(path), "what": what, "size_px": size, "frames": frames, "seed": seed}
    print_facts(facts, json=json)


@data_app.command(epilog="Example: knarr data events talk.mp4 --out events.npz --sensitivity 0.001")
def events(
    video: Annotated[Path, Argument(help="Video file of any kind.")],
    out: Annotated[Path, Option(help=".npz file to write.")] = Path("events.npz"),
    sensitivity: Annotated[
        float, Option(help="Change of grey (0..1) at which a pixel fires.", min=0, max=1)
    ] = 0.001,
    size: Annotated[int, Option(help="Height and width of the frames, pixels.", min=1)] = 128,
    frames: Annotated[int, Option(help="Number of frames taken, the first as grey.", min=2)] = 68,
    json: JsonOption = False,
) -> None:
    """Simulate an event camera on a video: a grey frame, then ON and OFF events of its changes."""
    import io

    import numpy as np

    from knarr.cli.text.report import print_facts
    from knarr.files import write_atomic
    from knarr.train import PUBLISHED_DENSITY, Dvs, events_of_video

    keep_apart(out, video)
    found = events_of_video(video, Dvs(sensitivity=sensitivity, size=size, frames=frames))
    buffer = io.BytesIO()
    # An .npz has no None.
    fps = float("nan") if found.fps is None else found.fps
    np.savez_compressed(buffer, frames=found.frames, density=found.density, fps=fps)
    write_atomic(out, buffer.getvalue())
    facts = {
        "events": str(out),
        "shape": list(found.frames.shape),
        "fps": found.fps,
        # The share of pixels that fire, to be set beside the published one.
        "density": round(float(found.density), 6),
        "published_density_of_cmu_mosi": PUBLISHED_DENSITY,
    }
    print_facts(facts, json=json)
