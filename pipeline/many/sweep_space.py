"""What a setting may be in a sweep: one of some values, or a number in a range."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Annotated, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from knarr.errors import KnarrError
from knarr.train.settings import Frozen

MAX_TRIALS = 10_000
MAX_VALUES, MAX_STEPS = 1_000, 1_000_000
Scalar = (
    Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | bool
    | Annotated[str, Field(max_length=200)]
    | None
)
# No mappings, no nesting: a few bytes of YAML can name a structure that takes all memory once it is written out.
Value = Scalar | Annotated[tuple[Scalar, ...], Field(max_length=64)]
Finite = Annotated[float, Field(ge=-1e100, le=1e100)]  # optuna takes differences of them


class SweepError(KnarrError, ValueError):
    """A sweep is unreadable, its storage is damaged or holds something else, or two of its settings contradict each other."""


class Choices(Frozen):
    """One of these; how near two of them are means nothing to the sampler."""

    values: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_VALUES)]

    @model_validator(mode="after")
    def _differ(self) -> Choices:
        # 1, 1.0 and true are one key in a set, and one category of Optuna's.
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("two values are the same; leave one out")
        return self

    @property
    def labels(self) -> list[bool | int | float | str | None]:
        """As Optuna keeps them: lists as their JSON text."""
        return [json.dumps(value) if isinstance(value, tuple) else value for value in self.values]

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.labels)

    def points(self) -> list[Any]:
        """What a grid tries."""
        return list(self.labels)

    def extremes(self) -> list[Any]:
        """What must fit the recipe for all that lies between to fit."""
        return list(self.values)

    def value(self, label: Any) -> Any:
        value = self.values[self.labels.index(label)]
        return list(value) if isinstance(value, tuple) else value


class Range(Frozen):
    """A number from `low` to `high`, both included: any, or `low` plus whole steps.

    Args:
        low, high: bounds.
        log: draw the logarithm evenly.
        step: None for any number; 1 where `int`.
        whole: written `int`: whole numbers only.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )
    low: Finite
    high: Finite
    log: bool = False
    step: Annotated[float, Field(gt=0, le=1e100)] | None = None
    whole: bool = Field(default=False, alias="int")

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; leave one out")
        if self.whole and any(
            x is not None and not x.is_integer() for x in (self.low, self.high, self.step)
        ):
            raise ValueError("int needs whole low, high and step")
        if self.whole and max(abs(self.low), abs(self.high)) > 2**53:
            raise ValueError("int beyond 2^53; use smaller bounds")
        if self.step is not None and (self.high - self.low) / self.step > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps; make them larger")
        if (
            self.step is not None
            and (_exact(self.high) - _exact(self.low)) % _exact(self.step) != 0
        ):
            raise ValueError(
                f"high {self.high:g} is not low {self.low:g} plus whole steps of {self.step:g}"
            )
        return self

    def distribution(self) -> BaseDistribution:
        if self.whole:
            return IntDistribution(
                int(self.low), int(self.high), log=self.log, step=int(self.step or 1)
            )
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def points(self) -> list[Any]:
        """What a grid tries.

        Raises:
            SweepError: any number in between, or more of them than a grid may have.
        """
        if self.step is None and not self.whole:
            raise SweepError("a grid needs values, a step or int")
        step = _exact(self.step or 1.0)
        count = int((_exact(self.high) - _exact(self.low)) / step) + 1
        if count > MAX_TRIALS:
            raise SweepError(f"{count} steps are more than the {MAX_TRIALS} trials of a grid")
        found = [_exact(self.low) + number * step for number in range(count)]
        return [int(point) if self.whole else float(point) for point in found]

    def extremes(self) -> list[Any]:
        """What must fit the recipe for all that lies between to fit: the bounds, and a fraction where there are any."""
        if self.whole:
            return [int(self.low), int(self.high)]
        inner = self.low + ((self.high - self.low) / math.e if self.step is None else self.step)
        return [self.low, inner, self.high]

    def value(self, label: Any) -> Any:
        return label


def _exact(number: float) -> Decimal:
    """The decimal number that was written: 0.1 is not a tenth in binary, and 0.3 is not three of them."""
    return Decimal(repr(number))


def _sort_of(found: Any) -> str:
    has_values = "values" in found if isinstance(found, dict) else isinstance(found, Choices)
    return "values" if has_values else "range"


Space = Annotated[
    Annotated[Choices, Tag("values")] | Annotated[Range, Tag("range")], Discriminator(_sort_of)
]
