"""Time to a recipe's accuracy on a GPU, over that of a public record's own script on the same GPU.

Needs the pictures (`uv run dvc repro prepare`) and a clone of github.com/KellerJordan/cifar10-airbench:

    uv run python -m benchmarks.gpu_time --script ../cifar10-airbench/airbench94_muon.py
    uv run python -m benchmarks.gpu_time --recipe cifar96 --target 0.96 --runs 10 \\
        --script ../cifar10-airbench/airbench96_faster.py

A training is timed alike on both sides: first weights, steps and test-time augmentation. Not counted are a first
training, in which kernels are chosen and compiled, and the accuracy after each epoch. The record trains on all 50,000
pictures, ours without those held out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.command import positive
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import seconds_of
from benchmarks.published_script import Training, run_script
from benchmarks.result import Result
from benchmarks.setting import PROJECT, recipe
from cifarflow import errors
from cifarflow.config import Config
from cifarflow.evaluation.metrics import accuracy
from cifarflow.evaluation.predict import Views, predict_views
from cifarflow.training.fit import Fit
from cifarflow.training.task import Pictures, Task
from cifarflow.workspace import Workspace

GOAL = 0.9
RECORDS_BATCH_NORM_MOMENTUM = 0.4


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if not arguments.script.is_file():
        parser.error(f"--script: there is no file {arguments.script}; it lies in a clone of cifar10-airbench")
    config = recipe_on_gpu(arguments.recipe)
    workspace = Workspace.at(PROJECT, {})
    train_once(config, workspace, seed=0)  # kernels are chosen; and what is missing for ours is found at once
    record = run_script(arguments.script.resolve(), runs=arguments.runs)
    ours = [train_once(config, workspace, seed=seed) for seed in range(1, arguments.runs + 1)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.runs} trainings a side")
    result = compare(ours, record, target=arguments.target, against=arguments.script.name)
    print(result.sentence)
    if arguments.json:
        print(result.to_json())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True, help="the record's script, in its repository")
    parser.add_argument("--recipe", default="cifar94", help="ours (default cifar94)")
    parser.add_argument("--target", type=float, default=0.94, help="mean test accuracy to reach, in (0, 1)")
    parser.add_argument("--runs", type=positive, default=50, help="trainings a side, seeds 1 to RUNS")
    parser.add_argument("--json", action="store_true", help="end with the result as a line of JSON")
    return parser


def recipe_on_gpu(name: str) -> Config:
    """A recipe with whole batches: small ones are for a processor's cache, and leave a GPU idle.

    Batch norm then sees one batch a step instead of several, so each weighs as much as the record's.
    """
    config = recipe(name, device="cuda", micro_batch_size="auto")
    speednet = config.model.speednet.model_copy(update={"batch_norm_momentum": RECORDS_BATCH_NORM_MOMENTUM})
    return config.model_copy(update={"model": config.model.model_copy(update={"speednet": speednet})})


def train_once(config: Config, workspace: Workspace, *, seed: int) -> Training:
    """Train on data/prepared and test; MissingInputError when `prepare` has not run."""
    task = Task.load(config.train, seed=seed, workspace=workspace)
    device = task.compute.device
    test = Pictures.load(workspace.split("test"), device)
    start = time.perf_counter()
    model = task.new_model(config.model, seed=seed)
    _finish(device)
    seconds = time.perf_counter() - start
    fit = Fit.start(task, model, checkpoints=NoCheckpoints(), on_epoch=lambda _: None)
    fit.run()
    seconds += sum(row["seconds"] for row in fit.state.history)
    start = time.perf_counter()
    _, averaged = predict_views(
        fit.state.result.eval(),
        test.images,
        preprocess=task.preprocess(task.dataset.image_size),
        batch_size=len(test.images) // 5 or 1,
        views=Views(
            flip=config.evaluate.flip,
            shift_pixels=config.evaluate.shift_pixels,
            in_bf16=task.compute.precision == "bf16",
        ),
    )
    _finish(device)
    seconds += time.perf_counter() - start
    return Training(accuracy=accuracy(averaged, test.labels), seconds=seconds)


def seconds_to_end(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of `action`, with what it leaves the GPU to do."""
    return seconds_of(lambda: (action(), _finish(device)))


def _finish(device: torch.device) -> None:
    """Wait for what a GPU still has to do; a processor has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(ours: Sequence[Training], record: Sequence[Training], *, target: float, against: str) -> Result:
    """Mean time over mean time. Raises SystemExit when a side misses the target: its time is to something else."""
    for side, trainings in (("ours", ours), (against, record)):
        print(f"{side}: {described(trainings)}")
        if (mean := statistics.fmean(one.accuracy for one in trainings)) < target:
            raise SystemExit(
                f"{side} reaches {mean:.4f} as a mean, below {target}: no time to {target} to compare"
            )
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
