"""Rates of each network of a run, per class and lighting, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from knarr.cli.output import make_table, show
from knarr.cli.text.studies import STYLE, bounds, number, title_of
from knarr.pipeline import (
    ERRORS,
    RATES,
    SHARED,
    Estimate,
    Measures,
    Network,
    RunEvaluation,
    ValueMeasures,
    measures_json,
)

HEADINGS: Final[dict[Network, str]] = {
    "teacher": "teacher",
    "student": "student (float)",
    "chip": "chip (integers)",
}
FEW_PEOPLE: Final = 10
"""Fewer make the bootstrap's interval too narrow."""


def print_evaluation(evaluation: RunEvaluation) -> None:
    """Print rates with intervals, a column for each network, and what has to be known of them."""
    measures = evaluation.measures
    columns = [HEADINGS[network] for network in measures]
    unit = "" if evaluation.targets else ", %"
    title = f"{evaluation.on}: {len(evaluation.labels)} test samples{unit}"
    table = make_table(title, "", *columns, left=1 + len(columns), fold=("",), **STYLE)
    for column in table.columns[1:]:
        # A rate and its interval in two lines would look like two rates.
        column.no_wrap = True
    whole = ERRORS if evaluation.targets else RATES
    for key in _keys(evaluation):
        rates = (_rate(key, found.of(key)) for found in measures.values())
        table.add_row(title_of(key), *rates, end_section=key == whole[-1])
    show(table)
    for line in _notes(evaluation):
        show(line)


def _keys(evaluation: RunEvaluation) -> list[str]:
    """Return the names of the rates or errors that are printed: of the whole, of each lighting, of
    each class or target.
    """
    # All networks saw the same samples, so one says it for all.
    first = next(iter(evaluation.measures.values()))
    groups = [f"group/{name}" for name in first.groups]
    if isinstance(first, ValueMeasures):
        # With one target the errors of the whole are its own.
        return [*(ERRORS if len(first.targets) == 1 else first.errors), *groups]
    recalls = (f"recall/{name}" for name in evaluation.classes)
    return [*RATES, *groups, *recalls]


def _rate(key: str, rate: Estimate | None) -> str:
    """Return a rate in %, or an error, with its interval; a w marks Wilson's."""
    if rate is None:
        return "-"
    interval = ""
    if rate.bootstrap is not None:
        interval = f" {bounds(key, rate.bootstrap)}"
    elif rate.wilson is not None:
        interval = f" {bounds(key, rate.wilson)}w"
    return f"{number(key, rate.value)}{interval}"


def _notes(evaluation: RunEvaluation) -> Iterable[str]:
    measures = evaluation.measures
    seen = next(iter(measures.values()))
    people = "nobody's samples" if seen.subjects is None else f"{seen.subjects} people"
    windows = ", ".join(f"{network} {found.passes}" for network, found in measures.items())
    sampling = "" if evaluation.sampling is None else f" of {evaluation.sampling}"
    yield f"{people}; windows of each sample{sampling}: {windows}."
    main = (ERRORS if evaluation.targets else RATES)[0]
    word = "Mean absolute error" if evaluation.targets else "Accuracy"
    whole = {network: found.of(main) for network, found in measures.items()}
    spreads = [
        f"{network} {number(main, found.spread)}"
        for network, found in whole.items()
        if found is not None and found.spread is not None
    ]
    if spreads:
        points = "" if evaluation.targets else " points"
        yield f"{word} over windows, standard deviation: {', '.join(spreads)}{points}."
    if evaluation.fold_count > 1:
        yield f"Folds: {len(evaluation.fold_numbers)} of {evaluation.fold_count}."
    if evaluation.protocol:
        yield f"Protocol: {evaluation.protocol}."
    level = f"{100 * evaluation.level:g} %"
    if any(found is not None and found.bootstrap is not None for found in whole.values()):
        few = seen.subjects is not None and seen.subjects < FEW_PEOPLE
        warning = " Fewer than ten people: too narrow." if few else ""
        if seen.subjects is None:
            drawn, warning = "samples", " As if they were independent."
        else:
            drawn = "people"
        yield f"[ ]: {level}, bootstrap over {drawn}.{warning}"
    # A rate without people falls back to Wilson's.
    keys = _keys(evaluation)
    if any(_rate(key, found.of(key)).endswith("w") for found in measures.values() for key in keys):
        yield (
            f"[ ]w: {level}, Wilson's, as if samples were independent; "
            "too narrow where people matter."
        )
    if isinstance(seen, Measures) and seen.absent:
        yield f"No test sample of {', '.join(seen.absent)}: left out of UAR and macro F1."
    for network in measures:
        own = list(_people(evaluation, network).values())
        # One person is no spread.
        if len(own) > 1:
            ends = (
                (np.max, np.median, np.min) if evaluation.targets else (np.min, np.median, np.max)
            )
            low, middle, high = (number(main, float(f(own))) for f in ends)
            spread = f"{low} worst, {middle} median, {high} best"
            yield f"{word} of single people, {network}: {spread}."


def _people(evaluation: RunEvaluation, network: Network) -> dict[str, float]:
    """Return the accuracy or the mean absolute error of each person; empty where samples are
    nobody's.
    """
    if evaluation.subjects is None:
        return {}
    seen, labels = evaluation.predicted[network], evaluation.labels
    # Passes count alike, so the mean over them comes first.
    if evaluation.targets:
        right = np.abs(seen - labels).mean(axis=(0, 2))
    else:
        right = (seen == labels).mean(axis=0)
    owners = np.array(evaluation.subjects)
    return {str(name): float(right[owners == name].mean()) for name in np.unique(owners)}


def evaluation_facts(evaluation: RunEvaluation) -> dict[str, Any]:
    """Return the same as plain data, with the names of evaluation.json; rates are 0 .. 1.

    Single samples stand in the file alone.
    """
    anonymous = evaluation.subjects is None
    return {
        **{field: getattr(evaluation, field) for field in SHARED},
        "folds": evaluation.fold_numbers,
        "networks": {
            network: {
                "measures": measures_json(found),
                "people": None if anonymous else _people(evaluation, network),
            }
            for network, found in evaluation.measures.items()
        },
    }
