"""The verdict: sentences that the numbers force, and the comparisons behind them.

`verdict` is a pure function of the facts of energy.json. A side wins where the interval of its total
lies below the other's whole interval; where they overlap, or a bound that would decide is unknown,
there is no winner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from knarr.pipeline.energy_report.amounts import digits, prefix_of, spelled
from knarr.pipeline.energy_report.names import short_reason

Facts = Mapping[str, Any]
CHIPS: Final = ("Loihi 2", "Loihi 1")
"""Places of the student, in the order in which one is chosen."""
BATCH_1: Final = "edge GPU, batch 1"
LARGE_BATCH: Final = "edge GPU, large batch"
UNFIT: Final = "does not fit"
MOST: Final = 0.5
"""Share from which on a part of an energy is most of it."""


def verdict(facts: Facts) -> dict[str, Any]:
    """Say who is cheaper where, why, and whether both see equally well.

    Args:
        facts: `places`, `same_technology`, `accuracy`, `cores` and `baseline` of energy.json.

    Returns:
        `sentences`, and the comparisons that they say in words.
    """
    places, rows = facts["places"], facts["same_technology"]
    student = _place_of_student(places)
    batch_1 = _compared(student, _measured(places, small=True) or places.get(BATCH_1))
    large = _compared(student, _measured(places, small=False) or places.get(LARGE_BATCH))
    same = _same_silicon(rows)
    sentences = [_student_in_words(student, facts)]
    if facts["counts"]["summary"]["student"]["synops"] == 0:
        sentences.append(
            "No event reached a synapse of the SNN on these samples: it saw nothing, and its "
            "energies are those of silence."
        )
    if facts["counts"]["baseline"] is None:
        sentences.append("No ANN beside it: --baseline FILE.onnx names one to compare with.")
    else:
        sentences += _baseline_in_words(batch_1, places)
        sentences += _comparison_in_words(batch_1, large, same)
        sentences += _silicon_in_words(same)
        sentences.append(accuracy_in_words(facts["accuracy"]))
    winner = None if batch_1 is None else batch_1["winner"]
    return {
        "sentences": sentences,
        "snn_cheaper": None if winner is None else winner == "student",
        "batch_1": batch_1,
        "large_batch": large,
        "same_technology": same,
        "accuracy_equal": _equal(facts["accuracy"]),
    }


def _place_of_student(places: Mapping[str, Facts]) -> Facts | None:
    """Return the chip whose total is known, or else one whose switching is."""
    chips = [places[name] for name in CHIPS if name in places]
    known = [place for place in chips if place["total"]["nominal"] is not None]
    return next(iter([*known, *chips]), None)


def _measured(places: Mapping[str, Facts], *, small: bool) -> Facts | None:
    """Return what was measured here of the baseline on a GPU, at batch 1 or at the largest batch."""
    found = {
        int(name.split("batch ")[1].split(",")[0]): place
        for name, place in places.items()
        if name.endswith("measured") and "CPU" not in name
    }
    if small:
        return found.get(1)
    large = [batch for batch in found if batch > 1]
    return found[max(large)] if large else None


def _compared(student: Facts | None, baseline: Facts | None) -> dict[str, Any] | None:
    """Compare two totals; None where a side is missing."""
    if student is None or baseline is None:
        return None
    mine, theirs = student["total"], baseline["total"]
    winner, why = None, "the intervals overlap"
    if _below(mine, theirs):
        winner, why = "student", "the intervals lie apart"
    elif _below(theirs, mine):
        winner, why = "baseline", "the intervals lie apart"
    else:
        reasons = [one["why_unknown"] for one in (mine, theirs) if one["why_unknown"]]
        why = f"not known: {_first_reason(reasons[0])}" if reasons else why
    return {
        "student": student["place"],
        "baseline": baseline["place"],
        "winner": winner,
        "why": why,
        "ratio": {
            "low": _over(mine["low"], theirs["high"]),
            "nominal": _over(mine["nominal"], theirs["nominal"]),
            "high": _over(mine["high"], theirs["low"]),
            "unit": "",
            "why_unknown": mine["why_unknown"] or theirs["why_unknown"],
        },
    }


def _first_reason(why: str) -> str:
    """Return why something is unknown; of the limits that a chip does not keep, the first."""
    short = short_reason(why)
    return short.partition("; ")[0] if short.startswith(UNFIT) else short


def _below(one: Facts, other: Facts) -> bool:
    return one["high"] is not None and other["low"] is not None and one["high"] < other["low"]


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _same_silicon(rows: Sequence[Facts]) -> dict[str, Any] | None:
    """Return the least and the largest ratio of all rows of one technology and precision."""
    # Of other precisions a ratio would say which side has fewer bits.
    rows = [row for row in rows if not row["own_precision"]]
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None and _ends(row["ratio"])]
    if not ratios:
        return None
    groups: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        if row["ratio"] in ratios:
            groups.setdefault((row["label"], row["against"]), set()).update(_ends(row["ratio"]))
    bounds = set().union(*groups.values())
    least, most = min(bounds), max(bounds)
    # One number is no interval: neither a source nor a second technology bounds it.
    bounded = all(len(ends) > 1 for ends in groups.values())
    winner = None if not bounded else "student" if most < 1 else "baseline" if least > 1 else None
    # Which technologies, in the order of the rows.
    used = dict.fromkeys(f"{row['precision']}, {row['technology']}" for row in rows)
    return {
        "winner": winner,
        "low": least,
        "high": most,
        "comparisons": len(ratios),
        "technologies": list(used),
    }


def _ends(ratio: Facts) -> list[float]:
    return [ratio[key] for key in ("low", "nominal", "high") if ratio[key] is not None]


# --- in words


def _student_in_words(student: Facts | None, facts: Facts) -> str:
    if student is None:
        return (
            "The SNN on a chip: not priced, since its pools were counted as floats; "
            "count them folded."
        )
    place, total, dynamic = student["place"], student["total"], student["dynamic"]
    if total["nominal"] is None:
        why = _first_reason(total["why_unknown"]) or "not known"
        if why.startswith(UNFIT):
            return (
                f"SNN on {place}: it {why}. If it did, it would take {spelled(dynamic)} of "
                "switching an inference, without static energy."
            )
        return (
            f"SNN on {place}: {spelled(dynamic)} of switching an inference; static energy, which "
            f"may be most of it, is not known: {why}."
        )
    share = dynamic["nominal"] / total["nominal"] if total["nominal"] else 0.0
    cores = facts["cores"].get(place)
    where = ""
    if cores is not None:
        chips = "chip" if cores["chips"] == 1 else f"{cores['chips']} chips"
        where = f" ({cores['used']} of {cores['there']} cores of its {chips} in use)"
    # In the same unit, so that the two are compared at a glance.
    switching = spelled(dynamic, prefix_of(total))
    parts = f"of it {switching} switching"
    if share < MOST:
        parts += "; most is static power"
    return f"SNN on {place}, one stream: {spelled(total)} an inference, {parts}{where}."


def _baseline_in_words(batch_1: Facts | None, places: Mapping[str, Facts]) -> list[str]:
    name = BATCH_1 if batch_1 is None else batch_1["baseline"]
    if name not in places:
        return []
    total = places[name]["total"]
    origin = "from published launches, NOT measured here"
    if name.endswith("measured"):
        origin = "measured here"
    return [f"ANN on {name}: {spelled(total)} an inference, {origin}."]


def _comparison_in_words(
    batch_1: Facts | None, large: Facts | None, same: Facts | None
) -> list[str]:
    if batch_1 is None:
        return []
    winner, ratio = batch_1["winner"], batch_1["ratio"]
    if winner is None:
        return [f"At batch 1 there is no winner: {batch_1['why']}."]
    if winner == "baseline":
        factor = times_text(ratio["low"], ratio["high"])
        return [f"At batch 1 the ANN is cheaper, {factor}: the intervals lie apart."]
    factor = times_text(_over(1.0, ratio["high"]), _over(1.0, ratio["low"]))
    said = f"At batch 1 the SNN is cheaper, {factor}"
    if large is None:
        return [f"{said}: the intervals lie apart. Large batches are not known."]
    if large["winner"] == "student":
        return [f"{said}, and in a large batch too: the intervals lie apart."]
    # The same network without the launch is no dearer than the student: the launch decides.
    because = "because a launch idles the GPU"
    if same is None or same["winner"] != "student":
        because += ", NOT because spikes are cheap"
    then = "the ANN is cheaper" if large["winner"] == "baseline" else "there is no winner"
    return [f"{said}, {because}: in a large batch {then}."]


def times_text(low: float | None, high: float | None) -> str:
    """Return by how many times, between two bounds."""
    if low is None:
        return "by a factor that is not known"
    return (
        f"at least {digits(low)} times"
        if high is None
        else f"{digits(low)} to {digits(high)} times"
    )


def _silicon_in_words(same: Facts | None) -> list[str]:
    if same is None:
        return []
    low, high = digits(same["low"]), digits(same["high"])
    times = f"{low} [?]" if low == high else f"{low} to {high}"
    what = f"On equal silicon the SNN takes {times} times the ANN's energy"
    number = same["comparisons"]
    of = f"{number} comparison{'s' if number > 1 else ''} of model, rival and technology"
    name = "SNN" if same["high"] < 1 else "ANN"
    if same["winner"] is not None:
        return [f"{what}: the {name} is cheaper in {'all ' if number > 1 else ''}{of}."]
    if same["high"] < 1 or same["low"] > 1:
        return [f"{what} over {of}, but prices without bounds decide nothing: no winner."]
    return [f"{what} over {of}: no winner."]


def _equal(accuracy: Facts | None) -> bool | None:
    """Return False where the interval of the difference leaves 0 out; None where nothing is shown."""
    difference = None if accuracy is None else accuracy["difference"]
    if difference is None or difference["low"] is None:
        return None
    if difference["low"] == difference["high"] == 0:
        return True
    return False if difference["low"] > 0 or difference["high"] < 0 else None


def accuracy_in_words(accuracy: Facts | None) -> str:
    """Say how right both sides are, and whether that is equal."""
    if accuracy is None or accuracy["student"] is None:
        why = (
            ""
            if accuracy is None or not accuracy["why_unknown"]
            else f": {accuracy['why_unknown']}"
        )
        return (
            f"How right both are is NOT known{why}; a cheaper network that is worse proves little."
        )
    mine, theirs = accuracy["student"], accuracy["baseline"]
    show = _percent if accuracy["measure"] == "accuracy" else digits
    name = accuracy["measure"].capitalize()
    if theirs is None or accuracy["difference"] is None:
        why = accuracy["why_unknown"] or "unknown"
        return f"{name} of the SNN {show(mine['nominal'])}; of the ANN not known: {why}."
    said = f"{name} {show(mine['nominal'])} against {show(theirs['nominal'])}"
    difference = accuracy["difference"]
    points = _points if accuracy["measure"] == "accuracy" else _signed
    gap = f"difference {points(difference['nominal'])}"
    if difference["low"] is None:
        return f"{said}: {gap}, no interval ({accuracy['why_unknown']})."
    gap += f" [{points(difference['low'])}, {points(difference['high'])}]"
    equal = _equal(accuracy)
    if equal:
        return f"{said}: equal on each sample."
    if equal is None:
        return f"{said}: no difference is shown, {gap}."
    return f"{said}: NOT equal, {gap}."


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
