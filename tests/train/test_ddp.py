"""Fits by several processes of torchrun: the numbers of one process, and nothing lost when one of them is killed.

This file is also what torchrun starts: `test_ddp.py JOB FOLDER` fits in the processes that are there.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn

from knarr.pipeline.run_folder import claim_folder
from knarr.ranks import rank, world_size
from knarr.train import RecipeError, RunData, load_recipe
from knarr.train.clips import Batch, EyeClips, Indices
from knarr.train.fitting.fit import Loss, fit, rank_slice
from knarr.train.networks.cnn import build_student, run_student
from knarr.train.recipe import parse_recipe
from knarr.train.settings import Fit, Recipe

SHAPE = ((2, 18, 18), 3, (4, 6), 0, 0.01, 0.02, 0.08)
EPOCHS = 4
WHOLE = "KNARR_CONFORMANCE" in os.environ
LIMIT_S = 300.0  # a bound on waiting: some ten seconds on an idle machine

# Shares of a batch are added up in another order than the batch, so each step differs in the last bits of what is added. float64
# keeps 2.2e-16; a hundred such steps lie within 1e-12. float32 keeps 1.2e-7, and AdamW divides a gradient by its own size, which
# carries the relative difference of a small gradient over into the weights: 1e-7 was seen in weights here, 1e-5 is allowed.
WITHIN = {torch.float64: 1e-12, torch.float32: 1e-5}
LOSS_WITHIN = 2e-6  # metrics.csv has six decimals: one in the last of each

# Clips to fit on, with 4 to a batch of all processes; the others of 31 are validated on.
CASES: dict[str, tuple[int, torch.dtype]] = {
    "last batch 1 + 0 clips": (21, torch.float64),
    "last batch 2 + 1 clips": (23, torch.float64),
    "float32": (23, torch.float32),
}


def eye_clips(classes: int = 3, clips: int = 31, side: int = 18) -> EyeClips:
    """Clips whose class is how many events they have, so that a few steps of training show in the loss."""
    rng = np.random.default_rng(0)
    labels = np.arange(clips) % classes
    rate = 0.05 + 0.1 * labels[:, None, None, None, None]
    return EyeClips(
        frames=rng.integers(0, 256, (clips, 8, side, side), dtype=np.uint8),
        events=(rng.random((clips, 8, 2, side, side)) < rate).astype(np.uint8),
        labels=labels,
        teacher_bins=2,
        shift_px=2,
    )


def loss_of_student(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    spikes = batch.inputs.to(next(network.parameters()).dtype)
    logits = 8 * run_student(network, spikes)[0].mean(dim=1)
    return F.cross_entropy(logits, batch.labels), logits


def new_student(
    dtype: torch.dtype = torch.float32, *, batch_norm: bool = False
) -> snn.SequentialState:
    torch.manual_seed(0)
    student = build_student(*SHAPE, batch_norm=batch_norm)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(8)  # without batch-norms no neuron would reach its threshold
    return student.to(dtype)


def fit_student(
    folder: Path,
    batch_size: int,
    loss: Loss = loss_of_student,
    dtype: torch.dtype = torch.float32,
    train: Indices = np.arange(21),  # noqa: B008  # not changed by anybody
    validation: Indices = np.arange(21, 31),  # noqa: B008
) -> dict[str, torch.Tensor]:
    student = new_student(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Lightning 2.6 asks torch 2.15 the old way; the command silences it too (cli/__init__.py).
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        fit(
            student,
            loss,
            eye_clips(),
            train,
            validation,
            Fit(epochs=EPOCHS, batch_size=batch_size, learning_rate=0.01),
            network_name="student",
            classes=3,
            seed=1,
            run_folder=folder,
        )
    assert not student.training
    state = student.state_dict()
    torch.save(state, folder / f"rank{rank()}.pt")
    return state


# --- what torchrun starts


def all_cases(folder: Path) -> None:
    for name, (clips, dtype) in CASES.items():
        train, validation = np.arange(clips), np.arange(clips, 31)
        fit_student(
            folder / name, 4 // world_size(), dtype=dtype, train=train, validation=validation
        )
    # In the same job: starting processes takes longer than their fits.
    (folder / "dropout").mkdir(exist_ok=True)
    dropout(folder / "dropout")


def few_clips(folder: Path) -> None:
    fit_student(folder, 4 // world_size(), train=np.arange(9), validation=np.arange(29, 31))


def killed(folder: Path) -> None:
    """Rank 1 ends in the third epoch, as if its machine had run out of memory."""
    steps = 0

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal steps
        steps += network.training
        if steps == 3 * -(-21 // (2 * world_size())) - 1 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of_student(network, batch)

    fit_student(folder / "killed", 2, loss)


def resumed(folder: Path) -> None:
    fit_student(folder / "killed", 2)
    fit_student(folder / "unbroken", 2)


def dropout(folder: Path) -> None:
    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if network.training:
            with (folder / f"drawn{rank()}").open("a") as file:
                file.write(f"{float(torch.rand(()))}\n")
        return loss_of_student(network, batch)

    fit_student(folder, 2, loss)


JOBS: dict[str, Callable[[Path], None]] = {
    job.__name__: job for job in (all_cases, few_clips, killed, resumed)
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes of this machine, on its processor."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # The launcher looks after its processes every so many seconds.
    launcher += ["--nproc_per_node", str(processes), "--monitor_interval", "0.1"]
    return run(*launcher, *command)


def run_job(processes: int, job: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    done = torchrun(processes, __file__, job, str(folder))
    assert done.returncode == 0, done.stderr


# --- the tests


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def state_of(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """The weights that all processes end with."""
    states: list[dict[str, torch.Tensor]] = [
        torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(processes)
    ]
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())
    return states[0]


def assert_near(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], within: float
) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        worst = float((ours[name].double() - tensor.double()).abs().max())
        assert worst <= within, f"{name}: {worst}"


def assert_same_curves(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> None:
    assert [(row["stage"], row["epoch"]) for row in ours] == [
        (row["stage"], row["epoch"]) for row in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        for column in ("train_loss", "validation_loss"):
            assert abs(float(mine[column]) - float(other[column])) <= LOSS_WITHIN, (mine, other)
        assert mine["validation_accuracy"] == other["validation_accuracy"]
    assert len({row["train_loss"] for row in theirs}) > 1


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_make_the_batch_in_order(processes: int) -> None:
    for clips in range(12):
        shares = [
            list(range(clips))[rank_slice(clips, rank, processes)] for rank in range(processes)
        ]
        assert [clip for own in shares for clip in own] == list(range(clips))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, fitted by two processes."""
    folder = tmp_path_factory.mktemp("two")
    run_job(2, "all_cases", folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_twice_the_batch(
    case: str, by_two: Path, tmp_path: Path
) -> None:
    """Convolutions, spikes, augmentation, shuffling, and batches that do not divide."""
    clips, dtype = CASES[case]
    train, validation = np.arange(clips), np.arange(clips, 31)
    one = fit_student(tmp_path, 4, dtype=dtype, train=train, validation=validation)
    assert_near(state_of(by_two / case, 2), one, WITHIN[dtype])
    assert_same_curves(rows(by_two / case), rows(tmp_path))
    assert not any(
        torch.equal(one[name], tensor) for name, tensor in new_student(dtype).state_dict().items()
    )


def test_more_processes_than_clips_of_the_last_batch(tmp_path: Path) -> None:
    run_job(4, "few_clips", tmp_path / "4")
    few_clips(tmp_path / "1")
    assert_near(state_of(tmp_path / "4", 4), state_of(tmp_path / "1", 1), WITHIN[torch.float32])
    assert_same_curves(rows(tmp_path / "4"), rows(tmp_path / "1"))


def test_the_command_distils_a_student(tmp_path: Path) -> None:
    """A recipe as shipped, small; its teacher is fitted by one process, since it has batch-norms."""
    changes: dict[str, Any] = {
        "data.subjects": 4, "data.takes_per_emotion": 1, "data.size": 24, "data.frames": 7, "data.sampling": "E3-S1",
        "data.validation_fraction": 0.34, "teacher.network.seen.widths": [4, 8, 8, 8], "teacher.fit.epochs": 1,
        "student.network.width": 0.125, "student.network.norm": False, "student.fit.epochs": 2, "threads": 1, "chip": None,
        "student.loss.hckd": "hit_miss",  # a mean over clips; gated_kl is one over those of a batch that the teacher gets right
    }  # fmt: skip

    def command(processes: int) -> list[str]:
        # Of 21 clips that are fitted on one is left for the last batch, thus none for the second process.
        settings = changes | {"student.fit.batch_size": 10 // processes}
        folder = tmp_path / "runs" / f"{processes}"
        changed = [f"--set={path}={json.dumps(value)}" for path, value in settings.items()]
        return ["train", "mskd_eyes", "--out", str(folder), "--json", *changed]

    knarr = str(Path(sys.executable).with_name("knarr"))
    one = run(knarr, *command(1))
    assert one.returncode == 0, one.stderr
    theirs, ours = tmp_path / "runs" / "1", tmp_path / "runs" / "2"
    ours.mkdir()
    shutil.copy(theirs / "teacher.safetensors", ours)
    two = torchrun(2, knarr, *command(2))
    assert two.returncode == 0, two.stderr
    # Rank 0 speaks and writes for both.
    assert json.loads(two.stdout)["student"] == "student.safetensors"
    assert two.stderr.count("Distilling the student") == 1
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    student = "student.safetensors"
    assert_near(load_file(ours / student), load_file(theirs / student), WITHIN[torch.float32])
    assert_same_curves(rows(ours), [row for row in rows(theirs) if row["stage"] == "student"])


@pytest.mark.parametrize("number", [2, 3] if WHOLE else [2])
def test_a_killed_process_ends_the_run_which_resumes(number: int, tmp_path: Path) -> None:
    broken = torchrun(number, __file__, "killed", str(tmp_path))
    assert broken.returncode == 1
    assert "SIGKILL" in broken.stderr
    folder = tmp_path / "killed"
    assert [row["epoch"] for row in rows(folder)] == ["0", "1"]
    torch.load(
        folder / "checkpoints" / "student.ckpt", weights_only=True
    )  # whole, not half written

    run_job(number, "resumed", tmp_path)
    again, unbroken = state_of(folder, number), state_of(tmp_path / "unbroken", number)
    assert all(torch.equal(again[name], tensor) for name, tensor in unbroken.items())
    assert rows(folder) == rows(tmp_path / "unbroken")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["student.ckpt"]


def test_each_process_draws_its_own_dropout(by_two: Path) -> None:
    drawn = [(by_two / "dropout" / f"drawn{number}").read_text().split() for number in (0, 1)]
    assert len(set(drawn[0]) | set(drawn[1])) == len(drawn[0]) + len(drawn[1]) == 2 * 6 * EPOCHS


def test_checkpoints_go_on_with_as_many_processes(by_two: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"checkpoint of a fit by 2 process\(es\), not 1; go on with torchrun and 2 processes, or remove",
    ):
        fit_student(by_two / "float32", 4)


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells the first of two processes on this machine."""
    names = {"TORCHELASTIC_RUN_ID": "0", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("of_two")
def test_batch_norms_are_refused_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys.modules[__name__], "new_student", lambda _: new_norms())
    with pytest.raises(
        RecipeError,
        match=r"layer '1': BatchNorm2d takes its statistics over the batch, which 2 processes divide.* without torchrun",
    ):
        fit_student(tmp_path, 2)


def new_norms(make: Callable[..., snn.SequentialState] = new_student) -> snn.SequentialState:
    return make(batch_norm=True)


@pytest.mark.usefixtures("of_two")
def test_too_few_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        RecipeError, match=r"2 processes > 1 GPUs; start 1 of them .*, or hide the GPUs"
    ):
        fit_student(tmp_path, 2)


def small_recipe(batch_size: int) -> Recipe:
    recipe = load_recipe("eyes").model_dump(mode="json")
    fitting = {"epochs": 3, "batch_size": batch_size, "learning_rate": 0.01}
    recipe["data"] |= {"timesteps": 8, "size": 24, "teacher_bins": 2}
    recipe["teacher"] |= {"width": 4, "dropout": 0, "fit": fitting}
    recipe["student"] |= {"channels": [4, 4], "first_padding": 5, "fit": fitting}
    return parse_recipe(yaml.safe_dump(recipe), "small")


def test_runs_that_leave_out_settings_go_on(tmp_path: Path) -> None:
    recipe, clips = small_recipe(8), eye_clips()
    data = RunData(clips, clips, np.arange(31), ("a", "b", "c"))
    claim_folder(recipe, data, tmp_path, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    old = config["recipe"]
    del old["system"]
    for stage in ("teacher", "student"):
        kept = ("epochs", "batch_size", "learning_rate", "weight_decay")
        old[stage]["fit"] = {name: old[stage]["fit"][name] for name in kept}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "teacher.safetensors").touch()
    claim_folder(recipe, data, tmp_path, tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    with pytest.raises(RecipeError, match="holds a run with other settings"):
        claim_folder(small_recipe(4), data, tmp_path, tmp_path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    JOBS[sys.argv[1]](Path(sys.argv[2]))
