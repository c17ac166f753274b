"""The demo's own line in small: generated eyes from events to energy, and a second start that makes nothing anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from same_counts import of_both_sides

from knarr.deploy import read_net
from knarr.export import read
from knarr.pipeline import RunError, evaluation_file, read_energy, run_folder, stages
from knarr.train import RecipeError, load_recipe


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_recipe("eyes").model_dump(mode="json")
    recipe["data"] |= {
        "subjects": 4,
        "takes_per_emotion": 1,
        "timesteps": 8,
        "validation_fraction": 0.34,
    }
    recipe["teacher"] |= {"width": 4, "fit": {**recipe["teacher"]["fit"], "epochs": 1}}
    recipe["student"] |= {
        "channels": [4, 8],
        "fit": {**recipe["student"]["fit"], "epochs": 10, "batch_size": 4},
    }
    path = tmp_path_factory.mktemp("eyes") / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_line_on_generated_eyes(recipe_path: Path) -> None:
    folder = recipe_path.parent / "runs" / "small"
    run = run_folder.open_run(str(recipe_path), folder)
    for stage in (stages.train, stages.export, stages.deploy, stages.simulate, stages.energy):
        stage(run)
    path = folder / "energy.json"
    energy = json.loads(path.read_text())
    assert energy["accuracy"]["samples"] == len(run.data.test.labels)
    # An evaluation that was made again stands beside the energy at once, and nothing is counted anew.
    path.write_text(
        json.dumps(
            {**energy, "accuracy": None, "verdict": {**energy["verdict"], "accuracy_equal": True}}
        )
    )
    stages.energy(run)
    assert json.loads(path.read_text()) == energy
    # A file of an older version is counted anew.
    (folder / "pictures").mkdir()
    (folder / "pictures" / "energy.png").touch()
    path.write_text(json.dumps({"student": {}, "ratio": 0.026}))
    with pytest.raises(RunError, match="no schema, this version reads 1; `knarr energy"):
        read_energy(path)
    stages.energy(run)
    assert json.loads(path.read_text()) == energy
    assert not (folder / "pictures" / "energy.png").exists()
    chip = energy["counts"]["student"]
    assert chip["total"]["acc"] > 1000
    assert chip["total"]["mac"] == 0  # events are binary
    inputs, _ = stages.chip_samples(run)
    graph, network = read(run.path(run_folder.GRAPH)), read_net(run.path(run_folder.NET))
    _, of_file = of_both_sides(graph, network, inputs, run.recipe.data.dt_s, folder.parent)
    assert chip["layers"] == of_file.to_json()["layers"]
    assert [layer["spikes"] > 0 for layer in chip["layers"].values()] == [
        True,
        True,
        False,
    ]  # the last is read out
    assert (
        len(evaluation_file.read(folder / "evaluation.json").labels)
        == len(run.data.test.labels)
        > 0
    )
    assert not set(run.data.groups.tolist()) & set(run.data.subjects or ())

    data = {path: path.stat().st_mtime_ns for path in (folder.parent / "data").rglob("*.jpg")}
    assert len(data) == 2 * 4 * 7 * 8  # event and frame images
    again = run_folder.open_run(str(recipe_path), folder)
    assert again.data.fingerprint == run.data.fingerprint
    assert {
        path: path.stat().st_mtime_ns for path in (folder.parent / "data").rglob("*.jpg")
    } == data


def test_a_run_folder_refuses_another_recipe(recipe_path: Path) -> None:
    folder = recipe_path.parent / "runs" / "small"
    run_folder.open_run(str(recipe_path), folder)
    other = yaml.safe_load(recipe_path.read_text())
    other["student"]["kd_alpha"] = 0.9
    path = recipe_path.with_name("other.yaml")
    path.write_text(yaml.safe_dump(other))
    with pytest.raises(
        RecipeError, match="other settings or data than recipe 'eyes'; give another --out"
    ):
        run_folder.open_run(str(path), folder)
