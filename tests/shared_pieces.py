"""Small pieces that several tests share: waiting with a bound, files of other exporters, and where real recordings lie."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

FORK = multiprocessing.get_context("fork")


class Forked(FORK.Process):  # type: ignore[name-defined]
    """A process forked from this one that never collects the garbage it was born with.

    Some libraries' objects join their threads when they are freed, and a fork has none of the threads:
    a child whose collector met a decoder left over from an earlier test waited for ever.
    """

    def start(self) -> None:
        gc.freeze()
        try:
            super().start()
        finally:
            gc.unfreeze()


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def write_onnx(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    names: Sequence[str] = ("x",),
    axes: dict[int, torch.export.Dim] | None = None,
) -> None:
    """Write a file as torch writes it, unchecked and with torch's names: other people's files.

    Args:
        module: in eval mode.
        inputs: what is traced; sizes of `axes` are from 2 on.
        path: file to write.
        names: of the inputs.
        axes: the axes that stay free, of every input; all others have the sizes of `inputs`.
    """
    with warnings.catch_warnings():
        # About torch's own insides, such as the weights that an LSTM keeps twice.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            path,
            input_names=list(names),
            dynamic_shapes=(axes or {},) * len(inputs),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def real_data(name: str) -> Path:
    """A folder of real recordings, from KNARR_SHARED_DATA or beside the project; skips where there is none."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("KNARR_SHARED_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} (set KNARR_SHARED_DATA)")
    return folder
