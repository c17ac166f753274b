"""Grids: many runs of recipes with settings changed, seeds and folds, read from YAML, as a list of
single runs.

A grid has `rows`, one by one, or `axes`, whose combinations are rows, or both. A row's runs are all
its seeds and folds. Whatever depends on data (how many people can be left out) is asked of the
caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from knarr.errors import KnarrError
from knarr.pipeline.evaluation import Network
from knarr.pipeline.measures import RATES
from knarr.pipeline.published import Row, published
from knarr.pipeline.value_measures import ERRORS
from knarr.train.recipe import load_recipe, read_text, with_settings
from knarr.train.settings import Frozen, Recipe, RecipeError, YamlError, faults_of, read_yaml

MAX_RUNS: Final = 1000
_SHIPPED: Final = resources.files("knarr.pipeline").joinpath("grids")
_OWN_SETTINGS: Final = {"seed": "seeds", "data.fold": "folds"}
"""Settings that a grid gives itself, and by which of its fields."""


class GridError(KnarrError, ValueError):
    """A grid is unknown, or holds what cannot be run."""


def _flat(value: Any) -> Any:
    """Refuse what is nested deeper than lists in a mapping.

    A few bytes of YAML can name a structure that takes all memory once it is written out.
    """
    inner = list(value.values()) if isinstance(value, dict) else [value]
    innermost = [item for each in inner if isinstance(each, list) for item in each]
    # A mapping in the mapping, or anything in a list that is no plain value.
    if dict in map(type, inner) or {dict, list} & set(map(type, innermost)):
        raise ValueError(
            "nested too deep; set what lies below by dotted path, such as teacher.network.seen.widths"
        )
    return value


# No control characters, which a terminal would obey.
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Scalar = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | None
Setting = Annotated[
    Scalar | list[Scalar] | dict[Text, Scalar | list[Scalar]], BeforeValidator(_flat)
]
Settings = dict[Text, Setting]
"""Dotted path in a recipe -> value, or a whole mapping of settings."""
Axis = (
    Annotated[list[Scalar], Field(min_length=1)]
    | Annotated[dict[Text, Settings], Field(min_length=1)]
)
Axes = dict[Text, Axis]
Exclusion = Annotated[dict[Text, Scalar], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


@dataclass(frozen=True)
class PlannedRow:
    """A row with everything that the grid says for all of them.

    Attributes:
        name: Its name as printed.
        recipe: Name or path of its runs' recipe; None where they are those of another row.
        settings: Settings that are changed in the recipe.
        network: The network whose predictions are measured.
        runs_of: Name of that other row.
        beside: The published row.
        data: Folder of its data below the one that the caller names.
    """

    name: str
    recipe: str | None
    settings: Mapping[str, Any]
    network: Network
    runs_of: str | None = None
    beside: Row | None = None
    data: str | None = None


CountFolds = Callable[[Recipe, PlannedRow], int | None]
"""A function of (recipe, its row) that returns how many folds its data have; None where nobody can
say."""


class PublishedReference(Frozen):
    """The published numbers that stand beside a row."""

    table: Text
    method: Text


class GridRow(Frozen):
    """One row of a grid's file.

    Attributes:
        name: Its name as printed.
        recipe: A shipped recipe or a file; the grid's where None.
        set: Settings of the recipe by dotted path.
        runs_of: Name of the row whose runs these are, in place of its own: another network of them
            is looked at.
        network: The network whose predictions are measured; the grid's where None.
        beside: None where nothing was published.
        data: Folder below the one that the caller names; None for that one itself.
    """

    name: Text
    recipe: Text | None = None
    set: Settings = Field(default={})
    runs_of: Text | None = None
    network: Network | None = None
    beside: PublishedReference | None = None
    data: Text | None = None

    @model_validator(mode="after")
    def _own_or_other(self) -> GridRow:
        own = self.recipe is not None or self.set or self.data is not None
        if self.runs_of is not None and own:
            raise ValueError(
                f"{self.name}: has the runs of '{self.runs_of}'; leave out recipe, set and data"
            )
        below = Path(self.data or "")
        if below.is_absolute() or ".." in below.parts:
            raise ValueError(
                f"{self.name}: data '{self.data}' leads elsewhere; name a folder below"
            )
        return self


class RunGrid(Frozen):
    """Rows of runs.

    Attributes:
        name: Name of its folder.
        title: Title of its table.
        recipe: Recipe of rows that name none, and of the axes.
        network: The network whose predictions are measured, of rows that do not say.
        seeds: Seeds of the runs of each row.
        folds: "all" that the data or `data.folds` of the recipe give, or their numbers from 0; None
            where a recipe has none.
        columns: Rates to print, `Measures.of`; of float targets errors, `ValueMeasures.of`.
        costs: Whether to print operations and energy too.
        rows: Rows one by one.
        axes: Dotted path -> values, or name of an axis -> name of a choice -> its settings; all
            combinations are rows.
        exclude: Combinations to leave out: axis -> value or name of a choice; all that are given
            have to match.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,60}$")]
    title: Text
    recipe: Text | None = None
    network: Network = "student"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    folds: Literal["all"] | Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    columns: Annotated[tuple[Text, ...], Field(min_length=1)] = ("war", "uar")
    costs: bool = False
    rows: tuple[GridRow, ...] = ()
    axes: Axes = Field(default={})
    exclude: tuple[Exclusion, ...] = ()

    @field_validator("columns")
    @classmethod
    def _rates(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            kind, _, name = column.partition("/")
            whole = (*RATES, *ERRORS)
            if column not in whole and not (kind in ("recall", "group", *ERRORS) and name):
                raise ValueError(
                    f"'{column}' is none of {', '.join(whole)}, recall/<class>, group/<lighting>, mae/<target>, rmse/<target>"
                )
        return columns

    @model_validator(mode="after")
    def _whole(self) -> RunGrid:
        for what in ("seeds", "folds", "columns"):
            values = getattr(self, what)
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{what}: a value stands twice; keep one")
        if self.axes and self.recipe is None:
            raise ValueError("axes: no recipe that they could change; name one for the grid")
        return self

    def planned(self) -> tuple[PlannedRow, ...]:
        """Return all rows, those of the axes last.

        Raises:
            GridError: A row has no recipe, stands twice, or names another one or a published one
                that is none; or there are too many.
        """
        rows = [self._plan(row) for row in self.rows]
        try:
            made = _combinations(self.axes, self.exclude)
        except ValueError as error:
            raise GridError(f"grid '{self.name}': {error}") from None
        rows += [PlannedRow(name, self.recipe, settings, self.network) for name, settings in made]
        if not rows:
            raise GridError(f"grid '{self.name}': no row; give rows or axes")
        fitted = {row.name for row in rows if row.runs_of is None}
        folders: dict[str, str] = {}
        for row in rows:
            where = f"grid '{self.name}': row '{row.name}'"
            # Some file systems do not tell capital letters from small ones.
            same = folders.setdefault(folder_name(row.name).casefold(), row.name)
            # By identity: two rows of one name have equal names.
            if same is not row.name:
                raise GridError(
                    f"grid '{self.name}': rows '{same}' and '{row.name}' have one folder; rename one"
                )
            for path, field in _OWN_SETTINGS.items():
                if path in row.settings:
                    raise GridError(f"{where} sets {path}; that is what {field} are for")
            if row.runs_of not in (None, *fitted):
                raise GridError(
                    f"{where} has the runs of '{row.runs_of}', which is no row with runs"
                )
        return tuple(rows)

    def _plan(self, row: GridRow) -> PlannedRow:
        recipe, network = row.recipe or self.recipe, row.network or self.network
        if recipe is None and row.runs_of is None:
            raise GridError(f"grid '{self.name}': row '{row.name}' has no recipe; name one")
        beside = None
        try:
            if row.beside is not None:
                beside = published().row(row.beside.table, row.beside.method)
        except ValueError as error:
            raise GridError(f"grid '{self.name}': row '{row.name}': {error}") from None
        return PlannedRow(row.name, recipe, row.set, network, row.runs_of, beside, row.data)


def folder_name(row: str) -> str:
    """Return a row's name as that of a folder, on any file system: letters, digits, . _ + = -."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", row).strip("-.") or "row"


# --- axes


@dataclass(frozen=True)
class _Choice:
    """One value of an axis: its name as printed, the value that excludes it, and its settings."""

    label: str
    value: Scalar
    settings: Mapping[str, Any]


def _combinations(axes: Axes, exclude: Sequence[Exclusion]) -> list[tuple[str, dict[str, Any]]]:
    """Return names and settings of all combinations, the last axis running fastest.

    Raises:
        ValueError: Too many of them, a value twice, one path on two axes, or an exclusion of what
            is not there.
    """
    choices = {}
    for axis, values in axes.items():
        choices[axis] = _choices(axis, values, axes)
        labels = [choice.label for choice in choices[axis]]
        if len(set(labels)) < len(labels):
            raise ValueError(f"axis '{axis}': a value twice among {', '.join(labels)}; keep one")
    for rule in exclude:
        for axis, value in rule.items():
            if not any(_same(value, choice.value) for choice in choices.get(axis, ())):
                raise ValueError(
                    f"exclude: '{axis}' has no '{value}'; name an axis and one of its values"
                )
    count = prod(map(len, choices.values()))
    if count > MAX_RUNS:
        raise ValueError(f"axes: {count} combinations > {MAX_RUNS}; take fewer values")
    found = []
    for combination in product(*choices.values()) if axes else ():
        picked = dict(zip(choices, combination, strict=True))
        if any(_matches(rule, picked) for rule in exclude):
            continue
        settings: dict[str, Any] = {}
        for choice in combination:
            if shared := settings.keys() & choice.settings.keys():
                raise ValueError(f"axes: {', '.join(sorted(shared))} on two of them; keep one")
            settings |= choice.settings
        found.append((", ".join(choice.label for choice in combination), settings))
    return found


def _choices(axis: str, values: Axis, axes: Axes) -> list[_Choice]:
    if isinstance(values, dict):
        return [_Choice(name, name, settings) for name, settings in values.items()]
    short = axis.rpartition(".")[2]
    # The last word of a path is its name, unless two axes have the same.
    if sum(other.rpartition(".")[2] == short for other in axes) > 1:
        short = axis
    found = []
    for value in values:
        label = str(value)
        # As it stands in the file: YAML's true, Python's True.
        if value is None or isinstance(value, bool):
            label = label.lower()
        found.append(_Choice(f"{short} {label}", value, {axis: value}))
    return found


def _matches(rule: Exclusion, picked: Mapping[str, _Choice]) -> bool:
    return all(_same(value, picked[axis].value) for axis, value in rule.items())


def _same(one: Scalar, other: Scalar) -> bool:
    """Return whether two values are the same: True is not 1 here; 1 is 1.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


# --- runs


@dataclass(frozen=True)
class GridCell:
    """One run of a grid.

    Attributes:
        row: Name of its row.
        seed: Its seed.
        fold: Its fold; None where data have none.
        recipe: The recipe with all settings.
        folder: Its folder below the one of all grids: "<grid>/<row>/seed-0/fold-03".
        data: Folder of its data below the one that the caller names; None for that one.
    """

    row: str
    seed: int
    fold: int | None
    recipe: Recipe
    folder: str
    data: str | None


def expand(
    grid: RunGrid,
    *,
    count_folds: CountFolds = lambda recipe, row: None,
    load: Callable[[str], Recipe] = load_recipe,
) -> tuple[GridCell, ...]:
    """Return all runs, row by row, seed by seed; the same every time.

    Args:
        grid: The rows.
        count_folds: Asked where folds are "all" and depend on data: people left out one by one.
            Rows whose number is not known have no runs.
        load: Gives a recipe by its name.

    Raises:
        GridError: A setting or folds that a recipe does not have, two rows of the same runs, or
            more than `MAX_RUNS`.
        RecipeError: An unknown recipe.
    """
    cells: list[GridCell] = []
    known: dict[str, str] = {}
    for row in grid.planned():
        if row.recipe is None or row.runs_of is not None:
            continue
        recipe = _with(grid, row, load(row.recipe), row.settings)
        # Two recipes that differ in nothing but their name give the same run.
        plain = {**recipe.model_dump(mode="json"), "name": ""}
        same = known.setdefault(json.dumps([plain, row.data], sort_keys=True), row.name)
        if same != row.name:
            raise GridError(
                f"grid '{grid.name}': rows '{same}' and '{row.name}' are the same runs; give one `runs_of: {same}`"
            )
        folds = _folds(grid, row, recipe, count_folds)
        # Counted before they are made: there may be 10^12 folds.
        if len(cells) + len(grid.seeds) * len(folds) > MAX_RUNS:
            raise GridError(
                f"grid '{grid.name}': more than {MAX_RUNS} runs; take fewer values, seeds or folds"
            )
        for seed, fold in product(grid.seeds, folds):
            own = {"seed": seed} if fold is None else {"seed": seed, "data.fold": fold}
            path = f"{row_folder(grid, row)}/seed-{seed}"
            path += "" if fold is None else f"/fold-{fold:02d}"
            whole = _with(grid, row, recipe, own)
            cells.append(GridCell(row.name, seed, fold, whole, path, row.data))
    return tuple(cells)


def _with(grid: RunGrid, row: PlannedRow, recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    try:
        return with_settings(recipe, settings)
    except RecipeError as error:
        raise GridError(f"grid '{grid.name}': row '{row.name}': {error}") from None


def row_folder(grid: RunGrid, row: PlannedRow) -> str:
    """Return where a row's runs lie, below the folder of all grids."""
    return f"{grid.name}/{folder_name(row.runs_of or row.name)}"


def _folds(
    grid: RunGrid, row: PlannedRow, recipe: Recipe, count_folds: CountFolds
) -> Sequence[int | None]:
    if grid.folds is None:
        return (None,)
    if not hasattr(recipe.data, "fold"):
        raise GridError(
            f"grid '{grid.name}': row '{row.name}': its data have no folds; leave folds out"
        )
    if grid.folds != "all":
        return grid.folds
    count = getattr(recipe.data, "folds", None)
    # Leaving one person out has as many folds as there are people, whatever the recipe says.
    if getattr(recipe.data, "split", None) == "loso" or not isinstance(count, int):
        count = count_folds(recipe, row)
    return range(min(count or 0, MAX_RUNS + 1))


# --- files


def shipped_grids() -> list[str]:
    """Return the names of the grids that come with knarr."""
    names = (Path(entry.name) for entry in _SHIPPED.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def load_grid(name_or_path: str) -> RunGrid:
    """Read a shipped grid by name, or any YAML file by path; recipes are looked for beside it too.

    Raises:
        GridError: It is no grid; names the place.
        RecipeError: The name is unknown, or the file cannot be read.
    """
    if name_or_path in shipped_grids():
        text = _SHIPPED.joinpath(f"{name_or_path}.yaml").read_text("utf-8")
        return parse_grid(text, name_or_path)
    path = Path(name_or_path)
    grid = parse_grid(read_text(path, "grid", shipped_grids()), name_or_path)

    def beside(recipe: str | None) -> str | None:
        there = recipe is not None and path.parent.joinpath(recipe).is_file()
        return str(path.parent / str(recipe)) if there else recipe

    rows = [row.model_copy(update={"recipe": beside(row.recipe)}) for row in grid.rows]
    return grid.model_copy(update={"recipe": beside(grid.recipe), "rows": tuple(rows)})


def parse_grid(text: str, origin: str) -> RunGrid:
    """Read a grid from YAML text; `origin` names it in errors.

    Raises:
        GridError: It is not YAML, or no grid; names all faults.
    """
    try:
        given = read_yaml(text)
        grid = RunGrid.model_validate(given)
    except YamlError as error:
        raise GridError(f"grid '{origin}' is not YAML: {error}") from error
    except ValidationError as error:
        raise GridError(f"grid '{origin}': {faults_of(error, given, 'grid')}") from error
    grid.planned()
    return grid
