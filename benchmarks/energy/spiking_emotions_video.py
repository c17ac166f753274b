"""A synthetic clip and the event camera that "Spiking Emotions" simulates from grey frames (CEUR-WS 3331 paper 8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE_PX, FRAMES = 128, 68
"""As published: 68 time steps, the first of which is the float frame."""
SENS = 0.001
"""Published threshold, of grey in [0, 1]. One grey level is 1/255, so every change of an 8-bit pixel is an event."""
NOISE_LUMA = 0.1364
"""Standard deviation of the sensor's noise in grey levels. It alone is tuned: for an event density near the published one."""
PUBLISHED_DENSITY = 0.1079

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def clip(frames: int = FRAMES, size_px: int = SIZE_PX, seed: int = 0) -> Frames:
    """(frames, size_px, size_px) 8-bit luma: a still, shaded scene; a disc, a bar and a textured square move; sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px] / size_px
    scene = 90 + 40 * np.sin(5 * x + 1) * np.cos(4 * y) + 30 * x
    texture = rng.uniform(-50, 50, (size_px // 8, size_px // 8))
    shown = np.empty((frames, size_px, size_px))
    for t in range(frames):
        turn = 2 * np.pi * t / 34
        shown[t] = scene
        disc = (x - 0.5 - 0.25 * np.cos(turn)) ** 2 + (y - 0.45 - 0.2 * np.sin(turn)) ** 2 < 0.12**2
        shown[t][disc] = 220 - 60 * (x + y)[disc]
        shown[t][np.abs(y - 0.8 - 0.1 * np.sin(2 * turn)) < 0.03] = 40
        left = int((0.1 + 0.5 * t / frames) * size_px)
        top = size_px // 8
        shown[t, top : top + len(texture), left : left + len(texture)] += texture
    noisy = shown + rng.normal(0, NOISE_LUMA, shown.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def grey(luma: Frames) -> Floats:
    """8-bit luma as grey in [0, 1]."""
    return luma.astype(np.float32) / np.float32(255)


def dvs(frames: Floats, sens: float = SENS) -> Floats:
    """Grey frames as two polarity channels.

        x[0] = (g[0], g[0]);  x[t] = (g[t] - g[t-1] > sens, g[t] - g[t-1] < -sens)

    Args:
        frames: (T, H, W) grey in [0, 1].
        sens: sensitivity; the larger, the sparser.

    Returns:
        (T, 2, H, W), 0 and 1 but for the first step, which shows the float frame on both channels.
    """
    change = np.diff(frames, axis=0)
    events = np.stack([change > sens, change < -sens], axis=1).astype(np.float32)
    return np.concatenate([np.broadcast_to(frames[0], (1, 2, *frames.shape[1:])), events]).astype(
        np.float32
    )


def density(shown: Floats) -> float:
    """Share of elements of the event steps, all but the first, that are events."""
    return float(np.count_nonzero(shown[1:]) / shown[1:].size)
