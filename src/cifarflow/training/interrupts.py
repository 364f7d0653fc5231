"""SIGINT and SIGTERM as a question that the training loop asks between two steps."""

import signal
import time
from types import FrameType, TracebackType

ONE_REQUEST_SECONDS = 2.0
"""Ctrl-C reaches a process of torchrun twice: from the terminal, and from torchrun itself a moment later."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside, after its state was saved."""


class Interrupts:
    """While open, SIGINT and SIGTERM set `requested` instead of ending the process; a later one ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._first_seconds = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first_seconds = True, now
        elif now - self._first_seconds > ONE_REQUEST_SECONDS:
            raise TrainingInterrupted("stopped at once; the last checkpoint is kept")
