"""Peak resident memory of the real train stage with the default recipe, as the system counts it for that process.

The stage runs as it does under DVC, with tracking, TensorBoard and checkpoints, but ends after a few steps at each
size of pictures and one validation: what a step needs does not grow from epoch to epoch.

    uv run python -m benchmarks.memory
"""

import math
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks import command
from benchmarks.checkout import fill_prepared, make_checkout, run_program, run_stage
from benchmarks.command import Effort
from benchmarks.result import Result, Spread
from benchmarks.setting import PUBLISHED_TRAINING_PICTURES, recipe_on_cpu
from cifarflow.config import Config

GOAL_GIB = 3.0
GIB = 1 << 30
STEPS_A_SIZE, STEPS_A_SIZE_QUICK = 4, 2


def measure(effort: Effort) -> Result:
    config = recipe_on_cpu("cifar94")
    steps = steps_that_see_every_size(config, each=STEPS_A_SIZE_QUICK if effort.quick else STEPS_A_SIZE)
    changes = {"train.epochs": steps / steps_an_epoch(config), "checkpoint.interval_seconds": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_checkout(Path(folder), recipe="cifar94", changes=changes)
        origin = fill_prepared(workspace)
        floor = run_program([sys.executable, "-c", "pass"], workspace).peak_bytes
        usages = [run_stage(workspace, "train") for _ in range(effort.rounds)]
    peak = Spread.of(usage.peak_bytes / GIB for usage in usages)
    seconds = Spread.of(usage.seconds for usage in usages)
    require_above(floor, [usage.peak_bytes for usage in usages])
    print(f"a process that does nothing is counted as {floor / GIB:.3f} GiB here")
    print(f"{origin}; {steps} steps a training; GiB: {peak}; {seconds} s for each training, start to end")
    return Result(
        name="peak resident memory of stages/train.py",
        against="a limit",
        goal=GOAL_GIB,
        at_least=False,
        unit="GiB",
        value=peak.median,
        low=peak.low,
        high=peak.high,
        rounds=effort.rounds,
        note=origin,
    )


def require_above(floor: int, peaks: Sequence[int]) -> None:
    """Linux counts a new process from the size of the one that started it: a large starter would hide a small stage."""
    if min(peaks) <= floor:
        raise RuntimeError(
            f"peaks {list(peaks)} bytes are not above the {floor} of a process that does nothing"
        )


def steps_an_epoch(config: Config) -> int:
    kept = PUBLISHED_TRAINING_PICTURES * (1 - config.data.validation_fraction)
    return math.ceil(round(kept) / config.train.batch_size)


def steps_that_see_every_size(config: Config, *, each: int) -> int:
    """The fewest steps of which every size of the recipe's pictures gets at least `each`."""
    bounds = [0.0, *(stage.until for stage in config.train.resolution), 1.0]
    shortest = min(end - start for start, end in pairwise(bounds))
    return math.ceil((each + 1) / shortest)


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=3, quick_rounds=1)
