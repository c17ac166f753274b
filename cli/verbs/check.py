"""The verb that looks at a network before it is trained: check."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from knarr.cli.app import CheckpointOption, ChipOption, JsonOption, app, finish
from knarr.cli.files import make_module, read_sizes


@app.command(
    epilog="Example: knarr check mine:student --input-shape 2,34,34 --weight-bits 4, where mine.py "
    "has def student(): return a torch module"
)
def check(
    source: Annotated[
        str,
        Argument(
            help="Function that makes the network; it may ask for input_shape and dt_s by name. Its "
            "file is imported, so its code runs.",
            metavar="MODULE:FACTORY",
        ),
    ],
    input_shape: Annotated[
        str, Option(help="Sizes of one time step without batch, such as 2,34,34.")
    ],
    checkpoint: CheckpointOption = None,
    dt_s: Annotated[float, Option("--dt", help="Time step, seconds.")] = 0.001,
    # A synapse of the chip holds 8 bits at most.
    weight_bits: Annotated[int, Option(help="Signed bits of a weight.", min=2, max=8)] = 8,
    chip: ChipOption = "loihi2",
    allow_approximate: Annotated[
        bool,
        Option("--allow-approximate", help="Take layers that have only a near form on the chip."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Tell before training whether a network will export, lower and fit, and which layer will not.

    The network may be untrained. It is run on random inputs; every reason that is found is listed
    with what to use instead, and the exit code is 1 when there is one.
    """
    from knarr.cli.text.module_check import print_check
    from knarr.deploy import check_module

    # The shape first: making a module may take long.
    shape = read_sizes(input_shape)
    module = make_module(source, checkpoint, shape, dt_s)
    checked = check_module(
        module,
        shape,
        dt_s,
        weight_bits=weight_bits,
        chip=chip,
        allow_approximate=allow_approximate,
    )
    finish(print_check(source, shape, checked, json=json))
