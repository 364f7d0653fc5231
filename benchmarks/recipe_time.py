"""Seconds of training of the default recipe over those of the public 94 % record, on this machine.

Steps of both sides alternate, so that what disturbs one disturbs the other; of each turn the second step counts,
since the first pays for the other side's traces in caches and memory. The time of a training is the sum, over its
schedule, of the median time of each kind of step. The pictures are random: the time does not depend on them.

    uv run python -m benchmarks.recipe_time --rounds 7
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import airbench94
from cifarflow.config import Config, load_config
from cifarflow.data.augment import Augmentation
from cifarflow.data.batches import BatchPlan
from cifarflow.data.packed import DatasetInfo
from cifarflow.provenance import processor_name
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.hardware import plan_compute
from cifarflow.training.optimizers import schedule_groups
from cifarflow.training.task import Pictures, Task

PROJECT = Path(__file__).resolve().parents[1]
CLASSES = tuple("0123456789")
Kind = tuple[str, int, bool]
"""A kind of step: side, pixels, and whether the bias of the whitening layer is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each kind")
    rounds = parser.parse_args().rounds
    config = load_config(PROJECT / "recipes" / "cifar94.yaml")
    task = random_task(config)
    ours, reference = our_steps(task, config), reference_steps(task)
    schedule = our_schedule(task, config)
    seconds: dict[Kind, list[float]] = {kind: [] for kind in (*ours, *reference)}
    for _ in range(rounds):
        for kind, step in {**reference, **ours}.items():
            step()
            start = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - start)
    report(seconds, schedule + reference_schedule(), config, rounds)


def random_task(config: Config) -> Task:
    """The default recipe's task over as many random pictures as it trains on."""
    count = round(airbench94.TRAINING_PICTURES * (1 - config.data.validation_fraction))
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    pictures = Pictures(images=images, labels=torch.randint(0, 10, (count,)))
    dataset = DatasetInfo(
        source="random",
        classes=CLASSES,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.29, 0.29, 0.29),
        counts={},
        digests={},
        validation_indices_digest=None,
    )
    return Task(
        config=config.train,
        compute=plan_compute(config.train),
        train=pictures,
        validation=pictures,
        dataset=dataset,
        batches=BatchPlan(count=count, batch_size=config.train.batch_size, seed=config.seed),
        augmentation=Augmentation(**config.train.augment.model_dump(), seed=config.seed),
    )


def our_schedule(task: Task, config: Config) -> Counter[Kind]:
    """How many steps of each kind the default recipe takes."""
    until = config.train.optimizer.muon.input_bias_until
    total = task.total_steps
    return Counter(("ours", task.pixels_at(step), step / total < until) for step in range(total))


def reference_schedule() -> Counter[Kind]:
    early = airbench94.steps() * airbench94.WHITEN_BIAS_EPOCHS // airbench94.EPOCHS
    return Counter({("record", 32, True): early, ("record", 32, False): airbench94.steps() - early})


def our_steps(task: Task, config: Config) -> dict[Kind, Callable[[], None]]:
    model = task.new_model(config.model, seed=config.seed)
    fit = Fit.start(task, model, checkpoints=Checkpoints(Path("never"), 1e9), on_epoch=lambda _: None)
    batch = task.batches.batches(0)[0]

    def step(pixels: int, *, progress: float) -> None:
        schedule_groups(fit.state.optimizers, progress=progress, factor=lambda _: 1e-6)
        images = task.augmentation(task.train.images, batch, epoch=0, step=0)
        fit.step.clear_gradients()
        fit.step(images, task.train.labels[batch], task.preprocess(pixels))
        if config.train.averaging.start < 1:
            fit.state.average_weights()  # counted in every step, though the early ones do without

    kinds = our_schedule(task, config)
    return {kind: lambda kind=kind: step(kind[1], progress=0.0 if kind[2] else 0.999) for kind in kinds}


def reference_steps(task: Task) -> dict[Kind, Callable[[], None]]:
    reference = airbench94.Reference()
    batch = torch.arange(airbench94.BATCH_SIZE)
    layout = torch.channels_last

    def step(number: int) -> None:
        images = task.augmentation(task.train.images, batch, epoch=0, step=0)
        pixels = task.preprocess(32)(images).contiguous(memory_format=layout)
        reference.step(pixels, task.train.labels[batch], number=number)

    return {
        ("record", 32, True): lambda: step(0),
        ("record", 32, False): lambda: step(airbench94.steps() - 1),
    }


def report(seconds: dict[Kind, list[float]], schedule: Counter[Kind], config: Config, rounds: int) -> None:
    print(
        f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds"
    )
    print("| side | pixels | first bias | steps | median s a step | min to max |")
    print("|---|---|---|---|---|---|")
    totals: Counter[str] = Counter()
    for kind, times in seconds.items():
        side, pixels, bias = kind
        median = statistics.median(times)
        totals[side] += schedule[kind] * median  # pyright: ignore[reportArgumentType]
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(
            f"| {side} | {pixels} | {'yes' if bias else 'no'} | {schedule[kind]} | {median:.3f} | {spread} |"
        )
    print(
        f"record: {totals['record']:.0f} s for {airbench94.EPOCHS} epochs; ours: {totals['ours']:.0f} s for ",
        end="",
    )
    print(f"{config.train.epochs:g} epochs; ratio {totals['ours'] / totals['record']:.3f}")


if __name__ == "__main__":
    main()
