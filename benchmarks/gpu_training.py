"""Trainings of one recipe on a GPU, one after the other: what was recorded and compiled for the first serves all.

The public records' scripts do the same: a first training chooses and compiles kernels, and is not counted.
"""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import seconds_of
from benchmarks.published_script import Training
from benchmarks.random_task import random_task
from benchmarks.setting import PUBLISHED_TEST_PICTURES, recipe
from cifarflow.config import Config
from cifarflow.errors import ConfigError
from cifarflow.evaluation.metrics import accuracy
from cifarflow.evaluation.predict import Views, predict_views
from cifarflow.training.difficulty import Difficulty
from cifarflow.training.fit import Fit
from cifarflow.training.state import TrainState
from cifarflow.training.task import Pictures, Task
from cifarflow.training.watch import LossWatch
from cifarflow.workspace import Workspace

RECORDS_BATCH_SIZE = 2000


def recipe_on_gpu(name: str, **train: object) -> Config:
    """A recipe with batches as large as the record's: small ones leave a GPU idle."""
    return recipe(name, **{"device": "cuda", "batch_size": RECORDS_BATCH_SIZE, **train})


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """Trains `config` again and again; `test` is what each result is tested on."""

    config: Config
    fit: Fit
    test: Pictures
    answer: nn.Module
    """The network of `fit`, or its compiled form."""

    @classmethod
    def load(cls, config: Config, workspace: Workspace) -> "Trainer":
        """On data/prepared; MissingInputError when `prepare` has not run."""
        task = Task.load(config.train, seed=config.seed, workspace=workspace)
        return cls.start(config, task, Pictures.load("test", workspace, task.dataset, task.compute.device))

    @classmethod
    def over_random_pictures(cls, config: Config, *, count: int | None = None) -> "Trainer":
        """For times alone: they do not depend on the pictures. `count` is that of `random_task`."""
        task = random_task(config, count=count)
        tested = PUBLISHED_TEST_PICTURES
        test = Pictures(images=task.train.images[:tested], labels=task.train.labels[:tested])
        return cls.start(config, task, test)

    @classmethod
    def start(cls, config: Config, task: Task, test: Pictures) -> "Trainer":
        if config.train.averaging.start < 1:
            raise ConfigError(
                "the last weights are tested here, not an average of them; set averaging.start to 1"
            )
        model = task.new_model(config.model, seed=config.seed)
        fit = Fit.start(task, model, checkpoints=NoCheckpoints(), on_epoch=lambda _: None)
        return cls(config=config, fit=fit, test=test, answer=task.compute.compiled(model))

    def train(self, *, seed: int) -> Training:
        """From whitening to accuracy on the test split, both counted; the other first weights are not."""
        device = self.fit.task.compute.device
        fit = restarted(self.fit, self.config, seed=seed)
        wait_for(device)
        seconds = seconds_to_end(lambda: fit.task.whiten(fit.state.model), device)  # once more, the same
        with contextlib.redirect_stdout(io.StringIO()):  # no line for each epoch
            fit.run()
        seconds += sum(row["seconds"] for row in fit.state.history)
        start = time.perf_counter()
        right = accuracy(self._answers(fit), self.test.labels)
        wait_for(device)
        return Training(accuracy=right, seconds=seconds + time.perf_counter() - start)

    def _answers(self, fit: Fit) -> Tensor:
        """With test-time augmentation, by the last weights: those that a compiled step shares."""
        task, evaluate = fit.task, self.config.evaluate
        views = Views(
            flip=evaluate.flip,
            shift_pixels=evaluate.shift_pixels,
            in_bf16=task.compute.precision == "bf16",
        )
        with task.compute.autocast():
            _, averaged = predict_views(
                self.answer.eval(),
                self.test.images,
                preprocess=task.preprocess(task.dataset.image_size),
                batch_size=len(self.test.images) // 5 or 1,
                views=views,
            )
        return averaged


def restarted(fit: Fit, config: Config, *, seed: int) -> Fit:
    """`fit` at the first weights of `seed`, in the same memory, which recorded steps read and write."""
    task, step = fit.task, fit.step
    step.model.load_state_dict(task.new_model(config.model, seed=seed).state_dict())
    for state in (state for optimizer in step.optimizers for state in optimizer.state.values()):
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
    return replace(
        fit,
        task=replace(
            task,
            batches=replace(task.batches, seed=seed),
            augmentation=replace(task.augmentation, seed=seed),
        ),
        state=TrainState(
            model=step.model,
            optimizers=step.optimizers,
            difficulty=Difficulty.unknown(len(task.train.labels), task.compute.device),
            average_decay=task.config.averaging.decay,
        ),
        watch=LossWatch(),
    )


def seconds_to_end(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of `action`, with what it leaves the GPU to do."""
    return seconds_of(lambda: (action(), wait_for(device)))


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given; a processor has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
