"""Export a module: convert, write, read back, compare with the live module; only a graph that passed is returned."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nir
import numpy.typing as npt
from torch import nn

from knarr.export.arguments import as_dt, as_inputs, as_shape
from knarr.export.certificate import certify, replay_inputs
from knarr.export.errors import ExportError
from knarr.export.files import read, write
from knarr.export.norse.convert import convert
from knarr.export.norse.layers import take_apart
from knarr.export.norse.rewrite import rewrite


def to_nir(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dt_s: float,
    *,
    samples: npt.ArrayLike | None = None,
) -> nir.NIRGraph:
    """Export one time step of a Norse module as a certified NIR graph.

    The graph is written to a file, read back with type checks (ours and nir's own), stepped by `step_nir` and compared with
    the live module on random binary inputs and on `samples`: every spike and every float32 voltage must be equal.

    Args:
        module: SequentialState, nn.Sequential or `StepGraph` in eval mode, nested in any way, of Linear, Conv1d, Conv2d,
            AvgPool2d, LPPool2d(1), SumPool2d, Flatten, BatchNorm, LIFBoxCell, LIFCell, LIFRecurrentCell, PLIFBoxCell,
            IAFCell, LIBoxCell, LICell; Dropout and Identity are left out.
        input_shape: feature shape of one step without batch, (features,), (C, L) or (C, H, W).
        dt_s: time step, seconds; every neuron must have it as its dt.
        samples: (samples, timesteps, *input_shape) real inputs that drive every layer. With samples, they and not the
            random inputs must make every layer fire.

    Returns:
        The graph as read back; `graph.metadata["certificate"]` holds the certificate as JSON.

    Raises:
        ExportError: names what cannot be exported, or the first place where graph and module differ.
    """
    input_shape, dt_s = as_shape(input_shape), as_dt(dt_s)
    given = None if samples is None else as_inputs(samples, "samples")
    plain, _ = rewrite(take_apart(module))
    graph = convert(plain, input_shape, dt_s)
    # What is certified is what a file holds: nir rounds and reshapes some fields when it writes.
    with tempfile.TemporaryDirectory(prefix="knarr-export-") as folder:
        path = Path(folder) / "student.nir"
        write(graph, path)
        graph = read(path)
        try:
            nir.read(path, type_check=True)
        except Exception as error:  # nir raises what comes along
            raise ExportError(
                f"graph: nir's own type check refuses it ({error}); other readers would too"
            ) from error
    certificate = certify(
        module, graph, replay_inputs(input_shape) if given is None else given, dt_s
    )
    graph.metadata["certificate"] = certificate.to_json()
    return graph
