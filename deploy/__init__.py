"""From a certified graph to a chip network, its `.net` file, and the Lava simulator."""

from knarr.deploy.errors import DeployError, LavaError
from knarr.deploy.lava import run_on_lava
from knarr.deploy.lower import lower
from knarr.deploy.netx import read_net, write_net
from knarr.deploy.rules import Violation, check

__all__ = ["DeployError", "LavaError", "Violation", "check", "lower", "read_net", "run_on_lava", "write_net"]
