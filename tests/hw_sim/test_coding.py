"""Data into the chip's integers, and the chip's outputs into classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    encode,
    simulate,
)

RNG = np.random.default_rng(0)
OUTPUT = np.array([[[1, 0, 2], [1, 2, 0]], [[-5, -1, -3], [0, -9, 0]], [[0, 3, 3], [0, 0, 0]]])


def test_events_pass_as_they_are() -> None:
    events = RNG.integers(0, 2, (2, 5, 3))
    assert encode(InputCoding((3,)), events) is events


def test_graded_frames_become_integers_and_a_float_first_frame_may_lead_events() -> None:
    coding = InputCoding((2, 2, 2), 8, units=255.0, kind="graded")
    first, events = RNG.random((4, 1, 2, 2, 2)), RNG.integers(0, 2, (4, 6, 2, 2, 2))
    coded = encode(coding, np.concatenate([first, events], axis=1))
    assert np.array_equal(coded[:, 0], np.floor(255 * first[:, 0] + 0.5))
    assert set(np.unique(coded[:, 1:])) == {0, 255}
    assert encode(coding, coded) is coded  # integers with time are encoded already


def test_direct_frames_stand_at_every_step() -> None:
    frames = RNG.random((3, 4))
    coded = encode(InputCoding((4,), 4, units=15.0, kind="direct"), frames, timesteps=7)
    assert coded.shape == (3, 7, 4)
    assert (coded == coded[:, :1]).all()
    assert np.abs(coded[:, 0] / 15 - frames).max() <= 0.5 / 15 + 1e-12


def test_rates_are_probabilities() -> None:
    frames = np.array([[0.0, 0.25, 0.7, 1.0]])
    coded = encode(InputCoding((4,), kind="rate"), frames, timesteps=20_000, seed=3)
    assert coded.dtype == np.uint8
    # Five standard deviations of a share of 20,000 draws.
    assert np.abs(coded.mean(axis=1) - frames).max() < 5 * 0.5 / np.sqrt(20_000)
    assert coded[..., 0].sum() == 0
    assert coded[..., 3].all()
    again = encode(InputCoding((4,), kind="rate"), frames, timesteps=20_000, seed=3)
    assert np.array_equal(coded, again)
    assert not np.array_equal(
        coded, encode(InputCoding((4,), kind="rate"), frames, timesteps=20_000, seed=4)
    )


GRADED, RATE, DIRECT = (
    InputCoding((4,), 4, units=15.0, kind="graded"),
    InputCoding((4,), kind="rate"),
    InputCoding((4,), 4, units=15.0, kind="direct"),
)


@pytest.mark.parametrize(
    ("coding", "values", "timesteps", "message"),
    [
        (GRADED, np.full((1, 2, 4), 1.1), None, r"values 1.1..1.1 times 15 units pass 0..15"),
        (GRADED, np.full((1, 2, 4), -0.1), None, r"pass 0..15"),
        (GRADED, np.full((2, 4), 0.5), None, r"shape \(2, 4\), graded coding takes \(samples, timesteps, 4\)"),
        (GRADED, np.full((1, 2, 4), np.nan), None, "finite"),
        (RATE, np.full((2, 4), 1.5), 9, r"values 1.5..1.5, a rate lies in 0..1"),
        (RATE, np.full((2, 4), 0.5), None, "rate coding of frames without a time axis; say how many"),
        (DIRECT, np.full((2, 5), 0.5), 9, r"shape \(2, 5\), direct coding takes \(samples, 4\)"),
        (DIRECT, np.full((2, 4), 0.5), 0, "say how many"),
        (DIRECT, np.full((2, 4), "a"), 3, "finite numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_coding_is_refused(
    coding: InputCoding, values: Any, timesteps: int | None, message: str
) -> None:
    with pytest.raises(ChipError, match=message):
        encode(coding, values, timesteps=timesteps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ttfs"}, "kind 'ttfs'; choose events, graded, rate or direct"),
        ({"kind": "rate", "bits": 8}, "rate coding sends spikes"),
        ({"kind": "direct", "neuron": Neuron(4096, 0, 5)}, "leave kind at events"),
    ],
)
def test_codings_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChipError, match=message):
        InputCoding((4,), **options)


def test_signals_are_images_one_pixel_high() -> None:
    weight = RNG.integers(-9, 10, (3, 2, 1, 4))
    layer = Conv("c", weight, Neuron(4096, 100, 9), (2, 1, 9))
    network = ChipNetwork((layer,), InputCoding((2, 1, 9)), Readout("spikes"))
    signal = RNG.integers(0, 2, (2, 12, 2, 9))
    flat, tall = simulate(network, signal), simulate(network, signal[:, :, :, None])
    assert flat.output.any()
    assert np.array_equal(flat.output, tall.output)
    coding = InputCoding((2, 1, 9), 8, units=255.0, kind="direct")
    assert encode(coding, RNG.random((5, 2, 9)), timesteps=3).shape == (5, 3, 2, 1, 9)


@pytest.mark.parametrize(
    ("readout", "classes"),
    [
        (Readout("spikes"), [0, 2, 1]),  # sums 2 2 2, -5 -10 -3, 0 3 3: the lowest wins a tie
        (Readout("spikes", "mean"), [0, 2, 1]),
        (Readout("spikes", "last"), [1, 0, 0]),
        (Readout("spikes", "last", 3), [0, 0, 0]),
    ],
)
def test_classes_by_hand(readout: Readout, classes: list[int]) -> None:
    assert readout.decide(OUTPUT).tolist() == classes


def test_votes_are_neighbours() -> None:
    output = np.zeros((1, 4, 6), dtype=np.int64)
    output[0, 1, 2] = output[0, 2, 3] = output[0, 3, 3] = 1  # class 1 of three with two votes each
    output[0, 0, 0] = output[0, 1, 5] = 1
    readout = Readout("spikes", votes=2)
    assert readout.scores(output).tolist() == [[1, 3, 1]]
    assert readout.decide(output).tolist() == [1]
    layer = Dense("fc", np.ones((5, 2), dtype=np.int32), Neuron(4096, 0, NON_SPIKING_VTH))
    with pytest.raises(ChipError, match="2 votes per class do not divide 5 outputs"):
        ChipNetwork((layer,), InputCoding((2,)), Readout("voltage", votes=2))
