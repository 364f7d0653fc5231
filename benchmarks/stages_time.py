"""Seconds that the stages beside training take together: download (archive on disk), prepare, evaluate and export.

Each is the real script, a process of its own, in a temporary checkout, with tracking on; DVC's own work around it is
not counted. Between prepare and evaluate the network is trained for a step, which does not count either: evaluation
and export take as long whatever the weights. The quick form evaluates without shifted views, two in place of six.

    uv run python -m benchmarks.stages_time
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command
from benchmarks.arithmetic import matrix_products
from benchmarks.checkout import make_checkout, run_stage
from benchmarks.command import Effort
from benchmarks.memory import steps_an_epoch
from benchmarks.pairs import second_of_two
from benchmarks.result import Result, Spread
from benchmarks.setting import PUBLISHED_TEST_PICTURES, find_archive, recipe_on_cpu
from cifarflow.config import Config
from cifarflow.evaluation.evaluate import views_precision
from cifarflow.models import create_model

GOAL_SECONDS = 90.0
COUNTED = ("download", "prepare", "evaluate", "export")


def measure(effort: Effort) -> Result:
    if find_archive() is None:
        raise SystemExit("the archive of CIFAR-10 is not on this disk; set CIFAR10_ARCHIVE to its path")
    config = shortened(recipe_on_cpu("cifar94")) if effort.quick else recipe_on_cpu("cifar94")
    rounds = [one_round(config) for _ in range(effort.rounds)]
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
        note=arithmetic_alone(config) + "; evaluated without shifted views" * effort.quick,
    )


def shortened(config: Config) -> Config:
    """Without the shifted views, which take evaluate most of its time and show nothing that the others do not."""
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"shift_pixels": 0})})


def arithmetic_alone(config: Config) -> str:
    """What no program can save: the operations of evaluate and export, at the rates of large products."""
    model = create_model(config.model.name, num_classes=10, image_size=32, **config.model.options())
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 32, 32))
    flops = PUBLISHED_TEST_PICTURES * counter.get_total_flops()
    seconds, words = 0.0, []
    for dtype, passes in passes_in(config).items():
        product = matrix_products(dtype)
        rate = product.rates([second_of_two(product.action)()])[0]
        seconds += passes * flops / 1e9 / rate
        words.append(f"{passes} passes in {str(dtype).removeprefix('torch.')} at {rate:.0f} GFLOP/s")
    return (
        f"their arithmetic over the test pictures alone, {flops / 1e12:.1f} TFLOP a pass, takes {seconds:.0f} s at the "
        f"rates of large matrix products: {', '.join(words)}"
    )


def passes_in(config: Config) -> dict[torch.dtype, int]:
    """How often evaluate and export see the test pictures: as they are, its other views, by PyTorch, by onnxruntime."""
    views = (1 + config.evaluate.flip) * (3 if config.evaluate.shift_pixels else 1)
    if views_precision(config.evaluate) == "bf16":
        return {torch.float32: 3, torch.bfloat16: views - 1}
    return {torch.float32: views + 2}


def one_round(config: Config) -> dict[str, float]:
    """Seconds of each counted stage, in a checkout that has nothing yet; `config` is the recipe, or its quick form."""
    changes = {
        "train.epochs": 1 / steps_an_epoch(config),
        "evaluate.shift_pixels": config.evaluate.shift_pixels,
    }
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_checkout(Path(folder), recipe="cifar94", changes=changes)
        stages = ("download", "prepare", "train", "evaluate", "export")
        seconds = {stage: run_stage(workspace, stage).seconds for stage in stages}
    return {stage: seconds[stage] for stage in COUNTED}


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=3, quick_rounds=1)
