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
        table = make_table(
            f"{clips[part]} {part} clips, {bits}-bit weights", "", "right", "share", "95 % interval",
            **TITLED,
        )  # fmt: skip
        for name, text in ROWS.items():
            rate = facts[part][name]
            table.add_row(
                text,
                f"{rate['correct']:,}",
                f"{rate['share']:.1%}",
                f"{rate['lo']:.1%} .. {rate['hi']:.1%}",
            )
        show(table)
        show(f"fitted - lowered: {_points(facts[part]['gained'])}")
        show(f"fitted - graph: {_points(facts[part]['against_graph'])}")
    show("The validation clips chose the epoch, so that their share is a little too high.")
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


def _points(difference: dict[str, Any]) -> str:
    interval = ""
    if difference["lo"] is not None:
        lo, hi = 100 * difference["lo"], 100 * difference["hi"]
        interval = f", 95 % interval {lo:+.1f} .. {hi:+.1f}"
    return f"{100 * difference['value']:+.1f} points{interval}"
