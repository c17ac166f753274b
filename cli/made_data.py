"""Generated data of a recipe: made by the first run that wants them, waited for by the others."""

from __future__ import annotations

from pathlib import Path

from knarr.cli import progress
from knarr.cli.locks import alone
from knarr.train import Recipe, system_of


def made(recipe: Recipe, cache: Path) -> Path:
    """The folder of a recipe's generated data, which are made where they are not there.

    Args:
        recipe: of generated data.
        cache: folder of all of them.

    Raises:
        RecipeError: its data are not generated.
    """
    system = system_of(recipe)
    root = cache / system.folder_name()
    cache.mkdir(parents=True, exist_ok=True)
    # Another's half-made folder looks like one of a killed process, which the generator removes.
    with alone(cache / f".{root.name}.lock"):
        if not root.is_dir():
            progress.say(f"Generating {recipe.data.kind} into {root}")
            system.generate(root, progress.counter("clips"))
    return root
