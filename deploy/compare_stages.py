"""Two stages side by side: counts of what differs, the first divergence, and a raster to look at."""

from __future__ import annotations

from typing import Literal

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.stage_views import Array, View
from knarr.deploy.verification import Comparison, FirstDivergence, Raster

SHOWN_NEURONS = 30


class Comparisons:
    """Collects one row for every quantity of every layer of every pair."""

    def __init__(self) -> None:
        self.rows: list[Comparison] = []
        self._spikes: dict[tuple[str, str], tuple[Array, Array]] = {}

    def add(
        self,
        left: View,
        right: View,
        layers: tuple[str, str],
        what: Literal["spikes", "v", "u"],
        sign: Literal["=", "~"],
    ) -> None:
        """Compare one quantity of one layer, exactly.

        Args:
            left, right: the stages.
            layers: what each of them calls the layer; the right one's name is kept.
            what: which of their arrays.
            sign: "=" where they must be equal, "~" where the difference is measured.

        Raises:
            DeployError: the arrays have different shapes, so that equality would not mean anything.
        """
        a, b = getattr(left, what)[layers[0]], getattr(right, what)[layers[1]]
        pair = f"{left.name} {sign} {right.name}"
        features = a.shape[2:]
        if sign == "~" and a.shape[:2] == b.shape[:2] and a.size == b.size:
            a = a.reshape(b.shape)  # the chip has rows where a graph has one, and vectors where it has maps
        if a.shape != b.shape:
            raise DeployError(
                f"layer '{layers[1]}': {pair}: shapes {a.shape} and {b.shape}; they are not the same network"
            )
        differs = a != b
        count = int(differs.sum())
        self.rows.append(
            Comparison(
                pair=pair,
                layer=layers[1],
                what=what,
                compared=int(a.size),
                mismatches=count,
                active=(int(np.count_nonzero(a)), int(np.count_nonzero(b))),
                by_step=tuple(int(n) for n in differs.sum(axis=(0, *range(2, differs.ndim)))),
                first=_first(left, right, layers, differs, a, b, features) if count else None,
            )
        )
        if what == "spikes":
            self._spikes[pair, layers[1]] = a, b

    def raster(self, shown: int = SHOWN_NEURONS) -> Raster | None:
        """The sample with the first divergence, of a pair that had to be equal before one that is measured.

        Args:
            shown: neurons at most: those that part first, then the busiest.

        Returns:
            None where no layer fires.
        """
        candidates = [row for row in self.rows if (row.pair, row.layer) in self._spikes]
        if not candidates:
            return None
        row = min(candidates, key=_urgency)
        return _raster(row, *self._spikes[row.pair, row.layer], shown)


def _urgency(row: Comparison) -> tuple[bool, bool, int]:
    """Diverging rows first, of these the pairs that must be equal, of these the earliest; else what is measured."""
    if row.first is None:
        return True, row.required, 0
    return False, not row.required, row.first.timestep


def _first(
    left: View,
    right: View,
    layers: tuple[str, str],
    differs: Array,
    a: Array,
    b: Array,
    left_features: tuple[int, ...],
) -> FirstDivergence:
    timestep = int(differs.any(axis=(0, *range(2, differs.ndim))).argmax())
    step = differs[:, timestep]
    sample, *index = (int(i) for i in np.unravel_index(int(step.argmax()), step.shape))
    at = (sample, timestep, *index)
    flat = int(np.ravel_multi_index(index, b.shape[2:]))
    left_at = (sample, timestep, *(int(i) for i in np.unravel_index(flat, left_features)))
    return FirstDivergence(
        sample=sample,
        timestep=timestep,
        index=tuple(index),
        left=left.side(layers[0], a[at].item(), left_at),
        right=right.side(layers[1], b[at].item(), at),
    )


def _raster(row: Comparison, a: Array, b: Array, shown: int) -> Raster:
    sample = row.first.sample if row.first else 0
    left, right = (side[sample].reshape(side.shape[1], -1) != 0 for side in (a, b))
    differs = left != right
    parted = np.where(differs.any(axis=0), differs.argmax(axis=0), len(left))
    first = None
    if row.first is not None:
        first = row.first.timestep, int(np.ravel_multi_index(row.first.index, a.shape[2:]))
        parted[first[1]] = -1  # also where only its voltage differs
    busiest = -(left.sum(axis=0) + right.sum(axis=0))
    neurons = np.sort(np.lexsort((busiest, parted))[:shown])
    return Raster(
        pair=row.pair,
        layer=row.layer,
        sample=sample,
        neurons=tuple(int(n) for n in neurons),
        left=_steps(left[:, neurons]),
        right=_steps(right[:, neurons]),
        first=first,
    )


def _steps(fired: Array) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(t) for t in np.flatnonzero(neuron)) for neuron in fired.T)
