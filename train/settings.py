"""What all recipes share: checked, frozen settings, how a network is fitted, how a student is deployed.

YAML that people write, read without surprises, and what does not fit in it, in words.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from knarr.errors import KnarrError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
UnitFraction = Annotated[float, Field(gt=0, le=1)]
MAX_THREADS = 256
Rate = Annotated[float, Field(gt=0, le=1000)]
"""Of learning: far beyond what any fit bears, and within float32."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class RecipeError(KnarrError, ValueError):
    """A recipe is unknown, unreadable, or holds a setting that is not allowed."""


class SettingsError(RecipeError):
    """Settings that are each allowed, but make no network, or no fit on these data: a sweep goes on without them."""


class Frozen(BaseModel):
    """Settings: checked when made, never changed, no unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fit(Frozen):
    """How a network is fitted.

    Args:
        epochs: at most.
        batch_size: of each process; of several, which torchrun starts, the optimiser sees so many times more clips in a step.
        learning_rate: the highest one of its schedule.
        weight_decay: decoupled of "adamw"; an L2 gradient of "adam" and "sgd".
        optimiser: "adamw", "adam" or "sgd". momentum: of "sgd". amsgrad: of the other two.
        schedule: "one_cycle" over all steps (Smith 2018, arXiv 1708.07120), "exponential", times `decay` every epoch, or "constant".
        patience: epochs without a better validation accuracy after which the fit ends; None for none.
        select: whose weights are kept: of the "last" epoch, or of the best one on the "val" data (accuracy, then loss). The
            published code of SEEN keeps the "best_on_test": all training data are fitted on and every epoch is scored on the test
            set. What that reports is no estimate for other data; it is there to be compared with their numbers.
        precision: "full" is float32; "mixed" computes in bfloat16 where the weights allow it on a GPU, and in float32 without one.
        tensorboard: write tensorboard/<stage> beside metrics.csv.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Rate
    weight_decay: float = Field(default=1e-3, ge=0, le=1000)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    amsgrad: bool = False
    schedule: Literal["one_cycle", "exponential", "constant"] = "one_cycle"
    decay: UnitFraction = 0.94
    patience: Count | None = None
    select: Literal["last", "val", "best_on_test"] = "last"
    precision: Literal["full", "mixed"] = "full"
    tensorboard: bool = False


class DeploySettings(Frozen):
    """`calibration_samples` are taken from the training split; 0 chooses scales from the weights alone."""

    weight_bits: int = Field(default=8, ge=2, le=8)
    lava_samples: Count = 20
    calibration_samples: int = Field(default=20, ge=0)
    allow_approximate: bool = False


class ChipSettings(Frozen):
    """How a lowered student is fitted on in the chip's own arithmetic; `chip: {}` takes all of it as it is.

    The fit starts from the float student's weights in the scales that lowering chose, beside the same teacher and with the same loss.
    What is kept is the epoch that is right most often on the validation data, of those within the goal where there is one, and
    `student.net` holds its very integers.

    Args:
        weight_bits: signed bits of a weight, in place of `deploy.weight_bits`.
        epochs: in the chip's arithmetic.
        batch_size: None for the student's own.
        learning_rate: of everything learned, the highest of a one-cycle schedule. Weights are in thresholds, steps and decays
            relative to their start.
        weight_decay: of weights, decoupled.
        learn: what is learned: "weights", "steps" (scales, each layer's grid), "thresholds", "biases", "decays" (k of k/4096).
        timesteps: the first so many of every clip; None for all. The chip runs no more of them anywhere.
        acc_per_inference: synaptic accumulates that an inference may cost, mean over clips; None for no limit. Those of the input's
            own events are in it, and no training changes them; graded inputs multiply and are not.
        acc_share: the same goal as a share of what the lowered network costs on the validation clips; give one of the two.
        acc_weight: of the goal in the loss: weight * max(0, ACC / goal - 1).
        register_weight: of sums and states that leave their registers.
        surrogate, surrogate_width: gradient of a spike over v / threshold - 1, as `Neuron` has it.
    """

    weight_bits: int = Field(default=8, ge=2, le=8)
    epochs: Count = 10
    batch_size: Count | None = None
    learning_rate: Rate = 0.001
    weight_decay: float = Field(default=0.0, ge=0, le=1000)
    learn: tuple[Literal["weights", "steps", "thresholds", "biases", "decays"], ...] = (
        "weights",
        "steps",
        "thresholds",
        "biases",
    )
    timesteps: Count | None = None
    acc_per_inference: Positive | None = None
    acc_share: UnitFraction | None = None
    acc_weight: Positive = 3.0
    register_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    surrogate: Literal["box", "atan"] = "atan"
    surrogate_width: Positive = 2.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> ChipSettings:
        if not self.learn or len(set(self.learn)) < len(self.learn):
            raise ValueError("learn: name each of what is learned once, and at least one")
        if self.acc_per_inference is not None and self.acc_share is not None:
            raise ValueError("acc_per_inference, acc_share: two goals; give one")
        return self

    def fit(self, student: Fit) -> Fit:
        """Settings of the fit, of a student that was fitted so before."""
        return Fit(
            epochs=self.epochs,
            batch_size=self.batch_size or student.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            select="val",
            tensorboard=student.tensorboard,
        )


class DataSettings(Frozen):
    """What every kind of data has.

    Args:
        kind: which reader.
        validation_fraction: of the groups (people, videos) that may be trained on.
    """

    kind: str
    validation_fraction: float = Field(gt=0, lt=1)

    @property
    def dt_s(self) -> float:
        """Of a student's time step, seconds."""
        raise NotImplementedError

    @property
    def generated(self) -> bool:
        """knarr makes these data itself."""
        return False


def shift_within(shift_px: int, size: int) -> None:
    """Refuse training clips that are moved further than they are wide.

    Raises:
        ValueError: they are.
    """
    if shift_px > size:
        raise ValueError(f"shift_px: {shift_px} > {size}, the size of the images; choose smaller")


class Fitted(Frozen):
    """A network's settings, as far as every recipe has them."""

    fit: Fit


class Recipe(Frozen):
    """One run from data to energy; each system has a recipe of its own. Without `chip` a lowered student stays as it is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    system: str
    seed: Seed = 0
    threads: int = Field(default=2, ge=1, le=MAX_THREADS)
    data: DataSettings
    teacher: Fitted
    student: Fitted
    deploy: DeploySettings = DeploySettings()
    chip: ChipSettings | None = None

    @property
    def chosen_on_test(self) -> tuple[str, ...]:
        """Networks whose weights are chosen by their accuracy on the test data: what is said of them there is no estimate."""
        return tuple(
            stage
            for stage in ("teacher", "student")
            if getattr(self, stage).fit.select == "best_on_test"
        )


MAX_FAULTS: Final = 2000
"""Characters of them that are printed."""
_MAPPINGS: Final = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_REPR: Final = reprlib.Repr()
_REPR.maxlevel = 2
_OF_THEIR_OWN: Final = ("value_error", "assertion_error")


class YamlError(KnarrError, ValueError):
    """A text is not YAML; its message is one line."""


def read_yaml(text: str) -> Any:
    """Plain values from YAML text.

    Raises:
        YamlError: not YAML, nested deeper than Python goes, or a date or number that is none.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise YamlError("nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # its own dates and numbers raise ValueErrors
        raise YamlError(" ".join(str(error).split())[:500]) from error


def faults_of(error: ValidationError, given: Any, whole: str) -> str:
    """All that does not fit, in one line.

    Args:
        error: of pydantic.
        given: the plain values that were checked.
        whole: what to call them where no place in them is at fault: "recipe".
    """
    found = dict.fromkeys(
        f"{_place(fault, given) or whole}: {in_words(fault)}" for fault in error.errors()
    )  # alternatives of one place may say the same
    return "; ".join(found)[:MAX_FAULTS]


def in_words(fault: ErrorDetails) -> str:
    """One fault, with what was there and what to do."""
    kind, said = fault["type"], fault["msg"]
    if kind in _OF_THEIR_OWN:
        return said.partition(", ")[2]
    if kind == "extra_forbidden":
        return "no such setting; correct its name or remove it"
    if kind == "missing":
        return "missing; give it"
    if kind in _MAPPINGS:
        return f"{short(fault['input'])} is no mapping of settings; give them one by one, as name: value or by dotted path"
    return f"{said}, not {short(fault['input'])}"


def _place(fault: ErrorDetails, given: Any) -> str:
    """Dotted path; pydantic puts names of alternatives ("eyes") between its parts."""
    return ".".join(map(str, _parts(fault, given)))


def _parts(fault: ErrorDetails, at: Any) -> Iterator[int | str]:
    for number, part in enumerate(fault["loc"], start=1):
        if (
            part in at
            if isinstance(at, Mapping)
            else isinstance(at, list) and part in range(len(at))
        ):
            at = at[part]
        elif fault["type"] != "missing" or number < len(fault["loc"]):
            continue
        yield part


def short(value: Any) -> str:
    """A value in some sixty characters, however much it holds: a few bytes of YAML can name a list of billions."""
    text = value if isinstance(value, str) and value.isprintable() and value else _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
