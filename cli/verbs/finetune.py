"""The verb that fits a graph of any tool on the chip's integers: finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from knarr.cli.app import InputShapeOption, JsonOption, OverTime, TimestepsOption, app, finish
from knarr.cli.errors import UsageError
from knarr.cli.files import check_out, keep_apart, read_array, read_graph, time_step
from knarr.cli.output import show_progress

if TYPE_CHECKING:
    from knarr.pipeline import Arrays


@app.command(
    epilog="Example: knarr finetune theirs.nir --dt 1e-4 --data x.npy --labels y.npy --weight-bits 4 --out student.net"
)
def finetune(
    graph: Annotated[Path, Argument(help="NIR graph of any tool.", metavar="FILE.nir")],
    data: Annotated[
        Path,
        Option(
            "--data",
            "--inputs",
            help=".npy file of clips to fit and to choose the epoch by: (clips, timesteps, *features) "
            "spikes or integers, or data as --input-kind says.",
        ),
    ],
    labels: Annotated[
        Path, Option(help=".npy file with the class of each clip, or its float targets.")
    ],
    out: Annotated[Path, Option(help="netx file to write.")] = Path("student.net"),
    dt_s: Annotated[
        float | None, Option("--dt", help="Time step, seconds; the file's when left out.")
    ] = None,
    input_shape: InputShapeOption = None,
    groups: Annotated[
        Path | None,
        Option(
            help=".npy file with the person or recording of each clip, none of which is both fitted "
            "and validated on."
        ),
    ] = None,
    teacher_logits: Annotated[
        Path | None,
        Option(help=".npy file of (clips, classes): what a teacher says of each clip of --data."),
    ] = None,
    test: Annotated[
        Path | None, Option(help=".npy file of held-out clips, which are only measured on.")
    ] = None,
    test_labels: Annotated[Path | None, Option(help=".npy file with their classes.")] = None,
    test_groups: Annotated[
        Path | None, Option(help=".npy file with the person or recording of each of them.")
    ] = None,
    weight_bits: Annotated[int, Option(help="Signed bits of a weight.", min=2, max=8)] = 8,
    epochs: Annotated[int, Option(help="Epochs to fit.", min=1)] = 10,
    batch_size: Annotated[int, Option(help="Clips in a batch.", min=1)] = 50,
    learning_rate: Annotated[
        float, Option(help="Highest rate of the one-cycle schedule.", min=1e-9, max=1000)
    ] = 0.003,
    validation_share: Annotated[
        float, Option(help="Share of the groups that choose the epoch.", min=0.01, max=0.99)
    ] = 0.15,
    input_bits: Annotated[
        int, Option(help="Bits of an input: 1 for spikes, more for graded.", min=1, max=16)
    ] = 1,
    input_units: Annotated[
        float, Option(help="Integers per unit of float input, such as 255.")
    ] = 1.0,
    input_kind: Annotated[
        Literal["events", "graded", "rate", "direct"],
        Option(help="Coding of data as the input's integers."),
    ] = "events",
    over_time: Annotated[
        OverTime | None,
        Option(
            help="Way in which the outputs of all steps become a score; sum, for float targets mean."
        ),
    ] = None,
    votes: Annotated[int, Option(help="Number of neighbouring outputs per class.", min=1)] = 1,
    timesteps: TimestepsOption = None,
    allow_approximate: Annotated[
        bool,
        Option(
            "--allow-approximate", help="Map what has no exact form to a near one before the fit."
        ),
    ] = False,
    lava_samples: Annotated[
        int, Option(help="Validation clips that Lava runs; 0 leaves it out.", min=0)
    ] = 10,
    seed: Annotated[int, Option(help="Seed of who validates and of the batches.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Fit a graph on the chip's integers with your own data, and prove the network.

    The graph is lowered, then fitted in the chip's arithmetic; validation clips choose the epoch. The table says what lowering alone gave and what the fit gave back.
    A killed fit goes on after its last epoch.
    """
    # All that can be wrong is looked at before anything is loaded or fitted.
    named = (graph, data, labels, groups, teacher_logits, test, test_labels, test_groups)
    keep_apart(out, *named)
    if out.suffix != ".net":
        raise UsageError(f"--out: '{out}' does not end in .net; name a .net file")
    check_out("--out", out)
    if (test is None) != (test_labels is None) or (test is None and test_groups is not None):
        raise UsageError("--test, --test-labels: give both or none, and --test-groups with them")
    from knarr.export import graph_input_shape

    theirs = read_graph(graph, input_shape)
    step_s = time_step(theirs.metadata.get("dt_s"), dt_s, graph, theirs)
    from knarr import pipeline
    from knarr.deploy import chip_shape
    from knarr.hw_sim import InputCoding, encode, takes_sign
    from knarr.train import ChipSettings

    values = read_array(data)
    coding = InputCoding(
        chip_shape(graph_input_shape(theirs)),
        input_bits,
        None,
        input_units,
        input_kind,
        takes_sign(None, input_kind, input_bits, values),
    )

    def arrays(inputs: Path, classes: Path, people: Path | None) -> Arrays:
        encoded = encode(coding, read_array(inputs), timesteps=timesteps, seed=seed)
        owners = None if people is None else _groups(people, len(encoded))
        return pipeline.Arrays(encoded, read_array(classes), owners)

    task = pipeline.FineTuning(
        theirs,
        step_s,
        arrays(data, labels, groups),
        ChipSettings(
            weight_bits=weight_bits,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        ),
        coding,
        over_time=over_time,
        votes=votes,
        allow_approximate=allow_approximate,
        teacher=None if teacher_logits is None else read_array(teacher_logits),
        test=None
        if test is None or test_labels is None
        else arrays(test, test_labels, test_groups),
        validation_share=validation_share,
        lava_samples=lava_samples,
        seed=seed,
    )
    facts = pipeline.finetune(task, out, on_progress=show_progress)
    from knarr.cli.text.fine_tuning import print_fine_tuning

    finish(print_fine_tuning(facts, json=json))


def _groups(path: Path, clips: int) -> Any:
    """Return the group of each clip.

    Raises:
        UsageError: They are no text or whole numbers, or not one for each.
    """
    groups = read_array(path, text=True)
    if groups.shape != (clips,) or groups.dtype.kind not in "iuU":
        raise UsageError(
            f"{path}: groups are a name or whole number for each of {clips} clips, these are {groups.dtype} {groups.shape}"
        )
    return groups
