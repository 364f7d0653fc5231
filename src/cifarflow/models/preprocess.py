"""From stored bytes to what a network takes: one definition for training, evaluation and the exported graph."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 `[N, H, W, 3]` -> float32 `[N, 3, H, W]`, zero mean and unit spread by `mean`, `std` (`[3]`, of [0, 1])."""
    scaled = images.permute(0, 3, 1, 2).float() * (1 / 255)
    return (scaled - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


class Preprocess(nn.Module):
    """uint8 `[N, H, W, 3]` of any size -> normalised float32 `[N, 3, image_size, image_size]`.

    With `always_resizes` also what has that size already, and is the same afterwards: for a graph that is exported, in
    which the size is not known. (`torch.compiler.is_exporting` says so in compiled steps of torch 2.11, too.)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], image_size: int, always_resizes: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.always_resizes = always_resizes
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = normalise(images, self.mean, self.std)
        if self.always_resizes or images.shape[1:3] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        return pixels
