"""Read, check and write `.net` files: a network of integers, and our manifest beside it.

A file is a network when no file rule finds an error in it. The manifest is an HDF5 attribute that
netx does not look at; it adds names and units, so files without one are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.netx.draft import REGISTERS, Draft, load_groups, partial_network, read_draft
from knarr.deploy.netx.file_rules import file_violations, shorten
from knarr.deploy.netx.manifest_schema import require_manifest
from knarr.deploy.rules import HARDWARE_RULES, Violation, check_network, fatal
from knarr.files import replacing, write_atomic
from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)
from knarr.hw_sim.network import Layer, register_array

MANIFEST = "knarr_manifest"
MANIFEST_FORMAT = 3
MAX_MANIFEST_BYTES = 16_000_000
NETX_KINDS = {Conv: "conv", Dense: "dense", Recurrent: "dense_rec"}
CURE = "write the file again with `knarr deploy`"
"""Nobody repairs a manifest by hand."""


def check(network_or_path: ChipNetwork | str | Path, chip: str = "loihi2") -> list[Violation]:
    """Find every broken rule of a chip.

    Args:
        network_or_path: a network, or any `.net` file: first the rules of the file, then those of
            the network in it. In a file with errors the network rules look at what can be built,
            and only errors of theirs are given.
        chip: name of the chip.

    Returns:
        The violations, empty when all rules hold.

    Raises:
        DeployError: the chip is unknown, or the file cannot be read at all: it is missing, not
            HDF5, damaged, or too large.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    if isinstance(network_or_path, ChipNetwork):
        return check_network(network_or_path)
    violations, draft, network = _examine(Path(network_or_path))
    if network is not None:
        return violations + check_network(network)
    return violations + fatal(check_network(partial_network(draft)))


def read_net(path: str | Path, *, input_bits: int | None = None) -> ChipNetwork:
    """Read a CUBA netx file, ours or not.

    Args:
        path: the file.
        input_bits: what netx is told as `input_message_bits`, and no file of another tool says:
            bits of the payloads, of either sign, that it is fed. None: 1, which are spikes.

    Raises:
        DeployError: the file is missing, not HDF5, malformed, or holds what is not supported; the
            error names the layer and the reason. Or a file of knarr says itself what it is fed.
    """
    path = Path(path)
    violations, _, network = _examine(path, input_bits)
    if network is None:
        raise DeployError(f"{path}: {_summary(fatal(violations))}")
    return network


def read_deployable(path: Path, verb: str, input_bits: int | None = None) -> ChipNetwork:
    """Read a .net file that Lava runs as it is written, whether or not hardware holds it.

    Args:
        path: The file.
        verb: What would be done with it ("simulated"), for the error.
        input_bits: As for `read_net`.

    Raises:
        DeployError: No netx file, or one that Lava would run otherwise.
    """
    network = read_net(path, input_bits=input_bits)
    broken = [one for one in fatal(check(network)) if one.rule not in HARDWARE_RULES]
    if broken:
        raise DeployError(f"{path}: not {verb}, no chip runs it: {broken[0]}")
    return network


def hardware_faults(network: ChipNetwork) -> list[Violation]:
    """Return the rules of hardware that a network breaks: it can be simulated, and not be loaded."""
    return [one for one in fatal(check_network(network)) if one.rule in HARDWARE_RULES]


def write_net(network: ChipNetwork, path: str | Path) -> None:
    """Write a network, and `<path>.json` with its manifest for people to read.

    Raises:
        DeployError: the network breaks a rule of the chip, or the file does not read back as the
            same integers.
        OSError: a file cannot be written.
    """
    path = Path(path)
    violations = check_network(network)
    if broken := fatal(violations):
        raise DeployError(f"{path.name}: not written, {_summary(broken)}")
    manifest = _manifest(network, violations)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs[MANIFEST] = json.dumps(manifest, sort_keys=True)
            _write_layers(file.create_group("layer"), network)
        if read_net(temporary) != network:
            raise DeployError(
                f"{path}: does not read back as the network that was written; this is a fault in "
                "knarr, report it"
            )
        # Before the network takes its place: the file that people look at is never the older one.
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        write_atomic(path.with_name(f"{path.name}.json"), text.encode())


def _summary(broken: list[Violation]) -> str:
    more = len(broken) - 1
    return f"{broken[0]} and {more} more" if more else str(broken[0])


# --- reading


def _examine(
    path: Path, input_bits: int | None = None
) -> tuple[list[Violation], Draft, ChipNetwork | None]:
    """Read a file and find out what is wrong with it.

    Returns:
        What the file rules found, and whether the manifest fits; the layers as far as they can be
        built; and the network, None when a violation is an error.
    """
    groups = load_groups(path)
    violations: list[Violation] = []
    manifest: Mapping[str, Any] = {}
    entries: Mapping[int, Mapping[str, Any]] = {}
    try:
        with h5py.File(path, "r") as file:
            manifest = _read_manifest(file)
        require_manifest(manifest, CURE)
        entries = _entries(manifest)
    except DeployError as error:
        manifest, entries = {}, {}
        violations.append(Violation("manifest_fits", "file", str(error)))
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        # json, h5py and a manifest of another structure raise all of these.
        message = f"its manifest cannot be read ({type(error).__name__}: {_reason(error)}); {CURE}"
        violations.append(Violation("manifest_fits", "file", message))
    if input_bits is not None:
        if "input" in manifest:
            raise DeployError(
                f"input_bits: {path} says itself that it is fed {manifest['input'].get('bits', 1)}-bit "
                "inputs; leave it out"
            )
        manifest = {**manifest, "input": {"bits": input_bits, "signed": input_bits != 1}}
    draft = read_draft(groups, entries)
    violations += file_violations(draft)
    network = None
    if not fatal(violations):
        try:
            network = _network(draft, manifest)
        except ChipError as error:
            message = " ".join(str(error).split())
            violations.append(Violation("network_is_consistent", "file", message))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            message = f"its manifest does not fit the file ({_reason(error)}); {CURE}"
            violations.append(Violation("manifest_fits", "file", message))
    return violations, draft, network


def _reason(error: Exception) -> str:
    """Return a foreign error's text, short and in one line."""
    return shorten(" ".join(str(error).split()))


def _network(draft: Draft, manifest: Mapping[str, Any]) -> ChipNetwork:
    first = draft.layers[0]
    layers = [found.layer for found in draft.synapses if found.layer is not None]
    driven = first.kind == "input" and first.neuron_group is not None
    if len(layers) < len(draft.synapses) or (driven and first.neuron is None):
        raise ChipError(
            "no rule explains why a layer cannot be built; this is a fault in knarr, report it"
        )
    # Without an input layer a file begins with a matrix, whose width says what arrives.
    shape = first.outgoing if first.kind == "input" else layers[0].weight_int.shape[1:]
    coding = manifest.get("input", {})
    readout = manifest.get("readout", {"kind": "spikes" if layers[-1].neuron.spikes else "voltage"})
    return ChipNetwork(
        tuple(layers),
        InputCoding(
            shape or (),
            coding.get("bits", 1),
            first.neuron if first.kind == "input" else None,
            float(coding.get("units", 1.0)),
            coding.get("kind", "events"),
            coding.get("signed", False),
        ),
        Readout(**readout),
        manifest.get("dt_s"),
        manifest.get("graph_hash"),
        manifest.get("lowering", {}),
    )


def _read_manifest(file: h5py.File) -> Mapping[str, Any]:
    if MANIFEST not in file.attrs:
        return {}
    content = file.attrs[MANIFEST]
    if not isinstance(content, str) or len(content) > MAX_MANIFEST_BYTES:
        raise DeployError(
            f"its manifest is no text of at most {MAX_MANIFEST_BYTES:,} bytes; {CURE}"
        )
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise DeployError(f"its manifest has another format than {MANIFEST_FORMAT}; {CURE}")
    return manifest


def _entries(manifest: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return the manifest's entries by position among the synapses, -1 for the input."""
    entries = {-1: manifest.get("input", {}), **dict(enumerate(manifest.get("layers", [])))}
    for entry in entries.values():
        for key in ("name", "neuron"):
            name = entry.get(key)
            # Names stand in messages, which have one line.
            text = isinstance(name, str) and name.isprintable() and len(name) <= 200
            if name is not None and not text:
                raise DeployError(
                    f"its manifest names a layer {shorten(name)}; names are short text, {CURE}"
                )
        scale = entry.get("units_per_volt")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise DeployError(f"its manifest has {shorten(scale)} units per volt; {CURE}")
    return entries


# --- writing; integers everywhere, since a float raises in one of Lava's children and hangs it


def _manifest(network: ChipNetwork, violations: list[Violation]) -> dict[str, Any]:
    neuron = network.input.neuron
    return {
        "format": MANIFEST_FORMAT,
        "dt_s": network.dt_s,
        "graph_hash": network.graph_hash,
        # The file itself holds the registers of input neurons.
        "input": {**asdict(network.input), "neuron": None if neuron is None else neuron.name},
        "readout": asdict(network.readout),
        "lowering": network.lowering,
        "layers": [
            {"name": layer.name, "neuron": layer.neuron.name, "units_per_volt": layer.scale}
            for layer in network.layers
        ],
        "rules": [str(violation) for violation in violations],
    }


def _write_layers(layers: h5py.Group, network: ChipNetwork) -> None:
    def new_layer(kind: str) -> h5py.Group:
        group = layers.create_group(str(len(layers)))
        group.create_dataset("type", data=np.bytes_(kind))
        return group

    group = new_layer("input")
    shape = network.input.shape
    _write_integers(group, {"shape": shape})
    if network.input.neuron is not None:
        _write_neuron(group, network.input.neuron, shape)
    for layer in network.layers:
        # An image has to be flattened, in netx's order of axes, before it meets a matrix.
        if not isinstance(layer, Conv) and len(shape) == 3:
            new_layer("flatten")
        _write_layer(new_layer(NETX_KINDS[type(layer)]), layer)
        shape = layer.output_shape


def _write_layer(group: h5py.Group, layer: Layer) -> None:
    _write_integers(group, {"shape": layer.output_shape})
    group.create_dataset("weight", data=layer.weight_int, compression="gzip")
    if layer.bias_int is not None:
        group.create_dataset("bias", data=layer.bias_int)
    if isinstance(layer, Conv):
        fields = ("stride", "padding", "dilation", "groups")
        _write_integers(group, {field: getattr(layer, field) for field in fields})
    elif isinstance(layer, Recurrent):
        group.create_dataset("weight_rec", data=layer.recurrent_int, compression="gzip")
    elif layer.delay_int is not None:
        group.create_dataset("delay", data=layer.delay_int, compression="gzip")
    _write_neuron(group, layer.neuron, layer.output_shape)


def _write_neuron(layer: h5py.Group, neuron: Neuron, shape: tuple[int, ...]) -> None:
    group = layer.create_group("neuron")
    group.create_dataset("type", data=np.bytes_("CUBA"))
    registers = {
        # The axes of netx's images are (W, H, C).
        key: register_array(register, shape).T if isinstance(register, np.ndarray) else register
        for key, register in zip(
            REGISTERS, (neuron.i_decay, neuron.v_decay, neuron.vth_int), strict=True
        )
    }
    # 1 is what netx takes for no refractory time.
    _write_integers(group, {**registers, "refDelay": 1})


def _write_integers(group: h5py.Group, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        group.create_dataset(key, data=np.asarray(value, dtype=np.int64))
