"""Turn a certified graph into a chip network and its `.net` file, and run it in Lava.

rules         what the chip, and netx on the way to it, demand of a network
module_check  whether a module will go to the chip, before it is trained
lowering      a graph as a network of integers
netx          `.net` files: reading, checking, writing
lava          the Lava simulator behind a supervised process
verification  Norse, NIR, the simulator and Lava side by side
placement     the cores that a network takes
"""

from typing import TYPE_CHECKING

from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.deploy.errors import DeployError, LavaError, LavaMissingError
    from knarr.deploy.lava.compatibility import lava_folder
    from knarr.deploy.lava.install import install_lava
    from knarr.deploy.lava.run import lava_python, require_lava, run_on_lava
    from knarr.deploy.lowering.lower import lower
    from knarr.deploy.lowering.quantise import unrounded_weights
    from knarr.deploy.lowering.read import chip_shape
    from knarr.deploy.module_check import ModuleCheck, check_module
    from knarr.deploy.netx.files import (
        check,
        hardware_faults,
        read_deployable,
        read_net,
        write_net,
    )
    from knarr.deploy.placement.mapping import core_mapping
    from knarr.deploy.placement.place import place
    from knarr.deploy.placement.result import LayerPlacement, Placement, table
    from knarr.deploy.rules import Violation, fatal
    from knarr.deploy.verification.result import (
        Comparison,
        FirstDivergence,
        Raster,
        Side,
        Verification,
    )
    from knarr.deploy.verification.verify import verify, verify_network
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "Comparison",
    "DeployError",
    "FirstDivergence",
    "LavaError",
    "LavaMissingError",
    "LayerPlacement",
    "ModuleCheck",
    "Placement",
    "Raster",
    "Side",
    "Verification",
    "Violation",
    "check",
    "check_module",
    "chip_shape",
    "core_mapping",
    "fatal",
    "hardware_faults",
    "install_lava",
    "lava_folder",
    "lava_python",
    "lower",
    "place",
    "read_deployable",
    "read_net",
    "require_lava",
    "run_on_lava",
    "table",
    "unrounded_weights",
    "verify",
    "verify_network",
    "write_net",
]
