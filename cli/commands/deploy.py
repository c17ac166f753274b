"""`knarr deploy FILE.nir`, and what any .net file holds: its lowering, its rules and its place on the cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from knarr.cli import output as progress
from knarr.cli.output import json_text, keep_apart, make_console, read_inputs
from knarr.cli.text.deployment import print_lowering, print_placement, print_rules
from knarr.deploy import check, lower, place, read_net, write_net
from knarr.deploy.lowering.synapse import chip_shape
from knarr.deploy.violation import fatal
from knarr.export import ExportError, read
from knarr.export.graph.shapes import graph_input_shape
from knarr.hw_sim import InputCoding, encode


def deploy_file(
    graph_path: Path,
    out: Path,
    *,
    dt_s: float | None,
    weight_bits: int,
    input_bits: int,
    input_units: float,
    input_kind: str,
    over_time: str,
    votes: int,
    calibration: Path | None,
    timesteps: int | None,
    labels: Path | None,
    allow_approximate: bool,
) -> None:
    """Lower a .nir file and write the .net file.

    Raises:
        ExportError, DeployError, ChipError: what is wrong with file, options or samples.
    """
    keep_apart(out, graph_path, calibration, labels)
    graph = read(graph_path)
    named = graph.metadata.get("dt_s")
    step = dt_s if dt_s is not None else named
    if not isinstance(step, (float, np.floating)):
        raise ExportError(f"{graph_path}: names no time step; give --dt in seconds")
    samples = None
    if calibration is not None:
        samples = read_inputs(calibration)
        if input_kind != "events":
            sizes = chip_shape(graph_input_shape(graph))
            coding = InputCoding(sizes, input_bits, None, input_units, input_kind)  # type: ignore[arg-type]
            samples = encode(coding, samples, timesteps=timesteps)
    network = lower(
        graph,
        float(step),
        weight_bits=weight_bits,
        input_bits=input_bits,
        input_units=input_units,
        input_kind=input_kind,  # type: ignore[arg-type]
        over_time=over_time,  # type: ignore[arg-type]
        votes=votes,
        calibration=samples,
        labels=None if labels is None else read_inputs(labels),
        allow_approximate=allow_approximate,
        progress=progress.counter("layers"),
    )
    write_net(network, out)


def show_net(path: Path, chip: str, *, json: bool) -> bool:
    """Print what lowering measured, the rules and the placement; returns whether rules hold and it fits.

    Raises:
        DeployError: no netx file at all, or an unknown chip.
    """
    violations = check(path)
    if fatal(violations):
        if json:
            print(
                json_text(
                    {"file": str(path), "rules": [str(v) for v in violations], "holds": False}
                )
            )
        else:
            print_rules(path, violations, make_console())
        return False
    network = read_net(path)
    placement = place(network, chip)
    if json:
        facts: dict[str, Any] = {
            "file": str(path),
            "lowering": network.lowering,
            "rules": [str(violation) for violation in violations],
            "placement": placement.to_json(),
            "holds": placement.fits,
        }
        print(json_text(facts))
        return placement.fits
    console = make_console()
    print_lowering(network, console)
    print_placement(placement, console)
    print_rules(path, violations, console)
    return placement.fits
