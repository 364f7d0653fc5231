"""Seconds an epoch of the course's network in cifarflow's loop over those of the course's own plain loop.

Both train the same network from the same weights on the same pictures, batch 64, SGD 0.01, on one machine in turns of
some steps: cifarflow by its real `Fit.run` (in the precision and layout that it chooses here), the course by a Dataset
of PIL pictures, ToTensor, DataLoader(batch_size=64, shuffle=True) and float32. The course does not normalise, so mean
and spread are set to 0 and 1 here: then the loss curves can be compared, seed by seed.

Both run in one process, so the course's loop has the stages' allocator too.

How near the limit the figure is, the note says: the time of the counted operations of an epoch at the rate of a large
matrix product in the same run, over the time of the course's loop.

    uv run python -m benchmarks.course_epoch
"""

import contextlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import ToTensor

from benchmarks import command, loss_curves
from benchmarks.arithmetic import COUNTED_HERE, matrix_products
from benchmarks.command import Effort
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import ratios, second_of_two
from benchmarks.pictures import CLASSES, training_pictures
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe_on_cpu
from cifarflow.compute.plan import plan_compute
from cifarflow.config import Config
from cifarflow.data.augment import Augmentation
from cifarflow.data.batches import BatchPlan
from cifarflow.data.packed import DatasetInfo, Split
from cifarflow.training.fit import Fit
from cifarflow.training.task import Pictures, Task

GOAL = 0.2
BATCH_SIZE, LEARNING_RATE = 64, 0.01
STEPS_AN_EPOCH = math.ceil(50_000 / BATCH_SIZE)


class PilPictures(Dataset[tuple[Tensor, int]]):
    """What torchvision.datasets.CIFAR10 is once it is loaded: an array, and a PIL picture made at each access."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images, split.labels.tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def course_network() -> nn.Sequential:
    """Three 5x5 convolutions with pooling and two linear layers, as the course writes it."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, 10),
    )


@dataclass(slots=True)
class Side:
    """What one side's turns found: seconds, and the mean loss a picture."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class CourseLoop:
    """The course's training loop, some steps at a time."""

    def __init__(self, split: Split, weights: dict[str, Tensor], *, seed: int) -> None:
        self.network = course_network()
        self.network.load_state_dict(weights)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE)
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(PilPictures(split), batch_size=BATCH_SIZE, shuffle=True, generator=generator)
        self.batches = iter(loader)
        self.side = Side()

    def take(self, steps: int) -> None:
        start, loss_sum = time.perf_counter(), 0.0
        for _ in range(steps):
            images, targets = next(self.batches)
            loss = self.loss(self.network(images), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item()
        self.side.seconds.append(time.perf_counter() - start)
        self.side.losses.append(loss_sum / steps)


class Turns(NoCheckpoints):
    """Stands where the loop asks after every step whether to save; there the other side gets its turns.

    Nothing in `Fit.run` has to be rebuilt for it: what is timed between two turns is the real loop.
    """

    def __init__(self, length: int, other: Callable[[], None]) -> None:
        super().__init__()
        self.length, self.other = length, other
        self.side = Side()
        self.fit: Fit | None = None
        self._steps = 0
        self._start = time.perf_counter()

    def begin(self, fit: Fit) -> None:
        self.fit, self._start = fit, time.perf_counter()

    def is_due(self) -> bool:
        self._steps += 1
        if self._steps % self.length == 0:
            self.side.seconds.append(time.perf_counter() - self._start)
            assert self.fit is not None
            self.side.losses.append(self._mean_loss(self.fit))
            self.other()
            self._start = time.perf_counter()
        return False

    def _mean_loss(self, fit: Fit) -> float:
        """Of the pictures of this turn; the batches of an epoch share none, so each loss is still there."""
        last = fit.state.step
        turn = fit.task.batches.batches(0)[last - self.length : last]
        return fit.state.difficulty.losses[torch.cat(turn)].mean().item()


def measure(effort: Effort) -> Result:
    config = recipe_on_cpu("tudui")
    origin = training_pictures(config)
    steps, length = (100, 50) if effort.quick else (700, 100)
    train_both(config, origin.split, seed=0, steps=10, length=10)  # what the first steps of a process pay
    product = matrix_products(product_dtype(config))
    pairs, product_rates = [], []
    for seed in range(1, effort.rounds + 1):
        pairs.append(train_both(config, origin.split, seed=seed, steps=steps, length=length))
        product_rates.append(*product.rates([second_of_two(product.action)()]))
    print(f"{origin.text}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    ours, course = ([time for pair in pairs for time in pair[side].seconds] for side in (0, 1))
    epochs = [Spread.of(t * STEPS_AN_EPOCH / length for t in times) for times in (ours, course)]
    print(f"seconds an epoch of {STEPS_AN_EPOCH} steps, from {len(ours)} turns of {length} steps a side:")
    print(f"cifarflow {epochs[0]}, the course's loop {epochs[1]}")
    operations = step_flops(config, origin.split) * STEPS_AN_EPOCH / 1e9
    rate = Spread.of(product_rates)
    print(f"{operations:.0f} GFLOP an epoch; a large matrix product: {rate} GFLOP/s")
    limit = operations / rate.median / epochs[1].median
    spread = Spread.of(ratios(ours, course))
    return Result(
        name="epoch of the course's network",
        against="the course's loop (PIL pictures, DataLoader, fp32)",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=epochs[0].median / epochs[1].median,
        low=spread.low,
        high=spread.high,
        rounds=len(ours),
        note=f"{compare_losses(pairs)}; its arithmetic alone, at the rate of a large matrix product: {limit:.2f}"
        + ("" if origin.real else "; random pictures"),
    )


def product_dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if plan_compute(config.train, image_size=32).precision == "bf16" else torch.float32


def step_flops(config: Config, split: Split) -> int:
    """Counted operations of the forward and backward pass of one step, without products with padding."""
    task = course_task(config, split, steps=1, seed=0)
    never = NoCheckpoints()
    fit = Fit.start(task, task.new_model(config.model, seed=0), checkpoints=never, on_epoch=lambda _: None)
    with FlopCounterMode(display=False, custom_mapping=COUNTED_HERE) as counter:
        fit.step(
            task.train.images[:BATCH_SIZE],
            task.train.labels[:BATCH_SIZE],
            task.preprocess(split.images.shape[1]),
        )
    return counter.get_total_flops()


def train_both(config: Config, split: Split, *, seed: int, steps: int, length: int) -> tuple[Side, Side]:
    """Train one seed on both sides, `length` steps a turn: cifarflow's side and the course's."""
    task = course_task(config, split, steps=steps, seed=seed)
    network = task.new_model(config.model, seed=seed)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    course = CourseLoop(split, weights, seed=seed)
    turns = Turns(length, lambda: course.take(length))
    fit = Fit.start(task, network, checkpoints=turns, on_epoch=lambda _: None)
    turns.begin(fit)
    with contextlib.redirect_stdout(io.StringIO()):  # its line an epoch
        fit.run()
    return turns.side, course.side


def course_task(config: Config, split: Split, *, steps: int, seed: int) -> Task:
    """The recipe's task for its first `steps` steps, over pictures in [0, 1] as the course has them."""
    pictures = Pictures(images=torch.from_numpy(split.images), labels=torch.from_numpy(split.labels))
    few = Pictures(images=pictures.images[:BATCH_SIZE], labels=pictures.labels[:BATCH_SIZE])
    batches = BatchPlan(count=len(pictures.labels), batch_size=BATCH_SIZE, seed=seed)
    train = config.train.model_copy(update={"epochs": steps / batches.steps_per_epoch})
    return Task(
        config=train,
        compute=plan_compute(train, image_size=split.images.shape[1]),
        train=pictures,
        validation=few,
        dataset=DatasetInfo(
            source="course",
            classes=CLASSES,
            image_size=split.images.shape[1],
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            counts={},
            digests={},
            validation_indices_digest=None,
        ),
        batches=batches,
        augmentation=Augmentation(images=pictures.images, **train.augment.model_dump(), seed=seed),
    )


def compare_losses(pairs: list[tuple[Side, Side]]) -> str:
    """Print both loss curves over the seeds; in words, whether they are one curve within what seeds scatter."""
    curves = [(ours.losses, course.losses) for ours, course in pairs]
    return loss_curves.compare(curves, sides=("cifarflow", "course"))


if __name__ == "__main__":
    command.run(measure, description=__doc__, rounds=5, quick_rounds=2)
