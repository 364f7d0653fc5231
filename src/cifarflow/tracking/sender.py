"""A background thread that keeps a store up to date and can neither slow nor stop the stage."""

import logging
import threading
import time
from collections.abc import Callable

from cifarflow.errors import without_passwords

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Sender:
    """Calls `send` after each `notify`; on an error it warns once, waits longer each time and tries again.

    Nothing is queued here: `send` reads what is unsent from the journals, so a failed call loses nothing.
    """

    def __init__(self, send: Callable[[], object], *, target: str) -> None:
        self._send = send
        self._target = target
        self._changed = threading.Condition()
        self._notified = 0
        self._sent = 0
        self._closing = False
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="cifarflow-sender", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There is something new to send; returns at once."""
        with self._changed:
            self._notified += 1
            self._changed.notify_all()

    def close(self, *, timeout_seconds: float) -> bool:
        """Wait at most that long until all is sent, after an error with one more attempt; whether it was."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        return self._sent == self._notified

    @property
    def is_busy(self) -> bool:
        """Whether it is still trying."""
        return self._thread.is_alive()

    def _loop(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while (wanted := self._wait_for_work()) is not None:
            last_attempt = self._closing
            if self._attempt(wanted):
                pause = FIRST_PAUSE_SECONDS
            elif last_attempt:
                return
            else:
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _wait_for_work(self) -> int | None:
        """The notification to serve next; None when closing and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._sent < self._notified)
            return self._notified if self._sent < self._notified else None

    def _attempt(self, wanted: int) -> bool:
        try:
            self._send()
        except Exception as error:  # a store must not stop the stage; the journal keeps all
            self._warn(error)
            return False
        self._sent = wanted
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            first_line = without_passwords(next(iter(str(error).splitlines()), ""))
            logger.warning(
                "%s cannot be reached, or refuses (%s: %.300s). The stage goes on; its journal keeps everything.",
                *(self._target, type(error).__name__, first_line),
            )
        self._warned = True

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=until - time.monotonic())
