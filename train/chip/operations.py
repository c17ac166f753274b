"""Synaptic accumulates that a layer costs, as a sum over spikes: a goal of training, and the count that reports give.

An event of an input costs as many accumulates as outputs hear it, which no training changes: weights of 0 are stored and counted
(`LayerCounts.acc`). So ACC is linear in the spikes, and its gradient by a spike is that spike's fan-out.
"""

from __future__ import annotations

import torch
from torch import nn

from knarr.hw_sim import Dense
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.reach import delayed_reach, layer_reach


class Accumulates(nn.Module):
    """Fan-out of a layer's inputs.

    Args:
        layer: whose.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        reaches = delayed_reach(layer) if isinstance(layer, Dense) else {0: layer_reach(layer)}
        self.delays = tuple(reaches)
        for number, reach in enumerate(reaches.values()):
            stored = torch.from_numpy(reach.stored.reshape(-1)).double()
            # It follows from the network, so checkpoints need not hold it.
            self.register_buffer(f"reach_{number}", stored, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Accumulates of each clip, (B,) float64.

        Args:
            x: (B, T, *entering) what arrives. Frames that hold more than 0 and 1 multiply and cost no accumulates.
        """
        flat, steps = x.flatten(2), x.shape[1]
        with torch.no_grad():
            graded = flat.amax(2, keepdim=True) > 1
        if bool(graded.any()):
            flat = flat * ~graded
        total = flat.new_zeros(len(flat), dtype=torch.float64)
        for number, ago in enumerate(self.delays):
            # What would act after the inference is not paid.
            total = total + flat[:, : max(0, steps - ago)].sum(1).double() @ getattr(self, f"reach_{number}")
        return total


def returned(spikes: torch.Tensor, recurrent: torch.Tensor) -> torch.Tensor:
    """Accumulates of a layer's own spikes in each clip, (B,) float64; those of the last step come back too late.

    Args:
        spikes: (B, T, neurons).
        recurrent: (neurons, neurons) integers; where no neuron hears itself there are no such synapses.
    """
    autapses = bool(torch.diagonal(recurrent).any())
    return (len(recurrent) - (not autapses)) * spikes[:, :-1].flatten(1).sum(1).double()
