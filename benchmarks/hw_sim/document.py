"""hw_sim.md: the tables, and what is needed to judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ratios import Round, number
from report import HEADS, Results, ratio_rows, rows

METHOD = (
    "Written by `.venv/bin/python benchmarks/hw_sim/main.py`. Forward only, steady state: imports, compilation, Lava's start-up "
    "and one warm-up run are outside the times. All engines get the same inputs and weights; knarr, Lava and slayer compute "
    "integers, Norse and snnTorch float32. Dense peers cost the same at any activity, so some run at one only."
)
COMPARED = (
    "All layers, before any time is taken; an engine or exact peer with a difference has no time above. Norse and snnTorch "
    "compute in float32 and slayer compares with its threshold in float32: their single spikes may differ, not how often a "
    "layer fires. In the rounds, outputs (Lava) and outputs and spike counts (knarr) are compared again."
)


def written(results: Results, rounds: Sequence[Round]) -> str:
    """The document.

    Args:
        results: as main.py keeps them.
        rounds: of them, without what failed.
    """
    parts = [
        "# Speed of knarr.hw_sim",
        METHOD,
        _where(results),
        _how(results),
        "## Times and ratios",
        _grid(HEADS, rows(results, rounds)),
        _floor_text(results),
        "## Other ratios, 10 % activity",
        _grid(("workload", "engine", "peer", "times faster"), _others(results, rounds)),
        "## What ran",
        _grid(
            (
                "workload",
                "B",
                "T",
                "spikes per neuron and step",
                "SynOps",
                "neuron-steps",
                "dense MACs",
            ),
            [_workload(title, one) for title, one in results["workloads"].items()],
        ),
        "SynOps, neuron-steps and MACs are of the first sample. B samples are given at once; two threads share a sample where there is but one.",
        "## Spikes compared",
        COMPARED,
        _grid(("workload", "engine", "spikes compared", "differ", "note"), _checks(results)),
        "## Repeats",
        _grid(("workload", "engine", "per round"), _repeats(results)),
        _first_calls(results.get("first_call_s", {})),
        *_scaling(results.get("scaling", {})),
        _missing(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _where(results: Results) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    around = [one for kept in results["rounds"] for one in kept["around"].values()]
    loads = [one["load"][0] for one in around]
    busy = [one["busy_cores"] for one in around if one.get("busy_cores") is not None]
    others = (
        f"; other processes kept {min(busy)} to {max(busy)} cores busy, which slows Lava most"
        if busy
        else ""
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}; {machine['system']}, Python "
        f"{machine['python']}; {versions}; peers: {_versions(results)}. Load average over a minute when engines began: "
        f"{min(loads, default=0):.1f} to {max(loads, default=0):.1f}, the benchmark's own processes in it{others}."
    )


def _how(results: Results) -> str:
    return (
        f"{len(results['rounds'])} interleaved rounds; in each, every engine runs in turn on each workload, and a ratio is "
        "taken within a round. A cell is the median over the rounds and, in brackets, their range. A time is the median "
        "of its repeats in a round."
    )


def _floor_text(results: Results) -> str:
    peaks = [
        around["peaks"]
        for one in results["rounds"]
        for around in one["around"].values()
        if around["peaks"]
    ]
    if not peaks:
        return f"Floor: {results['roofline']}."
    adds, updates = (
        median(one[key] for one in peaks) for key in ("adds_per_s", "neuron_steps_per_s")
    )
    return (
        f"Floor is the share of what the machine could do: event SynOps / {adds / 1e9:.0f} G int16 additions per second + neuron-steps / {updates / 1e9:.1f} G updates "
        f"per second, what one core was measured to do in the same round ({peaks[0]['level']}); two threads: half of it."
    )


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))


def _versions(results: Results) -> str:
    found = {
        one["version"]
        for checks in results["checks"].values()
        for one in checks.values()
        if "version" in one
    }
    return "; ".join(sorted(found)) or "none"


def _others(results: Results, rounds: Sequence[Round]) -> list[list[str]]:
    return [
        [title, one, other, str(times)]
        for title in results["workloads"]
        for one, other, times in ratio_rows(rounds, title)
        if other not in ("Lava", "Norse")
    ]


def _workload(title: str, one: Mapping[str, Any]) -> list[str]:
    rates = " ".join(f"{rate:.3f}" for rate in one["rates"])
    costs = [_many(one[key]) for key in ("synops", "neuron_steps", "macs")]
    return [title, str(one["samples"]), str(one["timesteps"]), rates, *costs]


def _many(count: float) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.3g} M"


def _checks(results: Results) -> list[list[str]]:
    return [
        [
            title,
            key,
            f"{one.get('compared', 0):,}",
            str(one.get("differ", "-")),
            one.get("error", ""),
        ]
        for title, checks in results["checks"].items()
        for key, one in checks.items()
    ]


def _repeats(results: Results) -> list[list[str]]:
    lines = []
    for title in results["workloads"]:
        of: dict[str, list[Mapping[str, Any]]] = {}
        for one in results["rounds"]:
            for key, result in one["times"].get(title, {}).items():
                if "error" not in result:
                    of.setdefault(key, []).append(result)
        for key, found in of.items():
            counts = sorted({one["repeats"] for one in found})
            often = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            what = f"{often} runs of {found[0].get('samples')} samples"
            if "steps" in found[0]:
                what = f"{often} stretches of {found[0]['steps']} steps after {found[0]['warm_up_steps']}"
                what += (
                    f", extrapolated to {results['workloads'][title]['timesteps']}"
                    if found[0]["extrapolated"]
                    else ""
                )
            lines.append([title, key, what])
    return lines


def _first_calls(calls: Mapping[str, float]) -> str:
    if not calls:
        return ""
    each = ", ".join(f"{key} {number(first_s)} s" for key, first_s in calls.items())
    return f"First call, W1, one sample (compiling where there is no cache, layout of weights): {each}."


def _scaling(scaled: Mapping[str, Any]) -> list[str]:
    parts = []
    if found := scaled.get("samples"):
        keys = [key for key in found[0] if "thread" in key]
        lines = [[str(row["samples"]), *(number(1e6 * row[key]) for key in keys)] for row in found]
        parts += [
            "## Samples at once, W1 10 %: microseconds per sample",
            _grid(("samples", *keys), lines),
        ]
    if found := scaled.get("activity"):
        keys = [key for key in found[0] if "thread" in key]
        lines = [
            [" ".join(f"{rate:.3f}" for rate in row["rates"]), _many(row["synops"])]
            + [number(1e3 * row[key]) for key in keys]
            for row in found
        ]
        heads = ("spikes per neuron and step", "SynOps", *keys)
        parts += [
            "## Activity, the first two layers of W2s, one sample: milliseconds",
            "A bias, the same for all neurons of a layer, sets the rate of both.",
            _grid(heads, lines),
        ]
    if found := scaled.get("memory"):
        fields = ("inputs", "output", "beyond")
        lines = [
            [str(row["samples"]), *(number(max(0, row[field]) / 2**20) for field in fields)]
            for row in found
        ]
        heads = ("samples", "inputs", "output and counts", "peak of `simulate` beyond both")
        parts += ["## Memory of a process that simulates W1, one thread: MiB", _grid(heads, lines)]
    return parts


def _missing(results: Results) -> str:
    tried = [
        *results["checks"].items(),
        *(pair for one in results["rounds"] for pair in one["times"].items()),
    ]
    failed = {
        f"{key} on {title}: {one['error']}"
        for title, each in tried
        for key, one in each.items()
        if "error" in one
    }
    lines = [*(f"{key}: {why}" for key, why in results["missing"].items()), *sorted(failed)]
    return (
        "## Not run, or no speed given\n\n" + "\n".join(f"- {line}" for line in lines)
        if lines
        else ""
    )
