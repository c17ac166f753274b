"""Traffic between cores by hand and beside SANA-FE, places by hand, and predictions of what was measured."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from knarr.deploy import DeployError, core_mapping, place
from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
    count,
    simulate,
)
from knarr.hw_sim.counting.counts import LayerCounts, LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.energy import (
    CoreMapping,
    LayerCores,
    PlaceOptions,
    PriceError,
    Quantity,
    Traffic,
    load_profile,
    places_of,
    price,
    profiles,
    quantised_twin,
    traffic_of,
    twin_bits,
    twin_prices,
)
from knarr.hw_sim.energy.mapping import LOADS, LayerTraffic
from knarr.hw_sim.energy.models import step_times
from knarr.hw_sim.energy.places import _as_measured

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks" / "energy"))

if TYPE_CHECKING:
    from knarr.hw_sim.energy.measure.protocol import Measurement

import price_table
import sanafe_networks
import validation

RESULTS = ROOT / "benchmarks" / "results"
RECORDED = json.loads((RESULTS / "energy_validation.json").read_text("utf-8"))
INTEGRATE = Neuron(i_decay=4096, v_decay=0, vth_int=1)


def chain(*weights: list[list[int]], **options: Any) -> ChipNetwork:
    layers = tuple(
        Dense(f"fc{at}", np.array(weight, dtype=np.int32), INTEGRATE, **options)
        for at, weight in enumerate(weights)
    )
    return ChipNetwork(layers, InputCoding((len(weights[0][0]),)), Readout("spikes"))


def by_hand() -> tuple[ChipNetwork, np.ndarray[Any, Any], CoreMapping]:
    """Two inputs, three neurons on cores 0 and 20, one on core 4; two steps."""
    from scipy import sparse

    network = chain([[2, 0], [0, 2], [1, 1]], [[2, 2, 2]])
    inputs = np.array([[[1, 0], [1, 1]]])
    first = np.zeros((2, 21))
    first[:, 0], first[:, 20] = 2, 1  # synapses from each input into each core
    second = np.zeros((3, 21))
    second[:, 4] = 1
    mapping = CoreMapping(
        "Loihi 1",
        21,
        1,
        {
            "fc0": LayerCores(np.array([0, 0, 20]), sparse.csr_matrix(first)),
            "fc1": LayerCores(np.array([4]), sparse.csr_matrix(second)),
        },
    )
    return network, inputs, mapping


def test_traffic_by_hand() -> None:
    network, inputs, mapping = by_hand()
    traffic = traffic_of(network, inputs, mapping)
    # Step 1: neuron 0 fires (2 > 1), neuron 2 holds 1. Step 2: neurons 0, 1 and 2 fire (2, 2, 3).
    first, second = traffic.layers["fc0"], traffic.layers["fc1"]
    assert (first.cores, first.messages_per_spike) == (2, 1.0)
    # Core 0 is in tile 0 (x 0, y 0), core 4 in tile 1 (0, 1), core 20 in tile 5 (1, 1).
    assert (first.hops_x, first.hops_y) == (1 / 4, 3 / 4)
    # Stored synapses of weight 0 reach a neuron too, so all three are updated in both steps.
    assert first.updated == 1.0
    assert (second.updated, second.messages_per_spike) == (1.0, 0.0)
    assert traffic.external == 2.0  # each input is heard by cores 0 and 20
    found = {name: traffic.loads[0, :, :, at] for at, name in enumerate(LOADS)}
    assert found["neurons"][:, [0, 4, 20]].tolist() == [[2, 1, 1], [2, 1, 1]]
    assert found["spikes"][:, [0, 4, 20]].tolist() == [[1, 1, 0], [2, 1, 1]]
    assert found["messages_in"][:, [0, 4, 20]].tolist() == [[1, 1, 1], [2, 3, 2]]
    assert found["messages_out"][:, [0, 20]].tolist() == [[1, 0], [2, 1]]
    assert found["synapses"][:, [0, 4, 20]].tolist() == [[2, 1, 1], [4, 3, 2]]
    counts = count(network, inputs)
    assert found["synapses"].sum() == counts.total.acc
    # 21 cores are 6 tiles: the barrier of 4 and more.
    times = step_times(load_profile("loihi1_cal"), traffic)[1, 0]
    send = [2 * 6 + 2 * 3.7 + 30 + 5.1, 2 * 6 + 2 * 3.7 + 2 * 30 + 2 * 5.1]
    receive = [16 + 2 * 3.8, 3 * 16 + 3 * 3.8]
    expected = [max(one, two) + 1400 for one, two in zip(send, receive, strict=True)]
    assert times * 1e9 == pytest.approx(expected)
    terms = price(counts, "loihi1_cal", model="chip", traffic=traffic).terms
    assert {name: term.nominal for name, term in terms.items()} == pytest.approx(
        {
            "synapses": 13 * 35.5,
            "updates": 8 * 72.8,
            "spikes": 6 * 69.3,
            "messages": 4 * 111.0,
            "hops": 1 * 3.0 + 3 * 4.2,
        }
    )


def test_a_neuron_that_nothing_reaches_and_that_holds_nothing_is_idle() -> None:
    network = chain([[1, 0]], [[5]])
    mapping = core_mapping(network, place(network, "loihi1"))
    inputs = np.zeros((1, 5, 2))
    inputs[0, 1, 0] = 1
    updated = {
        name: one.updated for name, one in traffic_of(network, inputs, mapping).layers.items()
    }
    # The first neuron is reached in step 1 and holds its potential from then on; it never fires.
    assert updated == {"fc0": 4 / 5, "fc1": 0.0}


@pytest.mark.parametrize("autapses", [False, True])
def test_spikes_that_come_back_are_messages_to_the_own_cores(autapses: bool) -> None:
    random = np.random.default_rng(5)
    own = random.integers(-2, 3, (6, 6)).astype(np.int32)
    np.fill_diagonal(own, 1 if autapses else 0)
    loop = Recurrent("loop", random.integers(0, 3, (6, 4)).astype(np.int32), own, INTEGRATE)
    out = Dense("out", random.integers(0, 3, (2, 6)).astype(np.int32), INTEGRATE)
    network = ChipNetwork((loop, out), InputCoding((4,)), Readout("spikes"))
    inputs = random.integers(0, 2, (3, 9, 4))
    inputs[:, -1] = 0
    traffic = traffic_of(network, inputs, core_mapping(network, place(network, "loihi1")))
    counts = count(network, inputs)
    fired = float(counts.layers["loop"].spikes)
    assert fired > 0
    assert traffic.layers["loop"].messages_per_spike == 2.0  # to its own core and the next one's
    # A spike of the last step is sent all the same, and comes back after the inference.
    last = simulate(network, inputs, record=("spikes",)).spikes["loop"][:, -1].sum()
    late = last * (6 if autapses else 5) / 3
    arrived = traffic.loads[..., LOADS.index("synapses")].sum() / 3
    assert arrived == pytest.approx(float(counts.total.acc) + late)


def test_a_mapping_of_another_network_is_refused() -> None:
    network, inputs, mapping = by_hand()
    wider = chain([[2, 0], [0, 2], [1, 1], [1, 1]], [[2, 2, 2, 2]])
    with pytest.raises(ChipError, match="layer 'fc0' has 3 neurons there, 4 in the network"):
        traffic_of(wider, inputs, mapping)
    other = replace(mapping, layers={"fc0": mapping.layers["fc0"]})
    with pytest.raises(ChipError, match=r"mapping: of layers \['fc0'\], the network has"):
        traffic_of(network, inputs, other)
    with pytest.raises(DeployError, match=r"placement: of layers \['fc0', 'fc1'\]"):
        core_mapping(chain([[1, 0]]), place(network, "loihi1"))
    traffic = traffic_of(network, inputs, mapping)
    with pytest.raises(PriceError, match="layer 'fc0': has no cores in the traffic"):
        price(
            count(network, inputs),
            "loihi1_cal",
            model="chip",
            traffic=replace(traffic, layers={}),
        )


@pytest.mark.parametrize("name", sanafe_networks.networks())
def test_every_term_is_that_of_sana_fe(name: str) -> None:
    """SANA-FE's side is recorded by `make energy-validation`; ours is counted here."""
    network, bias = sanafe_networks.networks()[name]
    mapping = core_mapping(network, place(network, "loihi1"))
    inputs = np.broadcast_to(bias, (1, 40, *network.input.shape))
    counts, traffic = sanafe_networks.pipelined(network, inputs, mapping)
    mine = price(counts, "loihi1_cal", model="chip", traffic=traffic)
    theirs = {
        row["what"].rpartition(", ")[2]: row["measured"]
        for row in RECORDED["rows"]
        if row["what"].startswith(f"SANA-FE, {name},")
    }
    assert len(theirs) == 5
    for term, names in sanafe_networks.TERMS.items():
        found = sum(mine.terms[one].nominal for one in names) * 1e-12
        # Both add floats, in another order.
        assert found == pytest.approx(theirs[term], rel=1e-9)
    assert mine.nominal_pj * 1e-12 == pytest.approx(theirs["total"], rel=1e-9)
    seconds = step_times(load_profile("loihi1_cal"), traffic)[1].sum()
    assert seconds == pytest.approx(theirs["time"], rel=1e-9)


def recorded_pilotnet() -> tuple[OperationCounts, Traffic]:
    """PilotNet's counts and traffic on Loihi 2, as `make energy-validation` wrote them."""
    facts = RECORDED["pilotnet"]
    names = [field.name for field in fields(LayerCounts)]
    layers = {
        name: LayerCounts(**{key: Fraction(layer.get(key, 0)) for key in names})
        for name, layer in facts["counts"].items()
    }
    sizes = {name: LayerSizes(convolution=name.startswith("conv")) for name in layers}
    ledger = tuple(LedgerRow(name, "Conv", "counted") for name in layers)
    there = facts["traffic"]["Loihi 2"]
    traffic = Traffic(
        there["chip"],
        there["cores"],
        there["chips"],
        there["tiles"],
        there["samples"],
        {name: LayerTraffic(**one) for name, one in there["layers"].items()},
        0.0,
        np.zeros((1, 16, there["cores"], len(LOADS))),
    )
    counts = OperationCounts(layers, ledger, 1, 16, "snn", sizes=sizes, pooling="folded")
    return counts, traffic


def test_pilotnet_is_predicted_without_its_own_measurement() -> None:
    for record in load_profile("loihi2_not_fitted").prices:
        assert "pilotnet_snn" not in record.made_from
    assert "pilotnet_snn" in load_profile("loihi2").record("synapse").made_from
    rows = {row["what"]: row for row in RECORDED["rows"]}
    counts, traffic = recorded_pilotnet()
    assert counts.total.acc == 48_267_067
    options = PlaceOptions(loihi2=("loihi2_not_fitted",))
    (there,) = [
        one
        for one in places_of(counts, {"Loihi 2": traffic}, options=options)
        if one.place == "Loihi 2"
    ]
    row = rows["PilotNet on Loihi 2, dynamic (loihi2_not_fitted)"]
    assert there.terms["dynamic"].bounds == pytest.approx(
        tuple(row["predicted"][key] for key in ("low", "nominal", "high"))
    )
    assert row["measured"] == load_profile("l2_pilot_lif").prices[1].si()[1]
    assert row["measured"] == pytest.approx(1.093544e-3, rel=1e-12)
    assert abs(row["relative_error"]) <= 0.25
    assert row["measured_inside"]
    total = rows["PilotNet on Loihi 2, total (loihi2_not_fitted)"]
    assert total["measured"] == pytest.approx(1.661103e-3, rel=1e-12)
    assert abs(total["relative_error"]) <= 0.5
    assert total["measured_inside"]


def test_pages_are_what_their_commands_print() -> None:
    assert (ROOT / "docs" / "prices.md").read_text("utf-8") == price_table.page()
    rows = [
        validation.Row(row["what"], Quantity(**row["predicted"]), row["measured"], row["left_out"])
        for row in RECORDED["rows"]
    ]
    page = (RESULTS / "energy_validation.md").read_text("utf-8")
    assert page == validation.document(rows, RECORDED["missing"])
    assert not RECORDED["missing"]
    assert [row.to_json() for row in rows] == RECORDED["rows"]


def test_totals_and_products_by_hand() -> None:
    network, inputs, mapping = by_hand()
    traffic = replace(traffic_of(network, inputs, mapping), chips=2)
    counts = count(network, inputs)
    places = {one.place: one for one in places_of(counts, {"Loihi 2": traffic})}
    there = places["Loihi 2"]
    loihi2 = {record.term: record.si() for record in load_profile("loihi2").prices}
    for at in range(3):
        dynamic, power = 13 * loihi2["synapse"][at], loihi2["static"][at]  # type: ignore[operator]
        steps = float(step_times(load_profile("loihi2"), traffic)[at].sum())
        waiting = loihi2["input_time"][at]
        assert power is not None
        assert waiting is not None
        total = dynamic + 2 * power * (steps + waiting)
        expected = {
            "dynamic": dynamic,
            "static": 2 * power * steps,
            "input_output": 2 * power * waiting,
            "total": total,
            "latency": steps + waiting,
            "energy_delay_product": total * (steps + waiting),
        }
        found = {name: quantity.bounds[at] for name, quantity in there.terms.items()}
        assert found == pytest.approx(expected)
    values = json.loads(json.dumps(there.to_json()))
    assert values["dynamic"]["unit"] == values["total"]["unit"] == "J"
    assert (values["latency"]["unit"], values["energy_delay_product"]["unit"]) == ("s", "J s")
    assert values["breakdown"]["fc0"]["synapses"] == pytest.approx(9 * 22.7e-12)
    assert any("21 cores of 2 chips" in line for line in there.assumptions)
    # Nobody told what Loihi 1's traffic is.
    first = places["Loihi 1"]
    assert first.terms["dynamic"].nominal is not None
    assert first.terms["total"].nominal is first.terms["latency"].nominal is None
    assert "not placed" in first.terms["static"].why_unknown


def ann(layers: int, macs: int) -> OperationCounts:
    one = LayerCounts.mean({"mac": macs, "dense_valid": macs, "dense_padded": macs})
    names = [f"fc{at}" for at in range(layers)]
    ledger = tuple(LedgerRow(name, "Gemm", "counted") for name in names)
    return OperationCounts(dict.fromkeys(names, one), ledger, 0, 1, "ann")


def test_a_launch_grows_with_layers_and_has_no_bound_for_large_networks() -> None:
    network, inputs, _ = by_hand()
    counts = count(network, inputs)

    def beside(baseline: OperationCounts) -> dict[str, Any]:
        return {one.place: one for one in places_of(counts, {}, baseline)}

    small, deep, large = beside(ann(3, 1000)), beside(ann(13, 1000)), beside(ann(3, 10**9))
    batch = "edge GPU, batch 1"
    assert small[batch].terms["dynamic"].bounds == pytest.approx(
        (1.46e-3, 5.58e-3, 29.7e-3), rel=1e-3
    )
    assert small[batch].terms["latency"].bounds == pytest.approx((0.1635e-3, 2.387e-3, 3.333e-3))
    assert deep[batch].terms["dynamic"].bounds == pytest.approx(
        (1.46e-3 + 0.655e-3, 5.58e-3 + 4.64e-3, 29.7e-3 + 24.72e-3), rel=1e-3
    )
    assert large[batch].terms["dynamic"].bounds[:2] == pytest.approx(
        (1.46e-3 + 3 * 0.8727e-3, 5.58e-3 + 4.5e-3)
    )
    for term in ("dynamic", "static", "total", "latency", "energy_delay_product"):
        assert large[batch].terms[term].high is None
        assert "3e+09 multiplications" in large[batch].terms[term].why_unknown
    assert small["CPU"].terms["total"].nominal == pytest.approx(15.7e-3)
    assert {one.network for one in small.values()} == {"student", "baseline"}


def test_unknown_stays_unknown() -> None:
    known = Quantity(1.0, 2.0, 3.0, "J")
    open_end = Quantity(1.0, 2.0, None, "J", "nobody measured it")
    both = known + open_end
    assert both.bounds == (2.0, 4.0, None)
    assert both.why_unknown == "nobody measured it"
    seconds = Quantity(1.0, 2.0, 4.0, "s")
    assert known.times(seconds, "J s") == Quantity(1.0, 4.0, 12.0, "J s")
    assert open_end.times(seconds, "J s").bounds == (1.0, 4.0, None)


def test_the_quantised_twin_by_hand() -> None:
    network, inputs, _ = by_hand()
    counts = count(network, inputs)
    twin = quantised_twin(counts)
    assert twin_bits(counts) == 2  # two steps tell three values
    assert (twin.kind, twin.timesteps) == ("ann", 1)
    assert {name: layer.mac for name, layer in twin.layers.items()} == {"fc0": 6, "fc1": 3}
    assert twin.total.acc == twin.total.neuron_updates == twin.total.spikes == 0
    prices = twin_prices(load_profile("horowitz_int8"), 2)
    assert price(twin, prices).nominal_pj == pytest.approx(9 * (0.2 * 2 / 8 + 0.1))
    assert price(twin, prices, model="memory").kind == "ann"
    with pytest.raises(PriceError, match="twin: 9 bits at precision 'int8'"):
        twin_prices(load_profile("horowitz_int8"), 9)
    with pytest.raises(PriceError, match="twin: of 'ann'"):
        quantised_twin(twin)
    pooled = replace(counts, ledger=(*counts.ledger, LedgerRow("pool", "AvgPool2d", "folded")))
    with pytest.raises(PriceError, match=r"pools \['pool'\] are folded"):
        quantised_twin(pooled)


def test_profiles_of_devices_and_chips_are_among_those_of_the_package() -> None:
    options = PlaceOptions()
    assert {*options.loihi1, *options.loihi2, options.edge_gpu, options.cpu} <= set(profiles())


def test_a_measured_cpu_is_its_own_host() -> None:
    """RAPL reads the machine that computes; a GPU has a host beside it."""
    window = SimpleNamespace(net_j=1.0, gross_j=3.0, run_ms=2.0, duration_s=10.0)
    batch = SimpleNamespace(windows=(window, window), batch=1, notes=())
    cpu = SimpleNamespace(batches=(batch,), grade="M")
    (here,) = _as_measured(cast("Measurement", cpu))
    assert (here.place, here.not_included) == ("CPU of this machine, batch 1, measured", ())
    (there,) = _as_measured(cast("Measurement", SimpleNamespace(**vars(cpu), device="H200")))
    assert there.not_included == ("the host beside the device",)
