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

from cifarflow import files
from cifarflow.config import read_yaml
from tests.support.pipeline import Checkout, make_checkout

KILLS = int(os.environ.get("CIFARFLOW_KILLS", "5"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
SEED = int(os.environ.get("CIFARFLOW_KILLS_SEED", "0"))
EPOCHS = 8


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
    checkout = make_checkout(tmp_path_factory.mktemp("kills") / "checkout")
    checkout.run("cifarflow", "recipe", "shapes")
    checkout.set_params(
        train__epochs=str(EPOCHS),
        checkpoint__interval_seconds="0.05",
        data__shapes__train_count="400",
        data__shapes__test_count="100",
    )
    return checkout


def outputs(checkout: Checkout) -> dict[str, str]:
    """Digest of every output that holds no time, as dvc.lock has them."""
    stages = read_yaml(checkout.root / "dvc.lock")["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    timed = ("metrics/train.json", "metrics/export.json", "plots/history.csv")
    return {path: digest for path, digest in outs.items() if path not in timed}


def forget(checkout: Checkout) -> None:
    """As a fresh clone: nothing made, nothing cached, nothing recorded."""
    for name in ("dvc.lock", "mlflow.db"):
        (checkout.root / name).unlink(missing_ok=True)
    for folder in ("data/raw", "data/prepared", "models", "logs", "mlartifacts", ".cifarflow", ".dvc/cache"):
        shutil.rmtree(checkout.root / folder, ignore_errors=True)
    shutil.rmtree(checkout.root / ".dvc/tmp", ignore_errors=True)


def repro(checkout: Checkout, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(checkout.root / "src"),
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=checkout.root,
            env=environment,
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


def check_whole(checkout: Checkout, expected: dict[str, str], log: Path) -> None:
    assert outputs(checkout) == expected, log.read_text()
    for name, steps in metric_steps(checkout).items():
        assert steps == list(range(1, EPOCHS + 1)), name
    assert "Traceback" not in log.read_text()


def note(tally: Tally, log: Path) -> None:
    """Which stage a kill hit, by what dvc said last, and whether training had gone on from a checkpoint."""
    text = log.read_text()
    running = [line for line in text.splitlines() if line.startswith("Running stage")]
    stage = running[-1].split("'")[1] if running else "dvc itself"
    tally.by_stage[stage] = tally.by_stage.get(stage, 0) + 1
    tally.resumed += "going on from step" in text


def wait_for_a_moment(
    process: subprocess.Popen[bytes],
    log: Path,
    chance: random.Random,
    *,
    seconds: float,
    train_seconds: float,
) -> None:
    """Wait for a random moment, every other time one of training. Raises TimeoutExpired: kill it now.

    A third of the whole is longer than any stage, and the next start goes on with the stage that was killed: so every
    moment of every stage can be the one, and few waits last until the pipeline has ended.
    """
    if chance.random() < 0.5:
        process.wait(chance.uniform(0, seconds / 3))
        return
    while "epoch" not in log.read_text() and process.poll() is None:
        time.sleep(0.02)
    process.wait(chance.uniform(0, train_seconds))


def test_killed_at_any_moment_it_ends_with_the_same_bytes(checkout: Checkout, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    start = time.monotonic()
    assert repro(checkout, log).wait() == 0, log.read_text()
    seconds = time.monotonic() - start
    expected = outputs(checkout)
    train_seconds = files.read_json(checkout.workspace.metrics("train"))["seconds"]
    check_whole(checkout, expected, log)
    forget(checkout)
    chance, tally = random.Random(SEED), Tally()
    while True:
        process = repro(checkout, log)
        try:
            if tally.kills < KILLS:
                wait_for_a_moment(process, log, chance, seconds=seconds, train_seconds=train_seconds)
            if process.wait() != 0:
                assert "Next:" in checkout.run("cifarflow", "mend").output, log.read_text()
                tally.mended += 1
                continue
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.kills += 1
            note(tally, log)
            continue
        tally.finished += 1
        tally.resumed += "going on from step" in log.read_text()
        check_whole(checkout, expected, log)
        if tally.kills >= KILLS:
            break
        forget(checkout)
    print(json.dumps(vars(tally)))
    assert tally.kills == KILLS
    assert tally.resumed > 0 or KILLS < 5, "no kill hit training: nothing was shown"
