"""A stage as a process: it fails when its inputs change under it, ends when DVC does, and outlives whoever reads it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

from cifarflow import errors
from cifarflow.workspace import Workspace

LOOKS_EVERY_SECONDS = 0.5
SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")
MAIN_SPEAKS_FIRST_SECONDS = 3.0


def run(name: str, main: Callable[[], None]) -> int:
    """Run a stage, and return its exit code. Of several processes, the main one looks at the inputs."""
    outlive_readers()
    if os.environ.get("RANK", "0") != "0":
        return errors.run(lambda: _beside_the_main_one(main))
    return errors.run(lambda: _with_the_same_inputs(name, main))


def is_dvcs() -> bool:
    """Whether DVC started this process, and records what comes of it; somebody may start a stage by hand."""
    return "DVC_ROOT" in os.environ


def _with_the_same_inputs(name: str, main: Callable[[], None]) -> None:
    from cifarflow import inputs  # here: `stages/start.py` imports this file before anything that takes time

    watched = inputs.unchanged(name, Workspace.here()) if is_dvcs() else contextlib.nullcontext()
    with watched:
        main()


def _beside_the_main_one(main: Callable[[], None]) -> int:
    """One of several processes: what goes wrong in all of them, and why they stop, the main one says alone."""
    try:
        try:
            main()
        except errors.CifarflowError:
            # Then the launcher has ended this one, if it was not the only one.
            time.sleep(MAIN_SPEAKS_FIRST_SECONDS)
            raise
    except KeyboardInterrupt:
        return errors.INTERRUPTED
    return 0


def end_with_dvc() -> None:
    """SIGTERM to this process once the one that started it is gone: DVC, by a SIGKILL to it alone.

    Else the stage would go on, and at its end write over the results of whatever DVC did since. Not for a stage that
    was started by hand, which may be meant to outlive its terminal.
    """
    if not is_dvcs() or sys.platform == "win32":
        return
    started_by = _started_by()

    def watch() -> None:
        while _started_by() == started_by:
            time.sleep(LOOKS_EVERY_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="cifarflow-end-with-dvc", daemon=True).start()


def _started_by() -> tuple[int, ...]:
    """The parent of this process; where that is a shell which stays, as dash does, also the parent of it: DVC."""
    parent = os.getppid()
    try:
        name, _, rest = Path(f"/proc/{parent}/stat").read_text().partition("(")[2].rpartition(") ")
    except OSError:  # no /proc, as on macOS; its shells become the command that they run
        return (parent,)
    return (parent, int(rest.split()[1])) if name in SHELLS else (parent,)


def outlive_readers() -> None:
    """What is said when nobody reads any more (`dvc repro | head`) is lost; the work is not."""
    sys.stdout = cast(TextIO, _Outliving(sys.stdout))
    sys.stderr = cast(TextIO, _Outliving(sys.stderr))


class _Outliving:
    """A stream that goes on, into nowhere, when its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._turn_away()

    def _turn_away(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
