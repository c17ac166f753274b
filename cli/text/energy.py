"""`energy.json` as tables: operations per layer, three models, break-even, what a change would buy, GPU floors."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from knarr.cli.output import make_console
from knarr.pipeline import json_text

NOT_INCLUDED = "The paper model prices synaptic events alone: memory, updates, bias, static power and I/O are NOT in it."
OTHER = ("pool_adds", "merge_adds", "comparisons", "elementwise")
"""Columns that stand in one: additions of pools and merges, comparisons, scales and activations."""
SHOWN_FLOORS = ("v100", "h100_sxm_h200", "agx_orin")


def print_energy(facts: dict[str, Any], *, json: bool) -> None:
    """Print what `energy_facts` gives."""
    if json:
        print(json_text(facts))
    else:
        _print_tables(facts, make_console())


def _print_tables(facts: dict[str, Any], console: Console) -> None:
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
    for line in dict.fromkeys(_provenance(each) for each in facts["models"]):
        console.print(line)
    if any(each["model"] == "paper" for each in facts["models"]):
        console.print(NOT_INCLUDED)
    if any(each["student"]["lo_pj"] is None for each in facts["models"]):
        console.print("[?]: no bounds are published; a nominal value alone.")
    if any((each["reuse"] or 1) > 1 for each in facts["models"]):
        console.print(
            "reuse: times a fetched word of the baseline is used; 1 is the worst case, the other an assumption."
        )
    for note in dict.fromkeys(
        note for each in facts["models"] for note in each["student"]["notes"]
    ):
        console.print(note)
    _ranking(facts, console)
    if facts["break_even"]:
        console.print(_limits(facts["break_even"]))
    if facts["trades"]:
        console.print(_trades(facts))
    if facts["measured"] is not None:
        _measured(facts["measured"], console)


def _operations(facts: dict[str, Any]) -> Table:
    counts = facts["student"]["counts"]
    table = Table(
        title=f"operations per inference, mean of {counts['samples']} samples, {counts['timesteps']:g} steps"
    )
    table.add_column("network")
    table.add_column("layer", overflow="fold")
    model = facts["student"]["energy"]["model"]
    for column in ("spikes", "ACC", "MAC", "bias adds", "updates", "other", f"nJ ({model})"):
        table.add_column(column, justify="right")
    folded = counts["pooling"] == "folded"
    other = f"pools {'float' if folded else 'folded'}"
    sides = [("student", "student", "counts"), (other, "student", "counts_other_pooling")]
    for label, side, which in [*sides, ("baseline", "baseline", "counts")]:
        if facts[side] is None or facts[side][which] is None:
            continue
        counts, energy = facts[side][which], facts[side]["energy"]
        whole = counts["total"] is not None
        for name, layer in counts["layers"].items():
            shown = (
                "acc",
                "mac",
                "bias_adds",
                "neuron_updates",
                *(OTHER if side == "student" else ()),
            )
            if any(layer[column] for column in shown):
                priced = (
                    energy["layers_pj"].get(name)
                    if energy is not None and which == "counts"
                    else None
                )
                table.add_row(label, _short(name), *_cells(layer, priced))
        total = counts["total"] or {
            key: sum(one[key] for one in counts["layers"].values()) for key in layer
        }
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
        found.append(
            f"student without weights that are 0, which sparse storage skips: {skipped:,.0f}"
        )
    if facts["baseline"] is not None and facts["baseline"]["counts"]["total"] is not None:
        theirs = facts["baseline"]["counts"]
        found.append(
            f"baseline with taps into the padding: {theirs['total']['dense_padded']:,.0f} MAC"
        )
        if theirs["effective"] is not None:
            found.append(f"with zero activations skipped: {sum(theirs['effective'].values()):,.0f}")
    return found


def _cells(layer: dict[str, float], pj: float | None) -> list[str]:
    columns = ("spikes", "acc", "mac", "bias_adds", "neuron_updates")
    other = sum(layer[column] for column in OTHER)
    return [
        *(f"{layer[column]:,.0f}" for column in columns),
        f"{other:,.0f}",
        "" if pj is None else _short_nj(pj),
    ]


def _short_nj(pj: float) -> str:
    return f"{pj / 1000:,.1f}" if pj >= 100 or pj == 0 else f"{pj / 1000:.3g}"


def _provenance(each: dict[str, Any]) -> str:
    tag = f"{each['model']}: {each['student']['provenance']}"
    return tag + (
        f"; mixed with baseline: {each['baseline']['provenance']}" if each["mixed"] else ""
    )


def _short(name: str) -> str:
    """ONNX names a node by its whole path; the module and the operation say enough."""
    return "/".join(name.split("/")[-2:])


def _models(models: list[dict[str, Any]]) -> Table:
    table = Table(title="energy per inference")
    table.add_column("model")
    table.add_column("prices", overflow="fold")
    for column in ("student uJ", "baseline uJ", "zeros skipped uJ", "ratio", "zeros skipped"):
        table.add_column(column, justify="right")
    for each in models:
        model = each["model"] + (f", {each['active']}" if each["active"] else "")
        model += f", reuse {each['reuse']:g}" if each["reuse"] else ""
        mixed = " mixed" if each["mixed"] else ""
        table.add_row(
            model,
            each["profile"],
            _interval(each["student"]),
            "-" if each["baseline"] is None else _interval(each["baseline"]) + mixed,
            "-" if each["effective"] is None else _interval(each["effective"]) + mixed,
            "-" if each["ratio"] is None else f"{each['ratio']:.3g}{mixed}",
            "-" if each["ratio_effective"] is None else f"{each['ratio_effective']:.3g}{mixed}",
        )
    return table


def _interval(energy: dict[str, Any]) -> str:
    """Nominal and [lo, hi]; ? is unknown, >= a lower bound."""
    lo, hi = energy["lo_pj"], energy["hi_pj"]
    bounds = "" if lo == hi and lo is not None else f" [{_uj(lo)}, {_uj(hi)}]"
    bounds = " [?]" if lo is None and hi is None else bounds
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
    ratios = comparison["ratios"]
    if comparison["flips"]:
        by_model = {label.split(",")[0]: term for label, term in comparison["responsible"].items()}
        blame = ", ".join(f"{term} ({model} model)" for model, term in by_model.items())
        low, high = (f(ratios, key=lambda label: ratios[label][1]) for f in (min, max))
        console.print(
            f"RANKING FLIPS: no winner. The ratio is {ratios[low][1]:.3g} ({low}) and {ratios[high][1]:.3g} ({high}). "
            f"What costs the student most: {blame}."
        )
    elif len(ratios) > 1:
        unknown = any(bound is None for lo, _, hi in ratios.values() for bound in (lo, hi))
        what = "Nominal values" if unknown else "Intervals"
        console.print(
            f"{what} rank the two alike in all {len(ratios)} comparisons of one technology."
        )
    if any(each["model"] == "chip" and not each["mixed"] for each in facts["models"]):
        console.print("A chip's prices are another technology than the baseline's: no ratio.")


def _limits(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="where the student stops being cheaper")
    table.add_column("model, against")
    for column in (
        "rate",
        "largest",
        "factor",
        "steps",
        "most steps",
        "events/synapse",
        "nJ a step",
        "dearest layer",
    ):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['model']}, {row['against']}",
            f"{row['rate']:.2%}",
            _rate(row["rate_limit"]),
            "-" if row["activity_scale"] is None else f"{row['activity_scale']:.3g}",
            f"{row['timesteps']:g}",
            "-" if row["timesteps_limit"] is None else f"{max(0.0, row['timesteps_limit']):.1f}",
            f"{row['events_per_synapse']:.2f}",
            f"{row['step_pj'] / 1000:.2f}",
            f"{_short(row['worst_layer'])} {row['worst_share']:.0%} ({row['worst_term']})",
        )
    table.caption = (
        f"factor: on all binary events, below 1 the student is the dearer one. A fair rival of a rate code: an ANN of "
        f"{rows[0]['quantised_rival_bits']} bits. The chip model has no rival: it prices no ANN."
    )
    return table


def _rate(limit: float | None) -> str:
    """Largest mean rate; a neuron fires at most once a step."""
    if limit is None:
        return "-"
    return f"{limit:.2%}" if limit < 1 else "any"


def _trades(facts: dict[str, Any]) -> Table:
    rows = facts["trades"]
    model = facts["student"]["energy"]["model"]
    table = Table(
        title=f"what fewer steps or other thresholds would buy, each one run ({facts['trades_of']}; {model} model)"
    )
    table.add_column("change")
    for column in ("ACC", "MAC", "energy nJ", "of now", "decided as now", "right"):
        table.add_column(column, justify="right")
    for row in rows:
        what = (
            f"{row['value']:g} steps"
            if row["change"] == "timesteps"
            else f"thresholds x {row['value']:g}"
        )
        table.add_row(
            what,
            f"{row['acc']:,.0f}",
            f"{row['mac']:,.0f}",
            _short_nj(row["energy_pj"]),
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
            floor = _uj(one["floor_j"] * 1e12)
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
