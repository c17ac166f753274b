"""The spiking student in Norse: convolution, LIF and average pooling twice, a linear layer, a leaky integrator.

The ANN teacher: three convolutions on frames. It is also the baseline that the chip's energy is compared with.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import norse.torch as snn
import torch
from torch import nn

from knarr.train.settings import RecipeError

DECAY_UNITY = 4096


@dataclass(frozen=True)
class StudentShape:
    """Everything that decides a student's layers.

    Args:
        input_shape: (C, H, W) of one time step.
        classes: number of classes.
        channels: of the two convolutions.
        first_padding: of the first convolution (4x4, stride 2); choose it so that the sides divide by 8.
        dt_s: time step, seconds.
        tau_mem_s: membrane time constant of the LIF neurons, seconds; snapped to a chip register.
        tau_readout_s: time constant of the leaky integrator that is read, seconds; snapped too.
    """

    input_shape: tuple[int, int, int]
    classes: int
    channels: tuple[int, int]
    first_padding: int
    dt_s: float
    tau_mem_s: float
    tau_readout_s: float


def build_student(shape: StudentShape, *, batch_norm: bool) -> snn.SequentialState:
    """A student of one time step.

    Args:
        shape: see StudentShape.
        batch_norm: True while it trains; False for the folded student that is exported.

    Raises:
        RecipeError: sides that the poolings do not divide, or a time constant that no decay register holds.
    """
    channels, height, width = shape.input_shape
    first, second = shape.channels
    sides = [(side + 2 * shape.first_padding - 4) // 2 + 1 for side in (height, width)]
    if any(side < 4 or side % 4 for side in sides):
        raise RecipeError(
            f"student: the first convolution leaves {sides} pixels, which two 2x2 pools do not divide"
        )
    lif_inverse, readout_inverse = (
        snap_inverse(tau, shape.dt_s) for tau in (shape.tau_mem_s, shape.tau_readout_s)
    )

    def synapse_and_neuron(conv: nn.Conv2d) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(conv.out_channels)] if batch_norm else []
        parameters = snn.LIFBoxParameters(tau_mem_inv=lif_inverse, v_th=torch.tensor(1.0))
        return [conv, *norm, snn.LIFBoxCell(parameters, dt=shape.dt_s), nn.AvgPool2d(2)]

    # Batch-norm has its own offset; folded, it becomes the convolution's bias.
    bias = not batch_norm
    return snn.SequentialState(
        *synapse_and_neuron(
            nn.Conv2d(channels, first, 4, stride=2, padding=shape.first_padding, bias=bias)
        ),
        *synapse_and_neuron(nn.Conv2d(first, second, 3, padding=1, bias=bias)),
        nn.Flatten(),
        nn.Linear(second * (sides[0] // 4) * (sides[1] // 4), shape.classes, bias=False),
        snn.LIBoxCell(p=snn.LIBoxParameters(tau_mem_inv=readout_inverse), dt=shape.dt_s),
    )


def snap_inverse(tau_s: float, dt_s: float) -> torch.Tensor:
    """1 / tau, per second, with dt/tau moved to the nearest k/4096 (k = 1..4095) so that the chip's register holds it.

    Raises:
        RecipeError: tau is so short or long that no register comes near.
    """
    register = round(DECAY_UNITY * dt_s / tau_s)
    if not 1 <= register < DECAY_UNITY:
        raise RecipeError(
            f"tau {tau_s:g} s at dt {dt_s:g} s needs decay register {register}, allowed 1..{DECAY_UNITY - 1}"
        )
    return torch.tensor(register / (DECAY_UNITY * dt_s))


def run_student(
    student: snn.SequentialState, spikes: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All time steps, layer by layer: the same numbers as step by step, with convolutions batched over time.

    Args:
        student: flat SequentialState.
        spikes: (B, T, *features).

    Returns:
        (output of the last layer, (B, T, classes), mean firing rate of each LIF layer).
    """
    x = spikes.transpose(0, 1)
    rates = []
    for module, stateful in zip(student, student.stateful_layers, strict=True):
        if stateful:
            state, outputs = None, []
            for frame in x:
                out, state = module(frame, state)
                outputs.append(out)
            x = torch.stack(outputs)
            if isinstance(module, snn.LIFBoxCell):
                rates.append(x.detach().mean())
        else:
            x = module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return x.transpose(0, 1), rates


def fold_batch_norm(student: snn.SequentialState) -> snn.SequentialState:
    """A copy in eval mode with every BatchNorm2d folded into the convolution before it.

    w' = w * gamma / sqrt(var + eps);  b' = beta + (b - mean) * gamma / sqrt(var + eps), computed in float64.

    Raises:
        ValueError: a batch-norm that does not follow a convolution directly.
    """
    layers: list[nn.Module] = []
    for module in copy.deepcopy(student).eval():
        if not isinstance(module, nn.BatchNorm2d):
            layers.append(module)
            continue
        conv = layers[-1] if layers else None
        if (
            not isinstance(conv, nn.Conv2d)
            or module.running_var is None
            or module.running_mean is None
        ):
            raise ValueError(
                "fold_batch_norm: a BatchNorm2d with running statistics must follow a Conv2d directly"
            )
        gain = module.weight.detach().double() / (module.running_var.double() + module.eps).sqrt()
        old_bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        offset = (
            module.bias.detach().double()
            + (old_bias.double() - module.running_mean.double()) * gain
        )
        conv.weight = nn.Parameter(
            (conv.weight.detach().double() * gain[:, None, None, None]).float()
        )
        conv.bias = nn.Parameter(offset.float())
    return snn.SequentialState(*layers).eval()


class Teacher(nn.Module):
    """Convolution, batch-norm, ReLU and average pooling three times, then two linear layers.

    Args:
        input_shape: (C, H, W) of the frames.
        classes: number of classes.
        width: channels of the first convolution; the others have twice as many.
        dropout: before each linear layer.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, width: int, dropout: float
    ) -> None:
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
