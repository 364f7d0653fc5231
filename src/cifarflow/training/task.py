"""What is trained, on what, and how: params turned into objects, once, before the loop starts."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarflow.compute.plan import ComputePlan, plan_compute
from cifarflow.compute.processes import Processes
from cifarflow.config.schema import ModelConfig, TrainConfig
from cifarflow.data.augment import Augmentation
from cifarflow.data.batches import BatchPlan, micro_batches
from cifarflow.data.packed import DatasetInfo, read_dataset, read_split
from cifarflow.errors import ConfigError
from cifarflow.models import create_model
from cifarflow.models.preprocess import Preprocess
from cifarflow.workspace import Workspace

WHITENING_PICTURES = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """A split on the training device: uint8 `[N, H, W, 3]` and int64 `[N]`."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Pictures":
        split = read_split(path)
        return cls(
            images=torch.from_numpy(split.images).to(device), labels=torch.from_numpy(split.labels).to(device)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Everything about a run that does not change while it trains."""

    config: TrainConfig
    compute: ComputePlan
    train: Pictures
    validation: Pictures
    dataset: DatasetInfo
    batches: BatchPlan
    augmentation: Augmentation
    processes: Processes = field(default_factory=Processes)
    _preprocess: dict[int, Preprocess] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        config: TrainConfig,
        *,
        seed: int,
        workspace: Workspace,
        processes: Processes | None = None,
    ) -> "Task":
        """Read what `prepare` made, plan how to compute, and set the process up for it.

        Raises MissingInputError, and ConfigError when this machine cannot do what is asked, or there are too many
        processes.
        """
        processes = processes or Processes()
        dataset = read_dataset(workspace.dataset)
        compute = plan_compute(config, image_size=dataset.image_size, processes=processes)
        compute.take_effect()
        train = Pictures.load(workspace.split("train"), compute.device)
        batches = BatchPlan(count=len(train.labels), batch_size=config.batch_size, seed=seed)
        _check_share(processes, batches, config, compute.micro_batch_size)
        return cls(
            config=config,
            compute=compute,
            train=train,
            validation=Pictures.load(workspace.split("validation"), compute.device),
            dataset=dataset,
            batches=batches,
            augmentation=Augmentation(images=train.images, **config.augment.model_dump(), seed=seed),
            processes=processes,
        )

    @property
    def total_steps(self) -> int:
        return max(1, round(self.config.epochs * self.batches.steps_per_epoch))

    def pixels_at(self, step: int) -> int:
        """The side of the pictures that a step sees: small ones early in training cost a fraction of the arithmetic."""
        progress = step / self.total_steps
        for stage in self.config.resolution:
            if progress < stage.until:
                return min(stage.pixels, self.dataset.image_size)
        return self.dataset.image_size

    def kept_at(self, step: int) -> float:
        """The part of a drawn batch that a step trains on, in (0, 1]."""
        progress = step / self.total_steps
        return next((stage.keep for stage in self.config.selection if progress < stage.until), 1.0)

    def averages_at(self, step: int) -> bool:
        """Whether the weights after `step` steps go into their average."""
        return step > self.config.averaging.start * self.total_steps

    def preprocess(self, pixels: int) -> Preprocess:
        """The same object whenever asked: on a GPU, making one waits for it."""
        if pixels not in self._preprocess:
            scale = Preprocess(mean=self.dataset.mean, std=self.dataset.std, image_size=pixels)
            self._preprocess[pixels] = scale.to(self.compute.device)
        return self._preprocess[pixels]

    def new_model(self, config: ModelConfig, *, seed: int) -> nn.Module:
        """Fresh weights that depend on the seed alone (and, where the network whitens its input, on the pictures).

        Raises ConfigError when the network cannot take pictures of a size that it would meet.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_model(
                config.name,
                num_classes=len(self.dataset.classes),
                image_size=self.dataset.image_size,
                **config.options(),
            )
        model = model.to(device=self.compute.device, memory_format=self.compute.memory_format)  # pyright: ignore[reportCallIssue]
        if hasattr(model, "init_whiten"):
            model.init_whiten(
                self.preprocess(self.dataset.image_size)(self.train.images[:WHITENING_PICTURES])
            )
        self._check_sizes(model, config.name)
        return model

    @torch.no_grad()
    def _check_sizes(self, model: nn.Module, name: str) -> None:
        """A picture of each size goes through now, not after the hour that comes before the first of its size."""
        full = self.dataset.image_size
        model.eval()
        for pixels in sorted({full, *(min(stage.pixels, full) for stage in self.config.resolution)}):
            try:
                model(self.preprocess(pixels)(self.train.images[:1]))
            except RuntimeError as error:
                asked, remedy = ("the data has", "Take larger ones (`image_size` of the data's section)")
                if pixels < full:
                    asked, remedy = ("train.resolution asks for", "Set train.resolution to []")
                raise ConfigError(
                    f"params.yaml: model.name is {name!r}, but that network takes no pictures of {pixels} px, which "
                    f"{asked} ({str(error).splitlines()[0]}). {remedy}, or choose another network."
                ) from None
        model.train()


def _check_share(
    processes: Processes, batches: BatchPlan, config: TrainConfig, micro_batch_size: int
) -> None:
    """Every process needs a micro-batch of its own in every batch."""
    kept = min((stage.keep for stage in config.selection), default=1.0)
    smallest = max(1, int(kept * (batches.count // batches.steps_per_epoch)))
    parts = len(micro_batches(smallest, micro_batch_size))
    if parts < processes.count:
        raise ConfigError(
            f"params.yaml: train.launch starts {processes.count} processes, but the smallest step, on {smallest} "
            f"pictures, has {parts} micro-batch(es) of at most {micro_batch_size}. Start fewer, lower "
            "train.micro_batch_size, or raise train.batch_size or what train.selection keeps."
        )
