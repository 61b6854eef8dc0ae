"""Whom long work tells how far it has come."""

from typing import Protocol


class Observer(Protocol):
    """Receives the progress of a run, task by task; paths are in stored form."""

    def begin(self, task: str, total: int) -> None:
        """A task begins, such as `listing` or `reading`; `total` is 0 if nobody knows how much there is."""

    def advance(self, count: int) -> None:
        """`count` more files or rows of the task are done."""

    def skip(self, path: str, reason: str) -> None:
        """This file, archive or folder was skipped."""


class SilentObserver:
    """An observer that ignores everything."""

    def begin(self, task: str, total: int) -> None:
        """See Observer."""

    def advance(self, count: int) -> None:
        """See Observer."""

    def skip(self, path: str, reason: str) -> None:
        """See Observer."""


SILENT = SilentObserver()
