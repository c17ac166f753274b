"""The report of an inference's energy: sentences that numbers force, a schema, tables and pictures in which nothing is cut."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
from bare_ratios import bare_ratios, lines_of_ratios
from graphs import DT_S, chain, conv2d, flatten, li, lif, on_grid, spikes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper

from knarr.cli.text.energy import print_energy, print_verdict
from knarr.deploy import lower
from knarr.pipeline import (
    Pricing,
    RunError,
    csv_text,
    draw_energy,
    energy_of,
    json_text,
    latex_text,
    read_energy,
)
from knarr.pipeline.energy_report.accuracy import accuracy
from knarr.pipeline.energy_report.amounts import amount, digits, interval, prefix_of, spelled
from knarr.pipeline.energy_report.check import checks
from knarr.pipeline.energy_report.names import short_names, short_reason
from knarr.pipeline.energy_report.same_technology import over_technologies
from knarr.pipeline.energy_report.schema import PARTS, EnergyFile, describe
from knarr.pipeline.energy_report.verdict import accuracy_in_words, verdict
from knarr.pipeline.energy_report.why import levers

SHAPE = (2, 8, 8)
Facts = dict[str, Any]
ROOT = Path(__file__).parents[2]


def teacher(path: Path) -> Path:
    """An ONNX file of one convolution and one dense layer, without torch's exporter."""
    rng = np.random.default_rng(3)
    weights = {
        "k": rng.normal(size=(4, 1, 3, 3)),
        "w": rng.normal(size=(256, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "w"], ["y"], "dense"),
    ]
    stored = [
        numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()
    ]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", (1, 8, 8)), ("y", (3,)))
    ]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """energy.json of a chip network against an ONNX file, with labels."""
    rng = np.random.default_rng(4)
    graph = chain(
        SHAPE,
        (3,),
        conv=conv2d(on_grid(rng, 4, 2, 3, 3, limit=40) + 0.1, padding=1),
        lif=lif((4, 8, 8)),
        flat=flatten(4, 8, 8),
        fc=nir.Linear(rng.normal(0.3, 0.5, (3, 256))),
        readout=li((3,)),
    )
    path = teacher(tmp_path_factory.mktemp("energy") / "teacher.onnx")
    return energy_of(
        lower(graph, DT_S),
        spikes(6, 9, *SHAPE),
        Pricing(),
        labels=np.arange(6) % 3,
        baseline=path,
        baseline_inputs=rng.random((6, 1, 8, 8), dtype=np.float32),
        files={"teacher.onnx": path},
    )


# --- quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (0.0, "0"),
        (14_354_032.4, "14,354,032"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.0123, "0.012"),
        (0.00287, "0.0029"),
        (0.00012345, "0.00012"),
        (1e-9, "0.0000000010"),
        (-6.43, "-6.43"),
    ],
)
def test_numbers_have_their_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert digits(value) == text


def bounds(low: float | None, nominal: float | None, high: float | None, unit: str = "J") -> Facts:
    return {"low": low, "nominal": nominal, "high": high, "unit": unit, "why_unknown": ""}


def test_quantities_say_unit_and_bounds() -> None:
    assert spelled(bounds(1.21e-4, 2.49e-4, 1.2e-3)) == "0.249 mJ [0.121, 1.20]"
    assert spelled(bounds(None, 2.49e-7, 1.2e-6)) == "0.249 uJ [?, 1.20]"
    assert spelled(bounds(None, 5e-9, None, "J s")) == "5.00 nJ s [?]"
    assert spelled(bounds(2e-3, 2e-3, 2e-3)) == "2.00 mJ"
    assert spelled(bounds(0.0, None, 3e-6)) == "? uJ [0, 3.00]"
    assert spelled(bounds(0.0, 0.0, 0.0)) == "0 J"
    assert interval(bounds(0.1, 0.2, None, "")) == "[0.100, ?]"
    assert prefix_of(bounds(None, 2.49e-4, None), 1.0) == "u"
    assert amount(3e-15, "J", "f") == "3.00 fJ"


# --- the verdict: one test for each thing that numbers may force


def place(name: str, total: tuple[float | None, float | None, float | None], **more: Any) -> Facts:
    chip = name.startswith("Loihi")
    why = "" if None not in total else "nobody measured it"
    return {
        "place": name,
        "network": "student" if chip else "baseline",
        "grade": "C",
        "dynamic": bounds(1e-6, 2e-6, 3e-6),
        "total": {**bounds(*total), "why_unknown": why},
        **more,
    }


def row(low: float | None, nominal: float, high: float | None) -> Facts:
    return {
        "ratio": bounds(low, nominal, high, ""),
        "precision": "int8",
        "technology": "45 nm",
        "own_precision": False,
        "label": "operations only",
        "against": "dense",
    }


def told(*places: Facts, rows: tuple[Facts, ...] = (), **more: Any) -> dict[str, Any]:
    return verdict(
        {
            "places": {one["place"]: one for one in places},
            "same_technology": rows,
            "accuracy": None,
            "cores": {"Loihi 2": {"used": 6, "there": 128, "chips": 1}},
            "counts": {"baseline": {}, "summary": {"student": {"synops": 1}}},
            **more,
        }
    )


CHIP = place("Loihi 2", (1e-5, 2e-5, 4e-5))
GPU = "edge GPU, batch 1"
BATCH = "edge GPU, large batch"


def words(found: dict[str, Any]) -> str:
    return " ".join(found["sentences"])


def test_apart_at_batch_1_alone_is_the_launch() -> None:
    found = told(
        CHIP,
        place(GPU, (1e-3, 2e-3, 8e-3)),
        place(BATCH, (1e-5, 2e-5, 3e-5)),
        rows=(row(0.1, 0.2, 0.3), row(None, 1.5, None)),
    )
    assert found["snn_cheaper"] is True
    assert "SNN is cheaper, 25.0 to 800 times, because a launch idles the GPU" in words(found)
    assert "NOT because spikes are cheap: in a large batch there is no winner" in words(found)
    assert "0.100 to 1.50 times the ANN's energy over 2 comparisons" in words(found)
    assert found["same_technology"]["winner"] is None
    assert "no winner" in found["sentences"][-2]
    assert found["batch_1"]["ratio"]["low"] == pytest.approx(1e-5 / 8e-3)
    assert "6 of 128 cores" in words(found)
    assert "most is static power" in words(found)


def test_spikes_are_cheap_where_equal_silicon_says_so() -> None:
    found = told(
        CHIP,
        place(GPU, (1e-3, 2e-3, 8e-3)),
        place(BATCH, (1e-6, 2e-6, 3e-6)),
        rows=(row(0.1, 0.2, 0.3),),
    )
    assert "NOT because" not in words(found)
    assert "in a large batch the ANN is cheaper" in words(found)
    assert "the SNN is cheaper in 1 comparison of model" in words(found)


def test_one_number_without_bounds_has_no_winner() -> None:
    """Prices of one technology that nobody bounds rank nothing, however far they lie below 1."""
    alone = row(None, 0.005, None)
    found = told(CHIP, place(GPU, (1e-3, 2e-3, 8e-3)), rows=(alone,))
    assert found["same_technology"]["winner"] is None
    said = "0.0050 [?] times the ANN's energy over 1 comparison of model, rival and technology, but"
    assert said in words(found)
    assert "prices without bounds decide nothing: no winner" in words(found)
    # A second technology is an interval; another row alone leaves the first without one.
    second = told(CHIP, rows=(alone, row(None, 0.006, None)))
    assert second["same_technology"]["winner"] == "student"
    assert "cheaper in all 2 comparisons" in words(second)
    other = {**row(None, 0.006, None), "label": "+ movement"}
    assert told(CHIP, rows=(alone, other))["same_technology"]["winner"] is None


LIMIT = (
    "does not fit: layer 'd1': one neuron alone needs 70000 input axons > 16000 per core of Loihi 2 "
    "(medium confidence: registers['AxonIn'] (1.60% for 256); inferred); a neuron cannot be split, so "
    "give it fewer inputs (pool, or more groups); layer 'd2': another (low confidence: a log)"
)


def test_a_network_that_does_not_fit_is_on_no_chip() -> None:
    student = place("Loihi 2", (None, None, None))
    student["total"]["why_unknown"] = LIMIT
    found = told(student, place(GPU, (1e-3, 2e-3, 8e-3)))
    first = "layer 'd1': one neuron alone needs 70000 input axons > 16000 per core of Loihi 2"
    assert f"SNN on Loihi 2: it does not fit: {first}. If it did, it would take" in words(found)
    assert f"no winner: not known: does not fit: {first}." in words(found)
    assert "confidence" not in words(found)
    assert short_reason(LIMIT).endswith("layer 'd2': another")
    assert short_reason("nobody measured it; (so)") == "nobody measured it; (so)"


@pytest.mark.parametrize(
    ("rate_limit", "steps_limit", "rate", "steps"),
    [
        (0.25, 7.13, "it would be even at 25.00%", "it would be even at 7.1"),
        (2.0, 40.0, "at any rate", "it would be even at 40.0"),
        (0.0, 0.0, "at no rate would it be even", "one step is too many already"),
        (1e-6, 0.9, "it would be even at 0.00010%", "one step is too many already"),
    ],
)
def test_limits_that_nothing_reaches_are_said_in_words(
    rate_limit: float, steps_limit: float, rate: str, steps: str
) -> None:
    limit = {"model": "memory", "profile": "horowitz_int8", "against": "dense", "rate": 0.1}
    limit |= {"rate_limit": rate_limit, "timesteps": 24.0, "timesteps_limit": steps_limit}
    first, second = levers({}, None, [limit], {})
    assert f"; {rate} (memory model" in first["sentence"]
    assert f"24; {steps} (memory model" in second["sentence"]


def test_prices_of_nothing_compare_nothing() -> None:
    free = {**row(None, 1.0, None), "ratio": bounds(None, None, None, "")}
    assert told(CHIP, rows=(free,))["same_technology"] is None
    (shown,) = over_technologies([{**free, "bits": None}])
    assert (shown["low"], shown["nominal"], shown["high"]) == (None, None, None)


def test_a_network_that_saw_nothing_is_said_to() -> None:
    counts = {"baseline": {}, "summary": {"student": {"synops": 0}}}
    silent = told(CHIP, place(GPU, (1e-3, 2e-3, 8e-3)), counts=counts)
    assert "it saw nothing" in silent["sentences"][1]
    assert "it saw nothing" not in words(told(CHIP, place(GPU, (1e-3, 2e-3, 8e-3))))


def test_cheaper_in_large_batches_too_is_no_matter_of_launches() -> None:
    found = told(CHIP, place(GPU, (1e-3, 2e-3, 8e-3)), place(BATCH, (1e-4, 2e-4, 3e-4)))
    assert "in a large batch too" in words(found)
    assert "idles" not in words(found)


def test_an_unknown_large_batch_gives_no_reason() -> None:
    found = told(CHIP, place(GPU, (1e-3, 2e-3, 8e-3)))
    assert "Large batches are not known" in words(found)
    assert "idles" not in words(found)


def test_an_unknown_upper_bound_of_the_rival_decides_nothing_below() -> None:
    """The ANN's least lies above the SNN's most: what its most is does not matter."""
    found = told(CHIP, place(GPU, (1e-3, 2e-3, None)))
    assert found["snn_cheaper"] is True
    assert "at least 25.0 times" in words(found)


def test_overlapping_intervals_have_no_winner() -> None:
    found = told(CHIP, place(GPU, (3e-5, 2e-3, 8e-3)))
    assert found["snn_cheaper"] is None
    assert "At batch 1 there is no winner: the intervals overlap." in words(found)


def test_touching_intervals_have_no_winner() -> None:
    assert told(CHIP, place(GPU, (4e-5, 2e-3, 8e-3)))["snn_cheaper"] is None


def test_an_unknown_bound_that_would_decide_has_no_winner() -> None:
    student = place("Loihi 2", (1e-5, 2e-5, None))
    found = told(student, place(GPU, (1e-3, 2e-3, 8e-3)))
    assert found["snn_cheaper"] is None
    assert "no winner: not known: nobody measured it" in words(found)


def test_the_ann_may_be_cheaper() -> None:
    found = told(CHIP, place(GPU, (1e-6, 2e-6, 5e-6)), rows=(row(2.0, 3.0, 4.0),))
    assert found["snn_cheaper"] is False
    assert "At batch 1 the ANN is cheaper, 2.00 to 40.0 times" in words(found)
    assert "the ANN is cheaper in 1 comparison of model" in words(found)


def test_what_was_measured_here_goes_before_what_was_published() -> None:
    found = told(
        CHIP,
        place(GPU, (1e-6, 2e-6, 5e-6)),
        place("H200, batch 1, measured", (1e-2, 2e-2, 3e-2)),
        place("H200, batch 64, measured", (1e-3, 2e-3, 3e-3)),
        place("CPU of this machine, batch 1, measured", (1e-9, 1e-9, 1e-9)),
    )
    assert found["batch_1"]["baseline"] == "H200, batch 1, measured"
    assert found["large_batch"]["baseline"] == "H200, batch 64, measured"
    assert "measured here" in words(found)
    assert "NOT measured here" not in words(found)


def test_the_chip_with_a_known_total_speaks() -> None:
    unknown = place("Loihi 2", (None, None, None))
    found = told(unknown, place("Loihi 1", (1e-5, 2e-5, 4e-5)), place(GPU, (1e-3, 2e-3, 8e-3)))
    assert found["batch_1"]["student"] == "Loihi 1"
    found = told(unknown, place(GPU, (1e-3, 2e-3, 8e-3)))
    assert "of switching an inference; static energy" in words(found)
    assert "nobody measured it" in words(found)
    assert found["snn_cheaper"] is None


def test_switching_may_be_most_of_it() -> None:
    found = told(place("Loihi 2", (1e-5, 2e-5, 4e-5), dynamic=bounds(1e-5, 1.5e-5, 2e-5)))
    assert "static power" not in found["sentences"][0]


def test_without_an_ann_or_a_chip_that_is_said() -> None:
    counts = {"baseline": None, "summary": {"student": {"synops": 1}}}
    found = told(CHIP, counts=counts)
    assert "No ANN beside it" in words(found)
    assert found["batch_1"] is None
    assert "pools were counted as floats" in told(counts=counts)["sentences"][0]


RIGHT, WRONG = np.ones(40), np.zeros(40)
HALF = np.arange(40) % 2.0


@pytest.mark.parametrize(
    ("mine", "theirs", "equal", "said"),
    [
        (WRONG, RIGHT, False, "NOT equal, difference -100.0 [-100.0, -100.0]"),
        (HALF, np.concatenate([1 - HALF[:2], HALF[2:]]), None, "no difference is shown"),
        (HALF, HALF, True, "equal on each sample"),
        (HALF, None, None, "of the ANN not known: it was not evaluated"),
    ],
)
def test_accuracy_is_equal_only_where_it_is(
    mine: Any, theirs: Any, equal: bool | None, said: str
) -> None:
    found = accuracy(mine, theirs)
    assert said in accuracy_in_words(found)
    assert told(CHIP, accuracy=found)["accuracy_equal"] is equal


def test_accuracy_of_one_person_has_no_interval() -> None:
    found = accuracy(HALF, RIGHT, subjects=("ann",) * 40)
    assert "no interval (the samples are one person's)" in accuracy_in_words(found)
    assert "NOT known" in accuracy_in_words(None)


def test_errors_are_compared_as_errors() -> None:
    found = accuracy(HALF + 1, HALF, measure="mean absolute error")
    assert "Mean absolute error 1.50 against 0.500: NOT equal" in accuracy_in_words(found)


def test_people_are_drawn_whole() -> None:
    """Samples of one person resemble each other: the interval is wider than of as many people."""
    mine, theirs = np.repeat([1.0, 0.0, 1.0, 0.0], 10), np.repeat([1.0, 1.0, 0.0, 1.0], 10)
    people = tuple(f"{number // 10}" for number in range(40))
    drawn, alone = (accuracy(mine, theirs, subjects=owner) for owner in (people, None))

    def width(found: dict[str, Any]) -> float:
        return float(found["difference"]["high"] - found["difference"]["low"])

    assert width(drawn) > 1.5 * width(alone)
    assert (drawn["people"], alone["people"]) == (4, None)


# --- the document


def test_a_real_report_is_what_the_schema_says(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    path.write_text(json_text(facts))
    assert read_energy(path) == json.loads(json_text(facts))
    there = facts["places"]
    assert {"Loihi 1", "Loihi 2", "edge GPU, batch 1", "edge GPU, large batch", "CPU"} <= set(there)
    assert there["Loihi 2"]["dynamic"]["nominal"] > 0
    assert there["Loihi 2"]["dynamic"]["unit"] == "J"
    assert facts["sha256"].keys() == {"teacher.onnx", "inputs", "baseline inputs"}
    assert facts["accuracy"]["samples"] == 6
    assert facts["accuracy"]["baseline"] is not None
    assert facts["counts"]["summary"]["student"]["messages"] > 0


NAMES = (
    "layers", "sizes", "per_step", "spread", "effective", "effective_nonzero", "breakdown", "places",
    "sha256", "cores", "traffic", "options", "precision",
)  # fmt: skip
"""Keys below which names stand: of layers, places, chips and files."""


def keys(value: Any, named: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not named:
                yield key
            # A layer's breakdown has terms of the model below it.
            yield from keys(inner, named=not named and key in NAMES)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_key_is_documented(facts: Facts) -> None:
    text = (ROOT / "docs" / "energy_json.md").read_text("utf-8")
    assert describe() in text, (
        "docs/energy_json.md: replace its tables by what knarr.pipeline.energy_report.schema.describe() gives"
    )
    found = set(keys(facts))
    assert len(found) > 80
    missing = {key for key in found if f"`{key}`" not in text}
    assert not missing, missing
    assert len({part.__name__ for part in PARTS}) == len(PARTS)
    assert all(field.description for part in PARTS for field in part.model_fields.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": None}, "no schema, this version reads 1; `knarr energy"),
        ({"schema": 7}, "schema 7, this version reads 1"),
        ({"ratio": 0.026}, "ratio"),
        ({"places": {"Loihi 2": {}}}, "places.Loihi 2.dynamic"),
        ({"not_included": 3}, "not_included"),
    ],
)
def test_other_files_are_refused(
    facts: Facts, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    changed = {key: value for key, value in {**facts, **change}.items() if value is not None}
    path = tmp_path / "energy.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match=re.escape(said)):
        read_energy(path)


def test_numbers_that_json_has_not_are_refused(facts: Facts) -> None:
    changed = copy.deepcopy(facts)
    changed["places"]["CPU"]["total"]["high"] = float("inf")
    with pytest.raises(ValueError, match=r"places\.CPU\.total\.high"):
        EnergyFile.model_validate(changed)


def test_the_check_is_what_validation_found() -> None:
    """Written by `make energy-validation`; the package has the rows that are no fit and no other simulator."""
    path = ROOT / "benchmarks" / "results" / "energy_validation.json"
    rows = json.loads(path.read_text("utf-8"))["rows"]
    kept = [
        row
        for row in rows
        if row["measured"] is not None
        and not row["left_out"].startswith("NO CHECK")
        and not row["what"].startswith("SANA-FE")
    ]
    assert checks() == kept
    assert len(kept) > 10


# --- what is printed


def printed(facts: Facts, capsys: pytest.CaptureFixture[str], *, everything: bool = False) -> str:
    print_energy(facts, json=False, everything=everything)
    return capsys.readouterr().out


def test_no_ratio_stands_bare(facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    for everything in (False, True):
        text = printed(facts, capsys, everything=everything)
        assert bare_ratios(text) == []
        assert len(lines_of_ratios(text)) > 5
    # Of tables for papers each ratio has its model in the same line.
    for line in latex_text(facts).splitlines():
        if line.startswith(("operations", "+ ")):
            assert line.rstrip(" \\").endswith("]")
    ratios = {digits(ratio) for ratio in ratios_of(facts)}
    shown = printed(facts, capsys, everything=True)
    assert sum(ratio in shown for ratio in ratios) > len(ratios) // 2, "no ratio was looked at"


@pytest.mark.parametrize(
    "text",
    [
        "energy / ANN          1         0.026",
        "ratio 0.026",
        "SNN / ANN 0.026, cheaper",
        "The SNN takes 0.026 times the ANN's energy.",
        "The SNN is cheaper, 38 times.",
        "operations only      0.044     0.094",
        "+ memory, reuse 16   1.08 [1.08,1.62]    2.27",
        "0.026 of the ANN",
        "38x cheaper",
    ],
)
def test_the_scan_finds_bare_ratios(text: str) -> None:
    assert bare_ratios(f"VERDICT\n\n{text}\n")


def ratios_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "ratio" and inner is not None and inner["nominal"] is not None:
                yield inner["nominal"]
            yield from ratios_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from ratios_of(inner)


def big(facts: Facts, factor: float) -> Facts:
    """The same with counts and energies times a factor, and long names."""
    changed = copy.deepcopy(facts)

    def scaled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: scaled(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [scaled(inner) for inner in value]
        counts = isinstance(value, float) and abs(value) > 1e-20
        return value * factor if counts and key != "share" else value

    for name in ("places", "counts"):
        changed[name] = scaled(changed[name])
    return changed


@pytest.mark.parametrize(("factor", "columns"), [*itertools.product((1.0, 9e4, 3e-7), (80, 100))])
def test_no_digit_is_cut_in_80_columns(
    facts: Facts,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    changed = big(facts, factor)
    text = printed(changed, capsys, everything=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    flat = set(text.split())
    for side in ("student", "baseline"):
        for key in ("synops", "dense", "parameters"):
            number = f"{changed['counts']['summary'][side][key]:,.0f}"
            assert number in flat, number
        for layer in changed["counts"][side]["layers"].values():
            assert f"{layer['mac']:,.0f}" in flat
    for there in changed["places"].values():
        shown = prefix_of(there["total"], 1.0)
        value = amount(there["total"]["nominal"], "J", shown)
        assert there["total"]["nominal"] is None or value.split()[0] in flat, value


def test_names_steer_no_terminal(facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    changed = copy.deepcopy(facts)
    steering = "\x1b[2J" + "long " * 4000
    changed["why"]["shares"][0]["layer"] = steering
    counts = changed["counts"]["baseline"]
    counts["layers"] = {steering: next(iter(counts["layers"].values()))}
    counts["ledger"] = [{"name": steering, "operation": "x", "status": "unsupported", "note": ""}]
    text = printed(changed, capsys, everything=True)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_first_screen_is_the_verdict(facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(facts, capsys)
    screen = text.splitlines()[:24]
    assert screen[0].startswith("VERDICT")
    sentences = " ".join(" ".join(screen).split())
    for sentence in facts["verdict"]["sentences"]:
        assert sentence in sentences
    assert "1 Where it runs" in sentences
    assert len(text.splitlines()) < 90
    headings = [
        "VERDICT",
        "1 Where",
        "2 Same",
        "3 Counts",
        "4 Why",
        "5 Check",
        "6 Not",
        "Literature",
    ]
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    inside = sum(row["measured_inside"] is True for row in checks())
    assert f"Of all {len(checks())} rows {inside} lie inside" in " ".join(text.split())


def test_what_a_name_holds_steers_no_terminal(
    facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {**facts["verdict"], "sentences": ["of \x1b[31mred\x07\x9b2J"]}
    one = {**facts["counts"]["student"], "samples": 1, "timesteps": 1.0}
    print_verdict({**facts, "verdict": told, "counts": {"student": one}})
    text = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "mean of 1 sample, 1 step (" in text


def test_the_csv_holds_every_number(facts: Facts) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(facts))))
    found = {(row["table"], row["where"], row["quantity"]): row for row in rows}
    dynamic = facts["places"]["Loihi 2"]["dynamic"]
    cells = found["places", "Loihi 2", "dynamic"]
    assert [float(cells[name]) for name in ("low", "nominal", "high")] == [
        dynamic[name] for name in ("low", "nominal", "high")
    ]
    assert (cells["unit"], cells["network"]) == ("J", "SNN")
    assert {row["table"] for row in rows} == {
        "places", "same technology", "literature formula", "counts", "accuracy",
    }  # fmt: skip
    ratios = [
        row for row in rows if row["quantity"] == "ratio" and row["table"] != "literature formula"
    ]
    assert ratios
    assert all(row["note"] and row["where"] for row in ratios)


def test_the_latex_has_no_character_that_latex_reads(facts: Facts) -> None:
    text = latex_text(facts)
    body = [line for line in text.splitlines() if not line.startswith(("%", "\\"))]
    assert body
    assert all(not re.search(r"(?<!\\)[%_#$]", line) for line in body)
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 3
    for line in body:
        assert line.endswith(r" \\")


@pytest.mark.parametrize("longest", [12, 34, 60])
def test_short_names_tell_layers_apart(longest: int) -> None:
    names = [
        f"/model/backbone/layers.{number}/a_block/convolution_of_it/Conv" for number in range(30)
    ]
    names += ["conv_1", "", "x" * 200, "x" * 200 + "/y", "a\x1b[2Jb"]
    found = short_names(names, longest)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert max(map(len, found.values())) <= longest
    assert "\x1b" not in "".join(found.values())
    assert short_names(["/layers.0/Conv", "/layers.4/Conv"], 60) == {
        "/layers.0/Conv": "layers.0/Conv",
        "/layers.4/Conv": "layers.4/Conv",
    }
    assert list(short_names(["/a/b/c/Gemm"], 60).values()) == ["c/Gemm"]


# --- pictures


def texts_that_touch(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose drawn boxes overlap, and texts that leave the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    boxes = []
    for axes in figure.axes:
        for child in (axes, *axes.child_axes):
            # Ticks beyond the limits have labels too, which nobody sees.
            ticks = [tick for axis in (child.xaxis, child.yaxis) for tick in axis._update_ticks()]  # type: ignore[attr-defined]
            found = [label for tick in ticks for label in (tick.label1, tick.label2)]
            found += [child._left_title, child.xaxis.label, child.yaxis.label, *child.texts]  # type: ignore[attr-defined]
            for text in found:
                if text.get_text().strip() and text.get_visible():
                    boxes.append((text.get_text(), text.get_window_extent(renderer)))
    assert len(boxes) > 8
    touching = [
        (one, two)
        for (one, first), (two, second) in itertools.combinations(boxes, 2)
        if first.shrunk(0.98, 0.9).overlaps(second.shrunk(0.98, 0.9))
    ]
    outside = [
        (name, "outside")
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    return touching + outside


def with_layers(facts: Facts, count: int, name: str) -> Facts:
    changed = copy.deepcopy(facts)
    changed["why"]["shares"] = [
        {"layer": name.format(number), "term": term, "joules": 1e-6, "share": 0.5 / count}
        for number in range(count)
        for term in ("synapses", "updates")
    ]
    return changed


@pytest.mark.parametrize(
    ("count", "name", "factor"),
    [
        (1, "a", 1.0),
        (3, "conv_{}", 1e6),
        (24, "/model/backbone/layers.{}/a_block_with_a_long_name/convolution_of_it/Conv", 1e-5),
        (60, "layer_{}", 1.0),
        (2, "$a_{}$ $\\frac", 1.0),
    ],
)
def test_no_label_touches_another(facts: Facts, count: int, name: str, factor: float) -> None:
    figure = draw_energy(with_layers(big(facts, factor), count, name))
    assert texts_that_touch(figure) == []


def test_touching_labels_would_be_found(facts: Facts) -> None:
    figure = draw_energy(facts)
    figure.axes[0].set_yticks([0, 0.1], ["one", "two"])
    assert ("one", "two") in texts_that_touch(figure)


def test_a_network_alone_is_drawn(facts: Facts) -> None:
    alone = {**facts, "places": {}, "why": {**facts["why"], "shares": []}}
    alone["same_technology"] = [{**one, "ratio": None} for one in facts["same_technology"][:3]]
    assert texts_that_touch(draw_energy(alone)) == []
