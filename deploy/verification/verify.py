"""`verify`: the same inputs through Norse, NIR, our simulator and Lava, and the first place where two of them part."""

from __future__ import annotations

from collections.abc import Callable
from math import isclose, prod
from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lava.run import run_on_lava
from knarr.deploy.lowering.chain import chip_shape
from knarr.deploy.netx.files import read_net
from knarr.deploy.verification.compare import Array, ChipView, Comparisons, FloatView
from knarr.deploy.verification.result import Verification
from knarr.export import graph_hash, step_nir, to_nir, trace_module
from knarr.export.graph.shapes import graph_input_shape
from knarr.hw_sim import ChipNetwork, simulate
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.recording import RECORDABLE

Progress = Callable[[int, int], None]


def verify(
    graph_or_module: nir.NIRGraph | snn.SequentialState,
    path: Path,
    inputs: npt.ArrayLike,
    dt_s: float,
    *,
    module: snn.SequentialState | None = None,
    labels: npt.ArrayLike | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run inputs through every stage and compare neighbours layer by layer.

    Norse and NIR must agree in spikes and voltages, simulator and Lava in spikes, voltages and currents. NIR and the
    simulator are compared in spikes: what integers cost is measured, not forbidden.

    Args:
        graph_or_module: the certified graph, or a Norse module (which is exported first and compared too).
        path: the `.net` file that was lowered from it.
        inputs: (samples, timesteps, *features) integers as the chip takes them. Norse and NIR are fed the floats they stand
            for, inputs / network.input.units; 0 and 1 stay what they are.
        dt_s: time step, seconds.
        module: the Norse module beside a graph, to be compared with it.
        labels: (samples,) true classes, to count what each stage decides rightly. The readout of the `.net` file decides,
            of float stages by the same reduction of the graph's output.
        timeout_s: limit of the Lava run, seconds.
        progress: called with (Lava steps done, in all).

    Raises:
        DeployError: the file was not lowered from this graph, its input is driven by bias, or the labels do not fit.
        ExportError, ChipError, LavaError: whatever else keeps a stage from running.
    """
    network = read_net(path)
    if network.input.neuron is not None:
        raise DeployError(
            f"{path}: its input is driven by bias, which no graph is lowered to; use verify_network for it"
        )
    events = check_inputs(network.input, inputs)
    floats = events / network.input.units
    graph = graph_or_module
    sizes = graph_input_shape(graph) if isinstance(graph, nir.NIRGraph) else np.shape(inputs)[2:]
    if chip_shape(sizes) == network.input.shape:
        floats = floats.reshape(
            *events.shape[:2], *sizes
        )  # signals are images one pixel high on the chip
    if not isinstance(graph, nir.NIRGraph):
        module = graph_or_module
        graph = to_nir(module, tuple(floats.shape[2:]), dt_s, samples=floats)
    if network.lowered_from is not None and network.lowered_from != graph_hash(graph):
        raise DeployError(
            f"{path}: was lowered from another graph than this one; lower this graph again"
        )
    if network.dt_s is not None and not isclose(network.dt_s, dt_s, rel_tol=1e-9):
        raise DeployError(
            f"{path}: was lowered with steps of {network.dt_s:g} s, not {dt_s:g} s; use its own or lower again"
        )
    true = _labels(labels, len(events))
    stepped = FloatView("NIR", step_nir(graph, floats, dt_s), graph, floats, dt_s)
    missing = [layer.neuron.name for layer in network.layers if layer.neuron.name not in stepped.v]
    if missing:
        raise DeployError(
            f"{path}: its neuron '{missing[0]}' is not in the graph; lower this graph again"
        )
    outputs: dict[str, Array] = {"NIR": stepped.trace.output}
    found = Comparisons()
    if module is not None:
        live = FloatView("Norse", trace_module(module, floats))
        outputs = {"Norse": live.trace.output, **outputs}
        strangers = [name for name in live.v if name not in stepped.v]
        if strangers:
            raise DeployError(
                f"module: its neuron '{strangers[0]}' is not in the graph; export this module again"
            )
        unheard = [name for name in stepped.v if name not in live.v]
        if unheard:
            raise DeployError(
                f"module: has no neuron '{unheard[0]}', which the graph has; give the whole module"
            )
        for name in live.v:
            if name in live.spikes:
                found.add(live, stepped, (name, name), "spikes", "=")
            found.add(live, stepped, (name, name), "v", "=")
    ours, lava = _run_chip(path, network, events, timeout_s, progress)
    for layer in network.layers:
        if layer.neuron.spikes:
            found.add(stepped, ours, (layer.neuron.name, layer.name), "spikes", "~")
    _add_chip(found, ours, lava)
    outputs |= {view.name: view.recording.output for view in (ours, lava)}
    return Verification(
        rows=tuple(found.rows),
        samples=events.shape[0],
        timesteps=events.shape[1],
        decisions={stage: _decide(network, stage, output) for stage, output in outputs.items()},
        labels=true,
        raster=found.raster(),
    )


def verify_network(
    path: Path,
    inputs: npt.ArrayLike,
    *,
    timesteps: int | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run a `.net` file without a graph, ours or not, in the simulator and in Lava, and compare every integer.

    Args:
        path: the `.net` file.
        inputs: (samples, timesteps, *features) integers, or bias mantissas, as `knarr.hw_sim.simulate` takes them.
        timesteps: how many, where the inputs are a bias without a time axis.
        timeout_s: limit of the Lava run, seconds.
        progress: called with (Lava steps done, in all).

    Raises:
        DeployError, ChipError, LavaError: whatever keeps the simulator or Lava from running.
    """
    network = read_net(path)
    events = check_inputs(network.input, inputs, timesteps)
    ours, lava = _run_chip(path, network, events, timeout_s, progress)
    found = Comparisons()
    _add_chip(found, ours, lava)
    return Verification(
        rows=tuple(found.rows),
        samples=events.shape[0],
        timesteps=events.shape[1],
        decisions={
            view.name: _decide(network, view.name, view.recording.output) for view in (ours, lava)
        },
        raster=found.raster(),
    )


def _run_chip(
    path: Path,
    network: ChipNetwork,
    events: npt.NDArray[np.integer[Any]],
    timeout_s: float | None,
    progress: Progress | None,
) -> tuple[ChipView, ChipView]:
    ours = simulate(network, events, record=RECORDABLE)
    lava = run_on_lava(path, events, record=RECORDABLE, timeout_s=timeout_s, progress=progress)
    return ChipView("hw_sim", ours, network, events), ChipView("Lava", lava, network, events)


def _add_chip(found: Comparisons, ours: ChipView, lava: ChipView) -> None:
    """Every recorded integer of simulator and Lava."""
    for name in ours.v:
        if name in ours.spikes:
            found.add(ours, lava, (name, name), "spikes", "=")
        found.add(ours, lava, (name, name), "v", "=")
        found.add(ours, lava, (name, name), "u", "=")


def _decide(network: ChipNetwork, stage: str, output: Array) -> tuple[int, ...]:
    flat = output.reshape(*output.shape[:2], -1)
    if flat.shape[2] != prod(network.output_shape):
        raise DeployError(
            f"{stage}: {flat.shape[2]} outputs, the chip network has {prod(network.output_shape)}; "
            "they are not the same network"
        )
    # float32 sums of a readout would depend on their order
    wide = flat.astype(np.float64 if np.issubdtype(flat.dtype, np.floating) else np.int64)
    return tuple(int(decision) for decision in network.readout.decide(wide))


def _labels(labels: npt.ArrayLike | None, samples: int) -> tuple[int, ...] | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (samples,) or not np.issubdtype(array.dtype, np.integer):
        raise DeployError(
            f"labels: {array.dtype} of shape {array.shape}, needs integers of shape ({samples},)"
        )
    return tuple(int(label) for label in array)
