"""Students, losses, recipes, and fits that are killed: nothing is lost and the numbers stay the same."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn

from knarr.pipeline import run_folder, stages
from knarr.train import (
    RecipeError,
    load_recipe,
    run_student,
    shipped_recipes,
    system_of,
)
from knarr.train.clips import Epoch, EyeClips, split_validation
from knarr.train.fitting.files import load_weights, save_weights
from knarr.train.losses.terms import distillation_loss, softened_kl
from knarr.train.networks.chip_form import plain
from knarr.train.networks.cnn import build_student
from knarr.train.networks.neurons import snap_inverse
from knarr.train.recipe import check_recipe, parse_recipe, with_settings
from knarr.train.settings import SettingsError

SHAPE = ((2, 18, 18), 3, (4, 6), 0, 0.01, 0.02, 0.08)


def trained_looking_student() -> snn.SequentialState:
    torch.manual_seed(0)
    student = build_student(*SHAPE, batch_norm=True)
    for module in student:
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.02, 0.2)
            module.weight.data.uniform_(1, 2)
    return student.eval()


def random_spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < 0.3).float()


def test_layer_by_layer_equals_step_by_step() -> None:
    student, x = plain(trained_looking_student()), random_spikes(3, 12, 2, 18, 18)
    with torch.no_grad():
        outputs, rates = run_student(student, x)
        state, stepped = None, []
        for t in range(x.shape[1]):
            out, state = student(x[:, t], state)
            stepped.append(out)
    assert all(rate > 0.005 for rate in rates)
    assert torch.equal(outputs, torch.stack(stepped, 1))


def test_folded_student_has_no_batch_norm_and_fires_the_same_spikes() -> None:
    student, x = trained_looking_student(), random_spikes(8, 16, 2, 18, 18)
    folded = plain(student)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded)
    with torch.no_grad():
        (before, rates), (after, folded_rates) = run_student(student, x), run_student(folded, x)
    assert [float(rate) for rate in rates] == [float(rate) for rate in folded_rates]
    assert min(rates) > 0.005
    # Folding changes the order of float32 operations in the voltages, not the spikes above.
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())


def test_fold_refuses_a_stray_batch_norm() -> None:
    with pytest.raises(ValueError, match="BatchNorm2d: follows NoneType; move it behind a synapse"):
        plain(snn.SequentialState(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)))


def test_time_constants_snap_to_registers() -> None:
    assert float(snap_inverse(0.02, 0.01)) == 50.0
    assert round(4096 * 0.01 * float(snap_inverse(0.03, 0.01))) == 1365
    with pytest.raises(RecipeError, match="decay register 0"):
        snap_inverse(1000.0, 0.01)


def test_sides_that_pools_do_not_divide_are_refused() -> None:
    with pytest.raises(RecipeError, match="two 2x2 pools do not divide"):
        build_student((2, 20, 20), *SHAPE[1:], batch_norm=True)


def test_distillation_loss_by_hand() -> None:
    # One sample, two classes, teacher undecided: KL(1/2, 1/2 || s, 1-s) with s = sigmoid(2 / tau).
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    s = 1 / (1 + np.exp(-1.0))  # tau = 2
    soft = 4 * (0.5 * np.log(0.5 / s) + 0.5 * np.log(0.5 / (1 - s)))
    # float32 against float64: a few units in the last place
    assert float(softened_kl(student, teacher, temperature=2.0)) == pytest.approx(soft, rel=1e-6)
    hard = float(F.cross_entropy(student, torch.tensor([1])))
    mixed = float(
        distillation_loss(student, teacher, torch.tensor([1]), alpha=0.25, temperature=2.0)
    )
    assert mixed == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-6)


def test_validation_never_divides_a_group() -> None:
    groups = np.repeat(np.arange(10), 5)
    train, validation = split_validation(groups, 0.3, seed=1)
    assert not set(groups[train]) & set(groups[validation])
    assert sorted([*train, *validation]) == list(range(50))
    assert len(validation) == 15
    with pytest.raises(
        SettingsError, match=r"data.validation_fraction: 0.99 of 10 groups is all of them"
    ):
        split_validation(groups, 0.99, seed=1)


def eye_clips(**settings: int) -> EyeClips:
    rng = np.random.default_rng(0)
    return EyeClips(
        frames=rng.integers(0, 256, (6, 8, 24, 24), dtype=np.uint8),
        events=(rng.random((6, 8, 2, 24, 24)) < 0.1).astype(np.uint8),
        labels=np.array([0, 1, 2, 0, 1, 2]),
        **settings,
    )


def test_epochs_repeat_themselves_and_differ_from_each_other() -> None:
    clips = eye_clips(teacher_bins=2, shift_px=3)

    def epoch(number: int) -> list[torch.Tensor]:
        data = Epoch(clips, np.arange(6), 4, seed=5, epoch=number)
        return [data[i].inputs for i in range(len(data))]

    assert [len(part) for part in epoch(0)] == [4, 2]
    assert all(torch.equal(a, b) for a, b in zip(epoch(1), epoch(1), strict=True))
    assert not torch.equal(epoch(0)[0], epoch(1)[0])


def test_shift_moves_events_and_frames_together() -> None:
    raw = eye_clips(teacher_bins=8, shift_px=2)
    frames = np.zeros_like(raw.frames)
    frames[raw.events[:, :, 0] > 0] = (
        255  # frame = picture of the ON events, so both must move alike
    )
    clips = replace(raw, frames=frames)
    batch = clips.batch(np.arange(6), np.random.default_rng(2))
    inside = (..., slice(4, -4), slice(4, -4))
    assert torch.equal(
        (batch.teacher_inputs[0][:, :8] > 0)[inside], (batch.inputs[:, :, 0] > 0)[inside]
    )
    assert batch.inputs[inside].sum() > 0


def test_shipped_recipes_load() -> None:
    assert {"eyes", "nmnist", "mskd", "emotionkd_deap_valence", "spiking_emotions"} <= set(
        shipped_recipes()
    )
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert check_recipe(recipe.model_dump(mode="json"), name) == recipe


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("eyes", "eyes-48px-24f-40p-2t-"),
        ("mskd_eyes", "eyes-48px-24f-100p-1t-"),
        ("spiking_emotions_clips", "clips-72px-20f-60v-12c-"),
    ],
)
def test_seeds_of_a_recipe_share_default_data(name: str, folder: str) -> None:
    """Or a mean over seeds would be one over data sets too. Seed 0 lies where it always did."""

    def made(**changes: int) -> str:
        changed = {path.replace("__", "."): value for path, value in changes.items()}
        return system_of(with_settings(load_recipe(name), changed)).folder_name()

    assert made() == made(seed=3) == f"{folder}0"
    assert made(data__seed=3) == f"{folder}3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed: Input should be greater"),
        ({"sead": 1}, "sead: no such setting"),
        ({"data": {"kind": "mnist"}}, "data"),
        ({"student": 3}, "student"),
        ({"name": "../up"}, "name"),
    ],
)
def test_bad_recipes_name_the_setting(change: dict[str, object], message: str) -> None:
    text = yaml.safe_dump({**load_recipe("nmnist").model_dump(mode="json"), **change})
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(text, "mine.yaml")
    assert "\n" not in str(caught.value)


def test_unknown_and_unreadable_recipes(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"neither shipped \(.*eyes, .*nmnist.*\) nor a YAML file"
    ):
        load_recipe("nope")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(str(tmp_path / "x.yaml"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(nn.Linear(3, 2), path)
    with pytest.raises(RecipeError, match="tensor 'weight' does not fit"):
        load_weights(nn.Linear(4, 2), path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(RecipeError, match="not a safetensors file"):
        load_weights(nn.Linear(3, 2), path)


def small_recipe(folder: Path, epochs: int) -> tuple[Path, Path]:
    """A recipe that takes seconds, and its data."""
    made = with_settings(
        load_recipe("eyes"),
        {
            "data.timesteps": 8, "data.size": 24, "data.subjects": 10, "data.takes_per_emotion": 2, "data.validation_fraction": 0.3,
            "teacher.width": 4, "teacher.fit.epochs": 2, "student.channels": [4, 4], "student.fit.epochs": epochs,
            "student.fit.batch_size": 8, "threads": 1,
        },
    )  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    system_of(made).generate(folder / "data")
    return path, folder / "data"


def train_command(recipe: Path, data: Path, out: Path) -> list[str]:
    code = "from knarr.cli import main; main()"
    return [
        sys.executable,
        "-c",
        code,
        "train",
        str(recipe),
        "--data",
        str(data),
        "--out",
        str(out),
    ]


def test_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, data = small_recipe(tmp_path, epochs=8)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    stages.train(run_folder.open_run(str(recipe), unbroken, data=data))

    worker = subprocess.Popen(
        train_command(recipe, data, killed), stderr=subprocess.DEVNULL, start_new_session=True
    )
    metrics = killed / "metrics.csv"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and "student,1," in metrics.read_text()):
        assert worker.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGSTOP)  # so that it is still at it when a second one comes
    with pytest.raises(RecipeError, match="another knarr process works in it"):
        run_folder.open_run(str(recipe), killed, data=data)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not (killed / "student.safetensors").exists()
    torch.load(
        killed / "checkpoints" / "student.ckpt", weights_only=True
    )  # whole, not half written

    capsys.readouterr()
    stages.train(run_folder.open_run(str(recipe), killed, data=data))
    assert "Training the teacher" not in capsys.readouterr().err
    for name in ("teacher", "student"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (killed, unbroken))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    rows = [
        list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        for folder in (killed, unbroken)
    ]
    assert rows[0] == rows[1]
    assert [(row["stage"], row["epoch"]) for row in rows[0]] == [
        *(("teacher", str(e)) for e in range(2)),
        *(("student", str(e)) for e in range(8)),
    ]
    assert not [path for path in killed.rglob("*.tmp")]
