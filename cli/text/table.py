"""A grid's table: ours beside what was published, with a source for each number and a mark where the two cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from knarr.pipeline import (
    OTHER_DATA,
    ConfidenceInterval,
    Costs,
    GridTable,
    PublishedCell,
    Rate,
    RowSummary,
)

OTHER_PROTOCOL: Final = "**"
PARTIAL: Final = "~"
TITLES: Final = {
    "war": "accuracy (WAR)",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
}


def title_of(key: str) -> str:
    """A rate's name for people."""
    kind, _, name = key.partition("/")
    return TITLES.get(key) or f"{'recall' if kind == 'recall' else 'WAR'}, {name}"


def percent(interval: ConfidenceInterval | None) -> str:
    """[lo, hi] in %."""
    return "-" if interval is None else f"[{100 * interval.lo:.1f}, {100 * interval.hi:.1f}]"


class _Sources:
    """Sources, numbered as they are first named."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, row: RowSummary) -> int:
        assert row.beside is not None  # asked of published rows alone
        table = row.beside.row.table
        return self.numbers.setdefault(
            f"{table.source}. Protocol: {table.protocol}", len(self.numbers) + 1
        )


def print_table(table: GridTable, costs: Mapping[str, Costs | None], console: Console) -> None:
    """Everything a person would look at."""
    sources = _Sources()
    console.print(_rates(table, sources))
    for line in _footnotes(table):
        console.print(line)
    for source, number in sources.numbers.items():
        console.print(f"[{number}] {source}")
    if costs:
        console.print(_costs(costs))
        console.print(
            "Per inference, mean over runs. Energy: paper model, ACC and MAC alone at 45 nm; see `knarr energy`."
        )


def _rates(table: GridTable, sources: _Sources) -> Table:
    published = any(row.beside is not None for row in table.rows)
    rates = [rate for row in table.rows for rate in row.rates.values() if rate is not None]
    shown = {
        "seeds": any(rate.over_seeds is not None for rate in rates),
        "folds": any(rate.over_folds is not None for rate in rates),
    }
    text = Table(title=f"{table.title}, %", box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    text.add_column("", overflow="fold", min_width=20)
    heads = ["runs", *(["published"] if published else []), "ours", "over people"]
    heads += [f"over {what}" if what == "seeds" else what for what, there in shown.items() if there]
    for head in [*heads, *(["differ"] if published else [])]:
        text.add_column(head, justify="left" if head.startswith("over") else "right", no_wrap=True)
    for row in table.rows:
        text.add_row(f"{row.name} ({row.network})", f"{row.finished}/{row.wanted or '?'}")
        for key, cell in _lines(row):
            rate = row.rates[key]
            line = [f"  {title_of(key)}", ""]
            if published:
                line.append("" if cell is None else _published(cell, sources.number(row)))
            line += [_ours(row, rate), percent(None if rate is None else rate.over_people)]
            line += [percent(None if rate is None else rate.over_seeds)] if shown["seeds"] else []
            line += [_folds(rate)] if shown["folds"] else []
            text.add_row(*line, *([_difference(cell)] if published else []))
        text.add_section()
    return text


def _lines(row: RowSummary) -> list[tuple[str, PublishedCell | None]]:
    """Rates of a row in the order of the grid, each with its published cell where there is one."""
    cells = {} if row.beside is None else {cell.measure: cell for cell in row.beside.cells}
    return [(key, cells.get(key)) for key in row.rates]


def _published(cell: PublishedCell, number: int) -> str:
    return f"{'unknown' if cell.published is None else f'{cell.published:g}'} [{number}]"


def _ours(row: RowSummary, rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.1f}{_mark(row)}"


def _mark(row: RowSummary) -> str:
    mark = PARTIAL if row.partial else ""
    if row.beside is None or row.data is None:
        return mark
    return mark + (OTHER_PROTOCOL if row.beside.same_data else OTHER_DATA)


def _folds(rate: Rate | None) -> str:
    if rate is None or rate.over_folds is None:
        return "-"
    folds = rate.over_folds
    spread = "" if folds.spread is None else f" sd {100 * folds.spread:.1f}"
    return f"{100 * folds.mean:.1f}{spread}"


def _difference(cell: PublishedCell | None) -> str:
    return "-" if cell is None or cell.difference is None else f"{cell.difference:+.1f}"


def _footnotes(table: GridTable) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in table.rows:
        for note in _notes(row):
            found.setdefault(note, []).append(row.name)
    lines = []
    for note, rows in found.items():
        several = len(table.rows) > 1 and len(rows) < len(table.rows)
        lines.append(f"{note} ({'; '.join(rows)})" if several else note)
    level = "" if table.level is None else f"{100 * table.level:g} % intervals. "
    if any(rate is not None for row in table.rows for rate in row.rates.values()):
        lines.append(
            f"{level}over people: bootstrap of the mean over seeds; over seeds: Student's; folds: mean and "
            "standard deviation over folds."
        )
    lines.append("runs: finished/wanted; -: nothing yet, or not defined.")
    return lines


def _notes(row: RowSummary) -> list[str]:
    found = []
    mark, beside = _mark(row), row.beside
    if beside is not None and row.data is not None and mark.endswith(OTHER_PROTOCOL):
        found.append(
            f"{OTHER_PROTOCOL} the same data, another protocol; ours: {row.protocol or 'not stated'}"
        )
    elif beside is not None and row.data is not None and mark.endswith(OTHER_DATA):
        theirs = beside.row.table.data
        found.append(
            f"{OTHER_DATA} other data: {row.data}, theirs {theirs}; not comparable, no difference taken"
        )
    if row.partial:
        folds = f"; folds {row.folds} of {row.fold_count}" if row.fold_count > 1 else ""
        found.append(f"{PARTIAL} not all runs: {row.finished} of {row.wanted or '?'}{folds}")
    if beside is not None and beside.row.entry.note:
        found.append(f"{beside.row.entry.method}, published: {beside.row.entry.note}")
    return found


def _costs(costs: Mapping[str, Costs | None]) -> Table:
    text = Table(title="costs", box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    text.add_column("row", overflow="fold", max_width=30)
    for column in ("runs", "parameters", "dense MAC", "MAC", "ACC", "spike rate", "uJ"):
        text.add_column(column, justify="right")
    for name, one in costs.items():
        if one is None:
            text.add_row(name, "0", *["-"] * 6)
            continue
        text.add_row(
            name,
            str(one.runs),
            "-" if one.parameters is None else f"{one.parameters:,.0f}",
            *(f"{value / 1e6:,.3f} M" for value in (one.dense_macs, one.mac, one.acc)),
            "-" if one.spike_rate is None else f"{one.spike_rate:.2%}",
            "-" if one.energy_pj is None else f"{one.energy_pj / 1e6:,.3f}",
        )
    return text


def table_json(table: GridTable, costs: Mapping[str, Costs | None]) -> dict[str, Any]:
    """The same as plain data; rates 0 .. 1, published values and differences in %."""
    return {
        "name": table.name,
        "title": table.title,
        "columns": list(table.columns),
        "level": table.level,
        "rows": [_row_json(row, costs.get(row.name)) for row in table.rows],
    }


def _row_json(row: RowSummary, costs: Costs | None) -> dict[str, Any]:
    published = None
    if row.beside is not None:
        theirs = row.beside.row.table
        published = {
            "table": theirs.name,
            "method": row.beside.row.entry.method,
            "data": theirs.data,
            "protocol": theirs.protocol,
            "source": theirs.source,
            "note": row.beside.row.entry.note,
            "same_data": row.beside.same_data if row.data is not None else None,
            "values": {cell.measure: cell.published for cell in row.beside.cells},
            "difference": {cell.measure: cell.difference for cell in row.beside.cells},
        }
    return {
        "name": row.name,
        "network": row.network,
        "finished": row.finished,
        "wanted": row.wanted,
        "partial": row.partial,
        "seeds": list(row.seeds),
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
