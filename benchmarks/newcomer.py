"""Trains a small network in snnTorch or SpikingJelly, and writes it as that tool exports it.

Writes `<tool>.nir`, and `spikes.npy` and `labels.npy` to calibrate and run it with. docs/install.md
says what to install, and what knarr does with these files.

    python benchmarks/newcomer.py snntorch
    python benchmarks/newcomer.py spikingjelly
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import nir
import numpy as np
import torch
from torch import nn

FEATURES, HIDDEN, CLASSES, STEPS = 64, 48, 4, 30


def snntorch_net() -> tuple[
    nn.Module, Callable[[], object], Callable[[torch.Tensor], nir.NIRGraph]
]:
    import snntorch as snn
    from snntorch.export_nir import export_to_nir
    from snntorch.utils import reset

    def leaky(size: int) -> nn.Module:
        # Vectors, since a scalar becomes an array that nir refuses; a reset to zero without delay, since the file has no other.
        values = {"beta": torch.full((size,), 0.875), "threshold": torch.ones(size)}
        return snn.Leaky(**values, init_hidden=True, reset_mechanism="zero", reset_delay=False)

    net = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), leaky(HIDDEN), nn.Linear(HIDDEN, CLASSES), leaky(CLASSES)
    )
    # Without ignore_dims the size of the batch goes into the file.
    return net, lambda: reset(net), lambda x: export_to_nir(net, x, ignore_dims=[0])


def spikingjelly_net() -> tuple[
    nn.Module, Callable[[], object], Callable[[torch.Tensor], nir.NIRGraph]
]:
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    net = nn.Sequential(
        layer.Linear(FEATURES, HIDDEN),
        neuron.LIFNode(tau=8.0),
        layer.Linear(HIDDEN, CLASSES),
        neuron.LIFNode(tau=8.0),
    )
    return net, lambda: functional.reset_net(net), lambda x: export_to_nir(net, x)


def spike_trains(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spikes (samples, timesteps, features) and classes, each a pattern of rates of its own."""
    rates = torch.rand(CLASSES, FEATURES) * 0.5
    labels = torch.arange(samples) % CLASSES
    return (torch.rand(samples, STEPS, FEATURES) < rates[labels][:, None]).float(), labels


def main(tool: str) -> None:
    torch.manual_seed(0)
    net, reset, export = {"snntorch": snntorch_net, "spikingjelly": spikingjelly_net}[tool]()
    spikes, labels = spike_trains(64)

    def run() -> torch.Tensor:
        reset()
        return torch.stack([net(spikes[:, step]) for step in range(STEPS)], 1)

    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(run().sum(1), labels).backward()
        optimiser.step()
    with torch.no_grad():
        out = run()
        print(
            f"{tool}: {int((out.sum(1).argmax(1) == labels).sum())} of {len(labels)} right, {int(out.sum())} output spikes"
        )
        reset()
        nir.write(f"{tool}.nir", export(spikes[:1, 0]))
    np.save("spikes.npy", spikes.numpy().astype(np.uint8))
    np.save("labels.npy", labels.numpy())


if __name__ == "__main__":
    main(sys.argv[1])
