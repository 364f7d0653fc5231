"""3x3 convolutions by Winograd's minimal filtering: a half to a quarter of the products, for float32 on a processor.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308, section 4): outputs are made in
tiles of m x m from overlapping patches d of (m + 2) x (m + 2), as A^T [(G g G^T) * (B^T d B)] A. The product in the
middle, summed over channels, is (m + 2)^2 matrix products; what is left are small combinations at the two ends. Both
gradients are the same steps backwards, and the gradient of the filters is what torch's own library is slowest at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

TILES = (2, 3, 4)
"""Sides of a tile of outputs, in pixels. Larger ones save more products, and round worse than float32 should."""
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)
"""Where polynomials are evaluated, beside infinity."""
CHUNK_BYTES = 8 << 20
"""Of products that exist at a time, so that they stay in a processor's cache."""


def convolve(images: Tensor, filters: Tensor, *, padding: int) -> Tensor:
    """`torch.nn.functional.conv2d` of float32 `[N, C, H, W]` and `[D, C, 3, 3]`, channels last, differentiable."""
    return cast(Tensor, _Convolution.apply(images, filters, padding))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transforms:
    """The matrices of one size of tile; `points` = tile + 2 is the side of a patch of inputs."""

    inputs: np.ndarray
    """B^T, `[points, points]`."""
    filters: np.ndarray
    """G, `[points, 3]`."""
    outputs: np.ndarray
    """A^T, `[tile, points]`."""

    @classmethod
    @functools.cache
    def of(cls, tile: int) -> Transforms:
        """Toom and Cook's interpolation: evaluate at `tile + 1` points and at infinity, multiply, interpolate."""
        points = POINTS[: tile + 1]
        inputs, filters = np.zeros((tile + 2, tile + 2)), np.zeros((tile + 2, 3))
        outputs = np.zeros((tile, tile + 2))
        for row, point in enumerate(points):
            others = [other for other in points if other != point]
            inputs[row, : tile + 1] = np.poly(others)[::-1]
            filters[row] = point ** np.arange(3) / np.prod([point - other for other in others])
            outputs[:, row] = point ** np.arange(tile)
        inputs[-1] = np.poly(points)[::-1]
        filters[-1, -1] = outputs[-1, -1] = 1
        return cls(inputs=inputs, filters=filters, outputs=outputs)

    def both_ways(self) -> Tensor:
        """The transform of filters along rows and columns at once, float32 `[points^2, 9]`."""
        return torch.from_numpy(np.kron(self.filters, self.filters)).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How outputs of `height` x `width` are cut into `rows` x `columns` tiles, and a batch into chunks of pictures."""

    height: int
    width: int
    tile: int
    rows: int
    columns: int
    pictures: int
    """At most, in a chunk."""

    @classmethod
    def of(cls, images: Sequence[int], filters: Sequence[int], padding: int) -> Tiling:
        """For shapes `[N, C, H, W]` and `[D, C, 3, 3]`, with the tile that takes the fewest products."""
        height, width = images[2] + 2 * padding - 2, images[3] + 2 * padding - 2

        def products(tile: int) -> int:
            return (tile + 2) ** 2 * -(-height // tile) * -(-width // tile)

        tile = min(TILES, key=products)
        chunks = max(1, round(images[0] * products(tile) * max(filters[:2]) * 4 / CHUNK_BYTES))
        return cls(
            height=height,
            width=width,
            tile=tile,
            rows=-(-height // tile),
            columns=-(-width // tile),
            pictures=-(-images[0] // chunks),
        )

    @property
    def points(self) -> int:
        """The side of a patch of inputs."""
        return self.tile + 2

    @property
    def products(self) -> int:
        """For one picture and one pair of channels."""
        return self.points**2 * self.rows * self.columns

    @property
    def whole(self) -> bool:
        """Whether no tile reaches over the edge."""
        return (self.height, self.width) == (self.tile * self.rows, self.tile * self.columns)


class _Convolution(torch.autograd.Function):
    """Inside, pictures are `[N, H, W, C]` and what is transformed `[points, points, N, rows, columns, C]`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, padding: int) -> Tensor:
        tiling = Tiling.of(images.shape, filters.shape, padding)
        width_out, width_in = filters.shape[:2]
        transforms = Transforms.of(tiling.tile)
        by_tap = filters.permute(2, 3, 1, 0).reshape(9, -1)
        products_with = (transforms.both_ways() @ by_tap).view(-1, width_in, width_out)
        outputs = torch.empty(len(images), tiling.height, tiling.width, width_out)
        patches = []
        chunks = images.permute(0, 2, 3, 1).split(tiling.pictures)
        for chunk, target in zip(chunks, outputs.split(tiling.pictures), strict=True):
            patches.append(_transform_inputs(chunk, tiling, padding))
            products = torch.bmm(patches[-1].view(tiling.points**2, -1, width_in), products_with)
            _transform_outputs(products, tiling, target)
        ctx.tiling, ctx.padding, ctx.input_shape = tiling, padding, images.shape
        ctx.save_for_backward(products_with, *patches)
        return outputs.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        products_with, *patches = ctx.saved_tensors
        tiling: Tiling = ctx.tiling
        squared, width_in, width_out = products_with.shape
        count, _, height, width = ctx.input_shape
        filters = torch.zeros_like(products_with)
        images = torch.empty(count, height, width, width_in) if ctx.needs_input_grad[0] else None
        chunks = gradients[0].permute(0, 2, 3, 1).split(tiling.pictures)
        targets = images.split(tiling.pictures) if images is not None else [None] * len(chunks)
        for chunk, patch, target in zip(chunks, patches, targets, strict=True):
            products = _outputs_backwards(chunk, tiling).view(squared, -1, width_out)
            filters.baddbmm_(patch.view(squared, -1, width_in).transpose(1, 2), products)
            if target is not None:
                of_patches = torch.bmm(products, products_with.transpose(1, 2)).view(patch.shape)
                _inputs_backwards(of_patches, tiling, ctx.padding, target)
        by_tap = Transforms.of(tiling.tile).both_ways().T @ filters.view(squared, -1)
        filters = by_tap.view(3, 3, width_in, width_out).permute(3, 2, 0, 1)
        return (
            images.permute(0, 3, 1, 2) if images is not None else None,
            filters.contiguous(memory_format=torch.channels_last),
            None,
        )


def _transform_inputs(images: Tensor, tiling: Tiling, padding: int) -> Tensor:
    """B^T d B of every patch of `images` `[N, H, W, C]`, along rows, then along columns."""
    count, height, width, channels = images.shape
    tile, points, matrix = tiling.tile, tiling.points, Transforms.of(tiling.tile).inputs
    padded = torch.zeros(count, tile * tiling.rows + 2, tile * tiling.columns + 2, channels)
    padded[:, padding : padding + height, padding : padding + width] = images
    along_rows = torch.empty(points, count, tiling.rows, padded.shape[2], channels)
    patches = torch.empty(points, points, count, tiling.rows, tiling.columns, channels)
    _combine(matrix, padded.unfold(1, points, tile).unbind(-1), along_rows.unbind(0))
    _combine(matrix, along_rows.unfold(3, points, tile).unbind(-1), patches.unbind(1))
    return patches


def _transform_outputs(products: Tensor, tiling: Tiling, outputs: Tensor) -> None:
    """A^T of products `[points^2, N * rows * columns, D]` A, written to `outputs` `[N, height, width, D]`."""
    count, channels = len(outputs), outputs.shape[3]
    tile, points, matrix = tiling.tile, tiling.points, Transforms.of(tiling.tile).outputs
    by_tile = (count, tiling.rows, tiling.columns, channels)
    along_rows = torch.empty(tile, points, *by_tile)
    _combine(matrix, products.view(points, points, *by_tile).unbind(0), along_rows.unbind(0))
    whole = (
        outputs
        if tiling.whole
        else outputs.new_empty(count, tile * tiling.rows, tile * tiling.columns, channels)
    )
    in_tiles = whole.view(count, tiling.rows, tile, tiling.columns, tile, channels).permute(4, 2, 0, 1, 3, 5)
    _combine(matrix, along_rows.unbind(1), in_tiles.unbind(0))
    if not tiling.whole:
        outputs.copy_(whole[:, : tiling.height, : tiling.width])


def _outputs_backwards(gradients: Tensor, tiling: Tiling) -> Tensor:
    """The gradient of products, from that of outputs `[N, height, width, D]`."""
    count, _, _, channels = gradients.shape
    tile, points, matrix = tiling.tile, tiling.points, Transforms.of(tiling.tile).outputs.T
    whole = gradients
    if not tiling.whole:
        whole = torch.zeros(count, tile * tiling.rows, tile * tiling.columns, channels)
        whole[:, : tiling.height, : tiling.width] = gradients
    along_rows = torch.empty(points, count, tiling.rows, whole.shape[2], channels)
    products = torch.empty(points, points, count, tiling.rows, tiling.columns, channels)
    _combine(matrix, whole.unfold(1, tile, tile).unbind(-1), along_rows.unbind(0))
    _combine(matrix, along_rows.unfold(3, tile, tile).unbind(-1), products.unbind(1))
    return products


def _inputs_backwards(patches: Tensor, tiling: Tiling, padding: int, images: Tensor) -> None:
    """The gradient of inputs, written to `images` `[N, H, W, C]`, from that of transformed patches, which overlap."""
    points, _, count, _, _, channels = patches.shape
    _, height, width, _ = images.shape
    padded_height, padded_width = tiling.tile * tiling.rows + 2, tiling.tile * tiling.columns + 2
    along_rows = torch.empty(points, count, padded_height, tiling.columns, channels)
    _overlap(patches.unbind(0), along_rows, dim=2, tiling=tiling)
    padded = torch.empty(count, height, padded_width, channels)
    _overlap(along_rows[:, :, padding : padding + height].unbind(0), padded, dim=2, tiling=tiling)
    images.copy_(padded[:, :, padding : padding + width])


def _overlap(sources: Sequence[Tensor], target: Tensor, *, dim: int, tiling: Tiling) -> None:
    """B combined from `sources`, where the last two of every patch are also the first two of the next."""
    matrix = Transforms.of(tiling.tile).inputs.T
    target.narrow(dim, target.shape[dim] - 2, 2).zero_()
    views = target.unfold(dim, tiling.points, tiling.tile).unbind(-1)
    _combine(matrix[: tiling.tile], sources, views[: tiling.tile])
    for row, view in zip(matrix[tiling.tile :], views[tiling.tile :], strict=True):
        _add(_terms(row, sources), view)


def _combine(matrix: np.ndarray, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Each of `targets` becomes the sum of `sources`, weighted by its row of `matrix`."""
    for row, target in zip(matrix, targets, strict=True):
        (weight, first), *rest = _terms(row, sources)
        if weight == 1 and rest:
            weight, second = rest.pop(0)
            torch.add(first, second, alpha=weight, out=target)
        else:
            torch.mul(first, weight, out=target)
        _add(rest, target)


def _add(terms: Sequence[tuple[float, Tensor]], target: Tensor) -> None:
    for weight, source in terms:
        target.add_(source, alpha=weight)


def _terms(row: np.ndarray, sources: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Weights other than 0 with what they weigh, a weight of 1 first: it saves a pass over memory."""
    terms = [(float(weight), source) for weight, source in zip(row, sources, strict=True) if weight]
    return sorted(terms, key=lambda term: term[0] != 1)
