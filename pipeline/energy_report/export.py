"""Tables of an energy report for papers: CSV with every number, LaTeX with those of the page.

Names of counts are NeuroBench's where it has one (`knarr.pipeline.energy_report.footprint`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from knarr.pipeline.energy_report.amounts import amount, digits, interval, prefix_of

Facts = dict[str, Any]
TERMS: Final = {
    "dynamic": "dynamic",
    "static": "static",
    "input_output": "I/O",
    "total": "total",
    "latency": "latency",
    "energy_delay_product": "EDP",
}
"""Terms of a place -> heading, in the order of the page."""
HEADINGS: Final = (
    "table",
    "network",
    "where",
    "quantity",
    "low",
    "nominal",
    "high",
    "unit",
    "note",
)
SPECIAL: Final = str.maketrans(
    {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
)
SIDES: Final = {"student": "SNN", "baseline": "ANN"}


def csv_text(facts: Facts) -> str:
    """Return every number of the report as one row of a CSV file, whole and in SI units."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADINGS)
    writer.writerows(_rows(facts))
    return buffer.getvalue()


def _rows(facts: Facts) -> Iterator[tuple[object, ...]]:
    for name, place in facts["places"].items():
        for term in TERMS:
            note = f"grade {place['grade']}"
            yield "places", SIDES[place["network"]], name, term, *_cells(place[term]), note
    for row in facts["same_technology"]:
        where = f"{row['label']}, {row['profile']}"
        against = row["against"] or ""
        yield "same technology", "SNN", where, "energy", *_cells(row["student"]), ""
        if row["baseline"] is not None:
            yield "same technology", against, where, "energy", *_cells(row["baseline"]), ""
        if row["ratio"] is not None:
            ratio = _cells(row["ratio"])
            yield "same technology", f"SNN / {against}", where, "ratio", *ratio, row["model"]
    formula = facts["literature_formula"]
    for side in ("student", "baseline", "ratio"):
        if formula[side] is not None:
            name = SIDES.get(side, "SNN / ANN")
            yield "literature formula", name, "", side, *_cells(formula[side]), formula["label"]
    for side, name in SIDES.items():
        for key, value in (facts["counts"]["summary"][side] or {}).items():
            if value is not None and key != "partial":
                yield "counts", name, "", key, "", value, "", "", ""
    accuracy = facts["accuracy"]
    for side in ("student", "baseline", "difference"):
        if accuracy is not None and accuracy[side] is not None:
            name = SIDES.get(side, "SNN - ANN")
            yield "accuracy", name, "", accuracy["measure"], *_cells(accuracy[side]), ""


def _cells(bounds: Facts) -> tuple[object, ...]:
    values = ("" if bounds[name] is None else bounds[name] for name in ("low", "nominal", "high"))
    return *values, bounds["unit"]


def latex_text(facts: Facts) -> str:
    """Return three tables for a paper: places, the same technology, counts (package booktabs)."""
    parts = [
        f"% knarr {facts['knarr']}, schema {facts['schema']} of energy.json",
        *(f"% {sentence}" for sentence in facts["verdict"]["sentences"]),
        _places(facts["places"]),
        _same_technology(facts["same_technology"]),
        _counts(facts["counts"]["summary"]),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _places(places: Facts) -> str:
    if not places:
        return ""
    rows = [
        [
            f"{name} ({SIDES[place['network']]})",
            *(_bounds(place[term]) for term in TERMS),
            place["grade"],
        ]
        for name, place in places.items()
    ]
    return _tabular(["one inference", *TERMS.values(), "grade"], rows)


def _same_technology(rows: list[Facts]) -> str:
    shown = [
        [
            row["label"],
            row["profile"],
            row["against"],
            _bounds(row["student"]),
            _bounds(row["baseline"]),
            _bounds(row["ratio"]),
        ]
        for row in rows
        if row["ratio"] is not None
    ]
    headings = ["model", "prices", "rival", "SNN", "rival's energy", "SNN / rival"]
    return _tabular(headings, shown) if shown else ""


def _counts(summary: Facts) -> str:
    sides = {SIDES[side]: row for side, row in summary.items() if row is not None}
    keys = [key for key in sides["SNN"] if key != "partial"]
    rows = []
    for key in keys:
        values = [row[key] for row in sides.values()]
        if any(value is not None for value in values):
            shares = key.endswith(("sparsity", "share"))
            rows.append([key, *(_count(value, shares) for value in values)])
    return _tabular(["per inference", *sides], rows)


def _count(value: float | None, share: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if share else f"{value:,.0f}"


def _bounds(bounds: Facts) -> str:
    if all(bounds[name] is None for name in ("low", "nominal", "high")):
        return "?"
    prefix = prefix_of(bounds) if bounds["unit"] else ""
    shown = digits(bounds["nominal"])
    if bounds["unit"]:
        shown = amount(bounds["nominal"], bounds["unit"], prefix)
    return f"{shown} {interval(bounds, prefix)}".rstrip()


def _tabular(headings: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(cell.translate(SPECIAL) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    columns = "l" + "r" * (len(headings) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(headings)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}"
    )
