"""A fit with feedback is the loop of adaptive_step, resumes after a kill with the teacher as it then was, and leaves the teacher's file."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import numpy.typing as npt
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import nn

from knarr.train.clips import Batch, Epoch, Indices
from knarr.train.fitting.feedback import FeedbackFitter, FeedbackSetup
from knarr.train.fitting.fit import fit, new_optimiser
from knarr.train.losses.emotion import EmotionLossSettings, emotion_loss
from knarr.train.losses.feedback import (
    FeedbackSettings,
    Learner,
    adaptive_step,
)
from knarr.train.settings import Fit, RecipeError

SEED = 5
TRAIN, HELDOUT, VALIDATION = np.arange(22), np.arange(22, 31), np.arange(31, 40)
LOSS = EmotionLossSettings(ce=1, kl=0.5, feature=0.5, divergence="softened", temperature=2)


class Out(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor

    @property
    def matched(self) -> torch.Tensor:
        return self.features


class Net(nn.Module):
    def __init__(self, inputs: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm = nn.Linear(inputs, 6), nn.BatchNorm1d(6)
        self.dropout, self.last = nn.Dropout(0.3), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Out:
        features = torch.tanh(self.norm(self.first(x)))
        return Out(self.last(self.dropout(features)), features)


def run(network: nn.Module, x: torch.Tensor) -> Out:
    found: Out = network(x)
    return found


@dataclass(eq=False)
class Vectors:
    """Clips of a few numbers; the teacher hears two more than the student. `asked` is what was made."""

    asked: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        self.values = rng.normal(size=(40, 5)).astype(np.float32)
        self.labels: npt.NDArray[np.int64] = (self.values.sum(axis=1) > 0).astype(np.int64)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        self.asked.append(set(indices.tolist()))
        values = torch.from_numpy(self.values[indices])
        return Batch(values[:, :3], (values,), torch.from_numpy(self.labels[indices]))

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        raise NotImplementedError


def lesson(batch: Batch) -> Batch:
    return batch


def loss_beside(teacher: nn.Module) -> Any:
    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            taught = run(teacher, *batch.teacher_inputs)
        learned = run(network, batch.inputs)
        return emotion_loss(learned, taught, batch.labels, LOSS).total, learned.logits

    return loss


def feedback(**change: Any) -> FeedbackSettings:
    return FeedbackSettings(**{"eta": 0.1, "teacher_fb_lr": 0.01, **change})


def settings(**change: Any) -> Fit:
    return Fit(**{"epochs": 3, "batch_size": 6, "learning_rate": 0.02, **change})


def feedback_setup(settings: FeedbackSettings, folder: Path) -> FeedbackSetup:
    teacher = Net(5, 1).eval().requires_grad_(False)
    return FeedbackSetup(
        teacher,
        run,
        run,
        lesson,
        loss_beside,
        settings,
        LOSS,
        HELDOUT,
        folder / "fed_back.safetensors",
    )


def fitted(
    folder: Path, how: Fit, loop: FeedbackSettings, callbacks: tuple[Callback, ...] = ()
) -> tuple[nn.Module, dict[str, torch.Tensor], Vectors]:
    """Student, teacher's weights as they were written, and clips."""
    clips, student, of = Vectors(), Net(3, 2), feedback_setup(loop, folder)
    before = copy.deepcopy(of.teacher.state_dict())
    fit(
        student,
        loss_beside(of.teacher),
        clips,
        TRAIN,
        VALIDATION,
        how,
        network_name="student",
        classes=2,
        seed=SEED,
        run_folder=folder,
        module_class=partial(FeedbackFitter, setup=of),
        callbacks=callbacks,
    )
    assert same(before, of.teacher.state_dict())  # a copy learns
    return student, load_file(of.file), clips


def by_hand(how: Fit, loop: FeedbackSettings) -> tuple[nn.Module, nn.Module]:
    """The plain loop on the batches of a fit."""
    clips, student, teacher = Vectors(), Net(3, 2), Net(5, 1).eval()
    of_student = new_optimiser(student, how)
    of_teacher = torch.optim.Adam(teacher.parameters(), lr=loop.teacher_fb_lr)
    steps = how.epochs * 4
    by_step = torch.optim.lr_scheduler.OneCycleLR(of_student, how.learning_rate, total_steps=steps)
    for epoch in range(how.epochs):
        torch.manual_seed(SEED + epoch)
        lessons = Epoch(clips, TRAIN, how.batch_size, seed=SEED, epoch=epoch)
        held = Epoch(clips, HELDOUT, how.batch_size, seed=SEED, epoch=epoch)
        asked = [lesson(held[number]) for number in range(len(held))]
        student.train()
        taken = [lesson(lessons[number]) for number in range(len(lessons))]
        # The held-out batches over and over, or each lesson's next one, and after the last the first.
        quizzes = itertools.cycle(asked) if loop.quiz == "heldout" else [*taken[1:], taken[0]]
        for here, quiz in zip(taken, quizzes, strict=False):
            due = quiz if loop.due(epoch) else None
            adaptive_step(
                Learner(teacher, run),
                Learner(student, run),
                here,
                due,
                of_teacher,
                of_student,
                loop,
                LOSS,
            )
            by_step.step()
    return student, teacher


def same(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) for key in theirs
    )


@pytest.mark.parametrize(
    "loop", [{}, {"quiz": "next"}, {"fb_every_epochs": 2}, {"first_order": True}], ids=str
)
def test_a_fit_is_the_plain_loop_to_the_last_bit(tmp_path: Path, loop: dict[str, Any]) -> None:
    student, written, clips = fitted(tmp_path, settings(), feedback(**loop))
    ours, teacher = by_hand(settings(), feedback(**loop))
    assert same(student.state_dict(), ours.state_dict())
    assert same(written, teacher.state_dict())
    assert not same(written, Net(5, 1).state_dict())
    sides = [set(TRAIN), set(HELDOUT), set(VALIDATION)]
    assert all(sum(batch <= side for side in sides) == 1 for batch in clips.asked)
    assert any(batch <= sides[1] for batch in clips.asked) == (loop.get("quiz") != "next")


def test_the_temporary_student_moves_the_teacher(tmp_path: Path) -> None:
    moved = [
        fitted(tmp_path / str(first), settings(epochs=1), feedback(first_order=first))[1]
        for first in (False, True)
    ]
    assert not same(*moved)


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends a fit in the middle of its third epoch."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.current_epoch == 2 and trainer.fit_loop.batch_idx == 1:
            raise KilledError


@pytest.mark.parametrize("schedule", ["one_cycle", "exponential", "constant"])
def test_a_killed_fit_resumes_to_the_same_student_and_teacher(
    tmp_path: Path, schedule: str
) -> None:
    how = settings(epochs=5, schedule=schedule, decay=0.5, select="val")
    student, teacher, _ = fitted(tmp_path / "unbroken", how, feedback())
    with pytest.raises(KilledError):
        fitted(tmp_path / "killed", how, feedback(), (Kill(),))
    assert not (tmp_path / "killed" / "fed_back.safetensors").exists()
    again, its_teacher, _ = fitted(tmp_path / "killed", how, feedback())
    assert same(again.state_dict(), student.state_dict())
    assert same(its_teacher, teacher)
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("unbroken", "killed")]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 6
    (
        tmp_path / "killed" / "fed_back.safetensors"
    ).unlink()  # killed after the last epoch, before it was written
    _, written, _ = fitted(tmp_path / "killed", how, feedback())
    assert same(written, teacher)


def test_rates_fall_with_the_schedule(tmp_path: Path) -> None:
    """Manual steps do not step schedules by themselves."""
    rates: list[float] = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, *rest: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fitted(tmp_path, settings(schedule="exponential", decay=0.5), feedback(), (Look(),))
    assert rates == [0.02, 0.01, 0.005]


@pytest.mark.parametrize(
    ("processes", "how", "loop", "message"),
    [
        (
            2,
            {},
            {},
            r"student\.feedback: steps two networks in turn, which 2 processes cannot share",
        ),
        (1, {"batch_size": 40}, {"quiz": "next"}, "'next' of 1 batch is itself"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    tmp_path: Path,
    processes: int,
    how: dict[str, Any],
    loop: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if processes > 1:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", "0")
    make = partial(FeedbackFitter, setup=feedback_setup(feedback(**loop), tmp_path))
    with pytest.raises(RecipeError, match=message):
        make(Net(3, 2), loss_beside(Net(5, 1)), settings(**how), 2, len(TRAIN), len(VALIDATION))
