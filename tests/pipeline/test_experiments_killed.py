"""`dvc exp run`, in the workspace and in a temporary folder, killed by SIGKILL in train; and two DVC commands at once.

One story on one checkout: the experiment that is killed in the workspace goes on in a temporary folder, is killed there
too, and ends in the workspace, with the bytes of a training that nobody disturbed, as one run of MLflow and one of
TensorBoard. A second DVC beside it is refused.
Another training is killed after its end and before DVC's record of it.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from cifarflow.tracking.tensorboard import chart_of
from cifarflow.training.report import HISTORY_COLUMNS
from tests.support.pipeline import Checkout, tensorboard_of
from tests.support.store import Store, wait_for
from tests.support.trainings import kill, last_step, make_short_steps, started, wait_until_trained_beyond

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
    checkout = make_short_steps(
        tmp_path_factory.mktemp("experiments") / "checkout",
        train__epochs=str(EPOCHS),
        checkpoint__interval_seconds=str(CHECKPOINT_SECONDS),
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


def check_that_a_second_is_refused(checkout: Checkout, first: "subprocess.Popen[str]") -> None:
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is at work for as long as the second needs
    second = checkout.dvc("repro", "train", expect=None)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.code != 0
    assert f"busy, it is being blocked by:\n  (PID {first.pid})" in second.output
    assert "Traceback" not in second.output


def test_a_killed_experiment_goes_on_anywhere_and_ends_with_the_same_bytes(
    checkout: Checkout, undisturbed: bytes
) -> None:
    killed_at = 0
    for command in (("exp", "run", "train"), ("exp", "run", "--temp", "train")):
        with started(checkout, "dvc", *command) as process:
            wait_until_trained_beyond(killed_at, checkout, process)
            time.sleep(random.uniform(0, LONGEST_DELAY_SECONDS))
            kill(process)
            said, _ = process.communicate()
        assert (RESUMED.search(said) is not None) == (killed_at > 0), said
        killed_at = last_step(checkout)
    with started(checkout, "dvc", "exp", "run", "train") as process:
        wait_until_trained_beyond(killed_at, checkout, process)
        check_that_a_second_is_refused(checkout, process)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    resumed = RESUMED.search(said)
    assert resumed is not None and int(resumed[1]) == killed_at, said
    assert checkout.workspace.model_weights.read_bytes() == undisturbed
    assert "Traceback" not in said
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
    checkout: Checkout,
) -> None:
    """A server that never answers holds the end of train up, as a locked database does."""
    shutil.rmtree(checkout.workspace.all_checkpoints, ignore_errors=True)  # of the trainings above
    checkout.workspace.metrics("train").unlink()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        checkout.set_params(
            train__epochs="2",
            tracking__mlflow__uri=f"http://127.0.0.1:{silent.getsockname()[1]}",
            tracking__mlflow__timeout_seconds="60",
        )
        with started(checkout, "dvc", "repro", "train") as process:
            wait_for(checkout.workspace.metrics("train").exists)
            assert process.poll() is None, process.communicate()[0]
    steps = last_step(checkout)
    checkout.set_params(tracking__mlflow__enabled="false")
    outcome = checkout.dvc("repro", "train")
    assert f"going on from step {steps} of {steps} " in outcome.output, "nothing was left to train"
    assert len(checkout.workspace.history.read_text().splitlines()) == 1 + 2
