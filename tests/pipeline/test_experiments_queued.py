"""DVC's own queue, whose workers run three experiments at once, beside an open `mlflow ui`."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pipeline import Checkout, make_checkout
from tests.support.store import Store, mlflow_ui, shown

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="DVC's queue was not tried there"),
]
EPOCHS = (2, 3, 4)
SECONDS = 240  # more than three trainings of seconds need, on a machine that has other work


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkout]:
    """Prepared and committed; the queue's workers are ended afterwards."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    checkout = make_checkout(tmp_path / "checkout")
    checkout.run("cifarflow", "recipe", "shapes")
    checkout.set_params(
        data__shapes__train_count="200",
        data__shapes__test_count="100",
        tracking__tensorboard__enabled="false",
        tracking__mlflow__timeout_seconds="60",
    )
    checkout.dvc("repro", "prepare")
    checkout.commit("prepared")
    yield checkout
    checkout.dvc("queue", "stop", "--kill", expect=None)


def statuses(checkout: Checkout) -> list[str]:
    """Of every experiment in the queue: Queued, Running, Success or Failed."""
    known = {"Queued", "Running", "Success", "Failed"}
    lines = checkout.dvc("queue", "status").output.splitlines()
    return [status for line in lines for status in known & set(line.split())]


def test_a_queue_of_three_at_once_beside_the_ui_arrives_whole(checkout: Checkout) -> None:
    for epochs in EPOCHS:
        checkout.dvc(
            "exp", "run", "--queue", "-n", f"epochs-{epochs}", "-S", f"train.epochs={epochs}", "train"
        )
    assert statuses(checkout) == ["Queued"] * len(EPOCHS)
    with mlflow_ui(checkout.workspace) as address:
        checkout.dvc("queue", "start", "-j", str(len(EPOCHS)))
        until = time.monotonic() + SECONDS
        while set(statuses(checkout)) & {"Queued", "Running"}:
            shown(address)  # raises when the UI answers with an error
            assert time.monotonic() < until, statuses(checkout)
        logs = {
            f"epochs-{epochs}": checkout.dvc("queue", "logs", f"epochs-{epochs}").output for epochs in EPOCHS
        }
        assert statuses(checkout) == ["Success"] * len(EPOCHS), logs
        assert sorted(shown(address).values()) == ["FINISHED"] * len(EPOCHS)

    assert not any("Traceback" in log or "ERROR" in log for log in logs.values()), logs
    store = Store.of(checkout.workspace)
    steps = [[step for step, _ in store.history(run, "train_loss")] for run in store.runs()]
    assert sorted(steps, key=len) == [list(range(1, epochs + 1)) for epochs in EPOCHS]
    assert checkout.dvc("exp", "list", "--name-only").output.split() == [
        f"epochs-{epochs}" for epochs in EPOCHS
    ]
