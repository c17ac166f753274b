"""Arrays that a user brings: one file or many, and every way in which they do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knarr.train.datasets.user_arrays import UserSplit, read_split, same_length
from knarr.train.errors import DataError


def save(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def clips(folder: Path, lengths: tuple[int, ...] = (4, 6, 5)) -> None:
    for number, steps in enumerate(lengths):
        inputs = np.full((steps, 2), number + 1)
        save(folder / f"{number}.npz", inputs=inputs, label=number, group=f"p{number}")


def test_one_file_a_folder_and_a_pattern(tmp_path: Path) -> None:
    whole = save(
        tmp_path / "all.npz", inputs=np.ones((3, 4, 2)), labels=[0, 1, 2], names=list("abc")
    )
    split = read_split(tmp_path, whole.name)
    assert (len(split), split.names, split.groups) == (3, ("a", "b", "c"), None)
    clips(tmp_path / "many")
    for given in ("many", "many/*.npz", str(tmp_path / "many/*.npz")):
        split = read_split(tmp_path, given)
        assert split.names == ("0", "1", "2")
        assert split.labels.tolist() == [0, 1, 2]
        assert split.groups is not None
        assert split.groups.tolist() == ["p0", "p1", "p2"]
    # Files of several clips each are put behind each other, and their clips numbered.
    for name in "xy":
        save(tmp_path / "parts" / f"{name}.npz", inputs=np.ones((2, 4, 2)), labels=[0, 1])
    assert read_split(tmp_path, "parts").names == ("x/0", "x/1", "y/0", "y/1")


def test_targets_of_one_clip_are_its_own(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "t" / f"{number}.npz", inputs=np.ones((2, 3)), label=[0.5, -1.0])
    assert read_split(tmp_path, "t").labels.tolist() == [[0.5, -1.0]] * 2


def test_padding_and_cutting_are_counted_and_said(tmp_path: Path) -> None:
    clips(tmp_path / "many")
    joined, done = same_length(read_split(tmp_path, "many"), 5)
    assert joined.shape == (3, 5, 2)
    assert joined[0].tolist() == [[1, 1]] * 4 + [[0, 0]]
    assert (done.padded, done.steps_added, done.cut, done.steps_lost) == (1, 1, 1, 1)
    padded, cut = done.sentences("training clips")
    assert padded.startswith(
        "training clips: 1 clips are shorter than 5 steps and were padded with 1 "
    )
    assert cut.endswith("longer than 5 steps and were cut: 1 steps at their end are lost")
    _, nothing = same_length(UserSplit(tmp_path, [np.ones((5, 2))], np.array([0]), ("a",)), 5)
    assert nothing.sentences("clips") == []


INPUTS = np.ones((3, 4, 2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"inputs": INPUTS}, "missing array: no 'labels'"),
        ({"inputs": INPUTS, "labels": [0, 1]}, "shape: 2 labels for 3 clips; give one for each"),
        (
            {"inputs": INPUTS, "labels": [0, 1, 2], "names": ["a", "b"]},
            "names of classes go to data.classes",
        ),
        (
            {"inputs": INPUTS, "labels": [0, 1, 2], "names": ["a", "b", "a"]},
            "'a' stands there twice",
        ),
        ({"inputs": INPUTS, "labels": [0, 1, 2], "label": 1}, "array twice: 'label' and 'labels'"),
        (
            {"inputs": INPUTS, "labels": [0, 1, 2], "weights": [1]},
            "unknown array: 'weights' is none of",
        ),
        (
            {"inputs": np.ones((3, 4)), "labels": [0, 1, 2]},
            r"needs \(clips, timesteps, \*features\)",
        ),
        ({"inputs": np.ones((3, 0, 2)), "labels": [0, 1, 2]}, "hold nothing"),
        ({"inputs": INPUTS * np.nan, "labels": [0, 1, 2]}, "not finite: 'inputs' holds NaN"),
        ({"inputs": INPUTS.astype(str), "labels": [0, 1, 2]}, "'inputs' are text"),
        (
            {"inputs": INPUTS, "labels": np.array([0, None, 2])},
            "not arrays: Object arrays cannot be loaded",
        ),
    ],
)
def test_a_file_that_does_not_go_together_is_refused(
    arrays: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words) as caught:
        read_split(tmp_path, path.name)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"inputs": np.ones((4, 3)), "label": 1, "group": "p"},
            r"inputs of a clip are \(3,\), in other files \(2,\)",
        ),
        (
            {"inputs": np.ones((4, 2)), "label": "left", "group": "p"},
            "labels are text in some files",
        ),
        ({"inputs": np.ones((4, 2)), "label": 1}, "other arrays: 'groups' not in all files"),
    ],
)
def test_a_file_unlike_the_others_is_named(
    arrays: dict[str, Any], words: str, tmp_path: Path
) -> None:
    clips(tmp_path / "many")
    save(tmp_path / "many" / "odd.npz", **arrays)
    with pytest.raises(DataError, match=f"odd.npz: .*{words}"):
        read_split(tmp_path, "many")


def test_nothing_there_and_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no arrays")
    with (tmp_path / "alone.npz").open("wb") as file:
        np.save(file, INPUTS)
    for given, words in (
        ("empty", "no .npz file in this folder"),
        ("*.npy", "no file has such a name"),
        ("not.npz", "missing file"),
        ("text.npz", "not arrays"),
        ("alone.npz", "one array: inputs and labels belong in one file"),
    ):
        with pytest.raises(DataError, match=words):
            read_split(tmp_path, given)
