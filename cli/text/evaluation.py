"""`knarr evaluate`: how right each network of a run is, per class and lighting, and how sure that is."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from knarr.cli.text.table import percent, title_of
from knarr.pipeline import RATES, SHARED, Estimate, Network, RunEvaluation, measures_json

ABOUT: dict[Network, str] = {
    "teacher": "teacher",
    "student": "student (float)",
    "chip": "chip (integers)",
}


def print_evaluation(evaluation: RunEvaluation, console: Console) -> None:
    """Rates with intervals, a column for each network, and what has to be known of them."""
    measures = evaluation.measures
    seen, keys = next(iter(measures.values())), _keys(evaluation)
    text = Table(
        title=f"{evaluation.on}: {seen.samples} test samples, %",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    text.add_column("", overflow="fold")
    for network in measures:
        text.add_column(ABOUT[network], no_wrap=True)
    for n, key in enumerate(keys):
        rates = (found.of(key) for found in measures.values())
        text.add_row(
            title_of(key), *(_rate(rate) for rate in rates), end_section=n + 1 == len(RATES)
        )
    console.print(text)
    for line in _notes(evaluation):
        console.print(line)


def _keys(evaluation: RunEvaluation) -> list[str]:
    """What is printed: the whole, each lighting, each class."""
    groups = next(iter(evaluation.measures.values())).groups
    return [
        *RATES,
        *(f"group/{name}" for name in groups),
        *(f"recall/{name}" for name in evaluation.classes),
    ]


def _rate(rate: Estimate | None) -> str:
    if rate is None:
        return "-"
    sure, which = (rate.bootstrap, "") if rate.bootstrap is not None else (rate.wilson, "w")
    bounds = "" if sure is None else f" {percent(sure)}{which}"
    return f"{100 * rate.value:.1f}{bounds}"


def _notes(evaluation: RunEvaluation) -> list[str]:
    measures = evaluation.measures
    seen = next(iter(measures.values()))
    people = "nobody's samples" if seen.subjects is None else f"{seen.subjects} people"
    windows = ", ".join(f"{network} {found.passes}" for network, found in measures.items())
    how = "" if evaluation.sampling is None else f" of {evaluation.sampling}"
    lines = [f"{people}; windows of each sample{how}: {windows}."]
    spreads = [
        f"{network} {100 * found.war.spread:.1f}"
        for network, found in measures.items()
        if found.war.spread is not None
    ]
    if spreads:
        lines.append(f"Accuracy over windows, standard deviation: {', '.join(spreads)} points.")
    if evaluation.fold_count > 1:
        lines.append(f"Folds: {len(evaluation.fold_numbers)} of {evaluation.fold_count}.")
    if evaluation.protocol:
        lines.append(f"Protocol: {evaluation.protocol}.")
    level = f"{100 * evaluation.level:g} %"
    if any(found.war.bootstrap is not None for found in measures.values()):
        few = (
            " Fewer than ten people: too narrow."
            if seen.subjects is not None and seen.subjects < 10
            else ""
        )
        lines.append(f"[ ]: {level}, bootstrap over people.{few}")
    if any(
        _rate(found.of(key)).endswith("w")
        for found in measures.values()
        for key in _keys(evaluation)
    ):
        lines.append(
            f"[ ]w: {level}, Wilson's, as if samples were independent; too narrow where people matter."
        )
    if seen.absent:
        lines.append(f"No test sample of {', '.join(seen.absent)}: left out of UAR and macro F1.")
    for network in measures:
        own = _people(evaluation, network)
        if len(own) > 1:
            low, middle, high = (100 * float(f(own)) for f in (np.min, np.median, np.max))
            lines.append(
                f"Accuracy of single people, {network}: {low:.1f} worst, {middle:.1f} median, {high:.1f} best."
            )
    return lines


def _people(evaluation: RunEvaluation, network: Network) -> list[float]:
    """Accuracy of each person, in the order of their names; none where samples are nobody's."""
    if evaluation.subjects is None:
        return []
    right = (evaluation.predicted[network] == evaluation.labels).mean(axis=0)
    owners = np.array(evaluation.subjects)
    return [float(right[owners == person].mean()) for person in np.unique(owners)]


def evaluation_facts(evaluation: RunEvaluation) -> dict[str, Any]:
    """The same as plain data, with the names of evaluation.json; single samples stand there alone. Rates 0 .. 1."""
    shared = {field: getattr(evaluation, field) for field in SHARED} | {
        "classes": list(evaluation.classes)
    }
    people = None if evaluation.subjects is None else sorted(set(evaluation.subjects))
    return {
        **shared,
        "folds": list(evaluation.fold_numbers),
        "networks": {
            network: {
                "measures": measures_json(found),
                "people": None
                if people is None
                else dict(zip(people, _people(evaluation, network), strict=True)),
            }
            for network, found in evaluation.measures.items()
        },
    }
