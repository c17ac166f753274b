"""`knarr table` and `knarr evaluate`: what is printed fits, says where numbers come from, and marks what cannot be compared."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import yaml
from bare_ratios import bare_ratios
from graphs import DT_S, chain, li, lif
from graphs import spikes as random_spikes
from test_evaluation_file import evaluation
from test_grid import FOLDED, FoldRecipe, folded  # noqa: F401  (folded is a fixture)

from knarr.cli.output import show_progress
from knarr.cli.text.evaluation import evaluation_facts, print_evaluation
from knarr.cli.text.studies import print_table, table_json
from knarr.cli.verbs import studies
from knarr.hw_sim import count
from knarr.hw_sim.energy import places_of
from knarr.pipeline import RunError
from knarr.pipeline.energy_report.facts import energy_facts
from knarr.pipeline.energy_report.pricing import Pricing
from knarr.pipeline.evaluation import RunEvaluation, pool
from knarr.pipeline.evaluation_file import read, write
from knarr.pipeline.files import json_text
from knarr.pipeline.published import published
from knarr.pipeline.run_folder import FORMAT
from knarr.pipeline.studies import tables
from knarr.pipeline.studies.grid import GridError, expand, parse_grid
from knarr.pipeline.studies.tables import GridTable, mean_costs, read_costs, summarise
from knarr.train.settings import Recipe

GRID = """
name: demo
title: rows of three kinds
recipe: eyes
seeds: [0, 1]
columns: [war, uar, macro_f1, group/Overexposed, recall/angry]
rows:
  - {name: same data and a long name that has to be folded, beside: {table: see, method: E4-S3}}
  - {name: other data, set: {student.kd_alpha: 0.1}, beside: {table: see, method: EMO}}
  - {name: unknown theirs, set: {student.kd_alpha: 0.2}, beside: {table: mskd_see, method: MSKD}}
  - {name: nothing yet, set: {student.kd_alpha: 0.3}, beside: {table: see, method: E4-S0}}
  - {name: nothing published, set: {student.kd_alpha: 0.4}}
"""
SEE: dict[str, Any] = {"data": "SEE", "task": None, "fold_count": 1, "lights": None}


@cache
def demo(**more: Any) -> GridTable:
    grid = parse_grid(GRID, "demo")
    found: dict[str, list[RunEvaluation]] = {
        "same-data-and-a-long-name-that-has-to-be-folded": [evaluation(**SEE), evaluation(**SEE)],
        "other-data": [evaluation(**SEE | {"data": "generated eyes"})],
        "unknown-theirs": [evaluation(**SEE | more)] * 2,
        "nothing-published": [evaluation(fold_count=1, lights=None)] * 2,
    }
    results = []
    for cell in expand(grid):
        runs = found.get(cell.folder.split("/")[1], [])
        results.append((cell, runs[cell.seed] if cell.seed < len(runs) else None))
    return summarise(grid, results)


def printed(show: Any, *arguments: Any) -> str:
    with redirect_stdout(StringIO()) as output:
        show(*arguments)
    text = output.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    return text


def section(text: str, start: str) -> dict[str, str]:
    """Rate -> its line, of the row that begins so."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(start))
    found = {}
    for line in lines[first + 1 :]:
        if not line.startswith("  "):
            if found:
                break
            continue
        found[line[2:].split("  ")[0].strip()] = line
    return found


def test_a_table_says_where_numbers_come_from() -> None:
    text = printed(print_table, demo(), {})
    see, mskd = (published().table(name) for name in ("see", "mskd_see"))
    assert f"[1] {see.source}" in " ".join(text.split())
    assert f"[2] {mskd.source}" in " ".join(text.split())
    for word in ("[3]", "None", "nan"):
        assert word not in text
    assert "95 % intervals" in text
    assert "EMO, published: the printed WAR does not follow" in " ".join(text.split())


def test_the_same_data_are_subtracted_and_the_protocol_is_marked() -> None:
    table = demo()
    row, theirs = table.rows[0], published().row("see", "E4-S3")
    ours = row.rates["war"]
    assert ours is not None
    lines = section(printed(print_table, table, {}), "same data")
    war = lines["accuracy (WAR)"].split()
    assert war[2] + war[3] == f"{theirs.value('WAR'):g}[1]"
    assert war[4] == f"{100 * ours.value:.1f}**"
    assert war[-1] == f"{100 * ours.value - (theirs.value('WAR') or 0):+.1f}"
    assert lines["macro F1"].split()[2].endswith("**")  # nothing of the kind in that table
    assert lines["macro F1"].split()[-1] == "-"
    assert lines["WAR, Overexposed"].split()[-1] == "-"  # no such lighting of ours
    notes = " ".join(printed(print_table, table, {}).split())
    assert "** the same data, another protocol; ours: two people left out at a time" in notes


def test_other_data_are_marked_and_not_subtracted() -> None:
    text = printed(print_table, demo(), {})
    lines = section(text, "other data (student)")
    war = lines["accuracy (WAR)"].split()
    assert war[4].endswith("~*")
    assert war[-1] == "-"
    notes = " ".join(text.split())
    assert (
        "* other data: generated eyes, theirs SEE; not comparable, no difference taken (other data)"
        in notes
    )
    assert "~ not all runs: 1 of 2 (other data)" in notes


def test_nothing_is_never_zero() -> None:
    text = printed(print_table, demo(), {})
    lines = section(text, "nothing yet (student)")
    assert "0/2" in next(line for line in text.splitlines() if line.startswith("nothing yet"))
    assert lines["accuracy (WAR)"].split()[2:] == ["78.6", "[1]", "-", "-", "-", "-"]
    assert "0.0" not in "".join(lines.values())
    found = table_json(demo(), {})["rows"][3]
    assert found["rates"] == dict.fromkeys(parse_grid(GRID, "demo").columns)
    assert (found["finished"], found["wanted"], found["published"]["same_data"]) == (0, 2, None)


def test_a_grid_without_published_rows_prints_ours_alone() -> None:
    text = GRID.replace("beside: {table: see, method: E4-S3}", "set: {}").split("  - {name: other")[
        0
    ]
    grid = parse_grid(text.replace("[0, 1]", "[0]"), "demo")
    table = summarise(
        grid, [(cell, evaluation(fold_count=1, lights=None)) for cell in expand(grid)]
    )
    found = printed(print_table, table, {})
    for word in ("published", "differ", "over seeds", "*", "[1]"):
        assert word not in found.replace("over seeds: Student's", "").replace(
            "mean over seeds", ""
        ), word
    assert "over people" in found


def test_the_widest_table_fits() -> None:
    grid = parse_grid(GRID, "demo")
    folds = [
        pool([evaluation(fold, **SEE | {"fold_count": 100}) for fold in range(2)]) for _ in range(2)
    ]
    table = summarise(grid, [(cell, folds[cell.seed]) for cell in expand(grid)])
    text = printed(print_table, table, {})
    war = section(text, "same data")["accuracy (WAR)"]
    assert " sd " in war
    assert "~**" in war
    assert war.split()[-1] == "-"  # a part of the data is other data
    assert war.count("[") == 3  # source, people, seeds
    assert "folds 2 of 100" in text


def test_the_document_has_the_same_names() -> None:
    table = demo()
    document = json.loads(json_text(table_json(table, {})))
    first = document["rows"][0]
    assert list(first["rates"]) == list(table.columns) == document["columns"]
    assert first["rates"]["war"]["value"] == table.rows[0].rates["war"].value  # type: ignore[union-attr]
    assert set(first["rates"]["war"]) == {"value", "over_seeds", "over_people", "over_folds"}
    assert first["published"]["values"]["war"] == published().row("see", "E4-S3").value("WAR")
    assert first["published"]["source"].startswith("Zhang")
    assert document["rows"][1]["published"]["same_data"] is False
    assert set(document["rows"][1]["published"]["difference"].values()) == {None}
    assert document["rows"][4]["published"] is None


# --- runs on disk

SMALL = """
name: small
title: small
recipe: eyes
seeds: [0, 1]
costs: true
rows: [{name: as it is}, {name: no teacher, set: {student.kd_alpha: 0.0}, data: below}]
"""


class Fitting:
    """Stands where runs are made; counts them, and can be killed."""

    def __init__(self, fold_count: int = 1) -> None:
        self.made: list[str] = []
        self.data: list[Path | None] = []
        self.killed_after = 100
        self.fold_count = fold_count

    def __call__(self, recipe: Recipe, data: Path | None, folder: Path) -> None:
        if len(self.made) == self.killed_after:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format": FORMAT,
            "recipe": recipe.model_dump(mode="json"),
            "data_sha256": "",
            "data_root": str(data),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        fold = getattr(recipe.data, "fold", 0)
        one = evaluation(fold, fold_count=self.fold_count, lights=None)
        write(folder / "evaluation.json", one.only("student"))
        self.made.append(folder.name)
        self.data.append(data)

    def table(
        self, name: Path, data: Path | None = None, *, fit: bool = True, people: int = 3
    ) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "fit_and_evaluate", lambda *run, **_: self(*run))
            patch.setattr(tables, "count_people", lambda *_: people)
            out = name.parent / "grids"
            result = tables.table(str(name), data=data, out=out, fit=fit, on_progress=show_progress)
        facts = table_json(result.summary, result.costs)
        sys.stdout.write(json_text({**facts, "not_deployed": result.not_deployed}))
        return result.not_deployed


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


def shown(capsys: pytest.CaptureFixture[str]) -> list[tuple[int, int | None]]:
    document = json.loads(capsys.readouterr().out)
    return [(row["finished"], row["wanted"]) for row in document["rows"]]


def test_a_killed_table_goes_on_where_it_was(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting = Fitting()
    fitting.table(small, fit=False)
    assert shown(capsys) == [(0, 2), (0, 2)]
    fitting.killed_after = 3
    with pytest.raises(KeyboardInterrupt):
        fitting.table(small, small.parent)
    assert len(fitting.made) == 3
    fitting.table(small, fit=False)
    assert shown(capsys) == [(2, 2), (1, 2)]
    fitting.killed_after = 100
    fitting.table(small, small.parent)
    assert shown(capsys) == [(2, 2), (2, 2)]
    assert fitting.data == [small.parent] * 2 + [small.parent / "below"] * 2
    fitting.table(small, small.parent)
    assert fitting.made == ["seed-0", "seed-1", "seed-0", "seed-1"]  # none of them twice


def test_rows_whose_data_are_not_there_are_left_out(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.parent / "below").rmdir()
    fitting = Fitting()
    fitting.table(small)
    assert shown(capsys) == [(2, 2), (0, 2)]
    fitting.table(small, small.parent)
    said = capsys.readouterr()
    assert "no data at" in said.err
    assert len(fitting.made) == 2


def test_runs_that_did_not_come_onto_the_chip_are_listed_at_every_start(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Fitting):
        def __call__(self, recipe: Recipe, data: Path | None, folder: Path) -> None:
            super().__call__(recipe, data, folder)
            if len(self.made) == 2:
                (folder / tables.NOT_DEPLOYED).write_text("node 'lif_1' never fired\n")

    fitting = Failing()
    for _ in range(2):
        assert fitting.table(small, small.parent) == [
            "small/as-it-is/seed-1: node 'lif_1' never fired"
        ]
        assert json.loads(capsys.readouterr().out)["not_deployed"] == [
            "small/as-it-is/seed-1: node 'lif_1' never fired"
        ]
    assert len(fitting.made) == 4  # all runs were measured


def test_runs_of_another_grid_are_refused(small: Path) -> None:
    fitting = Fitting()
    fitting.table(small, small.parent)
    small.write_text(SMALL.replace("kd_alpha: 0.0", "kd_alpha: 0.1"))
    with pytest.raises(
        GridError, match="no-teacher/seed-0: holds a run with other settings than row 'no teacher'"
    ):
        fitting.table(small, fit=False)


@pytest.mark.usefixtures("folded")
def test_folds_that_nobody_counted_are_those_a_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tables,
        "expand",
        lambda grid, **more: expand(grid, load=lambda name: FoldRecipe(name=name), **more),
    )
    path = tmp_path / "folds.yaml"
    path.write_text(FOLDED.split("  - {name: trials")[0])
    fitting = Fitting(fold_count=3)
    fitting.table(path, fit=False)
    assert shown(capsys) == [(0, None)]
    fitting.table(path)
    found = capsys.readouterr()
    assert "Row 'people': no data at --data say how many folds it has; left out" in found.err
    fitting.killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        fitting.table(path, tmp_path)
    fitting.table(path, fit=False)
    assert shown(capsys) == [(2, 3)]
    folder = tmp_path / "grids" / "folds" / "people" / "seed-0"
    write(folder / "fold-01" / "evaluation.json", evaluation(2, fold_count=3))
    with pytest.raises(GridError, match=r"of folds \[2\], not 1; remove it and evaluate again"):
        fitting.table(path, fit=False)


def energy_file(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    graph = chain(
        (6,),
        (3,),
        fc=nir.Affine(rng.normal(0.5, 0.3, (8, 6)), np.ones(8)),
        lif=lif((8,)),
        out=nir.Linear(rng.normal(0, 0.5, (3, 8))),
        readout=li((3,)),
    )
    counts = count(graph, random_spikes(4, 9, 6), dt_s=DT_S)
    facts = energy_facts(counts, None, Pricing(), places=places_of(counts, {}))
    path.write_text(json_text(facts))
    return facts


def test_costs_are_those_of_the_run(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = energy_file(tmp_path / "energy.json")
    counts = facts["counts"]["student"]
    found = read_costs(tmp_path / "energy.json", "student")
    assert found is not None
    assert found.parameters == 8 * 6 + 8 + 3 * 8
    assert found.dense_macs == 9 * (8 * 6 + 3 * 8)
    assert (found.mac, found.acc) == (counts["total"]["mac"], counts["total"]["acc"])
    assert 0 < found.acc < found.dense_macs
    # The leaky integrator at the end never fires, and has no rate.
    assert found.layer_rates == {"fc": counts["layers"]["fc"]["spikes"] / (9 * 8)}
    assert found.spike_rate == found.layer_rates["fc"]
    # A graph is on no cores, so its total is unknown, with the bound that is known.
    assert (found.place, found.energy) == ("Loihi 2", facts["places"]["Loihi 2"]["total"])
    assert found.energy is not None
    assert found.energy["nominal"] is None
    known = replace(found, energy={**found.energy, "low": 1.0, "nominal": 2.0, "high": 4.0})
    dearer = replace(found, energy={**found.energy, "low": 2.0, "nominal": 4.0, "high": None})
    between = mean_costs([known, dearer])
    assert between is not None
    assert between.energy is not None
    assert [between.energy[name] for name in ("low", "nominal", "high")] == [1.5, 3.0, None]
    elsewhere = mean_costs([known, replace(known, place="Loihi 1")])
    assert elsewhere is not None
    assert elsewhere.energy is None, "energies of two places have no mean"
    assert read_costs(tmp_path / "energy.json", "teacher") is None
    both = mean_costs([found, found])
    assert both is not None
    assert (both.runs, both.acc, both.layer_rates) == (2, found.acc, found.layer_rates)
    assert mean_costs([]) is None
    Fitting().table(small)
    capsys.readouterr()
    energy_file(tmp_path / "grids/small/as-it-is/seed-1/energy.json")
    studies.table(str(small), out=tmp_path / "grids", json=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    line = next(line for line in text.splitlines() if line.startswith("as it is  "))
    assert line.split()[3:5] == ["1", "80"]
    assert "Loihi 2" in text
    assert bare_ratios(text) == []
    assert (
        next(line for line in text.splitlines() if line.startswith("no teacher  ")).split()[-1]
        == "-"
    )


def test_costs_of_another_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "energy.json").write_text('{"student": 3, "baseline": null}')
    with pytest.raises(RunError, match="no schema, this version reads 1"):
        read_costs(tmp_path / "energy.json", "student")


# --- knarr evaluate


def test_an_evaluation_is_printed(tmp_path: Path) -> None:
    write(tmp_path / "evaluation.json", pool([evaluation(fold) for fold in range(3)]))
    found = read(tmp_path / "evaluation.json")
    text = printed(print_evaluation, found)
    war = found.measures["student"].war
    assert war.bootstrap is not None
    for words in (
        "DEAP valence: 36 test samples",
        f"{100 * war.value:.1f} [{100 * war.bootstrap.lo:.1f}, {100 * war.bootstrap.hi:.1f}]",
        "100.0 [100.0, 100.0]",
        "WAR, HDR",
        "recall, fear",
        "6 people; windows of each sample of E4-S3: teacher 1, student 3.",
        "Folds: 3 of 4.",
        "Protocol: two people left out at a time.",
        "Fewer than ten people: too narrow.",
        "Accuracy of single people, student:",
    ):
        assert words in text, words
    facts = json.loads(json_text(evaluation_facts(found)))
    assert facts["networks"]["student"]["measures"]["war"]["value"] == war.value
    assert np.mean(list(facts["networks"]["teacher"]["people"].values())) == 1
    assert facts["folds"] == [0, 1, 2]
    assert "predicted" not in json.dumps(facts)


def test_samples_of_nobody_have_wilsons_interval() -> None:
    one = RunEvaluation(
        "N-MNIST",
        tuple("0123456789"),
        ("a", "b", "c"),
        np.array([0, 1, 1]),
        {"chip": np.array([0, 1, 2])},
    )
    text = printed(print_evaluation, one)
    wilson = one.measures["chip"].war.wilson
    assert wilson is not None
    assert f"66.7 [{100 * wilson.lo:.1f}, {100 * wilson.hi:.1f}]w" in text
    assert "nobody's samples" in text
    assert "No test sample of 2, 3, 4, 5, 6, 7, 8, 9" in text
    assert "bootstrap" not in text
    assert evaluation_facts(one)["networks"]["chip"]["people"] is None
