"""`knarr deploy FILE.nir`, `knarr verify FILE.net` and `knarr simulate` with codings, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from graphs import DT_S, chain, conv2d, cuba, flatten, li, lif, spikes

from knarr.cli import main
from knarr.deploy import read_net
from knarr.export import step_nir, write
from knarr.export.graph.complete import complete
from knarr.hw_sim import encode

Call = Callable[..., tuple[int, str, str]]
SAMPLES, STEPS = 6, 30


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs the command in a folder with a graph, samples and labels."""
    rng = np.random.default_rng(1)
    graph = chain(
        (2, 8, 8), (4,), c=conv2d(rng.normal(0.1, 0.6, (6, 2, 3, 3)), stride=2), n=lif((6, 3, 3)), f=flatten(6, 3, 3),
        fc=nir.Linear(rng.normal(0.15, 0.4, (10, 54))), m=cuba((10,)), out=nir.Linear(rng.normal(0, 1, (4, 10))), r=li((4,)),
    )  # fmt: skip
    events = spikes(SAMPLES, STEPS, 2, 8, 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write(complete(graph, []), Path("g.nir"))
    np.save("in.npy", events)
    np.save("frames.npy", rng.random((SAMPLES, 2, 8, 8)))
    np.save("labels.npy", step_nir(graph, events, DT_S).output.sum(axis=1).argmax(axis=1))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


LOWER = (
    "deploy",
    "g.nir",
    "--dt",
    DT_S,
    "--calibration",
    "in.npy",
    "--labels",
    "labels.npy",
    "--out",
    "a.net",
)


def test_a_file_is_lowered_measured_and_placed(call: Call) -> None:
    status, out, _ = call(*LOWER)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    for words in (
        "weight",
        "of 6 calibration samples",
        "placement on Loihi 2",
        "It fits.",
        "a.net: keeps the rules",
    ):
        assert words in " ".join(out.split())
    network = read_net(Path("a.net"))
    status, out, _ = call("verify", "a.net", "--json")
    facts = json.loads(out)
    assert (status, facts["holds"], facts["lowering"]) == (0, True, network.lowering)
    assert facts["lowering"]["calibration"]["correct_float"] == SAMPLES
    assert [layer["cores"] for layer in facts["placement"]["layers"]] == [1, 1, 1]
    status, out, _ = call("verify", "a.net", "--chip", "loihi1")
    assert (status, "placement on Loihi 1" in out) == (0, True)
    assert "the network has classes 0..1" in call(*LOWER, "--votes", 2)[2]
    plain = [word for word in LOWER if word not in ("--labels", "labels.npy")]
    status, out, _ = call(*plain, "--weight-bits", 4, "--over-time", "last", "--votes", 2, "--json")
    network = read_net(Path("a.net"))
    assert status == 0
    assert json.loads(out)["lowering"]["weight_bits"] == 4
    assert (network.readout.over_time, network.readout.votes) == ("last", 2)
    assert max(np.abs(layer.weight_int).max() for layer in network.layers) <= 8


def test_graph_simulator_and_lava_side_by_side(call: Call) -> None:
    call(*LOWER)
    status, out, _ = call(
        "verify",
        "a.net",
        "--graph",
        "g.nir",
        "--inputs",
        "in.npy",
        "--labels",
        "labels.npy",
        "--json",
    )
    result = json.loads(out)
    assert (status, result["holds"]) == (0, True)
    assert {row["pair"] for row in result["rows"]} == {"NIR ~ hw_sim", "hw_sim = Lava"}
    assert result["correct"]["NIR"] == SAMPLES
    assert result["correct"]["hw_sim"] == result["correct"]["Lava"] >= SAMPLES - 1


def test_frames_reach_the_chip_by_their_coding(call: Call) -> None:
    graded = (
        "--input-kind",
        "direct",
        "--input-bits",
        8,
        "--input-units",
        255,
        "--timesteps",
        STEPS,
    )
    status, _, err = call(
        "deploy", "g.nir", "--dt", DT_S, "--calibration", "frames.npy", "--out", "d.net", *graded
    )
    assert status == 0, err
    coding = read_net(Path("d.net")).input
    assert (coding.kind, coding.bits, coding.units) == ("direct", 8, 255.0)
    status, out, err = call(
        "simulate", "d.net", "--inputs", "frames.npy", "--timesteps", STEPS, "--json"
    )
    assert status == 0, err
    facts = json.loads(out)
    assert facts["timesteps"] == STEPS
    assert min(facts["spikes"][name] for name in ("c", "fc")) > 50
    np.save("ints.npy", encode(coding, np.load("frames.npy"), timesteps=STEPS))
    status, again, _ = call("simulate", "d.net", "--inputs", "ints.npy", "--json")
    assert json.loads(again)["spikes"] == facts["spikes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deploy", "g.nir"), "g.nir: names no time step; give --dt in seconds"),
        (("deploy", "none.nir"), "none.nir: no such file"),
        (("deploy", "g.nir", "--dt", DT_S, "--allow-approximate"), "allow_approximate: nothing to measure"),
        (("deploy", "g.nir", "--dt", DT_S, "--calibration", "labels.npy"), "calibration: inputs: shape (6,)"),
        (("deploy", "g.nir", "--dt", DT_S, "--weight-bits", 9), "--weight-bits"),
        (("deploy", "g.nir", "--dt", DT_S, "--chip", "loihi3"), "loihi3"),
        (
            ("deploy", "g.nir", "--dt", DT_S, "--calibration", "frames.npy", "--input-kind", "rate"),
            "rate coding of frames without a time axis; say how many timesteps",
        ),
        (("verify", "a.net", "--graph", "g.nir"), "--graph: does not go with a .net file without --inputs"),
        (("deploy", "g.nir", "--dt", DT_S, "--out", "g.nir"), "g.nir: is read as g.nir; give another name"),
        (("simulate", "a.net", "--inputs", "in.npy", "--out", "a.net"), "a.net: is read as a.net"),
        (("verify", "a.net", "--inputs", "in.npy", "--picture", "a.net"), "a.net: is read as a.net"),
        (("verify", "a.net", "--inputs", "in.npy", "--graph", "g.nir", "--dt", 0.002), "was lowered with steps of 0.001 s, not 0.002 s"),
        (("verify", "a.net", "--samples", 3), "--samples: does not go with a .net file"),
        (("verify", "g.nir", "--labels", "labels.npy"), "--labels: goes with --expected for a .nir file"),
        (("verify", "run", "--chip", "loihi1"), "--chip: does not go with a run; its recipe holds it"),
        (("deploy", "run", "--weight-bits", 4), "--weight-bits: does not go with a run; its recipe holds it"),
        (("verify", "none.net"), "none.net: no such file"),
        (("verify", "in.npy.net"), "in.npy.net"),
        (("verify", "a.net", "--inputs", "in.npy", "--labels", "labels.npy"), "--module, --checkpoint, --labels, --expected, --input-shape and --dt go with --graph"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple[Any, ...], message: str, call: Call) -> None:
    if "a.net" in arguments:
        call("deploy", "g.nir", "--dt", DT_S, "--out", "a.net")
    Path("in.npy.net").write_bytes(b"nothing")
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not Path("student.net").exists()


def test_a_damaged_file_is_told_apart_rule_by_rule(call: Call) -> None:
    call("deploy", "g.nir", "--dt", DT_S, "--out", "a.net")
    with h5py.File("a.net", "a") as file:
        del file["layer/1/neuron/iDecay"], file["layer/2"]
        file["layer/1/neuron/iDecay"] = 12.5
        file["layer/2/type"] = b"mystery"
    status, out, _ = call("verify", "a.net")
    assert status == 1
    assert out.count("error:") >= 2
    assert "mystery" in out
    status, out, _ = call("verify", "a.net", "--json")
    assert (status, json.loads(out)["holds"]) == (1, False)
    assert len(json.loads(out)["rules"]) >= 2


def test_names_are_text_and_no_markup(call: Call) -> None:
    rng = np.random.default_rng(2)
    graph = chain(
        (6,), (4,), **{"a[red]": nir.Linear(rng.normal(0.5, 1, (4, 6))), "n[bold]": lif((4,))}
    )
    write(complete(graph, []), Path("odd.nir"))
    status, out, err = call("deploy", "odd.nir", "--dt", DT_S, "--out", "odd.net")
    assert (status, err) == (0, "")
    assert "a[red]" in out
