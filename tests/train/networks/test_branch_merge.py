"""Scales that trained apart are one convolution on the chip: the same numbers in float64, the same spikes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import norse.torch as snn
import pytest
import torch
from torch import nn

from knarr.train.networks.branch_merge import Gate, MultiScale, fold_norm, merge
from knarr.train.networks.chip_form import plain
from knarr.train.networks.heads import NetworkOutput, over_time
from knarr.train.networks.mskd import MskdStudentSettings, build_mskd_student

GATES: tuple[Gate, ...] = ("static", "none")
STEPS, SIDE = 6, 32


def shaken(network: Any, seed: int = 1) -> Any:
    """Gates, biases and norms away from their first values, statistics too; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            if isinstance(module, MultiScale) and module.gate == "static":
                module.gate_logits.copy_(torch.randn(3, generator=generator))
    return network.eval()


@pytest.mark.parametrize(
    ("gate", "bias", "norm"), list(itertools.product(GATES, (False, True), (False, True))), ids=str
)
def test_one_convolution_equals_the_branches_in_float64(gate: Gate, bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    front = shaken(MultiScale(3, 4, 5, bias=bias, gate=gate, norm=norm).double())
    before = copy.deepcopy(front.state_dict())
    merged = merge(front)
    assert (merged.weight.shape, merged.stride, merged.padding) == ((5, 3, 7, 7), (2, 2), (3, 3))
    assert (merged.bias is not None) == (bias or norm)
    assert merged.weight.dtype == torch.float64
    for height, width in (
        (8, 9),
        (1, 7),
        (15, 2),
    ):  # borders of odd and even sides, images smaller than the kernel
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        expected = front(x)
        assert expected.std() > 0.02
        # float64 sums of the merged kernel come in another order; values are below 10, a rounding below 2e-15
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-13)
    assert all(torch.equal(front.state_dict()[name], value) for name, value in before.items())


def test_a_merged_kernel_by_hand() -> None:
    front = MultiScale(1, 1, 1, kernels=(1, 3), stride=1, bias=True, gate="static")
    with torch.no_grad():
        front.branches[0].weight.fill_(8.0)
        front.branches[0].bias.fill_(4.0)
        front.branches[1].weight.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
        front.branches[1].bias.fill_(-2.0)
        front.join.weight.copy_(torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1))
        assert front.join.bias is not None
        front.join.bias.fill_(0.5)
    merged = merge(front)  # shares 1/2: factors 1 and 2; the centre is 1*8 + 2*4
    assert merged.weight.flatten().tolist() == [0, 2, 4, 6, 16, 10, 12, 14, 16]
    assert merged.bias is not None
    assert merged.bias.tolist() == [1 * 4 - 2 * 2 + 0.5]


def student(dtype: torch.dtype, **changes: Any) -> snn.SequentialState:
    torch.manual_seed(3)
    settings = MskdStudentSettings(side_px=SIDE, width=0.25, **changes)
    network = shaken(build_mskd_student(settings)).to(dtype)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(3)
            elif isinstance(layer, (MultiScale, nn.Conv2d)) and not settings.norm:
                (layer.join if isinstance(layer, MultiScale) else layer).weight.mul_(6)
    return network


def runs(network: snn.SequentialState, x: torch.Tensor) -> tuple[NetworkOutput, NetworkOutput]:
    """(as trained, merged), both with every layer firing."""
    with torch.no_grad():
        trained, merged = (over_time(n, x, record=True) for n in (network, plain(network)))
    assert len(trained.spikes) >= 4
    assert all(0.005 < float(rate) < 0.95 for rate in trained.rates)
    return trained, merged


def differing(one: NetworkOutput, other: NetworkOutput) -> tuple[int, int]:
    pairs = list(zip(one.spikes, other.spikes, strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)


VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "static, bias, norm": {"conv_bias": True, "norm": True},
    "none, norm, li": {"gate": "none", "norm": True, "readout": "li"},
    "none, bias, grey": {"gate": "none", "conv_bias": True, "in_channels": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_student_fires_as_it_was_trained(variant: str) -> None:
    changes = VARIANTS[variant]
    x = torch.rand(
        2,
        STEPS,
        changes.get("in_channels", 3),
        SIDE,
        SIDE,
        generator=torch.Generator().manual_seed(5),
    )
    trained, merged = runs(student(torch.float64, **changes), x.double())
    assert differing(trained, merged)[0] == 0
    # float readouts: float64 sums in another order, carried through the steps; the spikes above are equal exactly
    torch.testing.assert_close(merged.outputs, trained.outputs, rtol=0, atol=1e-12)
    moved, decisions = differing(*runs(student(torch.float32, **changes), x))
    # Where float32 rounds otherwise a neuron at its threshold may differ, and what it feeds after it; measured: 0.
    assert moved <= decisions * 1e-5, f"{moved} of {decisions} decisions differ in float32"


@pytest.mark.parametrize("gate", GATES)
def test_on_dyadic_weights_every_bit_is_equal_in_float32(gate: Gate) -> None:
    network = student(torch.float32, gate=gate, conv_bias=True)
    front = network[0]
    with torch.no_grad():
        for parameter in (*front.branches.parameters(), *front.join.parameters()):
            parameter.copy_((parameter * 16).round().clamp(-8, 8) / 16)
        if gate == "static":
            # Shares 1/2, 1/4, 1/4, exactly; a softmax of other logits is no dyadic number.
            front.gate_logits.copy_(torch.tensor([2.0, 1.0, 1.0]).log())
            assert front.gate_logits.softmax(0).tolist() == [0.5, 0.25, 0.25]
    generator = torch.Generator().manual_seed(6)
    x = torch.randint(0, 16, (2, STEPS, 3, SIDE, SIDE), generator=generator) / 16
    assert torch.equal(merge(front)(x[:, 0]), front(x[:, 0]))
    trained, merged = runs(network, x)
    assert differing(trained, merged)[0] == 0
    assert all(torch.equal(a, b) for a, b in zip(trained.membranes, merged.membranes, strict=True))


def test_what_is_no_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="'dynamic' depends on the image"):
        merge(MultiScale(3, 4, 5, gate="dynamic"))
    with pytest.raises(ValueError, match="only odd sizes"):
        MultiScale(3, 4, 5, kernels=(3, 4))
    loose = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(ValueError, match="running statistics"):
        fold_norm(nn.Linear(2, 2), loose)
    with pytest.raises(ValueError, match="follows Flatten"):
        plain(snn.SequentialState(nn.Linear(2, 2), nn.Flatten(), nn.BatchNorm1d(2)))
