"""`knarr data check` and `knarr data events`.

`knarr data generate`: data sets that knarr draws itself, in the layout of the real ones.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from knarr.cli import output as progress
from knarr.cli.output import json_text, keep_apart, make_console
from knarr.files import write_atomic
from knarr.hw_sim import ChipError
from knarr.train.datasets.check import CHECKS, check
from knarr.train.datasets.events.camera import PUBLISHED_DENSITY, Dvs
from knarr.train.datasets.events.video import events_of_video
from knarr.train.datasets.eyes.generate import generate
from knarr.train.datasets.mosi.generate import generate_clips

SHOWN = 20


def check_data(name: str, root: Path, *, json: bool) -> bool:
    """Print what a folder holds; returns whether nothing is missing or left out.

    Raises:
        ChipError: no such dataset.
        DataError: a folder that cannot be used as a whole.
    """
    if name.lower().replace("-", "_") not in CHECKS:
        raise ChipError(f"data: '{name}' is not known; choose one of {', '.join(CHECKS)}")
    report = check(name, root)
    if json:
        print(json_text(report.to_json()))
        return report.complete
    table = Table(title=report.name)
    table.add_column("split")
    table.add_column("samples", justify="right")
    for split, samples in report.splits.items():
        table.add_row(split, f"{samples:,}")
    table.add_section()
    table.add_row("all", f"{report.samples:,}")
    console = make_console()
    console.print(f"folder: {report.root}", soft_wrap=True)
    console.print(table)
    if report.subjects:
        console.print(f"people (or videos): {report.subjects}")
    for what, lines in (("missing", report.missing), ("left out", report.skipped)):
        if lines:
            console.print(f"{what}: {len(lines)}")
            for line in lines[:SHOWN]:
                console.print(f"  {line}", soft_wrap=True)
            if len(lines) > SHOWN:
                console.print(f"  ... and {len(lines) - SHOWN} more; all of them with --json")
    return report.complete


def write_events(
    video: Path, out: Path, *, sensitivity: float, size: int, frames: int
) -> dict[str, Any]:
    """A video through the event-camera simulator into an .npz of frames (T, 2, H, W).

    Raises:
        DataError: a video that does not decode.
        ChipError: `out` is the video.
    """
    keep_apart(out, video)
    events = events_of_video(video, Dvs(sensitivity=sensitivity, size=size, frames=frames))
    buffer = io.BytesIO()
    fps = float("nan") if events.fps is None else events.fps
    np.savez_compressed(buffer, frames=events.frames, density=events.density, fps=fps)
    write_atomic(out, buffer.getvalue())
    return {
        "events": str(out),
        "shape": list(events.frames.shape),
        "fps": events.fps,
        "density": round(float(events.density), 6),
        "published_density_of_cmu_mosi": PUBLISHED_DENSITY,
    }


GENERATED = {
    "eyes": ("single eyes with seven emotions, in the layout of SEE", 48, 24),
    "clips": ("talking faces, negative or positive, in the layout of CMU-MOSI", 80, 20),
}
"""Name -> what it is, and height and width (pixels) and frames where nobody says."""


def generate_data(
    name: str, root: Path, *, seed: int = 0, size: int | None = None, frames: int | None = None
) -> dict[str, Any]:
    """Draw a data set into a folder that does not exist.

    Args:
        name: of `GENERATED`.
        root: the folder.
        seed: not negative; the same one draws the same.
        size: height and width of the pictures, pixels; even for clips.
        frames: of a clip.

    Raises:
        ChipError: no such name, or a number out of its range.
        DataError: the folder exists.
    """
    if name not in GENERATED:
        raise ChipError(f"data: '{name}' cannot be generated; choose one of {', '.join(GENERATED)}")
    what, own_size, own_frames = GENERATED[name]
    size, frames = own_size if size is None else size, own_frames if frames is None else frames
    make = generate if name == "eyes" else generate_clips
    try:
        make(root, size=size, frames=frames, seed=seed, progress=progress.counter("clips"))
    except ValueError as error:
        if type(error) is not ValueError:  # a DataError names its file already
            raise
        raise ChipError(f"data: {error}") from error
    return {"folder": str(root), "what": what, "size_px": size, "frames": frames, "seed": seed}
