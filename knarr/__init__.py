"""Carry a spiking student network from Norse to Loihi, and prove that what arrives is what left.

The stages are found when they are first asked for, so that `import knarr` is instant:
`knarr.train`, `knarr.export`, `knarr.deploy`, `knarr.hw_sim`, `knarr.pipeline`, `knarr.cli`.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from knarr.errors import KnarrError

STAGES = ("train", "export", "deploy", "hw_sim", "pipeline", "cli")

__version__ = version("knarr")
__all__ = ["STAGES", "KnarrError", "__version__"]


def __getattr__(name: str) -> ModuleType:
    if name in STAGES:
        return import_module(f"knarr.{name}")
    raise AttributeError(f"module 'knarr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *STAGES]
