"""MSKD: sequences and windows, splits, damaged trees, settings that contradict the data, and the line from eyes to the chip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from same_counts import of_both_sides

from knarr.deploy import read_net
from knarr.export import Certificate, read
from knarr.hw_sim import count_onnx, load_recording
from knarr.pipeline import run_folder, stages
from knarr.train import DataError, RecipeError, generate, load_recipe, train_student, train_teacher
from knarr.train.clips import shifted
from knarr.train.datasets.see import sequences as see_sequences
from knarr.train.datasets.see.sequences import SeeSequences, read_sequences
from knarr.train.datasets.see.windows import draw_window, evaluation_windows, sampling
from knarr.train.recipe import check_recipe, with_settings
from knarr.train.systems.mskd import Mskd, MskdEyesData, MskdRecipe, Normalise, SeeWindows

PEOPLE, FRAMES, SIZE = 6, 7, 16
SMALL: dict[str, Any] = {
    "data.subjects": PEOPLE, "data.takes_per_emotion": 1, "data.frames": FRAMES, "data.size": SIZE,
    "data.sampling": "E3-S1", "data.shift_px": 0, "data.pixel_bits": 8, "data.validation_fraction": 0.34,
    "teacher.network.seen.widths": [4, 8, 8, 8], "teacher.fit.epochs": 2, "teacher.fit.batch_size": 8,
    "student.network.width": 0.125, "student.fit.epochs": 2, "student.fit.batch_size": 8, "deploy.lava_samples": 2, "chip": None,
}  # fmt: skip

NONE: Mapping[str, Any] = {}
PUBLISHED = Normalise()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people, two of whom test, seven sequences each."""
    root = tmp_path_factory.mktemp("mskd") / "eyes"
    generate(
        root,
        subjects=PEOPLE,
        takes_per_emotion=1,
        test_fraction=0.34,
        frames=FRAMES,
        size=SIZE,
        seed=2,
    )
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(pristine, tmp_path / "see")
    return tmp_path / "see"


def system(settings: Mapping[str, Any] = NONE) -> Mskd:
    recipe = with_settings(load_recipe("mskd_eyes"), {**SMALL, **settings})
    assert isinstance(recipe, MskdRecipe)
    return Mskd(recipe)


def see(settings: Mapping[str, Any] = NONE) -> Mskd:
    recipe = with_settings(
        load_recipe("mskd"), {"data.size": SIZE, "data.sampling": "E3-S1", **settings}
    )
    assert isinstance(recipe, MskdRecipe)
    return Mskd(recipe)


def sequences(lengths: list[int], side: int = 2) -> SeeSequences:
    """Frames that count the images, events of other numbers."""
    images, names = sum(lengths), tuple(str(n) for n in range(len(lengths)))
    frames = np.broadcast_to(np.arange(images, dtype=np.uint8)[:, None, None], (images, side, side))
    first = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    labels = np.arange(len(lengths), dtype=np.int64)
    subsets = ("training",) * len(lengths)
    return SeeSequences(
        np.invert(frames),
        frames,
        first,
        np.array(lengths),
        labels,
        names,
        names,
        names,
        names,
        subsets,
        {},
    )


def windows(
    lengths: list[int], own: list[int], *, channels: int = 1, normalise: Normalise = PUBLISHED
) -> SeeWindows:
    some, cut = sequences(lengths), sampling("E3-S1")
    fixed = evaluation_windows(some.lengths[own], cut, windows=1, seed=4)[0]
    return SeeWindows(some, np.array(own), cut, fixed, channels, 8, normalise)


# --- windows


def test_teacher_and_student_see_the_same_drawn_windows_of_sequences_of_any_length() -> None:
    how = Normalise(event_mean=0.25, event_std=0.5, frame_mean=0.125, frame_std=2)
    clips = windows([5, 9, 30, 14], [3, 1, 2], normalise=how, channels=3)
    assert clips.names == ("3", "1", "2")
    indices = np.array([2, 0, 1, 2])
    batch = clips.batch(indices, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    drawn = np.stack([draw_window(length, clips.sampling, rng) for length in (30, 14, 9, 30)])
    rows = np.array([14, 44, 5, 14])[:, None] + drawn
    assert len(np.unique(drawn, axis=0)) == 4
    shape = (4, 3, 3, 2, 2)
    wanted = np.broadcast_to(rows[:, :, None, None, None], shape).astype(np.float32)
    np.testing.assert_array_equal(batch.inputs.numpy(), wanted / np.float32(255))
    events, frames = (seen.numpy() for seen in batch.teacher_inputs)
    grey = wanted / np.float32(255)
    np.testing.assert_array_equal(frames, (grey - np.float32(0.125)) / np.float32(2))
    np.testing.assert_array_equal(
        events, ((255 - wanted) / np.float32(255) - np.float32(0.25)) / np.float32(0.5)
    )
    assert batch.labels.tolist() == [2, 3, 1, 2]


def test_without_a_draw_each_clip_has_one_window_whatever_its_company() -> None:
    clips = windows([12, 9, 30, 14], [0, 2, 3])
    alone = [clips.batch(np.array([n]), None).inputs for n in range(3)]
    assert torch.equal(
        clips.batch(np.array([2, 0, 1]), None).inputs, torch.cat([alone[n] for n in (2, 0, 1)])
    )
    np.testing.assert_array_equal(
        clips.chip_inputs(np.arange(3))[:, :, 0, 0, 0],
        np.array([[0], [21], [51]])
        + evaluation_windows([12, 30, 14], sampling("E3-S1"), windows=1, seed=4)[0],
    )


def test_a_shift_moves_events_and_frames_alike() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 6), dtype=np.uint8)
    events, frames = shifted(2, images, np.invert(images), np.random.default_rng(1))
    np.testing.assert_array_equal(events, np.invert(frames))
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    places = [
        [
            (y, x)
            for y in range(5)
            for x in range(5)
            if (padded[n, :, y : y + 6, x : x + 6] == events[n]).all()
        ]
        for n in range(5)
    ]
    assert [len(found) for found in places] == [1] * 5
    assert len({found[0] for found in places}) > 1


@pytest.mark.parametrize("bits", [8, 6])
def test_inputs_are_the_integers_of_the_chip(pristine: Path, bits: int) -> None:
    data = system({"student.network.in_channels": 3, "data.pixel_bits": bits}).load(pristine)
    everything = np.arange(len(data.train.labels))
    integers = data.train.chip_inputs(everything)
    assert integers.dtype == np.uint8
    assert integers.shape == (28, 3, 3, SIZE, SIZE)
    assert 2**bits * 0.8 < integers.max() < 2**bits
    assert (data.coding.bits, data.coding.units, data.coding.kind) == (bits, 2**bits - 1, "graded")
    inputs = data.train.batch(everything, None).inputs
    np.testing.assert_array_equal(
        inputs.numpy(), integers.astype(np.float32) / np.float32(data.coding.units)
    )
    assert isinstance(data.train, SeeWindows)
    whole = replace(data.train, bits=8).chip_inputs(everything)
    np.testing.assert_array_equal(integers, whole // 2 ** (8 - bits))


def test_passes_show_other_windows_and_the_first_is_the_test_set(pristine: Path) -> None:
    its = system()
    data = its.load(pristine)
    passes = its.passes(data, 4, its.recipe.seed)
    assert passes[0] is data.test
    lengths = np.full(len(data.test.labels), FRAMES)
    wanted = evaluation_windows(lengths, sampling("E3-S1"), windows=4, seed=its.recipe.seed)
    assert all(
        np.array_equal(clips.fixed, of_pass) for clips, of_pass in zip(passes, wanted, strict=True)
    )  # type: ignore[attr-defined]
    seen = [clips.chip_inputs(np.arange(14)).tobytes() for clips in passes]
    assert len(set(seen)) == 4


# --- sequences and splits


def test_sequences_hold_every_image_of_their_segments(root: Path) -> None:
    index = json.loads((root / "emotion.json").read_text())
    name = min(index["database"])
    index["database"][name]["annotations"]["segment"] = [1, 7]
    (root / "emotion.json").write_text(json.dumps(index))
    whole, cut = read_sequences(root, size=SIZE), read_sequences(root, size=12)
    assert whole.lengths.tolist() == [6] + [FRAMES] * 41
    assert whole.first.tolist() == [0, *range(6, 6 + 41 * FRAMES, FRAMES)]
    assert whole.frames.shape == whole.events.shape == (6 + 41 * FRAMES, SIZE, SIZE)
    assert (
        np.abs(whole.events.astype(int) - 127) < 10
    ).mean() > 0.5  # nothing happened, but for JPEG
    assert (whole.events > 240).any()
    assert (whole.events < 15).any()
    assert cut.frames.shape[1:] == (12, 12)
    assert np.corrcoef(cut.frames.mean((1, 2)), whole.frames.mean((1, 2)))[0, 1] > 0.999


def test_the_cache_knows_content_and_size(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    first = read_sequences(root, size=12, cache=cache, progress=lambda *step: steps.append(step))
    assert steps[0] == (1, 84)
    assert steps[-1] == (84, 84)
    picture = next((root / "frame").rglob("00003.jpg"))
    other = next((root / "frame").rglob("00004.jpg"))

    def refuse(*_: object) -> Any:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(see_sequences, "decoded", refuse)
        again = read_sequences(root, size=12, cache=cache)
        with pytest.raises(AssertionError, match="decoded again"):
            read_sequences(root, size=10, cache=cache)
        shutil.copy(other, picture)
        with pytest.raises(AssertionError, match="decoded again"):
            read_sequences(root, size=12, cache=cache)
    np.testing.assert_array_equal(again.frames, first.frames)
    np.testing.assert_array_equal(again.events, first.events)
    assert (read_sequences(root, size=12, cache=cache).frames != first.frames).any()


def test_people_who_test_do_not_train(pristine: Path) -> None:
    official = system().load(pristine)
    assert len(set(official.groups)) == 4
    tested: list[str] = []
    for fold in range(3):
        data = see({"data.split": "subject", "data.fold": fold}).load(pristine)
        assert data.subjects is not None
        assert not set(data.subjects) & set(data.groups)
        assert len(data.train.labels) + len(data.test.labels) == 42
        tested += sorted(set(data.subjects))
        assert (data.fold, data.fold_count, data.protocol) == (fold, 3, "3 folds of people")
        assert len(set(data.names)) == len(data.test.labels)
    assert sorted(tested) == [f"{n:03d}" for n in range(1, PEOPLE + 1)]
    # Not SEE, so that nothing is compared with what SEE gave.
    assert data.name == "42 sequences in SEE's layout"
    assert (official.name, official.fold, official.sampling) == ("generated eyes", None, "E3-S1")
    assert set(official.lights or ()) <= {"normal", "Overexposed", "Low", "HDR"}


def test_sees_own_split_parts_sequences_and_eyes_people(root: Path) -> None:
    index = json.loads((root / "emotion.json").read_text())
    testing = [name for name, record in index["database"].items() if record["subset"] == "testing"]
    index["database"][testing[0]]["subset"] = "training"
    (root / "emotion.json").write_text(json.dumps(index))
    data = see().load(root)
    assert len(data.test.labels) == 13
    assert set(data.subjects or ()) & set(data.groups)  # as in SEE
    with pytest.raises(DataError, match=r"shared people: split: .* on two sides"):
        system().load(root)
    with pytest.raises(RecipeError, match=r"data\.folds: 7 of 6 people"):
        see({"data.split": "subject", "data.folds": 7}).load(root)
    for record in index["database"].values():
        record["subset"] = "training"
    (root / "emotion.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="no sequences: none to test on"):
        see().load(root)


def absent(root: Path) -> None:
    for folder in ("event", "frame"):
        shutil.rmtree(next((root / folder / "fear").iterdir()))


def unseen(root: Path) -> None:
    """A folder of images that the index does not name."""
    index = json.loads((root / "emotion.json").read_text())
    index["database"].pop(min(index["database"]))
    (root / "emotion.json").write_text(json.dumps(index))


def short(root: Path) -> None:
    index = json.loads((root / "emotion.json").read_text())
    index["database"][min(index["database"])]["annotations"]["segment"] = [0, 4]
    (root / "emotion.json").write_text(json.dumps(index))


def cut_off(root: Path) -> None:
    picture = next((root / "frame").rglob("00003.jpg"))
    picture.write_bytes(picture.read_bytes()[:200])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "image missing": (
        lambda root: next((root / "event").rglob("00003.jpg")).unlink(),
        "missing image",
    ),
    "sequence missing": (absent, "missing sequence"),
    "not in the index": (unseen, "not in the index"),
    "too short for every offset": (short, "short segment"),
    "image cut off": (cut_off, "truncated image"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_tree_is_refused_or_its_records_are_counted(
    root: Path, tmp_path: Path, case: str
) -> None:
    spoil, reason = DAMAGE[case]
    spoil(root)
    strict, lenient = see(), see({"data.on_bad": "skip"})
    with pytest.raises(DataError, match=reason):
        strict.load(root, cache=tmp_path / "cache")
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match=f"skipped 1 bad records: {reason} 1"):
            data = lenient.load(root, cache=tmp_path / "cache")
        assert len(data.train.labels) + len(data.test.labels) == 41
    assert isinstance(data.train, SeeWindows)
    assert data.train.sequences.skipped == {reason: 1}
    with pytest.raises(
        DataError, match=reason
    ):  # what a skipping reader cached is as bad as before
        strict.load(root, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=reason):
        system().load(root)


# --- settings


def test_a_written_recipe_is_the_same_and_takes_another_sampling() -> None:
    for name in ("mskd", "mskd_eyes"):
        recipe = load_recipe(name)
        plain = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))
        assert check_recipe(plain, name) == recipe
        other = with_settings(
            recipe, {"data.sampling": "E7-S1", "data.size": 32, "student.network.width": 0.5}
        )
        assert isinstance(other, MskdRecipe)
        seen, student = other.teacher.network.seen, other.student.network
        assert (seen.side_px, seen.steps, student.side_px, student.width) == (32, 7, 32, 0.5)
        assert student.dt_s == other.data.dt_s == 2 / 30


def test_see_is_trained_as_published() -> None:
    recipe = load_recipe("mskd")
    assert isinstance(recipe, MskdRecipe)
    fit = recipe.teacher.fit
    assert (recipe.seed, fit.epochs, fit.batch_size, fit.optimiser, fit.schedule) == (
        2022, 180, 32, "sgd", "exponential",
    )  # fmt: skip
    assert (fit.learning_rate, fit.momentum, fit.weight_decay, fit.decay) == (
        0.015,
        0.9,
        1e-3,
        0.94,
    )
    assert (recipe.data.sampling, recipe.data.size, recipe.data.dt_s, recipe.data.shift_px) == (
        "E4-S3", 90, 4 / 30, 0,
    )  # fmt: skip
    assert recipe.data.normalise == Normalise()
    with pytest.raises(RecipeError, match="data is not generated; pass the folder with --data"):
        Mskd(recipe).folder_name()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"student.network.side_px": 48},
            r"student\.network\.side_px: 48, but the data give 16; leave it out",
        ),
        ({"student.network.dt_s": 0.1}, r"student\.network\.dt_s: 0\.1, but the data give"),
        (
            {"teacher.network.seen.side_px": 48},
            r"teacher\.network\.seen\.side_px: 48, but the data give 16",
        ),
        (
            {"teacher.network.seen.steps": 4},
            r"teacher\.network\.seen\.steps: 4, but the data give 3",
        ),
        (
            {"teacher.network.seen.channels": 1},
            r"teacher\.network\.seen\.channels: 1, but the data give 3",
        ),
        ({"data.sampling": "four"}, "'four' is no name like 'E4-S3'"),
        ({"data.frames": 4}, "frames: 4 < 5 of E3-S1"),
        ({"data.fold": 1}, "fold: 1, but the official split is one; set split: subject"),
        ({"data.split": "subject", "data.fold": 3}, "fold: 3 of 3; they count from 0"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(
    settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(RecipeError, match=match):
        system(settings)


def test_classes_are_the_datas(pristine: Path) -> None:
    for path, build in (("student.network", Mskd.student), ("teacher.network.seen", Mskd.teacher)):
        its = system({f"{path}.classes": 5})
        data = its.load(pristine)
        with pytest.raises(
            RecipeError, match=rf"{path}\.classes: 5, but generated eyes has 7; leave it out"
        ):
            build(its, data)
    its = system()
    three = replace(its.load(pristine), class_names=("a", "b", "c"))
    assert its.student_logits(its.student(three), three.train.batch(np.arange(2), None)).shape == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"student.network.gate": "dynamic"},
            "gate: 'dynamic' depends on the image and cannot be exported; train with",
        ),
        (
            {"student.network.readout": "membrane"},
            "readout: 'membrane', .* cannot be exported; train with 'li'",
        ),
        (
            {"student.network.neuron.fires": "ge"},
            "neuron.fires: 'ge', .* cannot be exported; train with 'gt'",
        ),
    ],
)
def test_what_no_chip_runs_trains_and_is_refused_at_export(
    settings: dict[str, Any], match: str, pristine: Path
) -> None:
    torch.manual_seed(0)
    its = system(settings)
    data = its.load(pristine)
    batch = data.train.batch(np.arange(4), np.random.default_rng(0))
    student, teacher = its.student(data), its.teacher(data).eval().requires_grad_(False)
    loss, _ = its.student_loss(teacher)(student, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert its.student_logits(student.eval(), batch).shape == (4, 7)
    with pytest.raises(RecipeError, match=rf"student\.network\.{match}"):
        its.deployable(student)


def test_alpha_0_asks_no_teacher(pristine: Path) -> None:
    torch.manual_seed(0)
    its = system({"student.loss.alpha": 0})
    data = its.load(pristine)
    student, batch = its.student(data), data.train.batch(np.arange(4), None)
    value, logits = its.student_loss(torch.nn.Identity())(
        student, batch
    )  # an Identity gives no logits
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, batch.labels))
    with pytest.raises(TypeError):
        system().student_loss(torch.nn.Identity())(student, batch)


def test_brightness_has_no_effect_on_a_centred_student(pristine: Path) -> None:
    data = system().load(pristine)
    batch = data.train.batch(np.arange(4), None)
    for centred in (True, False):
        torch.manual_seed(0)
        its = system({"student.centred": centred, "student.loss.alpha": 0})
        student = its.student(data)
        optimiser = torch.optim.SGD(student.parameters(), 0.1)
        its.student_loss(torch.nn.Identity())(student, batch)[0].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        merged = its.deployable(student.eval())[0]
        assert merged.weight.abs().max() > 0.01
        assert (float(merged.weight.sum((2, 3)).abs().max()) < 1e-5) is centred


# --- the line


def test_the_line_from_eyes_to_the_chip(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    # Enough steps for the batch-norms to know their inputs: a layer that stays silent proves nothing.
    little = {
        "data.subjects": 4,
        "data.size": 24,
        "student.fit.epochs": 4,
        "student.fit.batch_size": 4,
    }
    path.write_text(yaml.safe_dump(system(little).recipe.model_dump(mode="json")))
    run = run_folder.open_run(str(path), tmp_path / "runs" / "small")
    assert isinstance(run.recipe.data, MskdEyesData)
    for stage in (stages.train, stages.export, stages.deploy, stages.simulate):
        stage(run)
    certificate = Certificate.from_json(read(run.path(run_folder.GRAPH)).metadata["certificate"])
    assert len(certificate.spikes) == 4
    assert all(count > 0 for count in certificate.spikes.values())
    network = read_net(run.path(run_folder.NET))
    assert len(network.layers) == 5
    inputs, _ = stages.chip_samples(run)
    graph = read(run.path(run_folder.GRAPH))
    of_both_sides(graph, network, inputs, run.recipe.data.dt_s, tmp_path)
    spikes = load_recording(run.path(run_folder.RECORDING)).spikes
    assert [bool(of_layer.any()) for of_layer in spikes.values()] == [True] * 4 + [
        False
    ]  # the last is read out

    teacher, student = run.networks()
    batch = run.data.test.batch(np.arange(3), None)
    with torch.no_grad():
        baseline = run.system.baseline(teacher, run.data)(run.system.baseline_inputs(batch))
        torch.testing.assert_close(baseline, run.system.teacher_logits(teacher, batch))
    assert count_onnx(run.path(run_folder.BASELINE)).total.mac > 0

    # Once more: from its files, and anew from the same seed.
    again = run_folder.open_run(str(path), run.folder)
    for kept, other in zip((teacher, student), again.networks(), strict=True):
        assert all(
            torch.equal(value, other.state_dict()[name])
            for name, value in kept.state_dict().items()
        )
    fresh = train_teacher(run.recipe, run.data, tmp_path / "fresh")
    anew = train_student(run.recipe, run.data, fresh, tmp_path / "fresh")
    assert all(
        torch.equal(value, anew.state_dict()[name]) for name, value in student.state_dict().items()
    )
