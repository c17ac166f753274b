"""Progress on standard error: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

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
