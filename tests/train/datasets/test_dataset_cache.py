"""What all datasets share: cached arrays, work in processes, splits and the report."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from shared_pieces import Forked

from knarr.train.datasets import splits
from knarr.train.datasets.cache import cache_key, cached, parallel
from knarr.train.datasets.files import DataReport, checked_file, sha256_of
from knarr.train.errors import DataError

ARRAYS = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(3),
    "ok": np.array([True, False]),
}


def key(**change: Any) -> str:
    return cache_key(
        **{
            "dataset": "deap",
            "version": 1,
            "files": {"s01.dat": "ab"},
            "settings": {"a": 1},
            **change,
        }
    )


def never() -> dict[str, Any]:
    raise AssertionError("made again")


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and np.array_equal(a[k], b[k])
        for k in a
    )


def test_what_was_made_is_read_again_the_same(tmp_path: Path) -> None:
    first = cached(tmp_path / "new", key(), lambda: ARRAYS)
    assert same(first, ARRAYS)
    assert only_file(tmp_path / "new").name == f"{key()}.safetensors"
    assert same(cached(tmp_path / "new", key(), never), ARRAYS)


def test_every_part_of_the_key_makes_another_file() -> None:
    keys = {
        key(),
        key(dataset="mahnob"),
        key(version=2),
        key(files={"s01.dat": "cd"}),
        key(files={"s02.dat": "ab"}),
        key(settings={"a": 2}),
        key(settings={"b": 1}),
    }
    assert len(keys) == 7
    assert key(settings={"a": 1, "b": 2}) == key(settings={"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        key(settings={"a": math.nan})
    with pytest.raises(TypeError):
        key(settings={"a": object()})


@pytest.mark.parametrize("name", ["x", "../../escape", "A" * 64, ""])
def test_only_keys_name_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not 64 hexadecimal digits"):
        cached(tmp_path, name, never)


def flip_a_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_numbers(path: Path) -> None:
    save_file({"x": np.zeros(3)}, path)


def under_another_key(path: Path) -> None:
    other = path.parent / "other"
    cached(other, key(version=9), lambda: {"x": np.zeros(3)})
    os.replace(only_file(other), path)
    other.rmdir()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_value,
        other_numbers,
        under_another_key,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR."),
    ],
)
def test_a_damaged_file_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cached(tmp_path, key(), lambda: ARRAYS)
    damage(only_file(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert same(cached(tmp_path, key(), lambda: ARRAYS), ARRAYS)
    assert "damaged cache file" in caplog.text
    assert same(cached(tmp_path, key(), never), ARRAYS)


def test_a_failure_keeps_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise DataError("s01.dat", "wrong shape: no")

    with pytest.raises(DataError, match="wrong shape"):
        cached(tmp_path, key(), fail)
    with pytest.raises(ValueError, match="array 'o': object is neither boolean nor a real number"):
        cached(tmp_path, key(), lambda: {"o": np.array([{}], object)})
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_any_order_are_kept_by_value(tmp_path: Path) -> None:
    odd = {
        "f": np.asfortranarray(ARRAYS["x"]),
        "b": np.arange(4, dtype=">f8")[::2],
        "e": np.zeros((0, 3)),
    }
    first, again = cached(tmp_path, key(), lambda: odd), cached(tmp_path, key(), never)
    assert same(first, again)
    assert again["b"].tolist() == [0, 2]
    assert again["b"].dtype.isnative
    assert again["e"].shape == (0, 3)


def test_many_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cached(tmp_path, key(), lambda: ARRAYS), range(40)))
    assert all(same(result, ARRAYS) for result in results)
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Six at once, with a reader that never sees half a file; forked, as importing knarr six times takes long."""
    target = partial(cached, tmp_path, key(), lambda: {"x": np.arange(200_000)})
    children = [Forked(target=target) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert cached(tmp_path, key(), never)["x"].sum() == 200_000 * 199_999 // 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_a_failure_names_its_item(workers: int) -> None:
    done: list[tuple[int, int]] = []
    numbers = [5, 0, 3, 1]
    results = parallel(
        numbers, math.factorial, workers=workers, progress=lambda *at: done.append(at)
    )
    assert results == [120, 1, 6, 1]
    assert done == [(k, 4) for k in (1, 2, 3, 4)]
    with pytest.raises(RuntimeError, match=r"item -7: ValueError: factorial\(\) not defined"):
        parallel([5, -7, 3], math.factorial, workers=workers)
    assert parallel([], math.factorial, workers=workers) == []


def test_a_dataset_error_passes_as_it_is_and_a_dead_process_is_named() -> None:
    def fail(item: int) -> int:
        raise DataError(f"s0{item}.dat", "wrong shape: no")

    with pytest.raises(DataError, match=r"s07\.dat: wrong shape"):
        parallel([7], fail, workers=1)
    with pytest.raises(RuntimeError, match=r"item .*: its process died; give it more memory"):
        parallel([3, 3], os._exit, workers=2)
    with pytest.raises(ValueError, match="workers: 0 < 1"):
        parallel([1], fail, workers=0)


def test_files_are_bounded_and_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = root / "a"
    with pytest.raises(DataError, match="a: record 3: missing file"):
        checked_file(path, root, 10, "3")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        checked_file(path, root, 10)
    path.write_bytes(b"12345678901")
    with pytest.raises(DataError, match="file too large: 11 > 10 bytes"):
        checked_file(path, root, 10)
    assert checked_file(path, root, 11) == path
    path.write_bytes(b"abc")
    assert sha256_of(path).startswith("ba7816bf8f01cfea")  # FIPS 180-2, B.1
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside root"):
        checked_file(root / "out", root, 10)


def test_report_is_plain_json() -> None:
    report = DataReport(
        "deap", "/d", 3, {"loso/s01": 3}, 1, ("s02.dat: wrong shape",), ("s03.dat",)
    )
    assert json.loads(json.dumps(report.to_json())) == {
        "name": "deap",
        "root": "/d",
        "samples": 3,
        "splits": {"loso/s01": 3},
        "subjects": 1,
        "skipped": ["s02.dat: wrong shape"],
        "missing": ["s03.dat"],
        "complete": False,
    }
    assert DataReport("deap", "/d", 3, {}, 1).complete


SAMPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)
SEEDS = st.integers(0, 2**32 - 1)


def whole(n: int, *sides: splits.Indices) -> None:
    """Every sample on exactly one side, each side rising and not empty."""
    assert sorted(np.concatenate(sides).tolist()) == list(range(n))
    for side in sides:
        assert len(side) > 0
        assert (np.diff(side) > 0).all()
        assert side.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_leave_one_subject_out(samples: list[tuple[int, int]]) -> None:
    subjects = np.array([f"s{s}" for s, _ in samples])
    people = sorted(set(subjects.tolist()))
    if len(people) < 2:
        with pytest.raises(ValueError, match="subjects: 1 < 2"):
            splits.leave_one_subject_out(subjects)
        return
    folds = splits.leave_one_subject_out(subjects)
    assert list(folds) == people
    for person, fold in folds.items():
        whole(len(samples), *fold)
        splits.assert_apart(subjects, *fold)
        assert set(subjects[fold.test]) == {person}


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES, k=st.integers(2, 7), seed=SEEDS)
def test_subject_folds(samples: list[tuple[int, int]], k: int, seed: int) -> None:
    subjects = np.array([s for s, _ in samples])
    if k > len(set(subjects.tolist())):
        with pytest.raises(ValueError, match=f"k: {k} folds outside"):
            splits.subject_folds(subjects, k, seed=seed)
        return
    folds = splits.subject_folds(subjects, k, seed=seed)
    assert len(folds) == k
    whole(len(samples), *(fold.test for fold in folds))
    sizes = [len(set(subjects[fold.test].tolist())) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        whole(len(samples), *fold)
        splits.assert_apart(subjects, *fold)


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES, k=st.integers(2, 7), seed=SEEDS)
def test_trial_folds(samples: list[tuple[int, int]], k: int, seed: int) -> None:
    subjects, trials = (np.array(ids) for ids in zip(*samples, strict=True))
    groups = np.array([f"{s}/{t}" for s, t in samples])
    if k > len(set(groups.tolist())):
        with pytest.raises(ValueError, match="the number of trials"):
            splits.trial_folds(subjects, trials, k, seed=seed)
        return
    folds = splits.trial_folds(subjects, trials, k, seed=seed)
    whole(len(samples), *(fold.test for fold in folds))
    for fold in folds:
        whole(len(samples), *fold)
        splits.assert_apart(groups, *fold)
    for person in [None, *set(subjects.tolist())]:
        own = subjects == person if person is not None else np.ones(len(samples), bool)
        sizes = [len(set(groups[fold.test][own[fold.test]])) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


def test_seeds_draw_differently() -> None:
    subjects = np.repeat(np.arange(10), 3)
    drawn = {tuple(splits.subject_folds(subjects, 5, seed=seed)[0].test) for seed in range(8)}
    assert len(drawn) > 1
    again = [splits.subject_folds(subjects, 5, seed=3)[0].test.tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_bad_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="subjects: ids of type object; use text or whole numbers"):
        splits.leave_one_subject_out(np.array(["a", None], object))
    with pytest.raises(ValueError, match="subjects: ids of type float64"):
        splits.leave_one_subject_out(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"subjects: shape \(0,\), not one id"):
        splits.subject_folds([], 2, seed=0)
    with pytest.raises(ValueError, match="trials: 1 ids for 2 subjects"):
        splits.trial_folds(["a", "b"], ["1"], 2, seed=0)
    with pytest.raises(ValueError, match="split: a on two sides, none allowed"):
        splits.assert_apart(["a", "b", "a"], np.array([0, 1]), np.array([2]))
