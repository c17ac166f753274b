"""A verification as tables of 100 columns: what was compared, where stages part, what they decide."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MEANING = {"=": "must be equal", "~": "measured: the chip rounds where floats do not"}


def print_verification(result: dict[str, Any], console: Console) -> None:
    """Print what `Verification.to_json` gives, read back from JSON or not."""
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


def divergence_text(row: dict[str, Any]) -> str:
    """Where a row's stages part first, and what each had there."""
    first = row["first"]
    names = row["pair"].split()[0], row["pair"].split()[2]
    index = (
        "(" + ", ".join(str(i) for i in first["index"]) + ")"
        if len(first["index"]) > 1
        else first["index"][0]
    )
    sides = (
        _side(name, row["what"], first[key])
        for name, key in zip(names, ("left", "right"), strict=True)
    )
    return (
        f"{row['layer']} {row['what']}: sample {first['sample']}, step {first['timestep']}, neuron {index}: "
        + "; ".join(sides)
    )


def _side(stage: str, what: str, side: dict[str, Any]) -> str:
    if what != "spikes":
        return f"{stage} {what} {_number(side['value'])}"
    text = f"{stage} {'fires' if side['value'] else 'is silent'}"
    if side["v_reached"] is not None:
        text += f" at v {_number(side['v_reached'])}"
    if side["threshold"] is not None:
        text += f", threshold {_number(side['threshold'])}"
    return text + ("" if side["u"] is None else f", u {_number(side['u'])}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


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
