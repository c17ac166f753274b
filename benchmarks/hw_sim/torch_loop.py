"""What the peers that step through time with torch share: their synapses, their timing and what they fired."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peer_job import PeerJob, PeerStage, timed
from torch import nn


class StepLoop:
    """A network and its loop over time."""

    def sample(self, inputs: torch.Tensor) -> torch.Tensor:
        """(timesteps, samples, *features) -> (timesteps, samples, outputs), from rest."""
        raise NotImplementedError

    def hook(self, index: int, see: Callable[[torch.Tensor], None]) -> None:
        """Have `see` called with the spikes of a stage at every step."""
        raise NotImplementedError


def synapses(stage: PeerStage, scale: float = 1.0) -> list[nn.Module]:
    """Pooling, flattening and weights of a stage, for a threshold of 1."""
    weight = torch.from_numpy(stage.float_weight * np.float32(scale))
    layers: list[nn.Module] = [nn.AvgPool2d(2)] if stage.pooled else []
    if stage.conv:
        layer: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False)
    else:
        if len(stage.entering) == 3:
            layers.append(nn.Flatten())
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return [*layers, layer]


def run_loop(loop: StepLoop, job: PeerJob) -> dict[str, npt.NDArray[Any]]:
    """Spikes of the first sample in every stage where `check` is set, else seconds of each of `repeats` runs of all samples."""
    torch.set_num_threads(1)
    inputs = torch.from_numpy(job.inputs).movedim(1, 0).float().contiguous()
    with torch.no_grad():
        if job.settings["check"]:
            return _spikes(loop, inputs[:, :1], len(job.stages))
        return {"times_s": np.array(timed(lambda: loop.sample(inputs), job.settings["repeats"]))}


def _spikes(loop: StepLoop, inputs: torch.Tensor, stages: int) -> dict[str, npt.NDArray[Any]]:
    seen: list[list[npt.NDArray[np.uint8]]] = [[] for _ in range(stages)]
    for index in range(stages):
        loop.hook(
            index, lambda spikes, index=index: seen[index].append(spikes.to(torch.uint8).numpy())  # type: ignore[misc]
        )  # fmt: skip
    loop.sample(inputs)
    # (timesteps, 1, *features) -> (1, timesteps, features)
    return {
        f"spikes/{index}": np.stack(steps).reshape(1, len(steps), prod(steps[0].shape[1:]))
        for index, steps in enumerate(seen)
    }
