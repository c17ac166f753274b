"""Predict energies that somebody measured, from prices that were not made from that measurement.

    .venv/bin/python benchmarks/energy/validation.py                     everything (make energy-validation)
    .venv/bin/python benchmarks/energy/validation.py --pilotnet FOLDER   with network.net and image.npy at hand
    .venv/bin/python benchmarks/energy/validation.py --sanafe PYTHON     with an environment that has SANA-FE

PilotNet's network and image come with the wheel of lava-dl, which is downloaded where no folder is
given; SANA-FE (GPL) runs in an environment of its own in build/, as a separate process. Where one of
the two cannot be had, its rows say so. Written to benchmarks/results/energy_validation.{md,json}, and to the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sanafe_networks
from environments import environment

from knarr.deploy import core_mapping, place, read_net
from knarr.hw_sim import OperationCounts, count
from knarr.hw_sim.energy import (
    PlaceOptions,
    Quantity,
    Traffic,
    load_profile,
    places_of,
    traffic_of,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CHECKED = ROOT / "pipeline" / "energy_report" / "checked.json"
BUILD = ROOT / "build" / "validation"
STEPS = 16
PILOTNET = "tests/lava/lib/dl/netx/gts/pilotnet_lif/"
SHA256 = {
    "network.net": "4a47723327c0c9e18d8ac3dcbfa2f2e011e6f2c03ebe80cb3b9360ae56124fd3",
    "image.npy": "4ad5fc31f53e644cf592520174baafb2b9e9d4d48c896a0eb13d780e37f92f68",
}
OTHER_RUNS = {"baa23ad": (1.070673, 1.818389), "76c8fbb": (0.562239, 0.990769)}
"""Commit of lava-dl's notebook -> dynamic and total energy, mJ; the one compared is b9e3691."""
KEYWORDS = (390, 256, 256, 29)
KEYWORD_STEPS = 10
"""Steps of one inference of the keyword network: frames come every 10 ms, at 1 ms a step."""


@dataclass(frozen=True)
class Row:
    """A prediction beside a measurement.

    Args:
        what: the network, chip and term.
        predicted: with its bounds.
        measured: by whom it may be, in the unit of the prediction; None where nobody could.
        left_out: what the prices were not made from, or why the row is no check.
    """

    what: str
    predicted: Quantity
    measured: float | None
    left_out: str

    @property
    def error(self) -> float | None:
        """Difference to the measurement, relative to it."""
        if self.predicted.nominal is None or not self.measured:
            return None
        return self.predicted.nominal / self.measured - 1

    @property
    def inside(self) -> bool | None:
        """Tell whether the measurement lies within the bounds; None where one of them is unknown."""
        low, _, high = self.predicted.bounds
        if self.measured is None or low is None or high is None:
            return None
        return low <= self.measured <= high

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "what": self.what,
            "predicted": self.predicted.to_json(),
            "measured": self.measured,
            "relative_error": self.error,
            "measured_inside": self.inside,
            "left_out": self.left_out,
        }


def fetched() -> Path:
    """Return a folder with PilotNet's files, taken from the wheel of lava-dl."""
    folder = BUILD / "pilotnet"
    if not (folder / "image.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Its wheel is for every Python, whatever it says.
        download += ["--ignore-requires-python", "--dest", str(BUILD), "lava-dl==0.6.0"]
        subprocess.run(download, check=True)
        (wheel,) = BUILD.glob("lava_dl-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                (folder / name).write_bytes(archive.read(PILOTNET + name))
    return folder


def pilotnet(folder: Path) -> tuple[OperationCounts, dict[str, Traffic]]:
    """Count PilotNet on its image, 16 steps, and its traffic on both chips."""
    for name, expected in SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise SystemExit(f"{folder / name}: sha256 {found} is not that of lava-dl's tests")
    network = read_net(folder / "network.net")
    image = np.load(folder / "image.npy").transpose(2, 1, 0)
    inputs = np.broadcast_to(image, (1, STEPS, *image.shape))
    traffic = {
        title: traffic_of(network, inputs, core_mapping(network, place(network, name)))
        for title, name in (("Loihi 1", "loihi1"), ("Loihi 2", "loihi2"))
    }
    return count(network, inputs), traffic


def pilotnet_rows(counts: OperationCounts, traffic: dict[str, Traffic]) -> list[Row]:
    """Predict PilotNet on Loihi 2 without its benchmark, and say what the fitted prices give."""
    published = {record.id: record for record in load_profile("l2_pilot_lif").prices}

    def measured(name: str) -> float:
        value = published[f"l2_pilot_lif_{name}"].si()[1]
        assert value is not None
        return value

    total, dynamic = measured("inference"), measured("dynamic")
    seconds = (total - dynamic) / measured("static")
    truth = {
        "dynamic": dynamic,
        "static": total - dynamic,
        "total": total,
        "latency": seconds,
        "energy_delay_product": total * seconds,
    }
    rows = []
    left_out = {
        "loihi2_not_fitted": "the benchmark; in its place prices of Loihi 1, Intel's speed-ups, "
        "static power of the sigma-delta runs",
        "loihi2": "NO CHECK: made from this benchmark",
    }
    for profile, note in left_out.items():
        options = PlaceOptions(loihi2=(profile,))
        (there,) = [
            one for one in places_of(counts, traffic, options=options) if one.place == "Loihi 2"
        ]
        rows += [
            Row(f"PilotNet on Loihi 2, {term} ({profile})", there.terms[term], value, note)
            for term, value in truth.items()
        ]
        # The same notebook was run three times, and the runs differ.
        for commit, mj in OTHER_RUNS.items() if profile != "loihi2" else ():
            rows += [
                Row(f"the same at {commit}, {term}", there.terms[term], value * 1e-3, note)
                for term, value in zip(("dynamic", "total"), mj, strict=True)
            ]
    return rows


def sigma_delta_rows(counts: OperationCounts | None) -> list[Row]:
    """Predict the sigma-delta PilotNet as far as it is counted: its operations are bounded by those
    of every neuron sending at every frame, and its time is that of its input.
    """
    spiking = {record.id: record for record in load_profile("l2_pilot_lif").prices}
    power = Quantity(*spiking["l2_pilot_lif_static"].si(), "W")
    rows = []
    for commit, rate, total_mj, dynamic_mj in (
        ("b9e3691", 16.87, 16.343833, -0.359587),
        ("baa23ad", 11.18, 31.964948, 1.342877),
        ("76c8fbb", 15.29, 11.75669, 0.778551),
    ):
        name = f"sigma-delta PilotNet on Loihi 2, {commit}"
        rows.append(
            Row(
                f"{name}, total as static power x time",
                power.times(1 / rate, "J"),
                total_mj * 1e-3,
                "static power of the spiking runs; the frame rate is measured, input bounds it",
            )
        )
        if counts is not None:
            dense = float(counts.total.dense_valid) / STEPS
            price = load_profile("loihi2_not_fitted").record("synapse").si()
            high = None if price[2] is None else price[2] * dense
            rows.append(
                Row(
                    f"{name}, dynamic",
                    Quantity(0.0, None, high, "J", "how many neurons send is not counted"),
                    dynamic_mj * 1e-3,
                    "all of it; the three measurements differ by more than they say",
                )
            )
    return rows


def keyword_rows() -> list[Row]:
    """Bound the keyword network on Loihi 1, whose spikes nobody published."""
    synapses = sum(one * two for one, two in pairwise(KEYWORDS))
    neurons = sum(KEYWORDS[1:])
    profile = load_profile("loihi1_cal")

    def high(term: str) -> float:
        value = profile.record(term).si()[2]
        assert value is not None
        return value

    most = synapses * high("synapse") + neurons * (high("update_active") + high("spike_tile"))
    most += sum(KEYWORDS) * high("axon_message")
    least = neurons * (profile.record("update_inactive").si()[0] or 0.0)
    why = "the spikes of this network are not published: silent to firing in every step"
    measured = {record.id: record for record in load_profile("loihi1_kws").prices}
    dynamic = measured["loihi1_kws_dynamic"].si()[1]
    assert dynamic is not None
    after = 0.070 / 296
    cores = Quantity(KEYWORD_STEPS * least, None, KEYWORD_STEPS * most, "J", why)
    return [
        Row(
            "keyword spotting 390-256-256-29 on Loihi 1, dynamic",
            cores,
            dynamic,
            "all of it; x86 cores and 0.070 W that stay once a model has run are in the measurement",
        ),
        Row(
            "the same without those 0.070 W (0.237 mJ)",
            cores,
            dynamic - after,
            "all of it",
        ),
    ]


def sanafe_rows(python: Path) -> list[Row]:
    """Compare three networks with SANA-FE, term by term."""
    rows = []
    for name, (network, bias) in sanafe_networks.networks().items():
        compared = sanafe_networks.compare(python, network, bias)
        for term, value in compared.knarr.items():
            unit = "s" if term == "time" else "J"
            rows.append(
                Row(
                    f"SANA-FE, {name}, {term}",
                    Quantity(value, value, value, unit),
                    compared.sana_fe[term],
                    "nothing: the same prices; counts, cores and routes are its own",
                )
            )
    return rows


def sanafe_python() -> Path:
    """Return the Python of an environment with SANA-FE, made where there is none."""
    return environment(BUILD / "sanafe", ("sanafe==2.2.9", "numpy"))


def shown(value: float | None, unit: str) -> str:
    """Return a number with three digits and a unit that suits it."""
    if value is None:
        return "?"
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p")):
        if abs(value) >= factor or factor == 1e-12:
            return f"{value / factor:.3g} {prefix}{unit}"
    return ""


def document(rows: list[Row], missing: list[str]) -> str:
    """Return the page: a table, and what could not be had."""
    lines = [
        "# Predicted beside measured",
        "",
        "Written by `.venv/bin/python benchmarks/energy/validation.py` (`make energy-validation`).",
        "A row checks prices only as far as they were not made from it: the last column says what was",
        "left out. `?` is unknown, with no bound that a source gives.",
        "",
        "| what | predicted | low to high | measured | difference | inside | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = row.predicted.unit
        low, nominal, high = (shown(value, unit) for value in row.predicted.bounds)
        error = "" if row.error is None else f"{row.error + 0.0:+.1%}".replace("-0.0%", "+0.0%")
        inside = {True: "yes", False: "NO", None: ""}[row.inside]
        between = f"{low} to {high}"
        if row.what.startswith("SANA-FE"):  # one simulator against another has no bounds
            inside = between = ""
        cells = (row.what, nominal, between, shown(row.measured, unit), error, inside)
        lines.append("| " + " | ".join((*cells, row.left_out)) + " |")
    lines += ["", *(f"NOT RUN: {reason}" for reason in missing)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Run what can be run here, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pilotnet", type=Path, help="folder with network.net and image.npy")
    parser.add_argument("--sanafe", type=Path, help="python of an environment with SANA-FE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for both files")
    told = parser.parse_args()
    rows: list[Row] = []
    missing: list[str] = []
    counts, facts = None, None
    try:
        counts, traffic = pilotnet(told.pilotnet or fetched())
        rows += pilotnet_rows(counts, traffic)
        facts = {
            "counts": counts.to_json()["layers"],
            "traffic": {title: one.to_json() for title, one in traffic.items()},
        }
    except (subprocess.CalledProcessError, OSError) as error:
        missing.append(f"PilotNet: lava-dl's wheel cannot be had ({error})")
    rows += sigma_delta_rows(counts)
    rows += keyword_rows()
    try:
        rows += sanafe_rows(told.sanafe or sanafe_python())
    except (subprocess.CalledProcessError, OSError) as error:
        missing.append(f"SANA-FE: cannot be installed here ({error})")
    page = document(rows, missing)
    print(page)
    told.out.mkdir(parents=True, exist_ok=True)
    (told.out / "energy_validation.md").write_text(page, encoding="utf-8")
    values = {"rows": [row.to_json() for row in rows], "missing": missing, "pilotnet": facts}
    text = json.dumps(values, indent=1) + "\n"
    (told.out / "energy_validation.json").write_text(text, encoding="utf-8")
    # `knarr energy` shows what checks the prices: no fit, and no other simulator.
    kept = [
        row.to_json()
        for row in rows
        if row.measured is not None
        and not row.left_out.startswith("NO CHECK")
        and not row.what.startswith("SANA-FE")
    ]
    if not missing:
        CHECKED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
