"""Published tables against themselves: no number stands here twice, what is checked is what follows from others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from knarr.pipeline.measures import Measures, measure
from knarr.pipeline.published import Table, compare_with_published, parse_published, published
from knarr.train.datasets.see.tree import LIGHTS
from knarr.train.datasets.see.windows import sampling
from knarr.train.recipe import shipped_recipes

ROUNDING = 0.1  # a tenth printed, on both sides of an equation of means
PUBLISHED = tuple(map(sampling, ("E4-S0", "E4-S1", "E4-S3", "E7-S0", "E7-S1", "E13-S0")))
"""The samplings that SEEN's paper has numbers for."""
SEE = published().table("see")


def test_every_table_is_there_and_has_a_source() -> None:
    tables = {table.name: len(table.rows) for table in published().tables}
    assert tables["see"] == 16
    assert [tables[f"see_ablations_E4-S{y}"] for y in (0, 1, 3)] == [12, 12, 12]
    assert [
        tables[f"{data}_{task}"] for data in ("deap", "hci") for task in ("arousal", "valence")
    ] == [10] * 4
    assert tables["spiking_emotions_table_1"] == 8
    assert {table.system for table in published().tables} == {
        "mskd",
        "emotionkd",
        "spiking_emotions",
    }
    assert {str(how) for how in PUBLISHED} <= {row.method for row in SEE.rows}


def test_it_is_no_recipe() -> None:
    assert "published" not in shipped_recipes()


def test_what_is_not_public_is_null() -> None:
    values = [
        row.value for table in ("mskd_see", "mskd_dsee") for row in [published().row(table, "MSKD")]
    ]
    assert [value(column) for value in values for column in ("WAR", "UAR")] == [None] * 4
    others = [table for table in published().tables if not table.name.startswith("mskd")]
    assert all(value is not None for table in others for row in table.rows for value in row.values)


def see_columns(prefix: str) -> dict[str, int]:
    """Columns of SEE whose measure begins so, with the number of samples behind each."""
    return {
        column.name: SEE.counts[column.measures[0]]
        for column in SEE.columns
        if column.measures and column.measures[0].startswith(prefix)
    }


def test_counts_of_classes_and_lightings_are_those_of_one_test_part() -> None:
    assert sum(see_columns("recall/").values()) == sum(see_columns("group/").values()) == 767
    assert {key.removeprefix("group/") for key in SEE.counts if key.startswith("group/")} == set(
        LIGHTS
    )


@pytest.mark.parametrize("method", [row.method for row in SEE.rows])
def test_see_rows_follow_from_their_columns(method: str) -> None:
    """UAR is the mean recall; WAR is the recall weighted by class counts, and the accuracy weighted by lighting counts."""
    row = published().row("see", method)
    value = {column.name: row.value(column.name) or 0.0 for column in SEE.columns}
    assert value["UAR"] == pytest.approx(
        np.mean([value[name] for name in see_columns("recall/")]), abs=ROUNDING
    )
    weighted = [
        float(np.average([value[name] for name in counts], weights=list(counts.values())))
        for counts in (see_columns("recall/"), see_columns("group/"))
    ]
    off = [abs(value["WAR"] - mean) for mean in weighted]
    if row.entry.note:  # EMO's WAR is printed as it is and does not follow
        assert all(f"{mean:.1f}" in row.entry.note for mean in weighted)
        assert min(off) > 3 * ROUNDING
    else:
        assert max(off) <= ROUNDING


def test_costs_depend_on_the_number_of_frames_alone() -> None:
    costs: dict[int, set[tuple[float | None, ...]]] = {}
    for how in PUBLISHED:
        row = published().row("see", str(how))
        costs.setdefault(how.frames, set()).add((row.value("GMAC"), row.value("ms")))
    assert {frames: len(found) for frames, found in costs.items()} == {4: 1, 7: 1, 13: 1}


@pytest.mark.parametrize("how", ["E4-S0", "E4-S1", "E4-S3"])
def test_ablations_do_worse_than_the_whole(how: str) -> None:
    whole = published().row("see", how)
    for entry in published().table(f"see_ablations_{how}").rows:
        row = published().row(f"see_ablations_{how}", entry.method)
        better = [(row.value(c) or 0) > (whole.value(c) or 0) for c in ("WAR", "UAR")]
        # As printed, the gates' copy costs a tenth at E4-S0.
        assert better == [(entry.method, how) == ("no gate copy", "E4-S0")] * 2


def test_spiking_emotions_are_multiples_of_one_in_402() -> None:
    table = published().table("spiking_emotions_table_1")
    values = {row.values[0] for row in table.rows}
    assert len(values) == 5

    def fits(denominator: int) -> bool:
        return all(
            any(
                abs(Fraction(100 * k, denominator) - Fraction(str(value))) <= Fraction(1, 200)
                for k in (
                    int(float(value or 0) * denominator / 100),
                    int(float(value or 0) * denominator / 100) + 1,
                )
            )
            for value in values
        )

    assert min(filter(fits, range(1, 700))) == 402
    assert not fits(686)
    assert not fits(656)


def test_emotionkd_tables_have_the_same_methods() -> None:
    tables = [table for table in published().tables if table.system == "emotionkd"]
    methods = {tuple(row.method for row in table.rows) for table in tables}
    assert len(tables) == 4
    assert len(methods) == 1
    for table in tables:
        assert table.columns[1].measures == ("macro_f1", "weighted_f1")
        # Neither average of F1 is above the accuracy in any printed row.
        assert all((f1 or 0) <= (acc or 0) for acc, f1 in (row.values for row in table.rows))


def ours(names: tuple[str, ...] = ("angry", "fear")) -> Measures:
    lights = np.array(["Low", "Low", "HDR", "HDR"])
    return measure(
        np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), names, lights, subjects=list("pqrs")
    )


def test_beside_on_the_same_data() -> None:
    row = published().row("see", "E4-S3")
    found = compare_with_published(ours(), row, data="SEE")
    cells = {cell.column: cell for cell in found.cells}
    assert found.same_data
    assert set(cells) == {column.name for column in SEE.columns} - {"GMAC", "ms"}
    assert cells["WAR"].difference == pytest.approx(75 - (row.value("WAR") or 0))
    low, angry = cells["Low"].ours, cells["An"].ours
    assert low is not None
    assert angry is not None
    assert (low.value, angry.value) == (1.0, 1.0)
    assert cells["Ha"].ours is None  # no such class of ours
    assert cells["Ha"].difference is None


def test_beside_on_other_data_is_marked_and_not_subtracted() -> None:
    row = published().row("see", "E4-S3")
    found = compare_with_published(ours(), row, data="generated eyes")
    assert not found.same_data
    assert {cell.difference for cell in found.cells} == {None}


def test_beside_takes_both_averages_of_an_f1_that_the_paper_does_not_name() -> None:
    row = published().row("deap_valence", "Student")
    found = compare_with_published(ours(("low", "high")), row, data="DEAP valence")
    assert [cell.measure for cell in found.cells] == ["war", "macro_f1", "weighted_f1"]
    assert found.cells[1].published == found.cells[2].published


def test_beside_an_unknown_number() -> None:
    found = compare_with_published(ours(), published().row("mskd_see", "MSKD"), data="SEE")
    assert [cell.difference for cell in found.cells] == [None, None]
    assert [cell.published for cell in found.cells] == [None, None]


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="table: 'x' is none of see,"):
        published().table("x")
    with pytest.raises(ValueError, match="method: 'E5-S5' is none of"):
        published().row("see", "E5-S5")
    with pytest.raises(ValueError, match="column: 'F1' is none of"):
        published().row("see", "EMO").value("F1")


GOOD = """
tables:
  - name: t
    system: mskd
    data: d
    protocol: p
    source: s
    columns: [{name: WAR, unit: "%"}, {name: ms, unit: ms}]
    rows: [{method: m, values: [1, 200.5]}, {method: n, values: [null, 3]}]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 200.5]", "[1]", "m: 1 values for 2 columns"),
        ("[1, 200.5]", "[101, 2]", "m: WAR 101.0 % > 100"),
        ("[1, 200.5]", "[true, 2]", "tables.0.rows.0.values.0"),
        ("[1, 200.5]", "['1', 2]", "valid number"),
        ("[1, 200.5]", "[.nan, 2]", "finite"),
        ("[1, 200.5]", "[-1, 2]", "greater than or equal to 0"),
        ("method: n", "method: m", "methods: m named twice"),
        ("name: ms", "name: WAR", "columns: WAR named twice"),
        ("source: s", "sauce: s", "tables.0.sauce"),
        ("source: s", "source: ''", "at least 1 character"),
        ("tables:", "tables: [", "not YAML"),
        (GOOD, "", "published results: file"),
    ],
)
def test_malformed_tables_are_refused(old: str, new: str, message: str) -> None:
    assert isinstance(parse_published(GOOD).tables[0], Table)
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        parse_published(GOOD.replace(old, new))
