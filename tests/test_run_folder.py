"""Run folders: first runs at once, settings that make no run, locks that are let go."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import yaml

from knarr.cli import stages
from knarr.cli.locks import hold, release
from knarr.cli.made_data import made
from knarr.train import Recipe, RecipeError, load_recipe
from knarr.train.overrides import with_settings
from knarr.train.settings import SettingsError

FORK = multiprocessing.get_context("fork")
LIMIT_S = 60.0
TINY = {"data.subjects": 4, "data.takes_per_emotion": 1, "data.timesteps": 6, "data.size": 24, "threads": 1}


def recipe(**changes: Any) -> Recipe:
    return with_settings(load_recipe("eyes"), {**TINY, **changes})


def test_first_runs_at_once_make_the_data_once(tmp_path: Path) -> None:
    ready = FORK.Barrier(3)

    def work() -> None:
        ready.wait(LIMIT_S)
        made(recipe(), tmp_path / "data")

    workers = [FORK.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT_S)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found = [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")]
    assert found == ["eyes-24px-6f-4p-1t-0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.size": 20}, "two 2x2 pools do not divide"),
        ({"data.validation_fraction": 0.9}, "leaves nobody to learn on"),
    ],
)
def test_what_makes_no_run_leaves_nothing_that_refuses_the_cure(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SettingsError, match=message):
        stages.begin(recipe(**changes), None, folder, tmp_path / "data")
    assert not folder.exists()
    good = recipe(**{"data.validation_fraction": 0.34})
    stages.begin(good, None, folder, tmp_path / "data")
    # Nothing was fitted: the folder is still nobody's.
    other = with_settings(good, {"seed": 1})
    stages.begin(other, None, folder, tmp_path / "data")
    assert yaml.safe_load((folder / "config.yaml").read_text())["recipe"]["seed"] == 1
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "teacher.ckpt").touch()
    with pytest.raises(RecipeError, match="other settings or data"):
        stages.begin(good, None, folder, tmp_path / "data")
    release(folder)


def test_a_released_folder_is_free_for_others(tmp_path: Path) -> None:
    def work() -> None:
        try:
            hold(tmp_path)
        except RecipeError:
            raise SystemExit(3) from None

    def status() -> int | None:
        other = FORK.Process(target=_without_the_parents, args=(work,))
        other.start()
        other.join(LIMIT_S)
        return other.exitcode

    hold(tmp_path)
    assert status() == 3
    release(tmp_path)
    release(tmp_path)
    assert status() == 0


def _without_the_parents(work: Any) -> None:
    from knarr.cli import locks

    locks._HELD.clear()  # a fork inherits what is written there, and not the lock
    work()
