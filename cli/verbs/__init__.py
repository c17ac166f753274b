"""The verbs of the `knarr` command.

Importing this package registers them with the root in the order of the help. Heavy imports happen
inside a verb, so that help and bad input answer at once.
"""

from knarr.cli.verbs import run as run
from knarr.cli.verbs import train as train  # isort: split

from knarr.cli.verbs import studies as studies  # isort: split

from knarr.cli.verbs import graph as graph  # isort: split

from knarr.cli.verbs import chip as chip  # isort: split

from knarr.cli.verbs import energy as energy  # isort: split

from knarr.cli.verbs import data as data  # isort: split
