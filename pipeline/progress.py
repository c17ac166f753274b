"""Progress of long work as plain events: the pipeline emits them, and whoever calls it decides what
to show.

Nothing here prints. The `knarr` command shows these events on standard error; a notebook may draw a
bar from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One event of long work: a sentence, or how many of something are done.

    Attributes:
        text: A sentence for a person, or with `total` the name of what is counted ("samples read",
            "teacher").
        done: How many are finished; None for a sentence.
        total: How many there are; None for a sentence.
        unit: What a fit counts, "epoch"; empty where `text` names what is counted.
        part: Share of the next one that is finished, 0 .. 1.
        note: What the latest finished one gave, such as its loss and accuracy.
    """

    text: str
    done: int | None = None
    total: int | None = None
    unit: str = ""
    part: float = 0.0
    note: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]
"""A function that is called with each event, in the thread that works; it should return at once."""


def ignore(event: Progress) -> None:
    """Show nothing, which is what the pipeline does unless its caller gives another function."""


def counter(on_progress: OnProgress, text: str) -> Callable[[int, int], None]:
    """Return a function to call with (done, total), as the other stages report their progress."""
    return lambda done, total: on_progress(Progress(text, done, total))
