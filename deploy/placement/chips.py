"""Chips as data (`chips.json`): every limit with its unit, source and confidence.

To add a chip, add an entry to `chips.json`, after the pattern of those there: `Chip` says which
limits it needs at least and refuses an entry that lacks one, and `place` and the
tables take its name from the file. The command line takes it once it is a choice of `ChipName` in
`cli/app.py`. A chip of one's own need not be in the file: `place` takes a
`Chip` as well.

Word counts follow one formula. A row of n synapses that one input axon (or one tap of a shared
kernel) has on a core is cut into blocks of B (one block where B is None), and each block takes
ceil((header + n_block * bits) / word) words with bits = weight + delay, if the layer has delays,
+ index, if targets are left out.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from knarr.deploy.errors import DeployError
from knarr.hw_sim.arrays import Int64

Resource = Literal[
    "neurons",
    "input_axons",
    "output_axons",
    "synapse_words",
    "memory_bytes",
    "compartment_configs",
    "threshold_configs",
    "cores",
    "synapses",
]
Confidence = Literal["high", "medium", "low"]


class _Frozen(BaseModel):
    """An entry of `chips.json`, in which a misspelt key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Frozen):
    """One limit of one core or chip.

    Args:
        resource: the resource that it limits.
        per: "core" or "chip".
        value: the largest number that fits, in `unit`.
        unit: what one of them is.
        counts: what is counted.
        source: who says so.
        confidence: high or medium: a network beyond it does not fit; low: it only draws a warning.
    """

    resource: Resource
    per: Literal["core", "chip"]
    value: int = Field(gt=0)
    unit: str = Field(min_length=1)
    counts: str = Field(min_length=1)
    source: str = Field(min_length=1)
    confidence: Confidence

    @property
    def hard(self) -> bool:
        """True where breaking it is an error."""
        return self.confidence != "low"


class SynapseMemory(_Frozen):
    """Widths that turn synapses into words (formula: this module's docstring).

    Args:
        word_bits, weight_bits, delay_bits, header_bits: widths in bits.
        synapses_per_block: B, None where a row is one block.
        index_bits: widths an index may have, ascending; empty where rows are never sparse.
        kernel: whether a core stores a convolution's kernel once ("shared") or every synapse
            ("expanded").
        counts, source, confidence: as in `Limit`.
    """

    word_bits: int = Field(gt=0)
    weight_bits: int = Field(gt=0)
    delay_bits: int = Field(ge=0)
    header_bits: int = Field(ge=0)
    synapses_per_block: int | None = Field(gt=0)
    index_bits: tuple[int, ...]
    kernel: Literal["expanded", "shared"]
    counts: str = Field(min_length=1)
    source: str = Field(min_length=1)
    confidence: Confidence

    def words(
        self, synapses: npt.ArrayLike, *, delays: bool = False, targets: int | None = None
    ) -> Int64:
        """Count the words of rows of synapses.

        Args:
            synapses: synapses per row, any shape, whole numbers >= 0.
            delays: every synapse stores a delay.
            targets: neurons of the core, where a row leaves some of them out and so stores indices;
                None for dense rows.

        Returns:
            int64 of the same shape: words per row, 0 where a row is empty.

        Raises:
            DeployError: no index width reaches that many neurons.
        """
        rows = np.asarray(synapses, dtype=np.int64)
        bits = self.weight_bits + (self.delay_bits if delays else 0)
        if targets is not None and self.index_bits:
            bits += self._index(targets)
        # Without blocks the longest row is one block, and the others are the rest of one.
        block = self.synapses_per_block or max(1, int(rows.max(initial=0)))
        full, rest = np.divmod(rows, block)
        return np.asarray(full * self._block(np.int64(block), bits) + self._block(rest, bits))

    def _block(self, synapses: Int64 | np.int64, bits: int) -> Int64:
        return np.where(synapses > 0, -(-(synapses * bits + self.header_bits) // self.word_bits), 0)

    def _index(self, targets: int) -> int:
        needed = (targets - 1).bit_length()
        for width in self.index_bits:
            if width >= needed:
                return width
        raise DeployError(
            f"synapse index: {targets} neurons on a core > {2 ** self.index_bits[-1]} reached; "
            "split the layer"
        )


class Chip(_Frozen):
    """Profile of a chip.

    Args:
        title: its name in print.
        limits: at least the neurons, input axons and synapse words of a core and the cores of a
            chip; a resource may have several limits of different confidence.
        synapse_memory: how synapses become words.
    """

    title: str = Field(min_length=1)
    limits: tuple[Limit, ...]
    synapse_memory: SynapseMemory

    @model_validator(mode="after")
    def _complete(self) -> Chip:
        have = {(limit.resource, limit.per) for limit in self.limits if limit.hard}
        need = {(resource, "core") for resource in ("neurons", "input_axons", "synapse_words")}
        if missing := sorted((need | {("cores", "chip")}) - have):
            raise ValueError(
                f"chip '{self.title}': no limit of high or medium confidence for {missing}"
            )
        # One limit that fails and one that warns can stand beside each other.
        keys = [(limit.resource, limit.per, limit.hard) for limit in self.limits]
        if len(set(keys)) != len(keys):
            raise ValueError(
                f"chip '{self.title}': two limits of one resource have the same confidence"
            )
        neurons, index = self.limit("neurons"), self.synapse_memory.index_bits
        if neurons is not None and index and neurons.value > 2 ** index[-1]:
            raise ValueError(
                f"chip '{self.title}': an index of {index[-1]} bits does not reach "
                f"{neurons.value} neurons"
            )
        return self

    def limit(self, resource: Resource, per: Literal["core", "chip"] = "core") -> Limit | None:
        """Return the limit beyond which a network does not fit, None when no trusted one is known."""
        for limit in self.limits:
            if (limit.resource, limit.per) == (resource, per) and limit.hard:
                return limit
        return None


@cache
def chips() -> dict[str, Chip]:
    """Read and check the chips of the package, name -> profile."""
    text = files("knarr.deploy.placement").joinpath("chips.json").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Chip]).validate_json(text)


def chip_profile(chip: str | Chip) -> Chip:
    """Return the profile of a chip by its name, or the profile itself.

    Raises:
        DeployError: the name is unknown.
    """
    if isinstance(chip, Chip):
        return chip
    if chip not in chips():
        raise DeployError(f"chip: '{chip}' is not known; choose {' or '.join(chips())}")
    return chips()[chip]
