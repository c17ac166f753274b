"""Run networks that a user brings: students over time, and teachers as a module, an ONNX file or the
logits that it gave.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from norse.torch import SequentialState
from torch import Tensor, nn

from knarr.export import TimeForm, run_clips
from knarr.train.networks.heads import over_time
from knarr.train.settings import RecipeError

ONE_BY_ONE: Final = 1
"""Batch of a file whose first axis is fixed at one clip."""


def run_steps(student: nn.Module, clips: Tensor, form: TimeForm) -> Tensor:
    """Run a student on clips, in whatever form it takes time.

    Args:
        student: As `knarr.export.to_nir` takes it.
        clips: (B, T, *features).
        form: What `knarr.export.time_form` says of it.

    Returns:
        (B, T, *outputs); or what it makes of all steps itself, where `form.left_out` names anything.
    """
    if type(student) is SequentialState and not student.return_hidden and not form.left_out:
        # Layer by layer, with stateless layers batched over time, which is much faster.
        return over_time(student, clips).outputs
    return run_clips(student, clips, form)


class GivenLogits(nn.Module):
    """A teacher that was asked before: its logits come with the clips."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return the (B, outputs) logits themselves."""
        return logits


class NoTeacher(nn.Module):
    """The place of a teacher in a run that has none; it is never asked."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Refuse to answer.

        Raises:
            RecipeError: Always.
        """
        raise RecipeError("teacher: the recipe has none; give one, or set student.loss.alpha to 0")


def whole_onnx(path: Path) -> bytes:
    """Return an ONNX file with the weights in it that it keeps in files beside it, as torch's
    exporter does; without such weights, the file as it is.

    Raises:
        RecipeError: No ONNX, weights that are missing, or more than the 2 GB that one file holds.
    """
    import onnx  # an extra that other teachers do without

    try:
        model = onnx.load(str(path), load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        onnx.load_external_data_for_model(model, str(path.resolve().parent))
        whole = model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf and onnx share no base of their errors
        raise _no_onnx(path, error) from error
    return path.read_bytes() if whole == before else whole


def _no_onnx(path: Path, error: Exception) -> RecipeError:
    reason = str(error).strip().partition("\n")[0]
    return RecipeError(f"teacher.onnx: {path}: not a valid ONNX file ({reason}); export it again")


class OnnxTeacher(nn.Module):
    """A teacher in an ONNX file, run by onnxruntime; it has no weights that could learn.

    Args:
        path: The file, which is checked.

    Raises:
        RecipeError: No such file, no ONNX, or no network from one input of floats to one output.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnx  # an extra that other teachers do without
        import onnxruntime

        if not path.is_file():
            raise RecipeError(f"teacher.onnx: {path}: no such file; check the path")
        whole = whole_onnx(path)
        try:
            # With its weights, which may say how sizes follow from each other.
            onnx.checker.check_model(whole, full_check=True)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(
                whole, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # protobuf, onnx and onnxruntime share no base of their errors
            raise _no_onnx(path, error) from error
        given, gives = self.session.get_inputs(), self.session.get_outputs()
        if len(given) != 1 or len(gives) != 1 or given[0].type != "tensor(float)":
            said = ", ".join(f"{one.name} {one.type}" for one in given)
            raise RecipeError(
                f"teacher.onnx: {path}: inputs {said or 'none'} and {len(gives)} outputs; needs one float32 input "
                "whose first axis is the clip, and one output"
            )
        self.path, self.input = path, given[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the (B, outputs) float32 of (B, *features) inputs.

        Raises:
            RecipeError: Inputs of another shape than the file takes.
        """
        values = np.ascontiguousarray(inputs.detach().cpu().numpy(), dtype=np.float32)
        fixed = self.input.shape[0] if self.input.shape else None
        parts = [values]
        if isinstance(fixed, int) and fixed == ONE_BY_ONE:
            parts = [values[number : number + 1] for number in range(len(values))]
        try:
            found = [self.session.run(None, {self.input.name: part})[0] for part in parts]
        except Exception as error:  # onnxruntime's errors share no base
            reason = str(error).strip().partition("\n")[0]
            raise RecipeError(
                f"teacher.onnx: {self.path}: takes {self.input.shape}, teacher_inputs are (clips, "
                f"{', '.join(map(str, values.shape[1:]))}) ({reason}); give it what it was trained on as teacher_inputs"
            ) from error
        return torch.from_numpy(np.concatenate(found).astype(np.float32)).to(inputs.device)
