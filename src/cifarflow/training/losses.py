"""Losses of single pictures: what is made of them (a mean over a batch, an order by difficulty) is up to the caller."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from cifarflow.registry import Registry

Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: Registry[Loss] = Registry("loss")
"""Each takes logits `[N, C]`, labels int64 `[N]` and the label smoothing in [0, 1), and gives float32 `[N]`."""


@LOSSES.register("cross_entropy")
def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")


@LOSSES.register("mse")
def mse(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Squared distance of the outputs to one-hot targets, averaged over the classes."""
    return F.mse_loss(logits, _targets(logits, labels, label_smoothing), reduction="none").mean(1)


@LOSSES.register("l1")
def l1(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Absolute distance of the outputs to one-hot targets, averaged over the classes."""
    return F.l1_loss(logits, _targets(logits, labels, label_smoothing), reduction="none").mean(1)


def _targets(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return one_hot * (1 - label_smoothing) + label_smoothing / logits.shape[1]
