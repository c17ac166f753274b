"""Measure joules per inference on CPUs and GPUs."""
