"""Rates by hand and by loops, intervals by closed form and brute force, windows by the published steps, whole evaluations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from knarr.pipeline.measures import RATES, Estimate, draw_subjects, measure, wilson
from knarr.train.datasets.see.windows import (
    Sampling,
    draw_window,
    evaluation_windows,
    remaining,
    sampling,
    starts,
    window,
)

Indices = npt.NDArray[np.int64]
PUBLISHED = tuple(map(sampling, ("E4-S0", "E4-S1", "E4-S3", "E7-S0", "E7-S1", "E13-S0")))
"""The samplings that SEEN's paper has numbers for."""
NAMES = ("a", "b", "c")
TRUE = np.array([0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 1, 2, 2])


def loops(guess: Indices, true: Indices, classes: int) -> dict[str, float]:
    """Rates as their definitions read; over the classes that occur."""
    recalls, f1s, supports = [], [], []
    for c in range(classes):
        hits = sum(int(g == c and t == c) for g, t in zip(guess, true, strict=True))
        support, called = int((true == c).sum()), int((guess == c).sum())
        if support:
            recalls.append(hits / support)
            f1s.append(2 * hits / (support + called))
            supports.append(support)
    right = sum(int(g == t) for g, t in zip(guess, true, strict=True))
    return {
        "war": right / len(true),
        "uar": sum(recalls) / len(recalls),
        "macro_f1": sum(f1s) / len(f1s),
        "weighted_f1": sum(n * f for n, f in zip(supports, f1s, strict=True)) / len(true),
    }


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def test_rates_by_hand() -> None:
    found = measure(GUESS, TRUE, NAMES)
    assert found.confusion.dtype == np.int64
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.war.value == pytest.approx(4 / 6, rel=1e-15)
    assert [known(found.recall[name]).value for name in NAMES] == pytest.approx(
        [2 / 3, 1 / 2, 1], rel=1e-15
    )
    assert found.uar.value == pytest.approx(13 / 18, rel=1e-15)
    assert found.macro_f1.value == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3, rel=1e-15)
    assert found.weighted_f1.value == pytest.approx((3 * 4 / 5 + 2 * 1 / 2 + 2 / 3) / 6, rel=1e-15)
    assert (found.absent, found.groups, found.subjects, found.passes) == ((), {}, None, 1)
    assert found.war.spread is None
    assert found.war.bootstrap is None  # nobody said whose the samples are
    assert found.war.wilson == wilson(4 / 6, 6)
    assert known(found.recall["a"]).wilson == wilson(2 / 3, 3)
    assert found.uar.wilson is None


@pytest.mark.parametrize("seed", range(8))
def test_rates_by_loops(seed: int) -> None:
    """Also with classes that never occur, and such that are predicted all the same."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 8))
    true, guess = rng.integers(0, max(1, classes - seed % 3), 40), rng.integers(0, classes, (3, 40))
    found = measure(guess, true, [str(c) for c in range(classes)])
    passes = [loops(row, true, classes) for row in guess]
    for rate in RATES:
        values = [one[rate] for one in passes]
        assert known(found.of(rate)).value == pytest.approx(np.mean(values), rel=1e-14)
        assert known(found.of(rate)).spread == pytest.approx(np.std(values, ddof=1), abs=1e-14)
    assert found.confusion.sum() == guess.size
    assert all(
        found.confusion[t, g] == (guess[:, true == t] == g).sum()
        for t in range(classes)
        for g in range(classes)
    )


def test_a_class_that_never_occurs_is_named_and_not_averaged() -> None:
    found = measure(np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0]), NAMES)
    assert found.absent == ("c",)
    assert found.recall["c"] is None
    assert found.uar.value == (1 + 1 / 2) / 2  # as a 0 among three it would be 1/2
    assert found.macro_f1.value == pytest.approx((1 + 2 / 3) / 2)
    assert found.war.value == 3 / 4  # to predict it is still wrong


def test_groups_are_measured_alone() -> None:
    lights = np.array(["dim", "dim", "dim", "lit", "lit", "lit"])
    found = measure(GUESS, TRUE, NAMES, lights)
    assert list(found.groups) == ["dim", "lit"]
    dim, lit = found.groups.values()
    assert (dim.samples, lit.samples, dim.absent, lit.absent) == (3, 3, ("b", "c"), ("a",))
    assert (dim.war.value, lit.uar.value) == pytest.approx((2 / 3, 3 / 4))
    assert (dim.confusion + lit.confusion).tolist() == found.confusion.tolist()
    assert found.of("group/dim") == dim.war
    assert found.of("recall/b") == found.recall["b"]
    assert [found.of(key) for key in ("group/none", "recall/none", "classes")] == [None] * 3


@pytest.mark.parametrize(
    ("guess", "true", "names", "message"),
    [
        ([0.5], [0], NAMES, "as whole numbers"),
        ([3], [0], NAMES, r"predicted: classes 3 .. 3 outside 0 .. 2"),
        ([0], [-1], NAMES, r"labels: -1..-1; number the classes 0, 1, 2"),
        ([0, 1], [0], NAMES, r"shape \(1, 2\) for 1"),
        ([], [], NAMES, "with a sample at least"),
        ([0], [0], ("a", "a"), "different names"),
        ([0], [0], ("a",), "two or more"),
    ],
)
def test_what_cannot_be_measured(
    guess: list[int], true: list[int], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(np.array(guess), np.array(true), names)


def test_bad_ids_and_settings() -> None:
    with pytest.raises(ValueError, match=r"subjects: .* of shape"):
        measure(GUESS, TRUE, NAMES, subjects=["p"])
    with pytest.raises(ValueError, match="groups: float64"):
        measure(GUESS, TRUE, NAMES, np.zeros(6))
    with pytest.raises(ValueError, match="level: 1"):
        measure(GUESS, TRUE, NAMES, level=1)
    with pytest.raises(ValueError, match="0 draws"):
        measure(GUESS, TRUE, NAMES, subjects=list("ppqqrr"), draws=0)
    with pytest.raises(ValueError, match=r"wilson: share 1\.5"):
        wilson(1.5, 3)


# Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3
@pytest.mark.parametrize(
    ("hits", "samples", "lo", "hi"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_known_values(hits: int, samples: int, lo: float, hi: float) -> None:
    found = wilson(hits / samples, samples)
    assert (round(found.lo, 4), round(found.hi, 4)) == (lo, hi)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(deadline=None)
def test_wilson_is_scipys(samples: int, share: float, level: float) -> None:
    hits = round(share * samples)
    found = wilson(hits / samples, samples, level)
    other = stats.binomtest(hits, samples).proportion_ci(level, method="wilson")
    assert (found.lo, found.hi) == pytest.approx((other.low, other.high), abs=1e-12)
    assert 0 <= found.lo <= hits / samples <= found.hi <= 1


def test_subjects_are_drawn_whole() -> None:
    drawn = draw_subjects(9, 500, seed=3)
    assert drawn.shape == (500, 9)
    assert (drawn.sum(axis=1) == 9).all()
    assert drawn.min() == 0
    assert drawn.max() > 2
    assert (drawn == draw_subjects(9, 500, seed=3)).all()
    assert (drawn != draw_subjects(9, 500, seed=4)).any()
    with pytest.raises(ValueError, match="at least 2"):
        draw_subjects(1, 10, seed=0)


def test_bootstrap_is_that_of_whole_people_by_loops() -> None:
    rng = np.random.default_rng(5)
    owner = np.repeat(np.arange(6), [3, 9, 5, 1, 7, 4])
    true = rng.integers(0, 3, len(owner))
    true[owner == 1], true[(owner != 1) & (true == 2)] = 2, 0  # class c is one person's alone
    guess = np.where(rng.random((2, len(owner))) < 0.6, true, rng.integers(0, 3, (2, len(owner))))
    found = measure(guess, true, NAMES, subjects=owner, draws=80, seed=7, level=0.8)
    values: dict[str, list[float]] = {rate: [] for rate in RATES}
    without = 0
    for times in draw_subjects(6, 80, seed=7):
        people = [person for person in range(6) for _ in range(times[person])]
        chosen = np.concatenate([np.flatnonzero(owner == person) for person in people])
        one = [loops(row[chosen], true[chosen], 3) for row in guess]
        without += 2 not in true[chosen]
        for rate in RATES:
            values[rate].append(float(np.mean([each[rate] for each in one])))
    for rate in RATES:
        interval = known(found.of(rate)).bootstrap
        assert interval is not None
        assert (interval.lo, interval.hi) == pytest.approx(
            tuple(np.quantile(values[rate], [0.1, 0.9])), rel=1e-12
        )
        assert interval.draws == 80
        assert interval.lo < interval.hi
    rare = known(found.recall["c"]).bootstrap
    assert rare is not None
    assert 0 < without < 80
    assert rare.draws == 80 - without


def test_bootstrap_repeats_and_needs_two_people() -> None:
    first, again, other = (
        measure(GUESS, TRUE, NAMES, subjects=list("ppqqrr"), seed=seed).war.bootstrap
        for seed in (1, 1, 2)
    )
    assert first is not None
    assert first == again
    assert first.draws == 2000
    assert other is not None  # percentiles of so few people hardly move
    alone = measure(GUESS, TRUE, NAMES, subjects=["p"] * 6)
    assert (alone.subjects, alone.war.bootstrap) == (1, None)
    assert alone.war.wilson is not None


def test_bootstrap_of_all_or_nothing_people_is_binomial() -> None:
    """30 people of 20 clips, each always right or always wrong: draws of the accuracy are Binomial(30, 1/2) / 30."""
    true = np.zeros(600, np.int64)
    guess = np.repeat(np.arange(30) % 2, 20)
    found = measure(guess, true, NAMES, subjects=np.repeat(np.arange(30), 20), draws=4000).war
    lo, hi = stats.binom(30, 0.5).ppf([0.025, 0.975]) / 30
    assert found.bootstrap is not None
    assert found.wilson is not None
    assert (found.bootstrap.lo, found.bootstrap.hi) == pytest.approx((lo, hi), abs=1.01 / 30)
    # Clips taken as independent claim more than four times as much.
    assert found.bootstrap.hi - found.bootstrap.lo > 4 * (found.wilson.hi - found.wilson.lo)


def test_bootstrap_covers_what_wilson_misses() -> None:
    """Accuracy of a person ~ Beta(1, 1), so 1/2 over people; 25 people, 12 clips each; 120 test sets."""
    rng, owner = np.random.default_rng(11), np.repeat(np.arange(25), 12)
    covered: Counter[str] = Counter()
    for _ in range(120):
        skill = rng.random(25)[owner]
        guess = (rng.random(len(owner)) >= skill).astype(np.int64)
        war = measure(guess, np.zeros_like(guess), NAMES, subjects=owner, draws=300).war
        for kind, interval in (("bootstrap", war.bootstrap), ("wilson", war.wilson)):
            assert interval is not None
            covered[kind] += interval.lo <= 0.5 <= interval.hi
    assert covered["bootstrap"] >= 105  # 114 expected at best, fewer with 25 people
    assert covered["wilson"] < 90


def published_steps(length: int, x: int, y: int, offset: int, begin: int) -> list[int]:
    """Skip, cut and repeat one frame at a time."""
    index = list(range(length))
    if y >= 1:
        index = index[offset :: y + 1]
    out = index[begin : begin + x]
    for frame in out:  # grows while it is read
        if len(out) >= x:
            break
        out.append(frame)
    return out


@given(st.integers(5, 140), st.sampled_from(PUBLISHED), st.integers(0, 4), st.data())
@settings(deadline=None)
def test_window_follows_the_published_steps(
    length: int, how: Sampling, offset: int, data: st.DataObject
) -> None:
    offset = offset if how.skipped else 0
    left = remaining(length, how, offset)
    assert len(starts(len(left), how)) == max(0, len(left) - how.frames - 1) + 1
    begin = data.draw(st.sampled_from(starts(len(left), how)))
    found = window(length, how, offset, begin)
    assert found.dtype == np.int64
    assert found.tolist() == published_steps(length, how.frames, how.skipped, offset, begin)
    if len(left) >= how.frames:
        assert set(np.diff(found)) <= {how.skipped + 1}


def test_windows_by_hand() -> None:
    e4s3 = Sampling(4, 3)
    assert window(18, e4s3, 0, 0).tolist() == [0, 4, 8, 12]
    assert starts(5, e4s3) == range(1)  # five frames are left, start 1 would fit and is never drawn
    assert starts(6, e4s3) == range(2)
    assert window(18, e4s3, 4, 0).tolist() == [4, 8, 12, 16]
    assert window(10, e4s3, 1, 0).tolist() == [1, 5, 9, 1]
    assert window(5, e4s3, 4, 0).tolist() == [4, 4, 4, 4]
    assert window(3, Sampling(7, 0), 0, 0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [str(how) for how in PUBLISHED] == [
        "E4-S0",
        "E4-S1",
        "E4-S3",
        "E7-S0",
        "E7-S1",
        "E13-S0",
    ]
    assert sampling("E13-S0") == Sampling(13, 0)


def test_windows_out_of_range() -> None:
    for call, message in (
        (lambda: sampling("E4S3"), "no name like 'E4-S3'"),
        (lambda: Sampling(0, 1), "1 frame or more"),
        (lambda: remaining(4, Sampling(4, 1), 0), "segment: 4 frames < 5"),
        (lambda: window(9, Sampling(4, 0), 1, 0), r"offset: 1 outside 0 .. 0"),
        (lambda: window(9, Sampling(4, 0), 0, 5), r"begin: 5 outside 0 .. 4"),
        (lambda: evaluation_windows([30, 4], Sampling(4, 1)), "clip 1: segment: 4"),
        (lambda: evaluation_windows([30], Sampling(4, 1), windows=0), "windows: 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_draws_are_uniform_over_all_starts_and_offsets() -> None:
    rng = np.random.default_rng(0)
    plain = Counter(int(draw_window(20, Sampling(4, 0), rng)[0]) for _ in range(3200))
    assert set(plain) == set(range(16))  # 16 would fit, and is never drawn
    assert stats.chisquare(list(plain.values())).pvalue > 1e-3
    # 23 frames, every fourth: 6 are left of offsets 0..2 and 5 of 3, 4, so 2 starts and 1.
    skipped = Counter(int(draw_window(23, Sampling(4, 3), rng)[0]) for _ in range(4000))
    expected = {0: 400, 4: 400 + 800, 1: 400, 5: 400, 2: 400, 6: 400, 3: 800}
    assert set(skipped) == set(expected)
    assert stats.chisquare([skipped[k] for k in expected], list(expected.values())).pvalue > 1e-3


def test_evaluation_windows_depend_on_seed_and_place_alone() -> None:
    lengths = [18, 40, 131, 5]
    drawn = evaluation_windows(lengths, Sampling(4, 3), seed=2)
    assert drawn.shape == (20, 4, 4)
    assert all((drawn[:, n] < length).all() for n, length in enumerate(lengths))
    assert (evaluation_windows(lengths, Sampling(4, 3), seed=2) == drawn).all()
    assert (
        evaluation_windows(lengths[:2], Sampling(4, 3), seed=2, windows=5) == drawn[:5, :2]
    ).all()
    assert (evaluation_windows(lengths, Sampling(4, 3), seed=3) != drawn).any()
    assert len({tuple(row) for row in drawn[:, 2].tolist()}) > 10


CLIPS = 24
