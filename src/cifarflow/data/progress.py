"""How far a long step is, on stderr: a moving bar on a terminal, a plain line every few seconds in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

LINE_INTERVAL_SECONDS = 5.0
Advance = Callable[[int], None]


class Progress(Protocol):
    """Opens the progress of one step; what it yields is told how many bytes were done since its last call."""

    def __call__(
        self, label: str, *, total: int | None, done: int = 0
    ) -> AbstractContextManager[Advance]: ...


def show_progress(label: str, *, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:
    """A bar where stderr is a terminal, else plain lines; of `total` bytes `done` were there before."""
    if sys.stderr.isatty():
        return _bar(label, total=total, done=done)
    return plain_lines(label, total=total, done=done)


@contextlib.contextmanager
def _bar(label: str, *, total: int | None, done: int) -> Iterator[Advance]:
    from rich import progress  # here, since it takes 0.1 s that a run without a terminal needn't pay
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def plain_lines(
    label: str,
    *,
    total: int | None,
    done: int = 0,
    stream: TextIO | None = None,
    interval_seconds: float = LINE_INTERVAL_SECONDS,
) -> Iterator[Advance]:
    """One line `label: 42 % of 170 MB, 3.1 MB/s` at most every `interval_seconds`."""
    started = last = time.monotonic()
    fresh = 0

    def advance(count: int) -> None:
        nonlocal fresh, last
        fresh += count
        now = time.monotonic()
        if now - last >= interval_seconds:
            last = now
            speed = fresh / (now - started) / 1e6
            out = stream or sys.stderr
            out.write(f"{label}: {_part(done + fresh, total)}, {speed:.1f} MB/s\n")
            out.flush()

    yield advance


def _part(done: int, total: int | None) -> str:
    return f"{100 * done // total} % of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"
