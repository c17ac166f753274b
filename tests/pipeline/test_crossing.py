"""The whole line on real recordings: a student trained here and now, from events to the Lava simulator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import norse.torch as snn
import numpy as np
import pytest
import yaml
from bare_ratios import bare_ratios, lines_of_ratios

from knarr.cli import main
from knarr.cli.text import report
from knarr.deploy import check, lower, read_net, run_on_lava
from knarr.export import read, step_nir, trace_module
from knarr.hw_sim import compare, count_events, load_recording, simulate
from knarr.pipeline import report as report_of
from knarr.pipeline import run_folder, stages
from knarr.train import load_recipe

LAVA_RECORDINGS = 20
VERIFIED = 2


@pytest.fixture(scope="module")
def run(nmnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> run_folder.Run:
    """The shipped N-MNIST recipe, with fewer epochs."""
    recipe = load_recipe("nmnist").model_dump(mode="json")
    recipe["teacher"]["fit"]["epochs"] = 3
    recipe["student"]["fit"]["epochs"] = 5
    recipe["student"]["channels"] = [8, 16]
    recipe["deploy"]["lava_samples"] = VERIFIED
    recipe["deploy"]["calibration_samples"] = 6
    folder = tmp_path_factory.mktemp("crossing")
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(recipe))
    opened = run_folder.open_run(str(path), folder / "run", data=nmnist_root)
    for stage in stages.STAGES:
        stage(opened)
    return opened


@pytest.fixture(scope="module")
def events(run: run_folder.Run) -> np.ndarray:
    return run.data.test.chip_inputs(np.arange(LAVA_RECORDINGS))


def test_norse_equals_the_graph_read_back(run: run_folder.Run, events: np.ndarray) -> None:
    _, student = run.networks()
    live, stepped = (
        trace_module(student, events),
        step_nir(read(run.path("student.nir")), events, run.recipe.data.dt_s),
    )
    assert len(live.spikes) == 2
    for name, spikes in live.spikes.items():
        assert spikes.sum() > 10_000
        assert np.array_equal(spikes, stepped.spikes[name])
    assert live.v.keys() == stepped.v.keys()
    assert all(np.array_equal(live.v[name], stepped.v[name]) for name in live.v)
    assert np.array_equal(live.output, stepped.output)


def test_simulator_equals_lava_on_twenty_recordings(
    run: run_folder.Run, events: np.ndarray
) -> None:
    path = run.path("student.net")
    ours = simulate(read_net(path), events, record=("output", "spikes"))
    lava = run_on_lava(path, events, record=("output", "spikes"))
    assert ours.output.shape == (LAVA_RECORDINGS, run.recipe.data.timesteps, 10)
    assert [int(spikes.sum()) > 10_000 for spikes in ours.spikes.values()] == [
        True,
        True,
        False,
    ]  # the last is read out
    assert len(np.unique(ours.output)) > 1000
    assert compare(ours, lava) == []


def test_verification_holds_and_says_so(run: run_folder.Run) -> None:
    result = json.loads(run.path("verification.json").read_text())
    assert result["holds"]
    assert result["samples"] == VERIFIED
    assert {row["pair"] for row in result["rows"]} == {
        "Norse = NIR",
        "NIR ~ hw_sim",
        "hw_sim = Lava",
    }
    assert all(row["mismatches"] == 0 for row in result["rows"] if "=" in row["pair"])
    measured = [row for row in result["rows"] if "~" in row["pair"]]
    assert all(
        0 < row["mismatches"] < 0.02 * row["compared"] for row in measured
    )  # the chip rounds, and no more than that


def test_every_stage_learned_something_and_the_chip_keeps_it(run: run_folder.Run) -> None:
    facts = report_of(run.folder)
    correct = facts["correct"]
    assert facts["test_samples"] == 100
    assert correct["teacher"] >= 85
    assert correct["student"] >= 70
    assert abs(correct["chip"] - correct["student"]) <= 3


def test_counts_belong_to_the_recording(run: run_folder.Run) -> None:
    network, recording = (
        read_net(run.path("student.net")),
        load_recording(run.path("recording.npz")),
    )
    inputs = run.data.test.chip_inputs(np.arange(100))
    counts = count_events(network, inputs, recording)
    stored = json.loads(run.path("energy.json").read_text())
    assert stored["counts"]["student"] == json.loads(json.dumps(counts.to_json()))
    assert counts.total.mac == 0  # all inputs are binary
    assert counts.total.acc > 10_000
    first = network.layers[0]
    assert counts.layers[first.name].spikes * 100 == int(recording.spikes[first.name].sum())
    # Every event of a dense layer reaches all of its outputs: an oracle that needs no fan-out map.
    before, last = network.layers[-2:]
    assert (
        counts.layers[last.name].acc * 100
        == int(recording.spikes[before.name].sum()) * last.output_shape[0]
    )
    assert stored["counts"]["baseline"]["total"]["acc"] == 0
    assert 0 < stored["literature_formula"]["ratio"]["nominal"] < 1
    assert stored["accuracy"]["people"] is None
    assert stored["verdict"]["batch_1"]["student"] == "Loihi 2"


def test_sums_stay_inside_the_accumulator(run: run_folder.Run) -> None:
    recording = load_recording(run.path("recording.npz"))
    assert [
        violation
        for violation in check(read_net(run.path("student.net")))
        if violation.severity == "error"
    ] == []
    assert len(recording.peak_sum) == 3
    assert all(0 < peak < 2**15 for peak in recording.peak_sum.values())


def test_net_holds_eight_bit_weights_that_use_their_range(run: run_folder.Run) -> None:
    with h5py.File(run.path("student.net")) as file:
        weights = [group["weight"][()] for group in file["layer"].values() if "weight" in group]
    assert len(weights) == 3
    # Calibration may choose a smaller scale than the widest, or clip; never one that wastes a whole bit.
    assert all(64 <= np.abs(weight).max() <= 128 for weight in weights)


def test_fewer_weight_bits_reach_the_file(run: run_folder.Run) -> None:
    network = lower(read(run.path("student.nir")), run.recipe.data.dt_s, weight_bits=4)
    assert [int(np.abs(layer.weight_int).max()) for layer in network.layers] == [7, 7, 7]


def test_exported_student_has_the_recipe_s_time_constants(run: run_folder.Run) -> None:
    graph = read(run.path("student.nir"))
    register = round(4096 * run.recipe.data.dt_s / run.recipe.student.tau_mem_s)
    network = read_net(run.path("student.net"))
    assert {layer.neuron.v_decay for layer in network.layers[:2]} == {register}
    tau_s = graph.nodes[network.layers[0].neuron.name].tau
    # tau_inv is a float32 in Norse, hence its seven digits
    assert np.allclose(tau_s, run.recipe.data.dt_s * 4096 / register, rtol=1e-7, atol=0)


def test_a_second_run_changes_nothing(
    run: run_folder.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    for stage in stages.STAGES:
        stage(run)
    assert {
        path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()
    } == before
    assert report.print_run(run.folder, json=False)
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80 + len(str(run.folder))
    assert table.splitlines()[1].startswith("VERDICT")
    assert bare_ratios(table) == []
    assert lines_of_ratios(table)
    for word in (
        "accuracy",
        "spikes",
        "ACC",
        "MAC",
        "VERDICT",
        "Loihi 2",
        "mismatches",
        "raster.png",
        "samples.png",
        "energy.png",
    ):
        assert word in table


def test_student_is_a_plain_norse_module(run: run_folder.Run) -> None:
    _, student = run.networks()
    assert isinstance(student, snn.SequentialState)
    assert [type(module).__name__ for module in student] == [
        "Conv2d", "LIFBoxCell", "AvgPool2d", "Conv2d", "LIFBoxCell", "AvgPool2d", "Flatten", "Linear", "LIBoxCell",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "verb"),
    [
        ("config.yaml", b"", "report"),
        ("config.yaml", b"[1", "report"),
        ("verification.json", b"{}", "report"),
        ("evaluation.json", b"zz", "report"),
        ("recording.npz", b"PK", "energy"),
        ("teacher.onnx", b"x", "energy"),
        ("student.net", b"", "energy"),
        ("student.nir", b"x", "deploy"),
        ("student.safetensors", b"x", "export"),
        ("checkpoints/student.ckpt", b"junk", "train"),
    ],
)
def test_damaged_files_of_a_run_are_one_line(
    run: run_folder.Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    nmnist_root: Path,
    name: str,
    content: bytes,
    verb: str,
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / name).write_bytes(content)
    # The stage must really run, so take away what it would have left.
    for made in {
        "energy": ["energy.json"],
        "deploy": ["student.net"],
        "export": ["student.nir"],
    }.get(verb, []):
        (copy / made).unlink()
    arguments = [verb, str(copy)]
    if verb == "train":
        (copy / "student.safetensors").unlink()
        recipe = tmp_path / "short.yaml"
        recipe.write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
        arguments = ["train", str(recipe), "--data", str(nmnist_root), "--out", str(copy)]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("knarr: ")
    assert Path(name).name in last or str(copy) in last
