"""Augmentation of whole batches of stored bytes: shift and mirror, then cutout."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cifarflow.data.randomness import generator

GREY = 128
WINDOWS_LIMIT_BYTES = 1 << 30
"""Up to this size, padded copies of all pictures and of their mirror images are held in memory."""


def gather(images: Tensor, indices: Tensor, rows: Tensor, columns: Tensor, mirrored: Tensor) -> Tensor:
    """Pictures shifted by `rows` and `columns` (int64 `[B]`), edges mirrored, then turned left to right where asked.

    One gather of pixels: quick on a GPU, where each thread moves one.
    """
    height, width = images.shape[1:3]
    y, x = _positions(height, rows), _positions(width, columns)
    x = torch.where(mirrored.unsqueeze(1), x.flip(1), x)
    return images[indices[:, None, None], y[:, :, None], x[:, None, :]]


def _positions(size: int, shift: Tensor) -> Tensor:
    """int64 `[B, size]`: where each row or column comes from."""
    there_and_back = 2 * (size - 1)
    position = (torch.arange(size, device=shift.device) + shift.unsqueeze(1)) % there_and_back
    return torch.where(position < size, position, there_and_back - position)


@dataclass(kw_only=True, slots=True)
class Augmentation:
    """A split of training pictures, varied; `seed` and the epoch and step given later decide every draw."""

    images: Tensor
    """uint8 `[N, H, W, 3]`."""
    flip: str
    """`none`, `random`, or `alternating`: a picture is mirrored every other epoch, starting at random (Jordan 2024,
    arXiv:2404.00498, section 3.6), so that two epochs show both sides of each picture."""
    translate_pixels: int
    cutout_pixels: int
    brightness: float
    contrast: float
    seed: int
    gather: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = field(default=gather, repr=False)
    """`gather` or its compiled form: what takes the pictures where there are no windows of them."""
    _windows: np.ndarray | None = field(init=False, repr=False)
    _first_side: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count, height, width, channels = self.images.shape
        around = 2 * self.translate_pixels
        fits = 2 * count * (height + around) * (width + around) * channels <= WINDOWS_LIMIT_BYTES
        on_cpu = self.images.device.type == "cpu"
        self._windows = all_windows(self.images.numpy(), self.translate_pixels) if on_cpu and fits else None
        first_side = torch.randint(2, (len(self.images),), generator=generator("flip", self.seed))
        self._first_side = first_side.to(self.images.device)

    def __call__(self, indices: Tensor, *, epoch: int, step: int) -> Tensor:
        """The pictures `indices` (int64 `[B]`), augmented: uint8 `[B, H, W, 3]`.

        Draws are made on the processor, the same for every device, and no copy to a GPU waits for it.
        """
        device = self.images.device
        indices = indices.to(device, non_blocking=True)
        random = generator("augment", self.seed, epoch, step)
        rows = self._shift(len(indices), random).to(device, non_blocking=True)
        columns = self._shift(len(indices), random).to(device, non_blocking=True)
        mirrored = self._mirrored(indices, epoch, random)
        if self._windows is not None:
            batch = take_windows(self._windows, indices, rows, columns, mirrored)
        else:
            batch = self.gather(self.images, indices, rows, columns, mirrored)
        if self.brightness or self.contrast:
            batch = _lit(batch, random, brightness=self.brightness, contrast=self.contrast)
        return _cut_out(batch, self.cutout_pixels, random) if self.cutout_pixels else batch

    def _shift(self, count: int, random: torch.Generator) -> Tensor:
        """int64 `[count]` in [-translate_pixels, translate_pixels]."""
        reach = self.translate_pixels
        return torch.randint(-reach, reach + 1, (count, 1), generator=random).squeeze(1)

    def _mirrored(self, indices: Tensor, epoch: int, random: torch.Generator) -> Tensor:
        """bool `[B]`: which pictures of the batch are mirrored."""
        if self.flip == "none":
            return torch.zeros(len(indices), dtype=torch.bool, device=indices.device)
        if self.flip == "random":
            sides = torch.randint(2, (len(indices),), generator=random)
            return sides.to(indices.device, non_blocking=True).bool()
        return (self._first_side[indices] + epoch) % 2 == 1


def all_windows(images: np.ndarray, reach: int) -> np.ndarray:
    """Each shift of each picture and its mirror image, `[2, N, 2r + 1, 2r + 1, H, W * 3]`: a view of padded copies."""
    count, height, width, channels = images.shape
    padding = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    sides = np.empty((2, count, height + 2 * reach, width + 2 * reach, channels), dtype=images.dtype)
    sides[0] = np.pad(images, padding, mode="reflect") if reach else images
    sides[1] = sides[0, :, :, ::-1]
    side, picture, row, column, byte = sides.strides
    shape = (2, count, 2 * reach + 1, 2 * reach + 1, height, width * channels)
    return np.lib.stride_tricks.as_strided(
        sides, shape, (side, picture, row, column, row, byte), writeable=False
    )


def take_windows(
    windows: np.ndarray, indices: Tensor, rows: Tensor, columns: Tensor, mirrored: Tensor
) -> Tensor:
    """What `gather` gives, out of `all_windows`: a picture is H runs of W * 3 bytes, not H * W * 3 addresses."""
    reach, (height, width) = windows.shape[2] // 2, windows.shape[4:]
    # In the mirror image, a shift to the right is one to the left.
    x = torch.where(mirrored, -columns, columns) + reach
    chosen = windows[mirrored.long().numpy(), indices.numpy(), (rows + reach).numpy(), x.numpy()]
    return torch.from_numpy(chosen.reshape(len(indices), height, width // 3, 3))


def _lit(batch: Tensor, random: torch.Generator, *, brightness: float, contrast: float) -> Tensor:
    """Another light for each picture: its own shift of all values and stretch of their distance from grey.

    For a network this small one table of 256 values a picture is enough (the ranges: the 94 % record of October 2025,
    github.com/hiverge/cifar10-speedrun).
    """
    shift, stretch = (
        ((torch.rand(len(batch), 1, generator=random) * 2 - 1) * reach).to(batch.device, non_blocking=True)
        for reach in (brightness, contrast)
    )
    values = torch.arange(256, device=batch.device) - GREY
    table = ((values + shift * 255) * (1 + stretch) + GREY).round().clamp(0, 255).to(torch.uint8)
    flat = batch.flatten(1)
    return table.gather(1, flat.long()).view_as(batch)


def _cut_out(batch: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Grey out one square a picture (DeVries and Taylor 2017, arXiv:1708.04552); it may reach over the edge."""
    inside = []
    for size in batch.shape[1:3]:
        start = torch.randint(size, (len(batch), 1), generator=random) - side // 2
        offset = torch.arange(size, device=batch.device) - start.to(batch.device, non_blocking=True)
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    return batch.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(3), GREY)
