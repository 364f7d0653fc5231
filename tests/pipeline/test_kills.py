"""`dvc repro` killed by SIGKILL at random moments and started again: it ends with the same bytes, no number is lost.

Where a kill hits DVC while it writes its own files, the next repro stops, and `cifarflow mend` makes it go on
(docs/reliability.md). Five kills belong to `uv run pytest`; `make torture` sets CIFARFLOW_KILLS=100 and prints what
came of them.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.pipeline import (
    SMALL_EPOCHS,
    Checkout,
    make_small_pipeline,
    output_digests,
    undisturbed_digests,
)

KILLS = int(os.environ.get("CIFARFLOW_KILLS", "5"))
KILLS_A_PASS = 5
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
# With 14096 the five hit download, train (its loop, its start), evaluate and export, before a fast machine ends them.
SEED = int(os.environ.get("CIFARFLOW_KILLS_SEED", "14096"))
# Stages in their order, the seconds after their start within which a kill comes (what follows a stage is DVC's own
# work), and how often it is theirs: most kills belong to the stage that people wait for.
STAGES = ("download", "prepare", "train", "evaluate", "export")
SECONDS = {"download": 2, "prepare": 2, "train": 10, "evaluate": 10, "export": 14}
WEIGHTS = (1, 1, 4, 2, 2)
# Every other kill of train comes this soon after its first epoch: in the loop, not in what it imports.
LOOP_SECONDS = 2


@dataclass(kw_only=True)
class Tally:
    """What the kills hit and what came of them."""

    kills: int = 0
    finished: int = 0
    resumed: int = 0
    mended: int = 0
    by_stage: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = make_small_pipeline(tmp_path_factory.mktemp("kills") / "checkout")
    checkout.set_params(checkpoint__interval_seconds="0.05")
    return checkout


def forget(checkout: Checkout) -> None:
    """As a fresh clone: nothing made, nothing cached, nothing recorded."""
    for name in ("dvc.lock", "mlflow.db"):
        (checkout.root / name).unlink(missing_ok=True)
    for folder in ("data/raw", "data/prepared", "models", "logs", "mlartifacts", ".cifarflow", ".dvc/cache"):
        shutil.rmtree(checkout.root / folder, ignore_errors=True)
    shutil.rmtree(checkout.root / ".dvc/tmp", ignore_errors=True)


def repro(checkout: Checkout, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=checkout.root,
            env=checkout.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def metric_steps(checkout: Checkout) -> dict[str, list[int]]:
    """Steps of every per-epoch metric in the MLflow store, of the one run that a whole pipeline makes."""
    client = MlflowClient(f"sqlite:///{checkout.workspace.mlflow_database.as_posix()}")
    experiment = client.get_experiment_by_name("cifarflow")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        for name in ("train_loss", "validation_loss", "validation_accuracy", "learning_rate")
    }


def check_whole(checkout: Checkout, log: Path) -> None:
    for name, steps in metric_steps(checkout).items():
        assert steps == list(range(1, SMALL_EPOCHS + 1)), name
    assert "Traceback" not in log.read_text()


def note(tally: Tally, log: Path) -> None:
    """Which stage a kill hit, by what dvc said last, and whether training had gone on from a checkpoint."""
    text = log.read_text()
    running = [line for line in text.splitlines() if line.startswith("Running stage")]
    stage = running[-1].split("'")[1] if running else "dvc itself"
    tally.by_stage[stage] = tally.by_stage.get(stage, 0) + 1
    tally.resumed += "going on from step" in text


def wait_for_a_moment(process: subprocess.Popen[bytes], log: Path, chance: random.Random, stage: str) -> None:
    """Wait until `stage` runs, and then for a random moment. Raises TimeoutExpired: kill it now."""
    in_the_loop = stage == "train" and chance.random() < 0.5
    sign = "epoch" if in_the_loop else f"Running stage '{stage}'"
    while sign not in log.read_text() and process.poll() is None:
        time.sleep(0.02)
    process.wait(chance.uniform(0, LOOP_SECONDS if in_the_loop else SECONDS[stage]))


def stages_to_kill(chance: random.Random, count: int) -> list[str]:
    """In the order in which one pipeline comes to them: a start goes on with the stage that was killed."""
    return sorted(chance.choices(STAGES, WEIGHTS, k=count), key=STAGES.index)


def run_killed(checkout: Checkout, log: Path, chance: random.Random, tally: Tally) -> None:
    """One pipeline to its end, killed on its way."""
    planned = stages_to_kill(chance, min(KILLS_A_PASS, KILLS - tally.kills))
    while True:
        process = repro(checkout, log)
        try:
            if planned:
                wait_for_a_moment(process, log, chance, planned[0])
            code = process.wait()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.kills += 1
            note(tally, log)
            planned.pop(0)
            continue
        tally.resumed += "going on from step" in log.read_text()
        if code == 0:
            return
        assert "Next:" in checkout.run("cifarflow", "mend").output, log.read_text()
        tally.mended += 1


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    checkout: Checkout, tmp_path: Path, session_folder: Path
) -> None:
    log = tmp_path / "log.txt"
    chance, tally, ends = random.Random(SEED), Tally(), []
    while tally.kills < KILLS:
        forget(checkout)
        run_killed(checkout, log, chance, tally)
        tally.finished += 1
        check_whole(checkout, log)
        ends.append(output_digests(checkout))
        print(json.dumps({"seed": SEED, **vars(tally)}), flush=True)

    def undisturbed() -> Checkout:
        forget(checkout)
        checkout.dvc("repro")
        return checkout

    expected = undisturbed_digests(session_folder, undisturbed)
    assert ends == [expected] * tally.finished
    assert tally.resumed > 0 or KILLS < 5, "no kill hit training: nothing was shown"
