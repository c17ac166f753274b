"""Write docs/versions.md: what the two locks hold, on which the whole suite and its short form are run."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent.parent
LOCKS = {"newest": "requirements.lock", "lowest": "requirements-lowest.lock"}
PACKAGES = [
    "numpy",
    "scipy",
    "h5py",
    "nir",
    "norse",
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "numba",
    "torchmetrics",
    "matplotlib",
    "typer",
    "pydantic",
]
HEAD = """# Versions

Written by `make versions-table` from the locks. `make test` runs the whole suite on the newest versions, with the newest Python
that is found, and `make test-lowest` its short form on Python 3.11 with the lowest versions that `pyproject.toml` allows.
"""


def pinned(lock: str, package: str) -> str:
    """Return the version of a package in a lock; where Pythons differ, all of them."""
    text = (HERE / lock).read_text(encoding="utf-8")
    found = re.findall(rf"^{package}==([^ ;\\]+)", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"{lock}: {package} is not in it; run make lock")
    return ", ".join(found)


def main() -> None:
    """Write the table."""
    rows = [f"| package | {' | '.join(LOCKS)} |", "| --- | --- | --- |"]
    rows.append("| Python | 3.11 to 3.14 | 3.11 |")
    rows += [
        f"| {package} | {' | '.join(pinned(lock, package) for lock in LOCKS.values())} |"
        for package in PACKAGES
    ]
    (HERE / "docs" / "versions.md").write_text(HEAD + "\n" + "\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
