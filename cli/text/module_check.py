"""The answer of `knarr check` as a page of 80 columns."""

from __future__ import annotations

from knarr.cli.output import TITLED, make_table, show, show_indented
from knarr.deploy import ModuleCheck, fatal
from knarr.pipeline import json_text

WIDTH = 80


def print_check(source: str, shape: tuple[int, ...], checked: ModuleCheck, *, json: bool) -> bool:
    """Print what was found about a module.

    Args:
        source: The module's name.
        shape: Sizes of its input.
        checked: What was found.
        json: Print one JSON document.

    Returns:
        Whether it will go to the chip.
    """
    if json:
        print(json_text({"module": source, "input_shape": shape, **checked.to_json()}))
        return checked.holds
    sizes = "x".join(map(str, shape))
    page = make_table(f"{source}, inputs {sizes}", "step", "", "", left=3, width=WIDTH, **TITLED)
    for step, verdict, words in _verdicts(checked):
        page.add_row(step, verdict, words)
    show(page)
    _print_layers(checked)
    show_indented((*checked.not_exported, *checked.not_lowered), width=WIDTH)
    show_indented((f"only nearly: {line}" for line in checked.approximations), width=WIDTH)
    if checked.approximations and not checked.approximate:
        show_indented(["--allow-approximate takes these, here and in knarr deploy"], width=WIDTH)
    show_indented(checked.violations, width=WIDTH)
    if checked.placement is not None:
        show_indented((*checked.placement.problems, *checked.placement.warnings), width=WIDTH)
    show_indented(_notes(checked), width=WIDTH)
    show("It will go to the chip." if checked.holds else "It will NOT go to the chip as it is.")
    return checked.holds


def _verdicts(checked: ModuleCheck) -> list[tuple[str, str, str]]:
    """Return one row per step: whether it works, and in how many words."""
    if checked.not_exported:
        return [("export", "no", f"{_count(len(checked.not_exported), 'reason')} below")]
    equal = f"{len(checked.nodes)} nodes; {checked.decisions:,} decisions equal"
    rows = [("export", "yes", equal)]
    if checked.placement is None:
        return [*rows, ("lower", "no", f"{_count(len(checked.not_lowered), 'reason')} below")]
    placement = checked.placement
    layers = sum(layer.name != "input" for layer in placement.layers)
    near = len(checked.approximations)
    verdict = "yes" if checked.approximate or not near else "no"
    words = f"; {near} of them only nearly, see below" if near else ""
    rows.append(("lower", verdict, f"{_count(layers, 'layer')} of integers{words}"))
    broken = fatal(checked.violations)
    kept = "all kept" if not checked.violations else f"{len(checked.violations)} below"
    rows.append(("rules", "no" if broken else "yes", kept))
    cores = (
        f"{_count(placement.cores, 'core')}, {_count(placement.chips, 'chip')} of {placement.chip}"
    )
    rows.append(("fit", "yes" if placement.fits else "no", cores))
    return rows


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _print_layers(checked: ModuleCheck) -> None:
    """Print the layers on the chip, where there are any; the graph's nodes elsewhere."""
    if checked.placement is not None:
        layers = checked.placement.layers
        # Where each layer takes one core, no limit decided how many it takes.
        decided = any(layer.decided_by for layer in layers)
        headings = ("neurons", "synapses", "cores", *(("cores by",) if decided else ()))
        page = make_table(
            "layers on the chip", "layer", *headings, fold=("layer",), width=WIDTH, **TITLED
        )
        for layer in layers:
            counts = (f"{n:,}" for n in (layer.neurons, layer.synapses, layer.cores))
            by = ((layer.decided_by or "").replace("_", " "),) if decided else ()
            page.add_row(layer.name, *counts, *by)
        show(page)
    elif checked.nodes:
        page = make_table(
            "nodes of the graph", "node", "kind", left=2, fold=("node",), width=WIDTH, **TITLED
        )
        for name, kind in checked.nodes.items():
            page.add_row(name, kind)
        show(page)


def _notes(checked: ModuleCheck) -> list[str]:
    notes = [
        f"node '{name}': silent on random inputs, so nothing is proved about its spikes; trained "
        "weights, or your own data at export, will tell"
        for name in checked.silent
    ]
    notes += [f"rewritten, '{path or 'module'}': {what}" for path, what in checked.rewrites]
    if checked.left_out:
        what = ", ".join(checked.left_out)
        notes.append(f"behind the output, and not in the graph: {what}")
    return notes
