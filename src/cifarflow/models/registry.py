"""The registry of architectures; each file of this folder adds one."""

from typing import Protocol

from torch import nn

from cifarflow.registry import Registry


class ModelBuilder(Protocol):
    """Builds a network from plain keyword options.

    It takes normalised float pictures `[N, 3, image_size, image_size]` and gives logits `[N, num_classes]`.
    """

    def __call__(self, *, num_classes: int, image_size: int) -> nn.Module: ...


MODELS: Registry[ModelBuilder] = Registry("model")
