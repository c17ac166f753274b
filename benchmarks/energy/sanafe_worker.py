"""Run a network in SANA-FE and print what it says as JSON: `python sanafe_worker.py network.npz`.

SANA-FE is under the GPL: this file runs in a process and an environment of its own, and knarr neither
imports nor needs it. The file holds the network as arrays (`sanafe_network` in validation.py).
"""

import json
import sys

import numpy as np
import sanafe


def main(path: str) -> None:
    """Build the network on SANA-FE's own Loihi, run it and print energies in J and the time in s."""
    network = np.load(path)
    arch = sanafe.load_loihi()
    cores = [core for tile in arch.tiles for core in tile.cores]
    net = sanafe.Network()
    groups = []
    for at in range(int(network["layers"])):
        registers = network[f"registers_{at}"]  # threshold, leak, input decay
        group = net.create_neuron_group(
            f"layer{at}",
            len(network[f"core_{at}"]),
            model_attributes={
                "threshold": float(registers[0]),
                "leak_decay": float(registers[1]),
                "input_decay": float(registers[2]),
                "reset_mode": "hard",
            },
            default_synapse_hw_name=str(network[f"synapse_{at}"]),
            default_dendrite_hw_name="loihi_dendrites",
            soma_hw_name="loihi_lif",
        )
        for neuron, core, bias in zip(
            group, network[f"core_{at}"], network[f"bias_{at}"], strict=True
        ):
            neuron.set_attributes(model_attributes={"bias": float(bias)})
            neuron.map_to_core(cores[int(core)])
        groups.append(group)
    for at in range(1, len(groups)):
        edges, weights = network[f"edges_{at}"], network[f"weights_{at}"]
        groups[at - 1].connect_neurons_sparse(
            groups[at], {"w": weights.tolist()}, [tuple(edge) for edge in edges.tolist()]
        )
    chip = sanafe.SpikingChip(arch)
    chip.load(net)
    found = chip.sim(int(network["steps"]), timing_model="simple")
    print(json.dumps(found))


main(sys.argv[1])
