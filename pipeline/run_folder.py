"""A run's folder: its files, its settings in config.yaml, and who may work in it.

One process works in a folder at a time. Data that knarr generates are made by the first run that
wants them, and the others wait.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from knarr.factories import source_sha256
from knarr.files import write_atomic
from knarr.pipeline.errors import RunError
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore
from knarr.ranks import rank, world_size
from knarr.train.recipe import check_recipe, load_recipe, parse_setting, with_settings
from knarr.train.settings import (
    STUDENT,
    TEACHER,
    Recipe,
    RecipeError,
    YamlError,
    read_yaml,
    short,
)
from knarr.train.systems.registry import check_networks, load_data, system_of

if TYPE_CHECKING:
    from torch import nn

    from knarr.train.clips import Clips
    from knarr.train.systems.base import RunData, System

# Raise it with any change that an older run does not have; there is no reading of older ones.
FORMAT: Final = 1
"""Number of the format of config.yaml and of all other files of a run, which go together."""

CONFIG = "config.yaml"
GRAPH, BASELINE = "student.nir", "teacher.onnx"
LOWERED, NET, FITTED = "lowered.net", "student.net", "chip.json"
RECORDING, EVALUATION = "recording.npz", "evaluation.json"
VERIFICATION, ENERGY, PICTURES = "verification.json", "energy.json", "pictures"
PICTURE_NAMES: Final = ("samples", "raster", "energy", "verification")
"""Pictures of a finished run, as their files are named."""

CHIP_FILES: Final = (NET, LOWERED, "checkpoints/chip.ckpt")
"""Files that depend on the settings of `chip`."""
LATER_FILES: Final = (GRAPH, BASELINE, RECORDING, EVALUATION, "metrics.csv")
"""Files beside the weights that hold a folder to its settings."""

_HELD: dict[Path, int] = {}
"""Run folder -> descriptor of its lock."""


@dataclass(frozen=True)
class Run:
    """An open run.

    Attributes:
        folder: Where its files lie.
        recipe: Its settings.
        data: Both splits of its data.
        on_progress: Called with the progress of its stages.
    """

    folder: Path
    recipe: Recipe
    data: RunData
    on_progress: OnProgress = ignore

    def path(self, name: str) -> Path:
        """Return where a file of the run lies or will lie."""
        return self.folder / name

    def has(self, *names: str) -> bool:
        """Return whether all of these files are there."""
        return all(self.path(name).exists() for name in names)

    def need(self, name: str, verb: str) -> Path:
        """Return the path of a file that an earlier stage left.

        Args:
            name: The file.
            verb: The verb of the command that makes it.

        Raises:
            RecipeError: It is not there yet.
        """
        if not self.has(name):
            raise RecipeError(
                f"{self.path(name)}: not there yet; run `knarr {verb} {self.folder}` first"
            )
        return self.path(name)

    def say(self, text: str) -> None:
        """Report a sentence as progress."""
        self.on_progress(Progress(text))

    def counter(self, text: str) -> Callable[[int, int], None]:
        """Return a function to call with (done, total), which reports them as progress."""
        return counter(self.on_progress, text)

    def on_chip(self, clips: Clips) -> Clips:
        """Return a split as the chip runs it, cut to the time steps of `chip`."""
        from knarr.train.clips import truncate_timesteps

        return truncate_timesteps(self.recipe, clips)

    @property
    def system(self) -> System[Any]:
        """The system that the recipe describes."""
        return system_of(self.recipe)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Load the finished teacher, and the finished student in the form in which it is kept.

        Raises:
            RecipeError: One of them is not trained yet.
        """
        from knarr.train.train import train_student, train_teacher

        for name in (TEACHER, STUDENT):
            if not self.has(name):
                raise RecipeError(
                    f"{self.path(name)}: not trained yet; run `knarr train {self.recipe.name}` first"
                )
        # Both files are there, so this loads and fits nothing.
        teacher = train_teacher(self.recipe, self.data, self.folder)
        return teacher, train_student(self.recipe, self.data, teacher, self.folder)


def open_run(
    recipe: str | Recipe,
    folder: Path | str | None = None,
    *,
    data: Path | str | None = None,
    settings: Sequence[str] = (),
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Run:
    """Open the folder of a recipe's run, making it and its generated data when they are not there.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a recipe.
        folder: Folder of the run; runs/<recipe name> when left out.
        data: Folder of the data; None where knarr generates them.
        settings: Changes of the recipe, each `path=value`.
        cache: Folder for generated and prepared data; "data" beside the run's folder by default.
        on_progress: Called with the progress of opening the run and of its stages.

    Raises:
        RecipeError: A recipe or a setting that does not fit, or a folder with another run or at
            work.
        RunError: The folder holds a run of an older knarr.
        DataError: Data that are missing or malformed.
    """
    show = on_progress or ignore
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    if settings:
        recipe = with_settings(recipe, dict(map(parse_setting, settings)))
    folder = Path("runs") / recipe.name if folder is None else Path(folder)
    if (folder / CONFIG).is_file():
        # Before data are generated for nothing; what else the file holds is looked at later.
        with suppress(RecipeError):
            read_config(folder)
    cache = folder.parent / "data" if cache is None else cache
    announce_code(recipe, show)
    # Beside the runs, so that all of one data set share it.
    root = default_data(recipe, cache, show) if data is None else Path(data)
    loaded = load_data(recipe, root, cache=cache, progress=counter(show, "samples read"))
    show(
        Progress(
            f"Data: {len(loaded.train.labels)} clips to train on, "
            f"{len(loaded.test.labels)} held out"
        )
    )
    for note in loaded.notes:
        show(Progress(f"  {note}"))
    # Before anything is written: what is refused later leaves a folder that refuses the corrected recipe.
    check_networks(recipe, loaded)
    # Where the test data choose every epoch, no clips are needed to validate on.
    if len(recipe.chosen_on_test) < 2 or recipe.chip is not None:
        from knarr.train.train import train_validation_split

        train_validation_split(recipe, loaded)
    if recipe.chip is not None and world_size() > 1:
        raise RecipeError(
            f"chip: {world_size()} processes, but one fits a student to the chip's integers; fit teacher and student with "
            "torchrun and --set chip=null, then go on without both"
        )
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    # The others would race for one file.
    if rank() == 0:
        claim_folder(recipe, loaded, root, folder, cache=cache)
    return Run(folder, recipe, loaded, show)


def reopen(
    folder: Path | str, data: Path | str | None = None, *, on_progress: OnProgress | None = None
) -> Run:
    """Open a run that exists, with the data it was made with.

    Args:
        folder: Folder of the run.
        data: Where its data lie now; None for where they lay.
        on_progress: Called with the progress of opening the run and of its stages.

    Raises:
        RecipeError: No run, data that are not there or are others, or another process at work.
        RunError: A run of an older knarr.
    """
    folder, show = Path(folder), on_progress or ignore
    recipe, root = read_run(folder)
    root = root if data is None else Path(data)
    if not root.is_dir():
        raise RecipeError(
            f"{root}: the data of run {folder} are not there; give their folder, "
            f"`knarr evaluate {folder} --data FOLDER`, or correct data_root in {folder / CONFIG}"
        )
    if data is not None and recipe.folder is not None and not Path(recipe.folder).is_dir():
        # Recipe and data were moved together.
        recipe = recipe.model_copy(update={"folder": str(root.resolve())})
    announce_code(recipe, show)
    # Before data are loaded, which takes longer than another process needs to begin.
    hold(folder)
    cache = read_config(folder).get("cache")
    loaded = load_data(
        recipe,
        root,
        cache=folder.parent / "data" if cache is None else Path(str(cache)),
        progress=counter(show, "samples read"),
    )
    claim_folder(recipe, loaded, root, folder)
    return Run(folder, recipe, loaded, show)


# --- settings


def claim_folder(
    recipe: Recipe, data: RunData, data_root: Path, folder: Path, *, cache: Path | None = None
) -> None:
    """Make a run's folder, or make sure that what lies in it was made with these settings and data.

    Args:
        recipe: Settings of the run.
        data: Its data.
        data_root: Where the data came from; remembered, not compared.
        folder: Folder of the run.
        cache: Where the data were prepared; remembered, not compared.

    Raises:
        RecipeError: The folder holds a run with other settings, other data or other code of the
            user's. Settings of `chip` may change until something lies there that depends on them.
        RunError: The folder holds a run of an older knarr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = {name: source_sha256(name, beside=recipe.folder) for name in recipe.code()}
    # Settings that nothing was fitted with hold nobody to them.
    if not (folder / CONFIG).is_file() or (not _begun(folder) and not _is_of(folder, recipe, data)):
        config = {
            "format": FORMAT,
            "recipe": recipe.model_dump(mode="json"),
            "data_sha256": data.fingerprint,
            "data_root": str(data_root.resolve()),
            "code_sha256": code,
        }
        if cache is not None:
            config["cache"] = str(cache.resolve())
        _write_config(folder, config)
        return
    found, _ = read_run(folder)
    config = read_config(folder)
    kept = config.get("code_sha256")
    before = kept if isinstance(kept, dict) else {}
    for name, changed in code.items():
        if before.get(name, changed) != changed:
            raise RecipeError(
                f"{folder}: '{name}' is another than the run was made with, its source file changed; "
                "put that back, or give another --out"
            )
    same_data = config.get("data_sha256") == data.fingerprint
    if found.same_run(recipe) and same_data:
        if found.folder != recipe.folder:  # the recipe was moved, with its modules
            here = {"recipe": recipe.model_dump(mode="json"), "data_root": str(data_root.resolve())}
            _write_config(folder, {**config, **here})
        return
    # Settings of `chip` are asked for late, when teacher and student are there already.
    but_chip = found.model_copy(update={"chip": recipe.chip})
    lowered = any((folder / name).is_file() for name in CHIP_FILES)
    if not same_data or not but_chip.same_run(recipe) or lowered:
        raise RecipeError(
            f"{folder}: holds a run with other settings or data than recipe '{recipe.name}'; "
            "give another --out"
        )
    # Teacher and student are the same; nothing was lowered yet that could be another.
    _write_config(folder, {**config, "recipe": recipe.model_dump(mode="json")})


def read_run(folder: Path) -> tuple[Recipe, Path]:
    """Read the recipe that a run was made with, and the folder its data came from.

    Raises:
        RecipeError: The folder holds no run, or settings that do not fit.
        RunError: The folder holds a run of an older knarr.
    """
    path, config = folder / CONFIG, read_config(folder)
    try:
        return check_recipe(config["recipe"], str(path)), Path(config["data_root"])
    except RecipeError as error:
        raise RecipeError(
            f"{error}; use the version of knarr that made the run, or correct the setting there"
        ) from error
    except (TypeError, KeyError) as error:
        raise RecipeError(
            f"{path}: {error} is not there, so not the settings of a run; correct it"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml as plain data.

    Raises:
        RecipeError: It is not there, not YAML, or no mapping.
        RunError: An older knarr wrote it.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no {CONFIG}, so not a run; make one with `knarr train` or `knarr pipeline`"
        )
    try:
        config = read_yaml(path.read_text("utf-8"))
    except (YamlError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({error}); correct it") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{path}: {short(config)} is not the settings of a run; correct it")
    # Checked before anything else of it: an older recipe may lack any setting.
    if config.get("format") != FORMAT:
        found = f"format {short(config['format'])}" if "format" in config else "no format"
        made_by = "another" if "format" in config else "an older"
        raise RunError(
            f"{folder}: made by {made_by} knarr ({found} in {CONFIG}); make it again with "
            "`knarr pipeline RECIPE --out FOLDER`, or use the version that made it"
        )
    return config


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    write_atomic(folder / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())


def _is_of(folder: Path, recipe: Recipe, data: RunData) -> bool:
    """Return whether a folder's config.yaml is of these settings and data already."""
    try:
        same_recipe = read_run(folder)[0].same_run(recipe)
        return same_recipe and read_config(folder).get("data_sha256") == data.fingerprint
    except RecipeError:
        return False


def _begun(folder: Path) -> bool:
    """Return whether a fit, or a stage after it, has left anything."""
    left = (folder / name for name in (TEACHER, STUDENT, *CHIP_FILES, *LATER_FILES))
    return any(path.is_file() for path in (*left, *folder.glob("checkpoints/*.ckpt")))


# --- locks


def hold(folder: Path) -> None:
    """Keep other processes out of a run folder until it is released or this one ends, however it
    ends.

    Under torchrun the first process holds the folder for all of them.

    Raises:
        RecipeError: Another process works in the folder.
    """
    # One folder has one lock, by whatever path it is named.
    key = folder.resolve()
    if key in _HELD or rank() > 0:
        return
    # The kernel lets go of the lock when the process ends, however it ends.
    lock = os.open(key / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise RecipeError(
            f"{folder}: another knarr process works in it; wait for it or give another --out"
        ) from error
    _HELD[key] = lock


def release(folder: Path) -> None:
    """Let others in again; of a thousand runs of a grid a process cannot hold all."""
    # A folder that was never held is free already.
    lock = _HELD.pop(folder.resolve(), None)
    if lock is not None:
        os.close(lock)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is here; `path` is a file for it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def announce_code(recipe: Recipe, on_progress: OnProgress) -> None:
    """Say which code of the user's a recipe runs, before more of it runs."""
    if recipe.code():
        on_progress(
            Progress(
                f"Running your code: {', '.join(recipe.code())}, looked for in {recipe.folder}"
            )
        )


def default_data(recipe: Recipe, cache: Path, on_progress: OnProgress = ignore) -> Path:
    """Return the folder of a recipe's data where the user names none: that which the recipe itself
    names, or that of generated data, which are made where they are not there.

    Args:
        recipe: A recipe of own or of generated data.
        cache: The folder of all generated data.
        on_progress: Called with the progress of making them.

    Raises:
        RecipeError: The recipe's data are neither.
    """
    system = system_of(recipe)
    own = system.own_folder()
    if own is not None:
        return own
    root = cache / system.folder_name()
    cache.mkdir(parents=True, exist_ok=True)
    # Another's half-made folder looks like one of a killed process, which the generator removes.
    with alone(cache / f".{root.name}.lock"):
        if not root.is_dir():
            on_progress(Progress(f"Generating {recipe.data.kind} into {root}"))
            system.generate(root, counter(on_progress, "clips"))
    return root
