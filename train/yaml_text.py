"""YAML that people write, read without surprises, and what does not fit in it, in words."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_FAULTS: Final = 2000
"""Characters of them that are printed."""
_MAPPINGS: Final = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_REPR: Final = reprlib.Repr()
_REPR.maxlevel = 2
_OF_THEIR_OWN: Final = ("value_error", "assertion_error")


class YamlError(ValueError):
    """A text is not YAML; its message is one line."""


def read_yaml(text: str) -> Any:
    """Plain values from YAML text.

    Raises:
        YamlError: not YAML, nested deeper than Python goes, or a date or number that is none.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise YamlError("nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # its own dates and numbers raise ValueErrors
        raise YamlError(" ".join(str(error).split())[:500]) from error


def faults_of(error: ValidationError, given: Any, whole: str) -> str:
    """All that does not fit, in one line.

    Args:
        error: of pydantic.
        given: the plain values that were checked.
        whole: what to call them where no place in them is at fault: "recipe".
    """
    found = dict.fromkeys(
        f"{_place(fault, given) or whole}: {in_words(fault)}" for fault in error.errors()
    )  # alternatives of one place may say the same
    return "; ".join(found)[:MAX_FAULTS]


def in_words(fault: ErrorDetails) -> str:
    """One fault, with what was there and what to do."""
    kind, said = fault["type"], fault["msg"]
    if kind in _OF_THEIR_OWN:
        return said.partition(", ")[2]
    if kind == "extra_forbidden":
        return "no such setting; correct its name or remove it"
    if kind == "missing":
        return "missing; give it"
    if kind in _MAPPINGS:
        return f"{short(fault['input'])} is no mapping of settings; give them one by one, as name: value or by dotted path"
    return f"{said}, not {short(fault['input'])}"


def _place(fault: ErrorDetails, given: Any) -> str:
    """Dotted path; pydantic puts names of alternatives ("eyes") between its parts."""
    return ".".join(map(str, _parts(fault, given)))


def _parts(fault: ErrorDetails, at: Any) -> Iterator[int | str]:
    for number, part in enumerate(fault["loc"], start=1):
        if part in at if isinstance(at, Mapping) else isinstance(at, list) and part in range(len(at)):
            at = at[part]
        elif fault["type"] != "missing" or number < len(fault["loc"]):
            continue
        yield part


def short(value: Any) -> str:
    """A value in some sixty characters, however much it holds: a few bytes of YAML can name a list of billions."""
    text = value if isinstance(value, str) and value.isprintable() and value else _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
