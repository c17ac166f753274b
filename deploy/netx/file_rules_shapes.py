"""File rules on shapes: what one layer sends is what the next was made for, and what a file says twice agrees."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from knarr.deploy.netx.draft import Draft, DraftLayer, Shape, pair
from knarr.deploy.violation import Violation, shown

MAX_NEURONS = 2**24
"""Values a layer may send, sixteen times what a Loihi 2 has neurons: states of more would fill the memory."""
MAX_STEP = 4096
"""Stride, padding and dilation; what is larger is an accident."""


def inputs_have_shapes(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        if found.raw.kind != "input":
            continue
        shape = found.raw.integers("shape")
        if "shape" not in found.raw.group:
            message = f"{found.raw.where} has no shape; write (features,) or (C, H, W)"
        elif shape is None:
            message = f"{found.raw.where}/shape is not made of a few stored integers; write (features,) or (C, H, W)"
        elif len(shape) not in (1, 3) or min(shape) < 1:
            message = f"{found.raw.where}/shape is {shape}, needs 1 or 3 positive sizes; write (features,) or (C, H, W)"
        else:
            continue
        yield Violation("inputs_have_shapes", found.name, message)


def kernels_fit(draft: Draft) -> Iterator[Violation]:
    """Dimensions of weights, apart from what arrives."""
    for found in draft.synapses:
        weight, where = found.raw.whole("weight"), f"{found.raw.where}/weight"
        if weight is None or not weight.size:
            continue
        message = None
        if found.raw.kind == "conv":
            if weight.ndim < 4 or prod(weight.shape[4:]) != 1:
                message = f"{where} is of shape {weight.shape}, needs (out, in / groups, height, width); reshape it"
        elif weight.ndim > 2 or weight.ndim == 0:
            message = f"{where} is of shape {weight.shape}, needs (out, in); reshape it"
        elif weight.ndim == 1:
            rows = prod(found.raw.integers("shape") or (0,))
            if rows < 1 or weight.size % rows:
                message = f"{where} of {weight.size} values does not divide into {rows} rows of /shape; write (out, in)"
        back = found.raw.whole("weight_rec") if found.raw.kind == "dense_rec" else None
        if message is None and back is not None and back.size:
            rows = prod(found.raw.integers("shape") or (0,)) if weight.ndim == 1 else len(weight)
            flat = weight.ndim == 1 and back.ndim == 1 and back.size == rows * rows
            if back.shape != (rows, rows) and not flat:
                message = (
                    f"{where}_rec is of shape {back.shape}, needs ({rows}, {rows}); reshape it"
                )
        if message is not None:
            yield Violation("kernels_fit", found.name, message)


def steps_are_integers(draft: Draft) -> Iterator[Violation]:
    for found in draft.synapses:
        if found.raw.kind != "conv":
            continue
        for key, low in (("stride", 1), ("padding", 0), ("dilation", 1)):
            step, where = pair(found.raw, key), f"{found.raw.where}/{key}"
            if step is None:
                message = f"{where} is {_shown_item(found, key)}; netx needs one integer or two (height, width)"
                yield Violation("steps_are_integers", found.name, message)
            elif min(step) < low or max(step) > MAX_STEP:
                message = (
                    f"{where} is {step}, allowed {low}..{MAX_STEP}; write the one that was trained"
                )
                yield Violation("steps_are_integers", found.name, message)
        groups = found.raw.integers("groups")
        if groups is None or np.shape(found.raw.group["groups"]) != () or groups[0] < 1:
            message = (
                f"{found.raw.where}/groups is {_shown_item(found, 'groups')}; netx needs one integer above 0 "
                "without a dimension, an array stops it"
            )
            yield Violation("steps_are_integers", found.name, message)


def _shown_item(found: DraftLayer, key: str) -> str:
    if key not in found.raw.group:
        return "missing"
    value = found.raw.group[key]
    if not isinstance(value, (np.ndarray, np.generic)):
        return "no number"
    return f"{value.dtype}{value.shape} {shown(value.reshape(-1)[:3].tolist())}"


def shapes_chain(draft: Draft) -> Iterator[Violation]:
    for position, found in enumerate(draft.layers):
        message = None
        if found.raw.kind == "conv":
            # Where a layer before it is broken, that one says so.
            before = any(sender.raw.kind != "flatten" for sender in draft.layers[:position])
            strange = found.incoming is None and before
            message = None if strange else _conv_fault(found)
        elif found.raw.kind in ("dense", "dense_rec"):
            message = _dense_fault(found)
        elif found.raw.kind == "flatten":
            # netx transposes the three axes of what comes before, unless that is an input without neurons.
            sender = next(
                (s for s in reversed(draft.layers[:position]) if s.raw.kind != "flatten"), None
            )
            bare = sender is None or (sender.raw.kind == "input" and sender.neuron is None)
            if not bare and found.incoming is not None and len(found.incoming) != 3:
                message = f"{found.raw.where} flattens {found.incoming}, needs (C, H, W), which stops netx; remove it"
        if message is not None:
            yield Violation("shapes_chain", found.name, message)


def _dense_fault(found: DraftLayer) -> str | None:
    weight, incoming = found.raw.whole("weight"), found.incoming
    if incoming is None:
        return None
    if len(incoming) == 3:
        return f"{found.raw.where}: dense receives {incoming}; netx needs a flatten layer before it, add one"
    if weight is None or weight.ndim not in (1, 2) or not weight.size:
        return None
    rows = prod(found.raw.integers("shape") or (0,)) if weight.ndim == 1 else len(weight)
    inputs = weight.size // rows if rows > 0 else 0
    if inputs != prod(incoming):
        return f"{found.raw.where} receives {prod(incoming)} values, has {inputs} inputs; fit the one to the other"
    return None


def _conv_fault(found: DraftLayer) -> str | None:
    where, incoming = found.raw.where, found.incoming
    if incoming is None or len(incoming) != 3:
        arrives = "an unknown shape" if incoming is None else str(incoming)
        return f"{where}: a convolution receives {arrives}, needs (C, H, W); add an input layer of that shape"
    weight, groups = found.raw.whole("weight"), found.raw.integers("groups")
    steps = [pair(found.raw, key) for key in ("stride", "padding", "dilation")]
    if weight is None or weight.ndim < 4 or not weight.size or groups is None or groups[0] < 1:
        return None
    outputs, inputs = weight.shape[0], weight.shape[1] * groups[0]
    if inputs != incoming[0] or outputs % groups[0]:
        turned = "; it looks like (W, H, C), write (C, H, W)" if inputs == incoming[2] else ""
        return (
            f"{where} receives {incoming[0]} channels of {incoming}, its kernel has {weight.shape[1]} inputs in {groups[0]} "
            f"groups and {outputs} outputs" + (turned or "; fit the one to the other")
        )
    lowest = [min(step) if step is not None else -1 for step in steps]
    if found.layer is None and all(
        low >= least for low, least in zip(lowest, (1, 0, 1), strict=True)
    ):
        return f"{where}: its kernel {weight.shape[2:4]} is larger than its padded input {incoming}; pad more"
    return None


def descriptions_agree(draft: Draft) -> Iterator[Violation]:
    """What is said twice: netx reads one of the two, or stops."""
    for found in draft.layers:
        for key, said, holds in _descriptions(found):
            turned = (
                "; it looks like (W, H, C), write (C, H, W)"
                if isinstance(holds, tuple) and len(holds) == 3 and said == holds[::-1]
                else "; write what it is"
            )
            message = f"{found.raw.where}/{key} says {said}, the layer gives {holds}" + turned
            yield Violation("descriptions_agree", found.name, message)


def _descriptions(found: DraftLayer) -> Iterator[tuple[str, Any, Any]]:
    raw, weight = found.raw, found.raw.whole("weight")
    shape = raw.integers("shape")
    if raw.kind in ("conv", "dense", "dense_rec") and shape is None:
        yield "shape", _shown_item(found, "shape"), found.outgoing or "another"
    elif raw.kind == "conv" and found.layer is not None and shape != found.outgoing:
        yield "shape", shape, found.outgoing
    elif raw.kind in ("dense", "dense_rec") and weight is not None and weight.ndim == 2:
        if prod(shape or ()) != len(weight):
            yield "shape", shape, (len(weight),)
    elif raw.kind == "flatten" and shape and found.outgoing and prod(shape) != prod(found.outgoing):
        yield "shape", shape, found.outgoing
    if weight is None:
        return
    known: dict[str, Shape] = {}
    if raw.kind == "conv" and weight.ndim >= 4:
        groups = raw.integers("groups") or (1,)
        known = {
            "inChannels": (weight.shape[1] * groups[0],),
            "outChannels": (weight.shape[0],),
            "kernelSize": (weight.shape[2], weight.shape[3]),
        }
    elif raw.kind in ("dense", "dense_rec") and weight.ndim == 2:
        known = {"inFeatures": (weight.shape[1],), "outFeatures": (weight.shape[0],)}
    for key, holds in known.items():
        said = raw.integers(key)
        if key in raw.group and said != holds:
            yield key, said if said is not None else _shown_item(found, key), holds


def sizes_are_bounded(draft: Draft) -> Iterator[Violation]:
    for found in draft.layers:
        sent = (
            0
            if found.outgoing is None or min(found.outgoing, default=0) < 1
            else prod(found.outgoing)
        )
        if sent > MAX_NEURONS:
            message = f"{found.raw.where} sends {sent:,} values of {found.outgoing}, allowed {MAX_NEURONS:,}; make it smaller"
            yield Violation("sizes_are_bounded", found.name, message)
