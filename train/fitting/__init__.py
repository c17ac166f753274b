"""Fit networks with Lightning, resumable."""
