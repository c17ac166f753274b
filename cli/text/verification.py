"""A verification as tables of 100 columns: what was compared, where stages part, what they decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from knarr.cli.output import make_console
from knarr.pipeline import divergence_text, expecting, json_text, read_json

MEANING = {"=": "must be equal", "~": "measured: the chip rounds where floats do not"}


def print_verification_file(path: Path, *, json: bool) -> bool:
    """Print a run's verification.json; returns whether it holds."""
    with expecting(path):
        return print_verification(read_json(path), json=json)


def print_verification(result: dict[str, Any], *, json: bool) -> bool:
    """Print what `Verification.to_json` gives, read back from JSON or not; returns whether it holds."""
    if json:
        print(json_text(result))
    else:
        _print_tables(result, make_console())
    return bool(result["holds"])


def _print_tables(result: dict[str, Any], console: Console) -> None:
    console.print(
        f"{result['samples']} samples, {result['timesteps']} time steps; spikes also as a share of neurons and steps"
    )
    pairs = list(dict.fromkeys(row["pair"] for row in result["rows"]))
    for pair in pairs:
        console.print(_pair_table(pair, [row for row in result["rows"] if row["pair"] == pair]))
    parted = [row for row in result["rows"] if row["first"] is not None]
    if parted:
        console.print("First divergences")
    for row in parted:
        console.print(Padding(Text(f"{row['pair']}, {divergence_text(row)}"), (0, 0, 0, 2)))
    if result["decisions"]:
        console.print(_decision_table(result))
    if result["decided_differently"] is not None:
        console.print(
            f"Float and chip decide differently on {result['decided_differently']} of {result['samples']} samples."
        )
    for fault in fault_texts(result):
        console.print(Padding(Text(fault), (0, 0, 0, 2)))
    console.print(
        "The verification holds." if result["holds"] else "The verification does NOT hold."
    )


def _pair_table(pair: str, rows: list[dict[str, Any]]) -> Table:
    left, sign, right = pair.split()
    table = Table(
        title=f"{pair}: {MEANING[sign]}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("layer", overflow="fold")
    table.add_column("what")
    for column in (
        "compared",
        "mismatches",
        "share",
        f"{left} spikes",
        f"{right} spikes",
        "rate error",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["layer"],
            row["what"],
            f"{row['compared']:,}",
            f"{row['mismatches']:,}",
            _percent(row["mismatches"] / row["compared"]),
            *(_spikes(row, side) for side in (0, 1)),
            "" if row["rate_error"] is None else _percent(row["rate_error"]),
        )
    return table


def _spikes(row: dict[str, Any], side: int) -> str:
    return (
        "" if row["rates"] is None else f"{row['active'][side]:,} {_percent(row['rates'][side]):>6}"
    )


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def _decision_table(result: dict[str, Any]) -> Table:
    table = Table(
        title="decisions",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    for stage in result["decisions"]:
        table.add_column(stage, justify="right")
    if result["correct"] is not None:
        samples = result["samples"]
        shares = (f"{n}/{samples} ({n / samples:.1%})" for n in result["correct"].values())
        table.add_row("accuracy", *shares)
    first = next(iter(result["decisions"].values()))
    differing = (
        sum(a != b for a, b in zip(first, one, strict=True)) for one in result["decisions"].values()
    )
    table.add_row(f"unlike {next(iter(result['decisions']))}", *(str(n) for n in differing))
    return table


def fault_texts(result: dict[str, Any]) -> list[str]:
    """Why a verification does not hold, a line for each layer."""
    found = []
    for row in result["rows"]:
        if "=" in row["pair"] and row["mismatches"]:
            found.append(
                f"{row['pair']}: {row['layer']}: {row['mismatches']:,} of {row['compared']:,} {row['what']} differ"
            )
        if "=" in row["pair"] and row["what"] == "spikes" and not row["active"][0]:
            found.append(
                f"{row['pair']}: {row['layer']}: never fires, so that equality says nothing; use other inputs"
            )
    if not found and not result["holds"]:
        found.append("nothing ever left rest, so that equality says nothing; use other inputs")
    return found
