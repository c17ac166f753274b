"""Recipes: every setting of a run in one checked, frozen object, read from YAML.

Settings of a recipe changed by dotted path, such as student.fit.epochs, and checked again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from knarr.train.settings import (
    Recipe,
    RecipeError,
    YamlError,
    faults_of,
    in_words,
    read_yaml,
    short,
)
from knarr.train.systems.registry import SYSTEMS

MAX_RECIPE_BYTES = 100_000
RECIPES: Final = {name: system.recipe_class for name, system in SYSTEMS.items()}
"""Recipe class of each system; "cnn" where a recipe names none."""
_SHIPPED: Final = resources.files("knarr.train").joinpath("recipes")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with knarr."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _SHIPPED.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or any YAML file by path.

    Raises:
        RecipeError: unknown name, unreadable file, or a setting that does not fit; names the setting.
    """
    if name_or_path in shipped_recipes():
        return parse_recipe(
            _SHIPPED.joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
        )
    return parse_recipe(read_text(Path(name_or_path), "recipe", shipped_recipes()), name_or_path)


def read_text(path: Path, what: str, shipped: list[str]) -> str:
    """A small YAML file that a user names.

    Args:
        path: of the file.
        what: it should be, for the error: "recipe", "grid".
        shipped: names that would have done in its place.

    Raises:
        RecipeError: no file, too large, or not text.
    """
    if not path.is_file():
        raise RecipeError(
            f"{what} '{path}' is neither shipped ({', '.join(shipped)}) nor a YAML file"
        )
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(
            f"{what} '{path}': {path.stat().st_size} bytes, at most {MAX_RECIPE_BYTES}"
        )
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{what} '{path}' is not UTF-8 text") from error


def parse_recipe(text: str, origin: str) -> Recipe:
    """A recipe from YAML text; `origin` names it in errors.

    Raises:
        RecipeError: not YAML, an unknown system, or a setting that does not fit.
    """
    try:
        settings = read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"recipe '{origin}' is not YAML: {error}") from error
    return check_recipe(settings, origin)


def check_recipe(settings: Any, origin: str) -> Recipe:
    """A recipe from plain values, as YAML or `model_dump` give them.

    Raises:
        RecipeError: an unknown system, or a setting that does not fit; names all that do not.
    """
    system = settings.get("system", "cnn") if isinstance(settings, dict) else "cnn"
    if not isinstance(system, str) or system not in RECIPES:
        raise RecipeError(
            f"recipe '{origin}': system: {short(system)!r} is none of {', '.join(RECIPES)}; name one"
        )
    try:
        return RECIPES[system].model_validate(settings)
    except ValidationError as error:
        raise RecipeError(f"recipe '{origin}': {faults_of(error, settings, 'recipe')}") from error


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A recipe with some settings replaced, checked as if it had been read from a file.

    Args:
        recipe: stays as it is.
        settings: dotted path -> plain value, as YAML gives it; set in this order. A path may name a whole mapping
            (`student.fit`), which is then replaced as a whole.

    Raises:
        RecipeError: a path that the recipe does not have, which names those there are; or a value that does not fit.
    """
    plain = recipe.model_dump(mode="json")
    for path, value in settings.items():
        assert_path(recipe, path)
        _set(recipe, plain, path, value)
    return check_recipe(plain, recipe.name)


def parse_setting(text: str) -> tuple[str, Any]:
    """Path and value of `path=value` on a command line; the value is YAML, so that 3, true and [16, 32] are what they seem.

    Raises:
        RecipeError: no `=`, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"setting '{text[:100]}': write path=value, such as student.fit.epochs=3")
    if len(value) > MAX_RECIPE_BYTES:
        raise RecipeError(f"setting '{path}': {len(value)} characters, at most {MAX_RECIPE_BYTES}")
    try:
        return path.strip(), read_yaml(value)
    except YamlError as error:
        raise RecipeError(f"setting '{path}': its value is not YAML: {error}") from error


def assert_path(recipe: Recipe, path: str) -> None:
    """Make sure that a recipe has a setting, whether or not it is written out.

    Raises:
        RecipeError: it has not; names the settings there are at that level.
    """
    at: Any = recipe
    parts = path.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if isinstance(at, BaseModel) or _is_block(at):
            # Of the class, not of the dump: a recipe may leave defaults out when it is written.
            there = sorted((at if _is_block(at) else type(at)).model_fields)
        elif isinstance(at, Mapping):
            there = sorted(map(str, at))
        else:
            raise _no_mapping(recipe, path, above, at)
        if part not in there:
            level = f"at '{above}' there are" if above else "there are"
            raise RecipeError(
                f"recipe '{recipe.name}': no setting '{path}'; {level} {', '.join(there)}"
            )
        at = _below(at, part)


def _below(at: Any, part: str) -> Any:
    """A setting's value; of a block that is left out its class, so that a part of it can be set."""
    if isinstance(at, Mapping):
        return at[part]
    fields = (at if _is_block(at) else type(at)).model_fields
    value = fields[part].default if _is_block(at) else getattr(at, part)
    if value is not None:
        return value
    blocks = [kind for kind in get_args(fields[part].annotation) if _is_block(kind)]
    return blocks[0] if len(blocks) == 1 else None


def _is_block(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, BaseModel)


def fault_of(recipe: Recipe, path: str, value: Any) -> str | None:
    """Why one value does not fit a setting by itself; None where it does.

    What a recipe refuses about several settings together is not looked for: another value beside it may cure that.
    """
    plain = recipe.model_dump(mode="json")
    _set(recipe, plain, path, value)
    try:
        type(recipe).model_validate(plain)
    except ValidationError as error:
        for fault in error.errors():
            # A place has every part of the path in order, with the names of alternatives ("eyes") between them.
            place = iter(map(str, fault["loc"]))
            if all(part in place for part in path.split(".")):
                return in_words(fault)
    return None


def _set(recipe: Recipe, plain: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    target: Any = plain
    for at, part in enumerate(above):
        if target.get(part, 0) is None:
            target[part] = {}  # a block that was left out
        target = target.get(part)
        if not isinstance(target, dict):  # a path before this one put something else in its place
            raise _no_mapping(recipe, path, ".".join(above[: at + 1]), target)
    target[last] = copy.deepcopy(value)  # a path after this one may change it


def _no_mapping(recipe: Recipe, path: str, above: str, found: object) -> RecipeError:
    return RecipeError(
        f"recipe '{recipe.name}': no setting '{path}': '{above}' is {short(found)}, not a mapping of settings; "
        "set it as a whole"
    )
