"""The `knarr` command: reads options, calls the faces of the stages, prints what they return.

- `app`: the root of the command, options that several verbs share, exit codes.
- `verbs`: one file for each family of verbs.
- `text`: results as tables and sentences.
- `output`: text and tables for a person, and progress on standard error.
- `files`: arrays that a user names.
"""

import os
import warnings

# Idle torch threads must not spin: on a busy two-core machine that costs ten times the run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Norse 1.1 scripts its functions, and Lightning 2.6 asks torch the old way; who runs the command can change neither.
warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)

from knarr.cli import verbs as verbs
from knarr.cli.app import main

__all__ = ["main"]
