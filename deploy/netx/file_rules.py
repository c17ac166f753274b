"""What a `.net` file can get wrong before it is a network: numbering, types, neurons. And the list of all file rules.

Nearly all of it netx accepts in silence, or lets hang in a child process. What any network can get wrong, whether it came
from a file or not, is in `knarr.deploy.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from knarr.deploy.netx import file_rules_shapes as shapes
from knarr.deploy.netx import file_rules_synapses as synapses
from knarr.deploy.netx.draft import REGISTERS, SYNAPSES, Draft, one_integer
from knarr.deploy.netx.raw import text, whole_numbers
from knarr.deploy.violation import Violation, decay_violation, shown, threshold_violation

UNSUPPORTED = ("pool", "convT", "unpool", "average", "concat", "dense_comp")


def file_holds_layers(draft: Draft) -> Iterator[Violation]:
    if draft.raw.names is None:
        message = "has no /layer group, so it is not a netx file; write one with `knarr deploy`"
        yield Violation("file_holds_layers", "file", message)
    elif not draft.synapses:
        message = f"/layer has {len(draft.raw.names)} groups and none is conv, dense or dense_rec; add a layer"
        yield Violation("file_holds_layers", "file", message)


def layers_are_numbered(draft: Draft) -> Iterator[Violation]:
    names = draft.raw.names or ()
    wanted = {str(i) for i in range(len(names))}
    if set(names) != wanted:
        yield Violation(
            "layers_are_numbered",
            "file",
            f"/layer has {len(names)} groups, without {shown(sorted(wanted - set(names), key=int))} but with "
            f"{shown(sorted(set(names) - wanted))}; netx needs 0..{len(names) - 1} without gaps, renumber them",
        )


def types_are_known(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        raw, kind = found.raw, found.raw.kind
        if not kind:
            message = (
                f"{raw.where} has no type as text; write input, conv, flatten, dense or dense_rec"
            )
        elif kind in UNSUPPORTED:
            message = f"{raw.where} is of type {shown(kind)}, which is not supported; fold it into conv or dense"
        elif kind not in ("input", "flatten", *SYNAPSES):
            message = (
                f"{raw.where} is of type {shown(kind)}, which is unknown, and netx would skip it in silence; "
                "write input, conv, flatten, dense or dense_rec"
            )
        else:
            continue
        yield Violation("types_are_known", found.name, message)


def one_input_comes_first(draft: Draft) -> Iterator[Violation]:
    for position, found in enumerate(draft.layers):
        if found.raw.kind != "input":
            continue
        if position and any(before.raw.kind == "input" for before in draft.layers[:position]):
            message = f"{found.raw.where} is a second input; a network has one, remove it"
            yield Violation("one_input_comes_first", found.name, message)
        elif position:
            message = f"{found.raw.where} is an input after other layers; move it to /layer/0"
            yield Violation("one_input_comes_first", found.name, message)


def neurons_are_there(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        group = found.raw.neuron
        if "neuron" in found.raw.group and group is None:
            message = f"{found.raw.where}/neuron is no group; write one with type, iDecay, vDecay and vThMant"
            yield Violation("neurons_are_there", found.name, message)
        elif found.raw.kind in SYNAPSES and group is None:
            message = f"{found.raw.where} has no neuron group, so netx gives it neurons that never fire; add one"
            yield Violation("neurons_are_there", found.name, message)
        elif group is not None and found.raw.kind in ("input", *SYNAPSES):
            kind = text(group.get("type"))
            if kind not in ("CUBA", "LOIHI"):
                message = f"{found.raw.where} has neuron type {shown(kind)}, supported are CUBA and LOIHI; use one"
                yield Violation("neurons_are_there", found.name, message)


def registers_are_integers(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        if found.raw.neuron is None or found.neuron is None:
            continue
        for key in REGISTERS:
            value = found.raw.neuron.get(key)
            where = f"{found.raw.where}/neuron"
            if value is None:
                message = f"{where} has no {key}; write one integer"
            elif one_integer(value) is not None:
                continue
            elif not isinstance(value, (np.ndarray, np.generic)):
                message = f"{where}/{key} must be one integer, is no number; write one"
            elif value.size != 1:
                message = f"{where}/{key} must be one integer, is {value.dtype}{value.shape}; share one in a layer"
            else:
                message = f"{where}/{key} must be one integer, is {value.dtype} {value.reshape(())}; a float hangs Lava, round it"
            yield Violation("registers_are_integers", found.name, message)


def decays_fit_registers(draft: Draft) -> Iterator[Violation]:
    """Those no `Neuron` can hold; the few more that hardware does not have are the network rule's."""
    for found in draft.layers:
        for key in ("iDecay", "vDecay"):
            value = one_integer((found.raw.neuron or {}).get(key))
            if value is not None and not 0 <= value <= REGISTERS[key]:
                yield decay_violation(found.name, key, value)


def thresholds_fit_registers(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        value = one_integer((found.raw.neuron or {}).get("vThMant"))
        if value is not None and not 0 <= value <= REGISTERS["vThMant"]:
            yield threshold_violation(found.name, value)


def nothing_is_unread(draft: Draft) -> Iterator[Violation]:
    """What a file asks for and netx leaves out."""
    for found in draft.layers:
        group = found.raw.neuron or {}
        for key, allowed, cure in (
            ("refDelay", (0, 1), "write 1, Lava has no refractory time"),
            ("gradedSpike", (0,), "write 0, netx sends spikes of 1"),
            ("wgtExp", (0,), "write 0 and scale the weights"),
            (
                "weight_exp",
                (0,),
                "write 0 and scale the weights: a batch norm's power of two is lost",
            ),
        ):
            value = group.get(key)
            if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "b":
                value = value.astype(np.int64)
            whole = whole_numbers(value)
            if key in group and (whole is None or not np.isin(whole, allowed).all()):
                is_now = shown(np.asarray(group[key]).reshape(-1)[:3].tolist())
                message = f"{found.raw.where}/neuron/{key} is {is_now}, allowed {allowed[-1]}, netx does not read it; {cure}"
                yield Violation("nothing_is_unread", found.name, message)
        if "messageBits" in group:
            message = f"{found.raw.where}/neuron/messageBits stops netx 0.6.0, which reads no number there; remove it"
            yield Violation("nothing_is_unread", found.name, message)
        if found.raw.kind == "input":
            unread = [key for key in ("weight", "bias") if key in found.raw.group]
            if unread and group:
                message = (
                    f"{found.raw.where} has {' and '.join(unread)}, which netx applies to nothing; apply "
                    f"{'them' if len(unread) > 1 else 'it'} to the inputs"
                )
                yield Violation("nothing_is_unread", found.name, message, "warning")


FILE_RULES: list[Callable[[Draft], Iterator[Violation]]] = [
    file_holds_layers,
    layers_are_numbered,
    types_are_known,
    one_input_comes_first,
    neurons_are_there,
    registers_are_integers,
    decays_fit_registers,
    thresholds_fit_registers,
    nothing_is_unread,
    synapses.weights_are_integers,
    synapses.biases_are_integers,
    synapses.biases_fit_registers,
    synapses.delays_are_kept,
    shapes.inputs_have_shapes,
    shapes.kernels_fit,
    shapes.steps_are_integers,
    shapes.descriptions_agree,
    shapes.shapes_chain,
    shapes.sizes_are_bounded,
]
