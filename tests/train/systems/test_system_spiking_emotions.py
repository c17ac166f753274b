"""Spiking Emotions as a system: what trains is what the chip gets, official folds, refusals, and a tiny run from video to chip."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning
import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from chip_pieces import fitted
from lightning.pytorch.callbacks import Callback
from published_networks import TABLE_I
from same_counts import of_both_sides

from knarr.deploy import lower
from knarr.export import to_nir
from knarr.hw_sim import simulate
from knarr.pipeline.published import published
from knarr.pipeline.run_folder import claim_folder, read_run
from knarr.train import (
    DataError,
    RecipeError,
    load_data,
    load_recipe,
    student_predictions,
    system_of,
    train_student,
    train_teacher,
)
from knarr.train.clips import Batch
from knarr.train.datasets.events.camera import Dvs
from knarr.train.datasets.mosi.generate import generate_clips
from knarr.train.datasets.mosi.read import read_mosi
from knarr.train.datasets.splits import assert_apart
from knarr.train.networks.heads import over_time
from knarr.train.networks.spiking_emotions import votes
from knarr.train.recipe import parse_recipe, with_settings
from knarr.train.systems.base import RunData
from knarr.train.systems.spiking_emotions import (
    CameraClips,
    MosiData,
    SpikingEmotions,
    SpikingEmotionsRecipe,
    _name_of,
)

TINY: dict[str, Any] = {
    "name": "tiny",
    "system": "spiking_emotions",
    "threads": 1,
    "data": {"kind": "clips", "videos": 4, "clips_per_video": 4, "size": 16, "frames": 5},
    "teacher": {"fit": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01}},
    "student": {
        # A low threshold fires after two epochs too.
        "network": {"blocks": 2, "width": 4, "hidden": 16, "v_th": 0.05, "dropout": 0.1},
        "fit": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "select": "val"},
    },
}


def tiny(**changes: Any) -> SpikingEmotionsRecipe:
    """The tiny recipe with settings replaced, by path with __ between its parts."""
    settings = yaml.safe_load(yaml.safe_dump(TINY))
    for path, value in changes.items():
        at, *parts = settings, *path.split("__")
        for part in parts[:-1]:
            at = at[part]
        at[parts[-1]] = value
    return cast(SpikingEmotionsRecipe, parse_recipe(yaml.safe_dump(settings), "tiny"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny()
    system = SpikingEmotions(recipe)
    root = tmp_path_factory.mktemp("faces") / system.folder_name()
    system.generate(root)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> RunData:
    return load_data(tiny(), root)


def test_inputs_are_the_chips_integers_over_their_units(data: RunData) -> None:
    some = np.array([2, 0, 5])
    for clips in (data.train, data.test):
        integers, batch = (
            clips.chip_inputs(some[:2]),
            clips.batch(some[:2], np.random.default_rng(0)),
        )
        assert integers.dtype == np.uint8
        assert integers.shape == (2, 5, 2, 16, 16)
        np.testing.assert_array_equal(
            batch.inputs.numpy(), integers.astype(np.float32) / np.float32(255)
        )
        np.testing.assert_array_equal(integers[:, 0, 0], integers[:, 0, 1])
        assert len(np.unique(integers[:, 0])) > 20
        assert set(np.unique(integers[:, 1:])) == {0, 255}
        assert set(np.unique(batch.inputs[:, 1:].numpy())) == {0.0, 1.0}
        assert batch.labels.tolist() == clips.labels[some[:2]].tolist()
    coding = data.coding
    assert (coding.bits, coding.units, coding.kind, coding.votes) == (8, 255.0, "graded", 10)


def test_pure_spikes_are_the_same_events_of_one_bit_and_the_ann_sees_as_much(
    root: Path, data: RunData
) -> None:
    pure = load_data(
        tiny(student__network={**TINY["student"]["network"], "pure_spike": True}), root
    )
    every = np.arange(len(data.test.labels))
    events = pure.test.chip_inputs(every)
    assert events.shape[1:] == (4, 2, 16, 16)
    np.testing.assert_array_equal(255 * events, data.test.chip_inputs(every)[:, 1:])
    assert (pure.coding.bits, pure.coding.units, pure.coding.kind) == (1, 1.0, "events")
    one, other = (each.test.batch(every, None) for each in (pure, data))
    assert torch.equal(one.inputs, other.inputs[:, 1:])
    assert torch.equal(one.teacher_inputs[0], other.teacher_inputs[0])


def test_pure_spikes_lose_no_step_twice(root: Path) -> None:
    """The data have left the grey frame out: the network must not drop the first events as well."""
    network = {**TINY["student"]["network"], "pure_spike": True}
    recipe = tiny(student__network=network)
    data, system = load_data(recipe, root), SpikingEmotions(recipe)
    torch.manual_seed(0)
    student = system.student(data).eval()
    batch = data.test.batch(np.arange(2), None)
    with torch.no_grad():
        ran = over_time(cast(snn.SequentialState, student), batch.inputs)
        found = system.student_logits(student, batch)
    assert ran.outputs.shape[1] == 4
    spikes = ran.outputs.reshape(2, 4, 2, 10).sum((1, 3))
    assert spikes.sum() > 0
    np.testing.assert_array_equal(
        (4 * 10 * found).round(), spikes
    )  # whole spikes, whatever their quotient is in float32


def test_the_ann_sees_frames_or_differences(root: Path, data: RunData) -> None:
    some = np.arange(3)
    grey = data.test.batch(some, None).teacher_inputs[0]
    difference = (
        load_data(tiny(teacher__ann_input="difference"), root)
        .test.batch(some, None)
        .teacher_inputs[0]
    )
    assert grey.shape == difference.shape == (3, 5, 16, 16)
    spikes = data.test.batch(some, None).inputs
    assert torch.equal(grey[:, 0], spikes[:, 0, 0])
    assert torch.equal(difference[:, 0], grey[:, 0])
    assert torch.equal(difference[:, 1:], spikes[:, 1:, 0] - spikes[:, 1:, 1])
    # Events are where the grey frames differ by more than the camera's sensitivity.
    steps = (255 * (grey[:, 1:] - grey[:, :-1])).round()
    assert torch.equal(difference[:, 1:], steps.sign() * (steps.abs() > 0.02 * 255))
    assert system_of(tiny()).teacher(data)(grey).shape == (3, 2)


def test_folds_are_the_official_ones_and_share_no_speaker(root: Path, data: RunData) -> None:
    train, test = cast(CameraClips, data.train), cast(CameraClips, data.test)
    assert data.validation is not None
    fitted = np.setdiff1d(np.arange(len(train.labels)), data.validation)
    sides = (train.chosen[fitted], train.chosen[data.validation], test.chosen)
    assert_apart(train.clips.videos, *sides)
    for fold, side in zip(("train", "valid", "test"), sides, strict=True):
        np.testing.assert_array_equal(train.clips.fold(fold), side)
        assert len(side)
    assert data.subjects == tuple(test.videos)
    assert data.names == tuple(
        f"{video}_{k}" for video, k in (test.clips.keys[at] for at in test.chosen)
    )
    assert data.protocol == "folds of the label file, speakers apart"
    assert (data.groups == train.videos).all()


def test_mosi_by_its_own_reader(root: Path, tmp_path: Path) -> None:
    """Under kind mosi the same files are CMU-MOSI; folds by name, and a split by video where none is to validate."""
    everything = read_mosi(root, Dvs(size=16, frames=5), folds="mode")
    videos = sorted(set(everything.videos.tolist()))
    folds = dict(zip(videos, ("train", "train", "test", "train"), strict=True))
    mosi = {"kind": "mosi", "folds": folds, "size": 16, "frames": 5, "zeros": "positive"}
    recipe = tiny(data=mosi)
    shown: list[tuple[int, int]] = []
    data = load_data(
        recipe, root, cache=tmp_path / "cache", progress=lambda done, of: shown.append((done, of))
    )
    assert data.name == "CMU-MOSI, two classes, zeros positive, own folds"
    assert data.protocol == "folds that the recipe names"
    assert data.validation is None
    assert set(data.subjects or ()) == {videos[2]}
    # At the paper's sensitivity any change of a level is an event.
    assert data.test.chip_inputs(np.arange(4))[:, 1:].mean() > 255 * 0.05
    assert shown[-1] == (32, 32)
    assert [done for done, _ in shown] == list(range(1, 33))
    again = load_data(recipe, root, cache=tmp_path / "cache")
    assert again.fingerprint == data.fingerprint
    empty = tiny(data={**mosi, "folds": {video: "train" for video in videos}})
    with pytest.raises(DataError, match="empty fold: no segment is in 'test'"):
        load_data(empty, root)
    with pytest.raises(RecipeError, match="its data is not generated"):
        system_of(recipe).generate(tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "left_out", "differs"),
    [
        ({}, 0, ""),
        ({"zeros": "positive"}, 0, ", zeros positive"),
        ({"folds": "mode"}, 0, ", folds of the label file"),
        ({"drop_short": True}, 0, ", short segments dropped"),
        ({"on_bad": "skip"}, 0, ""),
        ({"on_bad": "skip"}, 3, ", without 3 segments"),
    ],
)
def test_only_the_whole_of_mosi_is_called_as_published(
    changes: dict[str, Any], left_out: int, differs: str
) -> None:
    name = published().table("spiking_emotions_table_1").data
    assert _name_of(MosiData(kind="mosi", **changes), left_out) == name + differs
    assert _name_of(load_recipe("spiking_emotions").data, 0) == name  # type: ignore[arg-type]


def batch_of(rates: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(rates), 1), (torch.zeros(len(rates), 1),), torch.tensor([0, 1]))


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, ann = torch.tensor([[0.6, 0.2], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    monkeypatch.setattr(SpikingEmotions, "student_output", lambda *_: rates)
    monkeypatch.setattr(SpikingEmotions, "teacher_logits", lambda *_: ann)
    batch, network = batch_of(rates), torch.nn.Identity()

    def value(of: str, **changes: Any) -> float:
        system = SpikingEmotions(tiny(**changes))
        loss = system.teacher_loss() if of == "teacher" else system.student_loss(network)
        return float(loss(network, batch)[0])

    # float32 against float64: a few units in the last place
    hard = (0.4**2 + 0.2**2 + 0.5**2 + 0.5**2) / 4
    assert value("student") == pytest.approx(hard, rel=1e-6)
    assert value("teacher") == pytest.approx((0.25**2 + 0.5**2) / 4, rel=1e-6)
    crossed = float(F.cross_entropy(ann, batch.labels))
    assert value("teacher", teacher__loss="cross_entropy") == pytest.approx(crossed, rel=1e-6)
    teacher, student = ((8 * each / 2).log_softmax(1) for each in (ann, rates))
    soft = 4 * float((teacher.exp() * (teacher - student)).sum(1).mean())
    distilled = value("student", student__kd_alpha=0.25, student__kd_temperature=2)
    assert distilled == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student__network": {"size_px": 16, "blocks": 1}},
            r"student.network.size_px: follows data.size; leave it out",
        ),
        ({"student__network": {"frames": 5}}, r"student.network.frames: follows data.frames"),
        ({"student__network": {"dt_s": 0.1}}, r"student.network.dt_s: follows data.frames_per_s"),
        (
            {"data__grey_first": False},
            r"data.grey_first: False, but student.network.pure_spike is False",
        ),
        (
            {"data__grey_first": True, "student__network": {"pure_spike": True, "blocks": 1}},
            r"data.grey_first: True, but student.network.pure_spike is True",
        ),
        ({"student__network": {}}, r"data.size: 16 leaves nothing after student.network.blocks 3"),
        ({"student__kind": "fang"}, r"data.size: 16, student.kind fang needs 32"),
        ({"data__zeros": "drop"}, r"zeros: no such setting"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny(**changes)
    assert tiny(data__grey_first=True).data.grey_first


def test_recipes_survive_their_dump_and_overrides(
    root: Path, data: RunData, tmp_path: Path
) -> None:
    recipe = tiny(student__network={**TINY["student"]["network"], "neuron": "lif"})
    assert with_settings(recipe, {}) == recipe
    changed = with_settings(
        recipe,
        {
            "data.size": 20,
            "student.network.pure_spike": True,
            "student.network.pool": "max",
            "student.network.v_th": 0.8,
        },
    )
    assert isinstance(changed, SpikingEmotionsRecipe)
    network = changed.network
    assert (network.size_px, network.frames, network.pool, network.v_th) == (20, 5, "max", 0.8)
    assert network.dt_s == changed.data.dt_s == 1 / 30
    claim_folder(recipe, data, root, tmp_path / "run")
    assert read_run(tmp_path / "run") == (recipe, root.resolve())


def test_the_shipped_recipe_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("spiking_emotions")
    assert isinstance(recipe, SpikingEmotionsRecipe)
    wanted = TABLE_I["PLIF"].model_copy(update={"dt_s": recipe.data.dt_s})
    assert recipe.network == wanted
    for fit in (recipe.teacher.fit, recipe.student.fit):
        assert (fit.optimiser, fit.learning_rate, fit.momentum, fit.batch_size) == (
            "sgd",
            0.01,
            0.9,
            8,
        )
    assert (recipe.data.sensitivity, recipe.data.size, recipe.data.frames) == (0.001, 128, 68)
    for row, settings in TABLE_I.items():
        own = settings.model_dump(exclude={"size_px", "frames", "dt_s", "classes"})
        changed = with_settings(
            recipe, {f"student.network.{name}": value for name, value in own.items()}
        )
        assert isinstance(changed, SpikingEmotionsRecipe)
        assert changed.network == settings.model_copy(update={"dt_s": recipe.data.dt_s}), row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student__network": {**TINY["student"]["network"], "pool": "max"}},
            "student.network.pool: max, .* set it to avg",
        ),
        (
            {"student__network": {**TINY["student"]["network"], "fires": "ge"}},
            "student.network.fires: ge, .* set it to gt",
        ),
        ({"student__kind": "ann"}, "student.kind: ann, .* set it to voting"),
    ],
)
def test_some_students_are_evaluated_and_not_exported(
    root: Path, data: RunData, changes: dict[str, Any], message: str
) -> None:
    recipe = tiny(**changes)
    system = SpikingEmotions(recipe)
    torch.manual_seed(0)
    student = system.student(data)
    batch = data.train.batch(np.arange(4), None)
    value, outputs = system.student_loss(torch.nn.Identity())(student, batch)
    torch.autograd.backward(value)
    assert outputs.shape == (4, 2)
    assert set(student_predictions(recipe, student, data.test)) <= {0, 1}
    with pytest.raises(RecipeError, match=message):
        system.deployable(student)


def test_fang_sees_frames_of_32_pixels() -> None:
    recipe = tiny(student__kind="fang", data__size=32)
    system = SpikingEmotions(recipe)
    student = system.student(cast(RunData, None)).eval()
    shown = torch.zeros(1, 1, 2, 32, 32)
    with torch.no_grad():
        assert system.student_logits(student, Batch(shown, (), torch.zeros(1))).tolist() == [[0, 0]]
    with pytest.raises(RecipeError, match=r"student.kind: fang, .* set it to voting"):
        system.deployable(student)


class Killed(Callback):
    """Ends a fit as a kill does, behind its first epoch."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


def test_a_tiny_run_from_video_to_chip_that_is_killed_on_the_way(
    root: Path, data: RunData, tmp_path: Path
) -> None:
    recipe = tiny()
    run, killed = tmp_path / "run", tmp_path / "killed"
    claim_folder(recipe, data, root, run)
    teacher = train_teacher(recipe, data, run)
    student = train_student(recipe, data, teacher, run)
    shutil.copytree(run, killed)
    for path in (killed / "student.safetensors", killed / "checkpoints" / "student.ckpt"):
        path.unlink()
    with pytest.raises(RuntimeError, match="killed"):
        train_student(recipe, data, train_teacher(recipe, data, killed), killed, (Killed(),))
    again = train_student(recipe, data, train_teacher(recipe, data, killed), killed)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name

    system = SpikingEmotions(recipe)
    form = system.deployable(student)
    inputs = data.train.chip_inputs(np.arange(6))
    samples = inputs.astype(np.float32) / np.float32(255)
    graph = to_nir(form, samples.shape[2:], recipe.data.dt_s, samples=samples)
    coding = data.coding
    network = lower(
        graph,
        recipe.data.dt_s,
        input_bits=coding.bits,
        input_units=coding.units,
        input_kind=coding.kind,
        over_time=coding.over_time,
        votes=coding.votes,
        calibration=inputs,
    )
    events = data.test.chip_inputs(np.arange(len(data.test.labels)))
    of_both_sides(graph, network, events, recipe.data.dt_s, tmp_path)
    recording = simulate(
        network,
        data.test.chip_inputs(np.arange(len(data.test.labels))),
        record=("output", "spikes"),
    )
    assert [layer.name for layer in network.layers] == list(recording.spikes)
    for name, spikes in recording.spikes.items():
        assert 0 < spikes.mean() < 1, name
    chosen = network.readout.decide(recording.output)
    assert chosen.shape == data.test.labels.shape
    # The float network decides as the readout does, by whole spikes.
    with torch.no_grad():
        every = data.test.batch(np.arange(len(data.test.labels)), None)
        ran = over_time(cast(snn.SequentialState, student.eval()), every.inputs)
        rates = votes(cast(snn.SequentialState, student), every.inputs, recipe.network).logits
    assert 0 < rates.mean() < 1
    np.testing.assert_array_equal(system.student_logits(student, every).detach(), rates)
    np.testing.assert_array_equal(
        student_predictions(recipe, student, data.test), network.readout.decide(ran.outputs.numpy())
    )
    fitted(
        tiny(student__kd_alpha=0.5),
        data,
        teacher,
        network,
        tmp_path / "chip",
        learning_rate=0.01,
        epochs=8,
    )


@pytest.mark.parametrize("snap", [0.03, 0.4])
def test_learned_time_constants_are_put_on_the_chips_grid(
    data: RunData, snap: float, make_near: Callable[[float], float]
) -> None:
    system = SpikingEmotions(tiny())
    student = system.student(data)
    for module in student.modules():
        if hasattr(module, "w"):
            torch.nn.init.constant_(module.w, float(torch.logit(torch.tensor(snap))))
    form = system.deployable(student)
    rates = [
        float(cell.p.tau_mem_inv) * cell.dt for cell in form if isinstance(cell, snn.LIFBoxCell)
    ]
    # The cell keeps 1/tau in float32; dt times that is a few of its last places from k/4096.
    assert rates == pytest.approx([make_near(snap)] * 4, rel=1e-6)


@pytest.fixture
def make_near() -> Callable[[float], float]:
    return lambda value: round(4096 * value) / 4096


def test_generated_clips_are_named_after_what_they_depend_on(tmp_path: Path) -> None:
    names = {
        SpikingEmotions(recipe).folder_name()
        for recipe in (
            tiny(),
            tiny(data__seed=1),
            tiny(data__size=18),
            tiny(data__shuffle_labels=True),
        )
    }
    assert len(names) == 4
    assert "clips-32px-5f-4v-4c-0" in names
    with pytest.raises(DataError, match="exists"):
        generate_clips(tmp_path)
