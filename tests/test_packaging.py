"""What is given away holds what the tree holds: a file that is missing there works only from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import check
import numpy as np
import pytest
from archives import build_sdist, build_wheel
from contents import KERNEL, faults_of_sdist, faults_of_wheel

from knarr.hw_sim import load_recording

ROOT = Path(__file__).parent.parent
STAGES = ("train", "export", "deploy", "hw_sim", "pipeline", "cli")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_wheel_and_source_archive_hold_the_files_of_every_stage(wheel: Path, sdist: Path) -> None:
    assert faults_of_wheel(wheel, ROOT) == []
    assert faults_of_sdist(sdist, ROOT) == []


def test_a_wheel_built_without_a_compiler_is_found_out(
    sdist: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    hollow = build_wheel(sdist, tmp_path)
    assert hollow.name == wheel.name
    assert faults_of_wheel(hollow, ROOT) == [f"no {KERNEL}: it was built without a C compiler (cc)"]


def test_a_missing_and_an_extra_file_are_found(wheel: Path, tmp_path: Path) -> None:
    changed = tmp_path / "knarr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            if name != "knarr/train/recipes/eyes.yaml":
                target.writestr(name, source.read(name))
        target.writestr("knarr/tests/test_fast.py", os.urandom(1_600_000))
    name, size, missing, extra = faults_of_wheel(changed, ROOT)
    assert name == "its name is knarr-0.1.0-py3-none-any.whl"
    assert "bytes, more than 1500000" in size
    assert missing == "no knarr/train/recipes/eyes.yaml"
    assert extra == "knarr/tests/test_fast.py is not of it"


def test_the_unpacked_wheel_simulates_with_its_kernel(wheel: Path, tmp_path: Path) -> None:
    """With the packages of this environment; `make check-wheel` installs it into an empty one."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import sys, knarr; from knarr.cli import main; print(knarr.__file__); main(sys.argv[1:])"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*command: str | Path) -> str:
        line = [sys.executable, *map(str, command)]
        options = {"cwd": tmp_path, "env": environment, "timeout": 200, "text": True}
        return subprocess.run(line, check=True, stdout=subprocess.PIPE, **options).stdout

    run(ROOT / "docker/check.py", "make")
    for engine in ("fast", "reference"):
        options = ("--engine", engine, "--record", "output,spikes,u,v", "--out", f"{engine}.npz")
        said = run("-c", script, "simulate", "tiny.net", "--inputs", "inputs.npy", *options)
        assert said.startswith(str(tmp_path / "site/knarr"))
    fast, reference = (load_recording(tmp_path / f"{name}.npz") for name in ("fast", "reference"))
    assert fast.output.any()
    assert np.array_equal(fast.output, reference.output)


def test_a_check_without_any_python_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dist").mkdir()
    for name in ("knarr.whl", "knarr.tar.gz"):
        (tmp_path / "dist" / name).touch()
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "interpreters", dict)
    with pytest.raises(SystemExit, match="nothing was checked"):
        check.main([])


def test_types_are_declared() -> None:
    assert [
        stage for stage in ("knarr", *STAGES) if not (ROOT / stage / "py.typed").is_file()
    ] == []


LOCKS = ("requirements.lock", "requirements-lowest.lock", "docker/requirements.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_hashes_and_names_no_registry(name: str) -> None:
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert "index" not in lock
    packages = [line for line in lock.splitlines() if "==" in line]
    assert len(packages) > 80
    assert lock.count("--hash=sha256:") >= len(packages)


def test_the_container_has_versions_that_are_tested() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.split()[0] for line in lines if "==" in line}

    assert len(pins("docker/requirements.lock")) > 60
    assert pins("docker/requirements.lock") < pins("requirements.lock")


def test_wheels_without_cuda_take_the_place_of_pinned_ones() -> None:
    def names(wheels: str) -> set[str]:
        command = ["awk", "-v", f"wheels={wheels}", "-f", "lock_without.awk", "requirements.lock"]
        kept = subprocess.run(
            command, cwd=ROOT / "docker", check=True, capture_output=True, text=True
        ).stdout
        return {line.partition("==")[0] for line in kept.splitlines() if "==" in line}

    left_out = names("") - names("/wheels/torch-2.15.0+cpu-cp313-cp313-linux_x86_64.whl")
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13", "cuda-toolkit"} <= left_out
    assert not left_out & {"torchmetrics", "numpy", "norse"}
    assert names("") - names("/wheels/pydantic_core-2-x.whl /w/h5py-3-x.whl") == {
        "pydantic-core",
        "h5py",
    }


def test_the_container_is_built_from_every_stage() -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert [stage for stage in ("knarr", *STAGES) if f"!{stage}" not in allowed] == []
