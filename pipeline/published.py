"""Published results, read from published.yaml, and a row of ours beside one of theirs.

What is not public is null there. A number of ours on other data than the published one is marked so, and no difference is taken:
generated eyes, or a stress data set in the shape of DEAP, say nothing about the published ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field, ValidationError, model_validator

from knarr.pipeline.measures import Estimate
from knarr.train.settings import Frozen, YamlError, faults_of, read_yaml

FILE = "published.yaml"
Number = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Text = Annotated[str, Field(min_length=1)]
OTHER_DATA = "*"
Found = TypeVar("Found")


class Rates(Protocol):
    """Whatever has rates by name: `Measures`, or means over several."""

    def of(self, key: str) -> Estimate | None:
        """See `Measures.of`."""


class Column(Frozen):
    """One column of a table.

    Args:
        name: as printed. unit: of its values.
        measures: which of `Measures.of` it can be compared with; several where the paper does not say which it is.
    """

    name: Text
    unit: Literal["%", "GMAC", "ms"]
    measures: tuple[Text, ...] = ()


class Entry(Frozen):
    """One printed row: a value for each column, null where none is public."""

    method: Text
    values: tuple[Number | None, ...]
    note: str = ""


class Table(Frozen):
    """A published table.

    Args:
        name: ours. system: which of the three systems it is a yardstick of.
        data: the data set, and the task where there are several. protocol: how they were measured, as far as it is known.
        source: paper and table.
        counts: samples that a measure is taken over, by its name, where they are known.
    """

    name: Text
    system: Literal["mskd", "emotionkd", "spiking_emotions"]
    data: Text
    protocol: Text
    source: Text
    counts: dict[Text, Annotated[int, Field(gt=0, strict=True)]] = Field(default_factory=dict)
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    rows: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Table:
        _unique("columns", [column.name for column in self.columns])
        _unique("methods", [row.method for row in self.rows])
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"{row.method}: {len(row.values)} values for {len(self.columns)} columns"
                )
            for column, value in zip(self.columns, row.values, strict=True):
                if column.unit == "%" and value is not None and value > 100:
                    raise ValueError(f"{row.method}: {column.name} {value} % > 100")
        return self


class Published(Frozen):
    """All tables."""

    tables: Annotated[tuple[Table, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Published:
        _unique("tables", [table.name for table in self.tables])
        return self

    def table(self, name: str) -> Table:
        """A table by name.

        Raises:
            ValueError: there is none; names those there are.
        """
        return _find("table", name, {table.name: table for table in self.tables})

    def row(self, table: str, method: str) -> Row:
        """A row by its table and method.

        Raises:
            ValueError: there is none; names those there are.
        """
        found = self.table(table)
        return Row(found, _find("method", method, {entry.method: entry for entry in found.rows}))


@dataclass(frozen=True)
class Row:
    """A published row, and the table it stands in."""

    table: Table
    entry: Entry

    def value(self, column: str) -> float | None:
        """The value in a column by its name; None where it is not public.

        Raises:
            ValueError: no such column.
        """
        names = [own.name for own in self.table.columns]
        return _find("column", column, dict(zip(names, self.entry.values, strict=True)))


@dataclass(frozen=True)
class PublishedCell:
    """One number of theirs beside one of ours.

    Args:
        column: as printed. measure: which of ours.
        published: %, None where it is not public.
        ours: None where we have none: another class list, no groups, a class that never occurs.
        difference: ours - published, percentage points; None where one is missing, or the data differ.
    """

    column: str
    measure: str
    published: float | None
    ours: Estimate | None
    difference: float | None


@dataclass(frozen=True)
class Beside:
    """A row of ours beside a published one.

    Args:
        row: theirs. data: ours. name: ours.
        same_data: whether ours is measured on what theirs is measured on.
        cells: those columns that we can measure.
        marks: what a reader has to know; never empty, for the protocols are never quite the same.
    """

    row: Row
    name: str
    data: str
    same_data: bool
    cells: tuple[PublishedCell, ...]
    marks: tuple[str, ...]

    def lines(self) -> list[str]:
        """A Markdown table, and the marks below it; ours carries `*` where it is on other data."""
        head = f"| | {self.row.entry.method} | {self.name} |"
        return [head, "|-|-|-|", *map(self._line, self.cells), "", *self.marks]

    def _line(self, cell: PublishedCell) -> str:
        theirs = "unknown" if cell.published is None else f"{cell.published:g}"
        title = (
            cell.column if len(self._candidates(cell)) == 1 else f"{cell.column} ({cell.measure})"
        )
        if cell.ours is None:
            return f"| {title} | {theirs} | - |"
        sure = cell.ours.bootstrap or cell.ours.wilson
        bounds = "" if sure is None else f" [{100 * sure.lo:.1f}, {100 * sure.hi:.1f}]"
        return f"| {title} | {theirs} | {100 * cell.ours.value:.1f}{'' if self.same_data else OTHER_DATA}{bounds} |"

    def _candidates(self, cell: PublishedCell) -> list[PublishedCell]:
        return [other for other in self.cells if other.column == cell.column]


def compare_with_published(ours: Rates, row: Row, *, data: str, name: str = "ours") -> Beside:
    """A row of ours next to a published one.

    Args:
        ours: what was measured; groups are compared with the columns of groups (SEE's lighting).
        row: the published one.
        data: what ours was measured on, in the words of `row.table.data` if and only if it is the same ("SEE").
        name: what to call ours.

    Returns:
        One cell for each column that we measure, two where the paper does not say which measure it is (F1). Costs in other units
        than % are not compared here.
    """
    same = data == row.table.data
    cells = []
    for column, value in zip(row.table.columns, row.entry.values, strict=True):
        for key in column.measures:
            own = ours.of(key)
            difference = (
                None if own is None or value is None or not same else 100 * own.value - value
            )
            cells.append(PublishedCell(column.name, key, value, own, difference))
    marks = (
        []
        if same
        else [f"{OTHER_DATA} other data: {data}, theirs {row.table.data}; not comparable"]
    )
    marks.append(f"published: {row.table.source}; {row.table.protocol}")
    marks += [f"{row.entry.method}: {row.entry.note}"] if row.entry.note else []
    return Beside(row, name, data, same, tuple(cells), tuple(marks))


@cache
def published() -> Published:
    """The tables that come with knarr."""
    return parse_published(resources.files("knarr.pipeline").joinpath(FILE).read_text("utf-8"))


def parse_published(text: str) -> Published:
    """Tables from YAML text.

    Raises:
        ValueError: not YAML, or not such tables; names the place.
    """
    try:
        given = read_yaml(text)
        return Published.model_validate(given)
    except YamlError as error:
        raise ValueError(f"published results are not YAML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"published results: {faults_of(error, given, 'file')}") from error


def _unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what}: {', '.join(twice)} there twice; keep one")


def _find(what: str, name: str, among: Mapping[str, Found]) -> Found:
    if name not in among:
        raise ValueError(f"{what}: '{name}' is none of {', '.join(among)}; name one of them")
    return among[name]
