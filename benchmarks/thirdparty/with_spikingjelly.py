"""Nets of SpikingJelly, by its `export_to_nir`; see nets.py."""

from __future__ import annotations

from functools import partial
from typing import Any

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
    over_time,
    sequence,
    serve,
    vectors,
)
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir
from torch import nn

DT_S = 1e-4  # the exporter's default


def made(*layers: nn.Module, inputs: torch.Tensor, dt_s: float = DT_S) -> Made:
    net = sequence(*layers)
    spiking = [each for each in layers if isinstance(each, neuron.BaseNode)]
    run = partial(over_time, net, spiking, inputs, partial(functional.reset_net, net))
    excite(layers, run)
    graph = export_to_nir(net, inputs[:1, 0], dt=dt_s)
    functional.reset_net(net)
    return Made(graph, inputs, run(), dt_s)


def mlp(kind: Any, bias: bool = True, dt_s: float = DT_S, **how: Any) -> Made:
    synapses = layer.Linear(FEATURES, HIDDEN, bias=bias), layer.Linear(HIDDEN, CLASSES, bias=bias)
    return made(synapses[0], kind(**how), synapses[1], kind(**how), inputs=vectors(), dt_s=dt_s)


def conv(kind: Any, pool: nn.Module, padding: int = 1, cells: int = 36, **how: Any) -> Made:
    first = layer.Conv2d(2, 4, 3, padding=padding), kind(**how), pool, layer.Flatten()
    return made(*first, layer.Linear(4 * cells, CLASSES), kind(**how), inputs=images())


def conv_deep() -> Made:
    """In multi-step mode, where everything takes (timesteps, samples, *features)."""
    inputs = images()
    first = (
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        neuron.LIFNode(tau=4.0),
        layer.AvgPool2d(2),
    )
    second = (
        layer.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        neuron.LIFNode(tau=8.0),
        layer.Flatten(),
    )
    layers = (*first, *second, layer.Linear(54, CLASSES, bias=False), neuron.IFNode())
    net = sequence(*layers)
    functional.set_step_mode(net, "m")
    spiking = [each for each in layers if isinstance(each, neuron.BaseNode)]

    def run() -> Spikes:
        heard: list[torch.Tensor] = []
        hooks = [
            each.register_forward_hook(lambda _m, _i, output: heard.append(output))
            for each in spiking
        ]
        net(inputs.transpose(0, 1))
        functional.reset_net(net)
        for hook in hooks:
            hook.remove()
        return [spikes.transpose(0, 1) for spikes in heard]

    excite(layers, run)
    return Made(export_to_nir(net, inputs.transpose(0, 1)[:, :1], dt=DT_S), inputs, run(), DT_S)


class Residual(nn.Module):
    """Two ways into one neuron: Linear, IFNode, and what two Linear make of inputs and spikes, into another IFNode."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.skip, self.on = (
            layer.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(3)
        )
        self.first, self.second = neuron.IFNode(), neuron.IFNode()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes: torch.Tensor = self.second(self.on(self.first(self.enter(x))) + self.skip(x))
        return spikes


def residual() -> Made:
    net, inputs = Residual(), vectors()
    sequence(net.enter, net.skip, net.on)
    run = partial(
        over_time, net, (net.first, net.second), inputs, partial(functional.reset_net, net)
    )
    excite((net.enter, net.on), run)
    graph = export_to_nir(net, inputs[:1, 0], dt=DT_S)
    functional.reset_net(net)
    return Made(graph, inputs, run(), DT_S)


def recurrent() -> Made:
    """Not through excite: its export fails anyway."""
    inner = nn.Sequential(layer.Linear(FEATURES, FEATURES), neuron.IFNode())
    net = layer.LinearRecurrentContainer(inner, in_features=FEATURES, out_features=FEATURES)
    inputs = vectors()
    return Made(export_to_nir(net, inputs[:1, 0], dt=DT_S), inputs, [], DT_S)


if __name__ == "__main__":
    serve(
        "spikingjelly",
        ("spikingjelly", "nir", "nirtorch", "torch"),
        {
            "if": Net(lambda: mlp(neuron.IFNode), "Linear, IFNode, twice"),
            "lif": Net(lambda: mlp(neuron.LIFNode, tau=8.0), "Linear, LIFNode(tau=8), twice"),
            "lif_default": Net(
                lambda: mlp(neuron.LIFNode, dt_s=1e-3),
                "the same with the default tau of 2, exported at dt 1e-3 s",
            ),
            "lif_undecayed": Net(
                lambda: mlp(neuron.LIFNode, tau=10.0, decay_input=False),
                "LIFNode(tau=10, decay_input=False)",
            ),
            "lif_reset": Net(
                lambda: mlp(neuron.LIFNode, tau=8.0, v_reset=-0.5),
                "LIFNode(tau=8, v_reset=-0.5), its v_leak too",
            ),
            "if_reset": Net(lambda: mlp(neuron.IFNode, v_reset=0.25), "IFNode(v_reset=0.25)"),
            "lif_subtract": Net(
                lambda: mlp(neuron.LIFNode, v_reset=None), "LIFNode that subtracts at a spike"
            ),
            "plif": Net(
                lambda: mlp(neuron.ParametricLIFNode, init_tau=5.0),
                "Linear, ParametricLIFNode, twice",
            ),
            "cuba": Net(
                lambda: mlp(neuron.CUBALIFNode, bias=False, c_decay=0.75, v_decay=0.875),
                "Linear without bias, CUBALIFNode, twice",
            ),
            "cuba_bias": Net(
                lambda: mlp(neuron.CUBALIFNode, c_decay=0.75, v_decay=0.875), "the same with bias"
            ),
            "conv_if": Net(
                lambda: conv(neuron.IFNode, layer.AvgPool2d(2)),
                "Conv2d, IFNode, AvgPool2d, Flatten, Linear, IFNode",
            ),
            "conv_ragged": Net(
                lambda: conv(neuron.LIFNode, layer.AvgPool2d(3), padding=0, cells=9, tau=4.0),
                "the same with LIFNode(tau=4), windows of 3 on 10 x 10 pixels",
            ),
            "conv_deep": Net(
                conv_deep,
                "multi-step: Conv2d, LIFNode, AvgPool2d, Conv2d stride 2, LIFNode, Flatten, Linear, IFNode",
            ),
            "conv_max": Net(
                lambda: conv(neuron.IFNode, layer.MaxPool2d(2)),
                "Conv2d, IFNode, MaxPool2d, Flatten, Linear, IFNode",
            ),
            "residual": Net(
                residual,
                "Linear, IFNode, then Linear of its spikes and Linear of the inputs, IFNode",
            ),
            "recurrent": Net(recurrent, "LinearRecurrentContainer of an IFNode"),
        },
    )
