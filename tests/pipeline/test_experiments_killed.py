"""`dvc exp run`, in the workspace and in a temporary folder, killed by SIGKILL in train; and two DVC commands at once.

One story on one checkout: the experiment that is killed in the workspace goes on in a temporary folder, is killed there
too, and ends in the workspace, with the bytes of a training that nobody disturbed, as one run of MLflow and one of
TensorBoard. A second DVC beside it is refused.
Another training is killed after its end and before DVC's record of it.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifarflow.tracking.tensorboard import chart_of
from cifarflow.training.report import HISTORY_COLUMNS
from tests.support.pipeline import Checkout, make_checkout, tensorboard_of
from tests.support.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
EPOCHS = 40
METRICS = HISTORY_COLUMNS[1:]  # all that an epoch reports
# So seldom that an epoch may be recorded before a kill and, from the checkpoint before it, trained again.
CHECKPOINT_SECONDS = 0.4
LONGEST_DELAY_SECONDS = 0.3  # of a kill after the first checkpoint
RESUMED = re.compile(r"going on from step (\d+) of \d+ ")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Prepared, and with a train of 400 short steps and many checkpoints; MLflow and TensorBoard are on."""
    checkout = make_checkout(tmp_path_factory.mktemp("experiments") / "checkout")
    checkout.run("cifarflow", "recipe", "shapes")
    checkout.set_params(
        train__epochs=str(EPOCHS),
        train__batch_size="10",
        train__micro_batch_size="10",
        train__threads="1",  # two wait for each other on a busy machine
        checkpoint__interval_seconds=str(CHECKPOINT_SECONDS),
        data__shapes__train_count="110",
        data__shapes__test_count="100",
    )
    checkout.dvc("repro", "prepare")
    checkout.commit("prepared")
    return checkout


@pytest.fixture(scope="module")
def undisturbed(checkout: Checkout) -> bytes:
    """The weights of a training by hand in a copy of the checkout, which has no test pictures: train needs none."""
    copy = Checkout(root=checkout.root.parent / "undisturbed")
    shutil.copytree(checkout.root, copy.root, ignore=shutil.ignore_patterns(".git", ".dvc"))
    copy.workspace.split("test").unlink()
    copy.set_params(
        checkpoint__interval_seconds="60",
        tracking__tensorboard__enabled="false",
        tracking__mlflow__enabled="false",
    )
    copy.run("python", "stages/train.py")
    return copy.workspace.model_weights.read_bytes()


@contextlib.contextmanager
def started(checkout: Checkout, *command: str, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A DVC command under way; it and what it started are killed at the end of the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["dvc", *command],
            cwd=checkout.root,
            env=checkout.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_step(checkout: Checkout) -> int:
    """Of the newest checkpoint; 0 without one."""
    names = (path.name for path in checkout.workspace.all_checkpoints.glob("*/step-*.pt"))
    return max((int(name.split("-")[1]) for name in names), default=0)


def wait_until_trained_beyond(
    step: int, checkout: Checkout, process: "subprocess.Popen[bytes]", log: Path
) -> None:
    until = time.monotonic() + 120
    while last_step(checkout) <= step:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.01)


def check_that_a_second_is_refused(checkout: Checkout, first: "subprocess.Popen[bytes]") -> None:
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is at work for as long as the second needs
    second = checkout.dvc("repro", "train", expect=None)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.code != 0
    assert f"busy, it is being blocked by:\n  (PID {first.pid})" in second.output
    assert "Traceback" not in second.output


def test_a_killed_experiment_goes_on_anywhere_and_ends_with_the_same_bytes(
    checkout: Checkout, undisturbed: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    killed_at = 0
    for command in (("exp", "run", "train"), ("exp", "run", "--temp", "train")):
        with started(checkout, *command, log=log) as process:
            wait_until_trained_beyond(killed_at, checkout, process, log)
            time.sleep(random.uniform(0, LONGEST_DELAY_SECONDS))
        assert (RESUMED.search(log.read_text()) is not None) == (killed_at > 0), log.read_text()
        killed_at = last_step(checkout)
    with started(checkout, "exp", "run", "train", log=log) as process:
        wait_until_trained_beyond(killed_at, checkout, process, log)
        check_that_a_second_is_refused(checkout, process)
        assert process.wait(120) == 0, log.read_text()
    resumed = RESUMED.search(log.read_text())
    assert resumed is not None and int(resumed[1]) == killed_at, log.read_text()
    assert checkout.workspace.model_weights.read_bytes() == undisturbed
    assert "Traceback" not in log.read_text()
    check_that_every_number_is_there_once(checkout)
    assert checkout.dvc("repro", "train").kept == ["download", "prepare", "train"]


def check_that_every_number_is_there_once(checkout: Checkout) -> None:
    """In the one run of MLflow and in the one folder of TensorBoard, whichever of the three trained the epoch."""
    epochs = list(range(1, EPOCHS + 1))
    store = Store.copied_from(checkout.workspace)
    run = store.run()
    assert run.info.status == "FINISHED"
    assert {
        name: [step for step, _ in store.history(run, name)] for name in run.data.metrics
    } == dict.fromkeys(METRICS, epochs)
    (folder,) = checkout.workspace.tensorboard_logs.iterdir()
    events = tensorboard_of(folder)
    shown = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown == {chart_of(name): epochs for name in METRICS}


def test_a_kill_between_the_last_step_and_the_record_of_dvc_costs_no_training(
    checkout: Checkout, tmp_path: Path
) -> None:
    """A server that never answers holds the end of train up, as a locked database does."""
    log = tmp_path / "log.txt"
    shutil.rmtree(checkout.workspace.all_checkpoints, ignore_errors=True)  # of the trainings above
    checkout.workspace.metrics("train").unlink()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checkout.set_params(
            train__epochs="2",
            tracking__mlflow__uri=f"http://127.0.0.1:{silent.getsockname()[1]}",
            tracking__mlflow__timeout_seconds="60",
        )
        with started(checkout, "repro", "train", log=log) as process:
            until = time.monotonic() + 60
            while not checkout.workspace.metrics("train").exists():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.01)
    steps = last_step(checkout)
    checkout.set_params(tracking__mlflow__enabled="false")
    outcome = checkout.dvc("repro", "train")
    assert f"going on from step {steps} of {steps} " in outcome.output, "nothing was left to train"
    assert len(checkout.workspace.history.read_text().splitlines()) == 1 + 2
