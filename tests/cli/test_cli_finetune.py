"""`knarr finetune`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from graphs import DT_S, chain, lif

from knarr.cli import main
from knarr.deploy import read_net
from knarr.export import write
from knarr.export.graph.complete import complete
from knarr.hw_sim import simulate

Call = Callable[..., tuple[int, str, str]]
FEATURES, CLASSES, STEPS, PEOPLE = 10, 2, 8, 12


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs the command in a folder with a graph that knows nothing, and clips of some people."""
    rng = np.random.default_rng(6)
    graph = chain(
        (FEATURES,), (CLASSES,), a=nir.Linear(rng.normal(0.3, 0.6, (8, FEATURES))), n=lif((8,)),
        b=nir.Linear(rng.normal(0.9, 0.5, (CLASSES, 8))), m=lif((CLASSES,), tau=np.full(CLASSES, 0.002)),
    )  # fmt: skip
    rates = rng.random((CLASSES, FEATURES)) * 0.8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write(complete(graph, []), Path("g.nir"))
    for name, people in (("", PEOPLE), ("test_", 5)):
        labels = np.tile(np.arange(CLASSES), 5 * people // CLASSES)
        clips = rng.random((len(labels), STEPS, FEATURES)) < rates[labels][:, None]
        np.save(f"{name}x.npy", clips.astype(np.uint8))
        np.save(f"{name}y.npy", labels)
        np.save(f"{name}who.npy", np.arange(len(labels)) // 5)
    shapes = {"turned": clips.swapaxes(0, 1), "extra": clips[:, None], "still": clips[:, 0]}
    for name, array in {**shapes, "names": labels.astype(str), "one": labels * 0}.items():
        np.save(f"{name}.npy", array)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


FIT = ("finetune", "g.nir", "--data", "x.npy", "--labels", "y.npy", "--epochs", 4)
TEST_CLIPS = ("--data", "test_x.npy", "--labels", "test_y.npy")
FAST = ("--learning-rate", 0.05, "--batch-size", 5)


def test_from_graph_to_proved_file(call: Call) -> None:
    people = ("--groups", "who.npy", "--validation-share", 0.34)
    held_out = (
        "--test",
        "test_x.npy",
        "--test-labels",
        "test_y.npy",
        "--test-groups",
        "test_who.npy",
    )
    asked = (*FIT, *FAST, *people, *held_out, "--dt", DT_S, "--lava-samples", 2, "--weight-bits", 4)
    code, said, err = call(*asked, "--json")
    assert code == 0, err
    facts = json.loads(said)
    assert (facts["holds"], facts["lava_samples"], facts["mismatches"]) == (True, 2, 0)
    # Whole people are on one side.
    assert facts["groups"] == {"train": 8, "validation": 4}
    assert facts["clips"] == {"train": 40, "validation": 20, "test": 25 // 2 * 2}
    network = read_net(Path("student.net"))
    decided = network.readout.decide(simulate(network, np.load("test_x.npy")).output)
    right = decided == np.load("test_y.npy")
    test: dict[str, dict[str, Any]] = facts["test"]
    assert test["fitted"]["correct"] == right.sum()
    assert test["fitted"]["correct"] > test["lowered"]["correct"]
    gained = test["gained"]
    assert gained["value"] == pytest.approx(test["fitted"]["share"] - test["lowered"]["share"])
    assert gained["lo"] < gained["value"] < gained["hi"]
    # The fit is there already; asked again it gives the same, as a table.
    code, said, err = call(*asked, "--lava-samples", 0)
    assert code == 0
    assert "chip: epoch" not in err
    assert "fitted on the integers" in said
    assert f"{100 * gained['value']:+.1f} points" in said
    assert max(map(len, said.splitlines())) <= 80
    assert read_net(Path("student.net")) == network


def test_other_settings_begin_anew(call: Call) -> None:
    quick = (*FIT[:-1], 1, "--dt", DT_S, "--lava-samples", 0)
    assert call(*quick)[0] == 0
    code, _, err = call(*quick, "--seed", 1)
    assert code == 0
    assert "begun anew" in err
    assert "chip: epoch 1/1" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((), "names no time step; give --dt"),
        (("--out", "none/s.net"), "--out: none/s.net is a folder, or lies in none"),
        (("--out", "s.nir"), "does not end in .net"),
        (("--test", "x.npy"), "give both or none"),
        (("--dt", DT_S, "--groups", "test_who.npy"), "groups are a name or whole number for each of 60"),
        (("--dt", DT_S, "--labels", "test_y.npy"), "labels: shape (24,) for"),
        (("--dt", DT_S, "--labels", "who.npy"), "labels: 0..11, the network has classes 0..1"),
        (("--dt", DT_S, "--data", "y.npy"), "data: inputs: shape (60,)"),
        (("--dt", DT_S, "--teacher-logits", "x.npy"), "teacher: logits uint8"),
        (("--dt", DT_S, "--groups", "who.npy", "--validation-share", 0.99), "leaves none to train on; take less"),
        (("--dt", DT_S, *TEST_CLIPS, "--groups", "one.npy"), "give two groups at least, or none"),
        (("--dt", DT_S, *TEST_CLIPS, "--data", "turned.npy"), "time seems to come first; save numpy.swapaxes(data, 0, 1)"),
        (("--dt", DT_S, "--data", "extra.npy"), "axis 1 is one too many: save numpy.squeeze(inputs, 1)"),
        (("--dt", DT_S, "--data", "still.npy"), "no time axis: save numpy.repeat(inputs[:, None], steps, axis=1)"),
        (("--dt", DT_S, "--labels", "names.npy"), "number the names, as numpy.unique(names, return_inverse=True)[1]"),
        (("--dt", DT_S, "--out", "g.net", "--data", "gone.npy"), "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_before_any_work(
    call: Call, change: tuple[object, ...], message: str
) -> None:
    code, said, err = call(*FIT, *change)
    assert (code, said) == (2, "")
    assert message in " ".join(err.split())
    assert "Lowering" not in err
    assert not list(Path().glob("*.net"))
    assert not list(Path().glob("*.fit"))
