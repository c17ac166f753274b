"""File rules on arrays: weights, biases and delays are whole numbers of the right shape, and netx keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from knarr.deploy.netx.draft import INT32_MAX, INT32_MIN, Draft, DraftLayer, spread_delay
from knarr.deploy.netx.raw import RawLayer, whole_numbers
from knarr.deploy.violation import Violation, bias_violation
from knarr.hw_sim.network import MAX_DELAY


def _fault(where: str, value: Any) -> str | None:
    """Why an item is no array of integers, or None."""
    if isinstance(value, dict):
        return (
            f"{where} is a group; only real weights are supported, write one array"
            if {"real", "imag"} & set(value)
            else f"{where} is a group; write an array of integers"
        )
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "iuf":
        return f"{where} holds no numbers; write an array of integers"
    if not value.size:
        return f"{where} is empty, of shape {value.shape}; write an array of integers"
    if whole_numbers(value) is not None:
        return None
    flat = value.reshape(-1)
    if not np.isfinite(flat).all():
        bad = int(np.flatnonzero(~np.isfinite(flat))[0])
        return f"{where} holds {flat[bad]} at {_place(bad, value)}; write an array of integers"
    broken = np.flatnonzero((flat != np.rint(flat)) | (np.abs(flat) >= 2.0**53))
    return (
        f"{where} is not made of integers: {len(broken)} of {flat.size} have a fraction or are too large, first "
        f"{flat[broken[0]]} at {_place(int(broken[0]), value)}, and netx truncates them; quantise it"
    )


def _place(index: int, value: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, value.shape or (1,)))


def _keys(raw: RawLayer) -> tuple[str, ...]:
    return ("weight", "weight_rec") if raw.kind == "dense_rec" else ("weight",)


def weights_are_integers(draft: Draft) -> Iterator[Violation]:
    for found in draft.synapses:
        for key in _keys(found.raw):
            where = f"{found.raw.where}/{key}"
            if key not in found.raw.group:
                message: str | None = f"{found.raw.where} has no {key}; write an array of integers"
            else:
                message = _fault(where, found.raw.group[key])
            whole = found.raw.whole(key)
            if (
                whole is not None
                and whole.size
                and not INT32_MIN <= whole.min() <= whole.max() <= INT32_MAX
            ):
                message = f"{where} spans {whole.min()}..{whole.max()}, allowed -256..254; quantise it to 8 bits"
            if message is not None:
                yield Violation("weights_are_integers", found.name, message)


def biases_are_integers(draft: Draft) -> Iterator[Violation]:
    for found in draft.synapses:
        if "bias" not in found.raw.group:
            continue
        where = f"{found.raw.where}/bias"
        message = _fault(where, found.raw.group["bias"])
        if message is not None:
            yield Violation("biases_are_integers", found.name, message)
            continue
        shape, outputs = np.shape(found.raw.group["bias"]), _outputs(found)
        spread = found.raw.kind != "conv" and shape in ((), (1,))
        if outputs is not None and shape != (outputs,) and not spread:
            message = f"{where} is of shape {shape}, allowed ({outputs},); write one per output" + (
                " channel" if found.raw.kind == "conv" else ""
            )
            yield Violation("biases_are_integers", found.name, message)


def _outputs(found: DraftLayer) -> int | None:
    weight = found.raw.whole("weight")
    if weight is not None and weight.ndim > 1:
        return len(weight)
    shape = found.raw.integers("shape")
    return None if shape is None or found.raw.kind == "conv" else prod(shape)


def biases_fit_registers(draft: Draft) -> Iterator[Violation]:
    """Those beyond 32 bits, which no layer can hold; the rest is the network rule's."""
    for found in draft.synapses:
        bias = found.raw.whole("bias")
        if (
            bias is not None
            and bias.size
            and not INT32_MIN <= bias.min() <= bias.max() <= INT32_MAX
        ):
            yield bias_violation(found.name, int(bias.min()), int(bias.max()))


def delays_are_kept(draft: Draft) -> Iterator[Violation]:
    for found in draft.synapses:
        if "delay" not in found.raw.group:
            continue
        where = f"{found.raw.where}/delay"
        if found.raw.kind == "conv":
            message: str | None = f"{where} is a conv delay, which netx ignores; remove it"
        elif found.raw.kind == "dense_rec":
            message = f"{where} in dense_rec makes netx drop the weight exponent; remove the delay"
        else:
            message = _fault(where, found.raw.group["delay"]) or _delay_fault(found, where)
        if message is not None:
            yield Violation("delays_are_kept", found.name, message)


def _delay_fault(found: DraftLayer, where: str) -> str | None:
    delay, weight = found.raw.whole("delay"), found.raw.whole("weight")
    if delay is None:
        return None
    if delay.min() < 0 or delay.max() > MAX_DELAY:
        return (
            f"{where} spans {delay.min()}..{delay.max()}, allowed 0..{MAX_DELAY}, netx clamps longer ones and stops at "
            "negative ones; train with delays in that range"
        )
    outputs = _outputs(found)
    if weight is None or not outputs or weight.size % outputs:
        return None
    shape = (outputs, weight.size // outputs)
    if spread_delay(delay, shape) is None:
        return f"{where} is of shape {delay.shape} for weights of {shape}; give one per output, input or synapse"
    return None
