"""The small demonstration's networks: an ANN teacher on frames and a spiking student in Norse on
events.
"""

from __future__ import annotations

import norse.torch as snn
import torch
from torch import Tensor, nn

from knarr.train.networks.neurons import snap_inverse
from knarr.train.settings import RecipeError


def build_student(
    input_shape: tuple[int, int, int],
    classes: int,
    channels: tuple[int, int],
    first_padding: int,
    dt_s: float,
    tau_mem_s: float,
    tau_readout_s: float,
    *,
    batch_norm: bool,
) -> snn.SequentialState:
    """Build a student of one time step: convolution, LIF, average pooling twice, a linear layer, a
    leaky integrator.

    Args:
        input_shape: (C, H, W) of one time step.
        classes: number of classes.
        channels: outputs of the two convolutions.
        first_padding: padding of the first convolution (4x4, stride 2); choose it so that the sides
            divide by 8.
        dt_s: time step, seconds.
        tau_mem_s: membrane time constant of the LIF neurons, seconds; snapped to a chip register.
        tau_readout_s: time constant of the leaky integrator that is read, seconds; snapped too.
        batch_norm: True while it trains; False for the folded student that is exported.

    Raises:
        RecipeError: sides that the poolings do not divide, or a time constant that no decay
            register holds.
    """
    entering, height, width = input_shape
    first, second = channels
    # Outputs of the first convolution along each axis.
    sides = [(side + 2 * first_padding - 4) // 2 + 1 for side in (height, width)]
    if any(side < 4 or side % 4 for side in sides):
        raise RecipeError(
            f"student: the first convolution leaves {sides} pixels, which two 2x2 pools do not divide"
        )
    lif_inverse = snap_inverse(tau_mem_s, dt_s)
    lif = snn.LIFBoxParameters(tau_mem_inv=lif_inverse, v_th=torch.tensor(1.0))
    readout = snn.LIBoxParameters(tau_mem_inv=snap_inverse(tau_readout_s, dt_s))
    # Batch-norm has its own offset; folded, it becomes the convolution's bias.
    bias = not batch_norm
    layers: list[nn.Module] = []
    for conv in (
        nn.Conv2d(entering, first, 4, stride=2, padding=first_padding, bias=bias),
        nn.Conv2d(first, second, 3, padding=1, bias=bias),
    ):
        norm = [nn.BatchNorm2d(conv.out_channels)] if batch_norm else []
        layers += [conv, *norm, snn.LIFBoxCell(lif, dt=dt_s), nn.AvgPool2d(2)]
    features = second * (sides[0] // 4) * (sides[1] // 4)
    return snn.SequentialState(
        *layers,
        nn.Flatten(),
        nn.Linear(features, classes, bias=False),
        snn.LIBoxCell(p=readout, dt=dt_s),
    )


def run_student(student: snn.SequentialState, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run all time steps, layer by layer: the same numbers as step by step, with convolutions
    batched over time.

    Args:
        student: flat SequentialState.
        spikes: (B, T, *features).

    Returns:
        (output of the last layer, (B, T, classes), mean firing rate of each LIF layer).
    """
    # Time comes first in memory, unlike in `heads.over_time`: sums over a batch, such as those of a
    # batch-norm in training, run in this order, and in another one they round otherwise.
    x, rates = spikes.transpose(0, 1), []
    for module, stateful in zip(student, student.stateful_layers, strict=True):
        if not stateful:
            every = module(x.flatten(0, 1))
            x = every.unflatten(0, x.shape[:2])
            continue
        state, outputs = None, []
        for frame in x:
            out, state = module(frame, state)
            outputs.append(out)
        x = torch.stack(outputs)
        if isinstance(module, snn.LIFBoxCell):
            rates.append(x.detach().mean())
    return x.transpose(0, 1), rates


class Teacher(nn.Module):
    """Convolution, batch-norm, ReLU and average pooling three times, then two linear layers.

    It is also the baseline that the chip's energy is compared with.

    Args:
        input_shape: (C, H, W) of the frames.
        classes: number of classes.
        width: channels of the first convolution; the others have twice as many.
        dropout: share that is dropped before each linear layer.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, across = input_shape
        last = 2 * width
        layers: list[nn.Module] = []
        for out, kernel in ((width, 5), (last, 3), (last, 3)):
            layers += [
                nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            channels = out
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Dropout(dropout),
            # Three pools halve each side and round down.
            nn.Linear(last * (height // 8) * (across // 8), 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, classes),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, classes) logits."""
        return self.layers(frames)
