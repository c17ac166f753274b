"""A trained network as what can be exported: scales merged, norms folded, dropout gone, plain cells
of Norse.
"""

from __future__ import annotations

import copy

import norse.torch as snn
import torch
from torch import nn

from knarr.train.networks.branch_merge import MultiScale, fold_norm, merge
from knarr.train.networks.heads import ClipDropout
from knarr.train.networks.neurons import BoxCell, ReadoutCell


def plain(network: snn.SequentialState) -> snn.SequentialState:
    """Return a copy in eval mode of the same dtype and cells: one convolution for each MultiScale,
    no batch-norm, no dropout.

    Equal in real numbers; in floating point it rounds otherwise, and a neuron at its threshold may
    decide otherwise.

    Raises:
        ValueError: gates that depend on the image, or a batch-norm that does not follow a synapse
            directly.
    """
    layers: list[nn.Module] = []
    for module in copy.deepcopy(network).eval():
        if isinstance(module, MultiScale):
            layers.append(merge(module))
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            before = layers[-1] if layers else None
            if isinstance(before, (nn.Conv2d, nn.Linear)):
                layers[-1] = fold_norm(before, module)
                continue
            # Behind a cell or a pooling there is no weight to take its scale up.
            raise ValueError(
                f"{type(module).__name__}: follows {type(before).__name__}; move it behind a synapse to fold it"
            )
        elif not isinstance(module, (ClipDropout, nn.Dropout, nn.Identity)):
            layers.append(module)
    return snn.SequentialState(*layers).eval()


def chip_form(network: snn.SequentialState, *, snap: bool = False) -> snn.SequentialState:
    """Return the network in float32 on the CPU as `to_nir` takes it, every cell equal in every bit
    to the trained one.

    Args:
        network: flat one-step network of this package.
        snap: put every dt/tau on k/4096, as the chip's registers hold it; learned ones become
            constants.

    Raises:
        ValueError: a network that `plain` refuses, or a cell that fires at its threshold or gives
            its membrane.
    """
    layers = [
        layer.norse(snap=snap) if isinstance(layer, (BoxCell, ReadoutCell)) else layer
        for layer in plain(network)
    ]
    return snn.SequentialState(*layers).to("cpu", torch.float32).eval()
