"""Seconds that the stages beside training take together: download (archive on disk), prepare, evaluate and export.

Each is the real script, a process of its own, in a temporary checkout, with tracking on; DVC's own work around it is
not counted. Between prepare and evaluate the network is trained for a step, which does not count either: evaluation
and export take as long whatever the weights.

    uv run python -m benchmarks.stages_time
"""

import tempfile
from pathlib import Path

from benchmarks import command
from benchmarks.checkout import make_checkout, run_stage
from benchmarks.command import Effort
from benchmarks.memory import steps_an_epoch
from benchmarks.result import Result, Spread
from benchmarks.setting import find_archive, recipe_on_cpu

GOAL_SECONDS = 90.0
COUNTED = ("download", "prepare", "evaluate", "export")


def measure(effort: Effort) -> Result:
    if find_archive() is None:
        raise SystemExit("the archive of CIFAR-10 is not on this disk; set CIFAR10_ARCHIVE to its path")
    rounds = [one_round() for _ in range(effort.rounds)]
    for stage in COUNTED:
        print(f"{stage}: {Spread.of(seconds[stage] for seconds in rounds)} s")
    together = Spread.of(sum(seconds.values()) for seconds in rounds)
    return Result(
        name="stages download, prepare, evaluate and export together",
        against="a limit",
        goal=GOAL_SECONDS,
        at_least=False,
        unit="s",
        value=together.median,
        low=together.low,
        high=together.high,
        rounds=effort.rounds,
    )


def one_round() -> dict[str, float]:
    """Seconds of each counted stage, in a checkout that has nothing yet."""
    changes = {"train.epochs": 1 / steps_an_epoch(recipe_on_cpu("cifar94"))}
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_checkout(Path(folder), recipe="cifar94", changes=changes)
        stages = ("download", "prepare", "train", "evaluate", "export")
        seconds = {stage: run_stage(workspace, stage).seconds for stage in stages}
    return {stage: seconds[stage] for stage in COUNTED}


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=3, quick_rounds=1)
