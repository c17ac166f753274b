"""Recipes of one's own arrays and networks: what they refuse with which cure, and every kind of teacher
and of labels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch
from same_counts import of_both_sides
from torch import nn

from knarr import pipeline
from knarr.deploy import read_net
from knarr.export import to_onnx
from knarr.pipeline import stages
from knarr.pipeline.run_folder import BASELINE, GRAPH, NET, open_run, release
from knarr.train import Recipe, RecipeError, system_of
from knarr.train.errors import DataError
from knarr.train.recipe import check_recipe
from knarr.train.settings import ChipSettings, SettingsError

NETWORKS = """
import norse.torch as snn
import torch
from torch import nn

from knarr.train import System


def teacher(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(6 * 4, classes))

def student(outputs, dt_s, input_shape, silent=False, hidden=6):
    torch.manual_seed(3)
    lif = snn.LIFBoxParameters(tau_mem_inv=torch.tensor(0.2 / dt_s), v_th=torch.tensor(9.0 if silent else 0.05))
    readout = snn.LIBoxParameters(tau_mem_inv=torch.tensor(0.25 / dt_s))
    return snn.SequentialState(
        nn.Linear(*input_shape, hidden, bias=False), snn.LIFBoxCell(lif, dt=dt_s),
        nn.Linear(hidden, outputs, bias=False), snn.LIBoxCell(readout, dt=dt_s))

def ten(dt_s):
    return student(10, dt_s, (4,))

def soft(outputs, dt_s):
    return snn.SequentialState(nn.Linear(4, outputs), nn.Softmax(1), snn.LIBoxCell(dt=dt_s))

def one_layer(input_shape):
    return nn.Linear(9, 3)

class Clips(nn.Module):
    # The student in the form of a tutorial: its own loop over time.

    def __init__(self, step, form):
        super().__init__()
        self.step, self.form, self.state = step, form, None

    def forward(self, x):
        if self.form == "held":
            output, self.state = self.step(x, self.state)
            return output
        if self.form != "time first":
            x = x.movedim(-1 if self.form == "time last" else 1, 0)
        state, outputs = None, []
        for frame in x:
            output, state = self.step(frame, state)
            outputs.append(output)
        if self.form == "time last":
            return torch.stack(outputs, -1)
        stacked = torch.stack(outputs, 1)
        made = {"mean": lambda: stacked.mean(1), "last": lambda: outputs[-1].log_softmax(1),
                "sum": lambda: sum(outputs), "list": lambda: (outputs, state), "most": lambda: stacked.max(1)[0]}
        return made.get(self.form, lambda: stacked)()

def loops(outputs, dt_s, input_shape, form, hidden=6):
    step = student(outputs, dt_s, input_shape, hidden=hidden)
    step.return_hidden = False
    return Clips(step, form)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "ownnets.py").write_text(NETWORKS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("ownnets", None)
    for run in tmp_path.glob("run*"):
        release(run)


def arrays(folder: Path, *, labels: Any = None, clips: int = 60, **more: Any) -> None:
    """train.npz and test.npz of clips whose label is the quarter of the sensors that fires most."""
    rng = np.random.default_rng(0)
    for name, count in (("train", clips), ("test", 20)):
        classes = np.arange(count) % 4
        rates = np.full((count, 6, 4), 0.1)
        rates[np.arange(count), :, classes] = 0.9
        inputs = rng.random((count, 6, 4)) < rates
        made = {key: make(classes, inputs) for key, make in more.items()}
        given = classes if labels is None else labels(classes)
        np.savez(folder / f"{name}.npz", **{"inputs": inputs, "labels": given, **made})


def recipe(folder: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "own",
        "system": "custom",
        "threads": 1,
        "data": {"kind": "arrays", "train": "train.npz", "test": "test.npz", "dt_s": 0.001},
        "student": {
            "network": "ownnets:student",
            "fit": {"epochs": 6, "batch_size": 16, "learning_rate": 0.05},
        },
    }
    for name, change in changes.items():
        old = settings.get(name)
        both = isinstance(old, dict) and isinstance(change, dict)
        settings[name] = {**old, **change} if both else change  # type: ignore[dict-item]
    return check_recipe(settings, "own.yaml", folder)


def load(folder: Path, **changes: Any) -> Any:
    return system_of(recipe(folder, **changes)).load(folder)


def test_labels_from_one_are_caught_with_a_cure(folder: Path) -> None:
    arrays(folder, labels=lambda classes: classes + 1)
    with pytest.raises(DataError, match=r"labels: 1\.\.4, classes count from 0; subtract 1"):
        load(folder)
    arrays(folder, labels=lambda classes: 10 - classes)
    with pytest.raises(
        DataError,
        match=r"labels: 7\.\.10, the network has classes 0\.\.9 \(10 outputs\); subtract 7",
    ):
        load(folder, student={"network": "ownnets:ten"})


@pytest.mark.parametrize(
    ("labels", "changes", "words"),
    [
        (None, {"student": {"network": "ownnets:ten", "votes": 3}}, "10 outputs in votes of 3 for"),
        (
            None,
            {"student": {"network": "ownnets:one_layer"}},
            "will not go to the chip: module: no neurons of Norse",
        ),
        (None, {"student": {"arguments": {"width": 3}}}, "takes no width; it takes outputs, dt_s,"),
        (None, {"student": {"network": "ownnets:studnt"}}, "has no 'studnt'; write student"),
        (
            lambda c: c % 2,
            {"student": {"arguments": {"outputs": 1}}},
            "data.labels: values for float",
        ),
        (lambda c: c * 0.5, {"data": {"labels": "classes"}}, "are no classes"),
        (
            lambda c: np.array(list("abcd"))[c],
            {"data": {"classes": ["a", "b", "c"]}},
            "'d' is none of the classes a, b, c",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_fitted(
    labels: Any, changes: dict[str, Any], words: str, folder: Path
) -> None:
    arrays(folder, labels=labels)
    with pytest.raises((DataError, RecipeError), match=words):
        load(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"network": "ownnets:teacher"}}, "network: neither fit nor weights"),
        ({"teacher": {"onnx": "t.onnx", "logits": True}}, "onnx and logits given; name one of"),
        (
            {"teacher": {"onnx": "t.onnx", "fit": {"epochs": 1}}},
            "goes without arguments, weights and fit",
        ),
        ({"student": {"loss": {"alpha": 0.5}}}, "of a teacher that the recipe does not have"),
        ({"student": {"fit": None}}, "neither fit nor weights"),
    ],
)
def test_settings_that_contradict_each_other(changes: Any, words: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(folder, **changes)


def test_people_are_apart_unless_the_recipe_says_otherwise(folder: Path) -> None:
    arrays(folder, groups=lambda classes, inputs: np.arange(len(classes)) // 5)
    with pytest.raises(
        DataError, match="groups overlap: 4 groups are in both splits, '0' among them"
    ):
        load(folder)
    data = load(folder, data={"people_apart": False})
    assert data.protocol == "groups in both splits"
    arrays(folder)
    assert "no groups: each clip stands for itself" in load(folder).notes[0]


def test_inputs_are_judged_by_their_values(folder: Path) -> None:
    arrays(folder, inputs=lambda classes, inputs: inputs.astype(np.float64))
    data = load(folder)
    assert (data.coding.bits, data.coding.kind) == (1, "events")
    assert data.train.chip_inputs(np.arange(3)).dtype == np.uint8
    arrays(folder, inputs=lambda classes, inputs: inputs * 9.0)
    assert load(folder).coding.bits == 4
    arrays(folder, inputs=lambda classes, inputs: inputs * 2.0 - 1)
    data = load(folder)
    assert (data.coding.bits, data.coding.signed, data.coding.kind) == (1, True, "events")
    assert set(np.unique(data.train.chip_inputs(np.arange(9)))) == {-1, 1}
    arrays(folder, inputs=lambda classes, inputs: inputs * 0.3)
    with pytest.raises(DataError, match=r"no whole numbers; set data.input_units, such as 255"):
        load(folder)
    data = load(folder, data={"input_units": 255})
    assert (data.coding.bits, data.coding.units) == (7, 255)
    assert "inputs are rounded to 1/255, by 0.002 at most" in " ".join(data.notes)
    batch = data.train.batch(np.arange(3), None)
    assert torch.equal(
        batch.inputs * 255, torch.from_numpy(data.train.chip_inputs(np.arange(3))).float()
    )


def finish(run: pipeline.Run) -> dict[str, Any]:
    """All stages but Lava, whose own tests take longer; the evaluation's first pass."""
    for stage in (stages.train, stages.export, stages.deploy, stages.simulate, stages.energy):
        stage(run)
    found: dict[str, Any] = dict(pipeline.evaluate(run).predicted)
    return found


def test_no_teacher_is_fine_and_weights_may_be_finished(folder: Path) -> None:
    arrays(folder)
    first = open_run(recipe(folder), folder / "run", on_progress=lambda event: None)
    seen = finish(first)
    assert set(seen) == {"student", "chip"}
    assert (seen["student"][0] == first.data.test.labels).mean() > 0.5
    assert not first.has(BASELINE)
    facts = pipeline.read_json(first.path("energy.json"))
    assert facts["counts"]["baseline"] is None
    assert facts["counts"]["student"]["total"]["acc"] > 0
    graph, network = nir.read(first.path(GRAPH)), read_net(first.path(NET))
    inputs, _ = stages.chip_samples(first)
    _, chip = of_both_sides(graph, network, inputs, 0.001, folder)
    assert facts["counts"]["student"]["layers"] == chip.to_json()["layers"]
    pipeline.draw_pictures(first, "samples")
    # The same weights, as a file of one's own, are taken as they are.
    _, student = first.networks()
    torch.save({"state_dict": student.state_dict()}, folder / "student.pt")
    own = recipe(folder, student={"fit": None, "weights": "student.pt"})
    second = open_run(own, folder / "run2")
    stages.train(second)
    assert np.array_equal(pipeline.evaluate(second).predicted["student"], seen["student"])
    release(second.folder)
    # Another file is another run.
    changed = {name: value * 2 for name, value in student.state_dict().items()}
    torch.save(changed, folder / "student.pt")
    with pytest.raises(RecipeError, match="other settings or data"):
        open_run(own, folder / "run2")


@pytest.mark.parametrize("kind", ["onnx", "onnx, weights beside it", "logits"])
def test_a_teacher_in_a_file_or_in_the_arrays(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 4)).eval()

    def said(classes: Any, inputs: Any) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(inputs).float()).numpy()

    arrays(folder, **({"logits": said} if kind == "logits" else {}))
    path = folder / "teacher.onnx"
    to_onnx(network, (6, 4), path)
    if kind.startswith("onnx,"):  # as torch's exporter writes them
        whole = onnx.load(str(path))
        onnx.save(
            whole, str(path), save_as_external_data=True, size_threshold=300, location="w.data"
        )
    teacher = {"logits": True} if kind == "logits" else {"onnx": "teacher.onnx"}
    run = open_run(recipe(folder, teacher=teacher), folder / "run")
    stages.train(run)
    stages.export(run)
    assert run.has(BASELINE) == (kind != "logits")
    if kind != "logits":  # the file in the run needs no other
        weights = onnx.load(str(run.path(BASELINE)), load_external_data=False).graph.initializer
        assert weights
        assert not any(one.external_data for one in weights)
    inputs = run.data.test.batch(np.arange(20), None).inputs
    with torch.no_grad():
        wanted = network(inputs).argmax(1).numpy()
    assert np.array_equal(pipeline.evaluate(run).predicted["teacher"][0], wanted)
    release(run.folder)
    if kind.startswith("onnx,"):
        changed = (folder / "w.data").read_bytes()[::-1]
        (folder / "w.data").write_bytes(changed)
        with pytest.raises(RecipeError, match="other settings or data"):
            open_run(recipe(folder, teacher=teacher), folder / "run")
        (folder / "w.data").unlink()
        with pytest.raises(RecipeError, match=r"teacher.onnx: not a valid ONNX file .*w\.data"):
            open_run(recipe(folder, teacher=teacher), folder / "run3")
    path.write_bytes(b"not ONNX")
    if kind != "logits":
        with pytest.raises(RecipeError, match=r"teacher.onnx: not a valid ONNX file"):
            open_run(recipe(folder, teacher=teacher), folder / "run3")


def test_float_targets_from_fit_to_chip_and_table(folder: Path) -> None:
    # Two targets of the input's own rate on two sensors.
    def targets(classes: Any, inputs: Any) -> Any:
        return inputs[:, :, :2].mean(axis=1) - 0.5

    people = {"groups": lambda classes, inputs: np.arange(len(classes)) // 4 + 100 * len(classes)}
    arrays(folder, labels=None, clips=80, **people)
    for name in ("train", "test"):
        held = dict(np.load(folder / f"{name}.npz"))
        np.savez(folder / f"{name}.npz", **{**held, "labels": targets(None, held["inputs"])})
    steered = recipe(
        folder,
        data={"targets": ["left", "right"]},
        student={
            "arguments": {"hidden": 16},
            "fit": {"epochs": 30, "learning_rate": 0.05, "select": "val", "patience": 9},
        },
        chip={"weight_bits": 6, "epochs": 2},
    )
    notes: list[str] = []
    run = open_run(steered, folder / "run", on_progress=lambda event: notes.append(event.note))
    seen = finish(run)
    assert run.data.targets == ("left", "right")
    assert run.data.train.labels.dtype == np.float32
    assert any("validation error 0." in note for note in notes)
    true = run.data.test.labels.astype(float)
    found = pipeline.evaluate(run)
    for network in ("student", "chip"):
        errors = found.measures[network]  # type: ignore[index]
        mae, rmse = (errors.of(key) for key in ("mae", "rmse"))
        assert mae is not None
        assert rmse is not None
        assert mae.value == pytest.approx(np.abs(seen[network][0] - true).mean())
        assert rmse.value == pytest.approx(np.sqrt(((seen[network][0] - true) ** 2).mean()))
        assert mae.bootstrap is not None
        assert mae.bootstrap.lo < mae.value < mae.bootstrap.hi
        # It has learned something: worse than the mean would be as good as nothing.
        assert mae.value < 0.8 * np.abs(true - true.mean(axis=0)).mean()
    fitted = pipeline.read_json(run.path("chip.json"))["validation"]
    assert set(fitted["kept"]) == {"clips", "accumulates", "input_accumulates", "mae"}
    assert fitted["kept"]["mae"] <= fitted["lowered"]["mae"]
    text = pipeline.evaluation_file.read(run.path("evaluation.json"))  # type: ignore[attr-defined]
    assert np.array_equal(text.predicted["chip"], found.predicted["chip"])
    pipeline.draw_pictures(run, "samples")


def test_a_silent_student_is_said_while_it_trains(folder: Path) -> None:
    arrays(folder)
    said: list[str] = []
    settings = ["student.arguments.silent=true", "student.fit.epochs=2"]
    run = open_run(
        recipe(folder),
        folder / "run",
        settings=settings,
        on_progress=lambda event: said.append(f"{event.text} {event.note}"),
    )
    stages.train(run)
    (warning,) = (text for text in said if "every validation clip gets the same output" in text)
    assert warning.startswith("  student: ")
    assert any(text.startswith("student") and text.endswith("SILENT") for text in said)
    assert (run.folder / "metrics.csv").read_text().count("the same for every clip") == 2


SYSTEM = """
from typing import Literal

import numpy as np
from knarr.train import System
from knarr.train.systems.custom import Custom, CustomRecipe

class Mine(Custom):
    def load(self, root, **more):
        data = super().load(root, **more)
        return data.__class__(**{**vars(data), "name": "mine"})

class Recipe(CustomRecipe):
    system: str

Mine.recipe_class = Recipe

class NoRecipe(System):
    pass
"""


def test_a_system_with_a_class(folder: Path) -> None:
    (folder / "ownnets.py").write_text(NETWORKS + SYSTEM)
    arrays(folder)
    own = recipe(folder, system="ownnets:Mine")
    assert own.code() == ("ownnets:Mine",) or "ownnets:student" in own.code()
    assert load(folder, system="ownnets:Mine").name == "mine"
    for name, words in (
        ("ownnets:student", "is no subclass of knarr.train.System"),
        ("ownnets:NoRecipe", "has no recipe_class"),
        ("ownnets:Nobody", "has no 'Nobody'"),
        (
            "mycnn",
            "is none of cnn, .*custom; name one, or a class of your own as package.module:Class",
        ),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe(folder, system=name)


def test_a_student_that_no_chip_holds_is_refused_before_it_is_fitted(folder: Path) -> None:
    arrays(folder)
    softly = recipe(folder, student={"network": "ownnets:soft"})
    with pytest.raises(SettingsError, match=r"will not go to the chip: .*Softmax.*knarr check"):
        stages.run(softly, folder / "run")
    assert not (folder / "run" / "teacher.safetensors").exists()
    with pytest.raises(SettingsError, match="will not go to the chip"):
        open_run(softly.model_copy(update={"chip": ChipSettings()}), folder / "run2")
    assert not (folder / "run2").exists()


def test_a_recipe_that_makes_no_network_is_refused_before_its_folder(folder: Path) -> None:
    arrays(folder)
    with pytest.raises((RecipeError, SettingsError), match=r"teacher: gives \(1, 7\) for one clip"):
        open_run(
            recipe(
                folder,
                teacher={
                    "network": "ownnets:teacher",
                    "arguments": {"classes": 7},
                    "fit": {"epochs": 1},
                },
            ),
            folder / "run",
        )
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("form", "over_time"),
    [
        ("time first", "sum"),
        ("samples first", "last"),
        ("time last", "mean"),
        ("held", "sum"),
        ("list", "sum"),
        ("sum", "sum"),
        ("mean", "mean"),
        ("last", "last"),
    ],
)
def test_students_with_a_loop_of_their_own_are_trained_as_their_steps_are(
    folder: Path, form: str, over_time: str
) -> None:
    arrays(folder)
    # Whoever reduces over time himself needs no setting; whoever does not has one.
    own = {} if form in ("sum", "mean", "last") else {"over_time": over_time}
    looped = {"network": "ownnets:loops", "arguments": {"form": form}, **own}
    made = system_of(recipe(folder, student=looped))
    data = made.load(folder)
    assert data.coding.over_time == over_time
    batch = data.train.batch(np.arange(5), None)
    steps = system_of(recipe(folder, student={"over_time": over_time}))
    student = made.student(data)
    found = [made.student_output(student, batch) for _ in range(2)]
    expected = steps.student_output(steps.student(data), batch)
    if form == "last":
        expected = expected.log_softmax(1)
    assert found[0].requires_grad
    assert found[0].std() > 0
    # A state that a module keeps does not go from one batch to the next.
    assert torch.equal(found[0], found[1])
    # float32: layers batched over time add in another order.
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    made.assert_deployable(data)


def test_what_no_readout_does_with_the_steps_is_refused_before_anything_is_fitted(
    folder: Path,
) -> None:
    arrays(folder)
    looped = {"network": "ownnets:loops", "arguments": {"form": "most"}}
    with pytest.raises(
        RecipeError,
        match=r"gives the maximum over time of its outputs, .* return the outputs of all",
    ):
        load(folder, student=looped)
    looped["arguments"] = {"form": "mean"}
    with pytest.raises(
        RecipeError,
        match=r"gives the mean over time of its outputs, student.over_time is sum; leave",
    ):
        load(folder, student={**looped, "over_time": "sum"})
