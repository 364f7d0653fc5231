"""SIGINT and SIGTERM as a question that the training loop asks between two steps."""

import signal
from types import FrameType, TracebackType


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped from outside, after its state was saved."""


class Interrupts:
    """While open, SIGINT and SIGTERM set `requested` instead of ending the process; a second one ends it at once."""

    def __init__(self) -> None:
        self.requested = False
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
        if self.requested:
            raise TrainingInterrupted("stopped at once; the last checkpoint is kept")
        self.requested = True
