"""What checkpoints, tracking and progress cost, each call by itself: 1 % of a step drowns in the noise of whole steps.

A cost is the time until the call returns plus the processor time that its background threads take afterwards: that is
all they can take from training, and more than they do where a core is free.
"""

import contextlib
import io
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import seconds_of
from benchmarks.result import Spread
from benchmarks.setting import PROJECT
from cifarflow.config import Config
from cifarflow.provenance import tracked_stage
from cifarflow.tracking.mlflow_tracker import SQLITE, prepare_environment
from cifarflow.tracking.tracker import Tracker
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.progress import training_progress
from cifarflow.training.report import HISTORY_COLUMNS, Recorder, write_history
from cifarflow.training.task import Task
from cifarflow.training.watch import Seen
from cifarflow.workspace import Workspace

STEP_CALLS = 2_000
QUIET_SECONDS, QUIET_SHARE, LONGEST_WAIT_SECONDS = 0.4, 0.03, 60.0
BAR_SECONDS = 4.0
IMPORTS = 3
IMPORT = """
import sys, time
sys.path.insert(0, "stages")
import start  # as a stage does: it also sets how often Python looks for garbage
import benchmarks.overhead_costs
before = time.process_time()
import mlflow
print(time.process_time() - before)
"""


class Terminal(io.StringIO):
    """Takes a progress bar as a terminal would: the dearest form of progress."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds of each thing."""

    step: Spread
    """Progress bar told of a step, and the question whether to save."""
    bar: Spread
    """The bar's drawing thread, a second."""
    epoch: Spread
    """History, journal, TensorBoard with histograms, MLflow."""
    save: Spread
    """One checkpoint."""
    run: Spread
    """Once a training: mlflow imported, the run made, pictures and graph drawn, the history kept, the run closed."""

    def rows(self) -> list[tuple[str, Spread]]:
        """Each cost with its name for people."""
        return [
            ("a step: progress bar told, checkpoint asked for", self.step),
            ("a second of the bar's drawing", self.bar),
            ("an epoch: history, journal, TensorBoard, MLflow", self.epoch),
            ("a checkpoint", self.save),
            ("a run: import of mlflow, start, graph and pictures, history kept, end", self.run),
        ]

    def ratio(self, at: str, *, steps: int, epochs: float, seconds: float, save_interval: float) -> float:
        """Time with them over time without, for a training of `seconds`; `at` is median, low or high."""
        saves = seconds / save_interval + 1  # `Fit.run` saves once more at its end
        costs = {name: getattr(getattr(self, name), at) for name in ("step", "bar", "epoch", "save", "run")}
        counts = {"step": steps, "bar": seconds, "epoch": math.ceil(epochs), "save": saves, "run": 1}
        return 1 + sum(costs[name] * counts[name] for name in counts) / seconds


def cost_of(call: Callable[[], object]) -> float:
    """Seconds until the call returns, and the processor seconds of what goes on behind it."""
    return seconds_of(call) + background_seconds()


def background_seconds() -> float:
    """Wait until the other threads of this process rest; the processor time that they took."""
    total, waited = 0.0, 0.0
    while waited < LONGEST_WAIT_SECONDS:
        start = time.process_time()
        time.sleep(QUIET_SECONDS)
        taken = time.process_time() - start
        total, waited = total + taken, waited + QUIET_SECONDS
        if taken < QUIET_SHARE * QUIET_SECONDS:
            break
    return total


def with_own_store(config: Config, folder: Path) -> Config:
    """All views on, MLflow's store a SQLite file in `folder` whatever the environment names."""
    tracking = config.tracking
    mlflow = tracking.mlflow.model_copy(
        update={"enabled": True, "uri": SQLITE + (folder / "mlflow.db").as_posix()}
    )
    board = tracking.tensorboard.model_copy(update={"enabled": True, "graph": True, "histograms": True})
    return config.model_copy(
        update={"tracking": tracking.model_copy(update={"mlflow": mlflow, "tensorboard": board})}
    )


@contextlib.contextmanager
def tracked(config: Config, folder: Path, task: Task, *, name: str) -> Iterator[Tracker]:
    """The train stage's tracker, with everything that it writes under `folder`."""
    workspace = Workspace(root=PROJECT, home=folder)
    with tracked_stage("train", config, workspace, run_key=name, dataset=task.dataset, tags={}) as tracker:
        yield tracker


def recorder_for(tracker: Tracker, config: Config, folder: Path) -> Recorder:
    return Recorder(tracker=tracker, views=config.tracking.tensorboard, history=folder / "history.csv")


def import_cost(config: Config) -> float:
    """Processor seconds of the import of mlflow, the median of new processes; torch is there already.

    A training imports it in a thread beside its first steps: what a disk takes for it is not taken from training.
    """
    prepare_environment(config.tracking.mlflow)
    command = [sys.executable, "-c", IMPORT]
    return Spread.of(
        float(subprocess.check_output(command, cwd=PROJECT, text=True)) for _ in range(IMPORTS)
    ).median


def run_cost(config: Config, folder: Path, fit: Fit, *, name: str) -> float:
    """Of one run's start and end, as stages/train.py makes them; the first run of a store also sets the store up."""
    stack = contextlib.ExitStack()
    row = {str(name): 0.123456 for name in HISTORY_COLUMNS}
    history = folder / "history.csv"
    # Not counted: a training that is not tracked writes it too.
    write_history([row] * math.ceil(config.train.epochs), history)

    def start() -> None:
        tracker = stack.enter_context(tracked(config, folder, fit.task, name=name))
        recorder_for(tracker, config, folder).start(fit.task, fit.state.model)
        stack.callback(lambda: tracker.artifact(history, folder="plots"))  # the last that a run is told

    return cost_of(start) + cost_of(stack.close)


def epoch_costs(fit: Fit, recorder: Recorder, *, rounds: int) -> list[float]:
    """Of reporting an epoch; each gets a number of its own, since the journal takes every (metric, step) once."""
    costs = []
    for _ in range(rounds):
        last = fit.state.history[-1]
        fit.state.history.append({**last, "epoch": last["epoch"] + 1})
        costs.append(cost_of(lambda: recorder.epoch(fit.state)))
    return costs


def save_costs(fit: Fit, folder: Path, *, rounds: int) -> list[float]:
    checkpoints = Checkpoints(folder / "checkpoints", math.inf)
    return [
        cost_of(lambda step=step: checkpoints.save(fit.state.snapshot(gradients=False), step=step))
        for step in range(rounds)
    ]


def step_costs(*, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the extra calls of one step, and processor seconds a second of the bar's drawing thread."""
    checkpoints = NoCheckpoints()
    calls, drawing = [], []
    for _ in range(rounds):
        with training_progress(STEP_CALLS, stream=Terminal()) as progress:

            def all_steps() -> None:
                for step in range(STEP_CALLS):
                    progress.step(step, Seen(1 / (step + 1), 0.5), images_per_second=step)
                    checkpoints.is_due()

            calls.append(seconds_of(all_steps) / STEP_CALLS)
            start = time.process_time()
            time.sleep(BAR_SECONDS)
            drawing.append((time.process_time() - start) / BAR_SECONDS)
    return calls, drawing
