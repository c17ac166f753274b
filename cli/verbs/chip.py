"""Verbs that run a chip network: simulate, verify."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from knarr.cli.app import (
    CheckpointOption,
    ChipOption,
    InputBitsOption,
    InputShapeOption,
    JsonOption,
    LabelsOption,
    TimestepsOption,
    app,
    finish,
    refuse_unrelated_options,
)
from knarr.cli.errors import UsageError
from knarr.cli.files import (
    check_out,
    keep_apart,
    make_module,
    need_drawing,
    read_array,
    read_arrays,
    read_graph,
    read_labels,
    read_sizes,
    time_step,
)
from knarr.cli.output import show_progress

if TYPE_CHECKING:
    import nir
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from knarr.hw_sim import ChipNetwork, Recording

SHOWN_DECISIONS = 20
SplitName = Literal["test", "validation"]
"""Parts of a run's clips."""


@app.command(
    epilog="Example: knarr simulate student.net --data spikes.npy --out recording.npz --record output,spikes,v --picture raster.png"
)
def simulate(
    net: Annotated[Path, Argument(help="netx file, ours or not.", metavar="NET")],
    data: Annotated[
        Path,
        Option(
            # Two names of one option: samples in a file are --inputs elsewhere, those of a run --data.
            "--data",
            "--inputs",
            help=".npy file of integers, (samples, timesteps, *features), or of data as the file's "
            "coding says; or the folder of a run, for its test set.",
        ),
    ],
    out: Annotated[Path | None, Option(help="Recording to write (.npz).")] = None,
    record: Annotated[
        str | None,
        Option(help="Contents of the recording: any of output,spikes,u,v. Default: output,spikes."),
    ] = None,
    picture: Annotated[
        Path | None, Option(help="PNG to draw of one sample's spikes through all layers.")
    ] = None,
    sample: Annotated[int, Option(help="Number of the sample that --picture draws.", min=0)] = 0,
    labels: LabelsOption = None,
    split: Annotated[
        SplitName, Option(help="Clips of a run's folder: its test set, or those it validates on.")
    ] = "test",
    engine: Annotated[
        str, Option(help="Engine: auto, fast (compiled), torch (CUDA or CPU), reference or lava.")
    ] = "auto",
    threads: Annotated[
        int | None, Option(help="Largest number of threads; all cores by default.", min=1)
    ] = None,
    timesteps: TimestepsOption = None,
    input_bits: InputBitsOption = None,
    timeout_s: Annotated[
        float | None, Option("--timeout", help="Limit of a Lava run, seconds.", min=0.001)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a .net file on the chip simulator, or on Lava itself."""
    from knarr.cli.text.report import print_facts
    from knarr.deploy import hardware_faults, run_on_lava
    from knarr.hw_sim import check_inputs, check_labels, encode, save_recording
    from knarr.hw_sim import simulate as simulate_network
    from knarr.pipeline import counter, read_deployable

    # All options are checked before a network is run, which may take minutes.
    wanted = _recorded(record, out)
    _check_engine(engine, threads, timeout_s)
    if sample and picture is None:
        raise UsageError("--sample: names what --picture draws; give that too")
    check_out("--out", out)
    check_out("--picture", picture)
    keep_apart(out, net, data, labels)
    keep_apart(picture, net, data, labels, out)
    need_drawing(picture)
    if record is not None and out is None:
        raise UsageError("--record: names what is written; say where with --out")
    network = read_deployable(net, "simulated", input_bits)
    values, classes = _samples(data, labels, split)
    encoded = encode(network.input, values, timesteps=timesteps)
    # Once here, so that Lava refuses with the same words as the simulator.
    events = check_inputs(network.input, encoded, timesteps)
    if not 0 <= sample < len(events):
        raise UsageError(f"--sample: {sample}, there are 0..{len(events) - 1}")
    if classes is not None:
        outputs = math.prod(network.output_shape) // network.readout.votes
        classes = check_labels(classes, len(events), outputs)
    # Reading and coding are not the engine's time.
    started = time.perf_counter()
    if engine == "lava":
        recording = run_on_lava(
            net,
            events,
            # Lava counts nothing, so that spikes are recorded to be counted.
            record=tuple(dict.fromkeys((*wanted, "spikes"))),
            timesteps=timesteps,
            input_bits=input_bits,
            timeout_s=timeout_s,
            progress=counter(show_progress, "Lava steps"),
        )
    else:
        recording = simulate_network(
            network,
            events,
            timesteps=timesteps,
            engine=engine,  # type: ignore[arg-type]
            record=wanted,
            threads=threads,
            progress=counter(show_progress, "samples x steps"),
        )
    seconds = time.perf_counter() - started
    if out is not None:
        save_recording(recording, out)
    if picture is not None:
        _draw(network, events, recording, sample, picture, timesteps)
    decided = network.readout.decide(recording.output)
    samples, steps = recording.output.shape[:2]
    activity = _activity(network, recording)
    right = None if classes is None else int((decided == classes).sum())
    facts = {
        "engine": recording.engine,
        "samples": samples,
        "timesteps": steps,
        "readout": f"{network.readout.kind}, {network.readout.over_time} over time",
        "spikes": {name: int(counts.sum()) for name, counts in recording.event_counts.items()},
        "on_the_reference": _slow_layers(network, engine),
        "activity": activity,
        "decisions": decided.tolist(),
        "not_on_hardware": [str(one) for one in hardware_faults(network)],
        "recording": None if out is None else str(out),
        "picture": None if picture is None else str(picture),
        "seconds": round(seconds, 4),
        "samples_per_second": round(samples / seconds, 2),
    }
    if right is not None:
        facts["right"] = right
    if not json:
        # A person reads percent and a few digits, and nothing of what was not asked for.
        facts |= {
            "activity": {name: f"{rate:.2%}" for name, rate in activity.items()},
            "decisions": _shortened(decided),
            "seconds": f"{seconds:.3g}",
            "samples_per_second": f"{samples / seconds:,.4g}",
        }
        if right is not None:
            facts["right"] = f"{right} of {samples}"
        # A machine finds the same names whatever was asked for.
        facts = {name: value for name, value in facts.items() if value not in (None, {}, [])}
    print_facts(facts, json=json)


def _recorded(record: str | None, out: Path | None) -> tuple[str, ...]:
    from knarr.hw_sim import RECORDABLE

    # Where nothing is written, the output is all that the decisions need.
    if record is None:
        return ("output", "spikes") if out is not None else ("output",)
    names = tuple(name.strip() for name in record.split(","))
    unknown = [name for name in names if name not in RECORDABLE]
    if unknown:
        raise UsageError(f"--record: unknown {unknown}, choose from {', '.join(RECORDABLE)}")
    return names


def _check_engine(engine: str, threads: int | None, timeout_s: float | None) -> None:
    from knarr.hw_sim import ENGINES

    if engine not in (*ENGINES, "lava"):
        raise UsageError(
            f"--engine: '{engine}' does not exist, choose {', '.join(ENGINES)} or lava"
        )
    if engine == "lava" and threads is not None:
        raise UsageError(
            "--threads: goes with the simulator's engines, Lava starts processes of its own"
        )
    if engine != "lava" and timeout_s is not None:
        raise UsageError("--timeout: goes with --engine lava, the simulator stops at Ctrl-C")


def _samples(
    data: Path, labels: Path | None, split: SplitName
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return the inputs, and the class of each where one is known."""
    classes = read_labels(labels)
    if not data.is_dir():
        # A file knows no splits.
        if split != "test":
            raise UsageError(
                f"--split: {split} of a run; {data} is a file, give a run folder as --data"
            )
        return read_array(data), classes
    from knarr.pipeline import reopen

    run = reopen(data, on_progress=show_progress)
    from knarr.pipeline import chip_samples  # behind a wrong path's answer: it loads torch

    inputs, its_labels = chip_samples(run, split)
    return inputs, its_labels if classes is None else classes


def _slow_layers(network: ChipNetwork, engine: str) -> dict[str, str]:
    """Return the layers that a fast engine leaves to the reference, and why: they take a thousand
    times as long.
    """
    from knarr.hw_sim import choose_engine, laid_out_layers, plan_layers

    if engine in ("lava", "reference"):
        return {}
    chosen = choose_engine(engine)
    if chosen.name == "reference":
        return {}
    why = laid_out_layers(network, chosen)
    carriers = [carrier.name for carrier, _ in plan_layers(network, chosen)]
    return {
        layer.name: reason
        for layer, reason, carrier in zip(network.layers, why, carriers, strict=True)
        if carrier == "reference"
    }


def _activity(network: ChipNetwork, recording: Recording) -> dict[str, float]:
    """Return the spikes per neuron and step of every layer."""
    neurons = {layer.name: math.prod(layer.output_shape) for layer in network.layers}
    # Inputs are counted too, but are no layer of neurons.
    return {
        name: round(float(counts.mean()) / neurons[name], 6)
        for name, counts in recording.event_counts.items()
        if name in neurons
    }


def _shortened(decided: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(str(int(decision)) for decision in decided[:SHOWN_DECISIONS])
    if len(decided) <= SHOWN_DECISIONS:
        return shown
    return f"{shown}, ... ({len(decided):,} in all: --json)"


def _draw(
    network: ChipNetwork,
    events: npt.NDArray[Any],
    recording: Recording,
    sample: int,
    picture: Path,
    timesteps: int | None,
) -> None:
    from knarr.hw_sim import simulate as simulate_network
    from knarr.pipeline import draw_raster, write_picture

    one = events[sample : sample + 1]
    if recording.spikes:
        spikes = {name: array[sample] for name, array in recording.spikes.items()}
    else:  # of this sample alone, whatever the others would need
        again = simulate_network(network, one, timesteps=timesteps, record=("spikes",))
        spikes = {name: array[0] for name, array in again.spikes.items()}
    # Layers that are read out never fire, and would be empty images.
    silent = {layer.name for layer in network.layers if not layer.neuron.spikes}
    spikes = {name: values for name, values in spikes.items() if name not in silent}
    # Inputs of a layer with neurons are biases, no spikes.
    if network.input.neuron is None:
        spikes = {"input": one[0], **spikes}
    # Outputs that spike are drawn as a layer already.
    readout = recording.output[sample] if network.readout.kind == "voltage" else None
    title = f"Sample {sample} on the chip"
    write_picture(picture, draw_raster(spikes, readout, network.dt_s, title))


@app.command(
    epilog="Example: knarr verify runs/nmnist --samples 20; knarr verify student.nir --module mystudent:build; "
    "knarr verify theirs.nir --inputs x.npy --expected spikes.npy; "
    "knarr verify student.net --graph student.nir --inputs spikes.npy"
)
def verify(
    context: typer.Context,
    source: Annotated[
        Path,
        Argument(help="Folder of a run, a .nir or a .net file.", metavar="RUN|FILE.nir|FILE.net"),
    ],
    samples: Annotated[
        int | None, Option(help="Number of test samples to run on Lava (RUN).", min=1)
    ] = None,
    module: Annotated[
        str | None,
        Option(
            help="package.module:factory of a module to compare with (FILE.nir; FILE.net with --graph)."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    graph: Annotated[
        Path | None, Option(help=".nir file that the network was lowered from (FILE.net).")
    ] = None,
    inputs: Annotated[
        Path | None, Option(help=".npy file of samples; with FILE.net they run on Lava as well.")
    ] = None,
    expected: Annotated[
        Path | None,
        Option(
            help="What your own tool computed on --inputs: .npy of the output's spikes, or .npz with one array "
            "for each node (FILE.nir)."
        ),
    ] = None,
    input_shape: InputShapeOption = None,
    labels: LabelsOption = None,
    timesteps: TimestepsOption = None,
    input_bits: InputBitsOption = None,
    dt_s: Annotated[
        float | None,
        Option("--dt", help="Time step, seconds; the certificate's when left out (FILE.nir)."),
    ] = None,
    timeout_s: Annotated[
        float | None,
        Option("--timeout", help="Limit of a Lava run, seconds (FILE.net).", min=0.001),
    ] = None,
    picture: Annotated[
        Path | None, Option(help="PNG to draw of where the stages part (FILE.net with --inputs).")
    ] = None,
    chip: ChipOption = "loihi2",
    json: JsonOption = False,
) -> None:
    """Compare Norse, NIR, the chip simulator and Lava layer by layer, or check one file.

    The exit code is 1 when they differ or the file breaks a rule. A FILE.net without --inputs is checked against the chip's rules and placed on its cores.
    """
    from knarr import pipeline
    from knarr.cli.text.deployment import print_net
    from knarr.cli.text.verification import print_verification, print_verification_file

    if source.suffix == ".nir" and not source.is_dir():
        allowed = {
            "module",
            "checkpoint",
            "inputs",
            "expected",
            "labels",
            "input_shape",
            "dt_s",
            "picture",
        }
        refuse_unrelated_options(context, "a .nir file", allowed)
        if expected is not None:
            result = _compare_expected(
                source, module, checkpoint, inputs, expected, labels, input_shape, dt_s, picture
            )
            finish(print_verification(result, json=json))
            return
        for option, path in (("--labels", labels), ("--picture", picture)):
            if path is not None:
                raise UsageError(f"{option}: goes with --expected for a .nir file")
        shape = None if input_shape is None else read_sizes(input_shape)
        finish(_verify_graph(source, module, checkpoint, inputs, dt_s, shape, json=json))
    # Anything but a file of ours is taken for a run, so that a wrong path is answered as one.
    elif source.suffix != ".net" or source.is_dir():
        refuse_unrelated_options(context, "a run", {"samples"})
        run = pipeline.reopen(source, on_progress=show_progress)
        # A user who asks for a verification wants it done now, not read from the last time.
        pipeline.verify(run, samples=samples, again=True)
        finish(print_verification_file(source / pipeline.VERIFICATION, json=json))
    else:
        # An option that no .net file takes is refused before one that needs --inputs.
        refuse_unrelated_options(context, "a .net file", _OF_NET)
        if inputs is None:
            refuse_unrelated_options(context, "a .net file without --inputs", {"chip"})
            finish(print_net(source, chip, json=json))
            return
        result = _verify_net(
            source,
            inputs,
            graph,
            module,
            checkpoint,
            labels,
            dt_s,
            timesteps,
            timeout_s,
            picture,
            expected,
            input_shape,
            input_bits,
        )
        finish(print_verification(result, json=json))


_OF_NET = {
    "chip",
    "module",
    "checkpoint",
    "graph",
    "inputs",
    "labels",
    "timesteps",
    "dt_s",
    "timeout_s",
    "picture",
    "expected",
    "input_shape",
    "input_bits",
}


def _verify_net(
    net: Path,
    inputs: Path,
    graph: Path | None,
    factory: str | None,
    checkpoint: Path | None,
    labels: Path | None,
    dt_s: float | None,
    timesteps: int | None,
    timeout_s: float | None,
    picture: Path | None,
    expected: Path | None,
    input_shape: str | None,
    input_bits: int | None,
) -> dict[str, Any]:
    """Compare the simulator with Lava, and with a graph also NIR and Norse."""
    from knarr.deploy import read_net, verify_network
    from knarr.deploy import verify as verify_stages
    from knarr.hw_sim import encode
    from knarr.pipeline import counter, write_picture

    of_graph = (factory, checkpoint, labels, dt_s, expected, input_shape)
    if graph is None and any(option is not None for option in of_graph):
        raise UsageError(
            f"{net}: --module, --checkpoint, --labels, --expected, --input-shape and --dt go with --graph, "
            "the .nir file it was lowered from"
        )
    if factory is None and checkpoint is not None:
        raise UsageError(f"{checkpoint}: a checkpoint goes with --module package.module:factory")
    if graph is not None and input_bits is not None:
        raise UsageError(
            "--input-bits: of a file that was lowered from no graph; leave --graph out"
        )
    check_out("--picture", picture)
    keep_apart(picture, net, inputs, graph, labels, checkpoint, expected)
    need_drawing(picture)
    network = read_net(net, input_bits=input_bits)
    events = encode(network.input, read_array(inputs), timesteps=timesteps)
    show = counter(show_progress, "Lava steps")
    if graph is None:
        result = verify_network(
            net,
            events,
            timesteps=timesteps,
            input_bits=input_bits,
            timeout_s=timeout_s,
            progress=show,
        )
    else:
        lowered_from = read_graph(graph, input_shape)
        # A file of another tool may name no time step.
        step_s = time_step(network.dt_s, dt_s, net, lowered_from)
        result = verify_stages(
            lowered_from,
            net,
            events,
            step_s,
            expected=None if expected is None else read_arrays(expected),
            module=_live(factory, checkpoint, lowered_from, step_s),
            labels=read_labels(labels),
            timeout_s=timeout_s,
            progress=show,
        )
    facts = result.to_json()
    if picture is not None:
        from knarr.pipeline import draw_verification

        write_picture(picture, draw_verification(facts))
    return facts


def _compare_expected(
    path: Path,
    factory: str | None,
    checkpoint: Path | None,
    samples: Path | None,
    expected: Path,
    labels: Path | None,
    input_shape: str | None,
    dt_s: float | None,
    picture: Path | None,
) -> dict[str, Any]:
    """Compare a .nir file with what its own tool computed, layer by layer."""
    from knarr.deploy import verify as verify_stages

    if samples is None:
        raise UsageError(f"{expected}: was computed on some inputs; give them with --inputs")
    if factory is None and checkpoint is not None:
        raise UsageError(f"{checkpoint}: a checkpoint goes with --module package.module:factory")
    check_out("--picture", picture)
    keep_apart(picture, path, samples, expected, labels, checkpoint)
    need_drawing(picture)
    graph = read_graph(path, input_shape)
    step_s = time_step(graph.metadata.get("dt_s"), dt_s, path, graph)
    facts = verify_stages(
        graph,
        None,
        read_array(samples),
        step_s,
        expected=read_arrays(expected),
        module=_live(factory, checkpoint, graph, step_s),
        labels=read_labels(labels),
    ).to_json()
    if picture is not None:
        from knarr.pipeline import draw_verification, write_picture

        write_picture(picture, draw_verification(facts))
    return facts


def _live(
    factory: str | None, checkpoint: Path | None, graph: nir.NIRGraph, dt_s: float
) -> nn.Module | None:
    """Return the module that a graph is compared with, where one is named; its code runs."""
    from knarr.export import graph_input_shape

    if factory is None:
        return None
    return make_module(factory, checkpoint, graph_input_shape(graph), dt_s)


def _verify_graph(
    path: Path,
    factory: str | None,
    checkpoint: Path | None,
    samples: Path | None,
    dt_s: float | None,
    input_shape: tuple[int, ...] | None,
    *,
    json: bool,
) -> bool:
    """Print what a .nir file holds, and return whether it is proved to be what was certified.

    Without a module the spikes that the certificate promises on its replay inputs are stepped
    again. With one, the graph is compared with the live module, spike for spike.
    """
    from knarr.cli.text.report import print_facts
    from knarr.cli.text.verification import describe_nodes
    from knarr.export import (
        FILLED,
        CertificateError,
        certificate_beside,
        certify,
        graph_hash,
        graph_input_shape,
        proposed_steps,
        read,
        replay_inputs,
        replay_sha256,
    )

    if factory is None and (checkpoint is not None or samples is not None):
        raise UsageError(
            "--checkpoint goes with --module, --inputs with --module or --expected; without them the certificate is "
            "replayed"
        )
    graph = read(path, input_shape)
    facts: dict[str, Any] = {
        "file": str(path),
        "nodes": describe_nodes(graph),
        "graph_hash": graph_hash(graph),
    }
    filled = str(graph.metadata.get(FILLED, ""))
    if filled:
        facts["filled_in"] = filled.splitlines()
    certificate = certificate_beside(path)
    named = graph.metadata.get("dt_s") if certificate is None else certificate.dt_s
    holds, reason = False, ""
    if factory is not None:
        step_s = time_step(named, dt_s, path, graph)
        shape = graph_input_shape(graph)
        live = make_module(factory, checkpoint, shape, step_s)
        inputs = replay_inputs(shape) if samples is None else read_array(samples)
        facts["compared_with"] = factory
        try:
            proof = certify(live, graph, inputs, step_s)
        except CertificateError as error:
            facts["first_difference"] = str(error)
            reason = f"the graph does not do what {factory} does"
        else:
            facts |= {"decisions": proof.decisions, "differing": 0, "spikes": proof.spikes}
            facts["margin_v"], holds = proof.margin_v, True
    elif certificate is None:
        facts["certificate"] = f"none beside it ({path.name}.json)"
        step = named if dt_s is None else dt_s
        facts |= _uncertified(graph, step)
        if not isinstance(step, float):
            facts["step"] = [str(one) for one in proposed_steps(graph)] or ["not known"]
        reason = "there is nothing to compare the graph with"
    elif dt_s is not None and not math.isclose(dt_s, certificate.dt_s, rel_tol=1e-9):
        raise UsageError(
            f"--dt: {dt_s:g}, but the graph was certified at steps of {certificate.dt_s:g} s; leave it out"
        )
    elif certificate.graph_hash != graph_hash(graph):
        reason = "the certificate is of another graph: its hash differs; export the module again"
        facts["certificate"] = "of another graph: its hash differs; export the module again"
    else:
        from knarr.export import step_nir  # loads torch, behind a wrong file's answer

        trace = step_nir(graph, replay_inputs(graph_input_shape(graph)), certificate.dt_s)
        # Spikes of seeded inputs: the same on every machine, or its float arithmetic differs.
        holds = replay_sha256(trace) == certificate.replay_sha256
        verdict = "as certified"
        if not holds:
            verdict = "not those that were certified: this machine steps the graph otherwise"
            reason = f"its spikes are {verdict}"
        spikes = sum(int(fired.sum()) for fired in trace.spikes.values())
        facts |= {
            "certificate": "of this graph",
            "certified_decisions": certificate.decisions,
            "margin_v": certificate.margin_v,
            "rewrites": certificate.rewrites,
            "replay": f"{spikes:,} spikes, {verdict}",
        }
    facts["holds"] = holds
    if not holds:
        facts["reason"] = reason
    print_facts(facts, json=json)
    return holds


def _uncertified(graph: nir.NIRGraph, step: object) -> dict[str, list[str]]:
    """Return what a graph without a certificate shows, and what nobody can know from its file."""
    from knarr.export import ExportError, graph_input_shape, lost_in_file, replay_inputs, step_nir

    known = ["it is a NIR graph whose shapes fit and whose numbers are finite"]
    unknown = [
        (
            "whether it does what the network does that it came from: give --inputs and --expected, the spikes that "
            "your tool computed, or --module"
        )
    ]
    if isinstance(step, float):
        try:
            trace = step_nir(graph, replay_inputs(graph_input_shape(graph)), step)
        except ExportError as error:
            unknown.append(f"what it does at steps of {step:g} s: {error}")
        else:
            counts = (f"{name} {int(fired.sum()):,}" for name, fired in trace.spikes.items())
            known.append(
                f"at steps of {step:g} s it runs; spikes on seeded inputs: {', '.join(counts) or 'none'}"
            )
        unknown += [f"whether this matters: {line}" for line in lost_in_file(graph, step)]
    else:
        unknown.append("its time step, which the file does not name: give --dt")
    return {"known": known, "unknown": unknown}
