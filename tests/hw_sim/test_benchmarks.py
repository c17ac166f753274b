"""The benchmarks measure the published workloads, and reckon ratios and floors as they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "hw_sim"
sys.path.insert(0, str(FOLDER))

import engines
import published
import ratios
import report
import roofline
import rounds
import workloads

from knarr.hw_sim import simulate


@pytest.mark.parametrize("name", ["W1", "W2s"])
def test_calibration_finds_the_published_thresholds_and_spikes(name: str) -> None:
    known = published.PUBLISHED[name, 10]
    work = workloads.build(name, 10, calibrate=True)
    assert work.vth == known.vth
    assert workloads.spikes_per_layer(work.network, work.inputs) == known.spikes


def test_a_workload_that_fires_other_spikes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = published.Published((2774, 2342, 2431), (1805, 839, 66))
    monkeypatch.setitem(workloads.PUBLISHED, ("W1", 10), wrong)
    with pytest.raises(workloads.WorkloadError, match="published"):
        workloads.build("W1", 10)


def test_pooling_folded_into_weights_gives_what_counts_give() -> None:
    work = workloads.build("W2s", 10, samples=1)
    arriving = work.inputs[:, :20]
    whole = simulate(work.network, arriving, record=("spikes",))
    for stage, layer in zip(work.stages, work.network.layers, strict=True):
        seen = workloads.pooled(arriving) if stage.pooled else arriving
        alone = simulate(workloads.alone(stage, stage.vth), seen, record=("spikes",)).spikes[
            "stage"
        ]
        arriving = alone.reshape(1, 20, *stage.out)
        assert np.array_equal(arriving, whole.spikes[layer.name].reshape(arriving.shape))
    assert whole.event_counts["layer2"].sum() > 0


def test_inputs_of_a_sample_do_not_depend_on_how_many_there_are() -> None:
    shape = published.SHAPES["W1"]
    few, many = (workloads.drawn_inputs(shape, count) for count in (2, 5))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few[0], few[1])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine is three times slower in the second round, for both.
    kept = [
        {"W": {"slow": 10.0, "quick": 2.0}},
        {"W": {"slow": 30.0, "quick": 5.0}},
        {"W": {"slow": 40.0}},
    ]
    found = ratios.ratio(kept, "W", "slow", "quick")
    assert found == ratios.Spread(median=5.5, low=5.0, high=6.0, rounds=2)
    assert str(found) == "5.50 [5.00-6.00]"
    assert ratios.ratio(kept, "W", "slow", "absent") is None
    assert ratios.ratio(kept, "other", "slow", "quick") is None
    assert ratios.seconds(kept, "W", "slow") == ratios.Spread(30.0, 10.0, 40.0, 3)


def test_no_rounds_have_no_median() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        ratios.spread([])


def test_what_failed_has_no_time() -> None:
    kept = [
        {
            "times": {
                "W": {
                    "fast, 1 thread": {"s_per_sample": 1.0},
                    "Lava": {"s_per_sample": 9.0},
                    "Norse": {"s_per_sample": 2.0},
                    "snnTorch": {"error": "died"},
                }
            }
        }
    ]
    cleaned = rounds.as_rounds(kept, {"W": {"Lava": "3 spikes differ"}})
    assert cleaned == [{"W": {"fast, 1 thread": 1.0, "Norse": 2.0}}]
    assert report.ratio_rows(cleaned, "W") == [
        ("fast, 1 thread", "Norse", ratios.Spread(2.0, 2.0, 2.0, 1)),
    ]


def test_the_floor_counts_every_synapse_of_every_spike() -> None:
    stage = workloads.Stage(np.ones((5, 1, 3, 3), np.int32), False, (1, 4, 4))
    dense = workloads.Stage(np.ones((3, 20), np.int32), False, (5, 2, 2))
    inputs = np.zeros((1, 2, 1, 4, 4), np.uint8)
    inputs[0, 0, 0, 0, 0] = inputs[0, 1, 0, 1, 1] = 1  # in one window, in all four
    work = workloads.Workload("W", 0, (stage, dense), workloads.folded((stage, dense)), inputs)
    expected = engines.reference(work)
    fired = int(expected.event_counts["layer0"].sum())
    cost = roofline.work_of(work, expected)
    assert cost.synops == 5 * (1 + 4) + 3 * fired
    assert cost.neuron_steps == 2 * (20 + 3)
    assert cost.macs == 2 * (20 * 9 + 3 * 20)
    assert cost.floor_s({"adds_per_s": 10.0, "neuron_steps_per_s": 23.0}) == pytest.approx(
        cost.synops / 10 + 2
    )


def test_an_engine_that_fires_other_spikes_has_no_speed() -> None:
    work = workloads.build("W1", 10, samples=2)
    engine = next(iter(engines.available(work)[0]))
    expected = engines.reference(workloads.build("W1", 3, samples=1))
    with pytest.raises(engines.WrongSpikesError, match="differ"):
        engines.check(engine, work, expected)
    with pytest.raises(engines.WrongSpikesError, match="other spikes"):
        engines.time_engine(engine, work, expected)
    assert engines.check(engine, work, engines.reference(work)) == 64 * (256 + 128 + 10)


def test_the_command_says_what_it_does() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "main.py"), "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "--rounds" in done.stdout
    assert "--quick" in done.stdout
