"""`knarr energy` on files: a graph or a chip network against an ONNX baseline, tables, JSON, picture, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
import torch
from graphs import DT_S, chain, conv2d, flatten, integrate, li, lif, on_grid, pool, spikes
from test_cli import Result, knarr, one_line  # noqa: F401  (knarr is a fixture)
from torch import nn

from knarr.deploy import lower, write_net
from knarr.export import to_onnx, write
from knarr.export.graph.complete import complete
from knarr.hw_sim import count, count_onnx, price
from knarr.pipeline import read_energy

Knarr = Callable[..., Result]
SHAPE = (2, 8, 8)


def student() -> nir.NIRGraph:
    rng = np.random.default_rng(4)
    return chain(
        SHAPE,
        (3,),
        conv=conv2d(on_grid(rng, 4, 2, 3, 3, limit=40) + 0.1, padding=1),
        lif=lif((4, 8, 8)),
        pool=pool(nir.AvgPool2d, 2),
        flat=flatten(4, 4, 4),
        fc=nir.Linear(rng.normal(0.3, 0.5, (3, 64))),
        readout=li((3,)),
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    graph = complete(student(), [])
    graph.metadata["dt_s"] = DT_S
    write(graph, tmp_path / "student.nir")
    np.save(tmp_path / "spikes.npy", spikes(6, 9, *SHAPE))
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    ).eval()
    to_onnx(teacher, (1, 8, 8), tmp_path / "teacher.onnx")
    np.save(
        tmp_path / "frames.npy", np.random.default_rng(1).random((6, 1, 8, 8), dtype=np.float32)
    )
    return tmp_path


def run(knarr: Knarr, *more: object) -> Result:  # noqa: F811
    return knarr("energy", "student.nir", "--data", "spikes.npy", *more)


def test_everything_in_one_call(knarr: Knarr, files: Path) -> None:  # noqa: F811
    result = run(
        knarr, "--baseline", "teacher.onnx", "--baseline-data", "frames.npy", "--labels", "labels.npy", "--out",
        "energy.json", "--picture", "energy.png", "--csv", "energy.csv", "--latex", "energy.tex", "--all",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in (
        "VERDICT", "pools float", "ANN", "horowitz_int8", "jouppi_int8", "where both sides would cost the same",
        "thresholds x 1.25", "never consumption", "gpu: not measured", "padding:", "a graph is on no cores",
    ):  # fmt: skip
        assert words in result.stdout, words
    assert (files / "energy.png").read_bytes().startswith(b"\x89PNG")
    assert (files / "energy.csv").read_text().startswith("table,network,where")
    assert "begin{tabular}" in (files / "energy.tex").read_text()
    facts = read_energy(files / "energy.json")
    counts = count(student(), np.load("spikes.npy"), dt_s=DT_S)
    assert facts["counts"]["student"] == json.loads(json.dumps(counts.to_json()))
    assert counts.total.acc > 0 == counts.total.mac
    assert facts["counts"]["student_other_pooling"]["total"]["mac"] > 0  # fractions of a pool
    teacher = count_onnx(files / "teacher.onnx", np.load("frames.npy"))
    assert facts["counts"]["baseline"]["total"]["mac"] == float(teacher.total.mac)
    formula = facts["literature_formula"]
    # in joules, where the estimates are in picojoules
    expected = price(counts).nominal_pj / price(teacher).nominal_pj
    assert formula["ratio"]["nominal"] == pytest.approx(expected, rel=1e-12)
    models = [(row["model"], row["reuse"], row["against"]) for row in facts["same_technology"]]
    assert models[:2] == [("operations", None, "dense"), ("operations", None, "zeros skipped")]
    assert {model for model, _, _ in models} == {"operations", "memory", "movement"}
    assert {reuse for _, reuse, _ in models} == {None, 1.0, 16.0}
    assert {row["against"] for row in facts["why"]["break_even"]} == {"dense", "zeros skipped"}
    places = facts["places"]
    assert list(places) == [
        "Loihi 1",
        "Loihi 2",
        "edge GPU, batch 1",
        "edge GPU, large batch",
        "CPU",
    ]
    assert places["Loihi 2"]["dynamic"]["high"] > 0
    assert places["Loihi 2"]["total"]["nominal"] is None
    assert "a graph is on no cores" in places["Loihi 2"]["total"]["why_unknown"]
    assert 5.58e-3 < places["edge GPU, batch 1"]["dynamic"]["nominal"] < 6e-3
    now, *others = facts["why"]["trades"]
    assert (now["relative"], now["agreement"]) == (1.0, 1.0)
    assert others[1]["value"] < others[0]["value"] < 9
    accuracy = facts["accuracy"]
    assert accuracy["student"]["nominal"] == now["accuracy"]
    assert 0 <= accuracy["baseline"]["nominal"] <= 1
    difference = accuracy["student"]["nominal"] - accuracy["baseline"]["nominal"]
    assert accuracy["difference"]["nominal"] == pytest.approx(difference)


@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.PNG", b"\x89PNG")]
)
def test_pictures_by_their_ending(knarr: Knarr, files: Path, name: str, start: bytes) -> None:  # noqa: F811
    result = run(knarr, "--picture", name)
    assert result.returncode == 0, result.stderr
    assert (files / name).read_bytes().startswith(start)


def test_json_is_what_the_file_holds(knarr: Knarr, files: Path) -> None:  # noqa: F811
    result = run(knarr, "--json", "--out", "energy.json")
    assert json.loads(result.stdout) == json.loads((files / "energy.json").read_text())
    assert json.loads(result.stdout)["counts"]["baseline"] is None
    assert "No ANN beside it" in json.loads(result.stdout)["verdict"]["sentences"][-1]


def test_a_chip_network_and_one_profile(knarr: Knarr, files: Path) -> None:  # noqa: F811
    network = lower(
        chain(
            SHAPE,
            (3,),
            flat=flatten(*SHAPE),
            fc=nir.Linear(on_grid(np.random.default_rng(0), 3, 128)),
            n=integrate((3,)),
        ),
        DT_S,
    )
    write_net(network, files / "student.net")
    result = knarr(
        "energy", "student.net", "--data", "spikes.npy", "--profile", "horowitz_int8", "--model", "paper", "--json"
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    counts = count(network, np.load("spikes.npy"))
    rows = facts["same_technology"]
    assert {row["model"] for row in rows} == {"operations"}
    # summed layer by layer in floats
    operations = 0.1e-12 * float(counts.total.acc)
    assert rows[0]["student"]["nominal"] == pytest.approx(operations)
    assert facts["counts"]["student_other_pooling"] is None
    loihi = facts["places"]["Loihi 2"]
    assert loihi["total"]["low"] <= loihi["total"]["nominal"] <= loihi["total"]["high"]
    assert facts["cores"]["Loihi 2"] == {"used": 1, "there": 128, "chips": 1}
    # 8 bits a weight on the chip
    assert facts["counts"]["summary"]["student"]["footprint_bytes"] == 3 * 128


def test_a_chip_s_prices_price_the_student_alone(knarr: Knarr, files: Path) -> None:  # noqa: F811
    result = run(knarr, "--baseline", "teacher.onnx", "--profile", "loihi1_cal", "--json")
    rows = json.loads(result.stdout)["same_technology"]
    assert [row["label"] for row in rows] == ["chip, firing updates", "chip, touched updates"]
    assert all(row["ratio"] is None and row["student"]["nominal"] > 0 for row in rows)
    shown = run(knarr, "--baseline", "teacher.onnx", "--profile", "loihi1_cal")
    assert "SNN by loihi1_cal (chip, firing updates)" in shown.stdout


def unsupported(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gate", "my.own"  # where Relu was
    model.opset_import.append(onnx.helper.make_opsetid("my.own", 1))
    onnx.save(model, path)


def test_what_cannot_be_counted_has_no_total_unless_asked(knarr: Knarr, files: Path) -> None:  # noqa: F811
    unsupported(files / "teacher.onnx")
    one_line(run(knarr, "--baseline", "teacher.onnx"), 2, "no total", "Gate")
    result = run(knarr, "--baseline", "teacher.onnx", "--allow-partial")
    assert result.returncode == 0, result.stderr
    assert "LOWER BOUND" in result.stdout
    assert "NOT COUNTED" in result.stdout
    facts = json.loads(run(knarr, "--baseline", "teacher.onnx", "--allow-partial", "--json").stdout)
    assert facts["counts"]["baseline"]["total"] is None
    assert {
        row["ratio"] is None for row in facts["same_technology"] if row["against"] == "dense"
    } == {True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "nope"], ["profile: 'nope' does not exist"]),
        (["--profile", "gpu_floor"], ["it prices nothing"]),
        (["--profile", "loihi1_cal", "--model", "paper"], ["--model: 'paper'", "digital"]),
        (["--baseline", "missing.onnx"], ["missing.onnx"]),
        (["--baseline-data", "frames.npy"], ["go with --baseline"]),
        (["--labels", "spikes.npy"], ["labels", "one class for each"]),
        (["--out", "spikes.npy"], ["is read as"]),
        (["--dt", "0"], ["dt"]),
    ],
)
def test_refusals(knarr: Knarr, files: Path, options: list[str], words: list[str]) -> None:  # noqa: F811
    one_line(run(knarr, *options), 2, *words)


def test_files_need_data(knarr: Knarr, files: Path) -> None:  # noqa: F811
    one_line(knarr("energy", "student.nir"), 2, "--data: needed")
    np.save(files / "wrong.npy", np.zeros((2, 3, 5)))
    one_line(
        knarr("energy", "student.nir", "--data", "wrong.npy"),
        2,
        "the graph needs (samples, timesteps, (2, 8, 8))",
    )


def test_a_chip_profile_draws_the_student_alone(knarr: Knarr, files: Path) -> None:  # noqa: F811
    result = run(
        knarr, "--baseline", "teacher.onnx", "--profile", "loihi1_cal", "--picture", "chip.png"
    )
    assert result.returncode == 0, result.stderr
    assert (files / "chip.png").stat().st_size > 10_000


def test_zeros_skipped_make_a_dearer_student(knarr: Knarr, files: Path) -> None:  # noqa: F811
    np.save(
        files / "dark.npy",
        np.eye(8, dtype=np.float32)[None, None].repeat(6, 0) * [[[0.0], *[[0.0]] * 6, [1.0]]],
    )
    result = run(
        knarr, "--baseline", "teacher.onnx", "--baseline-data", "dark.npy", "--model", "paper",
        "--profile", "horowitz_fp32", "--json",
    )  # fmt: skip
    facts = json.loads(result.stdout)
    ratios = {row["against"]: row["ratio"]["nominal"] for row in facts["same_technology"]}
    assert ratios["zeros skipped"] > ratios["dense"] > 0
    same = facts["verdict"]["same_technology"]
    assert (same["low"], same["high"]) == (min(ratios.values()), max(ratios.values()))
    crosses = same["low"] < 1 < same["high"]
    assert (same["winner"] is None) == crosses


def test_memory_of_a_baseline_with_and_without_reuse(knarr: Knarr, files: Path) -> None:  # noqa: F811
    facts = json.loads(
        run(
            knarr, "--baseline", "teacher.onnx", "--model", "memory", "--reuse", "4", "--json"
        ).stdout
    )
    rows = [row for row in facts["same_technology"] if row["model"] == "memory"]
    once, often, *_ = [row for row in rows if row["against"] == "dense"]
    assert (once["reuse"], often["reuse"]) == (1.0, 4.0)
    assert once["student"]["nominal"] == often["student"]["nominal"]
    assert once["baseline"]["nominal"] > often["baseline"]["nominal"]


def test_the_other_policy_can_be_priced(knarr: Knarr, files: Path) -> None:  # noqa: F811
    facts = json.loads(run(knarr, "--pooling", "float", "--json").stdout)
    assert facts["counts"]["student"]["pooling"] == "float"
    assert facts["counts"]["student_other_pooling"]["pooling"] == "folded"
    assert {row["model"] for row in facts["same_technology"]} >= {"operations", "memory"}
    assert facts["places"] == {}
    assert "pools were counted as floats" in facts["verdict"]["sentences"][0]


def test_files_of_a_run_are_not_written_over(knarr: Knarr, files: Path) -> None:  # noqa: F811
    (files / "run").mkdir()
    (files / "run" / "config.yaml").write_text("recipe: mine")
    for option in ("--out", "--picture"):
        name = "config.yaml" if option == "--out" else "config.png"
        (files / "run" / "config.png").write_text("mine")
        result = knarr("energy", "student.nir", "--data", "run", option, f"run/{name}")
        one_line(result, 2, option, "belongs to the run")
    assert (files / "run" / "config.yaml").read_text() == "recipe: mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--votes", "2"], ["--votes: 2", "3 outputs"]),
        (["--hops", "inf"], ["hops: inf"]),
        (["--measure", "--baseline", "teacher.onnx"], ["--measure", "--baseline-data"]),
        (["--picture", "energy.jpg"], ["ends in .png, .svg, .pdf"]),
        (["--out", "."], ["is a folder"]),
        (["--pooling", "float", "--profile", "loihi1_cal"], ["--pooling", "no chip model"]),
    ],
)
def test_options_that_cannot_be_met(
    knarr: Knarr,  # noqa: F811
    files: Path,
    options: list[str],
    words: list[str],
) -> None:
    one_line(run(knarr, *options), 2, *words)


def test_a_source_that_is_not_there(knarr: Knarr, files: Path) -> None:  # noqa: F811
    one_line(knarr("energy", "nowhere", "--json"), 2, "nowhere: no such")
