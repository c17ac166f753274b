"""Reader of netx `.net` files, ours or not; what it does not know, it refuses by name.

Layout (lava-dl 0.6.0 `netx/hdf5.py`): /layer/<i>/ with type, shape, weight, stride, padding, dilation, groups, bias and
neuron/{type, iDecay, vDecay, vThMant}. netx skips an unknown type in silence and hangs on a float register; we do neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.hw_sim import ChipError, ChipNetwork, Conv, Dense, InputCoding, Neuron, Readout, Recurrent
from knarr.hw_sim.layers import MAX_DELAY, Layer

MANIFEST = "knarr_manifest"
MANIFEST_FORMAT = 2
MAX_FILE_BYTES = 2_000_000_000
_UNSUPPORTED = ("pool", "convT", "unpool", "average", "concat", "dense_comp")


def read_net(path: Path) -> ChipNetwork:
    """Read a feed-forward CUBA netx file, ours or not.

    Raises:
        DeployError: missing, not HDF5, malformed, or holds what is not supported; names the layer and the reason.
    """
    if not path.is_file():
        raise DeployError(f"{path}: no such file; write one with `knarr deploy`")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DeployError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    if not h5py.is_hdf5(path):
        raise DeployError(f"{path}: not an HDF5 file, so not a netx .net; write one with `knarr deploy`")
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except (DeployError, ChipError) as error:
        raise DeployError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
        raise DeployError(f"{path}: malformed netx file ({type(error).__name__}: {error})") from error


def _read(file: h5py.File) -> ChipNetwork:
    manifest = _read_manifest(file)
    if not isinstance(file.get("layer"), h5py.Group):
        raise DeployError("has no /layer group, so it is not a netx file")
    groups = file["layer"]
    if sorted(groups) != sorted(str(i) for i in range(len(groups))):
        raise DeployError(f"layers are numbered {sorted(groups)}; netx needs 0..n-1 without gaps")
    named = {i: entry for i, entry in enumerate(manifest.get("layers", []))}
    layers: list[Layer] = []
    shape: tuple[int, ...] | None = None
    input_shape: tuple[int, ...] | None = None
    input_neuron: Neuron | None = None
    coding = manifest.get("input", {})
    for index in range(len(groups)):
        group, where = groups[str(index)], f"layer {index}"
        kind = _text(group, "type", where)
        if kind == "input":
            if layers or input_shape is not None:
                raise DeployError(f"{where}: a second input; a network has one, at its beginning")
            if "neuron" in group:
                input_neuron = _read_neuron(group, where, str(coding.get("neuron") or ""))
            input_shape = _ints(group, "shape", where)
            if input_shape[1:] == (1, 1):
                input_shape = input_shape[:1]  # slayer writes (features, 1, 1) for a plain vector
            shape = input_shape
        elif kind == "flatten":
            shape = None if shape is None else (int(np.prod(shape)),)
        elif kind in ("conv", "dense", "dense_rec"):
            entry = named.get(len(layers), {})
            name = str(entry.get("name", f"{kind}_{index}"))
            neuron = _read_neuron(group, where, str(entry.get("neuron", f"neuron_{index}")))
            scale = entry.get("units_per_volt")
            if kind == "conv":
                layer: Layer = _read_conv(group, where, name, neuron, shape, scale)
            elif kind == "dense":
                layer = _read_dense(group, where, name, neuron, shape, scale)
            else:
                layer = _read_recurrent(group, where, name, neuron, shape, scale)
            if input_shape is None:
                input_shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
            layers.append(layer)
            shape = layer.output_shape
        else:
            reason = (
                "is not supported"
                if kind in _UNSUPPORTED
                else "is unknown, and netx would skip it in silence"
            )
            raise DeployError(f"{where}: type '{kind}' {reason}")
    if not layers or input_shape is None:
        raise DeployError("holds no conv or dense layer")
    readout = manifest.get("readout", {"kind": "spikes" if layers[-1].neuron.spikes else "voltage"})
    return ChipNetwork(
        tuple(layers),
        InputCoding(input_shape, int(coding.get("bits", 1)), input_neuron, float(coding.get("units", 1.0))),
        Readout(**readout),
        manifest.get("dt_s"),
        manifest.get("graph_hash"),
    )


def _read_manifest(file: h5py.File) -> Mapping[str, Any]:
    if MANIFEST not in file.attrs:
        return {}
    manifest = json.loads(file.attrs[MANIFEST])
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise DeployError(
            f"its manifest has another format than {MANIFEST_FORMAT}; write the file again with `knarr deploy`"
        )
    return manifest


def _read_neuron(group: h5py.Group, where: str, name: str) -> Neuron:
    if "neuron" not in group:
        raise DeployError(f"{where}: no neuron group, so netx gives it neurons that never fire; add one")
    kind = _text(group["neuron"], "type", where)
    if kind not in ("CUBA", "LOIHI"):
        raise DeployError(f"{where}: neuron type '{kind}', only CUBA and LOIHI are supported")
    if "refDelay" in group["neuron"] and int(_scalar(group["neuron"], "refDelay", where)) > 1:
        raise DeployError(f"{where}: refDelay above 1, which Lava ignores; write 1")
    registers = {key: _scalar(group["neuron"], key, where) for key in ("iDecay", "vDecay", "vThMant")}
    return Neuron(registers["iDecay"], registers["vDecay"], registers["vThMant"], name)


def _dense_weight(
    group: h5py.Group, key: str, where: str, shape: tuple[int, ...] | None
) -> np.ndarray[Any, Any]:
    if shape is not None and len(shape) == 3 and shape[1:] != (1, 1):
        raise DeployError(f"{where}: dense receives {shape}; netx needs a flatten layer before it")
    weight = _array(group, key, where)
    return weight.reshape(int(np.prod(_ints(group, "shape", where))), -1) if weight.ndim == 1 else weight


def _read_dense(
    group: h5py.Group,
    where: str,
    name: str,
    neuron: Neuron,
    shape: tuple[int, ...] | None,
    scale: float | None,
) -> Dense:
    weight = _dense_weight(group, "weight", where, shape)
    bias = _array(group, "bias", where) if "bias" in group else None
    delay = _read_delay(group, where, weight.shape) if "delay" in group else None
    return Dense(name, weight, neuron, bias, scale, delay)


def _read_delay(group: h5py.Group, where: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One delay for all, per output, per input or per synapse, as netx tells them apart: outputs come first."""
    delay = _array(group, "delay", where)
    if delay.size == 1:
        full = np.full(shape, delay.reshape(-1)[0])
    elif delay.ndim == 1 and delay.size == shape[0]:
        full = np.repeat(delay.reshape(-1, 1), shape[1], axis=1)
    elif delay.ndim == 1 and delay.size == shape[1]:
        full = np.repeat(delay.reshape(1, -1), shape[0], axis=0)
    elif delay.shape == shape:
        full = delay
    else:
        raise DeployError(
            f"{where}: delay of shape {delay.shape} for weights of {shape}; give one per synapse"
        )
    if full.min() < 0 or full.max() > MAX_DELAY:
        raise DeployError(
            f"{where}: delays {full.min()}..{full.max()}, netx clamps them to 0..{MAX_DELAY}; train with shorter ones"
        )
    return full


def _read_recurrent(
    group: h5py.Group,
    where: str,
    name: str,
    neuron: Neuron,
    shape: tuple[int, ...] | None,
    scale: float | None,
) -> Recurrent:
    if "delay" in group:
        raise DeployError(
            f"{where}: dense_rec with delay, for which netx drops the weight exponent; remove the delay"
        )
    weight = _dense_weight(group, "weight", where, shape)
    feedback = _dense_weight(group, "weight_rec", where, None)
    bias = _array(group, "bias", where) if "bias" in group else None
    return Recurrent(name, weight, feedback, neuron, bias, scale)


def _read_conv(
    group: h5py.Group,
    where: str,
    name: str,
    neuron: Neuron,
    shape: tuple[int, ...] | None,
    scale: float | None,
) -> Conv:
    if shape is None or len(shape) != 3:
        raise DeployError(f"{where}: convolution without a (C, H, W) input shape; add an input layer")
    if "delay" in group:
        raise DeployError(f"{where}: conv delay, which netx ignores; remove it")
    stride, padding, dilation = (_ints(group, key, where) for key in ("stride", "padding", "dilation"))
    layer = Conv(
        name,
        _array(group, "weight", where),
        neuron,
        (shape[0], shape[1], shape[2]),
        _pair(stride, where),
        _pair(padding, where),
        _pair(dilation, where),
        int(_scalar(group, "groups", where)),
        _array(group, "bias", where) if "bias" in group else None,
        scale,
    )
    if _ints(group, "shape", where) != layer.output_shape:
        raise DeployError(
            f"{where}: shape says {_ints(group, 'shape', where)}, the convolution gives {layer.output_shape}"
        )
    return layer


def _array(group: h5py.Group, key: str, where: str) -> np.ndarray[Any, Any]:
    if key not in group:
        raise DeployError(f"{where}: has no {key}")
    array = np.asarray(group[key][()])
    if np.issubdtype(array.dtype, np.floating) and np.array_equal(array, np.rint(array)):
        array = array.astype(np.int64)  # slayer writes whole numbers as floats
    if not np.issubdtype(array.dtype, np.integer):
        raise DeployError(f"{where}: {key} is not made of integers, which Lava would truncate; quantise it")
    return array


def _scalar(group: h5py.Group, key: str, where: str) -> int:
    if key not in group:
        raise DeployError(f"{where}: has no {key}")
    array = np.asarray(group[key][()])
    if array.size != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DeployError(
            f"{where}: {key} must be one integer, is {array.dtype}{array.shape}; a float would hang Lava"
        )
    return int(array.reshape(()))


def _ints(group: h5py.Group, key: str, where: str) -> tuple[int, ...]:
    return tuple(int(n) for n in np.atleast_1d(_array(group, key, where)))


def _pair(values: tuple[int, ...], where: str) -> tuple[int, int]:
    if len(values) not in (1, 2):
        raise DeployError(f"{where}: {values} is neither one number nor (height, width)")
    return values[0], values[-1]


def _text(group: h5py.Group, key: str, where: str) -> str:
    if not isinstance(group, h5py.Group) or key not in group:
        raise DeployError(f"{where}: has no {key}")
    value = np.atleast_1d(group[key][()])[0]
    return value.decode("ascii") if isinstance(value, bytes) else str(value)
