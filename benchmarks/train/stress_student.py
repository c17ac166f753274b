"""The spiking student of skin conductance alone: how it is fitted, with a teacher or without, and how it does on the chip."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from stress_codings import Codes, Coding
from stress_others import TeacherKind, balanced_draw

from knarr.deploy import lower
from knarr.export import to_nir
from knarr.hw_sim import simulate
from knarr.train.datasets.stress.windows import DT_S
from knarr.train.losses.terms import distillation_loss
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.gsr import GsrStudentSettings, build_gsr_student
from knarr.train.networks.heads import decide

BATCH: Final = 256
LEARNING_RATE: Final = 1e-2
WEIGHT_DECAY: Final = 1e-2
CALIBRATION: Final = 200
"""Training windows on which the chip's scales are chosen."""

Classes = npt.NDArray[np.int64]


class StudentSetting(NamedTuple):
    """What is tuned of the student itself: coding of its input, neurons of each of its two spiking layers, epochs."""

    coding: Coding
    hidden: int
    epochs: int


class KdSetting(NamedTuple):
    """What is tuned of the distillation: who teaches, the teacher's share of the loss, temperature."""

    teacher: TeacherKind
    alpha: float
    temperature: float


class OnChip(NamedTuple):
    """The exported student: classes on the chip, and spikes of all layers per window."""

    classes: Classes
    spikes: float


def _inputs(codes: Codes, indices: npt.NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(codes.integers[indices].astype(np.float32) / np.float32(codes.units))


def fit_student(
    codes: Codes,
    labels: Classes,
    train: npt.NDArray[np.int64],
    setting: StudentSetting,
    seed: int,
    kd: KdSetting | None = None,
    logits: npt.NDArray[np.float32] | None = None,
) -> snn.SequentialState:
    """A student in eval mode. Same seed, same start and same batches, whether taught or not.

    Args:
        codes, labels: of all windows.
        train: which to fit on.
        setting, seed: see there.
        kd, logits: how it is taught, and (len(train), 2) logits of its teacher; neither to fit it on labels alone.
    """
    torch.manual_seed(seed)
    width = codes.integers.shape[-1]
    network = build_gsr_student(
        GsrStudentSettings(
            samples=width, kernel=width, stride=width, hidden=setting.hidden, depth=1, dt_s=DT_S
        )
    )
    inputs, classes = _inputs(codes, train), torch.from_numpy(labels[train])
    taught = None if logits is None else torch.from_numpy(logits)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = setting.epochs * -(-2 * (len(train) // 2) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for epoch in range(setting.epochs):
        order = balanced_draw(labels[train], np.random.default_rng([seed, epoch]))
        for chosen in torch.from_numpy(order).split(BATCH):
            answer = decide(network, inputs[chosen]).logits
            if kd is None or taught is None:
                loss = F.cross_entropy(answer, classes[chosen])
            else:
                loss = distillation_loss(
                    answer,
                    taught[chosen],
                    classes[chosen],
                    alpha=kd.alpha,
                    temperature=kd.temperature,
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def float_classes(
    network: snn.SequentialState, codes: Codes, indices: npt.NDArray[np.int64]
) -> Classes:
    """(len(indices),) classes of the network as it was trained."""
    with torch.no_grad():
        return np.asarray(decide(network, _inputs(codes, indices)).logits.argmax(dim=1).numpy())


def run_on_chip(
    network: snn.SequentialState,
    codes: Codes,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
) -> OnChip:
    """Export with a certificate, lower to 8-bit integers calibrated on training windows, simulate the test windows.

    Raises:
        ExportError, DeployError: the student cannot be carried over.
    """
    chosen = train[:: max(1, len(train) // CALIBRATION)]
    form = chip_form(network, snap=True)
    graph = to_nir(
        form, codes.integers.shape[2:], DT_S, samples=_inputs(codes, chosen[:32]).numpy()
    )
    options: dict[str, Any] = {
        "input_bits": codes.bits,
        "input_units": codes.units,
        "input_kind": codes.kind,
    }
    chip = lower(graph, DT_S, calibration=codes.integers[chosen], **options)
    ran = simulate(chip, codes.integers[test], threads=1)
    spikes = sum(int(count.sum()) for count in ran.event_counts.values()) / len(test)
    return OnChip(chip.readout.decide(ran.output), spikes)
