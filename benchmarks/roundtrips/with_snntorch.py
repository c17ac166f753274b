"""snnTorch's `export_to_nir` and `import_from_nir`; see worker.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import snntorch as snn
import snntorch.utils
import torch
from snntorch.export_nir import export_to_nir
from snntorch.import_nir import import_from_nir
from torch import nn
from worker import FEATURES, IMAGE, NEURONS, Own, Run, binary, fill, over_time, serve, with_state

DT_S = 1e-4  # export_nir.py has no other


def read(path: Path, dt_s: float) -> Run:
    return with_state(import_from_nir(nir.read(path)))


def export(
    *layers: nn.Module, shape: tuple[int, ...] = (FEATURES,), ignore: tuple[int, ...] = (0,)
) -> Own:
    net = nn.Sequential(*layers)
    inputs = binary(shape)
    graph = export_to_nir(net, inputs[:1, 0], ignore_dims=list(ignore))
    snn.utils.reset(net)
    return Own(graph, inputs, over_time(net, inputs), DT_S)


def full(value: float, shape: tuple[int, ...] = (NEURONS,)) -> torch.Tensor:
    return torch.full(shape, value)


def leaky(shape: tuple[int, ...] = (NEURONS,), **more: Any) -> nn.Module:
    return snn.Leaky(beta=full(0.9, shape), threshold=full(1.0, shape), init_hidden=True, **more)


def synaptic(**more: Any) -> nn.Module:
    return snn.Synaptic(
        alpha=full(0.8), beta=full(0.9), threshold=full(1.0), init_hidden=True, **more
    )


def recurrent(**more: Any) -> nn.Module:
    return snn.RLeaky(beta=0.9, threshold=1.0, linear_features=NEURONS, init_hidden=True, **more)


def linear(drive: float) -> nn.Module:
    return fill(nn.Linear(FEATURES, NEURONS), drive)


HARD = {"reset_mechanism": "zero", "reset_delay": False}

if __name__ == "__main__":
    serve(
        ("snntorch", "nir", "nirtorch", "torch"),
        read,
        {
            "Leaky": lambda: export(linear(0.8), leaky()),
            "Leaky, zero reset": lambda: export(linear(0.8), leaky(reset_mechanism="zero")),
            "Leaky, zero reset, no delay": lambda: export(linear(0.8), leaky(**HARD)),
            "Leaky, batch axis not ignored": lambda: export(linear(0.8), leaky(**HARD), ignore=()),
            "Leaky, scalar beta, zero, no delay": lambda: export(
                linear(0.8), snn.Leaky(beta=0.9, init_hidden=True, **HARD)
            ),
            "Synaptic": lambda: export(linear(0.2), synaptic()),
            "Synaptic, zero reset, no delay": lambda: export(linear(0.2), synaptic(**HARD)),
            "Synaptic, zero reset": lambda: export(linear(0.2), synaptic(reset_mechanism="zero")),
            "RLeaky, zero reset": lambda: export(linear(0.8), recurrent(reset_mechanism="zero")),
            "RLeaky, zero reset, no delay": lambda: export(linear(0.8), recurrent(**HARD)),
            "Conv2d, AvgPool2d, zero reset, no delay": lambda: export(
                fill(nn.Conv2d(IMAGE[0], 6, 3, padding=1), 0.8),
                leaky((6, 10, 10), **HARD),
                nn.AvgPool2d(2),
                nn.Flatten(),
                fill(nn.Linear(150, NEURONS), 0.8),
                leaky(**HARD),
                shape=IMAGE,
            ),
        },
    )
