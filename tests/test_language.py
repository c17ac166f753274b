"""Docstrings are sentences: none opens with a stub that a reader has to complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("knarr", "train", "export", "deploy", "hw_sim", "pipeline", "cli")
FILES = sorted(path for stage in STAGES for path in (ROOT / stage).rglob("*.py"))
STUB = re.compile(r"(Of|What|Which|Whose|Who|How|Whether|That|As|To|By|In|From|With|Where|When)\b")


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, and the notes below constants and fields."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            text = getattr(value, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(text, str):
                yield statement.lineno, text.strip()


def test_the_folders_were_found() -> None:
    assert len(FILES) > 150
    assert sum(len(list(texts(ast.parse(path.read_text("utf-8"))))) for path in FILES) > 1000


@pytest.mark.parametrize("stage", STAGES)
def test_no_docstring_opens_with_a_stub(stage: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0][:80]}"
        for path in FILES
        if path.is_relative_to(ROOT / stage)
        for line, text in texts(ast.parse(path.read_text("utf-8")))
        if STUB.match(text)
    ]
    assert not found, "\n".join(found)
