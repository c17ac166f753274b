"""The picture of what goes in, for every kind of input."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from knarr.pipeline.pictures.run import OFF_COLOUR, ON_COLOUR, draw_samples


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def share(figure: Figure, colour: np.ndarray) -> float:
    return float((np.abs(pixels(figure) - 255 * colour).max(axis=-1) < 3).mean())


def test_events_are_red_and_blue() -> None:
    student = np.zeros((1, 8, 2, 10, 10), np.uint8)
    student[:, :, 0, :5] = 1
    student[:, :, 1, 5:7] = 1
    teacher = np.zeros((1, 3, 10, 10), np.float32)
    shown = draw_samples(teacher, student, ["a"], 0.01)
    # half of the picture ON, a fifth of it OFF
    assert share(shown, ON_COLOUR) == pytest.approx(
        2.5 * share(shown, OFF_COLOUR), rel=0.1
    )  # edges are blended
    swapped = draw_samples(teacher, student, ["a"], 0.01, on_channel=1)
    assert share(swapped, ON_COLOUR) < share(swapped, OFF_COLOUR)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ((2, 4, 3, 12, 12), (2, 4, 3, 12, 12)),
        ((2, 4, 3, 12, 12), (2, 4, 1, 12, 12)),
        ((2, 29, 512), (2, 61, 32)),
        ((2, 40), (2, 20, 12)),
        ((2, 68, 16, 16), (2, 68, 2, 16, 16)),
    ],
)
def test_every_kind_of_input(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    shown = draw_samples(
        rng.random(teacher),
        rng.integers(0, 256, student, dtype=np.uint8),
        ["calm", "stress"],
        0.0625,
    )
    assert len(np.unique(pixels(shown))) > 20
    assert {axis.get_ylabel() for axis in shown.axes} >= {"calm", "stress"}
