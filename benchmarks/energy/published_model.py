"""The energy model of "Spiking Emotions" as its authors use it: dense operations times a rate, per inference.

Source: CEUR-WS vol. 3331, paper 8, Table II. Operations of a layer are H_out W_out k^2 C_in C_out, prices those of
Horowitz at 45 nm, fp32 (`e_mac`, `e_add`). With F and f the first layer of the ANN and of the SNN, O all later layers but the
head, N time steps, the first of which shows a float frame to the first layer:

    ANN    = e_mac (F + O)
    SNN(N) = e_mac f + e_add f (N - 1) + e_add O N = e_add (f + O) N + (e_mac - e_add) f

This is a proxy, kept to reproduce a published table; `knarr.hw_sim.count` with `price` is what was done.
"""

from __future__ import annotations

from typing import Literal

from knarr.hw_sim.energy.prices import PriceError, load_profile

PROFILE = "horowitz_fp32"
Density = Literal["steps", "everything", "events"]
LEFT_OUT = (
    "the density is that of the input, put on every layer; spikes of inner layers were not measured",
    "without that density the spiking network is the dearer one: it wins only below a mean rate (`break_even_density`)",
    "average pools give fractions: additions alone need pools folded into synapses, and then every spike in a window delivers",
    "activations of the ANN that are 0 are not skipped, silent inputs of the spiking network are",
    "updates of neurons, biases of the batch-norms, memory and static power cost nothing",
)
"""What the proxy does not see."""


def ann_pj(first: float, others: float) -> float:
    """One pass of the ANN: e_mac (F + O).

    Args:
        first, others: multiply-accumulates of the first layer and of all later ones.
    """
    return _price_pj("mac") * (first + others)


def slope_pj(first: float, others: float) -> float:
    """What a time step of the spiking network adds at density 1: e_add (f + O)."""
    return _price_pj("add") * (first + others)


def constant_pj(first: float) -> float:
    """What the float frame costs beyond a frame of events, in the first layer: (e_mac - e_add) f."""
    return (_price_pj("mac") - _price_pj("add")) * first


def snn_pj(
    first: float, others: float, timesteps: int, density: float = 1.0, scales: Density = "steps"
) -> float:
    """N steps of the spiking network.

    Args:
        first, others: dense operations of one step, in the first layer and in all later ones.
        timesteps: N, at least 1; the first shows the float frame.
        density: of the input's events, 0..1, put on every layer.
        scales: what the density scales. "steps", the printed table: e_add (f + O) N, not the constant. "everything": the
            constant as well. "events": all but the float frame, e_mac f + density (e_add f (N - 1) + e_add O N).

    Raises:
        PriceError: no step, a density outside 0..1, or an unknown `scales`.
    """
    if timesteps < 1:
        raise PriceError(f"timesteps: {timesteps}, needs at least 1")
    if not 0 <= density <= 1:
        raise PriceError(f"density: {density}, needs 0..1")
    whole, constant = slope_pj(first, others) * timesteps, constant_pj(first)
    if scales == "steps":
        return density * whole + constant
    if scales == "everything":
        return density * (whole + constant)
    if scales == "events":
        frame = _price_pj("mac") * first
        return frame + density * (whole + constant - frame)
    raise PriceError(f"scales: '{scales}' does not exist; choose steps, everything or events")


def break_even_steps(ann_first: float, snn_first: float, others: float) -> float:
    """N at which both cost the same at density 1: (ANN - constant) / slope; fewer steps are cheaper.

    Args:
        ann_first, snn_first: F and f.
        others: O, of both.
    """
    return (ann_pj(ann_first, others) - constant_pj(snn_first)) / slope_pj(snn_first, others)


def break_even_density(ann_first: float, snn_first: float, others: float, timesteps: int) -> float:
    """Density at which both cost the same at N steps, the constant not scaled: below it the spiking network is cheaper."""
    if timesteps < 1:
        raise PriceError(f"timesteps: {timesteps}, needs at least 1")
    return break_even_steps(ann_first, snn_first, others) / timesteps


def rounded(operations: int) -> int:
    """To 0.1 million, as the paper prints its counts."""
    return round(operations, -5)


def _price_pj(term: str) -> float:
    nominal = load_profile(PROFILE).record(term).nominal
    assert nominal is not None  # a profile that prices something has all of them
    return nominal
