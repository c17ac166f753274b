"""Print every price as a table, from the profile files; docs/prices.md is what this prints.

.venv/bin/python benchmarks/energy/price_table.py > docs/prices.md
"""

from __future__ import annotations

from knarr.hw_sim.energy import load_profile, profiles
from knarr.hw_sim.energy.prices import PriceRecord

HEAD = """# Prices

Printed by `.venv/bin/python benchmarks/energy/price_table.py` from `hw_sim/energy/profiles/*.toml`;
a test holds this page to those files. Grades: M measured, C calibrated, S simulated before silicon,
T published table, D datasheet; 2 marks a price whose primary source was not opened. A price that was
fitted to a measurement names it, and does not predict it (`make energy-validation`).
"""


def row(record: PriceRecord) -> str:
    """Return one line of the table."""
    values = [
        "-" if value is None else f"{value:g}" for value in (record.lo, record.nominal, record.hi)
    ]
    notes = [record.note, record.why_no_bounds and f"no bounds: {record.why_no_bounds}"]
    notes += [f"fitted to {', '.join(record.made_from)}" if record.made_from else ""]
    cells = [record.id, *values, record.unit, record.grade, record.source]
    cells += [record.opened, "; ".join(filter(None, notes))]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name in profiles():
        profile = load_profile(name)
        node = "" if profile.node_nm is None else f", {profile.node_nm} nm"
        parts += [
            f"## {name}: {profile.title}",
            "",
            f"{profile.technology}{node}; precision {profile.precision}, {profile.scope}, {profile.kind}.",
            "",
            "| price | low | nominal | high | unit | grade | source | opened | note |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row(record) for record in profile.prices),
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
