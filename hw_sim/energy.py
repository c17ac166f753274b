"""Joules from counts: a pure function of (counts, price records).

Paper model: E = price(mac) * MAC + price(add) * ACC on the headline counts (stored synapses), no bias, updates or
memory. With the fp32 prices of Horowitz that is 4.6 * MAC + 0.9 * ACC pJ, the formula of most SNN papers. It is no
price of a GPU, and none of Loihi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from knarr.hw_sim.counts import LayerCounts, OperationCounts
from knarr.hw_sim.errors import ChipError

MODELS = ("paper",)
PLANNED_MODELS = ("memory", "chip")
GRADES = ("M", "M2", "C", "C2", "S", "S2", "T", "T2", "D", "D2")
"""Best to worst: measured silicon, calibrated model, pre-silicon simulation, published table, datasheet arithmetic; 2 is
second-hand."""


class PriceError(ChipError):
    """Counts cannot be priced as asked, or two energies cannot be compared."""


class PriceRecord(BaseModel):
    """One price: what one operation costs, where, and who says so. An unknown bound is None, not a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    term: Literal["add", "mul", "mac"]
    lo: float | None = Field(ge=0)
    nominal: float = Field(ge=0)
    hi: float | None = Field(ge=0)
    unit: Literal["pJ"]
    node_nm: int = Field(gt=0)
    precision: str
    scope: Literal["marginal", "all-in"]
    grade: Literal["M", "M2", "C", "C2", "S", "S2", "T", "T2", "D", "D2"]
    source: str = Field(min_length=1)
    note: str

    @model_validator(mode="after")
    def _ordered(self) -> PriceRecord:
        known = [value for value in (self.lo, self.nominal, self.hi) if value is not None]
        if known != sorted(known):
            raise ValueError(f"price '{self.id}': lo <= nominal <= hi does not hold for {known}")
        return self


class Profile(BaseModel):
    """Which records price an accumulation and a multiply-accumulate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    acc: str
    mac: str


class PriceTable(BaseModel):
    """The package's prices (`prices.json`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: tuple[PriceRecord, ...]
    profiles: dict[str, Profile]

    @model_validator(mode="after")
    def _consistent(self) -> PriceTable:
        by_id = {record.id: record for record in self.records}
        if len(by_id) != len(self.records):
            raise ValueError("prices: record ids repeat")
        for name, profile in self.profiles.items():
            unknown = {profile.acc, profile.mac} - set(by_id)
            if unknown:
                raise ValueError(f"profile '{name}': no records {sorted(unknown)}")
            acc, mac = by_id[profile.acc], by_id[profile.mac]
            if (acc.term, mac.term) != ("add", "mac"):
                raise ValueError(f"profile '{name}': acc needs an add record and mac a mac record")
            if (acc.node_nm, acc.precision, acc.scope) != (mac.node_nm, mac.precision, mac.scope):
                raise ValueError(f"profile '{name}': its records differ in node, precision or scope")
        return self

    def record(self, record_id: str) -> PriceRecord:
        """The record of this id."""
        return next(record for record in self.records if record.id == record_id)


@cache
def price_table() -> PriceTable:
    """Read and check the package's prices."""
    text = files("knarr.hw_sim").joinpath("prices.json").read_text(encoding="utf-8")
    return PriceTable.model_validate_json(text)


@dataclass(frozen=True)
class EnergyEstimate:
    """Energy of one inference in picojoules.

    Args:
        lo_pj, nominal_pj, hi_pj: interval; a bound is None where a price used has none.
        layers_pj: layer name -> nominal energy.
        provenance: one line: price records and their worst grade.
        model, profile: what was asked for.
        kind: "snn" or "ann", as counted.
        node_nm, precision, scope: of the prices; two energies compare only where these agree.
    """

    lo_pj: float | None
    nominal_pj: float
    hi_pj: float | None
    layers_pj: Mapping[str, float]
    provenance: str
    model: str
    profile: str
    kind: Literal["snn", "ann"]
    node_nm: int
    precision: str
    scope: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers_pj", MappingProxyType(dict(self.layers_pj)))

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, with the same names."""
        return {**vars(self), "layers_pj": dict(self.layers_pj)}


def price(counts: OperationCounts, profile: str = "horowitz_fp32", *, model: str = "paper") -> EnergyEstimate:
    """Energy of one inference.

    Args:
        counts: of `count` or `count_onnx`; an ANN is priced on `mac` = dense valid multiplications.
        profile: which prices: a name of `price_table().profiles`.
        model: "paper".

    Returns:
        Interval, nominal energy per layer, and provenance.

    Raises:
        CountError: the counts have no total.
        PriceError: unknown profile or model.
    """
    if model not in MODELS:
        planned = " is not available yet" if model in PLANNED_MODELS else " does not exist"
        raise PriceError(f"model: '{model}'{planned}; choose from {list(MODELS)}")
    table = price_table()
    if profile not in table.profiles:
        raise PriceError(f"profile: '{profile}' does not exist; choose from {sorted(table.profiles)}")
    acc, mac = table.record(table.profiles[profile].acc), table.record(table.profiles[profile].mac)
    total = counts.total

    def bound(acc_pj: float | None, mac_pj: float | None) -> float | None:
        return None if acc_pj is None or mac_pj is None else _energy(total, acc_pj, mac_pj)

    worst = max((acc.grade, mac.grade), key=GRADES.index)
    return EnergyEstimate(
        lo_pj=bound(acc.lo, mac.lo),
        nominal_pj=_energy(total, acc.nominal, mac.nominal),
        hi_pj=bound(acc.hi, mac.hi),
        layers_pj={name: _energy(layer, acc.nominal, mac.nominal) for name, layer in counts.layers.items()},
        provenance=f"prices {acc.id}, {mac.id} ({acc.source}); worst grade {worst}",
        model=model,
        profile=profile,
        kind=counts.kind,
        node_nm=acc.node_nm,
        precision=acc.precision,
        scope=acc.scope,
    )


def _energy(counts: LayerCounts, acc_pj: float, mac_pj: float) -> float:
    return mac_pj * float(counts.mac) + acc_pj * float(counts.acc)


def ratio(snn: EnergyEstimate, ann: EnergyEstimate) -> float:
    """E_snn / E_ann, nominal; below 1 the spiking network is cheaper.

    Raises:
        PriceError: not an SNN and an ANN, models, nodes, precisions or scopes that differ, or an ANN that costs nothing.
    """
    if (snn.kind, ann.kind) != ("snn", "ann"):
        raise PriceError(f"ratio: of '{snn.kind}' to '{ann.kind}', needs 'snn' to 'ann'")
    for field in ("model", "node_nm", "precision", "scope"):
        left, right = getattr(snn, field), getattr(ann, field)
        if left != right:
            raise PriceError(
                f"ratio: {field} {left} vs {right}; price both sides with the same profile and model"
            )
    if ann.nominal_pj == 0:
        raise PriceError("ratio: the ANN costs 0 pJ, there is nothing to compare with")
    return snn.nominal_pj / ann.nominal_pj
