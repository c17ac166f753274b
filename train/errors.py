"""The one exception for data that cannot be used as it is."""

from __future__ import annotations

from pathlib import Path

from knarr.errors import KnarrError


class DataError(KnarrError, ValueError):
    """A file or a record of a dataset breaks a rule of its format.

    The message is one line: ``<file>: record <record>: <reason>``.

    Args:
        file: The file or folder at fault.
        reason: ``kind: observed vs allowed; cure``. Readers that skip bad records count them by
            `kind`.
        record: The record at fault (a sequence, trial or segment), where there is one.

    Attributes:
        file: As given, as text.
        reason: As given.
        record: As given.
    """

    def __init__(self, file: Path | str, reason: str, record: str | None = None) -> None:
        self.file = str(file)
        self.reason = " ".join(reason.split())
        self.record = record
        where = self.file if record is None else f"{self.file}: record {record}"
        super().__init__(f"{where}: {self.reason}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str | None]]:
        # Without this an error raised in a data loader's worker process loses its arguments on the
        # way back.
        return type(self), (self.file, self.reason, self.record)

    @property
    def kind(self) -> str:
        """The part of the reason before its first colon: what skipped records are counted by."""
        return self.reason.partition(":")[0]
