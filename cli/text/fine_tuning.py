"""The results of a fine-tuning as tables of 80 columns."""

from __future__ import annotations

from typing import Any

from knarr.cli.output import TITLED, make_table, show
from knarr.pipeline import json_text

ROWS = {
    "graph": "the graph, as the file says",
    "lowered": "lowered to integers",
    "fitted": "fitted on the integers",
}


def print_fine_tuning(facts: dict[str, Any], *, json: bool) -> bool:
    """Print what `knarr.pipeline.finetune` returns; return whether the proof holds."""
    if json:
        print(json_text(facts))
        return bool(facts["holds"])
    bits, clips = facts["weight_bits"], facts["clips"]
    for part in ("validation", "test"):
        if part not in facts:
            continue
        title = f"{clips[part]} {part} clips, {bits}-bit weights"
        if facts["measure"] == "accuracy":
            table = make_table(title, "", "right", "share", "95 % interval", **TITLED)
        else:
            table = make_table(title, "", facts["measure"], **TITLED)
        for name, text in ROWS.items():
            table.add_row(text, *_cells(facts[part][name]))
        show(table)
        for what, against in (("gained", "lowered"), ("against_graph", "graph")):
            show(f"fitted - {against}: {_difference(facts[part][what], facts['measure'])}")
    show("The validation clips chose the epoch: on other clips it does a little worse.")
    kept = "No epoch was better than the lowered network, which is kept."
    if facts["epoch"] is not None:
        kept = f"Epoch {facts['epoch']} of {facts['epochs']} is kept."
    show(kept)
    if facts["lava_samples"]:
        show(
            f"Simulator and Lava on {facts['lava_samples']} clips: {facts['mismatches']} integers differ."
        )
    if facts["silent"]:
        names = ", ".join(facts["silent"])
        show(f"Silent on these clips, so that nothing is proved: {names}. Fit longer.")
    elif not facts["holds"]:
        show("The verification does NOT hold; see `knarr verify`.")
    show(f"network: {facts['net']}", soft_wrap=True)
    return bool(facts["holds"])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "mae" in row:
        return (f"{row['mae']:.4g}",)
    return f"{row['correct']:,}", f"{row['share']:.1%}", f"{row['lo']:.1%} .. {row['hi']:.1%}"


def _difference(difference: dict[str, Any], measure: str) -> str:
    rate = measure == "accuracy"
    factor, digits, unit = (100, "+.1f", " points") if rate else (1, "+.4g", "")
    interval = ""
    if difference["lo"] is not None:
        lo, hi = (f"{factor * difference[end]:{digits}}" for end in ("lo", "hi"))
        interval = f", 95 % interval {lo} .. {hi}"
    return f"{factor * difference['value']:{digits}}{unit}{interval}"
