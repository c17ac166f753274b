"""Progress of a fit: a Lightning callback that emits an event for each batch and each epoch."""

from __future__ import annotations

import logging
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from knarr.pipeline.progress import OnProgress, Progress
from knarr.train.fitting.files import ACCURACY, ERROR

SILENT = "SILENT"
WARNING = (
    "every validation clip gets the same output, so nothing is told apart: as a rule no spike reaches the readout. If it "
    "stays so, raise weights or inputs, or lower thresholds"
)

# Lightning's own chatter (devices found, cloud loggers) would go past `on_progress` to standard error.
# Its import sets another level, so this stands below it.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class FitProgress(Callback):
    """Emits events with the unit "epoch".

    Args:
        on_progress: Called with each event.
        stage: "teacher", "student" or "chip".
        on_test: Whether the epochs are scored on the test data, which the note of each epoch says.
    """

    def __init__(self, on_progress: OnProgress, stage: str, *, on_test: bool = False) -> None:
        self.on_progress, self.stage, self.on_test = on_progress, stage, on_test
        self.note = ""
        self.warned = False

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Emit how far the epoch is."""
        done = batch_idx + 1
        # After the last batch comes the validation; the epoch counts once that is over.
        if done < trainer.num_training_batches:
            self._emit(trainer, trainer.current_epoch, done / trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Emit the finished epoch with its loss and accuracy."""
        found = trainer.callback_metrics
        loss = float(found["train_loss"])
        # Scores on test data choose the weights, so nobody should take them for validation.
        split = "TEST" if self.on_test else "validation"
        if pl_module.measured == ERROR:
            measured = f"error {float(found[ERROR]):.4g}"
        else:
            measured = f"accuracy {float(found[ACCURACY]):.1%}"
        self.note = f"loss {loss:.3f}, {split} {measured}"
        if pl_module.same_output:
            self.note += f", {SILENT}"
            if not self.warned:
                self.on_progress(Progress(f"  {self.stage}: {WARNING}"))
        # Said again where it comes back after an epoch in which outputs differed.
        self.warned = pl_module.same_output
        self._emit(trainer, trainer.current_epoch + 1)

    def _emit(self, trainer: lightning.Trainer, done: int, part: float = 0.0) -> None:
        epochs = trainer.max_epochs
        self.on_progress(Progress(self.stage, done, epochs, "epoch", part, self.note))
