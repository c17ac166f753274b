"""Check that the wheel and the source archive of knarr hold what they must, and nothing else.

Both hold the files of the tree's stages and no others, tests among them, and the wheel holds the
kernel: a build without a C compiler gives a wheel of the same name that has none.
"""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

BESIDE_THE_STAGES = ("LICENSE", "README.md", "pyproject.toml")
MAX_WHEEL_BYTES = 1_500_000
KERNEL = "knarr/hw_sim/engines/_cuba.abi3.so"
WHEEL_NAME = re.compile(r"knarr-[0-9][^-]*-cp311-abi3-[^-]+\.whl")


def stages(tree: Path) -> dict[str, str]:
    """Return the folders of a tree that become packages, each with its path in the wheel."""
    config = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, str] = config["tool"]["setuptools"]["package-dir"]
    return {folder: package.replace(".", "/") for package, folder in found.items()}


def packaged(tree: Path) -> dict[str, str]:
    """Return the files of the stages of a tree, each with its name in the wheel."""
    return {
        path.relative_to(tree).as_posix(): f"{package}/{path.relative_to(tree / stage).as_posix()}"
        for stage, package in stages(tree).items()
        for path in (tree / stage).rglob("*")
        # numba keeps code in __pycache__ too, and an editable install the kernel in the tree.
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def faults_of_wheel(wheel: Path, tree: Path) -> list[str]:
    """Say what is wrong with a wheel of a tree; nothing where it may be given away."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    found = [] if WHEEL_NAME.fullmatch(wheel.name) else [f"its name is {wheel.name}"]
    if KERNEL not in names:
        found.append(f"no {KERNEL}: it was built without a C compiler (cc)")
    if wheel.stat().st_size > MAX_WHEEL_BYTES:
        found.append(f"{wheel.stat().st_size} bytes, more than {MAX_WHEEL_BYTES}")
    return found + _differences(names - {KERNEL}, packaged(tree).values())


def faults_of_sdist(sdist: Path, tree: Path) -> list[str]:
    """Say what is wrong with a source archive of a tree; nothing where it may be given away."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    return _differences(names - made, [*packaged(tree), *BESIDE_THE_STAGES])


def _differences(names: set[str], wanted: Iterable[str]) -> list[str]:
    missing, extra = sorted(set(wanted) - names), sorted(names - set(wanted))
    return [f"no {name}" for name in missing] + [f"{name} is not of it" for name in extra]
