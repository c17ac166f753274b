"""A residual student in the manner of SEW ResNet (Fang et al., NeurIPS 2021): spikes of a block and of
what it got are added, and go on together.
"""

import norse.torch as snn
import torch
from torch import nn

from knarr.export import StepGraph


class Teacher(nn.Module):
    """A small CNN on the mean over time."""

    def __init__(self, classes):
        super().__init__()
        layers = []
        for entering, leaving in ((2, 16), (16, 32)):
            conv = nn.Conv2d(entering, leaving, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(leaving), nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, classes))

    def forward(self, frames):
        return self.layers(frames.mean(1))


def teacher(classes):
    return Teacher(classes)


def student(outputs, dt_s, channels=8):
    def lif():
        parameters = snn.LIFBoxParameters(
            tau_mem_inv=torch.tensor(0.5 / dt_s), v_th=torch.tensor(0.25)
        )
        return snn.LIFBoxCell(parameters, dt=dt_s)

    readout = snn.LIBoxParameters(tau_mem_inv=torch.tensor(0.125 / dt_s))
    nodes = {
        "stem": nn.Conv2d(2, channels, 3, stride=2, padding=1),
        "stem_lif": lif(),
        "block1": nn.Conv2d(channels, channels, 3, padding=1),
        "block1_lif": lif(),
        "block2": nn.Conv2d(channels, channels, 3, padding=1),
        "block2_lif": lif(),
        "pool": nn.AvgPool2d(3),
        "flat": nn.Flatten(),
        "fc": nn.Linear(9 * channels, outputs, bias=False),
        "out": snn.LIBoxCell(readout, dt=dt_s),
    }
    row = [*nodes]
    # Besides the row of layers, spikes skip one block or both, and are added to what comes there.
    skips = [("stem_lif", "block2"), ("stem_lif", "pool"), ("block1_lif", "pool")]
    chain = list(zip(["input", *row], [*row, "output"], strict=True))
    return StepGraph(nodes, edges=[*chain, *skips])
