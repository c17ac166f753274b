"""`verify`: the same inputs through Norse, NIR, our simulator and Lava, and the first place where two of them part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lava import run_on_lava
from knarr.deploy.netx_read import read_net
from knarr.export import step_nir, to_nir, trace_module
from knarr.hw_sim import simulate


@dataclass(frozen=True)
class Comparison:
    """One layer, two stages.

    Args:
        pair: such as "hw_sim = Lava"; "=" must be equal, "~" is measured only (float against integers).
        layer: the node's name.
        what: "spikes" or "voltage".
        compared, mismatches: values.
        spikes: that the first of the two fired, so that equal silence is seen for what it is.
        first: (sample, time step, index...) of the earliest mismatch, None when equal.
    """

    pair: str
    layer: str
    what: str
    compared: int
    mismatches: int
    spikes: int
    first: tuple[int, ...] | None

    @property
    def required(self) -> bool:
        return "=" in self.pair


@dataclass(frozen=True)
class Verification:
    """All comparisons of a verification."""

    rows: tuple[Comparison, ...]
    samples: int
    timesteps: int

    @property
    def holds(self) -> bool:
        """Every pair that must be equal is equal, and every compared spiking layer fired."""
        return all(
            row.mismatches == 0 and (row.what != "spikes" or row.spikes > 0)
            for row in self.rows
            if row.required
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def verify(
    graph_or_module: nir.NIRGraph | snn.SequentialState,
    path: Path,
    inputs: npt.ArrayLike,
    dt_s: float,
    *,
    module: snn.SequentialState | None = None,
    timeout_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Run inputs through every stage and compare neighbours layer by layer.

    Args:
        graph_or_module: the certified graph, or a Norse module (which is exported first and compared too).
        path: the `.net` file that was lowered from it.
        inputs: (samples, timesteps, *features) integers.
        dt_s: time step, seconds.
        module: the Norse module beside a graph, to be compared with it.
        timeout_s: limit of the Lava run, seconds.
        progress: called with (Lava steps done, in all).

    Raises:
        ExportError, DeployError, ChipError, LavaError: whatever keeps a stage from running.
    """
    network = read_net(path)
    events = np.asarray(inputs)
    graph = graph_or_module
    if not isinstance(graph, nir.NIRGraph):
        module = graph_or_module
        graph = to_nir(module, tuple(events.shape[2:]), dt_s, samples=events)
    stepped = step_nir(graph, events, dt_s)
    rows = []
    if module is not None:
        live = trace_module(module, events)
        rows += [
            _compare("Norse = NIR", name, "spikes", z, stepped.spikes[name])
            for name, z in live.spikes.items()
        ]
        rows += [_compare("Norse = NIR", name, "voltage", v, stepped.v[name]) for name, v in live.v.items()]
    ours = simulate(network, events, record=("output", "spikes"))
    lava = run_on_lava(path, events, record=("output", "spikes"), timeout_s=timeout_s, progress=progress)
    spiking = [layer for layer in network.layers if layer.neuron.spikes]
    for layer in spiking:
        neuron = layer.neuron.name
        if neuron not in stepped.spikes:
            raise DeployError(f"{path}: its neuron '{neuron}' is not in the graph; lower this graph again")
        rows.append(
            _compare("NIR ~ hw_sim", layer.name, "spikes", stepped.spikes[neuron], ours.spikes[layer.name])
        )
    rows += [
        _compare("hw_sim = Lava", layer.name, "spikes", ours.spikes[layer.name], lava.spikes[layer.name])
        for layer in spiking
    ]
    if network.readout.kind == "voltage":
        rows.append(_compare("hw_sim = Lava", network.layers[-1].name, "voltage", ours.output, lava.output))
    return Verification(tuple(rows), events.shape[0], events.shape[1])


def _compare(pair: str, layer: str, what: str, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Comparison:
    if left.shape != right.shape:
        raise DeployError(
            f"layer '{layer}': {pair}: shapes {left.shape} and {right.shape}; they are not the same network"
        )
    differs = np.argwhere(left != right)
    first = None
    if len(differs):
        earliest = differs[np.lexsort((differs[:, 0], differs[:, 1]))[0]]
        first = tuple(int(i) for i in earliest)
    spikes = int(left.sum()) if what == "spikes" else 0
    return Comparison(pair, layer, what, int(left.size), len(differs), spikes, first)
