"""What a person sees while training runs: a live bar on a terminal, one line an epoch elsewhere."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cifarflow.training.watch import Seen


class TrainingProgress:
    """Reports steps and epochs; `stream` decides which form."""

    def __init__(self, total_steps: int, bar: Progress | None, stream: TextIO) -> None:
        self._bar = bar
        self._stream = stream
        self._task = bar.add_task("train", total=total_steps, status="") if bar else None
        self._start = time.perf_counter()
        self._is_first = True

    def say(self, line: str) -> None:
        """One line, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def step(self, done: int, seen: Seen | None, *, images_per_second: float) -> None:
        """`seen` is how the last step went that was looked at, if one was; the rate is that of this epoch so far."""
        if self._bar and self._task is not None:
            means = f"loss {seen.loss:.3f}  accuracy {seen.accuracy:.3f}  " if seen else ""
            status = f"{means}{images_per_second:,.0f} images/s"
            self._bar.update(self._task, completed=done, status=status)

    def epoch(self, row: Mapping[str, float], *, epochs: float) -> None:
        """A line that a terminal of 80 columns has room for; loss and accuracy are training/validation."""
        if self._is_first:
            self.say("loss and accuracy: training/validation")
            self._is_first = False
        self.say(
            f"epoch {min(row['epoch'], epochs):g}/{epochs:g}  "
            f"loss {row['train_loss']:.3f}/{row['validation_loss']:.3f}  "
            f"accuracy {row['train_accuracy']:.3f}/{row['validation_accuracy']:.3f}  "
            f"{row['pixels']:g} px  {row['images_per_second']:.0f} images/s  "
            f"{time.perf_counter() - self._start:.0f} s"
        )


@contextlib.contextmanager
def training_progress(
    total_steps: int, *, stream: TextIO | None = None, shown: bool = True
) -> Iterator[TrainingProgress]:
    """A progress report on `stream` (stdout unless given), or nowhere when it is not to be shown."""
    stream = cast(TextIO, (stream or sys.stdout) if shown else io.StringIO())
    if not stream.isatty():
        yield TrainingProgress(total_steps, None, stream)
        return
    columns = (TextColumn("train"), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    console = Console(file=stream)
    # A picture takes a millisecond of a core: ten a second, the default, would cost a percent of it.
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as bar:
        yield TrainingProgress(total_steps, bar, stream)
