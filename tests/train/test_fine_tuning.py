"""Fine-tuning of any graph on the chip's integers, from arrays."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import pytest
from graphs import DT_S, chain, li, lif
from torch import Tensor, nn

from knarr.deploy import DeployError, lower
from knarr.export.graph.complete import complete
from knarr.hw_sim import ChipNetwork, simulate
from knarr.train import RecipeError, finetune

FEATURES, CLASSES, STEPS, CLIPS = 12, 3, 10, 90
Array = npt.NDArray[Any]


def clips(seed: int) -> tuple[Array, Array]:
    """Spikes of which each class has rates of its own."""
    rates = np.random.default_rng(0).random((CLASSES, FEATURES)) * 0.5
    labels = np.arange(CLIPS) % CLASSES
    rng = np.random.default_rng([1, seed])
    return (rng.random((CLIPS, STEPS, FEATURES)) < rates[labels][:, None]).astype(np.uint8), labels


def untrained(*, readout: bool) -> nir.NIRGraph:
    """A net that knows nothing of the classes, which spikes or is read out as voltage."""
    rng = np.random.default_rng(2)
    last = li((CLASSES,)) if readout else lif((CLASSES,), tau=np.full(CLASSES, 0.002))
    graph = chain(
        (FEATURES,), (CLASSES,), a=nir.Linear(rng.normal(0.3, 0.6, (16, FEATURES))), n=lif((16,)),
        b=nir.Affine(rng.normal(0.2, 0.5, (CLASSES, 16)), rng.normal(0, 0.1, CLASSES)), m=last,
    )  # fmt: skip
    return complete(graph, [])


def lowered(graph: nir.NIRGraph, **options: Any) -> ChipNetwork:
    return lower(graph, DT_S, calibration=clips(0)[0][:10], **options)


def correct(network: ChipNetwork, seed: int) -> int:
    inputs, labels = clips(seed)
    return int((network.readout.decide(simulate(network, inputs).output) == labels).sum())


@pytest.mark.parametrize("readout", [False, True])
def test_what_the_graph_never_knew_is_learned_in_the_bits_that_are_asked_for(
    readout: bool,
) -> None:
    graph = untrained(readout=readout)
    start = lowered(graph)
    before = correct(start, 1)
    options = {"train": clips(0), "validation": clips(1), "batch_size": 30, "learning_rate": 0.05}
    found = finetune(start, graph, weight_bits=4, epochs=4, **options)
    assert correct(found, 1) > before + CLIPS // 5
    # The network had 8 bits: it was lowered again.
    assert max(np.abs(layer.weight_int).max() for layer in found.layers) <= 8
    assert found.lowering["weight_bits"] == 4
    assert found.lowered_from == start.graph_hash


def test_a_branch_that_is_handed_on_stays_what_it_carries() -> None:
    rng = np.random.default_rng(5)
    graph = chain(
        (FEATURES,), (CLASSES,), a=nir.Linear(rng.normal(0.3, 0.6, (16, FEATURES))), n=lif((16,)),
        b=nir.Linear(rng.normal(0.3, 0.4, (8, 16))), m=lif((8,), tau=rng.uniform(0.002, 0.006, 8)),
        c=nir.Linear(rng.normal(0.2, 0.4, (CLASSES, 8))), o=lif((CLASSES,), tau=np.full(CLASSES, 0.002)),
    )  # fmt: skip
    graph.nodes["d"] = nir.Linear(rng.normal(0.2, 0.4, (CLASSES, 16)))
    graph.edges += [("n", "d"), ("d", "o")]
    start = lowered(complete(graph, []))
    middle = start.layers[1]
    handed_on = slice(8, 24)
    assert len(middle.weight_int) == 24
    assert (np.count_nonzero(middle.weight_int[handed_on], axis=1) == 1).all()
    options = {"train": clips(0), "validation": clips(1), "batch_size": 30, "learning_rate": 0.05}
    found = finetune(start, graph, epochs=3, **options)
    assert correct(found, 1) > correct(start, 1)
    fitted = found.layers[1]
    assert np.array_equal(fitted.weight_int[handed_on], middle.weight_int[handed_on])
    assert np.array_equal(fitted.neuron.vth_int[handed_on], middle.neuron.vth_int[handed_on])
    assert not np.array_equal(fitted.weight_int[:8], middle.weight_int[:8])
    # The decays of its own neurons differ, and stay.
    assert np.array_equal(fitted.neuron.v_decay, middle.neuron.v_decay)


def test_a_teacher_is_its_logits() -> None:
    class Counts(nn.Module):
        """Says what of the three thirds of the inputs there is most of."""

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1).reshape(len(x), CLASSES, -1).sum(2)

    graph = untrained(readout=False)
    start, inputs = lowered(graph), clips(0)[0]
    options = {"train": clips(0), "validation": clips(1), "epochs": 2, "learning_rate": 0.05}
    logits = inputs.sum(1).reshape(CLIPS, CLASSES, -1).sum(2)
    taught = [finetune(start, graph, teacher=teacher, **options) for teacher in (Counts(), logits)]
    assert taught[0].layers == taught[1].layers
    assert taught[0].layers != finetune(start, graph, **options).layers


def test_float_targets() -> None:
    rng = np.random.default_rng(7)
    graph = chain(
        (FEATURES,), (1,), a=nir.Linear(rng.normal(0.3, 0.6, (16, FEATURES))), n=lif((16,)),
        b=nir.Linear(rng.normal(0, 0.3, (1, 16))), m=li((1,)),
    )  # fmt: skip

    def steered(seed: int) -> tuple[Array, Array]:
        inputs, _ = clips(seed)
        return inputs, inputs[:, :, :6].mean((1, 2)) - inputs[:, :, 6:].mean((1, 2))

    graph = complete(graph, [])
    start = lowered(graph, over_time="mean")
    options = {"train": steered(0), "validation": steered(1), "batch_size": 15}
    found = finetune(start, graph, epochs=6, learning_rate=0.05, **options)

    def error(network: ChipNetwork) -> float:
        inputs, targets = steered(1)
        seen = network.values(simulate(network, inputs).output)[:, 0]
        return float(np.abs(seen - targets).mean())

    assert error(found) < 0.7 * error(start)
    with pytest.raises(RecipeError, match="classes on one side and float targets on the other"):
        finetune(
            start, graph, train=steered(0), validation=(steered(1)[0], np.zeros(CLIPS, dtype=int))
        )


def test_where_no_epoch_is_better_the_lowered_network_stays() -> None:
    graph = untrained(readout=False)
    start = lowered(graph)
    options = {"train": clips(0), "validation": clips(1), "epochs": 1, "learning_rate": 1e-9}
    assert finetune(start, graph, **options) is start


def test_another_graph_is_refused() -> None:
    start = lowered(untrained(readout=False))
    with pytest.raises(DeployError, match="not lowered from this graph"):
        finetune(start, untrained(readout=True), train=clips(0), validation=clips(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": clips(0)[1] + 1},
            "1..3, the network has classes 0..2; they begin at 1, subtract 1",
        ),
        ({"labels": clips(0)[1] - 1}, "-1..1; number the classes 0, 1, 2"),
        ({"labels": clips(0)[1][:-1]}, r"labels: shape \(89,\) for 90 samples"),
        ({"labels": clips(0)[1].astype(str)}, "labels: of type <U21"),
        ({"labels": clips(0)[1] * 0.4}, r"float targets \(90,\), needs 3 finite numbers"),
        ({"labels": np.eye(CLASSES, dtype=int)[clips(0)[1]]}, r"numpy.argmax\(labels, axis=1\)"),
        ({"labels": np.eye(CLASSES)[clips(0)[1]]}, r"numpy.argmax\(labels, axis=1\)"),
        ({"inputs": clips(0)[0] * 2}, "data: inputs: .*2"),
        ({"inputs": clips(0)[0][:, :, 1:]}, "data: inputs: shape"),
        ({"teacher": np.zeros((CLIPS, 2))}, r"teacher: logits float64 \(90, 2\), needs \(90, 3\)"),
        ({"teacher": np.full((CLIPS, CLASSES), np.nan)}, "teacher: logits hold NaN"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Array], message: str) -> None:
    graph = untrained(readout=False)
    inputs, labels = clips(0)
    train = change.get("inputs", inputs), change.get("labels", labels)
    with pytest.raises(RecipeError, match=message):
        finetune(
            lowered(graph), graph, train=train, validation=clips(1), teacher=change.get("teacher")
        )
