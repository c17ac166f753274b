"""Spiking Emotions: voters on the events of a simulated camera, with an ANN on all frames at once
as teacher and baseline.

The student sees a grey frame on both channels and then events: 8-bit integers, a grey level k and
255 for an event, of 255 units, so that an event is 1 in floating point. Pure spikes leave the grey
frame out and are one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_serializer, model_validator
from torch import Tensor, nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Indices
from knarr.train.datasets.arrays import Float32, Int64, Rng, UInt8
from knarr.train.datasets.events.camera import Dvs
from knarr.train.datasets.mosi.clips import CLASS_NAMES, GreyFrames, MosiClips, read_grey
from knarr.train.datasets.mosi.generate import generate_clips
from knarr.train.datasets.mosi.read import read_mosi
from knarr.train.datasets.splits import assert_apart
from knarr.train.errors import DataError
from knarr.train.losses.terms import one_hot_mse, softened_kl, voting_mse
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.spiking_emotions import (
    FANG_BLOCKS,
    SpikingEmotionsSettings,
    build_ann,
    build_plif_fang,
    build_voting_network,
    votes,
)
from knarr.train.settings import (
    DataSettings,
    Fitted,
    OpenFraction,
    Positive,
    ProperFraction,
    Recipe,
    RecipeError,
    Seed,
    Share,
)
from knarr.train.systems.base import Coding, Progress, RunData, Scored, System

DERIVED: Final[Mapping[str, str]] = {
    "size_px": "data.size",
    "frames": "data.frames",
    "dt_s": "data.frames_per_s",
    "classes": "the data, which have two",
}
"""Settings of the networks that the data decide, and the setting that does."""


class CameraData(DataSettings):
    """Videos in the layout of CMU-MOSI, seen by a simulated event camera.

    Args:
        size: Height and width of the camera in pixels.
        frames: Frames of a segment.
        sensitivity: Change of grey, 0..1, above which a pixel has an event.
        resize: Whether frames are made smaller before or after they are compared.
        drop_short: Leave out segments with fewer frames; otherwise they end in empty steps.
        grey_first: Show the first frame, grey, on both channels before the events. None follows
            `student.network.pure_spike`, which is its contrary; given, it has to fit.
        frames_per_s: Nominal rate, which gives the time step; networks see steps and never seconds.
        validation_fraction: Share of the videos to train on, where no video is in the fold "valid".
        workers: Processes that decode.
    """

    size: Annotated[int, Field(ge=4, le=1024)] = 128
    frames: Annotated[int, Field(ge=2, le=4096)] = 68
    sensitivity: ProperFraction = 0.001
    resize: Literal["before_diff", "after_diff"] = "before_diff"
    drop_short: bool = False
    grey_first: bool | None = None
    frames_per_s: Positive = 30.0
    validation_fraction: OpenFraction = 0.15
    workers: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return 1.0 / self.frames_per_s


class MosiData(CameraData):
    """CMU-MOSI; see `knarr.train.datasets.mosi.read.read_mosi`.

    Args:
        zeros: "drop" leaves out segments of score 0, "positive" counts them among the positive
            ones.
        folds: "standard" folds, those of the label file's column "mode", or the fold of each video.
        fps: Frames per second to take; None for the video's own.
        on_bad: "raise" at the first bad segment, or "skip": leave it out.
    """

    kind: Literal["mosi"]
    zeros: Literal["drop", "positive"] = "drop"
    folds: Literal["standard", "mode"] | dict[str, Literal["train", "valid", "test"]] = "standard"
    fps: Positive | None = None
    on_bad: Literal["raise", "skip"] = "raise"


class ClipsData(CameraData):
    """Generated faces, see `knarr.train.datasets.mosi.generate`; their pictures are twice as wide
    and high as `size`.

    Args:
        videos: Videos, each of a speaker of its own.
        clips_per_video: Segments of each.
        seed: Seed of the speakers. The recipe's own seed leaves them as they are.
        shuffle_labels: Draw labels at random, so that nothing can be learned: accuracy above chance
            then has another cause.
    """

    kind: Literal["clips"]
    videos: Annotated[int, Field(ge=3, le=9999)] = 60
    clips_per_video: Annotated[int, Field(ge=2, le=9999)] = 12
    seed: Seed = 0
    size: Annotated[int, Field(ge=8, le=256)] = 36
    frames: Annotated[int, Field(ge=2, le=4096)] = 20
    sensitivity: ProperFraction = 0.02
    shuffle_labels: bool = False

    @property
    def generated_folder(self) -> str:
        """Name of the folder of these data."""
        segments = f"{self.videos}v-{self.clips_per_video}c-{self.seed}"
        shuffled = "-shuffled" if self.shuffle_labels else ""
        return f"clips-{2 * self.size}px-{self.frames}f-{segments}{shuffled}"

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        """Write the videos and their label file; see `knarr.train.datasets.mosi.generate`."""
        generate_clips(
            root,
            videos=self.videos,
            clips_per_video=self.clips_per_video,
            frames=self.frames,
            size=2 * self.size,  # the camera makes pictures smaller, as it does with real ones
            seed=self.seed,
            shuffle_labels=self.shuffle_labels,
            progress=progress,
        )


class AnnSettings(Fitted):
    """Settings of the ANN that teaches; its layers are those of `student.network`.

    Args:
        ann_input: Its channels: "grey", all frames; or "difference", the first one and then ON
            minus OFF of every step. The paper does not say which [unknown].
        loss: Mean square error of its outputs, as of the voters' rates, or cross entropy [unknown].
    """

    ann_input: Literal["grey", "difference"] = "grey"
    loss: Literal["mse", "cross_entropy"] = "mse"


class VotersSettings(Fitted):
    """Settings of the student.

    Args:
        kind: "voting"; "fang", the PLIF network of the paper's comparison; or "ann", its ANN as a
            row of its own, on `teacher.ann_input` and without steps.
        network: Its layers; what the data decide (`DERIVED`) is not set here.
        kd_alpha: Share of the loss that pulls towards the ANN; 0 is the paper's loss, any other
            ours.
        kd_temperature: Temperature of that share.
        kd_scale: Logits per unit of a rate, 0..1, and of an output of an ANN with loss "mse".
    """

    kind: Literal["voting", "fang", "ann"] = "voting"
    network: SpikingEmotionsSettings = SpikingEmotionsSettings()
    kd_alpha: Share = 0
    kd_temperature: Positive = 3.0
    kd_scale: Positive = 8.0

    @field_serializer("network")
    def _without_derived(self, network: SpikingEmotionsSettings) -> dict[str, Any]:
        # What the data decide would be refused when it is read again.
        return network.model_dump(mode="json", exclude=set(DERIVED))


class SpikingEmotionsRecipe(Recipe):
    """Recipe of Spiking Emotions; its data decide sizes of its networks."""

    system: Literal["spiking_emotions"]
    data: Annotated[MosiData | ClipsData, Field(discriminator="kind")]
    teacher: AnnSettings
    student: VotersSettings

    @model_validator(mode="after")
    def _fits(self) -> SpikingEmotionsRecipe:
        own = self.student.network
        for name, setting in DERIVED.items():
            if name in own.model_fields_set:
                raise ValueError(f"student.network.{name}: follows {setting}; leave it out")
        first, pure = self.data.grey_first, own.pure_spike
        if first is not None and first == pure:
            raise ValueError(
                f"data.grey_first: {first}, but student.network.pure_spike is {pure}; set one to the contrary of the other, "
                "or leave grey_first out"
            )
        if self.student.kind == "fang" and self.data.size < 2**FANG_BLOCKS:
            raise ValueError(
                f"data.size: {self.data.size}, student.kind fang needs {2**FANG_BLOCKS}"
            )
        if own.model_copy(update={"size_px": self.data.size}).side < 1:
            raise ValueError(
                f"data.size: {self.data.size} leaves nothing after student.network.blocks {own.blocks}; choose larger"
            )
        return self

    @property
    def network(self) -> SpikingEmotionsSettings:
        """Settings of voters and ANN together with what the data decide."""
        decided = {
            "size_px": self.data.size,
            "frames": self.data.frames,
            "dt_s": self.data.dt_s,
            "classes": 2,
        }
        return self.student.network.model_copy(update=decided)


GREY_LEVELS: Final = 255
"""Integers of the chip per unit of the student's input: the brightest grey level, and an event."""


@dataclass(frozen=True, eq=False)
class CameraClips:
    """Some segments, kept packed and unpacked batch by batch.

    Args:
        clips: All segments, with their first frames.
        chosen: Indices of those of this split.
        pure_spike: Leave the first frames out.
        grey: Frames for the ANN; None gives it the first frame and differences of events.
    """

    clips: MosiClips
    chosen: Indices
    pure_spike: bool
    grey: GreyFrames | None

    @property
    def labels(self) -> Int64:
        """(N,) classes."""
        return self.clips.labels[self.chosen]

    @property
    def videos(self) -> npt.NDArray[np.str_]:
        """(N,) video of each segment, which shows one speaker."""
        return self.clips.videos[self.chosen]

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return clips `indices`; nothing is augmented, as in the paper as far as it says."""
        inputs = self.chip_inputs(indices).astype(np.float32)
        if not self.pure_spike:
            inputs /= np.float32(GREY_LEVELS)
        return Batch.from_arrays(inputs, self._channels(indices), labels=self.labels[indices])

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return (B, T, 2, H, W) student inputs, a grey frame before the events where they are not
        pure.
        """
        own = self.chosen[indices]
        spikes = self.clips.spikes(own)
        if self.pure_spike:
            return spikes
        first = np.repeat(self.clips.first[own, None, None], 2, axis=2)
        return np.concatenate([first, spikes * np.uint8(GREY_LEVELS)], axis=1)

    def _channels(self, indices: Indices) -> Float32:
        """Return the ANN's inputs (B, frames, H, W): grey 0..1, or that and then -1, 0 or 1."""
        own = self.chosen[indices]
        if self.grey is not None:
            return self.grey.luma(own).astype(np.float32) / np.float32(GREY_LEVELS)
        first = self.clips.first[own].astype(np.float32) / np.float32(GREY_LEVELS)
        # ON less OFF; before the cast, unsigned spikes would wrap.
        spikes = self.clips.spikes(own).astype(np.float32)
        return np.concatenate([first[:, None], spikes[:, :, 0] - spikes[:, :, 1]], axis=1)


BUILDERS: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "voting": build_voting_network,
    "fang": build_plif_fang,
    "ann": build_ann,
}
"""Builders of the student by `VotersSettings.kind`."""
_PROTOCOLS = {
    "standard": "standard folds, speakers apart",
    "mode": "folds of the label file, speakers apart",
}


class SpikingEmotions(System[SpikingEmotionsRecipe]):
    """Spiking Emotions with a recipe's settings."""

    recipe_class = SpikingEmotionsRecipe

    # --- data

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read and film the segments, and part them by video; see `System.load`."""
        settings, pure = self.recipe.data, self.recipe.network.pure_spike
        needs_grey = self.recipe.teacher.ann_input == "grey"
        parts = 2 if needs_grey else 1
        clips = self._segments(root, cache, _part(progress, 0, parts))
        grey = None
        if needs_grey:
            grey = read_grey(
                clips.sources,
                size=settings.size,
                frames=settings.frames,
                cache=cache,
                workers=settings.workers,
                progress=_part(progress, 1, parts),
            )
        train, valid, test = (clips.fold(name) for name in ("train", "valid", "test"))
        assert_apart(clips.videos, train, valid, test)
        for name, fold in (("train", train), ("test", test)):
            if not len(fold):
                raise DataError(
                    root, f"empty fold: no segment is in '{name}'; name the videos of each fold"
                )
        # Validation clips are among the training clips, and `validation` says which they are.
        both = np.sort(np.concatenate([train, valid]))
        training, tested = (CameraClips(clips, chosen, pure, grey) for chosen in (both, test))
        return RunData(
            training,
            tested,
            training.videos,
            CLASS_NAMES,
            _name_of(settings, len(clips.left_out)),
            coding=Coding(
                bits=1 if pure else 8,
                units=1.0 if pure else float(GREY_LEVELS),
                kind="events" if pure else "graded",
                over_time="mean",
                votes=self.recipe.network.voters,
            ),
            subjects=tuple(tested.videos.tolist()),
            validation=np.flatnonzero(np.isin(both, valid)) if len(valid) else None,
            names=tuple(str(clips.keys[at]) for at in test),
            protocol=_PROTOCOLS.get(
                str(getattr(settings, "folds", "mode")), "folds that the recipe names"
            ),
        )

    def _segments(self, root: Path, cache: Path | None, progress: Progress | None) -> MosiClips:
        settings = self.recipe.data
        camera = settings.model_dump(
            include={"sensitivity", "size", "frames", "resize", "drop_short"}
        )
        # Generated segments have none of these but the folds of their label file; otherwise they
        # are read by the reader's defaults.
        selection = settings.model_dump(include={"zeros", "fps", "on_bad", "folds"})
        return read_mosi(
            root,
            Dvs(**camera),
            **{"folds": "mode", **selection},
            cache=cache,
            workers=settings.workers,
            progress=progress,
        )

    # --- networks

    def teacher(self, data: RunData) -> nn.Module:
        """Return a new ANN."""
        return build_ann(self.recipe.network)

    def teacher_settings(self) -> dict[str, Any]:
        """Return the ANN's settings, the student's network among them: it has the same layers."""
        network = self.recipe.network.model_dump(mode="json")
        return {**super().teacher_settings(), "network": network}

    def teacher_error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean square error or the cross entropy, as the recipe says."""
        if self.recipe.teacher.loss == "mse":
            return one_hot_mse(logits, labels)
        return super().teacher_error(logits, labels)

    def student(self, data: RunData) -> nn.Module:
        """Return a new network of the recipe's kind."""
        return BUILDERS[self.recipe.student.kind](self.recipe.network)

    def chip_output(self, output: ChipStudentOutput) -> Tensor:
        """Return mean rates of a chip student's voters, (B, classes)."""
        # The chip counts spikes of all voters of a class; a rate is of one.
        return output.step_logits.mean(1) / self.recipe.network.voters

    def distil(self, output: Tensor, teacher: nn.Module, batch: Batch) -> Scored:
        """Return the mean square error of mean rates of each class's voters, or of an ANN's
        outputs, with the teacher's share where the recipe gives it one; and the outputs.
        """
        settings = self.recipe.student
        hard = one_hot_mse if settings.kind == "ann" else voting_mse
        value = hard(output, batch.labels)
        if settings.kd_alpha:
            # An ANN fitted by cross entropy gives logits already; one fitted to 0 and 1 gives what
            # rates are.
            teacher_scale = settings.kd_scale if self.recipe.teacher.loss == "mse" else 1.0
            soft = softened_kl(
                settings.kd_scale * output,
                teacher_scale * self.teacher_logits(teacher, batch),
                temperature=settings.kd_temperature,
            )
            value = (1 - settings.kd_alpha) * value + settings.kd_alpha * soft
        return value, output

    def student_output(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return mean rates of the voters, 0..1, or outputs of an ANN, (B, classes)."""
        if self.recipe.student.kind == "ann":
            return self.teacher_logits(student, batch)
        if torch.is_grad_enabled():
            return self._rates(student, batch.inputs)
        # A batch of evaluation is larger than one of training, and so may be its maps: 7 GB of 50
        # clips at full size.
        size = self.recipe.student.fit.batch_size
        rates = torch.cat([self._rates(student, part) for part in torch.split(batch.inputs, size)])
        # Ties between classes are ties of whole spikes, as on the chip; float sums in another order
        # would break them.
        most = batch.inputs.shape[1] * self.recipe.network.voters
        return (rates * most).round() / most

    def deployable(self, student: nn.Module) -> snn.SequentialState:
        """Return the voters with their decays on the chip's grid."""
        kind, network = self.recipe.student.kind, self.recipe.network
        for setting, found, allowed in (
            ("student.kind", kind, "voting"),
            ("student.network.pool", network.pool, "avg"),
            ("student.network.fires", network.fires, "gt"),
        ):
            if found != allowed:
                raise RecipeError(
                    f"{setting}: {found}, which no chip network holds; it can be trained and evaluated, set it to {allowed} to "
                    "export"
                )
        return chip_form(student, snap=True)

    def _rates(self, network: snn.SequentialState, inputs: Tensor) -> Tensor:
        # The data have left the grey frame out already where it is not wanted.
        settings = self.recipe.network.model_copy(update={"pure_spike": False})
        return votes(network, inputs, settings).logits


def _name_of(settings: MosiData | ClipsData, left_out: int) -> str:
    """Return what published tables call the data, and how ours differ in segments and labels."""
    if isinstance(settings, ClipsData):
        return "generated clips"
    differs = [] if settings.zeros == "drop" else [f"zeros {settings.zeros}"]
    if settings.folds != "standard":
        differs.append("folds of the label file" if settings.folds == "mode" else "own folds")
    differs += ["short segments dropped"] if settings.drop_short else []
    differs += [f"without {left_out} segments"] if left_out else []
    return ", ".join(["CMU-MOSI, two classes", *differs])


def _part(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Return the progress of one of several passes over the same samples as that of all of them."""
    if progress is None:
        return None
    return lambda done, of: progress(part * of + done, parts * of)
