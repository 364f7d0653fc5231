"""Seconds of training of the default recipe over those of the public 94 % record, on this machine.

Steps of both sides alternate, so that what disturbs one disturbs the other; of each turn the second step counts,
since the first pays for the other side's traces in caches and memory. The time of a training is the sum, over its
schedule, of the median time of each kind of step. The pictures are random: the time does not depend on them.

    uv run python -m benchmarks.recipe_time --rounds 7
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from benchmarks import airbench94, command
from benchmarks.command import Effort
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import alternate, ratios, second_of_two
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe_on_cpu
from cifarflow.config import Config
from cifarflow.data.augment import Augmentation
from cifarflow.data.batches import BatchPlan
from cifarflow.data.packed import DatasetInfo
from cifarflow.training.fit import Fit
from cifarflow.training.hardware import plan_compute
from cifarflow.training.optimizers import schedule_groups
from cifarflow.training.task import Pictures, Task

GOAL = 0.35
CLASSES = tuple("0123456789")


class Kind(NamedTuple):
    """Steps that take the same time."""

    side: str
    pixels: int
    first_bias: bool
    """Whether the bias of the whitening layer is trained."""
    pictures: int


def measure(effort: Effort) -> Result:
    config = recipe_on_cpu("cifar94")
    task = random_task(config)
    steps = {**reference_steps(task), **our_steps(new_fit(task, config), config)}
    schedule = our_schedule(task, config) + reference_schedule()
    seconds = alternate({kind: second_of_two(step) for kind, step in steps.items()}, rounds=effort.rounds)
    print(f"{task.compute.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    report(seconds, schedule, config)
    ours, record = (side_only(seconds, side) for side in ("ours", "record"))
    spread = Spread.of(ratios(seconds_a_round(ours, schedule), seconds_a_round(record, schedule)))
    return Result(
        name="training time of the default recipe",
        against="the public 94 % record (airbench94 with Muon)",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=training_seconds(ours, schedule) / training_seconds(record, schedule),
        low=spread.low,
        high=spread.high,
        rounds=effort.rounds,
    )


def random_task(config: Config, *, count: int | None = None) -> Task:
    """The default recipe's task over random pictures, as many as it trains on unless `count` says otherwise."""
    if count is None:
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
        compute=plan_compute(config.train, image_size=32),
        train=pictures,
        validation=pictures,
        dataset=dataset,
        batches=BatchPlan(count=count, batch_size=config.train.batch_size, seed=config.seed),
        augmentation=Augmentation(
            images=pictures.images, **config.train.augment.model_dump(), seed=config.seed
        ),
    )


def new_fit(task: Task, config: Config) -> Fit:
    """A training at its first step that saves nothing and tells nobody."""
    model = task.new_model(config.model, seed=config.seed)
    return Fit.start(task, model, checkpoints=NoCheckpoints(), on_epoch=lambda _: None)


def our_schedule(task: Task, config: Config) -> Counter[Kind]:
    """How many steps of each kind the default recipe takes."""
    until = config.train.optimizer.muon.input_bias_until
    total = task.total_steps
    drawn = len(task.batches.batches(0)[0])
    return Counter(
        Kind("ours", task.pixels_at(step), step / total < until, round(task.kept_at(step) * drawn))
        for step in range(total)
    )


def reference_schedule() -> Counter[Kind]:
    early = airbench94.steps() * airbench94.WHITEN_BIAS_EPOCHS // airbench94.EPOCHS
    late = airbench94.steps() - early
    return Counter({reference_kind(first_bias=True): early, reference_kind(first_bias=False): late})


def reference_kind(*, first_bias: bool) -> Kind:
    return Kind("record", 32, first_bias, airbench94.BATCH_SIZE)


def our_steps(fit: Fit, config: Config) -> dict[Kind, Callable[[], None]]:
    task = fit.task
    drawn = task.batches.batches(0)[0]

    def step(kind: Kind) -> None:
        freeze_as_in(kind, fit)
        batch = fit.state.difficulty.hardest(drawn, kind.pictures / len(drawn))
        images = task.augmentation(batch, epoch=0, step=0)
        fit.step.clear_gradients()
        losses, right = fit.step(images, task.train.labels[batch], task.preprocess(kind.pixels))
        fit.state.difficulty.learn(batch, losses, right)
        if config.train.averaging.start < 1:
            fit.state.average_weights()  # counted in every step, though the early ones do without

    return {kind: lambda kind=kind: step(kind) for kind in our_schedule(task, config)}


def freeze_as_in(kind: Kind, fit: Fit) -> None:
    """Train or freeze the whitening layer's bias; the rate is next to nothing, so no weight runs away."""
    schedule_groups(fit.state.optimizers, progress=0.0 if kind.first_bias else 0.999, factor=lambda _: 1e-6)


def reference_steps(task: Task) -> dict[Kind, Callable[[], None]]:
    reference = airbench94.Reference(task.compute)
    batch = torch.arange(airbench94.BATCH_SIZE)
    layout = torch.channels_last

    def step(number: int) -> None:
        images = task.augmentation(batch, epoch=0, step=0)
        pixels = task.preprocess(32)(images).contiguous(memory_format=layout)
        reference.step(pixels, task.train.labels[batch], number=number)

    return {
        reference_kind(first_bias=True): lambda: step(0),
        reference_kind(first_bias=False): lambda: step(airbench94.steps() - 1),
    }


def side_only(seconds: Mapping[Kind, list[float]], side: str) -> dict[Kind, list[float]]:
    return {kind: times for kind, times in seconds.items() if kind.side == side}


def training_seconds(seconds: Mapping[Kind, list[float]], schedule: Counter[Kind]) -> float:
    """A whole training, from the median time of each kind of step."""
    return sum(schedule[kind] * Spread.of(times).median for kind, times in seconds.items())


def seconds_a_round(seconds: Mapping[Kind, list[float]], schedule: Counter[Kind]) -> list[float]:
    """A whole training, from the times of each round alone."""
    weights = [schedule[kind] for kind in seconds]
    return [
        sum(weight * time for weight, time in zip(weights, times, strict=True))
        for times in zip(*seconds.values(), strict=True)
    ]


def report(seconds: Mapping[Kind, list[float]], schedule: Counter[Kind], config: Config) -> None:
    print("| side | pixels | pictures | first bias | steps | seconds a step: median (min to max) |")
    print("|---|---|---|---|---|---|")
    for kind, times in seconds.items():
        bias = "yes" if kind.first_bias else "no"
        cells = (kind.side, kind.pixels, kind.pictures, bias, schedule[kind], Spread.of(times))
        print("|", " | ".join(map(str, cells)), "|")
    for side, epochs in (("record", airbench94.EPOCHS), ("ours", config.train.epochs)):
        print(f"{side}: {training_seconds(side_only(seconds, side), schedule):.0f} s for {epochs:g} epochs")


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=7, quick_rounds=1)
