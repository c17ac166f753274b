"""Things that a user names: arrays read without trust, modules, and outputs kept apart from inputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knarr.cli.errors import UsageError
from knarr.factories import build_network

if TYPE_CHECKING:
    import nir
    import numpy as np
    from torch import nn


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
        file, _ = _file_and_name(path)
        theirs = {file.resolve(), file.with_name(f"{file.name}.json").resolve()}
        if mine & theirs:
            raise UsageError(f"{out}: is read as {path}; give another name to write to")


def need_drawing(picture: Path | None) -> None:
    """Refuse a picture that cannot be drawn, before the work that it is to show.

    Raises:
        MissingExtraError: A picture is wanted, and matplotlib is not installed.
    """
    if picture is not None:
        import matplotlib  # noqa: F401


def read_array(path: Path, *, text: bool = False) -> np.ndarray[Any, Any]:
    """Read an array of numbers from a .npy file; nothing is unpickled.

    Args:
        path: The file, or one array of a .npz file, such as train.npz:labels.
        text: Whether it may hold words instead, such as names of people.

    Raises:
        ArrayFileError: No such file, or something else in it.
    """
    # Here, so that help and a wrong option answer at once.
    from knarr.arrays import read_npy, read_npz

    file, name = _file_and_name(path)
    if name is not None:
        return read_npz(file, name, text=text)[name]
    return read_npy(path, text=text)


def _file_and_name(path: Path) -> tuple[Path, str | None]:
    """Part train.npz:labels into the file and the name of its array; None for a file alone."""
    file, _, name = str(path).rpartition(":")
    return (Path(file), name) if file.endswith(".npz") and not path.exists() else (path, None)


def read_arrays(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    """Read one array from a .npy file, or several by name from a .npz file.

    Raises:
        ArrayFileError: No such file, or something else in it.
    """
    from knarr.arrays import ZIP_MAGIC, read_npy, read_npz

    # The content decides: numpy writes either kind under any name.
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
                return read_npz(path)
    return read_npy(path)


def read_labels(path: Path | None) -> np.ndarray[Any, Any] | None:
    """Read the class of each sample; None where no file is named.

    They are checked by `knarr.hw_sim.check_labels` once the network is known.

    Raises:
        UsageError: No array of numbers.
    """
    return None if path is None else read_array(path)


def read_graph(path: Path, input_shape: str | None = None) -> nir.NIRGraph:
    """Read a .nir file, ours or another tool's, and refuse one that was edited after its certificate.

    Args:
        path: The file; `<path>.json` beside it may hold its certificate.
        input_shape: Sizes of one time step with commas, where the file declares more axes.

    Raises:
        UsageError: No sizes.
        ExportError: No NIR graph, or not that of its certificate.
    """
    from knarr.export import read, require_certified

    shape = None if input_shape is None else read_sizes(input_shape)
    graph = read(path, shape)
    require_certified(graph, path)
    return graph


def read_sizes(text: str, option: str = "--input-shape") -> tuple[int, ...]:
    """Read sizes that an option gives.

    Raises:
        UsageError: No positive whole numbers with commas.
    """
    try:
        sizes = tuple(int(part) for part in text.rstrip(",").split(","))
    except ValueError as error:
        raise UsageError(f"{option} '{text}': write sizes with commas, such as 2,34,34") from error
    if min(sizes) < 1:
        raise UsageError(f"{option} '{text}': every size is a positive whole number")
    return sizes


def check_out(option: str, out: Path | None, *, folder: bool = False) -> None:
    """Refuse to write where nothing can be written, before the work whose result it is.

    Args:
        option: Name of the option, for the message.
        out: The file, or None for none.
        folder: Whether a folder is written, which may exist or be made with those above it.

    Raises:
        UsageError: A folder where a file is written or the other way round, no folder to write into, or one
            that others own.
    """
    if out is None:
        return
    if not folder and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(
            f"{option}: {out} is a folder, or lies in none; give a file in a folder that exists"
        )
    # The nearest that exists is what will be written, or written into.
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    if (folder or there != out) and not there.is_dir():
        raise UsageError(f"{option}: {there} is a file, so {out} cannot be made; name a folder")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{option}: {there} cannot be written; give a place that you own")


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
    if graph is not None and not isinstance(named, (float, np.floating)):
        from knarr.export import doubt_step

        doubt = doubt_step(graph, float(step))
        if doubt:
            print(f"{path}: {doubt}", file=sys.stderr)
    return float(step)


def make_module(
    factory: str, checkpoint: Path | None, input_shape: tuple[int, ...], dt_s: float
) -> nn.Module:
    """Make a user's own module, in eval mode; the user's code runs.

    Args:
        factory: "package.module:function"; the current folder is looked in first. The function may
            ask for input_shape and dt_s by name.
        checkpoint: safetensors or `.pt` file of exactly the module's state; None keeps what the
            factory made.
        input_shape: Sizes of one time step, without batch.
        dt_s: Time step, seconds.

    Raises:
        FactoryError: It cannot be imported or called, or gives something else than a torch module.
        RecipeError: The checkpoint does not fit.
    """
    module = build_network(factory, {"input_shape": input_shape, "dt_s": dt_s})
    # Batch-norm and dropout of a module in training would differ from its graph.
    module.eval()
    if checkpoint is not None:
        from knarr.train import load_user_weights

        load_user_weights(module, checkpoint)
    return module
