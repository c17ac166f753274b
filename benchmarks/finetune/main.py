"""Fine-tune other people's nets on the chip's integers: snnTorch nets with its default reset, on
N-MNIST and, recurrent, on generated speech, at 8 and 4 bits, three seeds each.

Needs a second interpreter with snnTorch 1.0.0, which need not have knarr (docs/finetune.md):

    .venv/bin/python benchmarks/finetune/main.py --data ../shared/data/nmnist_small \\
        --snntorch ENV/bin/python --work build/finetune

Each step leaves its files in --work, so that a run that was killed goes on. Epochs of snnTorch and
of the fits are chosen on validation recordings; the held-out ones are looked at last, once. Writes
finetune.json and finetune.md in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from data import SEEDS, nmnist, speech

from knarr.deploy import lower, read_net, verify_network, write_net
from knarr.export import read, step_nir
from knarr.hw_sim import ChipNetwork, simulate
from knarr.pipeline.measures import paired_difference, wilson
from knarr.train import finetune

RESULTS = Path(__file__).parents[1] / "results"
DT_S = 1e-4
"""The only one of snnTorch's exporter."""
BITS = (8, 4)
CALIBRATION, LAVA, BATCH = 20, 10, 50
NETS: dict[str, tuple[str, int]] = {"nmnist": ("conv", 15), "speech": ("recurrent", 20)}
"""Data -> the net that with_snntorch.py trains on it, and its epochs."""
TITLES = {
    "nmnist": "N-MNIST: Conv2d, Leaky, AvgPool2d, Conv2d, Leaky, AvgPool2d, Linear, Leaky",
    "speech": "Generated speech: Linear, RLeaky, Linear, Leaky",
}
EPOCHS = 12
Values = npt.NDArray[Any]


class Case:
    """One net: its data, and the files of what was made of it.

    Args:
        task: "nmnist" or "speech".
        seed: of snnTorch's fit, and of who is held out.
        work: folder of all cases.
    """

    def __init__(self, task: str, seed: int, work: Path) -> None:
        self.task, self.seed, self.folder = task, seed, work / f"{task}-{seed}"

    def load(self, name: str) -> Values:
        values: Values = np.load(self.folder / f"{name}.npy")
        return values

    def prepare(self, root: Path) -> None:
        """Write the arrays that snnTorch and knarr get alike."""
        if (self.folder / "test_id.npy").is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        found = nmnist(root, self.seed) if self.task == "nmnist" else speech(self.seed)
        for name in sorted(found, key="test_id".__eq__):  # last, since it says that all are there
            np.save(self.folder / f"{name}.npy", found[name])

    def train(self, python: str) -> None:
        """Train the net in snnTorch and export it."""
        net, epochs = NETS[self.task]
        script = str(Path(__file__).with_name("with_snntorch.py"))
        command = [
            python,
            "-W",
            "ignore",
            script,
            net,
            str(self.folder),
            str(self.seed),
            str(epochs),
        ]
        subprocess.run(command, check=True)

    def fit(self, bits: int) -> None:
        """Lower the net and fit it on, with and without what snnTorch's net says as a teacher."""
        fitted = self.folder / f"fitted{bits}.net"
        if fitted.is_file():
            return
        graph, inputs = read(self.folder / "net.nir"), self.load("train_x")
        chosen = np.linspace(0, len(inputs) - 1, CALIBRATION).round().astype(int)
        network = lower(graph, DT_S, weight_bits=bits, calibration=inputs[chosen])
        write_net(network, self.folder / f"lowered{bits}.net")
        found = finetune(
            network,
            graph,
            train=(inputs, self.load("train_y")),
            validation=(self.load("validation_x"), self.load("validation_y")),
            weight_bits=bits,
            teacher=self.load("train_snntorch"),
            epochs=EPOCHS,
            seed=self.seed,
        )
        write_net(found, fitted)

    def lava(self, bits: int) -> int:
        """Return how many integers of simulator and Lava differ on some held-out clips."""
        path = self.folder / f"fitted{bits}.lava.json"
        if not path.is_file():
            net = self.folder / f"fitted{bits}.net"
            proof = verify_network(net, self.load("test_x")[:LAVA])
            found = [sum(row.mismatches for row in proof.rows if row.required), proof.holds]
            path.write_text(json.dumps(found))
        mismatches, holds = json.loads(path.read_text())
        assert holds == (mismatches == 0), "a silent layer proves nothing"
        return int(mismatches)

    def right(self, split: str) -> dict[str, Values]:
        """Return by network which clips of a split it decides rightly."""
        inputs, labels = self.load(f"{split}_x"), self.load(f"{split}_y")
        graph = read(self.folder / "net.nir")
        found = {
            "snnTorch": self.load(f"{split}_snntorch").argmax(1) == labels,
            "as read": _stepped(graph, inputs) == labels,
        }
        for bits in BITS:
            for kind in ("lowered", "fitted"):
                network = read_net(self.folder / f"{kind}{bits}.net")
                found[f"{kind} {bits}"] = _decided(network, inputs) == labels
        return found


def _stepped(graph: Any, inputs: Values) -> Values:
    """Return what a graph decides, stepped as its file says: by counts of output spikes."""
    parts = np.array_split(inputs, -(-len(inputs) // BATCH))
    counts = [step_nir(graph, part, DT_S).output.sum(axis=1) for part in parts]
    return np.asarray(np.concatenate(counts).argmax(1))


def _decided(network: ChipNetwork, inputs: Values) -> Values:
    return network.readout.decide(simulate(network, inputs).output)


def summary(cases: list[Case]) -> dict[str, Any]:
    """Return rates over all seeds, each with its interval, and differences from snnTorch."""
    owners = np.concatenate([case.load("test_id") for case in cases])
    facts: dict[str, Any] = {"clips": len(owners), "owners": len(np.unique(owners))}
    for split in ("validation", "test"):
        found = [case.right(split) for case in cases]
        for name in found[0]:
            hits = [one[name] for one in found]
            every = np.concatenate(hits)
            interval = wilson(float(every.mean()), len(every))
            row: dict[str, Any] = {
                "share": float(every.mean()),
                "lo": interval.lo,
                "hi": interval.hi,
                "seeds": [float(one.mean()) for one in hits],
            }
            if split == "test":
                first = np.concatenate([one["snnTorch"] for one in found])
                row["against_snntorch"] = asdict(paired_difference(first, every, owners))
                if name.startswith("fitted"):
                    low = np.concatenate([one[name.replace("fitted", "lowered")] for one in found])
                    row["gained"] = asdict(paired_difference(low, every, owners))
            facts.setdefault(split, {})[name] = row
    facts["lava_mismatches"] = {bits: [case.lava(bits) for case in cases] for bits in BITS}
    return facts


def _points(difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    value, lo, hi = (100 * difference[key] for key in ("value", "lo", "hi"))
    return f"{value:+.1f} ({lo:+.1f} .. {hi:+.1f})"


def document(facts: dict[str, Any]) -> str:
    """Return the results as a page."""
    lines = [
        "# Fine-tuning on the chip's integers",
        "",
        "Made by `benchmarks/finetune/main.py`; docs/finetune.md says what is compared. Shares are of held-out",
        "clips, all three seeds together, with 95 % intervals; differences are paired, with intervals over",
        "recordings (N-MNIST) or speakers (speech).",
        "",
    ]
    for task, found in facts.items():
        lines += [
            f"## {TITLES[task]}",
            "",
            f"{found['clips']} held-out clips of three seeds.",
            "",
            "| network | right | of each seed | against snnTorch | the fit gave back |",
            "|---|---|---|---|---|",
        ]
        for name, row in found["test"].items():
            seeds = ", ".join(f"{100 * share:.1f}" for share in row["seeds"])
            share = f"{100 * row['share']:.1f} % ({100 * row['lo']:.1f} .. {100 * row['hi']:.1f})"
            against = "" if name == "snnTorch" else _points(row["against_snntorch"])
            label = f"{name.replace(' ', ', ')} bits" if name[-1].isdigit() else name
            lines.append(
                f"| {label} | {share} | {seeds} | {against} | {_points(row.get('gained'))} |"
            )
        differ = sum(map(sum, found["lava_mismatches"].values()))
        lines += [
            "",
            f"Lava beside the simulator, {LAVA} clips of each fitted network: {differ} integers differ.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of N-MNIST")
    parser.add_argument("--snntorch", required=True, help="interpreter with snnTorch")
    parser.add_argument("--work", type=Path, default=Path("build/finetune"))
    given = parser.parse_args()
    facts = {}
    for task in NETS:
        cases = [Case(task, seed, given.work) for seed in range(SEEDS)]
        for case in cases:
            case.prepare(given.data)
            case.train(given.snntorch)
            for bits in BITS:
                print(f"{case.folder.name}: {bits} bits", flush=True)
                case.fit(bits)
        facts[task] = summary(cases)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "finetune.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "finetune.md").write_text(document(facts))


if __name__ == "__main__":
    main()
