"""Every key of energy.json: its type, what it means, and reading the file.

`describe` makes the tables of docs/energy_json.md from these classes.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knarr.pipeline.errors import RunError
from knarr.pipeline.files import read_json

SCHEMA: Final = 1
"""Raised with any change of a key or of its meaning."""
Grade = Literal["M", "M2", "C", "C2", "S", "S2", "T", "T2", "D", "D2"]
Number = float | None


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Bounds(_Keys):
    """A quantity between bounds; null is unknown, never a guess."""

    low: Annotated[Number, Field(description="least value that the sources allow")]
    nominal: Annotated[Number, Field(description="value to quote, with its bounds")]
    high: Annotated[Number, Field(description="largest value that the sources allow")]
    unit: Annotated[str, Field(description="J, s, J s or W; empty for a ratio or a share")]
    why_unknown: Annotated[str, Field(description="why one of the three is null")] = ""


class Place(_Keys):
    """One inference at a place where a network may run."""

    dynamic: Annotated[Bounds, Field(description="energy of switching")]
    static: Annotated[Bounds, Field(description="static or idle power over the latency")]
    input_output: Annotated[Bounds, Field(description="inputs brought there, outputs fetched")]
    total: Annotated[Bounds, Field(description="sum of the three, as far as they are known")]
    latency: Annotated[Bounds, Field(description="from the first input to the last output")]
    energy_delay_product: Annotated[Bounds, Field(description="total times latency")]
    place: Annotated[str, Field(description="its name, which is also its key")]
    network: Annotated[Literal["student", "baseline"], Field(description="who runs there")]
    grade: Annotated[Grade, Field(description="worst grade of the prices used (docs/prices.md)")]
    sources: Annotated[list[str], Field(description="who says so")]
    assumptions: Annotated[list[str], Field(description="what was taken for granted")]
    not_included: Annotated[list[str], Field(description="what the total leaves out")]
    breakdown: Annotated[
        dict[str, dict[str, float]],
        Field(
            description="layer: nominal dynamic energy, J, of `synapses`, `updates`, `spikes`, "
            "`messages` and `hops`, as far as the prices tell them apart"
        ),
    ]


class TotalsCompared(_Keys):
    """Two totals beside each other."""

    student: Annotated[str, Field(description="place of the spiking network")]
    baseline: Annotated[str, Field(description="place of the ANN")]
    winner: Annotated[
        Literal["student", "baseline"] | None,
        Field(description="whose whole interval lies below the other's; null: nobody's"),
    ]
    why: Annotated[str, Field(description="why there is a winner or none")]
    ratio: Annotated[Bounds, Field(description="student / baseline of both totals")]


class SameSilicon(_Keys):
    """All rows of `same_technology` together."""

    winner: Annotated[
        Literal["student", "baseline"] | None, Field(description="cheaper in all rows, or null")
    ]
    low: Annotated[float, Field(description="least student / baseline of all rows and bounds")]
    high: Annotated[float, Field(description="largest of them")]
    comparisons: Annotated[int, Field(description="how many rows have a ratio")]
    technologies: Annotated[list[str], Field(description="precision and technology of the rows")]


class Verdict(_Keys):
    """The sentences that the numbers force, and the comparisons behind them."""

    sentences: Annotated[list[str], Field(description="the verdict in words")]
    snn_cheaper: Annotated[
        bool | None, Field(description="at batch 1, by total energy; null: no winner")
    ]
    batch_1: Annotated[TotalsCompared | None, Field(description="against one inference at a time")]
    large_batch: Annotated[TotalsCompared | None, Field(description="against a large batch")]
    same_technology: Annotated[SameSilicon | None, Field(description="on equal silicon")]
    accuracy_equal: Annotated[
        bool | None,
        Field(description="false where the interval of the difference leaves 0 out; null: unknown"),
    ]


class BothAccuracies(_Keys):
    """The accuracy of both sides on the samples that were counted."""

    measure: Annotated[str, Field(description="accuracy, or mean absolute error")]
    student: Annotated[Bounds | None, Field(description="of the network that was priced")]
    baseline: Annotated[Bounds | None, Field(description="of the ANN")]
    difference: Annotated[
        Bounds | None, Field(description="student - baseline, paired by sample, drawn by people")
    ]
    samples: Annotated[int, Field(description="how many samples")]
    people: Annotated[int | None, Field(description="how many people; null: nobody's samples")]
    level: Annotated[float, Field(description="level of the intervals")]
    why_unknown: Annotated[str, Field(description="why something is null")]


class CoresInUse(_Keys):
    """Cores of a chip under the student."""

    used: Annotated[int, Field(description="cores in use")]
    there: Annotated[int, Field(description="cores of the chips in use")]
    chips: Annotated[int, Field(description="chips in use")]


class SameTechnology(_Keys):
    """The student beside a rival in one technology and model."""

    label: Annotated[str, Field(description="the row in words")]
    model: Annotated[
        Literal["operations", "memory", "movement", "chip"],
        Field(description="what is priced (docs/energy.md)"),
    ]
    profile: Annotated[str, Field(description="prices (docs/prices.md)")]
    technology: Annotated[str, Field(description="their technology")]
    precision: Annotated[str, Field(description="their arithmetic")]
    own_precision: Annotated[
        bool, Field(description="whether each side is priced in its own precision, SNN / ANN")
    ]
    reuse: Annotated[Number, Field(description="times an ANN uses a fetched word")]
    against: Annotated[
        str | None, Field(description="dense, zeros skipped, quantised twin; null: nobody")
    ]
    bits: Annotated[int | None, Field(description="bits of the rival's activations")]
    student: Annotated[Bounds, Field(description="energy of the spiking network")]
    baseline: Annotated[Bounds | None, Field(description="energy of the rival")]
    ratio: Annotated[Bounds | None, Field(description="student / baseline; below 1 is cheaper")]
    partial: Annotated[bool, Field(description="whether something was not counted")]
    provenance: Annotated[str, Field(description="price records, sources, worst grade")]
    notes: Annotated[list[str], Field(description="what the row leaves out")]


class Summary(_Keys):
    """Counts of one network per inference, by NeuroBench's names."""

    partial: Annotated[bool, Field(description="whether they are a lower bound")]
    synops: Annotated[float, Field(description="synaptic operations: acc + mac")]
    acc: Annotated[float, Field(description="additions of spikes")]
    mac: Annotated[float, Field(description="multiplications with addition")]
    dense: Annotated[float, Field(description="operations if every input were active")]
    effective: Annotated[Number, Field(description="operations that are left without zeros")]
    events: Annotated[Number, Field(description="non-zero inputs of layers")]
    updates: Annotated[Number, Field(description="membrane updates, every neuron and step")]
    spikes: Annotated[Number, Field(description="spikes sent")]
    messages: Annotated[Number, Field(description="spikes times the cores that hear them")]
    hops: Annotated[Number, Field(description="links between tiles that messages cross")]
    bias_adds: Annotated[float, Field(description="additions of a bias")]
    activation_sparsity: Annotated[
        Number, Field(description="share of neurons and steps without a spike")
    ]
    skipped_share: Annotated[Number, Field(description="share of dense operations not done")]
    parameters: Annotated[int | None, Field(description="weights and biases stored")]
    footprint_bytes: Annotated[Number, Field(description="bytes of the parameters")]


class Counts(_Keys):
    """Operations of both networks; the long counts are those of docs/energy.md."""

    summary: Annotated[
        dict[str, Summary | None], Field(description="student and baseline, one row each")
    ]
    student: Annotated[dict[str, Any], Field(description="counts per layer, and their ledger")]
    student_other_pooling: Annotated[
        dict[str, Any] | None, Field(description="by the other policy for pools")
    ]
    baseline: Annotated[dict[str, Any] | None, Field(description="counts of the ANN")]
    traffic: Annotated[
        dict[str, dict[str, Any]], Field(description="chip: messages and hops of each layer")
    ]


class Share(_Keys):
    """A part of the energy at the student's place."""

    layer: Annotated[str, Field(description="layer; empty for the whole chip")]
    term: Annotated[str, Field(description="term of the model, or static, or input_output")]
    joules: Annotated[float, Field(description="nominal energy, J")]
    share: Annotated[float, Field(description="of the total, or of switching alone, 0..1")]


class Lever(_Keys):
    """Something that would change who is cheaper."""

    lever: Annotated[str, Field(description="spike rate, time steps, batch, cores filled")]
    now: Annotated[float, Field(description="its value")]
    limit: Annotated[Number, Field(description="value at which both would cost the same")]
    sentence: Annotated[str, Field(description="both in words, with the model")]


class Why(_Keys):
    """The parts of the cost, and what would flip the answer."""

    place: Annotated[str | None, Field(description="place whose shares these are")]
    shares: Annotated[list[Share], Field(description="largest first")]
    levers: Annotated[list[Lever], Field(description="what would flip the answer")]
    break_even: Annotated[
        list[dict[str, Any]], Field(description="`knarr.hw_sim.energy.break_even` by model")
    ]
    trades: Annotated[
        list[dict[str, Any]], Field(description="runs with fewer steps or other thresholds")
    ]
    trades_of: Annotated[str, Field(description="samples of those runs")]


class Check(_Keys):
    """A prediction of the same models beside a published measurement."""

    what: Annotated[str, Field(description="network, chip and term")]
    predicted: Annotated[Bounds, Field(description="from prices not made from this measurement")]
    measured: Annotated[float, Field(description="published value, in the same unit")]
    relative_error: Annotated[Number, Field(description="predicted / measured - 1")]
    measured_inside: Annotated[bool | None, Field(description="whether it lies in the bounds")]
    left_out: Annotated[str, Field(description="what the prices were not made from")]


class Provenance(_Keys):
    """The sources of the prices."""

    worst_grade: Annotated[Grade | None, Field(description="of all prices used")]
    places: Annotated[dict[str, list[str]], Field(description="place: its sources")]
    prices: Annotated[list[str], Field(description="price records of the digital models")]


class Literature(_Keys):
    """The formula of most papers, for comparison with them alone."""

    formula: Annotated[str, Field(description="4.6 MAC + 0.9 ACC pJ")]
    label: Annotated[str, Field(description="what it is; print it beside the numbers")]
    student: Annotated[Bounds, Field(description="energy by it")]
    baseline: Annotated[Bounds | None, Field(description="energy by it")]
    ratio: Annotated[Bounds | None, Field(description="student / baseline by it")]
    provenance: Annotated[str, Field(description="its price records")]


class EnergyFile(_Keys):
    """energy.json, and what `knarr energy --json` prints."""

    schema_: Annotated[
        Literal[1], Field(alias="schema", description="number of this schema, raised with changes")
    ]
    knarr: Annotated[str, Field(description="version that wrote it")]
    sha256: Annotated[dict[str, str], Field(description="file or data that was read: its hash")]
    verdict: Annotated[Verdict, Field(description="who is cheaper where, and why")]
    accuracy: Annotated[BothAccuracies | None, Field(description="how right both sides are")]
    places: Annotated[dict[str, Place], Field(description="place: one inference there")]
    cores: Annotated[dict[str, CoresInUse], Field(description="chip: cores in use")]
    same_technology: Annotated[
        list[SameTechnology], Field(description="both sides in one technology")
    ]
    counts: Annotated[Counts, Field(description="operations of both networks")]
    why: Annotated[Why, Field(description="what costs, what would flip the answer")]
    check: Annotated[list[Check], Field(description="predictions beside measurements")]
    not_included: Annotated[list[str], Field(description="what no number holds")]
    provenance: Annotated[Provenance, Field(description="prices and sources")]
    literature_formula: Annotated[Literature, Field(description="to compare with papers")]
    measured: Annotated[
        dict[str, Any] | None,
        Field(description="floors of GPUs, and what --measure found of the ANN"),
    ]


PARTS: Final = (
    EnergyFile, Verdict, TotalsCompared, SameSilicon, BothAccuracies, Place, Bounds, CoresInUse,
    SameTechnology, Counts, Summary, Why, Share, Lever, Check, Provenance, Literature,
)  # fmt: skip
"""Classes in the order in which docs/energy_json.md has them."""


def read_energy(path: Path) -> dict[str, Any]:
    """Read an energy.json of this schema.

    Raises:
        RunError: It is not there, of another schema, or holds something else.
    """
    facts = read_json(path)
    found = facts.get("schema") if isinstance(facts, dict) else None
    if found != SCHEMA:
        told = "no schema" if found is None else f"schema {found}"
        raise RunError(
            f"{path}: {told}, this version reads {SCHEMA}; `knarr energy {path.parent}` counts anew"
        )
    try:
        EnergyFile.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "energy.json"
        raise RunError(
            f"{path}: does not hold what this version writes ({place}: {first['msg']}); "
            f"remove it and run `knarr energy {path.parent}`"
        ) from error
    return facts


def describe() -> str:
    """Return the tables of docs/energy_json.md: each class with its keys, types and meanings."""
    lines = []
    for part in PARTS:
        lines += [f"## {part.__name__}", "", (part.__doc__ or "").strip(), ""]
        lines += ["| key | type | meaning |", "|---|---|---|"]
        for name, field in part.model_fields.items():
            key = field.alias or name
            lines.append(f"| `{key}` | {_in_words(field.annotation)} | {field.description} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _in_words(kind: Any) -> str:
    """Return a type as a reader of JSON says it."""
    names = {str: "string", float: "number", int: "integer", bool: "boolean", type(None): "null"}
    if kind in names:
        return names[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, inner))
    if origin is list:
        return f"list of {_in_words(inner[0])}"
    if origin is dict:
        return f"object of {_in_words(inner[1])}"
    return "anything" if kind is Any else f"[{kind.__name__}](#{kind.__name__.lower()})"
