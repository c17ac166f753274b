"""Compare knarr's model of Loihi 1 with SANA-FE, term by term, on networks that both run to the spike.

SANA-FE takes one step per layer where knarr's counts are aligned to the input, so of a run of T steps
it sees the first T - k of layer k, after k steps in which the layer is idle. `pipelined` counts just
that.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from knarr.deploy import core_mapping, place
from knarr.hw_sim import (
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    OperationCounts,
    Readout,
    count,
)
from knarr.hw_sim.arrays import Array
from knarr.hw_sim.energy import CoreMapping, Traffic, load_profile, price, traffic_of
from knarr.hw_sim.energy.mapping import LOADS
from knarr.hw_sim.energy.models import step_times
from knarr.hw_sim.network import DECAY_UNITY

WORKER = Path(__file__).with_name("sanafe_worker.py")
TERMS = {
    "synapse": ("synapses",),
    "soma": ("updates", "spikes"),
    "network": ("messages", "hops"),
}
"""Energy of SANA-FE -> the terms of knarr's chip model in it."""


def networks() -> dict[str, tuple[ChipNetwork, Array]]:
    """Return three networks and their input biases: dense on three cores; dense and leaky on more; a
    convolution that is spread over cores.
    """
    random = np.random.default_rng(21)

    def dense(name: str, inputs: int, outputs: int, neuron: Neuron) -> Dense:
        weight = random.integers(-40, 60, (outputs, inputs)).astype(np.int32)
        return Dense(name, weight, neuron)

    def conv(name: str, inputs: tuple[int, int, int], outputs: int, stride: int) -> Conv:
        kernel = random.integers(-30, 50, (outputs, inputs[0], 3, 3)).astype(np.int32)
        neuron = Neuron(DECAY_UNITY, 256, 150)
        return Conv(name, kernel, neuron, inputs, (stride, stride), (1, 1))

    plain, leaky = Neuron(DECAY_UNITY, 0, 300), Neuron(DECAY_UNITY, 512, 400)
    dense_layers = (dense("a", 64, 64, plain), dense("b", 64, 10, plain))
    leaky_layers = (
        dense("a", 900, 700, leaky),
        dense("b", 700, 300, leaky),
        dense("c", 300, 10, leaky),
    )
    convolutions = (
        conv("a", (2, 20, 20), 8, 1),
        conv("b", (8, 20, 20), 16, 2),
        dense("c", 1600, 10, plain),
    )
    made = {
        "dense 64-64-10": ((64,), dense_layers, plain),
        "leaky 900-700-300-10": ((900,), leaky_layers, Neuron(DECAY_UNITY, 1024, 80)),
        "convolutions 2x20x20": ((2, 20, 20), convolutions, Neuron(DECAY_UNITY, 1024, 60)),
    }
    found = {}
    for name, (shape, layers, neuron) in made.items():
        network = ChipNetwork(layers, InputCoding(shape, neuron=neuron), Readout("spikes"))
        found[name] = network, random.integers(0, 30, shape)
    return found


@dataclass(frozen=True)
class Compared:
    """One network in both.

    Args:
        knarr, sana_fe: term -> energy, J; with "total", and "time" in s.
    """

    knarr: dict[str, float]
    sana_fe: dict[str, float]


def compare(python: Path, network: ChipNetwork, bias: Array, steps: int = 40) -> Compared:
    """Run a network in both.

    Args:
        python: of an environment with SANA-FE.
        network: driven by bias.
        bias: of its input neurons, the same at every step.
        steps: of the run.
    """
    mapping = core_mapping(network, place(network, "loihi1"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        np.savez(path, **sanafe_network(network, bias, mapping, steps))
        run = subprocess.run(
            [python, WORKER, path], capture_output=True, text=True, check=False, timeout=600
        )
    if run.returncode:
        raise SystemExit(f"SANA-FE in {python}: {run.stderr.strip()[-500:]}")
    theirs = json.loads(run.stdout.splitlines()[-1])
    inputs = np.broadcast_to(bias, (1, steps, *network.input.shape))
    counts, traffic = pipelined(network, inputs, mapping)
    mine = price(counts, "loihi1_cal", model="chip", traffic=traffic)
    knarr = {
        term: sum(mine.terms[name].nominal for name in names) * 1e-12
        for term, names in TERMS.items()
    }
    seconds = float(step_times(load_profile("loihi1_cal"), traffic)[1].sum())
    return Compared(
        knarr | {"total": mine.nominal_pj * 1e-12, "time": seconds},
        {term: theirs["energy"][term] for term in (*TERMS, "total")} | {"time": theirs["sim_time"]},
    )


def pipelined(
    network: ChipNetwork, inputs: Array, mapping: CoreMapping
) -> tuple[OperationCounts, Traffic]:
    """Count what happens within the steps of the inputs where each layer is a step behind."""
    steps, depth = inputs.shape[1], len(mapping.layers)
    runs = [
        (
            count(network, inputs[:, : steps - behind]),
            traffic_of(network, inputs[:, : steps - behind], mapping),
        )
        for behind in range(depth)
    ]
    layers, traffic = {}, {}
    loads = np.zeros_like(runs[0][1].loads)
    sending = [LOADS.index(name) for name in ("updated", "spikes", "messages_out")]
    receiving = [LOADS.index(name) for name in ("messages_in", "synapses", "synapses_conv")]
    whole = runs[0][1].loads
    loads[..., LOADS.index("neurons")] = whole[..., LOADS.index("neurons")]
    for behind, (name, placed) in enumerate(mapping.layers.items()):
        counted, moved = runs[behind][0].layers[name], runs[behind][1].layers[name]
        # Spikes that arrive here left a layer that is one step less behind.
        heard = runs[max(0, behind - 1)][0].layers[name]
        neurons = counted.neuron_updates / (steps - behind)
        layers[name] = replace(
            runs[0][0].layers[name],
            acc=heard.acc,
            acc_nonzero=heard.acc_nonzero,
            events=heard.events,
            spikes=counted.spikes,
            neuron_updates=neurons * steps,
        )
        traffic[name] = replace(moved, updated=moved.updated * (steps - behind) / steps)
        cores = np.unique(placed.core)
        for load, late in [(load, behind) for load in sending] + [
            (load, max(0, behind - 1)) for load in receiving
        ]:
            loads[:, late:, cores, load] = whole[:, : steps - late, cores, load]
    return (
        replace(runs[0][0], layers=layers),
        replace(runs[0][1], layers=traffic, loads=loads),
    )


def sanafe_network(
    network: ChipNetwork, bias: Array, mapping: CoreMapping, steps: int
) -> dict[str, Any]:
    """Return a network as the arrays that sanafe_worker.py reads; potentials in units of 64."""
    found: dict[str, Any] = {"layers": len(mapping.layers), "steps": steps}
    assert network.input.neuron is not None  # these networks are driven by bias
    neurons = [network.input.neuron, *(layer.neuron for layer in network.layers)]
    for at, (neuron, placed) in enumerate(zip(neurons, mapping.layers.values(), strict=True)):
        leak, memory = (
            (DECAY_UNITY - int(register)) / DECAY_UNITY
            for register in (neuron.v_decay, neuron.i_decay)
        )
        found[f"registers_{at}"] = [int(neuron.vth_int), leak, memory]
        found[f"core_{at}"] = placed.core
        found[f"bias_{at}"] = np.zeros(len(placed.core))
        found[f"synapse_{at}"] = "loihi_dense_synapse"
    found["bias_0"] = bias.reshape(-1)
    for at, layer in enumerate(network.layers, start=1):
        matrix = layer.weight_int.astype(np.int64)
        stored = np.ones(matrix.shape, dtype=bool)
        if isinstance(layer, Conv):
            found[f"synapse_{at}"] = "loihi_conv_synapse"
            matrix, stored = _expanded(layer)
        target, source = np.nonzero(stored)
        found[f"edges_{at}"] = np.column_stack([source, target])
        found[f"weights_{at}"] = matrix[target, source]
    return found


def _expanded(layer: Conv) -> tuple[Array, Array]:
    """Return every synapse of a convolution: (outputs, inputs) weights, and which of them exist."""
    _, height, width = layer.input_shape
    shape = layer.output_shape
    matrix = np.zeros((prod(shape), prod(layer.input_shape)), dtype=np.int64)
    stored = np.zeros_like(matrix, dtype=bool)
    for out, (c_out, y, x) in enumerate(np.ndindex(shape)):
        for c_in, tap_y, tap_x in np.ndindex(layer.weight_int.shape[1:]):
            row = y * layer.stride[0] + tap_y - layer.padding[0]
            column = x * layer.stride[1] + tap_x - layer.padding[1]
            if 0 <= row < height and 0 <= column < width:
                sender = (c_in * height + row) * width + column
                matrix[out, sender] = layer.weight_int[c_out, c_in, tap_y, tap_x]
                stored[out, sender] = True
    return matrix, stored
