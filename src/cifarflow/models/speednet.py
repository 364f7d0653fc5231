"""A small, wide, shallow network made for speed: 94 % on CIFAR-10 in a few minutes of training.

The layout is that of Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498) and
github.com/KellerJordan/cifar10-airbench: a frozen whitening convolution, three groups of two 3x3 convolutions,
max-pooling and a scaled-down linear head; for 96 %, groups of three convolutions with a residual connection. What
differs: the last pooling is global, so one set of weights takes pictures of any size, and outputs that a pooling layer
would drop are never computed.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute.activation import batch_norm_gelu
from cifarflow.models.registry import MODELS

MIN_IMAGE_SIZE = 16
WHITEN_KERNEL_SIZE = 2


@MODELS.register("speednet")
def speednet(
    *,
    num_classes: int,
    image_size: int,
    widths: tuple[int, int, int],
    depth: int,
    batch_norm_momentum: float,
) -> SpeedNet:
    """Build the network; the caller seeds torch first, since filters and head are drawn here.

    `depth` is the number of convolutions in each of the three groups, 2 or 3. `batch_norm_momentum` is the weight of
    a batch in the running statistics. Raises ValueError for pictures too small to survive three poolings.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(
            f"speednet needs pictures of {MIN_IMAGE_SIZE} px or more, got image_size={image_size}"
        )
    return SpeedNet(
        num_classes=num_classes,
        widths=widths,
        depth=depth,
        batch_norm_momentum=batch_norm_momentum,
    )


class SpeedNet(nn.Module):
    """Normalised pictures [N, 3, H, W], H and W 16 or more, to logits [N, num_classes]."""

    def __init__(
        self,
        *,
        num_classes: int,
        widths: tuple[int, int, int],
        depth: int,
        batch_norm_momentum: float,
    ) -> None:
        super().__init__()
        whiten_width = 2 * 3 * WHITEN_KERNEL_SIZE**2
        self.whiten = nn.Conv2d(3, whiten_width, WHITEN_KERNEL_SIZE)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(cast(nn.Parameter, self.whiten.bias))
        widths_in = (whiten_width, *widths[:-1])
        self.groups = nn.Sequential(
            *(
                ConvGroup(width_in, width_out, depth=depth, momentum=batch_norm_momentum)
                for width_in, width_out in zip(widths_in, widths, strict=True)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / widths[-1])

    @torch.no_grad()
    def init_whiten(self, images: Tensor, *, eps: float = 5e-4) -> None:
        """Make the first layer project 2x2 patches on the scaled eigenvectors of their covariance and the negatives.

        `images` [N, 3, H, W] are normalised training pictures; 5,000 are plenty. The result is part of `state_dict`.
        Patch whitening in this place: github.com/tysam-code/hlb-CIFAR10.
        """
        weight = self.whiten.weight
        patches = F.unfold(images.float(), WHITEN_KERNEL_SIZE).transpose(1, 2).flatten(0, 1).double()
        covariance = patches.T @ patches / len(patches)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        directions = eigenvectors.T / (eigenvalues.clamp_min(0) + eps).sqrt().unsqueeze(1)
        weight.copy_(torch.cat((directions, -directions)).reshape(weight.shape))

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(F.gelu(self.whiten(images)))
        # Not `amax`: its gradient looks for the pixels that equal the maximum, and in a compiled step, which rounds the
        # two differently, there may be none (0 / 0). Pooling remembers where the maximum was.
        return self.head(F.max_pool2d(features, features.shape[2:]).flatten(1))


class ConvGroup(nn.Module):
    """Convolution, halving, batch norm, GELU, then the same without halving: [N, C, H, W] to [N, D, H // 2, W // 2].

    With a `depth` of 3 a third convolution follows, and what went into the second is added to what comes out of it.
    """

    def __init__(self, width_in: int, width_out: int, *, depth: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = _filters(width_in, width_out)
        self.norm1 = _batch_norm(width_out, momentum=momentum)
        self.conv2 = _filters(width_out, width_out)
        self.norm2 = _batch_norm(width_out, momentum=momentum)
        self.depth = depth
        if depth == 3:
            self.conv3 = _filters(width_out, width_out)
            self.norm3 = _batch_norm(width_out, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        halved = batch_norm_gelu(_convolve_and_halve(x, self.conv1.weight), self.norm1)
        x = batch_norm_gelu(self.conv2(halved), self.norm2)
        return batch_norm_gelu(self.conv3(x), self.norm3, halved) if self.depth == 3 else x


def _convolve_and_halve(x: Tensor, weight: Tensor) -> Tensor:
    """A padded 3x3 convolution and a 2x2 max-pool, without the last row and column where the pool would drop them.

    At 32 px that is 11 % of the network's arithmetic (up to a third of a layer's), and not one output differs.
    """
    odd_rows, odd_columns = x.shape[2] % 2, x.shape[3] % 2
    if odd_rows or odd_columns:
        x = F.pad(x, (1, 1 - odd_columns, 1, 1 - odd_rows))
        return F.max_pool2d(F.conv2d(x, weight), 2)
    return F.max_pool2d(F.conv2d(x, weight, padding=1), 2)


def _filters(width_in: int, width_out: int) -> nn.Conv2d:
    """A 3x3 convolution whose first `width_in` filters pass their channel through at the start of training."""
    convolution = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:width_in])
    return convolution


def _batch_norm(width: int, *, momentum: float) -> nn.BatchNorm2d:
    """Batch norm with a trained bias and a scale fixed at 1 (the next filter's normalisation would undo a scale)."""
    norm = nn.BatchNorm2d(width, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm
