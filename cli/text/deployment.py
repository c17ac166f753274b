"""What lowering did and where the network will lie, as tables of 100 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from knarr.cli.output import make_console
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
    facts: dict[str, Any] = {"file": str(path), "rules": [str(each) for each in violations]}
    console = make_console()
    if fatal(violations):
        if json:
            print(json_text({**facts, "holds": False}))
        else:
            _print_rules(path, violations, console)
        return False
    network = read_net(path)
    placement = place(network, chip)
    if json:
        facts |= {"placement": placement.to_json(), "holds": placement.fits}
        print(json_text({"file": facts.pop("file"), "lowering": network.lowering, **facts}))
        return placement.fits
    _print_lowering(network, console)
    _print_placement(placement, console)
    _print_rules(path, violations, console)
    return placement.fits


def _print_lowering(network: ChipNetwork, console: Console) -> None:
    """Table per layer of what lowering measured; nothing for a file that was not lowered here, a line for one that was fitted on."""
    notes = network.lowering
    if not notes:
        return
    if TRAINED in notes:
        console.print(
            f"{notes['weight_bits']}-bit weights, fitted in the chip's arithmetic after lowering"
        )
        return
    measured = notes["calibration"]
    title = f"{notes['weight_bits']}-bit weights; " + (
        f"float against chip on {measured['samples']} calibration samples of {measured['timesteps']} steps"
        if measured
        else "scales from the weights alone, nothing measured"
    )
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("layer", overflow="fold")
    columns = ["weight\nerror", "clip", "sum\nused"]
    if measured:
        columns += ["v\nused", "float\nspikes", "chip\nspikes", "rate\nerror", "differ"]
        columns += ["first:\nsample,\nstep", "same\nclass"] + (
            ["right"] if "correct_chip" in measured else []
        )
    for column in columns:
        table.add_column(column, justify="right")
    for layer in notes["layers"]:
        table.add_row(layer["name"], *_cells(layer, measured))
    console.print(table)
    if measured:
        _print_classes(measured, console)
    for kind in ("rewrites", "approximations", "rounding", "folded"):
        for line in notes[kind]:
            console.print(Padding(Text(f"{kind.removesuffix('s')}: {line}"), (0, 0, 0, 2)))


def _cells(layer: dict[str, Any], measured: dict[str, Any] | None) -> list[str]:
    cells = [f"{layer['weight_error']:.2%}", f"{layer['weights_clipped']:,}"]
    if not measured:
        return [*cells, f"at most {layer['sum_bound'] / layer['sum_limit']:.0%}"]
    cells += [
        f"{layer['sum_peak'] / layer['sum_limit']:.0%}",
        f"{layer['v_peak'] / layer['state_limit']:.0%}",
    ]
    if "decisions" in layer:
        first, error = layer["first_divergence"], layer["rate_error"]
        cells += [
            f"{layer['spikes_float']:,}",
            f"{layer['spikes_chip']:,}",
            "" if error is None else f"{error:.2%}",
            f"{layer['mismatches'] / layer['decisions']:.3%}",
            "" if first is None else f"{first['sample']}, {first['timestep']}",
        ]
    else:
        off = layer["volts_off"] / layer["volts_float"] if layer["volts_float"] else 0.0
        cells += ["(volts)", "", f"{off:.2%}", "", ""]
    cells.append(f"{layer['classes_kept']}/{measured['samples']}")
    if "correct_chip" in measured:
        cells.append(f"{layer['correct']}/{measured['samples']}")
    return cells


def _print_classes(measured: dict[str, Any], console: Console) -> None:
    samples = measured["samples"]
    text = f"Float and chip decide alike on {measured['classes_kept']} of {samples} calibration samples"
    if "correct_chip" in measured:
        text += f"; right are float {measured['correct_float']}, chip {measured['correct_chip']}"
    console.print(
        text
        + ". clip: weights beyond the grid; used: of the register, at most; same class: with the chip up to this layer and "
        "floats behind it."
    )


def _print_placement(placement: Placement, console: Console) -> None:
    """One page: cores, axons and synapse memory per layer, and whether it fits."""
    header, rows = table(placement)
    page = Table(
        title=f"placement on {placement.chip}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
    )
    page.add_column(header[0], overflow="fold")
    for column in header[1:]:
        page.add_column(column, justify="right")
    for row in rows:
        if row[0] == "all":
            page.add_section()
        page.add_row(*row)
    console.print(page)
    for line in (
        *placement.problems,
        *placement.warnings,
        *(f"layer '{layer.name}': {layer.note}" for layer in placement.layers if layer.note),
    ):
        console.print(Padding(Text(str(line)), (0, 0, 0, 2)))
    console.print("It fits." if placement.fits else "It does NOT fit.")


def _print_rules(path: Path, violations: list[Violation], console: Console) -> None:
    """Every broken rule, a line each."""
    errors = len(fatal(violations))
    for violation in violations:
        console.print(Padding(Text(str(violation)), (0, 0, 0, 2)))
    verdict = (
        f"{errors} rules broken"
        if errors
        else f"keeps the rules{f', {len(violations)} warnings' if violations else ''}"
    )
    console.print(Text(f"{path}: {verdict}."))
