"""Verbs of datasets: data check, data generate, data events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from knarr.cli.app import DatasetArgument, JsonOption, app, finish, refuse_unrelated_options
from knarr.cli.errors import UsageError
from knarr.cli.files import check_out, keep_apart
from knarr.cli.output import make_table, show, show_progress
from knarr.extras import MissingExtraError

if TYPE_CHECKING:
    from knarr.train import Binning, DataReport

SHOWN = 20
"""Lines of each kind that are printed; all of them stand in the JSON document."""

GENERATED = {
    "eyes": ("single eyes with seven emotions, in the layout of SEE", 48, 24),
    "clips": ("talking faces, negative or positive, in the layout of CMU-MOSI", 80, 20),
}
"""Name -> description, and default height and width (pixels) and frames."""

data_app = typer.Typer(
    no_args_is_help=True,
    help="Check a folder of data, generate data, or make arrays of event recordings and of videos.",
    epilog="Example: knarr data check nmnist nmnist_small",
)
app.add_typer(data_app, name="data")


@data_app.command(epilog="Example: knarr data check stress_predict stress_predict --json")
def check(
    name: Annotated[
        str,
        Argument(help="Name of the dataset: deap, mahnob, mosi, nmnist, see or stress_predict."),
    ],
    path: DatasetArgument,
    json: JsonOption = False,
) -> None:
    """Say what was found, what is missing, and how many samples each split has.

    The exit code is 1 when something is left out.
    """
    from knarr.pipeline import json_text
    from knarr.train import CHECKS, check_dataset

    # Published names have hyphens and capitals.
    if name.lower().replace("-", "_") not in CHECKS:
        raise UsageError(f"data: '{name}' is not known; choose one of {', '.join(CHECKS)}")
    report = check_dataset(name, path)
    if json:
        print(json_text(report.to_json()))
    else:
        _print_dataset(report)
    finish(report.complete)


def _print_dataset(report: DataReport) -> None:
    table = make_table(report.name, "split", "samples")
    for split, samples in report.splits.items():
        table.add_row(split, f"{samples:,}")
    table.add_section()
    table.add_row("all", f"{report.samples:,}")
    show(f"folder: {report.root}", soft_wrap=True)
    show(table)
    if report.subjects:
        show(f"people (or videos): {report.subjects}")
    for what, lines in (("missing", report.missing), ("left out", report.skipped)):
        if lines:
            show(f"{what}: {len(lines)}")
        for line in lines[:SHOWN]:
            show(f"  {line}", soft_wrap=True)
        if len(lines) > SHOWN:
            show(f"  ... and {len(lines) - SHOWN} more; all of them with --json")


@data_app.command(epilog="Example: knarr data generate eyes eyes --seed 1")
def generate(
    name: Annotated[str, Argument(help="Kind of data to draw: eyes or clips.")],
    path: Annotated[Path, Argument(help="Folder to make; it must not exist.")],
    seed: Annotated[int, Option(help="Seed; the same seed draws the same data.", min=0)] = 0,
    size: Annotated[
        int | None, Option(help="Height and width of the pictures, pixels.", min=1)
    ] = None,
    frames: Annotated[int | None, Option(help="Number of frames of a clip.", min=1)] = None,
    json: JsonOption = False,
) -> None:
    """Draw a data set in the layout of a real one: eyes as SEE, clips as CMU-MOSI."""
    from knarr.cli.text.report import print_facts
    from knarr.pipeline import counter
    from knarr.train import generate as generate_eyes
    from knarr.train import generate_clips

    if name not in GENERATED:
        raise UsageError(
            f"data: '{name}' cannot be generated; choose one of {', '.join(GENERATED)}"
        )
    what, own_size, own_frames = GENERATED[name]
    check_out("PATH", path, folder=True)
    size = own_size if size is None else size
    frames = own_frames if frames is None else frames
    draw = generate_eyes if name == "eyes" else generate_clips
    try:
        draw(path, size=size, frames=frames, seed=seed, progress=counter(show_progress, "clips"))
    except ValueError as error:
        if type(error) is not ValueError:  # a DataError names its file already
            raise
        raise UsageError(f"data: {error}") from error
    facts = {"folder": str(path), "what": what, "size_px": size, "frames": frames, "seed": seed}
    print_facts(facts, json=json)


@data_app.command(
    epilog="Examples: knarr data events talk.mp4 --out events.npz --sensitivity 0.001; "
    "knarr data events recordings --out train.npz --dt 0.01 --steps 100 --pool 4"
)
def events(
    context: typer.Context,
    source: Annotated[
        Path,
        Argument(
            help="Video of any kind; or a recording of an event camera (AEDAT4, Prophesee's EVT 2 and 3 and DAT, "
            "Event Stream, N-MNIST), a folder of them, or one with a folder of them for each class. Which of them it "
            "is, is told by its content."
        ),
    ],
    out: Annotated[Path, Option(help=".npz file to write.")] = Path("events.npz"),
    sensitivity: Annotated[
        float, Option(help="Video: change of grey (0..1) at which a pixel fires.", min=0, max=1)
    ] = 0.001,
    size: Annotated[
        int, Option(help="Video: height and width of the frames, pixels.", min=1)
    ] = 128,
    frames: Annotated[
        int, Option(help="Video: number of frames taken, the first as grey.", min=2)
    ] = 68,
    dt: Annotated[
        float,
        Option(help="Recording: length of a time step, seconds, whole microseconds.", min=1e-6),
    ] = 0.001,
    steps: Annotated[
        int | None,
        Option(
            help="Recording: number of time steps of a sample; those of the longest when left out.",
            min=1,
        ),
    ] = None,
    windows: Annotated[
        bool,
        Option(
            "--windows",
            help="Recording: cut it into samples of --steps, in place of its beginning.",
        ),
    ] = False,
    crop: Annotated[
        str | None,
        Option(help="Recording: pixels to keep.", metavar="LEFT,TOP,WIDTH,HEIGHT"),
    ] = None,
    pool: Annotated[
        int, Option(help="Recording: side of the square of pixels that becomes one.", min=1)
    ] = 1,
    channels: Annotated[
        int,
        Option(help="Recording: 2 for falling and rising light, 1 for both as one.", min=1, max=2),
    ] = 2,
    counts: Annotated[
        bool,
        Option("--counts", help="Recording: count events, up to 255, in place of 0 and 1."),
    ] = False,
    sensor: Annotated[
        str | None,
        Option(
            help="Recording: pixels of the camera, where its header does not say.",
            metavar="WIDTHxHEIGHT",
        ),
    ] = None,
    stream: Annotated[
        int | None, Option(help="Recording: number of the camera in AEDAT4 of several.", min=0)
    ] = None,
    people: Annotated[
        str | None,
        Option(
            help="Recording: regular expression whose group, in a file's name, says who was recorded.",
            metavar="REGEX",
        ),
    ] = None,
    skip_damaged: Annotated[
        bool,
        Option(
            "--skip-damaged",
            help="Recording: leave out files that cannot be read, name them, and exit with 1.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make arrays of events: of recordings, or simulated on a video.

    Of recordings: events in time steps, 0 and 1 for each pixel and polarity, with labels by folder,
    as `system: custom` reads them. Of a video: a grey frame, then ON and OFF events of its changes.
    """
    from knarr.train import Binning, kind_of_recording

    check_out("--out", out)
    keep_apart(out, source)
    given = {"source", "out", "json"}
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; give a recording, a folder or a video")
    kind = kind_of_recording(source) if source.is_file() else None
    if source.is_file() and kind is None:
        _check_video(source)
        refuse_unrelated_options(
            context, f"{source}: a video", given | {"sensitivity", "size", "frames"}
        )
        _events_of_video(source, out, sensitivity, size, frames, json)
        return
    names = {"dt", "steps", "windows", "crop", "pool", "channels", "counts"}
    # A folder may hold recordings of every kind.
    names |= {"sensor"} if kind != "nmnist" else set()
    names |= {"stream"} if kind in (None, "aedat4") else set()
    what = "a recording" if kind is None else f"a recording ({kind})"
    refuse_unrelated_options(
        context, f"{source}: {what}", given | names | {"people", "skip_damaged"}
    )
    if windows and steps is None:
        raise UsageError("--windows: needs the number of steps of a window; give --steps")
    box = _numbers("crop", crop, ",", 4)
    pixels = _numbers("sensor", sensor, "x", 2)
    try:
        how = Binning(
            dt_us=_microseconds(dt),
            timesteps=steps,
            windows=windows,
            crop=None if box is None else (box[0], box[1], box[2], box[3]),
            pool=pool,
            channels=1 if channels == 1 else 2,
            counts=counts,
        )
        _events_of_recordings(
            source,
            out,
            how,
            sensor=None if pixels is None else (pixels[0], pixels[1]),
            stream=stream,
            people=people,
            skip_damaged=skip_damaged,
            json=json,
        )
    except ValueError as error:
        if type(error) is not ValueError:  # a DataError names its file already
            raise
        raise UsageError(f"data events: {error}") from error


def _check_video(source: Path) -> None:
    """Refuse a file that is no video either, before one of its options is found wrong."""
    what = "no recording of an event camera (AEDAT4, EVT 2 or 3, DAT, Event Stream, N-MNIST)"
    try:
        from knarr.train import is_video

        found = is_video(source)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{source}: {what}; for a video, {error}", name=error.name
        ) from None
    if not found:
        empty = "" if source.stat().st_size else ": it is empty"
        raise UsageError(f"{source}: {what} and no video{empty}; give one of them")


def _microseconds(dt_s: float) -> int:
    exact = dt_s * 1e6
    if round(exact) < 1 or abs(exact - round(exact)) > 1e-6 * exact:
        raise ValueError(
            f"--dt {dt_s:g} s: no whole number of microseconds; give one, such as 0.001"
        )
    return round(exact)


def _numbers(option: str, text: str | None, between: str, count: int) -> list[int] | None:
    """Read whole numbers with a character between them."""
    if text is None:
        return None
    parts = text.split(between)
    if len(parts) != count or not all(map(str.isdecimal, parts)):
        example = {"crop": "0,0,128,128", "sensor": "640x480"}[option]
        raise UsageError(f"--{option} '{text}': write {count} whole numbers, such as {example}")
    return [int(part) for part in parts]


def _events_of_recordings(
    source: Path, out: Path, steps: Binning, *, json: bool, **options: Any
) -> None:
    from knarr.cli.text.report import print_facts
    from knarr.pipeline import counter
    from knarr.train import convert_recordings

    made = convert_recordings(
        source,
        out,
        steps,
        progress=counter(show_progress, "recordings checked, then written"),
        **options,
    )
    facts = made.to_json()
    if not json:
        facts = {
            "file": str(out),
            "inputs": f"{' x '.join(map(str, made.shape))} (samples, steps, channels, rows, columns)",
            "dt": f"{made.dt_s:g} s",
            "recordings": made.formats,
            "classes": ", ".join(made.classes) or "none",
            "events": made.losses.events,
            "of these": made.losses.sentences() or "all are in the file",
        }
        if made.skipped:
            facts["left out"] = list(made.skipped)
    print_facts(facts, json=json)
    finish(not made.skipped)


def _events_of_video(
    video: Path, out: Path, sensitivity: float, size: int, frames: int, json: bool
) -> None:
    import io

    import numpy as np

    from knarr.cli.text.report import print_facts
    from knarr.files import write_atomic
    from knarr.train import PUBLISHED_DENSITY, Dvs, events_of_video

    found = events_of_video(video, Dvs(sensitivity=sensitivity, size=size, frames=frames))
    buffer = io.BytesIO()
    # An .npz has no None.
    fps = float("nan") if found.fps is None else found.fps
    np.savez_compressed(buffer, frames=found.frames, density=found.density, fps=fps)
    write_atomic(out, buffer.getvalue())
    facts = {
        "events": str(out),
        "shape": list(found.frames.shape),
        "fps": found.fps,
        # The share of pixels that fire, to be set beside the published one.
        "density": round(float(found.density), 6),
        "published_density_of_cmu_mosi": PUBLISHED_DENSITY,
    }
    print_facts(facts, json=json)
