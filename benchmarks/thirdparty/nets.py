"""What every `with_*.py` shares: it runs in the tool's own interpreter, next to no knarr, and talks by files.

For every net the folder named on the command line gets `<name>.nir`, from the tool's own exporter, and `<name>.npz` with
`inputs`, `dt_s` in seconds, `timesteps`, and `spikes_0`, `spikes_1`, ...: what the tool's own spiking layers did, in their
order. Inputs and spikes are packed by `pack`. `<tool>.json` says versions, what each net is, what its file cannot say, and
which exports failed.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from torch import nn

FEATURES, HIDDEN, CLASSES = 32, 32, 10
IMAGE = (2, 12, 12)
RATE = 0.25
"""Spikes per neuron and step that every layer is tuned to: neither silence nor saturation can agree by accident."""

Spikes = list[torch.Tensor]


class Made(NamedTuple):
    """A net of the tool, exported and run by the tool.

    Args:
        graph: what its exporter gave.
        inputs: (samples, timesteps, *features) of 0 and 1.
        spikes: the same of every spiking layer.
        dt_s: the time step that its exporter has in mind, seconds.
    """

    graph: Any
    inputs: torch.Tensor
    spikes: Spikes
    dt_s: float


class Net(NamedTuple):
    """How a net is made, and in words what it is and what the tool does that its file does not say."""

    make: Callable[[], Made]
    what: str
    unsaid: str = ""


def serve(tool: str, packages: tuple[str, ...], nets: Mapping[str, Net]) -> None:
    """Write every net into the folder named on the command line."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {}
    for name, net in nets.items():
        torch.manual_seed(zlib.crc32(name.encode()))
        path = folder / f"{tool}_{name}.nir"
        report[path.stem] = {"what": net.what, "unsaid": net.unsaid}
        try:
            with torch.no_grad():
                made = net.make()
            nir.write(path, made.graph)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is a line of the table
            path.unlink(missing_ok=True)
            text = str(error).strip().splitlines()
            report[path.stem]["fails"] = f"{type(error).__name__}: {text[0] if text else ''}"
            continue
        arrays = {f"spikes_{n}": pack(spikes) for n, spikes in enumerate(made.spikes)}
        arrays |= {"inputs": pack(made.inputs), "timesteps": np.array(made.inputs.shape[1])}
        np.savez_compressed(path.with_suffix(".npz"), dt_s=np.array(made.dt_s), **arrays)
    versions = {p: importlib.metadata.version(p) for p in packages}
    (folder / f"{tool}.json").write_text(
        json.dumps({"versions": versions, "nets": report}, indent=1) + "\n"
    )


def pack(counts: torch.Tensor) -> Any:
    """Bits of spike counts (samples, timesteps, *features): uint8 (digits, samples, *features, timesteps / 8), lowest first."""
    whole = np.moveaxis(counts.numpy().astype(np.uint8), 1, -1)
    digits = [whole >> digit & 1 for digit in range(int(whole.max()).bit_length())]
    return np.packbits(np.stack(digits), axis=-1)


def vectors() -> torch.Tensor:
    return spike_trains(4, 50, FEATURES)


def images() -> torch.Tensor:
    return spike_trains(4, 40, *IMAGE)


def spike_trains(samples: int, timesteps: int, *shape: int) -> torch.Tensor:
    """Random spikes (samples, timesteps, *shape); every feature of a sample has a rate of its own, 0 to 0.5."""
    rates = torch.rand(samples, 1, *shape) * 0.5
    return (torch.rand(samples, timesteps, *shape) < rates).float()


def sequence(*layers: nn.Module, spread: float = 1.5) -> nn.Sequential:
    """The layers in a row, with fresh weights: mean and spread (of a whole fan-in) 1 and `spread`, biases a tenth."""
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(torch.randn(layer.weight.shape) * spread / fan_in**0.5 + 1 / fan_in)
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape) * 0.1)
    return nn.Sequential(*layers)


def excite(layers: Sequence[nn.Module], run: Callable[[], Spikes], rate: float = RATE) -> None:
    """Scale the weights and bias of each synapse, first to last, so that its neurons fire at `rate`.

    Args:
        layers: in their order; a synapse behind the last spiking layer is left as it is.
        run: spikes of every spiking layer, from rest.
        rate: spikes per neuron and step.
    """
    synapses = [layer for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for number, synapse in enumerate(synapses[: len(run())]):
        fresh = [p.clone() for p in synapse.parameters()]
        low, high = -6.0, 6.0
        for _ in range(12):
            middle = (low + high) / 2
            for parameter, value in zip(synapse.parameters(), fresh, strict=True):
                parameter.copy_(value * 2**middle)
            too_much = float(run()[number].mean()) > rate
            low, high = (low, middle) if too_much else (middle, high)
        if not -5 < low < 5:  # a rate that no scale reaches ends in weights of no use to anyone
            raise RuntimeError(
                f"synapse {number}: no scale of its weights makes its neurons fire at {rate}"
            )


def over_time(
    net: nn.Module, spiking: Sequence[nn.Module], inputs: torch.Tensor, reset: Callable[[], None]
) -> Spikes:
    """What the spiking layers of a step-by-step net give, each (samples, timesteps, *features).

    Args:
        net: (samples, *features) of one step -> output.
        spiking: modules of `net` whose output is spikes.
        reset: brings `net` to rest.
    """
    heard: list[list[torch.Tensor]] = [[] for _ in spiking]
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, output, into=into: into.append(output.clone())
        )
        for layer, into in zip(spiking, heard, strict=True)
    ]
    reset()
    for t in range(inputs.shape[1]):
        net(inputs[:, t])
    reset()
    for hook in hooks:
        hook.remove()
    return [torch.stack(steps, 1) for steps in heard]
