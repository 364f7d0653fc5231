"""Time of a training with checkpoints, tracking and progress over the time without them.

Two answers. Turns: the default recipe at 20 pixels only, where a step is shortest and so the rest weighs most, with
all of it on (journal, TensorBoard with histograms, MLflow on SQLite, progress bar, a checkpoint each minute and at the
end) and with all of it off, an epoch each in turns. Sums: each extra call measured by itself and counted as often as
the real schedule makes it, over the time of the real steps. A difference of 1 % drowns in the noise of the first, so
the second is the figure, and the first is there to contradict it if it can.

    uv run python -m benchmarks.overhead
"""

import contextlib
import io
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch

from benchmarks import command
from benchmarks.command import Effort
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.overhead_costs import (
    Costs,
    Terminal,
    epoch_costs,
    import_cost,
    recorder_for,
    run_cost,
    save_costs,
    step_costs,
    tracked,
    with_own_store,
)
from benchmarks.pairs import alternate, ratios, second_of_two, seconds_of
from benchmarks.random_task import new_fit, random_task
from benchmarks.recipe_time import our_schedule, our_steps, training_seconds
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe_on_cpu
from cifarflow.config import Config
from cifarflow.config.schema import ResolutionStep
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.report import Recorder
from cifarflow.training.task import Task

GOAL = 1.01
PIXELS = 20
STEPS_A_TURN, STEPS_A_TURN_QUICK = 24, 2
STEP_ROUNDS, RUN_ROUNDS = 3, 3


@dataclass(kw_only=True, slots=True)
class Side:
    """A training that goes on by one epoch at each turn, as a resumed one would."""

    fit: Fit
    stream: TextIO

    def turn(self) -> float:
        task = self.fit.task
        config = task.config.model_copy(update={"epochs": float(len(self.fit.state.history) + 1)})
        self.fit = replace(self.fit, task=replace(task, config=config))
        with contextlib.redirect_stdout(self.stream):
            return seconds_of(self.fit.run)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """All that was measured at one size of pictures."""

    turns: list[float]
    """Time of an epoch with everything on over one with everything off, a pair each."""
    costs: Costs
    store_seconds: float
    """Setting up MLflow's store, once a checkout: not a part of the costs."""


def measure(effort: Effort) -> Result:
    os.environ["TERM"] = "xterm-256color"  # so that the bar is drawn in full
    config = recipe_on_cpu("cifar94")
    steps = STEPS_A_TURN_QUICK if effort.quick else STEPS_A_TURN
    with tempfile.TemporaryDirectory() as folder:
        found = measure_all(
            with_own_store(config, Path(folder)), Path(folder), steps=steps, rounds=effort.rounds
        )
    task = random_task(config)
    schedule = our_schedule(task, config)
    kinds = our_steps(new_fit(task, config), config)
    seconds = alternate(
        {kind: second_of_two(step) for kind, step in kinds.items()}, rounds=min(effort.rounds, STEP_ROUNDS)
    )
    real = training_seconds(seconds, schedule)
    smallest = min(Spread.of(times).median for times in seconds.values()) * task.total_steps
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; turns of {steps} steps at {PIXELS} px"
    )
    report(found, config, total_steps=task.total_steps, real=real, smallest=smallest)
    value, low, high = (
        ratio(found.costs, at, config, steps=task.total_steps, seconds=real)
        for at in ("median", "low", "high")
    )
    return Result(
        name="training with checkpoints, tracking and progress",
        against="the same without them",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=value,
        low=low,
        high=high,
        rounds=effort.rounds,
        note=note_of(found),
    )


def measure_all(config: Config, folder: Path, *, steps: int, rounds: int) -> Found:
    """Turns of epochs of `steps` steps, then each cost by itself, in one process and one store."""
    task = hard_task(config, steps=steps)
    few = min(rounds, RUN_ROUNDS)
    imported = import_cost(config)
    off = Side(fit=fit_for(task, config, NoCheckpoints()), stream=io.StringIO())
    first_run = run_cost(config, folder, off.fit, name="first")
    runs = [run_cost(config, folder, off.fit, name=f"run-{number}") for number in range(few)]
    with tracked(config, folder, task, name="turns") as tracker:
        recorder = recorder_for(tracker, config, folder)
        checkpoints = Checkpoints(folder / "saved", config.checkpoint.interval_seconds)
        on = Side(fit=fit_for(task, config, checkpoints, recorder), stream=Terminal())
        for side in (off, on):
            side.turn()  # what the first steps of a process pay
        turns = alternate({"on": on.turn, "off": off.turn}, rounds=rounds)
        epochs = epoch_costs(on.fit, recorder, rounds=few)
    saves = save_costs(on.fit, folder, rounds=few)
    calls, drawing = step_costs(rounds=few)
    costs = Costs(
        step=Spread.of(calls),
        bar=Spread.of(drawing),
        epoch=Spread.of(epochs),
        save=Spread.of(saves),
        run=Spread.of(imported + run for run in runs),
    )
    return Found(
        turns=ratios(turns["on"], turns["off"]),
        costs=costs,
        store_seconds=max(0.0, first_run - Spread.of(runs).median),
    )


def hard_task(config: Config, *, steps: int) -> Task:
    """The recipe's task at the smallest pictures only, an epoch of `steps` steps; no step is dearer than another."""
    muon = config.train.optimizer.muon.model_copy(update={"input_bias_until": 1.0})
    train = config.train.model_copy(
        update={
            "resolution": (ResolutionStep(until=0.9999, pixels=PIXELS),),
            "selection": (),
            "optimizer": config.train.optimizer.model_copy(update={"muon": muon}),
            "averaging": config.train.averaging.model_copy(update={"start": 1.0}),
        }
    )
    return random_task(config.model_copy(update={"train": train}), count=steps * train.batch_size)


def fit_for(task: Task, config: Config, checkpoints: Checkpoints, recorder: Recorder | None = None) -> Fit:
    model = task.new_model(config.model, seed=config.seed)
    on_epoch = recorder.epoch if recorder is not None else lambda state: None
    return Fit.start(task, model, checkpoints=checkpoints, on_epoch=on_epoch)


def ratio(costs: Costs, at: str, config: Config, *, steps: int, seconds: float) -> float:
    """The sums for a whole training by the recipe that takes `seconds`."""
    return costs.ratio(
        at,
        steps=steps,
        epochs=config.train.epochs,
        seconds=seconds,
        save_interval=config.checkpoint.interval_seconds,
    )


def note_of(found: Found) -> str:
    return (
        f"from the cost of each call; in whole turns at {PIXELS} px {Spread.of(found.turns)}; setting up MLflow's "
        f"store, once a checkout, is not counted: {found.store_seconds:.3g} s"
    )


def report(found: Found, config: Config, *, total_steps: int, real: float, smallest: float) -> None:
    """`real` and `smallest` are the seconds of a training by the recipe, and by its quickest steps only."""
    print(f"time of an epoch, on over off: {Spread.of(found.turns)}")
    print("| what | seconds: median (min to max) |")
    print("|---|---|")
    for label, spread in found.costs.rows():
        print(f"| {label} | {spread} |")
    print(f"| setting up MLflow's store, once a checkout and not counted | {found.store_seconds:.3g} |")
    for label, seconds in (("the real mix", real), ("the quickest steps only", smallest)):
        sums = ratio(found.costs, "median", config, steps=total_steps, seconds=seconds)
        print(f"sums over {total_steps} steps, {label}, {seconds:.0f} s: {sums:.5f}")


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=5, quick_rounds=1)
