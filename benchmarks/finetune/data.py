"""Data of the fine-tuning experiments: N-MNIST in three parts of held-out recordings, and speech-like
spike trains of generated speakers for recurrent nets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.events.nmnist import EventRecordings, Jitter, bin_counts, read_nmnist
from knarr.train.datasets.splits import subject_folds

SEEDS = 3
STEPS, BIN_US = 20, 17_000
COPIES = 4
"""Each training recording, and so many less one copies of it that are turned and moved a little."""
JITTER = Jitter(rotation_deg=10, scale=0.12, shift_px=2)
VALIDATION = 120
"""Recordings, or for speech speakers' clips, that choose the epoch."""

Arrays = dict[str, npt.NDArray[np.generic]]


def joined(parts: list[EventRecordings]) -> EventRecordings:
    """Lay recordings of several lists end to end."""
    ends = np.cumsum([0, *(len(part.x) for part in parts)])
    offsets = [part.offsets[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
    events = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("x", "y", "p", "t_us", "labels")
    }
    names = tuple(name for part in parts for name in part.names)
    first = parts[0]
    return EventRecordings(
        **events,
        offsets=np.concatenate([[0], *offsets]),
        names=names,
        height=first.height,
        width=first.width,
    )


def nmnist(root: Path, seed: int) -> Arrays:
    """Return the arrays of one seed; the held-out recordings of different seeds are different ones."""
    recordings = joined([read_nmnist(root, "train"), read_nmnist(root, "test")])
    # Each recording is held out once, so that a mean over seeds is one over all 1,100 of them.
    fold = subject_folds(np.arange(len(recordings)), SEEDS, seed=0)[seed]
    order = np.random.default_rng(seed).permutation(fold.train)
    validation, train = np.sort(order[:VALIDATION]), np.sort(order[VALIDATION:])
    rng = np.random.default_rng(seed)

    def binary(chosen: npt.NDArray[np.int64], jitter: Jitter | None) -> npt.NDArray[np.uint8]:
        parts = [
            (bin_counts(recordings, part, STEPS, BIN_US, jitter=jitter, rng=rng) > 0).astype(
                np.uint8
            )
            for part in np.array_split(chosen, max(1, len(chosen) // 50))
        ]
        return np.concatenate(parts)

    copies = [binary(train, None if copy == 0 else JITTER) for copy in range(COPIES)]
    labels = recordings.labels
    return {
        "train_x": np.concatenate(copies),
        "train_y": np.tile(labels[train], COPIES),
        "validation_x": binary(validation, None),
        "validation_y": labels[validation],
        "test_x": binary(fold.test, None),
        "test_y": labels[fold.test],
        "test_id": fold.test,
    }


WORDS, BANDS, TIMES = 8, 64, 60
SPEAKERS, TAKES = 60, 4


def speech(seed: int) -> Arrays:
    """Return generated words: two formants that glide through 64 bands, spoken by 45 speakers.

    Speakers differ in pitch and speed and are never on two sides. Each clip holds a word at a time
    of its own, under noise.
    """
    # Words are the same for all seeds, speakers are not.
    language = np.random.default_rng(100)
    starts, ends = language.uniform(8, 56, (2, WORDS, 2))
    rng = np.random.default_rng([200, seed])
    clips, labels, speakers = [], [], []
    band = np.arange(BANDS)
    for speaker in range(SPEAKERS):
        pitch, pace = rng.normal(0, 1.5), rng.uniform(0.8, 1.25)
        for _ in range(TAKES):
            for word in range(WORDS):
                length = int(32 * pace)
                onset = int(rng.integers(0, TIMES - length))
                rate = np.full((TIMES, BANDS), 0.04)
                along = np.linspace(0, 1, length)[:, None]
                for formant in range(2):
                    path = starts[word, formant] * (1 - along) + ends[word, formant] * along + pitch
                    rate[onset : onset + length] += 0.3 * np.exp(-(((band - path) / 2.0) ** 2))
                clips.append(rng.random((TIMES, BANDS)) < rate)
                labels.append(word)
                speakers.append(speaker)
    x, y, who = np.array(clips, np.uint8), np.array(labels, np.int64), np.array(speakers)
    sides = {"train": who < 35, "validation": (who >= 35) & (who < 40), "test": who >= 40}
    found: Arrays = {"test_id": who[sides["test"]] + 1000 * seed}
    for split, own in sides.items():
        found |= {f"{split}_x": x[own], f"{split}_y": y[own]}
    return found


CHANNELS, TOUCH_STEPS = 12, 256


def touch_rates(number: int, seed: int) -> npt.NDArray[np.float64]:
    """Return rates (number, steps, taxels) of generated touches: a taxel is pressed once or twice.

    The Braille nets' own recordings are not public. A finger that slides over a letter presses some
    of the 12 taxels, at times and with strengths of its own.
    """
    rng = np.random.default_rng([300, seed])
    rate = np.full((number, TOUCH_STEPS, CHANNELS), 0.01)
    step = np.arange(TOUCH_STEPS)[None, :, None]
    for _ in range(2):
        middle = rng.uniform(20, 236, (number, 1, CHANNELS))
        width = rng.uniform(6, 30, (number, 1, CHANNELS))
        pressed = rng.random((number, 1, CHANNELS)) < 0.6
        strength = rng.uniform(0, 0.6, (number, 1, CHANNELS)) * pressed
        rate += strength * np.exp(-(((step - middle) / width) ** 2))
    return rate


def spikes_of(rates: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.uint8]:
    """Return spikes of touches, each a little earlier or later, stronger or weaker than its rates."""
    rng = np.random.default_rng([400, seed])
    shifts = rng.integers(-4, 5, len(rates))
    moved = np.stack(
        [np.roll(rate, shift, axis=0) for rate, shift in zip(rates, shifts, strict=True)]
    )
    strength = rng.uniform(0.85, 1.15, (len(rates), 1, CHANNELS))
    return (rng.random(rates.shape) < moved * strength).astype(np.uint8)
