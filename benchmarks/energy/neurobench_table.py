"""The comparison as text, 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from neurobench_cases import CASES
from neurobench_compare import POLICIES, Ours, Row, rows
from neurobench_neurons import compared

WIDTH = 100
COLUMNS = ("acc", "mac", "acc nz", "mac nz", "valid", "padded", "AC", "MAC", "Dense")
WIDTHS = (9, 9, 9, 9, 8, 8, 9, 9, 7)
LABEL = 16


def written(found: Mapping[str, Ours], report: Mapping[str, Any]) -> str:
    """The whole table.

    Args:
        found: case -> our side.
        report: what the worker printed.
    """
    seen: dict[str, None] = {}
    parts = []
    for name, case in CASES.items():
        codings = report["cases"][name]["codings"]
        table = rows(found[name], codings)
        seen |= dict.fromkeys("".join(row.verdict for row in table))
        lines = [
            f"{name}: {case.what}",
            _head(),
            *map(_line, table),
            *_neurons(found[name], codings),
        ]
        parts.append("\n".join(lines))
    legend = [
        textwrap.fill(f"{letter}  {POLICIES[letter]}", WIDTH, subsequent_indent="   ")
        for letter in POLICIES
        if letter in seen
    ]
    return "\n\n".join([*parts, "\n".join(legend), _probes(report["probes"])]) + "\n"


def _head() -> str:
    ours = f"{'':{LABEL}}{'knarr, per inference':>{sum(WIDTHS[:6])}}"
    names = [f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True)]
    return f"{ours} |{'NeuroBench':>{sum(WIDTHS[6:])}}\n{'layer':{LABEL}}{''.join(names[:6])} |{''.join(names[6:])}"


def _line(row: Row) -> str:
    counts, said = row.ours, row.theirs
    ours: list[Fraction | None] = [None] * 6
    if counts is not None:
        ours = [counts.acc, counts.mac, counts.acc_nonzero, counts.mac_nonzero]
        ours += [counts.dense_valid, counts.dense_padded]
    theirs: list[Fraction | None] = [None] * 3 if said is None else list(said)
    cells = [_cell(value, width) for value, width in zip([*ours, *theirs], WIDTHS, strict=True)]
    return f"{row.label:{LABEL}}{''.join(cells[:6])} |{''.join(cells[6:])} {row.verdict}"


def _cell(value: Fraction | None, width: int) -> str:
    if value is None:
        return " " * width
    return f"{value.numerator if value.denominator == 1 else f'{float(value):.2f}':>{width}}"


def _neurons(found: Ours, codings: Mapping[str, Any]) -> list[str]:
    if "snntorch" not in codings:  # NeuroBench knows no other neurons
        return []
    sparsity, updates = compared(found, codings["snntorch"])
    text = (
        f"neurons: activation sparsity {sparsity:.4f} in both; knarr {found.floating.total.neuron_updates} updates, "
        f"clocked, the readout's too; NeuroBench {updates:g}: those that changed a voltage, and all of the first step"
    )
    return [textwrap.fill(text, WIDTH)]


def _probes(probes: Mapping[str, Mapping[str, str]]) -> str:
    lines = ["Counted by hand, and what NeuroBench says (neurobench_probes.py):"]
    for probe in probes.values():
        text = f"- {probe['what']}: {probe['by_hand']}; NeuroBench: {probe['neurobench']}"
        lines.append(textwrap.fill(text, WIDTH, subsequent_indent="  "))
    return "\n".join(lines)
