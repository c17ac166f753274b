"""Find and call what a user names as "package.module:function": networks, teachers, systems.

Whoever names one runs Python code: the module is imported and the function called, with the rights of
whoever started knarr. Nothing that is only data (a recipe in a run's folder, a checkpoint, a graph) is
imported without being asked for by name.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from knarr.errors import KnarrError

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "mine:student"
"""A reference as messages show it: the function `student` of mine.py."""


class FactoryError(KnarrError, ValueError):
    """A reference that cannot be followed; the text names module, attribute and cure."""


def look_up(reference: str) -> Any:
    """Import a module and return what it calls by a name; the module's code runs.

    Args:
        reference: "package.module:name". The current folder is looked in first, and stays in Python's
            path, since user code may import more when it is called.

    Returns:
        The function, class or value of that name; dots reach into classes.

    Raises:
        FactoryError: The reference is malformed, or no such module or name can be imported.
    """
    where, _, name = reference.partition(":")
    # What a shell completes to, and Python cannot import, has a cure of its own.
    if where.endswith(".py") or "/" in where or os.sep in where:
        module = where.removesuffix(".py").strip("./").replace("/", ".").replace(os.sep, ".")
        raise FactoryError(
            f"'{reference}': names a file; write the module that Python imports, '{module}:{name or 'student'}'"
        )
    if not all(part.isidentifier() for part in (*where.split("."), *name.split("."))):
        raise FactoryError(
            f"'{reference}': is no module and name; write package.module:function, such as {EXAMPLE}"
        )
    found: Any = _import(where, reference)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            known = [key for key in dir(found) if not key.startswith("_")]
            near = get_close_matches(part, known, n=1)
            cure = f"write {near[0]}" if near else "write the name of a function in it"
            raise FactoryError(
                f"'{reference}': module '{where}' has no '{name}'; {cure}"
            ) from error
    return found


def build(reference: str, *arguments: Any, **keywords: Any) -> Any:
    """Call a user's function and return what it gives.

    Args:
        reference: As `look_up` takes it.
        arguments, keywords: What the function is called with.

    Raises:
        FactoryError: It cannot be found or called, or raises something itself.
    """
    function = look_up(reference)
    if not callable(function):
        raise FactoryError(
            f"'{reference}': is a {type(function).__name__}, needs a function that makes it; write def {_last(reference)}(): return ..."
        )
    try:
        return function(*arguments, **keywords)
    # SystemExit too: a function that ends the process would end a pipeline without a word.
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"'{reference}': fails when it is called ({_what(error)}); see that python -c 'import {_first(reference)}; "
            f"{_first(reference)}.{_last(reference)}()' works"
        ) from error


def build_network(reference: str, *arguments: Any, **keywords: Any) -> nn.Module:
    """Call a user's function that makes a network.

    Args:
        reference: As `look_up` takes it.
        arguments, keywords: What the function is called with.

    Returns:
        The torch module, in the mode (train or eval) in which the function gives it.

    Raises:
        FactoryError: It cannot be made, or is no torch module.
    """
    from torch import nn  # here, so that the base install can look up what needs no torch

    network = build(reference, *arguments, **keywords)
    if not isinstance(network, nn.Module):
        raise FactoryError(
            f"'{reference}': gives {type(network).__name__}, needs a torch module; return the network"
        )
    return network


def _import(where: str, reference: str) -> ModuleType:
    folder = os.getcwd()
    # A console script has its own folder first in the path, not the one it is called from.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # A file written a moment ago, by this process, is not in the import system's listing yet.
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        # A module that the user's own module misses is another matter than that module itself.
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise FactoryError(
                f"'{reference}': module '{where}' cannot be imported ({_what(error)}); install what it imports"
            ) from error
        raise FactoryError(
            f"'{reference}': no module '{error.name}' in {folder} or installed; start knarr in the folder that holds "
            f"{error.name.split('.')[0]}.py, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"'{reference}': module '{where}' cannot be imported ({_what(error)}); see that python -c 'import {where}' works"
        ) from error
    # Python keeps what it has loaded, whatever lies in the folder: another student than the one meant.
    top = where.split(".")[0]
    mine = [path for path in (Path(folder, f"{top}.py"), Path(folder, top)) if path.exists()]
    loaded = getattr(sys.modules[top], "__file__", None)
    if mine and loaded is not None and not Path(loaded).is_relative_to(folder):
        raise FactoryError(
            f"'{reference}': Python has loaded another module '{top}' before ({loaded}); rename {mine[0].name}, or start a new process"
        )
    return module


def _what(error: BaseException) -> str:
    """Return an error in one line, with the place in the user's code where it arose."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    # The last frame outside of knarr and the import system is the user's line, or a library's below it.
    own = [frame for frame in frames if _is_users(frame.filename)]
    return f"{said}, {Path(own[-1].filename).name} line {own[-1].lineno}" if own else said


def _is_users(filename: str) -> bool:
    path = Path(filename)
    return path.is_file() and path.is_relative_to(os.getcwd()) and path != Path(__file__)


def _first(reference: str) -> str:
    return reference.partition(":")[0]


def _last(reference: str) -> str:
    return reference.partition(":")[2]
