"""The train stage: recipe and data in, teacher and student out, each skipped when its file is already there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from knarr.files import write_atomic
from knarr.train.clips import Batch, Clips, Epoch, Indices, split_validation
from knarr.train.fitting.files import load_weights, save_weights
from knarr.train.fitting.fit import Fitter, fit
from knarr.train.recipe import check_recipe
from knarr.train.settings import (
    Fit,
    Recipe,
    RecipeError,
    SettingsError,
    YamlError,
    read_yaml,
    short,
)
from knarr.train.systems.base import Loss, RunData
from knarr.train.systems.registry import system_of

CONFIG, TEACHER, STUDENT = "config.yaml", "teacher.safetensors", "student.safetensors"
LATER_FILES = (
    "student.nir",
    "teacher.onnx",
    "recording.npz",
    "accuracy.json",
    "evaluation.json",
    "metrics.csv",
)
CHIP_FILES = ("student.net", "lowered.net", "checkpoints/chip.ckpt")
EVALUATION_BATCH = 50
Logits = Callable[[nn.Module, Batch], torch.Tensor]


def open_run(
    recipe: Recipe, data: RunData, data_root: Path, run_folder: Path, *, cache: Path | None = None
) -> None:
    """Make the run's folder, or make sure that what lies in it was made with these settings and data.

    Args:
        recipe, data, run_folder: of the run.
        data_root: where the data came from. cache: where they were prepared; both are remembered, neither is compared.

    Raises:
        RecipeError: the folder holds a run with other settings or other data. Settings of `chip` may change until something lies
            there that depends on them.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    path = run_folder / CONFIG
    # Settings that nothing was fitted with hold nobody to them.
    if not path.is_file() or (not _begun(run_folder) and not _is_of(path, recipe, data)):
        config = {
            "recipe": recipe.model_dump(mode="json"),
            "data_sha256": data.fingerprint,
            "data_root": str(data_root.resolve()),
        }
        if cache is not None:
            config["cache"] = str(cache.resolve())
        write_atomic(path, yaml.safe_dump(config, sort_keys=False).encode())
        return
    found, _ = read_run(run_folder)
    config = _read_config(path)
    same_data = data.is_of(config.get("data_sha256"))
    if (
        same_data
        and found.model_copy(update={"chip": recipe.chip}) == recipe
        and not _on_chip(run_folder)
    ):
        if found != recipe:
            # Teacher and student are the same; nothing was lowered yet that could be another.
            config["recipe"] = recipe.model_dump(mode="json")
            write_atomic(path, yaml.safe_dump(config, sort_keys=False).encode())
        return
    if found != recipe or not same_data:
        raise RecipeError(
            f"{run_folder}: holds a run with other settings or data than recipe '{recipe.name}'; "
            "give another --out"
        )


def _is_of(path: Path, recipe: Recipe, data: RunData) -> bool:
    """Whether a config is of these settings and data already."""
    try:
        return read_run(path.parent)[0] == recipe and data.is_of(
            _read_config(path).get("data_sha256")
        )
    except RecipeError:
        return False


def _begun(run_folder: Path) -> bool:
    """Whether a fit, or a stage after it, has left anything."""
    left = (run_folder / name for name in (TEACHER, STUDENT, *CHIP_FILES, *LATER_FILES))
    return any(path.is_file() for path in (*left, *run_folder.glob("checkpoints/*.ckpt")))


def _on_chip(run_folder: Path) -> bool:
    """Whether a student has been lowered, or its integers fitted."""
    return any((run_folder / name).is_file() for name in CHIP_FILES)


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
        return check_recipe(_of_today(config["recipe"]), str(path)), Path(config["data_root"])
    except RecipeError as error:
        raise RecipeError(
            f"{error}; use the version of knarr that made the run, or correct the setting there"
        ) from error
    except (TypeError, KeyError) as error:
        raise RecipeError(
            f"{path}: {error} is not there, so not the settings of a run; correct it"
        ) from error


def _of_today(plain: Any) -> Any:
    """A recipe as an earlier version wrote it: generated data were drawn by the recipe's seed before they had one of their own."""
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict):
        return plain
    drawn = (plain.get("system"), plain["data"].get("kind")) in (
        ("cnn", "eyes"),
        ("spiking_emotions", "clips"),
    )
    if not drawn or "seed" in plain["data"]:
        return plain
    return {**plain, "data": {**plain["data"], "seed": plain.get("seed", 0)}}


def read_cache(run_folder: Path) -> Path:
    """Where a run's data were prepared; beside it for runs that do not say."""
    cache = _read_config(run_folder / CONFIG).get("cache")
    return Path(cache) if isinstance(cache, str) else run_folder.parent / "data"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_yaml(path.read_text("utf-8"))
    except (YamlError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({error}); correct it") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path}: {short(config)} is not the settings of a run; correct it")
    return config


def train_teacher(
    recipe: Recipe, data: RunData, run_folder: Path, callbacks: tuple[Callback, ...] = ()
) -> nn.Module:
    """The run's teacher: loaded when finished, resumed or begun otherwise."""
    torch.manual_seed(recipe.seed)
    system = system_of(recipe)
    teacher = system.teacher(data)
    path = run_folder / TEACHER
    if path.is_file():
        load_weights(teacher, path)
        return teacher
    _fit(teacher, system.teacher_loss(), recipe, data, run_folder, "teacher", callbacks)
    save_weights(teacher, path)
    return teacher


def train_student(
    recipe: Recipe,
    data: RunData,
    teacher: nn.Module,
    run_folder: Path,
    callbacks: tuple[Callback, ...] = (),
) -> nn.Module:
    """The run's student as it is kept, distilled from the teacher: loaded when finished, else resumed or begun."""
    system, path = system_of(recipe), run_folder / STUDENT
    if path.is_file():
        kept = system.kept(data)
        load_weights(kept, path)
        return kept
    torch.manual_seed(recipe.seed + 1)
    student = system.student(data)
    teacher.eval().requires_grad_(False)
    loss_beside = system.student_loss(teacher)

    def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        teacher.to(batch.inputs.device)
        return loss_beside(network, batch)

    _fit(student, loss, recipe, data, run_folder, "student", callbacks, teacher)
    teacher.cpu()
    kept = system.keep(student).eval()
    save_weights(kept, path)
    return kept


def train_validation_split(recipe: Recipe, data: RunData) -> tuple[Indices, Indices]:
    """Which of the training clips a run fits, and which it validates on.

    Raises:
        SettingsError: none is left to fit.
    """
    if data.validation is None:
        return split_validation(data.groups, recipe.data.validation_fraction, recipe.seed)
    train = np.setdiff1d(np.arange(len(data.train.labels)), data.validation)
    if not len(train):
        raise SettingsError(
            "data: all training clips are validated on, none is left to fit; check the folds"
        )
    return train, data.validation


def _fit(
    network: nn.Module,
    loss: Loss,
    recipe: Recipe,
    data: RunData,
    run_folder: Path,
    stage: str,
    callbacks: tuple[Callback, ...],
    teacher: nn.Module | None = None,
) -> None:
    torch.set_num_threads(recipe.threads)
    settings: Fit = recipe.teacher.fit if stage == "teacher" else recipe.student.fit
    held: Clips = data.train
    if settings.select == "best_on_test":
        train, validation = np.arange(len(data.train.labels)), np.arange(len(data.test.labels))
        held = data.test
    else:
        train, validation = train_validation_split(recipe, data)
    make: Callable[..., Fitter] = Fitter
    if teacher is not None:
        chosen = system_of(recipe).student_fitter(teacher, data, train, run_folder)
        train, make = (train, make) if chosen is None else chosen
    fit(
        network,
        loss,
        data.train,
        train,
        validation,
        settings,
        held=held,
        stage=stage,
        classes=len(data.class_names),
        seed=recipe.seed + (0 if stage == "teacher" else 1_000_000),
        run_folder=run_folder,
        make=make,
        callbacks=callbacks,
    )


def teacher_predictions(recipe: Recipe, teacher: nn.Module, clips: Clips) -> npt.NDArray[np.int64]:
    """(N,) class the teacher sees in each clip."""
    return _classes(system_of(recipe).teacher_logits, teacher, clips)


def student_predictions(
    recipe: Recipe, student: nn.Module, clips: Clips, chosen: Indices | None = None
) -> npt.NDArray[np.int64]:
    """(N,) class the student, in the form in which it is kept, sees in each clip, or in each of the chosen ones."""
    return _classes(system_of(recipe).student_logits, student, clips, chosen)


def _classes(
    logits: Logits, network: nn.Module, clips: Clips, chosen: Indices | None = None
) -> npt.NDArray[np.int64]:
    network.eval()
    with torch.no_grad():
        seen = [logits(network, batch).argmax(dim=1) for batch in evaluation_batches(clips, chosen)]
    return torch.cat(seen).numpy()


def evaluation_batches(clips: Clips, chosen: Indices | None = None) -> Iterator[Batch]:
    """Clips in their order, all or the chosen ones, not augmented."""
    indices = np.arange(len(clips.labels)) if chosen is None else chosen
    epoch = Epoch(clips, indices, EVALUATION_BATCH, seed=0, epoch=None)
    return (epoch[number] for number in range(len(epoch)))
