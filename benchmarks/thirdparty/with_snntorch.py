"""Nets of snnTorch, by its `export_to_nir`; see nets.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import snntorch as snn
import snntorch.utils
import torch
from nets import (
    CLASSES,
    FEATURES,
    HIDDEN,
    RATE,
    Made,
    Net,
    excite,
    images,
    over_time,
    sequence,
    serve,
    vectors,
)
from snntorch.export_nir import export_to_nir
from torch import nn

DT_S = 1e-4  # export_nir.py has no other
ZERO = {"reset_mechanism": "zero"}
NOW = {**ZERO, "reset_delay": False}

SUBTRACT = "subtracts the threshold at a spike, one step late; the file says reset to 0"
LATE = "resets one step late, after that step's input, which is lost"


class ResetNow(snn.RSynaptic):
    """RSynaptic with what `reset_delay=False` promises: 1.0.0 reads there the spikes it was called with, None."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes: torch.Tensor = super().forward(x)
        self.mem = self.mem * (1 - spikes)
        return spikes


def made(*layers: nn.Module, inputs: torch.Tensor, rate: float = RATE) -> Made:
    net = sequence(*layers)
    spiking = [layer for layer in layers if isinstance(layer, snn.SpikingNeuron)]
    for neuron in spiking:
        if isinstance(neuron, (snn.RLeaky, snn.RSynaptic)) and neuron.all_to_all:
            weight = neuron.recurrent.weight
            # A Synaptic current sums over time: with more, the loop alone would keep every neuron firing.
            strength = 0.1 if isinstance(neuron, snn.RSynaptic) else 0.8
            weight.copy_(torch.randn(weight.shape) * strength / weight.shape[0] ** 0.5)
    run = partial(over_time, net, spiking, inputs, partial(snntorch.utils.reset, net))
    excite(layers, run, rate)
    # Without ignore_dims its batch axis goes into the file, which nir's type check refuses.
    graph = export_to_nir(net, inputs[:1, 0], ignore_dims=[0])
    return Made(graph, inputs, run(), DT_S)


def spread(middle: float, width: float, shape: tuple[int, ...]) -> torch.Tensor:
    return middle + width * (2 * torch.rand(shape) - 1)


def leaky(*shape: int, width: float = 0.0, beta: float = 0.875, **more: Any) -> nn.Module:
    # As vectors: its scalars are 0-d arrays in the file, which nir refuses.
    parameters = {
        "beta": spread(beta, width / 2, shape),
        "threshold": spread(1.0, width * 3, shape),
    }
    return snn.Leaky(**parameters, init_hidden=True, **more)


def synaptic(*shape: int, **more: Any) -> nn.Module:
    parameters = {"alpha": torch.full(shape, 0.75), "beta": torch.full(shape, 0.875)}
    return snn.Synaptic(**parameters, threshold=torch.ones(shape), init_hidden=True, **more)


def rleaky(size: int, bias: bool = True, **more: Any) -> nn.Module:
    neuron = snn.RLeaky(beta=0.875, linear_features=size, init_hidden=True, **more)
    if not bias:
        neuron.recurrent.bias = None
    return neuron


def rleaky_own(size: int) -> nn.Module:
    own = {"V": torch.randn(size) * 0.3, "all_to_all": False}
    return snn.RLeaky(beta=0.875, init_hidden=True, **own, **NOW)


def rsynaptic(size: int, kind: type[nn.Module] = snn.RSynaptic, **more: Any) -> nn.Module:
    neuron: Any = kind(alpha=0.75, beta=0.875, linear_features=size, init_hidden=True, **more)
    neuron.recurrent.bias = None
    return neuron


def mlp(first: nn.Module, second: nn.Module, bias: bool = True, rate: float = RATE) -> Made:
    synapses = nn.Linear(FEATURES, HIDDEN, bias=bias), nn.Linear(HIDDEN, CLASSES, bias=bias)
    return made(synapses[0], first, synapses[1], second, inputs=vectors(), rate=rate)


def conv() -> Made:
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        leaky(4, 12, 12, **ZERO),
        nn.AvgPool2d(2),
        nn.Flatten(),
    )
    return made(*layers, nn.Linear(144, CLASSES), leaky(CLASSES, **ZERO), inputs=images())


def conv_overlap() -> Made:
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        leaky(4, 12, 12, **NOW),
        nn.AvgPool2d(3, stride=2),
        nn.Flatten(),
    )
    return made(*layers, nn.Linear(100, CLASSES), leaky(CLASSES, **NOW), inputs=images())


def conv_deep() -> Made:
    first = (nn.Conv2d(2, 4, 5, padding=2, bias=False), leaky(4, 12, 12, **NOW), nn.AvgPool2d(2))
    second = (nn.Conv2d(4, 8, 3, bias=False), leaky(8, 4, 4, **NOW), nn.AvgPool2d(2), nn.Flatten())
    return made(
        *first, *second, nn.Linear(32, CLASSES, bias=False), leaky(CLASSES, **NOW), inputs=images()
    )


def conv_stride() -> Made:
    first = (nn.Conv2d(2, 6, 3, stride=2, padding=1), leaky(6, 6, 6, **NOW))
    second = (nn.Conv2d(6, 6, 3, padding=1, groups=2), leaky(6, 6, 6, **NOW))
    return made(
        *first,
        *second,
        nn.Flatten(),
        nn.Linear(216, CLASSES),
        leaky(CLASSES, **NOW),
        inputs=images(),
    )


if __name__ == "__main__":
    serve(
        "snntorch",
        ("snntorch", "nir", "nirtorch", "torch"),
        {
            "leaky": Net(
                lambda: mlp(leaky(HIDDEN, **ZERO), leaky(CLASSES, **ZERO)),
                "Linear, Leaky, reset to zero, twice",
            ),
            "leaky_subtract": Net(
                lambda: mlp(leaky(HIDDEN), leaky(CLASSES)),
                "the same with the default reset",
                SUBTRACT,
            ),
            "leaky_each": Net(
                lambda: mlp(leaky(HIDDEN, width=0.1, **ZERO), leaky(CLASSES, width=0.1, **ZERO)),
                "the same with reset to zero, beta and threshold of each neuron its own",
            ),
            "leaky_keeps": Net(
                lambda: mlp(leaky(HIDDEN, beta=1.0, **ZERO), leaky(CLASSES, beta=1.0, **ZERO)),
                "the same, beta 1",
            ),
            "leaky_forgets": Net(
                lambda: mlp(leaky(HIDDEN, beta=0.0, **ZERO), leaky(CLASSES, beta=0.0, **ZERO)),
                "the same, beta 0",
            ),
            "leaky_open": Net(
                lambda: made(
                    nn.Linear(FEATURES, HIDDEN),
                    leaky(HIDDEN, **ZERO),
                    nn.Linear(HIDDEN, CLASSES),
                    inputs=vectors(),
                ),
                "Linear, Leaky, Linear: no neuron at the end",
            ),
            "synaptic": Net(
                lambda: mlp(synaptic(HIDDEN, **NOW), synaptic(CLASSES, **NOW), bias=False),
                "Linear without bias, Synaptic, reset to zero without delay, twice",
            ),
            "synaptic_bias": Net(
                lambda: mlp(synaptic(HIDDEN, **NOW), synaptic(CLASSES, **NOW)), "the same with bias"
            ),
            "synaptic_late": Net(
                lambda: mlp(
                    synaptic(HIDDEN, **ZERO), synaptic(CLASSES, **ZERO), bias=False, rate=0.15
                ),
                "the same without bias, the default delay of the reset",
                LATE,
            ),
            "rleaky": Net(
                lambda: mlp(rleaky(HIDDEN, **NOW), leaky(CLASSES, **NOW)),
                "Linear, RLeaky all to all, Linear, Leaky; reset to zero without delay",
            ),
            "rleaky_no_bias": Net(
                lambda: mlp(rleaky(HIDDEN, bias=False, **NOW), leaky(CLASSES, **NOW)),
                "the same, the recurrent Linear without bias",
            ),
            "rleaky_own": Net(
                lambda: mlp(rleaky_own(HIDDEN), leaky(CLASSES, **NOW)),
                "the same, each neuron hears itself alone",
            ),
            "rsynaptic": Net(
                lambda: mlp(
                    rsynaptic(HIDDEN, ResetNow, **ZERO), synaptic(CLASSES, **NOW), bias=False
                ),
                "RSynaptic all to all, reset to zero by the caller in the same step, then Synaptic; no bias",
            ),
            "rsynaptic_late": Net(
                lambda: mlp(
                    rsynaptic(HIDDEN, **ZERO), synaptic(CLASSES, **ZERO), bias=False, rate=0.15
                ),
                "RSynaptic, Synaptic, with their own delay of the reset",
                LATE,
            ),
            "rsynaptic_no_delay": Net(
                lambda: mlp(rsynaptic(HIDDEN, **NOW), synaptic(CLASSES, **NOW), bias=False),
                "RSynaptic, reset to zero, reset_delay=False, Synaptic",
            ),
            "conv": Net(conv, "Conv2d, Leaky, AvgPool2d, Flatten, Linear, Leaky; reset to zero"),
            "conv_overlap": Net(
                conv_overlap, "the same, AvgPool2d(3, stride=2): its windows overlap"
            ),
            "conv_deep": Net(
                conv_deep,
                "(Conv2d, Leaky, AvgPool2d) twice, Flatten, Linear, Leaky; no bias, reset to zero",
            ),
            "conv_stride": Net(
                conv_stride,
                "Conv2d stride 2, Leaky, Conv2d of two groups, Leaky, Flatten, Linear, Leaky",
            ),
        },
    )
