"""A verification as tables of 100 columns, and a graph as lines: what was compared, where stages part, what they decide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.table import Table

from knarr.cli.output import TITLED, make_table, show, show_indented
from knarr.pipeline import divergence_text, expecting, json_text, read_json

if TYPE_CHECKING:
    import nir

Row = dict[str, Any]
"""One layer of a verification, as `Verification.to_json` gives it."""

MEANING: Final = {"=": "must be equal", "~": "measured: the chip rounds where floats do not"}


def print_verification_file(path: Path, *, json: bool) -> bool:
    """Print a run's verification.json; return whether it holds."""
    with expecting(path):
        return print_verification(read_json(path), json=json)


def print_verification(result: dict[str, Any], *, json: bool) -> bool:
    """Print what `Verification.to_json` gives, read back from JSON or not; return whether it holds."""
    if json:
        print(json_text(result))
    else:
        _print_tables(result)
    return bool(result["holds"])


def _print_tables(result: dict[str, Any]) -> None:
    rows, samples = result["rows"], result["samples"]
    show(
        f"{samples} samples, {result['timesteps']} time steps; "
        "spikes also as a share of neurons and steps"
    )
    # Pairs in the order in which the network went through the stages.
    for pair in dict.fromkeys(row["pair"] for row in rows):
        show(_pair_table(pair, [row for row in rows if row["pair"] == pair]))
    parted = [row for row in rows if row["first"] is not None]
    if parted:
        show("First divergences")
    show_indented(f"{row['pair']}, {divergence_text(row)}" for row in parted)
    if result["decisions"]:
        show(_decision_table(result))
    differently = result["decided_differently"]
    if differently is not None:
        show(f"Float and chip decide differently on {differently} of {samples} samples.")
    show_indented(_faults(result))
    verdict = "holds" if result["holds"] else "does NOT hold"
    show(f"The verification {verdict}.")


def _pair_table(pair: str, rows: list[Row]) -> Table:
    left, sign, right = pair.split()
    headings = ["compared", "mismatches", "share", f"{left} spikes", f"{right} spikes"]
    table = make_table(
        f"{pair}: {MEANING[sign]}",
        "layer",
        "what",
        *headings,
        "rate error",
        left=2,
        fold=("layer",),
        pad_edge=False,
        **TITLED,
    )
    for row in rows:
        compared, mismatches = row["compared"], row["mismatches"]
        spikes = ["", ""]
        if row["rates"] is not None:
            sides = zip(row["active"], row["rates"], strict=True)
            spikes = [f"{active:,} {_percent(rate):>6}" for active, rate in sides]
        error = "" if row["rate_error"] is None else _percent(row["rate_error"])
        share = _percent(mismatches / compared)
        counts = (f"{compared:,}", f"{mismatches:,}", share)
        table.add_row(row["layer"], row["what"], *counts, *spikes, error)
    return table


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    # Rounded to 0.00% it would look like none.
    return f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def _decision_table(result: dict[str, Any]) -> Table:
    decisions, samples = result["decisions"], result["samples"]
    table = make_table("decisions", "", *decisions, pad_edge=False, **TITLED)
    if result["correct"] is not None:
        right = result["correct"].values()
        table.add_row("accuracy", *(f"{n}/{samples} ({n / samples:.1%})" for n in right))
    name, first = next(iter(decisions.items()))
    # The first stage is the one nearest to training, so the others are counted against it.
    unlike = (
        sum(a != b for a, b in zip(first, other, strict=True)) for other in decisions.values()
    )
    table.add_row(f"unlike {name}", *map(str, unlike))
    return table


def _faults(result: dict[str, Any]) -> list[str]:
    """Say why a verification does not hold, in a line for each layer."""
    found = []
    for row in result["rows"]:
        if "=" not in row["pair"]:
            continue
        where = f"{row['pair']}: {row['layer']}"
        if row["mismatches"]:
            counts = f"{row['mismatches']:,} of {row['compared']:,}"
            found.append(f"{where}: {counts} {row['what']} differ")
        # Two layers that never fire are equal whatever their weights.
        if row["what"] == "spikes" and not row["active"][0]:
            found.append(f"{where}: never fires, so that equality says nothing; use other inputs")
    # Results that an older version wrote have no notes.
    found += result.get("notes", ())
    if not found and not result["holds"]:
        found.append("nothing ever left rest, so that equality says nothing; use other inputs")
    return found


def describe_nodes(graph: nir.NIRGraph) -> list[str]:
    """Return a line for each node in the order of execution: name, kind, shape, time constants."""
    from knarr.export import execution_order

    lines = []
    for name in execution_order(graph):
        node = graph.nodes.get(name)
        # The order names nodes of nested graphs by their path, which the outer graph does not hold.
        kind = "inside a nested graph" if node is None else type(node).__name__
        shape: tuple[int, ...] = ()
        if node is not None and node.output_type:
            shape = tuple(int(size) for size in next(iter(node.output_type.values())))
        lines.append(f"{name}: {kind} {shape or ''} {_time_constants(node)}".rstrip())
    return lines


def _time_constants(node: Any) -> str:
    parts = []
    for field in ("tau", "tau_mem", "tau_syn"):
        values = getattr(node, field, None)
        if values is None:
            continue
        low, high = 1e3 * float(np.min(values)), 1e3 * float(np.max(values))
        # Learned time constants differ from neuron to neuron.
        spread = f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g}..{high:.3g}"
        parts.append(f"{field} {spread} ms")
    return ", ".join(parts)
