"""Grids: many runs of recipes with settings changed, seeds and folds, read from YAML, as a list of single runs.

A grid has `rows`, one by one, or `axes`, whose combinations are rows, or both. A row's runs are all its seeds and folds. Whatever
depends on data (how many people can be left out) is asked of the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from knarr.errors import KnarrError
from knarr.pipeline.evaluation import Network
from knarr.pipeline.many.grid_rows import (
    Axes,
    Exclusion,
    Planned,
    Settings,
    Text,
    combinations,
    folder_name,
)
from knarr.pipeline.measures import RATES
from knarr.pipeline.published import Row, published
from knarr.train.recipe import load_recipe, read_text, with_settings
from knarr.train.settings import Recipe, RecipeError, YamlError, faults_of, read_yaml

MAX_RUNS: Final = 1000
_SHIPPED: Final = resources.files("knarr.pipeline").joinpath("grids")
_OF_GRID: Final = {"seed": "seeds", "data.fold": "folds"}
"""Settings that a grid gives itself, and by which of its fields."""

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
CountFolds = Callable[[Recipe, Planned], int | None]
"""(recipe, its row) -> how many folds its data have; None where nobody can say."""


class GridError(KnarrError, ValueError):
    """A grid is unknown, or holds what cannot be run."""


class _GridModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedReference(_GridModel):
    """Which published number a row stands beside."""

    table: Text
    method: Text


class GridRow(_GridModel):
    """One row.

    Args:
        name: as printed.
        recipe: shipped or a file; the grid's where None.
        set: settings of the recipe by dotted path.
        runs_of: name of the row whose runs these are, in place of its own: another network of them is looked at.
        network: whose predictions; the grid's where None.
        beside: None where nothing was published.
        data: folder below the one that the caller names; None for that one itself.
    """

    name: Text
    recipe: Text | None = None
    set: Settings = {}
    runs_of: Text | None = None
    network: Network | None = None
    beside: PublishedReference | None = None
    data: Text | None = None

    @model_validator(mode="after")
    def _own_or_other(self) -> GridRow:
        if self.runs_of is not None and (
            self.recipe is not None or self.set or self.data is not None
        ):
            raise ValueError(
                f"{self.name}: has the runs of '{self.runs_of}'; leave out recipe, set and data"
            )
        if self.data is not None and (
            Path(self.data).is_absolute() or ".." in Path(self.data).parts
        ):
            raise ValueError(
                f"{self.name}: data '{self.data}' leads elsewhere; name a folder below"
            )
        return self


class RunGrid(_GridModel):
    """Rows of runs.

    Args:
        name: of its folder. title: of its table.
        recipe: of rows that name none, and of the axes.
        network: whose predictions are measured, of rows that do not say.
        seeds: of the runs.
        folds: "all" that the data or `data.folds` of the recipe give, or their numbers from 0; None where a recipe has none.
        columns: rates to print, `Measures.of`.
        costs: print operations and energy too.
        rows: one by one.
        axes: dotted path -> values, or name of an axis -> name of a choice -> its settings; all combinations are rows.
        exclude: combinations to leave out: axis -> value or name of a choice; all that are given have to match.
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
    axes: Axes = {}
    exclude: tuple[Exclusion, ...] = ()

    @field_validator("columns")
    @classmethod
    def _rates(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            kind, _, name = column.partition("/")
            if column not in RATES and not (kind in ("recall", "group") and name):
                raise ValueError(
                    f"'{column}' is none of {', '.join(RATES)}, recall/<class>, group/<lighting>"
                )
        return columns

    @model_validator(mode="after")
    def _whole(self) -> RunGrid:
        folds = self.folds if isinstance(self.folds, tuple) else ()
        for what, values in (("seeds", self.seeds), ("folds", folds), ("columns", self.columns)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: one there twice; keep one")
        if self.axes and self.recipe is None:
            raise ValueError("axes: of no recipe; name one for the grid")
        return self

    def planned(self) -> tuple[Planned, ...]:
        """All rows, those of the axes last.

        Raises:
            GridError: a row without a recipe, twice, or that names another which is none; a published row that is none; too many.
        """
        try:
            made = combinations(self.axes, self.exclude, MAX_RUNS)
        except ValueError as error:
            raise GridError(f"grid '{self.name}': {error}") from None
        rows = [self._plan(row) for row in self.rows]
        rows += [Planned(name, self.recipe, settings, self.network) for name, settings in made]
        folders: dict[str, str] = {}
        for row in rows:
            same = folders.setdefault(folder_name(row.name).casefold(), row.name)
            if same is not row.name:
                raise GridError(
                    f"grid '{self.name}': rows '{same}' and '{row.name}' have one folder; rename one"
                )
        fitted = {row.name for row in rows if row.runs_of is None}
        for row in rows:
            for path, field in _OF_GRID.items():
                if path in row.settings:
                    raise GridError(
                        f"grid '{self.name}': row '{row.name}' sets {path}; that is what {field} are for"
                    )
            if row.runs_of is not None and row.runs_of not in fitted:
                raise GridError(
                    f"grid '{self.name}': row '{row.name}' has the runs of '{row.runs_of}', which is no row with runs"
                )
        if not rows:
            raise GridError(f"grid '{self.name}': no row; give rows or axes")
        return tuple(rows)

    def _plan(self, row: GridRow) -> Planned:
        recipe = row.recipe or self.recipe
        if recipe is None and row.runs_of is None:
            raise GridError(f"grid '{self.name}': row '{row.name}' has no recipe; name one")
        return Planned(
            row.name,
            recipe,
            row.set,
            row.network or self.network,
            row.runs_of,
            self._beside(row),
            row.data,
        )

    def _beside(self, row: GridRow) -> Row | None:
        if row.beside is None:
            return None
        try:
            return published().row(row.beside.table, row.beside.method)
        except ValueError as error:
            raise GridError(f"grid '{self.name}': row '{row.name}': {error}") from None


@dataclass(frozen=True)
class GridCell:
    """One run.

    Args:
        row: name of its row.
        seed, fold: which run of it; no fold where data have none.
        recipe: with all settings.
        folder: below the folder of all grids: "<grid>/<row>/seed-0/fold-03".
        data: folder below the one that the caller names; None for that one.
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
    count_folds: CountFolds | None = None,
    load: Callable[[str], Recipe] = load_recipe,
) -> tuple[GridCell, ...]:
    """All runs, row by row, seed by seed; the same every time.

    Args:
        grid: the rows.
        count_folds: asked where folds are "all" and depend on data: people left out one by one. Rows whose number is not known
            have no runs.
        load: gives a recipe by its name.

    Raises:
        GridError: a setting or folds that a recipe does not have, two rows of the same runs, or more than `MAX_RUNS`.
        RecipeError: an unknown recipe.
    """
    cells: list[GridCell] = []
    known: dict[str, str] = {}
    for row in grid.planned():
        if row.recipe is None or row.runs_of is not None:
            continue
        recipe = _with(grid, row, load(row.recipe), row.settings)
        settings = _settings_of(recipe, row.data)
        if same := known.get(settings):
            raise GridError(
                f"grid '{grid.name}': rows '{same}' and '{row.name}' are the same runs; give one `runs_of: {same}`"
            )
        known[settings] = row.name
        folder = row_folder(grid, row)
        folds = _folds(grid, row, recipe, count_folds)
        if len(cells) + len(grid.seeds) * len(folds) > MAX_RUNS:
            raise GridError(
                f"grid '{grid.name}': more than {MAX_RUNS} runs; take fewer values, seeds or folds"
            )
        for seed in grid.seeds:
            for fold in folds:
                own: dict[str, Any] = (
                    {"seed": seed} if fold is None else {"seed": seed, "data.fold": fold}
                )
                path = f"{folder}/seed-{seed}" + ("" if fold is None else f"/fold-{fold:02d}")
                cells.append(
                    GridCell(row.name, seed, fold, _with(grid, row, recipe, own), path, row.data)
                )
    return tuple(cells)


def _with(grid: RunGrid, row: Planned, recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    try:
        return with_settings(recipe, settings)
    except RecipeError as error:
        raise GridError(f"grid '{grid.name}': row '{row.name}': {error}") from None


def row_folder(grid: RunGrid, row: Planned) -> str:
    """Where its runs lie, below the folder of all grids."""
    return f"{grid.name}/{folder_name(row.runs_of or row.name)}"


def _folds(
    grid: RunGrid, row: Planned, recipe: Recipe, count_folds: CountFolds | None
) -> Sequence[int | None]:
    if grid.folds is None:
        return (None,)
    if not hasattr(recipe.data, "fold"):
        raise GridError(
            f"grid '{grid.name}': row '{row.name}': its data have no folds; leave folds out"
        )
    if grid.folds != "all":
        return grid.folds
    stated = getattr(recipe.data, "folds", None)
    if getattr(recipe.data, "split", None) != "loso" and isinstance(stated, int):
        count: int | None = stated
    else:
        count = None if count_folds is None else count_folds(recipe, row)
    return range(min(count or 0, MAX_RUNS + 1))


def _settings_of(recipe: Recipe, data: str | None) -> str:
    """Two recipes that differ in nothing but their name give the same run."""
    settings = recipe.model_dump(mode="json")
    return json.dumps([{**settings, "name": ""}, data], sort_keys=True)


def shipped_grids() -> list[str]:
    """Names of the grids that come with knarr."""
    names = (entry.name for entry in _SHIPPED.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_grid(name_or_path: str) -> RunGrid:
    """A shipped grid by name, or any YAML file by path.

    Raises:
        GridError: not such a grid; names the place.
        RecipeError: unknown name, or an unreadable file.
    """
    if name_or_path in shipped_grids():
        return parse_grid(
            _SHIPPED.joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
        )
    return parse_grid(read_text(Path(name_or_path), "grid", shipped_grids()), name_or_path)


def parse_grid(text: str, origin: str) -> RunGrid:
    """A grid from YAML text; `origin` names it in errors.

    Raises:
        GridError: not YAML, or not such a grid; names all faults.
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
