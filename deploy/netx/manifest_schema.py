"""The shape that a manifest must have before anything in it is believed.

A manifest is text out of a file, and what reads it asks for its parts by name. Fields that are not
listed here are let through, since later versions note more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from knarr.deploy.errors import DeployError


class _Part(BaseModel):
    # Strict: a text is no number and True is not 1.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Place(_Part):
    sample: int
    timestep: int


class _LayerNotes(_Part):
    """The facts of a layer; most are there only where calibration samples were run."""

    name: str
    weight_error: float
    weights_clipped: int
    sum_limit: float = Field(gt=0)
    state_limit: float = Field(default=1, gt=0)
    sum_bound: float | None = None
    sum_peak: float | None = None
    v_peak: float | None = None
    decisions: int | None = Field(default=None, gt=0)
    spikes_float: int | None = None
    spikes_chip: int | None = None
    mismatches: int | None = None
    rate_error: float | None = None
    first_divergence: _Place | None = None
    volts_float: float | None = None
    volts_off: float | None = None
    classes_kept: int | None = None
    correct: int | None = None


class _Calibration(_Part):
    samples: int
    timesteps: int
    classes_kept: int
    correct_float: int | None = None
    correct_chip: int | None = None


class _Trained(_Part):
    lowered_from: str | None = None


class _Lowering(_Part):
    weight_bits: int | None = None
    calibration: _Calibration | None = None
    layers: list[_LayerNotes] = []
    rewrites: list[str] = []
    approximations: list[str] = []
    rounding: list[str] = []
    folded: list[str] = []
    lost: list[str] = []
    trained: _Trained | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Lowering:
        """Demand what a table of these notes shows."""
        given = self.model_fields_set
        if not given or "trained" in given:
            if given and self.weight_bits is None:
                raise ValueError("weight_bits is missing")
            return self
        missing = {"weight_bits", "calibration", "layers", "rewrites", "approximations"} - given
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        for layer in self.layers:
            wanted = ["sum_bound"]
            if self.calibration is not None:
                wanted = ["sum_peak", "v_peak", "state_limit", "classes_kept"]
                fired = ["spikes_float", "spikes_chip", "mismatches"]
                wanted += fired if layer.decisions is not None else ["volts_float", "volts_off"]
                wanted += ["correct"] if self.calibration.correct_chip is not None else []
                if layer.decisions is not None:
                    needed = {"rate_error", "first_divergence"} - layer.model_fields_set
                    wanted += sorted(needed)
            for field in wanted:
                if getattr(layer, field) is None:
                    raise ValueError(f"layer '{layer.name[:40]}' has no {field}")
        return self


class _Readout(_Part):
    kind: Literal["spikes", "voltage"]
    over_time: Literal["sum", "mean", "last"] = "sum"
    votes: int = Field(default=1, ge=1)


class _Input(_Part):
    bits: int = 1
    units: float = 1.0
    kind: str = "events"
    signed: bool = False
    neuron: str | None = None


class _Layer(_Part):
    name: str | None = None
    neuron: str | None = None
    units_per_volt: float | None = None


class _Manifest(_Part):
    dt_s: float | None = Field(default=None, gt=0)
    graph_hash: str | None = None
    input: _Input = _Input()
    readout: _Readout | None = None
    lowering: _Lowering = _Lowering()
    layers: list[_Layer] = []


def require_manifest(manifest: Mapping[str, Any], cure: str) -> None:
    """Refuse a manifest in which something is not what its name says.

    Raises:
        DeployError: names the item, and the cure.
    """
    try:
        _Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80] or "it"
        reason = str(first["msg"])[:160].removeprefix("Value error, ")
        if first["type"] == "model_type":
            reason = "Input should be an object with named items"
        raise DeployError(f"its manifest is damaged at {place} ({reason}); {cure}") from error
    except RecursionError as error:
        raise DeployError(f"its manifest nests too deep; {cure}") from error
