"""Installs what lies in dist/, and runs it, with each Python that is found here.

The wheel alone goes into an empty environment and runs a chip network with the compiled engine.
The source archive then takes its place, built as on ARM and macOS without the instructions of
x86-64, and does the same. Both must give every integer of the reference engine.

Usage: python release/check.py [EXTRA ...], where the environment gets these extras of knarr too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_BASE_MB = 350
VERSIONS = ("3.14", "3.13", "3.12", "3.11")


def interpreters() -> dict[str, str]:
    """Return the supported Pythons that are found here, each version with its path."""
    found = {}
    for version in VERSIONS:
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        paths = sorted(map(str, root.glob(f"{version}.*/bin/python{version}")), reverse=True)
        for path in (*paths, shutil.which(f"python{version}")):
            # A shim of pyenv answers only for the selected version.
            command = [str(path), "-c", "import ensurepip"]
            if path and subprocess.run(command, check=False, capture_output=True).returncode == 0:
                found[version] = path
                break
    return found


def check_install(python: str, wheel: Path, sdist: Path, extras: list[str]) -> str:
    """Install the wheel and then the source archive into an environment, and run both.

    Returns:
        What was measured, as a line.

    Raises:
        SystemExit: one of them does not install or run, they differ in an integer, or the
            environment is too large.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python_of_venv, knarr = folder / "venv/bin/python", folder / "venv/bin/knarr"

        def run(*command: str | Path, **variables: str) -> str:
            line = [str(word) for word in command]
            env = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
            env |= variables
            ran = subprocess.run(
                line, check=False, cwd=folder, env=env, text=True, capture_output=True
            )
            if ran.returncode:
                sys.exit(f"{' '.join(line)}:\n{ran.stdout}{ran.stderr}")
            return ran.stdout

        def simulate(engine: str, out: str) -> None:
            options = ["--record", "output,spikes,u,v", "--engine", engine, "--out", out]
            run(knarr, "simulate", "tiny.net", "--inputs", "inputs.npy", *options)

        run(python, "-m", "venv", "venv")
        pip = (python_of_venv, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, f"{wheel}[{','.join(extras)}]" if extras else wheel)
        size = int(run("du", "-sm", "venv").split()[0])
        if not extras and size > MAX_BASE_MB:
            sys.exit(f"the base install takes {size} MB, more than {MAX_BASE_MB}")
        run(python_of_venv, ROOT / "docker/check.py", "make")
        simulate("reference", "reference.npz")
        simulate("fast", "wheel.npz")
        again = ("--no-deps", "--force-reinstall", "--no-cache-dir")
        run(*pip, *again, sdist, CFLAGS="-DKNARR_PLAIN")
        simulate("fast", "sdist.npz")
        instructions = run(python_of_venv, "-c", DESCRIBE)
        if "portable vectors" not in instructions:
            sys.exit(f"the source build runs {instructions}, not what other processors run")
        compared = run(python_of_venv, "-c", COMPARE, "reference.npz", "wheel.npz", "sdist.npz")
        return f"{size} MB; wheel and plain source build equal the reference in {compared.strip()}"


DESCRIBE = """
from knarr.hw_sim.engines.selection import fast_engine
print(fast_engine().description)
"""
COMPARE = """
import sys, numpy
first, *others = map(numpy.load, sys.argv[1:])
same = [key for key in first if first[key].dtype.kind in "iu"]
spikes = sum(int(first[key].sum()) for key in same if key.startswith("spikes"))
if not spikes: sys.exit("no spikes to compare")
for other in others:
    for key in same:
        if not numpy.array_equal(first[key], other[key]): sys.exit(f"{key} differs")
print(f"{sum(first[key].size for key in same)} integers with {spikes} spikes")
"""


def main(extras: list[str]) -> None:
    """Check all that lies in dist/."""
    dist = ROOT / "dist"
    wheels, sdists = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        sys.exit(f"{dist}: needs one wheel and one source archive, which 'make wheel' builds")
    found = interpreters()
    if not found:
        sys.exit(f"no Python of {', '.join(VERSIONS)} is found, so nothing was checked")
    for version, python in found.items():
        print(
            f"Python {version}: {check_install(python, wheels[0], sdists[0], extras)}", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
