"""NIR files: type-checked both ways, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import h5py
import nir

from knarr.export.certificate import graph_hash
from knarr.export.errors import ExportError

MAX_FILE_BYTES = 2_000_000_000


def write(graph: nir.NIRGraph, path: Path) -> None:
    """Write a graph, and beside it `<path>.json` with its certificate when it has one.

    Args:
        graph: any NIR graph; one from `to_nir` carries its certificate in the metadata.
        path: `.nir` file; replaced in one move after it was read back.

    Raises:
        ExportError: nir cannot write it or cannot read it back with its type check.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        try:
            nir.write(temporary, graph)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{path}: nir cannot write this graph ({error})") from error
        again = read(temporary)
        certificate = graph.metadata.get("certificate")
        if certificate is not None and json.loads(_text(certificate))["graph_hash"] != graph_hash(again):
            raise ExportError(
                f"{path}: the graph was changed after it was certified; remove its certificate or export again"
            )
        if certificate is not None:
            sidecar = Path(folder) / f"{path.name}.json"
            sidecar.write_text(_text(certificate) + "\n", encoding="utf-8")
            os.replace(sidecar, path.with_name(sidecar.name))
        else:
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)  # of a graph that is being replaced
        os.replace(temporary, path)


def read(path: Path) -> nir.NIRGraph:
    """Read a NIR file with nir's type check.

    Raises:
        ExportError: missing, too large, not HDF5, or not a valid NIR graph.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file; write one with `knarr export`")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ExportError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    if not h5py.is_hdf5(path):
        raise ExportError(f"{path}: not an HDF5 file, so not a NIR graph")
    try:
        graph = nir.read(path, type_check=True)
    except Exception as error:
        raise ExportError(f"{path}: not a valid NIR graph ({type(error).__name__}: {error})") from error
    if not isinstance(graph, nir.NIRGraph):
        raise ExportError(f"{path}: holds a single {type(graph).__name__}, needs a graph")
    return graph


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
