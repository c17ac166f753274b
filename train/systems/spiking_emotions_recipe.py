"""Recipe of Spiking Emotions: PLIF voters, or the ANN beside them, see the polarity of an emotion in simulated events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_serializer, model_validator

from knarr.train.networks.spiking_emotions import FANG_BLOCKS, SpikingEmotionsSettings
from knarr.train.settings import DataSettings, Fitted, Positive, Recipe, Seed

OF_DATA: Final[Mapping[str, str]] = {
    "size_px": "data.size",
    "frames": "data.frames",
    "dt_s": "data.frames_per_s",
    "classes": "the data, which have two",
}
"""Settings of the networks that are those of the data, and what sets them."""


class CameraData(DataSettings):
    """Videos in the layout of CMU-MOSI, seen by a simulated event camera.

    Args:
        size, frames, sensitivity, resize, drop_short: see `knarr.train.datasets.dvs.Dvs`.
        grey_first: show the first frame, grey, on both channels before the events. None follows `student.network.pure_spike`, which
            is its contrary; given, it has to fit.
        frames_per_s: nominal, of the time step; networks see steps and never seconds.
        validation_fraction: of the videos to train on, where no video is in the fold "valid".
        workers: processes that decode.
    """

    size: Annotated[int, Field(ge=4, le=1024)] = 128
    frames: Annotated[int, Field(ge=2, le=4096)] = 68
    sensitivity: Annotated[float, Field(ge=0, lt=1)] = 0.001
    resize: Literal["before_diff", "after_diff"] = "before_diff"
    drop_short: bool = False
    grey_first: bool | None = None
    frames_per_s: Positive = 30.0
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    workers: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def dt_s(self) -> float:
        return 1.0 / self.frames_per_s


class MosiData(CameraData):
    """CMU-MOSI.

    Args:
        zeros, folds, fps, on_bad: see `knarr.train.datasets.mosi.read_mosi`.
    """

    kind: Literal["mosi"]
    zeros: Literal["drop", "positive"] = "drop"
    folds: Literal["standard", "mode"] | dict[str, Literal["train", "valid", "test"]] = "standard"
    fps: Positive | None = None
    on_bad: Literal["raise", "skip"] = "raise"


class ClipsData(CameraData):
    """Generated faces, see `knarr.train.datasets.mosi_generate`; their pictures are twice as wide and high as `size`.

    Args:
        videos: speakers. clips_per_video: segments of each.
        seed: of the speakers. The recipe's own seed leaves them as they are.
        shuffle_labels: nothing can be learned; what is seen all the same comes from elsewhere.
    """

    kind: Literal["clips"]
    videos: Annotated[int, Field(ge=3, le=9999)] = 60
    clips_per_video: Annotated[int, Field(ge=2, le=9999)] = 12
    seed: Seed = 0
    size: Annotated[int, Field(ge=8, le=256)] = 36
    frames: Annotated[int, Field(ge=2, le=4096)] = 20
    sensitivity: Annotated[float, Field(ge=0, lt=1)] = 0.02
    shuffle_labels: bool = False

    @property
    def generated(self) -> bool:
        return True


class AnnSettings(Fitted):
    """The ANN beside the voters; its layers are those of `student.network`.

    Args:
        ann_input: its channels: "grey", all frames; or "difference", the first one and then ON minus OFF of every step. The paper
            does not say which [unknown].
        loss: mean square error of its outputs, as of the voters' rates, or cross entropy [unknown].
    """

    ann_input: Literal["grey", "difference"] = "grey"
    loss: Literal["mse", "cross_entropy"] = "mse"


class VotersSettings(Fitted):
    """The student.

    Args:
        kind: "voting"; "fang", the PLIF network of the paper's comparison; or "ann", its ANN as a row of its own, on
            `teacher.ann_input` and without steps.
        network: `SpikingEmotionsSettings`; what the data decide (`OF_DATA`) is not set here.
        kd_alpha: share of the loss that pulls towards the ANN; 0 is the paper's loss, any other ours.
        kd_temperature: of that share.
        kd_scale: rates lie in 0..1 and are multiplied by it to be logits; so are outputs of an ANN with loss "mse".
    """

    kind: Literal["voting", "fang", "ann"] = "voting"
    network: SpikingEmotionsSettings = SpikingEmotionsSettings()
    kd_alpha: float = Field(default=0, ge=0, le=1)
    kd_temperature: Positive = 3.0
    kd_scale: Positive = 8.0

    @field_serializer("network")
    def _own(self, network: SpikingEmotionsSettings) -> dict[str, Any]:
        """What the data decide would be refused when it is read again."""
        return network.model_dump(mode="json", exclude=set(OF_DATA))


class SpikingEmotionsRecipe(Recipe):
    """See above."""

    system: Literal["spiking_emotions"]
    data: Annotated[MosiData | ClipsData, Field(discriminator="kind")]
    teacher: AnnSettings
    student: VotersSettings

    @model_validator(mode="after")
    def _fits(self) -> SpikingEmotionsRecipe:
        own = self.student.network
        for name in OF_DATA:
            if name in own.model_fields_set:
                raise ValueError(f"student.network.{name}: follows {OF_DATA[name]}; leave it out")
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
        """Settings of voters and ANN, with what the data decide."""
        decided = {
            "size_px": self.data.size,
            "frames": self.data.frames,
            "dt_s": self.data.dt_s,
            "classes": 2,
        }
        return self.student.network.model_copy(update=decided)
