"""What is trained, on what, and how: params turned into objects, once, before the loop starts."""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cifarflow.compute.plan import ComputePlan, plan_compute
from cifarflow.compute.processes import Processes
from cifarflow.config.schema import ModelConfig, TrainConfig
from cifarflow.data.augment import Augmentation, gather
from cifarflow.data.batches import BatchPlan, even_slices
from cifarflow.data.packed import DatasetInfo, read_dataset, read_split
from cifarflow.errors import ConfigError
from cifarflow.models import create_model
from cifarflow.models.preprocess import Preprocess
from cifarflow.models.registry import WhitensInput
from cifarflow.training.difficulty import kept_of
from cifarflow.training.losses import LOSSES, Loss
from cifarflow.workspace import Workspace

WHITENING_PIXELS = 5000 * 32 * 32
"""Of the pictures that a whitening layer is made from: 5,000 of CIFAR-10's, fewer of larger ones, whose patches would
otherwise take gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """A split on the training device: uint8 `[N, H, W, 3]` and int64 `[N]`."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, name: str, workspace: Workspace, dataset: DatasetInfo, device: torch.device) -> "Pictures":
        """Raises MissingInputError, and DataIntegrityError when the file is not the split of `dataset`."""
        split = read_split(workspace.split(name), digest=dataset.digests.get(name))
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
        train, validation = (
            Pictures.load(name, workspace, dataset, compute.device) for name in ("train", "validation")
        )
        batches = BatchPlan(count=len(train.labels), batch_size=config.batch_size, seed=seed)
        _check_share(processes, batches, config, compute.micro_batch_size)
        return cls(
            config=config,
            compute=compute,
            train=train,
            validation=validation,
            dataset=dataset,
            batches=batches,
            augmentation=Augmentation(
                images=train.images,
                **config.augment.model_dump(),
                seed=seed,
                gather=compute.compiled(gather),
            ),
            processes=processes,
        )

    @property
    def loss(self) -> Loss:
        return LOSSES.get(self.config.loss.name, where="params.yaml: train.loss.name")

    @property
    def total_steps(self) -> int:
        return max(1, round(self.config.epochs * self.batches.steps_per_epoch))

    @property
    def advice(self) -> list[str]:
        """What somebody with few pictures should know before he wonders why nothing is learnt."""
        count, size = self.batches.count, self.config.batch_size
        if count >= size:
            return []
        return [
            f"batch_size: {size} is more than the {count} training pictures, so an epoch is one step, and training "
            f"{self.total_steps}. A smaller train.batch_size takes more steps (recipe `shapes` has 64)."
        ]

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

    def drawn(self, indices: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The training pictures `indices` (int64 `[B]`), augmented, and their labels."""
        labels = self.train.labels
        images = self.augmentation(indices, epoch=epoch, step=step)
        return images, labels[indices.to(labels.device, non_blocking=True)]

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
        self.whiten(model)
        self._check_sizes(model, config.name)
        return model

    def whiten(self, model: nn.Module) -> None:
        """Set the first layer of a network that has one to whiten its input, by the training pictures."""
        if isinstance(model, WhitensInput):
            full = self.dataset.image_size
            model.init_whiten(self.preprocess(full)(self.train.images[: max(1, WHITENING_PIXELS // full**2)]))

    def _check_sizes(self, model: nn.Module, name: str) -> None:
        """The smallest micro-batch of each size goes through a copy now, not after the hour that comes before it."""
        full, copy = self.dataset.image_size, deepcopy(model).train()
        smallest = min(_sizes_of_parts(self.batches, self.config, self.compute.micro_batch_size))
        for pixels in sorted({full, *(min(stage.pixels, full) for stage in self.config.resolution)}):
            try:
                with torch.no_grad():
                    copy(self.preprocess(pixels)(self.train.images[:smallest]))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                pictures = "one picture" if smallest == 1 else f"{smallest} pictures"
                how_large = "train.resolution ([]: full size)" if pixels < full else "the data"
                raise ConfigError(
                    f"params.yaml: model.name is {name!r}, but that network cannot train on {pictures} of {pixels} px "
                    f"at once ({reason}). How many it gets is decided by train.batch_size, "
                    f"train.micro_batch_size and train.selection, how large they are by {how_large}."
                ) from None


def _sizes_of_parts(batches: BatchPlan, config: TrainConfig, micro_batch_size: int) -> list[int]:
    """How many pictures the micro-batches of the smallest step have."""
    kept = min((stage.keep for stage in config.selection), default=1.0)
    smallest = kept_of(batches.count // batches.steps_per_epoch, kept)
    return [part.stop - part.start for part in even_slices(smallest, micro_batch_size)]


def _check_share(
    processes: Processes, batches: BatchPlan, config: TrainConfig, micro_batch_size: int
) -> None:
    """Every process needs a micro-batch of its own in every batch."""
    parts = _sizes_of_parts(batches, config, micro_batch_size)
    if len(parts) < processes.count:
        raise ConfigError(
            f"params.yaml: train.launch starts {processes.count} processes, but the smallest step, on {sum(parts)} "
            f"pictures, has {len(parts)} micro-batch(es) of at most {micro_batch_size}. Start fewer, lower "
            "train.micro_batch_size, or raise train.batch_size or what train.selection keeps."
        )
