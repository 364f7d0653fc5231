"""Time of a training with checkpoints, tracking and progress on a GPU over the time without them.

    uv run python -m benchmarks.gpu_overhead --keep gpu-overhead

Whole trainings by a recipe over random pictures, in turns: with all of it on (journal, TensorBoard with pictures, graph
and histograms, MLflow on SQLite, checkpoints by interval and at the end, a progress bar) and with all of it off. A
training with it is timed from before its tracker is opened until that is closed and MLflow has everything, one without
it from the first step to the end of the last validation; both until the GPU has done what it was given.

Not counted is what a process pays once, on either side: recording or compiling the steps, setting MLflow's store up,
importing mlflow. How long that import takes is said with the result, and so is the ratio of the training loop alone,
without what starts and ends a run.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import torch

from benchmarks.command import add_keep, new_parser, positive, tell
from benchmarks.gpu_training import recipe_on_gpu, restarted, seconds_to_end, wait_for
from benchmarks.overhead_costs import Terminal, import_cost, recorder_for, tracked, with_own_store
from benchmarks.pairs import alternate, ratios
from benchmarks.random_task import new_fit, random_task
from benchmarks.result import Result, Spread
from cifarflow import errors
from cifarflow.allocator import keep_freed_memory
from cifarflow.compute.choices import choose_device
from cifarflow.config import Config
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit

GOAL = 1.03
ON, OFF = "on", "off"


@dataclass(kw_only=True, slots=True)
class Trainings:
    """Whole trainings, one after the other, from the first weights in the same memory, which recorded steps read."""

    config: Config
    fit: Fit
    """What each of them starts as; it saves nothing and tells nobody."""
    folder: Path
    loop_seconds: list[float] = field(default_factory=list)
    """Of the training loop alone, in each training with everything on."""
    _runs: int = 0

    def off(self) -> float:
        fit = restarted(self.fit, self.config, seed=self.config.seed)
        return self._seconds(fit.run, io.StringIO())

    def on(self) -> float:
        """Each is a run of its own, since the journal takes every (metric, step) of a run once."""
        self._runs += 1
        fit = restarted(self.fit, self.config, seed=self.config.seed)
        return self._seconds(lambda: self._tracked(fit, name=f"run-{self._runs}"), Terminal())

    def _seconds(self, training: Callable[[], object], stream: TextIO) -> float:
        device = self.fit.task.compute.device
        wait_for(device)
        with contextlib.redirect_stdout(stream):
            return seconds_to_end(training, device)

    def _tracked(self, fit: Fit, *, name: str) -> None:
        """As stages/train.py does it."""
        saved = Checkpoints(self.folder / "saved" / name, self.config.checkpoint.interval_seconds)
        with tracked(self.config, self.folder, fit.task, name=name) as tracker:
            recorder = recorder_for(tracker, self.config, self.folder)
            recorder.start(fit.task, fit.state.model)
            fit = replace(fit, checkpoints=saved, on_epoch=recorder.epoch)
            self.loop_seconds.append(seconds_to_end(fit.run, fit.task.compute.device))
            tracker.artifact(recorder.history, folder="plots")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Seconds of the trainings that were timed, one of each list a round."""

    on: list[float]
    off: list[float]
    loop: list[float]
    """Of those with everything on, the training loop alone."""
    import_seconds: float
    """Processor time of the import of mlflow, once a process and in neither list."""


def main() -> None:
    arguments = _parser().parse_args()
    choose_device("cuda")  # which refuses where there is no GPU
    keep_freed_memory()  # as stages/start.py does
    os.environ["TERM"] = "xterm-256color"  # so that the bar is drawn in full
    config = recipe_on_gpu(arguments.recipe, compile=arguments.compile)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, Path(folder), rounds=arguments.rounds)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, recipe {arguments.recipe}"
    tell(result_of(found, machine=machine + ", compiled" * arguments.compile), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("--recipe", default="cifar94", help="(default cifar94)")
    parser.add_argument("--rounds", type=positive, default=10, help="trainings a side (default 10)")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: shorter trainings")
    parser.add_argument("--json", action="store_true", help="end with the result as a line of JSON")
    add_keep(parser)
    return parser


def measure(config: Config, folder: Path, *, rounds: int, count: int | None = None) -> Found:
    """Train by `config` in turns, with all that is written under `folder`; `count` is that of `random_task`."""
    config = with_own_store(config, folder)
    fit = new_fit(random_task(config, count=count), config)
    imported = import_cost(config)
    trainings = Trainings(config=config, fit=fit, folder=folder)
    for turn in (trainings.off, trainings.on):
        turn()  # in which steps are recorded or compiled, and MLflow's store is set up
    trainings.loop_seconds.clear()
    seconds = alternate({ON: trainings.on, OFF: trainings.off}, rounds=rounds)
    return Found(on=seconds[ON], off=seconds[OFF], loop=trainings.loop_seconds, import_seconds=imported)


def result_of(found: Found, *, machine: str) -> Result:
    """By medians of the trainings of each side; prints them."""
    on, off, loop = Spread.of(found.on), Spread.of(found.off), Spread.of(found.loop)
    print("| a training | seconds: median (min to max) |")
    print("|---|---|")
    print(f"| with everything on | {on} |")
    print(f"| of that, the training loop | {loop} |")
    print(f"| with everything off | {off} |")
    spread = Spread.of(ratios(found.on, found.off))
    return Result(
        name="training with checkpoints, tracking and progress on a GPU",
        against="the same without them",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=on.median / off.median,
        low=spread.low,
        high=spread.high,
        rounds=len(found.on),
        note=f"{machine}; {off.median:.3g} s a training without; the training loop alone "
        f"{loop.median / off.median:.4g}; not counted: mlflow's import, {found.import_seconds:.2g} s once a process",
    )


if __name__ == "__main__":
    sys.exit(errors.run(main))
