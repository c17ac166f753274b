"""Norse to NIR that certifies itself, and ONNX for the rest of the world."""

from knarr.export.certificate import Certificate, certify
from knarr.export.errors import CertificateError, ExportError
from knarr.export.export import to_nir
from knarr.export.files import read, write
from knarr.export.graph.fold import FoldDifference, fold, fold_difference, scale_currents
from knarr.export.graph.step import Trace, step_nir
from knarr.export.graph.topology import graph_hash
from knarr.export.norse.modules import PLIFBoxCell, StepGraph, SumPool2d
from knarr.export.norse.trace_module import trace_module
from knarr.export.onnx.network import to_onnx
from knarr.export.onnx.student_step import student_step_to_onnx

__all__ = [
    "Certificate",
    "CertificateError",
    "ExportError",
    "FoldDifference",
    "PLIFBoxCell",
    "StepGraph",
    "SumPool2d",
    "Trace",
    "certify",
    "fold",
    "fold_difference",
    "graph_hash",
    "read",
    "scale_currents",
    "step_nir",
    "student_step_to_onnx",
    "to_nir",
    "to_onnx",
    "trace_module",
    "write",
]
