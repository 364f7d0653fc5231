"""One optimizer step: a batch as micro-batches whose gradients add up, over one process or several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from cifarflow.compute.plan import ComputePlan
from cifarflow.compute.processes import Combination, Processes
from cifarflow.data.batches import even_slices
from cifarflow.data.randomness import seed_of
from cifarflow.training.losses import Loss

BatchNorms = list[tuple[_BatchNorm, float]]
"""Layers, and how much `batch_size` pictures weigh in the running statistics of each."""


def batch_norms(model: nn.Module) -> BatchNorms:
    """Those of a new network: a training step sets their momentum."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [(layer, layer.momentum) for layer in layers if layer.momentum is not None]


class Judge(nn.Module):
    """From stored bytes to losses: all that a pass does before its gradients, in one piece for a compiler."""

    def __init__(self, model: nn.Module, *, loss: Loss, label_smoothing: float, compute: ComputePlan) -> None:
        super().__init__()
        self.model, self.loss, self.label_smoothing, self.compute = model, loss, label_smoothing, compute

    def forward(
        self, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses of uint8 `images` `[M, H, W, 3]`, and 1 where the answer was right: float32 `[M]`, both."""
        with self.compute.autocast():
            pixels = preprocess(images).contiguous(memory_format=self.compute.memory_format)
            logits = self.model(pixels)
        losses = self.loss(logits.float(), labels, self.label_smoothing)
        return losses, (logits.argmax(1) == labels).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What every step of a run has in common."""

    model: nn.Module
    judge: nn.Module
    """A `Judge` of the model, or its compiled form."""
    optimizers: list[torch.optim.Optimizer]
    compute: ComputePlan
    batch_size: int
    batch_norms: BatchNorms
    seed: int
    processes: Processes = field(default_factory=Processes)

    def __call__(
        self, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor], *, number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Train on uint8 `images` `[B, H, W, 3]`; returns losses float32 `[B]`, and who was right, bool `[B]`.

        Gradients are those of the mean loss over the batch, however it is cut: only batch normalisation and dropout see
        the micro-batches, and in running statistics a picture weighs the same in each. How many go through the network
        at once changes no result but by rounding. What dropout draws depends on the seed, the step's `number` and the
        micro-batch, so a resumed run and several processes draw the same; one goes through such a network at a time.
        """
        parts = even_slices(len(images), self.compute.micro_batch_size)
        self._weigh_statistics(len(images) / len(parts))
        several = self.processes.count > 1
        combination = Combination(self.processes, self.model, micro_batches=len(parts)) if several else None
        # A row for the losses and one for the right answers; what other processes find is added up.
        found = torch.zeros(2, len(images), device=images.device)
        own = self.processes.share(list(enumerate(parts)))
        for together in even_slices(len(own), 1 if self.draws else self.compute.micro_batches_at_once):
            places, cuts = zip(*own[together], strict=True)
            if self.draws:
                torch.manual_seed(seed_of("dropout", self.seed, number, places[0]))
            found[:, cuts[0].start : cuts[-1].stop] = self._learn(images, labels, preprocess, cuts=cuts)
        if combination is not None:
            combination.add_up(found)
        with self.compute.autocast():  # for Muon's products
            for optimizer in self.optimizers:
                optimizer.step()
        return found[0], found[1].bool()

    def _weigh_statistics(self, pictures: float) -> None:
        """Set the momentum of batch norm for forward passes of so many: `batch_size` of them come to its own."""
        for layer, momentum in self.batch_norms:
            layer.momentum = 1 - (1 - momentum) ** (pictures / self.batch_size)

    def _learn(
        self,
        images: Tensor,
        labels: Tensor,
        preprocess: Callable[[Tensor], Tensor],
        *,
        cuts: Sequence[slice],
    ) -> Tensor:
        """Add the gradients of micro-batches of a batch, next to each other and M pictures in all, by one pass.

        Returns float32 `[2, M]`: losses, and 1 where the answer was right.
        """
        together, sizes = slice(cuts[0].start, cuts[-1].stop), [cut.stop - cut.start for cut in cuts]
        with self.compute.operations(sizes):
            losses, right = self.judge(images[together], labels[together], preprocess)
        (losses.sum() / len(images)).backward()
        if len(cuts) > 1:
            self._count(len(cuts) - 1)  # each layer has counted one itself
        return torch.stack((losses.detach(), right))

    def _count(self, micro_batches: int) -> None:
        """Tell the layers of batch norm of more micro-batches than they have seen passes."""
        for layer, _ in self.batch_norms:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += micro_batches

    @property
    def draws(self) -> bool:
        """Whether the network draws at random in training."""
        return any(isinstance(module, _DropoutNd) for module in self.model.modules())

    def clear_gradients(self) -> None:
        """Called before a step and not after one, so that the last gradients can be looked at."""
        self.model.zero_grad(set_to_none=True)
