"""The `knarr` command: turns files into calls, and results into tables, pictures and reports."""

import os

# Idle torch threads must not spin: on a busy two-core machine that costs ten times the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from knarr.cli.app import main

__all__ = ["main"]
