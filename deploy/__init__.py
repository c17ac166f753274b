"""From a certified graph to a chip network, its `.net` file, and the Lava simulator."""

from knarr.deploy.errors import DeployError, LavaError
from knarr.deploy.lava import lava_python, run_on_lava
from knarr.deploy.lower import lower
from knarr.deploy.netx_read import read_net
from knarr.deploy.netx_write import write_net
from knarr.deploy.place import place
from knarr.deploy.place_table import table
from knarr.deploy.placement import LayerPlacement, Placement
from knarr.deploy.rules import Violation, check
from knarr.deploy.unrounded import unrounded_weights
from knarr.deploy.verification import Comparison, FirstDivergence, Raster, Side, Verification
from knarr.deploy.verify import verify, verify_network

__all__ = [
    "Comparison",
    "DeployError",
    "FirstDivergence",
    "LavaError",
    "LayerPlacement",
    "Placement",
    "Raster",
    "Side",
    "Verification",
    "Violation",
    "check",
    "lava_python",
    "lower",
    "place",
    "read_net",
    "run_on_lava",
    "table",
    "unrounded_weights",
    "verify",
    "verify_network",
    "write_net",
]
