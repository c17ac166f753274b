"""Sinabs's `to_nir` and `from_nir`; see worker.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import sinabs.layers as sl
import torch
from sinabs.activation import MembraneReset, SingleSpike
from sinabs.nir import from_nir, to_nir
from torch import nn
from worker import FEATURES, IMAGE, NEURONS, SAMPLES, Own, Run, binary, fill, serve

DT_S = 1.0  # time constants are counted in steps
HARD = {"spike_fn": SingleSpike, "reset_fn": MembraneReset()}


def read(path: Path, dt_s: float) -> Run:
    net = from_nir(nir.read(path), batch_size=SAMPLES)

    def run(x: torch.Tensor) -> torch.Tensor:
        spikes = net(x.flatten(0, 1))
        return (spikes[0] if isinstance(spikes, tuple) else spikes).unflatten(0, x.shape[:2])

    return run


def export(*layers: nn.Module, shape: tuple[int, ...] = (FEATURES,)) -> Own:
    net = nn.Sequential(*layers)
    inputs = binary(shape)
    graph = to_nir(net, inputs.flatten(0, 1))
    for layer in layers:
        if isinstance(layer, sl.StatefulLayer):
            layer.reset_states()
    return Own(graph, inputs, net(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]), DT_S)


def linear(drive: float) -> nn.Module:
    return fill(nn.Linear(FEATURES, NEURONS), drive)


def lif(**more: Any) -> nn.Module:
    return sl.LIFSqueeze(
        tau_mem=torch.full((NEURONS,), 10.0),
        spike_threshold=torch.ones(NEURONS),
        batch_size=SAMPLES,
        **more,
    )


def iaf(**more: Any) -> nn.Module:
    return sl.IAFSqueeze(batch_size=SAMPLES, **more)


if __name__ == "__main__":
    serve(
        ("sinabs", "nir", "nirtorch", "torch"),
        read,
        {
            "LIF": lambda: export(linear(8.0), lif()),
            "LIF, reset and single spike": lambda: export(linear(8.0), lif(**HARD)),
            "LIF, norm_input=False, reset and single spike": lambda: export(
                linear(0.8), lif(norm_input=False, **HARD)
            ),
            "IAF": lambda: export(linear(0.5), iaf()),
            "IAF, reset and single spike": lambda: export(linear(0.5), iaf(**HARD)),
            "Conv2d, SumPool2d, IAF, reset and single spike": lambda: export(
                fill(nn.Conv2d(IMAGE[0], 6, 3, padding=1), 0.5),
                iaf(**HARD),
                sl.SumPool2d(2),
                nn.Flatten(),
                fill(nn.Linear(150, NEURONS), 0.3),
                iaf(**HARD),
                shape=IMAGE,
            ),
        },
        whole=True,
    )
