"""Recipes: every setting of a run in one checked, frozen object, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from knarr.train.settings import Recipe, RecipeError
from knarr.train.systems.cnn_recipe import CnnRecipe
from knarr.train.systems.emotionkd_recipe import EmotionRecipe
from knarr.train.systems.mskd_recipe import MskdRecipe
from knarr.train.systems.spiking_emotions_recipe import SpikingEmotionsRecipe
from knarr.train.yaml_text import YamlError, faults_of, read_yaml, short

MAX_RECIPE_BYTES = 100_000
RECIPES: Final[Mapping[str, type[Recipe]]] = {
    "cnn": CnnRecipe,
    "mskd": MskdRecipe,
    "emotionkd": EmotionRecipe,
    "spiking_emotions": SpikingEmotionsRecipe,
}
"""System -> its recipe; "cnn" where a recipe names none."""
_SHIPPED: Final = resources.files("knarr.train").joinpath("recipes")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with knarr."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or any YAML file by path.

    Raises:
        RecipeError: unknown name, unreadable file, or a setting that does not fit; names the setting.
    """
    if name_or_path in shipped_recipes():
        return parse_recipe(_SHIPPED.joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path)
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
        raise RecipeError(f"{what} '{path}' is neither shipped ({', '.join(shipped)}) nor a YAML file")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(f"{what} '{path}': {path.stat().st_size} bytes, at most {MAX_RECIPE_BYTES}")
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
