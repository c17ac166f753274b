"""Files that the stages of a run leave: JSON that stays short and may be damaged, pictures."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from knarr.files import write_atomic
from knarr.pipeline.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A list of numbers as `json.dumps` indents it. Inside a string a line break is escaped, so that no text matches.
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")


def json_text(value: object) -> str:
    """Return indented JSON with each list of numbers in one line."""
    # NaN is no JSON, and other readers refuse it.
    text = json.dumps(value, indent=2, allow_nan=False)
    return _NUMBERS.sub(
        lambda found: " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]"), text
    )


def write_json(path: Path, value: object) -> None:
    """Write `json_text` of a value, whole or not at all."""
    write_atomic(path, (json_text(value) + "\n").encode())


@contextmanager
def expecting(what: Path) -> Iterator[None]:
    """Turn a missing or misplaced value of a file that parses into an error that names the file.

    Raises:
        RunError: The file holds something else than this version writes.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{what}: does not hold what this version writes ({type(error).__name__} {error}); "
            "remove it and run `knarr pipeline` again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that one of the stages wrote.

    Raises:
        RunError: It is not there or no JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: not there yet; run `knarr pipeline` to make it") from None
    except (ValueError, IsADirectoryError) as error:
        raise RunError(
            f"{path}: not JSON ({error}); remove it and run `knarr pipeline` again"
        ) from error
    return content


PICTURES: Final = (".png", ".svg", ".pdf")
"""Endings of files that a figure is written to."""


def write_picture(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, SVG or PDF, by its ending, whole or not at all."""
    buffer = io.BytesIO()
    # Without a date, equal figures are equal files.
    ending = path.suffix.lower()
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
    figure.savefig(buffer, format=ending[1:], dpi=110, metadata=dated)
    write_atomic(path, buffer.getvalue())
