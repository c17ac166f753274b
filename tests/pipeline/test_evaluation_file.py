"""evaluation.json: folds pooled are what scikit-learn says of all predictions together; files that claim other things are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from knarr.pipeline import evaluation as run_evaluation
from knarr.pipeline import evaluation_file
from knarr.pipeline.evaluation import EvaluationError, RunEvaluation, pool
from knarr.pipeline.evaluation_file import evaluation_json, read, write
from knarr.pipeline.measures import measure

CLASSES = ("angry", "fear", "neutral")
EXACT = 1e-12  # a few float64 sums in another order
Change = Callable[[dict[str, Any]], object]


def evaluation(fold: int = 0, *, fold_count: int = 4, seed: int = 0, **more: Any) -> RunEvaluation:
    """Of a fold: two people of its own, 5 + fold samples each, three passes; right about two times in three."""
    rng = np.random.default_rng([seed, fold])
    each = 5 + fold
    people = [f"p{2 * fold + n}" for n in range(2)]
    labels = np.arange(2 * each) % 3
    noise = rng.integers(0, 9, (3, 2 * each))
    settings = {
        "data": "DEAP",
        "task": "valence",
        "classes": CLASSES,
        "names": tuple(f"{person}/{n}" for person in people for n in range(each)),
        "labels": labels,
        "predicted": {"student": np.where(noise < 3, noise, labels), "teacher": labels[None]},
        "subjects": tuple(person for person in people for _ in range(each)),
        "lights": tuple(("Low", "HDR")[n % 2] for n in range(2 * each)),
        "folds": np.full(2 * each, fold),
        "fold_count": fold_count,
        "sampling": "E4-S3",
        "protocol": "two people left out at a time",
        "draws": 50,
    }
    return RunEvaluation(**(settings | more))  # type: ignore[arg-type]


def test_folds_pooled_are_what_all_predictions_give() -> None:
    parts = [evaluation(fold) for fold in (2, 0, 3, 1)]
    whole = pool(parts)
    ordered = [evaluation(fold) for fold in range(4)]
    true = np.concatenate([part.labels for part in ordered])
    passes = np.concatenate([part.predicted["student"] for part in ordered], axis=1)
    found = whole.measures["student"]
    assert (whole.fold_numbers, found.samples, found.subjects, found.passes) == (
        (0, 1, 2, 3),
        52,
        8,
        3,
    )

    def expect(rate: Callable[[Any, Any], float], of: Any = None) -> Any:
        chosen = np.arange(52) if of is None else of
        return pytest.approx(
            np.mean([rate(true[chosen], row[chosen]) for row in passes]), abs=EXACT
        )

    assert 0.5 < found.war.value < 0.9
    assert found.war.value == expect(metrics.accuracy_score)
    assert found.uar.value == expect(metrics.balanced_accuracy_score)
    for key, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        rate = found.of(key)
        assert rate is not None
        assert rate.value == expect(partial(metrics.f1_score, average=average))
    for light in ("Low", "HDR"):
        own = np.flatnonzero(
            np.array([name for part in ordered for name in part.lights or ()]) == light
        )
        assert found.groups[light].war.value == expect(metrics.accuracy_score, own)
    # The interval is that of one data set of all people, not a mean of the folds' own.
    people = [name for part in ordered for name in part.subjects or ()]
    together = measure(passes, true, CLASSES, subjects=people, draws=50)
    assert found.war.bootstrap is not None
    assert found.war.bootstrap == together.war.bootstrap


def test_the_mean_over_folds_counts_each_once() -> None:
    whole = pool([evaluation(fold) for fold in range(4)])
    found = whole.of_folds("student", "war")
    own = {fold: evaluation(fold).measures["student"].war.value for fold in range(4)}
    assert found == pytest.approx(own, abs=EXACT)
    assert np.mean(list(found.values())) != pytest.approx(
        whole.measures["student"].war.value, abs=1e-4
    )
    lone = RunEvaluation("d", CLASSES, ("a",), np.array([1]), {"student": np.array([1])})
    assert lone.of_folds("student", "recall/angry") == {}  # a class that never occurs in it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 0}, "samples: 10 tested twice, 'p0/0' among them; folds share none"),
        ({"fold": 1, "folds": np.zeros(12, int)}, r"folds: \[0\] are there twice"),
        (
            {"fold": 1, "data": "SEE"},
            "data: 'DEAP' in one fold, 'SEE' in another; evaluate them alike",
        ),
        ({"fold": 1, "seed": 1, "draws": 60}, "draws: 50 in one fold, 60 in another"),
        ({"fold": 1, "subjects": None}, "subjects: known in 1 of 2 folds"),
        (
            {"fold": 1, "predicted": {"student": np.zeros((3, 12), int)}},
            "passes: .* evaluate them alike",
        ),
    ],
)
def test_folds_that_do_not_belong_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        pool([evaluation(), evaluation(**change)])
    with pytest.raises(EvaluationError, match="pool: no evaluation"):
        pool([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": {}}, "networks: none; name some of"),
        ({"predicted": {"nobody": np.zeros(10, int)}}, "networks: nobody"),
        ({"predicted": {"student": np.zeros(9, int)}}, "predicted: shape"),
        ({"predicted": {"student": np.full(10, 3)}}, "predicted: classes 3 .. 3 outside 0 .. 2"),
        ({"predicted": {"student": np.zeros(10)}}, "whole numbers, not scores"),
        ({"labels": np.zeros(9, int)}, "labels: 9 for 10 names; give one each"),
        (
            {"labels": np.arange(10) % 3 + 1},
            r"labels: 1..3, the network has classes 0..2; they begin at 1, subtract 1",
        ),
        ({"labels": np.full(10, 0.5)}, r"labels: 0.5 is no class; number the classes 0, 1, 2, ..."),
        ({"subjects": ("p",)}, "subjects: 1 for 10 names"),
        ({"names": ("a",) * 10}, "names: 9 stand there already"),
        ({"folds": np.full(10, 4)}, r"folds: of 4, but samples in \[4\]"),
        ({"classes": ("one",)}, "needs two or more different names"),
        (
            {"draws": 100_000_000},
            "draws: 100000000 of 2 people in 3 passes are more than a measure may take",
        ),
    ],
)
def test_evaluations_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluation(**change)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    for one in (
        evaluation(),
        pool([evaluation(fold) for fold in range(4)]),
        RunEvaluation("N-MNIST", CLASSES, ("a", "b"), np.array([0, 1]), {"chip": np.array([1, 1])}),
    ):
        write(path, one)
        found = read(path)
        assert evaluation_json(found) == evaluation_json(one)
        assert found.on == ("DEAP valence" if one.task else "N-MNIST")
    text = path.read_text()
    assert max(map(len, text.splitlines())) < 200
    assert json.loads(text)["networks"]["chip"] == {"predicted": [[1, 1]]}
    assert found.measures["chip"].war.value == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_file_too_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_file, "MAX_BYTES", 100)
    with pytest.raises(EvaluationError, match=r"\d+ bytes > 100; evaluate fewer windows"):
        write(tmp_path / "evaluation.json", evaluation())
    assert not list(tmp_path.iterdir())


def put(path: str, value: Any) -> Change:
    """Sets what a dotted path leads to; numbers are positions."""

    def change(document: dict[str, Any]) -> None:
        at: Any = document
        *above, last = path.split(".")
        for part in above:
            at = at[int(part) if part.isdigit() else part]
        at[int(last) if last.isdigit() else last] = value

    return change


STUDENT = "networks.student"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(f"{STUDENT}.measures", {}), "networks.student.measures: Extra inputs"),
        (put(f"{STUDENT}.predicted.1.3", 3), "classes 0 .. 3 outside 0 .. 2"),
        (
            put(f"{STUDENT}.predicted.1.3", -1),
            "networks.student.predicted.1.3: Input should be greater",
        ),
        (put(f"{STUDENT}.predicted.1.3", 10**30), "networks.student.predicted.1.3: "),
        (
            put(f"{STUDENT}.predicted.1.3", True),
            "networks.student.predicted.1.3: Input should be a valid int",
        ),
        (
            put(f"{STUDENT}.predicted.1.3", "0"),
            "networks.student.predicted.1.3: Input should be a valid int",
        ),
        (put(f"{STUDENT}.predicted.1", [0, 1]), r"passes of \[2, 10\] samples for 10 names"),
        (put(f"{STUDENT}.predicted", []), r"passes of \[\] samples"),
        (put("networks.nobody", {"predicted": [[0]]}), "networks.nobody"),
        (put("networks", {}), "networks: none"),
        (put("samples.names.0", "p0/1"), "names: 1 stand there already"),
        (put("samples.names", []), r"passes of \[10\] samples for 0 names"),
        (put("samples.lights", ["Low"]), "lights: 1 for 10 names"),
        (put("samples.folds.0", 7), "folds: of 4"),
        (put("draws", 0), "draws: "),
        (put("level", 1.5), "level: "),
        (put("format", 1), "format: "),
        (put("data", "x" * 1000), "data: String should have at most 300"),
        (put("y" * 1000, 1), "y{57}...: Extra inputs"),
        (put("protocol", "\x1b[2J"), "protocol: String should match"),
        (put("samples.names.0", "\x9b2J"), "samples.names.0: String should match"),
        (put("data", "\ud800"), "data: Input should be a valid string"),
        (put("\x1b[2J", 1), r"'\\x1b\[2J': Extra inputs"),
        (lambda document: document.pop("seed"), "seed: Field required"),
    ],
)
def test_a_file_that_says_something_else(tmp_path: Path, change: Change, message: str) -> None:
    document = evaluation_json(evaluation())
    change(document)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match=message) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith("; remove it and run `knarr evaluate` again")
    assert len(text) < len(str(path)) + 400
    assert text.isprintable()


GOOD = json.dumps(evaluation_json(evaluation()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (GOOD[: len(GOOD) // 2].encode(), "not JSON"),
        (b"\xff\xfe" + GOOD.encode(), "not JSON"),
        (b"[]", "file: Input should be"),
        (b"[" * 100_000, "not JSON"),
        (GOOD.replace('"seed": 0', '"seed": 0, "seed": 0').encode(), "seed is there twice"),
        (GOOD.replace('"level": 0.95', '"level": NaN').encode(), "holds NaN, which is no number"),
        (GOOD.replace('"level": 0.95', '"level": Infinity').encode(), "holds Infinity"),
        (GOOD.replace('"level": 0.95', '"level": 1e999', 1).encode(), "level: "),
        (GOOD.replace('"seed": 0', f'"seed": {"9" * 5000}').encode(), "not JSON"),
    ],
)
def test_a_file_that_is_damaged(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read(path)


def test_a_file_that_is_huge_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(EvaluationError, match="no such file"):
        read(path)
    with path.open("wb") as file:
        file.truncate(
            evaluation_file.MAX_BYTES + 1
        )  # sparse: takes no disk, and must take no memory
    with pytest.raises(EvaluationError, match="33554433 bytes > 33554432"):
        read(path)


def test_a_small_file_cannot_ask_for_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bootstrap weights are draws x people: refused before any is drawn."""
    people = 5000
    names = tuple(map(str, range(people)))
    one = RunEvaluation(
        "d", CLASSES, names, np.zeros(people, int), {"student": np.zeros(people, int)}, draws=1
    )
    document = evaluation_json(one)
    document["samples"]["subjects"] = list(names)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(document | {"draws": 100_000}))
    monkeypatch.setattr(run_evaluation, "measure", None)
    with pytest.raises(EvaluationError, match="100000 of 5000 people in 1 passes are more than"):
        read(path)
    with pytest.raises(EvaluationError, match="are more than"):
        replace(one, lights=names, predicted={"student": np.zeros((201, people), int)})
