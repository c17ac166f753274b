"""Settings of a fit: optimisers, schedules, early stop, best epoch, logs; and that a killed fit keeps them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from knarr.train.clips import Batch, Indices
from knarr.train.fitting.fit import Fitter, fit, new_optimiser
from knarr.train.settings import Fit

TRAIN, VALIDATION = np.arange(24), np.arange(24, 40)
RATE = 0.05


@dataclass(frozen=True, eq=False)
class Points:
    """Two classes of points whose labels are partly wrong, so that validation does not only get better."""

    seed: int = 0

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, 1]).integers(0, 2, 40)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        points = np.random.default_rng([self.seed, 2]).normal(size=(40, 1, 3)).astype(np.float32)
        points[:, 0, 0] += self.labels
        return Batch(torch.from_numpy(points[indices]), (), torch.from_numpy(self.labels[indices]))

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        raise NotImplementedError


def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logits = network(batch.inputs[:, 0])
    return F.cross_entropy(logits, batch.labels), logits


class Kill(Callback):
    """Ends a fit as a signal does, after an epoch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.after:
            raise KeyboardInterrupt


class Watch(Callback):
    """Weights and validation of every epoch, by other means than the fit's own."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, dict[str, torch.Tensor]]] = []

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        network = pl_module.network
        assert isinstance(network, nn.Module)
        with torch.no_grad():
            network.eval()
            value, logits = loss(network, Points().batch(VALIDATION, None))
            network.train()
        right = float((logits.argmax(1).numpy() == Points().labels[VALIDATION]).mean())
        self.seen.append(
            (right, float(value), {k: v.clone() for k, v in network.state_dict().items()})
        )


def run(
    folder: Path, *callbacks: Callback, validation_clips: Points | None = None, **settings: Any
) -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
    options = {"epochs": 12, "batch_size": 8, "learning_rate": RATE} | settings
    fit(
        network,
        loss,
        Points(),
        TRAIN,
        VALIDATION,
        Fit.model_validate(options),
        validation_clips=validation_clips,
        network_name="student",
        classes=2,
        seed=0,
        run_folder=folder,
        callbacks=callbacks,
    )
    return network


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    watch = Watch()
    kept = run(tmp_path, watch, select="val")
    best = max(
        range(len(watch.seen)), key=lambda epoch: (watch.seen[epoch][0], -watch.seen[epoch][1])
    )
    assert best < len(watch.seen) - 1, "the last epoch is the best: this shows nothing"
    for name, value in kept.state_dict().items():
        assert torch.equal(value, watch.seen[best][2][name])
    last = run(tmp_path / "last", select="last")
    assert any(not torch.equal(v, kept.state_dict()[k]) for k, v in last.state_dict().items())


def test_a_killed_fit_still_knows_its_best_epoch(tmp_path: Path) -> None:
    unbroken = run(tmp_path / "unbroken", select="val", patience=11)
    with pytest.raises(SystemExit):
        run(tmp_path / "killed", Kill(8), select="val", patience=11)
    assert len(rows(tmp_path / "killed")) == 8
    again = run(tmp_path / "killed", select="val", patience=11)
    assert all(torch.equal(v, unbroken.state_dict()[k]) for k, v in again.state_dict().items())
    assert rows(tmp_path / "killed") == rows(tmp_path / "unbroken")


def test_patience_counts_epochs_without_a_better_one(tmp_path: Path) -> None:
    run(tmp_path, epochs=60, patience=4, schedule="constant")
    accuracy = [float(row["validation_accuracy"]) for row in rows(tmp_path)]
    first_best = accuracy.index(max(accuracy))
    assert len(accuracy) == first_best + 1 + 4 < 60


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_fit_that_lost_its_patience_is_at_its_end(select: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 60,
        "patience": 4,
        "schedule": "constant",
        "select": select,
    }
    first = run(tmp_path, **settings)
    ended = rows(tmp_path)
    assert len(ended) < 60
    again = run(tmp_path, **settings)
    assert rows(tmp_path) == ended
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in again.state_dict().items())


def test_best_on_test_looks_at_the_data_it_is_given(tmp_path: Path) -> None:
    ours, theirs = Points(), Points(seed=9)
    network = run(tmp_path, validation_clips=theirs, epochs=3, select="best_on_test")
    # The table says so in every row, and others have no such column.
    assert [row["validated_on"] for row in rows(tmp_path)] == ["test"] * 3
    run(tmp_path / "val", epochs=1, select="val")
    assert "validated_on" not in rows(tmp_path / "val")[0]
    with torch.no_grad():
        value, _ = loss(network, theirs.batch(VALIDATION, None))
        other, _ = loss(network, ours.batch(VALIDATION, None))
    # metrics.csv has six decimals
    losses = [float(row["validation_loss"]) for row in rows(tmp_path)]
    # Which epoch was the best depends on the machine's floats; it is one of the three.
    assert min(abs(logged - float(value)) for logged in losses) < 1e-6
    assert min(abs(logged - float(other)) for logged in losses) > 0.01


@pytest.mark.parametrize(
    ("schedule", "at_epoch_2"), [("exponential", RATE * 0.5**2), ("constant", RATE)]
)
def test_schedules(schedule: str, at_epoch_2: float, tmp_path: Path) -> None:
    rates = []

    class Rate(Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run(tmp_path, Rate(), schedule=schedule, decay=0.5, epochs=3)
    # Lightning multiplies epoch by epoch, in double precision
    assert rates == pytest.approx(
        [RATE, RATE if schedule == "constant" else RATE / 2, at_epoch_2], rel=1e-12
    )


def test_optimisers() -> None:
    network = nn.Linear(2, 2)

    def made(**settings: Any) -> torch.optim.Optimizer:
        options = {
            "epochs": 1,
            "batch_size": 1,
            "learning_rate": 0.1,
            "weight_decay": 0.01,
        } | settings
        return new_optimiser(network, Fit.model_validate(options))

    sgd, adam, adamw = (
        made(optimiser="sgd", momentum=0.8),
        made(optimiser="adam", amsgrad=True),
        made(),
    )
    assert (type(sgd), type(adam), type(adamw)) == (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
    )
    assert sgd.defaults["momentum"] == 0.8
    assert (adam.defaults["amsgrad"], adamw.defaults["amsgrad"]) == (True, False)
    assert all(one.defaults["weight_decay"] == 0.01 for one in (sgd, adam, adamw))


def test_tensorboard_holds_what_the_table_holds(tmp_path: Path) -> None:
    run(tmp_path, tensorboard=True, epochs=4)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "student"))
    events.Reload()
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        logged = [scalar.value for scalar in events.Scalars(name)]
        # float32 there, six decimals here
        assert logged == pytest.approx([float(row[name]) for row in rows(tmp_path)], abs=1e-6)


def test_mixed_precision_changes_nothing_without_a_gpu(tmp_path: Path) -> None:
    assert not torch.cuda.is_available()
    full, mixed = (run(tmp_path / kind, precision=kind, epochs=2) for kind in ("full", "mixed"))
    assert all(torch.equal(v, mixed.state_dict()[k]) for k, v in full.state_dict().items())


def test_mixed_precision_is_asked_for_where_a_gpu_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Trainer:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(lightning, "Trainer", Trainer)
    run(tmp_path, precision="mixed")
    assert (asked["precision"], asked["accelerator"]) == ("bf16-mixed", "auto")
    run(tmp_path, precision="full")
    assert asked["precision"] == "32-true"


@pytest.mark.parametrize(
    "change", [{"patience": 0}, {"decay": 1.5}, {"select": "test"}, {"momentum": 1}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fit.model_validate({"epochs": 1, "batch_size": 1, "learning_rate": 0.1} | change)


def test_another_fitter(tmp_path: Path) -> None:
    calls = []

    class Counting(Fitter):
        def training_step(self, batch: Batch, number: int) -> torch.Tensor:
            calls.append(len(batch.labels))
            return super().training_step(batch, number)

    torch.manual_seed(0)
    settings = Fit(epochs=2, batch_size=10, learning_rate=0.1)
    fit(
        nn.Linear(3, 2),
        loss,
        Points(),
        TRAIN,
        VALIDATION,
        settings,
        module_class=Counting,
        network_name="student",
        classes=2,
        seed=0,
        run_folder=tmp_path,
    )
    assert calls == [10, 10, 4] * 2
