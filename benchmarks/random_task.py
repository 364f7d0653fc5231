"""A recipe's training over random pictures: the time of a step does not depend on them."""

import torch

from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.setting import PUBLISHED_TRAINING_PICTURES
from cifarflow.compute.plan import plan_compute
from cifarflow.compute.processes import Processes
from cifarflow.config import Config
from cifarflow.data.augment import Augmentation, gather
from cifarflow.data.batches import BatchPlan
from cifarflow.data.packed import DatasetInfo
from cifarflow.training.fit import Fit
from cifarflow.training.task import Pictures, Task

CLASSES = tuple("0123456789")


def random_task(config: Config, *, count: int | None = None, processes: Processes | None = None) -> Task:
    """The default recipe's task over random pictures, as many as it trains on unless `count` says otherwise.

    It validates on the first of them, as many as the recipe holds out where there are so many. The process is set up
    for its plan, as stages/train.py sets itself up.
    """
    processes = processes or Processes()
    if count is None:
        count = round(PUBLISHED_TRAINING_PICTURES * (1 - config.data.validation_fraction))
    compute = plan_compute(config.train, image_size=32, processes=processes)
    compute.take_effect()
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    pictures = Pictures(images=images.to(compute.device), labels=labels.to(compute.device))
    held_out = round(PUBLISHED_TRAINING_PICTURES * config.data.validation_fraction)
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
        compute=compute,
        train=pictures,
        validation=Pictures(images=pictures.images[:held_out], labels=pictures.labels[:held_out]),
        dataset=dataset,
        batches=BatchPlan(count=count, batch_size=config.train.batch_size, seed=config.seed),
        augmentation=Augmentation(
            images=pictures.images,
            **config.train.augment.model_dump(),
            seed=config.seed,
            gather=compute.compiled(gather),
        ),
        processes=processes,
    )


def new_fit(task: Task, config: Config) -> Fit:
    """A training at its first step that saves nothing and tells nobody."""
    model = task.new_model(config.model, seed=config.seed)
    return Fit.start(task, model, checkpoints=NoCheckpoints(), on_epoch=lambda _: None)
