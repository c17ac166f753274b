"""Certify that a graph, stepped by our own reference stepper, did exactly what the live Norse module did."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from knarr.export.arguments import as_dt, as_graph
from knarr.export.errors import CertificateError, ExportError
from knarr.export.graph.shapes import graph_input_shape
from knarr.export.graph.topology import METADATA, execution_order, graph_hash

if TYPE_CHECKING:
    from torch import nn

    from knarr.export.graph.step import Trace
    from knarr.export.norse.observe import Observation


@dataclass(frozen=True)
class Certificate:
    """The record of what was compared when a graph was exported, and found equal.

    Args:
        dt_s: time step, seconds.
        samples, timesteps: size of the inputs that were compared.
        decisions: neuron decisions compared, each equal.
        spikes: threshold node -> spikes that occurred; each more than 0, since equal silence proves nothing.
        margin_v: threshold node -> smallest |v - v_threshold| met, volts.
        voltages_compared: float32 voltages compared, each bit-equal.
        graph_hash: SHA-256 of nodes and edges.
        versions: of the packages that took part.
        rewrites: module path -> what stands in its place in the graph; empty when every layer is its own node. With
            rewrites the voltages are those of the rewritten module, and spikes are equal with the original as well.
        v_difference: largest |difference| of a voltage between the original and the rewritten module, volts.
        neurons_fired: threshold node -> neurons that fired at least once; what never fired was not seen to reset.
        replay_sha256: SHA-256 of every spike on `replay_inputs`, so that the file can be checked where the module is
            not at hand.
        left_out: what the module does behind the output of the graph, in its order, such as a sum over time.
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
    rewrites: dict[str, str] = field(default_factory=dict)
    v_difference: float = 0.0
    neurons_fired: dict[str, int] = field(default_factory=dict)
    replay_sha256: str = ""
    left_out: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the certificate as JSON with sorted keys."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Certificate:
        """Read what `to_json` wrote.

        Raises:
            ExportError: not JSON, or other fields than a certificate has.
        """
        try:
            return TypeAdapter(Certificate).validate_json(text)
        except (ValueError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"certificate: cannot be read ({reason}); export the module again"
            ) from error


REPLAY_SAMPLES, REPLAY_TIMESTEPS = 8, 32
REPLAY_DENSITIES = (0.05, 0.2, 0.5, 0.9)


def replay_inputs(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return (8, 32, *shape) inputs that are the same for everyone.

    Random 0 and 1 of four densities; two of the samples hold counts up to 5, two hold real numbers in -2..2.
    """
    rng = np.random.default_rng(0)
    density = np.resize(REPLAY_DENSITIES, REPLAY_SAMPLES).reshape(-1, 1, *[1] * len(shape))
    inputs = (rng.random((REPLAY_SAMPLES, REPLAY_TIMESTEPS, *shape)) < density).astype(np.float32)
    inputs[4:6] *= rng.integers(1, 6, inputs[4:6].shape)
    inputs[6:] = 4 * rng.random(inputs[6:].shape) - 2
    return inputs


def require_metadata(graph: nir.NIRGraph, dt_s: float) -> None:
    """Check that what a graph says of itself agrees with what is compared.

    Raises:
        ExportError: another dt, integration, reset or unit.
    """
    for key, value in {**METADATA, "dt_s": dt_s}.items():
        # A graph that says nothing is taken to mean what is compared; HDF5 gives texts back as bytes.
        found = graph.metadata.get(key, value)
        found = found.decode() if isinstance(found, bytes) else found
        if found != value:
            raise CertificateError(
                f"certificate: the graph's metadata say {key} = {found!r}, compared is {value!r}; correct them"
            )


def replay_sha256(trace: Trace) -> str:
    """Return the SHA-256 of all spikes of a trace, independent of the order of its nodes."""
    digest = hashlib.sha256()
    for name in sorted(trace.spikes):
        digest.update(
            f"{name}:{trace.spikes[name].shape}".encode()
            + np.packbits(trace.spikes[name]).tobytes()
        )
    return digest.hexdigest()


def certify(
    module: nn.Module, graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float
) -> Certificate:
    """Compare the module with the graph on inputs, as `compare` does, and let no layer be silent.

    Args:
        module, graph, inputs, dt_s: as for `compare`.

    Raises:
        ExportError: the first difference (node, sample, step), or a threshold layer that never fired.
    """
    certificate = compare(module, graph, inputs, dt_s)
    for name, count in certificate.spikes.items():
        if count == 0:
            raise ExportError(
                f"certificate: node '{name}' never fired on the given samples, so equality proves nothing; "
                "pass samples that drive every layer"
            )
    return certificate


def compare(
    module: nn.Module, graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float
) -> Certificate:
    """Compare the module with the graph on inputs: every spike of every layer and step, every voltage bit.

    Args:
        module: the live Norse module, eval mode.
        graph: its export, best as read back from the file.
        inputs: (samples, timesteps, *features).
        dt_s: time step, seconds.

    Raises:
        ExportError: the first difference (node, sample, step).
    """
    from knarr.export.graph.step import (
        step_nir,
    )  # files are read with certificates and without torch

    dt_s = as_dt(dt_s)
    as_graph(graph)
    seen, stepped, rewrites = _compared(module, graph, inputs, dt_s)
    # A user's inputs may leave much of the graph untouched; random ones leave less.
    replay = replay_inputs(graph_input_shape(graph))
    _compared(module, graph, replay, dt_s)
    live = seen.trace
    require_metadata(graph, dt_s)
    counts = {name: int(z.sum()) for name, z in live.spikes.items()}
    samples, timesteps = live.output.shape[:2]
    differences = [float(np.abs(live.v[name] - stepped.v[name]).max(initial=0)) for name in live.v]
    return Certificate(
        dt_s=float(dt_s),
        samples=samples,
        timesteps=timesteps,
        decisions=sum(int(z.size) for z in live.spikes.values()),
        spikes=counts,
        margin_v={name: stepped.margin[name] for name in counts},
        voltages_compared=sum(int(v.size) for v in live.v.values()),
        graph_hash=graph_hash(graph),
        versions={name: version(name) for name in ("knarr", "norse", "nir", "torch", "numpy")},
        rewrites=rewrites,
        v_difference=max(differences),
        neurons_fired={name: int(z.any(axis=(0, 1)).sum()) for name, z in live.spikes.items()},
        replay_sha256=replay_sha256(step_nir(graph, replay, dt_s)),
        left_out=seen.layers.left_out,
    )


def _compared(
    module: nn.Module, graph: nir.NIRGraph, inputs: npt.ArrayLike, dt_s: float
) -> tuple[Observation, Trace, dict[str, str]]:
    """Return what the module did, the graph's trace, and what was rewritten; equal silence passes here."""
    from knarr.export.graph.step import run_graph
    from knarr.export.norse.observe import observe
    from knarr.export.norse.rewrite import as_module, rewrite
    from knarr.export.norse.trace_leaves import trace_leaves

    # Both sides run on the same inputs; an unstable module must be shown to be unstable in the graph as well.
    seen = observe(module, inputs)
    live, stepped = seen.trace, run_graph(graph, seen.inputs, dt_s, unstable=True)
    if not live.spikes:
        raise ExportError(
            "certificate: the module has no spiking layer; there is nothing to certify"
        )
    order = {name: i for i, name in enumerate([*execution_order(graph), "output"])}
    plain, rewrites = rewrite(seen.layers, tuple(seen.inputs.shape[2:]))
    if seen.recorded and not rewrites:
        # A module may add in another order than its layers do one after the other, or all steps at once.
        try:
            require_equal(live, stepped, order, ("spikes", "v"), "module and graph")
        except CertificateError:
            rewrites = {"": "sums in the order of the graph"}
    if rewrites:
        # A rewrite moves voltages by roundings: the original must agree in every spike, the rewritten module in every bit.
        listed = "; ".join(f"'{path}': {what}" for path, what in rewrites.items())
        require_equal(
            live, stepped, order, ("spikes",), f"module and graph, which has rewritten {listed}"
        )
        if seen.recorded:
            _require_close(live, stepped)
        again = trace_leaves(as_module(plain, late=_late(graph)), seen.inputs)
        require_equal(again, stepped, order, ("spikes", "v"), "module and graph")
    else:
        require_equal(live, stepped, order, ("spikes", "v"), "module and graph")
    return seen, stepped, rewrites


def _require_close(live: Trace, stepped: Trace) -> None:
    """Check that voltages and outputs differ by no more than rounding, where equal spikes do not tell.

    Raises:
        CertificateError: names the layer.
    """
    from knarr.export.norse.observe import ROUNDING

    pairs = {name: (live.v[name], stepped.v[name]) for name in live.v if name in stepped.v}
    pairs["output"] = (live.output, stepped.output)
    for name, (ours, theirs) in pairs.items():
        largest = max(float(np.abs(ours).max(initial=0)), float(np.abs(theirs).max(initial=0)))
        apart = (
            float(np.abs(ours - theirs).max(initial=0)) if ours.shape == theirs.shape else np.inf
        )
        # Written so that NaN does not pass.
        if not apart <= ROUNDING * largest:
            raise CertificateError(
                f"certificate: node '{name}': values differ by {apart:g} between module and graph, of {largest:g} at most; "
                "the graph does not mean what the module does"
            )


def _late(graph: nir.NIRGraph) -> bool:
    return not any(isinstance(node, nir.Delay) for node in graph.nodes.values())


def require_equal(
    expected: Trace, actual: Trace, order: dict[str, int], kinds: tuple[str, ...], between: str
) -> None:
    """Check that every array of two traces is equal; the message names what differs first in time, then in order.

    Args:
        expected, actual: traces of the same neurons.
        order: node -> place in the graph.
        kinds: "spikes", "v"; with "v" the output must be equal too.
        between: what is compared, for the message.

    Raises:
        CertificateError: at the first difference.
    """
    found: list[tuple[int, int, str]] = []
    for kind in kinds:
        ours, theirs = getattr(actual, kind), getattr(expected, kind)
        if set(ours) != set(theirs):
            raise CertificateError(
                f"certificate: neurons {sorted(theirs)} in the module, {sorted(ours)} in the graph; "
                "they are not the same network"
            )
        for name in theirs:
            found += _difference(
                name, kind, theirs[name], ours[name], order.get(name, len(order)), between
            )
    if "v" in kinds:
        found += _difference(
            "output", "values", expected.output, actual.output, len(order), between
        )
    if found:
        raise CertificateError(min(found)[2])


def _difference(
    name: str,
    kind: str,
    expected: npt.NDArray[Any],
    actual: npt.NDArray[Any],
    place: int,
    between: str,
) -> list[tuple[int, int, str]]:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        raise CertificateError(
            f"certificate: node '{name}': {kind} are {expected.dtype}{expected.shape} in the module, "
            f"{actual.dtype}{actual.shape} in the graph"
        )
    # NaN differs from itself, so a voltage that overflowed is never taken for equal.
    differs = np.argwhere(expected != actual)
    if not len(differs):
        return []
    sample, step, *where = (int(i) for i in differs[np.argmin(differs[:, 1])])
    message = (
        f"certificate: node '{name}': {len(differs)} of {expected.size} {kind} differ between {between}, first at "
        f"sample {sample}, time step {step}, index {tuple(where)}; the graph does not mean what the module does"
    )
    # The caller sorts by step, then by place in the graph: later differences follow from the first.
    return [(step, place, message)]
