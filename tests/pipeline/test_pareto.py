"""`knarr pareto`: which points lie on the front, and a search that goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bare_ratios import bare_ratios

from knarr.cli.errors import UsageError
from knarr.cli.verbs import studies
from knarr.cli.verbs.studies import numbers
from knarr.deploy import DeployError
from knarr.pipeline.studies import pareto_front
from knarr.pipeline.studies.pareto_front import WHERE, ParetoPoint, draw_pareto, fronted
from knarr.train import RecipeError

LITTLE = [
    "data.subjects=4", "data.takes_per_emotion=1", "data.size=24", "data.shift_px=0", "data.validation_fraction=0.34", "threads=1",
    "data.timesteps=12", "teacher.fit.epochs=1", "student.fit.epochs=8", "student.fit.batch_size=4", "student.channels=[8, 16]",
    "chip.epochs=1", "chip.learning_rate=0.01",
]  # fmt: skip


def point(correct: int, nominal: float, **more: Any) -> ParetoPoint:
    energy = {WHERE[0]: {"nominal": nominal, "low": None, "high": None, "unit": "J", "grade": "C"}}
    parameters = {"chip.weight_bits": 8, "chip.timesteps": 4, "chip.acc_share": None}
    return ParetoPoint(
        parameters | more, {"validation": {"clips": 10, "correct": correct}, "energy": energy}
    )


def test_the_front_is_what_no_other_point_beats() -> None:
    given = [
        point(9, 30),
        point(7, 10),
        point(7, 20),
        point(6, 15),
        point(9, 40),
        point(10, 50),
        point(7, 10),
    ]
    found = fronted(given, WHERE[0])
    assert [(p.facts["validation"]["correct"], p.energy(WHERE[0])["nominal"]) for p in found if p.front] == [
        (7, 10), (9, 30), (10, 50),
    ]  # fmt: skip
    prices = [p.energy(WHERE[0])["nominal"] for p in found]
    assert prices == sorted(prices)


def test_intervals_are_drawn() -> None:
    wide = point(9, 30)
    wide.facts["energy"][WHERE[0]].update(low=20.0, high=50.0)
    facts = {"recipe": "r", "by": WHERE[0], "float_validation": {"clips": 10, "correct": 8}}
    figure = draw_pareto(fronted([wide, point(5, 1000.0)], WHERE[0]), facts)
    panel = figure.axes[0]
    bars = [
        path.vertices[:, 0].tolist() for group in panel.collections for path in group.get_paths()
    ]
    assert bars == [[20e6, 50e6]]
    assert panel.get_xscale() == "log"


@pytest.mark.parametrize("text", ["8,x", "8,8", "0", "-1", "nan", "1.5", ","])
def test_lists_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shares: .*give"):
        numbers("--shares", text, float, 1)


def test_a_search_and_its_second_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*bits: int, changes: list[str] = LITTLE) -> dict[str, Any]:
        shown = ",".join(map(str, bits))
        options = {"bits": shown, "steps": "6", "shares": "1", "by": "Loihi 2, dynamic"}
        studies.pareto("eyes", out=tmp_path / "search", changes=changes, json=True, **options)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = search(8, 3)
    assert [set(p) >= {"weight_bits", "test", "validation", "counts"} for p in found["points"]] == [
        True,
        True,
    ]
    assert {p["weight_bits"] for p in found["points"]} == {8, 3}
    assert any(p["front"] for p in found["points"])
    assert all(p["counts"]["acc"] == p["validation"]["accumulates"] > 0 for p in found["points"])
    for point in found["points"]:
        total = point["energy"]["Loihi 2, total"]
        assert total["low"] < total["nominal"] < total["high"]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")

    shown = {"bits": "8,3", "steps": "6", "shares": "1", "by": "Loihi 2, dynamic"}
    studies.pareto("eyes", out=tmp_path / "search", changes=LITTLE, json=False, **shown)
    table = capsys.readouterr().out
    assert "Loihi 2, dynamic" in table
    assert bare_ratios(table) == []

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(pareto_front.stages, "deploy", refuse)
    assert search(8, 3) == found
    with pytest.raises(Exception, match="another"):
        search(8, 4)
    with pytest.raises(RecipeError, match="--by"):
        pareto_front.pareto("eyes", out=tmp_path / "x", bits=[8], by="nope")
    assert not (tmp_path / "x").exists()
    on_test = [*LITTLE, "student.fit.select=best_on_test"]
    with pytest.raises(RecipeError, match="looks at the test data"):
        pareto_front.pareto("eyes", out=tmp_path / "x", bits=[8], changes=on_test)


def test_a_student_that_goes_onto_no_chip_is_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pareto_front.stages.deploy

    def lower(run: Any) -> None:
        if run.recipe.chip.weight_bits == 2:
            raise DeployError("node 'x': one scale leaves nothing of the smaller")
        real(run)

    monkeypatch.setattr(pareto_front.stages, "deploy", lower)
    goal = [*LITTLE, "chip.acc_per_inference=1000000000"]  # of the recipe; the search has its own
    options = {"bits": "2,8", "steps": "12", "shares": "0.9", "by": "Loihi 2, total"}
    studies.pareto("eyes", out=tmp_path / "search", changes=goal, json=True, **options)
    found = json.loads(capsys.readouterr().out)
    assert [(p["weight_bits"], p["timesteps"]) for p in found["points"]] == [(8, 12)]
    trial = next((tmp_path / "search").glob("trial-*/chip.json"))
    assert "timesteps: null" in trial.with_name("config.yaml").read_text(), (
        "all steps are no setting"
    )
    assert found["points"][0]["acc_goal"] < 1e9
    assert [(r["weight_bits"], r["reason"]) for r in found["refused"]] == [
        (2, "node 'x': one scale leaves nothing of the smaller")
    ]
