"""docs/thirdparty.md out of tests/export/thirdparty: every file read, stepped and lowered anew."""

from __future__ import annotations

import json
import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy import DeployError, lower
from knarr.deploy.lowering.places import node_places
from knarr.export import ExportError, read, step_nir
from knarr.hw_sim import ChipNetwork, simulate

Array = npt.NDArray[Any]


class Row(NamedTuple):
    """What became of one net; counts are per spiking layer, None where it did not come so far."""

    tool: str
    what: str
    why: str
    decisions: int = 0
    rate: float = 0.0
    file_differs: int | None = None
    how: str = "not read"
    note: str = ""
    chip_from_file: list[float] | None = None
    chip_differs: int | None = None
    unseen: str = "-"

    def __str__(self) -> str:
        chip = (
            "-"
            if self.chip_from_file is None
            else ", ".join(f"{share:.1%}" for share in self.chip_from_file)
        )
        cells = (
            self.tool,
            self.what,
            f"{self.decisions}" if self.decisions else "-",
            f"{self.rate:.2f}" if self.decisions else "-",
            self.share(self.file_differs)
            + (f"; {self.why}" if self.why and self.decisions else ""),
            self.how + (f": {self.note}" if self.note else ""),
            chip,
            self.share(self.chip_differs),
            self.unseen,
        )
        return f"| {' | '.join(cells)} |"

    def share(self, differ: int | None) -> str:
        if differ is None:
            return "-"
        return f"{differ} ({differ / self.decisions:.1%})" if differ else "**0**"


def written(folder: Path) -> str:
    """The document."""
    reports = {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
    }
    rows = [
        row_of(tool, name, net, folder)
        for tool, report in reports.items()
        for name, net in report["nets"].items()
        if "fails" not in net
    ]
    fails = [
        f"| {tool} | {net['what']} | {net['fails']} |"
        for tool, report in reports.items()
        for net in report["nets"].values()
        if "fails" in net
    ]
    versions = [
        f"| {tool} | {', '.join(f'{p} {v}' for p, v in report['versions'].items())} |"
        for tool, report in reports.items()
    ]
    return "\n".join(
        [*head(rows, len(fails)), *map(str, rows), *FAILS, *fails, *VERSIONS, *versions, ""]
    )


def row_of(tool: str, name: str, net: dict[str, str], folder: Path) -> Row:
    start = Row(tool, net["what"], net["unsaid"])
    inputs, dt_s, spikes = arrays(folder / f"{name}.npz")
    try:
        graph = graph_of(folder / f"{name}.nir.xz")
    except ExportError as error:
        return start._replace(note=str(error).partition("not a valid NIR graph: ")[2])
    row = start._replace(
        decisions=sum(s.size for s in spikes), rate=float(np.mean([s.mean() for s in spikes]))
    )
    trace = step_nir(graph, inputs, dt_s)
    row = row._replace(file_differs=differences(trace.spikes.values(), spikes))
    try:
        network, row = lower(graph, dt_s, calibration=inputs), row._replace(how="as it is")
    except DeployError as refusal:
        row = row._replace(how="refused", note=str(refusal))
        try:
            network = lower(graph, dt_s, calibration=inputs, allow_approximate=True)
        except DeployError:
            return row
        row = row._replace(how="near", note=network.lowering["approximations"][0])
    chip = node_spikes(network, inputs)
    stated = [layer["mismatches"] / layer["decisions"] for layer in network.lowering["layers"]]
    row = row._replace(chip_from_file=stated, chip_differs=differences(chip.values(), spikes))
    half = len(inputs) // 2
    network = lower(graph, dt_s, calibration=inputs[:half], allow_approximate=row.how == "near")
    chip, theirs = node_spikes(network, inputs[half:]), tuple(s[half:] for s in spikes)
    share = differences(chip.values(), theirs) / sum(s.size for s in theirs)
    return row._replace(unseen=f"{share:.1%}")


def node_spikes(network: ChipNetwork, inputs: Array) -> dict[str, Array]:
    """Spikes of the graph's nodes, of which a chip layer may hold several."""
    chip = simulate(network, inputs, record=("spikes",)).spikes
    places = node_places(network).items()
    return {name: seat.take(chip[layer]) for name, (layer, seat) in places}


def differences(ours: Any, theirs: tuple[Array, ...]) -> int:
    return sum(int((a.reshape(b.shape) != b).sum()) for a, b in zip(ours, theirs, strict=True))


def graph_of(path: Path) -> nir.NIRGraph:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        plain.write_bytes(lzma.decompress(path.read_bytes()))
        return read(plain)


def arrays(path: Path) -> tuple[Array, float, tuple[Array, ...]]:
    """Inputs, dt_s, and spikes of every layer: what nets.py packed."""
    with np.load(path) as file:

        def unpacked(key: str) -> Array:
            digits = np.unpackbits(file[key], axis=-1, count=int(file["timesteps"]))
            counts = [bits << np.uint8(digit) for digit, bits in enumerate(digits)]
            return np.moveaxis(np.sum(counts, axis=0, dtype=np.uint8), -1, 1)

        layers = sum(key.startswith("spikes_") for key in file.files)
        return (
            unpacked("inputs"),
            float(file["dt_s"]),
            tuple(unpacked(f"spikes_{n}") for n in range(layers)),
        )


def head(rows: list[Row], fails: int) -> Iterator[str]:
    same = [row for row in rows if row.file_differs == 0]
    unsaid = [row for row in rows if row.file_differs]
    ways = {
        how: sum(row.how == how for row in rows)
        for how in ("as it is", "near", "refused", "not read")
    }
    both = [row for row in same if row.chip_differs is not None]
    decisions, differ = sum(r.decisions for r in both), sum(r.chip_differs or 0 for r in both)
    yield f"""# Networks of other tools on the chip

snnTorch, Sinabs and SpikingJelly made {len(rows) + fails} networks, and ran and exported {len(rows)} of them; knarr
read their NIR files, ran them step by step and lowered them.

- **{len(same)} files mean the same to knarr as to their tool**: of {sum(r.decisions for r in same)} decisions, over all
  spiking layers, 0 differ. {len(unsaid)} files do not contain what their tool does (its reset, its decay). For each of them, the same
  file run by the tool's own rule gives 0 differences, which proves the reason.
- **{ways["as it is"]} are lowered unchanged**, {ways["near"]} with `allow_approximate`, {ways["refused"]} refused by `lower` and {ways["not read"]} by `read`.
- **The chip differs from the tool where the manifest says so**: where the file says all that its tool does, {differ} of {decisions}
  decisions ({differ / decisions:.1%}), and in every layer the number of mismatches is exactly the one that `lower` measured and recorded.
- {fails} networks are refused by their own tool's exporter.

`tests/export/test_third_party.py` checks all of this from the files in `tests/export/thirdparty`, without any of the tools. This command
makes the files and this page again, with each tool in a virtual environment of its own; it takes about a minute once the environments
exist (`--doc` writes only this page):

```
.venv/bin/python benchmarks/thirdparty/main.py
```

## How to read the table

- Inputs are random; every feature has its own rate between 0 and 0.5. Weights are random and scaled layer by layer until the tool's own
  neurons fire at 0.25 (0.15 where the reset is late). There are 4 samples, of 50 steps for chains of Linear and of 40 steps for images of
  2 x 12 x 12. **spikes** is the number of spikes per neuron and step, as a mean over the layers.
- **file from tool** compares `step_nir`, at the time step of the exporter, with the tool's own neurons in all layers; float32 and float64
  agree.
- **lowered** says "as it is" where only weights and registers were rounded; "near" and "refused" give what was approximated or refused in
  the words of `lower`. The network is calibrated and run on the same samples, so that the manifest can be checked.
- **chip from file** gives the mismatches per layer that the manifest states. They grow from layer to layer, because every layer receives
  the chip's spikes, and in a loop from step to step.
- **chip from tool** compares all layers. Where the file does not say all that its tool does, the difference comes from the tool, not from
  the chip.
- **unseen** is the same share when two samples calibrate and the other two are run.

| tool | network | decisions | spikes | file from tool | lowered | chip from file | chip from tool | unseen |
|---|---|---|---|---|---|---|---|---|"""


FAILS = (
    "",
    "## What its own tool does not export",
    "",
    "| tool | network | error of its exporter |",
    "|---|---|---|",
)
VERSIONS = ("", "## Versions", "", "| tool | versions |", "|---|---|")
