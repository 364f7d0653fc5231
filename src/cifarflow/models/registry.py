"""The registry of architectures; each file of this folder adds one."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from cifarflow.registry import Registry

ModelBuilder = Callable[..., nn.Module]
"""Builds a network from plain keywords: `num_classes`, `image_size`, and the options of its section in params.yaml.

It takes normalised float pictures `[N, 3, image_size, image_size]` and gives logits `[N, num_classes]`.
"""


@runtime_checkable
class WhitensInput(Protocol):
    """What a network has whose first layer is made from the training pictures."""

    def init_whiten(self, images: Tensor) -> None:
        """`images` are normalised, float32 `[N, 3, H, W]`."""
        ...


MODELS: Registry[ModelBuilder] = Registry("model")
