"""The sizes of the workloads, and the thresholds and spikes that everyone who rebuilds them must find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What is drawn: sizes, not numbers.

    Args:
        input: (features,) or (C, H, W).
        outputs: channels of 3x3 convolutions, each followed by 2x2 pooling, and then features of dense layers.
        convs: how many of them are convolutions.
        half: weights are the even numbers from -2 * half to 2 * half.
        timesteps, rate: of the input.
        samples: that are timed at once.
        judged: samples the rates are measured on.
    """

    input: tuple[int, ...]
    outputs: tuple[int, ...]
    convs: int
    half: int
    timesteps: int
    rate: float
    samples: int
    judged: int


SHAPES = {
    "W1": Shape((784,), (256, 128, 10), 0, 64, 64, 0.10, 64, 4),
    "W2s": Shape((2, 64, 64), (32, 32, 32, 1024, 20), 3, 50, 68, 0.108, 2, 1),
    "W2": Shape((2, 128, 128), (32, 32, 32, 1024, 20), 3, 50, 68, 0.108, 1, 1),
}


@dataclass(frozen=True)
class Published:
    """vth of every layer, and its spikes on sample 0."""

    vth: tuple[int, ...]
    spikes: tuple[int, ...]


PUBLISHED = {
    ("W1", 10): Published((2774, 2342, 2431), (1805, 839, 65)),
    ("W2s", 10): Published((456, 8940, 3795, 18802, 6106), (841014, 183499, 31329, 6963, 136)),
    ("W2", 10): Published((449, 9024, 3863, 43311, 2592), (3527240, 817103, 168524, 6963, 136)),
    ("W1", 3): Published((8741, 2531, 2169), (541, 254, 19)),
    ("W2s", 3): Published((1355, 8694, 3865, 20842, 5736), (253549, 55206, 9400, 2088, 40)),
    ("W2", 3): Published((1343, 8745, 3926, 46659, 3486), (1061564, 246608, 50551, 2088, 40)),
}
"""By workload and per cent of activity; anyone who follows the recipe gets exactly these."""
