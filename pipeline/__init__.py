"""Runs and their stages, evaluation, and what many runs say."""
