"""Carry a spiking student network from Norse to Loihi, and prove that what arrives is what left.

The stages are found when they are first asked for, so that `import knarr` is instant:
`knarr.train`, `knarr.export`, `knarr.deploy`, `knarr.hw_sim`, `knarr.pipeline`, `knarr.cli`.
"""

import sys
from importlib import import_module
from typing import Any

from knarr.errors import KnarrError
from knarr.extras import ExtrasFinder, MissingExtraError

STAGES = ("train", "export", "deploy", "hw_sim", "pipeline", "cli")

__version__: str
__all__ = ["STAGES", "KnarrError", "MissingExtraError", "__version__"]

# Behind all others, so that it is asked for what they have not found.
sys.meta_path.append(ExtrasFinder())


def __getattr__(name: str) -> Any:
    if name in STAGES:
        return import_module(f"knarr.{name}")
    if name == "__version__":
        from importlib.metadata import version  # takes longer than the rest of this file

        return version("knarr")
    raise AttributeError(f"module 'knarr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *STAGES, "__version__"]
