"""Measure joules per inference of an ONNX file on CPUs and GPUs.

protocol  windows of looped inference between idle power, and what makes one untrustworthy
workload  an ONNX file in onnxruntime, batch by batch
meters    energy counters, all read by zeus
cpu       the packages of a processor
gpu       a GPU
"""
