"""Things that a user names: arrays read without trust, modules, and outputs kept apart from inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from knarr.cli.errors import UsageError
from knarr.factories import build_network

if TYPE_CHECKING:
    import nir
    import numpy as np
    from torch import nn

MAPPED_BYTES = 2**26
"""Larger files are mapped, so that only what is looked at comes into memory."""


def keep_apart(out: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over what is read, or over the file of facts beside it.

    Raises:
        UsageError: `out` is one of the inputs.
    """
    if out is None:
        return
    # Graphs, chip networks and recordings lie beside a .json of facts, which a writer replaces too.
    mine = {path.resolve() for path in (out, out.with_name(f"{out.name}.json"))}
    for path in inputs:
        if path is None:
            continue
        theirs = {path.resolve(), path.with_name(f"{path.name}.json").resolve()}
        if mine & theirs:
            raise UsageError(f"{out}: is read as {path}; give another name to write to")


def need_drawing(picture: Path | None) -> None:
    """Refuse a picture that cannot be drawn, before the work that it is to show.

    Raises:
        MissingExtraError: A picture is wanted, and matplotlib is not installed.
    """
    if picture is not None:
        import matplotlib  # noqa: F401


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Read an array of numbers from a .npy file; nothing is unpickled.

    Raises:
        UsageError: No such file, or something else in it.
    """
    import numpy as np  # here, so that help and a wrong option answer at once

    if not path.is_file():
        raise UsageError(f"{path}: no such file; save integers with numpy.save")
    large = path.stat().st_size > MAPPED_BYTES
    try:
        array = np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(
            f"{path}: not a .npy array of numbers ({error}); save one with numpy.save"
        ) from error
    # numpy.load also opens .npz archives, whatever their names end in.
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path}: holds several arrays; save one with numpy.save")
    return array


def read_labels(path: Path | None) -> np.ndarray[Any, Any] | None:
    """Read the class of each sample; None where no file is named.

    Raises:
        UsageError: No (samples,) integers.
    """
    if path is None:
        return None
    labels = read_array(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(
            f"{path}: labels are (samples,) integers, these are {labels.dtype} {labels.shape}"
        )
    return labels


def time_step(
    named: object, given: float | None, path: Path, graph: nir.NIRGraph | None = None
) -> float:
    """Return the time step of a graph, seconds.

    Args:
        named: What the graph's own file says; anything but a number says nothing.
        given: What the user says, which goes first; None for nothing.
        path: The file, for the error.
        graph: The graph, whose constants say which steps are plausible.

    Raises:
        UsageError: Neither says it.
    """
    import numpy as np

    step = named if given is None else given
    if isinstance(step, bool) or not isinstance(step, (float, int, np.floating, np.integer)):
        advice = "give that of the tool that made it"
        if graph is not None:
            from knarr.export import step_advice

            advice = step_advice(graph)
        raise UsageError(f"{path}: names no time step; give --dt in seconds: {advice}")
    return float(step)


def make_module(factory: str, checkpoint: Path | None) -> nn.Module:
    """Make a user's own module, in eval mode; the user's code runs.

    Args:
        factory: "package.module:function" of a function without arguments; the current folder is
            looked in first.
        checkpoint: safetensors file of exactly the module's state; None keeps what the factory
            made.

    Raises:
        FactoryError: It cannot be imported or called, or gives something else than a torch module.
        RecipeError: The checkpoint does not fit.
    """
    module = build_network(factory)
    # Batch-norm and dropout of a module in training would differ from its graph.
    module.eval()
    if checkpoint is not None:
        from knarr.train import load_weights

        load_weights(module, checkpoint)
    return module
