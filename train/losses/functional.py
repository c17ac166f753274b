"""Networks run with parameters other than their own; parameters, gradients and batch-norm statistics stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.func import functional_call  # type: ignore[attr-defined]  # public, but not in its __all__

from knarr.train.losses.checks import LossError

Output = TypeVar("Output")
Parameters = dict[str, torch.Tensor]
"""Name in the network -> value."""


def call(network: nn.Module, *inputs: torch.Tensor) -> Any:
    """The network's own forward."""
    return network(*inputs)


@dataclass(frozen=True)
class Learner(Generic[Output]):
    """A network and how it is run.

    Args:
        network: its parameters that require a gradient are what learns; its mode is kept.
        run: (network, *inputs) -> output; for a SequentialState a function over its steps, such as `run_gsr_student`.
    """

    network: nn.Module
    run: Callable[..., Output] = call


class _Bound(nn.Module):
    """A network whose forward is a Learner's run, so that parameters can be put in place for any way of running."""

    def __init__(self, learner: Learner[Any]) -> None:
        super().__init__()
        self.network, self.run = learner.network, learner.run

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.run(self.network, *inputs)


def leaves(network: nn.Module, name: str = "network") -> Parameters:
    """The parameters that require a gradient, as leaves of a new graph: same memory, own gradients.

    Args:
        network: where they are.
        name: of the network, for the error.

    Raises:
        LossError: none does.
    """
    found = {key: p.detach().requires_grad_() for key, p in network.named_parameters() if p.requires_grad}
    if not found:
        raise LossError(f"{name}: no parameter requires a gradient; call requires_grad_() on what learns")
    return found


def run_with(
    learner: Learner[Output], parameters: Mapping[str, torch.Tensor], *inputs: torch.Tensor
) -> Output:
    """The output with other parameters in place, differentiable in them; the network itself is not changed.

    Batch-norms in training mode use the batch's statistics and move a copy of their running ones, which is thrown away. Dropout
    draws from torch's global generator as always.

    Args:
        learner: network and how it is run.
        parameters: what to put in place; others stay the network's own.
        inputs: of `learner.run`.
    """
    buffers = {key: buffer.clone() for key, buffer in learner.network.named_buffers()}
    inside = {f"network.{key}": value for key, value in {**buffers, **parameters}.items()}
    output: Output = functional_call(_Bound(learner), inside, inputs)
    return output
