"""Fits by several processes: the numbers of one process, and nothing left of a run that one of them breaks."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from shared_pieces import until
from torch import nn

from knarr.pipeline.run_folder import claim_folder
from knarr.train import RecipeError, RunData, load_recipe, train_student, train_teacher
from knarr.train.clips import Batch, EyeClips, Indices
from knarr.train.datasets.see.sequences import SeeClips
from knarr.train.fitting import processes
from knarr.train.fitting.fit import fit
from knarr.train.fitting.processes import FitError, in_processes
from knarr.train.fitting.share import join_batch_norms, part
from knarr.train.networks.cnn import StudentShape, build_student, run_student
from knarr.train.recipe import parse_recipe
from knarr.train.settings import Fit, Recipe
from knarr.train.systems.base import Loss

SHAPE = StudentShape((2, 18, 18), 3, (4, 6), 0, 0.01, 0.02, 0.08)
TRAIN, VALIDATION = np.arange(21), np.arange(21, 31)
ENDED_WITHIN_S = 10.0  # a bound on waiting: a tenth of a second on an idle machine
EPOCHS = 4

# Shares of a batch are added up in another order than the batch, so each step differs in the last bits of what is added. float64
# keeps 2.2e-16; a hundred such steps lie within 1e-12. float32 keeps 1.2e-7, and AdamW divides a gradient by its own size, which
# carries the relative difference of a small gradient over into the weights: 1e-7 was seen in weights here, 1e-5 is allowed.
WITHIN = {torch.float64: 1e-12, torch.float32: 1e-5}
LOSS_WITHIN = 2e-6  # metrics.csv has six decimals: one in the last of each


def eye_clips(classes: int = 3, clips: int = 31, side: int = 18) -> EyeClips:
    """Clips whose class is how many events they have, so that a few steps of training show in the loss."""
    rng = np.random.default_rng(0)
    labels = np.arange(clips) % classes
    rate = 0.05 + 0.1 * labels[:, None, None, None, None]
    names = tuple(f"{clip}" for clip in range(clips))
    see = SeeClips(
        frames=rng.integers(0, 256, (clips, 8, side, side), dtype=np.uint8),
        events=(rng.random((clips, 8, 2, side, side)) < rate).astype(np.uint8),
        labels=labels,
        label_names=tuple("abcdefg"[:classes]),
        names=names,
        subjects=names,
        lights=("normal",) * clips,
        skipped={},
    )
    return EyeClips(see, teacher_bins=2, shift_px=2)


def loss_of_student(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    spikes = batch.inputs.to(next(network.parameters()).dtype)
    logits = 8 * run_student(network, spikes)[0].mean(dim=1)
    return F.cross_entropy(logits, batch.labels), logits


def new_student(dtype: torch.dtype = torch.float32) -> snn.SequentialState:
    torch.manual_seed(0)
    return build_student(SHAPE, batch_norm=True).to(dtype)


def settings(processes: int, batch_size: int) -> Fit:
    return Fit(epochs=EPOCHS, batch_size=batch_size, learning_rate=0.01, processes=processes)


def fit_student(
    folder: Path,
    fitting: Fit,
    loss: Loss = loss_of_student,
    dtype: torch.dtype = torch.float32,
    train: Indices = TRAIN,
    validation: Indices = VALIDATION,
) -> dict[str, torch.Tensor]:
    student = new_student(dtype)
    fit(
        student,
        loss,
        eye_clips(),
        train,
        validation,
        fitting,
        stage="student",
        classes=3,
        seed=1,
        run_folder=folder,
    )
    assert not student.training
    return student.state_dict()


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


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


def children(parent: int) -> set[int]:
    """Processes started by another, ended or not, that nobody has waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                of = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended while we looked
            if of == parent:
                found.add(int(entry.name))
    return found


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = children(os.getpid())
    yield
    assert children(os.getpid()) <= before


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_parts_make_the_batch_in_order(processes: int) -> None:
    for clips in range(12):
        parts = [list(range(clips))[part(clips, rank, processes)] for rank in range(processes)]
        assert [clip for own in parts for clip in own] == list(range(clips))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("clips", "dtype"),
    [(21, torch.float64), (23, torch.float64), (23, torch.float32)],
    ids=["last batch 1 + 0 clips", "last batch 2 + 1 clips", "float32"],
)
def test_two_processes_are_one_with_twice_the_batch(
    clips: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Convolutions, batch-norms, spikes, augmentation, shuffling, and batches that do not divide."""
    train, validation = np.arange(clips), np.arange(clips, 31)
    one, two = (
        fit_student(
            tmp_path / f"{n}", settings(n, 4 // n), dtype=dtype, train=train, validation=validation
        )
        for n in (1, 2)
    )
    assert_near(two, one, WITHIN[dtype])
    assert_same_curves(rows(tmp_path / "2"), rows(tmp_path / "1"))
    assert not any(
        torch.equal(one[name], tensor) for name, tensor in new_student(dtype).state_dict().items()
    )


def test_more_processes_than_clips_of_the_last_batch(tmp_path: Path) -> None:
    train, validation = np.arange(9), np.arange(29, 31)
    one, four = (
        fit_student(tmp_path / f"{n}", settings(n, 4 // n), train=train, validation=validation)
        for n in (1, 4)
    )
    assert_near(four, one, WITHIN[torch.float32])
    assert_same_curves(rows(tmp_path / "4"), rows(tmp_path / "1"))


def small_recipe(processes: int, batch_size: int) -> Recipe:
    """Teacher and student as shipped, small; without dropout, of which each process draws its own."""
    recipe = load_recipe("eyes").model_dump(mode="json")
    fitting = {"epochs": 3, "batch_size": batch_size, "learning_rate": 0.01, "processes": processes}
    recipe["data"] |= {"timesteps": 8, "size": 24, "teacher_bins": 2}
    recipe["teacher"] |= {"width": 4, "dropout": 0, "fit": fitting}
    recipe["student"] |= {"channels": [4, 4], "first_padding": 5, "fit": fitting}
    return parse_recipe(yaml.safe_dump(recipe), "small")


def test_teacher_and_student_of_a_recipe(tmp_path: Path) -> None:
    clips = eye_clips(side=24)
    data = RunData(clips, clips, np.arange(31), clips.clips.label_names)
    networks = []
    for number in (1, 2):
        recipe, folder = small_recipe(number, 8 // number), tmp_path / f"{number}"
        claim_folder(recipe, data, tmp_path, folder)
        teacher = train_teacher(recipe, data, folder)
        networks.append(
            (teacher.state_dict(), train_student(recipe, data, teacher, folder).state_dict())
        )
    for one, two in zip(*networks, strict=True):
        assert_near(two, one, WITHIN[torch.float32])
    assert_same_curves(rows(tmp_path / "2"), rows(tmp_path / "1"))
    assert len(rows(tmp_path / "1")) == 6


@pytest.mark.parametrize("number", [2, 3])
def test_a_killed_process_ends_the_run_which_resumes(number: int, tmp_path: Path) -> None:
    unbroken = fit_student(tmp_path / "unbroken", settings(number, 2))
    killed, steps = tmp_path / "killed", 0

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal steps
        steps += network.training
        if steps == 3 * -(-21 // (2 * number)) - 1 and dist.get_rank() == 1:  # in the third epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of_student(network, batch)

    started = time.monotonic()
    with pytest.raises(
        FitError,
        match=rf"fit: process 1 of 0..{number - 1} was killed by SIGKILL \(out of memory\?\); run",
    ):
        fit_student(killed, settings(number, 2), loss)
    assert time.monotonic() - started < 60
    assert [row["epoch"] for row in rows(killed)] == ["0", "1"]
    torch.load(
        killed / "checkpoints" / "student.ckpt", weights_only=True
    )  # whole, not half written

    again = fit_student(killed, settings(number, 2))
    assert all(torch.equal(again[name], tensor) for name, tensor in unbroken.items())
    assert rows(killed) == rows(tmp_path / "unbroken")
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["student.ckpt"]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[multiprocessing.context.ForkProcess]:
    """A process, leader of its own group, that fits for minutes with two others."""

    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def work() -> None:
        os.setsid()
        tempfile.tempdir = str(scratch)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fitting = Fit(epochs=100_000, batch_size=2, learning_rate=0.01, processes=2)
        fit_student(tmp_path, fitting)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_command(
    end: signal.Signals, supervised: multiprocessing.context.ForkProcess, tmp_path: Path
) -> None:
    assert until(lambda: (tmp_path / "metrics.csv").is_file(), 60)
    assert supervised.pid is not None
    forks = children(supervised.pid)
    assert len(forks) == 2
    assert list((tmp_path / "scratch").iterdir())
    if end == signal.SIGINT:
        os.killpg(supervised.pid, end)  # what a terminal does at Ctrl-C
    else:
        os.kill(supervised.pid, end)
    supervised.join(ENDED_WITHIN_S)
    assert supervised.exitcode == (1 if end == signal.SIGINT else -end)
    assert until(lambda: not any(map(runs, forks)), ENDED_WITHIN_S)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_process_that_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COLLECTIVE_LIMIT", timedelta(seconds=3))

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if dist.get_rank() == 1:
            time.sleep(1000)
        return loss_of_student(network, batch)

    with pytest.raises(RuntimeError, match=r"(?i)timed out") as caught:
        fit_student(tmp_path, settings(2, 2), loss)
    assert "in process 0 of 0..1" in str(caught.value.__cause__)


def test_what_a_process_raises_is_raised(tmp_path: Path) -> None:
    """The first error, not that of the process that lost its peer by it; it is still one line for the user."""

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if dist.get_rank() == 1:
            raise RecipeError("student: this and that; do something")
        return loss_of_student(network, batch)

    with pytest.raises(RecipeError, match=r"^student: this and that; do something$") as caught:
        fit_student(tmp_path, settings(2, 2), loss)
    assert "in process 1 of 0..1" in str(caught.value.__cause__)


class _UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_does_not_pickle_is_told(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        raise _UnpicklableError("far", "away")

    with pytest.raises(FitError, match=r"_UnpicklableError: far away"):
        in_processes(work, 2, tmp_path)


def test_a_process_that_ends_without_a_word(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            os._exit(7)
        time.sleep(1000)

    with pytest.raises(FitError, match=r"processes of 0..1 ended without a word: 1 with 7"):
        in_processes(work, 2, tmp_path)


def test_a_process_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_LIMIT_S", 1.0)

    def work(rank: int) -> None:
        time.sleep(1000 * rank)

    with pytest.raises(FitError, match=r"process 1 of 0..1 did not end within 1 s of the first"):
        in_processes(work, 2, tmp_path)


def test_each_process_draws_its_own_dropout(tmp_path: Path) -> None:
    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if network.training:
            with (tmp_path / f"drawn{dist.get_rank()}").open("a") as file:
                file.write(f"{float(torch.rand(()))}\n")
        return loss_of_student(network, batch)

    fit_student(tmp_path, settings(2, 2), loss)
    drawn = [(tmp_path / f"drawn{rank}").read_text().split() for rank in (0, 1)]
    assert len(set(drawn[0]) | set(drawn[1])) == len(drawn[0]) + len(drawn[1]) == 2 * 6 * EPOCHS


def test_checkpoints_go_on_with_as_many_processes(tmp_path: Path) -> None:
    fit_student(tmp_path, settings(2, 2))
    with pytest.raises(
        RecipeError, match=r"of a fit with processes 2, not 1; set processes to 2, or remove"
    ):
        fit_student(tmp_path, settings(1, 4))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norms_join(
    momentum: float | None, affine: bool, tracked: bool, tmp_path: Path
) -> None:
    """Five clips on three processes: outputs, slopes, statistics of both modes against torch's own on all of them."""
    torch.manual_seed(0)
    x, slope = torch.randn(2, 5, 3, 4, dtype=torch.float64) * 3 + 100
    slope = slope - 100
    norm = nn.BatchNorm1d(3, affine=affine, track_running_stats=tracked).double()
    norm.momentum = momentum  # type: ignore[assignment]  # None is a cumulative mean
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)

    def passes(norm: nn.BatchNorm1d, own: slice) -> list[torch.Tensor]:
        values = []
        for _ in range(2):
            inputs = x[own].clone().requires_grad_()
            outputs = norm(inputs)
            torch.autograd.backward((outputs * slope[own]).sum())
            values += [outputs.detach(), inputs.grad]
        return [*values, norm.eval()(x[own]).detach()]

    def work(rank: int) -> None:
        join_batch_norms(nn.Sequential(norm))
        values = passes(norm, part(5, rank, 3))
        gradients = [parameter.grad for parameter in norm.parameters()]
        torch.save([values, gradients, norm.state_dict()], tmp_path / f"{rank}.pt")

    if not tracked:  # then a batch in eval mode is normalised by itself, over all processes too
        assert norm.running_mean is None
    in_processes(work, 3, tmp_path)
    parts, gradients, states = zip(
        *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)), strict=True
    )
    whole = passes(norm, slice(None))
    # float64 throughout: shares add up their parts of a sum in another order than one process does
    for number, value in enumerate(whole):
        torch.testing.assert_close(
            torch.cat([own[number] for own in parts]), value, rtol=0, atol=1e-12
        )
    for number, parameter in enumerate(norm.parameters()):
        total = sum(own[number] for own in gradients)
        torch.testing.assert_close(total, parameter.grad, rtol=0, atol=1e-11)
    for state in states:
        torch.testing.assert_close(dict(state), dict(norm.state_dict()), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "layer", [nn.SyncBatchNorm(2), nn.InstanceNorm2d(2, track_running_stats=True)]
)
def test_other_layers_over_the_batch_are_refused(layer: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"layer '0': \w+ takes statistics over the batch"):
        join_batch_norms(nn.Sequential(layer))
    join_batch_norms(nn.Sequential(nn.InstanceNorm2d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2)))


def test_too_few_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=r"2 processes > 1 GPUs; set processes to 1, or hide"):
        fit_student(tmp_path, settings(2, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RecipeError, match=r"cannot be forked from one that already uses a GPU"):
        fit_student(tmp_path, settings(2, 2))


def test_runs_from_before_newer_settings_go_on(tmp_path: Path) -> None:
    recipe, clips = small_recipe(1, 8), eye_clips()
    data = RunData(clips, clips, np.arange(31), clips.clips.label_names)
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
        claim_folder(small_recipe(2, 8), data, tmp_path, tmp_path)


@pytest.mark.parametrize("number", [0, 65])
def test_numbers_of_processes(number: int) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.fit\.processes: Input should be"):
        small_recipe(number, 8)
