"""The verbs of the `knarr` command, a file for each family.

Importing this package registers them with the root in the order of the help. Heavy imports happen
inside a verb, so that help and bad input answer at once.
"""

from importlib import import_module

FAMILIES = (
    "run",
    "check",
    "train",
    "studies",
    "graph",
    "finetune",
    "chip",
    "energy",
    "data",
    "lava",
)
"""The files of verbs in the order in which the help lists them."""

for _family in FAMILIES:
    import_module(f"knarr.cli.verbs.{_family}")
