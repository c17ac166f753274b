"""The costs of one network by itself, as a table a person can read."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from knarr.cli.output import make_table, show
from knarr.cli.text.energy import numbered, print_places
from knarr.cli.text.energy_tables import SHOWN_FLOORS, WIDTH
from knarr.errors import one_line
from knarr.pipeline import amount, json_text, prefix_of, spelled

Facts = dict[str, Any]
MOST_LAYERS: Final = 24
"""Rows of a table; the cheapest layers beyond share one."""
OTHER: Final = ("elementwise", "comparisons", "pool_adds")
PJ: Final = 1e-12
MOST_PRICED: Final = 8
"""Rows of the table of energies."""


def print_alone(facts: Facts, *, json: bool) -> None:
    """Print what `knarr.hw_sim.price_alone` gives."""
    if json:
        print(json_text(facts))
        return
    counts = facts["counts"]
    # The answer first, as of two networks.
    _print_energy(facts)
    _print_counts(counts)
    _print_ledger(counts["ledger"])


def _print_counts(counts: Facts) -> None:
    samples = counts["samples"]
    over = f"mean of {numbered(samples, 'sample')}" if samples else "one pass"
    table = make_table(
        f"operations per inference, {over}",
        "layer",
        "ACC",
        "MAC",
        "dense",
        "bias adds",
        "elementwise",
        fold=("layer",),
    )
    layers = counts["layers"]
    ordered = sorted(layers, key=lambda name: -(layers[name]["acc"] + layers[name]["mac"]))
    shown = set(ordered[:MOST_LAYERS])
    others: dict[str, float] = defaultdict(float)
    columns = ("acc", "mac", "dense_padded", "bias_adds")
    for name, layer in layers.items():
        amounts = {column: layer[column] for column in columns}
        amounts["other"] = sum(layer[column] for column in OTHER)
        if name in shown:
            table.add_row(one_line(name, 60), *map(_number, amounts.values()))
        else:
            for column, amount in amounts.items():
                others[column] += amount
    if others:
        table.add_row(f"{len(layers) - len(shown)} others", *map(_number, others.values()))
    total = counts["total"]
    if total is not None:
        other = sum(total[column] for column in OTHER)
        table.add_row("total", *(_number(total[column]) for column in columns), _number(other))
    show(table, width=WIDTH)
    if counts["kind"] == "ann":
        show(
            "dense: taps into the padding too; elementwise: pools and comparisons too", width=WIDTH
        )


def _number(amount: float) -> str:
    return f"{amount:,.10g}" if amount == int(amount) else f"{amount:,.1f}"


def _print_layers(counts: Facts, energy: Facts) -> None:
    """Print what the dearest layers compute in, and what that costs."""
    if counts["precision"] is None:
        return
    table = make_table(
        f"dearest layers, {energy['model']} model, prices {energy['profile']}",
        "layer",
        "computes in",
        "stored weights",
        "energy",
        left=3,
        fold=("layer",),
    )
    costs = {name: cost for name, cost in energy["layers_pj"].items() if cost}
    ordered = sorted(costs, key=lambda name: -costs[name])
    for name in ordered[:MOST_PRICED]:
        bits = counts["sizes"][name]["weight_bits"]
        precision = counts["precision"][name] or "not said"
        stored = f"{bits} bits" if bits else "the same"
        if not counts["sizes"][name]["weights"]:
            stored = "none"
        table.add_row(one_line(name, 60), precision, stored, _cost(costs[name]))
    others = ordered[MOST_PRICED:]
    if others:
        rest = sum(costs[name] for name in others)
        table.add_row(f"{len(others)} others", "", "", _cost(rest))
    show(table, width=WIDTH)


def _cost(pj: float) -> str:
    """Return an energy in the unit that fits."""
    bounds = {"low": None, "nominal": pj * PJ, "high": None, "unit": "J"}
    return amount(pj * PJ, "J", prefix_of(bounds, 1.0))


def _joules(energy: Facts) -> str:
    bounds = (energy[f"{name}_pj"] for name in ("lo", "nominal", "hi"))
    joules = (None if bound is None else bound * PJ for bound in bounds)
    return spelled({**dict(zip(("low", "nominal", "high"), joules, strict=True)), "unit": "J"})


def _print_energy(facts: Facts) -> None:
    energy = facts["energy"]
    if energy is None:
        show(one_line(facts["refused"], 400), width=WIDTH)
        return
    print_places(facts)
    _print_layers(facts["counts"], energy)
    bound = "at least " if energy["partial"] else ""
    what = f"{energy['model']} model, operations in {energy['precision']}"
    show(f"{what}: {bound}{_joules(energy)} ({energy['provenance']})", width=WIDTH)
    for note in energy["notes"]:
        if "priced as" in note:
            show(one_line(note, 300), width=WIDTH)
    formula = _joules(facts["literature_formula"])
    show(
        f"literature formula 4.6 MAC + 0.9 ACC pJ, to compare with papers alone: {bound}{formula}",
        width=WIDTH,
    )
    for floor in facts["floors"]:
        if floor["device"] in SHOWN_FLOORS:
            where = f"{floor['device']} {floor['precision']}"
            least = {"low": None, "nominal": floor["floor_j"], "high": None, "unit": "J"}
            show(f"floor, {where}: {amount(floor['floor_j'], 'J', prefix_of(least))}", width=WIDTH)
    if facts["floors"]:
        show(f"floors: {facts['floors'][0]['label']}", width=WIDTH)


def _print_ledger(ledger: list[Facts]) -> None:
    by_status: dict[str, list[Facts]] = defaultdict(list)
    for row in ledger:
        by_status[row["status"]].append(row)
    amounts = ", ".join(f"{len(rows)} {status}" for status, rows in by_status.items())
    show(f"ledger: {amounts}; all of it with --json", width=WIDTH)
    free = dict.fromkeys(row["operation"] for row in by_status["free"])
    if free:
        show(one_line(f"free: {', '.join(free)}", 300), width=WIDTH)
    for row in (*by_status["unsupported"], *by_status["not executed"]):
        shown = f"NOT COUNTED: '{row['name']}' ({row['operation']}): {row['note']}"
        show(one_line(shown), width=WIDTH)
