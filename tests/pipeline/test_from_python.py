"""The five lines of README.md run as they stand, and say what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


def lines() -> str:
    """The block of README.md that runs all stages."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    (block,) = (block for block in blocks if "knarr.pipeline import" in block)
    assert len([line for line in block.splitlines() if line]) == 5
    return str(block)


def test_the_five_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("five.py").write_text(lines())
    names: dict[str, Any] = runpy.run_path("five.py")
    first = capsys.readouterr()
    assert "Training the teacher" in first.out
    assert first.err == "", "the pipeline itself prints nothing"
    correct = names["report"](names["result"].folder)["correct"]
    assert set(correct) == {"teacher", "student", "chip"}
    assert first.out.splitlines()[-1] == str(correct)
    files = {path: path.stat().st_mtime_ns for path in Path("runs/small").rglob("*")}
    assert {"energy.json", "verification.json", "student.net"} <= {path.name for path in files}
    runpy.run_path("five.py")
    assert {path: path.stat().st_mtime_ns for path in Path("runs/small").rglob("*")} == files
    assert "Training the teacher" not in capsys.readouterr().out
