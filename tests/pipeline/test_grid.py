"""Grids: which runs they are, the same every time, and what becomes of finished ones: means, intervals, nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats
from test_evaluation_file import evaluation

from knarr.pipeline.evaluation import RunEvaluation, pool
from knarr.pipeline.measures import measure, t_interval
from knarr.pipeline.studies.grid import (
    MAX_RUNS,
    GridError,
    RunGrid,
    expand,
    load_grid,
    parse_grid,
    shipped_grids,
)
from knarr.pipeline.studies.tables import GridTable, RowSummary, summarise
from knarr.train import recipe as recipe_module
from knarr.train.recipe import load_recipe, shipped_recipes
from knarr.train.settings import DataSettings, Fit, Fitted, Recipe, RecipeError

ROWS = """
name: small
title: two rows
recipe: eyes
seeds: [0, 1]
rows:
  - {name: "as it is"}
  - {name: "alpha 0, a/b", set: {student.kd_alpha: 0.0}, beside: {table: see, method: E4-S3}}
  - {name: its teacher, runs_of: as it is, network: teacher}
"""
AXES = """
name: crossed
title: axes
recipe: eyes
axes:
  loss: {labels: {student.kd_alpha: 0}, taught: {}}
  student.first_padding: [0, 1]
  student.kd_temperature: [1, 3.0]
exclude: [{loss: labels, student.kd_temperature: 1}]
"""


class FoldData(DataSettings):
    kind: Literal["folded"] = "folded"
    validation_fraction: float = 0.1
    split: Literal["loso", "kfold_trial"] = "loso"
    folds: int = 3
    fold: int = 0


class FoldRecipe(Recipe):
    system: Literal["folded"] = "folded"
    data: FoldData = FoldData()
    teacher: Fitted = Fitted(fit=Fit(epochs=1, batch_size=1, learning_rate=1))
    student: Fitted = Fitted(fit=Fit(epochs=1, batch_size=1, learning_rate=1))


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """Recipes with folds, by any name."""
    monkeypatch.setitem(recipe_module.SYSTEMS, "folded", "Folded")
    shipped = recipe_module.system_class
    monkeypatch.setattr(
        recipe_module,
        "system_class",
        lambda name: (
            SimpleNamespace(recipe_class=FoldRecipe) if name == "folded" else shipped(name)
        ),
    )
    return lambda name: FoldRecipe(name=name)


def test_rows_seeds_and_folders() -> None:
    grid = parse_grid(ROWS, "small")
    cells = expand(grid)
    assert cells == expand(parse_grid(ROWS, "small"))
    assert [cell.folder for cell in cells] == [
        f"small/{row}/seed-{seed}" for row in ("as-it-is", "alpha-0-a-b") for seed in (0, 1)
    ]
    assert [cell.recipe.seed for cell in cells] == [0, 1, 0, 1]
    plain = load_recipe("eyes").model_dump()
    assert cells[0].recipe.model_dump() == plain
    plain["student"]["kd_alpha"] = 0
    assert cells[3].recipe.model_dump() == plain | {"seed": 1}


def test_axes_are_all_combinations_but_those_excluded() -> None:
    grid = parse_grid(AXES, "crossed")
    names = [row.name for row in grid.planned()]
    assert names == [
        "labels, first_padding 0, kd_temperature 3.0",
        "labels, first_padding 1, kd_temperature 3.0",
        "taught, first_padding 0, kd_temperature 1",
        "taught, first_padding 0, kd_temperature 3.0",
        "taught, first_padding 1, kd_temperature 1",
        "taught, first_padding 1, kd_temperature 3.0",
    ]
    cells = expand(grid)
    assert cells[1].folder == "crossed/labels-first_padding-1-kd_temperature-3.0/seed-0"
    found = [(c.recipe.student.kd_alpha, c.recipe.student.kd_temperature) for c in cells]  # type: ignore[attr-defined]
    assert found == [(0, 3), (0, 3), (0.5, 1), (0.5, 3), (0.5, 1), (0.5, 3)]


FOLDED = """
name: folds
title: folds
recipe: any
folds: all
rows:
  - {name: people}
  - {name: trials, set: {data.split: kfold_trial}, data: below}
"""


def test_folds_come_from_the_recipe_or_from_the_data(folded: Callable[[str], Recipe]) -> None:
    grid = parse_grid(FOLDED, "folds")
    asked = []

    def count(recipe: Recipe, row: Any) -> int:
        asked.append((recipe.data.split, row.name))  # type: ignore[attr-defined]
        return 11

    cells = expand(grid, count_folds=count, load=folded)
    assert asked == [("loso", "people")]
    assert [cell.folder for cell in cells][9:13] == [
        "folds/people/seed-0/fold-09",
        "folds/people/seed-0/fold-10",
        "folds/trials/seed-0/fold-00",
        "folds/trials/seed-0/fold-01",
    ]
    assert [cell.recipe.data.fold for cell in cells] == [*range(11), 0, 1, 2]  # type: ignore[attr-defined]
    assert {cell.data for cell in cells} == {None, "below"}
    unknown = expand(grid, load=folded)
    assert {cell.row for cell in unknown} == {"trials"}  # nobody knows how many people there are
    two = expand(parse_grid(FOLDED.replace("all", "[0, 2]"), "folds"), load=folded)
    assert [cell.fold for cell in two] == [0, 2, 0, 2]
    with pytest.raises(
        GridError, match=f"more than {MAX_RUNS} runs; take fewer values, seeds or folds"
    ):
        expand(grid, count_folds=lambda *_: 10**12, load=folded)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- {name: \"as it is\"}", "- {name: as it is}\n  - {name: as it is}", "have one folder; rename one"),
        ("- {name: \"as it is\"}", "- {name: 'As it: is'}\n  - {name: 'as IT is'}", "have one folder; rename one"),
        ("set: {student.kd_alpha: 0.0}, ", "", "rows 'as it is' and 'alpha 0, a/b' are the same runs; give one"),
        ("student.kd_alpha", "student.alpha", "row 'alpha 0, a/b': .* 'student.alpha'"),
        ("student.kd_alpha: 0.0", "student.kd_alpha: 7", "row 'alpha 0, a/b': .*less than or equal to 1"),
        ("student.kd_alpha: 0.0", "seed: 4", "sets seed; that is what seeds are for"),
        ("student.kd_alpha: 0.0", "data.fold: 4", "sets data.fold; that is what folds are for"),
        ("recipe: eyes\n", "", "row 'as it is' has no recipe; name one"),
        ("runs_of: as it is", "runs_of: as it was", "'as it was', which is no row with runs"),
        ("runs_of: as it is", "runs_of: its teacher", "'its teacher', which is no row with runs"),
        ("runs_of: as it is", "runs_of: as it is, data: x", "leave out recipe, set and data"),
        ("method: E4-S3", "method: E5-S5", "method: 'E5-S5' is none of"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: a value stands twice; keep one"),
        ("seeds: [0, 1]", "seeds: []", "seeds: Tuple should have at least 1"),
        ("seeds: [0, 1]", "seeds: [true]", "seeds.0"),
        ("seeds: [0, 1]", f"seeds: {list(range(600))}", f"more than {MAX_RUNS} runs"),
        ("seeds: [0, 1]", "folds: all", "its data have no folds; leave folds out"),
        ("seeds: [0, 1]", "columns: [f2]", "'f2' is none of war, uar"),
        ("seeds: [0, 1]", "columns: [recall]", "'recall' is none of war, uar"),
        ("student.kd_alpha: 0.0", "teacher: {fit: {epochs: {a: 1}}}", "set.teacher: nested too deep; set what"),
        ("name: small", "name: ../small", "name: String should match"),
        ("set: {", "data: ../up, set: {", "data '../up' leads elsewhere"),
        ("set: {", "sit: {", "rows.1.sit: no such setting"),
        ("title: two rows", "title: [", "not YAML"),
        ("title: two rows", 'title: "\\e[2J"', "title: String should match"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be_run(old: str, new: str, message: str) -> None:
    assert old in ROWS
    with pytest.raises(GridError, match=message):
        expand(parse_grid(ROWS.replace(old, new), "small"))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            "axes: {student.kd_alpha: [1, 1.0]}",
            "rows 'kd_alpha 1' and 'kd_alpha 1.0' are the same runs",
        ),
        ("axes: {student.kd_alpha: [0.5, 0.5]}", "a value twice among kd_alpha 0.5, kd_alpha 0.5"),
        ("axes: {student.kd_alpha: []}", "axes.student.kd_alpha"),
        (
            f"axes: {{a: {list(range(99))}, b: {list(range(99))}}}",
            "9801 combinations > 1000; take fewer values",
        ),
        ("axes: {a: {x: {seed: 1}}}", "sets seed; that is what seeds are for"),
        (
            "axes: {student.kd_alpha: [0], b: {x: {student.kd_alpha: 1}}}",
            "student.kd_alpha on two of them",
        ),
        (
            "axes: {student.kd_alpha: [0, 1]}\nexclude: [{student.kd_alpha: 2}]",
            "'student.kd_alpha' has no '2'",
        ),
        (
            "axes: {student.kd_alpha: [0]}\nexclude: [{student.kd_alpha: 0}]",
            "no row; give rows or axes",
        ),
        ("axes: {student.kd_alpha: [.nan]}", "axes.student.kd_alpha"),
        ("", "no row; give rows or axes"),
    ],
)
def test_axes_that_cannot_be_crossed(axes: str, message: str) -> None:
    with pytest.raises(GridError, match=message):
        expand(parse_grid(f"name: g\ntitle: t\nrecipe: eyes\n{axes}\n", "g"))


def test_files_that_are_no_grid(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match=r"grid 'nobody' is neither shipped .*seen_rows"):
        load_grid("nobody")
    path = tmp_path / "g.yaml"
    path.write_text(ROWS)
    assert load_grid(str(path)) == parse_grid(ROWS, "small")
    path.write_text(ROWS.replace("recipe: eyes", "recipe: nobody"))
    with pytest.raises(RecipeError, match="recipe 'nobody' is neither shipped"):
        expand(load_grid(str(path)))
    path.write_text("")
    with pytest.raises(GridError, match=r"grid: .* is no mapping"):
        load_grid(str(path))


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_grids(name: str) -> None:
    """Each is whole, and so is each of its runs."""
    grid = load_grid(name)
    assert grid.name == name
    rows = grid.planned()
    assert {row.recipe for row in rows if row.recipe is not None} <= set(shipped_recipes())
    cells = expand(grid, count_folds=lambda *_: 3)
    assert {cell.row for cell in cells} == {row.name for row in rows if row.runs_of is None}


def test_every_system_has_a_grid_of_published_rows() -> None:
    published = {
        row.beside.table.name
        for name in shipped_grids()
        for row in load_grid(name).planned()
        if row.beside
    }
    assert published >= {
        "see", "mskd_see", "deap_arousal", "deap_valence", "hci_arousal", "hci_valence", "spiking_emotions_table_1",
    }  # fmt: skip
    assert len(load_grid("spiking_emotions_table1").rows) == 8
    assert len(load_grid("mskd_ablation").planned()) == 4 * 3 * 2 + 2


def summary(grid: RunGrid, found: dict[str, RunEvaluation], **more: Any) -> GridTable:
    return summarise(grid, [(cell, found.get(cell.folder)) for cell in expand(grid, **more)])


def rows(table: GridTable) -> dict[str, RowSummary]:
    return {row.name: row for row in table.rows}


def test_seeds_are_averaged_and_people_drawn_for_all_of_them() -> None:
    grid = parse_grid(ROWS, "small")
    runs = [evaluation(fold_count=1), evaluation(fold_count=1)]
    shuffled = np.random.default_rng(5).permutation(10)
    guesses = np.random.default_rng(1).integers(0, 3, (3, 10))
    other = runs[1]
    runs[1] = evaluation(
        fold_count=1,
        names=tuple(other.names[n] for n in shuffled),
        labels=other.labels[shuffled],
        subjects=tuple((other.subjects or ())[n] for n in shuffled),
        lights=tuple((other.lights or ())[n] for n in shuffled),
        predicted={"student": guesses[:, shuffled]},
    )
    table = summary(grid, {f"small/as-it-is/seed-{n}": run for n, run in enumerate(runs)})
    row = rows(table)["as it is"]
    assert (row.finished, row.wanted, row.seeds, row.partial) == (2, 2, (0, 1), False)
    values = [run.measures["student"].war.value for run in runs]
    rate = row.rates["war"]
    assert rate is not None
    assert rate.value == np.mean(values)
    assert rate.over_seeds == t_interval(values)
    assert rate.over_folds is None
    # All passes of both seeds at once, in one order of samples.
    joined = np.concatenate([runs[0].predicted["student"], guesses])
    whole = measure(joined, runs[0].labels, runs[0].classes, subjects=runs[0].subjects, draws=50)
    assert rate.over_people == whole.war.bootstrap
    teacher = rows(table)["its teacher"]
    assert (teacher.finished, teacher.wanted, teacher.partial) == (
        1,
        2,
        True,
    )  # seed 1 has no teacher
    assert teacher.rates["war"].value == 1.0  # type: ignore[union-attr]
    empty = rows(table)["alpha 0, a/b"]
    assert (empty.finished, empty.wanted, empty.partial, empty.data) == (0, 2, False, None)
    assert empty.rates == {"war": None, "uar": None}
    assert empty.beside is not None
    assert [(cell.measure, cell.ours, cell.difference) for cell in empty.beside.cells] == [
        ("war", None, None),
        ("uar", None, None),
    ]


def test_other_samples_for_each_seed_have_no_interval_over_people() -> None:
    grid = parse_grid(ROWS, "small")
    renamed = evaluation(fold_count=1, names=tuple(map(str, range(10))))
    table = summary(
        grid, {"small/as-it-is/seed-0": evaluation(fold_count=1), "small/as-it-is/seed-1": renamed}
    )
    rate = rows(table)["as it is"].rates["war"]
    assert rate is not None
    assert rate.over_people is None
    assert rate.over_seeds is not None


def test_folds_are_pooled_within_a_seed(folded: Callable[[str], Recipe]) -> None:
    grid = parse_grid(FOLDED.split("  - {name: trials")[0], "folds")
    parts = [evaluation(fold, fold_count=4) for fold in range(4)]
    found = {f"folds/people/seed-0/fold-{fold:02d}": part for fold, part in enumerate(parts)}
    row = rows(summary(grid, found, count_folds=lambda *_: 4, load=folded))["people"]
    rate, whole = row.rates["war"], pool([part.only("student") for part in parts])
    assert rate is not None
    assert rate.value == whole.measures["student"].war.value
    assert rate.over_people == whole.measures["student"].war.bootstrap
    assert rate.over_seeds is None
    own = [part.measures["student"].war.value for part in parts]
    assert rate.over_folds is not None
    assert (rate.over_folds.mean, rate.over_folds.spread) == (np.mean(own), np.std(own, ddof=1))
    assert (row.finished, row.wanted, row.folds, row.fold_count, row.partial) == (4, 4, 4, 4, False)
    del found["folds/people/seed-0/fold-02"]
    row = rows(summary(grid, found, count_folds=lambda *_: 4, load=folded))["people"]
    assert (row.finished, row.wanted, row.folds, row.partial) == (3, 4, 3, True)


def test_a_seed_without_all_folds_counts_only_where_none_is_whole(
    folded: Callable[[str], Recipe],
) -> None:
    text = FOLDED.split("  - {name: trials")[0].replace("folds: all", "folds: all\nseeds: [0, 1]")
    grid = parse_grid(text, "folds")
    found = {
        f"folds/people/seed-0/fold-{fold:02d}": evaluation(fold, fold_count=2) for fold in range(2)
    }
    found["folds/people/seed-1/fold-00"] = evaluation(0, fold_count=2)
    row = rows(summary(grid, found, count_folds=lambda *_: 2, load=folded))["people"]
    assert (row.seeds, row.finished, row.wanted, row.partial) == ((0,), 3, 4, True)


def test_runs_that_do_not_belong_together() -> None:
    grid = parse_grid(ROWS, "small")
    runs = [evaluation(fold_count=1), evaluation(fold_count=1, data="SEE")]
    with pytest.raises(
        GridError, match="row 'as it is': on: 'DEAP valence' of one seed, 'SEE valence' of another"
    ):
        summary(grid, {f"small/as-it-is/seed-{n}": run for n, run in enumerate(runs)})
    runs[1] = evaluation(fold_count=1, level=0.9)
    with pytest.raises(GridError, match=r"intervals of \[0.9, 0.95\]; evaluate all runs alike"):
        summary(grid, {f"small/as-it-is/seed-{n}": run for n, run in enumerate(runs)})


def test_passes_of_one_row_are_not_mixed() -> None:
    other = evaluation(fold_count=1, predicted={"student": np.zeros((1, 10), int)})
    with pytest.raises(
        GridError, match=r"row 'as it is': passes: 3 of one seed, 1 of another; .* --windows"
    ):
        summary(
            parse_grid(ROWS, "small"),
            {"small/as-it-is/seed-0": evaluation(fold_count=1), "small/as-it-is/seed-1": other},
        )


@pytest.mark.parametrize(
    ("column", "there"),
    [("recall/hapiness", "angry, fear, neutral"), ("group/nothing", "HDR, Low")],
)
def test_columns_of_nothing_are_refused(column: str, there: str) -> None:
    grid = parse_grid(
        f"name: g\ntitle: t\nrecipe: eyes\ncolumns: [{column}]\nrows: [{{name: a}}]", "g"
    )
    assert rows(summary(grid, {}))["a"].rates == {column: None}
    with pytest.raises(GridError, match=f"column '{column}': no run has it; there are {there}"):
        summary(grid, {"g/a/seed-0": evaluation(fold_count=1)})


@pytest.mark.parametrize(
    ("values", "level"), [([0.4, 0.5, 0.7], 0.95), ([0.61, 0.6], 0.5), ([0.3] * 4, 0.9)]
)
def test_t_interval_is_scipys(values: list[float], level: float) -> None:
    found = t_interval(values, level)
    scale = stats.sem(values)
    other = (
        stats.t.interval(level, len(values) - 1, np.mean(values), scale) if scale else (0.3, 0.3)
    )
    # scipy's quantile is another algorithm: both are float64 and good to some 1e-14.
    assert (found.lo, found.hi) == pytest.approx(other, abs=1e-12)
    assert found.draws is None


def test_t_interval_stays_a_rate() -> None:
    found = t_interval([0.0, 1.0])
    assert (found.lo, found.hi) == (0.0, 1.0)
    for values in ([0.5], [0.5, 1.5], [float("nan"), 0.5]):
        with pytest.raises(ValueError, match="t interval: of"):
            t_interval(values)
    with pytest.raises(ValueError, match="level: 2"):
        t_interval([0.4, 0.5], 2)
