"""Ctrl-C and SIGTERM to the real train stage, as a person or a scheduler sends them: what it says, and how soon."""

import contextlib
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from tests.support.pipeline import Checkout, make_small_pipeline
from tests.support.store import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch"),
]
STOPPED = r"stopped after step \d+, saved in .*; the same command goes on"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Prepared, with more epochs than anybody waits for."""
    checkout = make_small_pipeline(tmp_path_factory.mktemp("signals"))
    checkout.set_params(train__epochs="500", train__threads="1")
    checkout.dvc("repro", "prepare")
    (checkout.root / "models").mkdir()
    return checkout


def start_training(checkout: Checkout) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-u", "stages/train.py"],
        cwd=checkout.root,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_says_how_to_go_on_and_its_run_is_killed(
    checkout: Checkout, number: signal.Signals
) -> None:
    process = start_training(checkout)
    assert process.stdout is not None
    assert any(line.startswith("epoch") for line in process.stdout), process.communicate()[1]
    wait_for(lambda: statuses(checkout) == ["RUNNING"])  # a new store takes MLflow some seconds
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    assert process.returncode == 130
    assert re.fullmatch(STOPPED, said.splitlines()[-1])
    assert "Traceback" not in said
    assert seconds < 10, "a step, a checkpoint, and at most some seconds of MLflow"
    assert statuses(checkout) == ["KILLED"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_signal_while_torch_is_imported_ends_in_a_line(checkout: Checkout) -> None:
    process = start_training(checkout)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted; run the same command again\n")


@contextlib.contextmanager
def never_answers(checkout: Checkout, empty_store: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@contextlib.contextmanager
def locked(checkout: Checkout, empty_store: Path) -> Iterator[str]:
    """A database that this process, another one than the stage, is in the middle of writing."""
    database = checkout.root / "locked.db"
    shutil.copyfile(empty_store, database)
    with contextlib.closing(sqlite3.connect(database)) as writing:
        writing.execute("BEGIN EXCLUSIVE")
        yield f"sqlite:///{database.name}"


@pytest.mark.parametrize("store", [never_answers, locked])
def test_a_stopped_training_waits_seconds_for_a_store_that_gives_no_answer(
    checkout: Checkout, empty_store: Path, store: Callable[[Checkout, Path], AbstractContextManager[str]]
) -> None:
    with store(checkout, empty_store) as uri:
        checkout.set_params(tracking__mlflow__uri=uri, tracking__mlflow__timeout_seconds="60")
        process = start_training(checkout)
        assert process.stdout is not None
        assert any(line.startswith("epoch") for line in process.stdout), process.communicate()[1]
        wait_for(lambda: is_sending(checkout))
        start = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=100)
        seconds = time.monotonic() - start
    checkout.set_params(tracking__mlflow__uri="null", tracking__mlflow__timeout_seconds="10")
    assert process.returncode == 130
    assert "`uv run cifarflow sync` sends the rest" in said
    assert re.fullmatch(STOPPED, said.splitlines()[-1])
    assert "Traceback" not in said
    assert seconds < 8, "3 s of waiting for MLflow, a step and a checkpoint"


def is_sending(checkout: Checkout) -> bool:
    """Whether a process has imported MLflow and is at its store: it holds the lock of this repository meanwhile."""
    try:
        with FileLock(checkout.workspace.state / "mlflow.lock", blocking=False):
            return False
    except Timeout:
        return True


def statuses(checkout: Checkout) -> list[str]:
    """Of the runs in the store, read as what it is: a client of MLflow's would make one where there is none yet."""
    with contextlib.suppress(sqlite3.OperationalError):  # not there yet, or without its tables
        address = f"file:{checkout.root / 'mlflow.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as store:
            return [status for (status,) in store.execute("SELECT status FROM runs")]
    return []
