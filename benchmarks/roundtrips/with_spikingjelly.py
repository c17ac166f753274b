"""SpikingJelly's `export_to_nir` and `import_from_nir`; see worker.py."""

from __future__ import annotations

from pathlib import Path

import nir
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir, import_from_nir
from torch import nn
from worker import FEATURES, IMAGE, NEURONS, Own, Run, binary, fill, over_time, serve, with_state

DT_S = 1e-4  # the default of both functions


def read(path: Path, dt_s: float) -> Run:
    return with_state(import_from_nir(nir.read(path), dt=dt_s))


def export(*layers: nn.Module, shape: tuple[int, ...] = (FEATURES,)) -> Own:
    net = nn.Sequential(*layers)
    inputs = binary(shape)
    graph = export_to_nir(net, inputs[:1, 0])
    functional.reset_net(net)
    return Own(graph, inputs, over_time(net, inputs), DT_S)


def linear(drive: float) -> nn.Module:
    return fill(layer.Linear(FEATURES, NEURONS), drive)


if __name__ == "__main__":
    serve(
        ("spikingjelly", "nir", "nirtorch", "torch"),
        read,
        {
            "LIFNode": lambda: export(linear(8.0), neuron.LIFNode(tau=10.0)),
            "LIFNode, decay_input=False": lambda: export(
                linear(0.8), neuron.LIFNode(tau=10.0, decay_input=False)
            ),
            "LIFNode, v_reset -0.5": lambda: export(
                linear(8.0), neuron.LIFNode(tau=10.0, v_reset=-0.5)
            ),
            "LIFNode, v_reset None": lambda: export(
                linear(8.0), neuron.LIFNode(tau=10.0, v_reset=None)
            ),
            "ParametricLIFNode": lambda: export(
                linear(8.0), neuron.ParametricLIFNode(init_tau=10.0)
            ),
            "IFNode": lambda: export(linear(0.5), neuron.IFNode()),
            "CUBALIFNode": lambda: export(
                linear(0.2), neuron.CUBALIFNode(c_decay=0.8, v_decay=0.9)
            ),
            "Conv2d, AvgPool2d, LIFNode": lambda: export(
                fill(layer.Conv2d(IMAGE[0], 6, 3, padding=1), 8.0),
                neuron.LIFNode(tau=10.0),
                layer.AvgPool2d(2),
                layer.Flatten(),
                fill(layer.Linear(150, NEURONS), 8.0),
                neuron.LIFNode(tau=10.0),
                shape=IMAGE,
            ),
        },
    )
