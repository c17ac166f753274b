"""A run's results, and any other facts, as tables a person can read in 100 columns or as one JSON document."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.table import Table

from knarr.cli.output import make_console
from knarr.cli.text.energy import NOT_INCLUDED
from knarr.pipeline import ON_TEST, expecting, read_json, report


def print_facts(facts: dict[str, Any], *, json: bool) -> None:
    """Print name and value, a line each."""
    if json:
        print(json_module.dumps(facts, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    make_console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_file(path: Path, *, json: bool) -> None:
    """Print a JSON file that one of the stages wrote."""
    facts = read_json(path)
    print_facts(facts if json else {"file": str(path), "what": "", **facts}, json=json)


def print_run(folder: Path, *, json: bool) -> bool:
    """Print a finished run; returns whether its verification holds."""
    with expecting(folder):
        facts = report(folder)
    if json:
        print(json_module.dumps(facts, indent=2))
        return bool(facts["holds"])
    samples, correct = facts["test_samples"], facts["correct"]
    table = Table(title=f"{folder.name}: {samples} test samples, counts and energy per inference")
    table.add_column("")
    for column in ("teacher (ANN)", "student (Norse)", "chip (integers)"):
        table.add_column(column, justify="right")
    right = [
        f"{correct[name]}/{samples} ({correct[name] / samples:.1%})"
        for name in ("teacher", "student", "chip")
    ]
    table.add_row("accuracy", *right)
    if "lowered" in correct:
        as_lowered = f"{correct['lowered']}/{samples} ({correct['lowered'] / samples:.1%})"
        table.add_row("before its integers were fitted", "", "", as_lowered)
    chip, teacher = facts["chip"], facts["teacher"]
    table.add_row("spikes", "-", "", f"{chip['spikes']:,.0f}")
    table.add_row("ACC", f"{teacher['acc']:,.0f}", "", f"{chip['acc']:,.0f}")
    table.add_row("MAC", f"{teacher['mac']:,.0f}", "", f"{chip['mac']:,.0f}")
    table.add_row(
        "energy", f"{teacher['energy_pj'] / 1e6:,.3f} uJ", "", f"{chip['energy_pj'] / 1e6:,.3f} uJ"
    )
    table.add_row("energy / ANN", "1", "", f"{facts['energy_ratio']:.3f}")
    console = make_console()
    console.print(table)
    if ON_TEST in facts:
        console.print(
            f"{', '.join(facts[ON_TEST])}: the best epoch ON THE TEST DATA, so no estimate for other data."
        )
    console.print(f"Energy: {facts['provenance']}. {NOT_INCLUDED}")
    compared = Table(title=f"mismatches on {facts['lava_samples']} test samples")
    compared.add_column("stages")
    compared.add_column("values compared", justify="right")
    compared.add_column("mismatches", justify="right")
    compared.add_column("")
    for pair, counts in facts["mismatches"].items():
        meaning = "must be 0" if "=" in pair else "measured: integers against floats"
        compared.add_row(pair, f"{counts['compared']:,}", f"{counts['mismatches']:,}", meaning)
    console.print(compared)
    if not facts["holds"]:
        console.print("The verification does NOT hold; see `knarr verify`.")
    for path in facts["pictures"]:
        console.print(f"picture: {path}", soft_wrap=True)
    return bool(facts["holds"])
