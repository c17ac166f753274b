"""`knarr data generate`: data sets that knarr draws itself, in the layout of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knarr.cli import progress
from knarr.hw_sim import ChipError
from knarr.train.datasets.mosi_generate import generate_clips
from knarr.train.eyes import generate

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
