"""A run's results, and any other facts, as tables a person can read in 80 columns or as one JSON
document.
"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.table import Table

from knarr.cli.output import show
from knarr.cli.text.energy import print_counts, print_places, print_verdict
from knarr.cli.text.energy_tables import WIDTH, narrow_table


def print_facts(facts: dict[str, Any], *, json: bool) -> None:
    """Print name and value, a line each."""
    if json:
        print(json_module.dumps(facts, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    show(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    # True is an int too, and has no thousands.
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_certificate(path: Path, *, json: bool) -> None:
    """Print the certificate of a graph, as its file has it."""
    from knarr.pipeline import read_json

    facts = read_json(path)
    head = {} if json else {"file": str(path), "certificate": ""}
    print_facts({**head, **facts}, json=json)


def print_run(folder: Path, *, json: bool) -> bool:
    """Print a finished run; return whether its verification holds."""
    from knarr.pipeline import ON_TEST, report

    # Read from the files, so that the table is of what lies there.
    facts = report(folder)
    if json:
        print(json_module.dumps(facts, indent=2))
        return bool(facts["holds"])
    show(f"{folder.name}: {facts['test_samples']} test samples", width=WIDTH)
    print_verdict(facts["energy"])
    print_places(facts["energy"])
    show(_results(facts), width=WIDTH)
    if ON_TEST in facts:
        networks = ", ".join(facts[ON_TEST])
        show(f"{networks}: the best epoch ON THE TEST DATA, so no estimate for other data.")
    show("", width=WIDTH)
    print_counts(facts["energy"])
    title = f"mismatches on {facts['lava_samples']} test samples"
    compared = narrow_table(title, "stages", "values compared", "mismatches")
    # A column of words, behind the numbers that they explain.
    compared.add_column(" ")
    for pair, counts in facts["mismatches"].items():
        meaning = " must be 0" if "=" in pair else " measured: integers against floats"
        compared.add_row(pair, f"{counts['compared']:,}", f"{counts['mismatches']:,}", meaning)
    show(compared, width=WIDTH)
    show(f"Energy in full: knarr energy {folder}", soft_wrap=True)
    if not facts["holds"]:
        show("The verification does NOT hold; see `knarr verify`.")
    for path in facts["pictures"]:
        # Not broken at the width of the console, so that it can be copied.
        show(f"picture: {path}", soft_wrap=True)
    return bool(facts["holds"])


def _results(facts: dict[str, Any]) -> Table:
    samples = facts["test_samples"]
    measured = facts["mae"] if "mae" in facts else facts["correct"]
    table = narrow_table("", "", "teacher (ANN)", "student (Norse)", "chip (integers)")

    def right(network: str) -> str:
        if network not in measured:
            return "-"
        if "mae" in facts:
            return f"{measured[network]:.4g}"
        return f"{measured[network]}/{samples} ({measured[network] / samples:.1%})"

    heading = "mean absolute error" if "mae" in facts else "accuracy"
    table.add_row(heading, right("teacher"), right("student"), right("chip"))
    if "lowered" in measured:
        table.add_row("before its integers were fitted", "", "", right("lowered"))
    return table
