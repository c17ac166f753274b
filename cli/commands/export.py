"""`knarr export MODULE:FACTORY` and `knarr verify FILE.nir`: a graph on its own, without a run around it."""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import nir
import numpy as np
from torch import nn

from knarr.cli.output import read_inputs
from knarr.cli.text.report import say
from knarr.export import (
    Certificate,
    CertificateError,
    ExportError,
    certify,
    graph_hash,
    read,
    step_nir,
    to_nir,
    write,
)
from knarr.export.arguments import as_inputs
from knarr.export.certificate import replay_inputs, replay_sha256
from knarr.export.files import FILLED
from knarr.export.graph.shapes import graph_input_shape
from knarr.export.graph.step import execution_order
from knarr.train.fitting.files import load_weights


def make_module(factory: str, checkpoint: Path | None) -> nn.Module:
    """The module that `package.module:factory` makes, with the weights of a safetensors file.

    Args:
        factory: import path and the name of a function without arguments; the current folder is looked in first.
        checkpoint: safetensors of exactly the module's state; None keeps what the factory made.

    Raises:
        ExportError: it cannot be imported, called, or gives something else than a torch module.
        RecipeError: the checkpoint does not fit.
    """
    where, _, name = factory.partition(":")
    if not where or not name:
        raise ExportError(f"'{factory}': write package.module:factory, such as mystudent:build")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(where), name)
        module = make()
    except Exception as error:  # the user's own code may raise anything
        raise ExportError(
            f"'{factory}': cannot be made ({type(error).__name__}: {error}); see that it imports"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(module, nn.Module):
        raise ExportError(
            f"'{factory}': gives {type(module).__name__}, needs a torch module; return the network"
        )
    module.eval()
    if checkpoint is not None:
        load_weights(module, checkpoint)
    return module


def export_module(
    factory: str,
    checkpoint: Path | None,
    input_shape: str,
    dt_s: float,
    samples: Path | None,
    out: Path,
) -> Certificate:
    """Write a certified graph of a user's own module.

    Args:
        factory, checkpoint: as `make_module` takes them.
        input_shape: sizes of one time step, such as "2,34,34".
        dt_s: time step, seconds.
        samples: .npy of (samples, timesteps, *input_shape); random spikes when left out.
        out: .nir file.

    Raises:
        ExportError: what cannot be exported, or where graph and module differ; no file is left then.
    """
    try:
        shape = tuple(int(part) for part in input_shape.split(","))
    except ValueError as error:
        raise ExportError(
            f"--input-shape '{input_shape}': write sizes with commas, such as 2,34,34"
        ) from error
    module = make_module(factory, checkpoint)
    inputs = None if samples is None else as_inputs(read_inputs(samples), str(samples))
    if inputs is not None and inputs.shape[2:] != shape:
        raise ExportError(
            f"{samples}: shape {inputs.shape}, needs (samples, timesteps, {input_shape})"
        )
    graph = to_nir(module, shape, dt_s, samples=inputs)
    write(graph, out)
    return Certificate.from_json(graph.metadata["certificate"])


def verify_file(
    path: Path,
    factory: str | None,
    checkpoint: Path | None,
    samples: Path | None,
    dt_s: float | None,
    *,
    json: bool,
) -> bool:
    """Check a .nir file and print what it holds; returns whether it is proved to be what was certified.

    Without a module the spikes that the certificate promises on its replay inputs are stepped again. With one, the graph is
    compared with the live module, spike for spike.

    Raises:
        ExportError: the file is no valid graph, or the module cannot be made or compared.
    """
    if factory is None and (checkpoint is not None or samples is not None or dt_s is not None):
        raise ExportError(
            "--checkpoint, --inputs and --dt go with --module; without it the certificate is replayed"
        )
    graph = read(path)
    facts: dict[str, Any] = {
        "file": str(path),
        "nodes": _nodes(graph),
        "graph_hash": graph_hash(graph),
    }
    filled = str(graph.metadata.get(FILLED, ""))
    if filled:
        facts["filled_in"] = filled.splitlines()
    sidecar = path.with_name(f"{path.name}.json")
    certificate = (
        Certificate.from_json(sidecar.read_bytes().decode("utf-8", "replace"))
        if sidecar.is_file()
        else None
    )
    if factory is not None:
        step = dt_s if dt_s is not None else _dt(graph, certificate)
        module = make_module(factory, checkpoint)
        inputs = (
            replay_inputs(graph_input_shape(graph)) if samples is None else read_inputs(samples)
        )
        facts["compared_with"] = factory
        try:
            proof = certify(module, graph, inputs, step)
        except CertificateError as error:
            facts["first_difference"], holds = str(error), False
        else:
            facts |= {"decisions": proof.decisions, "differing": 0, "spikes": proof.spikes}
            facts["margin_v"], holds = proof.margin_v, True
    elif certificate is None:
        facts["certificate"] = (
            f"none beside it ({sidecar.name}); give --module to compare it with the network it came from"
        )
        holds = False
    else:
        holds = _replay(graph, certificate, facts)
    facts["holds"] = holds
    say(facts, json=json)
    return holds


def _replay(graph: nir.NIRGraph, certificate: Certificate, facts: dict[str, Any]) -> bool:
    if certificate.graph_hash != graph_hash(graph):
        facts["certificate"] = "of another graph: its hash differs; export the module again"
        return False
    trace = step_nir(graph, replay_inputs(graph_input_shape(graph)), certificate.dt_s)
    same = replay_sha256(trace) == certificate.replay_sha256
    facts |= {
        "certificate": "of this graph",
        "certified_decisions": certificate.decisions,
        "margin_v": certificate.margin_v,
        "rewrites": certificate.rewrites,
        "replay": f"{sum(int(z.sum()) for z in trace.spikes.values()):,} spikes, "
        + (
            "as certified"
            if same
            else "not those that were certified: this machine steps the graph otherwise"
        ),
    }
    return same


def _dt(graph: nir.NIRGraph, certificate: Certificate | None) -> float:
    dt = graph.metadata.get("dt_s") if certificate is None else certificate.dt_s
    if not isinstance(dt, (float, np.floating)):
        raise ExportError("the file names no time step; give --dt in seconds")
    return float(dt)


def _nodes(graph: nir.NIRGraph) -> list[str]:
    lines = []
    for name in execution_order(graph):
        node = graph.nodes.get(name)
        kind = "inside a nested graph" if node is None else type(node).__name__
        shape = (
            "" if node is None or not node.output_type else next(iter(node.output_type.values()))
        )
        lines.append(
            f"{name}: {kind} {tuple(int(n) for n in shape) if len(shape) else ''} {_times(node)}".rstrip()
        )
    return lines


def _times(node: Any) -> str:
    parts = []
    for field in ("tau", "tau_mem", "tau_syn"):
        values = getattr(node, field, None)
        if values is not None:
            low, high = 1e3 * float(np.min(values)), 1e3 * float(np.max(values))
            spread = f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g}..{high:.3g}"
            parts.append(f"{field} {spread} ms")
    return ", ".join(parts)
