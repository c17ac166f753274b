"""The quantised twin of a spiking network: the rival of equal capacity.

A neuron that fires in some of T steps tells one of T + 1 values, which ceil(log2(T + 1)) bits do as
well. So the twin has the layers of the spiking network, runs once, and multiplies activations of so
many bits (Yan et al., arXiv 2409.08290). It needs no training to be counted: its multiplications are
the dense synapses of one step.

    E_mac(bits) = E_mul * bits / precision + E_add

is an assumption: a multiplier of fewer rows costs in proportion, the accumulator stays.
"""

from __future__ import annotations

from dataclasses import fields, replace
from math import ceil, log2

from knarr.hw_sim.counting.counts import LayerCounts, OperationCounts
from knarr.hw_sim.energy.models import PRECISION_BITS
from knarr.hw_sim.energy.prices import PriceError, Profile

POOLS = ("AvgPool2d", "SumPool2d")
KEPT = ("dense_valid", "dense_padded", "bias_adds")
"""Counts of the spiking network that the twin has once instead of at every step."""


def twin_bits(student: OperationCounts) -> int:
    """Return the bits of the twin's activations: ceil(log2(T + 1))."""
    return ceil(log2(float(student.timesteps) + 1))


def quantised_twin(student: OperationCounts) -> OperationCounts:
    """Return the counts of the twin: an ANN of the same layers, run once.

    Args:
        student: counts of a spiking network.

    Raises:
        PriceError: not a spiking network, or pools folded into its synapses, which an ANN runs
            before it multiplies.
    """
    if student.kind != "snn":
        raise PriceError(f"twin: of '{student.kind}', needs the counts of a spiking network")
    folded = [row.name for row in student.ledger if row.operation in POOLS]
    if folded and student.pooling == "folded":
        raise PriceError(
            f"twin: pools {folded} are folded into synapses; count with pooling='float'"
        )
    layers = {}
    for name, layer in student.layers.items():
        once = {key: getattr(layer, key) / student.timesteps for key in KEPT}
        macs = once["dense_valid"]
        zeros = dict.fromkeys((field.name for field in fields(LayerCounts)), 0)
        layers[name] = LayerCounts(**{**zeros, **once, "mac": macs, "mac_nonzero": macs})
    sizes = student.sizes and {
        name: replace(size, states=0, leaky=False) for name, size in student.sizes.items()
    }
    return OperationCounts(layers, student.ledger, student.samples, 1, "ann", sizes=sizes)


def twin_prices(profile: Profile, bits: int) -> Profile:
    """Return the prices of a technology for activations of so many bits.

    Args:
        profile: with mul, add and mac.
        bits: of an activation, from 1.

    Raises:
        PriceError: a precision whose bits are unknown, or more bits than it has.
    """
    whole = PRECISION_BITS.get(profile.precision)
    if whole is None or not 1 <= bits <= whole:
        raise PriceError(
            f"twin: {bits} bits at precision '{profile.precision}'; choose a profile of as many bits"
        )
    add, mul = (profile.record(term) for term in ("add", "mul"))
    assert add.nominal is not None  # profiles are checked for it
    assert mul.nominal is not None
    nominal = mul.nominal * bits / whole + add.nominal
    note = f"mul in proportion to {bits} of {whole} bits (an assumption), and add"
    prices = [
        record
        if record.term != "mac"
        else record.model_copy(update={"lo": None, "nominal": nominal, "hi": None, "note": note})
        for record in profile.prices
    ]
    return profile.model_copy(update={"prices": tuple(prices)})
