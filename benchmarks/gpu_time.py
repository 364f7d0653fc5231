"""Time to a recipe's accuracy on a GPU, over that of a public record's own script on the same GPU.

Needs the pictures (`uv run dvc repro prepare`) and a clone of github.com/KellerJordan/cifar10-airbench:

    uv run python -m benchmarks.gpu_time --compile --keep gpu-94 --recipe gpu94 \\
        --script ../cifar10-airbench/airbench94_muon.py
    uv run python -m benchmarks.gpu_time --compile --keep gpu-96 --recipe cifar96 --target 0.96 --runs 10 \\
        --script ../cifar10-airbench/airbench96_faster.py

A training is timed alike on both sides: whitening, steps and test-time augmentation. Not counted are the other first
weights, a first training, in which kernels are chosen and compiled, and the accuracy after each epoch. The record
trains on all 50,000 pictures, ours without those held out.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.command import add_keep, new_parser, positive, tell
from benchmarks.gpu_training import Trainer, recipe_on_gpu
from benchmarks.published_script import Training, run_script
from benchmarks.result import Result
from benchmarks.setting import PROJECT
from cifarflow import errors
from cifarflow.workspace import Workspace

GOAL = 0.9


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if not arguments.script.is_file():
        parser.error(f"--script: there is no file {arguments.script}; it lies in a clone of cifar10-airbench")
    config = recipe_on_gpu(arguments.recipe, compile=arguments.compile)
    trainer = Trainer.load(config, Workspace.at(PROJECT, {}))
    first = trainer.train(seed=0)
    print(f"our first training, in which steps are recorded or compiled: {first.seconds:.1f} s", flush=True)
    ours = [trainer.train(seed=seed) for seed in range(1, arguments.runs + 1)]
    check_accuracy("ours", ours, target=arguments.target)  # before the minutes of the other side
    record = run_script(arguments.script.resolve(), runs=arguments.runs)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(f"{machine}, {arguments.runs} trainings a side")
    result = compare(ours, record, target=arguments.target, against=arguments.script.name, note=machine)
    tell(result, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("--script", type=Path, required=True, help="the record's script, in its repository")
    parser.add_argument("--recipe", default="gpu94", help="ours (default gpu94)")
    parser.add_argument("--target", type=float, default=0.94, help="mean test accuracy to reach, in (0, 1)")
    parser.add_argument("--runs", type=positive, default=50, help="trainings a side, seeds 1 to RUNS")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile, as the record's")
    parser.add_argument("--json", action="store_true", help="end with the result as a line of JSON")
    add_keep(parser)
    return parser


def compare(
    ours: Sequence[Training], record: Sequence[Training], *, target: float, against: str, note: str = ""
) -> Result:
    """Mean time over mean time, of `ours` that reach the target. Raises SystemExit when the record misses it."""
    check_accuracy(against, record, target=target)
    below = statistics.fmean(one.seconds for one in record)
    single = [one.seconds / below for one in ours]
    return Result(
        name=f"time to {target:.1%} on a GPU, mean of {len(ours)} trainings",
        against=against,
        goal=GOAL,
        at_least=False,
        unit="x",
        value=statistics.fmean(single),
        low=min(single),
        high=max(single),
        rounds=len(ours),
        note=note,
    )


def check_accuracy(side: str, trainings: Sequence[Training], *, target: float) -> None:
    """Say what they reached. Raises SystemExit when it is less than `target`: their time is to something else."""
    print(f"{side}: {described(trainings)}", flush=True)
    if (mean := statistics.fmean(one.accuracy for one in trainings)) < target:
        raise SystemExit(
            f"{side} reaches {mean:.4f} as a mean, below {target}: no time to {target} to compare"
        )


def described(trainings: Sequence[Training]) -> str:
    accuracies = [one.accuracy for one in trainings]
    seconds = [one.seconds for one in trainings]
    spread = f", standard deviation {statistics.stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
    return (
        f"accuracy {statistics.fmean(accuracies):.4f}{spread}; "
        f"{statistics.fmean(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
    )


if __name__ == "__main__":
    sys.exit(errors.run(main))
