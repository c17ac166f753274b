"""Prices and models that an inference is priced with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from knarr.hw_sim import OperationCounts, PriceError, price
from knarr.hw_sim.energy import EnergyEstimate, Family, Options, Profile, load_prices

DIGITAL: Final = ("horowitz_int8", "jouppi_int8")
"""Arithmetic of 8 bits into 32-bit accumulators, at 45 and at 7 nm."""
FAMILIES: Final = ("horowitz", "jouppi")
"""Prices of the same two nodes, each layer in the precision in which it computes."""
LITERATURE: Final = "horowitz_fp32"
"""Prices of the formula of most papers, 4.6 MAC + 0.9 ACC pJ."""
REUSE: Final = 16.0
"""Times a word of an ANN is used once fetched: as in a 16 x 16 array of multipliers. An assumption,
shown beside 1.
"""


@dataclass(frozen=True)
class Pricing:
    """Prices and models to turn counts into energy with, in the same technology for both sides.

    Attributes:
        profile: Name of a profile, of a family, by which each side is priced in its own precision, or
            .toml file; None: 8-bit arithmetic at 45 and at 7 nm.
        model: "paper", "memory" or "chip"; None: all that the profile has prices for.
        options: Options of the models.
        allow_partial: Whether to price what was counted where something was not.
    """

    profile: str | None = None
    model: str | None = None
    options: Options = field(
        default_factory=lambda: Options(reuse_weights=REUSE, reuse_inputs=REUSE)
    )
    allow_partial: bool = False

    def pairs(self) -> list[tuple[str, Profile | Family]]:
        """Return the models and the profiles that they use.

        Raises:
            PriceError: A profile that prices nothing, or does not go with the model.
        """
        names = [self.profile] if self.profile is not None else [*DIGITAL]
        found: list[tuple[str, Profile | Family]] = []
        for name in names:
            prices = load_prices(name)
            # Profiles of a family are of one kind.
            profile = prices.any if isinstance(prices, Family) else prices
            models = ["chip"] if profile.kind == "neuromorphic" else ["paper", "memory"]
            if profile.kind in ("reference", "device"):
                profile.record("add")  # says what it is, and what to choose instead
            # Of a table of operations alone nobody knows what a memory costs.
            if profile.kind == "digital" and all(one.term != "sram_8k" for one in profile.prices):
                models = ["paper"]
            found += [(model, prices) for model in models if self.model in (None, model)]
        if not found:
            where = self.profile or "the default profiles"
            raise PriceError(
                f"--model: '{self.model}' finds no prices in '{where}'; paper and memory need "
                "a digital profile, chip a neuromorphic one"
            )
        return found

    def price(
        self,
        counts: OperationCounts,
        model: str,
        profile: Profile | Family,
        options: Options | None = None,
    ) -> EnergyEstimate:
        """Price counts, in part where that is allowed; with other options where they are given."""
        told = self.options if options is None else options
        return price(counts, profile, model=model, options=told, allow_partial=self.allow_partial)
