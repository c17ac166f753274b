"""The measurement on Stress-Predict: its codings, that nobody tested is looked at before, its scores, and the student on the chip."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "train"))

import stress_others
import stress_predict
import stress_tune
from stress_codings import Coding, encode
from stress_others import balanced_draw, crossed_logits, fit_teacher, teacher_logits
from stress_score import Interval, balanced_accuracy, over_people, over_seeds
from stress_student import KdSetting, StudentSetting, fit_student, float_classes, run_on_chip
from stress_table import answer, document

from knarr.train.datasets.stress.windows import StressWindows


def made_up(people: int = 8, each: int = 30, seed: int = 0) -> StressWindows:
    """Windows whose skin conductance is higher, and rises, under stress; and the heart beats faster."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, people * each)
    noise = rng.normal(0, 0.05, (len(labels), 240)).cumsum(axis=1)
    eda = noise + (labels[:, None] - 0.5) * (1 + np.linspace(0, 1, 240))
    hr = rng.normal(0, 1, (len(labels), 60)) + labels[:, None]
    subjects = np.repeat([f"S{number:02d}" for number in range(2, people + 2)], each)
    starts = np.tile(30 * np.arange(each), people)
    return StressWindows(
        eda.astype(np.float32), hr.astype(np.float32), labels, subjects, starts, {}
    )


@pytest.mark.parametrize(("coding", "inputs"), [("graded", 12), ("events", 39)])
def test_a_step_hears_no_later_sample(coding: Coding, inputs: int) -> None:
    windows = made_up(2)
    codes = encode(windows.eda, coding)
    assert codes.integers.shape == (len(windows), 20, inputs)
    assert codes.integers.max() < 2**codes.bits
    changed = windows.eda.copy()
    changed[:, 120:] = -changed[:, 120:] + 1
    later = encode(changed, coding).integers
    assert np.array_equal(later[:, :10], codes.integers[:, :10])
    assert (later[:, 10:] != codes.integers[:, 10:]).any(axis=(0, 1)).sum() > inputs / 2


def test_graded_codes_are_shares_of_eight_bits() -> None:
    flat = np.stack([np.full(240, 1.5), np.full(240, -6.0)]).astype(np.float32)
    codes = encode(flat, "graded").integers
    assert (
        codes[0].tolist() == [[128, *[0] * 11]] * 20
    )  # 1.5 of 3 standard deviations; no change, no response
    assert codes[1].tolist() == [[*[0] * 6, 255, *[0] * 5]] * 20


def test_events_mark_each_move_of_more_than_a_delta() -> None:
    eda = np.zeros((1, 240), np.float32)
    eda[0, 13:] = 0.1  # second step, first part: over the small delta alone
    eda[0, 20:] = -0.2  # second step, third part: down, over both
    codes = encode(eda, "events").integers[0]
    assert np.argwhere(codes[:, :16]).tolist() == [[1, 0], [1, 6], [1, 14]]


def test_both_classes_are_drawn_alike() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    drawn = balanced_draw(labels, np.random.default_rng(0))
    assert np.bincount(labels[drawn]).tolist() == [20, 20]
    assert set(drawn[labels[drawn] == 1]) == set(range(30, 40))


def test_nobody_is_taught_by_a_teacher_that_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, known = made_up(), []

    def watched(windows: StressWindows, train: npt.NDArray[np.int64], *args: Any) -> Any:
        known.append(set(windows.subjects[train]))
        return fit_teacher(windows, train, *args)

    def asked(teacher: Any, windows: StressWindows, indices: npt.NDArray[np.int64]) -> Any:
        assert not known[-1] & set(windows.subjects[indices])
        return teacher_logits(teacher, windows, indices)

    monkeypatch.setattr(stress_others, "fit_teacher", watched)
    monkeypatch.setattr(stress_others, "teacher_logits", asked)
    logits = crossed_logits(windows, np.arange(len(windows)), "forest", 0)
    assert len(known) == 3
    assert (logits.argmax(axis=1) == windows.labels).mean() > 0.8


def test_tuning_sees_nobody_who_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress_tune, "LEAVES", (5,))
    monkeypatch.setattr(stress_tune, "STUDENTS", (StudentSetting("graded", 4, 2),))
    monkeypatch.setattr(stress_tune, "KD", (KdSetting("network", 0.5, 1.0),))
    windows = made_up()
    train = np.flatnonzero(~np.isin(windows.subjects, ["S02", "S05"]))
    tuned = stress_tune.tune(windows, train, lambda _: None)
    other = made_up(seed=1)
    for name in ("eda", "hr", "labels"):
        getattr(other, name)[train] = getattr(windows, name)[train]
    assert stress_tune.tune(other, train, lambda _: None) == tuned
    assert tuned["chosen"] == {
        "forest": 5,
        "student": ["graded", 4, 2],
        "kd": ["network", 0.5, 1.0],
    }


def test_scores_are_of_both_classes_and_intervals_of_seeds_and_people() -> None:
    assert balanced_accuracy({"S02": [6, 2, 1, 1], "S03": [2, 0, 0, 2]}) == pytest.approx(
        (0.8 + 0.75) / 2
    )
    scores = np.array([[0.6, 0.8], [0.7, 0.9], [0.8, 1.0]])
    assert over_seeds(scores) == pytest.approx(
        (0.8, 0.8 - 0.248414, 0.8 + 0.248414), abs=1e-5
    )  # t = 4.302653
    ours = [[{"S02": [8, 2, 2, 8]}, {"S03": [6, 4, 4, 6]}]] * 2
    assert over_people(ours, ours) == (0, 0, 0)
    assert over_people(ours, 0.5) == pytest.approx((0.2, 0.1, 0.3))


def test_an_answer_needs_both_intervals() -> None:
    above, around, below = (
        Interval(0.1, 0.05, 0.2),
        Interval(0.1, -0.1, 0.3),
        Interval(-0.1, -0.2, -0.05),
    )
    assert answer(above, above) == "yes"
    assert answer(above, around) == "yes for these people; not shown for others"
    assert answer(around, above) == "not shown"
    assert answer(below, below) == "no, less"


@pytest.mark.parametrize("coding", ["graded", "events"])
def test_a_taught_student_learns_and_reaches_the_chip(coding: Coding) -> None:
    windows = made_up()
    train, test = np.arange(180), np.arange(180, 240)
    codes = encode(windows.eda, coding)
    kd = KdSetting("forest", 0.5, 2.0)
    logits = crossed_logits(windows, train, "forest", 0)
    network = fit_student(
        codes, windows.labels, train, StudentSetting(coding, 8, 60), 0, kd, logits
    )
    again = fit_student(codes, windows.labels, train, StudentSetting(coding, 8, 60), 0, kd, logits)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )
    classes = float_classes(network, codes, test)
    assert (classes == windows.labels[test]).mean() > 0.8
    chip = run_on_chip(network, codes, train, test)
    assert chip.spikes > 0
    assert (chip.classes == classes).mean() > 0.9


def test_a_run_that_was_killed_goes_on_and_one_with_other_data_is_refused(tmp_path: Path) -> None:
    windows = made_up()
    folds = stress_predict.group_folds(windows)
    chosen: dict[str, Any] = {
        "forest": 5,
        "student": ["events", 8, 60],
        "kd": ["network", 0.5, 1.0],
    }
    kept = stress_predict.begun(tmp_path / "none.json", windows, folds, fresh=False)
    fit = stress_predict.fit_all(windows, folds[0], chosen, 0, lambda _: None)
    path = tmp_path / "stress_predict.json"
    path.write_text(json.dumps({**kept, "fits": {"0/0": fit}}))
    assert stress_predict.begun(path, windows, folds, fresh=False)["fits"] == {"0/0": fit}
    with pytest.raises(SystemExit, match="other data, folds or settings"):
        stress_predict.begun(path, made_up(seed=1), folds, fresh=False)
    with pytest.raises(SystemExit, match="no seed has all its folds"):
        document({**kept, "fits": {"0/0": fit}})
    tried = {what: [[setting, 0.6]] for what, setting in chosen.items()}
    whole = {f"{seed}/{fold}": fit for seed in range(2) for fold in range(5)}
    tuning = {str(fold): {**tried, "chosen": chosen} for fold in range(5)}
    text = document({**kept, "tuning": tuning, "fits": whole})
    assert f"| {100 * balanced_accuracy(fit['student']):.2f} ± 0.00 |" in text
    assert "| taught student | network, 0.5, 1.0 | 60.0 | 5 |" in text
