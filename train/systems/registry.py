"""The table of systems, and what is asked of a recipe's system in one call."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from knarr.factories import FactoryError, look_up
from knarr.train.errors import DataError
from knarr.train.settings import Recipe, SettingsError

if TYPE_CHECKING:
    from knarr.train.systems.base import Progress, RunData, System

SYSTEMS: Final = {
    "cnn": "Cnn",
    "mskd": "Mskd",
    "emotionkd": "EmotionKd",
    "spiking_emotions": "SpikingEmotions",
    "custom": "Custom",
}
"""`Recipe.system`, which is also the name of a module here -> its class of the system, imported
when a recipe asks for it. A new one is added here, see `knarr.train.systems`.
"""


def has_own_code(system: str) -> bool:
    """Return whether recipes of a system name Python code of the user's."""
    return system == "custom" or ":" in system


def system_class(name: str, folder: str | None = None) -> type[System[Any]]:
    """Return a class of SYSTEMS by its system's name, or a user's own as "package.module:Class".

    Args:
        name: `Recipe.system`.
        folder: Folder of the recipe, in which a user's module is looked for first.

    Raises:
        FactoryError: A user's class that cannot be imported, or is no `System` with a recipe; its
            module's code runs.
    """
    found: type[System[Any]]
    if ":" not in name:
        found = getattr(import_module(f"knarr.train.systems.{name}"), SYSTEMS[name])
        return found
    from knarr.train.systems.base import System

    found = look_up(name, beside=folder)
    if not (isinstance(found, type) and issubclass(found, System)):
        raise FactoryError(f"'{name}': is no subclass of knarr.train.System; derive it from that")
    recipe = getattr(found, "recipe_class", None)
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise FactoryError(
            f"'{name}': has no recipe_class; set it to a subclass of knarr.train.Recipe with its settings"
        )
    return found


def system_of(recipe: Recipe) -> System[Any]:
    """Return the system that a recipe describes."""
    return system_class(recipe.system, recipe.folder)(recipe)


def load_data(
    recipe: Recipe, root: Path, *, cache: Path | None = None, progress: Progress | None = None
) -> RunData:
    """Read a recipe's data; see `System.load`."""
    return system_of(recipe).load(root, cache=cache, progress=progress)


def check_networks(recipe: Recipe, data: RunData) -> None:
    """Build a recipe's networks and throw them away, before anything is written or fitted.

    Raises:
        SettingsError: Settings that make no network on these data.
    """
    from knarr.train.clips import truncate_timesteps

    system = system_of(recipe)
    try:
        teacher = system.teacher(data)
        system.student_loss(teacher)
        system.student(data)
        saved = system.new_saved_form(data)
        if recipe.chip is not None:
            truncate_timesteps(recipe, data.train)
            system.chip_loss(teacher)
            system.deployable(saved)
            system.assert_deployable(data)
    except (DataError, SettingsError):
        raise
    except ValueError as error:
        # Networks know nothing of recipes: their refusals, and torch's own, are plain ValueErrors.
        raise SettingsError(str(error)) from error
