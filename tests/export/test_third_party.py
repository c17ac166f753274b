"""Graphs that no one here wrote: made, exported and run by snnTorch, Sinabs and SpikingJelly, read, stepped and lowered here.

tests/export/thirdparty holds, for each net, its own exporter's file and what its own framework's neurons fired; how they were made
and the whole table: benchmarks/thirdparty, docs/thirdparty.md. 40 files, and six nets whose own exporter fails:

    differ   decisions of `step_nir`, per spiking layer, that are not the framework's: none in 31 files. 8 files do not say
             what the framework does (its reset, its decay); `tool` does that, from the same file, and none differ.
    exact    lowered as it is: the chip differs from the framework as often, layer by layer, as the manifest says.
    near     refused for `reason`; lowered with allow_approximate, and the manifest gives the same reason.
    refused  `reason`: no form on the chip, or, where beta is 1, none in NIR.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nir
import numpy as np
import numpy.typing as npt
import pytest

from knarr.deploy import DeployError, lower
from knarr.deploy.lowering.places import node_places
from knarr.export import ExportError, read, step_nir
from knarr.export.graph.topology import inline, topology
from knarr.hw_sim import simulate

Array = npt.NDArray[Any]
FOLDER = Path(__file__).parent / "thirdparty"
SIZE_LIMIT = 600_000


def snntorch(node: Any, x: Array, dt_s: float) -> Array:
    """snnTorch, one step after a spike: by default the threshold comes off v; Synaptic's "zero" makes v 0, whatever came in."""
    filtered = isinstance(node, nir.CubaLIF)
    share = dt_s / (node.tau_mem if filtered else node.tau)
    v, i, out = np.zeros_like(x[:, 0]), np.zeros_like(x[:, 0]), []
    for drive in np.moveaxis(x, 1, 0):
        i = drive if not filtered else i + dt_s / node.tau_syn * (node.w_in * drive - i)
        late, v = v > node.v_threshold, v + share * (node.r * i - v)
        v = np.where(late, 0, v) if filtered else v - late * node.v_threshold
        out.append(v > node.v_threshold)
    return np.stack(out, 1)


def sinabs(
    node: Any, x: Array, dt_s: float, *, subtract: bool = False, many: bool = False
) -> Array:
    """Sinabs: decay by exp(-1/tau) with gain 1 - that; MultiSpike fires floor(v / v_threshold) times; resets at once."""
    leaky, v, out = isinstance(node, nir.LIF), np.zeros_like(x[:, 0]), []
    keep = np.exp(-dt_s / node.tau) if leaky else 1.0
    for drive in np.moveaxis(x, 1, 0):
        v = keep * v + (1 - keep if leaky else 1.0) * drive
        times = np.floor(np.maximum(v, 0) / node.v_threshold)
        times = times if many else np.minimum(times, 1)
        v = v - times * node.v_threshold if subtract else np.where(times > 0, 0, v)
        out.append(times)
    return np.stack(out, 1)


DEFAULT = partial(sinabs, subtract=True, many=True)
Tool = Callable[[Any, Array, float], Array]


class Expected(NamedTuple):
    lowered: Literal["exact", "refused"] = "exact"
    reason: str = ""
    differ: tuple[int, ...] = ()
    tool: Tool | None = None


EXACT = {
    "sinabs": "conv conv_deep iaf lif_euler",
    "snntorch": "conv conv_deep conv_overlap conv_stride leaky leaky_each leaky_forgets rleaky rleaky_no_bias rleaky_own rsynaptic "
    "synaptic synaptic_bias",
    "spikingjelly": "conv_deep conv_if conv_ragged cuba cuba_bias if if_reset lif lif_default lif_reset lif_undecayed plif residual",
}
EXPECTED = {f"{tool}_{net}": Expected() for tool, nets in EXACT.items() for net in nets.split()} | {
    "sinabs_conv_default": Expected(differ=(13884, 360), tool=DEFAULT),
    "sinabs_iaf_default": Expected(differ=(901, 454), tool=DEFAULT),
    "sinabs_iaf_several": Expected(differ=(226, 304), tool=partial(sinabs, many=True)),
    "sinabs_lif": Expected(differ=(171, 311), tool=sinabs),
    "sinabs_lif_default": Expected(differ=(915, 320), tool=DEFAULT),
    "snntorch_leaky_keeps": Expected(
        "refused", r"node '1': tau holds something else than finite numbers"
    ),
    "snntorch_leaky_open": Expected("refused", r"node '2': no neuron follows it"),
    "snntorch_leaky_subtract": Expected(differ=(738, 462), tool=snntorch),
    "snntorch_rsynaptic_late": Expected(differ=(1136, 537), tool=snntorch),
    "snntorch_synaptic_late": Expected(differ=(1255, 405), tool=snntorch),
}
OWN_EXPORT_FAILS = {
    *("sinabs_conv_average", "sinabs_lif_recurrent", "snntorch_rsynaptic_no_delay"),
    *("spikingjelly_conv_max", "spikingjelly_lif_subtract", "spikingjelly_recurrent"),
}
UNREADABLE = "snntorch_leaky_keeps"
STEPPED = [name for name in EXPECTED if name != UNREADABLE]


class Fixture(NamedTuple):
    graph: nir.NIRGraph
    inputs: Array
    dt_s: float
    spikes: tuple[Array, ...]
    """Of every spiking layer of the framework, in order: (samples, timesteps, *features)."""


@pytest.fixture
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Fixture:
    name = request.param
    with np.load(FOLDER / f"{name}.npz") as arrays:
        timesteps, layers = (
            int(arrays["timesteps"]),
            sum(key.startswith("spikes_") for key in arrays.files),
        )

        def unpacked(key: str) -> Array:
            digits = np.unpackbits(arrays[key], axis=-1, count=timesteps)
            counts = sum(bits << np.uint8(digit) for digit, bits in enumerate(digits))
            return np.moveaxis(np.asarray(counts), -1, 1)

        spikes = tuple(unpacked(f"spikes_{number}") for number in range(layers))
        return Fixture(graph_of(name, tmp_path), unpacked("inputs"), float(arrays["dt_s"]), spikes)


def graph_of(name: str, folder: Path) -> nir.NIRGraph:
    path = folder / f"{name}.nir"
    path.write_bytes(lzma.decompress((FOLDER / f"{path.name}.xz").read_bytes()))
    return read(path)


def by_name(names: list[str]) -> pytest.MarkDecorator:
    pairs = [pytest.param(name, EXPECTED[name], id=name) for name in names]
    return pytest.mark.parametrize(("fixture", "expected"), pairs, indirect=["fixture"])


def differ(ours: Array, theirs: Array) -> int:
    return int((ours.reshape(theirs.shape) != theirs).sum())


def test_every_file_is_expected() -> None:
    assert {path.name[: -len(".nir.xz")] for path in FOLDER.glob("*.nir.xz")} == set(EXPECTED)
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(EXPECTED)
    reports = [json.loads(path.read_text("utf-8"))["nets"] for path in FOLDER.glob("*.json")]
    told = {name: net for report in reports for name, net in report.items()}
    assert set(told) == set(EXPECTED) | OWN_EXPORT_FAILS
    assert {name for name, net in told.items() if "fails" in net} == OWN_EXPORT_FAILS
    assert {name for name, net in told.items() if net["unsaid"]} == {
        n for n, e in EXPECTED.items() if e.tool
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < SIZE_LIMIT


@by_name(STEPPED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_stepper_gives_the_framework_s_spikes(
    fixture: Fixture, expected: Expected, dtype: Literal["float32", "float64"]
) -> None:
    trace = step_nir(fixture.graph, fixture.inputs, fixture.dt_s, dtype=dtype)
    assert len(trace.spikes) == len(fixture.spikes)
    for theirs in fixture.spikes:
        assert 0.1 < theirs.mean() < 0.4
        assert theirs.any(axis=(0, 1)).mean() >= 0.5  # of all neurons
    counts = tuple(map(differ, trace.spikes.values(), fixture.spikes))
    assert counts == (expected.differ or (0,) * len(fixture.spikes))


@by_name([name for name, expected in EXPECTED.items() if expected.tool])
def test_where_they_differ_the_file_lacks_the_framework_s_law(
    fixture: Fixture, expected: Expected
) -> None:
    assert expected.tool is not None
    assert all(expected.differ)
    nodes, edges = inline(fixture.graph)
    order = topology(nodes, edges, fixture.dt_s)
    heard, waiting = fixture.inputs, dict[str, Any]()
    fired = iter(fixture.spikes)
    back = {source: target for target, sources in order.looping.items() for source in sources}
    for name in order.order[1:-1]:
        if name in back:
            continue
        if not hasattr(nodes[name], "v_threshold"):
            waiting[name] = nodes[name]
            continue
        x, theirs = through(waiting, heard, fixture.dt_s), next(fired)
        for source in order.looping[name]:
            before = np.concatenate([np.zeros_like(theirs[:, :1]), theirs[:, :-1]], axis=1)
            x = x + through({source: nodes[source]}, before, fixture.dt_s)
        assert differ(expected.tool(nodes[name], x, fixture.dt_s), theirs) == 0
        heard, waiting = theirs, {}


def through(synapses: dict[str, Any], spikes: Array, dt_s: float) -> Array:
    """What a row of nodes without state makes of (samples, timesteps, *features)."""
    row = ["in", *synapses, "out"]
    nodes = {
        "in": nir.Input({"input": np.array(spikes.shape[2:])}),
        **synapses,
        "out": nir.Output(None),
    }
    graph = nir.NIRGraph(nodes, list(pairwise(row)), type_check=False)
    return step_nir(graph, spikes, dt_s, dtype="float64").output


@by_name([name for name in STEPPED if EXPECTED[name].lowered != "refused"])
def test_the_chip_differs_as_the_manifest_says(fixture: Fixture, expected: Expected) -> None:
    network = lower(fixture.graph, fixture.dt_s, calibration=fixture.inputs)
    manifest = json.loads(json.dumps(network.lowering))
    assert manifest["approximations"] == []
    floats = step_nir(fixture.graph, fixture.inputs, fixture.dt_s).spikes
    chip = simulate(network, fixture.inputs, record=("spikes",)).spikes
    layers = manifest["layers"]
    assert [layer["neuron"] for layer in layers] == list(floats)
    places = node_places(network)
    assert list(places) == list(floats)
    for layer, theirs in zip(layers, fixture.spikes, strict=True):
        own, seat = places[layer["neuron"]]
        sent, wanted = seat.take(chip[own]), floats[layer["neuron"]]
        assert layer["decisions"] == theirs.size
        assert (layer["spikes_chip"], layer["spikes_float"]) == (sent.sum(), wanted.sum())
        assert layer["mismatches"] == differ(sent, wanted)
        # Silence would differ as often as there are spikes, and independent trains of a quarter more often.
        assert layer["mismatches"] < wanted.sum() < 1.1 * sent.sum()
        if expected.tool is None:
            assert layer["mismatches"] == differ(sent, theirs)
        else:
            assert layer["mismatches"] < differ(sent, theirs)


@by_name([name for name in STEPPED if EXPECTED[name].lowered == "refused"])
@pytest.mark.parametrize("allow_approximate", [False, True])
def test_what_the_chip_cannot_hold_is_refused(
    fixture: Fixture, expected: Expected, allow_approximate: bool
) -> None:
    with pytest.raises(DeployError, match=expected.reason):
        lower(
            fixture.graph,
            fixture.dt_s,
            calibration=fixture.inputs,
            allow_approximate=allow_approximate,
        )


def test_what_nir_cannot_hold_is_refused_by_the_reader(tmp_path: Path) -> None:
    """beta 1 comes as a LIF whose tau and r are infinite: their quotient, the gain, is in no file."""
    with pytest.raises(ExportError, match=EXPECTED[UNREADABLE].reason):
        graph_of(UNREADABLE, tmp_path)
