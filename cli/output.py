"""Output for a person: text and tables in 100 columns, and progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from knarr.ranks import rank

if TYPE_CHECKING:
    from knarr.pipeline import Progress

WIDTH = 100
LINE_EVERY_S = 15.0
"""Seconds between two lines about the same work in a log."""
REDRAW_EVERY_S = 0.1
TITLED: Final[dict[str, Any]] = {
    "box": box.SIMPLE_HEAD,
    "title_justify": "left",
    "title_style": "bold",
}
"""Options of tables whose title is a heading."""


def show(what: object, *, soft_wrap: bool = False, width: int = WIDTH) -> None:
    """Print text or a table in a terminal's own width where it is narrow, in 100 columns otherwise.

    Args:
        what: Anything that rich prints; brackets in text are no markup.
        soft_wrap: Leave a long line whole, so that it can be copied.
        width: Columns to fill at most.
    """
    console = Console(highlight=False, markup=False)
    # Nothing is wider, not even on a wide terminal: tables are read, and compared in logs.
    if not console.is_terminal or console.width > width:
        console.width = width
    console.print(what, soft_wrap=soft_wrap)


def show_indented(lines: Iterable[object], *, width: int = WIDTH) -> None:
    """Print lines that may be folded, two columns to the right, in at most `width` columns."""
    # A layer's name may look like markup, so it is passed as text.
    for line in lines:
        show(Padding(Text(str(line)), (0, 0, 0, 2)), width=width)


def make_table(
    title: str, *headings: str, left: int = 1, fold: Collection[str] = (), **style: Any
) -> Table:
    """Return an empty table.

    Args:
        title: Title above it.
        headings: Headings of the columns.
        left: Number of columns, from the first on, that are text; the others are numbers.
        fold: Headings of the columns that are folded where they do not fit, not cut.
        style: Options of rich's `Table`.
    """
    table = Table(title=title, **style)
    for number, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="left" if number < left else "right",
            overflow="fold" if heading in fold else "ellipsis",
        )
    return table


class ProgressPrinter:
    """Shows progress on standard error: bars on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self.console = Console(stderr=True)
        self.bar: ProgressBar | None = None
        self.text, self.done, self.shown_s = "", 0, 0.0

    def __call__(self, event: Progress) -> None:
        """Show an event, unless one like it was shown a moment ago."""
        if rank() > 0:
            return  # rank 0 speaks for all processes that torchrun has started
        if event.done is None or event.total is None:
            self.close()
            self.console.print(event.text, highlight=False, markup=False, soft_wrap=True)
            return
        if event.text != self.text or event.done < self.done:
            self.shown_s = 0.0  # the first of a new count is shown at once
        # So that the next event can be told from the first one of a new count.
        self.text, self.done = event.text, event.done
        if self.console.is_terminal and event.unit:
            self._draw_bar(event, event.done, event.total)
        elif self.console.is_terminal:
            self._draw_count(event.text, event.done, event.total)
        elif not event.part:
            self._print_line(event)

    def close(self) -> None:
        """Leave a bar that is being drawn as it is, and write below it."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _is_due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now - self.shown_s < every_s:
            return False
        self.shown_s = now
        return True

    def _print_line(self, event: Progress) -> None:
        # The last epoch's line says how the fit ended, so it is never left out.
        ended = bool(event.note) and event.done == event.total
        if self._is_due(LINE_EVERY_S) or ended:
            unit = f"{event.unit} " if event.unit else ""
            note = f", {event.note}" if event.note else ""
            line = f"  {event.text}: {unit}{event.done}/{event.total}{note}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _draw_count(self, text: str, done: int, total: int) -> None:
        if self._is_due(REDRAW_EVERY_S) or done == total:
            # Over the line before it; the last one stays.
            # Not through rich, which would end the line.
            sys.stderr.write(f"\r  {text}: {done}/{total}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    def _draw_bar(self, event: Progress, done: int, total: int) -> None:
        if self.bar is None:
            columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self.bar = ProgressBar(text, *columns, note, console=self.console)
            self.bar.add_task("", note="")
            self.bar.start()
        self.bar.update(
            self.bar.task_ids[0],
            description=f"  {event.text}: {event.unit} {done}/{total}",
            completed=done + event.part,
            total=total,
            note=event.note,
        )
        if done == total:
            self.close()


show_progress = ProgressPrinter()
