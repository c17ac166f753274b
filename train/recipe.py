"""Recipes: all settings of a run in one frozen object, read from YAML, changed by dotted path."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from knarr.factories import FactoryError
from knarr.train.settings import (
    Recipe,
    RecipeError,
    YamlError,
    faults_of,
    in_words,
    read_yaml,
    short,
)
from knarr.train.systems.registry import SYSTEMS, has_own_code, system_class

# Far above any recipe, and small enough to be parsed at once whatever the file holds.
MAX_RECIPE_BYTES = 100_000
_SHIPPED: Final = resources.files("knarr.train").joinpath("recipes")


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with knarr, sorted."""
    files = [entry.name for entry in _SHIPPED.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name, or any YAML file by path.

    Raises:
        RecipeError: Unknown name, unreadable file, or a setting that does not fit, which is named.
    """
    if name_or_path in shipped_recipes():
        return parse_recipe(
            _SHIPPED.joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
        )
    path = Path(name_or_path)
    return parse_recipe(read_text(path, "recipe", shipped_recipes()), name_or_path, path.parent)


def read_text(path: Path, what: str, shipped: list[str]) -> str:
    """Read a small YAML file that a user names.

    Args:
        path: The file.
        what: What it should be, for the error: "recipe", "grid".
        shipped: Names that would have done in its place.

    Raises:
        RecipeError: No file, too large, or not text.
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
        # Some editors begin a UTF-8 file with a byte-order mark, which YAML would take for text.
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{what} '{path}' is not UTF-8 text") from error


def parse_recipe(text: str, origin: str, folder: Path | None = None) -> Recipe:
    """Read a recipe from YAML text; `origin` names it in errors, `folder` is that of its file.

    Raises:
        RecipeError: Not YAML, an unknown system, or a setting that does not fit.
    """
    try:
        settings = read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"recipe '{origin}' is not YAML: {error}") from error
    return check_recipe(settings, origin, folder)


def check_recipe(settings: Any, origin: str, folder: Path | None = None) -> Recipe:
    """Make a recipe from plain values, as YAML gives them.

    Args:
        settings: The values.
        origin: What errors call the recipe.
        folder: Folder of its file, in which a recipe with own code finds it; None for the current
            one.

    Raises:
        RecipeError: An unknown system, or settings that do not fit, all of which are named.
    """
    # What is no mapping at all is refused below, by the class of the default system.
    system = settings.get("system", "cnn") if isinstance(settings, dict) else "cnn"
    if not isinstance(system, str) or not (system in SYSTEMS or ":" in system):
        raise RecipeError(
            f"recipe '{origin}': system: {short(system)!r} is none of {', '.join(SYSTEMS)}; name one, or a class of "
            "your own as package.module:Class"
        )
    if has_own_code(system) and settings.get("folder") is None:
        settings = {**settings, "folder": str((folder or Path()).resolve())}
    try:
        own = system_class(system, settings["folder"]) if ":" in system else system_class(system)
        return own.recipe_class.model_validate(settings)
    except FactoryError as error:
        raise RecipeError(f"recipe '{origin}': system: {error}") from error
    except ValidationError as error:
        raise RecipeError(f"recipe '{origin}': {faults_of(error, settings, 'recipe')}") from error


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some settings replaced, checked as if it had been read from a file.

    Args:
        recipe: Stays as it is.
        settings: Dotted path -> plain value, as YAML gives it; set in this order. A path may name a
            whole mapping (`student.fit`), which is then replaced as a whole.

    Raises:
        RecipeError: A path that the recipe does not have, or a value that does not fit.
    """
    plain = recipe.model_dump(mode="json")
    for path, value in settings.items():
        assert_path(recipe, path)
        _set(recipe, plain, path, value)
    return check_recipe(plain, recipe.name)


def parse_setting(text: str) -> tuple[str, Any]:
    """Return path and value of `path=value` on a command line; the value is YAML, so that 3, true
    and [16, 32] are what they seem.

    Raises:
        RecipeError: No `=`, or a value that is not YAML.
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
        RecipeError: It has not; names the settings there are at that level.
    """
    at: Any = recipe
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if at is None:
            return  # a block that is left out; what is set in it is checked with its value
        above = ".".join(parts[:depth])
        if not isinstance(at, (BaseModel, Mapping)):
            raise _no_mapping(recipe, path, above, at)
        # A recipe may leave settings out when it is written, so its class says what there is.
        names = sorted(type(at).model_fields if isinstance(at, BaseModel) else map(str, at))
        if part not in names:
            if isinstance(at, Mapping) and depth == len(parts) - 1:
                return  # a mapping of any names, such as the arguments of a user's function
            level = f"at '{above}' there are" if above else "there are"
            raise RecipeError(
                f"recipe '{recipe.name}': no setting '{path}'; {level} {', '.join(names)}"
            )
        at = at[part] if isinstance(at, Mapping) else getattr(at, part)


def fault_of(recipe: Recipe, path: str, value: Any) -> str | None:
    """Return why one value does not fit a setting by itself; None where it does.

    What a recipe refuses about several settings together is not looked for: another value beside it
    may cure that.
    """
    plain = recipe.model_dump(mode="json")
    _set(recipe, plain, path, value)
    try:
        type(recipe).model_validate(plain)
    except ValidationError as error:
        for fault in error.errors():
            # A place has every part of the path in order, with the names of alternatives ("eyes")
            # between them. Each `in` goes on from where the one before has stopped.
            place = iter(map(str, fault["loc"]))
            if all(part in place for part in path.split(".")):
                return in_words(fault)
    return None


def _set(recipe: Recipe, plain: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    target: Any = plain
    for depth, part in enumerate(above, start=1):
        if target.get(part, 0) is None:
            target[part] = {}  # a block that was left out
        target = target.get(part)
        if not isinstance(target, dict):  # a path before this one put something else in its place
            raise _no_mapping(recipe, path, ".".join(above[:depth]), target)
    target[last] = copy.deepcopy(value)  # a path after this one may change it


def _no_mapping(recipe: Recipe, path: str, above: str, found: object) -> RecipeError:
    return RecipeError(
        f"recipe '{recipe.name}': no setting '{path}': '{above}' is {short(found)}, not a mapping of settings; "
        "set it as a whole"
    )
