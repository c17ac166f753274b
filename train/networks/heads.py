"""Clips through one-step networks, layer by layer; dropout with one mask per clip; votes of groups
of neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import norse.torch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knarr.train.networks.neurons import SpikingCell


class StepLogits(NamedTuple):
    """Output of a network that decides at every step, as distillation reads it.

    Args:
        logits: (B, classes), from which the class is taken.
        step_logits: (B, T, classes).
        rates: mean spikes per neuron and step of each spiking layer, detached 0-d tensors.
    """

    logits: Tensor
    step_logits: Tensor
    rates: tuple[Tensor, ...]


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a network for clips.

    Args:
        outputs: (B, T, *) of the last layer.
        rates: mean spikes per neuron and step of each spiking layer, detached 0-d tensors.
        spikes, membranes: (B, T, *) of each spiking layer, membranes before the reset in volts;
            empty unless recorded.
    """

    outputs: Tensor
    rates: tuple[Tensor, ...]
    spikes: tuple[Tensor, ...] = ()
    membranes: tuple[Tensor, ...] = ()


class ClipDropout(nn.Module):
    """Dropout whose mask is drawn at a clip's first step and kept for all of them [PLIF, code].

    Args:
        p: share that is silenced while training, 0..1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run one step on (B, *features); the state is the clip's mask."""
        if not self.training or not self.p:
            return x, None
        # Dropout of ones gives the mask with its scale 1 / (1 - p).
        mask = F.dropout(torch.ones_like(x), self.p) if state is None else state
        return x * mask, mask

    def extra_repr(self) -> str:
        """Show the share in print(network)."""
        return f"p={self.p}"


def through_time(cell: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Run a stateful layer over (B, T, *): its outputs, and a spiking cell's membranes before the
    reset.
    """
    state = None
    outputs = []
    peaks = []
    for frame in x.unbind(1):
        out, state = cell(frame, state)
        outputs.append(out)
        if isinstance(cell, SpikingCell):
            peaks.append(state.peak)
    return torch.stack(outputs, 1), torch.stack(peaks, 1) if peaks else None


def each_step(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a stateless layer over (B, T, *), all steps as one batch: batch-norms take their
    statistics over time too.
    """
    out: Tensor = layer(x.flatten(0, 1))
    return out.reshape(-1, x.shape[1], *out.shape[1:])


def over_time(
    network: snn.SequentialState, clips: Tensor, *, record: bool = False
) -> NetworkOutput:
    """Run all steps of a flat network, layer by layer: the numbers of a run step by step, but for
    batch-norms in training.

    Args:
        network: one-step SequentialState of stateless layers and cells.
        clips: (B, T, *features).
        record: keep spikes and membranes.
    """
    x = clips
    rates = []
    spikes = []
    membranes = []
    for layer, stateful in zip(network, network.stateful_layers, strict=True):
        if not stateful:
            # One large batch is much faster than many small ones, above all for convolutions.
            x = each_step(layer, x)
            continue
        x, peaks = through_time(layer, x)
        if isinstance(layer, SpikingCell) and peaks is not None:
            # A readout cell gives its membrane; its spikes are found again for the rates.
            fired = x if layer.reads == "spikes" else (peaks > layer.v_th).to(x.dtype)
            rates.append(fired.detach().mean())
            if record:
                spikes.append(fired)
                membranes.append(peaks)
    return NetworkOutput(x, tuple(rates), tuple(spikes), tuple(membranes))


def decide(network: snn.SequentialState, clips: Tensor) -> StepLogits:
    """Return logits of every step and their mean over time, of a network whose last layer gives
    voltages.

    Args:
        network: as `over_time` takes it.
        clips: (B, T, *features).
    """
    ran = over_time(network, clips)
    return StepLogits(ran.outputs.mean(1), ran.outputs, ran.rates)


def vote(spikes: Tensor, classes: int) -> Tensor:
    """Return each class's mean rate, (B, classes), of (B, T, classes * voters), the first class's
    voters first.
    """
    rates = spikes.mean(1)
    return rates.reshape(len(spikes), classes, -1).mean(2)
