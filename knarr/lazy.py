"""Faces of packages that import a name when it is first asked for, so that a light verb loads no
torch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_face(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__`, which imports a name as its `if TYPE_CHECKING:` says, and a
    `__dir__`, by which consoles complete the names that are not imported yet.

    The imports of that block are those that a type checker sees, so that a name and its module
    stand in one place.

    Args:
        package: Full name of the package. None of its names may be that of a module in it:
            importing the module would take its place.
    """

    @cache
    def places() -> dict[str, str]:
        spec = find_spec(package)
        source = spec.loader.get_source(package)  # type: ignore[union-attr]
        return {
            name.name: str(statement.module)
            for block in ast.parse(source).body
            if isinstance(block, ast.If)
            for statement in block.body
            if isinstance(statement, ast.ImportFrom)
            for name in statement.names
        }

    def get(name: str) -> Any:
        if name not in places():
            raise AttributeError(f"module '{package}' has no attribute {name!r}")
        value = getattr(import_module(places()[name]), name)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places()})

    return get, names
