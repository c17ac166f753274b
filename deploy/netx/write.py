"""Writer of `.net` files: the HDF5 that netx loads, with our manifest as an attribute netx does not look at.

Layout (lava-dl 0.6.0 `netx/hdf5.py`): /layer/<i>/ with type, shape, weight, stride, padding, dilation, groups, bias and
neuron/{type, iDecay, vDecay, vThMant}; integers everywhere, since a float raises in one of Lava's children and hangs it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.netx.read import MANIFEST, MANIFEST_FORMAT, read_net
from knarr.deploy.rules import check
from knarr.deploy.violation import Violation, fatal
from knarr.files import replacing, write_atomic
from knarr.hw_sim import ChipNetwork, Conv, Dense, InputCoding, Neuron, Recurrent
from knarr.hw_sim.network import Layer


def write_net(network: ChipNetwork, path: Path) -> None:
    """Write a network, and `<path>.json` with its manifest for people to read.

    Raises:
        DeployError: a rule of the chip is broken, or the file does not read back as the same integers.
    """
    violations = check(network)
    broken = fatal(violations)
    if broken:
        raise DeployError(
            f"{path.name}: not written, {broken[0]}"
            + (f" and {len(broken) - 1} more" if broken[1:] else "")
        )
    manifest = _manifest(network, violations)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs[MANIFEST] = json.dumps(manifest, sort_keys=True)
            layers = file.create_group("layer")
            _write_input(layers.create_group("0"), network.input)
            shape = network.input.shape
            for layer in network.layers:
                if not isinstance(layer, Conv) and len(shape) == 3:
                    layers.create_group(str(len(layers))).create_dataset(
                        "type", data=np.bytes_("flatten")
                    )
                _write_layer(layers.create_group(str(len(layers))), layer)
                shape = layer.output_shape
        if read_net(temporary) != network:
            raise DeployError(
                f"{path}: does not read back as the network that was written; this is a fault in knarr, report it"
            )
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        write_atomic(path.with_name(f"{path.name}.json"), text.encode())


def _manifest(network: ChipNetwork, violations: list[Violation]) -> dict[str, Any]:
    return {
        "format": MANIFEST_FORMAT,
        "dt_s": network.dt_s,
        "graph_hash": network.graph_hash,
        "input": {
            "shape": list(network.input.shape),
            "bits": network.input.bits,
            "units": network.input.units,
            "kind": network.input.kind,
            "neuron": None if network.input.neuron is None else network.input.neuron.name,
        },
        "readout": asdict(network.readout),
        "lowering": network.lowering,
        "layers": [
            {"name": layer.name, "neuron": layer.neuron.name, "units_per_volt": layer.scale}
            for layer in network.layers
        ],
        "rules": [str(violation) for violation in violations],
    }


def _write_input(group: h5py.Group, coding: InputCoding) -> None:
    group.create_dataset("type", data=np.bytes_("input"))
    group.create_dataset("shape", data=np.array(coding.shape, dtype=np.int64))
    if coding.neuron is not None:
        _write_neuron(group.create_group("neuron"), coding.neuron)


def _write_layer(group: h5py.Group, layer: Layer) -> None:
    kind = {Conv: "conv", Dense: "dense", Recurrent: "dense_rec"}[type(layer)]
    group.create_dataset("type", data=np.bytes_(kind))
    group.create_dataset("shape", data=np.array(layer.output_shape, dtype=np.int64))
    group.create_dataset("weight", data=layer.weight_int, compression="gzip")
    if layer.bias_int is not None:
        group.create_dataset("bias", data=layer.bias_int)
    if isinstance(layer, Conv):
        for field in ("stride", "padding", "dilation"):
            group.create_dataset(field, data=np.array(getattr(layer, field), dtype=np.int64))
        group.create_dataset("groups", data=np.int64(layer.groups))
    if isinstance(layer, Recurrent):
        group.create_dataset("weight_rec", data=layer.recurrent_int, compression="gzip")
    if isinstance(layer, Dense) and layer.delay_int is not None:
        group.create_dataset("delay", data=layer.delay_int, compression="gzip")
    _write_neuron(group.create_group("neuron"), layer.neuron)


def _write_neuron(group: h5py.Group, neuron: Neuron) -> None:
    group.create_dataset("type", data=np.bytes_("CUBA"))
    for key, value in (
        ("iDecay", neuron.i_decay),
        ("vDecay", neuron.v_decay),
        ("vThMant", neuron.vth_int),
        ("refDelay", 1),
    ):
        group.create_dataset(key, data=np.int64(value))
