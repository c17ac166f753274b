"""Run folders: first runs at once, settings that make no run, locks that are let go."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from energy_files import write_energy
from shared_pieces import FORK, Forked

from knarr.cli.output import show_progress
from knarr.cli.text import report
from knarr.deploy import LavaMissingError
from knarr.export import ExportError
from knarr.pipeline import evaluation_file, run_folder, stages
from knarr.pipeline.evaluation import EvaluationError, RunEvaluation
from knarr.pipeline.evaluation_file import read
from knarr.pipeline.run_folder import EVALUATION, VERIFICATION, default_data, hold, release
from knarr.pipeline.studies import tables
from knarr.pipeline.studies.tables import NOT_DEPLOYED
from knarr.train import Recipe, RecipeError, load_recipe
from knarr.train.recipe import with_settings
from knarr.train.settings import TEACHER, SettingsError
from knarr.train.systems.cnn import Cnn

LIMIT_S = 60.0
TINY = {
    "data.subjects": 4,
    "data.takes_per_emotion": 1,
    "data.timesteps": 6,
    "data.size": 24,
    "threads": 1,
}


def recipe(**changes: Any) -> Recipe:
    return with_settings(load_recipe("eyes"), {**TINY, **changes})


def test_first_runs_at_once_make_the_data_once(tmp_path: Path) -> None:
    ready = FORK.Barrier(3)

    def work() -> None:
        ready.wait(LIMIT_S)
        default_data(recipe(), tmp_path / "data")

    workers = [Forked(target=work) for _ in range(3)]
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
        ({"data.validation_fraction": 0.9}, "leaves none to train on"),
    ],
)
def test_what_makes_no_run_leaves_nothing_that_refuses_the_cure(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SettingsError, match=message):
        run_folder.open_run(recipe(**changes), folder, cache=tmp_path / "data")
    assert not folder.exists()
    good = recipe(**{"data.validation_fraction": 0.34})
    run_folder.open_run(good, folder, cache=tmp_path / "data")
    # Nothing was fitted: the folder is still nobody's.
    other = with_settings(good, {"seed": 1})
    run_folder.open_run(other, folder, cache=tmp_path / "data")
    assert yaml.safe_load((folder / "config.yaml").read_text())["recipe"]["seed"] == 1
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "teacher.ckpt").touch()
    with pytest.raises(RecipeError, match="other settings or data"):
        run_folder.open_run(good, folder, cache=tmp_path / "data")
    release(folder)


def test_a_released_folder_is_free_for_others(tmp_path: Path) -> None:
    def work() -> None:
        try:
            hold(tmp_path)
        except RecipeError:
            raise SystemExit(3) from None

    def status() -> int | None:
        other = Forked(target=_without_the_parents, args=(work,))
        other.start()
        other.join(LIMIT_S)
        return other.exitcode

    hold(tmp_path)
    assert status() == 3
    release(tmp_path)
    release(tmp_path)
    assert status() == 0


def test_a_config_that_does_not_fit_says_why_and_never_to_remove_the_run(tmp_path: Path) -> None:
    plain = recipe().model_dump(mode="json")
    config = {
        "format": 1,
        "recipe": {**plain, "sead": 1},
        "data_sha256": "",
        "data_root": str(tmp_path),
    }
    for text, message in (
        (
            yaml.safe_dump(config),
            r"config.yaml': sead: no such setting.*; use the version of knarr that made the run",
        ),
        ("recipe: 2020-99-99", r"config.yaml: not YAML \(day is out of range|month must be"),
        ("[" * 500, "config.yaml: not YAML"),
        ("3", "config.yaml: 3 is not the settings of a run; correct it"),
        (yaml.safe_dump({"format": 1, "recipe": plain}), "config.yaml: 'data_root' is not there"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message) as caught:
            run_folder.reopen(tmp_path)
        assert "remove the folder" not in str(caught.value)


def test_moved_data_are_found_where_they_are_named(tmp_path: Path) -> None:
    folder, data, its = (
        tmp_path / "run",
        tmp_path / "data",
        recipe(**{"data.validation_fraction": 0.34}),
    )
    root = (
        run_folder.open_run(its, folder, cache=data).folder.parent / "data" / "eyes-24px-6f-4p-1t-0"
    )
    (folder / TEACHER).touch()
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(
        RecipeError, match=r"are not there; give their folder, `knarr evaluate .*run --data"
    ):
        run_folder.reopen(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert run_folder.reopen(folder, moved).data.fingerprint == config["data_sha256"]
    other = default_data(with_settings(its, {"data.seed": 1}), data)
    with pytest.raises(RecipeError, match="other settings or data"):
        run_folder.reopen(folder, other)
    release(folder)


def test_more_windows_than_a_measure_may_take_are_refused_before_any_is_drawn() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    data = SimpleNamespace(
        sampling="E4-S3", class_names=tuple("abcdefg"), subjects=("p",), lights=None
    )
    run: Any = SimpleNamespace(data=data, networks=never)
    with pytest.raises(
        EvaluationError,
        match="in 20000000 passes are more than a measure may take; take fewer windows",
    ):
        stages.evaluate(run, windows=20_000_000)


def test_a_student_that_does_not_come_onto_the_chip_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids, folder = tmp_path / "grids", tmp_path / "grids" / "g" / "row" / "seed-0"
    small = {
        "teacher.width": 2,
        "teacher.fit.epochs": 1,
        "student.channels": [4, 4],
        "student.fit.epochs": 1,
    }
    its = recipe(**small, **{"data.validation_fraction": 0.34, "student.tau_mem_s": 0.035})

    def dead(_: Any) -> None:
        raise ExportError("certificate: node 'lif_1' never fired")

    monkeypatch.setattr(stages, "export", dead)
    tables.fit_and_evaluate(its, None, folder, grids=grids)
    assert (folder / NOT_DEPLOYED).read_text() == "certificate: node 'lif_1' never fired\n"
    assert set(read(folder / EVALUATION).predicted) == {"teacher", "student"}
    # Mended, and asked for again.
    for stage in ("export", "deploy", "record", "energy"):
        monkeypatch.setattr(stages, stage, lambda _: None)
    tables.fit_and_evaluate(its, None, folder, grids=grids)
    assert not (folder / NOT_DEPLOYED).exists()
    # What no chip holds by its recipe is no failure.
    monkeypatch.setattr(stages, "export", dead)
    monkeypatch.setattr(Cnn, "deployable", dead_by_recipe)
    tables.fit_and_evaluate(its, None, folder, grids=grids)
    assert not (folder / NOT_DEPLOYED).exists()
    # An error that is none of knarr's own is a fault in it.
    monkeypatch.undo()
    monkeypatch.setattr(stages, "export", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tables.fit_and_evaluate(its, None, folder, grids=grids)


def test_what_the_test_data_chose_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "teacher.width": 2,
        "teacher.fit.epochs": 1,
        "student.channels": [4, 4],
        "student.fit.epochs": 1,
    }
    its = recipe(
        **small, **{"data.validation_fraction": 0.34, "student.fit.select": "best_on_test"}
    )
    assert (its.chosen_on_test, recipe().chosen_on_test) == (("student",), ())
    run = run_folder.open_run(
        its, tmp_path / "run", cache=tmp_path / "data", on_progress=show_progress
    )
    stages.train(run)
    release(run.folder)
    said = capsys.readouterr().err
    assert re.findall(r"(\w+): epoch 1/1, loss [\d.]+, (\w+) accuracy", said) == [
        ("teacher", "validation"),
        ("student", "TEST"),
    ]
    write_energy(run.path(run_folder.ENERGY))
    verified = {"rows": [], "samples": 1, "holds": True}
    run.path(run_folder.VERIFICATION).write_text(json.dumps(verified))
    right = {name: [0, 1, 1, 1] for name in ("teacher", "student", "chip")}
    seen = RunEvaluation("d", ("a", "b"), tuple("wxyz"), [0, 0, 1, 0], right)  # type: ignore[arg-type]
    evaluation_file.write(run.path(EVALUATION), seen)
    config = run.path("config.yaml").read_text()
    run.path("config.yaml").write_text(config.replace("select: best_on_test", "select: last"))
    assert report.print_run(run.folder, json=False)
    assert "TEST" not in capsys.readouterr().out
    run.path("config.yaml").write_text(config)
    report.print_run(run.folder, json=False)
    assert "student: the best epoch ON THE TEST DATA" in capsys.readouterr().out
    report.print_run(run.folder, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["chosen_on_test"] == ["student"]
    assert facts["correct"] == {"teacher": 2, "student": 2, "chip": 2}


def dead_by_recipe(*_: Any) -> None:
    raise RecipeError("student.kind: ann, which no chip network holds")


def _without_the_parents(work: Any) -> None:
    from knarr.pipeline import run_folder as locks

    locks._HELD.clear()  # a fork inherits what is written there, and not the lock
    work()


def test_what_later_stages_left_holds_to_the_settings(tmp_path: Path) -> None:
    for name in ("student.nir", "student.net", "evaluation.json"):
        folder = tmp_path / name
        run = run_folder.open_run(recipe(), folder, cache=tmp_path / "data")
        before = (folder / "config.yaml").stat().st_mtime_ns
        run_folder.reopen(folder)
        assert (folder / "config.yaml").stat().st_mtime_ns == before, "reading a run wrote to it"
        release(folder)
        run.path(name).touch()
        with pytest.raises(RecipeError, match="other settings"):
            run_folder.open_run(recipe(seed=1), folder, cache=tmp_path / "data")
        release(folder)


def test_missing_lava_is_said_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KNARR_LAVA_PYTHON", raising=False)
    monkeypatch.setenv("KNARR_LAVA_PATH", str(tmp_path / "nothing"))
    opened = run_folder.open_run(recipe(), tmp_path / "run", cache=tmp_path / "data")
    monkeypatch.setattr(stages, "open_run", lambda *_, **__: opened)
    monkeypatch.setattr(stages, "STAGES", (lambda _: pytest.fail("a stage began"),))
    with pytest.raises(LavaMissingError, match="run `knarr lava install`"):
        stages.run("eyes")
    opened.path(VERIFICATION).touch()  # Lava's part is done
    monkeypatch.setattr(stages, "STAGES", ())
    assert stages.run("eyes") == opened
    release(opened.folder)
