"""Measure joules per inference of an ONNX file on CPUs and GPUs.

protocol  windows of looped inference between idle power, and what makes one untrustworthy
workload  an ONNX file in onnxruntime, batch by batch
cpu       the packages of a processor, by RAPL
gpu       an NVIDIA GPU, by NVML
"""
