"""The facts of energy.json as tables: operations per layer, three models, break-even, what a change
would buy, GPU floors.
"""

from __future__ import annotations

from typing import Any, Final

from rich.table import Table

from knarr.cli.output import make_table, show
from knarr.pipeline import json_text

Facts = dict[str, Any]

NOT_INCLUDED: Final = (
    "The paper model prices synaptic events alone: "
    "memory, updates, bias, static power and I/O are NOT in it."
)
COLUMNS: Final = ("spikes", "acc", "mac", "bias_adds", "neuron_updates")
OTHER: Final = ("pool_adds", "merge_adds", "comparisons", "elementwise")
"""Counts that stand in one column: additions of pools and merges, comparisons, scales and
activations.
"""
SHOWN_FLOORS: Final = ("v100", "h100_sxm_h200", "agx_orin")


def print_energy(facts: Facts, *, json: bool) -> None:
    """Print what `energy_facts` gives."""
    if json:
        print(json_text(facts))
    else:
        _print_tables(facts)


def _print_tables(facts: Facts) -> None:
    show(_operations(facts))
    for side in ("student", "baseline"):
        for row in facts[side]["counts"]["ledger"] if facts[side] else ():
            if row["status"] in ("unsupported", "not executed"):
                show(f"NOT COUNTED: '{row['name']}' ({row['operation']}): {row['note']}")
    models = facts["models"]
    show(_models(models))
    # Models of one profile say the same; each line stands once.
    for line in dict.fromkeys(_provenance(each) for each in models):
        show(line)
    if any(each["model"] == "paper" for each in models):
        show(NOT_INCLUDED)
    if any(each["student"]["lo_pj"] is None for each in models):
        show("[?]: no bounds are published; a nominal value alone.")
    if any((each["reuse"] or 1) > 1 for each in models):
        show(
            "reuse: times a fetched word of the baseline is used; "
            "1 is the worst case, the other an assumption."
        )
    for note in dict.fromkeys(note for each in models for note in each["student"]["notes"]):
        show(note)
    _print_ranking(facts)
    if facts["break_even"]:
        show(_limits(facts["break_even"]))
    if facts["trades"]:
        show(_trades(facts))
    if facts["measured"] is not None:
        _print_measured(facts["measured"])


def _operations(facts: Facts) -> Table:
    student, baseline = facts["student"], facts["baseline"]
    counts, model = student["counts"], student["energy"]["model"]
    title = f"mean of {counts['samples']} samples, {counts['timesteps']:g} steps"
    headings = ("spikes", "ACC", "MAC", "bias adds", "updates", "other", f"nJ ({model})")
    table = make_table(
        f"operations per inference, {title}", "network", "layer", *headings, left=2, fold=("layer",)
    )
    other = "pools float" if counts["pooling"] == "folded" else "pools folded"
    sides = [("student", counts, student["energy"]), (other, student["counts_other_pooling"], None)]
    if baseline is not None:
        sides.append(("baseline", baseline["counts"], baseline["energy"]))
    for label, each, energy in sides:
        if each is not None:
            # An ANN has elementwise operations in every layer, which nobody prices.
            shown = COLUMNS[1:] if label == "baseline" else (*COLUMNS[1:], *OTHER)
            _add_layers(table, label, each, energy, shown)
    table.caption = "; ".join(_other_counts(facts))
    return table


def _add_layers(
    table: Table, label: str, counts: Facts, energy: Facts | None, shown: tuple[str, ...]
) -> None:
    layers, total = counts["layers"], counts["total"]
    for name, layer in layers.items():
        if any(layer[column] for column in shown):
            # Layers that cost nothing have no price.
            pj = None if energy is None else energy["layers_pj"].get(name)
            table.add_row(label, _short(name), *_cells(layer, pj))
    name = "total"
    if total is None:
        name = "LOWER BOUND"
        # A total that leaves something out would be read as one; the sum is shown as a bound.
        keys = next(reversed(layers.values()))
        total = {key: sum(layer[key] for layer in layers.values()) for key in keys}
    table.add_row(label, name, *_cells(total, None if energy is None else energy["nominal_pj"]))
    table.add_section()


def _other_counts(facts: Facts) -> list[str]:
    """Say what other ways of counting the same give, where they differ from the table's."""
    found = []
    mine = facts["student"]["counts"]["total"]
    if mine is not None:
        nonzero = mine["acc_nonzero"] + mine["mac_nonzero"]
        if mine["acc"] + mine["mac"] > nonzero:
            found.append(
                f"student without weights that are 0, which sparse storage skips: {nonzero:,.0f}"
            )
    if facts["baseline"] is not None and facts["baseline"]["counts"]["total"] is not None:
        theirs = facts["baseline"]["counts"]
        # Published counts take it in or leave it out, and do not say which.
        padded = theirs["total"]["dense_padded"]
        found.append(f"baseline with taps into the padding: {padded:,.0f} MAC")
        if theirs["effective"] is not None:
            found.append(f"with zero activations skipped: {sum(theirs['effective'].values()):,.0f}")
    return found


def _cells(layer: dict[str, float], pj: float | None) -> list[str]:
    numbers = [layer[column] for column in COLUMNS]
    numbers.append(sum(layer[column] for column in OTHER))
    return [*(f"{number:,.0f}" for number in numbers), "" if pj is None else _nj(pj)]


def _nj(pj: float) -> str:
    # Layers differ by orders of magnitude; each shows three digits at least.
    return f"{pj / 1000:,.1f}" if pj >= 100 or pj == 0 else f"{pj / 1000:.3g}"


def _uj(pj: float | None) -> str:
    if pj is None:
        return "?"
    return f"{pj / 1e6:,.3f}" if pj >= 1e3 or pj == 0 else f"{pj / 1e6:.3g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(name: str) -> str:
    """ONNX names a node by its whole path; the module and the operation say enough."""
    return "/".join(name.split("/")[-2:])


def _provenance(each: Facts) -> str:
    text = f"{each['model']}: {each['student']['provenance']}"
    if each["mixed"]:
        text += f"; mixed with baseline: {each['baseline']['provenance']}"
    return text


def _models(models: list[Facts]) -> Table:
    headings = ("student uJ", "baseline uJ", "zeros skipped uJ", "ratio", "zeros skipped")
    table = make_table(
        "energy per inference", "model", "prices", *headings, left=2, fold=("prices",)
    )
    for each in models:
        model = each["model"] + (f", {each['active']}" if each["active"] else "")
        model += f", reuse {each['reuse']:g}" if each["reuse"] else ""
        # Marked in every cell: a number is read without its row.
        mixed = " mixed" if each["mixed"] else ""
        rivals = (each["baseline"], each["effective"])
        ratios = (each["ratio"], each["ratio_effective"])
        table.add_row(
            model,
            each["profile"],
            _interval(each["student"]),
            *("-" if rival is None else _interval(rival) + mixed for rival in rivals),
            *("-" if ratio is None else f"{ratio:.3g}{mixed}" for ratio in ratios),
        )
    return table


def _interval(energy: Facts) -> str:
    """Return nominal and [lo, hi]; ? is unknown, >= a lower bound."""
    lo, hi = energy["lo_pj"], energy["hi_pj"]
    bounds = f" [{_uj(lo)}, {_uj(hi)}]"
    if lo == hi:
        bounds = " [?]" if lo is None else ""
    return f"{'>= ' if energy['partial'] else ''}{_uj(energy['nominal_pj'])}{bounds}"


def _print_ranking(facts: Facts) -> None:
    models, comparison = facts["models"], facts["comparison"]
    if any(each["mixed"] and each["ratio"] is not None for each in models):
        show("Ratios marked mixed compare two technologies: they rank nothing.")
    if comparison is None:
        return
    ratios = comparison["ratios"]
    if comparison["flips"]:
        # Both readings of one model blame the same term.
        terms = {label.split(",")[0]: term for label, term in comparison["responsible"].items()}
        blame = ", ".join(f"{term} ({model} model)" for model, term in terms.items())
        low, high = (find(ratios, key=lambda label: ratios[label][1]) for find in (min, max))
        show(
            f"RANKING FLIPS: no winner. The ratio is {ratios[low][1]:.3g} ({low}) and "
            f"{ratios[high][1]:.3g} ({high}). What costs the student most: {blame}."
        )
    elif len(ratios) > 1:
        # An interval with an unknown end cannot be compared.
        unknown = any(None in (lo, hi) for lo, _, hi in ratios.values())
        what = "Nominal values" if unknown else "Intervals"
        show(f"{what} rank the two alike in all {len(ratios)} comparisons of one technology.")
    if any(each["model"] == "chip" and not each["mixed"] for each in models):
        show("A chip's prices are another technology than the baseline's: no ratio.")


def _limits(rows: list[Facts]) -> Table:
    headings = ["rate", "largest", "factor", "steps", "most steps", "events/synapse"]
    headings += ["nJ a step", "dearest layer"]
    table = make_table(
        "where the student stops being cheaper", "model, against", *headings, fold=headings
    )
    for row in rows:
        # A neuron fires at most once a step.
        largest, most = row["rate_limit"], row["timesteps_limit"]
        table.add_row(
            f"{row['model']}, {row['against']}",
            f"{row['rate']:.2%}",
            "any" if largest is not None and largest >= 1 else _or_dash(largest, ".2%"),
            _or_dash(row["activity_scale"], ".3g"),
            f"{row['timesteps']:g}",
            _or_dash(None if most is None else max(0.0, most), ".1f"),
            f"{row['events_per_synapse']:.2f}",
            f"{row['step_pj'] / 1000:.2f}",
            f"{_short(row['worst_layer'])} {row['worst_share']:.0%} ({row['worst_term']})",
        )
    table.caption = (
        "factor: on all binary events, below 1 the student is the dearer one. A fair rival of a "
        f"rate code: an ANN of {rows[0]['quantised_rival_bits']} bits. "
        "The chip model has no rival: it prices no ANN."
    )
    return table


def _trades(facts: Facts) -> Table:
    of = f"({facts['trades_of']}; {facts['student']['energy']['model']} model)"
    title = f"what fewer steps or other thresholds would buy, each one run {of}"
    headings = ("ACC", "MAC", "energy nJ", "of now", "decided as now", "right")
    table = make_table(title, "change", *headings)
    for row in facts["trades"]:
        change = "{:g} steps" if row["change"] == "timesteps" else "thresholds x {:g}"
        table.add_row(
            change.format(row["value"]),
            f"{row['acc']:,.0f}",
            f"{row['mac']:,.0f}",
            _nj(row["energy_pj"]),
            f"{row['relative']:.1%}",
            f"{row['agreement']:.1%}",
            _or_dash(row["accuracy"], ".1%"),
        )
    return table


def _print_measured(facts: Facts) -> None:
    shown = [one for one in facts["floors"] if one["device"] in SHOWN_FLOORS]
    if shown:
        title = f"baseline on a GPU: {shown[0]['label']}"
        headings = ("device", "precision", "pJ per MAC", "floor uJ")
        table = make_table(title, *headings, left=0)
        for one in shown:
            per_mac, floor_pj = f"{one['pj_per_mac']:.2f}", one["floor_j"] * 1e12
            table.add_row(one["device"], one["precision"], per_mac, _uj(floor_pj))
        show(table)
    for side in ("floors", "gpu", "cpu"):
        if facts[f"{side}_refused"]:
            show(f"{side}: not measured, {facts[f'{side}_refused']}")
    for side in ("gpu", "cpu"):
        measured = facts[side] or {}
        for batch in measured.get("batches", ()):
            gross, net = (batch[f"{kind}_j"]["mean"] * 1e6 for kind in ("gross", "net"))
            joules = f"gross {gross:,.1f} uJ, net {net:,.1f} uJ per inference"
            show(f"{side}, batch {batch['batch']}: {joules}")
        for note in measured.get("notes", ()):
            show(f"{side}: {note}")
