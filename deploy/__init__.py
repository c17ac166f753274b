"""From a certified graph to a chip network, its `.net` file, and the Lava simulator."""

from knarr.deploy.errors import DeployError, LavaError
from knarr.deploy.lava import lava_python, run_on_lava
from knarr.deploy.lower import lower
from knarr.deploy.netx_read import read_net
from knarr.deploy.netx_write import write_net
from knarr.deploy.place import LayerPlacement, Placement, place, table
from knarr.deploy.rules import Violation, check
from knarr.deploy.verify import Comparison, Verification, verify

__all__ = [
    "Comparison",
    "DeployError",
    "LavaError",
    "LayerPlacement",
    "Placement",
    "Verification",
    "Violation",
    "check",
    "lava_python",
    "lower",
    "place",
    "read_net",
    "run_on_lava",
    "table",
    "verify",
    "write_net",
]
