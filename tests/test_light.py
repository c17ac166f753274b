"""A verb loads what it needs: light ones run without torch and without any package of an extra."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
from energy_files import small_facts
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from knarr.deploy import write_net
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout

HEAVY = (
    "torch",
    "numba",
    "norse",
    "lightning",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "torchmetrics",
)

# Hides installed packages other than those that are named, and says at the end which modules were loaded.
PRELUDE = """
import json, sys
from importlib.machinery import PathFinder
allowed, arguments = json.loads(sys.argv[1]), sys.argv[2:]
found_in_path = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    spec = found_in_path(name, path, target)
    hidden = allowed is not None and spec is not None and name.partition(".")[0] not in allowed
    places = [spec.origin, *(spec.submodule_search_locations or ())] if hidden else []
    return None if any(place and "site-packages" in place for place in places) else spec
PathFinder.find_spec = find_spec
from knarr.cli import main
code = 0
try:
    main(arguments)
except SystemExit as end:
    code = end.code or 0
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([code, loaded]), file=sys.stderr)
"""
Outcome = tuple[int, set[str], str, str]
"""Exit code, top-level modules that were loaded, standard output, and the last line of standard error before them."""


def verb(folder: Path, *arguments: str, allowed: list[str] | None = None) -> Outcome:
    """Run a verb in a process of its own; with `allowed` only these packages seem to be installed."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, json.dumps(allowed), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    *said, facts = done.stderr.splitlines()
    code, loaded = json.loads(facts)
    return code, set(loaded), done.stdout, said[-1] if said else ""


def base_modules() -> list[str]:
    """Return the top-level modules of knarr's base dependencies, and of what those need."""
    waiting, base = ["knarr"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in base:
            continue
        base.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return [
        module
        for module, packages in packages_distributions().items()
        if {canonicalize_name(package) for package in packages} & base
    ]


BASE = base_modules()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, inputs, data, and a finished run as its files are."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    network = ChipNetwork(
        (
            Dense("hidden", rng.integers(-60, 64, (5, 6), dtype=np.int32), Neuron(4096, 512, 40)),
            Dense("output", rng.integers(-30, 64, (3, 5), dtype=np.int32), Neuron(4096, 512, 30)),
        ),
        InputCoding((6,)),
        Readout("spikes"),
    )
    write_net(network, folder / "tiny.net")
    np.save(folder / "inputs.npy", rng.integers(0, 2, (2, 16, 6)))
    write_run(folder / "run")
    write_nmnist(folder / "nmnist")
    (folder / "sweep.yaml").touch()
    return folder


def write_nmnist(folder: Path) -> None:
    folder.mkdir()
    for file, name in (("train1K.txt", "1"), ("test100.txt", "2")):
        (folder / file).write_text(f"{name}\t3\n")
        (folder / f"{name}.bs2").write_bytes(bytes([5, 6, 0x80, 0, 9, 7, 8, 0, 1, 0]))


def write_run(folder: Path) -> None:
    """Write the files that a report reads, as the stages of a run leave them."""
    fit = {"fit": {"select": "last"}}
    recipe = {"name": "eyes", "teacher": fit, "student": {"fit": {"select": "best_on_test"}}}
    row = {"pair": "simulator = Lava", "compared": 96, "mismatches": 0}
    evaluation = {
        "format": 2,
        "data": "generated eyes",
        "classes": ["sad", "glad"],
        "task": None,
        "protocol": "",
        "sampling": None,
        "fold_count": 1,
        "seed": 0,
        "level": 0.95,
        "draws": 100,
        "samples": {
            "names": ["0", "1"],
            "labels": [0, 1],
            "folds": [0, 0],
            "subjects": None,
            "lights": None,
        },
        "networks": {
            name: {"predicted": [[0, right]]}
            for name, right in (("teacher", 1), ("student", 1), ("chip", 0))
        },
    }
    files = {
        "config.yaml": {"format": 1, "recipe": recipe, "data_root": "eyes"},
        "energy.json": small_facts(),
        "verification.json": {"rows": [row], "samples": 2, "holds": True},
        "evaluation.json": evaluation,
    }
    (folder / "pictures").mkdir(parents=True)
    for name in ("samples", "raster", "energy", "verification"):
        (folder / "pictures" / f"{name}.png").touch()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


LIGHT = {
    "version": (["--version"], 0, "knarr "),
    "help": (["--help"], 0, "Usage"),
    "simulate": (["simulate", "tiny.net", "--data", "inputs.npy", "--out", "r.npz"], 0, "engine"),
    "verify FILE.net": (["verify", "tiny.net"], 0, "hidden"),
    "energy FILE.net": (["energy", "tiny.net", "--data", "inputs.npy"], 0, "VERDICT"),
    "report": (["report", "run"], 0, "simulator = Lava"),
    "data check": (["data", "check", "nmnist", "nmnist"], 0, "samples"),
    "simulate of no file": (["simulate", "nowhere.net", "--data", "inputs.npy"], 2, ""),
    "deploy of no graph": (["deploy", "nowhere.nir"], 2, ""),
    "verify of no graph": (["verify", "nowhere.nir"], 2, ""),
    "verify with no graph": (
        ["verify", "tiny.net", "--graph", "nowhere.nir", "--inputs", "inputs.npy"],
        2,
        "",
    ),
    "table of no grid": (["table", "nowhere"], 2, ""),
    "sweep of no file": (["sweep", "nowhere.yaml"], 2, ""),
    "pareto of no recipe": (["pareto", "nowhere"], 2, ""),
    "pareto of no numbers": (["pareto", "nmnist", "--bits", "9"], 2, ""),
    "data check of no folder": (["data", "check", "see", "nowhere"], 2, ""),
    "train on no data": (["train", "nmnist", "--data", "nowhere"], 2, ""),
    "pipeline on no data": (["pipeline", "nmnist", "--data", "nowhere"], 2, ""),
    "simulate of no run": (["simulate", "tiny.net", "--data", "no-run"], 2, ""),
    **{
        f"{name} of no run": ([name, "no-run"], 2, "")
        for name in (
            "report",
            "evaluate",
            "export",
            "deploy",
            "verify",
            "energy",
            "pipeline",
            "train",
        )
    },
}


@pytest.mark.parametrize("allowed", [None, BASE], ids=["all there", "base alone"])
@pytest.mark.parametrize("name", LIGHT)
def test_a_light_verb_loads_nothing_heavy(job: Path, name: str, allowed: list[str] | None) -> None:
    arguments, expected, text = LIGHT[name]
    if name == "export of no run":
        arguments = ["export", "./no-run"]
    code, loaded, out, said = verb(job, *arguments, allowed=allowed)
    assert (code, loaded & set(HEAVY)) == (expected, set()), said
    assert text in out
    assert not code or said.startswith("knarr: ")
    assert "not installed" not in said  # a wrong path comes before what the verb lacks


def test_doctor_runs_on_the_base_alone(job: Path) -> None:
    code, _, out, _ = verb(job, "doctor", "--json", allowed=BASE)
    found = {line["backend"]: line for line in json.loads(out)}
    assert found["CUDA"]["note"] == "torch is not installed; pip install 'knarr[torch]'"
    assert found["reference engine"]["works"]
    assert "torch is not installed" in found["torch engine"]["note"]
    assert code == int(not all(line["works"] for line in found.values() if line["needed"]))


MISSING = {
    "torch": (["simulate", "tiny.net", "--data", "inputs.npy", "--engine", "torch"], "torch"),
    "matplotlib": (["simulate", "tiny.net", "--data", "inputs.npy", "--picture", "p.png"], "plot"),
    "pillow": (["data", "check", "see", "nmnist"], "train"),
    "onnx": (["energy", "tiny.net", "--data", "inputs.npy", "--baseline", "teacher.onnx"], "onnx"),
    "norse": (["train", "eyes"], "train"),
    "lightning": (["sweep", "sweep.yaml"], "train"),
    "torch to fit": (["table", "seen_rows_eyes"], "train"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_extra_is_one_line_that_names_it(job: Path, package: str) -> None:
    arguments, extra = MISSING[package]
    code, _, _, said = verb(job, *arguments, allowed=BASE)
    assert code == 2
    assert f"{package.split()[0]} is not installed; pip install 'knarr[{extra}]'" in said
    assert said.startswith("knarr: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "tiny.net", "--data", "inputs.npy", "--out", "early.npz"],
        ["energy", "tiny.net", "--data", "inputs.npy", "--out", "early.json"],
        ["verify", "tiny.net", "--inputs", "inputs.npy"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    job: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNARR_LAVA_PATH", "nothing")  # so that work of Lava would say so
    code, _, out, said = verb(job, *arguments, "--picture", "p.png", allowed=BASE)
    assert (code, out) == (2, "")
    assert said == "knarr: matplotlib is not installed; pip install 'knarr[plot]'"
    assert not list(job.glob("early.*"))


ALL = list(packages_distributions())


def test_what_a_late_stage_lacks_is_said_before_the_fit(job: Path) -> None:
    others = [name for name in ALL if name != "onnx"]
    settings = ("--set", "data.subjects=4", "--set", "data.validation_fraction=0.34")
    code, _, _, said = verb(job, "pipeline", "eyes", "--out", "early", *settings, allowed=others)
    assert (code, said) == (2, "knarr: onnx is not installed; pip install 'knarr[onnx]'")
    assert not (job / "early" / "checkpoints").exists()


def test_fits_need_no_onnx() -> None:
    code = "import sys, knarr.pipeline.stages; print({'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "face", ["train", "export", "deploy", "hw_sim", "hw_sim.counting", "hw_sim.energy", "pipeline"]
)
def test_a_face_lists_its_names_without_importing_them(face: str) -> None:
    code = f"""
import sys, knarr.{face} as face
print(sorted(set(face.__all__) - set(dir(face))), len(face.__all__), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    missing, count, heavy = done.stdout.split()
    assert (missing, heavy) == ("[]", "False")
    assert int(count) > 1


@pytest.mark.parametrize(
    "statement", ["knarr.export.step_nir", "import knarr.export.graph.step"], ids=["face", "module"]
)
def test_from_python_it_is_the_same_error(statement: str) -> None:
    code = f"""
import json, sys
from importlib.machinery import PathFinder
whole = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name in ("torch", "norse") else whole(name, path, target)
)
import knarr
try:
    {statement}
except knarr.KnarrError as error:
    print(type(error).__name__, isinstance(error, ImportError), error)
try:
    import torch
except ModuleNotFoundError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, theirs = done.stdout.splitlines()
    assert ours == "MissingExtraError True torch is not installed; pip install 'knarr[torch]'"
    assert theirs == "ModuleNotFoundError No module named 'torch'"  # what others import is not ours


def test_recordings_need_no_more_than_their_reader(job: Path) -> None:
    code, loaded, out, said = verb(job, "data", "events", "nmnist/1.bs2", allowed=BASE)
    assert (code, loaded & set(HEAVY)) == (0, set()), said
    assert "nmnist 1" in out
    (job / "r.aedat4").write_bytes(b"#!AER-DAT4.0\r\n")
    code, _, _, said = verb(job, "data", "events", "r.aedat4", allowed=BASE)
    assert (code, said) == (2, "knarr: aedat is not installed; pip install 'knarr[events]'")
