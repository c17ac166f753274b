"""Files of other people's on the command line: what is asked is answered before work, truly, and alike by every verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from graphs import DT_S, chain, lif, spikes

from knarr.cli import main
from knarr.deploy import lower, write_net
from knarr.export import read, step_nir, write
from knarr.export.graph.complete import complete

Call = Callable[..., tuple[int, str, str]]
SAMPLES, STEPS = 4, 25


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs the command in a folder with a graph of another tool, its network and samples."""
    rng = np.random.default_rng(5)
    graph = chain(
        (6,), (3,), a=nir.Linear(rng.normal(1, 0.8, (8, 6))), n=lif((8,)),
        b=nir.Linear(rng.normal(1, 0.8, (3, 8))), m=lif((3,)),
    )  # fmt: skip
    events = spikes(SAMPLES, STEPS, 6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write(complete(graph, []), Path("g.nir"))
    write_net(lower(graph, DT_S), Path("a.net"))
    np.save("x.npy", events)
    np.save("y.npy", step_nir(graph, events, DT_S).output.swapaxes(0, 1))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


LABELLED = {
    "simulate": ("simulate", "a.net", "--data", "x.npy"),
    "deploy": ("deploy", "g.nir", "--dt", DT_S, "--calibration", "x.npy", "--out", "o.net"),
    "verify": ("verify", "g.nir", "--dt", DT_S, "--inputs", "x.npy", "--expected", "y.npy"),
    "verify net": ("verify", "a.net", "--graph", "g.nir", "--inputs", "x.npy"),
    "energy graph": ("energy", "g.nir", "--dt", DT_S, "--data", "x.npy"),
    "energy net": ("energy", "a.net", "--data", "x.npy"),
}


@pytest.mark.parametrize("verb", LABELLED)
def test_labels_that_are_no_classes_are_refused_alike(verb: str, call: Call) -> None:
    for labels, message in (
        (np.array([1, 2, 3, 1]), "labels: 1..3, the network has classes 0..2; they begin at 1"),
        (np.array([1.0, 2.0, 3.0, 1.0]), "they begin at 1, subtract 1"),
        (np.eye(3)[[0, 1, 2, 0]], "numpy.argmax(labels, axis=1)"),
        (np.array([0.5, 0, 1, 2]), "0.5 is no class"),
        (np.arange(3), "shape (3,) for 4 samples"),
    ):
        np.save("labels.npy", labels)
        status, _, err = call(*LABELLED[verb], "--labels", "labels.npy")
        assert status == 2, err
        assert message in err


@pytest.mark.parametrize("verb", ["simulate", "deploy", "verify"])
def test_labels_are_read_by_value(verb: str, call: Call) -> None:
    np.save("labels.npy", np.array([0.0, 1.0, 2.0, 1.0], dtype=">f4"))
    status, _, err = call(*LABELLED[verb], "--labels", "labels.npy")
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("simulate", "a.net", "--data", "x.npy", "--out", "nodir/r.npz"), "--out: nodir/r.npz"),
        (("simulate", "a.net", "--data", "x.npy", "--picture", "nodir/r.png"), "--picture: nodir/r.png"),
        (("deploy", "g.nir", "--dt", DT_S, "--out", "nodir/o.net"), "--out: nodir/o.net"),
        (("energy", "g.nir", "--dt", DT_S, "--data", "x.npy", "--out", "nodir/e.json"), "--out: nodir/e.json"),
        (("verify", "a.net", "--inputs", "x.npy", "--picture", "nodir/p.png"), "--picture: nodir/p.png"),
        (("export", "no.module:f", "--input-shape", "3", "--out", "nodir/g.nir"), "--out: nodir/g.nir"),
        (("data", "events", "x.npy", "--out", "nodir/e.npz"), "--out: nodir/e.npz"),
        (("train", "eyes", "--out", "x.npy/run"), "--out: x.npy is a file"),
        (("pipeline", "eyes", "--out", "x.npy"), "--out: x.npy is a file"),
        (("table", "eyes", "--out", "x.npy"), "--out: x.npy is a file"),
        (("sweep", "s.yaml", "--out", "x.npy"), "--out: x.npy is a file"),
        (("pareto", "eyes", "--out", "x.npy"), "--out: x.npy is a file"),
        (("data", "generate", "eyes", "x.npy/d"), "PATH: x.npy is a file"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_written_is_said_before_work(
    arguments: tuple[object, ...], option: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work was begun")

    for place in ("deploy.read_net", "deploy.lower", "hw_sim.simulate", "hw_sim.count"):
        monkeypatch.setattr(f"knarr.{place}", work)
    status, _, err = call(*arguments)
    assert status == 2
    assert option in err
    assert ".tmp" not in err


def test_a_graph_that_is_not_its_certificate_s_is_not_lowered(call: Call) -> None:
    other = '{"graph_hash": "00", "dt_s": 0.001, "samples": 1, "timesteps": 1, "decisions": 1, '
    other += '"spikes": {}, "margin_v": {}, "voltages_compared": 1, "versions": {}}'
    Path("g.nir.json").write_text(other, "utf-8")
    for verb in ("deploy", "energy graph", "verify", "verify net"):
        status, _, err = call(*LABELLED[verb])
        assert status == 2
        assert "g.nir: is not the graph of its certificate g.nir.json" in err
    assert not Path("o.net").exists()
    status, out, _ = call("verify", "g.nir", "--json")
    assert status == 1
    assert "its hash differs" in json.loads(out)["reason"]
    # Facts of other people's beside a graph are no certificate.
    Path("g.nir.json").write_text('{"trained_by": "me"}', "utf-8")
    assert call(*LABELLED["deploy"])[0] == 0


def test_an_uncertified_graph_says_what_holds_and_what_cannot_be_known(call: Call) -> None:
    status, out, _ = call("verify", "g.nir", "--json")
    facts = json.loads(out)
    assert status == 1
    assert facts["reason"] == "there is nothing to compare the graph with"
    assert "whose shapes fit" in facts["known"][0]
    assert "--expected" in facts["unknown"][0]
    assert "time step" in facts["unknown"][1]
    assert facts["step"][0].startswith("--dt 0.001 ")
    facts = json.loads(call("verify", "g.nir", "--dt", DT_S, "--json")[1])
    assert "at steps of 0.001 s it runs" in facts["known"][1]


def test_what_another_tool_computed_is_compared(call: Call) -> None:
    status, out, err = call(*LABELLED["verify"])
    assert status == 0, err
    assert "The verification holds." in out
    wrong = np.load("y.npy")
    wrong[3, 1, 2] = 1 - wrong[3, 1, 2]
    np.savez(
        "nodes.npz", m=wrong, n=step_nir(read(Path("g.nir")), np.load("x.npy"), DT_S).spikes["n"]
    )
    arguments = ("verify", "g.nir", "--dt", DT_S, "--inputs", "x.npy", "--expected", "nodes.npz")
    status, out, _ = call(*arguments, "--picture", "p.png")
    assert status == 1
    assert "the first layer that differs is 'm': 1 of 300" in out
    assert Path("p.png").is_file()
    status, _, err = call("verify", "g.nir", "--expected", "y.npy", "--dt", DT_S)
    assert (status, "give them with --inputs" in err) == (2, True)
    status, _, err = call("verify", "g.nir", "--inputs", "x.npy", "--expected", "y.npy")
    assert (status, "its constants fit --dt 0.001" in err) == (2, True)


def test_the_input_shape_of_a_file_can_be_given(call: Call) -> None:
    graph = read(Path("g.nir"))
    graph.nodes["input"] = nir.Input({"input": np.array([2, STEPS, 6])})
    graph.nodes["output"] = nir.Output({"output": np.array([2, STEPS, 3])})
    nir.write("b.nir", nir.NIRGraph(graph.nodes, graph.edges, type_check=False))
    for arguments in (
        ("deploy", "b.nir", "--dt", DT_S, "--out", "o.net"),
        ("energy", "b.nir", "--dt", DT_S, "--data", "x.npy"),
        ("verify", "b.nir", "--dt", DT_S, "--inputs", "x.npy", "--expected", "y.npy"),
    ):
        status, _, err = call(*arguments)
        assert (status, "give --input-shape 6 " in err) == (2, True)
        status, _, err = call(*arguments, "--input-shape", "6")
        assert status == 0, err


def test_the_shape_of_a_baseline_can_be_given(call: Call) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=4)
    weights = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        [node], "g", [value("x", 1, ["time", 1, 3])], [value("y", 1, ["time", 1, 1, 4])], stored
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), "b.onnx")
    arguments = (*LABELLED["energy graph"], "--baseline", "b.onnx")
    status, _, err = call(*arguments)
    assert (status, "say its size with --shape x=time,1,3" in err) == (2, True)
    status, out, err = call(*arguments, "--shape", "x=10,1,3", "--json")
    assert status == 0, err
    assert str(10 * 16 * 7) in out
    status, _, err = call(*arguments, "--shape", "10,1,3")
    assert (status, "such as x=1,32,12" in err) == (2, True)
    status, _, err = call(*LABELLED["energy graph"], "--shape", "x=10,1,3")
    assert (status, "go with --baseline" in err) == (2, True)
