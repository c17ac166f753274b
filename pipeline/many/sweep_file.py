"""A sweep's file: which recipe, which of its settings are searched, how long and for what; everything checked beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from optuna.distributions import BaseDistribution
from pydantic import ConfigDict, Field, ValidationError

from knarr.pipeline.many.sweep_space import MAX_TRIALS, Space, SweepError, Value
from knarr.train.recipe import (
    MAX_RECIPE_BYTES,
    assert_path,
    fault_of,
    load_recipe,
    shipped_recipes,
    with_settings,
)
from knarr.train.settings import Frozen, Recipe, RecipeError, YamlError, faults_of, read_yaml

MAX_PATHS = 50
VALIDATION: Final = (
    *("kind", "validation_fraction", "subjects", "takes_per_emotion"),
    *(
        "split",
        "folds",
        "fold",
        "seed",
        "split_seed",
        "people",
        "task",
        "threshold",
        "inclusive",
        "zeros",
    ),
    *(
        "balance",
        "min_labelled",
        "window_s",
        "step_s",
        "stride_s",
        "normalise",
        "drop_short",
        "fps",
    ),
    *("videos", "clips_per_video", "shuffle_labels", "event_dir", "frame_dir", "index", "on_bad"),
)
"""Settings of data known to change what is validated on, or what its classes are: values found with different ones do not compare.
A trial that another setting gives other clips to validate on is refused when its data are read."""

Path_ = Annotated[str, Field(min_length=1, max_length=200)]


class SweepSettings(Frozen):
    """What a sweep's file holds.

    Args:
        name: of the study in its storage.
        recipe: shipped, or a YAML file beside the sweep's.
        trials: that are to end, over all processes, machines and restarts: finished, pruned or refused by the recipe. Left out, all
            points of a grid.
        metric: of the student on the validation split, after its last epoch or the selected one. Never of test data.
        sampler: "tpe" learns from the trials before, "random" does not, "grid" tries every combination once.
        seed: of the sampler. That of the recipe cannot be searched: it draws who validates.
        pruner: "median" ends a trial whose best value so far is worse than the median of the others at its epoch, after five finished
            trials and a third of the recipe's epochs.
        search: dotted path of a setting -> what it may be.
        fixed: written `set`: settings that differ from the recipe in all trials.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    recipe: Annotated[str, Field(min_length=1, max_length=500)]
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    metric: Literal["validation_accuracy", "validation_loss"] = "validation_accuracy"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(default=0, ge=0, lt=2**32)
    pruner: Literal["median"] | None = None
    search: Annotated[dict[Path_, Space], Field(min_length=1, max_length=MAX_PATHS)]
    fixed: Annotated[dict[Path_, Value], Field(max_length=MAX_PATHS)] = Field(
        default={}, alias="set"
    )


@dataclass(frozen=True)
class Sweep:
    """A sweep that can be run: its settings, and the recipe with what all trials share."""

    settings: SweepSettings
    recipe: Recipe
    trials: int

    @property
    def maximise(self) -> bool:
        return self.settings.metric == "validation_accuracy"

    def distributions(self) -> dict[str, BaseDistribution]:
        return {path: space.distribution() for path, space in self.settings.search.items()}

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a trial from what Optuna keeps of it, in the order of the file.

        Raises:
            SweepError: parameters of another sweep.
        """
        try:
            return {
                path: space.value(parameters[path]) for path, space in self.settings.search.items()
            }
        except (KeyError, ValueError) as error:
            raise SweepError(
                f"sweep '{self.settings.name}': a trial in its storage has other parameters ({error}); give another storage"
            ) from error

    def grid_point(self, slot: int) -> dict[str, Any]:
        """Parameters, as Optuna keeps them, of a grid's trial; shuffled by the seed, so that a part of a grid is spread over it."""
        sides = [space.points() for space in self.settings.search.values()]
        count = math.prod(map(len, sides))
        place = np.random.default_rng(self.settings.seed).permutation(count)[slot]
        chosen = np.unravel_index(place, [len(side) for side in sides])
        return {
            path: side[at]
            for path, side, at in zip(self.settings.search, sides, chosen, strict=True)
        }

    def identity(self) -> dict[str, Any]:
        """Everything that decides what a trial means, as plain JSON; how many there are may grow."""
        plain = self.settings.model_dump(
            mode="json", by_alias=True, exclude={"name", "trials", "fixed"}
        )
        return {**plain, "recipe": self.recipe.model_dump(mode="json")}


def load_sweep(path: Path) -> Sweep:
    """A sweep from a YAML file, with every path and value in it checked against the recipe.

    Raises:
        SweepError: unreadable, a setting that does not fit, or a search that would not compare trials fairly.
        RecipeError: the recipe is none, or `set` does not fit it.
    """
    settings = _read(path)
    recipe = with_settings(_base(settings, path), settings.fixed)
    faults = list(_faults(settings, recipe))
    if faults:
        raise SweepError(f"sweep '{path}': {'; '.join(faults)[:2000]}")
    return Sweep(settings, recipe, _trials(settings, path))


def _read(path: Path) -> SweepSettings:
    if not path.is_file():
        raise SweepError(f"sweep '{path}': no such YAML file")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise SweepError(f"sweep '{path}': {path.stat().st_size} bytes, at most {MAX_RECIPE_BYTES}")
    try:
        given = read_yaml(path.read_text("utf-8-sig"))
        return SweepSettings.model_validate(given)
    except UnicodeDecodeError as error:
        raise SweepError(f"sweep '{path}' is not UTF-8 text") from error
    except ValidationError as error:
        raise SweepError(f"sweep '{path}': {faults_of(error, given, 'sweep')}") from error
    except YamlError as error:
        raise SweepError(f"sweep '{path}' is not YAML: {error}") from error


def _base(settings: SweepSettings, path: Path) -> Recipe:
    if settings.recipe in shipped_recipes():
        return load_recipe(settings.recipe)
    beside = path.parent / settings.recipe
    if not beside.is_file():
        raise RecipeError(
            f"sweep '{path}': its recipe '{settings.recipe}' is neither shipped ({', '.join(shipped_recipes())}) nor a "
            f"YAML file beside it ({beside})"
        )
    return load_recipe(str(beside))


def _trials(settings: SweepSettings, path: Path) -> int:
    if settings.sampler != "grid":
        if settings.trials is None:
            raise SweepError(
                f"sweep '{path}': trials: needed where the sampler is {settings.sampler}"
            )
        return settings.trials
    points = 1
    for name, space in settings.search.items():
        try:
            points *= len(space.points())
        except SweepError as error:
            raise SweepError(f"sweep '{path}': search.{name}: {error}") from error
    if points > MAX_TRIALS:
        raise SweepError(
            f"sweep '{path}': a grid of {points} points, at most {MAX_TRIALS}; use another sampler"
        )
    if settings.trials is not None and settings.trials > points:
        raise SweepError(
            f"sweep '{path}': trials: {settings.trials}, but the grid has {points} points; leave it out"
        )
    return points if settings.trials is None else settings.trials


def _faults(settings: SweepSettings, recipe: Recipe) -> Iterator[str]:
    """What makes a sweep meaningless, before the first trial is paid for."""
    paths = list(settings.search)
    for path, space in settings.search.items():
        for other in [*settings.fixed, *(name for name in paths if name != path)]:
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                yield f"search.{path}: '{other}' is set or searched too; keep one of them"
        try:
            assert_path(recipe, path)
        except RecipeError as error:
            yield f"search.{path}: {error}"
            continue
        section, *_, last = path.split(".") if "." in path else (path, "")
        if section in ("name", "system", "threads", "deploy", "chip"):
            yield f"search.{path}: does not change the student that is trained; set it instead"
        # A recipe's own seed draws who validates.
        if path in ("seed", "data") or (section == "data" and last in VALIDATION):
            yield f"search.{path}: changes the data that trials are compared on; set it instead"
        for value in space.extremes():
            fault = fault_of(recipe, path, value)
            if fault is not None:
                yield f"search.{path}: {value!r} does not fit: {fault}"
        if last == "select" and "best_on_test" in space.extremes():
            yield f"search.{path}: best_on_test looks at the test data; a sweep never does"
    for stage in ("teacher", "student"):
        if getattr(recipe, stage).fit.select == "best_on_test":
            yield f"recipe '{recipe.name}': {stage}.fit.select best_on_test looks at the test data; set it to last or val"
