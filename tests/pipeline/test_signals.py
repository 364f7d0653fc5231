"""Ctrl-C and SIGTERM to the real train stage, as a person or a scheduler sends them: what it says, and how soon."""

import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.pipeline import Checkout, make_small_pipeline
from tests.support.store import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Prepared, with more epochs than anybody waits for."""
    checkout = make_small_pipeline(tmp_path_factory.mktemp("signals"))
    checkout.set_params(train__epochs="500")
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
    assert re.fullmatch(
        r"stopped after step \d+, saved in .*; the same command goes on", said.splitlines()[-1]
    )
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


def statuses(checkout: Checkout) -> list[str]:
    """Of the runs in the store, read as what it is: a client of MLflow's would make one where there is none yet."""
    with contextlib.suppress(sqlite3.OperationalError):  # not there yet, or without its tables
        address = f"file:{checkout.root / 'mlflow.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as store:
            return [status for (status,) in store.execute("SELECT status FROM runs")]
    return []
