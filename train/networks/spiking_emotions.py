"""The networks of "Spiking Emotions" (CEUR-WS 3331 paper 8): spiking voters on simulated events,
and the ANN beside them.

3x3 convolutions, batch-norm, PLIF, average pools, 20 voters in two groups, and an ANN on 68 frames
as channels [paper]. The paper prints operations in tenths of a million, not its layers: widths,
depth, the hidden layer, dropout are [reconstruction], the fit of all its counts (6,462,213
parameters; 9,144,576 and 47,940,608 operations a step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import norse.torch as snn
from pydantic import model_validator
from torch import Tensor, nn

from knarr.train.networks.heads import ClipDropout, StepLogits, over_time, vote
from knarr.train.networks.neurons import BoxCell, NeuronSettings
from knarr.train.settings import AtLeastTwo, Count, Frozen, Positive, ProperFraction

POLARITIES = 2
TAU_STEPS = 2.0
"""Time constant of LIF, and where PLIF starts [code]: a = 1/2."""
FANG_CHANNELS, FANG_BLOCKS = 128, 5
Pool = Literal["avg", "max"]


class SpikingEmotionsSettings(Frozen):
    """Sizes and options that decide the layers of a voting network, and of the ANN.

    Args:
        size_px: height and width of a frame.
        blocks, width: number of convolutions and their channels.
        hidden: neurons of the hidden layer.
        neuron: "plif" learns a time constant per layer, "lif" keeps tau = 2 steps.
        v_th: threshold, volts.
        pool: "avg", which can be exported, or "max".
        pure_spike: leave out the first frame of a clip, the float one, so that only spikes arrive.
        fires: "gt" as Norse, NIR and the chip; "ge" as the paper writes; exact ties alone differ.
        fc_bias: whether linear layers have one; the PLIF code has none.
        dropout: share that is dropped before each linear layer, one mask for all steps of a clip.
        classes, voters: classes and neurons that vote for each, the first class's first: 0-9
            negative, 10-19 positive.
        frames: number of frames that the ANN takes as channels.
        dt_s: time step, seconds; matters where the network is exported.
    """

    size_px: Count = 128
    blocks: Count = 3
    width: Count = 32
    hidden: Count = 1024
    neuron: Literal["plif", "lif"] = "plif"
    v_th: Positive = 1.0
    pool: Pool = "avg"
    pure_spike: bool = False
    fires: Literal["gt", "ge"] = "gt"
    fc_bias: bool = False
    dropout: ProperFraction = 0.5
    classes: AtLeastTwo = 2
    voters: Count = 10
    frames: Count = 68
    dt_s: Positive = 0.001

    @model_validator(mode="after")
    def _large_enough(self) -> SpikingEmotionsSettings:
        if self.side < 1:
            raise ValueError(
                f"size_px: {self.size_px} leaves nothing after {self.blocks} blocks; choose larger"
            )
        return self

    @property
    def side(self) -> int:
        """Give the side of the last map, pixels."""
        side = self.size_px
        for _ in range(self.blocks):
            # A 3x3 convolution without padding takes two, a pooling halves and rounds down.
            side = (side - 2) // 2
        return side

    def cell(self) -> BoxCell:
        """Make a layer of its neurons: surrogate ATan of sharpness 2, reset without gradient [code,
        library default].
        """
        neuron = NeuronSettings(
            coefficient=1 / TAU_STEPS,
            learned=self.neuron == "plif",
            v_th=self.v_th,
            fires=self.fires,
        )
        return BoxCell(neuron, self.dt_s)


def build_voting_network(settings: SpikingEmotionsSettings) -> snn.SequentialState:
    """Build one time step: (B, 2, size, size) to (B, classes * voters) spikes. `votes` runs a clip."""
    return _voting(settings, settings.side)


def build_plif_fang(settings: SpikingEmotionsSettings) -> snn.SequentialState:
    """Build one time step of PLIF-Fang: five times {3x3, 128 channels, padded; BN; PLIF; max pool},
    a quarter, voters; no biases [code].

    The settings `blocks`, `width`, `hidden`, `pool` and `fc_bias` are not read: here they are
    fixed.

    Raises:
        ValueError: frames too small for five pools.
    """
    side = settings.size_px // 2**FANG_BLOCKS
    if side < 1:
        raise ValueError(f"size_px: {settings.size_px}, five pools need at least {2**FANG_BLOCKS}")
    fixed = {
        "blocks": FANG_BLOCKS,
        "width": FANG_CHANNELS,
        "hidden": FANG_CHANNELS * side**2 // 4,
        "pool": "max",
        "fc_bias": False,
    }
    # Its convolutions are padded, so pools alone make maps smaller.
    return _voting(settings.model_copy(update=fixed), side, padding=1)


def build_ann(settings: SpikingEmotionsSettings) -> nn.Sequential:
    """Build the ANN: (B, frames, size, size), grey or differences, to (B, classes); ReLU for PLIF,
    no vote.
    """
    layers = _layers(
        settings, settings.frames, settings.classes, settings.side, nn.ReLU, nn.Dropout
    )
    return nn.Sequential(*layers[:-1])  # logits are not rectified


def votes(
    network: snn.SequentialState, clips: Tensor, settings: SpikingEmotionsSettings
) -> StepLogits:
    """Run clips and give mean rates of the voters, 0..1, in place of logits, for the clip and for
    every step.

    Args:
        network: network of `build_voting_network` or `build_plif_fang`.
        clips: (B, T, 2, size, size), the first frame a float one.
        settings: those it was built with; `pure_spike` drops the first frame here.

    Raises:
        ValueError: no step is left.
    """
    if settings.pure_spike:
        clips = clips[:, 1:]
    if clips.shape[1] < 1:
        raise ValueError(
            "clips: no steps left; give at least two frames of which the first is dropped"
        )
    ran = over_time(network, clips)
    # The first class's voters lie first, so an axis of classes comes before one of voters.
    classes = settings.classes
    voters = ran.outputs.reshape(*ran.outputs.shape[:2], classes, settings.voters)
    return StepLogits(vote(ran.outputs, classes), voters.mean(3), ran.rates)


def _voting(
    settings: SpikingEmotionsSettings, side: int, *, padding: int = 0
) -> snn.SequentialState:
    """Build a network of voters, whose last map has this side in pixels."""
    voters = settings.classes * settings.voters
    return snn.SequentialState(
        *_layers(settings, POLARITIES, voters, side, settings.cell, ClipDropout, padding=padding)
    )


def _layers(
    settings: SpikingEmotionsSettings,
    channels: int,
    outputs: int,
    side: int,
    activation: Callable[[], nn.Module],
    dropout: Callable[[float], nn.Module],
    *,
    padding: int = 0,
) -> list[nn.Module]:
    """Build blocks of convolution, batch-norm, activation and pool, and two linear layers, each
    behind its dropout and before its activation.
    """
    width = settings.width
    layers: list[nn.Module] = []
    for _ in range(settings.blocks):
        # Batch-norm has its own offset, so the convolution needs none.
        conv = nn.Conv2d(channels, width, 3, padding=padding, bias=False)
        pool = nn.AvgPool2d(2) if settings.pool == "avg" else nn.MaxPool2d(2)
        layers += [conv, nn.BatchNorm2d(width), activation(), pool]
        channels = width
    layers.append(nn.Flatten())
    features = width * side**2
    for neurons in (settings.hidden, outputs):
        synapse = nn.Linear(features, neurons, bias=settings.fc_bias)
        layers += [dropout(settings.dropout), synapse, activation()]
        features = neurons
    return layers
