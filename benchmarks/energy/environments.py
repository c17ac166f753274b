"""Environments of their own for other people's packages, made once with venv and pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, packages: Sequence[str], *options: str) -> Path:
    """Return the interpreter of an environment with these packages, made if it is not there.

    An environment that was not finished, or made of other packages, is made anew.

    Args:
        folder: of the environment.
        packages: requirements, as pip takes them.
        options: of `pip install`.
    """
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join((*options, *packages))
    if done.is_file() and done.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making an environment with {packages[0]} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *options, *packages], check=True)
    done.write_text(wanted, "utf-8")
    return python
