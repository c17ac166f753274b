"""Settings of a recipe by dotted path: set, checked again, refused by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from knarr.pipeline.studies.grid import GridError, parse_grid
from knarr.train import Recipe, RecipeError, load_recipe
from knarr.train.recipe import assert_path, fault_of, parse_recipe, parse_setting, with_settings


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("eyes")


def test_only_what_is_named_changes(recipe: Recipe) -> None:
    before = recipe.model_dump(mode="json")
    changed = with_settings(
        recipe,
        {
            "student.fit.epochs": 3,
            "seed": 1,
            "student.channels": [4, 8],
            "deploy.allow_approximate": True,
        },
    )
    assert type(changed) is type(recipe)
    wanted = recipe.model_dump(mode="json")
    wanted["student"]["fit"]["epochs"], wanted["seed"], wanted["student"]["channels"] = 3, 1, [4, 8]
    wanted["deploy"]["allow_approximate"] = True
    assert changed.model_dump(mode="json") == wanted != before
    assert recipe.model_dump(mode="json") == before
    assert with_settings(recipe, {}) == recipe


def test_settings_that_are_not_written_out_can_be_set(recipe: Recipe) -> None:
    assert with_settings(recipe, {"student.fit.patience": 2}).student.fit.patience == 2


def test_a_mapping_is_replaced_as_a_whole_and_then_changed(recipe: Recipe) -> None:
    fit = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    changed = with_settings(recipe, {"student.fit": fit, "student.fit.batch_size": 7})
    assert (changed.student.fit.epochs, changed.student.fit.batch_size) == (1, 7)
    assert fit["batch_size"] == 2
    with pytest.raises(
        RecipeError, match=r"no setting 'student.fit.epochs': 'student.fit' is 3, not a mapping"
    ):
        with_settings(recipe, {"student.fit": 3, "student.fit.epochs": 3})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sead", r"recipe 'eyes': no setting 'sead'; there are .*seed"),
        ("", r"no setting ''; there are .*data"),
        (
            "student.fit.epoch",
            r"no setting 'student.fit.epoch'; at 'student.fit' there are .*epochs",
        ),
        ("student..epochs", r"no setting 'student..epochs'; at 'student' there are"),
        (
            "data.bin_us",
            r"no setting 'data.bin_us'; at 'data' there are .*timesteps",
        ),  # eyes have none
        (
            "student.channels.0",
            r"'student.channels' is .*, not a mapping of settings; set it as a whole",
        ),
        ("seed.x", r"'seed' is 0, not a mapping"),
        ("student.model_config", r"no setting"),
    ],
)
def test_unknown_paths_name_what_there_is(recipe: Recipe, path: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        with_settings(recipe, {path: 1})
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError):
        assert_path(recipe, path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student.fit.epochs": 0}, r"recipe 'eyes': student.fit.epochs: .*greater"),
        ({"seed": "x", "student.kd_alpha": 2}, r"seed: .*student.kd_alpha: "),
        ({"student": {}}, r"student.fit: missing; give it"),
        ({"system": "none"}, r"system: 'none' is none of"),
        (
            {"student.fit": 3},
            r"recipe 'eyes': student.fit: 3 is no mapping of settings; give them one by one",
        ),
        ({"data.size": "big"}, r"'eyes': data.size: Input should be a valid integer.*, not big$"),
        ({"seed": 2**32}, r"seed: Input should be less than 4294967296, not 4294967296"),
        ({"threads": 9999999999999}, r"threads: Input should be less than or equal to 256"),
        (
            {"student.fit.learning_rate": 1e300},
            r"learning_rate: Input should be less than or equal to 1000",
        ),
        (
            {"data.shift_px": 1000000},
            r"'eyes': data: shift_px: 1000000 > 48, the size of the images",
        ),
    ],
)
def test_values_that_do_not_fit_name_the_setting(
    recipe: Recipe, settings: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        with_settings(recipe, settings)


def test_the_fault_of_one_value_leaves_others_out(recipe: Recipe) -> None:
    assert fault_of(recipe, "student.fit.epochs", 3) is None
    assert "greater" in str(fault_of(recipe, "student.fit.epochs", 0))
    assert "valid integer" in str(
        fault_of(recipe, "data.timesteps", "many")
    )  # below the choice of a kind of data
    assert fault_of(recipe, "student.channels", [4, 8]) is None
    assert fault_of(recipe, "student.channels", [4, 0]) is not None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("student.fit.epochs=3", ("student.fit.epochs", 3)),
        ("a.b = 0.5", ("a.b", 0.5)),
        ("a=true", ("a", True)),
        ("a=[16, 32]", ("a", [16, 32])),
        ("a=x=y", ("a", "x=y")),
        ("a=", ("a", None)),
    ],
)
def test_settings_of_a_command_line(text: str, wanted: tuple[str, Any]) -> None:
    assert parse_setting(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "seed", "=3", " =3", "a=[1", "a=" + "[" * 500, "a=!!python/object:x {}", "a=2020-99-99"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_setting(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [" * 5000, "a: 2020-13-45", "seed: [", "\x00"])
def test_text_that_is_no_yaml_is_no_recipe_or_grid_either(text: str) -> None:
    for parse, error in ((parse_recipe, RecipeError), (parse_grid, GridError)):
        with pytest.raises(error, match=r"'mine' is not YAML: ") as caught:
            parse(text, "mine")
        assert "\n" not in str(caught.value)


# Each name is a list of nine of the one before: written out, it would take all memory.
BOMB = (
    "[&a [x], "
    + ", ".join(f"&{c} [{', '.join([f'*{b}'] * 9)}]" for b, c in pairwise("abcdefghijkl"))
    + "]"
)


@pytest.mark.parametrize("path", ["seed", "system", "student", "student.channels"])
def test_a_few_bytes_that_name_all_memory_are_refused_at_once(recipe: Recipe, path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_settings(recipe, dict([parse_setting(f"{path}={BOMB}")]))
    assert len(str(caught.value)) < 1000
    with pytest.raises(RecipeError, match=r"is .*\.\.\., not a mapping"):
        with_settings(
            recipe, dict([parse_setting(f"student={BOMB}"), parse_setting("student.fit.epochs=1")])
        )


def test_every_shipped_system_bounds_how_far_clips_are_moved() -> None:
    for name, message in (
        ("mskd_eyes", "shift_px: 49 > 48, the size"),
        ("nmnist", "less than or equal to 34"),
    ):
        with pytest.raises(RecipeError, match=message):
            with_settings(load_recipe(name), {"data.shift_px": 49})


def test_numbers_as_yaml_does_not_know_them_still_become_numbers(recipe: Recipe) -> None:
    path, value = parse_setting("student.fit.learning_rate=1e-3")
    assert with_settings(recipe, {path: value}).student.fit.learning_rate == 0.001
