"""The wheel holds what the tree holds: a module or data file that is missing there works only from a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("train", "export", "deploy", "hw_sim", "pipeline", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for stage in ("knarr", *STAGES):
        shutil.copytree(ROOT / stage, source / stage, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(
        [*command, "-w", str(folder), str(source)], check=True, capture_output=True, timeout=200
    )
    return zipfile.ZipFile(next(folder.glob("knarr-*.whl")))


def test_wheel_holds_every_file_of_every_stage(wheel: zipfile.ZipFile) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        if stage == "knarr"
        else f"knarr/{path.relative_to(ROOT).as_posix()}"
        for stage in ("knarr", *STAGES)
        for path in (ROOT / stage).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts  # where numba keeps code too
    }
    assert len(wanted) > 50
    assert wanted <= set(wheel.namelist())
    wheel.close()


def test_types_are_declared() -> None:
    assert [
        stage for stage in ("knarr", *STAGES) if not (ROOT / stage / "py.typed").is_file()
    ] == []


def test_lock_pins_hashes_and_names_no_registry() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index" not in lock
    packages = [line for line in lock.splitlines() if "==" in line]
    assert len(packages) > 80
    assert lock.count("--hash=sha256:") >= len(packages)


def test_the_container_is_built_from_every_stage() -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert [stage for stage in ("knarr", *STAGES) if f"!{stage}" not in allowed] == []
