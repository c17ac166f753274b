"""`energy.json` as tables: operations per layer, three models, break-even, what a change would buy, GPU floors."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

NOT_INCLUDED = (
    "The paper model prices synaptic events alone: memory, updates, bias, static power and I/O are NOT in it."
)
SHOWN_FLOORS = ("v100", "h100_sxm_h200", "agx_orin")


def print_energy(facts: dict[str, Any], console: Console) -> None:
    """Everything a person would look at."""
    console.print(_operations(facts))
    refused = [
        row
        for side in ("student", "baseline")
        if facts[side] is not None
        for row in facts[side]["counts"]["ledger"]
        if row["status"] in ("unsupported", "not executed")
    ]
    for row in refused:
        console.print(f"NOT COUNTED: '{row['name']}' ({row['operation']}): {row['note']}")
    console.print(_models(facts["models"]))
    console.print(facts["student"]["energy"]["provenance"])
    console.print(NOT_INCLUDED)
    for note in dict.fromkeys(note for each in facts["models"] for note in each["student"]["notes"]):
        console.print(note)
    _ranking(facts, console)
    if facts["break_even"]:
        console.print(_limits(facts["break_even"]))
    if facts["trades"]:
        console.print(_trades(facts["trades"]))
    if facts["measured"] is not None:
        _measured(facts["measured"], console)


def _operations(facts: dict[str, Any]) -> Table:
    counts = facts["student"]["counts"]
    table = Table(
        title=f"operations per inference, mean of {counts['samples']} samples, {counts['timesteps']:g} steps"
    )
    table.add_column("network")
    table.add_column("layer", overflow="fold")
    for column in ("spikes", "ACC", "MAC", "bias adds", "updates", "energy nJ"):
        table.add_column(column, justify="right")
    sides = [("student", "student", "counts"), ("student, pools float", "student", "counts_float")]
    for label, side, which in [*sides, ("baseline", "baseline", "counts")]:
        if facts[side] is None or facts[side][which] is None:
            continue
        counts, energy = facts[side][which], facts[side]["energy"]
        whole = counts["total"] is not None
        for name, layer in counts["layers"].items():
            if any(layer[column] for column in ("acc", "mac", "bias_adds", "neuron_updates", "pool_adds")):
                priced = energy["layers_pj"].get(name) if energy is not None and which == "counts" else None
                table.add_row(label, _short(name), *_cells(layer, priced))
        total = counts["total"] or {key: sum(one[key] for one in counts["layers"].values()) for key in layer}
        priced = energy["nominal_pj"] if energy is not None and which == "counts" else None
        table.add_row(label, "total" if whole else "LOWER BOUND", *_cells(total, priced))
        table.add_section()
    table.caption = "; ".join(_besides(facts))
    return table


def _besides(facts: dict[str, Any]) -> list[str]:
    """Other ways of counting the same, where they differ from the table's."""
    found = []
    mine = facts["student"]["counts"]["total"]
    if mine is not None and mine["acc"] + mine["mac"] > mine["acc_nonzero"] + mine["mac_nonzero"]:
        skipped = mine["acc_nonzero"] + mine["mac_nonzero"]
        found.append(f"student without weights that are 0, which sparse storage skips: {skipped:,.0f}")
    if facts["baseline"] is not None and facts["baseline"]["counts"]["total"] is not None:
        theirs = facts["baseline"]["counts"]
        found.append(f"baseline with taps into the padding: {theirs['total']['dense_padded']:,.0f} MAC")
        if theirs["effective"] is not None:
            found.append(f"with zero activations skipped: {sum(theirs['effective'].values()):,.0f}")
    return found


def _cells(layer: dict[str, float], pj: float | None) -> list[str]:
    columns = ("spikes", "acc", "mac", "bias_adds", "neuron_updates")
    return [*(f"{layer[column]:,.0f}" for column in columns), "" if pj is None else f"{pj / 1000:,.1f}"]


def _short(name: str) -> str:
    """ONNX names a node by its whole path; the module and the operation say enough."""
    return "/".join(name.split("/")[-2:])


def _models(models: list[dict[str, Any]]) -> Table:
    table = Table(title="energy per inference")
    table.add_column("model")
    table.add_column("prices", overflow="fold")
    for column in ("student uJ", "baseline uJ", "zeros skipped uJ", "ratio"):
        table.add_column(column, justify="right")
    for each in models:
        model = each["model"] + (f", {each['active']}" if each["active"] else "")
        mixed = " mixed" if each["mixed"] else ""
        table.add_row(
            model,
            each["profile"],
            _interval(each["student"]),
            "-" if each["baseline"] is None else _interval(each["baseline"]) + mixed,
            "-" if each["effective"] is None else _interval(each["effective"]) + mixed,
            "-" if each["ratio"] is None else f"{each['ratio']:.3f}{mixed}",
        )
    return table


def _interval(energy: dict[str, Any]) -> str:
    """Nominal, and [lo, hi] where one is known; ? is unknown, >= a lower bound."""
    lo, hi = energy["lo_pj"], energy["hi_pj"]
    bounds = "" if lo is None and hi is None else f" [{_uj(lo)}, {_uj(hi)}]"
    return f"{'>= ' if energy['partial'] else ''}{_uj(energy['nominal_pj'])}{bounds}"


def _uj(pj: float | None) -> str:
    if pj is None:
        return "?"
    return f"{pj / 1e6:,.3f}" if pj >= 1e3 or pj == 0 else f"{pj / 1e6:.3g}"


def _ranking(facts: dict[str, Any], console: Console) -> None:
    if any(each["mixed"] and each["ratio"] is not None for each in facts["models"]):
        console.print("Ratios marked mixed compare two technologies: they rank nothing.")
    comparison = facts["comparison"]
    if comparison is None:
        return
    if comparison["flips"]:
        blame = "; ".join(f"{model}: {term}" for model, term in comparison["responsible"].items())
        console.print(f"RANKING FLIPS between models: no winner. What costs the student most: {blame}.")
    elif len(comparison["ratios"]) > 1:
        console.print(
            "The models of one technology rank the two alike; a chip's prices are another, so no ratio."
        )


def _limits(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="where the student stops being cheaper")
    table.add_column("model, against")
    for column in (
        "rate now",
        "largest",
        "steps now",
        "largest",
        "events/synapse",
        "per step nJ",
        "dearest layer",
    ):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['against']}",
            f"{row['rate']:.2%}",
            _rate(row["rate_limit"]),
            f"{row['timesteps']:g}",
            "-" if row["timesteps_limit"] is None else f"{max(0.0, row['timesteps_limit']):.1f}",
            f"{row['events_per_synapse']:.2f}",
            f"{row['step_pj'] / 1000:.2f}",
            f"{_short(row['worst_layer'])} {row['worst_share']:.0%} ({row['worst_term']})",
        )
    table.caption = f"A fair rival of a rate code: an ANN of {rows[0]['quantised_rival_bits']} bits."
    return table


def _rate(limit: float | None) -> str:
    """Largest mean rate; a neuron fires at most once a step."""
    if limit is None:
        return "-"
    return f"{limit:.2%}" if limit < 1 else "any"


def _trades(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="what fewer steps or other thresholds would buy, each one run")
    table.add_column("change")
    for column in ("ACC", "MAC", "energy nJ", "of now", "decided as now", "right"):
        table.add_column(column, justify="right")
    for row in rows:
        what = f"{row['value']:g} steps" if row["change"] == "timesteps" else f"thresholds x {row['value']:g}"
        table.add_row(
            what,
            f"{row['acc']:,.0f}",
            f"{row['mac']:,.0f}",
            f"{row['energy_pj'] / 1000:,.1f}",
            f"{row['relative']:.1%}",
            f"{row['agreement']:.1%}",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        )
    return table


def _measured(facts: dict[str, Any], console: Console) -> None:
    shown = [one for one in facts["floors"] if one["device"] in SHOWN_FLOORS]
    if shown:
        table = Table(title=f"baseline on a GPU: {shown[0]['label']}")
        for column in ("device", "precision", "pJ per MAC", "floor uJ"):
            table.add_column(column, justify="right")
        for one in shown:
            floor = f"{one['floor_j'] * 1e6:,.3f}"
            table.add_row(one["device"], one["precision"], f"{one['pj_per_mac']:.2f}", floor)
        console.print(table)
    for side in ("floors", "gpu", "cpu"):
        if facts[f"{side}_refused"]:
            console.print(f"{side}: not measured, {facts[f'{side}_refused']}")
    for side in ("gpu", "cpu"):
        for batch in (facts[side] or {}).get("batches", ()):
            gross, net = batch["gross_j"]["mean"] * 1e6, batch["net_j"]["mean"] * 1e6
            console.print(
                f"{side}, batch {batch['batch']}: gross {gross:,.1f} uJ, net {net:,.1f} uJ per inference"
            )
        for note in (facts[side] or {}).get("notes", ()):
            console.print(f"{side}: {note}")
