"""Find and call what a user names as "package.module:function": networks, teachers, systems.

Whoever names one runs Python code: the module is imported and the function called, with the rights of
whoever started knarr. Nothing that is only data (a recipe in a run's folder, a checkpoint, a graph) is
imported without being asked for by name.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from hashlib import sha256
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


_USED: set[Path] = set()
"""Folders that user code was imported from by this process."""


def look_up(reference: str, *, beside: str | Path | None = None) -> Any:
    """Import a module and return what it calls by a name; the module's code runs.

    Args:
        reference: "package.module:name".
        beside: Folder that is looked in first, such as that of a recipe; None for none. Then comes
            the current folder. Both stay in Python's path, since user code may import more when it
            is called.

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
    found: Any = _import(where, reference, _folders(beside))
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


def source_sha256(reference: str, *, beside: str | Path | None = None) -> str:
    """Return a hash of the source of what a reference names, to tell later whether it changed.

    Args:
        reference, beside: As `look_up` takes them.

    Returns:
        SHA-256 of the module's file and, where the module only passes the name on, of the file in
        which it is defined. What either of them imports is not in it.

    Raises:
        FactoryError: It cannot be found.
    """
    found = look_up(reference, beside=beside)
    # Instances have the module of their class, which need not be the user's.
    defined = getattr(found, "__module__", None) if hasattr(found, "__qualname__") else None
    digest = sha256()
    for name in dict.fromkeys((_first(reference), defined)):
        file = getattr(sys.modules.get(name or ""), "__file__", None)
        if file is not None:
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def build(
    reference: str, *arguments: Any, beside: str | Path | None = None, **keywords: Any
) -> Any:
    """Call a user's function and return what it gives.

    Args:
        reference, beside: As `look_up` takes them.
        arguments, keywords: What the function is called with.

    Raises:
        FactoryError: It cannot be found or called, or raises something itself.
    """
    function = look_up(reference, beside=beside)
    if not callable(function):
        raise FactoryError(
            f"'{reference}': is a {type(function).__name__}, needs a function that makes it; write def {_last(reference)}(): return ..."
        )
    try:
        return function(*arguments, **keywords)
    # SystemExit too: a function that ends the process would end a pipeline without a word.
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"'{reference}': fails when it is called ({_what(error, _folders(beside))}); see that python -c 'import {_first(reference)}; "
            f"{_first(reference)}.{_last(reference)}()' works"
        ) from error


def build_network(
    reference: str,
    offered: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    *,
    beside: str | Path | None = None,
) -> nn.Module:
    """Call a user's function that makes a network.

    Args:
        reference, beside: As `look_up` takes them.
        offered: What the function may ask for by the name of a parameter.
        arguments: What the user gives it.

    Returns:
        The torch module, in the mode (train or eval) in which the function gives it.

    Raises:
        FactoryError: It cannot be made, or is no torch module; arguments that it does not take, or
            asks for and nobody gives.
    """
    from torch import nn  # here, so that the base install can look up what needs no torch

    function, arguments = look_up(reference, beside=beside), arguments or {}
    asked = _parameters(function)
    takes_all = any(one.kind is one.VAR_KEYWORD for one in asked.values())
    unknown = [name for name in arguments if name not in asked and not takes_all]
    if unknown:
        raise FactoryError(
            f"'{reference}': takes no {', '.join(unknown)}; it takes {', '.join(asked) or 'none'}"
        )
    given = {name: value for name, value in offered.items() if name in asked} | {**arguments}
    needed = [
        name
        for name, one in asked.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in given]
    if missing:
        raise FactoryError(
            f"'{reference}': needs {', '.join(missing)}, offered are {', '.join(offered)}; give a default, or in a recipe a "
            "value under arguments"
        )
    network = build(reference, beside=beside, **given)
    if not isinstance(network, nn.Module):
        raise FactoryError(
            f"'{reference}': gives {type(network).__name__}, needs a torch module; return the network"
        )
    return network


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # no function, or one that is not written in Python
        return {}


def _folders(beside: str | Path | None) -> list[Path]:
    """Return the folders that user code is looked for in, the first one first."""
    here = [Path(os.getcwd())]
    return (
        here
        if beside is None or Path(beside).resolve() == here[0]
        else [Path(beside).resolve(), *here]
    )


def _import(where: str, reference: str, folders: list[Path]) -> ModuleType:
    # A console script has its own folder first in the path, not the one it is called from.
    for folder in reversed(folders):
        if str(folder) not in sys.path or len(folders) > 1:
            sys.path[:] = [str(folder), *(path for path in sys.path if path != str(folder))]
    _forget_others(folders)
    _USED.update(folders)
    # A file written a moment ago, by this process, is not in the import system's listing yet.
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        # A module that the user's own module misses is another matter than that module itself.
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise FactoryError(
                f"'{reference}': module '{where}' cannot be imported ({_what(error, folders)}); install what it imports"
            ) from error
        raise FactoryError(
            f"'{reference}': no module '{error.name}' in {' or '.join(map(str, folders))}, or installed; "
            f"{_put(folders)} {error.name.split('.')[0]}.py, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise FactoryError(
            f"'{reference}': module '{where}' cannot be imported ({_what(error, folders)}); see that python -c 'import {where}' works"
        ) from error
    # Python keeps what it has loaded, whatever lies in the folder: another student than the one meant.
    top = where.split(".")[0]
    places = [path for folder in folders for path in (folder / f"{top}.py", folder / top)]
    mine = [path for path in places if path.exists()]
    loaded = getattr(sys.modules[top], "__file__", None)
    if mine and loaded is not None and not Path(loaded).is_relative_to(mine[0].parent):
        raise FactoryError(
            f"'{reference}': Python has loaded another module '{top}' before ({loaded}); rename {mine[0].name}, or start a new process"
        )
    return module


def _forget_others(folders: list[Path]) -> None:
    """Drop modules of other folders' user code that has the names of files here: two recipes in one
    process may both have a mine.py.
    """
    # Text, and not paths: thousands of modules may be loaded.
    others = tuple(f"{folder}{os.sep}" for folder in _USED - set(folders))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if not file.startswith(others):
            continue
        top = name.split(".")[0]
        near = [one for one in folders if (one / f"{top}.py").exists() or (one / top).exists()]
        if near and not Path(file).is_relative_to(near[0]):
            del sys.modules[name]


def _put(folders: list[Path]) -> str:
    return "start knarr in the folder that holds" if len(folders) == 1 else "put there"


def _what(error: BaseException, folders: list[Path]) -> str:
    """Return an error in one line, with the place in the user's code where it arose."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    # The last frame outside of knarr and the import system is the user's line, or a library's below it.
    own = [frame for frame in frames if _is_users(frame.filename, folders)]
    return f"{said}, {Path(own[-1].filename).name} line {own[-1].lineno}" if own else said


def _is_users(filename: str, folders: list[Path]) -> bool:
    path = Path(filename)
    inside = any(path.is_relative_to(folder) for folder in folders)
    return path.is_file() and inside and path != Path(__file__)


def _first(reference: str) -> str:
    return reference.partition(":")[0]


def _last(reference: str) -> str:
    return reference.partition(":")[2]
