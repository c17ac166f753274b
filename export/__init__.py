"""Export Norse modules as NIR graphs that certify themselves, and other networks as ONNX files.

graph/         NIR graphs: shapes, order, meaning step by step, folding; knows nothing of modules
norse/         Norse modules: taken apart, made plain, traced
convert        `to_nir`: layers to nodes and edges, then proved
certificate    the comparison of a module with its graph, and what it proves
files          NIR files, read and written with checks
onnx_files     ONNX files, checked with onnxruntime
"""

from typing import TYPE_CHECKING

from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.export.arguments import as_inputs
    from knarr.export.certificate import Certificate, certify, replay_inputs, replay_sha256
    from knarr.export.convert import ExportCheck, check_export, to_nir
    from knarr.export.errors import CertificateError, ExportError
    from knarr.export.files import (
        FILLED,
        certificate_beside,
        read,
        require_certified,
        write,
    )
    from knarr.export.graph.fold import FoldDifference, fold, fold_difference, scale_currents
    from knarr.export.graph.origin import (
        StepProposal,
        doubt_step,
        explain_silence,
        lost_in_file,
        proposed_steps,
        step_advice,
    )
    from knarr.export.graph.shapes import graph_input_shape
    from knarr.export.graph.step import Trace, step_nir
    from knarr.export.graph.topology import execution_order, graph_hash
    from knarr.export.norse.modules import PLIFBoxCell, StepGraph, SumPool2d
    from knarr.export.norse.observe import TimeForm, run_clips, time_form, trace_module
    from knarr.export.onnx_files import student_step_to_onnx, to_onnx
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "FILLED",
    "Certificate",
    "CertificateError",
    "ExportCheck",
    "ExportError",
    "FoldDifference",
    "PLIFBoxCell",
    "StepGraph",
    "StepProposal",
    "SumPool2d",
    "TimeForm",
    "Trace",
    "as_inputs",
    "certificate_beside",
    "certify",
    "check_export",
    "doubt_step",
    "execution_order",
    "explain_silence",
    "fold",
    "fold_difference",
    "graph_hash",
    "graph_input_shape",
    "lost_in_file",
    "proposed_steps",
    "read",
    "replay_inputs",
    "replay_sha256",
    "require_certified",
    "run_clips",
    "scale_currents",
    "step_advice",
    "step_nir",
    "student_step_to_onnx",
    "time_form",
    "to_nir",
    "to_onnx",
    "trace_module",
    "write",
]
