"""What the student is measured against, and what teaches it: forests, a linear model, a small network of both signals."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from knarr.train.clips import Indices
from knarr.train.datasets.splits import subject_folds
from knarr.train.datasets.stress.windows import StressWindows

PLAIN_LEAF: Final = 5
TREES: Final = 200
TEACHER_LEAF: Final = 20
TEACHER_TREES: Final = 100
TEACHER_EPOCHS: Final = 12
TEACHER_FOLDS: Final = 3
FLOOR: Final = 0.02
"""Least probability of the forest's, so that its logits are finite."""

Floats = npt.NDArray[np.floating[Any]]
TeacherKind = Literal["forest", "network"]


def features(signal: npt.NDArray[np.float32]) -> Floats:
    """(N, samples) -> (N, 10): mean, spread, least, largest, median, slope, net change, and how much neighbours differ."""
    time = np.linspace(-0.5, 0.5, signal.shape[1])
    slope = (signal - signal.mean(axis=1, keepdims=True)) @ time / (time @ time)
    step = np.diff(signal, axis=1)
    columns = [
        signal.mean(axis=1),
        signal.std(axis=1),
        signal.min(axis=1),
        signal.max(axis=1),
        np.median(signal, axis=1),
        slope,
        signal[:, -1] - signal[:, 0],
        np.abs(step).mean(axis=1),
        step.std(axis=1),
        step.max(axis=1),
    ]
    return np.stack(columns, axis=1)


def forest(leaf: int, seed: int, trees: int = TREES) -> RandomForestClassifier:
    """A forest that weighs both classes alike; `leaf` windows at least in each leaf."""
    return RandomForestClassifier(
        trees, min_samples_leaf=leaf, class_weight="balanced_subsample", random_state=seed
    )


def linear() -> Any:
    """Logistic regression that weighs both classes alike."""
    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)
    )


def balanced_draw(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Indices:
    """As many positions as there are labels, in random order, half of each class; the rarer one's come more than once."""
    half = len(labels) // 2
    drawn = [np.resize(rng.permutation(np.flatnonzero(labels == c)), half) for c in (0, 1)]
    return rng.permutation(np.concatenate(drawn))


def _network() -> nn.Module:
    """Of (B, 2, 240): skin conductance and heart rate of 60 s at 4 Hz."""
    return nn.Sequential(
        nn.Conv1d(2, 16, 12, stride=4),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 8, stride=4),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 13, 2),
    )


def _inputs(windows: StressWindows, indices: Indices) -> torch.Tensor:
    return torch.from_numpy(windows.eda_hr[indices].clip(-4, 4))


def fit_teacher(windows: StressWindows, train: Indices, kind: TeacherKind, seed: int) -> Any:
    """A teacher of skin conductance and heart rate; `teacher_logits` asks it."""
    labels = windows.labels[train]
    if kind == "forest":
        both = np.concatenate([features(windows.eda[train]), features(windows.hr[train])], axis=1)
        return forest(TEACHER_LEAF, seed, TEACHER_TREES).fit(both, labels)
    torch.manual_seed(seed)
    network, inputs, classes = _network(), _inputs(windows, train), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in range(TEACHER_EPOCHS):
        order = torch.from_numpy(balanced_draw(labels, np.random.default_rng([seed, epoch])))
        for chosen in order.split(128):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[chosen]), classes[chosen]).backward()
            optimiser.step()
    return network.eval()


def teacher_logits(
    teacher: Any, windows: StressWindows, indices: Indices
) -> npt.NDArray[np.float32]:
    """(len(indices), 2) logits; a forest's are the logarithms of its shares."""
    if isinstance(teacher, nn.Module):
        with torch.no_grad():
            return np.asarray(teacher(_inputs(windows, indices)).numpy(), np.float32)
    both = np.concatenate([features(windows.eda[indices]), features(windows.hr[indices])], axis=1)
    return np.log(teacher.predict_proba(both).clip(FLOOR, 1)).astype(np.float32)


def crossed_logits(
    windows: StressWindows, train: Indices, kind: TeacherKind, seed: int
) -> npt.NDArray[np.float32]:
    """(len(train), 2): each person's windows as a teacher sees them that was not fitted on that person.

    A teacher is near certain of windows it was fitted on, and then says no more than the label does.
    """
    logits = np.empty((len(train), 2), np.float32)
    for fold in subject_folds(windows.subjects[train], TEACHER_FOLDS, seed=0):
        teacher = fit_teacher(windows, train[fold.train], kind, seed)
        logits[fold.test] = teacher_logits(teacher, windows, train[fold.test])
    return logits
