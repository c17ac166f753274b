"""EmotionKD as a system: folds that divide nobody, inputs that are the chip's, settings that contradict, and a run to the chip."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chip_pieces import fitted
from safetensors.torch import load_file
from same_counts import of_both_sides
from shared_pieces import real_data

from knarr.deploy import lower
from knarr.export import to_nir, to_onnx
from knarr.hw_sim import count_onnx, simulate
from knarr.pipeline.published import published
from knarr.pipeline.run_folder import claim_folder
from knarr.train import (
    DataError,
    RecipeError,
    RunData,
    load_recipe,
    shipped_recipes,
    student_predictions,
    train_student,
    train_teacher,
)
from knarr.train.clips import split_validation
from knarr.train.datasets.physio.deap import FOLDER, GSR_CHANNEL, Layout, read_deap
from knarr.train.datasets.physio.windows import EEG_28, PhysioWindows, Recordings, Trial, Windowing
from knarr.train.datasets.stress.windows import StressWindows
from knarr.train.fitting.feedback import FED_BACK
from knarr.train.losses.emotion import EmotionLossSettings, emotion_loss
from knarr.train.recipe import check_recipe, with_settings
from knarr.train.settings import TEACHER
from knarr.train.systems import emotionkd_data
from knarr.train.systems.emotionkd import EmotionKd
from knarr.train.systems.emotionkd_data import (
    balanced,
    fit_scaler,
    fold_count,
    load_stress,
    name_of,
)
from knarr.train.systems.emotionkd_recipe import EmotionRecipe, PhysioData, StressData

LAYOUT = Layout(trials=4, samples=384 + 3 * 128, baseline=384)
PEOPLE = ("s01", "s02", "s03", "s04", "s05", "s06")
EMOTION = {
    "samples": 128,
    "width": 8,
    "heads": 2,
    "head_width": 4,
    "positions": 16,
    "classifier": 8,
}
HEARD = {"samples": 128, "hidden": 8, "depth": 1}


def written(root: Path) -> Path:
    """DEAP's files, small; skin conductance and EEG swing at 6 Hz where valence is high, at 12 Hz where it is low."""
    (root / FOLDER).mkdir(parents=True)
    time = np.arange(LAYOUT.samples) / 128
    for number, person in enumerate(PEOPLE):
        rng = np.random.default_rng(number)
        labels = np.array([[2.0, 8, 5, 5], [8, 2, 5, 5], [5, 5.5, 5, 5], [9, 1, 5, 5]])
        hertz = np.where(labels[:, 0] > 5, 6, 12)[:, None, None]
        data = np.sin(2 * np.pi * hertz * time) + rng.normal(
            0, 0.3, (LAYOUT.trials, 40, LAYOUT.samples)
        )
        data[:, GSR_CHANNEL] += 1000
        with (root / FOLDER / f"{person}.dat").open("wb") as file:
            pickle.dump({"data": data, "labels": labels}, file, protocol=2)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("deap") / "deap")


@pytest.fixture
def deap(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Read as DEAP is, but for the size of its files."""
    monkeypatch.setattr(emotionkd_data, "read_deap", partial(read_deap, layout=LAYOUT))
    return root


def recipe(**change: Any) -> EmotionRecipe:
    fit = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0, "select": "val"}
    data = {
        "kind": "deap",
        "task": "valence",
        "people": PEOPLE,
        "window_s": 1,
        "stride_s": 1,
        "validation_fraction": 0.25,
    }
    plain = {
        "name": "small",
        "system": "emotionkd",
        "threads": 1,
        "data": data,
        "teacher": {"kind": "emotion_net", "network": EMOTION, "fit": fit},
        "student": {"kind": "frames", "network": HEARD, "fit": fit},
    }
    found = with_settings(check_recipe(plain, "small"), change)
    assert isinstance(found, EmotionRecipe)
    return found


def loaded(root: Path, **change: Any) -> tuple[EmotionKd, RunData]:
    system = EmotionKd(recipe(**change))
    return system, system.load(root)


def trials_of(data: RunData, side: str) -> set[tuple[str, str]]:
    clips: Any = getattr(data, side)
    return set(
        zip(clips.windows.subjects[clips.chosen], clips.windows.trials[clips.chosen], strict=True)
    )


@pytest.mark.parametrize("split", ["loso", "kfold_subject", "kfold_trial"])
def test_folds_cover_everything_and_divide_nobody(deap: Path, split: str) -> None:
    change = {"data.split": split, "data.folds": 3}
    count = fold_count(recipe(**change), deap)
    assert count == (6 if split == "loso" else 3)
    tested: set[tuple[str, str]] = set()
    names: list[str] = []
    for fold in range(count):
        _, data = loaded(deap, **change, **{"data.fold": fold})
        train, test = (trials_of(data, side) for side in ("train", "test"))
        assert not train & test
        assert not tested & test
        tested |= test
        assert len(train | test) == len(PEOPLE) * LAYOUT.trials
        names += data.names
        assert (data.fold, data.fold_count) == (fold, count)
        people = [{subject for subject, _ in side} for side in (train, test)]
        assert bool(people[0] & people[1]) == (split == "kfold_trial")
        assert data.subjects is not None
        assert set(data.subjects) == people[1]
        ours, theirs = (set(data.groups[side]) for side in split_validation(data.groups, 0.25, 0))
        assert ours
        assert theirs
        whole = {f"{s}/{t}" for s, t in train} if split == "kfold_trial" else people[0]
        assert ours | theirs == whole
        assert not ours & theirs
    assert len(set(names)) == len(names) == len(PEOPLE) * LAYOUT.trials * 3
    with pytest.raises(
        RecipeError, match=rf"data\.fold: {count}, there are {count}; take one of 0"
    ):
        loaded(deap, **change, **{"data.fold": count})


@pytest.mark.parametrize("normalise", ["window", "train"])
def test_the_student_trains_on_what_the_chip_gets(deap: Path, normalise: str) -> None:
    _, data = loaded(deap, **{"data.normalise": normalise})
    every = np.arange(len(data.test.labels))
    batch, inputs = data.test.batch(every, None), data.test.chip_inputs(every)
    assert inputs.shape == (12, 13, 32)
    assert inputs.dtype == np.uint8
    assert (data.coding.bits, data.coding.units, data.coding.kind) == (8, 255.0, "graded")
    assert torch.equal(batch.inputs, torch.from_numpy(inputs.astype(np.float32) / np.float32(255)))
    eeg, gsr = batch.teacher_inputs
    assert (eeg.shape, gsr.shape) == ((12, 28, 128), (12, 1, 128))
    coded = (128 + 32 * gsr[:, 0].numpy().astype(np.float64)).round().clip(0, 255)
    assert all(np.array_equal(inputs[:, t], coded[:, 8 * t : 8 * t + 32]) for t in range(13))
    assert inputs.std() > 10
    if normalise == "window":
        assert float(gsr.std(dim=2, correction=0).sub(1).abs().max()) < 1e-5  # rounding to float32


def test_what_is_far_from_the_mean_is_cut_off_not_wrapped(deap: Path) -> None:
    _, data = loaded(deap, **{"data.per_sd": 300})
    inputs = data.train.chip_inputs(np.arange(4))
    assert (inputs.min(), inputs.max()) == (0, 255)


@pytest.mark.parametrize(
    ("task", "of_trials"), [("valence", [0, 1, 0, 1]), ("arousal", [1, 0, 1, 0])]
)
def test_labels_are_the_tasks(deap: Path, task: str, of_trials: list[int]) -> None:
    _, data = loaded(deap, **{"data.task": task})
    assert data.test.labels.tolist() == np.repeat(of_trials, 3).tolist()
    assert data.name == f"DEAP {task}, 6 people"


def test_data_are_called_as_published_tables_call_them() -> None:
    tables = {table.data for table in published().tables if table.system == "emotionkd"}
    shipped = [
        name for name in shipped_recipes() if name.startswith(("emotionkd_deap", "emotionkd_hci"))
    ]
    whole = Recordings((), EEG_28)
    assert tables == {name_of(load_recipe(name).data, whole) for name in shipped}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"people": ("s01", "s02")}, ", 2 people"),
        ({"threshold": 4.5}, ", high above 4.5"),
        ({"inclusive": True}, ", high from 5"),
        ({"on_bad": "skip"}, ", without 1 trials and 2 files"),
        ({"kind": "mahnob", "on_bad": "skip"}, ""),
    ],
)
def test_other_people_or_labels_are_not_called_as_published(
    changes: dict[str, Any], differs: str
) -> None:
    left = changes.get("on_bad") == "skip"
    read = Recordings(
        (),
        EEG_28,
        (DataError("s01.dat", "bad: trial"),) * left,
        ("s02.dat", "s03.dat") if left else (),
    )
    settings = PhysioData(
        **{"kind": "deap", "task": "valence", "validation_fraction": 0.2, **changes}
    )
    assert (
        name_of(settings, read) == f"{emotionkd_data.PHYSIO_NAMES[settings.kind]} valence{differs}"
    )


def made_up(person: str, scale: float) -> tuple[Trial, ...]:
    rng = np.random.default_rng(ord(person))
    return tuple(
        Trial(
            person,
            str(k),
            rng.normal(0, scale, (28, 256)).astype(np.float32),
            rng.normal(50, scale, 256).astype(np.float32),
            2.0 + 5 * k,
            5,
        )
        for k in range(2)
    )


def test_no_scaler_sees_who_validates_or_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"data.kind": "mahnob", "data.people": None, "data.normalise": "train", "data.fold": 5}

    def data_of(**scales: float) -> Any:
        people = [made_up(person, scales.get(person, 1.0)) for person in "abcdef"]
        read = Recordings(tuple(trial for trials in people for trial in trials), EEG_28)
        monkeypatch.setattr(emotionkd_data, "read_mahnob", lambda *_, **__: read)
        return EmotionKd(recipe(**change)).load(Path())

    plain: Any = data_of()
    assert plain.name == "MAHNOB-HCI valence"
    fitted, held = split_validation(plain.groups, 0.25, 0)
    validates = sorted(set(plain.groups[held]))
    other = data_of(f=40.0, **dict.fromkeys(validates, 70.0))
    assert np.array_equal(other.train.scaler.mean, plain.train.scaler.mean)
    assert np.array_equal(other.train.scaler.spread, plain.train.scaler.spread)
    assert other.train.batch(held, None).teacher_inputs[0].std() > 30
    assert other.test.batch(np.arange(4), None).teacher_inputs[0].std() > 30
    signals = torch.cat(plain.train.batch(fitted, None).teacher_inputs, dim=1)
    # Means and deviations over all samples fitted on: 0 and 1 but for float32.
    assert float(signals.mean(dim=(0, 2)).abs().max()) < 1e-5
    assert float(signals.std(dim=(0, 2), correction=0).sub(1).abs().max()) < 1e-5
    changed = data_of(**{str(plain.groups[fitted[0]]): 2.0})
    assert not np.array_equal(changed.train.scaler.spread, plain.train.scaler.spread)


def test_a_channel_that_never_changes_has_no_scale() -> None:
    flat = Trial("a", "1", np.ones((28, 128), np.float32), np.full(128, 7, np.float32), 2, 2)
    windows = PhysioWindows(Recordings((flat,), EEG_28), Windowing(1.0, 1.0, normalise="none"))
    scaler = fit_scaler(windows, np.array([0]))
    assert (scaler.spread == 1).all()
    assert not scaler(windows[0]).any()


def test_nobody_is_asked_where_no_loss_wants_to_know(deap: Path) -> None:
    """The teacher costs a hundred times the student."""
    system, data = loaded(deap, **{"student.loss.kl": 0, "student.loss.feature": 0})
    student, batch = system.student(data), data.train.batch(np.arange(6), None)
    loss, logits = system.student_loss(torch.nn.Linear(1, 1))(student, batch)  # would not take EEG
    assert torch.equal(loss, torch.nn.functional.cross_entropy(logits, batch.labels))


FEEDBACK = {"student.feedback": {"quiz": "next"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.kind": "stress_predict", "data.task": "stress"}, r"data\.people: no such setting"),
        ({"data.split": "kfold_videos"}, r"data\.split: .*, not kfold_videos"),
        ({"data.people": ["s01", "s77"]}, r"data\.people: s77; name some of s01 \.\. s32"),
        ({"data.window_s": 0.99}, r"window_s: 0\.99 s is 126\.72 samples"),
        ({"data.channels": ["Fp1", "GSR"]}, "channels: GSR: ask for different ones"),
        ({"data.frame": 600}, "frame: 600 of 128 samples"),
        ({"data.frame": 16}, r"student\.network\.kernel: 32, the data give 16"),
        ({"data.frame_step": 4}, r"student\.network\.stride: 8, the data give 4"),
        ({"teacher.network.eeg_channels": 32}, r"teacher\.network\.eeg_channels: 32, the data give 28"),
        ({"student.network.hidden": 4}, r"student\.loss\.feature: 1, but the student has 52 features and the teacher 104"),
        ({"teacher.kind": "stress_net", "teacher.network": {}}, r"teacher\.kind: stress_net does not hear deap"),
        ({**FEEDBACK, "student.fit.precision": "mixed"}, r"fit\.precision: 'mixed' with feedback"),
        ({"student.feedback": {"loss": {"kl": 1}}}, r"loss: is the student's; set student\.loss"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_by_name(
    deap: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        loaded(deap, **change)
    assert "\n" not in str(caught.value)


def stress(**change: Any) -> EmotionRecipe:
    found = with_settings(load_recipe("emotionkd_stress"), change)
    assert isinstance(found, EmotionRecipe)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher.kind": "emotion_net", "teacher.network": {}}, r"teacher\.kind: emotion_net does not hear stress_predict"),
        ({"student.kind": "ann", "student.network": {}}, r"student\.kind: ann does not hear stress_predict"),
        ({"student.loss.feature": 0.5, "student.network.hidden": 7}, "the student has 140 features and the teacher 640"),
        ({"data.window_s": 50}, "window_s: 50 s are no whole steps of 3 s"),
        ({"data.split": "kfold_trial"}, r"data\.split: .*, not kfold_trial"),
    ],
)  # fmt: skip
def test_contradictions_of_stress_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stress(**change)


def test_feedback_survives_the_file_and_has_no_loss_of_its_own() -> None:
    made = recipe(**{"student.loss.kl": 0.4, "student.feedback": {"quiz": "next"}})
    assert made.student.feedback is not None
    assert made.student.loss == EmotionLossSettings(kl=0.4)
    again = check_recipe(made.model_dump(mode="json"), "again")
    assert again == made


@pytest.mark.parametrize("kind", ["ann", "repeat"])
def test_the_papers_student_learns_but_is_not_deployed(deap: Path, kind: str) -> None:
    network = EMOTION if kind == "ann" else {"network": EMOTION, "steps": 2}
    system, data = loaded(deap, **{"student.kind": kind, "student.network": network})
    student, teacher = system.student(data).eval(), system.teacher(data).eval()
    batch = data.train.batch(np.arange(6), None)
    loss, logits = system.student_loss(teacher)(student, batch)
    torch.autograd.backward(loss)
    assert logits.shape == (6, 2)
    assert all(parameter.grad is not None for parameter in student.parameters())
    plain = emotion_loss(
        student(batch.teacher_inputs[1]),
        teacher(*batch.teacher_inputs),
        batch.labels,
        system.recipe.student.loss,
    )
    penalty = 1e-3 * sum(
        float(w.detach().square().sum()) for n, w in student.named_parameters() if w.dim() == 4
    )
    assert float(loss.detach() - plain.total.detach()) == pytest.approx(
        penalty, rel=1e-4
    )  # a difference of float32 numbers
    with pytest.raises(
        RecipeError,
        match=rf"student\.kind: {kind} has softmax attention.*train student\.kind 'frames'",
    ):
        system.deployable(student)


def test_from_files_to_the_chip(deap: Path, tmp_path: Path) -> None:
    """Teacher, taught student, graph, chip."""
    made = recipe(
        **{
            "student.fit.epochs": 12,
            "student.fit.learning_rate": 0.03,
            "student.loss.feature": 0.1,
            "data.split": "kfold_subject",
            "data.folds": 3,
        }
    )
    system = EmotionKd(made)
    data = system.load(deap)
    claim_folder(made, data, deap, tmp_path)
    teacher = train_teacher(made, data, tmp_path)
    kept = train_student(made, data, teacher, tmp_path)
    every = np.arange(len(data.test.labels))
    inputs, classes = data.test.chip_inputs(every), student_predictions(made, kept, data.test)
    assert (classes == data.test.labels).mean() > 0.75  # two frequencies and little noise
    calibration = data.train.chip_inputs(np.arange(16))
    graph = to_nir(
        system.deployable(kept),
        inputs.shape[2:],
        made.data.dt_s,
        samples=calibration.astype(np.float32) / np.float32(255),
    )
    coding = data.coding
    network = lower(
        graph,
        made.data.dt_s,
        input_bits=coding.bits,
        input_units=coding.units,
        input_kind=coding.kind,
        calibration=calibration,
    )
    of_both_sides(graph, network, inputs, made.data.dt_s, tmp_path)
    ran = simulate(network, inputs, threads=1, record=("output", "spikes"))
    fired = [layer for layer, spikes in ran.spikes.items() if spikes.any()]
    assert len(fired) == 2  # head and one depth; the readout never fires
    assert (network.readout.decide(ran.output) == classes).mean() > 0.8

    # Small steps and many: with large ones its eight neurons fall silent before they unlearn the swap.
    slowly: dict[str, Any] = {"epochs": 60, "learning_rate": 0.002}
    fitted(made, data, teacher, network, tmp_path, **slowly)
    with pytest.raises(RecipeError, match=r"chip.timesteps: F_S of fewer steps"):
        fitted(made, data, teacher, network, tmp_path / "short", timesteps=4)
    spikes = with_settings(made, {"student.network.feature": "spike"})
    fitted(spikes, data, teacher, network, tmp_path / "spikes", **slowly)


@pytest.mark.parametrize(("kind", "rows"), [("emotion_net", 29), ("gsr_net", 1)])
def test_the_baseline_is_the_teacher_on_one_tensor(
    deap: Path, tmp_path: Path, kind: str, rows: int
) -> None:
    system, data = loaded(deap, **{"teacher.kind": kind})
    teacher, batch = system.teacher(data).eval(), data.test.batch(np.arange(4), None)
    packed, baseline = system.baseline_inputs(batch), system.baseline(teacher, data)
    assert packed.shape == (4, rows, 128)
    with torch.no_grad():
        assert torch.equal(baseline(packed), system.teacher_logits(teacher, batch))
    to_onnx(baseline, (rows, 128), tmp_path / "teacher.onnx")
    counted = count_onnx(tmp_path / "teacher.onnx", packed.numpy())
    assert sum(layer.mac for layer in counted.layers.values()) > 0


def test_feedback_leaves_the_teacher_and_writes_its_own(deap: Path, tmp_path: Path) -> None:
    made = recipe(**{"student.feedback": {"eta": 0.1, "teacher_fb_lr": 0.01, "quiz_fraction": 0.3}})
    system = EmotionKd(made)
    data = system.load(deap)
    claim_folder(made, data, deap, tmp_path)
    teacher = train_teacher(made, data, tmp_path)
    before = (tmp_path / TEACHER).read_bytes()
    train_student(made, data, teacher, tmp_path)
    assert (tmp_path / TEACHER).read_bytes() == before
    ours, theirs = (load_file(tmp_path / name) for name in (TEACHER, FED_BACK))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weights) for name, weights in teacher.state_dict().items())
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)
    fitted, held = split_validation(data.groups, 0.25, made.seed)
    chosen = system.student_fitter(teacher, data, fitted, tmp_path)
    assert chosen is not None
    lessons, make = chosen
    sides = [set(data.groups[side]) for side in (lessons, make.keywords["setup"].heldout, held)]  # type: ignore[attr-defined]
    assert [len(side) for side in sides] == [3, 1, 1]
    assert len(set.union(*sides)) == 5
    with pytest.raises(
        RecipeError, match=r"student.feedback.quiz_fraction: .* leaves none to train on"
    ):
        system.student_fitter(
            teacher, data, fitted[data.groups[fitted] == data.groups[fitted[0]]], tmp_path
        )


@pytest.mark.parametrize(
    "name",
    [f"emotionkd_{data}_{task}" for data in ("deap", "hci") for task in ("valence", "arousal")],
)
def test_shipped_recipes_have_the_published_weights(name: str) -> None:
    found = load_recipe(name)
    assert isinstance(found, EmotionRecipe)
    assert (found.name, name.endswith(found.data.task)) == (name, True)
    assert found.student.loss == EmotionLossSettings(ce=1, kl=0.1, feature=1)
    assert (found.teacher.fit.learning_rate, found.teacher.fit.optimiser) == (5e-5, "adam")
    student = EmotionKd(found).student(None)  # type: ignore[arg-type]  # the settings say all of it
    weights = [p for n, p in student.named_parameters() if not n.endswith(".w")]
    norms = 4 * 2 * 64  # fold at export
    assert sum(p.numel() for p in weights) == 14_722 + norms


def made_up_stress() -> StressWindows:
    """Eight people, one of whom is never at rest; skin conductance rises under stress."""
    rng = np.random.default_rng(3)
    labels = (rng.random(8 * 20) < 0.3).astype(np.int64)
    labels[:20] = 1
    eda = rng.normal(0, 1, (160, 240)).astype(np.float32) + labels[:, None].astype(np.float32)
    hr = rng.normal(0, 3, (160, 60)).astype(np.float32)
    subjects = np.repeat([f"S{k:02d}" for k in range(2, 10)], 20)
    return StressWindows(eda, hr, labels, subjects, np.tile(30 * np.arange(20), 8), {})


def test_balanced_people_have_as_many_of_both() -> None:
    windows = made_up_stress()
    chosen = np.arange(140)
    repeated = balanced(windows, chosen)
    assert set(repeated) == set(chosen)
    for subject in np.unique(windows.subjects[:140]):
        own = windows.labels[repeated[windows.subjects[repeated] == subject]]
        assert np.bincount(own, minlength=2).tolist() == (
            [0, 20] if subject == "S02" else [max(np.bincount(own))] * 2
        )


def test_real_stress_is_read_balanced_and_coded_as_the_benchmark_codes_it() -> None:
    settings = stress().data
    assert isinstance(settings, StressData)
    data = load_stress(settings, real_data("stress_predict"))
    assert np.bincount(data.train.labels).tolist() == [len(data.train.labels) // 2] * 2
    train, test = (set(clips.windows.subjects[clips.chosen]) for clips in (data.train, data.test))  # type: ignore[attr-defined]
    assert (len(train), len(test), len(train & test)) == (27, 7, 0)
    assert np.bincount(data.test.labels)[0] > 1.5 * np.bincount(data.test.labels)[1]  # as it is
    batch, inputs = data.test.batch(np.arange(9), None), data.test.chip_inputs(np.arange(9))
    assert torch.equal(batch.inputs, torch.from_numpy(inputs.astype(np.float32) / np.float32(255)))
    assert inputs.shape == (9, 20, 12)
    (signals,) = batch.teacher_inputs
    assert signals.shape == (9, 2, 240)
    assert float(signals.abs().max()) <= 4
    output = EmotionKd(stress()).teacher(data).eval()(signals)
    assert (output.logits.shape, output.matched.shape) == ((9, 2), (9, 640))
    assert data.name == "Stress-Predict"
