"""The networks behind Table II of "Spiking Emotions" (CEUR-WS 3331 paper 8), reconstructed, and their operands counted.

The paper prints operations in tenths of a million, not its layers. Three valid 3x3 convolutions of 32 channels, average pools of
2 and a hidden layer of 1024 are what fits all three numbers: a strong hypothesis, no proof. The ANN hears 68 grey frames as
channels, the spiking network two polarities, step by step.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import nir
import norse.torch as norse
import numpy.typing as npt
import torch
from torch import nn

from knarr.export import PLIFBoxCell, StepGraph
from knarr.export.norse.layers import take_apart
from knarr.export.norse.rewrite import as_module, rewrite
from knarr.hw_sim.counting.count import count
from knarr.hw_sim.counting.counts import LayerCounts, OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx

DT_S = 0.001
SIZE_PX, FRAMES, POLARITIES, WIDTH, HIDDEN, VOTERS, CLASSES = 128, 68, 2, 32, 1024, 20, 2
V_TH = 0.4
"""The best of the paper's Table I."""
LAYERS, HEAD = ("conv1", "conv2", "conv3", "fc"), "head"


class Operands(NamedTuple):
    """Dense operations of one pass or one step.

    Args:
        ann_first, snn_first: first layer of the ANN, F, and of the spiking network, f.
        others: O, conv2 to fc; the head is left out, as the paper does.
    """

    ann_first: int
    snn_first: int
    others: int


def spiking_network(size_px: int = SIZE_PX) -> norse.SequentialState:
    """One time step: 3 x {conv, BN, PLIF, average pool}, 1024 PLIF, 20 PLIF voters; 6,462,213 parameters at 128 pixels.

    Dropout does nothing in eval mode, the only one that is counted; a training has to keep one mask for all steps of a clip.
    """
    return norse.SequentialState(
        *_block(POLARITIES, _plif()),
        *_block(WIDTH, _plif()),
        *_block(WIDTH, _plif()),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(_features(size_px), HIDDEN, bias=False),
        _plif(),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, VOTERS, bias=False),
        _plif(),
    )


def ann_network(size_px: int = SIZE_PX, frames: int = FRAMES) -> nn.Sequential:
    """The ANN beside it: frames as channels, ReLU for PLIF, two outputs."""
    return nn.Sequential(
        *_block(frames, nn.ReLU()),
        *_block(WIDTH, nn.ReLU()),
        *_block(WIDTH, nn.ReLU()),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(_features(size_px), HIDDEN, bias=False),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, CLASSES, bias=False),
    )


def _block(channels: int, activation: nn.Module) -> list[nn.Module]:
    conv = nn.Conv2d(channels, WIDTH, 3, bias=False)
    return [conv, nn.BatchNorm2d(WIDTH), activation, nn.AvgPool2d(2)]


def _plif() -> PLIFBoxCell:
    return PLIFBoxCell(2 * DT_S, DT_S, v_th=V_TH)


def _features(size_px: int) -> int:
    for _ in range(3):
        size_px = (size_px - 2) // 2
    return WIDTH * size_px**2


def fit_norms(network: nn.Module, shown: torch.Tensor) -> None:
    """Give every batch-norm the statistics of one clip, layer by layer, and put the network into eval mode.

    Args:
        network: of this file.
        shown: (T, 2, H, W) for the spiking network, whose steps are the batch; (1, frames, H, W) for the ANN.
    """
    network.eval()
    with torch.no_grad():
        for layer in network.children():
            if isinstance(layer, PLIFBoxCell):
                spikes, state = [], None
                for x in shown:
                    z, state = layer(x[None], state)
                    spikes.append(z)
                shown = torch.cat(spikes)
                continue
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # type: ignore[assignment]  # torch's word for a plain mean, here of one batch
                layer.train()(shown)
                layer.eval()
            shown = layer(shown)


def counted(network: norse.SequentialState) -> StepGraph:
    """What of the spiking network is exported and counted: all but the voting head, batch-norms folded.

    The paper leaves the head out. It also stays silent in an untrained network, and a certificate of silence proves nothing.

    Batch-norms go into weights and biases of the convolutions, as on a chip. Folding rounds weights anew, and among the 10^8
    decisions that a certificate of this size compares some fall otherwise, so `to_nir` refuses the network with its norms.
    """
    layers = list(network.children())
    last = max(at for at, layer in enumerate(layers[:-1]) if isinstance(layer, PLIFBoxCell))
    plain = take_apart(norse.SequentialState(*layers[: last + 1]).eval())
    return as_module(rewrite(plain, (POLARITIES, SIZE_PX, SIZE_PX))[0])


def synapses(counts: OperationCounts) -> dict[str, LayerCounts]:
    """conv1 ... fc, and the head where there is one -> counts; rows of pools and activations hold no synapses."""
    rows = [layer for layer in counts.layers.values() if layer.dense_valid]
    return dict(zip((*LAYERS, HEAD)[: len(rows)], rows, strict=True))


def operands(graph: nir.NIRGraph, shown: npt.ArrayLike, ann: Path) -> Operands:
    """F, f and O, counted.

    Args:
        graph: of the spiking network.
        shown: (samples, T, 2, H, W) of any T and content: dense counts do not depend on them.
        ann: ONNX file of the ANN.

    Raises:
        ValueError: the later layers of the two networks differ; the paper has one number for both.
    """
    spiking = count(graph, shown, dt_s=DT_S, pooling="float")
    steps = {
        name: layer.dense_valid / spiking.timesteps for name, layer in synapses(spiking).items()
    }
    passed = {name: layer.dense_valid for name, layer in synapses(count_onnx(ann)).items()}
    others, of_ann = (sum(one[name] for name in LAYERS[1:]) for one in (steps, passed))
    if others != of_ann:
        raise ValueError(
            f"others: {others} in the spiking network, {of_ann} in the ANN; these are no twins"
        )
    return Operands(_whole(passed["conv1"]), _whole(steps["conv1"]), _whole(others))


def _whole(number: Fraction | int) -> int:
    if Fraction(number).denominator != 1:
        raise ValueError(f"operations: {number} of one step is no whole number")
    return int(number)
