"""What the rounds say: ratios, shares of the floor, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engines import ENGINES
from ratios import Round, Spread, ratio, seconds
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

OURS = tuple(engine.key for engine in ENGINES)
THEIRS = ("Lava", "Norse", "snnTorch", "slayer")
WIDTH = 100

Results = Mapping[str, Any]


def engines_of(rounds: Sequence[Round]) -> tuple[list[str], list[str]]:
    """Ours and theirs that have a time somewhere."""
    seen = {key for one in rounds for times in one.values() for key in times}
    return [key for key in OURS if key in seen], [key for key in THEIRS if key in seen]


def ratio_rows(rounds: Sequence[Round], title: str) -> list[tuple[str, str, Spread]]:
    """(ours, theirs, how many times faster ours is)."""
    ours, theirs = engines_of(rounds)
    found = ((one, other, ratio(rounds, title, other, one)) for one in ours for other in theirs)
    return [(one, other, spread) for one, other, spread in found if spread is not None]


def fraction(results: Results, rounds: Sequence[Round], title: str, engine: str) -> float | None:
    """Of the machine's floor, each round by its own peaks; two threads have two cores' peaks. None without a compiler."""
    cost = results["workloads"][title]
    threads = 2 if "2 threads" in engine else 1
    found = []
    for kept, times in zip(results["rounds"], rounds, strict=True):
        peaks = kept["around"].get(title, {}).get("peaks")
        if peaks and engine in times.get(title, {}):
            floor = (
                cost["synops"] / peaks["adds_per_s"]
                + cost["neuron_steps"] / peaks["neuron_steps_per_s"]
            )
            found.append(floor / threads / times[title][engine])
    return median(found) if found else None


def rows(results: Results, rounds: Sequence[Round]) -> list[list[str]]:
    """One line for each workload and engine: time, floor, ratios."""
    ours, theirs = engines_of(rounds)
    lines = []
    for title in results["workloads"]:
        for key in [*ours, *theirs]:
            time = seconds(rounds, title, key)
            if time is None:
                continue
            milli = Spread(1000 * time.median, 1000 * time.low, 1000 * time.high, time.rounds)
            at_peak = fraction(results, rounds, title, key) if key in ours else None
            cells = [title, key, str(milli), f"{at_peak:.0%}" if at_peak is not None else "-"]
            for other in ("Lava", "Norse"):
                times = ratio(rounds, title, other, key) if key in ours else None
                cells.append("-" if times is None else str(times))
            lines.append(cells)
    return lines


HEADS = ("workload", "engine", "ms per sample", "floor", "x Lava", "x Norse")


def table(results: Results, rounds: Sequence[Round]) -> Table:
    """At most `WIDTH` columns wide."""
    made = Table(
        title=escape("median [range] over the rounds"),
        width=WIDTH,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in HEADS:
        made.add_column(head, no_wrap=True)
    before = ""
    for line in rows(results, rounds):
        if before and line[0] != before:
            made.add_section()
        made.add_row(line[0] if line[0] != before else "", *map(escape, line[1:]))
        before = line[0]
    return made
