"""Load weights that a user brings: `.safetensors`, or `.pt` as `torch.save(net.state_dict())` writes it.

Nothing is unpickled but tensors. What does not fit is named tensor by tensor, and nothing is
broadcast or rounded: these are somebody's trained weights, not a file that could be made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from knarr.train.settings import RecipeError

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys under which training scripts keep the weights, beside an optimiser or a number of the epoch."""
PREFIX: Final = "module."
"""`torch.nn.DataParallel` puts it before every name."""
SHOWN: Final = 5
SAVE: Final = "save it with torch.save(network.state_dict(), PATH) or safetensors.torch.save_file"


def load_user_weights(module: nn.Module, path: Path) -> None:
    """Load a user's weights into a module, and put it in eval mode.

    Args:
        module: The network, as its factory makes it.
        path: A `.safetensors` file, or any file that `torch.load(weights_only=True)` takes: a state
            dict by itself, or under one of WRAPPERS. "module." before every name is left out.

    Raises:
        RecipeError: No such file, something else in it, or tensors that are not those of the
            module; the file is never changed.
    """
    state = read_state(path)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if missing or unknown:
        said = _named("the network has", missing) + _named("the file has", unknown)
        raise RecipeError(
            f"{path}: not the weights of this network: {'; '.join(said)}; build the network as it was trained"
        )
    fitting = {name: _as(state[name], wanted[name], name, path) for name in wanted}
    module.load_state_dict(fitting)
    module.eval()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict; see `load_user_weights`.

    Raises:
        RecipeError: No such file, or something else in it.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; give the weights as .safetensors or .pt")
    if path.suffix == ".safetensors":
        try:
            return load(path.read_bytes())
        except SafetensorError as error:
            raise RecipeError(f"{path}: not a safetensors file ({error}); {SAVE}") from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    # torch's restricted unpickler raises whatever a foreign file makes it meet.
    except Exception as error:
        raise RecipeError(
            f"{path}: holds more than weights, or is no file of torch.save, and is not unpickled; {SAVE}"
        ) from error
    if isinstance(found, Mapping) and not _is_state(found):
        inner = [key for key in WRAPPERS if _is_state(found.get(key))]
        if len(inner) == 1:
            found = found[inner[0]]
    if not _is_state(found):
        kind = type(found).__name__
        if isinstance(found, Mapping):
            kind = f"keys {', '.join(map(str, list(found)[:SHOWN]))}"
        raise RecipeError(f"{path}: holds {kind}, no weights by name; {SAVE}")
    if all(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): value for name, value in found.items()}
    return dict(found)


def _is_state(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(name, str) for name in found)
        and all(isinstance(value, Tensor) for value in found.values())
    )


def _named(who: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"only {who} '{', '.join(names[:SHOWN])}'{more}"]


def _as(given: Tensor, wanted: Tensor, name: str, path: Path) -> Tensor:
    """Return a tensor in the dtype of the network's, where no value changes by that.

    Raises:
        RecipeError: Another shape, or values that the dtype does not hold.
    """
    if given.shape != wanted.shape:
        raise RecipeError(
            f"{path}: tensor '{name}' has shape {tuple(given.shape)}, the network's has {tuple(wanted.shape)}; "
            "build the network as it was trained"
        )
    cast = given.to(wanted.dtype)
    # Compared in the wider of both: float32 in a file of float64 is the same numbers.
    if not torch.equal(cast.to(given.dtype), given):
        raise RecipeError(
            f"{path}: tensor '{name}' is {given.dtype} and rounds to other values in the network's {wanted.dtype}; "
            "save it in that dtype, or build the network in the file's"
        )
    return cast
