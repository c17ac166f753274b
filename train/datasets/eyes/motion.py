"""How people move an eye and a brow when they feel something: actions per emotion, style per person, noise per take."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from knarr.train.datasets.eyes.face import Array, EyeMotion

FRAME_S: Final = 0.033  # SEE's accumulation window
LABELS: Final = ("angry", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
ACTIONS: Final = (
    "brow_in",
    "brow_out",
    "squeeze",
    "lid_up",
    "lid_low",
    "cheek",
    "wrinkle",
    "pupil",
    "gaze_y",
)

# Full displacement of each action in half image widths; at 48 pixels 0.1 is 2.4 pixels.
REACH: Final = np.array([0.20, 0.19, 0.13, 0.13, 0.11, 0.13, 0.12, 0.06, 0.18], np.float32)


@dataclass(frozen=True)
class Expression:
    """One emotion: how far each action goes (share of its reach), and when.

    Attributes:
        share: One signed value per entry of ACTIONS.
        rise_s: Mean time from rest to full expression.
        hold_s: Mean time it stays before it eases.
        ease: Share of the expression that is left after easing.
    """

    share: tuple[float, ...]
    rise_s: float
    hold_s: float
    ease: float


# In the order of ACTIONS. The overlaps are meant: fear and surprise share brow and lid, anger and disgust share the
# lowered brow, happiness and disgust the pushed lower lid, sadness and fear the inner brow.
EXPRESSIONS: Final = {
    "angry": Expression((-1.0, -0.6, 0.8, 0.15, 0.55, 0.0, 0.1, -0.2, 0.0), 0.18, 0.45, 0.8),
    "disgust": Expression((-0.55, -0.3, 0.45, -0.35, 0.75, 0.35, 1.0, -0.1, 0.1), 0.26, 0.35, 0.6),
    "fear": Expression((0.9, 0.2, 0.8, 0.85, 0.25, 0.0, 0.0, 1.0, 0.0), 0.3, 0.6, 0.9),
    "happiness": Expression((0.0, 0.1, 0.0, -0.4, 0.9, 1.0, 0.1, 0.0, 0.0), 0.28, 0.5, 0.8),
    "neutral": Expression((0.0,) * len(ACTIONS), 0.3, 0.4, 0.5),
    "sadness": Expression((0.7, -0.2, 0.25, -0.7, 0.05, 0.0, 0.0, 0.0, 0.9), 0.42, 0.6, 0.9),
    "surprise": Expression((0.85, 1.0, 0.0, 0.95, -0.1, 0.0, 0.0, 0.2, -0.1), 0.1, 0.2, 0.35),
}


@dataclass(frozen=True)
class Style:
    """How one person expresses: gain per emotion and action, and a personal speed.

    Attributes:
        gain: float32 of shape (len(LABELS), len(ACTIONS)).
        pace: Factor on every duration.
    """

    gain: Array
    pace: float


def draw_style(rng: np.random.Generator) -> Style:
    """Draw one person's style of expressing: some barely move, some leave an action out."""
    strength = rng.uniform(0.75, 1.2)
    gain = strength * np.exp(rng.normal(0.0, 0.25, (len(LABELS), len(ACTIONS))))
    gain[rng.random(gain.shape) < 0.06] = 0.0
    return Style(gain.astype(np.float32), float(np.exp(rng.normal(0.0, 0.2))))


def draw_motion(
    rng: np.random.Generator, style: Style, label: str, frames: int, rate: int
) -> EyeMotion:
    """Draw one take: an emotion's actions with this person's style, plus drift, saccades, blinks and pose.

    Args:
        rng: Source of randomness; the same state gives the same take.
        style: The person's style.
        label: One of LABELS.
        frames: Length in frames of FRAME_S.
        rate: Instants per frame.

    Returns:
        Actions at ``frames * rate + 1`` instants: the state before the first frame, then each sub-frame's.
    """
    expression = EXPRESSIONS[label]
    n = frames * rate + 1
    t = (np.arange(n) / rate).astype(np.float32)  # in frames
    scale = style.pace * float(np.exp(rng.normal(0.0, 0.2))) / FRAME_S
    onset = rng.uniform(0.08, 0.3) * frames
    gain = style.gain[LABELS.index(label)] * rng.uniform(0.7, 1.15)
    actions: dict[str, Array] = {}
    for k, name in enumerate(ACTIONS):
        start = onset + rng.normal(0.0, 0.6)  # muscles do not start together
        course = _smooth((t - start) / (expression.rise_s * scale))
        eased = _smooth(
            (t - start - (expression.rise_s + expression.hold_s) * scale) / (0.25 * scale)
        )
        course = course * (1.0 - (1.0 - expression.ease) * eased)
        # The resting pose of the take and its drift are as large as what the emotion does to one frame.
        pose = rng.normal(0.0, 0.2) + 0.09 * _wander(rng, t, frames)
        if name in ("squeeze", "cheek", "wrinkle"):
            pose = np.clip(pose, 0.0, None)
        actions[name] = (REACH[k] * (expression.share[k] * gain[k] * course + pose)).astype(
            np.float32
        )
    gaze_x = 0.12 * rng.normal() + _saccades(rng, t, frames)
    actions["gaze_y"] += (0.5 * _saccades(rng, t, frames)).astype(np.float32)
    actions["gaze_x"] = gaze_x.astype(np.float32)
    actions["blink"] = _blinks(rng, t, frames, 1.2 if label == "neutral" else 0.5)
    actions["head_x"] = (rng.normal(0.0, 0.02) + 0.02 * _wander(rng, t, frames)).astype(np.float32)
    actions["head_y"] = (rng.normal(0.0, 0.03) + 0.02 * _wander(rng, t, frames)).astype(np.float32)
    return EyeMotion(**{f.name: actions[f.name] for f in fields(EyeMotion)})


def _smooth(u: Array) -> Array:
    """Smooth step from 0 at u <= 0 to 1 at u >= 1."""
    v = np.clip(u, 0.0, 1.0)
    result: Array = v * v * (3.0 - 2.0 * v)
    return result


def _wander(rng: np.random.Generator, t: Array, frames: int) -> Array:
    """Slow drift of standard deviation about 1, from two sines of random period and phase."""
    drift = np.zeros_like(t)
    for _ in range(2):
        period = rng.uniform(0.5, 2.0) * max(frames, 12)
        drift += np.sin(2.0 * np.pi * (t / np.float32(period) + np.float32(rng.random()))).astype(
            np.float32
        )
    return drift


def _saccades(rng: np.random.Generator, t: Array, frames: int) -> Array:
    """Jumps of the gaze, about one a second, each done in about a frame."""
    gaze = np.zeros_like(t)
    for _ in range(rng.poisson(frames * FRAME_S * 1.0)):
        gaze += np.float32(rng.normal(0.0, 0.1)) * _smooth(
            (t - np.float32(rng.uniform(0.0, frames))) / 1.2
        )
    return gaze


def _blinks(rng: np.random.Generator, t: Array, frames: int, per_s: float) -> Array:
    """Blinks at a mean rate: shut in about 80 ms, open in about 150 ms; not always all the way."""
    blink = np.zeros_like(t)
    for _ in range(rng.poisson(frames * FRAME_S * per_s)):
        start = np.float32(rng.uniform(-2.0, frames))
        shut, opened = rng.uniform(2.0, 3.0), rng.uniform(3.5, 6.0)
        course = _smooth((t - start) / shut) - _smooth((t - start - shut - 0.5) / opened)
        blink = np.maximum(blink, np.float32(rng.uniform(0.8, 1.0)) * course)
    return blink.astype(np.float32)
