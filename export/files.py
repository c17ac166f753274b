"""Read and write NIR files, type-checked both ways, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir

from knarr.export.arguments import as_shape
from knarr.export.certificate import Certificate, require_metadata
from knarr.export.errors import CertificateError, ExportError
from knarr.export.graph.complete import build, complete
from knarr.export.graph.hdf5_guard import load
from knarr.export.graph.topology import graph_hash
from knarr.files import replacing, write_atomic

FILLED = "knarr_filled"
"""Metadata key under which stands, line by line, what the file left out and the NIR standard defines."""


def write(graph: nir.NIRGraph, path: Path) -> None:
    """Write a graph, and beside it `<path>.json` with its certificate when it has one.

    Args:
        graph: any NIR graph; one from `to_nir` carries its certificate in the metadata.
        path: `.nir` file; replaced in one move after it was read back.

    Raises:
        ExportError: nir cannot write it, it cannot be read back, or it was changed after it was certified.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ExportError(
            f"{path}: is a folder or lies in one that does not exist; give a file name such as student.nir"
        )
    for name in graph.nodes if isinstance(graph, nir.NIRGraph) else ():
        if "/" in name:
            raise ExportError(
                f"{path}: node '{name}' has a slash in its name, which HDF5 takes for a group; rename it"
            )
    with replacing(path) as temporary:
        try:
            nir.write(temporary, graph)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ExportError(
                f"{path}: nir cannot write this graph ({error}); complete its fields"
            ) from error
        # Reading back proves the file, and gives the graph as others will see it, whose hash the certificate holds.
        again = _read(temporary, path)
        sidecar = path.with_name(f"{path.name}.json")
        certificate = graph.metadata.get("certificate")
        if certificate is not None:
            proof = Certificate.from_json(_text(certificate))
            if proof.graph_hash != graph_hash(again):
                raise ExportError(
                    f"{path}: the graph was changed after it was certified; remove its certificate or export again"
                )
            require_metadata(again, proof.dt_s)
            write_atomic(sidecar, (_text(certificate) + "\n").encode())
        else:
            # A certificate that lies there is of the graph that is being replaced.
            sidecar.unlink(missing_ok=True)


def read(path: Path, input_shape: tuple[int, ...] | None = None) -> nir.NIRGraph:
    """Read a NIR file, ours or another tool's, with every shape checked and every parameter spread over its neurons.

    Args:
        path: `.nir` file.
        input_shape: sizes of one time step, for files whose Input declares batch or time as well, or nothing. Leading
            axes of 1 that no node takes need no such help.

    Returns:
        The graph; `metadata["knarr_filled"]` lists what was missing and is defined by the NIR standard, and leading axes
        that were dropped, if anything.

    Raises:
        ExportError: missing, too large, not HDF5, not a NIR graph, a loop without a meaning, or something NIR leaves open;
            in bounded time and memory, whatever the bytes are.
    """
    shape = None if input_shape is None else as_shape(input_shape)
    return _read(Path(path), Path(path), shape)


def _read(path: Path, shown: Path, input_shape: tuple[int, ...] | None = None) -> nir.NIRGraph:
    try:
        tree = load(path)
        node = tree.get("node")
        if not isinstance(node, dict) or "type" not in node:
            raise ExportError("no 'node' group in it")
        if node["type"] != "NIRGraph":
            raise ExportError(f"holds a single {node['type']}, needs a graph")
        filled: list[str] = []
        graph = complete(build(node, filled), filled, input_shape)
    except ExportError as error:
        # A file is read under a temporary name before it is moved; the user knows the other one.
        text = str(error).replace(str(path), str(shown))
        prefix = "" if text.startswith(str(shown)) else f"{shown}: not a valid NIR graph: "
        raise ExportError(" ".join(f"{prefix}{text}".split())) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"{shown}: not a valid NIR graph ({reason})") from error
    if filled:
        graph.metadata[FILLED] = "\n".join(filled)
    return graph


def certificate_beside(path: Path) -> Certificate | None:
    """Return the certificate that lies beside a NIR file; None where there is none.

    Raises:
        ExportError: it is one of knarr's and cannot be read.
    """
    path = Path(path)
    sidecar = path.with_name(f"{path.name}.json")
    if not sidecar.is_file():
        return None
    # Broken bytes become marks that are no JSON, which the certificate's reader names.
    text = sidecar.read_bytes().decode("utf-8", "replace")
    # Other people keep facts of their own beside their graphs.
    if '"graph_hash"' not in text:
        return None
    try:
        return Certificate.from_json(text)
    except ExportError as error:
        raise ExportError(f"{sidecar}: {error}") from error


def require_certified(graph: nir.NIRGraph, path: Path) -> None:
    """Refuse a graph that is not the one of the certificate beside its file.

    Raises:
        CertificateError: it was changed after it was certified, or the certificate is of another graph.
        ExportError: the certificate cannot be read.
    """
    found = certificate_beside(path)
    if found is not None and found.graph_hash != graph_hash(graph):
        raise CertificateError(
            f"{path}: is not the graph of its certificate {Path(path).name}.json, whose hash differs: it was edited, or "
            "replaced; export the module again, or remove the certificate to use the file as it is"
        )


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
