"""knarr's operation counts beside NeuroBench's, on the same networks, weights and inputs.

    .venv/bin/python benchmarks/energy/against_neurobench.py           asks NeuroBench, writes benchmarks/results/neurobench.*
    .venv/bin/python benchmarks/energy/against_neurobench.py --again   only counts ours again and writes the table anew

NeuroBench is not installed beside knarr: it runs in a virtual environment of its own in build/, made with venv and pip, or one
that is there already, named by its interpreter with --python. (A script called neurobench.py here would hide the package.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import environment
from neurobench_cases import CASES, digest
from neurobench_compare import Ours, ours
from neurobench_table import written

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULT = ROOT / "benchmarks" / "results" / "neurobench.json"
PACKAGES = (
    "torch==2.3.1",
    "torchaudio==2.3.1",
    "numpy<2",
    "norse==1.1.0",
    "snntorch==1.0.0",
    "neurobench==2.3.0",
)


class StaleError(Exception):
    """The recorded numbers are of other weights, inputs or versions than there are now."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--again", action="store_true", help="take NeuroBench's numbers from the file"
    )
    parser.add_argument("--python", help="interpreter of an environment that has NeuroBench")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "energy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: ours(case) for name, case in CASES.items()}
    if not arguments.again:
        python = arguments.python or str(
            environment(arguments.environments / "neurobench", PACKAGES)
        )
        RESULT.write_text(json.dumps(asked(python, found), indent=1) + "\n", "utf-8")
    text = document(found, json.loads(RESULT.read_text("utf-8")))
    RESULT.with_suffix(".md").write_text(text, "utf-8")
    print(text, end="")


def asked(python: str, found: Mapping[str, Ours]) -> dict[str, Any]:
    """What NeuroBench says of every case."""
    with tempfile.TemporaryDirectory(prefix="knarr-neurobench-") as folder:
        for name, case in found.items():
            np.savez(Path(folder) / f"{name}.npz", **case.made)
        done = subprocess.run(
            [python, str(HERE / "neurobench_worker.py"), folder],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        sys.exit(
            f"neurobench_worker.py: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def document(found: Mapping[str, Ours], report: Mapping[str, Any]) -> str:
    """The page about a report.

    Raises:
        StaleError: the report is of something else; run without --again.
        UnexplainedError: counts differ and no policy says why.
    """
    check(found, report)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"# Operations: knarr and NeuroBench\n\n{INTRODUCTION}\n\nNeuroBench's side: {versions}.\n\n"
        f"```\n{written(found, report)}```\n"
    )


INTRODUCTION = """\
Written by `.venv/bin/python benchmarks/energy/against_neurobench.py`; `tests/hw_sim/counting/test_neurobench.py` counts our side anew and holds
it to the recorded numbers of NeuroBench. Conv2d k3 s1 p1 - LIF - Conv2d k3 s2 p1 in 4 groups - LIF - AvgPool2d(2) - Flatten -
Linear - LIF - Linear - LI on 2 x 10 x 10 pixels; `loop`: Linear - LIF - recurrent LIF - Linear - LI. 4 samples of 6 steps.
knarr counts the NIR graph that it exported; NeuroBench the Norse module itself and a coding with snnTorch's Leaky (`loop`: with
the recurrent weights in nn.Linear), each in batches of 4, of 3 and 1, and sample by sample. All fire the same spikes, and where the
codings or batches say the same there is one line. Per inference, without bias in both; `nz` skips weights that are 0, as
NeuroBench does, so AC and MAC are held against `acc nz` and `mac nz`, Dense against `valid`: all taps that exist."""


def check(found: Mapping[str, Ours], report: Mapping[str, Any]) -> None:
    """Refuse a report of other versions, weights or inputs."""
    wanted = dict(package.split("==") for package in PACKAGES if "==" in package)
    for name in ("neurobench", "snntorch", "norse", "torch"):
        if report["versions"][name].partition("+")[0] != wanted[name]:
            raise StaleError(
                f"{name}: recorded with {report['versions'][name]}, pinned is {wanted[name]}"
            )
    if set(report["cases"]) != set(found):
        raise StaleError(f"cases: recorded {sorted(report['cases'])}, there are {sorted(found)}")
    for name, case in found.items():
        recorded = report["cases"][name]
        if recorded["arrays"] != digest(case.made):
            raise StaleError(f"case '{name}': recorded with other weights or inputs")
        if tuple(recorded["codings"]) != CASES[name].codings:
            raise StaleError(
                f"case '{name}': recorded for {list(recorded['codings'])}, not {CASES[name].codings}"
            )


if __name__ == "__main__":
    main()
