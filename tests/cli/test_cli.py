"""The command as a user meets it: help, bad input in one line with the right exit status, JSON for machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from knarr.cli import main
from knarr.deploy import write_net
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout, load_recording

VERBS = (
    "train",
    "export",
    "deploy",
    "simulate",
    "verify",
    "energy",
    "report",
    "pipeline",
    "doctor",
)


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


Knarr = Callable[..., Result]


@pytest.fixture
def knarr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Knarr:
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(exit_.value.code or 0), out, err)

    return run


@pytest.fixture
def net(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    layer = Dense("fc", rng.integers(-60, 64, (3, 6), dtype=np.int32), Neuron(4096, 512, 30, "lif"))
    path = tmp_path / "tiny.net"
    write_net(ChipNetwork((layer,), InputCoding((6,)), Readout("spikes")), path)
    np.save(tmp_path / "in.npy", rng.integers(0, 2, (2, 8, 6)))
    return path


def one_line(result: Result, status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("knarr: ")
    assert sum(line.startswith("knarr: ") for line in lines) == 1
    for word in words:
        assert word in lines[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(knarr: Knarr, verb: str, tmp_path: Path) -> None:
    result = knarr(verb, "--help")
    assert result.returncode == 0
    assert "--json" in result.stdout
    assert f"Example: knarr {verb}" in result.stdout


def test_usage_errors_exit_2(knarr: Knarr, tmp_path: Path) -> None:
    for arguments in (["nope"], ["simulate"], ["pipeline"]):
        result = knarr(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_simulate_prints_json_and_writes_the_recording(
    knarr: Knarr, net: Path, tmp_path: Path
) -> None:
    result = knarr("simulate", net, "--inputs", "in.npy", "--out", "rec.npz", "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    recording = load_recording(tmp_path / "rec.npz")
    assert facts["spikes"] == {"fc": int(recording.output.sum())}
    assert facts["spikes"]["fc"] > 0
    assert facts["decisions"] == recording.output.sum(axis=1).argmax(axis=1).tolist()


def test_simulate_on_lava_gives_the_same(knarr: Knarr, net: Path, tmp_path: Path) -> None:
    ours, lava = (
        json.loads(
            knarr("simulate", net, "--inputs", "in.npy", "--engine", engine, "--json").stdout
        )
        for engine in ("reference", "lava")
    )
    assert (ours.pop("engine"), lava.pop("engine")) == ("reference", "lava")
    for facts in (ours, lava):
        assert facts.pop("seconds") > 0
        assert facts.pop("samples_per_second") > 0
    assert ours == lava


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "no.net", "--inputs", "in.npy"], ["no.net", "no such file"]),
        (["simulate", "text.net", "--inputs", "in.npy"], ["text.net", "not an HDF5 file"]),
        (["simulate", "cut.net", "--inputs", "in.npy"], ["cut.net"]),
        (["simulate", "tiny.net", "--inputs", "no.npy"], ["no.npy", "no such file"]),
        (["simulate", "tiny.net", "--inputs", "text.net"], ["text.net", "not a .npy"]),
        (["simulate", "tiny.net", "--inputs", "float.npy"], ["0.5"]),
        (
            ["simulate", "tiny.net", "--inputs", "in.npy", "--engine", "quantum"],
            ["--engine: 'quantum'"],
        ),
        (["pipeline", "nope"], ["recipe 'nope'", "eyes, nmnist"]),
        (["pipeline", "nmnist"], ["--data"]),
        (["pipeline", "nmnist", "--data", "nowhere"], ["nowhere", "missing"]),
        (["export", "no-run"], ["no-run", "config.yaml"]),
        (["report", "no-run"], ["no-run"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    knarr: Knarr, arguments: list[str], words: list[str], net: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.net").write_text("hello")
    (tmp_path / "cut.net").write_bytes(net.read_bytes()[:700])
    np.save(tmp_path / "float.npy", np.full((2, 8, 6), 0.5))
    before = sorted(tmp_path.rglob("*"))
    one_line(knarr(*arguments), 2, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_recordings_stop_the_pipeline_before_it_writes(
    knarr: Knarr, nmnist_root: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(nmnist_root / "1.bs2", data / "1.bs2")
    (data / "train1K.txt").write_text("1\t5\n2\t0\n")
    (data / "test100.txt").write_text("1\t5\n")
    arguments = ("pipeline", "nmnist", "--data", data, "--out", "run")
    one_line(knarr(*arguments), 2, "2.bs2", "missing")
    (data / "2.bs2").write_bytes((nmnist_root / "2.bs2").read_bytes()[:-2])
    one_line(knarr(*arguments), 2, "2.bs2", "truncated")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("echo no license for this; exit 3", 1, ["died with exit status 3", "no license for this"]),
        ("sleep 300 & sleep 300", 1, ["no result within 2 s"]),
    ],
)
def test_a_lava_worker_that_dies_or_hangs(
    knarr: Knarr,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    status: int,
    words: list[str],
    net: Path,
    tmp_path: Path,
) -> None:
    fake = tmp_path / "fake-python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    marker = {"KNARR_TEST_MARK": tmp_path.name}
    arguments = (
        "simulate",
        net,
        "--inputs",
        "in.npy",
        "--engine",
        "lava",
        "--timeout",
        "2",
        "--out",
        "rec.npz",
    )
    for name, value in (*marker.items(), ("KNARR_LAVA_PYTHON", str(fake))):
        monkeypatch.setenv(name, value)
    result = knarr(*arguments)
    one_line(result, status, "Lava worker", *words)
    assert not (tmp_path / "rec.npz").exists()
    left = [
        path
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"KNARR_TEST_MARK={tmp_path.name}" in read(path)
    ]
    assert left == []


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # it ended while we looked


def test_doctor_finds_lava(knarr: Knarr, tmp_path: Path) -> None:
    result = knarr("doctor", "--json")
    assert result.returncode == 0, result.stderr
    findings = {finding["backend"]: finding for finding in json.loads(result.stdout)}
    assert findings["Lava simulator"]["works"], findings["Lava simulator"]["note"]
    assert findings["reference engine"]["works"]


def test_stages_do_not_import_lava(tmp_path: Path) -> None:
    code = "import sys, knarr.train, knarr.export, knarr.deploy, knarr.hw_sim; print([m for m in sys.modules if m.split('.')[0] == 'lava'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert result.stdout.strip() == "[]"


# --- a module and a graph of one's own

MODULE = """
import norse.torch as snn
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    cell = snn.LIFBoxCell(snn.LIFBoxParameters(v_th=torch.tensor(0.1)))
    return snn.SequentialState(nn.Conv2d(2, 4, 3), cell, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5), snn.LICell())


def other():
    torch.manual_seed(1)
    module = build()
    with torch.no_grad():
        module[0].weight += 0.05
    return module


def relu():
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU())


def number():
    return 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ownstudent.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ownstudent", raising=False)
    return tmp_path


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_export_and_verify_a_module_of_ones_own(
    own_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    from safetensors.torch import save_file

    sys.path.insert(0, str(own_module))
    try:
        trained = importlib.import_module("ownstudent").other()
    finally:
        sys.path.remove(str(own_module))
    save_file(trained.state_dict(), "trained.safetensors")
    export = [
        "export",
        "ownstudent:build",
        "--input-shape",
        "2,8,8",
        "--out",
        "a.nir",
        "--checkpoint",
        "trained.safetensors",
    ]
    status, out, err = call([*export, "--json"], capsys)
    assert (status, err) == (0, "")
    assert json.loads(out)["decisions"] == 8 * 32 * 144
    status, out, _ = call(["verify", "a.nir", "--json"], capsys)
    facts = json.loads(out)
    assert (status, facts["holds"], facts["certificate"]) == (0, True, "of this graph")
    assert facts["nodes"][2] == "lif_1: LIF (4, 6, 6) tau 10 ms"
    same = ["verify", "a.nir", "--module", "ownstudent:other", "--json"]
    status, out, _ = call(same, capsys)
    assert (status, json.loads(out)["differing"]) == (0, 0)
    status, out, _ = call(["verify", "a.nir", "--module", "ownstudent:build"], capsys)
    assert status == 1
    assert "node 'lif_1'" in " ".join(out.split())
    assert "time step 0" in " ".join(out.split())


def test_verify_refuses_a_certificate_of_another_graph(
    own_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("build", "other"):
        assert (
            call(
                ["export", f"ownstudent:{name}", "--input-shape", "2,8,8", "--out", f"{name}.nir"],
                capsys,
            )[0]
            == 0
        )
    Path("build.nir.json").write_bytes(Path("other.nir.json").read_bytes())
    status, out, _ = call(["verify", "build.nir"], capsys)
    assert status == 1
    assert "of another graph" in out
    Path("build.nir.json").unlink()
    status, out, _ = call(["verify", "build.nir"], capsys)
    assert status == 1
    assert "none beside it" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ownstudent:build"], "--input-shape: needed"),
        (["ownstudent:build", "--input-shape", "2,x"], "write sizes with commas"),
        (["ownstudent:nix", "--input-shape", "3"], "module 'ownstudent' has no 'nix'"),
        (["nowhere:build", "--input-shape", "3"], "no module 'nowhere' in"),
        (["ownstudent:number", "--input-shape", "3"], "gives int, needs a torch module"),
        (["ownstudent:relu", "--input-shape", "3"], "no neurons of Norse stepped in it"),
        (["ownstudent:build", "--input-shape", "2,8,8", "--dt", "0"], "dt_s: 0"),
        (
            ["ownstudent:build", "--input-shape", "2,8,8", "--checkpoint", "ownstudent.py"],
            "is no file of torch.save",
        ),
    ],
)
def test_bad_modules_are_one_line_and_leave_no_file(
    arguments: list[str], words: str, own_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(["export", *arguments], capsys)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not Path("student.nir").exists()


def test_arrays_of_one_file_are_named(knarr: Knarr, net: Path, tmp_path: Path) -> None:
    spikes = np.load(tmp_path / "in.npy")
    np.savez(
        tmp_path / "all.npz", inputs=spikes, labels=np.array([0, 2]), names=np.array(["a", "b"])
    )
    np.save(tmp_path / "labels.npy", [0, 2])
    of_npy = knarr("simulate", net, "--data", "in.npy", "--labels", "labels.npy", "--json")
    labels = ("--labels", "all.npz:labels")
    of_npz = knarr("simulate", net, "--data", "all.npz:inputs", *labels, "--json")
    assert (of_npz.returncode, of_npy.returncode) == (0, 0), of_npz.stderr
    facts, expected = (json.loads(result.stdout) for result in (of_npz, of_npy))
    for speed in ("samples_per_second", "seconds"):
        assert facts.pop(speed) > 0 < expected.pop(speed)
    assert facts == expected
    over = ("--data", "all.npz:inputs", "--out", "all.npz")
    one_line(knarr("simulate", net, *over), 2, "is read as")
    for given, words in (
        ("all.npz", "holds several arrays (.npz); name one, as all.npz:inputs"),
        ("all.npz:x", "has no array 'x'; choose one of inputs, labels, names"),
        ("all.npz:names", "not plain numbers"),
        ("no.npz:inputs", "no.npz: no such file"),
    ):
        one_line(knarr("simulate", net, "--data", given), 2, words)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "all.npz").read_bytes()[:200])
    one_line(knarr("simulate", net, "--data", "cut.npz:inputs"), 2, "cut.npz", "numpy.savez")
