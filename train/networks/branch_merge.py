"""Parallel convolutions of several sizes that train apart and become one convolution for the chip.

y = M [g_1 N_1(W_1 * x); g_2 N_2(W_2 * x); ...] is linear while the gates g do not depend on x, so
it is one convolution:

    W[o, i] = sum_b g_b sum_c M[o, b, c] n_b[c] pad(W_b)[c, i]
    b[o] = sum_b g_b sum_c M[o, b, c] b_b[c] + b_M[o]

pad puts zeros around a smaller kernel, n_b and b_b are the scale and bias that remain of the
batch-norm. Borders are exact too: the 1x1 matrix M has no padding, and every branch pads as many
zeros as its kernel lacks.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["static", "dynamic", "none"]
Synapse = TypeVar("Synapse", bound=nn.Conv2d | nn.Linear)


def padded_conv(
    channels: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True
) -> nn.Conv2d:
    """Return a convolution with half its odd kernel around the map, so that a side s becomes
    ceil(s / stride).
    """
    return nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=bias)


class ScaleGate(nn.Module):
    """One number per map and image [SEEN, code]: global mean, 1x1 to 8, batch-norm, ReLU, 1x1 to 1;
    545 parameters at 64.

    Args:
        channels: channels of the map.
        hidden: channels inside.
    """

    def __init__(self, channels: int, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 1, 1, 1), a logit of the softmax over maps."""
        return self.layers(x)


class MultiScale(nn.Module):
    """Convolutions of several odd sizes side by side, a gate for each, and a 1x1 convolution that
    joins them.

    Args:
        in_channels, channels, out_channels: channels of the input, of each branch, of the result.
        kernels: sizes, odd; padded so that all give the same positions.
        stride: stride of the branches.
        bias: whether branches and join have one.
        gate: "static" learns a logit per branch, "dynamic" is SEEN's ScaleGate per image, "none" is
            1.
        norm: whether a batch-norm follows each branch and the join.

    Raises:
        ValueError: a kernel of an even size.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        kernels: tuple[int, ...] = (3, 5, 7),
        stride: int = 2,
        bias: bool = False,
        gate: Gate = "static",
        norm: bool = False,
    ) -> None:
        super().__init__()
        if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(
                f"kernels: {kernels}, only odd sizes lie on one centre; choose odd ones"
            )
        self.branches = nn.ModuleList(
            padded_conv(in_channels, channels, k, stride, bias=bias) for k in kernels
        )
        make = nn.BatchNorm2d if norm else nn.Identity
        self.norms = nn.ModuleList(make(channels) for _ in kernels)
        self.join = nn.Conv2d(len(kernels) * channels, out_channels, 1, bias=bias)
        self.join_norm = make(out_channels)
        self.gate: Gate = gate
        if gate == "static":
            # Zeros: every branch starts with the same share.
            self.gate_logits = nn.Parameter(torch.zeros(len(kernels)))
        elif gate == "dynamic":
            self.gates = nn.ModuleList(ScaleGate(channels) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        pairs = zip(self.branches, self.norms, strict=True)
        maps = [norm(conv(x)) for conv, norm in pairs]
        if self.gate == "static":
            shares = self.gate_logits.softmax(0)
            maps = [shares[at] * one for at, one in enumerate(maps)]
        elif self.gate == "dynamic":
            maps = gated(maps, gate_shares(self.gates, maps))
        return self.join_norm(self.join(torch.cat(maps, 1)))


def gate_shares(gates: nn.ModuleList, maps: list[Tensor]) -> Tensor:
    """Return each map's share, (B, maps, 1, 1): the softmax over the logits of their gates."""
    logits = [gate(one) for gate, one in zip(gates, maps, strict=True)]
    return torch.cat(logits, 1).softmax(1)


def gated(maps: list[Tensor], shares: Tensor) -> list[Tensor]:
    """Return each map times its share."""
    return [shares[:, at : at + 1] * one for at, one in enumerate(maps)]


def merge(front: MultiScale) -> nn.Conv2d:
    """Return the one convolution that equals a front, computed in float64, in the front's dtype, in
    eval mode.

    Raises:
        ValueError: its gates depend on the image, so it is no convolution.
    """
    if front.gate == "dynamic":
        raise ValueError(
            "gate: 'dynamic' depends on the image, no single convolution equals it; train with 'static'"
        )
    convs: list[Any] = list(front.branches)
    first = convs[0]
    side = max(conv.kernel_size[0] for conv in convs)
    matrix, offset = _folded(front.join, front.join_norm)
    shares = torch.ones(len(convs))
    if front.gate == "static":
        shares = front.gate_logits.detach().double().softmax(0)
    normed = not isinstance(front.join_norm, nn.Identity)
    merged = nn.Conv2d(
        first.in_channels,
        len(offset),
        side,
        first.stride,
        side // 2,
        bias=front.join.bias is not None or normed,
    )
    merged.to(first.weight)
    weight = torch.zeros_like(merged.weight, dtype=torch.float64)
    # The join's input channels are the branches' one after the other.
    columns = matrix[:, :, 0, 0].chunk(len(convs), 1)
    for share, conv, norm, part in zip(
        shares,
        convs,
        front.norms,
        columns,
        strict=True,
    ):
        kernel, branch_offset = _folded(conv, norm)
        around = (side - conv.kernel_size[0]) // 2
        padded = F.pad(kernel, (around,) * 4)
        weight += share * torch.einsum("oc,cihw->oihw", part, padded)
        offset = offset + share * (part @ branch_offset)
    with torch.no_grad():
        merged.weight.copy_(weight)
        if merged.bias is not None:
            merged.bias.copy_(offset)
    return merged.eval()


def fold_norm(synapse: Synapse, norm: nn.Module) -> Synapse:
    """Return a copy of a synapse with the batch-norm behind it, computed in float64, in the
    synapse's own dtype.

    w' = w * gamma / sqrt(var + eps);  b' = beta + (b - mean) * gamma / sqrt(var + eps)

    Raises:
        ValueError: the norm has no running statistics, so it depends on the batch.
    """
    # The network that trained may train on, so its synapse stays as it is.
    folded = copy.deepcopy(synapse)
    weight, bias = _folded(synapse, norm)
    folded.weight = nn.Parameter(weight.to(synapse.weight))
    folded.bias = nn.Parameter(bias.to(synapse.weight))
    folded.eval()
    return folded


def _folded(synapse: nn.Conv2d | nn.Linear, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float64, with a batch-norm or an Identity behind them."""
    weight = synapse.weight.detach().double()
    bias = weight.new_zeros(len(weight))
    if synapse.bias is not None:
        bias = synapse.bias.detach().double()
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_var is None:
        raise ValueError(
            f"{type(norm).__name__}: only a batch-norm with running statistics folds; use one"
        )
    assert norm.running_mean is not None  # torch tracks both or none
    spread = (norm.running_var.double() + norm.eps).sqrt()
    gain = norm.weight.detach().double() / spread
    centred = bias - norm.running_mean.double()
    shifted = norm.bias.detach().double() + centred * gain
    # One gain per output channel, the first axis of kernels and of matrices.
    return weight * gain.reshape(-1, *[1] * (weight.dim() - 1)), shifted
