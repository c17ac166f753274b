"""Runs share a teacher if and only if it would be the same network, fitted alike on the same data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knarr.pipeline.run_folder import claim_folder
from knarr.pipeline.studies.shared_teacher import _key, shared_teacher
from knarr.train import RecipeError, RunData, load_recipe
from knarr.train.clips import Batch, Indices
from knarr.train.recipe import with_settings
from knarr.train.settings import TEACHER, Recipe
from knarr.train.systems.registry import system_of


class Clips:
    def __init__(self, seed: int = 0, teacher_seed: int | None = None) -> None:
        self.seed, self.teacher_seed = seed, seed if teacher_seed is None else teacher_seed
        self.labels = np.arange(12) % 3

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        draw = (
            np.random.default_rng(self.teacher_seed).normal(size=(12, 4, 24, 24)).astype(np.float32)
        )
        inputs = torch.from_numpy(self.chip_inputs(indices).astype(np.float32))
        return Batch(
            inputs, (torch.from_numpy(draw[indices]),), torch.from_numpy(self.labels[indices])
        )

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
        claim_folder(its, data(), tmp_path, tmp_path / name)
        teachers.append(shared_teacher(its, data(), tmp_path / name, tmp_path / "teachers"))
    assert (tmp_path / "two" / TEACHER).read_bytes() == (tmp_path / "one" / TEACHER).read_bytes()
    assert not (tmp_path / "two" / "metrics.csv").exists()  # nothing was fitted
    assert len(list((tmp_path / "teachers").iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(*(t.parameters() for t in teachers), strict=True))


def test_a_damaged_shared_teacher_is_replaced(tmp_path: Path) -> None:
    shared_teacher(recipe(), data(), tmp_path / "one", tmp_path / "teachers")
    (shared,) = (tmp_path / "teachers").iterdir()
    whole = shared.read_bytes()
    shared.write_bytes(whole[: len(whole) // 2])
    shared_teacher(recipe(), data(), tmp_path / "two", tmp_path / "teachers")
    assert shared.read_bytes() == whole == (tmp_path / "two" / TEACHER).read_bytes()
    shared.write_bytes(b"")
    shared_teacher(recipe(), data(), tmp_path / "two", tmp_path / "teachers")  # which is finished
    assert shared.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"teacher.width": 5},
        {"data.shift_px": 0},
        {"teacher.fit.epochs": 2},
        {"threads": 1},
    ],
)
def test_other_teachers_are_not_shared(change: dict[str, Any]) -> None:
    assert _key(recipe(**change), data()) != _key(recipe(), data())
    assert _key(recipe(), data(1)) != _key(recipe(), data())
    assert _key(recipe(**{"student.fit.epochs": 9}), data()) == _key(recipe(), data())


@pytest.mark.parametrize(
    "change",
    [{"student.network.pool": "max"}, {"student.network.width": 4}, {"student.network.hidden": 8}],
)
def test_a_teacher_with_the_layers_of_its_student_is_not_shared_with_other_layers(
    change: dict[str, Any],
) -> None:
    base = load_recipe("spiking_emotions_clips")
    other = with_settings(base, change)
    assert _key(other, data()) != _key(base, data())
    assert _text(system_of(other).teacher(data())) != _text(system_of(base).teacher(data()))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": Clips(teacher_seed=1)},
        {"test": Clips(teacher_seed=1)},
        {"groups": np.arange(12) // 2},
        {"subjects": tuple("abcdefghijkl")},
        {"validation": np.arange(3)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_data_that_only_the_teacher_or_the_split_sees_are_other_data(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = replace(data(), **changes)
    assert _key(recipe(), other) != _key(recipe(), data())
    claim_folder(recipe(), data(), tmp_path, tmp_path / "run")
    claim_folder(recipe(), data(), tmp_path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "teacher.ckpt").touch()
    with pytest.raises(RecipeError, match="other settings or data"):
        claim_folder(recipe(), other, tmp_path, tmp_path / "run")


def test_the_last_bits_of_floats_are_no_other_data() -> None:
    class Rounded(Clips):
        def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
            found = super().batch(indices, rng)
            return found._replace(
                teacher_inputs=tuple(x * (1 + 2**-23) for x in found.teacher_inputs)
            )

    assert not torch.equal(
        *(c.batch(np.arange(1), None).teacher_inputs[0] for c in (Clips(), Rounded()))
    )
    assert replace(data(), train=Rounded()).fingerprint == data().fingerprint


def _text(network: nn.Module) -> str:
    return str(network)
