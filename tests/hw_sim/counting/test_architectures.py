"""Multiplications of public architectures: knarr from the ONNX file, torch's and torchinfo's counters from the module.

torch.utils.flop_counter sees the tensor operations that run and agrees as it is. torchinfo multiplies parameters by output
sizes, layer by layer; what that rule gets wrong is corrected by name, each correction computed from the layers' own shapes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torchinfo
import torchvision
from shared_pieces import write_onnx
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from knarr.hw_sim import count_torch
from knarr.hw_sim.counting.onnx.count import count_onnx

Calls = list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]
"""Module, input shape, output shape of every call of a module without children, and of attention."""
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Dcgan(nn.Sequential):
    """The generator of Radford et al. 2015, 64 x 64 images from 100 numbers."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = [100, 512, 256, 128, 64]
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            stride, padding = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())


class Recurrent(nn.Module):
    """Two bidirectional LSTM layers and a GRU over a sequence, then a readout of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 20, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(40, 16, batch_first=True)
        self.readout = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> Any:
        hidden, _ = self.gru(self.lstm(x)[0])
        return self.readout(hidden[:, -1])


PUBLISHED: dict[str, Any] = {
    "resnet18": torchvision.models.ResNet18_Weights,
    "mobilenet_v2": torchvision.models.MobileNet_V2_Weights,
    "efficientnet_b0": torchvision.models.EfficientNet_B0_Weights,
    "convnext_tiny": torchvision.models.ConvNeXt_Tiny_Weights,
    "vit_b_16": torchvision.models.ViT_B_16_Weights,
}
"""Tables of torchvision that state 10^9 multiplications of an image of 224 x 224."""
OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dcgan": (Dcgan, (100, 1, 1)),
    "recurrent": (Recurrent, (9, 12)),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in OWN:
        make, shape = OWN[name]
        return make().eval(), torch.randn(1, *shape)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def by_torch(module: nn.Module, x: torch.Tensor) -> int:
    """Tensor operations that run, two floating-point operations each; fused kernels, which it cannot look into, are off."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            module(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def calls_of(module: nn.Module, x: torch.Tensor) -> Calls:
    calls: Calls = []

    def seen(part: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        calls.append((part, tuple(inputs[0].shape), tuple(first.shape)))

    parts = [
        part
        for part in module.modules()
        if isinstance(part, nn.MultiheadAttention) or not list(part.children())
    ]
    handles = [part.register_forward_hook(seen) for part in parts]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return calls


def parameters(module: nn.Module, kind: str) -> int:
    return sum(value.numel() for name, value in module.named_parameters() if kind in name)


def corrections(calls: Calls) -> dict[str, int]:
    """Return what has to be added to torchinfo's count, by the reason why."""
    found = dict.fromkeys(("biases", "norms", "rows", "attention", "transposed"), 0)
    for part, before, after in calls:
        biases, weights = parameters(part, "bias"), parameters(part, "weight")
        if isinstance(
            part, NORMS
        ):  # their scale and bias, once per sample; folded, or apart from multiplications
            found["norms"] -= (weights + biases) * after[0]
        elif isinstance(part, nn.RNNBase):  # steps come second
            found["biases"] -= biases * prod(after[:2])
        elif isinstance(
            part, nn.MultiheadAttention
        ):  # its projections and its two products run without a module
            steps, width = prod(after[:-1]), after[-1]
            found["attention"] += steps * weights + 2 * steps * after[1] * width
        elif isinstance(part, (*CONVOLUTIONS, *TRANSPOSED)):
            found["biases"] -= biases * after[0] * prod(after[2:])
            if isinstance(
                part, TRANSPOSED
            ):  # its kernel stands at every input, not at every output
                found["transposed"] += weights * after[0] * (prod(before[2:]) - prod(after[2:]))
        elif isinstance(part, nn.Linear):
            found["biases"] -= biases * after[0]
            found["rows"] += weights * (
                prod(after[:-1]) - after[0]
            )  # tokens and pixels count as one
    return found


@pytest.mark.parametrize(
    ("name", "corrected"),
    [
        ("resnet18", {"biases", "norms"}),
        ("mobilenet_v2", {"biases", "norms"}),
        ("efficientnet_b0", {"biases", "norms"}),
        ("convnext_tiny", {"biases", "norms", "rows"}),
        ("vit_b_16", {"biases", "norms", "rows", "attention"}),
        ("dcgan", {"norms", "transposed"}),
        ("recurrent", {"biases"}),
    ],
)
def test_three_counters_agree_to_the_operation(
    name: str, corrected: set[str], tmp_path: Path
) -> None:
    module, x = build(name)
    # torch's exporter leaves out biases of zeros, which a norm has until it is trained.
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.bias)
    path = tmp_path / "m.onnx"
    write_onnx(module, (x,), path)
    counts = count_onnx(path)
    ours = counts.total.dense_padded
    assert ours == by_torch(module, x)
    calls = calls_of(module, x)
    found = corrections(calls)
    assert {reason for reason, operations in found.items() if operations} == corrected
    theirs = torchinfo.summary(module, input_data=x, verbose=0).total_mult_adds
    assert theirs != ours
    assert ours == theirs + sum(found.values())
    if name in PUBLISHED:
        assert round(float(ours) / 1e9, 3) == PUBLISHED[name].IMAGENET1K_V1.meta["_ops"]
    windows = [part for part, _, _ in calls if isinstance(part, (*CONVOLUTIONS, *TRANSPOSED))]
    padding = any(any(part.padding) for part in windows)
    assert (counts.total.dense_valid < ours) == padding
    assert counts.total.bias_adds > 0 or name == "dcgan"
    assert counts.total.elementwise > 0
    assert not counts.refused


DENSE = {"efficientnet_b0", "convnext_tiny", "vit_b_16"}
"""Architectures in which no activation is 0, so that every operand is dense."""
COUNTED = ("mobilenet_v2", "resnet18", "squeezenet1_1", "vit_b_16", *OWN)
MORE = (
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "swin_t",
)
LARGE = "KNARR_CONFORMANCE" in os.environ


@pytest.mark.parametrize("name", [*COUNTED, *(MORE if LARGE else ())])
def test_dispatched_operations_are_those_of_the_flop_counter(name: str) -> None:
    """Small images, since the operators are the same; attention of vit_b_16 is one fused operator, and that of swin_t is not."""
    torch.manual_seed(0)
    if name in OWN:
        module, x = build(name)
    else:
        side = 224 if LARGE else 64
        shaped = {"image_size": side} if name == "vit_b_16" else {}
        module = torchvision.models.get_model(name, weights=None, **shaped).eval()
        x = torch.randn(1, 3, side, side)
    total = count_torch(module, x).total
    assert total.dense_padded == by_torch(module, x)
    assert 0 < total.mac <= total.dense_valid
    if name in DENSE:
        assert total.mac == total.dense_valid
