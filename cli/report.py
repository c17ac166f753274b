"""Results as tables a person can read in 100 columns, or as one JSON document."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from rich.table import Table

from knarr.cli import stages
from knarr.cli.output import expecting, json_text, make_console, read_json
from knarr.cli.verification_text import print_verification


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
        _show_energy(path, json)


def _show_energy(path: Path, json: bool) -> None:
    result = read_json(path)
    if json:
        print(json_module.dumps(result, indent=2))
        return
    table = Table(title="per inference, mean over the test set")
    table.add_column("network")
    table.add_column("layer")
    for column in ("spikes", "ACC", "MAC", "bias adds", "updates", "energy nJ"):
        table.add_column(column, justify="right")
    for network in ("chip", "teacher"):
        counts, energy = result[network]["counts"], result[network]["energy"]
        rows = [*counts["layers"].items(), ("total", counts["total"])]
        for name, layer in rows:
            pj = energy["nominal_pj"] if name == "total" else energy["layers_pj"][name]
            columns = ("spikes", "acc", "mac", "bias_adds", "neuron_updates")
            # ONNX names a node by its whole path; the module and the operation say enough.
            short = "/".join(name.split("/")[-2:])
            table.add_row(
                network, short, *(f"{layer[column]:,.0f}" for column in columns), f"{pj / 1000:,.1f}"
            )
        table.add_section()
    console = make_console()
    console.print(table)
    console.print(f"{result['chip']['energy']['provenance']}")
    console.print(f"chip / teacher: {result['ratio']:.3f}. {_NOT_INCLUDED}")
    console.print(_models_table(result["models"]))
    for note in dict.fromkeys(note for each in result["models"] for note in each["chip"]["notes"]):
        console.print(note)
    flips, responsible = result["comparison"]["flips"], result["comparison"]["responsible"]
    if flips:
        blame = "; ".join(f"{model}: {term}" for model, term in responsible.items())
        console.print(f"RANKING FLIPS between models: no winner. What costs the chip most: {blame}.")
    else:
        console.print(
            "Both models of one technology rank the two alike; Loihi's prices are another technology, so no ratio."
        )


def _models_table(models: list[dict[str, Any]]) -> Table:
    table = Table(title="energy per inference, three models")
    table.add_column("model")
    table.add_column("prices", overflow="fold")
    for column in ("chip uJ", "teacher uJ", "ratio"):
        table.add_column(column, justify="right")
    for each in models:
        chip, teacher = each["chip"], each["teacher"]
        table.add_row(
            chip["model"],
            chip["profile"],
            _interval(chip),
            "-" if teacher is None else _interval(teacher),
            "-" if teacher is None else f"{chip['nominal_pj'] / teacher['nominal_pj']:.3f}",
        )
    return table


def _interval(energy: dict[str, Any]) -> str:
    """Nominal, and [lo, hi] where one is known; ? is unknown."""
    lo, hi = energy["lo_pj"], energy["hi_pj"]
    bounds = "" if lo is None and hi is None else f" [{_uj(lo)}, {_uj(hi)}]"
    return f"{_uj(energy['nominal_pj'])}{bounds}"


def _uj(pj: float | None) -> str:
    return "?" if pj is None else f"{pj / 1e6:,.3f}"


_NOT_INCLUDED = (
    "Synaptic events alone: memory, neuron updates, bias adds, static power and I/O are NOT in it."
)


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
        "chip": {**energy["chip"]["counts"]["total"], "energy_pj": energy["chip"]["energy"]["nominal_pj"]},
        "teacher": {
            **energy["teacher"]["counts"]["total"],
            "energy_pj": energy["teacher"]["energy"]["nominal_pj"],
        },
        "energy_ratio": energy["ratio"],
        "provenance": energy["chip"]["energy"]["provenance"],
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
    chip, teacher = facts["chip"], facts["teacher"]
    table.add_row("spikes", "-", "", f"{chip['spikes']:,.0f}")
    table.add_row("ACC", f"{teacher['acc']:,.0f}", "", f"{chip['acc']:,.0f}")
    table.add_row("MAC", f"{teacher['mac']:,.0f}", "", f"{chip['mac']:,.0f}")
    table.add_row("energy", f"{teacher['energy_pj'] / 1e6:,.3f} uJ", "", f"{chip['energy_pj'] / 1e6:,.3f} uJ")
    table.add_row("energy / ANN", "1", "", f"{facts['energy_ratio']:.3f}")
    console = make_console()
    console.print(table)
    console.print(f"Energy: {facts['provenance']}. {_NOT_INCLUDED}")
    compared = Table(title=f"mismatches on {facts['lava_samples']} test samples")
    compared.add_column("stages")
    compared.add_column("values compared", justify="right")
    compared.add_column("mismatches", justify="right")
    compared.add_column("")
    for pair, counts in facts["mismatches"].items():
        meaning = "must be 0" if "=" in pair else "measured: the chip rounds"
        compared.add_row(pair, f"{counts['compared']:,}", f"{counts['mismatches']:,}", meaning)
    console.print(compared)
    if not facts["holds"]:
        console.print("The verification does NOT hold; see `knarr verify`.")
    for path in facts["pictures"]:
        console.print(f"picture: {path}", soft_wrap=True)
    return bool(facts["holds"])
