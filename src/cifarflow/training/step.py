"""One optimizer step: a batch as micro-batches whose gradients add up."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cifarflow.data.batches import micro_batches
from cifarflow.training.hardware import ComputePlan
from cifarflow.training.losses import Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What every step of a run has in common."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss: Loss
    label_smoothing: float
    micro_batch_size: int
    compute: ComputePlan

    def __call__(
        self, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor]
    ) -> tuple[float, int]:
        """Train on uint8 `images` `[B, H, W, 3]`; returns the summed loss and the number of right answers.

        Gradients are those of the mean loss over the batch, however it is cut: only batch normalisation sees the
        micro-batches. Small ones keep the activations in the processor's cache.
        """
        loss_sum, correct = 0.0, 0
        for part in micro_batches(len(images), self.micro_batch_size):
            with self.compute.autocast():
                logits = self.model(
                    preprocess(images[part]).contiguous(memory_format=self.compute.memory_format)
                )
            loss = self.loss(logits.float(), labels[part], self.label_smoothing)
            (loss / len(images)).backward()
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == labels[part]).sum())
        for optimizer in self.optimizers:
            optimizer.step()
        return loss_sum, correct

    def clear_gradients(self) -> None:
        """Called before a step and not after one, so that the last gradients can be looked at."""
        self.model.zero_grad(set_to_none=True)
