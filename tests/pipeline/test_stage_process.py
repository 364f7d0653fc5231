"""A stage as a process of the real DVC: edited under while it runs, left alone by DVC, killed alone, read by nobody.

One checkout for all; each test trains for another number of epochs, so none finds what another one recorded.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifarflow.config import read_yaml
from tests.support.pipeline import Checkout
from tests.support.store import wait_for
from tests.support.trainings import (
    STEPS_PER_EPOCH,
    last_step,
    make_short_steps,
    stage_under,
    started,
    wait_until_trained_beyond,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send"),
]
STEP_BY_STEP = "0.0001"  # seconds between two checkpoints: one after each step
# A stage looks every half second whether DVC is still there. So long a training is not over by then, five times.
MANY_EPOCHS = 100
# DVC runs stages by the shell that $SHELL names. Debian's /bin/sh stays as the parent of the stage, bash becomes it.
SHELLS = tuple(shell for shell in ("/bin/sh", "/bin/bash") if Path(shell).exists())
SECONDS_TO_END = 10


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Prepared."""
    checkout = make_short_steps(
        tmp_path_factory.mktemp("stage") / "checkout",
        tracking__tensorboard__enabled="false",
        tracking__mlflow__enabled="false",
    )
    checkout.dvc("repro", "prepare")
    return checkout


def set_up_a_training(checkout: Checkout, *, epochs: int) -> None:
    """With no state to go on from, and a checkpoint after each step."""
    checkout.set_params(train__epochs=str(epochs), checkpoint__interval_seconds=STEP_BY_STEP)
    shutil.rmtree(checkout.workspace.all_checkpoints, ignore_errors=True)
    (checkout.root / "models").mkdir(exist_ok=True)


@contextlib.contextmanager
def paused(process: "subprocess.Popen[str]") -> Iterator[None]:
    """DVC and its stage stand still meanwhile: what happens in the block happens while the stage is at work."""
    os.killpg(process.pid, signal.SIGSTOP)
    yield
    os.killpg(process.pid, signal.SIGCONT)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def recorded(checkout: Checkout) -> dict[str, Any]:
    """The stages in dvc.lock."""
    return read_yaml(checkout.root / "dvc.lock")["stages"]


# edited while it runs


def test_what_was_edited_under_a_stage_is_named_and_its_results_are_kept_for_the_old_inputs(
    checkout: Checkout,
) -> None:
    set_up_a_training(checkout, epochs=4)
    losses = checkout.root / "src/cifarflow/training/losses.py"
    code, stages = losses.read_text(encoding="utf-8"), recorded(checkout)
    with started(checkout, "dvc", "repro", "train") as process:
        wait_until_trained_beyond(0, checkout, process)
        with paused(process):
            checkout.set_params(train__epochs="5")
            append(losses, "# edited\n")
            os.utime(checkout.workspace.dataset)
        said, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None), said
    (fault,) = [line for line in said.splitlines() if line.startswith("error: ")]
    edited = "data/prepared/dataset.json, params.yaml: train.epochs, src/cifarflow/training/losses.py"
    assert fault.startswith(f"error: {edited} changed while train ran, ")
    assert "Traceback" not in said
    assert recorded(checkout) == stages

    checkout.set_params(train__epochs="4")
    losses.write_text(code, encoding="utf-8")
    steps = 4 * STEPS_PER_EPOCH
    outcome = checkout.dvc("repro", "train")
    assert f"going on from step {steps} of {steps} " in outcome.output, "nothing was left to train"
    assert recorded(checkout)["train"]["params"]["params.yaml"]["train"]["epochs"] == 4


def test_edits_that_the_stage_does_not_see_change_nothing(checkout: Checkout) -> None:
    """A comment, and keys that it does not read."""
    set_up_a_training(checkout, epochs=3)
    with started(checkout, "dvc", "repro", "train") as process:
        wait_until_trained_beyond(0, checkout, process)
        with paused(process):
            append(checkout.workspace.params, "# a thought\n")
            checkout.set_params(checkpoint__interval_seconds="30", evaluate__batch_size="50")
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert recorded(checkout)["train"]["params"]["params.yaml"]["train"]["epochs"] == 3


# DVC or the stage ended alone


def test_when_dvc_or_the_stage_is_ended_alone_the_training_goes_on_and_ends_with_the_same_bytes(
    checkout: Checkout,
) -> None:
    set_up_a_training(checkout, epochs=MANY_EPOCHS)
    stages = recorded(checkout)
    for number in (signal.SIGKILL, signal.SIGTERM):
        for shell in SHELLS:
            end_dvc_alone(number, checkout, shell)
    kill_the_stage_alone(checkout)
    assert recorded(checkout) == stages
    killed_at = last_step(checkout)
    checkout.set_params(checkpoint__interval_seconds="60")  # the rest is faster without
    outcome = checkout.dvc("repro", "train")
    assert f"going on from step {killed_at} of " in outcome.output
    assert "train" in recorded(checkout)
    assert checkout.workspace.model_weights.read_bytes() == weights_of_an_undisturbed_training(checkout)


def end_dvc_alone(number: signal.Signals, checkout: Checkout, shell: str) -> None:
    """The stage saves and ends by itself: at the end of what is said no process is left that could say more."""
    gone_before = last_step(checkout)
    with started(checkout, "dvc", "repro", "train", SHELL=shell) as process:
        wait_until_trained_beyond(gone_before, checkout, process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == -number
    stopped = re.search(
        r"^stopped after step (\d+), saved in .*; the same command goes on$", said, re.MULTILINE
    )
    assert stopped is not None, said
    assert gone_before < int(stopped[1]) == last_step(checkout) < MANY_EPOCHS * STEPS_PER_EPOCH
    assert (f"going on from step {gone_before} of " in said) == (gone_before > 0)
    assert "Traceback" not in said


def kill_the_stage_alone(checkout: Checkout) -> None:
    gone_before = last_step(checkout)
    with started(checkout, "dvc", "repro", "train") as process:
        wait_until_trained_beyond(gone_before, checkout, process)
        stage = stage_under(process)
        assert stage is not None
        stage.kill()
        said, _ = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode not in (0, None), said
    assert "failed to reproduce 'train'" in said
    assert f"going on from step {gone_before} of " in said
    assert last_step(checkout) < MANY_EPOCHS * STEPS_PER_EPOCH


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_stage_whose_dvc_is_killed_while_it_imports_torch_ends_too(checkout: Checkout, shell: str) -> None:
    set_up_a_training(checkout, epochs=1)
    with started(checkout, "dvc", "repro", "train", SHELL=shell) as process:
        wait_for(lambda: is_importing_torch(process))
        process.kill()
        said, _ = process.communicate(timeout=60)
    assert "epoch" not in said


def is_importing_torch(dvc: "subprocess.Popen[str]") -> bool:
    stage = stage_under(dvc)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return stage is not None and "libtorch" in Path(f"/proc/{stage.pid}/maps").read_text()
    return False


def weights_of_an_undisturbed_training(checkout: Checkout) -> bytes:
    """By hand, in a copy of the checkout that has no state to go on from."""
    copy = Checkout(root=checkout.root.parent / "undisturbed")
    shutil.copytree(checkout.root, copy.root, ignore=shutil.ignore_patterns(".git", ".dvc", ".cifarflow"))
    copy.workspace.model_weights.unlink()
    assert "going on" not in copy.run("python", "stages/train.py").output
    return copy.workspace.model_weights.read_bytes()


# read by nobody


def test_a_training_outlives_its_reader(checkout: Checkout) -> None:
    """As `python stages/train.py | head -1`."""
    set_up_a_training(checkout, epochs=2)
    workspace = checkout.workspace
    outputs = (
        workspace.model_weights,
        workspace.model_description,
        workspace.metrics("train"),
        workspace.history,
    )
    for path in outputs:
        path.unlink(missing_ok=True)
    with started(checkout, "python", "stages/train.py", errors=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "train:\n"
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(120), said) == (0, "")
    assert [path.name for path in outputs if not path.exists()] == []
    assert last_step(checkout) == 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize(("stage", "output"), [("download", "data/raw"), ("prepare", "data/prepared")])
def test_a_stage_whose_only_line_nobody_reads_has_done_its_work(
    checkout: Checkout, stage: str, output: str
) -> None:
    folder = checkout.root / output
    names = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder)
    with started(checkout, "python", f"stages/{stage}.py") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0
    assert {path.name for path in folder.iterdir()} == names
