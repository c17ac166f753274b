"""The `knarr` command. Verbs register themselves with the root in the order of this file, which is the order of the help."""

from __future__ import annotations

from importlib import import_module

from knarr.cli.app import BAD_INPUT, DOES_NOT_HOLD, app, fail

for _verbs in ("run", "train", "graph", "chip", "energy", "data"):
    import_module(f"knarr.cli.verbs_{_verbs}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every expected fault is one line on standard error, never a traceback."""
    try:
        app(args=arguments, prog_name="knarr")
    except ValueError as error:
        # Every stage's own errors are ValueErrors with one line for the user; anything else is a fault in knarr.
        if not type(error).__module__.startswith("knarr."):
            raise
        fail(str(error), BAD_INPUT)
    except OSError as error:
        fail(f"{error.filename or 'file'}: {error.strerror or error}", BAD_INPUT)
    except RuntimeError as error:
        if not type(error).__module__.startswith("knarr."):
            raise
        fail(str(error), DOES_NOT_HOLD)
