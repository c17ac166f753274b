"""A chip network as tables of 100 columns: what lowering did, its rules, and where it will lie."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from rich.text import Text

from knarr.cli.output import TITLED, make_table, show, show_indented
from knarr.deploy import Placement, Violation, check, fatal, place, read_net, table
from knarr.hw_sim import TRAINED, ChipNetwork
from knarr.pipeline import json_text


def print_net(path: Path, chip: str, *, json: bool) -> bool:
    """Print what lowering measured, the rules and the placement of a .net file.

    Returns:
        Whether the rules hold and the network fits.

    Raises:
        DeployError: No netx file at all, or an unknown chip.
    """
    violations = check(path)
    rules = [str(violation) for violation in violations]
    # A file that breaks a rule may not even be read.
    if fatal(violations):
        if json:
            print(json_text({"file": str(path), "rules": rules, "holds": False}))
        else:
            _print_rules(path, violations)
        return False
    network = read_net(path)
    placement = place(network, chip)
    if json:
        facts = {
            "file": str(path),
            "lowering": network.lowering,
            "rules": rules,
            "placement": placement.to_json(),
            "holds": placement.fits,
        }
        print(json_text(facts))
    else:
        _print_lowering(network)
        _print_placement(placement)
        _print_relays(network)
        _print_rules(path, violations)
    return placement.fits


def _print_lowering(network: ChipNetwork) -> None:
    """Print per layer what lowering measured; nothing for a file that was not lowered here."""
    notes = network.lowering
    if not notes:
        return
    bits = f"{notes['weight_bits']}-bit weights"
    # The fit has changed the weights since lowering measured them.
    if TRAINED in notes:
        show(f"{bits}, fitted in the chip's arithmetic after lowering")
        return
    measured = notes["calibration"]
    columns = ["weight\nerror", "clip", "sum\nused"]
    title = "scales from the weights alone, nothing measured"
    if measured:
        samples = f"{measured['samples']} calibration samples of {measured['timesteps']} steps"
        title = f"float against chip on {samples}"
        columns += ["v\nused", "float\nspikes", "chip\nspikes", "rate\nerror", "differ"]
        columns += ["first:\nsample,\nstep", "same\nclass"]
        columns += ["right"] if "correct_chip" in measured else []
    page = make_table(
        f"{bits}; {title}",
        "layer",
        *columns,
        fold=("layer",),
        collapse_padding=True,
        pad_edge=False,
        **TITLED,
    )
    for layer in notes["layers"]:
        page.add_row(layer["name"], *_cells(layer, measured))
    show(page)
    if measured:
        _print_classes(measured)
    for kind in ("rewrites", "approximations", "rounding", "folded", "lost"):
        # Files of older versions have no notes of a later kind.
        show_indented(f"{kind.removesuffix('s')}: {line}" for line in notes.get(kind, ()))
    if notes.get("lost"):
        show(
            "lost: what the tool that this graph looks like does and its file does not say. "
            "`knarr verify FILE.nir --inputs --expected` shows whether it matters, and "
            "`knarr finetune FILE.nir` fits the network as the chip runs it."
        )


def _cells(layer: dict[str, Any], measured: dict[str, Any] | None) -> list[str]:
    cells = [f"{layer['weight_error']:.2%}", f"{layer['weights_clipped']:,}"]
    if not measured:
        # Without samples only the largest sum that could occur is known.
        return [*cells, f"at most {layer['sum_bound'] / layer['sum_limit']:.0%}"]
    cells.append(f"{layer['sum_peak'] / layer['sum_limit']:.0%}")
    cells.append(f"{layer['v_peak'] / layer['state_limit']:.0%}")
    if "decisions" in layer:
        first, error = layer["first_divergence"], layer["rate_error"]
        cells += [f"{layer['spikes_float']:,}", f"{layer['spikes_chip']:,}"]
        cells.append("" if error is None else f"{error:.2%}")
        cells.append(f"{layer['mismatches'] / layer['decisions']:.3%}")
        cells.append("" if first is None else f"{first['sample']}, {first['timestep']}")
    else:
        # A readout never fires: how far its volts are off stands for the rates.
        volts = layer["volts_float"]
        off = layer["volts_off"] / volts if volts else 0.0
        cells += ["(volts)", "", f"{off:.2%}", "", ""]
    samples = measured["samples"]
    cells.append(f"{layer['classes_kept']}/{samples}")
    if "correct_chip" in measured:
        cells.append(f"{layer['correct']}/{samples}")
    return cells


def _print_classes(measured: dict[str, Any]) -> None:
    kept = f"{measured['classes_kept']} of {measured['samples']} calibration samples"
    right = ""
    if "correct_chip" in measured:
        right = f"; right are float {measured['correct_float']}, chip {measured['correct_chip']}"
    show(
        f"Float and chip decide alike on {kept}{right}. clip: weights beyond the grid; "
        "used: of the register, at most; same class: with the chip up to this layer and "
        "floats behind it."
    )


def _print_placement(placement: Placement) -> None:
    """Print cores, axons and synapse memory per layer, and whether the network fits."""
    header, rows = table(placement)
    title = f"placement on {placement.chip}"
    page = make_table(title, *header, fold=header[:1], **TITLED)
    for row in rows:
        # The last row sums the others.
        if row[0] == "all":
            page.add_section()
        page.add_row(*row)
    show(page)
    # Problems first, for they say why it does not fit.
    notes = (f"layer '{layer.name}': {layer.note}" for layer in placement.layers if layer.note)
    show_indented((*placement.problems, *placement.warnings, *notes))
    show("It fits." if placement.fits else "It does NOT fit.")


def _print_relays(network: ChipNetwork) -> None:
    """Print how many of the placed neurons only hand spikes on; nothing where none does."""
    relays = network.relay_neurons
    if relays:
        neurons = sum(prod(layer.output_shape) for layer in network.layers)
        each = ", ".join(f"{n:,} in '{name}'" for name, n in relays.items())
        show(
            f"{sum(relays.values()):,} of {neurons:,} neurons are relay neurons, which hand on what "
            f"layers behind the next one hear: {each}."
        )


def _print_rules(path: Path, violations: list[Violation]) -> None:
    """Print every broken rule, a line each."""
    show_indented(violations)
    errors = len(fatal(violations))
    verdict = f"keeps the rules{f', {len(violations)} warnings' if violations else ''}"
    if errors:
        verdict = f"{errors} rules broken"
    show(Text(f"{path}: {verdict}."))
