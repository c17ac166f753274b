"""Prices as data, and the paper model against the printed numbers of Spiking Emotions (CEUR-WS 3331 paper 8)."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction
from importlib.resources import files
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from knarr.hw_sim.counts import LayerCounts, LedgerRow, OperationCounts
from knarr.hw_sim.energy import GRADES, PriceError, PriceTable, price, price_table, ratio
from knarr.hw_sim.errors import ChipError, CountError

FIRST_ANN, FIRST_SNN = 310_915_584, 9_144_576
OTHERS = 34_292_736 + 7_225_344 + 6_422_528


def counts(kind: Literal["snn", "ann"], **layers: dict[str, int | Fraction]) -> OperationCounts:
    def layer(values: dict[str, int | Fraction]) -> LayerCounts:
        dense = sum((Fraction(value) for value in values.values()), Fraction(0))
        zeros: dict[str, Any] = {field.name: 0 for field in fields(LayerCounts)}
        return LayerCounts(**zeros | {"dense_valid": dense, "dense_padded": dense} | values)

    ledger = tuple(LedgerRow(name, "Dense", "counted") for name in layers)
    return OperationCounts({name: layer(values) for name, values in layers.items()}, ledger, 1, 1, kind)


def spiking_emotions(timesteps: int, density: Fraction = Fraction(1)) -> OperationCounts:
    """First step of the first layer MAC, the rest ACC; the float frame is not scaled by the density (row of 0.41 mJ)."""
    all_acc = density * timesteps
    return counts(
        "snn",
        first={"mac": FIRST_SNN, "acc": all_acc * FIRST_SNN - FIRST_SNN},
        others={"acc": all_acc * OTHERS},
    )


def test_ann_of_table_ii() -> None:
    estimate = price(counts("ann", first={"mac": FIRST_ANN}, others={"mac": OTHERS}))
    assert estimate.nominal_pj * 1e-6 == pytest.approx(1650.74, abs=0.005)
    assert estimate.layers_pj["others"] == pytest.approx(4.6 * OTHERS)
    assert sum(estimate.layers_pj.values()) == pytest.approx(estimate.nominal_pj)


@pytest.mark.parametrize(
    ("timesteps", "density", "energy_uj"),
    [(30, Fraction(1), 1575.13), (68, Fraction(1), 3527.45), (68, Fraction("0.1079"), 410.80)],
)
def test_snn_of_table_ii(timesteps: int, density: Fraction, energy_uj: float) -> None:
    assert price(spiking_emotions(timesteps, density)).nominal_pj * 1e-6 == pytest.approx(
        energy_uj, abs=0.005
    )


def test_break_even_of_table_ii() -> None:
    ann = price(counts("ann", first={"mac": FIRST_ANN}, others={"mac": OTHERS}))
    assert ratio(price(spiking_emotions(31)), ann) < 1 < ratio(price(spiking_emotions(32)), ann)


@pytest.mark.parametrize(
    ("profile", "acc_pj", "mac_pj", "grade"),
    [
        ("horowitz_fp32", 0.9, 4.6, "T"),
        ("horowitz_int32", 0.1, 3.2, "T"),
        ("horowitz_int8", 0.03, 0.23, "T2"),
    ],
)
def test_prices_of_each_profile(profile: str, acc_pj: float, mac_pj: float, grade: str) -> None:
    for values, energy in (({"acc": 1000}, acc_pj), ({"mac": 1000}, mac_pj)):
        estimate = price(counts("snn", fc=dict(values)), profile)
        assert estimate.nominal_pj == pytest.approx(1000 * energy)
        assert (estimate.lo_pj, estimate.hi_pj) == (None, None)  # Horowitz gives no interval
        assert (estimate.node_nm, estimate.scope) == (45, "marginal")
        assert estimate.provenance == (
            f"prices {profile}_add, {profile}_mac (Horowitz, ISSCC 2014 pp 10-14; PMC8934428 tab. 3); "
            f"worst grade {grade}"
        )
    assert set(price_table().profiles) == {"horowitz_fp32", "horowitz_int32", "horowitz_int8"}


def test_only_the_headline_is_priced() -> None:
    """Zero weights are stored, so they cost; bias, updates and spikes are not in the paper's formula."""
    bare = counts("snn", fc={"acc": 10, "mac": 4})
    layer = replace(
        bare.layers["fc"],
        acc_nonzero=Fraction(3),
        mac_nonzero=Fraction(1),
        bias_adds=Fraction(99),
        neuron_updates=Fraction(99),
        spikes=Fraction(99),
    )
    full = replace(bare, layers={"fc": layer})
    assert price(full).nominal_pj == price(bare).nominal_pj == pytest.approx(0.9 * 10 + 4.6 * 4)


def test_bounds_are_priced_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_json()
    for record in table["records"]:
        record |= {"lo": record["nominal"] / 2, "hi": record["nominal"] * 3, "grade": "C"}
    monkeypatch.setattr("knarr.hw_sim.energy.price_table", lambda: PriceTable.model_validate(table))
    estimate = price(counts("snn", fc={"acc": 10, "mac": 4}))
    nominal = 0.9 * 10 + 4.6 * 4
    assert estimate.lo_pj == pytest.approx(nominal / 2)
    assert estimate.hi_pj == pytest.approx(nominal * 3)


@pytest.mark.parametrize(("add", "mac", "worst"), [("M", "S2", "S2"), ("D", "T2", "D"), ("C", "M2", "C")])
def test_the_worst_grade_is_told(add: str, mac: str, worst: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_json()
    for record in table["records"]:
        record["grade"] = mac if record["term"] == "mac" else add
    monkeypatch.setattr("knarr.hw_sim.energy.price_table", lambda: PriceTable.model_validate(table))
    assert price(counts("snn", fc={"acc": 10})).provenance.endswith(f"worst grade {worst}")


def table_json() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(
        files("knarr.hw_sim").joinpath("prices.json").read_text(encoding="utf-8")
    )
    return loaded


def test_records_as_published() -> None:
    values = {record.id: record.nominal for record in price_table().records}
    assert values == {
        "horowitz_int8_add": 0.03,
        "horowitz_int8_mul": 0.2,
        "horowitz_int8_mac": 0.23,
        "horowitz_int32_add": 0.1,
        "horowitz_int32_mul": 3.1,
        "horowitz_int32_mac": 3.2,
        "horowitz_fp32_add": 0.9,
        "horowitz_fp32_mul": 3.7,
        "horowitz_fp32_mac": 4.6,
    }
    assert all(record.grade in GRADES for record in price_table().records)


def test_a_mac_is_the_sum_of_its_parts() -> None:
    table = price_table()
    for precision in ("int8", "int32", "fp32"):
        add, mul, mac = (
            table.record(f"horowitz_{precision}_{term}").nominal for term in ("add", "mul", "mac")
        )
        assert add + mul == pytest.approx(mac)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lo": 2.0}, "lo <= nominal <= hi"),
        ({"nominal": -1.0}, "greater than or equal to 0"),
        ({"unit": "nJ"}, "unit"),
        ({"grade": "X"}, "grade"),
        ({"node_nm": 14}, "differ in node, precision or scope"),
        ({"term": "mul"}, "acc needs an add record"),
        ({"id": "horowitz_int8_mul"}, "ids repeat"),
        ({"id": "other"}, "no records"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_broken_table_is_refused(change: dict[str, object], message: str) -> None:
    table = table_json()
    assert table["records"][0]["id"] == "horowitz_int8_add"
    table["records"][0] |= change
    with pytest.raises(ValidationError, match=message):
        PriceTable.model_validate(table)


def test_what_price_refuses() -> None:
    fc = counts("snn", fc={"acc": 10})
    for model in ("memory", "chip"):
        with pytest.raises(PriceError, match=f"'{model}' is not available yet; choose from .'paper'."):
            price(fc, model=model)
    with pytest.raises(PriceError, match=r"'lemaire' does not exist; choose from .'paper'."):
        price(fc, model="lemaire")
    with pytest.raises(PriceError, match=r"'loihi2' does not exist; choose from .'horowitz_fp32', "):
        price(fc, "loihi2")
    assert issubclass(PriceError, ChipError)


def test_what_is_not_counted_is_not_priced() -> None:
    fc = counts("snn", fc={"acc": 10})
    partial = replace(fc, ledger=(*fc.ledger, LedgerRow("lstm1", "LSTM", "unsupported", "no rule")))
    with pytest.raises(CountError, match="lstm1"):
        price(partial)


def test_ratio() -> None:
    snn, ann = price(counts("snn", fc={"acc": 46})), price(counts("ann", fc={"mac": 18}))
    assert ratio(snn, ann) == pytest.approx(0.5)
    for changes, message in (
        ({"node_nm": 14}, "node_nm 14 vs 45"),
        ({"precision": "int8"}, "precision int8 vs fp32"),
        ({"scope": "all-in"}, "scope all-in vs marginal"),
        ({"model": "chip"}, "model chip vs paper"),
    ):
        with pytest.raises(PriceError, match=message):
            ratio(replace(snn, **changes), ann)
    with pytest.raises(PriceError, match="of 'ann' to 'snn'"):
        ratio(ann, snn)
    with pytest.raises(PriceError, match="costs 0 pJ"):
        ratio(snn, replace(ann, nominal_pj=0.0))


def test_json() -> None:
    estimate = price(counts("snn", fc={"acc": 10}))
    loaded = json.loads(json.dumps(estimate.to_json()))
    assert loaded == {
        "lo_pj": None,
        "nominal_pj": 9.0,
        "hi_pj": None,
        "layers_pj": {"fc": 9.0},
        "provenance": estimate.provenance,
        "model": "paper",
        "profile": "horowitz_fp32",
        "kind": "snn",
        "node_nm": 45,
        "precision": "fp32",
        "scope": "marginal",
    }
