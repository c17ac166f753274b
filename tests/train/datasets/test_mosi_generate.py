"""Generated faces: the same bytes for the same seed, read as the real set is, and told apart by what moves, not by how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from knarr.train.datasets.events.camera import Dvs, density
from knarr.train.datasets.mosi.clips import MosiClips, read_grey
from knarr.train.datasets.mosi.generate import (
    FaceMotion,
    draw_speaker,
    film,
    folds_of,
    generate_clips,
)
from knarr.train.datasets.mosi.read import read_mosi
from knarr.train.datasets.splits import assert_apart
from knarr.train.errors import DataError

SMALL: dict[str, Any] = {"videos": 12, "clips_per_video": 8, "frames": 10, "size": 32}
CAMERA = Dvs(sensitivity=0.02, size=16, frames=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 speakers of 8 segments."""
    root = tmp_path_factory.mktemp("faces") / "clips"
    generate_clips(root, **SMALL)
    return root


@pytest.fixture(scope="module")
def clips(root: Path) -> MosiClips:
    return read_mosi(root, CAMERA, folds="mode")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    names = ("one", "again", "other")
    for name, seed in zip(names, (3, 3, 4), strict=True):
        generate_clips(tmp_path / name, videos=3, clips_per_video=2, frames=4, size=16, seed=seed)
    one, again, other = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in names
    )
    assert len(one) == 3 * 2 + 1
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[path] != other[path] for path in one if path.suffix == ".mp4")


def test_what_is_written_reads_as_the_real_set_does(root: Path, clips: MosiClips) -> None:
    assert len(clips) == 12 * 8
    assert clips.packed.shape == (96, 9, 2, 16, 2)
    assert (clips.shown == 9).all()
    assert clips.fps == pytest.approx(30)
    assert 0.02 < density(clips.spikes(np.arange(len(clips)))) < 0.2
    assert np.abs(clips.scores).min() > 0
    assert np.abs(clips.scores).max() <= 3
    for video in np.unique(clips.videos):
        assert clips.labels[clips.videos == video].sum() == 4
    assert [len(clips.fold(name)) for name in ("train", "valid", "test")] == [56, 8, 32]


def test_folds_share_no_speaker(clips: MosiClips) -> None:
    assert_apart(clips.videos, *(clips.fold(name) for name in ("train", "valid", "test")))
    assert sorted(folds_of(3, 0)) == ["test", "train", "valid"]
    counts = [folds_of(93, 1).count(name) for name in ("train", "valid", "test")]
    assert counts == [52, 10, 31]


def guess(clips: MosiClips, seen: npt.NDArray[Any]) -> float:
    """Accuracy on each speaker of the nearer class mean of all others."""
    right = 0
    for video in np.unique(clips.videos):
        test = clips.videos == video
        means = np.stack([seen[~test][clips.labels[~test] == c].mean(axis=0) for c in (0, 1)])
        distance = np.linalg.norm(seen[test][:, None] - means, axis=2)
        right += int((distance.argmin(axis=1) == clips.labels[test]).sum())
    return right / len(clips)


def test_classes_differ_in_where_it_moves_and_not_in_how_much(clips: MosiClips) -> None:
    spikes = clips.spikes(np.arange(len(clips)))
    placed = spikes.sum(axis=1).astype(float).reshape(len(clips), -1)
    # Of 96 clips a coin is right in half, give or take 5 %.
    assert guess(clips, placed) > 0.7
    assert guess(clips, spikes.mean(axis=(1, 2, 3, 4))[:, None]) < 0.65
    rng = np.random.default_rng(0)
    dealt = np.concatenate(
        [rng.permutation(clips.labels[clips.videos == v]) for v in np.unique(clips.videos)]
    )
    assert guess(replace(clips, labels=dealt), placed) < 0.65


def test_a_shuffled_twin_has_the_same_pictures_and_other_labels(tmp_path: Path) -> None:
    for name in ("plain", "twin"):
        generate_clips(
            tmp_path / name,
            videos=3,
            clips_per_video=6,
            frames=2,
            size=16,
            shuffle_labels=name == "twin",
        )
    plain, twin = (
        read_mosi(tmp_path / name, Dvs(size=8, frames=2), folds="mode")
        for name in ("plain", "twin")
    )
    np.testing.assert_array_equal(plain.packed, twin.packed)
    assert plain.keys == twin.keys
    assert 4 <= (plain.labels != twin.labels).sum() <= 14
    for video in np.unique(plain.videos):
        assert twin.labels[twin.videos == video].sum() == 3


def test_smiles_go_up() -> None:
    """What is drawn is what the score says: the corners of a smiling mouth are higher than its middle."""
    rng = np.random.default_rng(0)
    speaker, still = draw_speaker(rng), np.zeros(2)
    moved = np.array([0.0, 0.2])
    motion = FaceMotion(moved, still, still, still, still, still, np.ones(2))
    rest, smile = film(speaker, motion, 64, rng).astype(float)
    mouth = slice(40, 56)
    lowest = [picture[mouth].argmin(axis=0) for picture in (rest, smile)]
    corner, middle = slice(22, 25), slice(31, 33)
    assert lowest[1][corner].mean() < lowest[0][corner].mean() - 1
    assert lowest[1][middle].mean() > lowest[0][middle].mean()


def test_grey_frames_from_memory_and_from_the_cache(clips: MosiClips, tmp_path: Path) -> None:
    some = np.array([3, 0])
    plain = read_grey(clips.sources[:4], size=16, frames=13)
    kept = read_grey(clips.sources[:4], size=16, frames=13, cache=tmp_path)
    shown = plain.luma(some)
    assert shown.shape == (2, 13, 16, 16)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[:, 0], clips.first[some])
    np.testing.assert_array_equal(shown[:, 10:], np.repeat(shown[:, 9:10], 3, axis=1))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 4
    np.testing.assert_array_equal(kept.luma(some), shown)
    files[0].unlink()  # made again
    np.testing.assert_array_equal(kept.luma(np.arange(4)), plain.luma(np.arange(4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": 2}, "videos: 2 outside 3"),
        ({"clips_per_video": 1}, "clips_per_video: 1 outside"),
        ({"frames": 1}, "frames: 1 outside"),
        ({"size": 33}, "size: 33 is odd"),
        ({"seed": -1}, "seed: -1 < 0"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_clips(tmp_path / "clips", **change)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists: will not overwrite"):
        generate_clips(tmp_path)
