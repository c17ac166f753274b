"""`place`: which cores a chip network takes, and what does not fit. Limits and their sources: `knarr.deploy.chips`.

Each layer has cores of its own, as in Lava's compile logs, and is cut into the fewest equal blocks that fit (the split:
`knarr.deploy.place_layer`). Lava's own mapper sometimes takes more. Compile logs published in lava-dl against this count,
Loihi 2: MNIST 784-128-64-10 takes 5 cores there and 5 here (3 + 1 + 1, the first for its synapse words); Oxford
200-256-200 takes 3 + 2 there, 2 + 2 here, two layers of 51,200 weights; PilotNet's dense 2560-100 takes 12 there, 7 here.

What is not known is left out or bounded from above. Convolutions on Loihi 1 are counted with every synapse expanded, as
no sharing is assumed; on Loihi 2 a core stores a kernel once, which the logs show. Input axons are distinct senders on
both, although Loihi 2 needs fewer for a convolution. A neuron that sends to k cores needs k output axons, k counting its
own layer's cores if it is recurrent, and one more if the host reads its spikes; of Loihi 2 no limit of that kind is
published. Inputs that come from outside need axons but no core; an input layer with neurons of its own needs cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from knarr.deploy.placement.chips import Chip, Int64, Resource, chip_profile
from knarr.deploy.placement.layer import COUNTED, ConvCounter, Counter, Flat, Split, smallest_split
from knarr.deploy.placement.result import LayerPlacement, Placement, Use
from knarr.hw_sim import ChipNetwork, Conv

RESOURCE_NAMES: dict[Resource, str] = {
    "neurons": "neurons",
    "input_axons": "input axons",
    "output_axons": "output axons",
    "synapse_words": "synapse words",
    "memory_bytes": "memory bytes",
    "compartment_configs": "compartment configurations",
    "threshold_configs": "threshold configurations",
    "cores": "cores",
    "synapses": "synapses",
}
CURES: dict[Resource, str] = {
    "input_axons": "a neuron cannot be split, so give it fewer inputs (pool, or a smaller kernel or more groups)",
    "synapse_words": "a neuron cannot be split, so give it fewer synapses (pool, or a smaller kernel or more groups)",
    "output_axons": "make this layer, or the layers it sends to, small enough to lie on fewer cores",
}


def place(network: ChipNetwork, chip: str | Chip = "loihi2") -> Placement:
    """Cut the layers of a network into cores.

    Args:
        network: the chip network.
        chip: "loihi1", "loihi2", or a profile of your own.

    Returns:
        The placement. Where a resource cannot be met by any split, that is a problem and the layer is placed by the
        others.

    Raises:
        DeployError: unknown chip.
    """
    profile = chip_profile(chip)
    memory = profile.synapse_memory
    # A neuron's output axons follow from the cores behind it, so the last layer is placed first.
    readers = 1 if network.readout.kind == "spikes" else 0
    reached: Int64 = np.full(prod(network.output_shape), readers, dtype=np.int64)
    layers: list[LayerPlacement] = []
    problems: list[str] = []
    totals: dict[Resource, int] = {}
    for layer in reversed(network.layers):
        counter: Counter = (
            ConvCounter(layer, memory, reached)
            if isinstance(layer, Conv)
            else Flat(layer, memory, reached)
        )
        placed = _place_layer(layer.name, counter, profile, totals)
        layers.append(placed[0])
        problems = placed[1] + problems
        reached = counter.receivers(placed[0].split)
    if network.input.neuron is not None:
        placed = _place_layer(
            "input", Flat(prod(network.input.shape), memory, reached), profile, totals
        )
        layers.append(placed[0])
        problems = placed[1] + problems
    layers.reverse()
    cores = sum(layer.cores for layer in layers)
    totals["cores"] = cores
    chips = max(
        -(-totals.get(limit.resource, 0) // limit.value)
        for limit in profile.limits
        if limit.per == "chip" and limit.hard
    )
    warnings = [*_doubts(layers, profile), *_chip_doubts(totals, profile, chips)]
    return Placement(
        profile.title,
        tuple(layers),
        cores,
        chips,
        _utilisation(totals, profile, chips),
        tuple(problems),
        tuple(warnings),
    )


def _place_layer(
    name: str, counter: Counter, profile: Chip, totals: dict[Resource, int]
) -> tuple[LayerPlacement, list[str]]:
    """The layer's placement and problems; adds what its cores need to the totals."""
    limits = {
        resource: limit.value
        for resource in COUNTED
        if (limit := profile.limit(resource, "core")) is not None
    }
    alone: dict[Resource, Split | None] = {}
    known = 1
    for resource, value in limits.items():
        # A core is only so large; every other resource is asked for cores beside that.
        alone[resource] = smallest_split(
            counter, {"neurons": limits["neurons"], resource: value}, known
        )
        if resource == "neurons":
            known = prod(alone[resource] or counter.shape)
    met = {resource: value for resource, value in limits.items() if alone[resource] is not None}
    needs = {resource: prod(found) for resource, found in alone.items() if found is not None}
    split = smallest_split(counter, met, max(needs.values()))
    if split is None:
        # Only a loop does this: more cores take fewer synapses each, and more output axons together.
        met.pop("output_axons")
        split = smallest_split(counter, met, max(needs[resource] for resource in met))
    assert split is not None  # one neuron per core meets each of these alone, and so all of them
    problems = [
        _problem(name, resource, counter, split, profile)
        for resource in limits
        if resource not in met
    ]
    cores = prod(split)
    most = max(met, key=needs.__getitem__)
    used: dict[Resource, int] = {resource: counter.worst(resource, split) for resource in COUNTED}
    used["memory_bytes"] = used["synapse_words"] * profile.synapse_memory.word_bits // 8
    used["compartment_configs"] = used["threshold_configs"] = 1
    for resource in (*COUNTED, "synapses"):
        totals[resource] = totals.get(resource, 0) + int(counter.loads(resource, split).sum())
    placed = LayerPlacement(
        name,
        prod(counter.shape),
        cores,
        split,
        tuple(_use(resource, amount, profile) for resource, amount in used.items()),
        int(counter.loads("synapses", split).sum()),
        counter.expanded(),
        most if cores > 1 else None,
        _note(counter, split),
    )
    return placed, problems


def _use(resource: Resource, used: int, profile: Chip, cores: int = 1) -> Use:
    limit = profile.limit(resource, "core")
    if limit is None:
        return Use(resource, used, None, RESOURCE_NAMES[resource], None)
    return Use(resource, used, limit.value * cores, limit.unit, limit.confidence)


def _problem(name: str, resource: Resource, counter: Counter, split: Split, profile: Chip) -> str:
    limit = profile.limit(resource, "core")
    assert limit is not None  # resources with a problem are those with a limit
    if counter.loops and resource == "output_axons":
        subject, need = f"a core of {prod(split)}", counter.worst(resource, split)
    else:
        subject, need = "one neuron alone", counter.worst(resource, counter.shape)
    return (
        f"layer '{name}': {subject} needs {need} {RESOURCE_NAMES[resource]} > {limit.value} per core of {profile.title} "
        f"({limit.confidence} confidence: {limit.source}); {CURES.get(resource, 'make the layer smaller')}"
    )


def _note(counter: Counter, split: Split) -> str:
    notes = []
    if isinstance(counter, ConvCounter):
        stored, expanded = int(counter.loads("synapses", split).sum()), counter.expanded()
        if counter.shared:
            notes.append(f"kernel stored once per core: {stored} weights for {expanded} synapses")
        else:
            notes.append(f"no sharing assumed: all {expanded} synapses stored")
    if counter.delays:
        notes.append(f"{counter.memory.delay_bits} bits of delay stored with every synapse")
    return "; ".join(notes)


def _doubts(layers: list[LayerPlacement], profile: Chip) -> Iterator[str]:
    """Limits of low confidence that a core exceeds."""
    for layer in layers:
        for limit in profile.limits:
            if limit.per != "core" or limit.hard or layer.use(limit.resource).used <= limit.value:
                continue
            yield (
                f"layer '{layer.name}': a core needs {layer.use(limit.resource).used} {RESOURCE_NAMES[limit.resource]} > "
                f"{limit.value} of {profile.title} (low confidence: {limit.source}); check on the chip, or make the layer "
                "smaller"
            )


def _chip_doubts(totals: dict[Resource, int], profile: Chip, chips: int) -> Iterator[str]:
    """Limits of a chip that the network exceeds: more chips cure them."""
    for limit in profile.limits:
        used = totals.get(limit.resource, 0)
        if limit.per != "chip" or used <= limit.value:
            continue
        cure = f"it takes {chips} chips" if limit.hard else "check on the chip"
        yield (
            f"network: {used} {RESOURCE_NAMES[limit.resource]} > {limit.value} per chip of {profile.title} "
            f"({limit.confidence} confidence: {limit.source}); {cure}"
        )


def _utilisation(totals: dict[Resource, int], profile: Chip, chips: int) -> tuple[Use, ...]:
    on_chip = profile.limit("cores", "chip")
    assert on_chip is not None  # a profile without one is refused when it is read
    cores = Use("cores", totals["cores"], on_chip.value * chips, on_chip.unit, on_chip.confidence)
    return (
        cores,
        *(_use(resource, totals[resource], profile, on_chip.value * chips) for resource in COUNTED),
    )
