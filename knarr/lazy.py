"""Faces of packages that import a name when it is first asked for, so that a light verb loads no
torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_face(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package.

    Args:
        package: Full name of the package.
        names: Module below it -> the names that come from there, with spaces between. No name may
            be that of a module: importing the module would take its place.
    """
    places = {name: module for module, line in names.items() for name in line.split()}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return get
