"""An ONNX file as a load: the same file that is counted, in onnxruntime, inputs and outputs bound on the device.

onnxruntime waits for the device at the end of every run (its default), so a run is a whole inference of one batch, the
call from Python included. Nothing is copied from or to the host within a run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnxruntime

from knarr.hw_sim.energy.measurement import MeasureError
from knarr.hw_sim.energy.onnx_source import Array, OnnxSource, split

Provider = Literal["CUDAExecutionProvider", "CPUExecutionProvider"]


class OnnxWorkload:
    """One batch size of a file in one session.

    Args:
        source: of `read_source`; inputs: that `check_inputs` let through.
        batch: samples of one run.
        provider: of onnxruntime. On CUDA no node may run on the CPU: the session is refused.
        ordinal: CUDA's number of the device.
        tf32: let CUDA compute fp32 products in TF32.
        threads: of the CPU provider, 0 takes every core.

    Raises:
        MeasureError: the provider is not there, did not start, or cannot run every node.
    """

    def __init__(
        self,
        source: OnnxSource,
        inputs: Array,
        batch: int,
        provider: Provider,
        *,
        ordinal: int = 0,
        tf32: bool = True,
        threads: int = 0,
    ) -> None:
        self.batch = batch
        device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
        self._session = _session(source, batch, provider, ordinal, tf32, threads)
        self._bindings: list[Any] = []
        self._inputs: list[
            Any
        ] = []  # on the CPU a binding points into numpy's memory and does not keep it alive
        try:
            for chunk in split(inputs, batch):
                binding = self._session.io_binding()
                value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(chunk), device, ordinal)
                self._inputs.append(value)
                binding.bind_ortvalue_input(source.input_name, value)
                for output in self._session.get_outputs():
                    binding.bind_output(output.name, device, ordinal)
                self._bindings.append(binding)
        except Exception as error:  # onnxruntime's errors share no other base
            raise MeasureError(
                f"{provider}: inputs do not get to the device ({_first_line(error)}); is its memory full?"
            ) from error
        self._next = 0

    def run(self) -> None:
        """The next batch."""
        binding = self._bindings[self._next]
        self._next = (self._next + 1) % len(self._bindings)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors share no other base
            raise MeasureError(
                f"onnxruntime: run of batch {self.batch} failed ({_first_line(error)})"
            ) from error

    def synchronise(self) -> None:
        """Wait for the device."""
        for binding in self._bindings:
            binding.synchronize_inputs()
            binding.synchronize_outputs()


def require_provider(provider: Provider) -> None:
    """Refuse where this onnxruntime was not built with a provider.

    Raises:
        MeasureError: it was not; says which package has it.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MeasureError(
            f"onnxruntime: no {provider}, only {', '.join(available)}; on a machine with an NVIDIA GPU replace the "
            "package onnxruntime by onnxruntime-gpu (never install both)"
        )


def _session(
    source: OnnxSource, batch: int, provider: Provider, ordinal: int, tf32: bool, threads: int
) -> Any:
    require_provider(provider)
    options = onnxruntime.SessionOptions()
    if source.batch_name is not None:  # static shapes fold away what would compute them on the CPU
        options.add_free_dimension_override_by_name(source.batch_name, batch)
    settings: dict[str, str] = {}
    if provider == "CUDAExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {"device_id": str(ordinal), "use_tf32": str(int(tf32))}
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
                onnxruntime.preload_dlls()
    else:
        options.intra_op_num_threads = threads
    try:
        # Without enable_fallback=0 onnxruntime prints an error and goes on with the CPU.
        session = onnxruntime.InferenceSession(
            source.path, options, providers=[(provider, settings)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors share no other base
        raise MeasureError(
            f"{provider}: cannot run {source.path} ({_first_line(error)}); on a GPU, CUDA and cuDNN must be those "
            "that onnxruntime-gpu needs, and every node must have a CUDA kernel"
        ) from error
    _refuse_fallback(provider, session.get_providers())
    return session


def _refuse_fallback(provider: Provider, got: Sequence[str]) -> None:
    if not got or got[0] != provider:
        raise MeasureError(
            f"onnxruntime: runs on {', '.join(got) or 'nothing'} instead of {provider}; its libraries did not load "
            "(the log above says which), so nothing was measured"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
