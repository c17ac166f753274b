"""Lava as it was published runs on this Python and numpy: each cure is needed, works, and touches nothing else.

Every script runs in a process of its own, as the worker does, since Lava is never imported into this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from knarr.deploy import LavaError, lava_folder, lava_python
from knarr.deploy.lava.run import WORKER, supervise

LIMIT_S = 120.0
PRELUDE = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("lava_worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
compatibility = worker.load_compatibility()
folder = Path(sys.argv[2])
"""


def run(body: str, folder: Path) -> str:
    """The output of a script, which gets the worker's file and a folder."""
    script = folder / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(body), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(WORKER), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_dataclasses_as_defaults_of_fields(tmp_path: Path) -> None:
    """Refused by Python 3.11; the cure holds while Lava is imported, and no longer."""
    body = """
        import dataclasses
        sys.path.insert(0, str(compatibility.lava_folder()))
        before = dataclasses.dataclass
        try:
            import lava.magma.compiler.var_model
        except ValueError as error:
            print(error)
        compatibility.prepare()
        from lava.magma.compiler.var_model import LoihiVarModel
        print(dataclasses.dataclass is before)
        @dataclasses.dataclass
        class Own:
            number: int = 0
        print(Own.__hash__)
    """
    refused, restored, own = run(body, tmp_path).splitlines()
    assert "mutable default" in refused
    assert (restored, own) == ("True", "None")


def test_no_torch_and_no_slayer_are_imported(tmp_path: Path) -> None:
    body = """
        compatibility.prepare()
        compatibility.prepare()
        from lava.lib.dl import netx
        import numpy as np
        print("torch._C" in sys.modules, isinstance(np.zeros(1), sys.modules["torch"].Tensor))
        stubs = [name for name, module in sys.modules.items() if name.split(".")[0] in ("torch", "lava")
                 and ("torch" in name or "slayer" in name)]
        print(*sorted(stubs))
        print([name for name in stubs if hasattr(sys.modules[name], "__file__")])
    """
    torch, stubs, with_files = run(body, tmp_path).splitlines()
    assert torch == "False False"
    assert stubs.split() == [
        "lava.lib.dl.slayer", "lava.lib.dl.slayer.neuron", "lava.lib.dl.slayer.neuron.rf", "torch"
    ]  # fmt: skip
    assert with_files == "[]"  # Lava executes every script beside a file that it knows


def test_ports_reshape_without_the_old_name(tmp_path: Path) -> None:
    """numpy 2.4 took `newshape` away; here it is taken from older versions too."""
    body = """
        compatibility.prepare()
        import numpy as np
        from lava.magma.core.process.ports.ports import ReshapePort
        original = np.reshape
        np.reshape = lambda a, shape: original(a, shape)
        port = ReshapePort(new_shape=(2, 3), old_shape=(6,))
        print(port.get_transform_func_fwd()(np.arange(6)).tolist())
        print(port.get_transform_func_bwd()(np.array([[0, 1, 2], [3, 4, 5]])).tolist())
    """
    assert run(body, tmp_path).splitlines() == ["[[0, 1, 2], [3, 4, 5]]", "[0, 1, 2, 3, 4, 5]"]


def test_an_inputs_weight_and_bias_are_numbers(tmp_path: Path) -> None:
    """numpy 2.5 makes no int of an array of one value; weights of other layers stay arrays."""
    with h5py.File(tmp_path / "a.net", "w") as file:
        for number, kind in enumerate((b"input", b"dense")):
            file[f"layer/{number}/type"] = np.bytes_(kind)
            file[f"layer/{number}/weight"] = np.array([[3.0]])
            file[f"layer/{number}/bias"] = np.array([-4])
        file["layer/2/weight"] = np.array([5])
    body = """
        compatibility.prepare()
        from lava.lib.dl.netx.utils import NetDict
        layers = NetDict(str(folder / "a.net"))["layer"]
        for number in range(3):
            for key in ("weight", "bias"):
                if key in layers[number].keys():
                    print(number, key, layers[number][key].shape, layers[number][key].tolist())
    """
    assert run(body, tmp_path).splitlines() == [
        "0 weight () 3",
        "0 bias () -4",
        "1 weight (1, 1) [[3]]",
        "1 bias (1,) [-4]",
        "2 weight (1,) [5]",
    ]


def job_of(net: Path, folder: Path) -> list[str]:
    """The command of a worker that runs a file no rule of ours has looked at."""
    job = {
        "net": str(net), "message_bits": 0, "readout": "spikes", "record": ["output"], "driven": False, "isolated": False
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    np.save(folder / "inputs.npy", np.ones((1, 4, 2), dtype=np.int64))
    return [lava_python(), "-I", str(WORKER), str(folder)]


@pytest.mark.parametrize("kind", ["RF", "RF_PHASE"])
def test_resonate_and_fire_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    net = tmp_path / "a.net"
    with h5py.File(net, "w") as file:
        file["layer/0/type"], file["layer/0/shape"] = np.bytes_("input"), np.array([2])
        file["layer/1/type"], file["layer/1/shape"] = np.bytes_("dense"), np.array([1])
        file["layer/1/weight"] = np.array([[3, -2]])
        file["layer/1/neuron/type"] = np.bytes_(kind)
        for name in ("vThMant", "sinDecay", "cosDecay"):
            file[f"layer/1/neuron/{name}"] = 100
    with pytest.raises(LavaError, match=r"resonate-and-fire neurons \(RF\) are not supported"):
        supervise(job_of(net, tmp_path), tmp_path, LIMIT_S)


def test_where_lava_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KNARR_LAVA_PATH", raising=False)
    assert lava_folder() == Path(sys.prefix) / "share" / "knarr" / "lava"
    monkeypatch.setenv("KNARR_LAVA_PATH", "")
    assert lava_folder() == Path(sys.prefix) / "share" / "knarr" / "lava"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNARR_LAVA_PATH", "lava")
    assert lava_folder() == tmp_path / "lava"
