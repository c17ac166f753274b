"""Rockpool's `to_nir` and `from_nir`; see worker.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from rockpool.nn.modules.torch import LIFNeuronTorch, LIFTorch, LinearTorch
from rockpool.nn.modules.torch.nir import from_nir, to_nir
from worker import FEATURES, NEURONS, Own, Run, binary, fill, serve

DT_S = 0.001


def read(path: Path, dt_s: float) -> Run:
    net = from_nir(path)

    def run(x: torch.Tensor) -> torch.Tensor:
        spikes = net(x)
        return spikes[0] if isinstance(spikes, tuple) else spikes

    return run


class Net(torch.nn.Module):
    def __init__(self, neurons: Any, drive: float) -> None:
        super().__init__()
        dense = fill(torch.nn.Linear(FEATURES, NEURONS, bias=False), drive)
        self.linear = LinearTorch(
            (FEATURES, NEURONS), weight=dense.weight.detach().T.clone(), has_bias=False
        )
        self.neurons = neurons
        self.linear.to_torch()
        self.neurons.to_torch()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neurons(self.linear(x))  # type: ignore[no-any-return]


def export(neurons: Any, drive: float, mend: bool = True) -> Own:
    """`mend`: take the batch axis off Input and Output."""
    net = Net(neurons, drive)
    inputs = binary((FEATURES,))
    graph = to_nir(net, inputs[:1, 0])
    if mend:
        graph.nodes["input"] = nir.Input({"input": np.array([FEATURES])})
        graph.nodes["output"] = nir.Output({"output": np.array([NEURONS])})
    neurons.reset_state()
    return Own(graph, inputs, net(inputs), DT_S)


ONE = {"max_spikes_per_dt": torch.tensor(1.0)}


def lif(**more: Any) -> Any:
    taus = {"tau_mem": torch.full((NEURONS,), 0.01), "tau_syn": torch.full((NEURONS, 1), 0.005)}
    return LIFTorch(
        (NEURONS,),
        **taus,
        bias=torch.zeros(NEURONS),
        threshold=torch.ones(NEURONS),
        dt=DT_S,
        **more,
    )


def membrane(**more: Any) -> Any:
    return LIFNeuronTorch(
        (NEURONS,), tau_mem=torch.full((NEURONS,), 0.01), threshold=torch.ones(NEURONS), bias=torch.zeros(NEURONS),
        dt=DT_S, **more,
    )  # fmt: skip


if __name__ == "__main__":
    serve(
        ("rockpool", "nir", "nirtorch", "torch"),
        read,
        {
            "LIFTorch": lambda: export(lif(), 0.2, mend=False),
            "LIFTorch, batch axis cut": lambda: export(lif(), 0.2),
            "LIFTorch, batch axis cut, one spike per step": lambda: export(lif(**ONE), 0.2),
            "LIFNeuronTorch, batch axis cut": lambda: export(membrane(), 0.8),
            "LIFNeuronTorch, batch axis cut, one spike per step": lambda: export(
                membrane(**ONE), 0.8
            ),
        },
        # In one call: between calls a Rockpool layer keeps the state of the first sample only.
        whole=True,
    )
