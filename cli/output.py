"""How results reach a person or a machine: a console of 100 columns, JSON that stays short, files that may be damaged.

What verbs that take files share: arrays read without trust, and outputs kept apart from inputs.

Progress on standard error: bars on a terminal, a line now and then in a log.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from knarr.hw_sim import ChipError

WIDTH = 100
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")
"""A list of numbers as `json.dumps` indents it; inside a string a line break is escaped."""


def make_console() -> Console:
    """A terminal's own width where it is narrow, 100 columns otherwise."""
    console = Console(highlight=False, markup=False)
    return (
        console
        if console.is_terminal and console.width <= WIDTH
        else Console(highlight=False, markup=False, width=WIDTH)
    )


def json_text(value: object) -> str:
    """Indented JSON with each list of numbers in one line."""
    text = json.dumps(value, indent=2, allow_nan=False)
    return _NUMBERS.sub(
        lambda found: " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]"), text
    )


@contextmanager
def expecting(what: Path) -> Iterator[None]:
    """A file that parses but holds something else is the user's to mend, not a traceback."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ChipError(
            f"{what}: does not hold what this version writes ({type(error).__name__} {error}); "
            "remove it and run `knarr pipeline` again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that one of the stages wrote.

    Raises:
        ChipError: it is not there or no JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ChipError(f"{path}: not there yet; run `knarr pipeline` to make it") from None
    except (ValueError, IsADirectoryError) as error:
        raise ChipError(
            f"{path}: not JSON ({error}); remove it and run `knarr pipeline` again"
        ) from error
    return content


MAPPED_BYTES = 2**26


def keep_apart(out: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over what is read, or over the file of facts beside it.

    Raises:
        ChipError: `out` is one of the inputs.
    """
    if out is None:
        return
    mine = {path.resolve() for path in (out, out.with_name(f"{out.name}.json"))}
    for path in inputs:
        if path is not None and mine & {
            path.resolve(),
            path.with_name(f"{path.name}.json").resolve(),
        }:
            raise ChipError(f"{out}: is read as {path}; give another name to write to")


def read_inputs(path: Path) -> np.ndarray[Any, Any]:
    """An array of numbers from a .npy file; nothing is unpickled."""
    if not path.is_file():
        raise ChipError(f"{path}: no such file; save integers with numpy.save")
    try:
        # Of large files only what is looked at comes into memory.
        array = np.load(
            path, mmap_mode="r" if path.stat().st_size > MAPPED_BYTES else None, allow_pickle=False
        )
    except (ValueError, EOFError, OSError) as error:
        raise ChipError(
            f"{path}: not a .npy array of numbers ({error}); save one with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ChipError(f"{path}: holds several arrays; save one with numpy.save")
    return array


LINE_EVERY_S = 15.0

console = Console(stderr=True)
# Lightning's own chatter (devices found, cloud loggers) is not ours to say.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def say(message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)


class _EpochLines(Callback):
    def __init__(self, stage: str, of: str) -> None:
        self.stage, self.of, self.last = stage, of, 0.0

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        done = trainer.current_epoch + 1
        if time.monotonic() - self.last < LINE_EVERY_S and done != trainer.max_epochs:
            return
        self.last = time.monotonic()
        loss = float(trainer.callback_metrics["train_loss"])
        accuracy = float(trainer.callback_metrics["validation_accuracy"])
        say(
            f"  {self.stage}: epoch {done}/{trainer.max_epochs}, loss {loss:.3f}, {self.of} accuracy {accuracy:.1%}"
        )


def training(stage: str, chosen_on_test: Collection[str] = ()) -> tuple[Callback, ...]:
    """Callbacks that show how far a fit is.

    Args:
        stage: "teacher", "student".
        chosen_on_test: stages whose epochs are scored on the test data, which is said.
    """
    on_test = stage in chosen_on_test
    if console.is_terminal:
        if on_test:
            say(
                f"  {stage}: its validation accuracy is of the TEST data, and chooses the weights that are kept"
            )
        return (RichProgressBar(console_kwargs={"stderr": True}),)
    return (_EpochLines(stage, "TEST" if on_test else "validation"),)


def counter(what: str) -> Callable[[int, int], None]:
    """A function to call with (done, in all)."""
    last = 0.0

    def show(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if console.is_terminal and (now - last > 0.1 or done == of):
            sys.stderr.write(f"\r  {what}: {done}/{of}" + ("\n" if done == of else ""))
            sys.stderr.flush()
        elif not console.is_terminal and now - last > LINE_EVERY_S:
            say(f"  {what}: {done}/{of}")
        else:
            return
        last = now

    return show
