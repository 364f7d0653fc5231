"""Seconds of training of the default recipe over those of the public 94 % record, on this machine.

Steps of both sides alternate, so that what disturbs one disturbs the other; of each turn the second step counts,
since the first pays for the other side's traces in caches and memory. The time of a training is the sum, over its
schedule, of the median time of each kind of step. The pictures are random: the time does not depend on them.

The record has a process of its own, with the system's allocator; a second one has that of the stages, which tells how
much of the ratio comes from there.

    uv run python -m benchmarks.recipe_time --rounds 7
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from benchmarks import airbench94, command
from benchmarks.command import Effort
from benchmarks.pairs import Turn, alternate, ratios, second_of_two
from benchmarks.random_task import new_fit, random_task
from benchmarks.record_process import RecordProcess
from benchmarks.result import Result, Spread
from benchmarks.setting import PUBLISHED_TRAINING_PICTURES, recipe_on_cpu
from cifarflow.config import Config
from cifarflow.training.fit import Fit
from cifarflow.training.optimizers import schedule_groups
from cifarflow.training.task import Task

GOAL = 0.35
OURS, RECORD, HELPED = "ours", "record", "record, our allocator"


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
    schedule = our_schedule(task, config) + record_schedule(RECORD) + record_schedule(HELPED)
    steps = our_steps(new_fit(task, config), config)
    with RecordProcess() as alone, RecordProcess(keeps_freed_memory=True) as helped:
        turns = {
            **record_turns(RECORD, alone),
            **record_turns(HELPED, helped),
            **{kind: second_of_two(step) for kind, step in steps.items()},
        }
        seconds = alternate(turns, rounds=effort.rounds)
    print(f"{task.compute.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    report(seconds, schedule, config)
    times = {side: side_only(seconds, side) for side in (OURS, RECORD, HELPED)}
    whole = {side: training_seconds(of_side, schedule) for side, of_side in times.items()}
    rounds = {side: seconds_a_round(of_side, schedule) for side, of_side in times.items()}
    spread = Spread.of(ratios(rounds[OURS], rounds[RECORD]))
    same = Spread.of(ratios(rounds[OURS], rounds[HELPED]))
    return Result(
        name="training time of the default recipe",
        against="the public 94 % record (airbench94 with Muon)",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=whole[OURS] / whole[RECORD],
        low=spread.low,
        high=spread.high,
        rounds=effort.rounds,
        note=f"against the record with the stages' allocator {whole[OURS] / whole[HELPED]:.4f} "
        f"({same.low:.4g} to {same.high:.4g}); {pictures_of_both(len(task.train.labels))}",
    )


def pictures_of_both(ours: int) -> str:
    """What an epoch of each side is: not quite the same."""
    held_out = PUBLISHED_TRAINING_PICTURES - ours
    return (
        f"an epoch of ours has {ours:,} pictures ({held_out:,} are held out to validate on), "
        f"one of the record's {airbench94.TRAINING_PICTURES:,}"
    )


def our_schedule(task: Task, config: Config) -> Counter[Kind]:
    """How many steps of each kind the default recipe takes."""
    until = config.train.optimizer.muon.input_bias_until
    total = task.total_steps
    drawn = len(task.batches.batches(0)[0])
    return Counter(
        Kind(OURS, task.pixels_at(step), step / total < until, round(task.kept_at(step) * drawn))
        for step in range(total)
    )


def record_schedule(side: str) -> Counter[Kind]:
    early = airbench94.steps() * airbench94.WHITEN_BIAS_EPOCHS // airbench94.EPOCHS
    late = airbench94.steps() - early
    return Counter({record_kind(side, first_bias=True): early, record_kind(side, first_bias=False): late})


def record_turns(side: str, process: RecordProcess) -> dict[Kind, Turn]:
    return {
        record_kind(side, first_bias=True): process.turn(0),
        record_kind(side, first_bias=False): process.turn(airbench94.steps() - 1),
    }


def record_kind(side: str, *, first_bias: bool) -> Kind:
    return Kind(side, 32, first_bias, airbench94.BATCH_SIZE)


def our_steps(fit: Fit, config: Config) -> dict[Kind, Callable[[], None]]:
    task = fit.task
    drawn = task.batches.batches(0)[0]

    def step(kind: Kind) -> None:
        freeze_as_in(kind, fit)
        batch = fit.state.difficulty.hardest(drawn, kind.pictures / len(drawn))
        images = task.augmentation(batch, epoch=0, step=0)
        fit.step.clear_gradients()
        losses, right = fit.take_step(images, task.train.labels[batch], task.preprocess(kind.pixels))
        fit.state.difficulty.learn(batch, losses, right)
        if config.train.averaging.start < 1:
            fit.state.average_weights()  # counted in every step, though the early ones do without

    return {kind: lambda kind=kind: step(kind) for kind in our_schedule(task, config)}


def freeze_as_in(kind: Kind, fit: Fit) -> None:
    """Train or freeze the whitening layer's bias; the rate is next to nothing, so no weight runs away."""
    schedule_groups(fit.state.optimizers, progress=0.0 if kind.first_bias else 0.999, factor=lambda _: 1e-6)


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
    for side, epochs in (
        (RECORD, airbench94.EPOCHS),
        (HELPED, airbench94.EPOCHS),
        (OURS, config.train.epochs),
    ):
        print(f"{side}: {training_seconds(side_only(seconds, side), schedule):.0f} s for {epochs:g} epochs")


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=7, quick_rounds=1)
