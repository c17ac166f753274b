"""The cost of an inference as one picture: places with intervals, the same technology across 1, and
shares by layer and term.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from knarr.pipeline.energy_report.amounts import digits, interval, spelled
from knarr.pipeline.energy_report.names import short_names
from knarr.pipeline.energy_report.same_technology import over_technologies
from knarr.pipeline.pictures import SMALL

COLOURS: Final = {"student": "tab:red", "baseline": "tab:gray"}
NAMES: Final = {"student": "SNN", "baseline": "ANN"}
ROW: Final = 0.24
"""Inches of a line of text and its bar."""
FRAME: Final = 0.85
"""Inches of title, ticks and heading of a panel."""
SHOWN_PARTS: Final = 16
LONGEST: Final = 34
"""Characters of a layer's name at most."""
DECADES: Final = 6
"""Ticks of a logarithmic axis at most, so that their labels do not touch."""
Facts = dict[str, Any]


@mpl.rc_context(SMALL | {"font.size": 8})
def draw_energy(facts: Facts) -> Figure:
    """Draw the content of energy.json."""
    places = [place for place in facts["places"].values() if _drawn(place)]
    ratios = over_technologies(facts["same_technology"])
    parts = _parts(facts["why"]["shares"])
    panels: list[tuple[int, Any]] = []
    if places:
        panels.append((2 * len(places), lambda axes: _draw_places(axes, places)))
    if ratios:
        panels.append((len(ratios), lambda axes: _draw_ratios(axes, ratios)))
    if parts:
        name = facts["why"]["place"]
        panels.append((len(parts), lambda axes: _draw_parts(axes, parts, name)))
    if not panels:
        # A network alone, in one technology.
        alone = facts["same_technology"]
        panels.append((len(alone), lambda axes: _draw_alone(axes, alone)))
    heights = [ROW * rows + FRAME for rows, _ in panels]
    figure = Figure(figsize=(8.5, sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (_, draw) in zip(grid[:, 0], panels, strict=True):
        draw(axes)
    return figure


def _drawn(place: Facts) -> bool:
    """Return whether a place has an energy that a logarithmic axis has a place for."""
    return any((place[term]["nominal"] or 0) > 0 for term in ("total", "dynamic"))


def _draw_places(axes: Axes, places: Sequence[Facts]) -> None:
    labels, values = [], []
    for number, place in enumerate(places):
        colour = COLOURS[place["network"]]
        for shift, term, fill in ((-0.14, "total", colour), (0.18, "dynamic", "white")):
            _point(axes, place[term], number + shift, colour, fill)
        name = place["place"].replace("$", r"\$")
        labels.append(f"{name} ({NAMES[place['network']]}, {place['grade']})")
        known = place["total"]["nominal"] is not None
        values.append(spelled(place["total"]) if known else f"{spelled(place['dynamic'])} (hollow)")
    _rows(axes, labels, values, "Where it runs: total energy (filled) and switching alone (hollow)")
    axes.set_xlabel("one inference; lines from low to high, an open end where a bound is unknown")


def _point(axes: Axes, bounds: Facts, height: float, colour: str, fill: str) -> None:
    """Draw a nominal value with a line from low to high; an unknown end has no cap."""
    nominal = bounds["nominal"]
    if not nominal:
        return
    low, high = bounds["low"] or nominal, bounds["high"] or nominal
    axes.plot([low, high], [height, height], color=colour, linewidth=1.4, zorder=1)
    for end, known in ((low, bounds["low"]), (high, bounds["high"])):
        if known:
            axes.plot([end], [height], "|", color=colour, markersize=7, zorder=1)
    axes.plot([nominal], [height], "o", color=colour, markerfacecolor=fill, markersize=5, zorder=2)


def _draw_ratios(axes: Axes, ratios: Sequence[Facts]) -> None:
    labels, values = [], []
    for number, row in enumerate(ratios):
        _point(axes, row, number, "tab:blue", "tab:blue")
        rival = f"{row['bits']}-bit twin" if "twin" in row["against"] else row["against"]
        labels.append(f"{row['label']}, {rival}")
        bounds = interval(row) or "[?]"
        values.append(f"{digits(row['nominal'])} {bounds}")
    axes.axvline(1, color="black", linewidth=0.8)
    _rows(axes, labels, values, "Same technology: SNN / rival; left of 1 the SNN is cheaper")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("energy of the SNN / that of its rival, over technologies and published bounds")


def _draw_parts(axes: Axes, parts: Sequence[tuple[str, float]], place: str) -> None:
    shares = [share for _, share in parts]
    axes.barh(range(len(parts)), [100 * share for share in shares], color=COLOURS["student"])
    labels = [label for label, _ in parts]
    values = [f"{share:.1%}" for share in shares]
    _rows(axes, labels, values, f"Parts of the nominal energy on {place}", log=False)
    axes.set_xlabel("%")


def _draw_alone(axes: Axes, rows: Sequence[Facts]) -> None:
    for number, row in enumerate(rows):
        _point(axes, row["student"], number, COLOURS["student"], COLOURS["student"])
    labels = [f"{row['label']}, {row['profile']}" for row in rows]
    _rows(axes, labels, [spelled(row["student"]) for row in rows], "The SNN in one technology")
    axes.set_xlabel("one inference")


def _rows(
    axes: Axes, labels: Sequence[str], values: Sequence[str], title: str, *, log: bool = True
) -> None:
    """Name the rows on the left and write their values on the right, where nothing else stands."""
    places = range(len(labels))
    axes.set_yticks(places, labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, values)
    beside.tick_params(length=0)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="J"))
        axes.xaxis.set_major_locator(LogLocator(numticks=DECADES))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, loc="left")


def _parts(shares: Sequence[Facts]) -> list[tuple[str, float]]:
    """Return the largest parts by name, and the rest as one."""
    found = []
    names = short_names(dict.fromkeys(part["layer"] for part in shares if part["layer"]), LONGEST)
    for part in shares[:SHOWN_PARTS]:
        term = part["term"].replace("_", " and ")
        # A dollar sign would begin a formula.
        name = names.get(part["layer"], "whole chip").replace("$", r"\$")
        found.append((f"{name}: {term}", float(part["share"])))
    rest = shares[SHOWN_PARTS:]
    if rest:
        found.append((f"{len(rest)} smaller parts", float(sum(one["share"] for one in rest))))
    return found
