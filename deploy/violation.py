"""A rule that does not hold, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from knarr.hw_sim.network import DECAY_UNITY

I_DECAY_MIN, I_DECAY_MAX = 1, DECAY_UNITY
V_DECAY_MIN, V_DECAY_MAX = 0, DECAY_UNITY - 1
VTH_MAX = 2**17 - 1
BIAS_MAX = 4095


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold. An error is certain to differ on the chip; a warning may, depending on the input."""

    rule: str
    layer: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: layer '{self.layer}': {self.message} [{self.rule}]"


def fatal(violations: Iterable[Violation]) -> list[Violation]:
    """Those that no chip forgives."""
    return [violation for violation in violations if violation.severity == "error"]


def decay_violation(layer: str, register: str, value: int) -> Violation:
    low, high = (
        (I_DECAY_MIN, I_DECAY_MAX) if register.startswith("i") else (V_DECAY_MIN, V_DECAY_MAX)
    )
    return Violation(
        "decays_fit_registers",
        layer,
        f"{register} {value}, hardware has {low}..{high}; choose another time constant",
    )


def threshold_violation(layer: str, value: int) -> Violation:
    return Violation(
        "thresholds_fit_registers",
        layer,
        f"threshold {value}, allowed 0..{VTH_MAX}; only the last layer may be a voltage readout",
    )


def bias_violation(layer: str, low: int, high: int) -> Violation:
    return Violation(
        "biases_fit_registers",
        layer,
        f"bias {low}..{high}, allowed {-BIAS_MAX}..{BIAS_MAX} (beyond 16 bits Lava wraps it); lower with a smaller scale",
    )


def shown(value: object) -> str:
    """Anything out of a file, short and in one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
