"""`verify` finds what differs, says where and by how much, and does not hold on silence."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
from graphs import DT_S, chain, conv1d, integrate, on_grid, spikes
from torch import nn

from knarr import pipeline
from knarr.cli import main
from knarr.cli.text import verification as verification_text
from knarr.deploy import (
    DeployError,
    FirstDivergence,
    Verification,
    lower,
    run_on_lava,
    verify,
    verify_network,
    write_net,
)
from knarr.deploy import verify as verify_function
from knarr.export import step_nir, to_nir, write
from knarr.hw_sim import (
    ChipNetwork,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recording,
    compare,
    simulate,
)
from knarr.pipeline import run_folder

STEPS = 20
LABELS = np.array([0, 1, 2, 3])
Lava = Callable[..., Recording]


@pytest.fixture(scope="module")
def crossing(cells: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A module, its graph, its .net file and inputs."""
    module = cells.conv_student()
    events = (np.random.default_rng(7).random((4, STEPS, 2, 18, 18)) < 0.2).astype(np.uint8)
    graph = to_nir(module, (2, 18, 18), cells.dt_s, samples=events)
    path = tmp_path_factory.mktemp("crossing") / "student.net"
    write_net(lower(graph, cells.dt_s), path)
    return SimpleNamespace(module=module, graph=graph, path=path, events=events, dt_s=cells.dt_s)


@pytest.fixture
def fake_lava(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Recording], None]], None]:
    """Puts the simulator in Lava's place and lets a function spoil what it recorded."""

    def install(spoil: Callable[[Recording], None]) -> None:
        def run(
            path: Path,
            inputs: Any,
            *,
            record: Any,
            timeout_s: Any,
            progress: Any,
            input_bits: Any = None,
        ) -> Recording:
            from knarr.deploy import read_net

            recording = simulate(read_net(path), inputs, record=record)
            spoil(recording)
            return recording

        monkeypatch.setitem(verify_function.__globals__, "run_on_lava", run)

    return install


def run(crossing: SimpleNamespace, **arguments: Any) -> Verification:
    return verify(crossing.graph, crossing.path, crossing.events, crossing.dt_s, **arguments)


@pytest.fixture(scope="module")
def true(crossing: SimpleNamespace) -> Verification:
    """Through Lava itself."""
    return run(crossing, module=crossing.module, labels=LABELS)


def test_every_integer_of_every_layer_is_compared(true: Verification) -> None:
    assert true.holds
    chip = [row for row in true.rows if row.pair == "hw_sim = Lava"]
    assert [(row.layer, row.what) for row in chip] == [
        *(("conv_0", what) for what in ("spikes", "v", "u")),
        *(("conv_3", what) for what in ("spikes", "v", "u")),
        *(("linear_7", what) for what in ("v", "u")),
    ]
    assert all(row.mismatches == 0 and row.first is None and row.active[0] > 100 for row in chip)
    floats = [row for row in true.rows if row.pair == "Norse = NIR"]
    assert [(row.what, row.mismatches) for row in floats] == [("spikes", 0), ("v", 0)] * 2 + [
        ("v", 0)
    ]


def test_what_integers_cost_is_measured(true: Verification) -> None:
    measured = [row for row in true.rows if row.pair == "NIR ~ hw_sim"]
    assert [row.layer for row in measured] == ["conv_0", "conv_3"]
    for row in measured:
        assert 0 < row.mismatches < 0.02 * row.compared
        assert sum(row.by_step) == row.mismatches
        assert len(row.by_step) == STEPS
        assert row.rates is not None
        # Floats: shares divided by one another round otherwise than the counts do.
        assert row.rate_error == pytest.approx(abs(row.rates[1] - row.rates[0]) / row.rates[0])


def test_decisions_are_those_of_the_outputs(true: Verification, crossing: SimpleNamespace) -> None:
    trace = step_nir(crossing.graph, crossing.events, crossing.dt_s)
    expected = trace.output.astype(np.float64).sum(axis=1).argmax(axis=1)
    assert true.decisions["NIR"] == true.decisions["Norse"] == tuple(expected)
    assert true.decisions["hw_sim"] == true.decisions["Lava"]
    assert true.correct == {
        stage: int((np.array(decided) == LABELS).sum()) for stage, decided in true.decisions.items()
    }
    assert true.decided_differently == sum(
        a != b for a, b in zip(true.decisions["NIR"], true.decisions["Lava"], strict=True)
    )


def test_json_is_plain_and_complete(true: Verification) -> None:
    facts = true.to_json()
    again = json.loads(json.dumps(facts, allow_nan=False))
    assert again["rows"][0]["layer"] == true.rows[0].layer
    assert again["correct"] == true.correct
    assert len(again["raster"]["left"]) == len(again["raster"]["neurons"]) <= 30


# --- the first divergence


def test_a_spike_of_lava_too_many_is_found(crossing: SimpleNamespace, fake_lava: Any) -> None:
    at = (2, 5, 1, 3, 4)
    seen: dict[str, Any] = {}

    def spoil(recording: Recording) -> None:
        recording.spikes["conv_0"][at] ^= 1
        recording.spikes["conv_0"][(3, 9, 0, 0, 0)] ^= 1
        seen.update(spike=int(recording.spikes["conv_0"][at]), v=int(recording.v["conv_0"][at]))
        seen["u"] = int(recording.u["conv_0"][at])

    fake_lava(spoil)
    result = run(crossing)
    assert not result.holds
    (row,) = [row for row in result.rows if row.required and row.mismatches]
    assert (row.pair, row.layer, row.what, row.mismatches) == (
        "hw_sim = Lava",
        "conv_0",
        "spikes",
        2,
    )
    first = row.first
    assert isinstance(first, FirstDivergence)
    assert (first.sample, first.timestep, first.index) == (2, 5, (1, 3, 4))
    assert (first.left.value, first.right.value) == (1 - seen["spike"], seen["spike"])
    assert (first.right.v, first.right.u) == (seen["v"], seen["u"])
    assert result.raster is not None
    assert (result.raster.pair, result.raster.sample) == ("hw_sim = Lava", 2)
    assert result.raster.first == (5, int(np.ravel_multi_index((1, 3, 4), (4, 8, 8))))


@pytest.mark.parametrize("what", ["v", "u"])
def test_a_state_off_by_one_is_found(what: str, crossing: SimpleNamespace, fake_lava: Any) -> None:
    fake_lava(lambda recording: getattr(recording, what)["linear_7"].__setitem__((1, 7, 2), 12345))
    result = run(crossing)
    assert not result.holds
    (row,) = [row for row in result.rows if row.required and row.mismatches]
    assert (row.layer, row.what) == ("linear_7", what)
    assert row.first is not None
    assert (row.first.sample, row.first.timestep, row.first.index) == (1, 7, (2,))
    assert row.first.right.value == 12345
    assert row.first.left.threshold is None  # a readout


def test_the_voltage_before_the_reset_crossed_the_threshold(
    crossing: SimpleNamespace, fake_lava: Any
) -> None:
    fake_lava(lambda recording: None)
    result = run(crossing)
    for row in result.rows:
        if row.pair != "NIR ~ hw_sim":
            continue
        assert row.first is not None
        for side in (row.first.left, row.first.right):
            assert side.v_reached is not None
            assert side.threshold is not None
            assert (side.v_reached > side.threshold) == bool(side.value)
            assert bool(side.value) == (side.v == 0)
        assert row.first.left.value != row.first.right.value


def test_every_spike_s_voltage_can_be_told_again(crossing: SimpleNamespace) -> None:
    """For each spike and each silence of a sample, on both sides: above the threshold exactly where it fired."""
    from knarr.deploy import read_net
    from knarr.deploy.verification.verify import ChipView, FloatView

    network = read_net(crossing.path)
    events = crossing.events[:1]
    ours = simulate(network, events, record=("output", "spikes", "v", "u"))
    chip = ChipView("hw_sim", ours, network, events)
    floats = FloatView(
        "NIR",
        step_nir(crossing.graph, events, crossing.dt_s),
        crossing.graph,
        events,
        crossing.dt_s,
    )
    rng = np.random.default_rng(0)
    fired = 0
    for view, layers in ((chip, ("conv_0", "conv_3")), (floats, ("lif_1", "lif_4"))):
        for layer in layers:
            spikes = np.argwhere(view.spikes[layer])
            chosen = spikes[rng.permutation(len(spikes))[:15]]
            anywhere = rng.integers(0, view.spikes[layer].shape, (15, view.spikes[layer].ndim))
            for at in map(tuple, [*chosen, *anywhere]):
                side = view.side(layer, float(view.spikes[layer][at]), tuple(int(i) for i in at))
                assert side.v_reached is not None
                assert side.threshold is not None
                assert (side.v_reached > side.threshold) == (side.value == 1), (layer, at)
                fired += int(side.value)
    assert fired >= 60


def test_another_module_diverges_by_name(
    crossing: SimpleNamespace, cells: SimpleNamespace, fake_lava: Any
) -> None:
    fake_lava(lambda recording: None)
    result = run(crossing, module=cells.conv_student(gain=6.2))
    assert not result.holds
    row = next(row for row in result.rows if row.mismatches)
    assert (row.pair, row.layer) == ("Norse = NIR", "lif_1")
    assert row.first is not None


# --- what is refused, and what does not count as proof


def test_equal_silence_is_no_proof(crossing: SimpleNamespace, fake_lava: Any) -> None:
    fake_lava(lambda recording: None)
    quiet = SimpleNamespace(**{**vars(crossing), "events": np.zeros_like(crossing.events)})
    bias_free = run(quiet)
    silent = [row for row in bias_free.rows if row.what == "spikes" and not row.active[0]]
    assert silent  # so that this says something
    assert all(row.mismatches == 0 for row in bias_free.rows)
    assert not bias_free.holds


def test_a_graph_that_was_not_lowered_to_this_file(
    crossing: SimpleNamespace, fake_lava: Any
) -> None:
    fake_lava(lambda recording: None)
    nodes = {
        ("lif_x" if name == "lif_4" else name): node for name, node in crossing.graph.nodes.items()
    }
    edges = [
        tuple("lif_x" if name == "lif_4" else name for name in edge)
        for edge in crossing.graph.edges
    ]
    with pytest.raises(
        DeployError, match="was lowered from another graph than this one; lower this graph again"
    ):
        verify(nir.NIRGraph(nodes, edges), crossing.path, crossing.events, crossing.dt_s)


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros((4, 1), int), np.full(4, 0.5)])
def test_labels_that_do_not_fit(labels: Any, crossing: SimpleNamespace) -> None:
    with pytest.raises(DeployError, match=r"^labels: .*(for 4 samples|0.5 is no class)"):
        run(crossing, labels=labels)


def driven(path: Path) -> Path:
    layer = Dense("d", np.array([[40, -3], [-20, 90]]), Neuron(4096, 100, 60))
    coding = InputCoding((2,), neuron=Neuron(4096, 0, 100))
    write_net(ChipNetwork((layer,), coding, Readout("spikes")), path)
    return path


def test_a_bias_driven_input_has_no_graph(crossing: SimpleNamespace, tmp_path: Path) -> None:
    path = driven(tmp_path / "driven.net")
    with pytest.raises(
        DeployError, match=r"driven\.net: its input is driven by bias.*use verify_network"
    ):
        verify(crossing.graph, path, np.ones((1, 4, 2), int), crossing.dt_s)


def test_graded_integers_are_floats_to_norse(
    cells: SimpleNamespace, tmp_path: Path, fake_lava: Any
) -> None:
    fake_lava(lambda recording: None)
    module = snn.SequentialState(nn.Linear(3, 4, bias=False), cells.lif_box()).eval()
    module[0].weight.data = 4 * module[0].weight.data.abs()
    graph = to_nir(module, (3,), cells.dt_s)
    network = lower(graph, cells.dt_s, input_bits=4, input_units=15.0, input_kind="graded")
    path = tmp_path / "graded.net"
    write_net(network, path)
    payloads = np.random.default_rng(0).integers(0, 16, (3, 40, 3))
    result = verify(graph, path, payloads, cells.dt_s, module=module)
    assert result.holds
    (measured,) = [row for row in result.rows if "~" in row.pair]
    expected = step_nir(graph, payloads / 15.0, cells.dt_s)
    assert measured.active[0] == int(next(iter(expected.spikes.values())).sum()) > 50
    assert measured.mismatches < 0.1 * measured.active[0]


# --- without a graph, and in batches


def test_a_file_without_a_graph(tmp_path: Path) -> None:
    path = driven(tmp_path / "driven.net")
    seen: list[tuple[int, int]] = []
    result = verify_network(
        path, np.array([[40, 70], [90, 30]]), timesteps=12, progress=lambda *at: seen.append(at)
    )
    assert result.holds
    assert {(row.layer, row.what) for row in result.rows} == {
        (layer, what) for layer in ("input", "d") for what in ("spikes", "v", "u")
    }
    assert (result.samples, result.timesteps, result.decided_differently) == (2, 12, None)
    assert seen[-1] == (2 * (12 + 2), 2 * (12 + 2))
    assert seen == sorted(seen)


@pytest.mark.parametrize("delayed", [False, True] if "KNARR_CONFORMANCE" in os.environ else [True])
def test_batches_change_nothing(delayed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    first = Dense(
        "a",
        rng.integers(-20, 60, (5, 3), dtype=np.int32),
        Neuron(2000, 500, 50),
        delay_int=rng.integers(0, 4, (5, 3), dtype=np.int32) if delayed else None,
    )
    layers = (
        first,
        Dense("b", rng.integers(-60, 60, (2, 5), dtype=np.int32), Neuron(4096, 300, 40)),
    )
    network = ChipNetwork(layers, InputCoding((3,)), Readout("spikes"))
    path = tmp_path / "small.net"
    write_net(network, path)
    inputs = rng.integers(0, 2, (3, 9, 3))
    everything = ("output", "spikes", "v", "u")
    seen: list[tuple[int, int]] = []
    batched = run_on_lava(
        path, inputs, record=everything, batch_steps=24, progress=lambda *at: seen.append(at)
    )
    ours = simulate(network, inputs, record=everything)
    assert batched.output.any()
    assert compare(ours, batched) == []
    steps = (
        3 * 9 + (3 if delayed else 2) * 2
    )  # two batches, of 2 samples and 1; delays take a network each
    assert seen[-1] == (steps, steps)
    assert seen == sorted(seen)


def test_a_batch_that_fails_names_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.net"
    layer = Dense("d", np.array([[30]]), Neuron(4096, 100, 20))
    write_net(ChipNetwork((layer,), InputCoding((1,)), Readout("spikes")), path)
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "/bin/false")
    from knarr.deploy import LavaError

    with pytest.raises(
        LavaError, match=r"^samples 0\.\.1 of 3: Lava worker: died with exit status 1"
    ):
        run_on_lava(path, np.ones((3, 4, 1), dtype=int), batch_steps=9)
    with pytest.raises(DeployError, match="batch_steps: 0, needs at least 1"):
        run_on_lava(path, np.ones((3, 4, 1), dtype=int), batch_steps=0)


# --- what a user sees


def test_the_table_fits_a_hundred_columns(
    true: Verification, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verification_text.print_verification(true.to_json(), json=False)
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 100
    text = " ".join(table.split())
    for words in (
        "NIR ~ hw_sim: measured",
        "fires at v",
        "is silent at v",
        "threshold 0.5",
        "neuron (",
        "accuracy",
        "The verification holds.",
    ):
        assert words in text
    assert verification_text.print_verification(true.to_json(), json=True)
    text = capsys.readouterr().out
    assert json.loads(text)["samples"] == 4
    assert '"by_step": [0' in text  # lists of numbers in one line


def test_a_divergent_stage_leaves_json_and_picture_and_exits_1(
    crossing: SimpleNamespace,
    tmp_path: Path,
    fake_lava: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil(recording: Recording) -> None:
        recording.spikes["conv_3"][(1, 3, 2, 1, 1)] ^= 1

    fake_lava(spoil)
    write(crossing.graph, tmp_path / run_folder.GRAPH)
    for name in ("student.net", "student.net.json"):
        (tmp_path / name).write_bytes((crossing.path.parent / name).read_bytes())
    test_split = SimpleNamespace(labels=LABELS, chip_inputs=lambda chosen: crossing.events[chosen])
    opened = run_folder.Run(
        tmp_path, SimpleNamespace(), SimpleNamespace(test=test_split, targets=())
    )  # type: ignore[arg-type]
    object.__setattr__(
        opened,
        "recipe",
        SimpleNamespace(
            data=SimpleNamespace(dt_s=crossing.dt_s),
            deploy=SimpleNamespace(lava_samples=3),
            chip=None,
        ),
    )
    monkeypatch.setattr(run_folder.Run, "networks", lambda self: (None, crossing.module))
    monkeypatch.setattr(run_folder.Run, "system", SimpleNamespace(deployable=lambda kept: kept))
    monkeypatch.setattr(pipeline, "reopen", lambda folder, **_: opened)
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(tmp_path)])
    assert exit_.value.code == 1
    table = " ".join(capsys.readouterr().out.split())
    assert "hw_sim = Lava: conv_3: 1 of " in table
    assert "sample 1, step 3, neuron (2, 1, 1)" in table
    assert "does NOT hold" in table
    facts = json.loads((tmp_path / run_folder.VERIFICATION).read_text())
    assert not facts["holds"]
    assert facts["labels"] == [0, 1, 2]
    assert facts["raster"]["first"] == [3, int(np.ravel_multi_index((2, 1, 1), (6, 4, 4)))]
    assert (tmp_path / "pictures" / "verification.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_every_kind_of_result(true: Verification) -> None:
    """With equal spikes, without a raster, without floats; matplotlib's warnings are errors here."""
    from knarr.pipeline.pictures.verification import draw_verification

    facts = json.loads(json.dumps(true.to_json()))
    chip = [row for row in facts["rows"] if row["pair"] == "hw_sim = Lava"]
    assert true.raster is not None
    equal = {**facts["raster"], "pair": "hw_sim = Lava", "first": None}
    for result in (facts, {**facts, "raster": None}, {**facts, "rows": chip, "raster": equal}):
        figure = draw_verification(result)
        figure.savefig(io.BytesIO(), format="png")
        assert len(figure.axes) == (2 if result["raster"] is None else 3)


def test_files_without_a_run(
    crossing: SimpleNamespace, tmp_path: Path, fake_lava: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*arguments: object) -> object:
        with pytest.raises(SystemExit) as exit_:
            main(["verify", str(crossing.path), *map(str, arguments)])
        return exit_.value.code

    fake_lava(lambda recording: None)
    inputs, graph, labels = tmp_path / "in.npy", tmp_path / "a.nir", tmp_path / "labels.npy"
    np.save(inputs, crossing.events)
    np.save(labels, LABELS)
    write(crossing.graph, graph)
    assert status("--inputs", inputs, "--picture", tmp_path / "a.png", "--json") == 0
    assert {row["pair"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"hw_sim = Lava"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert status("--inputs", inputs, "--graph", graph, "--labels", labels, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["pair"] for row in facts["rows"]} == {"NIR ~ hw_sim", "hw_sim = Lava"}
    assert set(facts["correct"]) == {"NIR", "hw_sim", "Lava"}
    assert status("--inputs", inputs, "--labels", labels, "--json") == 2
    assert "go with --graph" in capsys.readouterr().err


def test_an_old_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "verification.json"
    path.write_text(
        '{"rows": [{"pair": "a = b", "first": [0, 1]}], "samples": 1, "timesteps": 2, "holds": true}'
    )
    with pytest.raises(ValueError, match="does not hold what this version writes"):
        verification_text.print_verification_file(path, json=False)


def test_row_is_required_by_its_sign(true: Verification) -> None:
    spoiled = tuple(
        replace(row, mismatches=1) if row.pair == "NIR ~ hw_sim" else row for row in true.rows
    )
    assert replace(true, rows=spoiled).holds
    assert not replace(true, rows=()).holds


def test_signals_are_verified_in_the_graph_s_own_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = chain(
        (2, 12), (3, 6), a=conv1d(on_grid(rng, 3, 2, 4), stride=2, padding=1), n=integrate((3, 6))
    )
    path = tmp_path / "signal.net"
    write_net(lower(graph, DT_S), path)
    result = verify(graph, path, spikes(2, 20, 2, 12), DT_S)
    assert result.holds
    assert [row.mismatches for row in result.rows] == [0, 0, 0, 0]
    assert result.rows[0].active[0] > 100
