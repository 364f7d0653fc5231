"""A training of many short steps, under way as a process in a checkout of its own, to be disturbed there."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.pipeline import Checkout, make_checkout

STEPS_PER_EPOCH = 10


def make_short_steps(root: Path, **changes: str) -> Checkout:
    """A checkout, not prepared yet, that trains by steps of milliseconds; `changes` as in `Checkout.set_params`."""
    checkout = make_checkout(root)
    checkout.run("cifarflow", "recipe", "shapes")
    short = {
        "train__batch_size": "10",
        "train__micro_batch_size": "10",
        "train__threads": "1",  # two wait for each other on a busy machine
        "data__shapes__train_count": "110",
        "data__shapes__test_count": "100",
    }
    checkout.set_params(**{**short, **changes})
    return checkout


@contextlib.contextmanager
def started(
    checkout: Checkout, *command: str, errors: int = subprocess.STDOUT, **environ: str
) -> "Iterator[subprocess.Popen[str]]":
    """A command under way; it and what it started are killed at the end of the block."""
    with subprocess.Popen(
        command,
        cwd=checkout.root,
        env={**checkout.environment, **environ},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    """At once and without a word, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stage_under(dvc: "subprocess.Popen[str]") -> psutil.Process | None:
    """The stage that DVC is running: below it, and below the shell where that one stays. None while there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(dvc.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                program, script, *_ = [*process.cmdline(), "", ""]  # of one that has ended there are no words
                if Path(program).name.startswith("python") and script.startswith("stages/"):
                    return process
    return None


def last_step(checkout: Checkout) -> int:
    """Of the newest checkpoint; 0 without one."""
    names = (path.name for path in checkout.workspace.all_checkpoints.glob("*/step-*.pt"))
    return max((int(name.split("-")[1]) for name in names), default=0)


def wait_until_trained_beyond(step: int, checkout: Checkout, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while last_step(checkout) <= step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no checkpoint came"
        time.sleep(0.01)
