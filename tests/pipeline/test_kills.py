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
from typing import TYPE_CHECKING

import pytest

from cifarflow import files
from cifarflow.config import flatten
from cifarflow.tracking.tensorboard import chart_of
from cifarflow.training.report import HISTORY_COLUMNS
from tests.support.pipeline import (
    OF_THE_CLOCK,
    SMALL_EPOCHS,
    Checkout,
    history,
    make_small_pipeline,
    output_digests,
    tensorboard_of,
    undisturbed_digests,
)
from tests.support.store import Store

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KILLS = int(os.environ.get("CIFARFLOW_KILLS", "5"))
KILLS_A_PASS = 5
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
# With this seed the five hit train in its loop and at its start, and the others before a fast machine ends them.
SEED = int(os.environ.get("CIFARFLOW_KILLS_SEED", "14096"))
# Stages in their order, the seconds after their start within which a kill comes (what follows a stage is DVC's own
# work), and how often it is theirs: most kills belong to the stage that people wait for.
STAGES = ("download", "prepare", "train", "evaluate", "export")
SECONDS = {"download": 2, "prepare": 2, "train": 10, "evaluate": 10, "export": 14}
WEIGHTS = (1, 1, 4, 2, 2)
# Every other kill of train comes this soon after its first epoch: in the loop, not in what it imports.
LOOP_SECONDS = 2
EPOCHS = list(range(1, SMALL_EPOCHS + 1))
METRICS = HISTORY_COLUMNS[1:]  # all that an epoch reports
SIX_DIGITS = 1e-5  # those of plots/history.csv, and of TensorBoard's float32


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


def check_whole(checkout: Checkout, log: Path) -> None:
    """No number is lost, doubled or another one, wherever it is kept."""
    recorded = mlflow_metrics(checkout)
    check_against_the_files(recorded, checkout)
    check_tensorboard(recorded, checkout)
    assert "Traceback" not in log.read_text()


def mlflow_metrics(checkout: Checkout) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every metric, of the one run that a whole pipeline makes."""
    store = Store.copied_from(checkout.workspace)
    run = store.run()
    assert run.info.status == "FINISHED"
    return {name: store.history(run, name) for name in run.data.metrics}


def check_against_the_files(recorded: dict[str, list[tuple[int, float]]], checkout: Checkout) -> None:
    """The clock is left out: an epoch that is trained again takes another time, and the first record stays."""
    rows, workspace = history(checkout), checkout.workspace
    for name in METRICS:
        assert [step for step, _ in recorded[name]] == EPOCHS, name
        if name not in OF_THE_CLOCK:
            values = [value for _, value in recorded[name]]
            assert values == pytest.approx([row[name] for row in rows], rel=SIX_DIGITS), name
    results = {
        f"{prefix}_{name}": value
        for prefix, stage in (("test", "evaluation"), ("export", "export"))
        for name, value in flatten(files.read_json(workspace.metrics(stage)))
        if not isinstance(value, str) and not name.startswith("latency")
    }
    assert len(results) > len(METRICS)
    assert {name: recorded[name] for name in results} == {
        name: [(0, value)] for name, value in results.items()
    }


def check_tensorboard(recorded: dict[str, list[tuple[int, float]]], checkout: Checkout) -> None:
    """Every scalar, histogram and picture once a step, and the numbers as in MLflow."""
    (folder,) = checkout.workspace.tensorboard_logs.iterdir()
    events = tensorboard_of(folder)
    assert set(events.Tags()["scalars"]) == {chart_of(name) for name in METRICS}
    for name in METRICS:
        values = [value for _, value in recorded[name]]
        shown = [event.value for event in events.Scalars(chart_of(name))]
        assert shown == pytest.approx(values, rel=SIX_DIGITS), name
    steps = steps_shown(events)
    assert {tag.split("/")[0] for tag in steps} >= {"loss", "pictures", "weights", "gradients"}
    for tag, found in steps.items():
        assert found == ([0] if tag.startswith("pictures/") else EPOCHS), tag
    later = [steps_shown(tensorboard_of(path)) for path in folder.iterdir() if path.is_dir()]
    assert len(later) == len(("evaluate", "export"))
    assert all(found == [0] for stage in later for found in stage.values())


def steps_shown(events: "EventAccumulator") -> dict[str, list[int]]:
    """Of every scalar, histogram and picture."""
    readers = {"scalars": events.Scalars, "histograms": events.Histograms, "images": events.Images}
    return {
        tag: [event.step for event in read(tag)]
        for kind, read in readers.items()
        for tag in events.Tags()[kind]
    }


def check_run_cache(checkout: Checkout) -> None:
    """What killed stages made is in DVC's run cache: with all of it gone, and the record too, no stage runs again."""
    (checkout.root / "dvc.lock").unlink()
    for folder in ("data/raw", "data/prepared", "models", "metrics", "plots"):
        shutil.rmtree(checkout.root / folder)
    outcome = checkout.dvc("repro")
    assert (outcome.ran, outcome.restored) == ([], list(STAGES))


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
    while not comes_to(stage, log.read_text(), in_the_loop=in_the_loop) and process.poll() is None:
        time.sleep(0.02)
    process.wait(chance.uniform(0, LOOP_SECONDS if in_the_loop else SECONDS[stage]))


def comes_to(stage: str, text: str, *, in_the_loop: bool) -> bool:
    """Whether `stage` runs, or one behind it: the kill before may have come when it was already done."""
    signs = [f"Running stage '{later}'" for later in STAGES[STAGES.index(stage) + in_the_loop :]]
    return any(sign in text for sign in [*signs, *(["epoch"] if in_the_loop else [])])


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

    check_run_cache(checkout)
    assert output_digests(checkout) == ends[-1]

    def undisturbed() -> Checkout:
        forget(checkout)
        checkout.dvc("repro")
        return checkout

    expected = undisturbed_digests(session_folder, undisturbed)
    assert ends == [expected] * tally.finished
    assert tally.resumed > 0 or KILLS < 5, "no kill hit training: nothing was shown"
    check_that_the_stages_were_hit(tally)


def check_that_the_stages_were_hit(tally: Tally) -> None:
    """Of few kills most; which ones hangs on how fast the machine is."""
    assert sum(tally.by_stage.values()) == tally.kills
    assert "train" in tally.by_stage and len(tally.by_stage) >= min(3, tally.kills)
    if KILLS >= 100:
        assert tally.by_stage.keys() >= set(STAGES)
