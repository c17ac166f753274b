"""The certificate: a graph, stepped by our own reference stepper, did exactly what the live Norse module did."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knarr.export.errors import ExportError
from knarr.export.norse_to_nir import stages
from knarr.export.step import Trace, step_nir


@dataclass(frozen=True)
class Certificate:
    """What was compared when a graph was exported, and that it was equal.

    Args:
        dt_s: time step, seconds.
        samples, timesteps: of the inputs that were compared.
        decisions: neuron decisions compared, each equal.
        spikes: threshold node -> spikes that occurred; each more than 0, since equal silence proves nothing.
        margin_v: threshold node -> smallest |v - v_threshold| met, volts.
        voltages_compared: float32 voltages compared, each bit-equal.
        graph_hash: SHA-256 of nodes and edges.
        versions: of the packages that took part.
    """

    dt_s: float
    samples: int
    timesteps: int
    decisions: int
    spikes: dict[str, int]
    margin_v: dict[str, float]
    voltages_compared: int
    graph_hash: str
    versions: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)


def graph_hash(graph: nir.NIRGraph) -> str:
    """SHA-256 over node names, types, parameters and edges; independent of order and metadata."""
    digest = hashlib.sha256()
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
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
            else:
                array = np.asarray(value)
                digest.update(
                    f"{field}:{array.shape}".encode()
                    + np.ascontiguousarray(array, dtype=np.float64).tobytes()
                )
    digest.update(repr(sorted(graph.edges)).encode())
    return digest.hexdigest()


def trace_module(module: nn.Module, inputs: npt.ArrayLike) -> Trace:
    """Run the live module step by step and record every neuron, under the node names the export gives.

    Args:
        module: SequentialState in eval mode.
        inputs: (samples, timesteps, *features).
    """
    x = torch.as_tensor(np.asarray(inputs)).to(torch.float32)
    names = {id(leaf): name for name, leaf in stages(module)}
    spikes: dict[str, list[torch.Tensor]] = {}
    voltages: dict[str, list[torch.Tensor]] = {}

    def remember(leaf: nn.Module, _: Any, result: Any) -> None:
        out, state = result
        name = names[id(leaf)]
        voltages.setdefault(name, []).append(state.v.detach())
        if hasattr(leaf.p, "v_th"):
            spikes.setdefault(name, []).append(out.detach())

    stateful = [leaf for _, leaf in stages(module) if hasattr(leaf, "state_fallback")]
    if len({id(leaf) for leaf in stateful}) != len(stateful):
        raise ExportError("module: the same neuron cell is used twice; give each layer its own")
    handles = [leaf.register_forward_hook(remember) for leaf in stateful]
    outputs, state = [], None
    try:
        with torch.no_grad():
            for t in range(x.shape[1]):
                out, state = module(x[:, t], state)
                outputs.append(out)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        output=torch.stack(outputs, 1).numpy(),
        spikes={name: torch.stack(z, 1).numpy().astype(np.uint8) for name, z in spikes.items()},
        v={name: torch.stack(v, 1).numpy() for name, v in voltages.items()},
    )


def certify(
    module: snn.SequentialState, graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float
) -> Certificate:
    """Compare the module with the graph on inputs: every spike of every layer and step, every voltage bit.

    Args:
        module: the live Norse module, eval mode.
        graph: its export, best as read back from the file.
        inputs: (samples, timesteps, *features).
        dt_s: time step, seconds.

    Raises:
        ExportError: the first difference (node, sample, step), or a threshold layer that never fired.
    """
    live, stepped = compare_with_module(module, graph, inputs, dt_s)
    counts = {name: int(z.sum()) for name, z in live.spikes.items()}
    for name, count in counts.items():
        if count == 0:
            raise ExportError(
                f"certificate: node '{name}' never fired on the given samples, so equality proves nothing; "
                "pass samples that drive every layer"
            )
    samples, timesteps = live.output.shape[:2]
    return Certificate(
        dt_s=float(dt_s),
        samples=samples,
        timesteps=timesteps,
        decisions=sum(int(z.size) for z in live.spikes.values()),
        spikes=counts,
        margin_v=dict(stepped.margin),
        voltages_compared=sum(int(v.size) for v in live.v.values()),
        graph_hash=graph_hash(graph),
        versions={name: version(name) for name in ("knarr", "norse", "nir", "torch", "numpy")},
    )


def compare_with_module(
    module: snn.SequentialState, graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float
) -> tuple[Trace, Trace]:
    """Traces of module and graph on inputs, or an ExportError at the first difference; equal silence passes here."""
    live, stepped = trace_module(module, inputs), step_nir(graph, inputs, dt_s)
    if not live.spikes:
        raise ExportError("certificate: the module has no spiking layer; there is nothing to certify")
    for kind in ("spikes", "v"):
        ours, theirs = getattr(stepped, kind), getattr(live, kind)
        if set(ours) != set(theirs):
            raise ExportError(
                f"certificate: neurons {sorted(theirs)} in the module, {sorted(ours)} in the graph"
            )
        for name, expected in theirs.items():
            _require_equal(name, kind, expected, ours[name])
    _require_equal("output", "values", live.output, stepped.output)
    return live, stepped


def _require_equal(name: str, kind: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        raise ExportError(
            f"certificate: node '{name}': {kind} are {expected.dtype}{expected.shape} in the module, "
            f"{actual.dtype}{actual.shape} in the graph"
        )
    differs = np.argwhere(expected != actual)
    if len(differs):
        sample, step, *where = (int(i) for i in differs[np.argmin(differs[:, 1])])
        raise ExportError(
            f"certificate: node '{name}': {len(differs)} of {expected.size} {kind} differ between module and graph, first at "
            f"sample {sample}, time step {step}, index {tuple(where)}; the graph does not mean what the module does"
        )
