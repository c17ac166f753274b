"""Results as tables a person can read in 100 columns, or as one JSON document."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.table import Table

from knarr.cli.output import expecting, json_text, make_console, read_json
from knarr.cli.text.energy import NOT_INCLUDED, print_energy
from knarr.cli.text.verification import print_verification
from knarr.pipeline import stages

ON_TEST = "chosen_on_test"
"""Networks whose epoch was the best ON THE TEST DATA."""


def say(facts: dict[str, Any], *, json: bool) -> None:
    """Name and value, a line each."""
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


def show_file(path: Path, what: str, *, json: bool) -> None:
    """A JSON file one of the stages wrote."""
    facts = read_json(path)
    say(facts if json else {"file": str(path), what: "", **facts}, json=json)


def show_verification(path: Path, *, json: bool) -> bool:
    """Print a verification; returns whether it holds."""
    with expecting(path):
        return say_verification(read_json(path), json=json)


def say_verification(result: dict[str, Any], *, json: bool) -> bool:
    """Print what `Verification.to_json` gives; returns whether it holds."""
    if json:
        print(json_text(result))
    else:
        print_verification(result, make_console())
    return bool(result["holds"])


def show_energy(path: Path, *, json: bool) -> None:
    """Print counts and prices per layer."""
    with expecting(path):
        say_energy(read_json(path), json=json)


def say_energy(facts: dict[str, Any], *, json: bool) -> None:
    """Print what `energy_facts` gives."""
    if json:
        print(json_text(facts))
    else:
        print_energy(facts, make_console())


def summary(folder: Path) -> dict[str, Any]:
    """Everything the final table says, as plain data."""
    accuracy, energy, verification = (
        read_json(folder / name) for name in (stages.ACCURACY, stages.ENERGY, stages.VERIFICATION)
    )
    mismatches: dict[str, dict[str, int]] = {}
    for row in verification["rows"]:
        pair = mismatches.setdefault(row["pair"], {"compared": 0, "mismatches": 0})
        pair["compared"] += row["compared"]
        pair["mismatches"] += row["mismatches"]
    return {
        "run": str(folder),
        "test_samples": accuracy["samples"],
        "correct": accuracy["correct"],
        **({ON_TEST: accuracy[ON_TEST]} if accuracy.get(ON_TEST) else {}),
        "chip": {
            **energy["student"]["counts"]["total"],
            "energy_pj": energy["student"]["energy"]["nominal_pj"],
        },
        "teacher": {
            **energy["baseline"]["counts"]["total"],
            "energy_pj": energy["baseline"]["energy"]["nominal_pj"],
        },
        "energy_ratio": energy["ratio"],
        "provenance": energy["student"]["energy"]["provenance"],
        "lava_samples": verification["samples"],
        "mismatches": mismatches,
        "holds": verification["holds"],
        "pictures": [str(path) for path in sorted((folder / stages.PICTURES).glob("*.png"))],
    }


def show(folder: Path, *, json: bool) -> bool:
    """Print a finished run; returns whether its verification holds."""
    with expecting(folder):
        facts = summary(folder)
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
