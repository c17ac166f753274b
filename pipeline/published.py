"""Published results, read from published.yaml, and a row of ours beside one of theirs.

A number that is not public is null there. A number of ours on other data than the published one is
marked so, and no difference is taken: generated eyes, or a stress data set in the shape of DEAP,
say nothing about the published ranking.
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
# The mark of a number that is on other data than theirs.
OTHER_DATA = "*"
Value = TypeVar("Value")


class Rates(Protocol):
    """Anything that has rates by name: `Measures`, or means over several."""

    def of(self, key: str) -> Estimate | None:
        """Return a rate by name, see `Measures.of`."""


class Column(Frozen):
    """One column of a table.

    Attributes:
        name: Its heading, as printed.
        unit: Unit of its values.
        measures: Our measures that it can be compared with, as `Measures.of` takes them; several
            where the paper does not say which it is.
    """

    name: Text
    unit: Literal["%", "GMAC", "ms"]
    measures: tuple[Text, ...] = ()


class Entry(Frozen):
    """One printed row: a value for each column, None where none is public."""

    method: Text
    values: tuple[Number | None, ...]
    note: str = ""


class Table(Frozen):
    """A published table.

    Attributes:
        name: Our name for it.
        system: The one of the three systems that it is a yardstick of.
        data: The data set, and the task where there are several.
        protocol: In words, how they were measured, as far as it is known.
        source: Paper and table.
        counts: Name of a measure -> samples that it is taken over, where they are known.
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
    """All published tables."""

    tables: Annotated[tuple[Table, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Published:
        _unique("tables", [table.name for table in self.tables])
        return self

    def table(self, name: str) -> Table:
        """Return a table by name.

        Raises:
            ValueError: There is none; names those there are.
        """
        return _find("table", name, {table.name: table for table in self.tables})

    def row(self, table: str, method: str) -> Row:
        """Return a row by its table and method.

        Raises:
            ValueError: There is none; names those there are.
        """
        found = self.table(table)
        return Row(found, _find("method", method, {entry.method: entry for entry in found.rows}))


@dataclass(frozen=True)
class Row:
    """A published row, and the table it stands in."""

    table: Table
    entry: Entry

    def value(self, column: str) -> float | None:
        """Return the value in a column by its name; None where it is not public.

        Raises:
            ValueError: There is no such column.
        """
        names = (own.name for own in self.table.columns)
        return _find("column", column, dict(zip(names, self.entry.values, strict=True)))


@dataclass(frozen=True)
class PublishedCell:
    """One number of theirs beside one of ours.

    Attributes:
        column: Heading of the column, as printed.
        measure: Name of our measure, as `Measures.of` takes it.
        published: Their value, %; None where it is not public.
        ours: None where we have none: another class list, no groups, a class that never occurs.
        difference: Ours less theirs, percentage points; None where one is missing, or the data
            differ.
    """

    column: str
    measure: str
    published: float | None
    ours: Estimate | None
    difference: float | None


@dataclass(frozen=True)
class Beside:
    """A row of ours beside a published one.

    Attributes:
        row: The published row.
        same_data: Whether ours is measured on what theirs is measured on.
        cells: Those columns that we can measure.
    """

    row: Row
    same_data: bool
    cells: tuple[PublishedCell, ...]


def compare_with_published(ours: Rates, row: Row, *, data: str) -> Beside:
    """Put a row of ours next to a published one.

    Args:
        ours: What was measured; groups are compared with the columns of groups (SEE's lighting).
        row: The published one.
        data: What ours was measured on, in the words of `row.table.data` if and only if it is the
            same ("SEE").

    Returns:
        One cell for each column that we measure, two where the paper does not say which measure it
        is (F1). Costs in other units than % are not compared here.
    """
    same_data = data == row.table.data
    cells = []
    for column, value in zip(row.table.columns, row.entry.values, strict=True):
        # A paper that says F1 and not which is compared with both.
        for key in column.measures:
            own = ours.of(key)
            difference = None
            # Generated eyes less published eyes would be a number about nothing.
            if own is not None and value is not None and same_data:
                difference = 100 * own.value - value
            cells.append(PublishedCell(column.name, key, value, own, difference))
    return Beside(row, same_data, tuple(cells))


@cache
def published() -> Published:
    """Return the tables that come with knarr."""
    return parse_published(resources.files("knarr.pipeline").joinpath(FILE).read_text("utf-8"))


def parse_published(text: str) -> Published:
    """Read tables from YAML text.

    Raises:
        ValueError: It is not YAML, or holds no such tables; names the place.
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
        raise ValueError(f"{what}: {', '.join(twice)} named twice; keep one")


def _find(what: str, name: str, among: Mapping[str, Value]) -> Value:
    if name not in among:
        raise ValueError(f"{what}: '{name}' is none of {', '.join(among)}; name one of them")
    return among[name]
