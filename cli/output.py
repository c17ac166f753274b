"""How results reach a person or a machine: a console of 100 columns, JSON that stays short, files that may be damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from knarr.hw_sim import ChipError

WIDTH = 100
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")
"""A list of numbers as `json.dumps` indents it; inside a string a line break is escaped."""


def make_console() -> Console:
    """A terminal's own width where it is narrow, 100 columns otherwise."""
    console = Console(highlight=False, markup=False)
    return (
        console
        if console.is_terminal and console.width <= WIDTH
        else Console(highlight=False, markup=False, width=WIDTH)
    )


def json_text(value: object) -> str:
    """Indented JSON with each list of numbers in one line."""
    text = json.dumps(value, indent=2, allow_nan=False)
    return _NUMBERS.sub(
        lambda found: " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]"), text
    )


@contextmanager
def expecting(what: Path) -> Iterator[None]:
    """A file that parses but holds something else is the user's to mend, not a traceback."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ChipError(
            f"{what}: does not hold what this version writes ({type(error).__name__} {error}); "
            "remove it and run `knarr pipeline` again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that one of the stages wrote.

    Raises:
        ChipError: it is not there or no JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ChipError(f"{path}: not there yet; run `knarr pipeline` to make it") from None
    except (ValueError, IsADirectoryError) as error:
        raise ChipError(f"{path}: not JSON ({error}); remove it and run `knarr pipeline` again") from error
    return content
