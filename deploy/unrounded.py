"""What rounding took away: the float weights behind the integers of a lowered network."""

from __future__ import annotations

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.chain import read_chain
from knarr.deploy.errors import DeployError
from knarr.export import ExportError, fold, graph_hash
from knarr.hw_sim import ChipNetwork


def unrounded_weights(graph: nir.NIRGraph, network: ChipNetwork) -> dict[str, npt.NDArray[np.float64]]:
    """Weights of every layer before they were rounded and clipped, in units of its integers: scale * W of `quantise`.

    Training that starts from them (`knarr.train.chip.ChipStudent.from_network`) has lost nothing yet; at 3 bits the integers alone
    would tell most of a layer's weights from 0 no more.

    Args:
        graph: what `network` was lowered from.
        network: as `lower` gave it, or read back from its file.

    Returns:
        By layer name, of the shape of `weight_int`.

    Raises:
        DeployError: the network was lowered from another graph, or not by `lower`.
    """
    if network.graph_hash is None or network.graph_hash != graph_hash(graph):
        raise DeployError("network: was not lowered from this graph; lower this graph again")
    notes = network.lowering
    scales = {facts["name"]: facts.get("scale") for facts in notes.get("layers", ())}
    if network.dt_s is None or None in scales.values():
        raise DeployError("network: its file does not say with which scales it was lowered; lower it again")
    try:
        folded = fold(graph, keep_groups=True)
        chain = read_chain(folded, network.dt_s, approximate=bool(notes["approximations"]))
    except ExportError as error:
        raise DeployError(f"graph: not read, {error}") from error
    return {
        layer.name: np.asarray(scales[layer.name] * layer.weight, dtype=np.float64) for layer in chain.layers
    }
