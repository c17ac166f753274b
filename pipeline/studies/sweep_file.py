"""Read a sweep's file: which recipe, which of its settings are searched, how long and for what; all
of it checked before the first trial is paid for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import optuna
from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from knarr.pipeline.studies.engine import StudyError
from knarr.train.recipe import (
    assert_path,
    fault_of,
    load_recipe,
    read_text,
    shipped_recipes,
    with_settings,
)
from knarr.train.settings import Frozen, Recipe, RecipeError, YamlError, faults_of, read_yaml

MAX_PATHS = 50
MAX_TRIALS = 10_000
MAX_VALUES, MAX_STEPS = 1_000, 1_000_000
VALIDATION: Final = """
    kind validation_fraction subjects takes_per_emotion split folds fold seed split_seed people
    task threshold inclusive zeros balance min_labelled window_s step_s stride_s normalise
    drop_short fps videos clips_per_video shuffle_labels event_dir frame_dir index on_bad
"""
"""Settings of data known to change which clips are validated on, or what their classes are: values
found with different ones do not compare. A trial that another setting gives other clips is refused
when its data are read."""

Scalar = (
    Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | Annotated[str, Field(max_length=200)]
    | None
)
# No mappings, no nesting: a few bytes of YAML can name a structure that takes all memory once it is
# written out.
Value = Scalar | Annotated[tuple[Scalar, ...], Field(max_length=64)]
Finite = Annotated[float, Field(ge=-1e100, le=1e100)]  # optuna takes differences of them


# `int` and `set` are words of Python: those fields have another name in it, and both names in a
# file.
ALIASED: Final = ConfigDict(
    extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
)


class Choices(Frozen):
    """One of some values; how near two of them are means nothing to the sampler."""

    values: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_VALUES)]

    @model_validator(mode="after")
    def _differ(self) -> Choices:
        # 1, 1.0 and true are one key in a set, and one category of Optuna's.
        if len(set(self.points())) < len(self.values):
            raise ValueError("two values are the same; leave one out")
        return self

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Return a value that the sampler chooses."""
        return self.value(trial.suggest_categorical(path, self.points()))

    def points(self) -> list[Any]:
        """Return all that a grid tries, as Optuna keeps it: lists as their JSON text."""
        return [json.dumps(value) if isinstance(value, tuple) else value for value in self.values]

    def extremes(self) -> list[Any]:
        """Return the values that must fit the recipe for all that lies between to fit."""
        return list(self.values)

    def value(self, label: Any) -> Any:
        """Return the value that Optuna keeps as `label`.

        Raises:
            ValueError: There is none.
        """
        value = self.values[self.points().index(label)]
        return list(value) if isinstance(value, tuple) else value


class Range(Frozen):
    """A number from `low` to `high`, both included: any, or `low` plus whole steps.

    Attributes:
        low, high: Bounds.
        log: Draw the logarithm evenly.
        step: None for any number; 1 where `int`.
        whole: Only whole numbers; the file calls it `int`.
    """

    model_config = ALIASED
    low: Finite
    high: Finite
    log: bool = False
    step: Annotated[float, Field(gt=0, le=1e100)] | None = None
    whole: bool = Field(default=False, alias="int")

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; leave one out")
        if self.whole:
            if not all(bound.is_integer() for bound in (self.low, self.high, self.step or 1.0)):
                raise ValueError("int needs whole low, high and step")
            # Above it two neighbouring integers are one float64.
            if max(abs(self.low), abs(self.high)) > 2**53:
                raise ValueError("int beyond 2^53; use smaller bounds")
        if self.step is not None:
            if (self.high - self.low) / self.step > MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS} steps; make them larger")
            if self._steps % 1 != 0:
                raise ValueError(
                    f"high {self.high:g} is not low {self.low:g} plus whole steps of {self.step:g}"
                )
        return self

    @property
    def _steps(self) -> Decimal:
        """Count the steps that lie between the bounds."""
        return (_exact(self.high) - _exact(self.low)) / _exact(self.step or 1.0)

    def suggest(self, trial: optuna.Trial, path: str) -> Any:
        """Return a number that the sampler chooses."""
        if self.whole:
            low, high = self.extremes()
            return trial.suggest_int(path, low, high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(path, self.low, self.high, log=self.log, step=self.step)

    def points(self) -> list[Any]:
        """Return all that a grid tries.

        Raises:
            StudyError: Any number in between is allowed, or there are more of them than a grid may
                have.
        """
        if self.step is None and not self.whole:
            raise StudyError("a grid needs values, a step or int")
        count = int(self._steps) + 1
        if count > MAX_TRIALS:
            raise StudyError(f"{count} steps are more than the {MAX_TRIALS} trials of a grid")
        low, step = _exact(self.low), _exact(self.step or 1.0)
        kind = int if self.whole else float
        return [kind(low + number * step) for number in range(count)]

    def extremes(self) -> list[Any]:
        """Return the values that must fit the recipe for all that lies between to fit."""
        if self.whole:
            return [int(self.low), int(self.high)]
        # Bounds may be whole by chance where the setting needs whole numbers; a number between them
        # tells.
        inner = self.low + ((self.high - self.low) / math.e if self.step is None else self.step)
        return [self.low, inner, self.high]

    def value(self, label: Any) -> Any:
        """Return the number, which Optuna keeps as it is."""
        return label


def _exact(number: float) -> Decimal:
    """Return the decimal number that was written: 0.1 is not a tenth in binary, and 0.3 is not
    three of them.
    """
    return Decimal(repr(number))


def _kind_of(found: Any) -> str:
    # Read from YAML it is a mapping, made in Python it is a space already.
    has_values = "values" in found if isinstance(found, dict) else isinstance(found, Choices)
    return "values" if has_values else "range"


Space = Annotated[
    Annotated[Choices, Tag("values")] | Annotated[Range, Tag("range")], Discriminator(_kind_of)
]
SettingPath = Annotated[str, Field(min_length=1, max_length=200)]


class SweepSettings(Frozen):
    """The content of a sweep's file.

    Attributes:
        name: Name of the study in its storage.
        recipe: A shipped recipe, or a YAML file beside the sweep's.
        trials: How many are to end, over all processes, machines and restarts: finished, pruned or
            refused by the recipe. Left out, all points of a grid.
        metric: What is compared: a value of the student on the validation split, after its last
            epoch or the selected one. Never one of test data. Float targets have a mean absolute
            error in place of an accuracy.
        sampler: "tpe" learns from the trials before, "random" does not, "grid" tries every
            combination once.
        seed: Seed of the sampler. That of the recipe cannot be searched: it draws who validates.
        pruner: "median" ends a trial whose best value so far is worse than the median of the others
            at its epoch, after five finished trials and a third of the recipe's epochs.
        search: Dotted path of a setting -> its possible values.
        fixed: Settings that differ from the recipe in all trials; the file calls them `set`.
    """

    model_config = ALIASED
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
    recipe: Annotated[str, Field(min_length=1, max_length=500)]
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    metric: Literal["validation_accuracy", "validation_loss", "validation_mae"] = (
        "validation_accuracy"
    )
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(default=0, ge=0, lt=2**32)
    pruner: Literal["median"] | None = None
    search: Annotated[dict[SettingPath, Space], Field(min_length=1, max_length=MAX_PATHS)]
    fixed: Annotated[dict[SettingPath, Value], Field(max_length=MAX_PATHS)] = Field(
        default={}, alias="set"
    )


@dataclass(frozen=True)
class Sweep:
    """A sweep that can be run.

    Attributes:
        settings: The content of its file.
        recipe: The recipe with all settings that are not searched.
        trials: How many are to end.
    """

    settings: SweepSettings
    recipe: Recipe
    trials: int

    @property
    def maximise(self) -> bool:
        """True where high values of the metric are good ones."""
        return self.settings.metric == "validation_accuracy"

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial from what Optuna keeps of it, in the order of the file.

        Raises:
            StudyError: The parameters are those of another sweep.
        """
        try:
            search = self.settings.search.items()
            return {path: space.value(parameters[path]) for path, space in search}
        except (KeyError, ValueError) as error:
            raise StudyError(
                f"sweep '{self.settings.name}': a trial in its storage has other parameters ({error}); give another storage"
            ) from error

    def grid_points(self) -> list[dict[str, Any]]:
        """Return the parameters of all trials of a grid, as Optuna keeps them.

        They are shuffled by the seed, so that a part of a grid is spread over it.
        """
        search = self.settings.search
        points = list(product(*(space.points() for space in search.values())))
        order = np.random.default_rng(self.settings.seed).permutation(len(points))
        return [dict(zip(search, points[place], strict=True)) for place in order[: self.trials]]

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what a trial means, as plain JSON; how many there are may
        grow.
        """
        left_out = {"name", "trials", "fixed"}
        plain = self.settings.model_dump(mode="json", by_alias=True, exclude=left_out)
        # Where files lie may change between two starts.
        return {**plain, "recipe": self.recipe.model_dump(mode="json", exclude={"folder"})}


def load_sweep(path: Path) -> Sweep:
    """Read a sweep from a YAML file, and check every path and value in it against the recipe.

    Raises:
        StudyError: The file is unreadable, has a setting that does not fit, or asks for a search
            that would not compare trials fairly.
        RecipeError: The recipe is none, or `set` does not fit it.
    """
    settings = _read(path)
    recipe = with_settings(_base(settings, path), settings.fixed)
    faults = list(_faults(settings, recipe))
    if faults:
        raise StudyError(f"sweep '{path}': {'; '.join(faults)[:2000]}")
    return Sweep(settings, recipe, _count_trials(settings, path))


def _read(path: Path) -> SweepSettings:
    if not path.is_file():
        raise StudyError(f"sweep '{path}': no such YAML file")
    try:
        # Its size is looked at first: YAML of a few bytes more may take all memory.
        given = read_yaml(read_text(path, "sweep", []))
        return SweepSettings.model_validate(given)
    except ValidationError as error:
        raise StudyError(f"sweep '{path}': {faults_of(error, given, 'sweep')}") from error
    except YamlError as error:
        raise StudyError(f"sweep '{path}' is not YAML: {error}") from error
    except RecipeError as error:
        raise StudyError(str(error)) from error


def _base(settings: SweepSettings, path: Path) -> Recipe:
    """Return the recipe that a sweep names, without its `set`."""
    shipped = shipped_recipes()
    if settings.recipe in shipped:
        return load_recipe(settings.recipe)
    beside = path.parent / settings.recipe
    if not beside.is_file():
        raise RecipeError(
            f"sweep '{path}': its recipe '{settings.recipe}' is neither shipped ({', '.join(shipped)}) nor a "
            f"YAML file beside it ({beside})"
        )
    return load_recipe(str(beside))


def _count_trials(settings: SweepSettings, path: Path) -> int:
    trials, points = settings.trials, 1
    if settings.sampler != "grid":
        if trials is None:
            raise StudyError(
                f"sweep '{path}': trials: needed where the sampler is {settings.sampler}"
            )
        return trials
    for name, space in settings.search.items():
        try:
            points *= len(space.points())
        except StudyError as error:
            raise StudyError(f"sweep '{path}': search.{name}: {error}") from error
    if points > MAX_TRIALS:
        raise StudyError(
            f"sweep '{path}': a grid of {points} points, at most {MAX_TRIALS}; use another sampler"
        )
    if trials is not None and trials > points:
        raise StudyError(
            f"sweep '{path}': trials: {trials}, but the grid has {points} points; leave it out"
        )
    return trials or points


def _faults(settings: SweepSettings, recipe: Recipe) -> Iterator[str]:
    """Yield what makes a sweep meaningless."""
    for path, space in settings.search.items():
        for other in (*settings.fixed, *(name for name in settings.search if name != path)):
            # One that holds the other counts too: student.fit and student.fit.epochs.
            shorter, longer = sorted((f"{path}.", f"{other}."), key=len)
            if longer.startswith(shorter):
                yield f"search.{path}: '{other}' is set or searched too; keep one of them"
        try:
            assert_path(recipe, path)
        except RecipeError as error:
            yield f"search.{path}: {error}"
            continue
        section, last = path.partition(".")[0], path.rpartition(".")[2]
        # What is deployed comes after the student; the number of threads changes no more than
        # rounding.
        if section in ("name", "system", "threads", "deploy", "chip"):
            yield f"search.{path}: does not change the student that is trained; set it instead"
        # A recipe's own seed draws who validates.
        if path in ("seed", "data") or (section == "data" and last in VALIDATION.split()):
            yield f"search.{path}: changes the data that trials are compared on; set it instead"
        for value in space.extremes():
            fault = fault_of(recipe, path, value)
            if fault is not None:
                yield f"search.{path}: {value!r} does not fit: {fault}"
        if last == "select" and "best_on_test" in space.extremes():
            yield f"search.{path}: best_on_test looks at the test data; a sweep never does"
    if recipe.fit_of("student") is None:
        yield f"recipe '{recipe.name}': student.fit: none, so that trials would all be the same; give epochs"
    for stage in recipe.chosen_on_test:
        yield f"recipe '{recipe.name}': {stage}.fit.select best_on_test looks at the test data; set it to last or val"
