"""Tell which stored weights of a chip layer are synapses, as lowering notes it.

A `.net` file has matrices and whole kernels alone, so a layer may store zeros that no synapse of the
graph stands behind: cells that a pool drops, gaps between the taps of a pool whose stride is larger
than its kernel, windows written out as a matrix, and the blocks between branches that share a layer.
They take part in no count. A weight of a synapse that was rounded to 0 does.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping

import numpy as np

from knarr.hw_sim.arrays import Mask
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import ChipNetwork, Layer

SYNAPSES = "synapses"
"""Key in `ChipNetwork.lowering` of layer name -> packed mask, of layers that store more than synapses."""


def pack(mask: Mask) -> str:
    """Return a mask of weights as text that a manifest holds; regular ones become short."""
    packed = zlib.compress(np.packbits(mask).tobytes(), 9)
    return base64.b64encode(packed).decode("ascii")


def synapse_mask(network: ChipNetwork, layer: Layer) -> Mask | None:
    """Return which weights of a layer are synapses, shaped as `weight_int`; None for all of them.

    A weight that is not 0 always is one, so that a fit may fill what lowering left empty.

    Raises:
        ChipError: a manifest that holds something else in its place.
    """
    noted = network.lowering.get(SYNAPSES, {})
    if not isinstance(noted, Mapping) or layer.name not in noted:
        return None
    weight = layer.weight_int
    length = -(-weight.size // 8)
    try:
        packed = base64.b64decode(noted[layer.name], validate=True)
        # One byte more than there may be: what is longer is found out and never unpacked.
        content = zlib.decompressobj().decompress(packed, length + 1)
    except (TypeError, ValueError, binascii.Error, zlib.error):
        content = b""
    if len(content) != length:
        raise ChipError(
            f"layer '{layer.name}': its manifest does not say which of its {weight.size:,} weights are "
            "synapses; lower the graph again"
        )
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=weight.size)
    mask: Mask = bits.view(np.bool_).reshape(weight.shape) | (weight != 0)
    return None if mask.all() else mask
