"""A scan of printed text for ratios of energies that stand without their bounds and model."""

from __future__ import annotations

import re

MODELS = (
    "operations", "memory", "movement", "iterature formula", "batch", "equal silicon", "model",
)  # fmt: skip
NUMBER = r"\d[\d,]*(?:\.\d+)?"
BETWEEN = rf"{NUMBER} to {NUMBER} times|at least {NUMBER} times"
RATIO = re.compile(rf"/ ANN|/ rival|\bratio\b|{NUMBER} times\b|{NUMBER} of the ANN|{NUMBER}x\b")
ROW = re.compile(rf"^\s*(?:operations(?: only|, as is)|\+ (?:memory|movement)).*{NUMBER}")
HEADING = re.compile(r"^[^\d]*$|^2 Same technology|^model ")


def lines_of_ratios(text: str) -> list[str]:
    """Return the sentences and rows of tables that show a ratio, each as one line."""
    # A sentence or a row goes on in lines that begin further to the right.
    blocks = re.split(r"\n(?=\S|  (?:[-?] |Nominal|as is))|\n\s*\n", text)
    found = []
    for block in blocks:
        flat = " ".join(block.split())
        if ROW.match(flat) or (RATIO.search(flat) and re.search(NUMBER, flat)):
            found.append(flat)
    return found


def bare_ratios(text: str) -> list[str]:
    """Return those that lack their bounds, or the name of a model."""
    return [line for line in lines_of_ratios(text) if not HEADING.match(line) and not _whole(line)]


def _whole(line: str) -> bool:
    if not any(model in line for model in MODELS):
        return False
    if re.search(rf"{NUMBER} times|{NUMBER}x\b|{NUMBER} of the ANN", line):
        return re.search(BETWEEN, line) is not None
    if re.search(r"/ ANN|/ rival|\bratio\b", line):
        return re.search(rf"(?:/ ANN|/ rival|ratio):? {NUMBER} \[[^\]]*\]", line) is not None
    # A row of a table: its last number, and each that has no unit, is a ratio.
    plain = re.sub(r"\[[^\]]*\]", "[", ROW_LABEL.sub("", line))
    numbers = re.findall(rf"(?<![\w.,-])({NUMBER})(?![\w.,%])\s*(\S*)", plain)
    ratios = [after for _, after in numbers if not re.match(r"[munpf]?J\b|bits\b|bit\b", after)]
    return bool(ratios) and all(after.startswith("[") for after in ratios)


ROW_LABEL = re.compile(
    r"operations(?: only|, as is)|\+ memory(?:, reuse| )\s*\d*(?:, as is)?|(?:dense|zeros skipped|quantised twin), \d+ bits|"
    r"(?:horowitz|jouppi)\S*"
)
