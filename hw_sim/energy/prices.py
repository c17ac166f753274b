"""Prices as data: what one operation costs, where, and who says so (profiles/*.toml, or a file of
the user's).

A profile is one technology: a node, a precision and a scope in which its terms add up. A bound that
nobody published is left out of the file and is None here, never a guess. Profiles of kind
"reference" are published figures that no model can add up.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from knarr.hw_sim.errors import ChipError

GRADES = ("M", "M2", "C", "C2", "S", "S2", "T", "T2", "D", "D2")
"""Best to worst: measured silicon, calibrated model, pre-silicon simulation, published table,
datasheet arithmetic; 2 is second-hand.
"""
Grade = Literal["M", "M2", "C", "C2", "S", "S2", "T", "T2", "D", "D2"]
Term = Literal[
    "add", "mul", "mac", "sram_8k", "sram_32k", "sram_1m", "dram", "synapse", "synapse_conv", "synapse_sparse",
    "update_active", "update_inactive", "spike_tile", "axon_message", "hop", "hop_x", "hop_y", "static", "inference",
    "time_neuron", "time_update", "time_spike", "time_message_out", "time_message_in", "time_synapse", "time_synapse_conv",
    "barrier_1_tile", "barrier_2_tiles", "barrier_4_tiles", "barrier_29_tiles", "step", "input_time", "latency",
    "launch", "launch_idle", "launch_time", "launch_layer", "launch_layer_idle", "launch_layer_time", "batched", "batched_idle", "batched_time", "move_dense", "move_event",
]  # fmt: skip
TO_SI = {
    "pJ": 1e-12,
    "nJ": 1e-9,
    "uJ": 1e-6,
    "mJ": 1e-3,
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "W": 1.0,
}
"""Unit of a record -> how many joules, seconds or watts it is."""


LEAST, MOST = 1e-12, 1e12
"""Bounds of a price that is not 0, in its unit: sums and quotients of such are finite."""


def _shown(text: str) -> str:
    """Return a text that is printed as it is, and refuse one that could steer a terminal."""
    if not all(letter.isprintable() or letter in "\n\t" for letter in text):
        raise ValueError("control characters in a text; remove them")
    return text


Words = Annotated[str, AfterValidator(_shown)]

ENDING = ".toml"


class PriceError(ChipError):
    """Counts cannot be priced as asked, or two energies cannot be compared."""


class PriceRecord(BaseModel):
    """One price.

    Args:
        id: its name in provenance lines.
        term: what costs it. sram_* and dram: one 64-bit access; static: watts of a chip; inference:
            everything of one inference; time_*: of one operation of a core; barrier_*: end of a step
            where so many tiles are used, or more; launch: energy above idle of one inference at
            batch 1, whatever a small network computes, launch_idle: idle power over that time,
            launch_layer*: more of the same for each layer beyond those of the network measured;
            batched*: the same of one inference in a batch of 64; move_*: one bit over one hop.
        lo, nominal, hi: interval in `unit`; None is unknown.
        unit: of them.
        grade: how good the evidence is.
        source: who says so.
        opened: the text that was read for it, "" where nobody wrote that down.
        why_no_bounds: why lo or hi is not known; every price of the package has both or a reason.
        made_from: measurements that the price was fitted to, which it therefore cannot predict.
        note: what to know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: Words = Field(min_length=1)
    term: Term
    lo: float | None = None
    nominal: float | None = None
    hi: float | None = None
    unit: Literal["pJ", "nJ", "uJ", "mJ", "ns", "us", "ms", "W"]
    grade: Grade
    source: Words = Field(min_length=1)
    opened: Words = ""
    why_no_bounds: Words = ""
    made_from: tuple[Words, ...] = ()
    note: Words = ""

    @model_validator(mode="after")
    def _ordered(self) -> PriceRecord:
        known = [value for value in (self.lo, self.nominal, self.hi) if value is not None]
        if known != sorted(known):
            raise ValueError(f"price '{self.id}': lo <= nominal <= hi does not hold for {known}")
        if any(value and not LEAST <= abs(value) <= MOST for value in known):
            raise ValueError(
                f"price '{self.id}': {known} {self.unit}; give 0, or {LEAST:g} to {MOST:g}"
            )
        kinds = {"s": "time", "J": "energy", "W": "power"}
        if kinds[self.unit[-1]] != _kind_of(self.term):
            raise ValueError(
                f"price '{self.id}': {self.term} is {_kind_of(self.term)}, {self.unit} is not; "
                "static power is in W, times are in ns, us or ms, everything else in pJ to mJ"
            )
        return self

    def si(self) -> tuple[float | None, float | None, float | None]:
        """Return lo, nominal and hi in joules, seconds or watts."""
        factor = TO_SI[self.unit]
        lo, nominal, hi = (
            None if value is None else value * factor for value in (self.lo, self.nominal, self.hi)
        )
        return lo, nominal, hi

    def missing(self) -> str:
        """Return what a price of the package has to say and this one does not, "" where it does."""
        if not self.opened:
            return "which text was opened for it (opened)"
        if (self.lo is None or self.hi is None) and not self.why_no_bounds:
            return "bounds, or why there are none (why_no_bounds)"
        return ""


def _kind_of(term: str) -> str:
    if term == "static":
        return "power"
    timed = ("time_", "barrier_", "step", "input_time", "latency")
    return "time" if term.startswith(timed) or term.endswith("_time") else "energy"


class Profile(BaseModel):
    """Prices of one technology.

    Args:
        title: for tables.
        technology: chip or process, in words.
        node_nm: process node, None where it is unknown or differs.
        precision: of the arithmetic, such as "fp32"; "chip" where the hardware fixes it.
        scope: "marginal" terms add up; an "all-in" price holds fetch, hop and update already.
        kind: "digital" has add and mac, "neuromorphic" has synapse and updates, "device" has what
            one inference of a small network costs on it, "reference" prices nothing.
        prices: one per term, but of a reference.
        name: of the file, without its ending.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Words
    technology: Words
    node_nm: int | None = Field(default=None, gt=0)
    precision: Words
    scope: Literal["marginal", "all-in", "mixed"]
    kind: Literal["digital", "neuromorphic", "device", "reference"]
    prices: tuple[PriceRecord, ...]
    name: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Profile:
        ids, terms = [record.id for record in self.prices], [record.term for record in self.prices]
        if len(set(ids)) != len(ids):
            raise ValueError(f"price ids repeat: {_repeated(ids)}")
        # Published figures are shown one by one: they need not add up.
        if self.kind == "reference":
            return self
        if len(set(terms)) != len(terms):
            raise ValueError(f"terms repeat: {_repeated(terms)}")
        if self.scope == "mixed":
            raise ValueError(
                "prices of mixed scope do not add up; split them, or make it a reference"
            )
        updates = () if self.scope == "all-in" else ("update_active", "update_inactive")
        needed = {
            "digital": ("add", "mac"),
            "neuromorphic": ("synapse", *updates),
            "device": ("launch", "launch_time"),
        }[self.kind]
        missing = [term for term in needed if term not in terms]
        if missing:
            raise ValueError(f"a {self.kind} profile needs prices of {missing}")
        unknown = [record.id for record in self.prices if record.nominal is None]
        if unknown:
            raise ValueError(f"{unknown}: a price that is used needs a nominal value")
        # lo is the least of a record, and None where nobody published it.
        bounds = [bound for record in self.prices for bound in (record.lo, record.nominal)]
        if any(bound is not None and bound < 0 for bound in bounds):
            raise ValueError("prices below 0: no operation gives energy back; correct them")
        return self

    def record(self, term: str) -> PriceRecord:
        """Return the price of a term.

        Raises:
            PriceError: the profile has none, or prices nothing.
        """
        if self.kind == "reference":
            raise PriceError(
                f"profile '{self.name}': published figures for comparison, it prices nothing; choose one of {', '.join(usable())}"
            )
        for record in self.prices:
            if record.term == term:
                return record
        raise PriceError(
            f"profile '{self.name}': no price of '{term}'; choose another profile or model"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


@cache
def profiles() -> tuple[str, ...]:
    """Name the package's profiles."""
    names = [path.name for path in files("knarr.hw_sim.energy").joinpath("profiles").iterdir()]
    return tuple(sorted(name[: -len(ENDING)] for name in names if name.endswith(ENDING)))


@cache
def usable() -> tuple[str, ...]:
    """Name those that price something."""
    priced = ("digital", "neuromorphic")
    return tuple(name for name in profiles() if load_profile(name).kind in priced)


def load_profile(name: str | Path) -> Profile:
    """Load one of the package's profiles by its name, or a user's .toml file.

    Raises:
        PriceError: neither exists, or the file does not hold a profile; says where and what.
    """
    if isinstance(name, str) and not name.endswith(ENDING):
        if name not in profiles():
            raise PriceError(
                f"profile: '{name}' does not exist; choose one of {', '.join(profiles())}, or a .toml file"
            )
        return _packaged(name)
    path = Path(name)
    try:
        # Named with its ending: no profile of the package has such a name.
        return _parsed(path.read_bytes(), path.name, str(path))
    except OSError as error:
        raise PriceError(f"{path}: cannot be read ({error.strerror})") from error


@cache
def _packaged(name: str) -> Profile:
    path = files("knarr.hw_sim.energy").joinpath("profiles").joinpath(name + ENDING)
    profile = _parsed(path.read_bytes(), name, name)
    for record in profile.prices:
        if missing := record.missing():
            raise PriceError(f"{name}: price '{record.id}' does not say {missing}")
    return profile


def _parsed(content: bytes, name: str, where: str) -> Profile:
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PriceError(f"{where}: not TOML ({error})") from error
    try:
        return Profile.model_validate({**values, "name": name})
    except ValidationError as error:
        # One line of text: a reader mends one place at a time.
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "profile"
        raise PriceError(f"{where}: {place}: {first['msg']}") from error


WIDER = {
    "int4": "int8", "bf16": "fp16", "fp8": "fp16", "int16": "int32",
}  # fmt: skip
"""Precision -> the one that prices it where a family has none of its own: never cheaper."""


@dataclass(frozen=True)
class Family:
    """Profiles of one technology that differ in their precision alone: each layer is priced by its
    own.

    Args:
        name: what the names of its profiles begin with, such as "horowitz".
        profiles: precision -> profile, at least one.
    """

    name: str
    profiles: Mapping[str, Profile]

    @property
    def any(self) -> Profile:
        """One of its profiles, for what all of them share: technology, node, scope and kind."""
        return next(iter(self.profiles.values()))

    def of(self, layer: str, precision: str) -> tuple[Profile, str]:
        """Return the prices of a layer, and a note where they are those of a wider precision.

        Raises:
            PriceError: a precision that nobody says, or that no profile prices.
        """
        if precision in self.profiles:
            return self.profiles[precision], ""
        wider = WIDER.get(precision, "")
        if wider not in self.profiles:
            raise PriceError(
                f"layer '{layer}': computes in {precision or 'an unknown precision'}, and "
                f"'{self.name}' has prices of {', '.join(sorted(self.profiles))}; choose a profile"
            )
        return self.profiles[wider], f"{precision} priced as {wider}, for which there is a price"


@cache
def families() -> Mapping[str, Family]:
    """Find the families of the package's profiles, by name."""
    found: dict[str, dict[str, Profile]] = {}
    for name in usable():
        profile = load_profile(name)
        family, _, precision = name.rpartition("_")
        if profile.kind == "digital" and precision == profile.precision and family:
            found.setdefault(family, {})[precision] = profile
    return {name: Family(name, members) for name, members in found.items()}


def load_prices(name: str | Path) -> Profile | Family:
    """Load a family by its name, or what `load_profile` loads.

    Raises:
        PriceError: neither exists; says what there is.
    """
    if isinstance(name, str) and name in families():
        return families()[name]
    return load_profile(name)
