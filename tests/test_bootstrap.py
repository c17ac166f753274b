"""bootstrap.sh with a Python that only notes what it is asked: made once, and again where a kill left half."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
here="$(dirname "$0")"
case "$*" in
  --version) echo "Python 3.13.0" ;;
  "-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    [ -n "$KILLED" ] && exit 9
    touch "$3/bin/pip"
    printf '#!/bin/sh\\necho "knarr $*" >> "$CALLS"\\n' > "$3/bin/knarr"
    chmod +x "$3/bin/knarr" ;;
  "-m pip "*) [ -e "$here/pip" ] ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "bootstrap.sh", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", "hw_sim/engines/csrc/cuba.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def bootstrap(tree: Path, **variables: str) -> tuple[int, list[str], str]:
    """Return the exit code, the calls of Python and knarr, and what was said."""
    calls = tree / "calls"
    calls.write_text("")
    env = os.environ | {"KNARR_PYTHON": str(tree / "python"), "CALLS": str(calls), "KILLED": ""}
    for name in ("KNARR_VENV", "KNARR_LOCK"):
        env.pop(name, None)
    done = subprocess.run(
        [tree / "bootstrap.sh"], env=env | variables, capture_output=True, text=True, check=False
    )
    return done.returncode, calls.read_text().splitlines(), done.stdout + done.stderr


def test_it_installs_once_and_again_after_a_change(tree: Path) -> None:
    code, calls, said = bootstrap(tree)
    assert code == 0, said
    assert "-m venv .venv" in calls
    assert sum("--require-hashes -r requirements.lock" in call for call in calls) == 1
    assert calls[-1] == "knarr lava install"
    assert bootstrap(tree) == (0, [], "")
    (tree / "requirements.lock").write_text("numpy==2.5.5\n")
    code, calls, said = bootstrap(tree)
    assert (code, calls[-1]) == (0, "knarr lava install"), said
    assert "-m venv .venv" not in calls


def test_an_environment_whose_making_was_killed_is_made_again(tree: Path) -> None:
    code, _, _ = bootstrap(tree, KILLED="yes")
    assert code != 0
    assert (tree / ".venv/bin/python").exists()
    assert not (tree / ".venv/bin/pip").exists()
    code, calls, said = bootstrap(tree)
    assert (code, calls[-1]) == (0, "knarr lava install"), said


def test_an_interpreter_that_is_none_is_named(tree: Path) -> None:
    code, calls, said = bootstrap(tree, KNARR_PYTHON="/nowhere")
    assert (code, calls) == (2, [])
    assert said.startswith("knarr needs Python 3.11 or newer with its venv module")
    assert "KNARR_PYTHON=/nowhere is none" in said
