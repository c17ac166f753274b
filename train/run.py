"""The train stage: recipe and data in, teacher and folded student out, each skipped when its file is already there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from knarr.train.clips import Batch, Clips, Epoch, split_validation
from knarr.train.data import RunData
from knarr.train.distill import distillation_loss
from knarr.train.fit import fit, write_atomic
from knarr.train.recipe import Recipe, RecipeError
from knarr.train.student import StudentShape, build_student, fold_batch_norm, run_student
from knarr.train.teacher import Teacher
from knarr.train.weights import load_weights, save_weights

CONFIG, TEACHER, STUDENT = "config.yaml", "teacher.safetensors", "student.safetensors"
EVALUATION_BATCH = 50


def open_run(recipe: Recipe, data: RunData, data_root: Path, run_folder: Path) -> None:
    """Make the run's folder, or make sure that what lies in it was made with these settings and data.

    Raises:
        RecipeError: the folder holds a run with other settings or other data.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    wanted = {"recipe": recipe.model_dump(mode="json"), "data_sha256": data.fingerprint}
    path = run_folder / CONFIG
    if not path.is_file():
        config = {**wanted, "data_root": str(data_root.resolve())}
        write_atomic(path, yaml.safe_dump(config, sort_keys=False).encode())
    elif {key: value for key, value in _read_config(path).items() if key != "data_root"} != wanted:
        raise RecipeError(
            f"{run_folder}: holds a run with other settings or data than recipe '{recipe.name}'; "
            "give another --out or remove the folder"
        )


def read_run(run_folder: Path) -> tuple[Recipe, Path]:
    """The recipe a run was made with, and the folder its data came from.

    Raises:
        RecipeError: the folder holds no run.
    """
    path = run_folder / CONFIG
    if not path.is_file():
        raise RecipeError(
            f"{run_folder}: no {CONFIG}, so not a run; make one with `knarr train` or `knarr pipeline`"
        )
    config = _read_config(path)
    try:
        return Recipe.model_validate(config["recipe"]), Path(config["data_root"])
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(
            f"{path}: not the settings of a run ({type(error).__name__}); remove the folder"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML; remove the folder") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path}: not the settings of a run; remove the folder")
    return config


def student_shape(recipe: Recipe, data: RunData) -> StudentShape:
    """Layers of a recipe's student on its data."""
    settings = recipe.student
    example = data.train.spikes(np.arange(1))
    return StudentShape(
        input_shape=(example.shape[2], example.shape[3], example.shape[4]),
        classes=len(data.class_names),
        channels=settings.channels,
        first_padding=settings.first_padding,
        dt_s=recipe.data.dt_s,
        tau_mem_s=settings.tau_mem_s,
        tau_readout_s=settings.tau_readout_s,
    )


def _new_teacher(recipe: Recipe, data: RunData) -> Teacher:
    frames = data.train.batch(np.arange(1), None).frames
    shape = (frames.shape[1], frames.shape[2], frames.shape[3])
    return Teacher(shape, len(data.class_names), recipe.teacher.width, recipe.teacher.dropout)


def train_teacher(
    recipe: Recipe, data: RunData, run_folder: Path, callbacks: tuple[Callback, ...] = ()
) -> Teacher:
    """The run's teacher: loaded when finished, resumed or begun otherwise."""
    torch.manual_seed(recipe.seed)
    teacher = _new_teacher(recipe, data)
    path = run_folder / TEACHER
    if path.is_file():
        load_weights(teacher, path)
        return teacher

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = network(batch.frames)
        return F.cross_entropy(logits, batch.labels, label_smoothing=recipe.teacher.label_smoothing), logits

    _fit(teacher, loss, recipe, data, run_folder, "teacher", callbacks)
    save_weights(teacher, path)
    return teacher


def train_student(
    recipe: Recipe, data: RunData, teacher: Teacher, run_folder: Path, callbacks: tuple[Callback, ...] = ()
) -> snn.SequentialState:
    """The run's student, distilled from the teacher, batch-norm folded: loaded when finished, else resumed or begun."""
    settings, shape = recipe.student, student_shape(recipe, data)
    path = run_folder / STUDENT
    if path.is_file():
        folded = build_student(shape, batch_norm=False)
        load_weights(folded, path)
        return folded
    torch.manual_seed(recipe.seed + 1)
    student = build_student(shape, batch_norm=True)
    teacher.eval().requires_grad_(False)

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, _ = run_student(network, batch.spikes)
        logits = settings.logit_scale * outputs.mean(dim=1)
        device_teacher = teacher.to(batch.frames.device)
        value = distillation_loss(
            logits,
            device_teacher(batch.frames),
            batch.labels,
            alpha=settings.kd_alpha,
            temperature=settings.kd_temperature,
        )
        return value, logits

    _fit(student, loss, recipe, data, run_folder, "student", callbacks)
    teacher.cpu()
    folded = fold_batch_norm(student)
    save_weights(folded, path)
    return folded


def _fit(
    network: nn.Module,
    loss: object,
    recipe: Recipe,
    data: RunData,
    run_folder: Path,
    stage: str,
    callbacks: tuple[Callback, ...],
) -> None:
    torch.set_num_threads(recipe.threads)
    train, validation = split_validation(data.groups, recipe.data.validation_fraction, recipe.seed)
    fit(
        network,
        loss,  # type: ignore[arg-type]
        data.train,
        train,
        validation,
        recipe.teacher.fit if stage == "teacher" else recipe.student.fit,
        stage=stage,
        classes=len(data.class_names),
        seed=recipe.seed + (0 if stage == "teacher" else 1_000_000),
        run_folder=run_folder,
        callbacks=callbacks,
    )


def teacher_predictions(teacher: nn.Module, clips: Clips) -> npt.NDArray[np.int64]:
    """(N,) class the teacher sees in each clip."""
    teacher.eval()
    with torch.no_grad():
        chosen = [teacher(batch.frames).argmax(dim=1) for batch in _batches(clips)]
    return torch.cat(chosen).numpy()


def student_predictions(student: snn.SequentialState, clips: Clips) -> npt.NDArray[np.int64]:
    """(N,) class with the largest readout sum over time."""
    student.eval()
    with torch.no_grad():
        chosen = [run_student(student, batch.spikes)[0].sum(dim=1).argmax(dim=1) for batch in _batches(clips)]
    return torch.cat(chosen).numpy()


def _batches(clips: Clips) -> Iterator[Batch]:
    epoch = Epoch(clips, np.arange(len(clips.labels)), EVALUATION_BATCH, seed=0, epoch=None)
    return (epoch[number] for number in range(len(epoch)))
