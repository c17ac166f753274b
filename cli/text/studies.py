"""Studies of many runs as tables: a grid beside published numbers, a sweep's trials, a Pareto search.

A published number has its source, and a mark where it cannot be compared with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.table import Table

from knarr.cli.output import make_table, show
from knarr.pipeline import (
    ERRORS,
    OTHER_DATA,
    ConfidenceInterval,
    Costs,
    GridTable,
    ParetoPoint,
    ParetoResult,
    PublishedCell,
    Rate,
    RowSummary,
    SweepResult,
    SweepTrial,
    spelled,
)

OTHER_PROTOCOL: Final = "**"
PARTIAL: Final = "~"
TITLES: Final = {
    "war": "accuracy (WAR)",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
}
STYLE: Final[dict[str, Any]] = {"box": box.SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}
Cell = Callable[[str, RowSummary, Rate | None, PublishedCell | None], str]
"""(measure, row, our rate, published cell) -> text of one column; both may be missing."""


def title_of(key: str) -> str:
    """Return the name of a rate for people."""
    kind, _, name = key.partition("/")
    kinds = {"recall": "recall", **{error: error.upper() for error in ERRORS}}
    return TITLES.get(key) or f"{kinds.get(kind, 'WAR')}, {name}"


def is_error(key: str) -> bool:
    """Return whether a measure is an error of float targets, in their unit, and no rate in %."""
    return key.partition("/")[0] in ERRORS


def number(key: str, value: float) -> str:
    """Return a rate in %, or an error in the unit of its targets."""
    return f"{value:.4g}" if is_error(key) else f"{100 * value:.1f}"


def bounds(key: str, interval: ConfidenceInterval | None) -> str:
    """Return [lo, hi], in % of a rate."""
    if interval is None:
        return "-"
    return f"[{number(key, interval.lo)}, {number(key, interval.hi)}]"


def print_table(table: GridTable, costs: Mapping[str, Costs | None]) -> None:
    """Print the rates of all rows, what has to be known of them, and what inferences cost."""
    sources: dict[str, int] = {}
    show(_rates(table, sources))
    for line in _footnotes(table):
        show(line)
    for source, number in sources.items():
        show(f"[{number}] {source}")
    if costs:
        show(_costs(costs))
        show(
            "Per inference, mean over runs. Energy: total [low, high] at the place that is named; "
            "places are other technologies, `knarr energy RUN` compares them."
        )


def _rates(table: GridTable, sources: dict[str, int]) -> Table:
    """Return the table; `sources` is filled with the papers' numbers, in the order they are named."""
    rates = [rate for row in table.rows for rate in row.rates.values() if rate is not None]
    published = any(row.beside is not None for row in table.rows)
    columns: dict[str, Cell] = {}
    if published:
        columns["published"] = lambda key, row, rate, cell: _published(row, cell, sources)
    columns["ours"] = _ours
    columns["over people"] = lambda key, row, rate, cell: bounds(
        key, getattr(rate, "over_people", None)
    )
    if any(rate.over_seeds is not None for rate in rates):
        columns["over seeds"] = lambda key, row, rate, cell: bounds(
            key, getattr(rate, "over_seeds", None)
        )
    if any(rate.over_folds is not None for rate in rates):
        columns["folds"] = _folds
    if published:
        columns["differ"] = _difference
    unit = "" if all(map(is_error, table.columns)) else ", %"
    text = make_table(f"{table.title}{unit}", "", "runs", *columns, fold=("",), **STYLE)
    # Or rich would squeeze the names first, which stand in no other column.
    text.columns[0].min_width = 20
    for column in text.columns[1:]:
        column.no_wrap = True
        # Intervals are read as text.
        column.justify = "left" if str(column.header).startswith("over") else "right"
    for row in table.rows:
        # A row of the grid is a heading, its rates are lines below it.
        text.add_row(f"{row.name} ({row.network})", f"{row.finished}/{row.wanted or '?'}")
        cells = {} if row.beside is None else {cell.measure: cell for cell in row.beside.cells}
        for key, rate in row.rates.items():
            line = (write(key, row, rate, cells.get(key)) for write in columns.values())
            text.add_row(f"  {title_of(key)}", "", *line)
        text.add_section()
    return text


def _published(row: RowSummary, cell: PublishedCell | None, sources: dict[str, int]) -> str:
    if cell is None or row.beside is None:
        return ""
    table = row.beside.row.table
    source = f"{table.source}. Protocol: {table.protocol}"
    number = sources.setdefault(source, len(sources) + 1)
    return f"{'unknown' if cell.published is None else f'{cell.published:g}'} [{number}]"


def _ours(key: str, row: RowSummary, rate: Rate | None, cell: PublishedCell | None) -> str:
    return "-" if rate is None else f"{number(key, rate.value)}{_mark(row)}"


def _mark(row: RowSummary) -> str:
    # It holds whatever the data are, so it stands first.
    mark = PARTIAL if row.partial else ""
    if row.beside is None or row.data is None:
        return mark
    return mark + (OTHER_PROTOCOL if row.beside.same_data else OTHER_DATA)


def _folds(key: str, row: RowSummary, rate: Rate | None, cell: PublishedCell | None) -> str:
    if rate is None or rate.over_folds is None:
        return "-"
    folds = rate.over_folds
    spread = "" if folds.spread is None else f" sd {number(key, folds.spread)}"
    return f"{number(key, folds.mean)}{spread}"


def _difference(key: str, row: RowSummary, rate: Rate | None, cell: PublishedCell | None) -> str:
    return "-" if cell is None or cell.difference is None else f"{cell.difference:+.1f}"


def _footnotes(table: GridTable) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in table.rows:
        for note in _notes(row):
            found.setdefault(note, []).append(row.name)
    lines = []
    for note, rows in found.items():
        # A note on all rows, or on the only one, needs no names.
        everywhere = len(rows) == len(table.rows)
        lines.append(note if everywhere else f"{note} ({'; '.join(rows)})")
    if any(rate is not None for row in table.rows for rate in row.rates.values()):
        level = "" if table.level is None else f"{100 * table.level:g} % intervals. "
        lines.append(
            f"{level}over people: bootstrap of the mean over seeds; over seeds: Student's; "
            "folds: mean and standard deviation over folds."
        )
    lines.append("runs: finished/wanted; -: nothing yet, or not defined.")
    return lines


def _notes(row: RowSummary) -> list[str]:
    found, mark, beside = [], _mark(row), row.beside
    if mark.endswith(OTHER_PROTOCOL):
        found.append(
            f"{OTHER_PROTOCOL} the same data, another protocol; ours: {row.protocol or 'not stated'}"
        )
    elif mark.endswith(OTHER_DATA) and beside is not None:
        theirs = f"{row.data}, theirs {beside.row.table.data}"
        # A difference of two data sets would say nothing about the two methods.
        found.append(f"{OTHER_DATA} other data: {theirs}; not comparable, no difference taken")
    if row.partial:
        folds = f"; folds {row.folds} of {row.fold_count}" if row.fold_count > 1 else ""
        found.append(f"{PARTIAL} not all runs: {row.finished} of {row.wanted or '?'}{folds}")
    if beside is not None and beside.row.entry.note:
        found.append(f"{beside.row.entry.method}, published: {beside.row.entry.note}")
    return found


def _costs(costs: Mapping[str, Costs | None]) -> Table:
    headings = ("runs", "parameters", "dense M", "MAC M", "ACC M", "rate", "energy")
    text = make_table("costs", "row", *headings, fold=("row", *headings), **STYLE)
    text.columns[0].max_width = 26
    for name, one in costs.items():
        if one is None:
            text.add_row(name, "0", *["-"] * (len(headings) - 1))
            continue
        parameters, rate, energy = one.parameters, one.spike_rate, one.energy
        text.add_row(
            name,
            str(one.runs),
            "-" if parameters is None else f"{parameters:,.0f}",
            *(f"{value / 1e6:,.3f}" for value in (one.dense_macs, one.mac, one.acc)),
            "-" if rate is None else f"{rate:.2%}",
            "-" if energy is None else f"{spelled(energy)}\n{one.place}",
        )
    return text


def table_json(table: GridTable, costs: Mapping[str, Costs | None]) -> dict[str, Any]:
    """Return the same as plain data; rates are 0 .. 1, published values and differences in %, errors
    in the unit of their targets.
    """
    return {
        "name": table.name,
        "title": table.title,
        "columns": table.columns,
        "level": table.level,
        "rows": [_row_json(row, costs.get(row.name)) for row in table.rows],
    }


def _row_json(row: RowSummary, costs: Costs | None) -> dict[str, Any]:
    published = None
    if row.beside is not None:
        cells, (theirs, entry) = row.beside.cells, (row.beside.row.table, row.beside.row.entry)
        published = {
            "table": theirs.name,
            "method": entry.method,
            "data": theirs.data,
            "protocol": theirs.protocol,
            "source": theirs.source,
            "note": entry.note,
            # With nothing finished there is nothing to call the same.
            "same_data": row.beside.same_data if row.data is not None else None,
            "values": {cell.measure: cell.published for cell in cells},
            "difference": {cell.measure: cell.difference for cell in cells},
        }
    return {
        "name": row.name,
        "network": row.network,
        "finished": row.finished,
        "wanted": row.wanted,
        "partial": row.partial,
        "seeds": row.seeds,
        "folds": row.folds,
        "fold_count": row.fold_count,
        "data": row.data,
        "protocol": row.protocol,
        "samples": row.samples,
        "subjects": row.subjects,
        "rates": {key: None if rate is None else asdict(rate) for key, rate in row.rates.items()},
        "published": published,
        "costs": None if costs is None else asdict(costs),
    }


SHOWN: Final = 10
"""Trials of a sweep that are listed."""


def sweep_facts(result: SweepResult) -> dict[str, Any]:
    """Return everything that the table says, as plain data."""
    states = [trial.state for trial in result.trials]
    return {
        "out": str(result.out),
        "sweep": result.sweep.settings.name,
        "metric": result.sweep.settings.metric,
        "trials": {state: states.count(state) for state in ("finished", "pruned", "refused")},
        "best": None if result.best is None else _plain(result.best),
        "ranked": [_plain(trial) for trial in result.ranked()[:SHOWN]],
        "importance": result.importance,
        "files": result.files,
    }


def _plain(trial: SweepTrial) -> dict[str, Any]:
    facts = {
        "trial": trial.folder,
        "state": trial.state,
        "value": trial.value,
        "parameters": trial.parameters,
    }
    # Only trials that were refused have one.
    return {**facts, "reason": trial.reason} if trial.reason else facts


def print_sweep(result: SweepResult) -> None:
    """Print the best trials, and where the results lie."""
    settings = result.sweep.settings
    # The best first; a search has hundreds of trials.
    shown = result.ranked()[:SHOWN]
    what = (
        f"best {len(shown)} of {len(result.trials)} trials"
        if len(shown) < len(result.trials)
        else "all trials"
    )
    title = f"{settings.name}: {what}, {settings.metric.replace('_', ' ')} of the student"
    words = ("parameters", "state")
    table = make_table(title, "trial", "value", *words, left=4, fold=words)
    table.columns[1].justify = "right"
    for trial in shown:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        parameters = "\n".join(
            f"{path} {_short(found)}" for path, found in trial.parameters.items()
        )
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        table.add_row(trial.folder, value, parameters, state)
    show(table)
    if result.best is None:
        show("No trial finished: see the states above, and widen the search.")
    else:
        best = result.best.parameters.items()
        found = ", ".join(f"{path} {_short(value)}" for path, value in best)
        show(f"Best: {result.best.folder} with {found}")
        show(
            "Validation data chose it, so its value flatters it; only test data say how good it is."
        )
    for name, path in result.files.items():
        show(f"{name.replace('_', ' ')}: {path}", soft_wrap=True)


def print_pareto(result: ParetoResult) -> None:
    """Print all points from the cheapest on, and what was refused."""
    facts, by = result.facts, result.facts["by"]
    clips = facts["float_validation"]["clips"]
    good = "error" if "mae" in facts["float_validation"] else "accuracy"
    title = (
        f"{facts['recipe']}: {good} against energy ({by}) per inference, {clips} validation clips"
    )
    headings = ("bits", "steps", "ACC goal", "validation", "test", "ACC", "energy [low, high]")
    table = make_table(title, *headings, left=0, fold=headings, **STYLE)
    table.add_column("front")
    for point, names in zip(result.points, facts["points"], strict=True):
        test = point.facts["test"]
        table.add_row(
            str(names["weight_bits"]),
            str(names["timesteps"]),
            _goal(names["acc_share"], point),
            _good(point.facts["validation"]),
            _good(test),
            f"{point.facts['counts']['acc']:,.0f}",
            spelled(point.energy(by)),
            "*" if point.front else "",
        )
    if result.points:
        show(table)
        show(f"Energy: {by}; worst grade of its prices {result.points[0].energy(by)['grade']}.")
    of_float = facts["float_validation"]
    what = "mean absolute error on" if "mae" in of_float else "of"
    show(f"Float student: {_good(of_float)} {what} the validation clips.")
    show("Validation clips chose epochs and front, test clips nothing.")
    # A combination that no chip can hold is an answer too.
    for refused in facts["refused"]:
        steps = "" if refused["timesteps"] is None else f", {refused['timesteps']} steps"
        show(f"refused: {refused['weight_bits']} bits{steps}: {refused['reason']}", soft_wrap=True)
    if result.points:
        show(f"picture: {facts['picture']}", soft_wrap=True)


def _good(measured: Mapping[str, Any]) -> str:
    """Return the accuracy, or the mean absolute error."""
    if "mae" in measured:
        return f"{measured['mae']:.4g}"
    return f"{measured['correct'] / measured['clips']:.1%}"


def _goal(share: float | None, point: ParetoPoint) -> str:
    if share is None:
        return "-"
    # The goal is held against validation clips, as in training.
    missed = point.facts["validation"]["accumulates"] > point.facts["acc_goal"]
    return f"{share:.0%}" + (" missed" if missed else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
