"""Rules on what a `.net` file can get wrong before it is a network.

Nearly all of it netx accepts in silence, or lets hang in a child process. What any network can get
wrong, whether it came from a file or not, is in `knarr.deploy.rules`; a rule that stands in both
finds here the numbers that a `Neuron` or a layer cannot even hold.

To add a rule, write one function with the rule's name that takes a `NetLayer` and yields a
message for everything in it that breaks the rule, and append it to `LAYER_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from knarr.deploy.netx.draft import (
    BARE,
    NEURON_TYPES,
    REGISTERS,
    SYNAPSES,
    Draft,
    NetLayer,
    Shape,
    fits_32_bits,
    is_array,
    pair,
    spread_delay,
    stored_register,
    text,
    whole_numbers,
)
from knarr.deploy.rules import Violation, bias_message, decay_message, threshold_message
from knarr.hw_sim import NON_SPIKING_VTH
from knarr.hw_sim.network import DECAY_UNITY, MAX_DELAY

MAX_NEURONS = 2**24
"""Values a layer may send, 16 times the neurons of a Loihi 2: more states would fill the memory."""
MAX_STEP = 4096
"""Stride, padding and dilation; what is larger is an accident."""
UNSUPPORTED = ("pool", "convT", "unpool", "average", "concat", "dense_comp")
"""Kinds of layers that netx knows and knarr does not."""
UNREAD_NEURON_ITEMS = (
    ("refDelay", (0, 1), "write 1, Lava has no refractory time"),
    ("gradedSpike", (0,), "write 0, netx sends spikes of 1"),
    ("wgtExp", (0,), "write 0 and scale the weights"),
    ("weight_exp", (0,), "write 0 and scale the weights: a batch norm's power of two is lost"),
)
"""Items that netx does not read, the values at which that changes nothing, and the cure."""


def file_violations(draft: Draft) -> list[Violation]:
    """Apply every rule to a file.

    Returns:
        Every broken rule, rule by rule and then layer by layer; empty when all hold.
    """
    found = [violation for rule in FILE_RULES for violation in rule(draft)]
    for rule in LAYER_RULES:
        for layer in draft.layers:
            found += [Violation(rule.__name__, layer.name, message) for message in rule(layer)]
    return found


def shorten(value: object) -> str:
    """Show a value out of a file in one short line."""
    # repr escapes line ends, so nothing in a file can break a message in two.
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


# --- rules on the file as a whole


def file_holds_layers(draft: Draft) -> Iterator[Violation]:
    """Demand at least one layer that holds weights."""
    if draft.names is None:
        message = "has no /layer group, so it is not a netx file; write one with `knarr deploy`"
    elif draft.synapses:
        return
    else:
        message = (
            f"/layer has {len(draft.names)} groups and none is conv, dense or dense_rec; "
            "add a layer"
        )
    yield Violation("file_holds_layers", "file", message)


def layers_are_numbered(draft: Draft) -> Iterator[Violation]:
    """Demand groups 0, 1, 2, ...: netx counts the groups and asks for these names."""
    names = set(draft.names or ())
    wanted = {str(number) for number in range(len(names))}
    if names != wanted:
        yield Violation(
            "layers_are_numbered",
            "file",
            f"/layer has {len(names)} groups, without {shorten(sorted(wanted - names, key=int))} "
            f"but with {shorten(sorted(names - wanted))}; netx needs 0..{len(names) - 1} without "
            "gaps, renumber them",
        )


def one_input_comes_first(draft: Draft) -> Iterator[Violation]:
    """Demand that an input, if there is one, is the first layer."""
    inputs = [found for found in draft.layers if found.kind == "input"]
    for found in inputs:
        if found is draft.layers[0]:
            continue
        message = f"{found.where} is an input after other layers; move it to /layer/0"
        if found is not inputs[0]:
            message = f"{found.where} is a second input; a network has one, remove it"
        yield Violation("one_input_comes_first", found.name, message)


def inputs_are_not_changed(draft: Draft) -> Iterator[Violation]:
    """Warn of weights and biases that slayer learns for the input and netx never applies."""
    for found in draft.layers:
        unread = [key for key in ("weight", "bias") if key in found.group]
        if found.kind == "input" and found.neuron_group and unread:
            yield Violation(
                "nothing_is_unread",
                found.name,
                f"{found.where} has {' and '.join(unread)}, which netx applies to nothing; "
                f"apply {'them' if len(unread) > 1 else 'it'} to the inputs",
                "warning",
            )


def bare_layers_are_known(draft: Draft) -> Iterator[Violation]:
    """Warn of layers whose neurons netx makes up: slayer's affine readouts have none."""
    for found in draft.layers:
        if found.kind in BARE and "neuron" not in found.group:
            yield Violation(
                "bare_layers_are_known",
                found.name,
                f"{found.where} has no neuron group, so netx gives it neurons that add up their "
                "input for ever and never fire; read their voltages, or add a group",
                "warning",
            )


# --- rules on kinds and neurons


def types_are_known(found: NetLayer) -> Iterator[str]:
    """Demand a kind of layer that is supported."""
    kind, where = found.kind, found.where
    if not kind:
        yield f"{where} has no type as text; write input, conv, flatten, dense or dense_rec"
    elif kind in UNSUPPORTED:
        yield (
            f"{where} is of type {shorten(kind)}, which is not supported; "
            "fold it into conv or dense"
        )
    elif kind not in ("input", "flatten", *SYNAPSES):
        yield (
            f"{where} is of type {shorten(kind)}, which is unknown, and netx would skip it in "
            "silence; write input, conv, flatten, dense or dense_rec"
        )


def neurons_are_there(found: NetLayer) -> Iterator[str]:
    """Demand neurons behind every synapse, of the one type that the chip has."""
    group, where = found.neuron_group, found.where
    if group is None:
        if "neuron" in found.group:
            yield f"{where}/neuron is no group; write one with type, iDecay, vDecay and vThMant"
        elif found.kind in SYNAPSES and found.kind not in BARE:
            yield f"{where} has no neuron group, which stops netx; add one"
        return
    kind = text(group.get("type"))
    if found.kind in ("input", *SYNAPSES) and kind not in NEURON_TYPES:
        yield f"{where} has neuron type {shorten(kind)}, supported are CUBA and LOIHI; use one"


def registers_are_integers(found: NetLayer) -> Iterator[str]:
    """Demand stored integers for every register of a neuron: one, or one per channel or neuron."""
    group, where = found.neuron_group, f"{found.where}/neuron"
    if group is None or found.kind not in ("input", *SYNAPSES):
        return
    for register in REGISTERS:
        value = group.get(register)
        if stored_register(value) is not None:
            yield from _register_shape_faults(found, register)
            continue
        if value is None:
            yield f"{where} has no {register}; write one integer"
            continue
        if not isinstance(value, (np.ndarray, np.generic)):
            fault = "no number; write one"
        elif not is_array(value, "iu") and value.size == 1:
            fault = f"{value.dtype} {value.reshape(())}; a float hangs Lava, round it"
        elif not is_array(value, "iu"):
            fault = f"{value.dtype}{value.shape}; a float hangs Lava, round it"
        else:
            fault = f"of shape {value.shape}; write one, or one per channel or neuron"
        yield f"{where}/{register} must be one integer, or one per channel or neuron, is {fault}"


def _register_shape_faults(found: NetLayer, register: str) -> Iterator[str]:
    """Say why a register's array does not fit the neurons of its layer, where these are known."""
    value, shape = (found.neuron_group or {})[register], found.outgoing
    if shape is None or value.size == 1:
        return
    allowed = [shape]
    if len(shape) == 3:
        allowed = [shape[:1], (1, 1, shape[0]), shape[::-1]]
    if value.shape not in allowed:
        forms = " or ".join(map(str, dict.fromkeys(allowed)))
        axes = "netx's axes are (W, H, C), " if len(shape) == 3 else ""
        yield (
            f"{found.where}/neuron/{register} is of shape {value.shape}, the layer has neurons "
            f"{shape}; {axes}write one integer or {forms}"
        )


def decays_fit_registers(found: NetLayer) -> Iterator[str]:
    """Demand decays that a `Neuron` can hold; the network's rule knows what hardware has."""
    group = found.neuron_group or {}
    for register in ("iDecay", "vDecay"):
        values = stored_register(group.get(register))
        if values is not None and not 0 <= values.min() <= values.max() <= DECAY_UNITY:
            wrong = values[(values < 0) | (values > DECAY_UNITY)]
            yield decay_message(register, int(wrong[0]))


def thresholds_fit_registers(found: NetLayer) -> Iterator[str]:
    """Demand thresholds that a `Neuron` can hold; the network's rule knows what hardware has."""
    values = stored_register((found.neuron_group or {}).get("vThMant"))
    if values is not None and not 0 <= values.min() <= values.max() <= NON_SPIKING_VTH:
        wrong = values[(values < 0) | (values > NON_SPIKING_VTH)]
        yield threshold_message(int(wrong[0]))


def nothing_is_unread(found: NetLayer) -> Iterator[str]:
    """Refuse what a neuron asks for and netx leaves out."""
    group = found.neuron_group or {}
    for key, allowed, cure in UNREAD_NEURON_ITEMS:
        if key not in group:
            continue
        value = group[key]
        if is_array(value, "b"):
            value = value.astype(np.int64)
        whole = whole_numbers(value)
        if whole is None or not np.isin(whole, allowed).all():
            numbers = np.asarray(group[key]).reshape(-1)
            first = shorten(numbers[:3].tolist())
            yield (
                f"{found.where}/neuron/{key} is {first}, allowed {allowed[-1]}, "
                f"netx does not read it; {cure}"
            )
    if "messageBits" in group:
        yield (
            f"{found.where}/neuron/messageBits stops netx 0.6.0, which reads no number there; "
            "remove it"
        )


# --- rules on arrays: whole numbers of the right shape, which netx keeps


def weights_are_integers(found: NetLayer) -> Iterator[str]:
    """Demand weights that are whole numbers of 32 bits."""
    if found.kind not in SYNAPSES:
        return
    for key in ("weight", "weight_rec") if found.kind == "dense_rec" else ("weight",):
        whole = found.whole(key)
        if key not in found.group:
            yield f"{found.where} has no {key}; write an array of integers"
        elif whole is not None and whole.size and not fits_32_bits(whole):
            yield (
                f"{found.where}/{key} spans {whole.min()}..{whole.max()}, allowed -256..254; "
                "quantise it to 8 bits"
            )
        else:
            yield from _array_faults(found, key)


def _array_faults(found: NetLayer, key: str) -> Iterator[str]:
    """Say why an item is no array of integers."""
    where, value = f"{found.where}/{key}", found.group[key]
    # h5py, and slayer with it, writes a complex number as a group of two.
    if isinstance(value, dict) and {"real", "imag"} & set(value):
        yield f"{where} is a group; only real weights are supported, write one array"
    elif isinstance(value, dict):
        yield f"{where} is a group; write an array of integers"
    elif not is_array(value):
        yield f"{where} holds no numbers; write an array of integers"
    elif not value.size:
        yield f"{where} is empty, of shape {value.shape}; write an array of integers"
    elif found.whole(key) is None:
        flat = value.reshape(-1)
        finite = np.isfinite(flat)
        broken = ~finite
        if finite.all():
            # From 2**53 on floats have no fraction, but do not hold every integer either.
            broken = (flat != np.rint(flat)) | (abs(flat) >= 2.0**53)
        first = int(broken.argmax())
        place = tuple(int(i) for i in np.unravel_index(first, value.shape or (1,)))
        if not finite.all():
            yield f"{where} holds {flat[first]} at {place}; write an array of integers"
            return
        yield (
            f"{where} is not made of integers: {broken.sum()} of {flat.size} have a fraction or "
            f"are too large, first {flat[first]} at {place}, and netx truncates them; quantise it"
        )


def biases_are_integers(found: NetLayer) -> Iterator[str]:
    """Demand biases that are whole numbers, one per output."""
    if found.kind not in SYNAPSES or "bias" not in found.group:
        return
    yield from _array_faults(found, "bias")
    bias, outputs = found.whole("bias"), _outputs(found)
    if bias is None or not bias.size or outputs is None:
        return
    # netx spreads one bias over a dense layer.
    spread = found.kind != "conv" and bias.shape in ((), (1,))
    if bias.shape != (outputs,) and not spread:
        channel = " channel" if found.kind == "conv" else ""
        yield (
            f"{found.where}/bias is of shape {bias.shape}, allowed ({outputs},); "
            f"write one per output{channel}"
        )


def biases_fit_registers(found: NetLayer) -> Iterator[str]:
    """Demand biases that a layer can hold; the network's rule knows what hardware has."""
    bias = found.whole("bias")
    if found.kind in SYNAPSES and bias is not None and bias.size and not fits_32_bits(bias):
        yield bias_message(bias)


def delays_are_kept(found: NetLayer) -> Iterator[str]:
    """Demand delays that netx applies as they are written."""
    if found.kind not in SYNAPSES or "delay" not in found.group:
        return
    where = f"{found.where}/delay"
    if found.kind == "conv":
        yield f"{where} is a conv delay, which netx ignores; remove it"
        return
    if found.kind == "dense_rec":
        yield f"{where} in dense_rec makes netx drop the weight exponent; remove the delay"
        return
    yield from _array_faults(found, "delay")
    delay, weight = found.whole("delay"), found.whole("weight")
    if delay is None or not delay.size:
        return
    if delay.min() < 0 or delay.max() > MAX_DELAY:
        yield (
            f"{where} spans {delay.min()}..{delay.max()}, allowed 0..{MAX_DELAY}, netx clamps "
            "longer ones and stops at negative ones; train with delays in that range"
        )
        return
    outputs = _outputs(found)
    if weight is not None and outputs and weight.size % outputs == 0:
        shape = (outputs, weight.size // outputs)
        if spread_delay(delay, shape) is None:
            yield (
                f"{where} is of shape {delay.shape} for weights of {shape}; "
                "give one per output, input or synapse"
            )


def _outputs(found: NetLayer) -> int | None:
    """Return the number of outputs, or of output channels; None where the file does not say."""
    weight = found.whole("weight")
    if weight is not None and weight.ndim > 1:
        return len(weight)
    # A flat matrix has as many rows as `shape` says.
    shape = found.integers("shape")
    return None if found.kind == "conv" or shape is None else prod(shape)


# --- rules on shapes: what one layer sends is what the next was made for


def inputs_have_shapes(found: NetLayer) -> Iterator[str]:
    """Demand the shape of the input, which no array of the file tells."""
    if found.kind != "input":
        return
    where, shape = found.where, found.integers("shape")
    if "shape" not in found.group:
        yield f"{where} has no shape; write (features,) or (C, H, W)"
    elif shape is None:
        yield (
            f"{where}/shape is not made of a few stored integers; write (features,) or (C, H, W)"
        )
    elif len(shape) not in (1, 3) or min(shape) < 1:
        yield (
            f"{where}/shape is {shape}, needs 1 or 3 positive sizes; write (features,) or (C, H, W)"
        )


def kernels_fit(found: NetLayer) -> Iterator[str]:
    """Demand weights of the right rank, whatever arrives."""
    weight, where = found.whole("weight"), f"{found.where}/weight"
    if found.kind not in SYNAPSES or weight is None or not weight.size:
        return
    if found.kind == "conv":
        if weight.ndim < 4 or prod(weight.shape[4:]) != 1:
            yield (
                f"{where} is of shape {weight.shape}, needs (out, in / groups, height, width); "
                "reshape it"
            )
        return
    if weight.ndim not in (1, 2):
        yield f"{where} is of shape {weight.shape}, needs (out, in); reshape it"
        return
    rows = _outputs(found) or 0
    if weight.ndim == 1 and (rows < 1 or weight.size % rows):
        yield (
            f"{where} of {weight.size} values does not divide into {rows} rows of /shape; "
            "write (out, in)"
        )
        return
    recurrent = found.whole("weight_rec")
    if found.kind == "dense_rec" and recurrent is not None and recurrent.size:
        # Next to a flat matrix netx takes the other one flat as well.
        flat = weight.ndim == 1 and recurrent.shape == (rows * rows,)
        if recurrent.shape != (rows, rows) and not flat:
            yield f"{where}_rec is of shape {recurrent.shape}, needs ({rows}, {rows}); reshape it"


def steps_are_integers(found: NetLayer) -> Iterator[str]:
    """Demand strides, paddings, dilations and groups as netx reads them."""
    if found.kind != "conv":
        return
    for key, low in (("stride", 1), ("padding", 0), ("dilation", 1)):
        step, where = pair(found, key), f"{found.where}/{key}"
        if step is None:
            yield f"{where} is {_item(found, key)}; netx needs one integer or two (height, width)"
        elif min(step) < low or max(step) > MAX_STEP:
            yield f"{where} is {step}, allowed {low}..{MAX_STEP}; write the one that was trained"
    groups = found.integers("groups")
    if groups is None or np.shape(found.group["groups"]) != () or groups[0] < 1:
        yield (
            f"{found.where}/groups is {_item(found, 'groups')}; netx needs one integer above 0 "
            "without a dimension, an array stops it"
        )


def _item(found: NetLayer, key: str) -> str:
    """Describe an item that should hold integers."""
    if key not in found.group:
        return "missing"
    value = found.group[key]
    if not isinstance(value, (np.ndarray, np.generic)):
        return "no number"
    return f"{value.dtype}{value.shape} {shorten(value.reshape(-1)[:3].tolist())}"


def descriptions_agree(found: NetLayer) -> Iterator[str]:
    """Demand that what is said twice is the same: netx reads one of the two, or stops."""
    for key, said, holds in _descriptions(found):
        cure = "write what it is"
        # slayer counts the axes of an image from the other end.
        if isinstance(holds, tuple) and len(holds) == 3 and said == holds[::-1]:
            cure = "it looks like (W, H, C), write (C, H, W)"
        yield f"{found.where}/{key} says {said}, the layer gives {holds}; {cure}"


def _descriptions(found: NetLayer) -> Iterator[tuple[str, Any, Any]]:
    """Yield (item, what it says, what the layer holds) of every item that is wrong."""
    weight = found.whole("weight")
    shape = found.integers("shape")
    if shape is None:
        if found.kind in SYNAPSES:
            yield "shape", _item(found, "shape"), found.outgoing or "another"
    elif found.kind == "conv":
        # The shape of a layer that is not built is what the file says itself.
        if found.layer is not None and shape != found.outgoing:
            yield "shape", shape, found.outgoing
    elif found.kind == "flatten" and found.outgoing and prod(shape) != prod(found.outgoing):
        yield "shape", shape, found.outgoing
    known: dict[str, Shape] = {}
    if found.kind == "conv" and weight is not None and weight.ndim >= 4:
        groups = found.integers("groups") or (1,)
        known = {
            "inChannels": (weight.shape[1] * groups[0],),
            "outChannels": (len(weight),),
            "kernelSize": weight.shape[2:4],
        }
    elif found.kind in ("dense", "dense_rec") and weight is not None and weight.ndim == 2:
        known = {"inFeatures": (weight.shape[1],), "outFeatures": (len(weight),)}
        if shape is not None and prod(shape) != len(weight):
            yield "shape", shape, (len(weight),)
    for key, holds in known.items():
        said = found.integers(key)
        if key in found.group and said != holds:
            yield key, _item(found, key) if said is None else said, holds


def shapes_chain(found: NetLayer) -> Iterator[str]:
    """Demand that every layer receives what it was made for."""
    incoming, sender = found.incoming, found.sender
    if found.kind == "conv":
        # Where a layer before it is broken, that one says so.
        if incoming is not None or sender is None:
            yield from _conv_faults(found)
    elif found.kind in ("dense", "dense_rec"):
        yield from _dense_faults(found)
    elif found.kind == "flatten" and sender is not None and incoming is not None:
        # netx transposes the three axes of what comes before, unless that is an input without
        # neurons.
        bare = sender.kind == "input" and sender.neuron_group is None
        if not bare and len(incoming) != 3:
            yield f"{found.where} flattens {incoming}, needs (C, H, W), which stops netx; remove it"


def _dense_faults(found: NetLayer) -> Iterator[str]:
    weight, incoming, where = found.whole("weight"), found.incoming, found.where
    if incoming is None:
        return
    if len(incoming) == 3:
        yield f"{where}: dense receives {incoming}; netx needs a flatten layer before it, add one"
    elif weight is not None and weight.ndim in (1, 2) and weight.size:
        rows = _outputs(found) or 0
        inputs = weight.size // rows if rows > 0 else 0
        if inputs != prod(incoming):
            yield (
                f"{where} receives {prod(incoming)} values, has {inputs} inputs; "
                "fit the one to the other"
            )


def _conv_faults(found: NetLayer) -> Iterator[str]:
    where, incoming = found.where, found.incoming
    if incoming is None or len(incoming) != 3:
        arrives = "an unknown shape" if incoming is None else str(incoming)
        yield (
            f"{where}: a convolution receives {arrives}, needs (C, H, W); "
            "add an input layer of that shape"
        )
        return
    weight, groups = found.whole("weight"), found.integers("groups")
    if weight is None or weight.ndim < 4 or not weight.size or groups is None or groups[0] < 1:
        return
    outputs, inputs = weight.shape[0], weight.shape[1] * groups[0]
    if inputs != incoming[0] or outputs % groups[0]:
        cure = "fit the one to the other"
        if inputs == incoming[2]:
            cure = "it looks like (W, H, C), write (C, H, W)"
        yield (
            f"{where} receives {incoming[0]} channels of {incoming}, its kernel has "
            f"{weight.shape[1]} inputs in {groups[0]} groups and {outputs} outputs; {cure}"
        )
        return
    stride, padding, dilation = (pair(found, key) for key in ("stride", "padding", "dilation"))
    if stride is None or padding is None or dilation is None:
        return
    # Steps that are out of their range have a rule of their own.
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        return
    axes = zip(weight.shape[2:4], incoming[1:], padding, dilation, strict=True)
    if any(step * (taps - 1) >= size + 2 * pad for taps, size, pad, step in axes):
        yield (
            f"{where}: its kernel {weight.shape[2:4]} is larger than its padded input {incoming}; "
            "pad more"
        )


def sizes_are_bounded(found: NetLayer) -> Iterator[str]:
    """Demand layers whose states a memory can hold."""
    shape = found.outgoing
    # A size below 1 has a rule of its own, and two of them would multiply to a positive number.
    if shape is not None and min(shape, default=0) > 0 and prod(shape) > MAX_NEURONS:
        yield (
            f"{found.where} sends {prod(shape):,} values of {shape}, allowed {MAX_NEURONS:,}; "
            "make it smaller"
        )


FILE_RULES: list[Callable[[Draft], Iterator[Violation]]] = [
    file_holds_layers,
    layers_are_numbered,
    one_input_comes_first,
    inputs_are_not_changed,
    bare_layers_are_known,
]
"""Rules on the file as a whole, which name the layer themselves."""

LAYER_RULES: list[Callable[[NetLayer], Iterator[str]]] = [
    types_are_known,
    neurons_are_there,
    registers_are_integers,
    decays_fit_registers,
    thresholds_fit_registers,
    nothing_is_unread,
    weights_are_integers,
    biases_are_integers,
    biases_fit_registers,
    delays_are_kept,
    inputs_have_shapes,
    kernels_fit,
    steps_are_integers,
    descriptions_agree,
    shapes_chain,
    sizes_are_bounded,
]
"""Rules on one layer; every message is an error."""
