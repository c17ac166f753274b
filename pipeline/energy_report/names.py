"""Short names of layers that tell them apart, and short reasons, for tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable

from knarr.errors import one_line

ELIDED = " .. "
SOURCE = re.compile(r" \((?:high|medium|low) confidence.*?\)(?=;|$)")
"""Source of a chip's limit, behind it; it may have brackets in it."""


def short_names(names: Iterable[str], longest: int) -> dict[str, str]:
    """Shorten names, which may be paths as ONNX has them, so that no two become alike.

    Args:
        names: All names that stand beside each other.
        longest: Characters of a short name at most, from 12.

    Returns:
        Name -> short name of printable characters.
    """
    paths = {name: [part for part in name.split("/") if part] or [""] for name in names}
    # What all of them begin with says nothing; the last part of each stays.
    least = min((len(path) for path in paths.values()), default=1)
    shared = 0
    while shared < least - 1 and len({path[shared] for path in paths.values()}) == 1:
        shared += 1
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name, path in paths.items():
        # A path alone: the module and the operation say enough.
        whole = "/".join(path[shared:] if len(paths) > 1 else path[-2:])
        short = _elided(one_line(whole, 10 * longest), longest)
        number = 2
        while short in taken:
            mark = f" #{number}"
            short = _elided(one_line(whole, 10 * longest), longest - len(mark)) + mark
            number += 1
        taken.add(short)
        found[name] = short
    return found


def short_reason(why: str) -> str:
    """Return why something is unknown without the sources of limits, which energy.json keeps."""
    return SOURCE.sub("", why)


def _elided(text: str, longest: int) -> str:
    """Leave the middle out of a text that is too long."""
    if len(text) <= longest:
        return text
    head = (longest - len(ELIDED)) // 2
    return text[:head] + ELIDED + text[len(text) - (longest - len(ELIDED) - head) :]
