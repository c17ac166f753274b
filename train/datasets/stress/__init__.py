"""Stress-Predict: skin conductance and heart rate at rest and under stress.

`read` reads the recordings and their labels, `windows` cuts them and codes them for the chip.
"""
