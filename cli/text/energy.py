"""The cost of an inference as a page of 80 columns: the verdict, where it runs, the same technology
for both sides, counts, why, and what is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, Final

from rich.text import Text

from knarr.cli.output import show
from knarr.cli.text.energy_tables import LONGEST, WIDTH, narrow_table, print_long_tables
from knarr.errors import one_line
from knarr.pipeline import (
    TERMS,
    amount,
    digits,
    interval,
    json_text,
    over_technologies,
    prefix_of,
    short_names,
    short_reason,
    spelled,
)

Facts = dict[str, Any]
COUNTS: Final = {
    "synops": "synops",
    "acc": "  ACC",
    "mac": "  MAC",
    "dense": "dense operations",
    "effective": "without zeros",
    "events": "events",
    "updates": "membrane updates",
    "spikes": "spikes",
    "messages": "messages",
    "hops": "hops",
    "bias_adds": "bias adds",
    "parameters": "parameters",
    "footprint_bytes": "footprint, bytes",
}
SHARES: Final = {
    "activation_sparsity": "activation sparsity",
    "skipped_share": "dense operations skipped",
}
MESSAGES: Final = "messages between cores: "
CURE: Final = "a neuron cannot be split"
TOP: Final = 3
"""Parts of the energy that the short page names."""


def print_energy(facts: Facts, *, json: bool, everything: bool = False) -> None:
    """Print the content of energy.json.

    Args:
        facts: Its content.
        json: Print it as it is.
        everything: Print the long tables too: layers, models, break-even, trades, floors.
    """
    if json:
        print(json_text(facts))
        return
    print_verdict(facts)
    print_places(facts)
    _print_same_technology(facts)
    print_counts(facts)
    _print_why(facts)
    _print_check(facts)
    _print_rest(facts)
    if everything:
        print_long_tables(facts)
    else:
        _line("Layers, models, trades and sources: --all; everything as data: --json.")


def print_verdict(facts: Facts) -> None:
    """Print the sentences that the numbers force."""
    student = facts["counts"]["student"]
    samples = numbered(student["samples"], "sample")
    steps = numbered(student["timesteps"], "step")
    _line(
        f"VERDICT: energy of an inference, mean of {samples}, {steps} "
        f"(knarr {facts['knarr']}, schema {facts['schema']})",
        style="bold",
    )
    for sentence in facts["verdict"]["sentences"]:
        _line(f"- {sentence}", indent="  ")
    show("", width=WIDTH)


def print_places(facts: Facts) -> None:
    """Print what an inference costs at each place, and what is unknown there."""
    if not facts["places"]:
        return
    title = "1 Where it runs: nominal, below it low-high; worst grade of the prices"
    table = narrow_table(title, "", *TERMS.values(), close=True)
    for name, place in facts["places"].items():
        network = "SNN" if place["network"] == "student" else "ANN"
        first, _, second = name.partition(", ")
        cells = [_stacked(place[term]) for term in TERMS]
        mark = f"{network}, {place['grade']}"
        table.add_row(f"{first}\n{second}\n({mark})" if second else f"{first}\n({mark})", *cells)
    show(table, width=WIDTH)
    for line in _unknown(facts["places"]):
        _line(line, indent="  ")
    show("", width=WIDTH)


def _stacked(bounds: Mapping[str, Any]) -> str:
    """Return the nominal value with its unit, and low-high below it."""
    if all(bounds[name] is None for name in ("low", "nominal", "high")):
        return "?"
    prefix = prefix_of(bounds, 1.0)
    nominal = amount(bounds["nominal"], bounds["unit"], prefix)
    ends = interval(bounds, prefix).strip("[]").replace(", ", "-")
    return f"{nominal}\n{ends}" if ends else nominal


def _unknown(places: Mapping[str, Facts]) -> Iterator[str]:
    said: dict[str, dict[str, None]] = {}
    for name, place in places.items():
        for term in TERMS:
            # The source of a limit is in --json.
            for why in short_reason(place[term]["why_unknown"]).split("; "):
                short = why.removeprefix(MESSAGES)
                if short and not short.startswith(CURE):
                    said.setdefault(short, {})[name] = None
    for why, names in said.items():
        yield f"?, {', '.join(names)}: {why}"


def _print_same_technology(facts: Facts) -> None:
    rows = [row for row in facts["same_technology"] if row["ratio"] is not None]
    if not rows:
        for row in facts["same_technology"]:
            energy = spelled(row["student"])
            _line(f"2 SNN by {row['profile']} ({row['label']}): {energy}", indent="  ")
        show("", width=WIDTH)
        return
    same = facts["verdict"]["same_technology"]
    used = "" if same is None else f" ({'; '.join(same['technologies'])})"
    _line(f"2 Same technology: SNN / rival, below 1 the SNN is cheaper{used}")
    found = over_technologies(rows)
    rivals = {row["against"]: row["bits"] for row in found}
    names = (
        f"{bits}-bit twin" if "twin" in name else f"ANN, {name}" for name, bits in rivals.items()
    )
    table = narrow_table("", "model", *names, close=True)
    for label in dict.fromkeys(row["label"] for row in found):
        cells = {row["against"]: _ratio(row) for row in found if row["label"] == label}
        table.add_row(label, *(cells.get(rival, "-") for rival in rivals))
    show(table, width=WIDTH)
    _line(
        "Nominal of the first technology [least, most over technologies and published bounds].",
        indent="  ",
    )
    own = dict.fromkeys(row["precision"] for row in rows if row["own_precision"])
    if own:
        _line(
            f"as is: each side in its own precision, the SNN's first: {', '.join(own)}.",
            indent="  ",
        )
    show("", width=WIDTH)


def _ratio(row: Mapping[str, Any]) -> str:
    # Three of these and a label are 80 columns.
    return f"{digits(row['nominal'])} {interval(row).replace(', ', '-')}"


def print_counts(facts: Facts) -> None:
    """Print the counts of both networks by NeuroBench's names."""
    summary = facts["counts"]["summary"]
    sides = {"SNN": summary["student"], "ANN": summary["baseline"]}
    shown = {name: row for name, row in sides.items() if row is not None}
    headings = (f"{name}, LOWER BOUND" if row["partial"] else name for name, row in shown.items())
    table = narrow_table("3 Counts per inference", "", *headings)
    for key, label in (COUNTS | SHARES).items():
        values = [row[key] for row in shown.values()]
        if any(value is not None for value in values):
            form = "{:.1%}" if key in SHARES else "{:,.0f}"
            table.add_row(label, *("-" if one is None else form.format(one) for one in values))
    show(table, width=WIDTH)
    for side in ("student", "baseline"):
        counts = facts["counts"][side]
        for row in counts["ledger"] if counts is not None else ():
            if row["status"] in ("unsupported", "not executed"):
                refused = f"NOT COUNTED: '{row['name']}' ({row['operation']}): {row['note']}"
                _line(one_line(refused))
    show("", width=WIDTH)


def _print_why(facts: Facts) -> None:
    why = facts["why"]
    if why["shares"]:
        layers = dict.fromkeys(part["layer"] for part in why["shares"] if part["layer"])
        names = short_names(layers, LONGEST) | {"": ""}
        parts = (
            f"{names[part['layer']]} {part['term']} {part['share']:.0%}".strip()
            for part in why["shares"][:TOP]
        )
        _line(f"4 Why: on {why['place']}, of the nominal energy: {'; '.join(parts)}.")
    for lever in why["levers"]:
        _line(f"- {lever['sentence']}", indent="  ")


def _print_check(facts: Facts) -> None:
    rows = facts["check"]
    if not rows:
        return
    first = rows[0]
    inside = "inside" if first["measured_inside"] else "OUTSIDE"
    unit = first["predicted"]["unit"]
    measured = amount(first["measured"], unit, prefix_of(first["predicted"]))
    _line(
        f"5 Check: {first['what']}: predicted {spelled(first['predicted'])}, measured {measured}, "
        f"{first['relative_error']:+.0%}, {inside} the bounds; left out: {first['left_out']}."
        f"{_all_checks(rows)}"
    )


def _all_checks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how all rows did, so that the first is not read as all of them."""
    inside = sum(row["measured_inside"] is True for row in rows)
    return (
        f" Of all {len(rows)} rows {inside} lie inside (benchmarks/results/energy_validation.md)."
    )


def _print_rest(facts: Facts) -> None:
    _line(f"6 Not included: {'; '.join(facts['not_included'])}.")
    formula = facts["literature_formula"]
    ratio = formula["ratio"]
    found = "" if ratio is None else f", SNN / ANN {digits(ratio['nominal'])} [?]"
    _line(
        f"Literature formula {formula['formula']}, to compare with papers alone: SNN "
        f"{spelled(formula['student'])}{found}."
    )
    _line(f"Worst grade of all prices: {facts['provenance']['worst_grade']}.")


def numbered(number: float, what: str) -> str:
    """Return "1 sample" or "2 samples"."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _line(text: str, *, indent: str = "", style: str = "") -> None:
    """Print a line that is folded at 80 columns, its further lines to the right."""
    # Names in a profile and in a model may hold anything.
    folded = fill(
        one_line(text, most=len(text)),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    show(Text(folded, style=style), width=WIDTH)
