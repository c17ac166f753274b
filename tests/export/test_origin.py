"""The step sizes that a graph's constants speak for, on graphs in the form of each tool's exporter."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from knarr.deploy import DeployError, lower
from knarr.export import (
    ExportError,
    doubt_step,
    lost_in_file,
    proposed_steps,
    read,
    step_advice,
    step_nir,
)

THIRD_PARTY = Path(__file__).parent / "thirdparty"
UNREADABLE = "snntorch_leaky_keeps"
FILES = sorted(path.name[: -len(".nir.xz")] for path in THIRD_PARTY.glob("*.nir.xz"))


@pytest.mark.parametrize("name", [name for name in FILES if name != UNREADABLE])
def test_files_of_other_tools_tell_the_step_they_were_made_at(name: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.nir"
    path.write_bytes(lzma.decompress((THIRD_PARTY / f"{name}.nir.xz").read_bytes()))
    with np.load(THIRD_PARTY / f"{name}.npz") as arrays:
        dt_s = float(arrays["dt_s"])
    found = proposed_steps(read(path))
    # The one file that was made to be read at a step of its own is found second.
    first = found[1] if name == "sinabs_lif_euler" else found[0]
    assert first.dt_s == pytest.approx(dt_s, rel=1e-6)
    tool = {"snntorch": "snnTorch", "sinabs": "Sinabs", "spikingjelly": "SpikingJelly"}
    # At 1e-3 s constants in seconds look alike, whoever wrote them.
    if name != "spikingjelly_lif_default":
        assert tool[name.partition("_")[0]] in first.tools


def graph(*neurons: Any) -> nir.NIRGraph:
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array([2])})}
    for number, neuron in enumerate(neurons):
        nodes |= {f"fc{number}": nir.Linear(np.eye(2, dtype=np.float32)), f"n{number}": neuron}
    nodes["output"] = nir.Output({"output": np.array([2])})
    return nir.NIRGraph(nodes, list(zip(list(nodes), list(nodes)[1:], strict=False)))


def each(value: float) -> Any:
    return np.full(2, value, dtype=np.float32)


def lif(tau: float, r: float) -> nir.LIF:
    return nir.LIF(each(tau), each(r), each(0), each(1), v_reset=each(0))


def cuba(tau_syn: float, tau_mem: float, r: float, w_in: float) -> nir.CubaLIF:
    constants = (each(tau_syn), each(tau_mem), each(r), each(0), each(1))
    return nir.CubaLIF(*constants, v_reset=each(0), w_in=each(w_in))


def rockpool(tau_mem: float, dt_s: float) -> nir.CubaLIF:
    return cuba(tau_mem / 2, tau_mem, tau_mem * np.exp(-dt_s / tau_mem) / dt_s, 1)


def test_rockpool_s_resistance_holds_its_step() -> None:
    (found,) = proposed_steps(graph(rockpool(0.02, 1e-3), rockpool(0.05, 1e-3)))
    assert (found.dt_s, found.tools) == (1e-3, ("Rockpool",))
    assert "several times a step" in found.lost[0]
    assert "w_in" in found.lost[1]


def test_norse_s_exporter_multiplies_tau_by_dt() -> None:
    found = {one.dt_s: one for one in proposed_steps(graph(lif(1e-5, 1), cuba(5e-6, 1e-5, 1, 1)))}
    assert list(found) == [1e-6]
    assert "to_nir" in found[1e-6].tools[0]
    assert "LIFCell" in found[1e-6].lost[0]


def test_a_lossy_tool_is_named_at_its_own_step_alone() -> None:
    theirs = graph(lif(1e-3, 10), lif(5e-4, 5))
    (lost,) = lost_in_file(theirs, 1e-4)
    assert "reset_mechanism='zero'" in lost
    assert lost_in_file(theirs, 1e-3) == ()
    ours = nir.NIRGraph(theirs.nodes, theirs.edges, metadata={"integration": "forward Euler"})
    assert lost_in_file(ours, 1e-4) == ()


def test_nothing_is_proposed_where_nothing_tells() -> None:
    assert proposed_steps(graph()) == ()
    assert proposed_steps(graph(lif(1e-3, 3), lif(2e-3, 17))) == ()
    assert "the tool that made it" in step_advice(graph())
    advice = step_advice(graph(lif(10, 1)))
    assert advice.startswith(
        "its constants fit --dt 1 (Sinabs: tau counts steps) or --dt 0.951626 ("
    )


def test_a_step_is_doubted_where_the_constants_hold_another() -> None:
    theirs = graph(lif(1e-3, 10), lif(5e-4, 5))
    assert doubt_step(theirs, 1e-4) == ""
    assert "steps of 0.001 s may be wrong: its constants fit --dt 0.0001" in doubt_step(
        theirs, 1e-3
    )
    assert "--dt 1 (Sinabs" in doubt_step(graph(lif(10, 1)), 1e-3)
    # Constants in seconds fit many steps, and nothing fits none.
    assert doubt_step(graph(lif(0.01, 1)), 7e-4) == ""
    assert doubt_step(graph(), 1e-3) == ""


def test_silence_at_another_step_is_explained_by_it() -> None:
    spikes = np.ones((1, 5, 2), dtype=np.uint8)
    with pytest.raises(
        DeployError, match=r"never fires .*reaches \S+ of 1, and its .* --dt 0\.0001"
    ):
        lower(graph(lif(1e-3, 10)), 1e-6, calibration=spikes)
    with pytest.raises(DeployError, match=r"reaches 0 of 1; give samples on which it fires"):
        lower(graph(lif(1e-3, 10)), 1e-4, calibration=0 * spikes)
    with pytest.raises(ExportError, match=r"use a dt of 0\.001 s at most"):
        step_nir(graph(lif(1e-3, 10)), spikes, 1)
