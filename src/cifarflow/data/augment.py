"""Augmentation of whole batches: shift and mirror as one gather of pixels, then cutout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cifarflow.data.randomness import generator

GREY = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How training pictures are varied; `seed` and the epoch and step given later decide every draw."""

    flip: str
    """`none`, `random`, or `alternating`: a picture is mirrored every other epoch, starting at random (Jordan 2024,
    arXiv:2404.00498, section 3.6), so that two epochs show both sides of each picture."""
    translate_pixels: int
    cutout_pixels: int
    seed: int

    def __call__(self, images: Tensor, indices: Tensor, *, epoch: int, step: int) -> Tensor:
        """The pictures `indices` (int64 `[B]`) of `images` (uint8 `[N, H, W, 3]`), augmented: uint8 `[B, H, W, 3]`."""
        random = generator("augment", self.seed, epoch, step)
        height, width = images.shape[1:3]
        if self.flip == "none" and not self.translate_pixels:
            batch = images[indices]
        else:
            rows = _shifted(len(indices), height, self.translate_pixels, random)
            columns = _shifted(len(indices), width, self.translate_pixels, random)
            mirrored = self._mirrored(len(images), indices, epoch, random)
            columns = torch.where(mirrored.unsqueeze(1), columns.flip(1), columns)
            batch = _gather(images, indices, rows, columns)
        return _cut_out(batch, self.cutout_pixels, random) if self.cutout_pixels else batch

    def _mirrored(self, count: int, indices: Tensor, epoch: int, random: torch.Generator) -> Tensor:
        """bool `[B]`: which pictures of the batch are mirrored."""
        if self.flip == "none":
            return torch.zeros(len(indices), dtype=torch.bool)
        if self.flip == "random":
            return torch.randint(2, (len(indices),), generator=random).bool()
        first_side = torch.randint(2, (count,), generator=generator("flip", self.seed))
        return (first_side[indices.cpu()] + epoch) % 2 == 1


def _shifted(count: int, size: int, reach: int, random: torch.Generator) -> Tensor:
    """int64 `[count, size]`: source positions after a shift in [-reach, reach], mirrored at the edges."""
    shift = torch.randint(-reach, reach + 1, (count, 1), generator=random)
    position = (torch.arange(size) + shift).abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)


def _gather(images: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    device = images.device
    indices, rows, columns = indices.to(device), rows.to(device), columns.to(device)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def _cut_out(batch: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Grey out one square a picture (DeVries and Taylor 2017, arXiv:1708.04552); it may reach over the edge."""
    inside = []
    for size in batch.shape[1:3]:
        start = torch.randint(size, (len(batch), 1), generator=random) - side // 2
        offset = torch.arange(size) - start
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    hole = (rows[:, :, None] & columns[:, None, :]).unsqueeze(3).to(batch.device)
    return torch.where(hole, torch.tensor(GREY, dtype=batch.dtype, device=batch.device), batch)
