"""Augmented pictures a second, whole batches of bytes against one picture at a time in worker processes.

Both shift by up to 2 pixels with mirrored edges, mirror, change brightness and contrast where the default recipe does,
and give batches of its size: cifarflow's `Augmentation` in this process, torchvision.transforms.v2 on uint8 tensors
(less than half of what PIL pictures take) in a DataLoader with 2 workers. Workers are started, and the padded copies
of all pictures made, before the clock is.

    uv run python -m benchmarks.augmentation
"""

import contextlib
import multiprocessing
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks import command
from benchmarks.command import Effort
from benchmarks.pairs import alternate, ratios, seconds_of
from benchmarks.result import Result, Spread
from benchmarks.setting import PUBLISHED_TRAINING_PICTURES, recipe_on_cpu
from cifarflow.config.schema import AugmentConfig
from cifarflow.data.augment import Augmentation
from cifarflow.data.batches import BatchPlan

GOAL = 20.0
WORKERS = 2


class OneByOne(Dataset[Tensor]):
    """uint8 `[N, 3, H, W]`, each picture varied as `settings` ask when it is asked for."""

    def __init__(self, images: Tensor, settings: AugmentConfig) -> None:
        self.images = images
        shift, light = settings.translate_pixels, (settings.brightness, settings.contrast)
        steps = [
            v2.RandomCrop(images.shape[-1], padding=shift, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
        ]
        if any(light):
            steps.append(v2.ColorJitter(brightness=light[0], contrast=light[1]))
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def measure(effort: Effort) -> Result:
    config = recipe_on_cpu("cifar94")
    count, batch_size = PUBLISHED_TRAINING_PICTURES, config.train.batch_size
    seconds = both_sides(config.train.augment, count=count, batch_size=batch_size, rounds=effort.rounds)
    print(f"{count:,} pictures a turn in batches of {batch_size}, torch {torch.__version__}")
    print("| side | pictures a second: median (min to max) |")
    print("|---|---|")
    rates = {side: [count / time for time in times] for side, times in seconds.items()}
    for side, values in rates.items():
        print(f"| {side} | {Spread.of(values)} |")
    spread = Spread.of(ratios(rates["cifarflow"], rates["torchvision"]))
    return Result(
        name="augmentation, pictures a second",
        against=f"torchvision v2 a picture, DataLoader with {WORKERS} workers",
        goal=GOAL,
        at_least=True,
        unit="x",
        value=spread.median,
        low=spread.low,
        high=spread.high,
        rounds=effort.rounds,
    )


def both_sides(
    settings: AugmentConfig, *, count: int, batch_size: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds for all pictures once, by side and round."""
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    batches = BatchPlan(count=count, batch_size=batch_size, seed=0).batches(0)
    augmentation = Augmentation(images=images, **settings.model_dump(), seed=0)
    dataset = OneByOne(images.permute(0, 3, 1, 2).contiguous(), settings)

    def whole_batches() -> None:
        for step, batch in enumerate(batches):
            augmentation(batch, epoch=0, step=step)

    with workers_for(dataset, batch_size=batch_size) as loader:

        def one_by_one() -> None:
            seen = sum(len(batch) for batch in loader)
            assert seen == count, f"the loader gave {seen} of {count} pictures"

        one_by_one()  # starts the workers
        whole_batches()
        turns = {
            "cifarflow": lambda: seconds_of(whole_batches),
            "torchvision": lambda: seconds_of(one_by_one),
        }
        return alternate(turns, rounds=rounds)


@contextlib.contextmanager
def workers_for(dataset: Dataset[Tensor], *, batch_size: int) -> Iterator[DataLoader[Tensor]]:
    """A shuffling loader that keeps its workers from turn to turn; they have ended when the block has."""
    loader = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    before = set(multiprocessing.active_children())
    try:
        yield loader
    finally:
        loader._iterator = None  # a loader has no close(); its iterator ends the workers when it goes
        left = set(multiprocessing.active_children()) - before
        for worker in left:
            worker.terminate()
            worker.join()
        assert not left, f"{len(left)} workers had to be ended by force"


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=7, quick_rounds=2)
