"""Settings that all recipes share: how a network is fitted, how a student is deployed; and YAML
that people write, read without surprises.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from knarr.errors import KnarrError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
# Fractions differ in their ends: 0 may switch something off, and 1 may leave nothing.
UnitFraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
WeightBits = Annotated[int, Field(ge=2, le=8)]
Decay = Annotated[float, Field(ge=0, le=1000)]
MAX_THREADS = 256
BATCH_SIZE: Final = 32
"""Clips in a batch of a fit that says nothing of it."""
Rate = Annotated[float, Field(gt=0, le=1000)]
"""A learning rate; its upper bound is far beyond what any fit bears, and within float32."""
Learned = Literal["weights", "steps", "thresholds", "biases", "decays"]
"""Parts of a student that can learn in the chip's arithmetic."""
LEARNED: tuple[Learned, ...] = ("weights", "steps", "thresholds", "biases")
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and torch both take


class RecipeError(KnarrError, ValueError):
    """A recipe is unknown, unreadable, or holds a setting that is not allowed."""


class SettingsError(RecipeError):
    """Settings that are each allowed, but make no network, or no fit on these data: a sweep goes on
    without them.
    """


class Frozen(BaseModel):
    """Settings: checked when made, never changed, no unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fit(Frozen):
    """Settings of a fit.

    Args:
        epochs: Epochs to fit at most.
        batch_size: Clips in a batch of each process; torchrun may start several, whose gradients
            are averaged.
        learning_rate: The highest learning rate of the schedule.
        weight_decay: Decoupled for "adamw"; an L2 gradient for "adam" and "sgd".
        optimiser: "adamw", "adam" or "sgd".
        momentum: Momentum of "sgd".
        amsgrad: Take the largest second moment so far; "adamw" and "adam".
        schedule: "one_cycle" over all steps (Smith 2018, arXiv 1708.07120), "exponential", times
            `decay` every epoch, or "constant".
        decay: Factor of "exponential".
        patience: Epochs without a better validation accuracy after which the fit ends; None for
            none.
        select: Epoch whose weights are kept: the "last", or the best one on the "val" data
            (accuracy, then loss). The published code of SEEN keeps the "best_on_test": all training
            data are fitted on and every epoch is scored on the test set. What that reports is no
            estimate for other data; it is there to be compared with their numbers.
        precision: "full" is float32; "mixed" computes in bfloat16 where the weights allow it on a
            GPU, and in float32 without one.
        tensorboard: Write tensorboard/<network> beside metrics.csv.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Rate
    weight_decay: Decay = 1e-3
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: ProperFraction = 0.9
    amsgrad: bool = False
    schedule: Literal["one_cycle", "exponential", "constant"] = "one_cycle"
    decay: UnitFraction = 0.94
    patience: Count | None = None
    select: Literal["last", "val", "best_on_test"] = "last"
    precision: Literal["full", "mixed"] = "full"
    tensorboard: bool = False


class DeploySettings(Frozen):
    """Settings of lowering and of the check on Lava.

    Args:
        weight_bits: Signed bits of a weight.
        lava_samples: Test clips that Lava runs.
        calibration_samples: Clips of the training split by which scales are chosen; 0 chooses them
            from the weights alone.
        allow_approximate: Lower layers that the chip cannot hold exactly, see docs/deploy.md.
    """

    weight_bits: WeightBits = 8
    lava_samples: Count = 20
    calibration_samples: NonNegativeInt = 20
    allow_approximate: bool = False


class ChipSettings(Frozen):
    """Settings of a lowered student's fit in the chip's arithmetic; `chip: {}` takes all defaults.

    The fit starts from the float student's weights in the scales that lowering chose, with the
    same teacher and the same loss. What is kept is the epoch that is right most often on the
    validation data, of those within the goal where there is one, and `student.net` holds its very
    integers.

    Args:
        weight_bits: Signed bits of a weight, in place of `deploy.weight_bits`.
        epochs: Epochs in the chip's arithmetic.
        batch_size: Clips in a batch; None for the student's own.
        learning_rate: The highest rate of a one-cycle schedule, for everything learned. Weights are
            in thresholds, steps and decays relative to their start.
        weight_decay: Decay of weights, decoupled.
        learn: What is learned: "weights", "steps" (scales, each layer's grid), "thresholds",
            "biases", "decays" (k of k/4096).
        timesteps: The first so many of every clip; None for all. The chip runs no more of them
            anywhere.
        acc_per_inference: Synaptic accumulates that an inference may cost, mean over clips; None
            for no limit. Those of the input's own events are in it, and no training changes them;
            graded inputs multiply and are not.
        acc_share: The same goal as a share of what the lowered network costs on the validation
            clips; give one of the two.
        acc_weight: Weight of the goal in the loss: weight * max(0, ACC / goal - 1).
        register_weight: Weight of sums and states that leave their registers.
        surrogate: Gradient of a spike over v / threshold - 1, as `Neuron` has it.
        surrogate_width: Width of that gradient.
    """

    weight_bits: WeightBits = 8
    epochs: Count = 10
    batch_size: Count | None = None
    learning_rate: Rate = 0.001
    weight_decay: Decay = 0.0
    learn: tuple[Learned, ...] = LEARNED
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

    def fit(self, student: Fit | None) -> Fit:
        """Return the settings of the fit, for a student that was fitted before with `student`."""
        return Fit(
            epochs=self.epochs,
            batch_size=self.batch_size or (BATCH_SIZE if student is None else student.batch_size),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            select="val",
            tensorboard=student is not None and student.tensorboard,
        )


class DataSettings(Frozen):
    """Settings that every kind of data has.

    Args:
        kind: Name of the reader.
        validation_fraction: Share of the groups (people, videos) that may be trained on, 0 < share
            < 1.
    """

    kind: str
    validation_fraction: OpenFraction

    if TYPE_CHECKING:  # a setting of some kinds of data, and a property of the others

        @property
        def dt_s(self) -> float:
            """Length of a student's time step in seconds."""

    @property
    def generated_folder(self) -> str | None:
        """Name of the folder of data that knarr generates, made of the settings that they depend
        on; None for data that are read.
        """
        return None

    def generate(self, root: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Write generated data to a folder that does not exist; `progress` is called with (clips
        done, clips in all).
        """
        raise NotImplementedError


def shift_within(shift_px: int, size: int) -> None:
    """Refuse training clips that are moved further than they are wide.

    Raises:
        ValueError: They are.
    """
    if shift_px > size:
        raise ValueError(f"shift_px: {shift_px} > {size}, the size of the images; choose smaller")


TEACHER, STUDENT = "teacher.safetensors", "student.safetensors"
"""Files of a run that hold the weights of its finished networks."""


class Fitted(Frozen):
    """Settings of a network that knarr builds and fits."""

    fit: Fit


class Recipe(Frozen):
    """One run from data to energy; each system has a recipe class of its own.

    Args:
        name: Name of the recipe, which names its run folder.
        system: Name of the system, see `knarr.train.systems`.
        seed: Seed of weights, batches, augmentation, dropout and of who validates.
        threads: Processor threads of torch.
        data: Settings of the data.
        teacher: Settings of the teacher.
        student: Settings of the student.
        deploy: Settings of lowering.
        chip: Settings of a fit in the chip's arithmetic; None leaves a lowered student as it is.
        folder: Folder that relative paths and Python modules of a recipe with own code are looked
            up in: that of its file where it is left out. It says where things lie, not what they
            are, so that runs may be moved.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    system: str
    seed: Seed = 0
    threads: int = Field(default=2, ge=1, le=MAX_THREADS)
    data: DataSettings
    teacher: Frozen | None
    student: Frozen
    deploy: DeploySettings = DeploySettings()
    chip: ChipSettings | None = None
    folder: str | None = None

    def fit_of(self, network: str) -> Fit | None:
        """Return how the "teacher" or the "student" is fitted; None where it is not."""
        found: Fit | None = getattr(getattr(self, network), "fit", None)
        return found

    def code(self) -> tuple[str, ...]:
        """Return the Python code of the user's that this recipe runs, as module:name."""
        return (self.system,) if ":" in self.system else ()

    def same_run(self, other: Recipe) -> bool:
        """Return whether two recipes describe the same run, wherever their files lie."""
        here = {"folder": None}
        return self.model_copy(update=here) == other.model_copy(update=here)

    @property
    def chosen_on_test(self) -> tuple[str, ...]:
        """Networks whose weights are chosen by their accuracy on the test data: what is said of
        them there is no estimate.
        """
        return tuple(
            network
            for network in ("teacher", "student")
            if (fit := self.fit_of(network)) is not None and fit.select == "best_on_test"
        )


MAX_FAULTS_CHARACTERS: Final = 2000
"""Length to which the text about all faults is cut."""
_MAPPING_FAULTS: Final = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_VALIDATOR_FAULTS: Final = ("value_error", "assertion_error")
_REPR: Final = reprlib.Repr()
_REPR.maxlevel = 2


class YamlError(KnarrError, ValueError):
    """A text is not YAML; its message is one line."""


def read_yaml(text: str) -> Any:
    """Return plain values from YAML text.

    Raises:
        YamlError: Not YAML, nested deeper than Python goes, or a date or number that is none.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise YamlError("nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # its own dates and numbers raise ValueErrors
        raise YamlError(" ".join(str(error).split())[:500]) from error


def faults_of(error: ValidationError, given: Any, whole: str) -> str:
    """Say all that does not fit, in one line.

    Args:
        error: What pydantic raised.
        given: The plain values that were checked.
        whole: What to call them where no place in them is at fault: "recipe".
    """
    # Alternatives of one place may say the same; a dict keeps each once, in order.
    found = dict.fromkeys(
        f"{'.'.join(map(str, _parts(fault, given))) or whole}: {in_words(fault)}"
        for fault in error.errors()
    )
    return "; ".join(found)[:MAX_FAULTS_CHARACTERS]


def in_words(fault: ErrorDetails) -> str:
    """Say what one fault is: what was there, what is allowed, and what to do."""
    kind, said = fault["type"], fault["msg"]
    if kind in _VALIDATOR_FAULTS:
        # Our own validators word their errors themselves; pydantic puts "Value error, " before
        # them.
        return said.partition(", ")[2]
    if kind == "extra_forbidden":
        return "no such setting; correct its name or remove it"
    if kind == "missing":
        return "missing; give it"
    if kind in _MAPPING_FAULTS:
        return f"{short(fault['input'])} is no mapping of settings; give them one by one, as name: value or by dotted path"
    return f"{said}, not {short(fault['input'])}"


def _parts(fault: ErrorDetails, at: Any) -> Iterator[int | str]:
    """Yield the parts of a fault's path; pydantic puts names of alternatives ("eyes") between
    them.
    """
    for number, part in enumerate(fault["loc"], start=1):
        if isinstance(at, Mapping):
            found = part in at
        else:
            found = isinstance(at, list) and part in range(len(at))
        if found:
            at = at[part]
        elif fault["type"] != "missing" or number < len(fault["loc"]):
            # The name of an alternative, which the user has not written. What is missing is not
            # there either, but its own name comes last.
            continue
        yield part


def short(value: Any) -> str:
    """Show a value in some sixty characters, however much it holds: a few bytes of YAML can name a
    list of billions.
    """
    text = value if isinstance(value, str) and value.isprintable() and value else _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
