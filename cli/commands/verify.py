"""`knarr verify FILE.net`: a chip network on its own, or beside the graph it was lowered from, without a run around it."""

from __future__ import annotations

import io
from pathlib import Path

from knarr.cli import output as progress
from knarr.cli.commands.export import make_module
from knarr.cli.output import keep_apart, read_inputs
from knarr.cli.text.report import say_verification
from knarr.deploy import DeployError, read_net, verify, verify_network
from knarr.export import read
from knarr.files import write_atomic
from knarr.hw_sim import encode


def verify_files(
    net: Path,
    inputs: Path,
    *,
    graph: Path | None = None,
    factory: str | None = None,
    checkpoint: Path | None = None,
    labels: Path | None = None,
    dt_s: float | None = None,
    timesteps: int | None = None,
    timeout_s: float | None = None,
    picture: Path | None = None,
    json: bool,
) -> bool:
    """Simulator against Lava, and with a graph also NIR and Norse; print what was found and return whether it holds.

    Args:
        net: `.net` file.
        inputs: .npy of integers as the chip takes them, or of data as the network's coding says.
        graph: `.nir` file that `net` was lowered from.
        factory, checkpoint: the Norse module, as `make_module` takes it; with a graph only.
        labels: .npy of (samples,) classes; with a graph only.
        dt_s: time step, seconds; the network's own when left out.
        timesteps: how many, where the inputs have no time axis.
        timeout_s: limit of the Lava run, seconds.
        picture: PNG to draw.

    Raises:
        DeployError: options that do not go together, or no time step anywhere; and whatever `verify` raises.
    """
    if graph is None and any(option is not None for option in (factory, checkpoint, labels, dt_s)):
        raise DeployError(
            f"{net}: --module, --checkpoint, --labels and --dt go with --graph, the .nir file it was lowered from"
        )
    if factory is None and checkpoint is not None:
        raise DeployError(f"{checkpoint}: a checkpoint goes with --module package.module:factory")
    keep_apart(picture, net, inputs, graph, labels, checkpoint)
    network = read_net(net)
    events = encode(network.input, read_inputs(inputs), timesteps=timesteps)
    count = progress.counter("Lava steps")
    if graph is None:
        result = verify_network(
            net, events, timesteps=timesteps, timeout_s=timeout_s, progress=count
        )
    else:
        step_s = dt_s if dt_s is not None else network.dt_s
        if step_s is None:
            raise DeployError(f"{net}: names no time step; give --dt in seconds")
        result = verify(
            read(graph),
            net,
            events,
            step_s,
            module=None if factory is None else make_module(factory, checkpoint),
            labels=None if labels is None else read_inputs(labels),
            timeout_s=timeout_s,
            progress=count,
        )
    facts = result.to_json()
    if picture is not None:
        from knarr.pipeline.pictures.verification import draw

        buffer = io.BytesIO()
        draw(facts).savefig(buffer, format="png", dpi=110)
        write_atomic(picture, buffer.getvalue())
    return say_verification(facts, json=json)
