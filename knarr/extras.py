"""Name the extra of knarr that brings a package which is not installed."""

from __future__ import annotations

import re
import sys
from types import FrameType

from knarr.errors import KnarrError

_DISTRIBUTIONS = {"PIL": "pillow"}
"""Module -> package that brings it, where their names differ."""
_FITS = ("knarr.train", "knarr.pipeline.stages", "knarr.pipeline.studies")
"""Modules that need all of the extra that fits networks."""
_EXTRA = re.compile(r"(?P<package>[\w.-]+).*; *extra == ['\"](?P<extra>\w+)['\"]")


class MissingExtraError(KnarrError, ModuleNotFoundError):
    """A package that this work needs is not installed; the text says which extra brings it."""


class ExtrasFinder:
    """Turns a missing package that knarr itself imports into a `MissingExtraError`.

    It is asked last, of modules that nobody else has found, and leaves those that other packages
    look for alone: they have cures of their own.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing, and say so where knarr needed it.

        Raises:
            MissingExtraError: The module is of one of knarr's extras.
        """
        importer, *others = _importers()
        package = _DISTRIBUTIONS.get(name, name)
        if importer.startswith("knarr.") and package in _extras():
            fits = any(each.startswith(_FITS) for each in (importer, *others))
            raise MissingExtraError(cure(package, fits=fits), name=name)


def cure(package: str, *, fits: bool = False) -> str:
    """Return one line that says how to install a package.

    Args:
        package: Its name.
        fits: Whether networks are to be fitted with it.
    """
    extra = _extras().get(package)
    # Whoever trains is not to be sent for torch first and for the rest afterwards.
    if extra == "torch" and fits:
        extra = "train"
    what = package if extra is None else f"'knarr[{extra}]'"
    return f"{package} is not installed; pip install {what}"


def _importers() -> list[str]:
    """Return the names of the modules whose code imports, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    names = []
    while frame is not None:
        names.append(str(frame.f_globals.get("__name__", "")))
        frame = frame.f_back
    return [name for name in names if not name.startswith("importlib")] or [""]


def _extras() -> dict[str, str]:
    """Return the first extra that brings each package, as the installed metadata say."""
    from importlib.metadata import requires  # takes longer than the rest of this file

    found: dict[str, str] = {}
    for requirement in requires("knarr") or ():
        match = _EXTRA.fullmatch(requirement)
        if match is not None:
            found.setdefault(match["package"], match["extra"])
    return found
