"""Weights as safetensors: nothing is unpickled, and only a state that fits is loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from knarr.train.fit_files import write_atomic
from knarr.train.settings import RecipeError


def save_weights(module: nn.Module, path: Path) -> None:
    """A module's state as safetensors, written whole or not at all."""
    write_atomic(path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state of exactly this module's names, shapes and dtypes; leaves the module in eval mode.

    Raises:
        RecipeError: the file is not safetensors or holds something else.
    """
    try:
        state = load(path.read_bytes())
    except SafetensorError as error:
        raise RecipeError(f"{path}: not a safetensors file ({error}); remove it and train again") from error
    wanted = module.state_dict()
    for name in sorted(set(state) | set(wanted)):
        ours, theirs = wanted.get(name), state.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise RecipeError(
                f"{path}: tensor '{name}' does not fit the recipe's network; remove the file and train again"
            )
    module.load_state_dict(state)
    module.eval()
