"""Place a chip network: which cores it takes, and what does not fit.

Limits and their sources are in `chips.json`. Each layer has cores of its own, as in Lava's compile
logs, and is cut into the fewest equal blocks that fit (the split: `knarr.deploy.placement.layer`).
Lava's own mapper sometimes takes more. Compile logs published in lava-dl against this count,
Loihi 2: MNIST 784-128-64-10 takes 5 cores there and 5 here (3 + 1 + 1, the first for its synapse
words); Oxford 200-256-200 takes 3 + 2 there, 2 + 2 here, two layers of 51,200 weights; PilotNet's
dense 2560-100 takes 12 there, 7 here.

What is not known is left out or bounded from above. Convolutions on Loihi 1 are counted with every
synapse expanded, as no sharing is assumed; on Loihi 2 a core stores a kernel once, which the logs
show. Input axons are distinct senders on both, although Loihi 2 needs fewer for a convolution. A
neuron that sends to k cores needs k output axons, k counting its own layer's cores if it is
recurrent, and one more if the host reads its spikes; of Loihi 2 no limit of that kind is published.
Neurons of a core share tables of decays and of thresholds: blocks are cut until their distinct ones
fit. A mapper that gathers equal neurons may need fewer cores. Of Loihi 2 no size of such tables is
published, so there they are counted and bound nothing.
Inputs that come from outside need axons but no core; an input layer with neurons of its own needs
cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod

import numpy as np

from knarr.deploy.placement.chips import Chip, Limit, Resource, chip_profile
from knarr.deploy.placement.layer import CONFIGS, COUNTED, LayerCounter, Split, smallest_split
from knarr.deploy.placement.result import LayerPlacement, Placement, Use
from knarr.hw_sim import ChipNetwork
from knarr.hw_sim.arrays import Int64

CURES: dict[Resource, str] = {
    "input_axons": "a neuron cannot be split, so give it fewer inputs (pool, or a smaller kernel "
    "or more groups)",
    "synapse_words": "a neuron cannot be split, so give it fewer synapses (pool, or a smaller "
    "kernel or more groups)",
    "output_axons": "make this layer, or the layers it sends to, small enough to lie on fewer "
    "cores",
}


def place(network: ChipNetwork, chip: str | Chip = "loihi2") -> Placement:
    """Cut the layers of a network into cores.

    Args:
        network: the chip network.
        chip: name of a chip, such as "loihi1" or "loihi2", or a profile of your own.

    Returns:
        The placement. Where a resource cannot be met by any split, that is a problem and the layer
        is placed by the others.

    Raises:
        DeployError: the chip is unknown.
    """
    profile = chip_profile(chip)
    memory = profile.synapse_memory
    placing = _Placing(profile)
    # A neuron's output axons follow from the cores behind it, so the last layer is placed first;
    # what stands behind the last layer is the host, where it reads spikes.
    readers = 1 if network.readout.kind == "spikes" else 0
    reached: Int64 = np.full(prod(network.output_shape), readers, dtype=np.int64)
    for layer in reversed(network.layers):
        counter = LayerCounter(layer, memory, reached)
        reached = counter.receivers(placing.add(layer.name, counter))
    if network.input.neuron is not None:
        counter = LayerCounter(None, memory, reached, network.input.neuron)
        placing.add("input", counter)
    return placing.placement()


class _Placing:
    """A placement on the way, from the last layer to the first."""

    def __init__(self, profile: Chip) -> None:
        self.profile = profile
        bounding = (*COUNTED, *CONFIGS)
        self.limits = {key: limit for key in bounding if (limit := profile.limit(key)) is not None}
        self.layers: list[LayerPlacement] = []
        self.problems: list[str] = []
        self.totals: Counter[Resource] = Counter()

    def add(self, name: str, counter: LayerCounter) -> Split:
        """Place a layer before those that were added, and return its split."""
        limits = {resource: limit.value for resource, limit in self.limits.items()}
        # Resource -> cores that it needs, for all that some split meets.
        needs: dict[Resource, int] = {}
        for resource, value in limits.items():
            # The size of a core bounds the split; the other resources may ask for more cores than that.
            both: dict[Resource, int] = {"neurons": limits["neurons"], resource: value}
            split = smallest_split(counter, both, needs.get("neurons", 1))
            if split is not None:
                needs[resource] = prod(split)
        met = {resource: limits[resource] for resource in needs}
        split = smallest_split(counter, met, max(needs.values()))
        if split is None:
            # Only a loop does this: more cores take fewer synapses each, and more output axons
            # together.
            met.pop("output_axons")
            split = smallest_split(counter, met, max(needs[resource] for resource in met))
        # One neuron per core meets each of these alone, and so all of them.
        assert split is not None
        unmet = [limit for resource, limit in self.limits.items() if resource not in met]
        self.problems[:0] = [self._problem(name, limit, counter, split) for limit in unmet]
        used: dict[Resource, int] = {}
        for resource in COUNTED:
            used[resource] = counter.worst(resource, split)
            self.totals[resource] += int(counter.loads(resource, split).sum())
        used["memory_bytes"] = used["synapse_words"] * self.profile.synapse_memory.word_bits // 8
        used |= {resource: counter.worst(resource, split) for resource in CONFIGS}
        decided_by = max(met, key=needs.__getitem__)
        cores, stored = prod(split), int(counter.loads("synapses", split).sum())
        self.totals["cores"] += cores
        self.totals["synapses"] += stored
        placed = LayerPlacement(
            name,
            prod(counter.shape),
            cores,
            split,
            tuple(self._use(resource, amount) for resource, amount in used.items()),
            stored,
            counter.expanded(),
            decided_by if cores > 1 else None,
            _note(counter, stored),
        )
        self.layers.insert(0, placed)
        return split

    def placement(self) -> Placement:
        """Return what was placed."""
        hard = [limit for limit in self._chip_limits() if limit.hard]
        chips = max(-(-self.totals[limit.resource] // limit.value) for limit in hard)
        on_chip = self.profile.limit("cores", "chip")
        assert on_chip is not None  # a profile without one is refused when it is read
        cores = chips * on_chip.value
        taken = Use("cores", self.totals["cores"], cores, on_chip.unit, on_chip.confidence)
        uses = [self._use(resource, self.totals[resource], cores) for resource in COUNTED]
        return Placement(
            self.profile.title,
            tuple(self.layers),
            taken.used,
            chips,
            (taken, *uses),
            tuple(self.problems),
            (*self._core_warnings(), *self._chip_warnings(chips)),
        )

    def _use(self, resource: Resource, used: int, cores: int = 1) -> Use:
        limit = self.profile.limit(resource)
        if limit is None:
            return Use(resource, used, None, _in_words(resource), None)
        return Use(resource, used, limit.value * cores, limit.unit, limit.confidence)

    def _problem(self, name: str, limit: Limit, counter: LayerCounter, split: Split) -> str:
        resource = limit.resource
        subject, need = "one neuron alone", counter.worst(resource, counter.shape)
        if counter.loops and resource == "output_axons":
            # The finest split is the worst for a loop.
            subject, need = f"a core of {prod(split)}", counter.worst(resource, split)
        cure = CURES.get(resource, "make the layer smaller")
        return f"layer '{name}': {subject} needs {self._exceeded(need, limit)}; {cure}"

    def _exceeded(self, used: int, limit: Limit) -> str:
        return (
            f"{used} {_in_words(limit.resource)} > {limit.value} per {limit.per} of "
            f"{self.profile.title} ({limit.confidence} confidence: {limit.source})"
        )

    def _core_warnings(self) -> Iterator[str]:
        """Yield the limits of low confidence that a core exceeds."""
        doubtful = [
            limit for limit in self.profile.limits if limit.per == "core" and not limit.hard
        ]
        for layer in self.layers:
            for limit in doubtful:
                used = layer.use(limit.resource).used
                if used > limit.value:
                    yield (
                        f"layer '{layer.name}': a core needs {used} {_in_words(limit.resource)} > "
                        f"{limit.value} of {self.profile.title} (low confidence: {limit.source}); "
                        "check on the chip, or make the layer smaller"
                    )

    def _chip_warnings(self, chips: int) -> Iterator[str]:
        """Yield the limits of a chip that the network exceeds: more chips cure them."""
        for limit in self._chip_limits():
            used = self.totals[limit.resource]
            if used > limit.value:
                cure = f"it takes {chips} chips" if limit.hard else "check on the chip"
                yield f"network: {self._exceeded(used, limit)}; {cure}"

    def _chip_limits(self) -> list[Limit]:
        return [limit for limit in self.profile.limits if limit.per == "chip"]


def _in_words(resource: Resource) -> str:
    return resource.replace("_configs", "_configurations").replace("_", " ")


def _note(counter: LayerCounter, stored: int) -> str:
    notes = []
    if counter.conv is not None:
        expanded = counter.expanded()
        if counter.whole_rows:
            notes.append(f"kernel stored once per core: {stored} weights for {expanded} synapses")
        else:
            notes.append(f"no sharing assumed: all {expanded} synapses stored")
    if counter.delays:
        notes.append(f"{counter.memory.delay_bits} bits of delay stored with every synapse")
    return "; ".join(notes)
