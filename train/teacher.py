"""The ANN teacher: three convolutions on frames. It is also the baseline that the chip's energy is compared with."""

from __future__ import annotations

import torch
from torch import nn


class Teacher(nn.Module):
    """Convolution, batch-norm, ReLU and average pooling three times, then two linear layers.

    Args:
        input_shape: (C, H, W) of the frames.
        classes: number of classes.
        width: channels of the first convolution; the others have twice as many.
        dropout: before each linear layer.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, width: int, dropout: float) -> None:
        super().__init__()
        channels, height, last = input_shape[0], input_shape[1], 2 * width
        layers: list[nn.Module] = []
        for out, kernel in ((width, 5), (last, 3), (last, 3)):
            layers += [
                nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            channels = out
        side_y, side_x = height // 8, input_shape[2] // 8
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(last * side_y * side_x, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, classes),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, classes) logits."""
        logits: torch.Tensor = self.layers(frames)
        return logits
