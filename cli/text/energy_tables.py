"""The long tables of an inference's energy: layers, models, break-even, trades, floors, sources."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.table import Table

from knarr.cli.output import make_table, show, show_indented
from knarr.pipeline import amount, digits, interval, prefix_of, short_names, spelled

Facts = dict[str, Any]
WIDTH: Final = 80
STYLE: Final[dict[str, Any]] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "title_justify": "left",
    "title_style": "bold",
}
"""Tables of an energy page: as narrow as can be, so that numbers stand whole in 80 columns."""
COLUMNS: Final = {
    "spikes": "spikes",
    "acc": "ACC",
    "mac": "MAC",
    "bias_adds": "bias adds",
    "neuron_updates": "updates",
}
OTHER: Final = ("pool_adds", "merge_adds", "comparisons", "elementwise")
"""Counts that stand in one column: additions of pools and merges, comparisons, scales and
activations.
"""
LONGEST: Final = 40
"""Characters of a name at most."""
SHOWN_FLOORS: Final = ("v100", "h100_sxm_h200", "agx_orin", "orin_nano")


def narrow_table(title: str, *headings: str, left: int = 1, close: bool = False) -> Table:
    """Return an empty table whose cells are folded where they do not fit, and never cut.

    Args:
        title, headings, left: As `make_table` takes them.
        close: One column between two others, not two.
    """
    table = make_table(title, *headings, left=left, fold=headings, **STYLE)
    table.padding = (0, 0) if close else (0, 1, 0, 0)
    for column in table.columns[left:]:
        column.vertical = "top"
    return table


def print_long_tables(facts: Facts) -> None:
    """Print everything that the page leaves out."""
    for table in (
        *_operations(facts),
        _models(facts["same_technology"]),
        _parts(facts["why"]),
        _limits(facts["why"]["break_even"]),
        _trades(facts["why"]),
        _checks(facts["check"]),
    ):
        if table is not None:
            show(table, width=WIDTH)
            show("", width=WIDTH)
    if facts["measured"] is not None:
        _print_measured(facts["measured"])
    _print_sources(facts)


def _operations(facts: Facts) -> list[Table]:
    counts = facts["counts"]
    other = "pools float" if counts["student"]["pooling"] == "folded" else "pools folded"
    sides = {
        "SNN": counts["student"],
        f"SNN, {other}": counts["student_other_pooling"],
        "ANN": counts["baseline"],
    }
    found = []
    for label, each in sides.items():
        if each is not None:
            # An ANN has elementwise operations in every layer, which nobody prices.
            shown = tuple(COLUMNS)[1:] if label == "ANN" else (*tuple(COLUMNS)[1:], *OTHER)
            found.append(_layers(label, each, shown))
    return found


def _layers(label: str, counts: Facts, shown: tuple[str, ...]) -> Table:
    layers, total = counts["layers"], counts["total"]
    table = narrow_table(f"operations of each layer: {label}", "layer", *COLUMNS.values(), "other")
    names = short_names(layers, LONGEST)
    for name, layer in layers.items():
        if any(layer[column] for column in shown):
            table.add_row(names[name], *_cells(layer))
    name = "total"
    if total is None:
        name = "LOWER BOUND"
        # A total that leaves something out would be read as one; the sum is shown as a bound.
        keys = next(reversed(layers.values()))
        total = {key: sum(layer[key] for layer in layers.values()) for key in keys}
    table.add_section()
    table.add_row(name, *_cells(total))
    table.caption = "; ".join(_other_counts(counts)) or None
    return table


def _other_counts(counts: Facts) -> list[str]:
    """Say what other ways of counting the same give, where they differ from the table's."""
    found: list[str] = []
    total = counts["total"]
    if total is None:
        return found
    if counts["kind"] == "ann":
        # Published counts take it in or leave it out, and do not say which.
        found.append(f"with taps into the padding: {total['dense_padded']:,.0f} MAC")
        if counts["effective"] is not None:
            skipped = sum(counts["effective"].values())
            found.append(f"with zero activations skipped: {skipped:,.0f}")
        return found
    nonzero = total["acc_nonzero"] + total["mac_nonzero"]
    if total["acc"] + total["mac"] > nonzero:
        found.append(f"without weights that are 0, which sparse storage skips: {nonzero:,.0f}")
    return found


def _cells(layer: dict[str, float]) -> list[str]:
    numbers = [layer[column] for column in COLUMNS]
    numbers.append(sum(layer[column] for column in OTHER))
    return [f"{number:,.0f}" for number in numbers]


def _models(rows: list[Facts]) -> Table:
    headings = ("model", "prices", "against", "SNN", "rival", "SNN / rival")
    table = narrow_table("each model of one technology", *headings, left=3, close=True)
    for row in rows:
        ratio = row["ratio"]
        against = "-" if row["against"] is None else row["against"]
        against += f", {row['bits']} bits" if row["bits"] else ""
        bound = ">= " if row["partial"] else ""
        rival = "-" if row["baseline"] is None else _energy(row["baseline"])
        shown = "-" if ratio is None else f"{digits(ratio['nominal'])} {interval(ratio)}"
        table.add_row(
            row["label"], row["profile"], against, bound + _energy(row["student"]), rival, shown
        )
    table.caption = (
        "[?]: no bounds are published. reuse: times an ANN uses a fetched word; 1 is the worst "
        "case, the other an assumption."
    )
    return table


def _energy(bounds: Facts) -> str:
    prefix = prefix_of(bounds)
    return amount(bounds["nominal"], bounds["unit"], prefix)


def _parts(why: Facts) -> Table | None:
    if not why["shares"]:
        return None
    table = narrow_table(f"parts of the energy on {why['place']}", "layer", "term", "J", "share")
    names = short_names(
        dict.fromkeys(part["layer"] for part in why["shares"] if part["layer"]), LONGEST
    )
    for part in why["shares"]:
        value = {"low": None, "nominal": part["joules"], "high": None, "unit": "J"}
        layer = names.get(part["layer"], "whole chip")
        term = part["term"].replace("_", " and ")
        table.add_row(layer, term, _energy(value), f"{part['share']:.1%}")
    return table


def _limits(rows: list[Facts]) -> Table | None:
    if not rows:
        return None
    headings = ("model, prices, ANN", "rate", "even at", "steps", "even at", "dearest layer")
    table = narrow_table("where both sides would cost the same", *headings)
    names = short_names(dict.fromkeys(row["worst_layer"] for row in rows), LONGEST)
    for row in rows:
        # A neuron fires at most once a step.
        largest, most = row["rate_limit"], row["timesteps_limit"]
        rate = "any" if largest is not None and largest >= 1 else _or_dash(largest, ".2%")
        table.add_row(
            f"{row['model']}, {row['profile']}, {row['against']}",
            f"{row['rate']:.2%}",
            rate,
            f"{row['timesteps']:g}",
            _or_dash(None if most is None else max(0.0, most), ".1f"),
            f"{names[row['worst_layer']]} {row['worst_share']:.0%} ({row['worst_term']})",
        )
    table.caption = (
        f"A fair rival of a rate code is an ANN of {rows[0]['quantised_rival_bits']} bits."
    )
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _trades(why: Facts) -> Table | None:
    if not why["trades"]:
        return None
    title = f"fewer steps or other thresholds, each one run ({why['trades_of']})"
    headings = ("change", "ACC", "MAC", "operations", "decided as now", "right")
    table = narrow_table(title, *headings)
    first = why["trades"][0]
    for row in why["trades"]:
        change = "{:g} steps" if row["change"] == "timesteps" else "thresholds x {:g}"
        now, then = (one["acc"] + one["mac"] for one in (first, row))
        table.add_row(
            change.format(row["value"]),
            f"{row['acc']:,.0f}",
            f"{row['mac']:,.0f}",
            f"{then / now:.1%}" if now else "-",
            f"{row['agreement']:.1%}",
            _or_dash(row["accuracy"], ".1%"),
        )
    return table


def _checks(rows: list[Facts]) -> Table | None:
    if not rows:
        return None
    headings = ("predicted without the measurement", "predicted", "measured", "error")
    table = narrow_table("the same models beside measurements", *headings)
    for row in rows:
        predicted, unit = row["predicted"], row["predicted"]["unit"]
        prefix, error = prefix_of(predicted), row["relative_error"]
        inside = "" if row["measured_inside"] else " OUTSIDE"
        table.add_row(
            row["what"],
            spelled(predicted, prefix),
            amount(row["measured"], unit, prefix),
            ("-" if error is None else f"{error:+.0%}") + inside,
        )
    return table


def _print_measured(facts: Facts) -> None:
    shown = [one for one in facts["floors"] if one["device"] in SHOWN_FLOORS]
    if shown:
        title = f"ANN on a GPU: {shown[0]['label']}"
        table = narrow_table(title, "device", "precision", "pJ per MAC", "floor", left=2)
        for one in shown:
            floor = {"low": None, "nominal": one["floor_j"], "high": None, "unit": "J"}
            per_mac = f"{one['pj_per_mac']:.2f}"
            table.add_row(one["device"], one["precision"], per_mac, _energy(floor))
        show(table, width=WIDTH)
    for side in ("floors", "gpu", "cpu"):
        if facts[f"{side}_refused"]:
            show(f"{side}: not measured, {facts[f'{side}_refused']}", width=WIDTH)
    for side in ("gpu", "cpu"):
        for note in (facts[side] or {}).get("notes", ()):
            show(f"{side}: {note}", width=WIDTH)
    show("", width=WIDTH)


def _print_sources(facts: Facts) -> None:
    show("sources", width=WIDTH)
    places = facts["provenance"]["places"]
    show_indented(
        (f"{name}: {'; '.join(sources)}" for name, sources in places.items()), width=WIDTH
    )
    show_indented(facts["provenance"]["prices"], width=WIDTH)
    show("assumptions", width=WIDTH)
    for name, place in facts["places"].items():
        if place["assumptions"]:
            show_indented([f"{name}: {'; '.join(place['assumptions'])}"], width=WIDTH)
    notes = dict.fromkeys(note for row in facts["same_technology"] for note in row["notes"])
    show_indented(notes, width=WIDTH)
    hashes = facts["sha256"].items()
    show_indented((f"sha256 of {name}: {value}" for name, value in hashes), width=WIDTH)
