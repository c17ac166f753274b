"""The teachers of MSKD, an ANN-SNN hybrid on events and frames [paper]; its layers are not public, so both are [reconstruction].

seen            SEEN as it is: already such a hybrid
frame_per_step  a small residual ANN on each frame and spiking convolutions on each event image, features added
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from knarr.train.networks.branch_merge import MultiScale
from knarr.train.networks.heads import StepLogits, each_step, through_time
from knarr.train.networks.neurons import DecayCell
from knarr.train.networks.seen import Seen, SeenSettings
from knarr.train.settings import Frozen


class TeacherSettings(Frozen):
    """Which teacher.

    Args:
        kind: see above.
        seen: sizes of either; "frame_per_step" reads side_px, channels, classes, widths and neuron of them.
    """

    kind: Literal["seen", "frame_per_step"] = "seen"
    seen: SeenSettings = SeenSettings()


def build_mskd_teacher(settings: TeacherSettings) -> Seen | FramePerStep:
    """A teacher: (events, frames), (B, T, 3, H, W) each -> StepLogits, with the last membrane of every step as its logits."""
    return Seen(settings.seen) if settings.kind == "seen" else FramePerStep(settings.seen)


def freeze(teacher: nn.Module) -> nn.Module:
    """The teacher in eval mode, its parameters without gradients, as a student's training takes it."""
    return teacher.eval().requires_grad_(False)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch-norms beside a strided 1x1 one: (B, C, H, W) -> (B, out, H/2, W/2), rounded up."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.long = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.short = nn.Sequential(nn.Conv2d(channels, out, 1, stride=2, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = torch.relu(self.long(x) + self.short(x))
        return added


class FramePerStep(nn.Module):
    """Features of frame t (ANN) plus spikes of event image t (SNN) into two spiking layers.

    Args:
        settings: sizes; widths are those of the event branch, and the frame branch ends in as many channels.
    """

    def __init__(self, settings: SeenSettings) -> None:
        super().__init__()
        self.settings = settings
        scale, second, third, hidden = settings.widths
        half, quarter = max(scale // 2, 1), max(second // 2, 1)
        self.frame_branch = nn.Sequential(
            nn.Conv2d(settings.channels, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            Residual(half, scale),
            Residual(scale, quarter),
            Residual(quarter, second),
            nn.Conv2d(second, third, 1),
            nn.ReLU(),
        )
        self.synapses = nn.ModuleList(
            [
                MultiScale(settings.channels, scale, scale, gate="dynamic", norm=True),
                nn.Conv2d(scale, second, 3, stride=2, padding=1),
                nn.Conv2d(second, third, 3, stride=4, padding=1),
            ]
        )
        self.hidden = nn.Linear(settings.features, hidden)
        self.head = nn.Linear(hidden, settings.classes)
        self.cells = nn.ModuleList(DecayCell(settings.neuron) for _ in range(5))

    def forward(self, events: torch.Tensor, frames: torch.Tensor) -> StepLogits:
        """Event and frame clips, (B, T, C, H, W) each -> membranes before their reset; rates of the five spiking layers.

        Raises:
            ValueError: clips of different shapes.
        """
        if events.shape != frames.shape:
            raise ValueError(
                f"frames: shape {tuple(frames.shape)}, events {tuple(events.shape)}; give one frame per event image"
            )
        x, fired = events, []
        for synapse, cell in zip(self.synapses, self.cells, strict=False):
            x, _ = through_time(cell, each_step(synapse, x))
            fired.append(x)
        heard = (x + each_step(self.frame_branch, frames)).flatten(2)
        spikes, _ = through_time(self.cells[3], self.hidden(heard))
        last, membranes = through_time(self.cells[4], self.head(spikes))
        assert membranes is not None  # a spiking cell's
        rates = tuple(z.detach().mean() for z in (*fired, spikes, last))
        return StepLogits(membranes.mean(1), membranes, rates)
