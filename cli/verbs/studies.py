"""Verbs of many runs, which other workers may share: table, sweep, pareto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from typer import Argument, Option

from knarr.cli.app import DataOption, JsonOption, RecipeArgument, SetOption, app, finish
from knarr.cli.errors import UsageError
from knarr.cli.files import check_out
from knarr.cli.output import show_progress

StorageOption = Annotated[
    str | None,
    Option(
        "--storage",
        help="Database URL by which several machines share the study, such as postgresql://...; "
        "default a SQLite file beside its runs, for the processes of one machine.",
    ),
]
Number = TypeVar("Number", int, float)


def numbers(
    option: str, text: str, kind: type[Number], most: float, *, none: bool = False
) -> list[Number]:
    """Read the numbers that an option lists.

    Args:
        option: Name of the option.
        text: Its value.
        kind: Kind of the numbers.
        most: Highest allowed number.
        none: Whether there may be no number.

    Raises:
        UsageError: Something else than different numbers above 0.
    """
    try:
        # A comma at the end is no number.
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(
            f"{option}: '{text[:60]}'; give numbers with commas between, such as 8,4"
        ) from error
    if (
        len(set(found)) < len(found)
        or not all(0 < number <= most for number in found)
        or not (found or none)
    ):
        raise UsageError(
            f"{option}: '{text[:60]}'; give different numbers above 0, at most {most:g}"
        )
    return found


@app.command(
    epilog="Example: knarr table seen_rows_eyes --fit; knarr table mine.yaml --data see --out runs/mine"
)
def table(
    grid: Annotated[str, Argument(help="Name of a shipped grid, or a YAML file.", metavar="GRID")],
    data: DataOption = None,
    out: Annotated[Path, Option(help="Folder of the grids' runs.")] = Path("runs/grids"),
    fit: Annotated[bool, Option("--fit", help="Make the runs that are missing first.")] = False,
    storage: StorageOption = None,
    json: JsonOption = False,
) -> None:
    """Print a table of runs beside published numbers.

    Each published number has its source, and a mark where the data differ.
    """
    check_out("--out", out, folder=True)
    from knarr import pipeline

    pipeline.load_grid(grid)  # a wrong name is answered before all that fits is loaded
    from knarr.cli.text.studies import print_table, table_json

    result = pipeline.table(
        grid, data=data, out=out, fit=fit, storage=storage, on_progress=show_progress
    )
    failed = result.not_deployed
    if json:
        facts = table_json(result.summary, result.costs)
        print(pipeline.json_text({**facts, "not_deployed": failed}))
    else:
        print_table(result.summary, result.costs)
    # The table is printed all the same: what was measured stands in it.
    if failed and fit:
        raise UsageError(
            f"{len(failed)} run(s) measured without a chip: {'; '.join(failed)}; remove a run's evaluation.json to try it again"
        )


@app.command(epilog="Example: knarr sweep sweep.yaml --data nmnist_small --out runs/sweep")
def sweep(
    file: Annotated[
        Path, Argument(help="YAML file: recipe, what to search, trials.", metavar="SWEEP")
    ],
    data: DataOption = None,
    out: Annotated[
        Path | None, Option(help="Folder of the trials; runs/<name> when left out.")
    ] = None,
    storage: StorageOption = None,
    json: JsonOption = False,
) -> None:
    """Search settings by their accuracy on the validation split.

    Several machines may share one study, and a killed trial is resumed.
    """
    check_out("--out", out, folder=True)
    if not file.is_file():
        raise UsageError(f"sweep '{file}': no such YAML file")
    from knarr import pipeline

    result = pipeline.sweep(file, data=data, out=out, storage=storage, on_progress=show_progress)
    from knarr.cli.text.studies import print_sweep, sweep_facts

    if json:
        print(pipeline.json_text(sweep_facts(result)))
    else:
        print_sweep(result)
    finish(result.best is not None)


@app.command(epilog="Example: knarr pareto nmnist --data nmnist_small --bits 8,4 --shares 1,0.5")
def pareto(
    recipe: RecipeArgument,
    data: DataOption = None,
    out: Annotated[
        Path | None, Option(help="Folder of the trials; runs/pareto-<recipe> when left out.")
    ] = None,
    bits: Annotated[str, Option(help="Weight bits to try, with commas between.")] = "8,6,4,3",
    steps: Annotated[
        str,
        Option(help="Time steps to try, with commas between; all and half of them when left out."),
    ] = "",
    shares: Annotated[
        str,
        Option(
            help="Shares of the lowered network's ACC to aim at, with commas between; 1 sets no goal."
        ),
    ] = "1,0.5,0.25",
    by: Annotated[
        str,
        Option(
            help="Energy that the front is found by: 'Loihi 2, total' or dynamic, and the same of Loihi 1."
        ),
    ] = "Loihi 2, total",
    storage: StorageOption = None,
    changes: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Fit one student in the chip's arithmetic at each of several costs, with table and picture.

    A killed search resumes when the same command is given again.
    """
    check_out("--out", out, folder=True)
    from knarr import pipeline
    from knarr.train import load_recipe

    # A wrong number or name is answered before all that fits is loaded.
    wanted_bits = numbers("--bits", bits, int, 8)
    wanted_steps = numbers("--steps", steps, int, 10**6, none=True)
    wanted_shares = numbers("--shares", shares, float, 1)
    load_recipe(recipe)
    from knarr.cli.text.studies import print_pareto

    result = pipeline.pareto(
        recipe,
        bits=wanted_bits,
        steps=wanted_steps,
        shares=wanted_shares,
        by=by,
        data=data,
        out=out,
        changes=changes or (),
        storage=storage,
        on_progress=show_progress,
    )
    if json:
        print(pipeline.json_text(result.facts))
    else:
        print_pareto(result)
    finish(bool(result.points))
