"""lava-dl's slayer, CUBA blocks, integer neurons, layer by layer over all steps: `python with_slayer.py JOB_FOLDER`.

Weights and thresholds are worth 64 times less in slayer, so that its neurons count in the chip's units.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peer_job import I_KEEP, SLAYER, V_KEEP, PeerJob, PeerStage, read_job, sibling, timed
from torch import nn

slayer = sibling("compatibility").import_slayer(SLAYER)
SCALE = 64


class Slayer(nn.Module):
    """Stages as blocks; what arrives is (samples, *features, timesteps)."""

    def __init__(self, stages: tuple[PeerStage, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.blocks = nn.ModuleList(_block(stage) for stage in stages)
        self.pool = slayer.synapse.Pool(2)
        self.pool.weight = nn.Parameter(torch.ones_like(self.pool.weight), requires_grad=False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        out = []
        for stage, block in zip(self.stages, self.blocks, strict=True):
            if stage.pooled:
                high, wide = (n // 2 * 2 for n in x.shape[2:4])
                x = self.pool(x[:, :, :high, :wide])  # which would pad an odd row
            if not stage.conv and x.ndim == 5:
                x = x.flatten(1, 3)
            x = block(x)
            out.append(x)
        return out


def _block(stage: PeerStage) -> nn.Module:
    neuron = {
        "threshold": stage.vth / SCALE,
        "current_decay": 1 - I_KEEP,
        "voltage_decay": 1 - V_KEEP,
    }
    outputs, inputs = stage.weight.shape[:2]
    block: Any = (
        slayer.block.cuba.Conv(neuron, inputs, outputs, 3, delay_shift=False)
        if stage.conv
        else slayer.block.cuba.Dense(neuron, inputs, outputs, delay_shift=False)
    )
    weight = torch.from_numpy(stage.weight.astype(np.float32) / SCALE)
    block.synapse.weight = nn.Parameter(
        weight.reshape(block.synapse.weight.shape), requires_grad=False
    )
    return block


def run(job: PeerJob) -> dict[str, npt.NDArray[Any]]:
    """Spikes of the first sample in every stage where `check` is set, else seconds of each of `repeats` runs of all samples."""
    torch.set_num_threads(1)
    network = Slayer(job.stages)
    inputs = torch.from_numpy(job.inputs).movedim(1, -1).float().contiguous()
    with torch.no_grad():
        if job.settings["check"]:
            fired = [
                spikes.movedim(-1, 1).to(torch.uint8).flatten(2) for spikes in network(inputs[:1])
            ]
            return {f"spikes/{index}": spikes.numpy() for index, spikes in enumerate(fired)}
        return {"times_s": np.array(timed(lambda: network(inputs), job.settings["repeats"]))}


if __name__ == "__main__":
    job = read_job()
    job.done(
        **run(job), version=np.array(f"lava-dl {version('lava-dl')}, torch {torch.__version__}")
    )
