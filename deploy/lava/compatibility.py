"""Let lava-nc 0.10.0 and lava-dl 0.6.0, as they were published, be imported on current Pythons.

Both are archived. What stands in their way, the whole list:

- `lava.magma.compiler.var_model` takes instances of a dataclass as defaults of fields, which Python
  3.11 refuses where they have no hash.
- netx imports torch for two annotations, and lava-dl's slayer, which needs torch, for
  resonate-and-fire neurons alone.
- ports call `np.reshape` with `newshape`, which numpy 2.4 took away.
- netx makes an int of an input layer's weight and bias, which are arrays of one number; numpy 2.5
  refuses that.
- convolutions keep strides, padding and groups in 8 bits and divide sizes by them; numpy 2 refuses
  sizes above 127 there, where numpy 1 took a wider type.

The last three were found by running random networks: `make conformance` compares every integer.

The worker loads this file by its path and calls `prepare` before it imports Lava. At the top only
the standard library is imported, and nothing of knarr: the interpreter that has Lava need not have
knarr. Never call it in knarr's own process, whose torch it would hide.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


def lava_folder() -> Path:
    """Return where `knarr lava install` puts Lava and the worker finds it.

    KNARR_LAVA_PATH names it, or else it lies in the environment of the interpreter.
    """
    named = os.environ.get("KNARR_LAVA_PATH")
    if named:
        return Path(named).expanduser().absolute()
    return Path(sys.prefix) / "share" / "knarr" / "lava"


def find() -> None:
    """Put `lava_folder` on the path, and see that Lava is there or among the interpreter's packages.

    Raises:
        ModuleNotFoundError: it is not (name "lava").
    """
    _put_on_path(lava_folder())
    try:
        found = importlib.util.find_spec("lava.lib.dl.netx")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "lava":
            raise
        found = None
    if found is None:
        raise ModuleNotFoundError("No module named 'lava.lib.dl.netx'", name="lava")


def prepare() -> None:
    """Make Lava importable, from `lava_folder` or else from the interpreter's own packages.

    Raises:
        ModuleNotFoundError: Lava (name "lava") or a package that it needs is not there.
    """
    find()
    # Nothing is ever made of these: two annotations and `torch.is_tensor` in a method nobody calls.
    _put_stub("torch", tensor=_NoTensor, Tensor=_NoTensor)
    _put_stub("lava.lib.dl.slayer")
    _put_stub("lava.lib.dl.slayer.neuron")
    _put_stub("lava.lib.dl.slayer.neuron.rf", neuron_params=_refuse_resonate_and_fire)
    with _dataclasses_have_a_hash():
        importlib.import_module("lava.magma.compiler.var_model")
    _reshape_by_position()
    _make_numbers_of_inputs()
    _widen_convolutions()


def import_slayer(folder: Path) -> Any:
    """Return lava-dl's slayer, which needs torch and none of the cures above.

    Args:
        folder: holds it, as `install_lava` with `slayer` makes it.

    Raises:
        ModuleNotFoundError: it is not there, or torch is not.
    """
    _put_on_path(folder)
    # slayer imports it with the rest, and it needs OpenCV.
    _put_stub("lava.lib.dl.slayer.object_detection")
    return importlib.import_module("lava.lib.dl.slayer")


def _put_on_path(folder: Path) -> None:
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


# --- what netx imports and does not need


class _NoTensor:
    """A class of which nothing is an instance: libraries that meet it may ask."""


def _put_stub(name: str, **attributes: Any) -> None:
    # Without a file: Lava executes every script that lies beside one that it knows.
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(attributes)
    sys.modules[name] = module


def _refuse_resonate_and_fire(*_: object, **__: object) -> None:
    raise NotImplementedError(
        "resonate-and-fire neurons (RF) are not supported: lava-dl computes their parameters in "
        "torch; use CUBA neurons"
    )


# --- what Python and numpy no longer allow


@contextmanager
def _dataclasses_have_a_hash() -> Iterator[None]:
    """Let instances of a dataclass be defaults of fields, as up to Python 3.10."""
    original: Any = dataclasses.dataclass

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        if cls is None:
            return functools.partial(dataclass, **options)
        made = original(cls, **options)
        if made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    dataclasses.dataclass = dataclass
    try:
        yield
    finally:
        dataclasses.dataclass = original


def _reshape_by_position() -> None:
    import numpy as np
    from lava.magma.core.process.ports.ports import ReshapePort

    def reshape(shape: tuple[int, ...], array: Any) -> Any:
        return np.reshape(array, shape)

    def forward(port: Any) -> Any:
        return functools.partial(reshape, port.shape)

    def backward(port: Any) -> Any:
        return functools.partial(reshape, port.old_shape)

    ReshapePort.get_transform_func_fwd = forward
    ReshapePort.get_transform_func_bwd = backward


def _make_numbers_of_inputs() -> None:
    from lava.lib.dl.netx.utils import NetDict

    original: Any = NetDict.__getitem__

    def item(layer: Any, key: Any) -> Any:
        value = original(layer, key)
        if (
            key in ("weight", "bias")
            and value.size == 1
            and "type" in layer.keys()  # noqa: SIM118 - h5py's, and it has no other way to ask
            and original(layer, "type") == "input"
        ):
            return value.reshape(())
        return value

    NetDict.__getitem__ = item


def _widen_convolutions() -> None:
    import numpy as np
    from lava.proc.conv.models import AbstractPyConvModel

    for name in ("kernel_size", "stride", "padding", "dilation", "groups"):
        # The subclass that runs inherits this very object, out of which Lava makes the array.
        getattr(AbstractPyConvModel, name).d_type = np.int32
