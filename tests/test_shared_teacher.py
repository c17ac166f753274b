"""Runs share a teacher if and only if it would be the same network, fitted alike on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knarr.train import RunData, load_recipe, open_run
from knarr.train.clips import Batch, Indices
from knarr.train.overrides import with_settings
from knarr.train.run import TEACHER
from knarr.train.settings import Recipe
from knarr.train.shared_teacher import _key, shared_teacher
from knarr.train.systems.registry import system_of


class Clips:
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.labels = np.arange(12) % 3

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        draw = np.random.default_rng(self.seed).normal(size=(12, 4, 24, 24)).astype(np.float32)
        inputs = torch.from_numpy(self.chip_inputs(indices).astype(np.float32))
        return Batch(inputs, (torch.from_numpy(draw[indices]),), torch.from_numpy(self.labels[indices]))

    def chip_inputs(self, indices: Indices) -> np.ndarray:
        spikes = np.random.default_rng([self.seed, 1]).random((12, 3, 2, 24, 24)) < 0.2
        return spikes[indices].astype(np.uint8)


def data(seed: int = 0) -> RunData:
    return RunData(Clips(seed), Clips(seed), np.arange(12), ("a", "b", "c"))


def recipe(**changes: Any) -> Recipe:
    small = {"data.timesteps": 3, "data.size": 24, "teacher.width": 4, "teacher.fit.epochs": 1}
    return with_settings(load_recipe("eyes"), {**small, **changes})


def test_the_second_run_takes_what_the_first_left(tmp_path: Path) -> None:
    teachers = []
    for name, its in (("one", recipe()), ("two", recipe(**{"student.kd_alpha": 0.1}))):
        open_run(its, data(), tmp_path, tmp_path / name)
        teachers.append(shared_teacher(its, data(), tmp_path / name, tmp_path / "teachers"))
    assert (tmp_path / "two" / TEACHER).read_bytes() == (tmp_path / "one" / TEACHER).read_bytes()
    assert not (tmp_path / "two" / "metrics.csv").exists()  # nothing was fitted
    assert len(list((tmp_path / "teachers").iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(*(t.parameters() for t in teachers), strict=True))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"teacher.width": 5}, {"data.shift_px": 0}, {"teacher.fit.epochs": 2}, {"threads": 1}],
)
def test_other_teachers_are_not_shared(change: dict[str, Any]) -> None:
    assert _key(recipe(**change), data()) != _key(recipe(), data())
    assert _key(recipe(), data(1)) != _key(recipe(), data())
    assert _key(recipe(**{"student.fit.epochs": 9}), data()) == _key(recipe(), data())


@pytest.mark.parametrize(
    "change", [{"student.network.pool": "max"}, {"student.network.width": 4}, {"student.network.hidden": 8}]
)
def test_a_teacher_with_the_layers_of_its_student_is_not_shared_with_other_layers(
    change: dict[str, Any],
) -> None:
    base = load_recipe("spiking_emotions_clips")
    other = with_settings(base, change)
    assert _key(other, data()) != _key(base, data())
    assert _text(system_of(other).teacher(data())) != _text(system_of(base).teacher(data()))


def _text(network: nn.Module) -> str:
    return str(network)
