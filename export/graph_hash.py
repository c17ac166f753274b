"""One number for what a graph says."""

from __future__ import annotations

import hashlib

import nir
import numpy as np

from knarr.export.topology import inline


def graph_hash(graph: nir.NIRGraph) -> str:
    """SHA-256 over node names, types, parameters and edges; independent of their order and of metadata."""
    nodes, edges = inline(graph)
    digest = hashlib.sha256()
    for name in sorted(nodes):
        node = nodes[name]
        digest.update(f"{name}:{type(node).__name__}".encode())
        for field in sorted(vars(node)):
            value = getattr(node, field)
            if field == "metadata" or callable(value):
                continue
            if isinstance(value, dict):  # input_type and output_type: shapes
                value = [
                    None if shape is None else np.asarray(shape).tolist()
                    for _, shape in sorted(value.items())
                ]
                digest.update(f"{field}={value}".encode())
            elif value is None or isinstance(value, str):
                digest.update(f"{field}={value!r}".encode())
            else:
                array = np.asarray(value)
                digest.update(
                    f"{field}:{array.shape}".encode()
                    + np.ascontiguousarray(array, dtype=np.float64).tobytes()
                )
    digest.update(repr(sorted(edges)).encode())
    for name in sorted(nodes):
        sources = [source for source, target in edges if target == name]
        if len(sources) > 2:  # a sum of three rounds by its order
            digest.update(repr(sources).encode())
    return digest.hexdigest()
