"""`to_nir`: convert, write, read back, compare with the live module; only a graph that passed is handed out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt

from knarr.export.certificate import certify, compare_with_module
from knarr.export.files import read, write
from knarr.export.norse_to_nir import convert

RANDOM_SAMPLES, RANDOM_TIMESTEPS = 8, 32
RANDOM_DENSITIES = (0.05, 0.2, 0.5, 0.9)


def to_nir(
    module: snn.SequentialState,
    input_shape: tuple[int, ...],
    dt_s: float,
    *,
    samples: npt.ArrayLike | None = None,
) -> nir.NIRGraph:
    """Export one time step of a Norse module as a certified NIR graph.

    The graph is written to a file, read back with nir's type check, stepped by `step_nir` and compared with the live
    module on random binary inputs and on `samples`: every spike and every float32 voltage must be equal.

    Args:
        module: SequentialState in eval mode of Linear, Conv2d, AvgPool2d, Flatten, LIFBoxCell, LIFCell, LIBoxCell;
            Dropout and Identity are left out.
        input_shape: feature shape of one step without batch, (features,) or (C, H, W).
        dt_s: time step, seconds; every neuron must have it as its dt.
        samples: (samples, timesteps, *input_shape) real inputs that drive every layer. With samples, they and not the
            random inputs must make every layer fire.

    Returns:
        The graph as read back; `graph.metadata["certificate"]` holds the certificate as JSON.

    Raises:
        ExportError: names what cannot be exported, or the first place where graph and module differ.
    """
    graph = convert(module, input_shape, dt_s)
    with tempfile.TemporaryDirectory(prefix="knarr-export-") as folder:
        path = Path(folder) / "student.nir"
        write(graph, path)
        graph = read(path)
    random = _random_inputs(input_shape)
    compare_with_module(module, graph, random, dt_s)
    certificate = certify(module, graph, random if samples is None else samples, dt_s)
    graph.metadata["certificate"] = certificate.to_json()
    return graph


def _random_inputs(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    density = np.resize(RANDOM_DENSITIES, RANDOM_SAMPLES).reshape(-1, 1, *[1] * len(shape))
    return (rng.random((RANDOM_SAMPLES, RANDOM_TIMESTEPS, *shape)) < density).astype(np.float32)
