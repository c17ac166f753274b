"""knarr's operation counts against NeuroBench's recorded ones: equal to the operation, or different by a policy with a name.

benchmarks/results/neurobench.json is what NeuroBench said in an environment of its own (benchmarks/energy); networks and inputs
are seeded, so our side is counted anew here. A record of other weights, inputs, spikes or versions fails.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "benchmarks" / "energy"
sys.path.insert(0, str(FOLDER))

import against_neurobench
import neurobench_compare
import neurobench_table
from neurobench_cases import CASES
from neurobench_compare import Ours, UnexplainedError, rows
from neurobench_regroup import Frames

Report = dict[str, Any]


@pytest.fixture(scope="module")
def found() -> dict[str, Ours]:
    return {name: neurobench_compare.ours(case) for name, case in CASES.items()}


@pytest.fixture
def report() -> Report:
    return json.loads(against_neurobench.RESULT.read_text("utf-8"))


def place(path: str) -> str:
    return path.split(".")[0]


def exact(value: dict[str, float]) -> tuple[Fraction, Fraction]:
    return Fraction(value["Effective_ACs"]), Fraction(value["Effective_MACs"])


@pytest.mark.parametrize("case", CASES)
def test_sample_by_sample_every_layer_is_equal(
    case: str, found: dict[str, Ours], report: Report
) -> None:
    """A call is one frame then, so there is no other policy than ours left: not for ACC and MAC of what has hooks."""
    counts = found[case].floating
    for coding, said in report["cases"][case]["codings"].items():
        layers, heard = said["batches"]["1"]["layers"], set()
        for name, layer in counts.layers.items():
            there = [
                exact(value) for path, value in layers.items() if place(path) == name.split("_")[1]
            ]
            if not there:
                assert (case, coding, name) == ("loop", "norse", "lif_2_in") or name == "pool_4"
                continue
            heard.add(name.split("_")[1])
            summed = tuple(map(sum, zip(*there, strict=True)))
            assert summed == (layer.acc_nonzero, layer.mac_nonzero), (coding, name)
        assert heard == {place(path) for path in layers}


@pytest.mark.parametrize("size", [3, 4])
def test_batches_move_operations_between_classes_and_lose_none(
    size: int, found: dict[str, Ours], report: Report
) -> None:
    for case, ours in found.items():
        said = report["cases"][case]["codings"]["norse"]["batches"]
        for path, value in said[str(size)]["layers"].items():
            (name,) = (name for name in ours.layers if name.split("_")[1] == path)
            (frames,) = ours.layers[name]
            assert exact(value) == frames.by_call(size), (case, name)
            assert sum(exact(value)) == sum(frames.by_frame())
            assert (exact(value) == frames.by_frame()) == ((case, name) != ("mixed", "conv_0"))


def test_every_policy_is_met_and_nothing_else(found: dict[str, Ours], report: Report) -> None:
    table = {name: rows(found[name], report["cases"][name]["codings"]) for name in CASES}
    letters = {name: set("".join(row.verdict for row in lines)) for name, lines in table.items()}
    assert letters == {name: set("=PT") for name in CASES} | {
        "mixed": set("=CPT"),
        "loop": set("=AHT"),
    }
    assert set().union(*letters.values()) == set(neurobench_compare.POLICIES)


def test_the_cases_are_what_they_say(found: dict[str, Ours]) -> None:
    for name, ours in found.items():
        for spikes in ours.trace.spikes.values():
            assert 0.01 < spikes.mean() < 0.6, name
        total = ours.floating.total
        assert total.acc_nonzero < total.acc
        assert total.acc > 0
        assert (total.mac > 0) == (name != "loop")  # elsewhere there is a pool
        values = set(np.unique(ours.made["inputs"]))
        assert (len(values) > 3) == (name in ("first", "mixed", "pruned"))
        assert (-1 in values) == (name == "signed")
    pruned, whole = found["pruned"].floating.total, found["binary"].floating.total
    assert pruned.acc_nonzero / pruned.acc < 0.55 * whole.acc_nonzero / whole.acc
    assert found["first"].floating.layers["conv_0"].mac > 0


def test_frames_by_hand() -> None:
    """Two samples of two steps; the first sample is graded at the first step."""
    frames = Frames(
        np.array([[3, 5], [7, 11]]), np.array([[True, False], [False, False]]), dense=20
    )
    assert frames.by_frame() == (Fraction(5 + 7 + 11, 2), Fraction(3, 2))
    assert frames.by_call(1) == frames.by_frame()
    assert frames.by_call(2) == (Fraction(5 + 11, 2), Fraction(3 + 7, 2))


def change(*keys: str, by: float = 1.0) -> Callable[[Report], None]:
    def changed(report: Report) -> None:
        for key in keys[:-1]:
            report = report[key]
        report[keys[-1]] += by

    return changed


def deaf(case: Report) -> None:
    """Take a layer out of every run, and out of the totals: consistent, and still no recurrent cell."""
    for coding in case["codings"].values():
        for run in coding["batches"].values():
            for name, value in run["layers"].pop("8").items():
                run["total"][name] -= value


BATCH = ("codings", "norse", "batches", "4")


@pytest.mark.parametrize(
    "broken",
    [
        change(*BATCH, "layers", "2", "Effective_ACs"),
        change(*BATCH, "layers", "6", "Effective_MACs", by=-0.25),
        change(*BATCH, "layers", "0", "Dense"),
        change(*BATCH, "total", "Effective_ACs"),
        lambda case: case["codings"]["snntorch"]["spikes"].update({"3": "0" * 64}),
        lambda case: case["codings"]["norse"]["batches"]["1"]["layers"].pop("8"),
        deaf,
    ],
)
def test_one_operation_more_or_less_is_not_explained(
    broken: Callable[[Report], None], found: dict[str, Ours], report: Report
) -> None:
    case = report["cases"]["mixed"]
    rows(found["mixed"], case["codings"])
    broken(case)
    with pytest.raises(UnexplainedError):
        rows(found["mixed"], case["codings"])


@pytest.mark.parametrize("metric", ["activation_sparsity", "membrane_updates"])
def test_neurons_are_equal_by_neurobenchs_rules(
    metric: str, found: dict[str, Ours], report: Report
) -> None:
    assert report["cases"]["first"]["codings"]["snntorch"][metric] > 0
    report["cases"]["first"]["codings"]["snntorch"][metric] += 0.25
    with pytest.raises(UnexplainedError, match="neurons"):
        neurobench_table.written(found, report)


@pytest.mark.parametrize(
    ("stale", "message"),
    [
        (
            lambda report: report["versions"].update(neurobench="2.2.0"),
            "neurobench: recorded with 2.2.0",
        ),
        (
            lambda report: report["cases"]["first"].update(arrays="0"),
            "'first': recorded with other weights",
        ),
        (lambda report: report["cases"].pop("loop"), "cases: recorded"),
        (lambda report: report["cases"]["loop"]["codings"].pop("linear"), "'loop': recorded for"),
    ],
)
def test_a_stale_record_is_refused(
    stale: Callable[[Report], None], message: str, found: dict[str, Ours], report: Report
) -> None:
    against_neurobench.check(found, report)
    stale(report)
    with pytest.raises(against_neurobench.StaleError, match=message):
        against_neurobench.check(found, report)


def test_other_weights_and_inputs_have_another_digest(found: dict[str, Ours]) -> None:
    made = found["binary"].made
    known = against_neurobench.digest(made)
    for name in made:
        other = copy.deepcopy(made)
        other[name].flat[0] += 1
        assert against_neurobench.digest(other) != known


def test_the_page_is_of_this_record(found: dict[str, Ours], report: Report) -> None:
    page = against_neurobench.document(found, report)
    assert page == against_neurobench.RESULT.with_suffix(".md").read_text("utf-8")
    table = page.split("```")[1].splitlines()
    assert len(table) > 60
    assert [line for line in table if len(line) > neurobench_table.WIDTH] == []


def test_what_neurobench_gets_wrong_is_recorded(report: Report) -> None:
    probes = report["probes"]
    assert set(probes) >= {"functional", "keyword", "lstm", "shared", "large", "carried"}
    assert [name for name, probe in probes.items() if probe["neurobench"] == probe["by_hand"]] == []


def test_the_command_says_what_it_does() -> None:
    command = [sys.executable, str(FOLDER / "against_neurobench.py"), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "--again" in done.stdout
    assert "--python" in done.stdout


def test_dispatched_operations_are_held_to_neurobenchs(
    found: dict[str, Ours], report: Report
) -> None:
    """The same modules, counted without an export: equal where NeuroBench has a hook, which a bare parameter has not."""
    for case, ours in found.items():
        said = report["cases"][case]["codings"]["norse"]["batches"]["1"]["layers"]
        neurobench_compare.check_dispatched(ours, said)
        counted = {name for name, layer in ours.dispatched.layers.items() if layer.dense_valid}
        missed = {"2.input_weights", "2.recurrent_weights"} if case == "loop" else set()
        assert counted == said.keys() | missed
    said["3"]["Effective_ACs"] += 0.25
    with pytest.raises(UnexplainedError, match="layer '3': count_torch is not"):
        neurobench_compare.check_dispatched(ours, said)
