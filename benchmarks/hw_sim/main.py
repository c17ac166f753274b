"""How fast the chip simulator is: against Lava, Norse, snnTorch and slayer, and against what the machine could do.

    .venv/bin/python benchmarks/hw_sim/main.py            everything: checks, interleaved rounds, scaling; about 20 minutes
    .venv/bin/python benchmarks/hw_sim/main.py --quick    W1 alone, two rounds, no scaling: does it all still run?

Writes hw_sim.json, hw_sim.md, hw_sim.png and hw_sim_scaling.png; the .json after every part, so that a killed run leaves what
was measured. No speed is given for what is silent or fires other spikes than the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # idle threads of a peer must not spin while another runs
os.environ["OMP_NUM_THREADS"] = "1"

import document
import engines
import machine
import matplotlib as mpl
import picture
import report
import roofline
import rounds as measured
import scaling
from peers import ROOT, interpreter, keep_workload
from published import PUBLISHED
from rich.console import Console
from workloads import build

from knarr import KnarrError

CONSOLE = Console(stderr=True)
ROUNDS, QUICK_ROUNDS = 5, 2
SCALING = {
    "samples": scaling.over_samples,
    "activity": scaling.over_activity,
    "memory": scaling.over_memory,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds, {ROUNDS} by default")
    parser.add_argument(
        "--quick", action="store_true", help="W1 at 10 %% alone, two rounds, no scaling"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="table, document and pictures from hw_sim.json as it is",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="TOOL",
        help="leave out lava, norse, snntorch or slayer",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="TOOL=PATH",
        help="interpreter that has a tool",
    )
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "hw_sim")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


class Progress:
    """Lines with the time since the start, on stderr."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, what: str) -> None:
        elapsed = int(time.monotonic() - self.start)
        CONSOLE.print(f"[dim]{elapsed // 60:3d}:{elapsed % 60:02d}[/dim]  {what}", highlight=False)


class Kept:
    """The results so far; hw_sim.json holds them all from `save` on."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.values = folder, values

    def save(self) -> None:
        temporary = self.folder / "hw_sim.json.tmp"
        temporary.write_text(json.dumps(self.values, indent=1), "utf-8")
        os.replace(temporary, self.folder / "hw_sim.json")


def main() -> None:
    asked = arguments()
    mpl.use("agg")
    if asked.report:
        publish(json.loads((asked.results / "hw_sim.json").read_text("utf-8")), asked.results)
        return
    say = Progress()
    empty: dict[str, Any] = {
        "workloads": {},
        "checks": {},
        "missing": {},
        "rounds": [],
        "scaling": {},
    }
    kept = Kept(asked.results, {"machine": machine.described(), "quick": asked.quick, **empty})
    with tempfile.TemporaryDirectory(prefix="knarr-bench-") as scratch:
        program = roofline.compiled(Path(scratch))
        kept.values["roofline"] = program if isinstance(program, str) else "measured"
        if isinstance(program, str):
            say(program)
        cases = built(asked, kept, say, Path(scratch))
        checked(cases, kept, say)
        race(cases, asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS), program, kept, say)
    if not asked.quick:
        for part, measure in SCALING.items():
            kept.values["scaling"][part] = measure(lambda what: say(f"scaling: {what}"))
            kept.save()
    publish(kept.values, asked.results)


def built(
    asked: argparse.Namespace, kept: Kept, say: Progress, scratch: Path
) -> list[measured.Case]:
    """Every workload, and who runs it."""
    missing = kept.values["missing"]
    pythons = interpreters(asked, missing, say)
    cases = []
    for name, percent in [("W1", 10)] if asked.quick else PUBLISHED:
        say(f"building {name} at {percent} %")
        work = build(name, percent)
        expected = engines.reference(work)
        here, absent = engines.available(work)
        missing |= absent
        peers = {peer: python for peer, python in pythons.items() if percent in peer.percents}
        cost = roofline.work_of(work, expected)
        case = measured.Case(work, keep_workload(work, scratch), expected, cost, list(here), peers)
        kept.values.setdefault(
            "first_call_s", {engine.key: first_s for engine, first_s in here.items()}
        )
        kept.values["workloads"][work.title] = case.described()
        cases.append(case)
    kept.save()
    return cases


def checked(cases: list[measured.Case], kept: Kept, say: Progress) -> None:
    """Spikes of everyone on everything; who is wrong takes no further part there."""
    for case in cases:
        found: dict[str, Any] = kept.values["checks"].setdefault(case.work.title, {})
        for key, result in measured.checks(case):
            found[key] = result
            what = (
                result.get("error") or f"{result['differ']} of {result['compared']} spikes differ"
            )
            say(f"{case.work.title}, {key}: {what}")
            kept.save()
        case.leave_out({key for key, result in found.items() if "error" in result})


def race(
    cases: list[measured.Case], count: int, program: Path | str, kept: Kept, say: Progress
) -> None:
    """The interleaved rounds."""
    for number in range(count):
        one: dict[str, Any] = {"times": {}, "around": {}}
        kept.values["rounds"].append(one)
        for case in cases:
            title = case.work.title
            one["around"][title] = measured.circumstances(program)
            times = one["times"].setdefault(title, {})
            for key, result in measured.one_round(case, backwards=number % 2 == 1):
                times[key] = result
                took = result.get("error") or f"{1000 * result['s_per_sample']:.4g} ms per sample"
                say(f"round {number + 1} of {count}, {title}, {key}: {took}")
            kept.save()


def interpreters(
    asked: argparse.Namespace, missing: dict[str, str], say: Progress
) -> dict[measured.Peer, str]:
    """Of every peer that can run; the others are said and left out."""
    given = dict(pair.split("=", 1) for pair in asked.python)
    found = {}
    for peer in measured.PEERS:
        if peer.tool in asked.skip:
            missing[peer.key] = "left out as asked"
            continue
        try:
            found[peer] = given.get(peer.tool) or interpreter(peer.tool, asked.environments)
        except (OSError, subprocess.SubprocessError, KnarrError) as error:
            missing[peer.key] = f"no environment: {error}"
            say(f"{peer.key}: {missing[peer.key]}")
    return found


def publish(results: dict[str, Any], folder: Path) -> None:
    """The table, the document and the pictures."""
    wrong = {
        title: {key: one["error"] for key, one in checks.items() if "error" in one}
        for title, checks in results["checks"].items()
    }
    kept = measured.as_rounds(results["rounds"], wrong)
    (folder / "hw_sim.md").write_text(document.written(results, kept), "utf-8")
    picture.ratios(results, kept, folder / "hw_sim.png")
    picture.scaling(results.get("scaling", {}), folder / "hw_sim_scaling.png")
    Console(width=report.WIDTH).print(report.table(results, kept))
    for key, why in results["missing"].items():
        CONSOLE.print(f"not run: {key}: {why}", highlight=False)


if __name__ == "__main__":
    main()
