"""Fine-tuning from a graph and a user's arrays to a proved `.net` file, and what each step gave.

The graph is lowered with scales from training clips, fitted in the chip's arithmetic, and chosen by
validation clips whose groups nobody was fitted on. What is written is read back and simulated: it
must be right as often as the fit says, and Lava must give the same integers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy import lower, read_net, require_lava, verify_network, write_net
from knarr.export import graph_hash, graph_input_shape, lost_in_file, step_nir
from knarr.hw_sim import ChipNetwork, InputCoding, simulate
from knarr.pipeline.errors import RunError
from knarr.pipeline.files import read_json, write_json
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.measures import paired_difference, wilson
from knarr.pipeline.progress import OnProgress, Progress, counter, ignore
from knarr.train.chip_fit import CHIP, ChipFit, mean_absolute_error
from knarr.train.clips import split_validation
from knarr.train.fine_tuning import ArrayClips, Teacher, clips_of, fit_arrays
from knarr.train.settings import ChipSettings

SETTINGS: Final = "fit.json"
"""File in the folder of a fit that says what is fitted there."""
CALIBRATION_CLIPS: Final = 20
FLOAT_BATCH: Final = 20
"""Clips that the float graph is stepped on at once: it keeps the states of all their steps."""
Values = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Arrays of a user.

    Args:
        inputs: (N, T, *features) integers as the chip will get them.
        labels: (N,) classes, or float targets.
        groups: (N,) person or recording of each clip; None where each stands by itself.
    """

    inputs: Values
    labels: Values
    groups: Values | None = None


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A graph, the data to fit it on, and how.

    Args:
        graph: The graph, as it was read.
        dt_s: Time step, seconds.
        data: Clips to fit and to validate on.
        chip: Settings of the fit.
        coding: Coding of the inputs.
        over_time: As `knarr.deploy.lower` takes it; None for "sum", of float targets "mean".
        votes, allow_approximate: As `knarr.deploy.lower` takes them.
        teacher: Logits of the clips, or a network that gives them; None for labels alone.
        test: Clips that neither fit nor choice sees; None for none.
        validation_share: Share of the groups that choose the epoch, 0 < share < 1.
        lava_samples: Validation clips that Lava runs; 0 leaves Lava out.
        seed: Seed of who validates and of the batches.
    """

    graph: nir.NIRGraph
    dt_s: float
    data: Arrays
    chip: ChipSettings
    coding: InputCoding
    over_time: Literal["sum", "mean", "last"] | None = None
    votes: int = 1
    allow_approximate: bool = False
    teacher: Teacher | None = None
    test: Arrays | None = None
    validation_share: float = 0.15
    lava_samples: int = 10
    seed: int = 0

    def clips(self, arrays: Arrays, teacher: Teacher | None = None) -> ArrayClips:
        """Return arrays as clips that fit the graph.

        Raises:
            SettingsError: They do not.
        """
        end = next(node for node in self.graph.nodes.values() if isinstance(node, nir.Output))
        outputs = int(np.prod(end.output_type["output"])) // self.votes
        return clips_of(self.coding, outputs, (arrays.inputs, arrays.labels), teacher=teacher)


def finetune(task: FineTuning, out: Path, *, on_progress: OnProgress = ignore) -> dict[str, Any]:
    """Lower and fit a graph, write and prove the network, and say what each step gave.

    A fit that was killed goes on after its last epoch, from the files in `<name>.fit` beside `out`.

    Args:
        task: What is fitted, and how.
        out: `.net` file to write.
        on_progress: Called with an event whenever something is done.

    Returns:
        Facts as JSON values; "holds" says whether Lava gives the simulator's integers.

    Raises:
        SettingsError: Arrays that do not fit the network.
        DeployError: A graph that cannot be lowered.
        LavaError: Lava is not there, which is said before the fit, or fails.
        RuntimeError: The file is not what was fitted, which is a fault in knarr.
    """

    def say(text: str) -> None:
        on_progress(Progress(text))

    if task.lava_samples:
        require_lava()
    data, folder = task.data, out.with_suffix(".fit")
    everything = task.clips(data, task.teacher)
    if task.over_time is None:
        # A target should not depend on how many steps a clip has.
        task = replace(task, over_time="sum" if everything.classes else "mean")
    groups = np.arange(len(data.labels)) if data.groups is None else data.groups
    learn, choose = split_validation(
        groups, task.validation_share, task.seed, setting="validation share"
    )
    clips = everything.part(learn)
    # Validation is by labels: it is to say how right the network is, not how like its teacher.
    held = replace(everything.part(choose), teacher_logits=None)
    tested = None if task.test is None else task.clips(task.test)
    lost = lost_in_file(task.graph, task.dt_s)
    for sentence in lost:
        say(sentence)
    say(f"Lowering to {task.chip.weight_bits}-bit weights")
    start = _lowered(task, clips, on_progress)
    _claim(folder, task, say)
    write_net(start, folder / "lowered.net")
    say(f"Fitting {task.chip.weight_bits}-bit integers in the chip's arithmetic")
    found = fit_arrays(
        start,
        task.graph,
        clips,
        held,
        task.chip,
        seed=task.seed,
        run_folder=folder,
        callbacks=(FitProgress(on_progress, CHIP),),
    )
    write_net(found.network, out)
    network = read_net(out)
    say("Measuring the graph, the lowered and the fitted network")
    kept_groups = None if data.groups is None else groups[choose]
    facts: dict[str, Any] = {
        "net": str(out),
        "weight_bits": task.chip.weight_bits,
        "dt_s": task.dt_s,
        "measure": "accuracy" if held.classes else "mean absolute error",
        "lost_in_file": list(lost),
        "clips": {"train": len(learn), "validation": len(choose)},
        "groups": {
            "train": len(np.unique(groups[learn])),
            "validation": len(np.unique(groups[choose])),
        },
        "epochs": task.chip.epochs,
        "epoch": None if found.epoch is None else found.epoch + 1,
        "accumulates": {
            "lowered": found.start.accumulates,
            "fitted": found.kept.accumulates,
        },
        "validation": _measured(task, (start, network), held, kept_groups, on_progress),
    }
    _check(found, network, held, out)
    if task.test is not None and tested is not None:
        facts["clips"]["test"] = len(tested.labels)
        facts["test"] = _measured(task, (start, network), tested, task.test.groups, on_progress)
    facts |= {"lava_samples": 0, "mismatches": None, "silent": [], "holds": True}
    if task.lava_samples:
        few = held.inputs[: task.lava_samples]
        say(f"Verifying on {len(few)} validation clips: simulator, Lava")
        proof = verify_network(out, few, progress=counter(on_progress, "Lava steps"))
        required = [row for row in proof.rows if row.required]
        facts |= {
            "lava_samples": len(few),
            "mismatches": sum(row.mismatches for row in required),
            # Why a comparison without a difference may prove nothing.
            "silent": sorted(
                {row.layer for row in required if row.what == "spikes" and not row.active[0]}
            ),
            "holds": proof.holds,
        }
    write_json(folder / "result.json", facts)
    return facts


def _lowered(task: FineTuning, train: ArrayClips, on_progress: OnProgress) -> ChipNetwork:
    count = len(train.labels)
    chosen = np.unique(np.linspace(0, count - 1, CALIBRATION_CLIPS).round().astype(int))
    return lower(
        task.graph,
        task.dt_s,
        weight_bits=task.chip.weight_bits,
        calibration=train.inputs[chosen],
        progress=counter(on_progress, "layers"),
        input_bits=task.coding.bits,
        input_units=task.coding.units,
        input_kind=task.coding.kind,
        input_signed=task.coding.signed,
        over_time=task.over_time or "sum",
        votes=task.votes,
        allow_approximate=task.allow_approximate,
    )


def _claim(folder: Path, task: FineTuning, say: Any) -> None:
    """Make the folder of a fit; an unfinished fit of something else in it is begun anew.

    Raises:
        RunError: A folder of somebody else.
    """
    digest = hashlib.sha256(task.data.inputs.tobytes())
    for array in (task.data.labels, task.data.groups):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if isinstance(task.teacher, np.ndarray):
        digest.update(np.ascontiguousarray(task.teacher).tobytes())
    mine = {
        "graph": graph_hash(task.graph),
        "data": digest.hexdigest(),
        "dt_s": task.dt_s,
        "chip": task.chip.model_dump(mode="json"),
        "coding": asdict(task.coding),
        "readout": [task.over_time, task.votes, task.allow_approximate],
        "validation_share": task.validation_share,
        "seed": task.seed,
    }
    # As a file gives it back: tuples are lists there.
    mine = json.loads(json.dumps(mine))
    kept = folder / SETTINGS
    if folder.exists() and not kept.is_file() and any(folder.iterdir()):
        raise RunError(
            f"{folder}: is no folder of a fit, and is where this one would be kept; move it"
        )
    if kept.is_file() and read_json(kept) != mine:
        say(f"{folder}: holds a fit of other data or settings, which is begun anew")
        for name in ("checkpoints/chip.ckpt", "metrics.csv", "result.json"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    write_json(kept, mine)


def _check(found: ChipFit, network: ChipNetwork, held: ArrayClips, out: Path) -> None:
    """Make sure that the file, on the simulator, is as good as the fit says, to the last digit.

    Raises:
        RuntimeError: It is not, and the file is removed.
    """
    seen = _seen(network, simulate(network, held.inputs).output, held)
    if held.classes:
        again = replace(found.kept, correct=int((seen == held.labels).sum()))
    else:
        again = replace(found.kept, mae=mean_absolute_error(seen, held.labels))
    if again != found.kept:
        out.unlink()
        raise RuntimeError(
            f"{out}: {again.in_words}, in training {found.kept.in_words}; "
            "this is a fault in knarr, report it"
        )


def _seen(network: ChipNetwork, output: Values, clips: ArrayClips) -> Values:
    """Return (N,) classes, or (N, outputs) values where labels are float targets."""
    return network.readout.decide(output) if clips.classes else network.values(output)


def _measured(
    task: FineTuning,
    networks: tuple[ChipNetwork, ChipNetwork],
    clips: ArrayClips,
    groups: Values | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Return how good graph, lowered and fitted network are, and what the fit gave back."""
    start, _ = networks
    seen = {"graph": _float_outputs(task, start, clips, on_progress)}
    for name, network in zip(("lowered", "fitted"), networks, strict=True):
        seen[name] = _seen(network, simulate(network, clips.inputs).output, clips)
    if clips.classes:
        scores = {name: (found == clips.labels).astype(np.float64) for name, found in seen.items()}
        rows = {name: _rate(hits) for name, hits in scores.items()}
    else:
        scores = {name: np.abs(found - clips.labels).mean(1) for name, found in seen.items()}
        rows = {name: {"mae": float(errors.mean())} for name, errors in scores.items()}
    differences = {
        name: asdict(paired_difference(scores[first], scores["fitted"], groups))
        for name, first in (("gained", "lowered"), ("against_graph", "graph"))
    }
    return {**rows, **differences}


def _rate(hits: Values) -> dict[str, float | int]:
    share = float(hits.mean())
    interval = wilson(share, len(hits))
    return {"correct": int(hits.sum()), "share": share, "lo": interval.lo, "hi": interval.hi}


def _float_outputs(
    task: FineTuning, network: ChipNetwork, clips: ArrayClips, on_progress: OnProgress
) -> Values:
    """Return what the graph decides or gives, stepped as its file says."""
    # The chip has signals over one axis as images of height 1, the graph has them as they are.
    events = clips.inputs
    values = events.reshape(*events.shape[:2], *graph_input_shape(task.graph))
    show = counter(on_progress, "clips through the graph")
    found = []
    for first in range(0, len(values), FLOAT_BATCH):
        part = values[first : first + FLOAT_BATCH] / network.input.units
        output = step_nir(task.graph, part, task.dt_s).output
        output = output.reshape(*output.shape[:2], -1)
        # The graph's own volts are what the chip's integers are scaled to.
        found.append(
            network.readout.decide(output) if clips.classes else network.readout.values(output, 1.0)
        )
        show(min(first + FLOAT_BATCH, len(values)), len(values))
    return np.concatenate(found)
