"""Nets of Sinabs, by its `to_nir`; see nets.py."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import sinabs.layers as sl
import torch
from nets import (
    CLASSES,
    FEATURES,
    HIDDEN,
    Made,
    Net,
    Spikes,
    excite,
    images,
    sequence,
    serve,
    vectors,
)
from sinabs.activation import MembraneReset, SingleSpike
from sinabs.nir import to_nir
from torch import nn

DT_S = 1.0  # time constants are counted in steps
TAU = 8.0
EULER_DT_S = TAU * (1 - math.exp(-1 / TAU))
"""The time step at which forward Euler decays as Sinabs does in one: dt/tau = 1 - exp(-1/tau)."""

RESET = {"reset_fn": MembraneReset()}
ONE = {**RESET, "spike_fn": SingleSpike}

SUBTRACT = "subtracts the threshold per spike and fires several times a step; the file says reset to 0, one spike"
SEVERAL = "fires several times a step; the file says one spike"
EXPONENTIAL = "decays by exp(-1/tau), forward Euler by 1 - 1/tau"


def run(net: nn.Module, spiking: list[Any], inputs: torch.Tensor) -> Spikes:
    heard: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output: heard.append(output.clone()))
        for layer in spiking
    ]
    for layer in spiking:
        layer.reset_states()
    net(inputs.flatten(0, 1))
    for hook in hooks:
        hook.remove()
    return [spikes.unflatten(0, inputs.shape[:2]) for spikes in heard]


def made(*layers: nn.Module, inputs: torch.Tensor, dt_s: float = DT_S) -> Made:
    net = sequence(*layers)
    spiking = [layer for layer in layers if isinstance(layer, sl.StatefulLayer)]
    for layer in spiking:
        layer.batch_size = len(inputs)
    again = partial(run, net, spiking, inputs)
    excite(layers, again)
    graph = to_nir(net, inputs.flatten(0, 1))
    # to_nir leaves Conv2d.input_shape unset and nir cannot write None: nir's own inference is the way round it.
    if any(isinstance(layer, nn.Conv2d) for layer in layers):
        graph.infer_types()
    return Made(graph, inputs, again(), dt_s)


def iaf(**how: Any) -> nn.Module:
    return sl.IAFSqueeze(batch_size=1, **how)


def lif(size: int, **how: Any) -> nn.Module:
    # As vectors: to_nir writes a scalar as a 0-d array, which nir cannot.
    how |= {"tau_mem": torch.full((size,), TAU), "spike_threshold": torch.ones(size)}
    return sl.LIFSqueeze(batch_size=1, **how)


def lif_recurrent() -> Made:
    """Not through excite: it has no squeezed form, and its export fails anyway."""
    loop = nn.Linear(HIDDEN, HIDDEN, bias=False)
    net = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), sl.LIFRecurrent(tau_mem=TAU, rec_connect=loop, **ONE)
    )
    inputs = vectors()
    return Made(to_nir(net, inputs), inputs, [net(inputs)], DT_S)


def mlp(first: nn.Module, second: nn.Module, dt_s: float = DT_S) -> Made:
    synapses = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
    return made(synapses[0], first, synapses[1], second, inputs=vectors(), dt_s=dt_s)


def conv(pool: nn.Module, bias: bool = True, **how: Any) -> Made:
    first = nn.Conv2d(2, 4, 3, padding=1, bias=bias), iaf(**how), pool, nn.Flatten()
    return made(*first, nn.Linear(144, CLASSES, bias=bias), iaf(**how), inputs=images())


def conv_deep(**how: Any) -> Made:
    first = nn.Conv2d(2, 4, 3, padding=1), iaf(**how), sl.SumPool2d(2)
    second = nn.Conv2d(4, 6, 3, padding=1), iaf(**how), sl.SumPool2d(2), nn.Flatten()
    return made(*first, *second, nn.Linear(54, CLASSES), iaf(**how), inputs=images())


if __name__ == "__main__":
    serve(
        "sinabs",
        ("sinabs", "nir", "nirtorch", "torch"),
        {
            "iaf": Net(
                lambda: mlp(iaf(**ONE), iaf(**ONE)),
                "Linear, IAFSqueeze, MembraneReset and SingleSpike, twice",
            ),
            "iaf_several": Net(
                lambda: mlp(iaf(**RESET), iaf(**RESET)),
                "the same with the default spike_fn, MultiSpike",
                SEVERAL,
            ),
            "iaf_default": Net(lambda: mlp(iaf(), iaf()), "the same, defaults alone", SUBTRACT),
            "lif": Net(
                lambda: mlp(lif(HIDDEN, **ONE), lif(CLASSES, **ONE)),
                "Linear, LIFSqueeze, MembraneReset and SingleSpike, twice",
                EXPONENTIAL,
            ),
            "lif_euler": Net(
                lambda: mlp(lif(HIDDEN, **ONE), lif(CLASSES, **ONE), EULER_DT_S),
                "the same, read at dt = tau (1 - exp(-1/tau))",
            ),
            "lif_default": Net(
                lambda: mlp(lif(HIDDEN), lif(CLASSES)),
                "LIFSqueeze, defaults alone",
                f"{EXPONENTIAL}; {SUBTRACT}",
            ),
            "lif_recurrent": Net(lif_recurrent, "Linear, LIFRecurrent"),
            "conv": Net(
                lambda: conv(sl.SumPool2d(2), **ONE),
                "Conv2d, IAFSqueeze, SumPool2d, Flatten, Linear, IAFSqueeze; MembraneReset, SingleSpike",
            ),
            "conv_deep": Net(
                lambda: conv_deep(**ONE),
                "(Conv2d, IAFSqueeze, SumPool2d) twice, Flatten, Linear, IAFSqueeze",
            ),
            "conv_default": Net(
                lambda: conv(sl.SumPool2d(2)),
                "Conv2d, IAFSqueeze, SumPool2d, Flatten, Linear, IAFSqueeze; defaults alone",
                SUBTRACT,
            ),
            "conv_average": Net(
                lambda: conv(nn.AvgPool2d(2), **ONE),
                "Conv2d, IAFSqueeze, AvgPool2d, Flatten, Linear, IAFSqueeze",
            ),
        },
    )
