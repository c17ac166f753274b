"""Norse modules in their authors' own form: what becomes of each, as the table in docs/norse_modules.md.

    .venv/bin/python benchmarks/norse_modules.py            # writes the table, half a minute
    .venv/bin/python benchmarks/norse_modules.py --print    # prints it alone

The networks are those of tests/norse_nets.py, rebuilt small from what Norse's documentation and tasks show.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="`torch.jit")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from norse_nets import NETS, made

from knarr.export import ExportError, to_nir

DOC = ROOT / "docs" / "norse_modules.md"
DT_S = 0.001
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def rows() -> list[str]:
    found, exported, decisions = [], 0, 0
    for name, net in NETS.items():
        try:
            graph = to_nir(made(name), net.shape, DT_S)
        except ExportError as error:
            refused = str(error).replace("|", "/")
            found.append(f"| {net.form} | {net.source} | refused: {refused} | |")
            continue
        certificate = json.loads(graph.metadata["certificate"])
        exported, decisions = exported + 1, decisions + certificate["decisions"]
        behind = ", ".join(certificate["left_out"]) or "-"
        compared = f"{certificate['decisions']:,} decisions, 0 different"
        found.append(f"| {net.form} | {net.source} | {compared} | {behind} |")
    total = f"{exported} of {len(NETS)} exported, {decisions:,} decisions compared, 0 different; {len(NETS) - exported} refused by name."
    head = [
        "| form | where Norse shows it | outcome | left out behind the output |",
        "|---|---|---|---|",
    ]
    return [*head, *found, "", total, ""]


def main() -> None:
    text = "\n".join(rows())
    if "--print" in sys.argv:
        print(text)
        return
    before, rest = DOC.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    DOC.write_text(f"{before}{BEGIN}{text}{END}{after}", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
