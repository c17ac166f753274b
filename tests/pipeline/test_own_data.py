"""examples/own_data: 300 files, a teacher and a student of one's own, through every verb of a recipe."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import nir
import pytest
import yaml

from knarr import pipeline
from knarr.export import CertificateError
from knarr.pipeline import run, sweep, table
from knarr.pipeline.run_folder import FITTED, GRAPH, release
from knarr.train import RecipeError

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_data"
OWN = ("networks.py", "gestures.yaml", "sweep.yaml", "table.yaml")
FEWER = {
    "fit: {epochs: 6}": "fit: {epochs: 2}",
    "epochs: 20": "epochs: 2",
    "epochs: 5": "epochs: 1",
    "trials: 6": "trials: 2",
    "seeds: [0, 1]": "seeds: [0]",
}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example in a folder of its own, with all its files and fewer epochs."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("clips", "runs", "__pycache__"))
    runpy.run_path(str(folder / "make_clips.py"))
    assert len(list((folder / "clips").glob("*.npz"))) == 300
    for path in folder.glob("*.yaml"):
        text = path.read_text("utf-8")
        for old, new in FEWER.items():
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def test_it_is_forty_lines_of_networks_and_data() -> None:
    assert sum(len((EXAMPLE / name).read_text("utf-8").splitlines()) for name in OWN) <= 40


def test_from_files_to_lava(example: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "run"
    settings = ["deploy.lava_samples=2"]
    recipe = str(example / "gestures.yaml")
    finished = run(
        recipe, out, settings=settings, on_progress=lambda event: said.append(event.text)
    )
    assert f"Running your code: networks:teacher, networks:student, looked for in {example}" in said
    assert "Data: 225 clips to train on, 75 held out" in said
    (padded,) = (text for text in said if "training clips: " in text)
    assert "shorter than 45 steps and were padded with" in padded
    facts = pipeline.report(out)
    assert facts["holds"]
    assert facts["mismatches"]["hw_sim = Lava"]["mismatches"] == 0
    assert facts["mismatches"]["hw_sim = Lava"]["compared"] > 1000
    assert set(facts["correct"]) == {"teacher", "student", "chip", "lowered"}
    assert finished.data.class_names == ("left", "middle", "right")
    # People are apart: 3 of 12 test, and no one of the others both trains and validates.
    assert len(set(finished.data.subjects or ())) == 3
    assert not set(finished.data.subjects or ()) & set(finished.data.groups.tolist())
    fitted = pipeline.read_json(finished.path(FITTED))
    assert fitted["weight_bits"] == 4
    # A second start makes nothing anew; another file of weights or clips is another run.
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = run(recipe, out, settings=settings)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == stamps
    release(again.folder)
    # The folder was moved with its modules: the run opens from where they lie now.
    moved = example.rename(tmp_path / "moved")
    reopened = pipeline.reopen(out, moved)
    assert reopened.recipe.folder == str(moved)
    release(out)
    # A graph that was edited is not lowered or verified, and other code is another run.
    graph = nir.read(out / GRAPH)
    kept = (out / GRAPH).read_bytes()
    next(node for node in graph.nodes.values() if hasattr(node, "weight")).weight[0] += 1
    nir.write(out / GRAPH, graph)
    with pytest.raises(CertificateError, match=r"student.nir: is not the graph of its certificate"):
        pipeline.verify(reopened, again=True)
    (out / GRAPH).write_bytes(kept)
    code = (moved / "networks.py").read_text("utf-8")
    (moved / "networks.py").write_text(code.replace("def student", "def  student"))
    with pytest.raises(RecipeError, match="'networks:teacher' is another than the run was made with, its source file changed; put that back, or"):  # fmt: skip
        pipeline.reopen(out)
    (moved / "networks.py").write_text(code)
    release(out)
    (moved / "clips" / "000.npz").unlink()
    with pytest.raises(RecipeError, match="other settings or data"):
        pipeline.reopen(out)
    release(out)


def test_sweep_and_table(example: Path, tmp_path: Path) -> None:
    found = sweep(example / "sweep.yaml", out=tmp_path / "sweep")
    assert [trial.state for trial in found.trials] == ["finished", "finished"]
    assert {path for trial in found.trials for path in trial.parameters} == {
        "student.arguments.hidden",
        "student.fit.learning_rate",
    }
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert best["folder"] == str(example), "the best recipe finds its arrays from where it lies"
    result = table(str(example / "table.yaml"), out=tmp_path / "grids", fit=True)
    assert not result.not_deployed
    for row in result.summary.rows:
        rate = row.rates["war"]
        assert row.finished == row.wanted == 1
        assert rate is not None
        assert rate.over_people is not None
